"""Own layers give transformers' numbers and gradients, and leave alone what they do not know."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from archer.model import layers
from archer.model.layers import GatedMLP, Linear, RMSNorm, linear, use_own_layers
from archer.model.tiny import Kind, tiny_model
from tests.children import child_environment

KINDS = ("llama", "qwen2", "qwen3")


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def logits_and_gradients(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    ids = torch.arange(24).view(2, 12) % 60
    logits = model(input_ids=ids, use_cache=False).logits
    (logits * numbers(*logits.shape)).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return logits.detach(), found


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_own_layers_has_its_old_logits_and_gradients(kind: Kind) -> None:
    model = tiny_model(kind, tied=True)
    expected, expected_gradients = logits_and_gradients(model)
    names = list(model.state_dict())
    use_own_layers(model)
    found, gradients = logits_and_gradients(model)
    assert torch.allclose(found, expected, atol=1e-5)
    for name, gradient in expected_gradients.items():
        assert torch.allclose(gradients[name], gradient, rtol=1e-4, atol=1e-4), name
    assert list(model.state_dict()) == names
    with torch.inference_mode():
        sampled = model(input_ids=torch.arange(24).view(2, 12) % 60, use_cache=False).logits
    assert torch.allclose(sampled, expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_of_the_families_served_is_known(kind: Kind) -> None:
    model = tiny_model(kind)
    use_own_layers(model)
    kinds = {type(module).__name__ for module in model.modules()}
    assert {"RMSNorm", "GatedMLP", "Linear"} <= kinds
    assert not [name for name in kinds if name.endswith(("RMSNorm", "MLP")) and "_" in name]
    assert kinds.isdisjoint(layers.RMS_NORMS + layers.GATED_MLPS)
    assert all(type(module) is not nn.Linear for module in model.modules())


def test_a_norm_of_another_kind_stays_as_it_is() -> None:
    model = nn.Sequential(GemmaRMSNorm(8), LlamaRMSNorm(8), nn.LayerNorm(8))
    use_own_layers(model)
    assert [type(module).__name__ for module in model] == ["GemmaRMSNorm", "RMSNorm", "LayerNorm"]


def test_a_norm_by_hand() -> None:
    """x = (3, 4): rms = sqrt(12.5); y = w·x / rms, and gradients by the chain rule in float64."""
    other = LlamaRMSNorm(2, eps=0.0)
    other.weight.data = torch.tensor([1.0, 2.0])
    x = torch.tensor([[3.0, 4.0]], requires_grad=True)
    y = RMSNorm(other)(x)
    assert y.tolist() == [[pytest.approx(3 / 12.5**0.5), pytest.approx(8 / 12.5**0.5)]]
    y[0, 0].backward()
    # d(x1 / rms)/dx = (1/rms - x1²/(2 rms³), -x1 x2/(2 rms³)) = (16, -12) / (25 rms).
    rms = 12.5**0.5
    assert x.grad is not None
    assert x.grad.tolist() == [[pytest.approx(16 / 25 / rms), pytest.approx(-12 / 25 / rms)]]
    assert other.weight.grad is not None
    assert other.weight.grad.tolist() == [pytest.approx(3 / rms), 0.0]


def test_gradients_of_norm_and_gated_mlp_pass_a_numeric_check() -> None:
    double = torch.float64
    x = numbers(3, 5, seed=1, dtype=double).requires_grad_()
    weight = numbers(5, seed=2, dtype=double).requires_grad_()
    rms_norm: Any = layers._RMSNorm.apply
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-3), (x, weight))
    gate, up = (numbers(3, 4, seed=s, dtype=double).requires_grad_() for s in (3, 4))
    down = numbers(2, 4, seed=5, dtype=double).requires_grad_()
    assert torch.autograd.gradcheck(layers._GatedDown.apply, (gate, up, down))
    bias = numbers(7, seed=6, dtype=double).requires_grad_()
    wide = numbers(7, 5, seed=7, dtype=double).requires_grad_()
    assert torch.autograd.gradcheck(layers._Linear.apply, (x, wide, bias))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 5), (3, 64), (2, 3, 33), (0, 8)])
def test_a_linear_layer_equals_torchs_for_any_shape(shape: tuple[int, ...], bias: bool) -> None:
    rows = numbers(*shape).requires_grad_()
    layer = nn.Linear(shape[-1], 17, bias=bias)
    own = Linear(layer)
    assert own.weight is layer.weight
    expected = functional.linear(rows, layer.weight, layer.bias)
    outcome = own(rows)
    assert torch.allclose(outcome, expected, atol=1e-5)
    inputs = [rows, *layer.parameters()]
    gradient = numbers(*expected.shape, seed=1)
    for one, other in zip(
        torch.autograd.grad(outcome, inputs, gradient),
        torch.autograd.grad(expected, inputs, gradient),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-4)


OF_MANY_SHAPES = """
import psutil, torch
from archer.model.layers import product

weight, rows, process = torch.ones(128, 64), torch.ones(700, 64), psutil.Process()
for number in range(1, 101):
    product(rows[:number], weight)
before = process.memory_info().rss
for number in range(101, 701):
    product(rows[:number], weight)
print(process.memory_info().rss - before)
"""


def test_products_of_many_shapes_keep_no_memory_for_each() -> None:
    """Six hundred more of them once took 370 MB more. In a process where no product was before."""
    done = subprocess.run(
        [sys.executable, "-c", OF_MANY_SHAPES],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 60e6


def test_a_layer_whose_weight_is_frozen_still_passes_the_gradient_on() -> None:
    rows, weight = numbers(3, 4).requires_grad_(), numbers(5, 4, seed=1)
    linear(rows, weight, None).sum().backward()
    assert rows.grad is not None
    assert torch.allclose(rows.grad, weight.sum(0).expand(3, 4), atol=1e-5)


def test_bfloat16_layers_stay_within_its_rounding() -> None:
    other = LlamaRMSNorm(64).to(torch.bfloat16)
    x = numbers(4, 64).to(torch.bfloat16)
    mine, expected = RMSNorm(other)(x), other(x)
    assert mine.dtype == torch.bfloat16
    assert torch.allclose(mine.float(), expected.float(), atol=2e-2)
    with torch.no_grad():
        assert torch.equal(RMSNorm(other)(x), mine)


def test_replacing_layers_twice_is_replacing_them_once() -> None:
    model = tiny_model("llama")
    use_own_layers(model)
    before = [id(module) for module in model.modules()]
    use_own_layers(model)
    assert [id(module) for module in model.modules()] == before


def test_a_gated_mlp_keeps_less_for_its_backward_pass() -> None:
    """Gate and up alone, where the chain of small operations keeps twice as much."""
    model: Any = tiny_model("llama")
    plain = model.model.layers[0].mlp
    x = numbers(6, plain.gate_proj.in_features).requires_grad_()
    wide = plain.gate_proj.out_features

    def kept(module: nn.Module) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.shape[-1] == wide and tensor.shape[0] == 6:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.numel()
            held.append(tensor)
            return tensor

        held: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            module(x)
        return sum(sizes.values()) // 6

    assert kept(plain) == 4 * wide
    assert kept(GatedMLP(plain)) == 2 * wide
