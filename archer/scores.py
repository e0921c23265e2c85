"""What an evaluation found: avg@k, unbiased pass@k and majority@k, from judged groups.

Results are written and read here. Left out: how responses come about (archer.evaluate), and
`archer eval --compare` (archer.compare). No torch is loaded.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from archer.algo.passk import average_at_k, interval, majority_at_k, pass_at_k
from archer.data.problems import read_rows
from archer.files import written_whole
from archer.records import rollout_row, to_line
from archer.types import OUTCOMES, Group, Problem, StopReason, Verdict
from archer.verify.policy import Policy
from archer.verify.verifiers import READ_PARTS, judged_part


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What was measured and with which settings.

    Example: `score` = {"mean": 0.25, "low": 0.2, "high": 0.3}, the mean score of an answer with
    its 95 % interval over problems; `pass_at` = {"1": 0.25, "4": 0.5}; `majority_at` = {"4": 0.3}.
    """

    problems: int
    samples: int
    score: dict[str, float]
    pass_at: dict[str, float]
    truncated: float
    """Share of completions that ran into the token limit."""
    outcomes: dict[str, int]
    by_source: dict[str, float]
    mean_tokens: float
    settings: dict[str, Any]
    """Sampling, prompt, verifier, seed and data hash: what one needs to measure it again."""
    model: str = ""
    """What was measured, as it was named; the run itself during training."""
    majority_at: dict[str, float] = field(default_factory=dict)
    """Expected score of the commonest of k answers, over the `voting` problems."""
    voting: int = 0
    """Problems whose answers can be told to be equal: not programs, see `votes`."""
    no_answer: float = 0.0
    """Share of completions in which the verifier found no answer."""
    filtered: float = 0.0
    """Share of completions that a service withheld; most have no answer then."""
    by_difficulty: dict[str, float] = field(default_factory=dict)
    """Of the problems whose `meta` holds a "difficulty"; and of those with a "platform"."""
    by_platform: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A judged response, as far as scores depend on it.

    Example: Answer(text="5", in_thought=False, verdict=Verdict(...), num_tokens=2, stop="stop")
    """

    text: str
    in_thought: bool
    verdict: Verdict
    num_tokens: int
    stop: StopReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """All answers to one problem, in the order of their sample numbers."""

    problem: Problem
    answers: tuple[Answer, ...]


def to_answers(group: Group) -> Answers:
    """What scores depend on, without tokens."""
    return Answers(
        problem=group.problem,
        answers=tuple(
            Answer(
                text=rollout.completion.text,
                in_thought=rollout.completion.in_thought,
                verdict=rollout.verdict,
                num_tokens=len(rollout.completion.token_ids),
                stop=rollout.completion.stop,
            )
            for rollout in group.rollouts
        ),
    )


def summarise(
    groups: Sequence[Answers],
    *,
    samples: int,
    seed: int,
    settings: dict[str, Any],
    policy: Policy,
    ks: Sequence[int] = (),
) -> Evaluation:
    """Errors of the grader are left out of every score, and counted among the outcomes.

    A k of `ks` for which errors leave some problem too few verdicts is in no score at k. ValueError
    where nothing but errors is left.
    """
    every = [answer for group in groups for answer in group.answers]
    outcomes = Counter(answer.verdict.outcome for answer in every)
    judged = [own for group in groups if (own := without_errors(group)).answers]
    if not judged:
        raise ValueError(
            "every verdict of this evaluation is a grader error, the first one "
            f"{every[0].verdict.detail!r}; mend the verifier"
        )
    scores = [[answer.verdict.score for answer in group.answers] for group in judged]
    problems = [group.problem for group in judged]
    averages = [average_at_k(own) for own in scores]
    means = interval(averages, seed=seed)
    right = [(len(own), sum(score >= 1 for score in own)) for own in scores]
    fewest = min(n for n, _ in right)
    possible = range(1, fewest + 1)
    wanted = [k for k in possible if (k in ks if ks else k & (k - 1) == 0 or k == fewest)]
    ballots = [
        (answers, own)
        for group, own in zip(judged, scores, strict=True)
        if (answers := votes(group, policy)) is not None
    ]
    return Evaluation(
        problems=len(groups),
        samples=samples,
        score={"mean": means.mean, "low": means.low, "high": means.high},
        pass_at={str(k): average_at_k([pass_at_k(n, c, k) for n, c in right]) for k in wanted},
        majority_at={
            str(k): average_at_k([majority_at_k(answers, own, k) for answers, own in ballots])
            for k in wanted
            if ballots and k > 1  # one sample is its own majority
        },
        voting=len(ballots),
        truncated=sum(answer.stop == "length" for answer in every) / len(every),
        no_answer=outcomes["no_answer"] / len(every),
        filtered=sum(answer.stop == "filtered" for answer in every) / len(every),
        outcomes={name: outcomes[name] for name in OUTCOMES},
        by_source=_averages([problem.source for problem in problems], averages),
        by_difficulty=_averages([_meta(each, "difficulty") for each in problems], averages),
        by_platform=_averages([_meta(each, "platform") for each in problems], averages),
        mean_tokens=sum(answer.num_tokens for answer in every) / len(every),
        settings=settings,
    )


def without_errors(group: Answers) -> Answers:
    """Those answers on which the grader did not fail."""
    kept = tuple(answer for answer in group.answers if answer.verdict.outcome != "error")
    return replace(group, answers=kept)


def votes(group: Answers, policy: Policy) -> list[Hashable | None] | None:
    """What each answer votes for: the part of the response that decides its verdict.

    In mathematics that is the extracted answer as it is written, so 0.5 and 1/2 are two. None for a
    response without an answer, and instead of all votes where equal answers can't be told: for
    programs, and for verifiers and answer patterns that `judged_part` knows nothing of.
    """
    problem = group.problem
    if problem.verifier not in VOTERS or policy.answer_pattern not in ("box", "number"):
        return None
    return [
        None
        if answer.verdict.outcome == "no_answer"
        else judged_part(problem, answer.text, answer.in_thought, policy)
        for answer in group.answers
    ]


VOTERS = READ_PARTS.keys() - {"code"}
"""Verifiers whose answers are equal or not; two right programs are hardly ever the same text."""


def _averages(names: Sequence[str | None], averages: Sequence[float]) -> dict[str, float]:
    """The mean over the problems of each name; None is a problem without one."""
    found: dict[str, list[float]] = {}
    for name, average in zip(names, averages, strict=True):
        if name is not None:
            found.setdefault(name, []).append(average)
    return {name: average_at_k(own) for name, own in sorted(found.items())}


def _meta(problem: Problem, key: str) -> str | None:
    value = problem.meta.get(key)
    return None if value is None else str(value)


def write_evaluation(path: Path, evaluation: Evaluation, groups: Sequence[Group]) -> None:
    """PATH.json with the result, and PATH.jsonl with every response beside it."""
    with written_whole(path.with_suffix(".jsonl")) as file:
        file.writelines(answer_lines(groups))
    write_result(path, evaluation)


def write_result(path: Path, evaluation: Evaluation) -> None:
    """The result alone."""
    with written_whole(path) as file:
        file.write((json.dumps(asdict(evaluation), indent=1) + "\n").encode())


def answer_lines(groups: Sequence[Group], first: int = 0) -> Iterator[bytes]:
    """A line for each response, of which the first belongs to problem number `first`.

    They have no times, which only chance decides: the same evaluation gives the same bytes.
    """
    for place, group in enumerate(groups, start=first):
        for sample in range(len(group.rollouts)):
            row = rollout_row(group, place, sample, None)
            yield to_line({key: value for key, value in row.items() if key != "seconds"})


def read_evaluation(path: Path) -> Evaluation:
    """What `write_evaluation` wrote, without the responses; ValueError for anything else."""
    try:
        return Evaluation(**json.loads(path.read_bytes()))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; give a file that archer eval wrote") from error
    except (ValueError, TypeError):
        raise ValueError(f"{path} is no result of archer eval; give a file that it wrote") from None


def problem_scores(result: Path) -> dict[str, float]:
    """The mean score of each problem by its id, from the responses beside a result.

    Responses on which the grader failed are left out, and problems that have only such.
    """
    path = result.with_suffix(".jsonl")
    scores: dict[str, list[float]] = {}
    for line, row in read_rows(path):
        try:
            if row["outcome"] != "error":
                scores.setdefault(row["id"], []).append(float(row["score"]))
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"{path}:{line}: no judged response; give a result with the responses that "
                "archer eval wrote beside it"
            ) from None
    return {id: average_at_k(own) for id, own in scores.items()}


def different_settings(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """The settings in which two evaluations differ, by dotted name, with both values.

    Example: {"sampling.temperature": (0.8, 1.0)}; None stands for a setting that one does not have.
    """
    one, other = _flat(first), _flat(second)
    names = sorted(one.keys() | other.keys())
    return {
        name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)
    }


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, Mapping) and value
        found |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return found
