"""Policy losses: the weight w(r) of every token, against the tables and a plain float64 formula."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from archer.algo.losses import (
    LOSSES,
    PICKS,
    Knob,
    knob_defaults,
    policy_ratio,
    reasoning_tokens,
    sequence_mean,
)


def weights_of(
    name: str,
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    entropy: Tensor,
    ids: Tensor,
    **knobs: Any,
) -> Tensor:
    """w = -(1/A) dL/dlogp per token."""
    leaf = logp.clone().requires_grad_()
    loss = LOSSES[name](leaf, old_logp, advantages, entropy, ids, **knobs)
    assert loss.shape == logp.shape
    (slope,) = torch.autograd.grad(loss.sum(), leaf)
    return -slope / advantages


def weight_at(name: str, ratio: float, advantage: float, *, reasoning: bool, **knobs: Any) -> float:
    """w of one token at a ratio; its companion in the response makes it a (non-)reasoning one."""
    old_logp = torch.tensor([-3.0, -3.0])
    logp = old_logp + torch.tensor([math.log(ratio), 0.0])
    entropy = torch.tensor([1.0, 0.0]) if reasoning else torch.tensor([0.0, 1.0])
    advantages = torch.full((2,), float(advantage))
    ids = torch.zeros(2, dtype=torch.int64)
    return float(weights_of(name, logp, old_logp, advantages, entropy, ids, **knobs)[0])


# ------------------------------------------------------------------ the table of check values

CHECK_VALUES = [
    # r, sign, grpo .2 c=3, archer knowledge, archer reasoning, aspo_archer knowledge, its reasoning
    (0.05, +1, 0.05, 0.05, 0.05, 3, 3),
    (0.33, +1, 0.33, 0.33, 0.33, 3, 3),
    (0.34, +1, 0.34, 0.34, 0.34, 2.9412, 2.9412),
    (0.70, +1, 0.70, 0.70, 0.70, 1.4286, 1.4286),
    (1.0, +1, 1, 1, 1, 1, 1),
    (1.1, +1, 1.1, 1.1, 1.1, 0.9091, 0.9091),
    (1.3, +1, 0, 0, 1.3, 0, 0.7692),
    (1.45, +1, 0, 0, 1.45, 0, 0),
    (1.7, +1, 0, 0, 0, 0, 0),
    (0.34, -1, 0, 0, 0, 0, 0),
    (0.55, -1, 0, 0, 0.55, 0, 0),
    (0.70, -1, 0, 0, 0.70, 0, 0.70),
    (0.90, -1, 0.90, 0.90, 0.90, 0.90, 0.90),
    (1.7, -1, 1.7, 1.7, 1.7, 1.7, 1.7),
    (3.5, -1, 0, 3.5, 3.5, 3, 3),
    (12.0, -1, 0, 0, 0, 3, 3),
]


@pytest.mark.parametrize("row", CHECK_VALUES, ids=lambda row: f"r={row[0]}, A={row[1]:+}")
def test_weights_are_those_of_the_check_table(row: tuple[float, ...]) -> None:
    ratio, sign, grpo, archer_k, archer_r, released_k, released_r = row
    close = pytest.approx
    for size in (0.3, 1.0, 2.5):
        a = sign * size
        assert weight_at("grpo", ratio, a, reasoning=False) == close(grpo, abs=1e-4)
        assert weight_at("archer", ratio, a, reasoning=False) == close(archer_k, abs=1e-4)
        assert weight_at("archer", ratio, a, reasoning=True) == close(archer_r, abs=1e-4)
        assert weight_at("aspo_archer", ratio, a, reasoning=False) == close(released_k, abs=1e-4)
        assert weight_at("aspo_archer", ratio, a, reasoning=True) == close(released_r, abs=1e-4)


@pytest.mark.parametrize("row", CHECK_VALUES, ids=lambda row: f"r={row[0]}, A={row[1]:+}")
@pytest.mark.parametrize("reasoning", [False, True])
def test_plain_aspo_flips_positives_and_leaves_negatives_to_grpo(
    row: tuple[float, ...], reasoning: bool
) -> None:
    ratio, sign, grpo, _, _, flipped, _ = row
    expected = flipped if sign > 0 else grpo
    for name in ("aspo", "acpo"):
        weight = weight_at(name, ratio, sign, reasoning=reasoning)
        assert weight == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - set(PICKS)))
@pytest.mark.parametrize("advantage", [-2.0, 0.7])
def test_every_loss_weighs_a_token_by_one_at_ratio_one(name: str, advantage: float) -> None:
    assert weight_at(name, 1.0, advantage, reasoning=False) == pytest.approx(1, abs=1e-6)
    assert weight_at(name, 1.0, advantage, reasoning=True) == pytest.approx(1, abs=1e-6)


def test_two_sided_grpo_is_grpo_with_its_own_dual_clip() -> None:
    weight = {r: weight_at("grpo", r, -1, reasoning=False, dual_clip=4.0) for r in (3.9, 4.1)}
    assert weight[3.9] == pytest.approx(3.9, rel=1e-6)
    assert weight[4.1] == 0


@pytest.mark.parametrize("off", [None, 0.0])
def test_dual_clip_zero_or_none_is_off(off: Knob) -> None:
    assert weight_at("grpo", 50.0, -1, reasoning=False, dual_clip=off) == pytest.approx(50)
    assert weight_at("aspo", 0.02, 1, reasoning=False, dual_clip=off) == pytest.approx(50)


# ------------------------------------------------------------------ the table of formulas


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token for the plain formulas: Python floats, so float64."""

    logp: float
    old_logp: float
    advantage: float
    reasoning: bool
    picked: bool
    log_ratios: tuple[float, ...]
    """Of its whole response."""

    @property
    def ratio(self) -> float:
        return math.exp(self.logp - self.old_logp)


def ppo(r: float, a: float, low: float, high: float, dual: Knob) -> float:
    if a > 0:
        return r if r <= 1 + high else 0.0
    return r if r >= 1 - low and (not dual or r <= dual) else 0.0


def flip(r: float, high: float, dual: Knob) -> float:
    if r > 1 + high:
        return 0.0
    return min(1 / r, dual) if dual else 1 / r


def w_grpo(t: Token, clip_low: float, clip_high: float, dual_clip: Knob) -> float:
    return ppo(t.ratio, t.advantage, clip_low, clip_high, dual_clip)


def w_archer(
    t: Token, quantile: float, clip_knowledge: float, clip_reasoning: float, dual_clip: Knob
) -> float:
    clip = clip_reasoning if t.reasoning else clip_knowledge
    return ppo(t.ratio, t.advantage, clip, clip, dual_clip)


def w_aspo(t: Token, clip_low: float, clip_high: float, dual_clip: Knob) -> float:
    if t.advantage > 0:
        return flip(t.ratio, clip_high, dual_clip)
    return ppo(t.ratio, t.advantage, clip_low, clip_high, dual_clip)


def w_aspo_archer(
    t: Token, quantile: float, clip_knowledge: float, clip_reasoning: float, dual_clip: Knob
) -> float:
    clip = clip_reasoning if t.reasoning else clip_knowledge
    if t.advantage > 0:
        return flip(t.ratio, clip, dual_clip)
    if t.ratio < 1 - clip:
        return 0.0
    return min(t.ratio, dual_clip) if dual_clip else t.ratio


def w_no_is(t: Token, clip_low: float, clip_high: float, dual_clip: Knob) -> float:
    return 1.0 if ppo(t.ratio, t.advantage, clip_low, clip_high, dual_clip) else 0.0


def w_pos_resp_mean(t: Token, clip_low: float, clip_high: float, dual_clip: Knob) -> float:
    if t.advantage > 0:
        mean = sum(math.exp(d) for d in t.log_ratios) / len(t.log_ratios)
        return mean if t.ratio <= 1 + clip_high else 0.0
    return ppo(t.ratio, t.advantage, clip_low, clip_high, dual_clip)


def w_gspo(t: Token, clip_low: float, clip_high: float) -> float:
    s = math.exp(sum(t.log_ratios) / len(t.log_ratios))
    return ppo(s, t.advantage, clip_low, clip_high, None)


def w_gmpo(t: Token, clip_low: float, clip_high: float) -> float:
    def cut(d: float) -> float:
        return min(d, clip_high) if t.advantage > 0 else max(d, -clip_low)

    own = t.logp - t.old_logp
    mean = sum(map(cut, t.log_ratios)) / len(t.log_ratios)
    return math.exp(mean) if cut(own) == own else 0.0


def w_cispo(t: Token, clip_low: float, clip_high: float) -> float:
    return min(max(t.ratio, 1 - clip_low), 1 + clip_high)


def w_sapo(t: Token, temperature_positive: float, temperature_negative: float) -> float:
    x = (temperature_positive if t.advantage > 0 else temperature_negative) * (t.ratio - 1)
    return t.ratio / math.cosh(x / 2) ** 2


def w_topr(t: Token) -> float:
    return 1.0 if t.advantage > 0 else min(t.ratio, 1.0)


def w_ce_gppo(
    t: Token,
    clip_low: float,
    clip_high: float,
    dual_clip: Knob,
    beta_low: float,
    beta_high: float,
) -> float:
    if t.advantage > 0 and t.ratio > 1 + clip_high:
        return beta_high * (1 + clip_high)
    if t.advantage < 0 and t.ratio < 1 - clip_low:
        return beta_low * (1 - clip_low)
    return ppo(t.ratio, t.advantage, clip_low, clip_high, dual_clip)


def w_dppo_tv(t: Token, divergence: float, ratio_cap: float) -> float:
    moved = math.exp(t.logp) - math.exp(t.old_logp)
    outside = moved > divergence if t.advantage > 0 else moved < -divergence
    return 0.0 if outside else min(t.ratio, ratio_cap)


def w_dppo_kl(t: Token, divergence: float, ratio_cap: float) -> float:
    p, old = math.exp(t.logp), math.exp(t.old_logp)
    kl = old * math.log(old / p) + (1 - old) * math.log((1 - old) / (1 - p))
    outward = t.ratio > 1 if t.advantage > 0 else t.ratio < 1
    return 0.0 if outward and kl > divergence else min(t.ratio, ratio_cap)


def w_clip_cov(t: Token, clip_low: float, clip_high: float) -> float:
    return 0.0 if t.picked else ppo(t.ratio, t.advantage, clip_low, clip_high, None)


def w_kl_cov(t: Token, kl_coefficient: float) -> float:
    d = t.logp - t.old_logp
    pull = kl_coefficient * ((d > 0) - (d < 0)) / t.advantage
    return t.ratio - pull if t.picked else t.ratio


def w_top_entropy(t: Token, clip_low: float, clip_high: float, dual_clip: Knob) -> float:
    return ppo(t.ratio, t.advantage, clip_low, clip_high, dual_clip) if t.picked else 0.0


FORMULAS: Mapping[str, Callable[..., float]] = {
    "grpo": w_grpo,
    "dapo": w_grpo,
    "archer": w_archer,
    "aspo": w_aspo,
    "acpo": w_aspo,
    "aspo_archer": w_aspo_archer,
    "no_is": w_no_is,
    "pos_resp_mean": w_pos_resp_mean,
    "gspo": w_gspo,
    "gmpo": w_gmpo,
    "cispo": w_cispo,
    "sapo": w_sapo,
    "topr": w_topr,
    "ce_gppo": w_ce_gppo,
    "dppo_tv": w_dppo_tv,
    "dppo_kl": w_dppo_kl,
    "clip_cov": w_clip_cov,
    "kl_cov": w_kl_cov,
    "reinforce": lambda t: 1.0,
    "top_entropy": w_top_entropy,
}

OTHER_KNOBS: Mapping[str, Sequence[Mapping[str, Knob]]] = {
    "grpo": [{"clip_low": 0.1, "clip_high": 0.4, "dual_clip": 0.0}, {"dual_clip": 10.0}],
    "dapo": [{"clip_low": 0.4, "dual_clip": 5.0}],
    "archer": [{"quantile": 0.5, "clip_knowledge": 0.1, "clip_reasoning": 0.4}, {"dual_clip": 0.0}],
    "aspo": [{"clip_low": 0.4, "clip_high": 0.3, "dual_clip": 5.0}, {"dual_clip": 0.0}],
    "aspo_archer": [{"quantile": 0.3, "clip_knowledge": 0.3, "dual_clip": 5.0}, {"dual_clip": 0.0}],
    "no_is": [{"clip_low": 0.4, "clip_high": 0.3, "dual_clip": 0.0}],
    "pos_resp_mean": [{"clip_high": 0.4, "dual_clip": 5.0}],
    "gspo": [{"clip_low": 0.2, "clip_high": 0.3}],
    "gmpo": [{"clip_low": 0.3, "clip_high": 0.6}],
    "cispo": [{"clip_low": 0.3, "clip_high": 0.28}],
    "sapo": [{"temperature_positive": 0.5, "temperature_negative": 2.0}],
    "ce_gppo": [{"beta_low": 0.75, "beta_high": 0.3, "clip_high": 0.28, "dual_clip": 0.0}],
    "dppo_tv": [{"divergence": 0.05, "ratio_cap": 3.0}],
    "dppo_kl": [{"divergence": 0.2, "ratio_cap": 3.0}],
    "clip_cov": [{"clip_low": 0.1, "clip_high": 0.4}],
    "kl_cov": [{"kl_coefficient": 1.0}],
    "top_entropy": [{"clip_low": 0.1, "clip_high": 0.4, "dual_clip": 5.0}],
}

RATIOS = (
    *(0.05, 0.33, 0.34, 0.55, 0.59, 0.61, 0.69, 0.71, 0.79, 0.81, 0.89, 0.91, 0.9998, 1.0002),
    *(1.09, 1.19, 1.21, 1.27, 1.29, 1.39, 1.41, 1.49, 1.51, 1.83, 2.9, 3.1, 4.9, 5.1, 9.9, 12.0),
    *(19.0, 21.0),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    logp: Tensor
    old_logp: Tensor
    advantages: Tensor
    entropy: Tensor
    ids: Tensor
    pick: Tensor


@cache
def sample(seed: int, *, near_one: bool = False) -> Sample:
    """Responses whose tokens stand on both sides of every clip, for both signs of the advantage.

    With `near_one` ratios stay so close to 1 that their means fall on both sides of GSPO's clips.
    """
    random = torch.Generator().manual_seed(seed)

    def uniform(count: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=random)

    ratios = torch.tensor(RATIOS * 4)[torch.randperm(4 * len(RATIOS), generator=random)]
    lengths = [1, 2, 3, 5, 8, 13, 21]
    lengths.append(len(ratios) - sum(lengths))
    if near_one:
        lengths = [4] * (len(ratios) // 4)
        shift = uniform(len(lengths), -1e-3, 1e-3).repeat_interleave(4)
        ratios = 1 + shift + uniform(len(ratios), -1e-3, 1e-3)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    larger = torch.tensor([-0.02, -0.3, -0.9, -2.5, -7.0]).repeat(len(ratios))[: len(ratios)]
    log_ratio = ratios.log()
    old_logp = torch.where(log_ratio > 0, larger - log_ratio, larger)
    signs = torch.tensor([1.0, -1.0]).repeat(len(lengths))[: len(lengths)]
    sizes = uniform(len(lengths), 0.2, 3.0) * signs
    return Sample(
        logp=old_logp + log_ratio,
        old_logp=old_logp,
        advantages=sizes[ids],
        entropy=uniform(len(ratios), 0.0, 3.0),
        ids=ids,
        pick=uniform(len(ratios), 0.0, 1.0) < 0.4,
    )


@cache
def tokens_of(data: Sample, quantile: float) -> list[Token]:
    logp, old = data.logp.double().tolist(), data.old_logp.double().tolist()
    reasoning = slow_reasoning(data.entropy.tolist(), data.ids.tolist(), Fraction(str(quantile)))
    return [
        Token(
            logp=logp[i],
            old_logp=old[i],
            advantage=float(data.advantages[i]),
            reasoning=reasoning[i],
            picked=bool(data.pick[i]),
            log_ratios=tuple(
                logp[j] - old[j] for j in range(len(logp)) if data.ids[j] == data.ids[i]
            ),
        )
        for i in range(len(logp))
    ]


def check_against_formula(name: str, seed: int, knobs: Mapping[str, Knob], near_one: bool) -> None:
    data = sample(seed, near_one=near_one)
    given_knobs: dict[str, Any] = dict(knobs)
    if name in PICKS:
        given_knobs["pick"] = data.pick
    found = weights_of(
        name, data.logp, data.old_logp, data.advantages, data.entropy, data.ids, **given_knobs
    ).tolist()
    used = {**knob_defaults(LOSSES[name]), **knobs}
    tokens = tokens_of(data, used.get("quantile") or 0.8)
    expected = [FORMULAS[name](token, **used) for token in tokens]
    for weight, exact, token in zip(found, expected, tokens, strict=True):
        # The one formula with a difference in it is held to its larger part.
        size = max(abs(exact), token.ratio) if name == "kl_cov" else abs(exact)
        assert abs(weight - exact) <= 1e-5 * size, (weight, exact, token)
    assert any(expected)


def test_every_loss_has_a_formula_and_a_docstring_with_its_source() -> None:
    assert set(FORMULAS) == set(LOSSES)
    for name, loss in LOSSES.items():
        assert loss.__doc__ is not None
        assert "arXiv" in loss.__doc__ or "Archer2.0" in loss.__doc__, name


@pytest.mark.parametrize("near_one", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_the_float64_formula(name: str, near_one: bool) -> None:
    check_against_formula(name, seed=1, knobs={}, near_one=near_one)


@pytest.mark.parametrize(
    ("name", "knobs"), [(name, knobs) for name, many in OTHER_KNOBS.items() for knobs in many]
)
def test_gradients_equal_the_float64_formula_for_other_knobs(
    name: str, knobs: Mapping[str, Knob]
) -> None:
    check_against_formula(name, seed=2, knobs=knobs, near_one=False)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("near_one", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_the_float64_formula_on_many_samples(
    name: str, near_one: bool, seed: int
) -> None:
    for knobs in ({}, *OTHER_KNOBS.get(name, [])):
        check_against_formula(name, seed=100 + seed, knobs=knobs, near_one=near_one)


def test_samples_reach_both_sides_of_every_clip() -> None:
    """The test above proves nothing about a clip that its sample never meets."""
    for name, formula in FORMULAS.items():
        data = sample(1, near_one=name == "gspo")
        knobs = knob_defaults(LOSSES[name])
        for sign in (1, -1):
            tokens = [token for token in tokens_of(data, 0.8) if sign * token.advantage > 0]
            weights = {round(formula(token, **knobs), 4) for token in tokens}
            smooth = name in ("sapo", "reinforce", "kl_cov", "topr", "cispo", "ce_gppo")
            assert smooth or 0 in weights, name
            assert len(weights) > (2 if name not in ("topr", "reinforce", "no_is") else 0), name


@pytest.mark.parametrize("name", ["grpo", "dapo", "archer", "sapo", "no_is", "reinforce", "kl_cov"])
def test_gradient_is_the_derivative_of_the_value(name: str) -> None:
    """Central differences in float64, for the losses that are functions of r without a constant."""
    data = sample(3)
    logp, old, advantages = data.logp.double(), data.old_logp.double(), data.advantages.double()
    knobs: dict[str, Any] = {"pick": data.pick} if name in PICKS else {}

    def loss(at: Tensor) -> Tensor:
        return LOSSES[name](at, old, advantages, data.entropy, data.ids, **knobs)

    slope = (loss(logp + 1e-6) - loss(logp - 1e-6)) / 2e-6
    weight = weights_of(name, logp, old, advantages, data.entropy, data.ids, **knobs)
    assert torch.allclose(slope, -advantages * weight, rtol=1e-6, atol=1e-7)


# ------------------------------------------------------------------ values


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"ce_gppo"}))
@pytest.mark.parametrize("advantage", [-1.5, 1.5])
@pytest.mark.parametrize("quantile_side", [0, 1])
def test_values_are_continuous_in_the_ratio(
    name: str, advantage: float, quantile_side: int
) -> None:
    ratios = torch.logspace(-4, 4, 200_001, base=math.e, dtype=torch.float64)
    count = len(ratios)
    old = torch.full((count,), -4.1, dtype=torch.float64)
    # Each response is the token under test and a companion at r = 1.
    logp = torch.stack([old + ratios.log(), old], 1).flatten()
    old = old.repeat_interleave(2)
    entropy = torch.tensor([quantile_side, 1 - quantile_side]).double().repeat(count)
    ids = torch.arange(count).repeat_interleave(2)
    advantages = torch.full_like(old, advantage)
    knobs = {"pick": torch.ones(2 * count, dtype=torch.bool)} if name in PICKS else {}
    values = LOSSES[name](logp, old, advantages, entropy, ids, **knobs)[::2]
    step = 2 * 4e-5 * torch.maximum(torch.maximum(values[1:].abs(), ratios[1:]), torch.ones(()))
    assert bool((values.diff().abs() <= 2 * abs(advantage) * step).all())


@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_are_finite_at_extreme_ratios(name: str) -> None:
    gaps = torch.tensor(
        [-1e4, -200.0, -80.0, -50.0, -20.0, -1.0, 0.0, 1.0, 20.0, 50.0, 80.0, 200.0]
    )
    gaps = torch.cat([gaps, -gaps, gaps])
    old_logp = torch.where(gaps > 0, -gaps, 0.0) - 1e-4
    logp = old_logp + gaps
    advantages = torch.tensor([3.0, -3.0, 0.0]).repeat_interleave(len(gaps) // 3)
    ids = torch.arange(len(gaps))
    entropy = torch.rand(len(gaps), generator=torch.Generator().manual_seed(0))
    for sequence_ids in (ids, ids // 4):
        knobs: dict[str, Any] = {}
        if name in PICKS:
            knobs["pick"] = ids % 2 == 0
        leaf = logp.clone().requires_grad_()
        loss = LOSSES[name](leaf, old_logp, advantages, entropy, sequence_ids, **knobs)
        (slope,) = torch.autograd.grad(loss.sum(), leaf)
        assert bool(loss.isfinite().all())
        assert bool(slope.isfinite().all())


def test_values_of_the_clipped_losses_are_the_papers() -> None:
    """-min(rA, clip(r)A), and for A < 0 no more than -c·A; worked out by hand."""
    ratios = torch.tensor([0.5, 1.1, 1.5, 0.5, 1.1, 4.0])
    advantages = torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0, -2.0])
    old_logp = torch.full((6,), -3.0)
    values = LOSSES["grpo"](
        old_logp + ratios.log(), old_logp, advantages, torch.zeros(6), torch.zeros(6).long()
    )
    assert torch.allclose(values, torch.tensor([-1.0, -2.2, -2.4, 1.6, 2.2, 6.0]), atol=1e-5)


def test_losses_do_not_reach_other_tokens() -> None:
    """w is a token's own only if no loss has a gradient on another token."""
    data = sample(5)
    for name, loss in LOSSES.items():
        knobs = {"pick": data.pick} if name in PICKS else {}
        leaf = data.logp.clone().requires_grad_()
        values = loss(leaf, data.old_logp, data.advantages, data.entropy, data.ids, **knobs)
        for token in (0, 3, 60):
            (slope,) = torch.autograd.grad(values[token], leaf, retain_graph=True)
            assert bool((slope[torch.arange(len(slope)) != token] == 0).all()), name


# ------------------------------------------------------------------ the partition


def slow_reasoning(entropy: Sequence[float], ids: Sequence[int], quantile: Fraction) -> list[bool]:
    """Response by response, with exact fractions."""
    thresholds = {}
    for response in set(ids):
        ordered = sorted(Fraction(entropy[i]) for i in range(len(ids)) if ids[i] == response)
        rank = quantile * (len(ordered) - 1)
        below, above = ordered[math.floor(rank)], ordered[math.ceil(rank)]
        thresholds[response] = below + (rank - math.floor(rank)) * (above - below)
    return [Fraction(entropy[i]) >= thresholds[ids[i]] for i in range(len(ids))]


responses = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=12), min_size=1, max_size=6)


@given(responses, st.integers(0, 20))
def test_partition_equals_a_plain_loop(entropies: list[list[int]], twentieths: int) -> None:
    flat = [value / 8 for response in entropies for value in response]
    ids = [i for i, response in enumerate(entropies) for _ in response]
    found = reasoning_tokens(torch.tensor(flat), torch.tensor(ids), twentieths / 20)
    assert found.tolist() == slow_reasoning(flat, ids, Fraction(twentieths, 20))


@given(responses, st.integers(0, 20), st.randoms(use_true_random=False))
def test_partition_of_a_response_ignores_all_others(
    entropies: list[list[int]], twentieths: int, random: Any
) -> None:
    def split(order: Sequence[int]) -> dict[int, list[bool]]:
        flat = torch.tensor([value / 8 for i in order for value in entropies[i]])
        ids = torch.tensor([i for i in order for _ in entropies[i]])
        found = reasoning_tokens(flat, ids, twentieths / 20)
        return {i: found[ids == i].tolist() for i in order}

    order = list(range(len(entropies)))
    random.shuffle(order)
    together = split(order)
    assert together == split(range(len(entropies)))
    assert together == {i: split([i])[i] for i in order}
    assert all(any(marks) for marks in together.values())


@given(st.sets(st.integers(0, 1000), min_size=1, max_size=60), st.integers(0, 10))
def test_partition_of_distinct_entropies_has_the_share_that_the_quantile_says(
    entropies: set[int], tenths: int
) -> None:
    n = len(entropies)
    flat = torch.tensor(sorted(entropies, key=hash)).float()
    found = reasoning_tokens(flat, torch.zeros(n).long(), tenths / 10)
    assert int(found.sum()) == n - math.ceil(Fraction(tenths, 10) * (n - 1))


def test_partition_needs_a_share() -> None:
    with pytest.raises(ValueError, match="quantile is 80"):
        reasoning_tokens(torch.ones(3), torch.zeros(3).long(), 80.0)


def test_sequence_mean_is_each_sequences_own() -> None:
    means = sequence_mean(torch.tensor([1.0, 3.0, 10.0]), torch.tensor([4, 4, 7]))
    assert means.tolist() == [2.0, 2.0, 10.0]


# ------------------------------------------------------------------ picks


def pick_sample(count: int = 400) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(7)
    old_logp = -6 * torch.rand(count, generator=random) ** 2
    lengths = torch.tensor([10]).repeat(count // 10)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    advantages = torch.randn(len(lengths), generator=random)[ids]
    entropy = 3 * torch.rand(count, generator=random)
    return old_logp, advantages, entropy, ids, torch.rand(count, generator=random)


def test_clip_cov_picks_the_share_of_tokens_between_its_bounds() -> None:
    old_logp, advantages, entropy, ids, uniforms = pick_sample()
    pick = PICKS["clip_cov"](old_logp, advantages, entropy, ids, uniforms, fraction=0.05)
    covariance = (advantages - advantages.mean()) * (old_logp - old_logp.mean())
    inside = (covariance > 1) & (covariance < 5)
    assert int(pick.sum()) == 20
    assert int(inside.sum()) > 20
    assert bool(inside[pick].all())
    assert float(uniforms[pick].max()) < float(uniforms[inside & ~pick].min())


def test_clip_cov_never_picks_more_than_there_are() -> None:
    old_logp, advantages, entropy, ids, uniforms = pick_sample()
    pick = PICKS["clip_cov"](
        old_logp, advantages, entropy, ids, uniforms, fraction=1.0, covariance_low=4.0
    )
    covariance = (advantages - advantages.mean()) * (old_logp - old_logp.mean())
    assert torch.equal(pick, (covariance > 4) & (covariance < 5))


def test_kl_cov_picks_the_highest_covariances() -> None:
    old_logp, advantages, entropy, ids, uniforms = pick_sample()
    pick = PICKS["kl_cov"](old_logp, advantages, entropy, ids, uniforms, fraction=0.03)
    covariance = (advantages - advantages.mean()) * (old_logp - old_logp.mean())
    assert int(pick.sum()) == 12
    assert float(covariance[pick].min()) > float(covariance[~pick].max())


def test_kl_cov_picks_at_least_one_and_settles_ties_by_the_draw() -> None:
    uniforms = torch.tensor([0.5, 0.1, 0.9])
    pick = PICKS["kl_cov"](torch.zeros(3), torch.zeros(3), uniforms, torch.arange(3), uniforms)
    assert pick.tolist() == [False, True, False]


def test_top_entropy_picks_by_the_quantile_of_all_tokens_together() -> None:
    old_logp, advantages, entropy, ids, uniforms = pick_sample()
    pick = PICKS["top_entropy"](old_logp, advantages, entropy, ids, uniforms)
    assert torch.equal(pick, entropy >= torch.quantile(entropy, 0.8))


@pytest.mark.parametrize("name", PICKS)
def test_picks_do_not_depend_on_the_order_of_the_tokens(name: str) -> None:
    columns = pick_sample()
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    knobs = {} if name == "top_entropy" else {"fraction": 0.05}
    pick = PICKS[name](*columns, **knobs)
    shuffled = PICKS[name](*(column[order] for column in columns), **knobs)
    assert torch.equal(pick[order], shuffled)
    assert bool(pick.any())


def test_losses_that_need_a_pick_are_those_that_have_one() -> None:
    asking = {name for name, loss in LOSSES.items() if "pick" in inspect.signature(loss).parameters}
    assert asking == set(PICKS)
    assert all("pick" not in knob_defaults(loss) for loss in LOSSES.values())


# ------------------------------------------------------------------ mistakes of the released code


def int_masks_agree(found: Callable[[], Tensor], expected: Tensor) -> bool:
    try:
        return torch.equal(found(), expected)
    except TypeError:
        return True


@pytest.mark.parametrize("name", PICKS)
def test_mistake_01_integer_masks_are_accepted_or_refused(name: str) -> None:
    data = sample(4)
    arguments = (data.logp, data.old_logp, data.advantages, data.entropy, data.ids)
    expected = LOSSES[name](*arguments, pick=data.pick)
    assert int_masks_agree(lambda: LOSSES[name](*arguments, pick=data.pick.long()), expected)
    assert reasoning_tokens(data.entropy, data.ids, 0.8).dtype == torch.bool


@pytest.mark.parametrize("function", [*LOSSES.values(), *PICKS.values()])
def test_mistake_02_every_knob_has_a_default(function: Callable[..., Tensor]) -> None:
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and name != "pick":
            assert parameter.default is None or isinstance(parameter.default, float), name


@pytest.mark.parametrize("name", LOSSES)
def test_mistake_06_every_knob_that_is_given_changes_a_weight(name: str) -> None:
    changed = {
        "clip_low": 0.55,
        "clip_high": 0.55,
        "clip_knowledge": 0.05,
        "clip_reasoning": 0.15,
        "dual_clip": 1.3,
        "quantile": 0.1,
        "beta_low": 0.1,
        "beta_high": 0.1,
        "temperature_positive": 3.0,
        "temperature_negative": 3.0,
        "divergence": 1e-4,
        "ratio_cap": 1.5,
        "kl_coefficient": 0.7,
    }
    data = sample(6, near_one=name == "gspo")
    arguments = (data.logp, data.old_logp, data.advantages, data.entropy, data.ids)
    given_knobs: dict[str, Any] = {"pick": data.pick} if name in PICKS else {}
    usual = weights_of(name, *arguments, **given_knobs)
    for knob in knob_defaults(LOSSES[name]):
        given_knobs[knob] = 1e-5 if name == "gspo" else changed[knob]
        other = weights_of(name, *arguments, **given_knobs)
        assert not torch.equal(usual, other), knob
        del given_knobs[knob]


def test_mistake_06_an_unknown_knob_is_refused() -> None:
    with pytest.raises(TypeError, match="use_dynamic_clip"):
        weight_at("archer", 1.1, 1.0, reasoning=True, use_dynamic_clip=True)


def test_mistake_07_papers_and_released_losses_are_two_and_have_their_own_defaults() -> None:
    aspo, released = knob_defaults(LOSSES["aspo"]), knob_defaults(LOSSES["aspo_archer"])
    assert aspo == {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0}
    assert (released["clip_knowledge"], released["clip_reasoning"]) == (0.2, 0.4)
    assert knob_defaults(LOSSES["archer"])["clip_reasoning"] == 0.5


def test_mistake_08_the_dual_clip_of_negatives_is_hard_in_aspo_and_soft_as_released() -> None:
    assert weight_at("aspo", 3.5, -1, reasoning=False) == 0
    assert weight_at("aspo_archer", 3.5, -1, reasoning=False) == pytest.approx(3)


def test_mistake_10_a_tie_with_the_quantile_is_reasoning() -> None:
    entropy = torch.tensor([0.0, 1.0, 1.0, 1.0, 2.0])
    found = reasoning_tokens(entropy, torch.zeros(5).long(), 0.5)
    assert found.tolist() == [False, True, True, True, True]
    assert bool(reasoning_tokens(torch.ones(4), torch.zeros(4).long(), 0.8).all())


def test_mistake_11_reasoning_tokens_are_those_of_high_entropy() -> None:
    found = reasoning_tokens(torch.tensor([0.1, 2.0]), torch.zeros(2).long(), 0.8)
    assert found.tolist() == [False, True]
    assert weight_at("archer", 1.4, 1, reasoning=True) > 0
    assert weight_at("archer", 1.4, 1, reasoning=False) == 0


@pytest.mark.parametrize("name", ["grpo", "dapo", "no_is", "ce_gppo", "clip_cov", "top_entropy"])
def test_mistake_12_clip_low_is_for_negatives_and_clip_high_for_positives(name: str) -> None:
    data = sample(8)
    arguments = (data.logp, data.old_logp, data.advantages, data.entropy, data.ids)
    all_or_none = torch.full_like(data.pick, name == "top_entropy")
    picked = {"pick": all_or_none} if name in PICKS else {}
    usual = weights_of(name, *arguments, **picked)
    low = weights_of(name, *arguments, **picked, clip_low=0.45)
    high = weights_of(name, *arguments, **picked, clip_high=0.45)
    positive = data.advantages > 0
    assert torch.equal(usual[positive], low[positive])
    assert not torch.equal(usual[~positive], low[~positive])
    assert torch.equal(usual[~positive], high[~positive])
    assert not torch.equal(usual[positive], high[positive])


def test_flipped_ratios_push_the_way_of_the_advantage() -> None:
    """A plain 1/r would not: its derivative is -1/r."""
    assert weight_at("aspo", 0.5, 1.0, reasoning=False) == pytest.approx(2.0)


def test_dual_clip_of_one_or_less_is_refused_with_its_cure() -> None:
    with pytest.raises(ValueError, match=r"dual_clip is 0\.5.*0 to switch it off"):
        weight_at("grpo", 1.0, 1.0, reasoning=False, dual_clip=0.5)


def test_policy_ratio_is_bounded() -> None:
    ratio = policy_ratio(torch.tensor([0.0, -500.0]), torch.tensor([-500.0, 0.0]))
    assert ratio.tolist() == pytest.approx([math.exp(80), math.exp(-80)])
