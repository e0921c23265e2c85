"""Which groups teach, what their rewards are, and how both become tensors and back.

Everything that is left out is counted, under names that go into the metrics as they are. A verdict
`error` is the grader's failure, not an answer: it is no score, no reward, and in no statistic.

Left out: sampling again in place of what was dropped (the rollouts do that), and the overlong mask
(`to_batch` sets it after advantages are made, so that a masked answer still counts as a sample).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from archer.algo.advantage import Advantage
from archer.types import Group, Rollout

Filter = Literal["keep", "drop"]
Counts = dict[str, int]


def judged(group: Group) -> tuple[Rollout, ...]:
    """The rollouts whose grader did not fail."""
    return tuple(rollout for rollout in group.rollouts if rollout.verdict.outcome != "error")


def is_uniform(group: Group) -> bool:
    """Whether the judged answers of a group all have the same score, so that none is better.

    The verdict's score decides, never the reward: a length penalty makes no wrong answer better.
    With fewer than two judged answers there is nothing to compare, which is uniform too.
    """
    return len({rollout.verdict.score for rollout in judged(group)}) < 2


def teaching(groups: Sequence[Group], *, filter: Filter) -> tuple[list[Group], Counts]:
    """The groups to train on, in their order, and what was found and dropped.

    `drop` leaves out uniform groups (DAPO's dynamic sampling, arXiv 2503.14476, Eq. 11, without
    the refill). `keep` leaves them in: their advantages are 0 (unless shaping sets their rewards
    apart), yet they count in the averages. A group that errors left with fewer than two judged
    answers is always dropped: its baseline is gone.
    """
    counts: Counter[str] = Counter(dict.fromkeys(_COUNTED, 0))
    kept = []
    for group in groups:
        scores = [rollout.verdict.score for rollout in judged(group)]
        counts["rollouts/error"] += len(group.rollouts) - len(scores)
        if len(scores) < min(2, len(group.rollouts)):
            counts["groups/too_few_judged"] += 1
            continue
        uniform = is_uniform(group)
        counts["groups/uniform"] += uniform
        counts["groups/all_right"] += uniform and scores[0] >= 1
        counts["groups/all_wrong"] += uniform and scores[0] <= 0
        if uniform and filter == "drop":
            continue
        kept.append(group)
    counts["groups/dropped"] = len(groups) - len(kept)
    return kept, dict(counts)


_COUNTED = (
    "groups/uniform",
    "groups/all_right",
    "groups/all_wrong",
    "groups/too_few_judged",
    "groups/dropped",
    "rollouts/error",
)


def overlong_penalty(length: int, *, limit: int, buffer: int, factor: float = 1.0) -> float:
    """DAPO's soft punishment of long answers (arXiv 2503.14476, Eq. 13), 0 down to -factor.

    0 up to `limit` - `buffer` tokens, then falling in a line to -factor at `limit` and beyond.
    """
    if not 0 < buffer <= limit:
        raise ValueError(f"overlong buffer is {buffer}: give 1 to {limit}, the token limit")
    excess = length - (limit - buffer)
    return -factor * min(max(excess, 0), buffer) / buffer


def shape_overlong(
    groups: Sequence[Group], *, limit: int, buffer: int, factor: float = 1.0
) -> tuple[list[Group], Counts]:
    """The groups with reward = score + overlong penalty, and how many answers were penalised."""
    penalised = 0
    shaped = []
    for group in groups:
        rollouts = []
        for rollout in group.rollouts:
            length = len(rollout.completion.token_ids)
            penalty = overlong_penalty(length, limit=limit, buffer=buffer, factor=factor)
            penalised += penalty < 0 and rollout.verdict.outcome != "error"
            rollouts.append(replace(rollout, reward=rollout.verdict.score + penalty))
        shaped.append(replace(group, rollouts=tuple(rollouts)))
    return shaped, {"rollouts/penalised": penalised}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JudgedRewards:
    """What an advantage is made from: one number per judged sequence, errors left out.

    Example, two groups with rewards (1 error) and (0 1), each answer 3 tokens long:
        rewards = [1 0 1]  group_ids = [0 1 1]  lengths = [3 3 3]
    """

    rewards: Float[Tensor, "B"]
    group_ids: Int[Tensor, "B"]
    """Number of the group in the sequence of groups."""
    lengths: Int[Tensor, "B"]
    """Tokens of each completion."""


def judged_rewards(groups: Sequence[Group]) -> JudgedRewards:
    """Rewards, group numbers and lengths of all judged rollouts, group by group."""
    rows = [(number, rollout) for number, group in enumerate(groups) for rollout in judged(group)]
    return JudgedRewards(
        rewards=torch.tensor([rollout.reward for _, rollout in rows], dtype=torch.float32),
        group_ids=torch.tensor([number for number, _ in rows], dtype=torch.int64),
        lengths=torch.tensor(
            [len(rollout.completion.token_ids) for _, rollout in rows], dtype=torch.int64
        ),
    )


def group_advantages(
    groups: Sequence[Group],
    advantage: Advantage,
    *,
    greedy_rewards: Sequence[float] | None = None,
) -> list[list[float]]:
    """One advantage per rollout, nested as the groups are; 0 for an error (`to_batch` skips it).

    `greedy_rewards`, one per group, go to `remax` once per sequence.
    """
    data = judged_rewards(groups)
    knobs = {}
    if greedy_rewards is not None:
        assert len(greedy_rewards) == len(groups), "one greedy reward per group"
        knobs["greedy_rewards"] = torch.tensor(greedy_rewards, dtype=torch.float32)[data.group_ids]
    flat = iter(advantage(data.rewards, data.group_ids, data.lengths, **knobs).tolist())
    return [
        [0.0 if rollout.verdict.outcome == "error" else next(flat) for rollout in group.rollouts]
        for group in groups
    ]
