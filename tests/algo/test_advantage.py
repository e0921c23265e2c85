"""Advantages: hand-computed numbers, a plain loop per group, and what must be exactly 0."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from archer.algo.advantage import ADVANTAGES
from archer.algo.losses import knob_defaults


def advantages_of(
    name: str, rewards: Sequence[float], groups: Sequence[int], lengths: Sequence[int], **knobs: Any
) -> list[float]:
    if name == "remax":
        knobs.setdefault("greedy_rewards", torch.full((len(rewards),), 0.5))
    found = ADVANTAGES[name](
        torch.tensor(rewards, dtype=torch.float32),
        torch.tensor(groups),
        torch.tensor(lengths),
        **knobs,
    )
    assert found.dtype == torch.float32
    numbers: list[float] = found.tolist()
    return numbers


# ------------------------------------------------------------------ hand-computed numbers


def test_grpo_divides_by_the_sample_deviation() -> None:
    # Mean 1/3, squares 4/9 + 1/9 + 1/9 over n - 1 = 2: deviation sqrt(1/3) = .5773503.
    found = advantages_of("grpo", [1, 0, 0], [0, 0, 0], [5, 5, 5])
    assert found == pytest.approx([1.1546985, -0.5773493, -0.5773493], rel=1e-6)


def test_dr_grpo_subtracts_the_mean_only() -> None:
    assert advantages_of("dr_grpo", [1, 0, 0, 1], [0, 0, 0, 0], [5] * 4) == [0.5, -0.5, -0.5, 0.5]


def test_rloo_subtracts_the_mean_of_the_others() -> None:
    found = advantages_of("rloo", [1, 0, 0.5], [0, 0, 0], [5] * 3)
    assert found == pytest.approx([0.75, -0.75, 0.0])


def test_opo_weighs_the_baseline_by_length() -> None:
    found = advantages_of("opo", [1, 0], [0, 0], [3, 1])
    assert found == pytest.approx([0.25, -0.75])


def test_maxrl_divides_by_the_mean() -> None:
    found = advantages_of("maxrl", [1, 0, 0, 0], [0] * 4, [5] * 4)
    assert found == pytest.approx([3, -1, -1, -1])


def test_passk_gives_the_best_its_lead_over_the_second() -> None:
    found = advantages_of("passk", [0.2, 0.9, 0.5, 1, 1, 0], [0, 0, 0, 1, 1, 1], [5] * 6)
    assert found == pytest.approx([0, 0.4, 0, 0, 0, 0])


def test_passk_is_the_leave_one_out_advantage_of_the_maximum() -> None:
    rewards = [0.3, 0.1, 0.8, 0.7]
    found = advantages_of("passk", rewards, [0] * 4, [1] * 4)
    for i, advantage in enumerate(found):
        others = rewards[:i] + rewards[i + 1 :]
        assert advantage == pytest.approx(max(rewards) - max(others), abs=1e-7)


def test_remax_subtracts_the_greedy_answers_reward() -> None:
    greedy = torch.tensor([1.0, 1.0, 0.0])
    found = advantages_of("remax", [1, 0, 1], [0, 0, 1], [5] * 3, greedy_rewards=greedy)
    assert found == [0, -1, 1]


def test_reinforce_pp_whitens_over_tokens() -> None:
    # Tokens: three with 1, one with 0. Mean .75, variance (3 · .0625 + .5625) / 3 = .25.
    assert advantages_of("reinforce_pp", [1, 0], [0, 1], [3, 1]) == pytest.approx([0.5, -1.5])


def test_reinforce_pp_baseline_whitens_what_a_group_mean_leaves() -> None:
    # Deviations .5 -.5 over tokens (1, 1) and 0 over two more: mean 0, variance .5 / 3.
    found = advantages_of("reinforce_pp_baseline", [1, 0, 1], [0, 0, 1], [1, 1, 2])
    alone_is_its_reward = [0.5, -0.5, 1.0, 1.0]
    mean = statistics.mean(alone_is_its_reward)
    deviation = statistics.stdev(alone_is_its_reward)
    expected = [(value - mean) / deviation for value in (0.5, -0.5, 1.0)]
    assert found == pytest.approx(expected, rel=1e-6)


# ------------------------------------------------------------------ a plain loop beside each


def slow_groups(rewards: Sequence[float], groups: Sequence[int]) -> list[list[float]]:
    return [[r for r, g in zip(rewards, groups, strict=True) if g == own] for own in groups]


def slow_grpo(reward: float, group: Sequence[float]) -> float:
    if len(group) == 1:
        return reward / (1 + 1e-6)
    return (reward - statistics.mean(group)) / (statistics.stdev(group) + 1e-6)


def slow_dr_grpo(reward: float, group: Sequence[float]) -> float:
    return reward - (statistics.mean(group) if len(group) > 1 else 0)


def slow_rloo(reward: float, group: Sequence[float]) -> float:
    others = len(group) - 1
    return reward - ((sum(group) - reward) / others if others else 0)


def slow_maxrl(reward: float, group: Sequence[float]) -> float:
    mean = statistics.mean(group)
    return (reward - mean) / mean if mean > 0 else 0.0


SLOW: dict[str, Callable[[float, Sequence[float]], float]] = {
    "grpo": slow_grpo,
    "dr_grpo": slow_dr_grpo,
    "rloo": slow_rloo,
    "maxrl": slow_maxrl,
}

cases = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 4), st.integers(1, 30)), min_size=1, max_size=20
)


@given(cases)
def test_group_advantages_equal_a_plain_loop(rows: list[tuple[int, int, int]]) -> None:
    rewards = [eighths / 8 for eighths, _, _ in rows]
    groups, lengths = [row[1] for row in rows], [row[2] for row in rows]
    for name, slow in SLOW.items():
        found = advantages_of(name, rewards, groups, lengths)
        expected = [
            slow(reward, group)
            for reward, group in zip(rewards, slow_groups(rewards, groups), strict=True)
        ]
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6), name


@given(cases, st.randoms(use_true_random=False))
def test_advantages_follow_their_sequence_wherever_it_stands(
    rows: list[tuple[int, int, int]], random: Any
) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    for name in ADVANTAGES:
        found = advantages_of(name, *columns(rows))
        shuffled = advantages_of(name, *columns([rows[i] for i in order]))
        assert shuffled == pytest.approx([found[i] for i in order], rel=1e-6, abs=1e-9), name


def columns(rows: Sequence[tuple[int, int, int]]) -> tuple[list[float], list[int], list[int]]:
    return [row[0] / 8 for row in rows], [row[1] for row in rows], [row[2] for row in rows]


@given(cases, st.sampled_from(["grpo", "dr_grpo", "rloo", "opo", "maxrl", "passk"]))
def test_other_groups_change_nothing(rows: list[tuple[int, int, int]], name: str) -> None:
    together = advantages_of(name, *columns(rows))
    for group in {row[1] for row in rows}:
        members = [i for i, row in enumerate(rows) if row[1] == group]
        alone = advantages_of(name, *columns([rows[i] for i in members]))
        assert alone == pytest.approx([together[i] for i in members], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", sorted(set(ADVANTAGES) - {"remax"}))
@pytest.mark.parametrize("reward", [0.1, 0.7, 1 / 3, 1.0, 0.0, -1.0])
@pytest.mark.parametrize("size", [2, 3, 7, 16])
def test_equal_rewards_teach_exactly_nothing(name: str, reward: float, size: int) -> None:
    """0.1 three times has a mean that is not 0.1; over a deviation of 1e-6 that would be seen."""
    lengths = list(range(1, size + 1))
    assert advantages_of(name, [reward] * size, [0] * size, lengths) == [0.0] * size


@pytest.mark.parametrize("name", sorted(set(ADVANTAGES) - {"remax", "passk", "maxrl"}))
def test_centred_advantages_have_mean_zero_over_what_they_centre(name: str) -> None:
    rewards, groups = [1, 0, 0.25, 1, 1, 0, 0, 0.5], [0, 0, 0, 0, 1, 1, 1, 1]
    lengths = [3, 1, 4, 1, 5, 9, 2, 6]
    found = torch.tensor(advantages_of(name, rewards, groups, lengths))
    if name == "opo":
        found = found * torch.tensor(lengths)
    if name.startswith("reinforce"):
        assert float((found * torch.tensor(lengths)).sum()) == pytest.approx(0, abs=1e-5)
    else:
        assert found.view(2, 4).sum(1).tolist() == pytest.approx([0, 0], abs=1e-5)


def test_every_advantage_has_a_source_and_no_knob_without_need() -> None:
    for name, advantage in ADVANTAGES.items():
        assert advantage.__doc__ is not None
        assert "arXiv" in advantage.__doc__, name
        assert knob_defaults(advantage) == {}


# ------------------------------------------------------------------ mistakes of the released code


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "opo", "passk"])
def test_mistake_22_a_lone_sequence_gets_its_reward_and_the_others_keep_theirs(name: str) -> None:
    """A group of one is mean 0, deviation 1, by contract; `select` is what keeps it from training
    when it is what errors have left of a group."""
    together = advantages_of(name, [0.5, 1.0, 0.0], [7, 3, 3], [4, 4, 4])
    assert together[0] == pytest.approx(0.5, rel=1e-5)
    assert together[1:] == advantages_of(name, [1.0, 0.0], [3, 3], [4, 4])


def test_mistake_22_groups_need_not_stand_together() -> None:
    apart = advantages_of("grpo", [1, 0, 0, 1], [5, 2, 5, 2], [1, 1, 1, 1])
    root = math.sqrt(0.5)
    assert apart == pytest.approx([root, -root, -root, root], rel=1e-5)


def test_mistake_24_a_repeated_row_would_change_the_others() -> None:
    """Why a short batch is never padded by repeating rows."""
    once = advantages_of("grpo", [1, 0, 0], [0, 0, 0], [1, 1, 1])
    padded: Tensor = torch.tensor(advantages_of("grpo", [1, 0, 0, 0], [0] * 4, [1] * 4))
    assert padded[:3].tolist() != pytest.approx(once, rel=1e-3)
