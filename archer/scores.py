"""What an evaluation found: avg@k and unbiased pass@k with intervals, from judged groups.

Results are written and read here. Left out: how responses come about (archer.evaluate), and
`archer eval --compare` (archer.compare). No torch is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from archer.algo.passk import average_at_k, interval, pass_at_k
from archer.files import written_whole
from archer.records import write_rollouts
from archer.types import OUTCOMES, Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What was measured and with which settings.

    Example: `score` = {"mean": 0.25, "low": 0.2, "high": 0.3}, the mean score of an answer with
    its 95 % interval over problems; `pass_at` = {"1": 0.25, "4": 0.5}.
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


def summarise_groups(
    groups: Sequence[Group],
    *,
    samples: int,
    seed: int,
    settings: dict[str, Any],
    ks: Sequence[int] = (),
) -> Evaluation:
    """Errors of the grader are left out of every score, and counted among the outcomes.

    A k of `ks` for which errors leave some problem too few verdicts is not in `pass_at`.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    outcomes: dict[str, int] = {
        name: sum(r.verdict.outcome == name for r in rollouts) for name in OUTCOMES
    }
    scores = [
        [r.verdict.score for r in group.rollouts if r.verdict.outcome != "error"]
        for group in groups
    ]
    judged = [own for own in scores if own]
    if not judged:
        raise ValueError(
            "every verdict of this evaluation is a grader error, the first one "
            f"{rollouts[0].verdict.detail!r}; mend the verifier"
        )
    means = interval([average_at_k(own) for own in judged], seed=seed)
    right = [(len(own), sum(score >= 1 for score in own)) for own in judged]
    fewest = min(n for n, _ in right)
    possible = range(1, fewest + 1)
    wanted = [k for k in possible if (k in ks if ks else k & (k - 1) == 0 or k == fewest)]
    by_source: dict[str, list[float]] = {}
    for group, own in zip(groups, scores, strict=True):
        if own:
            by_source.setdefault(group.problem.source, []).append(average_at_k(own))
    return Evaluation(
        problems=len(groups),
        samples=samples,
        score={"mean": means.mean, "low": means.low, "high": means.high},
        pass_at={str(k): sum(pass_at_k(n, c, k) for n, c in right) / len(right) for k in wanted},
        truncated=sum(r.completion.stop == "length" for r in rollouts) / len(rollouts),
        outcomes=outcomes,
        by_source={name: average_at_k(own) for name, own in sorted(by_source.items())},
        mean_tokens=sum(len(r.completion.token_ids) for r in rollouts) / len(rollouts),
        settings=settings,
    )


def write_evaluation(path: Path, evaluation: Evaluation, groups: Sequence[Group]) -> None:
    """PATH.json with the result, and PATH.jsonl with every response beside it."""
    write_rollouts(path.with_suffix(".jsonl"), groups, {})
    with written_whole(path) as file:
        file.write((json.dumps(asdict(evaluation), indent=1) + "\n").encode())


def read_evaluation(path: Path) -> Evaluation:
    """What `write_evaluation` wrote, without the responses; ValueError for anything else."""
    try:
        return Evaluation(**json.loads(path.read_bytes()))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; give a file that archer eval wrote") from error
    except (ValueError, TypeError):
        raise ValueError(f"{path} is no result of archer eval; give a file that it wrote") from None


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
