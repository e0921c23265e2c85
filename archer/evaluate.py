"""Scores with intervals: avg@k and unbiased pass@k over problems, from one or many samples each.

Training evaluates with the function that `archer eval` uses, on the same path and with the same
seeds, so a score in training and one of the exported checkpoint are the same measurement.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from archer.algo.passk import interval, pass_at_k
from archer.config import Config
from archer.data.problems import problems_hash
from archer.engine.base import Generates, Sampling
from archer.files import written_whole
from archer.records import write_rollouts
from archer.rollout import Named, Progress, Render, judged_groups, train_sampling
from archer.setup import Data, judging
from archer.terminal import Terminal
from archer.types import OUTCOMES, Group, Problem
from archer.verify.pool import Verifiers


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


def evaluate_data(
    engine: Generates,
    verifiers: Verifiers,
    data: Data,
    config: Config,
    terminal: Terminal,
    *,
    ks: Sequence[int] = (),
    check: Callable[[], None] | None = None,
) -> tuple[Evaluation, list[Group]]:
    """The evaluation that a recipe asks for, on the weights that the engine serves now.

    `check` is called with every completion; what it raises ends the evaluation.
    """
    with terminal.bar("evaluate", len(data.evaluate) * config.eval.samples) as advance:

        def progress(done: int, tokens: int) -> None:
            if check is not None:
                check()
            advance(done, tokens)

        return evaluate(
            engine,
            verifiers,
            data.evaluate,
            data.render,
            eval_sampling(config),
            samples=config.eval.samples,
            seed=config.train.seed,
            settings={"prompt": data.prompt, "verify": asdict(judging(config))},
            ks=ks,
            progress=progress,
        )


def eval_sampling(config: Config) -> Sampling:
    """How the recipe's evaluations sample."""
    return replace(
        train_sampling(config.rollout),
        max_tokens=config.eval.max_tokens or config.rollout.max_tokens,
        temperature=config.eval.temperature,
        top_p=config.eval.top_p,
        top_k=0,
        min_p=0.0,
    )


def evaluate(
    engine: Generates,
    verifiers: Verifiers,
    problems: Sequence[Problem],
    render: Render,
    sampling: Sampling,
    *,
    samples: int,
    seed: int,
    settings: dict[str, Any],
    ks: Sequence[int] = (),
    progress: Progress | None = None,
) -> tuple[Evaluation, list[Group]]:
    """Samples and judges every problem. The draws depend on seed, problem and sample number alone.

    `ks` are the k of pass@k, each at most `samples`; without any they are the powers of two.
    Raises ValueError where there is nothing to evaluate.
    """
    if not problems:
        raise ValueError("nothing to evaluate: the problem set is empty")
    named = [Named(problem=problem, name=("eval", seed)) for problem in problems]
    groups = judged_groups(engine, verifiers, named, render, sampling, samples, progress)
    described = {
        **settings,
        "sampling": asdict(sampling),
        "samples": samples,
        "seed": seed,
        "problems_hash": problems_hash(problems),
    }
    evaluation = summarise_groups(groups, samples=samples, seed=seed, settings=described, ks=ks)
    return evaluation, groups


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
    means = interval([sum(own) / len(own) for own in judged], seed=seed)
    right = [(len(own), sum(score >= 1 for score in own)) for own in judged]
    fewest = min(n for n, _ in right)
    possible = range(1, fewest + 1)
    wanted = [k for k in possible if (k in ks if ks else k & (k - 1) == 0 or k == fewest)]
    by_source: dict[str, list[float]] = {}
    for group, own in zip(groups, scores, strict=True):
        if own:
            by_source.setdefault(group.problem.source, []).append(sum(own) / len(own))
    return Evaluation(
        problems=len(groups),
        samples=samples,
        score={"mean": means.mean, "low": means.low, "high": means.high},
        pass_at={str(k): sum(pass_at_k(n, c, k) for n, c in right) / len(right) for k in wanted},
        truncated=sum(r.completion.stop == "length" for r in rollouts) / len(rollouts),
        outcomes=outcomes,
        by_source={name: sum(own) / len(own) for name, own in sorted(by_source.items())},
        mean_tokens=sum(len(r.completion.token_ids) for r in rollouts) / len(rollouts),
        settings=settings,
    )


def write_evaluation(path: Path, evaluation: Evaluation, groups: Sequence[Group]) -> None:
    """PATH.json with the result, and PATH.jsonl with every response beside it."""
    write_rollouts(path.with_suffix(".jsonl"), groups, {})
    with written_whole(path) as file:
        file.write((json.dumps(asdict(evaluation), indent=1) + "\n").encode())


def read_evaluation(path: Path) -> Evaluation:
    """What `write_evaluation` wrote, without the responses."""
    return Evaluation(**json.loads(path.read_text()))


def settings_hash(settings: dict[str, Any]) -> str:
    """Two evaluations may be compared when these are equal."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()
