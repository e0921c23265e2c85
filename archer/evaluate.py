"""Evaluation: problems are sampled, judged and scored, in training and by `archer eval`.

Training evaluates with the function that `archer eval` uses, on the same path and with the same
seeds, so a score in training and one of the exported checkpoint are the same measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from archer.config import Config
from archer.data.problems import problems_hash
from archer.engine.base import Generates, Sampling
from archer.rollout import Named, judged_groups, train_sampling
from archer.scores import Answers, Evaluation, summarise, to_answers
from archer.setup import Data, judging
from archer.terminal import Terminal
from archer.types import Group, Problem
from archer.verify.pool import Verifiers

UNIT = 256
"""Completions that are sampled together, as far as whole problems fit in; see `units`."""


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

    `check` is called with every completion; what it raises ends the evaluation. ValueError where
    there is nothing to evaluate.
    """
    judged = judged_units(engine, verifiers, data, config, terminal, check=check)
    groups = [group for unit in judged for group in unit]
    return score_answers([to_answers(group) for group in groups], data, config, ks), groups


def judged_units(
    engine: Generates,
    verifiers: Verifiers,
    data: Data,
    config: Config,
    terminal: Terminal,
    *,
    done: int = 0,
    check: Callable[[], None] | None = None,
) -> Iterator[list[Group]]:
    """Samples and judges the problems, unit by unit, but for the `done` units at the beginning.

    The draws depend on seed, problem and sample number alone.
    """
    samples = config.eval.samples
    rest = units(data.evaluate, samples)[done:]
    finished = samples * (len(data.evaluate) - sum(map(len, rest)))
    tokens = 0
    with terminal.bar("evaluate", len(data.evaluate) * samples) as advance:

        def progress(num_completions: int, num_tokens: int) -> None:
            if check is not None:
                check()
            advance(finished + num_completions, tokens + num_tokens)

        for unit in rest:
            named = [Named(problem=each, name=("eval", config.train.seed)) for each in unit]
            groups = judged_groups(
                engine, verifiers, named, data.render, eval_sampling(config), samples, progress
            )
            yield groups
            finished += samples * len(unit)
            tokens += sum(len(r.completion.token_ids) for g in groups for r in g.rollouts)


def units(problems: Sequence[Problem], samples: int) -> list[Sequence[Problem]]:
    """The problems in the units that are sampled together, the same wherever they are evaluated.

    Log-probs depend by rounding on what is sampled beside them. So an evaluation that goes on after
    a kill begins with a whole unit, and training cuts its problems like `archer eval`.
    """
    if not problems:
        raise ValueError("nothing to evaluate: the problem set is empty")
    size = max(1, UNIT // samples)
    return [problems[start : start + size] for start in range(0, len(problems), size)]


def score_answers(
    answers: Sequence[Answers], data: Data, config: Config, ks: Sequence[int] = ()
) -> Evaluation:
    """The result. `ks` are the k of pass@k and majority@k, each at most the samples of a problem;
    without any they are the powers of two."""
    return summarise(
        answers,
        samples=config.eval.samples,
        seed=config.train.seed,
        settings=described(data, config),
        policy=judging(config),
        ks=ks,
    )


def described(data: Data, config: Config) -> dict[str, Any]:
    """All settings that an evaluation depends on, beside the model."""
    return {
        **({"suite": data.suite} if data.suite else {}),
        **({"engine": data.sampler} if data.sampler else {}),
        "prompt": data.prompt,
        "verify": asdict(judging(config)),
        "sampling": asdict(eval_sampling(config)),
        "samples": config.eval.samples,
        "seed": config.train.seed,
        "problems_hash": problems_hash(data.evaluate),
    }


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
