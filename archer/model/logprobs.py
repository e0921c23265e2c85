"""From hidden states to the log-prob of each token and the entropy at it, without the full logits.

The logits of a batch, rows times vocabulary, would be its largest tensor by far. Here they exist
one block at a time, in a buffer that the next block uses again: the forward pass takes the softmax
statistics from it, the backward pass makes it once more and turns it into gradients. Log-prob and
entropy are both differentiable, and in float32 whatever the weights are stored in.

`FusedHead` stands in for a model's `lm_head`, so that this happens inside the model's own forward:
sharded training (FSDP2) gathers the head's weight only there.

Left out: which rows are worth a score (the caller lets only those reach the head), vocabularies
spread over devices, second derivatives, and models that change their logits behind the head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from archer.model.layers import linear

BLOCK_ROWS = 2048
"""Most rows in a block: enough for the weight's gradient to be written few times."""

BLOCK_COLUMNS = 4096
"""Most of the vocabulary in a block: sums over longer stretches lose digits."""

CPU_BLOCK_BYTES = 8 << 20
"""Most memory for a block on CPU: two of them, and their part of the weight, should stay cached."""

KEEP_BYTES = 512 << 20
"""Logits that a forward pass may hold for its backward pass, which then skips a matrix product."""

BARRED = -1e30
"""Stands for a logit of -inf: its probability is 0 too, and 0 times it is 0 and not NaN."""


def fused_logprobs(
    hidden: Float[Tensor, "R D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, "R"],
    *,
    bias: Float[Tensor, "V"] | None = None,
    temperature: float = 1.0,
    keep_bytes: int = KEEP_BYTES,
    block: tuple[int, int] | None = None,
) -> tuple[Float[Tensor, "R"], Float[Tensor, "R"]]:
    """Log-prob of each row's target and entropy of its distribution, in nats.

    The distribution of a row is softmax((hidden @ weight.T + bias) / temperature). Both results are
    float32 (float64 for float64 input) and differentiable in hidden, weight and bias. Rows that get
    no gradient cost nothing in the backward pass, nor does the entropy when its gradient is zero.
    A target outside the vocabulary gets NaN; a bias of -inf bars a token.

    `keep_bytes` is memory for time: as many logits as fit are held from forward to backward.
    `block` is the most (rows, columns of the vocabulary) computed at once, by default what suits
    the device. Neither changes a result beyond rounding.
    """
    assert hidden.dtype == weight.dtype, f"{hidden.dtype} rows cannot meet a {weight.dtype} head"
    assert temperature > 0, f"temperature {temperature} is not positive"
    learns = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias)
    )
    logp, entropy = _FusedLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden,
        weight,
        bias,
        targets,
        temperature,
        block or _block_shape(len(hidden), hidden.device),
        keep_bytes if learns else 0,
    )
    return logp, entropy


class FusedHead(nn.Module):
    """A language model's head that can answer with log-probs and entropies instead of logits.

    It holds the parameters of the linear layer it replaces, not copies, so tied embeddings stay
    tied and state dicts keep their keys. Called as usual it returns logits. Under `scoring` it
    returns two numbers a row, which the model hands through as its logits:

        head = fuse_head(model)
        with head.scoring(targets, temperature):
            scores = model(tokens, logits_to_keep=rows, use_cache=False).logits
        logp, entropy = scores[0].unbind(-1)

    Row i of what reaches the head predicts `targets[i]`. The backward pass may come after the
    `with` block has ended.
    """

    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self._scoring: tuple[Tensor, float, Tensor | None] | None = None

    @contextmanager
    def scoring(
        self,
        targets: Int[Tensor, "R"],
        temperature: float,
        rows: Int[Tensor, "R"] | None = None,
    ) -> Iterator[None]:
        """Makes forward passes within the block return scores of `targets` instead of logits.

        With `rows`, row `rows[i]` predicts `targets[i]`: one row may then predict several.
        """
        assert self._scoring is None, "the head is already scoring other targets"
        self._scoring = (targets, temperature, rows)
        try:
            yield
        finally:
            self._scoring = None

    def forward(self, hidden: Float[Tensor, "*rows D"]) -> Float[Tensor, "*scored out"]:
        """Logits `[*rows, V]`; under `scoring` log-probs and entropies, with `rows` `[1, R, 2]`."""
        if self._scoring is None:
            return linear(hidden, self.weight, self.bias)
        targets, temperature, chosen = self._scoring
        if chosen is not None:
            hidden = hidden.reshape(-1, hidden.shape[-1]).index_select(0, chosen)[None]
        rows = hidden.reshape(-1, hidden.shape[-1])
        assert len(rows) == len(targets), f"{len(rows)} rows reach the head, {len(targets)} targets"
        scores = fused_logprobs(rows, self.weight, targets, bias=self.bias, temperature=temperature)
        # FSDP2 hangs a hook on what the model returns: it must not be a view, so stacked last.
        return torch.stack([values.view(hidden.shape[:-1]) for values in scores], -1)


def fuse_head(model: PreTrainedModel) -> FusedHead:
    """Replaces the model's output layer by a `FusedHead` on the same parameters, and returns it.

    Do this before the model is sharded. The model's logits must be its output layer's and nothing
    more; `archer.model.supported` refuses the kinds that scale or cap them.
    Raises ValueError for a model without a linear output layer.
    """
    head: nn.Module | None = model.get_output_embeddings()
    if isinstance(head, FusedHead):
        return head
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"the output layer of {type(model).__name__} is a {type(head).__name__}, not a linear "
            "layer; choose a causal language model"
        )
    fused = FusedHead(head)
    model.set_output_embeddings(fused)
    return fused


class _FusedLogprobs(torch.autograd.Function):
    """The vocabulary is the outer loop: each part of the weight is read once in a pass, and its
    gradient is finished, in float32, before the next part begins."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        block: tuple[int, int],
        keep_bytes: int,
    ) -> tuple[Tensor, Tensor]:
        row_cuts, parts = _cuts(len(hidden), block[0]), _cuts(len(weight), block[1])
        memory, scratch = (_block_memory(hidden, row_cuts, parts) for _ in range(2))
        kept = _kept_parts(hidden, parts, keep_bytes)
        operand = _operand(hidden)

        target_logits = memory.new_full((len(hidden), 1), torch.nan)
        sums = memory.new_empty(3, len(parts), len(hidden))
        for part, columns in enumerate(parts):
            head = _head_part(weight, bias, columns)
            for rows in row_cuts:
                space = kept[part][rows] if part < len(kept) else _view(memory, rows, columns)
                logits = _write_logits(space, operand[rows], *head, temperature)
                index, here = _locate(targets[rows], columns)
                target_logits[rows] = logits.gather(1, index).where(here, target_logits[rows])
                sums[:, part, rows] = _shift_and_sum(logits, _view(scratch, rows, columns))

        peak, log_total, entropy = _join(*sums)
        saved = (hidden, weight, bias, targets, peak, log_total, entropy, sums[0])
        ctx.save_for_backward(*saved, *kept)
        ctx.temperature, ctx.block = temperature, block
        ctx.set_materialize_grads(False)
        return target_logits[:, 0] - peak - log_total, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, logp_gradient: Tensor | None, entropy_gradient: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, peak, log_total, entropy, peaks, *kept = ctx.saved_tensors
        by_logp, by_entropy = (
            torch.zeros_like(entropy) if gradient is None else gradient / ctx.temperature
            for gradient in (logp_gradient, entropy_gradient)
        )
        active = ((by_logp != 0) | (by_entropy != 0)).nonzero()[:, 0]
        with_entropy = bool((by_entropy != 0).any())
        operand, targets, peaks = _operand(hidden[active]), targets[active], peaks[:, active, None]
        by_logp, by_entropy, peak, log_total, entropy = (
            values[active, None] for values in (by_logp, by_entropy, peak, log_total, entropy)
        )
        slope, offset = _gradient_line(by_logp, by_entropy, log_total, entropy)

        row_cuts, parts = _cuts(len(active), ctx.block[0]), _cuts(len(weight), ctx.block[1])
        memory = _block_memory(hidden, row_cuts, parts)
        scratch = _block_memory(hidden, row_cuts, parts) if with_entropy else None
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        d_hidden = memory.new_zeros(operand.shape)
        # Filled below, part by part, if there is any row to fill it from.
        blank = torch.empty_like if row_cuts else torch.zeros_like
        d_weight = blank(weight) if needs_weight else None
        d_bias = memory.new_zeros(len(weight)) if needs_bias else None
        for part, columns in enumerate(parts):
            head = _head_part(weight, bias, columns)
            d_part: Tensor | None = None
            for rows in row_cuts:
                space = _view(memory, rows, columns)
                if part < len(kept):
                    torch.index_select(kept[part], 0, active[rows], out=space)
                    space += peaks[part, rows] - peak[rows]
                else:
                    _write_logits(space, operand[rows], *head, ctx.temperature)
                    space -= peak[rows]
                line = None if scratch is None else _view(scratch, rows, columns)
                gradient = _to_gradient(space, slope[rows], offset[rows], line)
                index, here = _locate(targets[rows], columns)
                gradient.scatter_add_(1, index, by_logp[rows].where(here, 0))
                if d_bias is not None:
                    d_bias[columns] += gradient.sum(0)
                factor = gradient.to(operand.dtype)
                if needs_hidden:
                    d_hidden[rows] += _product(factor, head[0], memory.dtype)
                if needs_weight:
                    product = _product(factor.t(), operand[rows], memory.dtype)
                    d_part = product if d_part is None else d_part.add_(product)
            if d_weight is not None and d_part is not None:
                d_weight[columns] = d_part

        all_hidden = torch.zeros_like(hidden)
        all_hidden[active] = d_hidden.to(hidden.dtype)
        return all_hidden, d_weight, d_bias, None, None, None, None


def _block_shape(rows: int, device: torch.device) -> tuple[int, int]:
    """Rows in blocks of equal size, and as many columns as the memory for a block then allows."""
    num_blocks = max(1, math.ceil(rows / BLOCK_ROWS))
    block_rows = max(1, math.ceil(rows / num_blocks))
    if device.type != "cpu":
        return block_rows, BLOCK_COLUMNS
    # Matrix products like multiples of 64.
    columns = CPU_BLOCK_BYTES // torch.float32.itemsize // block_rows // 64 * 64
    return block_rows, min(BLOCK_COLUMNS, columns)


def _cuts(length: int, size: int) -> list[slice]:
    """`5, 2` -> `[0:2], [2:4], [4:5]`."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _width(cut: slice) -> int:
    width: int = cut.stop - cut.start
    return width


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _operand(tensor: Tensor) -> Tensor:
    """A factor as matrix products take it: CUDA sums bfloat16 in float32, others need float32."""
    return tensor if tensor.is_cuda else tensor.to(_sum_dtype(tensor))


def _block_memory(hidden: Tensor, row_cuts: list[slice], parts: list[slice]) -> Tensor:
    size = max(map(_width, row_cuts), default=0) * max(map(_width, parts))
    return hidden.new_empty(size, dtype=_sum_dtype(hidden))


def _view(memory: Tensor, rows: slice, columns: slice) -> Float[Tensor, "rows columns"]:
    height, width = _width(rows), _width(columns)
    return memory[: height * width].view(height, width)


def _kept_parts(hidden: Tensor, parts: list[slice], keep_bytes: int) -> list[Tensor]:
    """Room for the logits of the first parts of the vocabulary, as many as `keep_bytes` allow."""
    dtype = _sum_dtype(hidden)
    part_bytes = max(1, len(hidden) * _width(parts[0]) * dtype.itemsize)
    return [
        hidden.new_empty(len(hidden), _width(columns), dtype=dtype)
        for columns in parts[: keep_bytes // part_bytes]
    ]


def _head_part(
    weight: Tensor, bias: Tensor | None, columns: slice
) -> tuple[Float[Tensor, "columns D"], Float[Tensor, "columns"] | None]:
    weight_part = _operand(weight[columns])
    if bias is None:
        return weight_part, None
    return weight_part, bias[columns].to(_sum_dtype(weight)).clamp(min=BARRED)


def _write_logits(
    space: Float[Tensor, "rows columns"],
    operand: Float[Tensor, "rows D"],
    weight: Float[Tensor, "columns D"],
    bias: Float[Tensor, "columns"] | None,
    temperature: float,
) -> Float[Tensor, "rows columns"]:
    """Fills `space` with the block's logits, divided by the temperature."""
    if operand.dtype == space.dtype:
        torch.mm(operand, weight.t(), out=space)
    else:
        torch.mm(operand, weight.t(), out_dtype=space.dtype, out=space)
    if bias is not None:
        space += bias
    if temperature != 1.0:
        space /= temperature
    return space


def _product(
    left: Float[Tensor, "n k"], right: Float[Tensor, "k m"], dtype: torch.dtype
) -> Float[Tensor, "n m"]:
    """`left @ right`, summed in `dtype`.

    The caller adds it to its total. Adding within the product (`addmm`) may round each of the k
    steps to the precision of the total, which costs up to two digits over a vocabulary.
    """
    if left.dtype == dtype:
        return left @ right
    return torch.mm(left, right, out_dtype=dtype)


def _locate(
    targets: Int[Tensor, "rows"], columns: slice
) -> tuple[Int[Tensor, "rows 1"], Bool[Tensor, "rows 1"]]:
    """Column of each target within the block, and whether it lies there at all."""
    index = (targets.long() - columns.start)[:, None]
    here = (index >= 0) & (index < _width(columns))
    return index.clamp(0, _width(columns) - 1), here


def _shift_and_sum(
    logits: Float[Tensor, "rows columns"], scratch: Float[Tensor, "rows columns"]
) -> Float[Tensor, "3 rows"]:
    """Takes each row's largest logit off the block, and sums what is left.

    Returns the largest logit m, the sum of exp(y - m), and the sum of exp(y - m) (y - m).
    """
    peak = logits.amax(1)
    logits -= peak[:, None]
    weights = torch.exp(logits, out=scratch)
    total = weights.sum(1)
    return torch.stack([peak, total, weights.mul_(logits).sum(1)])


def _join(
    peaks: Float[Tensor, "parts R"],
    totals: Float[Tensor, "parts R"],
    moments: Float[Tensor, "parts R"],
) -> tuple[Float[Tensor, "R"], Float[Tensor, "R"], Float[Tensor, "R"]]:
    """The softmax statistics of rows from those of their parts.

    Returns the largest logit m, the log of the sum of exp(y - m), and the entropy: that log less
    the mean of y - m.
    """
    peak = peaks.amax(0)
    shares = (peaks - peak).exp()
    total = (shares * totals).sum(0)
    moment = (shares * (moments + totals * (peaks - peak))).sum(0)
    log_total = total.log()
    return peak, log_total, log_total - moment / total


def _gradient_line(
    by_logp: Float[Tensor, "R 1"],
    by_entropy: Float[Tensor, "R 1"],
    log_total: Float[Tensor, "R 1"],
    entropy: Float[Tensor, "R 1"],
) -> tuple[Float[Tensor, "R 1"], Float[Tensor, "R 1"]]:
    """Slope and offset, by which exp(y - m) (slope (y - m) + offset) is the gradient by logit y.

    With p the probability of a token and H the entropy, the logit of the token moves the target's
    log-prob by 1[target] - p and the entropy by -p (log p + H). The loss moves by `by_logp` and
    `by_entropy` times that; p = exp(y - m - log_total). The target's 1 is added apart.
    """
    share = torch.exp(-log_total)
    return -share * by_entropy, -share * (by_logp + by_entropy * (entropy - log_total))


def _to_gradient(
    shifted: Float[Tensor, "rows columns"],
    slope: Float[Tensor, "rows 1"],
    offset: Float[Tensor, "rows 1"],
    scratch: Float[Tensor, "rows columns"] | None,
) -> Float[Tensor, "rows columns"]:
    """Turns y - m into exp(y - m) (slope (y - m) + offset); without scratch the slope is zero."""
    if scratch is None:
        return shifted.exp_().mul_(offset)
    line = torch.mul(shifted, slope, out=scratch).add_(offset)
    return shifted.exp_().mul_(line)
