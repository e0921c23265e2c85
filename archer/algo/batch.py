"""From judged groups to packed tensors, and from those to mini-batches and micro-batches.

A mini-batch is what one optimizer step learns from; its size is given in problems and decides the
mathematics. A micro-batch is what one forward pass holds; its size is given in tokens, saves
memory, and decides nothing: every token carries its share of the mini-batch's mean (`weights`)
before micro-batches are cut, so their losses are simply added.

No padding is stored: tokens of all sequences lie one behind the other, and lengths say where each
begins. Nothing here compares a token with a pad or an eos id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from archer.types import Completion, Group

Average = Literal["token", "sequence", "constant"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenBatch:
    """Prompts once each, completions packed, and one number per completion token for the rest.

    Letters: P prompts, N prompt tokens, B sequences (completions), T completion tokens.

    Example, the prompt (7 8 9) with the completions (5 2) and (6 4 2), average "token":
        prompt_tokens = [7 8 9]      prompt_lengths = [3]
        tokens        = [5 2 6 4 2]  lengths = [2 3]  prompt_index = [0 0]
        advantages    = [1 1 -1 -1 -1]                counted = [true true]
        weights       = [.2 .2 .2 .2 .2]
    """

    prompt_tokens: Int[Tensor, "N"]
    prompt_lengths: Int[Tensor, "P"]
    prompt_index: Int[Tensor, "B"]
    """Which prompt each sequence answers."""
    tokens: Int[Tensor, "T"]
    lengths: Int[Tensor, "B"]
    counted: Bool[Tensor, "B"]
    """False for a sequence that is masked out (overlong masking): no gradient, not in any mean."""
    advantages: Float[Tensor, "T"]
    weights: Float[Tensor, "T"]
    """Share of each token in its mini-batch's mean; they add up to 1 for `token` and `sequence`."""
    sampler_logp: Float[Tensor, "T"]
    """Log-prob of each token as its sampler saw it."""
    old_logp: Float[Tensor, "T"]
    """Log-prob under the policy before this batch's first update, as the learner sees it."""
    old_entropy: Float[Tensor, "T"]
    """Entropy of the old policy's distribution at each token, in nats."""
    ref_logp: Float[Tensor, "T"] | None = None
    pick: Bool[Tensor, "T"] | None = None
    """Tokens picked by a statistic of the whole mini-batch, for losses that need one."""
    correction: Float[Tensor, "T"] | None = None
    """Detached weight of each token that corrects for a sampler unlike the learner."""
    on_policy: bool = False
    """Whether this is the first and only update from these samples: its ratios are exactly 1."""

    @property
    def sequence_ids(self) -> Int[Tensor, "T"]:
        """Number of the sequence that each token belongs to, 0 to B - 1, never decreasing."""
        return sequence_ids(self.lengths)

    def to(self, device: torch.device | str) -> TokenBatch:
        moved: dict[str, Any] = {name: value.to(device) for name, value in _tensors(self).items()}
        return replace(self, **moved)


def _tensors(batch: TokenBatch) -> dict[str, Tensor]:
    """The tensors that are set."""
    found = {name: getattr(batch, name) for name in TokenBatch.__slots__}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def sequence_ids(lengths: Int[Tensor, "B"]) -> Int[Tensor, "T"]:
    """`[2, 3]` -> `[0, 0, 1, 1, 1]`."""
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)


def to_batch(
    groups: Sequence[Group],
    advantages: Sequence[Sequence[float]],
    *,
    mask_truncated: bool = False,
) -> TokenBatch:
    """Packs judged groups; `advantages[i][j]` belongs to rollout j of group i.

    Rollouts whose verdict is `error` are left out altogether. With `mask_truncated`, completions
    that ran into the token limit stay in the batch but do not count.
    """
    prompts: list[np.ndarray] = []
    rows: list[tuple[int, Completion, float]] = []
    for group, group_advantages in zip(groups, advantages, strict=True):
        prompts.append(group.rollouts[0].completion.prompt_ids)
        for rollout, advantage in zip(group.rollouts, group_advantages, strict=True):
            if rollout.verdict.outcome != "error":
                rows.append((len(prompts) - 1, rollout.completion, advantage))
    completions = [row[1] for row in rows]
    lengths = torch.tensor([len(c.token_ids) for c in completions], dtype=torch.int64)
    assert len(rows) and int(lengths.min()) > 0, (
        "a batch needs sequences, and each at least a token"
    )

    def packed(name: str, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.concatenate([getattr(c, name) for c in completions])).to(dtype)

    row_advantages = torch.tensor([row[2] for row in rows], dtype=torch.float32)
    sampler_logp = packed("logps", torch.float32)
    return TokenBatch(
        prompt_tokens=torch.from_numpy(np.concatenate(prompts)).to(torch.int64),
        prompt_lengths=torch.tensor([len(p) for p in prompts], dtype=torch.int64),
        prompt_index=torch.tensor([row[0] for row in rows], dtype=torch.int64),
        tokens=packed("token_ids", torch.int64),
        lengths=lengths,
        counted=torch.tensor([not (mask_truncated and c.stop == "length") for c in completions]),
        advantages=torch.repeat_interleave(row_advantages, lengths),
        weights=torch.zeros(len(sampler_logp)),
        sampler_logp=sampler_logp,
        old_logp=sampler_logp.clone(),
        old_entropy=packed("entropies", torch.float32),
    )


def take(batch: TokenBatch, sequences: Sequence[int] | Int[Tensor, "B"]) -> TokenBatch:
    """The given sequences, in the given order, with only the prompts that they answer."""
    chosen = torch.as_tensor(sequences, dtype=torch.int64)
    tokens = _spans(batch.lengths, chosen)
    prompts, prompt_index = torch.unique(batch.prompt_index[chosen], return_inverse=True)
    per_token: dict[str, Any] = {
        name: value[tokens]
        for name, value in _tensors(batch).items()
        if name not in ("prompt_tokens", "prompt_lengths", "prompt_index", "lengths", "counted")
    }
    return replace(
        batch,
        prompt_tokens=batch.prompt_tokens[_spans(batch.prompt_lengths, prompts)],
        prompt_lengths=batch.prompt_lengths[prompts],
        prompt_index=prompt_index,
        lengths=batch.lengths[chosen],
        counted=batch.counted[chosen],
        **per_token,
    )


def _spans(lengths: Int[Tensor, "B"], chosen: Int[Tensor, "C"]) -> Int[Tensor, "T"]:
    """Flat positions of the chosen spans: lengths [2, 3], chosen [1] -> [2, 3, 4]."""
    starts = (torch.cumsum(lengths, 0) - lengths)[chosen]
    sizes = lengths[chosen]
    offsets = torch.arange(int(sizes.sum())) - torch.repeat_interleave(
        torch.cumsum(sizes, 0) - sizes, sizes
    )
    return torch.repeat_interleave(starts, sizes) + offsets


def token_weights(
    lengths: Int[Tensor, "B"],
    counted: Bool[Tensor, "B"],
    average: Average,
    constant: float | None = None,
) -> Float[Tensor, "T"]:
    """Share of each token in the mean over a mini-batch, so that its loss is `(w * loss).sum()`.

    token     1 / (tokens that count)                        DAPO, Archer Eq. 5
    sequence  1 / (sequences that count * own length)        GRPO, ASPO
    constant  1 / (sequences that count * constant)          Dr. GRPO, constant = token limit

    What does not count weighs 0; when nothing counts, all weights are 0.
    """
    counts = counted.to(torch.float32)
    sequences = counts.sum().clamp(min=1)
    if average == "token":
        share = counts / (counts * lengths).sum().clamp(min=1)
    elif average == "sequence":
        share = counts / (sequences * lengths)
    else:
        assert constant is not None and constant > 0, "the constant average needs its constant"
        share = counts / (sequences * constant)
    return torch.repeat_interleave(share, lengths)


def minibatches(
    batch: TokenBatch,
    *,
    problems: int,
    average: Average,
    constant: float | None = None,
    order: Sequence[int] | None = None,
) -> list[TokenBatch]:
    """Cuts a batch into mini-batches of `problems` prompts each, weighted by their own counts.

    `order` is the order of the prompts in this pass. What is left over forms a smaller last one.
    """
    num_prompts = len(batch.prompt_lengths)
    order = list(range(num_prompts)) if order is None else list(order)
    assert sorted(order) == list(range(num_prompts)), "the order must name every prompt once"
    cut = []
    for start in range(0, num_prompts, problems):
        chosen = order[start : start + problems]
        rows = [
            int(row) for p in chosen for row in torch.nonzero(batch.prompt_index == p).flatten()
        ]
        if not rows:
            continue
        part = take(batch, rows)
        weights = token_weights(part.lengths, part.counted, average, constant)
        cut.append(replace(part, weights=weights))
    return cut


def microbatches(
    batch: TokenBatch, *, max_tokens: int, rows: Int[Tensor, "B"] | None = None
) -> list[list[int]]:
    """Sequences (by number) that go through the model together, at most `max_tokens` a time.

    A prompt is counted once for all its answers that share the pass. A sequence is never split; one
    that is longer than the limit goes alone. `rows` leaves out sequences that need no pass.
    """
    chosen = range(len(batch.lengths)) if rows is None else rows.tolist()
    lengths, prompt_lengths = batch.lengths.tolist(), batch.prompt_lengths.tolist()
    prompt_index = batch.prompt_index.tolist()
    parts: list[list[int]] = []
    used, prompts = 0, set[int]()
    for row in sorted(chosen, key=lambda row: (prompt_index[row], row)):
        prompt = prompt_index[row]
        cost = lengths[row] + (0 if prompt in prompts else prompt_lengths[prompt])
        if not parts or used + cost > max_tokens:
            parts.append([])
            used, prompts = 0, set()
            cost = lengths[row] + prompt_lengths[prompt]
        parts[-1].append(row)
        used += cost
        prompts.add(prompt)
    return parts
