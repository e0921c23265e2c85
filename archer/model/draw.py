"""One token from logits: inverse-CDF sampling from one uniform number per row.

The uniform numbers are hashed from names (seed, step, problem, sample) and a position, so a draw
depends neither on who else is in the batch nor on any global state, and one number per token
replaces one random number per word of the vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 256
"""The cumulative sum runs over sums of so many probabilities first, then inside one such block."""


class Draw(NamedTuple):
    """The drawn tokens with their log-probs and the entropy of their distributions, in nats."""

    tokens: Int[Tensor, "n"]
    logp: Float[Tensor, "n"]
    entropy: Float[Tensor, "n"]


def draw(
    logits: Float[Tensor, "n V"],
    uniforms: Float[Tensor, "n"],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Draw:
    """Draws one token a row from softmax(logits / temperature), truncated if asked for.

    top_k (0: off), then top_p and min_p keep the likeliest tokens; `logp` is that of the truncated
    distribution, `entropy` that of the whole one. Temperature 0 takes the likeliest token; its
    logp and entropy are those of temperature 1. `uniforms` are float64 in [0, 1).
    """
    rows, vocabulary = logits.shape
    wide = logits.float()
    if temperature not in (0.0, 1.0):
        wide = wide / temperature
    # Far below the largest, so that its probability is 0, yet finite: 0 times -inf is no number.
    shifted = (wide - wide.amax(-1, keepdim=True)).clamp_(min=-1e4)
    num_blocks = -(-vocabulary // BLOCK)
    padded = shifted.new_empty(rows, num_blocks * BLOCK)
    padded[:, vocabulary:] = 0
    probs = torch.exp(shifted, out=padded[:, :vocabulary])
    total = probs.sum(-1, dtype=torch.float32)
    log_total = total.log()
    expected = torch.bmm(probs.unsqueeze(1), shifted.unsqueeze(2)).flatten()
    entropy = log_total - expected / total
    if temperature == 0:
        tokens = shifted.argmax(-1)
    else:
        if top_k or top_p < 1 or min_p > 0:
            probs.mul_(_kept(probs / total[:, None], top_k=top_k, top_p=top_p, min_p=min_p))
            log_total = probs.sum(-1).log()
        tokens = _inverse_cdf(padded.view(rows, num_blocks, BLOCK), uniforms)
    logp = shifted.gather(1, tokens[:, None]).flatten() - log_total
    return Draw(tokens, logp, entropy)


def _kept(
    probs: Float[Tensor, "n V"], *, top_k: int, top_p: float, min_p: float
) -> Float[Tensor, "n V"]:
    """1 for tokens that truncation keeps, else 0. The likeliest token is always kept."""
    ordered, index = probs.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_k:
        keep[:, top_k:] = False
    if top_p < 1:
        allowed = torch.where(keep, ordered, 0)
        before = allowed.cumsum(-1, dtype=torch.float64) - allowed
        keep &= before < top_p * allowed.sum(-1, keepdim=True)
    if min_p > 0:
        keep &= ordered >= min_p * ordered[:, :1]
    keep[:, 0] = True
    return torch.zeros_like(probs).scatter(-1, index, keep.to(probs.dtype))


def _inverse_cdf(
    probs: Float[Tensor, "n blocks width"], uniforms: Float[Tensor, "n"]
) -> Int[Tensor, "n"]:
    """The first token at which the cumulative sum passes `uniforms * total`."""
    rows = torch.arange(len(probs), device=probs.device)
    block_sums = probs.sum(-1).double()
    over_blocks = block_sums.cumsum(-1)
    target = (uniforms.double() * over_blocks[:, -1])[:, None]
    block = _first_above(over_blocks, target)
    before = (over_blocks - block_sums)[rows, block]
    inside = probs[rows, block].double().cumsum(-1)
    return block * probs.shape[-1] + _first_above(inside, target - before[:, None])


def _first_above(
    cumulative: Float[Tensor, "n m"], target: Float[Tensor, "n 1"]
) -> Int[Tensor, "n"]:
    """Index of the first entry above the target; rounding never leads past the last that grew."""
    last_that_grew = (cumulative < cumulative[:, -1:]).sum(-1)
    return torch.minimum((cumulative <= target).sum(-1), last_that_grew)
