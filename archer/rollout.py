"""Problems become judged groups: render, sample, judge while sampling goes on.

Training and evaluation both go through `judged_groups`, so a score measured in training and one
measured afterwards on the exported model come from the same code. Which groups then teach is
`archer.algo.select`'s business; drawing others in their place is done here, in rounds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from archer.algo.select import is_uniform, judged, shape_overlong, teaching
from archer.config import RolloutConfig
from archer.data.stream import ProblemStream
from archer.engine.base import Generates, Request, Sampling
from archer.model.prompts import RenderedPrompt
from archer.types import Completion, Group, Problem, Rollout, Verdict
from archer.verify.pool import Ticket, Verifiers

Render = Callable[[Problem], RenderedPrompt]
Progress = Callable[[int, int], None]
"""Called with the number of completions that are done and the tokens in them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A problem with the name that decides its random draws: ("train", seed, step, position)."""

    problem: Problem
    name: tuple[str | int, ...]


class TooManyErrors(RuntimeError):
    """The grader failed on too large a share of a step's responses."""


def judged_groups(
    engine: Generates,
    verifiers: Verifiers,
    named: Sequence[Named],
    render: Render,
    sampling: Sampling,
    samples: int,
    progress: Progress | None = None,
) -> list[Group]:
    """`samples` completions of each problem, each with its verdict, in the order of `named`.

    One call is one unit of sampling work: the same call gives the same groups to the last bit.
    A completion goes to the verifiers as soon as it is finished.
    """
    requests = []
    for entry in named:
        prompt = render(entry.problem)
        names = tuple(
            (*entry.name, entry.problem.source, entry.problem.id, j) for j in range(samples)
        )
        requests.append(
            Request(
                prompt_ids=prompt.token_ids,
                in_thought=prompt.in_thought,
                names=names,
                messages=prompt.messages,
            )
        )
    done: dict[tuple[int, int], tuple[Completion, Ticket]] = {}
    tokens = 0
    for sample in engine.generate(requests, sampling):
        problem, completion = named[sample.request].problem, sample.completion
        ticket = verifiers.submit(problem, completion.text, completion.in_thought)
        done[sample.request, sample.number] = completion, ticket
        tokens += len(completion.token_ids)
        if progress is not None:
            progress(len(done), tokens)
    places = [(i, j) for i in range(len(named)) for j in range(samples)]
    verdicts = verifiers.collect([done[place][1] for place in places])
    rollouts = [
        Rollout(completion=done[place][0], verdict=verdict, reward=verdict.score)
        for place, verdict in zip(places, verdicts, strict=True)
    ]
    return [
        Group(problem=entry.problem, rollouts=tuple(rollouts[i * samples : (i + 1) * samples]))
        for i, entry in enumerate(named)
    ]


def sample_step(
    engine: Generates,
    verifiers: Verifiers,
    stream: ProblemStream,
    render: Render,
    config: RolloutConfig,
    *,
    seed: int,
    step: int,
    position: int,
    progress: Progress | None = None,
) -> tuple[list[Group], int]:
    """Draws and judges a step's groups; returns them with the new position of the stream.

    With refill, rounds of as many problems as are still missing follow until enough groups teach
    or `max_rounds` are over. A round begins when all verdicts of the one before are in.
    """
    groups: list[Group] = []
    missing = config.problems
    for _ in range(config.max_rounds if config.filter == "refill" else 1):
        problems = stream.take(position, missing)
        named = [
            Named(problem=problem, name=("train", seed, step, position + i))
            for i, problem in enumerate(problems)
        ]
        position += missing
        groups += judged_groups(
            engine, verifiers, named, render, train_sampling(config), config.samples, progress
        )
        missing = config.problems - sum(not is_uniform(group) for group in groups)
        if missing <= 0:
            break
    return groups, position


def train_sampling(config: RolloutConfig) -> Sampling:
    """How the recipe samples in training."""
    return Sampling(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p,
        stop=config.stop,
    )


def greedy_rewards(
    engine: Generates,
    verifiers: Verifiers,
    groups: Sequence[Group],
    render: Render,
    config: RolloutConfig,
) -> list[float | None]:
    """Score of the greedy answer to each group's problem (ReMax, arXiv 2310.10505).

    None where the grader failed on it: such a group has nothing to be compared with.
    """
    named = [Named(problem=group.problem, name=("greedy", i)) for i, group in enumerate(groups)]
    sampling = Sampling(max_tokens=config.max_tokens, temperature=0.0, stop=config.stop)
    greedy = judged_groups(engine, verifiers, named, render, sampling, 1)
    return [None if v.outcome == "error" else v.score for v in verdicts_of(greedy)]


def shape_rewards(
    groups: Sequence[Group], config: RolloutConfig
) -> tuple[Sequence[Group], dict[str, int]]:
    """The groups with the rewards that are trained on, and how many answers were penalised."""
    if not config.overlong.buffer:
        return groups, {}
    return shape_overlong(
        groups,
        limit=config.max_tokens,
        buffer=config.overlong.buffer,
        factor=config.overlong.penalty,
    )


def select_step(
    groups: Sequence[Group], config: RolloutConfig
) -> tuple[list[Group], dict[str, float]]:
    """The groups that teach, and counts of all that was left out."""
    kept, counts = teaching(groups, filter="keep" if config.filter == "keep" else "drop")
    found: dict[str, float] = {**counts, "groups/sampled": len(groups)}
    rollouts = [rollout for group in kept for rollout in judged(group)]
    found["rollouts/masked"] = (
        sum(r.completion.stop == "length" for r in rollouts) if config.overlong.mask else 0
    )
    found["groups/teaching"] = len(kept)
    return kept, found


def verdicts_of(groups: Sequence[Group]) -> list[Verdict]:
    """All verdicts, group by group."""
    return [rollout.verdict for group in groups for rollout in group.rollouts]


def check_errors(verdicts: Sequence[Verdict], max_share: float) -> None:
    """Raises TooManyErrors, with the commonest reasons, past the set share of grader errors."""
    errors = [verdict.detail for verdict in verdicts if verdict.outcome == "error"]
    if len(errors) > max_share * len(verdicts):
        common = "; ".join(f"{detail} ({n}x)" for detail, n in Counter(errors).most_common(2))
        raise TooManyErrors(
            f"{len(errors)} of {len(verdicts)} verdicts are grader errors, more than "
            f"verify.max_error_share = {max_share}: {common}; mend the verifier, or raise the share"
        )
