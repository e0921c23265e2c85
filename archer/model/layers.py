"""The plain layers of a transformer, with fewer passes over memory and less kept for backward.

transformers writes a norm or a gated MLP as a chain of small operations. On a CPU each of them
reads and writes all activations once more, and each may keep some for its backward pass. Here such
a chain is one function with a gradient worked out by hand. The modules are replaced one by one, on
the same parameters and under the same names, so state dicts do not change; what is not known here
stays as it is.

Linear layers have another side on a CPU. torch gives float32 products to MKL; oneDNN, which torch
carries too, is a tenth faster at rows times transposed weight with many rows, and a third to a half
with the 8 to 64 rows of a sampler's step (docs/performance.md). So those products go there.

Left out: weights laid out anew for oneDNN (a little faster still, but a second copy of the model
that every optimizer step would have to renew), and biases in MLPs.
"""

from __future__ import annotations

import functools
import os
import platform
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

# For each shape of a product oneDNN keeps a program and its working memory, and so does torch
# beside it: 0.6 MB and more for each of a thousand shapes, and most micro-batches have a new one.
# A forward and a backward pass have fewer of them than these. Read at the first product.
for _capacity in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_capacity, "16")

RMS_NORMS = ("LlamaRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
"""Classes that compute weight * (x / rms(x)), the division in float32."""

GATED_MLPS = ("LlamaMLP", "Qwen2MLP", "Qwen3MLP")
"""Classes that compute down(act(gate(x)) * up(x))."""

SILUS = ("SiLU", "SiLUActivation")
"""Classes of act that compute x * sigmoid(x)."""


def use_own_layers(model: nn.Module) -> None:
    """Replaces those modules of a Hugging Face model that are known here; once is enough."""
    for name, module in list(model.named_modules()):
        own = _own(module)
        if own is not None:
            model.set_submodule(name, own, strict=True)


def _own(module: Any) -> nn.Module | None:
    kind = type(module).__name__
    if type(module) is nn.Linear:
        return Linear(module)
    if kind in RMS_NORMS:
        return RMSNorm(module)
    if kind in GATED_MLPS and _is_silu(module.act_fn) and module.down_proj.bias is None:
        return GatedMLP(module)
    return None


def _is_silu(activation: Any) -> bool:
    return type(activation).__name__ in SILUS


# ------------------------------------------------------------------ linear layers


class Linear(nn.Linear):
    """`nn.Linear` on the parameters of another one, by `linear`."""

    def __init__(self, other: nn.Linear) -> None:
        super().__init__(
            other.in_features, other.out_features, bias=other.bias is not None, device="meta"
        )
        self.weight, self.bias = other.weight, other.bias

    def forward(self, input: Float[Tensor, "*n D"]) -> Float[Tensor, "*n E"]:
        return linear(input, self.weight, self.bias)


def linear(
    rows: Float[Tensor, "*n D"], weight: Float[Tensor, "E D"], bias: Float[Tensor, "E"] | None
) -> Float[Tensor, "*n E"]:
    """`rows @ weight.T + bias`, differentiable."""
    if torch.is_grad_enabled() and _by_onednn(rows):
        return _Linear.apply(rows, weight, bias)  # type: ignore[no-any-return,no-untyped-call]
    return product(rows, weight, bias)


class _Linear(torch.autograd.Function):
    """The weight's gradient is the one of three products that MKL is better at."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return product(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        needs_rows, needs_weight, needs_bias = ctx.needs_input_grad
        flat = gradient.flatten(0, -2)
        return (
            product(gradient, weight.t()) if needs_rows else None,
            flat.t() @ rows.flatten(0, -2) if needs_weight else None,
            flat.sum(0) if needs_bias else None,
        )


def product(
    rows: Float[Tensor, "*n D"],
    weight: Float[Tensor, "E D"],
    bias: Float[Tensor, "E"] | None = None,
) -> Float[Tensor, "*n E"]:
    """`rows @ weight.T + bias` by the faster library; without a graph of its own on a CPU."""
    if _by_onednn(rows):
        return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")  # type: ignore[no-any-return]
    return functional.linear(rows, weight, bias)


def _by_onednn(rows: Tensor) -> bool:
    return rows.dtype == torch.float32 and rows.device.type == "cpu" and _onednn_is_faster()


@functools.cache
def _onednn_is_faster() -> bool:
    """On x86, where it was measured, and where torch was built with it."""
    return (
        platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


# ------------------------------------------------------------------ norms


class RMSNorm(nn.Module):
    """Root-mean-square norm (arXiv 1910.07467, Eq. 4) on the weight of another one."""

    def __init__(self, other: Any) -> None:
        super().__init__()
        self.weight, self.epsilon = other.weight, other.variance_epsilon

    def forward(self, hidden: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        # In half precision it rounds once, and with a gradient twice, as transformers and vLLM do.
        if not torch.is_grad_enabled() and hidden.dtype == torch.float32:
            width = (hidden.shape[-1],)
            return functional.rms_norm(hidden, width, self.weight, self.epsilon)
        return _RMSNorm.apply(hidden, self.weight, self.epsilon)  # type: ignore[no-any-return,no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    """y = w·n, n = x·s, s = (mean x² + epsilon)^(-1/2); it keeps x and s.

    With g the gradient of y: dw = sum of g·n over rows, dx = s·(w·g - n·mean(w·g·n)).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = hidden.float() if hidden.dtype != torch.float64 else hidden
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = norm.square_().div_(hidden.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(hidden, weight, scale)
        normed: Tensor = (wide * scale).to(hidden.dtype)
        return normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, scale = ctx.saved_tensors
        normed, wide = hidden * scale, gradient.to(scale.dtype)
        width = hidden.shape[-1]
        moved = (wide * normed).reshape(-1, width)
        d_weight = moved.sum(0).to(weight.dtype)
        weight = weight.to(scale.dtype)
        mean = (moved @ weight).div_(width).view(scale.shape)
        d_hidden = (wide * weight).addcmul_(normed, mean, value=-1).mul_(scale)
        return d_hidden.to(hidden.dtype), d_weight, None


# ------------------------------------------------------------------ gated MLPs


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), SwiGLU (arXiv 2002.05202, Eq. 6), on another one's layers."""

    def __init__(self, other: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = other.gate_proj, other.up_proj
        self.down_proj = other.down_proj

    def forward(self, hidden: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        gate, up = self.gate_proj(hidden), self.up_proj(hidden)
        if not torch.is_grad_enabled():
            return self.down_proj(functional.silu(gate, inplace=True).mul_(up))  # type: ignore[no-any-return]
        return _GatedDown.apply(gate, up, self.down_proj.weight)  # type: ignore[no-any-return,no-untyped-call]


class _GatedDown(torch.autograd.Function):
    """y = (silu(gate)·up) W^T; it keeps gate and up, and makes their product again."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return product(functional.silu(gate).mul_(up), weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate, up, weight = ctx.saved_tensors
        opened = functional.silu(gate)
        d_weight = gradient.flatten(0, -2).t() @ (opened * up).flatten(0, -2)
        d_product = product(gradient, weight.t())
        d_up = opened.mul_(d_product)
        d_gate = torch.ops.aten.silu_backward(d_product.mul_(up), gate)
        return d_gate, d_up, d_weight
