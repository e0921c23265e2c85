"""The weighted sum: its gradient in float64, micro-batches, metrics, picks and corrections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from archer.algo.batch import Average, TokenBatch, microbatches, take, token_weights
from archer.algo.losses import LOSSES, PICKS, reasoning_tokens
from archer.algo.objective import (
    KL_ESTIMATORS,
    Objective,
    Tallies,
    TokenGradients,
    adapt_entropy_coefficient,
    add_tallies,
    correction_weights,
    pick_tokens,
    summarise,
    token_gradients,
)

AVERAGES: tuple[Average, ...] = get_args(Average)


def token_batch(
    lengths: Sequence[int],
    advantages: Sequence[float],
    *,
    prompts: Sequence[int] | None = None,
    counted: Sequence[bool] | None = None,
    average: Average = "token",
    seed: int = 0,
) -> TokenBatch:
    """Sequences of given lengths and advantages; everything else drawn from the seed."""
    random = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    index = torch.tensor(prompts if prompts is not None else [0] * len(lengths))
    num_prompts = int(index.max()) + 1
    mask = torch.tensor([True] * len(lengths) if counted is None else counted)
    old_logp = -0.01 - 4 * torch.rand(total, generator=random)
    return TokenBatch(
        prompt_tokens=torch.arange(3 * num_prompts),
        prompt_lengths=torch.full((num_prompts,), 3),
        prompt_index=index,
        tokens=torch.randint(0, 50, (total,), generator=random),
        lengths=torch.tensor(lengths),
        counted=mask,
        advantages=torch.repeat_interleave(
            torch.tensor(advantages, dtype=torch.float32), torch.tensor(lengths)
        ),
        weights=token_weights(torch.tensor(lengths), mask, average, constant=20.0),
        sampler_logp=old_logp + 0.3 * torch.randn(total, generator=random),
        old_logp=old_logp,
        old_entropy=3 * torch.rand(total, generator=random),
        ref_logp=old_logp + 0.5 * torch.randn(total, generator=random),
    )


def current(batch: TokenBatch, spread: float = 0.5, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy of a policy that has left the old one."""
    random = torch.Generator().manual_seed(seed)
    shift = spread * torch.randn(len(batch.tokens), generator=random)
    return batch.old_logp + shift, 3 * torch.rand(len(batch.tokens), generator=random)


def at_ratios(batch: TokenBatch, ratios: Sequence[float], **knobs: Any) -> TokenGradients:
    """`grpo`'s gradients, or another objective's, at given ratios."""
    objective = Objective(**{"loss": LOSSES["grpo"], **knobs})
    logp = batch.old_logp + torch.tensor(ratios, dtype=torch.float32).log()
    return token_gradients(objective, logp, batch.old_entropy, batch)


def per_token(batch: TokenBatch, sequences: Sequence[int]) -> Tensor:
    """Flat positions of some sequences' tokens, in their order."""
    return torch.cat([torch.nonzero(batch.sequence_ids == i).flatten() for i in sequences])


# ------------------------------------------------------------------ the gradient


def test_hand_computed_example() -> None:
    batch = replace(token_batch([1], [2.0]), weights=torch.tensor([0.25]), ref_logp=None)
    found = at_ratios(batch, [1.1])
    assert found.loss == pytest.approx(-0.55)
    assert found.d_logp.tolist() == pytest.approx([-0.55])
    assert found.policy_weight.tolist() == pytest.approx([1.1])
    assert found.d_entropy is None


def naive_kl(name: str, logp: Tensor, old_logp: Tensor, ref_logp: Tensor) -> Tensor:
    d = ref_logp - logp
    k3 = d.exp() - d - 1
    ratio = (logp - old_logp).exp()
    return {"k1": -d, "k2": d**2 / 2, "k3": k3, "ratio_k3": ratio * k3}[name]


@pytest.mark.parametrize("kl", KL_ESTIMATORS)
@pytest.mark.parametrize("loss", ["grpo", "aspo_archer", "gspo", "kl_cov"])
def test_gradient_is_that_of_the_naive_sum_in_float64(kl: str, loss: str) -> None:
    batch = token_batch([3, 1, 6, 4], [1.0, -0.5, 0.0, -2.0], counted=[True, True, True, False])
    batch = replace(batch, correction=0.5 + torch.rand(14), pick=torch.arange(14) % 3 == 0)
    objective = Objective(
        loss=LOSSES[loss] if loss == "kl_cov" else without_pick(loss),
        kl=kl,
        kl_knowledge=0.3,
        kl_reasoning=0.1,
        quantile=0.6,
        entropy_coefficient=0.05,
    )
    logp, entropy = current(batch)
    found = token_gradients(objective, logp, entropy, batch)

    x, h = logp.double().requires_grad_(), entropy.double().requires_grad_()
    ids = batch.sequence_ids
    old, ref = batch.old_logp.double(), batch.ref_logp
    assert ref is not None and batch.correction is not None
    reasoning = reasoning_tokens(batch.old_entropy, ids, 0.6)
    beta = torch.where(reasoning, 0.1, 0.3).double()
    exact = batch.advantages.double()
    policy = objective.loss(x, old, exact, batch.old_entropy.double(), ids, pick=batch.pick)
    policy = policy * (batch.advantages != 0) * batch.correction
    total = policy + beta * naive_kl(kl, x, old, ref.double()) - 0.05 * h
    total = (batch.weights.double() * total).sum()
    total.backward()

    assert x.grad is not None and h.grad is not None and found.d_entropy is not None
    assert found.loss == pytest.approx(float(total.detach()), rel=1e-5)
    assert torch.allclose(found.d_logp.double(), x.grad, rtol=1e-5, atol=1e-8)
    assert torch.allclose(found.d_entropy.double(), h.grad, rtol=1e-6)
    assert bool((found.d_logp[per_token(batch, [3])] == 0).all())


def without_pick(name: str) -> Any:
    def loss(*arguments: Tensor, pick: Tensor | None = None) -> Tensor:
        values: Tensor = LOSSES[name](*arguments)
        return values

    return loss


def test_d_logp_is_the_weighted_policy_weight_without_kl() -> None:
    batch = token_batch([4, 5], [1.5, -0.7])
    batch = replace(batch, correction=torch.linspace(0, 2, 9))
    assert batch.correction is not None
    for name in sorted(set(LOSSES) - set(PICKS)):
        logp, entropy = current(batch)
        found = token_gradients(Objective(loss=LOSSES[name]), logp, entropy, batch)
        expected = -batch.weights * batch.correction * batch.advantages * found.policy_weight
        assert torch.allclose(found.d_logp, expected, rtol=1e-5, atol=1e-9), name


def test_the_models_own_graph_is_neither_used_nor_touched() -> None:
    batch = token_batch([3, 3], [1.0, -1.0])
    parameter = torch.zeros(6, requires_grad=True)
    logp, entropy = current(batch)
    with torch.no_grad():
        plain = token_gradients(Objective(loss=LOSSES["grpo"]), logp, entropy, batch)
    attached = token_gradients(Objective(loss=LOSSES["grpo"]), logp + parameter, entropy, batch)
    assert torch.equal(plain.d_logp, attached.d_logp)
    assert not attached.d_logp.requires_grad
    assert parameter.grad is None


def test_a_loss_from_outside_that_reaches_other_tokens_is_differentiated_in_full() -> None:
    def pair_loss(logp: Tensor, old: Tensor, a: Tensor, h: Tensor, ids: Tensor) -> Tensor:
        return -a * logp * logp.detach().mean() + logp.sum()

    batch = token_batch([2, 1], [1.0, -1.0], average="sequence")
    logp, entropy = current(batch)
    found = token_gradients(Objective(loss=pair_loss), logp, entropy, batch)
    leaf = logp.clone().requires_grad_()
    values = pair_loss(leaf, batch.old_logp, batch.advantages, entropy, batch.sequence_ids)
    (expected,) = torch.autograd.grad((batch.weights * values).sum(), leaf)
    assert torch.allclose(found.d_logp, expected)


def test_tokens_of_advantage_zero_get_no_policy_loss() -> None:
    batch = token_batch([3, 3], [0.0, 1.0])
    batch = replace(batch, pick=torch.ones(6, dtype=torch.bool))
    logp, entropy = current(batch)
    for name, knobs in {"kl_cov": {"kl_coefficient": 1.0}, "top_entropy": {}}.items():
        found = token_gradients(Objective(loss=LOSSES[name], knobs=knobs), logp, entropy, batch)
        assert found.d_logp[:3].tolist() == [0, 0, 0]
        assert found.policy_weight[:3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("kl", KL_ESTIMATORS)
@pytest.mark.parametrize("name", LOSSES)
def test_everything_is_finite_at_extreme_log_ratios(name: str, kl: str) -> None:
    gaps = torch.tensor([-200.0, -50.0, -1.0, 0.0, 1.0, 50.0, 200.0])
    batch = token_batch([7, 7, 7], [2.0, -2.0, 0.0])
    batch = replace(batch, pick=torch.arange(21) % 2 == 0, ref_logp=batch.old_logp.flip(0) - 40)
    objective = Objective(
        loss=LOSSES[name] if name in PICKS else without_pick(name),
        kl=kl,
        kl_knowledge=0.001,
        kl_reasoning=0.001,
        entropy_coefficient=0.01,
    )
    found = token_gradients(objective, batch.old_logp + gaps.repeat(3), batch.old_entropy, batch)
    assert bool(found.d_logp.isfinite().all())
    assert math.isfinite(found.loss)
    assert all(math.isfinite(total) for total, _ in found.tallies.values())


def test_a_kl_weight_without_a_reference_is_our_own_mistake() -> None:
    batch = replace(token_batch([2], [1.0]), ref_logp=None)
    with pytest.raises(AssertionError, match="reference"):
        at_ratios(batch, [1.0, 1.0], kl_knowledge=0.1)


# ------------------------------------------------------------------ KL


def test_kl_derivatives_are_those_of_the_table() -> None:
    """k3: 1 - pi_ref/pi; r·k3: r·log(pi/pi_ref); k2: log(pi/pi_ref); k1: 1."""
    logp, old, ref = torch.tensor([-1.0]), torch.tensor([-1.5]), torch.tensor([-3.0])
    expected = {"k1": 1.0, "k2": 2.0, "k3": 1 - math.exp(-2), "ratio_k3": math.exp(0.5) * 2}
    for name, derivative in expected.items():
        _, found = KL_ESTIMATORS[name](logp, old, ref)
        assert float(found) == pytest.approx(derivative, rel=1e-6)


@given(st.floats(-3, 3, width=32), st.floats(-12, 12, width=32), st.sampled_from([*KL_ESTIMATORS]))
def test_kl_derivative_is_the_slope_of_its_value(shift: float, gap: float, name: str) -> None:
    old, ref = torch.tensor([-15.0]).double(), torch.tensor([-15.0 + gap]).double()
    logp = old + shift

    def value(at: Tensor) -> Tensor:
        return KL_ESTIMATORS[name](at, old, ref)[0]

    slope = (value(logp + 1e-6) - value(logp - 1e-6)) / 2e-6
    _, found = KL_ESTIMATORS[name](logp, old, ref)
    assert torch.allclose(found, slope, rtol=1e-5, atol=1e-5)


def test_kl_keeps_its_digits_for_small_differences() -> None:
    """exp(d) - d - 1 in float32 has none left at d = 1e-4; its derivative must."""
    d = torch.tensor([1e-4, -1e-4, 1e-6])
    zero = torch.zeros(3)
    _, derivative = KL_ESTIMATORS["k3"](zero, zero, d)
    assert torch.allclose(derivative, -torch.expm1(d.double()).float(), rtol=1e-6)


def test_kl_far_off_stays_finite_and_keeps_pulling_back() -> None:
    zero = torch.zeros(3)
    value, derivative = KL_ESTIMATORS["k3"](zero, zero, torch.tensor([20.0, 50.0, 500.0]))
    assert value.tolist() == pytest.approx([math.exp(20)] * 3, rel=1e-6)
    assert derivative.tolist() == pytest.approx([-math.exp(20)] * 3, rel=1e-6)
    value, derivative = KL_ESTIMATORS["k3"](zero, zero, torch.tensor([-20.0, -50.0, -500.0]))
    assert value.tolist() == pytest.approx([19, 49, 499])
    assert derivative.tolist() == [1, 1, 1]


def test_k3_and_ratio_k3_are_unbiased() -> None:
    """Over all words of a small vocabulary: k3 under pi, r·k3 under pi_old, both give the KL; and
    the expected derivative of r·k3, through log-probs, is the KL's own gradient."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(7, generator=random).double().requires_grad_()
    logp = logits.log_softmax(0)
    old = torch.randn(7, generator=random).double().log_softmax(0)
    ref = torch.randn(7, generator=random).double().log_softmax(0)
    kl = (logp.exp() * (logp - ref)).sum()
    k3, _ = KL_ESTIMATORS["k3"](logp.detach(), old, ref)
    off_policy, derivative = KL_ESTIMATORS["ratio_k3"](logp.detach(), old, ref)
    assert float((logp.exp() * k3).sum().detach()) == pytest.approx(float(kl.detach()))
    assert float((old.exp() * off_policy).sum()) == pytest.approx(float(kl.detach()))
    (exact,) = torch.autograd.grad(kl, logits, retain_graph=True)
    (expected,) = torch.autograd.grad((old.exp() * derivative * logp).sum(), logits)
    assert torch.allclose(expected, exact, atol=1e-12)


# ------------------------------------------------------------------ micro-batches


def objectives(name: str) -> list[Objective]:
    loss = LOSSES[name]
    return [
        Objective(loss=loss),
        Objective(
            loss=loss,
            kl="ratio_k3",
            kl_knowledge=0.2,
            kl_reasoning=0.05,
            entropy_coefficient=0.01,
        ),
    ]


@cache
def minibatch(name: str, average: Average) -> TokenBatch:
    batch = token_batch(
        [5, 1, 9, 3, 7, 2, 12, 4],
        [1.0, -0.5, 0.0, -2.0, 0.7, -1.0, 1.3, 0.4],
        prompts=[0, 0, 0, 1, 1, 2, 2, 2],
        counted=[True, True, True, True, False, True, True, True],
        average=average,
        seed=3,
    )
    uniforms = torch.rand(43, generator=torch.Generator().manual_seed(4))
    batch = replace(batch, correction=0.5 + uniforms)
    if name in PICKS:
        knobs = {} if name == "top_entropy" else {"fraction": 0.2}
        batch = pick_tokens(batch, PICKS[name], uniforms, **knobs)
    return batch


def by_parts(
    objective: Objective, batch: TokenBatch, parts: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, float, Tallies]:
    """Gradients of the whole mini-batch, put together from micro-batches."""
    logp, entropy = current(batch)
    d_logp, d_entropy = torch.full_like(logp, torch.nan), torch.zeros_like(logp)
    loss, tallies = 0.0, []
    for part in parts:
        tokens = per_token(batch, part)
        found = token_gradients(objective, logp[tokens], entropy[tokens], take(batch, part))
        d_logp[tokens] = found.d_logp
        if found.d_entropy is not None:
            d_entropy[tokens] = found.d_entropy
        loss += found.loss
        tallies.append(found.tallies)
    return d_logp, d_entropy, loss, add_tallies(tallies)


def check_invariance(name: str, average: Average, max_tokens: int, shuffle: int) -> None:
    batch = minibatch(name, average)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(shuffle)).tolist()
    shuffled = take(batch, order)
    cut = [[order[i] for i in part] for part in microbatches(shuffled, max_tokens=max_tokens)]
    assert sorted(row for part in cut for row in part) == list(range(8))
    for objective in objectives(name):
        whole = by_parts(objective, batch, [range(8)])
        parts = by_parts(objective, batch, cut)
        for one, other in zip(whole[:2], parts[:2], strict=True):
            assert float((one - other).norm()) <= 1e-6 * float(one.norm())
        assert parts[2] == pytest.approx(whole[2], rel=1e-5)
        assert set(parts[3]) == set(whole[3])
        for metric, (total, count) in whole[3].items():
            assert parts[3][metric] == pytest.approx((total, count), rel=1e-5, abs=1e-6), metric


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("name", LOSSES)
def test_micro_batches_do_not_change_the_gradient(name: str, average: Average) -> None:
    check_invariance(name, average, max_tokens=16, shuffle=0)


@pytest.mark.full
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("name", LOSSES)
def test_no_cut_or_order_of_micro_batches_changes_the_gradient(name: str, average: Average) -> None:
    for max_tokens in (1, 12, 20, 31):
        for shuffle in range(3):
            check_invariance(name, average, max_tokens=max_tokens, shuffle=shuffle)


# ------------------------------------------------------------------ metrics


def test_metrics_by_sign_are_worked_out_by_hand() -> None:
    batch = token_batch([4, 4], [1.0, -1.0])
    found = at_ratios(batch, [0.5, 1.0, 1.1, 1.5, 0.5, 1.0, 1.1, 4.0])
    means = summarise(found.tallies)
    assert means["ratio/positive"] == pytest.approx(4.1 / 4)
    assert means["ratio/negative"] == pytest.approx(6.6 / 4)
    assert means["clip_fraction/positive"] == 0.25
    assert means["clip_fraction/negative"] == 0.25
    assert means["dual_clip_fraction/positive"] == 0
    assert means["dual_clip_fraction/negative"] == 0.25
    assert means["weighted_unlike_grpo"] == 0
    assert means["weighted_unlike_one"] == 6 / 8
    assert means["entropy"] == pytest.approx(float(batch.old_entropy.mean()))
    assert means["loss"] == pytest.approx(found.loss)
    exact = [r - 1 - math.log(r) for r in (0.5, 1.0, 1.1, 1.5, 0.5, 1.0, 1.1, 4.0)]
    assert means["kl/old_policy"] == pytest.approx(sum(exact) / 8, rel=1e-5)


def test_metrics_of_flipped_ratios_are_worked_out_by_hand() -> None:
    batch = token_batch([4, 4], [1.0, -1.0])
    ratios = [0.1, 0.5, 1.1, 1.5, 0.5, 1.0, 1.1, 4.0]
    means = summarise(at_ratios(batch, ratios, loss=LOSSES["aspo"]).tallies)
    assert means["dual_clip_fraction/positive"] == 0.25
    assert means["dual_clip_fraction/negative"] == 0.25
    assert means["clip_fraction/positive"] == 0.25
    assert means["clip_fraction/negative"] == 0.25
    assert means["weighted_unlike_grpo"] == 3 / 8
    # The soft dual clip on negatives: counted as one, and unlike grpo's hard one.
    means = summarise(at_ratios(batch, ratios, loss=LOSSES["aspo_archer"]).tallies)
    assert means["dual_clip_fraction/negative"] == 0.25


@pytest.mark.parametrize("name", sorted(set(LOSSES) - set(PICKS)))
def test_losses_differ_from_grpo_off_policy_and_not_at_ratio_one(name: str) -> None:
    batch = token_batch([20, 20], [1.0, -1.0])
    logp, entropy = current(batch, spread=1.0)
    objective = Objective(loss=LOSSES[name])
    off = summarise(token_gradients(objective, logp, entropy, batch).tallies)
    on = summarise(token_gradients(objective, batch.old_logp, entropy, batch).tallies)
    assert on["weighted_unlike_grpo"] == on["weighted_unlike_one"] == 0
    assert (off["weighted_unlike_one"] > 0) == (name != "reinforce")
    assert (off["weighted_unlike_grpo"] > 0) == (name != "grpo")


def test_only_tokens_that_count_are_in_the_metrics() -> None:
    batch = token_batch([2, 2], [1.0, 1.0], counted=[True, False])
    found = at_ratios(batch, [1.1, 1.1, 3.0, 3.0])
    assert found.tallies["ratio/positive"] == pytest.approx((2.2, 2))
    assert found.tallies["clip_fraction/positive"] == (0, 2)
    assert found.tallies["ratio/negative"] == (0, 0)
    assert found.tallies["entropy"][1] == 2
    assert found.tallies["kl"][1] == 2
    assert found.d_logp[2:].tolist() == [0, 0]


def test_kl_metrics_are_split_by_the_partition() -> None:
    batch = token_batch([5], [1.0])
    batch = replace(batch, old_entropy=torch.tensor([0.0, 3.0, 1.0, 2.0, 4.0]))
    ref = batch.ref_logp
    assert ref is not None
    found = token_gradients(
        Objective(loss=LOSSES["grpo"], quantile=0.5), batch.old_logp, batch.old_entropy, batch
    )
    d = ref - batch.old_logp
    k3 = (d.exp() - d - 1).tolist()
    means = summarise(found.tallies)
    assert means["kl/reasoning"] == pytest.approx((k3[1] + k3[3] + k3[4]) / 3, rel=1e-4)
    assert means["kl/knowledge"] == pytest.approx((k3[0] + k3[2]) / 2, rel=1e-4)
    assert means["kl"] == pytest.approx(sum(k3) / 5, rel=1e-4)


@pytest.mark.parametrize("name", PICKS)
def test_a_token_that_a_pick_silences_is_not_clipped(name: str) -> None:
    batch = token_batch([4], [1.0])
    batch = replace(batch, pick=torch.tensor([True, False, True, False]))
    found = at_ratios(batch, [1.0, 1.0, 2.0, 2.0], loss=LOSSES[name])
    means = summarise(found.tallies)
    assert means["picked"] == 0.5
    assert means["clip_fraction/positive"] == (0 if name == "kl_cov" else 0.25)


def test_a_token_that_a_pick_silences_is_not_dual_clipped() -> None:
    batch = replace(token_batch([4], [-1.0]), pick=torch.tensor([True, False, True, False]))
    objective: dict[str, Any] = {"loss": LOSSES["top_entropy"], "knobs": {"dual_clip": 3.0}}
    means = summarise(at_ratios(batch, [1.0, 1.0, 4.0, 4.0], **objective).tallies)
    assert means["dual_clip_fraction/negative"] == 0.25
    assert means["clip_fraction/negative"] == 0


def test_corrections_are_reported_with_what_they_drop() -> None:
    batch = replace(token_batch([4], [1.0]), correction=torch.tensor([0.0, 1.0, 2.0, 1.0]))
    means = summarise(at_ratios(batch, [1.0] * 4).tallies)
    assert means["correction"] == 1
    assert means["correction/dropped"] == 0.25


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_tallies_add_in_any_grouping(rows: list[tuple[int, int, int]]) -> None:
    parts: list[Tallies] = [
        {f"metric-{name}": (float(total), float(count))} for name, total, count in rows
    ]
    half = len(parts) // 2
    once = add_tallies(parts)
    assert once == add_tallies([add_tallies(parts[:half]), add_tallies(parts[half:])])
    for name, mean in summarise(once).items():
        assert mean == once[name][0] / once[name][1]


# ------------------------------------------------------------------ once per batch or step


def test_picks_are_made_once_per_mini_batch_and_travel_with_it() -> None:
    whole = minibatch("top_entropy", "token")
    assert whole.pick is not None
    counted = torch.repeat_interleave(whole.counted, whole.lengths)
    bound = torch.quantile(whole.old_entropy[counted], 0.8)
    assert torch.equal(whole.pick, counted & (whole.old_entropy >= bound))
    part = take(whole, [3, 0])
    assert part.pick is not None
    assert torch.equal(part.pick, whole.pick[per_token(whole, [3, 0])])
    # Made for the part alone it would be another pick: each part would fill its own 20 %.
    again = pick_tokens(part, PICKS["top_entropy"], torch.zeros(len(part.tokens)))
    assert again.pick is not None
    assert not torch.equal(again.pick, part.pick)


def test_picks_leave_masked_sequences_out() -> None:
    batch = token_batch([3, 3], [1.0, -1.0], counted=[False, True])
    batch = replace(batch, old_entropy=torch.tensor([9.0, 9.0, 9.0, 1.0, 2.0, 3.0]))
    picked = pick_tokens(batch, PICKS["top_entropy"], torch.zeros(6))
    assert picked.pick is not None
    assert picked.pick.tolist() == [False, False, False, False, False, True]
    masked = replace(batch, counted=torch.tensor([False, False]))
    none = pick_tokens(masked, PICKS["kl_cov"], torch.zeros(6))
    assert none.pick is not None
    assert not bool(none.pick.any())


OLD = torch.tensor([-1.0, -1.0, -1.0, -1.0])
SAMPLER = OLD - torch.tensor([2.0, 0.5, 0.25, 4.0]).log()
IDS = torch.tensor([0, 0, 1, 1])


def test_corrections_by_token_are_worked_out_by_hand() -> None:
    tis = correction_weights(OLD, SAMPLER, IDS, kind="tis", low=0.5, high=3.0)
    assert tis.tolist() == pytest.approx([2, 0.5, 0.5, 3])
    mis = correction_weights(OLD, SAMPLER, IDS, kind="mis", low=0.3, high=3.0)
    assert mis.tolist() == pytest.approx([2, 0.5, 0, 0])
    assert correction_weights(OLD, SAMPLER, IDS).tolist() == [1, 1, 1, 1]


def test_corrections_by_sequence_use_the_product_of_ratios() -> None:
    ids = torch.tensor([0, 1, 1, 1])
    tis = correction_weights(OLD, SAMPLER, ids, kind="tis", level="sequence", high=1.5)
    assert tis.tolist() == pytest.approx([1.5, 0.5, 0.5, 0.5])
    mis = correction_weights(OLD, SAMPLER, ids, kind="mis", level="sequence", low=0.4, high=1.5)
    assert mis.tolist() == pytest.approx([0, 0.5, 0.5, 0.5])


def test_corrections_are_constant_and_finite() -> None:
    old = torch.tensor([0.0, -200.0], requires_grad=True)
    found = correction_weights(
        old, torch.tensor([-200.0, 0.0]), torch.tensor([0, 1]), kind="tis", high=5.0
    )
    assert found.tolist() == pytest.approx([5, 0], abs=1e-30)
    assert not found.requires_grad


def test_correction_bounds_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bounds are 2\.0 and 0\.5"):
        correction_weights(OLD, SAMPLER, IDS, kind="mis", low=2.0, high=0.5)


def test_entropy_coefficient_moves_towards_its_target() -> None:
    def step(coefficient: float, entropy: float) -> float:
        return adapt_entropy_coefficient(coefficient, entropy, target=0.3, delta=0.005, high=0.012)

    assert step(0.0, 0.1) == pytest.approx(0.005)
    assert step(0.010, 0.1) == pytest.approx(0.012)
    assert step(0.010, 0.5) == pytest.approx(0.005)
    assert step(0.003, 0.5) == 0.0


# ------------------------------------------------------------------ mistakes of the released code


def test_mistake_01_integer_masks_are_accepted_or_refused() -> None:
    batch = token_batch([2, 3], [1.0, -1.0], counted=[True, False])
    logp, entropy = current(batch)
    objective = Objective(loss=LOSSES["archer"], kl_knowledge=0.1)
    try:
        integer = replace(batch, counted=batch.counted.long())
        found = token_gradients(objective, logp, entropy, integer)
    except TypeError:  # where the tests' type checks are on
        return
    assert found.tallies == token_gradients(objective, logp, entropy, batch).tallies


def test_mistake_03_token_mean_is_not_the_mean_of_micro_batch_means() -> None:
    """Losses 5 and 1 a token in sequences of 1 and 4: by token 1.8, by sequence 3.0, however the
    micro-batches are cut."""
    for average, expected in (("token", 1.8), ("sequence", 3.0)):
        batch = token_batch([1, 4], [-5.0, -1.0], average="token")
        weights = token_weights(batch.lengths, batch.counted, average)  # type: ignore[arg-type]
        batch = replace(batch, weights=weights, ref_logp=None)
        whole = token_gradients(Objective(loss=LOSSES["grpo"]), *on_policy(batch), batch)
        alone = [
            token_gradients(Objective(loss=LOSSES["grpo"]), *on_policy(part), part).loss
            for part in (take(batch, [0]), take(batch, [1]))
        ]
        assert whole.loss == pytest.approx(expected)
        assert sum(alone) == pytest.approx(expected)


def on_policy(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    return batch.old_logp, batch.old_entropy


def test_mistake_05_the_dual_kl_is_a_share_of_all_tokens_mean() -> None:
    """KL on the 80 % knowledge tokens alone: beta/T each, not beta over their own number."""
    batch = token_batch([10], [0.0])
    batch = replace(batch, old_entropy=torch.arange(10.0))
    logp, entropy = current(batch)
    objective = Objective(loss=LOSSES["archer"], kl_knowledge=0.001, quantile=0.8)
    found = token_gradients(objective, logp, entropy, batch)
    assert batch.ref_logp is not None
    expected = 0.001 / 10 * (1 - (batch.ref_logp - logp).exp())
    expected[8:] = 0  # rank .8 · 9 = 7.2: the two highest are reasoning
    assert torch.allclose(found.d_logp, expected, rtol=1e-4, atol=1e-9)


def test_mistake_09_the_partition_stays_that_of_the_old_policy() -> None:
    batch = token_batch([6], [1.0])
    logp = batch.old_logp + math.log(1.35)
    fixed = Objective(loss=LOSSES["archer"])
    recomputed = replace(fixed, recompute_partition=True)
    now = batch.old_entropy.flip(0)
    old = token_gradients(fixed, logp, batch.old_entropy, batch)
    assert torch.equal(old.d_logp, token_gradients(fixed, logp, now, batch).d_logp)
    assert torch.equal(old.d_logp.flip(0), token_gradients(recomputed, logp, now, batch).d_logp)
    assert not torch.equal(old.d_logp, old.d_logp.flip(0))


def test_mistake_13_a_micro_batch_of_one_sign_does_not_halve_the_others_means() -> None:
    batch = token_batch([4, 4], [1.0, -1.0])
    ratios = torch.tensor([1.0, 1.0, 1.5, 1.5, 0.5, 1.0, 1.0, 1.0])
    logp = batch.old_logp + ratios.log()
    objective = Objective(loss=LOSSES["grpo"])
    parts = [
        token_gradients(objective, logp[per_token(batch, [i])], torch.zeros(4), take(batch, [i]))
        for i in range(2)
    ]
    assert "clip_fraction/negative" not in summarise(parts[0].tallies)
    means = summarise(add_tallies(part.tallies for part in parts))
    assert means["clip_fraction/positive"] == 0.5
    assert means["clip_fraction/negative"] == 0.25


def test_mistake_13_metrics_cover_every_micro_batch() -> None:
    batch = token_batch([1, 3], [1.0, 1.0])
    logp, entropy = current(batch)
    objective = Objective(loss=LOSSES["grpo"])
    whole = summarise(token_gradients(objective, logp, entropy, batch).tallies)
    parts = by_parts(objective, batch, [[0], [1]])[3]
    assert summarise(parts) == pytest.approx(whole, rel=1e-6)
    assert {"kl", "kl/old_policy", "entropy", "loss"} <= set(whole)


def test_mistake_14_no_entropy_bonus_means_no_entropy_gradient() -> None:
    batch = token_batch([3], [1.0])
    assert at_ratios(batch, [1.0] * 3).d_entropy is None
    bonus = at_ratios(batch, [1.0] * 3, entropy_coefficient=0.3).d_entropy
    assert bonus is not None
    assert bonus.tolist() == pytest.approx([-0.1] * 3)


def test_mistake_16_a_sampler_unlike_the_learner_is_corrected() -> None:
    batch = token_batch([3, 2], [1.0, -1.0])
    weights = correction_weights(
        batch.old_logp, batch.sampler_logp, batch.sequence_ids, kind="tis", high=1.2
    )
    plain = at_ratios(batch, [1.0] * 5)
    corrected = at_ratios(replace(batch, correction=weights), [1.0] * 5)
    assert torch.allclose(corrected.d_logp, weights * plain.d_logp)
    assert float(weights.max()) == pytest.approx(1.2)
