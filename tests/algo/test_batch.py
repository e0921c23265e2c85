"""Packing, weights, and the cuts into mini-batches and micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from archer.algo.batch import (
    Average,
    TokenBatch,
    microbatches,
    minibatches,
    sequence_ids,
    take,
    to_batch,
    token_weights,
)
from archer.types import Completion, Group, Problem, Rollout, StopReason, Verdict

AVERAGES: tuple[Average, ...] = get_args(Average)


def rollout(tokens: Sequence[int], *, stop: StopReason = "stop", error: bool = False) -> Rollout:
    return Rollout(
        completion=Completion(
            prompt_ids=np.array([7, 8, 9], dtype=np.int32),
            token_ids=np.array(tokens, dtype=np.int32),
            logps=-np.array(tokens, dtype=np.float32),
            entropies=np.array(tokens, dtype=np.float32) / 8,
            policy_version=0,
            stop=stop,
            in_thought=False,
            text="",
        ),
        verdict=Verdict(outcome="error" if error else "wrong", score=0.0),
        reward=0.0,
    )


def group(*rollouts: Rollout) -> Group:
    return Group(
        problem=Problem(id="p", prompt="2+3?", verifier="math", answer="5"), rollouts=rollouts
    )


def packed(lengths: Sequence[int], prompts: Sequence[int], **changes: Any) -> TokenBatch:
    """Every number tells where it comes from: token 100·sequence + position."""
    total = sum(lengths)
    flat = torch.tensor([100 * i + j for i, n in enumerate(lengths) for j in range(n)])
    num_prompts = max(prompts) + 1
    return TokenBatch(
        **{
            "prompt_tokens": torch.arange(num_prompts).repeat_interleave(
                torch.arange(1, num_prompts + 1)
            ),
            "prompt_lengths": torch.arange(1, num_prompts + 1),
            "prompt_index": torch.tensor(prompts),
            "tokens": flat,
            "lengths": torch.tensor(lengths),
            "counted": torch.ones(len(lengths), dtype=torch.bool),
            "advantages": flat.float(),
            "weights": torch.zeros(total),
            "sampler_logp": -flat.float(),
            "old_logp": -flat.float(),
            "old_entropy": flat.float(),
            **changes,
        }
    )


# ------------------------------------------------------------------ packing


def test_packing_is_the_records_own_example() -> None:
    batch = to_batch([group(rollout([5, 2]), rollout([6, 4, 2]))], [[1.0, -1.0]])
    assert batch.prompt_tokens.tolist() == [7, 8, 9]
    assert batch.prompt_lengths.tolist() == [3]
    assert batch.tokens.tolist() == [5, 2, 6, 4, 2]
    assert batch.lengths.tolist() == [2, 3]
    assert batch.prompt_index.tolist() == [0, 0]
    assert batch.advantages.tolist() == [1, 1, -1, -1, -1]
    assert batch.sampler_logp.tolist() == batch.old_logp.tolist() == [-5, -2, -6, -4, -2]
    assert batch.sequence_ids.tolist() == [0, 0, 1, 1, 1]
    weights = token_weights(batch.lengths, batch.counted, "token")
    assert weights.tolist() == pytest.approx([0.2] * 5)


def test_errors_are_left_out_and_truncated_answers_only_masked() -> None:
    groups = [
        group(rollout([1]), rollout([2, 2], error=True), rollout([3, 3], stop="length")),
        group(rollout([4], error=True), rollout([5])),
    ]
    batch = to_batch(groups, [[1.0, 0.0, -1.0], [0.0, 2.0]], mask_truncated=True)
    assert batch.tokens.tolist() == [1, 3, 3, 5]
    assert batch.counted.tolist() == [True, False, True]
    assert batch.prompt_index.tolist() == [0, 0, 1]
    assert batch.advantages.tolist() == [1, -1, -1, 2]
    assert to_batch(groups, [[1.0, 0.0, -1.0], [0.0, 2.0]]).counted.all()


def test_mistake_24_every_judged_rollout_is_in_the_batch_once() -> None:
    groups = [group(rollout([i, i + 1]), rollout([i])) for i in (10, 20, 30)]
    batch = to_batch(groups, [[1.0, -1.0]] * 3)
    assert batch.tokens.tolist() == [10, 11, 10, 20, 21, 20, 30, 31, 30]


# ------------------------------------------------------------------ weights


def slow_weights(
    lengths: Sequence[int], counted: Sequence[bool], average: Average, constant: float
) -> list[float]:
    tokens = sum(n for n, counts in zip(lengths, counted, strict=True) if counts)
    share = []
    for n, counts in zip(lengths, counted, strict=True):
        one = {
            "token": 1 / max(tokens, 1),
            "sequence": 1 / (max(sum(counted), 1) * n),
            "constant": 1 / (max(sum(counted), 1) * constant),
        }[average]
        share += [one if counts else 0.0] * n
    return share


shapes = st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=12)


@given(shapes, st.sampled_from(AVERAGES), st.integers(1, 40))
def test_weights_equal_a_plain_loop(
    rows: list[tuple[int, bool]], average: Average, constant: int
) -> None:
    lengths, counted = [row[0] for row in rows], [row[1] for row in rows]
    found = token_weights(
        torch.tensor(lengths), torch.tensor(counted), average, constant=float(constant)
    )
    assert found.tolist() == pytest.approx(slow_weights(lengths, counted, average, constant))
    if average != "constant":
        assert float(found.sum()) == pytest.approx(float(any(counted)), abs=1e-5)


def test_nothing_that_counts_weighs_nothing() -> None:
    for average in AVERAGES:
        mask = torch.zeros(2, dtype=torch.bool)
        assert token_weights(torch.tensor([2, 1]), mask, average, 8.0).tolist() == [0, 0, 0]


# ------------------------------------------------------------------ taking sequences


def test_take_keeps_the_given_order_and_only_the_prompts_that_are_needed() -> None:
    batch = packed([2, 1, 3, 1], [0, 1, 1, 2])
    part = take(batch, [3, 1])
    assert part.tokens.tolist() == [300, 100]
    assert part.prompt_tokens.tolist() == [1, 1, 2, 2, 2]
    assert part.prompt_lengths.tolist() == [2, 3]
    assert part.prompt_index.tolist() == [1, 0]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3)), min_size=1, max_size=8), st.data())
def test_take_carries_every_field_with_its_token(
    rows: list[tuple[int, int]], data: st.DataObject
) -> None:
    prompts = [row[1] for row in rows]
    used = sorted(set(prompts))
    prompts = [used.index(p) for p in prompts]
    total = sum(row[0] for row in rows)
    extra = torch.rand(total)
    batch = packed(
        [row[0] for row in rows],
        prompts,
        ref_logp=extra,
        correction=extra + 1,
        pick=extra < 0.5,
        weights=extra + 2,
        counted=torch.tensor([n % 2 == 0 for n, _ in rows]),
        on_policy=True,
    )
    chosen = data.draw(st.lists(st.sampled_from(range(len(rows))), min_size=1, unique=True))
    part = take(batch, chosen)
    of_prompt = {"prompt_tokens", "prompt_lengths", "prompt_index"}
    of_sequence = {"lengths", "counted"}
    rows_taken = torch.tensor(chosen)
    tokens_taken = torch.cat([torch.nonzero(batch.sequence_ids == i).flatten() for i in chosen])
    assert part.on_policy
    for name in set(TokenBatch.__slots__) - of_prompt - {"on_policy"}:
        taken = rows_taken if name in of_sequence else tokens_taken
        assert torch.equal(getattr(part, name), getattr(batch, name)[taken]), name
    # Each prompt of `packed` has a length of its own, which says which prompt it is.
    whose = batch.prompt_lengths[batch.prompt_index[rows_taken]]
    assert torch.equal(part.prompt_lengths[part.prompt_index], whose)


def test_fields_that_are_absent_stay_absent_and_move_with_the_rest() -> None:
    part = take(packed([1, 2], [0, 0]), [1])
    assert part.ref_logp is None
    assert part.pick is None
    assert part.correction is None
    moved = part.to("cpu")
    assert moved.ref_logp is None
    assert torch.equal(moved.tokens, part.tokens)


def test_sequence_ids_count_up_by_length() -> None:
    assert sequence_ids(torch.tensor([2, 3])).tolist() == [0, 0, 1, 1, 1]


# ------------------------------------------------------------------ mini-batches


def test_mini_batches_hold_whole_problems_in_the_given_order() -> None:
    batch = packed([1, 1, 1, 1, 1], [0, 0, 1, 2, 2])
    cut = minibatches(batch, problems=2, average="token", order=[2, 0, 1])
    assert [part.tokens.tolist() for part in cut] == [[300, 400, 0, 100], [200]]
    plain = minibatches(batch, problems=2, average="token")
    assert [part.tokens.tolist() for part in plain] == [[0, 100, 200], [300, 400]]


@given(st.integers(1, 5), st.permutations(range(6)))
def test_mini_batches_of_a_pass_hold_every_sequence_once(problems: int, order: list[int]) -> None:
    batch = packed([2, 1, 3, 1, 2, 2, 4, 1], [0, 0, 1, 2, 3, 3, 4, 5])
    cut = minibatches(batch, problems=problems, average="sequence", order=order)
    assert sorted(torch.cat([part.tokens for part in cut]).tolist()) == sorted(
        batch.tokens.tolist()
    )
    for part in cut:
        assert float(part.weights.sum()) == pytest.approx(1)
    sizes = [len(part.prompt_lengths) for part in cut]
    assert sizes[:-1] == [problems] * (len(sizes) - 1)


def test_mistake_15_a_pass_may_take_the_problems_in_an_order_of_its_own() -> None:
    batch = packed([1] * 4, [0, 1, 2, 3])
    first = minibatches(batch, problems=2, average="token", order=[0, 1, 2, 3])
    second = minibatches(batch, problems=2, average="token", order=[2, 0, 3, 1])
    assert [part.tokens.tolist() for part in first] == [[0, 100], [200, 300]]
    assert [part.tokens.tolist() for part in second] == [[200, 0], [300, 100]]


def test_mistake_04_a_short_last_mini_batch_is_weighted_by_its_own_count() -> None:
    """80 sequences in mini-batches of 32: 32, 32 and 16, each with the weight of a whole mean."""
    batch = packed([1] * 80, list(range(80)))
    cut = minibatches(batch, problems=32, average="token")
    assert [len(part.lengths) for part in cut] == [32, 32, 16]
    assert cut[0].weights.tolist() == pytest.approx([1 / 32] * 32)
    assert cut[2].weights.tolist() == pytest.approx([1 / 16] * 16)


def test_mistake_03_no_cut_changes_a_tokens_weight() -> None:
    batch = packed([1, 4, 2, 3], [0, 0, 0, 0])
    for average in AVERAGES:
        (whole,) = minibatches(batch, problems=1, average=average, constant=9.0)
        for max_tokens in (1, 5, 7, 100):
            for rows in microbatches(whole, max_tokens=max_tokens):
                part = take(whole, rows)
                positions = [t for r in rows for t in range(10) if whole.sequence_ids[t] == r]
                assert torch.equal(part.weights, whole.weights[positions])


# ------------------------------------------------------------------ micro-batches


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 3)), min_size=1, max_size=12),
    st.integers(1, 60),
)
def test_micro_batches_hold_every_sequence_once_within_the_budget(
    rows: list[tuple[int, int]], max_tokens: int
) -> None:
    used = sorted({row[1] for row in rows})
    prompts = [used.index(row[1]) for row in rows]
    batch = packed([row[0] for row in rows], prompts)
    parts = microbatches(batch, max_tokens=max_tokens)
    assert sorted(i for part in parts for i in part) == list(range(len(rows)))
    for part in parts:
        cost = sum(rows[i][0] for i in part) + sum(p + 1 for p in {prompts[i] for i in part})
        assert cost <= max_tokens or len(part) == 1


def test_micro_batches_count_a_prompt_once_and_leave_out_what_needs_no_pass() -> None:
    batch = packed([2, 2, 2, 2], [0, 1, 1, 1])
    assert microbatches(batch, max_tokens=8) == [[0, 1], [2, 3]]
    assert microbatches(batch, max_tokens=8, rows=torch.tensor([1, 2, 3])) == [[1, 2, 3]]
    assert microbatches(batch, max_tokens=1) == [[0], [1], [2], [3]]
    assert microbatches(batch, max_tokens=8, rows=torch.tensor([], dtype=torch.int64)) == []


def test_mistake_22_problems_are_never_cut_to_fit_a_number_of_processes() -> None:
    batch = packed([1] * 7, [0, 0, 0, 1, 1, 2, 2])
    cut = minibatches(batch, problems=2, average="token")
    for part in cut:
        sizes = torch.bincount(part.prompt_index).tolist()
        assert sizes in ([3, 2], [2])


def test_mistake_40_no_part_is_empty_where_sizes_divide_and_none_is_filled_up() -> None:
    for num_prompts in range(1, 9):
        batch = packed([2] * num_prompts, list(range(num_prompts)))
        for problems in range(1, 10):
            sizes = [len(p.lengths) for p in minibatches(batch, problems=problems, average="token")]
            whole, left = divmod(num_prompts, problems)
            assert sizes == [problems] * whole + [left] * (left > 0)
        for max_tokens in range(1, 70):
            parts = microbatches(batch, max_tokens=max_tokens)
            assert all(parts)
            assert sum(parts, start=list[int]()) == list(range(num_prompts))
