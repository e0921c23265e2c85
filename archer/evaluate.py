"""Evaluation: problems are sampled, judged and scored, in training and by `archer eval`.

Training evaluates with the function that `archer eval` uses, on the same path and with the same
seeds, so a score in training and one of the exported checkpoint are the same measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from archer.config import Config
from archer.data.problems import problems_hash
from archer.engine.base import Generates, Sampling
from archer.rollout import Named, Progress, Render, judged_groups, train_sampling
from archer.scores import Evaluation, summarise_groups
from archer.setup import Data, judging
from archer.terminal import Terminal
from archer.types import Group, Problem
from archer.verify.policy import Policy
from archer.verify.pool import Verifiers


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
            prompt=data.prompt,
            policy=judging(config),
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
    prompt: dict[str, Any],
    policy: Policy,
    ks: Sequence[int] = (),
    progress: Progress | None = None,
) -> tuple[Evaluation, list[Group]]:
    """Samples and judges every problem. The draws depend on seed, problem and sample number alone.

    `ks` are the k of pass@k and majority@k, each at most `samples`; without any, the powers of two.
    Raises ValueError where there is nothing to evaluate.
    """
    if not problems:
        raise ValueError("nothing to evaluate: the problem set is empty")
    named = [Named(problem=problem, name=("eval", seed)) for problem in problems]
    groups = judged_groups(engine, verifiers, named, render, sampling, samples, progress)
    described = {
        "prompt": prompt,
        "verify": asdict(policy),
        "sampling": asdict(sampling),
        "samples": samples,
        "seed": seed,
        "problems_hash": problems_hash(problems),
    }
    evaluation = summarise_groups(
        groups, samples=samples, seed=seed, settings=described, policy=policy, ks=ks
    )
    return evaluation, groups
