"""Policy losses: a plain function each, one number per token, neither weighted nor divided.

    LOSSES[name](logp, old_logp, advantages, entropy, sequence_ids, *, knobs) -> loss per token

All five tensors are packed over T completion tokens: `logp` of the policy that is being updated
(the only one that gradients flow to), `old_logp` of the policy before the batch's first update,
`advantages`, the `entropy` that the partition into knowledge and reasoning tokens is made from, in
nats, and `sequence_ids`, never decreasing, equal within a sequence and unlike its neighbour's. A
sequence must be whole. Keyword-only arguments are the knobs; a loss that picks tokens by a
statistic of the mini-batch also takes `pick`, made beforehand by `PICKS[name]`.

The contract is the gradient: descent moves token t by A·w(r), w = -(1/A) dL/dlogp, where
r = exp(logp - old_logp). Each docstring gives w. A loss reaches only its own token (sequence-wise
losses are written in token form, the sequence's number as a constant), so w can be read off.

Values: grpo and its kin, sapo, clip_cov and kl_cov have the paper's value, reinforce and no_is the
weighted log-likelihood. Where a paper has only a constant weight on log pi, the value is -A·w(r),
that is -A·sg(w)·exp(logp - sg(logp)), held constant past a hard mask. So values are continuous in r
but for ce_gppo, whose weight jumps in the paper. Log-ratios are bounded to ±80, where a float32
ratio is still finite; past that the ratio's own gradient is 0.

Left out: weighing, averaging, KL and entropy terms, the correction for a sampler unlike the
learner (`archer.algo.objective`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Loss = Callable[..., Tensor]
"""`(logp, old_logp, advantages, entropy, sequence_ids, *, knobs) -> Float[Tensor, "T"]`."""

Pick = Callable[..., Tensor]
"""`(old_logp, advantages, old_entropy, sequence_ids, uniforms, *, knobs) -> Bool[Tensor, "T"]`."""

Knob = float | None

LOG_RATIO_LIMIT = 80.0
"""exp(80) = 5.5e34 leaves float32 four decades for advantages and sums."""


# ------------------------------------------------------------------ clipped ratios


def grpo(
    logp: Float[Tensor, "T"],
    old_logp: Float[Tensor, "T"],
    advantages: Float[Tensor, "T"],
    entropy: Float[Tensor, "T"],
    sequence_ids: Int[Tensor, "T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: Knob = 3.0,
) -> Float[Tensor, "T"]:
    """PPO's clipped ratio (arXiv 1707.06347, Eq. 7) as in GRPO (arXiv 2402.03300, Eq. 3).

    A > 0: w = r up to 1 + clip_high, then 0. A < 0: w = r on [1 - clip_low, dual_clip], else 0; the
    hard dual clip is from arXiv 1912.09729, its 3 verl's default. `dual_clip` 0 or None: off.
    """
    return _clipped(policy_ratio(logp, old_logp), advantages, clip_low, clip_high, dual_clip)


def dapo(
    logp: Float[Tensor, "T"],
    old_logp: Float[Tensor, "T"],
    advantages: Float[Tensor, "T"],
    entropy: Float[Tensor, "T"],
    sequence_ids: Int[Tensor, "T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: Knob = None,
) -> Float[Tensor, "T"]:
    """`grpo` with DAPO's higher upper clip and no dual clip (arXiv 2503.14476, Eq. 10).

    The rest of DAPO is elsewhere: average `token`, dynamic sampling, overlong shaping.
    """
    return _clipped(policy_ratio(logp, old_logp), advantages, clip_low, clip_high, dual_clip)


def archer(
    logp: Float[Tensor, "T"],
    old_logp: Float[Tensor, "T"],
    advantages: Float[Tensor, "T"],
    entropy: Float[Tensor, "T"],
    sequence_ids: Int[Tensor, "T"],
    *,
    quantile: float = 0.8,
    clip_knowledge: float = 0.2,
    clip_reasoning: float = 0.5,
    dual_clip: Knob = 10.0,
) -> Float[Tensor, "T"]:
    """Archer's two clip ranges (arXiv 2507.15778, Eqs. 2, 3 and 5).

    As `grpo` with clip_low = clip_high = `clip_reasoning` (the paper's eps_r) on tokens at or above
    their response's entropy `quantile` (rho), `clip_knowledge` (eps_k) on all others. The paper has
    no dual clip, its released runs 10. The two KL weights belong to the objective.
    """
    clip = _clip_by_kind(entropy, sequence_ids, quantile, clip_knowledge, clip_reasoning)
    return _clipped(policy_ratio(logp, old_logp), advantages, clip, clip, dual_clip)


def ce_gppo(
    logp: Float[Tensor, "T"],
    old_logp: Float[Tensor, "T"],
    advantages: Float[Tensor, "T"],
    entropy: Float[Tensor, "T"],
    sequence_ids: Int[Tensor, "T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: Knob = 3.0,
    beta_low: float = 0.5,
    beta_high: float = 1.0,
) -> Float[Tensor, "T"]:
    """CE-GPPO: clipped tokens keep a bounded gradient (arXiv 2509.20712).

    As `grpo`, but w = beta_high·(1 + clip_high) instead of 0 when A > 0 and r lies above, and
    beta_low·(1 - clip_low) when A < 0 and r lies below (the paper's beta_2 and beta_1; 0.5 is for
    1.5B models, 0.75 for 7B). The hard dual clip stays.
    """
    ratio = policy_ratio(logp, old_logp).detach()
    lower, upper = clip_bounds(advantages, clip_low, clip_high, dual_clip)
    above = (advantages > 0) & (ratio > upper)
    below = (advantages <= 0) & (ratio < lower)
    share = torch.ones_like(ratio).masked_fill(above, beta_high).masked_fill(below, beta_low)
    dual_clipped = (advantages <= 0) & (ratio > upper)
    return -advantages * _carried(ratio.clamp(lower, upper) * share, logp, ~dual_clipped)


def sapo(
    logp: Float[Tensor, "T"],
    old_logp: Float[Tensor, "T"],
    advantages: Float[Tensor, "T"],
    entropy: Float[Tensor, "T"],
    sequence_ids: Int[Tensor, "T"],
    *,
    temperature_positive: float = 1.0,
    temperature_negative: float = 1.05,
) -> Float[Tensor, "T"]:
    """SAPO: a sigmoid gate in place of the clip (arXiv 2511.20347).

    L = -A·(4/tau)·s with s = sigmoid(tau·(r - 1)), so w = 4·s·(1 - s)·r; tau by the sign of A.
    """
    negative = torch.full_like(advantages, temperature_negative)
    tau = torch.where(advantages > 0, temperature_positive, negative)
    gate = tau * (policy_ratio(logp, old_logp) - 1)
    # exp(logsigmoid) has the derivative s·sigmoid(-gate); sigmoid's own, s·(1 - s), has lost all
    # its digits where s rounds to 1.
    return -advantages * (4 / tau) * torch.nn.functional.logsigmoid(gate).exp()


# ------------------------------------------------------------------ asymmetric importance sampling


def aspo(
    logp: Float[Tensor, "T"],
    old_logp: Float[Tensor, "T"],
    advantages: Float[Tensor, "T"],
    entropy: Float[Tensor, "T"],
    sequence_ids: Int[Tensor, "T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: Knob = 3.0,
) -> Float[Tensor, "T"]:
    """ASPO, first called ACPO (arXiv 2510.06062, section 6, Eq. 3): the ratio flipped where A > 0.

    A > 0: w = min(1/r, dual_clip) up to r = 1 + clip_high (the soft dual clip keeps the gradient),
    then 0 (the hard mask). A < 0: exactly `grpo` with its hard dual clip. The paper gives no number
    for the dual clip; 3 is its Fig. 4 and the released code. `dual_clip` 0 or None: off on both.
    """
    raised = _flipped(logp, old_logp, advantages, clip_high, dual_clip)
    lowered = _clipped(policy_ratio(logp, old_logp), advantages, clip_low, clip_high, dual_clip)
    return torch.where(advantages > 0, raised, lowered)


def aspo_archer(
    logp: Float[Tensor, "T"],
    old_logp: Float[Tensor, "T"],
    advantages: Float[Tensor, "T"],
    entropy: Float[Tensor, "T"],
    sequence_ids: Int[Tensor, "T"],
    *,
    quantile: float = 0.8,
    clip_knowledge: float = 0.2,
    clip_reasoning: float = 0.4,
    dual_clip: Knob = 3.0,
) -> Float[Tensor, "T"]:
    """What Archer2.0's released code computes: ASPO's flip, Archer's two clip ranges.

    With eps = `clip_reasoning` or `clip_knowledge` as in `archer`. A > 0: w = min(1/r, dual_clip)
    up to r = 1 + eps, then 0. A < 0: w = min(r, dual_clip) from r = 1 - eps on, 0 below. So the
    dual clip is soft on both signs, unlike the paper's; no paper prints this combination.
    """
    clip = _clip_by_kind(entropy, sequence_ids, quantile, clip_knowledge, clip_reasoning)
    raised = _flipped(logp, old_logp, advantages, clip, dual_clip)
    ratio = policy_ratio(logp, old_logp).detach()
    bounded = ratio.clamp(max=_limit(dual_clip)).maximum(1 - clip)
    lowered = -advantages * _carried(bounded, logp, ratio >= 1 - clip)
    return torch.where(advantages > 0, raised, lowered)


def no_is(
    logp: Float[Tensor, "T"],
    old_logp: Float[Tensor, "T"],
    advantages: Float[Tensor, "T"],
    entropy: Float[Tensor, "T"],
    sequence_ids: Int[Tensor, "T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: Knob = 3.0,
) -> Float[Tensor, "T"]:
    """The ASPO paper's "GRPO w/o IS" (arXiv 2510.06062, Table 4): the ratio's weight becomes 1.

    w = 1 wherever `grpo` with the same knobs has a gradient, else 0.
    """
    lower, upper = clip_bounds(advantages, clip_low, clip_high, dual_clip)
    return -advantages * logp.clamp(old_logp + lower.log(), old_logp + upper.log())


def pos_resp_mean(
    logp: Float[Tensor, "T"],
    old_logp: Float[Tensor, "T"],
    advantages: Float[Tensor, "T"],
    entropy: Float[Tensor, "T"],
    sequence_ids: Int[Tensor, "T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: Knob = 3.0,
) -> Float[Tensor, "T"]:
    """The ASPO paper's ablation with response-mean ratios (arXiv 2510.06062, Table 4).

    A > 0: w = arithmetic mean of r over the response where the token's own r <= 1 + clip_high, else
    0. A < 0: `grpo`. The mean is a constant: its own gradient, summed over the response, would be
    that of r again. The paper does not say which ratio is masked: here the token's own, as in
    `no_is`.
    """
    ratio = policy_ratio(logp, old_logp)
    mean = sequence_mean(ratio.detach(), sequence_ids)
    raised = -advantages * _carried(mean, logp, ratio.detach() <= 1 + clip_high)
    lowered = _clipped(ratio, advantages, clip_low, clip_high, dual_clip)
    return torch.where(advantages > 0, raised, lowered)


# ------------------------------------------------------------------ one ratio per sequence


def gspo(
    logp: Float[Tensor, "T"],
    old_logp: Float[Tensor, "T"],
    advantages: Float[Tensor, "T"],
    entropy: Float[Tensor, "T"],
    sequence_ids: Int[Tensor, "T"],
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> Float[Tensor, "T"]:
    """GSPO in its token form (arXiv 2507.18071, sections 4.1 and 4.3), for average `sequence`.

    w = s = exp(mean of log r over the response); 0 when s > 1 + clip_high and A > 0, or
    s < 1 - clip_low and A < 0.
    """
    log_ratio = sequence_mean((logp - old_logp).detach(), sequence_ids)
    ratio = _bounded(log_ratio).exp()
    return _clipped(_carried(ratio, logp), advantages, clip_low, clip_high, None)


def gmpo(
    logp: Float[Tensor, "T"],
    old_logp: Float[Tensor, "T"],
    advantages: Float[Tensor, "T"],
    entropy: Float[Tensor, "T"],
    sequence_ids: Int[Tensor, "T"],
    *,
    clip_low: float = 0.4,
    clip_high: float = 0.4,
) -> Float[Tensor, "T"]:
    """GMPO: geometric mean of one-sidedly clipped ratios (arXiv 2507.20673), token form.

    log r is cut at +clip_high where A > 0 and at -clip_low where A < 0 (log space); with g the exp
    of its mean over the response, w = g, and 0 on tokens that were cut. For average `sequence`.
    """
    log_ratio = (logp - old_logp).detach()
    cut = torch.where(
        advantages > 0, log_ratio.clamp(max=clip_high), log_ratio.clamp(min=-clip_low)
    )
    geometric_mean = _bounded(sequence_mean(cut, sequence_ids)).exp()
    return -advantages * _carried(geometric_mean, logp, cut == log_ratio)


# ------------------------------------------------------------------ weighted log-likelihood


def reinforce(
    logp: Float[Tensor, "T"],
    old_logp: Float[Tensor, "T"],
    advantages: Float[Tensor, "T"],
    entropy: Float[Tensor, "T"],
    sequence_ids: Int[Tensor, "T"],
) -> Float[Tensor, "T"]:
    """REINFORCE (Williams 1992), the loss of GPG (arXiv 2504.02546): L = -A·logp, w = 1."""
    return -advantages * logp


def cispo(
    logp: Float[Tensor, "T"],
    old_logp: Float[Tensor, "T"],
    advantages: Float[Tensor, "T"],
    entropy: Float[Tensor, "T"],
    sequence_ids: Int[Tensor, "T"],
    *,
    clip_low: float = 1.0,
    clip_high: float = 4.0,
) -> Float[Tensor, "T"]:
    """CISPO: the weight is clipped, never the gradient (arXiv 2506.13585, Eqs. 4 and 5).

    w = r bounded to [1 - clip_low, 1 + clip_high], for both signs. Defaults: no lower bound, as in
    the paper, and the upper bound 5 of ScaleRL (arXiv 2510.13786). TRL's `epsilon_high` is the
    bound itself (5.0); here, as in verl, it is the distance from 1.
    """
    ratio = policy_ratio(logp, old_logp)
    return -advantages * _carried(ratio.clamp(1 - clip_low, 1 + clip_high), logp)


def topr(
    logp: Float[Tensor, "T"],
    old_logp: Float[Tensor, "T"],
    advantages: Float[Tensor, "T"],
    entropy: Float[Tensor, "T"],
    sequence_ids: Int[Tensor, "T"],
) -> Float[Tensor, "T"]:
    """TOPR: tapered off-policy REINFORCE (arXiv 2503.14286), by token.

    A > 0: w = 1. A < 0: w = min(r, 1).
    """
    ratio = policy_ratio(logp, old_logp)
    return -advantages * _carried(torch.where(advantages > 0, 1.0, ratio.clamp(max=1)), logp)


def dppo_tv(
    logp: Float[Tensor, "T"],
    old_logp: Float[Tensor, "T"],
    advantages: Float[Tensor, "T"],
    entropy: Float[Tensor, "T"],
    sequence_ids: Int[Tensor, "T"],
    *,
    divergence: float = 0.2,
    ratio_cap: float = 20.0,
) -> Float[Tensor, "T"]:
    """DPPO with the binary total variation (arXiv 2602.04879, Binary-TV).

    w = min(r, ratio_cap); 0 where A > 0 and p - p_old > divergence, or A < 0 and
    p - p_old < -divergence, with p = exp(logp).
    """
    moved = (logp.exp() - old_logp.exp()).detach()
    outside = torch.where(advantages > 0, moved > divergence, moved < -divergence)
    return _trusted(logp, old_logp, advantages, outside, ratio_cap)


def dppo_kl(
    logp: Float[Tensor, "T"],
    old_logp: Float[Tensor, "T"],
    advantages: Float[Tensor, "T"],
    entropy: Float[Tensor, "T"],
    sequence_ids: Int[Tensor, "T"],
    *,
    divergence: float = 0.05,
    ratio_cap: float = 20.0,
) -> Float[Tensor, "T"]:
    """DPPO with the binary KL (arXiv 2602.04879, Binary-KL).

    D = KL(old || new) of the two-way split {this token, all others}. w = min(r, ratio_cap); 0 where
    D > divergence and the token has moved the way its advantage pushes (r > 1 when A > 0, r < 1
    when A < 0).
    """
    moved = (logp - old_logp).detach()
    outward = torch.where(advantages > 0, moved > 0, moved < 0)
    outside = outward & (_binary_kl(old_logp, logp.detach()) > divergence)
    return _trusted(logp, old_logp, advantages, outside, ratio_cap)


# ------------------------------------------------------------------ tokens picked from a mini-batch


def clip_cov(
    logp: Float[Tensor, "T"],
    old_logp: Float[Tensor, "T"],
    advantages: Float[Tensor, "T"],
    entropy: Float[Tensor, "T"],
    sequence_ids: Int[Tensor, "T"],
    *,
    pick: Bool[Tensor, "T"],
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Tensor, "T"]:
    """Clip-Cov (arXiv 2505.22617): `grpo` without dual clip, and w = 0 on picked tokens."""
    loss = _clipped(policy_ratio(logp, old_logp), advantages, clip_low, clip_high, None)
    return torch.where(pick.bool(), loss.detach(), loss)


def kl_cov(
    logp: Float[Tensor, "T"],
    old_logp: Float[Tensor, "T"],
    advantages: Float[Tensor, "T"],
    entropy: Float[Tensor, "T"],
    sequence_ids: Int[Tensor, "T"],
    *,
    pick: Bool[Tensor, "T"],
    kl_coefficient: float = 0.1,
) -> Float[Tensor, "T"]:
    """KL-Cov (arXiv 2505.22617): the unclipped ratio, picked tokens held back.

    L = -A·r, plus kl_coefficient·|logp - old_logp| on picked tokens. So w = r - kl_coefficient ·
    sign(log r) / A there; 0.1 is verl's setting.
    """
    penalty = kl_coefficient * (logp - old_logp).abs()
    return -advantages * policy_ratio(logp, old_logp) + torch.where(pick.bool(), penalty, 0.0)


def top_entropy(
    logp: Float[Tensor, "T"],
    old_logp: Float[Tensor, "T"],
    advantages: Float[Tensor, "T"],
    entropy: Float[Tensor, "T"],
    sequence_ids: Int[Tensor, "T"],
    *,
    pick: Bool[Tensor, "T"],
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: Knob = None,
) -> Float[Tensor, "T"]:
    """The 80/20 rule (arXiv 2506.01939, section 5): `dapo` on picked tokens, 0 on all others.

    Tokens that were not picked still count in the average.
    """
    ratio = policy_ratio(logp, old_logp)
    loss = _clipped(ratio, advantages, clip_low, clip_high, dual_clip)
    return torch.where(pick.bool(), loss, 0.0)


def pick_clip_cov(
    old_logp: Float[Tensor, "T"],
    advantages: Float[Tensor, "T"],
    old_entropy: Float[Tensor, "T"],
    sequence_ids: Int[Tensor, "T"],
    uniforms: Float[Tensor, "T"],
    *,
    fraction: float = 2e-4,
    covariance_low: float = 1.0,
    covariance_high: float = 5.0,
) -> Bool[Tensor, "T"]:
    """Clip-Cov's tokens (arXiv 2505.22617): random ones of a covariance between the two bounds.

    `fraction` of all T, at least one; the lowest `uniforms` among the candidates win.
    """
    covariance = _covariance(old_logp, advantages)
    candidates = (covariance > covariance_low) & (covariance < covariance_high)
    order = torch.argsort(uniforms.masked_fill(~candidates, math.inf), stable=True)
    return _first(order, _count(fraction, order)) & candidates


def pick_kl_cov(
    old_logp: Float[Tensor, "T"],
    advantages: Float[Tensor, "T"],
    old_entropy: Float[Tensor, "T"],
    sequence_ids: Int[Tensor, "T"],
    uniforms: Float[Tensor, "T"],
    *,
    fraction: float = 2e-4,
) -> Bool[Tensor, "T"]:
    """KL-Cov's tokens (arXiv 2505.22617): the `fraction` of T, at least one, of highest covariance.

    Ties go to the lowest `uniforms`.
    """
    by_chance = torch.argsort(uniforms, stable=True)
    covariance = _covariance(old_logp, advantages)[by_chance]
    order = by_chance[torch.argsort(covariance, descending=True, stable=True)]
    return _first(order, _count(fraction, order))


def pick_top_entropy(
    old_logp: Float[Tensor, "T"],
    advantages: Float[Tensor, "T"],
    old_entropy: Float[Tensor, "T"],
    sequence_ids: Int[Tensor, "T"],
    uniforms: Float[Tensor, "T"],
    *,
    quantile: float = 0.8,
) -> Bool[Tensor, "T"]:
    """80/20's tokens (arXiv 2506.01939): at or above the entropy `quantile` of all T together."""
    return reasoning_tokens(old_entropy, torch.zeros_like(sequence_ids), quantile)


LOSSES: dict[str, Loss] = {
    "grpo": grpo,
    "dapo": dapo,
    "archer": archer,
    "aspo": aspo,
    "acpo": aspo,
    "aspo_archer": aspo_archer,
    "no_is": no_is,
    "pos_resp_mean": pos_resp_mean,
    "gspo": gspo,
    "gmpo": gmpo,
    "cispo": cispo,
    "sapo": sapo,
    "topr": topr,
    "ce_gppo": ce_gppo,
    "dppo_tv": dppo_tv,
    "dppo_kl": dppo_kl,
    "clip_cov": clip_cov,
    "kl_cov": kl_cov,
    "reinforce": reinforce,
    "top_entropy": top_entropy,
}

PICKS: dict[str, Pick] = {
    "clip_cov": pick_clip_cov,
    "kl_cov": pick_kl_cov,
    "top_entropy": pick_top_entropy,
}
"""How the losses of these names choose their tokens: once per mini-batch, from the old policy's
values, before micro-batches are cut."""


# ------------------------------------------------------------------ shared parts


def knob_defaults(function: Loss | Pick) -> dict[str, Knob]:
    """Knobs of a loss, a pick or an advantage with their defaults: its keyword-only arguments.

    Arguments without a default (`pick`, `greedy_rewards`) are data, not knobs.
    """
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
    }


def policy_ratio(logp: Float[Tensor, "T"], old_logp: Float[Tensor, "T"]) -> Float[Tensor, "T"]:
    """r = pi / pi_old per token, between exp(-80) and exp(80)."""
    return _bounded(logp - old_logp).exp()


def clip_bounds(
    advantages: Float[Tensor, "T"],
    clip_low: float | Tensor,
    clip_high: float | Tensor,
    dual_clip: Knob,
) -> tuple[Float[Tensor, "T"], Float[Tensor, "T"]]:
    """Lowest and highest ratio at which a PPO-clipped token keeps its gradient, both included.

    A > 0: 0 and 1 + clip_high. A <= 0: 1 - clip_low and `dual_clip` (infinity where it is off).
    """
    positive, one = advantages > 0, torch.ones_like(advantages)
    lower = torch.where(positive, 0.0, one - clip_low)
    upper = torch.where(positive, one + clip_high, _limit(dual_clip))
    return lower, upper


def reasoning_tokens(
    entropy: Float[Tensor, "T"], sequence_ids: Int[Tensor, "T"], quantile: float
) -> Bool[Tensor, "T"]:
    """True on reasoning tokens: entropy at or above the `quantile` of their own response.

    Archer, arXiv 2507.15778, Eq. 2 and the definition of omega under it. The quantile is linearly
    interpolated between order statistics (torch's default). Ties count as reasoning, so each
    response has at least one; a response of equal entropies is all reasoning.
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile is {quantile}: give the share of knowledge tokens, 0 to 1")
    sequence, lengths = _sequences(sequence_ids)
    by_entropy = torch.argsort(entropy, stable=True)
    ascending = entropy[by_entropy[torch.argsort(sequence[by_entropy], stable=True)]]
    rank = quantile * (lengths - 1).to(torch.float64)
    start = torch.cumsum(lengths, 0) - lengths
    below = ascending[start + rank.floor().long()]
    above = ascending[start + rank.ceil().long()]
    threshold = torch.lerp(below, above, rank.frac().to(entropy.dtype)).minimum(above)
    return entropy >= threshold[sequence]


def sequence_sum(values: Float[Tensor, "T"], sequence_ids: Int[Tensor, "T"]) -> Float[Tensor, "T"]:
    """Each token gets the sum over its sequence."""
    index, lengths = _sequences(sequence_ids)
    return values.new_zeros(len(lengths)).index_add(0, index, values)[index]


def sequence_mean(values: Float[Tensor, "T"], sequence_ids: Int[Tensor, "T"]) -> Float[Tensor, "T"]:
    """Each token gets the mean over its sequence."""
    index, lengths = _sequences(sequence_ids)
    return sequence_sum(values, sequence_ids) / lengths[index]


def _sequences(sequence_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Number of each token's sequence from 0 on, and the lengths: (5 5 9) -> (0 0 1), (2 1)."""
    index: Tensor
    _, index, lengths = torch.unique_consecutive(
        sequence_ids, return_inverse=True, return_counts=True
    )
    return index, lengths


def _clipped(
    ratio: Tensor,
    advantages: Tensor,
    clip_low: float | Tensor,
    clip_high: float | Tensor,
    dual_clip: Knob,
) -> Tensor:
    """-min(r A, clip(r) A) with the dual clip: one interval of r for each sign of A."""
    lower, upper = clip_bounds(advantages, clip_low, clip_high, dual_clip)
    return -advantages * ratio.clamp(lower, upper)


def _flipped(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    clip_high: float | Tensor,
    dual_clip: Knob,
) -> Tensor:
    """w = min(1/r, dual_clip) up to r = 1 + clip_high. A plain 1/r would have the wrong sign."""
    ratio = policy_ratio(logp, old_logp).detach()
    upper = torch.ones_like(ratio) + clip_high
    return -advantages * _carried(
        ratio.minimum(upper).reciprocal().clamp(max=_limit(dual_clip)), logp, ratio <= upper
    )


def _trusted(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, outside: Tensor, ratio_cap: float
) -> Tensor:
    """w = min(r, ratio_cap) within the trust region, 0 outside."""
    ratio = policy_ratio(logp, old_logp).clamp(max=ratio_cap)
    return -advantages * _carried(ratio, logp, ~outside)


def _carried(weight: Tensor, logp: Tensor, keep: Tensor | None = None) -> Tensor:
    """`weight` as value, and as factor of grad logp where `keep` holds (everywhere if None)."""
    carrier = torch.exp(logp - logp.detach())
    if keep is not None:
        carrier = torch.where(keep, carrier, 1.0)
    return weight.detach() * carrier


def _clip_by_kind(
    entropy: Tensor,
    sequence_ids: Tensor,
    quantile: float,
    clip_knowledge: float,
    clip_reasoning: float,
) -> Tensor:
    reasoning = reasoning_tokens(entropy, sequence_ids, quantile)
    return torch.where(reasoning, clip_reasoning, torch.full_like(entropy, clip_knowledge))


def _limit(dual_clip: Knob) -> float:
    if not dual_clip:
        return math.inf
    if dual_clip <= 1:
        raise ValueError(f"dual_clip is {dual_clip}: give a ratio above 1, or 0 to switch it off")
    return dual_clip


def _bounded(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def _binary_kl(old_logp: Tensor, logp: Tensor) -> Tensor:
    """KL of Bernoulli(p_old) from Bernoulli(p); p is taken as at most 1 - 1e-7."""
    old_logp, logp = old_logp.clamp(max=-1e-7), logp.clamp(max=-1e-7)
    old_rest, rest = -torch.expm1(old_logp), -torch.expm1(logp)
    return old_logp.exp() * (old_logp - logp) + old_rest * (old_rest.log() - rest.log())


def _covariance(old_logp: Tensor, advantages: Tensor) -> Tensor:
    """Each token's term of cov(A, logp) (arXiv 2505.22617).

    In float64, so that the order of the tokens does not decide who is above a bound.
    """
    logp, advantages = old_logp.double(), advantages.double()
    return (advantages - advantages.mean()) * (logp - logp.mean())


def _count(fraction: float, tokens: Tensor) -> int:
    return max(1, int(fraction * len(tokens)))


def _first(order: Tensor, count: int) -> Tensor:
    """True at the positions that `order` names first."""
    chosen = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    chosen[order[:count]] = True
    return chosen
