"""Attention over packed tokens: a prompt is computed once for all of its answers.

A forward pass sees one flat row of tokens, `[prompt 0 | prompt 1 | ... | completion 0 | ...]`, each
with its own position. Everything but attention works on single tokens, so a prompt that G answers
share is paid for once. In attention each sequence is put together again, prompt and answer, from
the vectors of the flat row, and attends causally as if it were alone; sequences are padded on the
right, where causal attention cannot see, so no mask exists that could be dropped or be wrong.

transformers lets a model use an attention function of one's own. Ours hands over to the `Context`
that the caller passes to the model as the keyword `context`, always with `use_cache=False` (with a
cache, transformers 5 rearranges packed sequences without a word).

What this leaves out: sliding windows, soft caps, sinks and recurrent layers; `archer.model.load`
refuses models that have them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface

ATTENTION = "archer_packed"
"""Name of our attention function in transformers' table of them."""


@runtime_checkable
class Context(Protocol):
    """What attention means for the tokens of one forward pass."""

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "N H D"],
        key: Float[Tensor, "N K D"],
        value: Float[Tensor, "N K D"],
        scale: float,
    ) -> Float[Tensor, "N H D"]: ...


def use_packed_attention(model: nn.Module) -> None:
    """Makes a Hugging Face causal LM attend through the `context` keyword of its forward."""
    AttentionInterface.register(ATTENTION, _attention)
    model.set_attn_implementation(ATTENTION)  # type: ignore[operator]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    context: Context,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' calling convention: [1, heads, N, D] in, [1, N, heads, D] out."""
    assert query.shape[0] == 1, "packed attention sees one flat row of tokens"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    layer: Any = module.layer_idx
    return context.attend(layer, q, k, v, scale).unsqueeze(0), None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packed:
    """A flat row of tokens, how its sequences attend, and which rows predict which tokens.

    Example, the prompt (7 8 9) with the completions (5 2) and (6 4 2). The last token of a
    completion predicts nothing, so it is not an input:
        input_ids = [7 8 9 5 6 4]   position_ids = [0 1 2 3 3 4]
        predict   = [2 3 2 4 5]     the rows that predict 5 2, 6 4 2
        buckets   = [[[0 1 2 3 0], [0 1 2 4 5]]]   (a 0 at the right end is padding)
        restore   = [0 1 2 3 8 9]   where each row's attention output stands in the buckets
    """

    input_ids: Int[Tensor, "N"]
    position_ids: Int[Tensor, "N"]
    predict: Int[Tensor, "T"]
    buckets: tuple[Int[Tensor, "_ _"], ...]
    restore: Int[Tensor, "N"]

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "N H D"],
        key: Float[Tensor, "N K D"],
        value: Float[Tensor, "N K D"],
        scale: float,
    ) -> Float[Tensor, "N H D"]:
        """Each sequence attends causally to itself; rows of shared prompts are taken once."""
        outputs = []
        for bucket in self.buckets:
            q, k, v = (
                states.index_select(0, bucket.flatten()).unflatten(0, bucket.shape).transpose(1, 2)
                for states in (query, key, value)
            )
            attended = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
            )
            outputs.append(attended.transpose(1, 2).flatten(0, 1))
        joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return joined.index_select(0, self.restore)


PADDING_ALLOWED = 0.7
"""A sequence joins a bucket whose longest member it reaches to this share; attention is cheap
beside the rest of a layer, so some padding costs less than many small calls."""


def pack(
    prompt_tokens: Int[Tensor, "M"],
    prompt_lengths: Int[Tensor, "P"],
    prompt_index: Int[Tensor, "B"] | None = None,
    tokens: Int[Tensor, "T"] | None = None,
    lengths: Int[Tensor, "B"] | None = None,
) -> Packed:
    """Lays prompts and their completions out in one flat row.

    Without completions (`tokens` None) this is a prefill: `predict` then names the last row of each
    prompt.
    """
    prompt_sizes = prompt_lengths.tolist()
    prompt_starts = _starts(prompt_sizes)
    prompt_rows = [list(range(s, s + n)) for s, n in zip(prompt_starts, prompt_sizes, strict=True)]
    if tokens is None or lengths is None or prompt_index is None:
        input_ids, positions = prompt_tokens, _positions(prompt_sizes)
        sequences: list[tuple[list[int], list[int]]] = [(rows, []) for rows in prompt_rows]
        predict = [rows[-1] for rows in prompt_rows]
    else:
        sizes, prompts = lengths.tolist(), prompt_index.tolist()
        inputs = [size - 1 for size in sizes]
        own_starts = [len(prompt_tokens) + start for start in _starts(inputs)]
        own_rows = [list(range(s, s + n)) for s, n in zip(own_starts, inputs, strict=True)]
        sequences = [(prompt_rows[p], rows) for p, rows in zip(prompts, own_rows, strict=True)]
        predict = [row for whole, own in sequences for row in (whole[-1], *own)]
        last = torch.zeros(len(tokens), dtype=torch.bool)
        last[torch.cumsum(lengths.cpu(), 0) - 1] = True
        input_ids = torch.cat([prompt_tokens, tokens[~last.to(tokens.device)]])
        positions = _positions(prompt_sizes) + [
            prompt_sizes[p] + t for p, n in zip(prompts, inputs, strict=True) for t in range(n)
        ]
    buckets, restore = _buckets(sequences, num_rows=len(positions))
    device = prompt_tokens.device
    return Packed(
        input_ids=input_ids,
        position_ids=torch.tensor(positions, device=device),
        predict=torch.tensor(predict, device=device),
        buckets=tuple(bucket.to(device) for bucket in buckets),
        restore=restore.to(device),
    )


def _starts(sizes: list[int]) -> list[int]:
    starts, at = [], 0
    for size in sizes:
        starts.append(at)
        at += size
    return starts


def _positions(sizes: list[int]) -> list[int]:
    return [position for size in sizes for position in range(size)]


def _buckets(
    sequences: list[tuple[list[int], list[int]]], num_rows: int
) -> tuple[list[Tensor], Tensor]:
    """Sequences of similar length side by side, and where each flat row's output is found."""
    order = sorted(range(len(sequences)), key=lambda i: -sum(map(len, sequences[i])))
    cuts: list[list[int]] = []
    longest = 0
    for i in order:
        length = sum(map(len, sequences[i]))
        if not cuts or length < PADDING_ALLOWED * longest:
            cuts.append([])
            longest = length
        cuts[-1].append(i)
    restore = torch.full((num_rows,), -1, dtype=torch.int64)
    buckets, offset = [], 0
    for cut in cuts:
        width = sum(map(len, sequences[cut[0]]))
        bucket = torch.zeros(len(cut), width, dtype=torch.int64)
        for line, i in enumerate(cut):
            rows = torch.tensor(sequences[i][0] + sequences[i][1])
            bucket[line, : len(rows)] = rows
            restore[rows] = offset + line * width + torch.arange(len(rows))
        buckets.append(bucket)
        offset += bucket.numel()
    assert int(restore.min()) >= 0, "every token belongs to a sequence"
    return buckets, restore
