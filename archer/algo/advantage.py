"""Advantages: from the rewards of a step to one number per sequence, a plain function each.

    ADVANTAGES[name](rewards, group_ids, lengths, *, knobs) -> Float[Tensor, "B"]

`rewards` of the B sequences that were judged (an `error` is no reward: leave it out before),
`group_ids` equal where two sequences answer the same problem, in any order, and `lengths` in
tokens. Sums are float64. A group whose rewards are all equal gets exactly 0 wherever a group
baseline alone is subtracted, so that rounding teaches nothing.

A lone sequence has no baseline: mean 0 and standard deviation 1 are taken, as in the released code,
and its advantage is its reward (`archer.algo.select` drops groups that errors have left alone).

Left out: which groups teach, and the spread over tokens (every token gets its sequence's number).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Advantage = Callable[..., Tensor]
"""`(rewards, group_ids, lengths, *, knobs) -> Float[Tensor, "B"]`."""


def grpo(
    rewards: Float[Tensor, "B"], group_ids: Int[Tensor, "B"], lengths: Int[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """A = (R - mean) / (std + 1e-6) over the group (arXiv 2402.03300, section 4.1.2).

    The sample standard deviation (n - 1), as in the released code and verl.
    """
    groups = _groups(rewards, group_ids)
    deviation = groups.rewards - groups.baseline
    variance = groups.sum(deviation**2) / (groups.size - 1).clamp(min=1)
    scale = torch.where(groups.alone, 1.0, variance.sqrt())
    return groups.taught(deviation / (scale + 1e-6)).to(rewards.dtype)


def dr_grpo(
    rewards: Float[Tensor, "B"], group_ids: Int[Tensor, "B"], lengths: Int[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """A = R - mean of the group, no division (Dr. GRPO, arXiv 2503.20783)."""
    groups = _groups(rewards, group_ids)
    return groups.taught(groups.rewards - groups.baseline).to(rewards.dtype)


def rloo(
    rewards: Float[Tensor, "B"], group_ids: Int[Tensor, "B"], lengths: Int[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """A = R - mean of the others = n/(n - 1)·(R - mean) (RLOO, arXiv 2402.14740)."""
    groups = _groups(rewards, group_ids)
    share = groups.size / (groups.size - 1).clamp(min=1)
    return groups.taught(share * (groups.rewards - groups.baseline)).to(rewards.dtype)


def opo(
    rewards: Float[Tensor, "B"], group_ids: Int[Tensor, "B"], lengths: Int[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """A = R - sum(length·R) / sum(length) over the group (OPO, arXiv 2505.23585)."""
    groups = _groups(rewards, group_ids)
    weighted = groups.sum(lengths * groups.rewards) / groups.sum(lengths.double())
    baseline = weighted.masked_fill(groups.alone, 0.0)
    return groups.taught(groups.rewards - baseline).to(rewards.dtype)


def maxrl(
    rewards: Float[Tensor, "B"], group_ids: Int[Tensor, "B"], lengths: Int[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """A = (R - mean) / mean over the group (MaxRL, arXiv 2602.02710), for rewards of 0 and above.

    0 where the mean is not positive, and for a lone sequence, whose mean is its reward.
    """
    groups = _groups(rewards, group_ids)
    mean = groups.sum(groups.rewards) / groups.size
    relative = (groups.rewards - mean) / mean.masked_fill(mean <= 0, torch.inf)
    return groups.taught(relative.masked_fill(groups.alone, 0.0)).to(rewards.dtype)


def passk(
    rewards: Float[Tensor, "B"], group_ids: Int[Tensor, "B"], lengths: Int[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """The best of a group gets best minus second best, all others 0 (arXiv 2503.19595).

    This is max over the group minus max over the others, the leave-one-out advantage of pass@k with
    k the group's size. A tie for the best leaves 0 for all.
    """
    groups = _groups(rewards, group_ids)
    by_reward = torch.argsort(groups.rewards, descending=True, stable=True)
    order = by_reward[torch.argsort(groups.index[by_reward], stable=True)]
    sizes = torch.bincount(groups.index)
    first = torch.cumsum(sizes, 0) - sizes
    best, second = order[first], order[first + (sizes > 1)]
    lead = groups.rewards[best] - groups.rewards[second].masked_fill(sizes == 1, 0.0)
    return torch.zeros_like(groups.rewards).index_put((best,), lead).to(rewards.dtype)


def remax(
    rewards: Float[Tensor, "B"],
    group_ids: Int[Tensor, "B"],
    lengths: Int[Tensor, "B"],
    *,
    greedy_rewards: Float[Tensor, "B"],
) -> Float[Tensor, "B"]:
    """A = R - reward of the greedy answer to the same problem (ReMax, arXiv 2310.10505).

    `greedy_rewards` holds that reward once per sequence.
    """
    return rewards - greedy_rewards


def reinforce_pp(
    rewards: Float[Tensor, "B"], group_ids: Int[Tensor, "B"], lengths: Int[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """A = whitened R over all tokens of the batch, discount 1 (REINFORCE++, arXiv 2501.03262)."""
    return _whitened(rewards.double(), lengths).to(rewards.dtype)


def reinforce_pp_baseline(
    rewards: Float[Tensor, "B"], group_ids: Int[Tensor, "B"], lengths: Int[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """A = whitened (R - mean of the group) over all tokens of the batch (arXiv 2501.03262).

    Whitening subtracts a mean over tokens, so a uniform group gets a small number, not 0, when
    sequences differ in length.
    """
    groups = _groups(rewards, group_ids)
    deviation = groups.taught(groups.rewards - groups.baseline)
    return _whitened(deviation, lengths).to(rewards.dtype)


ADVANTAGES: dict[str, Advantage] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "opo": opo,
    "maxrl": maxrl,
    "passk": passk,
    "remax": remax,
    "reinforce_pp": reinforce_pp,
    "reinforce_pp_baseline": reinforce_pp_baseline,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Groups:
    """Statistics of each sequence's own group, one per sequence, in float64.

    Example, rewards (1 0 1) in groups (7 7 9):
        index = [0 0 1]  size = [2 2 1]  baseline = [.5 .5 0]  alone = [false false true]
    """

    rewards: Tensor
    index: Tensor
    size: Tensor
    baseline: Tensor
    alone: Tensor
    uniform: Tensor

    def sum(self, values: Tensor) -> Tensor:
        return _sum_by(values, self.index)

    def taught(self, advantages: Tensor) -> Tensor:
        """Exactly 0 where all rewards of a group are equal; rounding would leave a remainder."""
        return advantages.masked_fill(self.uniform, 0.0)


def _groups(rewards: Tensor, group_ids: Tensor) -> _Groups:
    _, index = torch.unique(group_ids, return_inverse=True)
    exact = rewards.double()
    size = _sum_by(torch.ones_like(exact), index)
    alone = size == 1
    lowest = exact.new_zeros(len(exact)).scatter_reduce(0, index, exact, "amin", include_self=False)
    highest = exact.new_zeros(len(exact)).scatter_reduce(
        0, index, exact, "amax", include_self=False
    )
    return _Groups(
        rewards=exact,
        index=index,
        size=size,
        baseline=(_sum_by(exact, index) / size).masked_fill(alone, 0.0),
        alone=alone,
        uniform=(lowest == highest)[index] & ~alone,
    )


def _sum_by(values: Tensor, index: Tensor) -> Tensor:
    """Each position gets the sum over the positions that share its index."""
    return values.new_zeros(len(values)).index_add(0, index, values)[index]


def _whitened(values: Tensor, lengths: Tensor) -> Tensor:
    """Mean 0 and variance 1 over tokens: each value counts once for each of its tokens."""
    tokens = lengths.double()
    deviation = values - (tokens * values).sum() / tokens.sum()
    if bool((values == values[0]).all()):
        return torch.zeros_like(values)
    variance = (tokens * deviation**2).sum() / (tokens.sum() - 1)
    return deviation / (variance + 1e-8).sqrt()
