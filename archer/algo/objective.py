"""The one weighted sum that an optimizer step descends, its gradient per token, and its metrics.

    sum over tokens of  weight · (correction · policy loss + beta · KL - coefficient · entropy)

`weight` is the token's share of its mini-batch's mean (`archer.algo.batch`), so sums over
micro-batches and ranks are simply added. The sum depends on the model through one log-prob and one
entropy per token: `token_gradients` differentiates it with respect to those as plain values, and
the learner hands the result to the model's own backward pass.

Metrics are (sum, count) pairs, which add over micro-batches, ranks and mini-batches and are divided
once, at the end: a micro-batch without a token of some sign adds nothing to that sign's mean.

Left out: the model, the optimizer, and the choice of who counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from archer.algo.batch import TokenBatch
from archer.algo.losses import (
    Knob,
    Loss,
    Pick,
    clip_bounds,
    grpo,
    knob_defaults,
    policy_ratio,
    reasoning_tokens,
    sequence_sum,
)

Tallies = dict[str, tuple[float, float]]
"""Metric name -> (sum, count)."""

Mismatch = Literal["none", "tis", "mis"]
Level = Literal["token", "sequence"]

LOG_GAP_LIMIT = 20.0
"""Where exp(reference - policy) stops growing: 4.9e8, far past any pull that trains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A policy loss with its knobs, and the KL and entropy terms beside it.

    Example, Archer as published:
        Objective(loss=LOSSES["archer"], knobs={"clip_reasoning": 0.5}, kl_knowledge=0.001)
    """

    loss: Loss
    knobs: Mapping[str, Knob] = field(default_factory=dict)
    """Keyword arguments of the loss, `pick` excepted."""
    kl: str = "k3"
    """Estimator of the KL from the reference: a name of `KL_ESTIMATORS`."""
    kl_knowledge: float = 0.0
    """Coefficient of the KL on knowledge tokens (beta_k of arXiv 2507.15778, Eq. 4)."""
    kl_reasoning: float = 0.0
    """Coefficient of the KL on reasoning tokens (beta_r). Equal to the other: a uniform KL."""
    quantile: float = 0.8
    """Entropy quantile of a response from which on its tokens are reasoning, for the KL."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus."""
    recompute_partition: bool = False
    """Parts knowledge from reasoning by the current entropy instead of the old policy's."""

    @property
    def uses_reference(self) -> bool:
        """Whether the KL has a weight, so that the batch must hold `ref_logp`."""
        return bool(self.kl_knowledge or self.kl_reasoning)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenGradients:
    """The weighted sum over a (micro-)batch, its gradient per token, and what to report.

    Example, one token of advantage 2, weight 1/4 and ratio 1.1 under `grpo`, no KL, no bonus:
        loss = -.55  d_logp = [-.55]  d_entropy = None  policy_weight = [1.1]
    """

    loss: float
    d_logp: Float[Tensor, "T"]
    """Derivative of the sum with respect to each token's log-prob."""
    d_entropy: Float[Tensor, "T"] | None
    """The same for each token's entropy; None when there is no entropy bonus."""
    policy_weight: Float[Tensor, "T"]
    """w = -(1/A) d(policy loss)/d(logp): how much of its advantage moves each token; 0 if A = 0."""
    tallies: Tallies


def token_gradients(
    objective: Objective,
    logp: Float[Tensor, "T"],
    entropy: Float[Tensor, "T"],
    batch: TokenBatch,
) -> TokenGradients:
    """Differentiates the objective with respect to each token's log-prob and entropy.

    `logp` and `entropy` (nats) are the current policy's, as plain values; no graph of theirs is
    used or kept. Tokens of advantage 0 get no policy loss, whatever the loss function does there.
    """
    if batch.on_policy:
        batch = replace(batch, old_logp=logp.detach())
    ids = batch.sequence_ids
    partition = entropy.detach() if objective.recompute_partition else batch.old_entropy
    reasoning = reasoning_tokens(partition, ids, objective.quantile)
    share = batch.weights
    policy_share = share if batch.correction is None else share * batch.correction

    def policy_loss(at: Tensor) -> Tensor:
        return _policy_loss(objective, at, partition, ids, batch)

    policy, d_policy, weight = _policy_terms(policy_loss, logp, batch.advantages, policy_share)
    in_play = torch.ones_like(reasoning)
    if batch.pick is not None:
        *_, weight_at_one = _policy_terms(policy_loss, batch.old_logp, batch.advantages, share)
        in_play = weight_at_one != 0
    total, d_logp = policy_share * policy, d_policy
    if objective.uses_reference:
        assert batch.ref_logp is not None, "a KL weight needs the reference's log-probs"
        kl, d_kl = KL_ESTIMATORS[objective.kl](logp.detach(), batch.old_logp, batch.ref_logp)
        beta = torch.where(
            reasoning, objective.kl_reasoning, torch.full_like(share, objective.kl_knowledge)
        )
        total, d_logp = total + share * beta * kl, d_logp + share * beta * d_kl
    d_entropy = None
    if objective.entropy_coefficient:
        d_entropy = -objective.entropy_coefficient * share
        total = total + d_entropy * entropy.detach()

    tallies = _tallies(
        objective, logp.detach(), entropy.detach(), batch, weight, in_play, reasoning, total
    )
    return TokenGradients(
        loss=tallies["loss"][0],
        d_logp=d_logp,
        d_entropy=d_entropy,
        policy_weight=weight,
        tallies=tallies,
    )


def _policy_terms(
    policy_loss: Callable[[Tensor], Tensor], logp: Tensor, advantages: Tensor, share: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Policy loss per token, gradient of its weighted sum, and w.

    Two derivatives of one graph: a loss from outside may reach other tokens than its own.
    """
    with torch.enable_grad():
        leaf = logp.detach().clone().requires_grad_()
        loss = policy_loss(leaf)
        (gradient,) = torch.autograd.grad((share * loss).sum(), leaf, retain_graph=True)
        (slope,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), gradient, torch.where(advantages != 0, -slope / advantages, 0.0)


def _policy_loss(
    objective: Objective, logp: Tensor, partition: Tensor, ids: Tensor, batch: TokenBatch
) -> Tensor:
    picked = {} if batch.pick is None else {"pick": batch.pick}
    loss = objective.loss(
        logp, batch.old_logp, batch.advantages, partition, ids, **picked, **objective.knobs
    )
    assert loss.shape == logp.shape, "a loss returns one number per token"
    return torch.where(batch.advantages != 0, loss, 0.0)


# ------------------------------------------------------------------ KL from the reference

KLEstimator = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""`(logp, old_logp, ref_logp) -> (value, derivative with respect to logp)`, per token."""


def kl_k1(
    logp: Float[Tensor, "T"], old_logp: Float[Tensor, "T"], ref_logp: Float[Tensor, "T"]
) -> tuple[Float[Tensor, "T"], Float[Tensor, "T"]]:
    """k1 = log(pi/pi_ref), derivative 1: as a loss its expected gradient is 0 on policy."""
    return logp - ref_logp, torch.ones_like(logp)


def kl_k2(
    logp: Float[Tensor, "T"], old_logp: Float[Tensor, "T"], ref_logp: Float[Tensor, "T"]
) -> tuple[Float[Tensor, "T"], Float[Tensor, "T"]]:
    """k2 = log(pi/pi_ref)^2 / 2, derivative log(pi/pi_ref): the KL's own gradient on policy."""
    gap = logp - ref_logp
    return gap**2 / 2, gap


def kl_k3(
    logp: Float[Tensor, "T"], old_logp: Float[Tensor, "T"], ref_logp: Float[Tensor, "T"]
) -> tuple[Float[Tensor, "T"], Float[Tensor, "T"]]:
    """k3 = exp(d) - d - 1, d = log(pi_ref/pi), derivative 1 - pi_ref/pi (Schulman 2020;
    arXiv 2402.03300, Eq. 4).

    Past d = 20 value and derivative stay as they are at 20: finite, and still pulling back, where
    verl's clamps (d at 20, k3 at 10) let go of the token.
    """
    d = (ref_logp - logp).clamp(max=LOG_GAP_LIMIT)
    return torch.expm1(d) - d, -torch.expm1(d)


def kl_ratio_k3(
    logp: Float[Tensor, "T"], old_logp: Float[Tensor, "T"], ref_logp: Float[Tensor, "T"]
) -> tuple[Float[Tensor, "T"], Float[Tensor, "T"]]:
    """r·k3 with r = pi/pi_old (DeepSeek-V3.2, arXiv 2512.02556): unbiased off policy, value and
    gradient. The derivative, through both factors, is r·log(pi/pi_ref).

    r is bounded to exp(±20), and k3 as in `kl_k3`, so that their product stays finite.
    """
    ratio = (logp - old_logp).clamp(-LOG_GAP_LIMIT, LOG_GAP_LIMIT).exp()
    value, _ = kl_k3(logp, old_logp, ref_logp)
    return ratio * value, ratio * (logp - ref_logp)


KL_ESTIMATORS: dict[str, KLEstimator] = {
    "k1": kl_k1,
    "k2": kl_k2,
    "k3": kl_k3,
    "ratio_k3": kl_ratio_k3,
}


# ------------------------------------------------------------------ metrics


def _tallies(
    objective: Objective,
    logp: Tensor,
    entropy: Tensor,
    batch: TokenBatch,
    weight: Tensor,
    in_play: Tensor,
    reasoning: Tensor,
    total: Tensor,
) -> Tallies:
    """Sums and counts of the metrics below; every mean is over tokens that count.

    loss                   the weighted sum, over the sum of the tokens' weights (rows that the
                           learner skipped are in neither, here and below)
    entropy                nats, of the current policy
    kl/old_policy          k3 of KL(old || current), on the old policy's samples
    kl, kl/knowledge, kl/reasoning   k3 of KL(current || reference), where the batch holds one
    weighted_unlike_grpo   share of tokens with A != 0 whose w is not what `grpo` gives by default
    weighted_unlike_one    the same for w = 1, which is every loss's weight while r = 1; by more
                           than 0.001, since sampler and learner may differ by rounding
    correction, correction/dropped   mean weight for sampler mismatch, share that it sets to 0
    picked                 share of tokens in the mini-batch's pick

    and, over the tokens with A > 0 (/positive) and those with A < 0 (/negative):
    ratio                  mean r
    clip_fraction          w = 0 because of r: where A > 0 the upper clip's doing, where A < 0 the
                           lower one's (a token that the pick silences is not clipped)
    dual_clip_fraction     where A < 0, r > dual_clip, hard or soft; where A > 0, a flipped ratio
                           held at dual_clip (r < 1/dual_clip); 0 for losses without that knob
    """
    counted = _counted_tokens(batch)
    positive, negative = counted & (batch.advantages > 0), counted & (batch.advantages < 0)
    ratio = policy_ratio(logp, batch.old_logp)
    dual_clipped = in_play & _dual_clipped(objective, ratio, weight, batch.advantages)
    clipped = in_play & (weight == 0) & ~dual_clipped

    pairs = {
        "loss": (total.double().sum(), batch.weights.double().sum()),
        "entropy": _mean(entropy, counted),
        "kl/old_policy": _mean(kl_k3(batch.old_logp, batch.old_logp, logp)[0], counted),
        "weighted_unlike_grpo": _mean(
            _differs(weight, _grpo_weight(ratio, batch.advantages)), positive | negative
        ),
        "weighted_unlike_one": _mean((weight - 1).abs() > 1e-3, positive | negative),
    }
    for sign, tokens in (("positive", positive), ("negative", negative)):
        pairs[f"ratio/{sign}"] = _mean(ratio, tokens)
        pairs[f"clip_fraction/{sign}"] = _mean(clipped, tokens)
        pairs[f"dual_clip_fraction/{sign}"] = _mean(dual_clipped, tokens)
    if batch.ref_logp is not None:
        kl, _ = kl_k3(logp, batch.old_logp, batch.ref_logp)
        pairs["kl"] = _mean(kl, counted)
        pairs["kl/knowledge"] = _mean(kl, counted & ~reasoning)
        pairs["kl/reasoning"] = _mean(kl, counted & reasoning)
    if batch.correction is not None:
        pairs["correction"] = _mean(batch.correction, counted)
        pairs["correction/dropped"] = _mean(batch.correction == 0, counted)
    if batch.pick is not None:
        pairs["picked"] = _mean(batch.pick, counted)
    return _as_numbers(pairs)


def sampler_kl(batch: TokenBatch) -> Tallies:
    """k3 of KL(sampler || old policy): how unlike the learner the sampler was, by older weights or
    by other arithmetic. On the sampler's own tokens, over those that count; nothing where the
    sampler's log-probs stand for the old policy's.
    """
    if torch.equal(batch.old_logp, batch.sampler_logp):
        return {}
    kl, _ = kl_k3(batch.sampler_logp, batch.sampler_logp, batch.old_logp)
    return _as_numbers({"kl/sampler": _mean(kl, _counted_tokens(batch))})


def _dual_clipped(
    objective: Objective, ratio: Tensor, weight: Tensor, advantages: Tensor
) -> Bool[Tensor, "T"]:
    dual_clip = {**knob_defaults(objective.loss), **objective.knobs}.get("dual_clip")
    if not dual_clip:
        return torch.zeros_like(advantages, dtype=torch.bool)
    held = (ratio < 1 / dual_clip) & ~_differs(weight, torch.full_like(weight, dual_clip))
    return torch.where(advantages > 0, held, ratio > dual_clip)


def _counted_tokens(batch: TokenBatch) -> Bool[Tensor, "T"]:
    return torch.repeat_interleave(batch.counted.bool(), batch.lengths)


def _grpo_weight(ratio: Tensor, advantages: Tensor) -> Tensor:
    knobs = knob_defaults(grpo)
    lower, upper = clip_bounds(
        advantages, knobs["clip_low"] or 0.0, knobs["clip_high"] or 0.0, knobs["dual_clip"]
    )
    return torch.where((ratio >= lower) & (ratio <= upper), ratio, 0.0)


def _differs(weight: Tensor, other: Tensor) -> Tensor:
    """By more than 1e-6, relative above 1: float32 rounding of the same formula is not a change."""
    return (weight - other).abs() > 1e-6 * weight.abs().clamp(min=1)


def _mean(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(mask, values, 0).double().sum(), mask.double().sum()


def _as_numbers(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Tallies:
    """One transfer from the device for all of them."""
    numbers = torch.stack([number for pair in pairs.values() for number in pair]).tolist()
    return {name: (numbers[2 * i], numbers[2 * i + 1]) for i, name in enumerate(pairs)}


def add_tallies(parts: Iterable[Tallies]) -> Tallies:
    """Sums and counts of micro-batches, ranks or mini-batches together."""
    added: Tallies = {}
    for part in parts:
        for name, (total, count) in part.items():
            known_total, known_count = added.get(name, (0.0, 0.0))
            added[name] = (known_total + total, known_count + count)
    return added


def summarise(tallies: Tallies) -> dict[str, float]:
    """The means. A metric that counted nothing has none and is left out, rather than 0."""
    return {name: total / count for name, (total, count) in tallies.items() if count}


# ------------------------------------------------------------------ once per batch or step


def pick_tokens(
    batch: TokenBatch, pick: Pick, uniforms: Float[Tensor, "T"], **knobs: Knob
) -> TokenBatch:
    """The mini-batch with its `pick`, made from the old policy's values of tokens that count.

    Call it on a whole mini-batch, of all ranks, before micro-batches are cut. `uniforms` holds one
    number in [0, 1) per token, drawn by a hash so that the batch's order does not matter.
    """
    counted = _counted_tokens(batch)
    chosen = torch.zeros_like(counted)
    if bool(counted.any()):
        chosen[counted] = pick(
            batch.old_logp[counted],
            batch.advantages[counted],
            batch.old_entropy[counted],
            batch.sequence_ids[counted],
            uniforms[counted],
            **knobs,
        )
    return replace(batch, pick=chosen)


def correction_weights(
    old_logp: Float[Tensor, "T"],
    sampler_logp: Float[Tensor, "T"],
    sequence_ids: Int[Tensor, "T"],
    *,
    kind: Mismatch = "none",
    level: Level = "token",
    low: float = 0.0,
    high: float = 2.0,
) -> Float[Tensor, "T"]:
    """Weight of each token's policy loss for a sampler unlike the learner; constant, no gradient.

    rho = pi_old/pi_sampler by `token`, or its product over the `sequence`. `tis` cuts it to
    [low, high] (truncated importance sampling), `mis` sets it to 0 outside of that (masked
    importance sampling, IcePop, arXiv 2510.18855), `none` is 1.
    """
    if kind == "none":
        return torch.ones_like(old_logp)
    if not 0 <= low < high:
        raise ValueError(f"correction bounds are {low} and {high}: give 0 <= low < high")
    log_rho = (old_logp - sampler_logp).detach()
    if level == "sequence":
        log_rho = sequence_sum(log_rho, sequence_ids)
    rho = policy_ratio(log_rho, torch.zeros_like(log_rho))
    if kind == "tis":
        return rho.clamp(low, high)
    return torch.where((rho >= low) & (rho <= high), rho, 0.0)


def adapt_entropy_coefficient(
    coefficient: float,
    entropy: float,
    *,
    target: float,
    delta: float = 0.005,
    low: float = 0.0,
    high: float = 1.0,
) -> float:
    """The entropy coefficient after a step of mean `entropy` (Skywork-OR1, arXiv 2505.22312).

    It moves by `delta`, up while entropy is at or below `target`, down above, within [low, high].
    The paper applies it only while entropy is at or below the target: the caller's choice.
    """
    moved = coefficient + (delta if entropy <= target else -delta)
    return min(max(moved, low), high)
