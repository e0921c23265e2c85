from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from archer.model.logprobs import FusedHead, fuse_head, fused_logprobs

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 37,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def plain(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """The formula, in float64 and with full logits."""
    logits = hidden.double() @ weight.double().T
    if bias is not None:
        logits = logits + bias.double()
    log_probs = torch.log_softmax(logits / temperature, -1)
    logp = log_probs.gather(1, targets[:, None])[:, 0]
    return logp, -(log_probs.exp() * log_probs.clamp(min=-1e300)).sum(1)


def example(
    rows: int, width: int, vocabulary: int, *, bias: bool = False, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Hidden rows, weight, targets and bias, so that logits spread over some nats."""
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=random)
    weight = torch.randn(vocabulary, width, generator=random) * 2 / math.sqrt(width)
    targets = torch.randint(vocabulary, (rows,), generator=random)
    offsets = torch.randn(vocabulary, generator=random) if bias else None
    return hidden, weight, targets, offsets


def gradients(scores: tuple[Tensor, Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """Gradients of a loss that weighs log-probs and entropies of the rows unevenly."""
    logp, entropy = scores
    weights = torch.linspace(-1, 1.5, len(logp), dtype=torch.float64)
    loss = (weights * logp.double()).sum() + (weights.flip(0).square() * entropy.double()).sum()
    return list(torch.autograd.grad(loss, leaves))


def error(value: Tensor, exact: Tensor) -> float:
    """Relative L2 distance."""
    value, exact = value.detach().double(), exact.detach().double()
    return float((value - exact).norm() / exact.norm().clamp(min=1e-30))


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.3])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("vocabulary", [2, 7, 1000, 49152, 50257])
def test_values_and_gradients_equal_the_float64_formula(
    vocabulary: int, with_bias: bool, temperature: float
) -> None:
    hidden, weight, targets, bias = example(9, 16, vocabulary, bias=with_bias)
    leaves = [leaf(tensor) for tensor in (hidden, weight, bias) if tensor is not None]
    given = (leaves[0], leaves[1], targets)
    offsets = leaves[2] if with_bias else None
    fused = fused_logprobs(
        *given, bias=offsets, temperature=temperature, block=(4, 8192 if vocabulary > 8192 else 3)
    )
    exact = plain(*given, offsets, temperature)
    for value, truth in zip(fused, exact, strict=True):
        assert value.dtype == torch.float32
        assert error(value, truth) < 1e-5
    for value, truth in zip(gradients(fused, leaves), gradients(exact, leaves), strict=True):
        assert error(value, truth) < 1e-5


def test_the_largest_vocabulary_equals_the_float64_formula() -> None:
    hidden, weight, targets, _ = example(3, 8, 151_936)
    leaves = [leaf(hidden), leaf(weight)]
    fused = fused_logprobs(leaves[0], leaves[1], targets, temperature=0.6)
    exact = plain(leaves[0], leaves[1], targets, None, 0.6)
    for value, truth in zip(fused, exact, strict=True):
        assert error(value, truth) < 1e-5
    for value, truth in zip(gradients(fused, leaves), gradients(exact, leaves), strict=True):
        assert error(value, truth) < 1e-5


def test_two_tokens_by_hand() -> None:
    """Logits 0 and 2 ln 3 at temperature 2: probabilities 1/4 and 3/4, entropy ln 4 - 3/4 ln 3."""
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [2 * math.log(3)]], requires_grad=True)
    logp, entropy = fused_logprobs(hidden, weight, torch.tensor([0]), temperature=2.0)
    assert logp.item() == pytest.approx(-math.log(4))
    assert entropy.item() == pytest.approx(math.log(4) - 0.75 * math.log(3))

    # d logp / d logits = (1 - p0, -p1) / 2.
    (by_logp,) = torch.autograd.grad(logp, weight, retain_graph=True)
    assert by_logp[:, 0].tolist() == pytest.approx([0.375, -0.375])
    # d entropy / d logits = -p (log p + H) / 2, and log p + H = -3/4 ln 3 and 1/4 ln 3.
    (by_entropy,) = torch.autograd.grad(entropy, weight)
    slope = 3 / 32 * math.log(3)
    assert by_entropy[:, 0].tolist() == pytest.approx([slope, -slope])


def test_a_vocabulary_of_one_token_is_certain() -> None:
    hidden, weight, targets, _ = example(4, 8, 1)
    leaves = [leaf(hidden), leaf(weight)]
    logp, entropy = fused_logprobs(leaves[0], leaves[1], targets)
    assert logp.tolist() == entropy.tolist() == [0.0] * 4
    for gradient in gradients((logp, entropy), leaves):
        assert not gradient.any()


@pytest.mark.parametrize("keep_bytes", [0, 1 << 20])
def test_float64_passes_gradcheck(keep_bytes: int) -> None:
    hidden, weight, targets, bias = example(3, 4, 7, bias=True)
    assert bias is not None
    leaves = [leaf(tensor.double()) for tensor in (hidden, weight, bias)]

    def scores(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return fused_logprobs(
            hidden, weight, targets, bias=bias, temperature=1.3, keep_bytes=keep_bytes, block=(2, 3)
        )

    assert torch.autograd.gradcheck(scores, leaves)


@pytest.mark.parametrize("block", [(1, 1), (2, 5), (5, 2), (3, 64), (64, 10), (64, 64)])
@pytest.mark.parametrize("keep_bytes", [0, 700, 1 << 20])
def test_neither_block_nor_kept_logits_change_a_result(
    block: tuple[int, int], keep_bytes: int
) -> None:
    hidden, weight, targets, bias = example(10, 8, 41, bias=True)
    assert bias is not None
    leaves = [leaf(tensor) for tensor in (hidden, weight, bias)]

    def results(**memory: Any) -> list[Tensor]:
        scores = fused_logprobs(
            leaves[0], leaves[1], targets, bias=leaves[2], temperature=0.6, **memory
        )
        return [*scores, *gradients(scores, leaves)]

    whole = results(keep_bytes=0, block=(10, 41))
    for value, truth in zip(results(keep_bytes=keep_bytes, block=block), whole, strict=True):
        assert error(value, truth) < 1e-6


def test_a_second_backward_pass_gives_the_same() -> None:
    hidden, weight, targets, _ = example(6, 8, 40)
    leaves = [leaf(hidden), leaf(weight)]
    logp, entropy = fused_logprobs(leaves[0], leaves[1], targets)
    loss = logp.sum() + entropy.sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("keep_bytes", [0, 1 << 20])
def test_rows_without_gradient_are_left_out_of_the_backward_pass(keep_bytes: int) -> None:
    """A row of NaN would spoil everything that it is multiplied into, by zero or not."""
    hidden, weight, targets, _ = example(6, 8, 40)
    hidden[1::2] = torch.nan
    leaves = [leaf(hidden), leaf(weight)]
    logp, entropy = fused_logprobs(
        leaves[0], leaves[1], targets, keep_bytes=keep_bytes, block=(2, 16)
    )
    counts = torch.tensor([True, False] * 3)
    d_hidden, d_weight = gradients((logp[counts], entropy[counts]), leaves)

    kept = [leaf(hidden[::2]), leaves[1]]
    truth = gradients(plain(kept[0], kept[1], targets[::2], None, 1.0), kept)
    assert error(d_hidden[::2], truth[0]) < 1e-5 and not d_hidden[1::2].any()
    assert error(d_weight, truth[1]) < 1e-5


def test_log_prob_or_entropy_alone_can_be_learned_from() -> None:
    hidden, weight, targets, _ = example(6, 8, 40)
    leaves = [leaf(hidden), leaf(weight)]
    for chosen in (0, 1):
        fused = fused_logprobs(leaves[0], leaves[1], targets)[chosen].sum()
        exact = plain(leaves[0], leaves[1], targets, None, 1.0)[chosen].sum()
        for value, truth in zip(
            torch.autograd.grad(fused, leaves), torch.autograd.grad(exact, leaves), strict=True
        ):
            assert error(value, truth) < 1e-5


def test_only_what_needs_a_gradient_gets_one() -> None:
    hidden, weight, targets, bias = example(6, 8, 40, bias=True)
    assert bias is not None
    for chosen in range(3):
        tensors = [hidden, weight, bias]
        tensors[chosen] = leaf(tensors[chosen])
        fused = fused_logprobs(tensors[0], tensors[1], targets, bias=tensors[2])
        exact = plain(tensors[0], tensors[1], targets, tensors[2], 1.0)
        value, truth = gradients(fused, [tensors[chosen]]), gradients(exact, [tensors[chosen]])
        assert error(value[0], truth[0]) < 1e-5


def test_no_rows_give_no_scores_and_zero_gradients() -> None:
    hidden, weight, targets, _ = example(0, 8, 40)
    leaves = [leaf(hidden), leaf(weight)]
    logp, entropy = fused_logprobs(leaves[0], leaves[1], targets)
    assert logp.shape == entropy.shape == (0,)
    d_hidden, d_weight = gradients((logp, entropy), leaves)
    assert d_hidden.shape == (0, 8) and not d_weight.any()


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_logits_stay_finite(size: float) -> None:
    hidden = leaf(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    weight = leaf(torch.tensor([[size, 0.5], [size, -0.5], [0.0, 2.0], [-size, 1.0]]))
    targets = torch.tensor([0, 2, 3])
    fused = fused_logprobs(hidden, weight, targets, block=(2, 1))
    exact = plain(hidden, weight, targets, None, 1.0)
    for value, truth in zip(fused, exact, strict=True):
        assert value.tolist() == pytest.approx(truth.tolist(), rel=1e-5, abs=1e-5)
    for value, truth in zip(
        gradients(fused, [hidden, weight]), gradients(exact, [hidden, weight]), strict=True
    ):
        assert value.isfinite().all()
        assert error(value, truth) < 1e-5


def test_a_bias_of_minus_infinity_bars_a_token() -> None:
    hidden, weight, targets, _ = example(5, 8, 12)
    bias = torch.zeros(12)
    bias[3:9] = -torch.inf
    targets[:] = torch.tensor([0, 1, 2, 9, 11])
    leaves = [leaf(hidden), leaf(weight), leaf(bias)]
    allowed = torch.tensor([0, 1, 2, 9, 10, 11])
    fused = fused_logprobs(leaves[0], leaves[1], targets, bias=leaves[2], block=(5, 3))
    inner = torch.tensor([0, 1, 2, 3, 5])
    exact = plain(leaves[0], leaves[1][allowed], inner, None, 1.0)
    for value, truth in zip(fused, exact, strict=True):
        assert error(value, truth) < 1e-5
    d_hidden, d_weight, d_bias = gradients(fused, leaves)
    for value, truth in zip((d_hidden, d_weight), gradients(exact, leaves[:2]), strict=True):
        assert error(value, truth) < 1e-5
    assert not d_bias[3:9].any() and d_bias.isfinite().all()


def test_a_target_outside_the_vocabulary_gets_nan() -> None:
    hidden, weight, _, _ = example(3, 8, 12)
    logp, entropy = fused_logprobs(hidden, weight, torch.tensor([12, 11, -100]))
    assert logp.isnan().tolist() == [True, False, True]
    assert entropy.isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 1.3])
def test_bfloat16_scores_are_exact_and_its_gradients_only_rounded(temperature: float) -> None:
    hidden, weight, targets, bias = example(300, 32, 101, bias=True)
    assert bias is not None
    leaves = [leaf(tensor.bfloat16()) for tensor in (hidden, weight, bias)]
    given = (leaves[0], leaves[1], targets)
    fused = fused_logprobs(*given, bias=leaves[2], temperature=temperature, block=(16, 32))
    exact = plain(*given, leaves[2], temperature)
    for value, truth in zip(fused, exact, strict=True):
        assert value.dtype == torch.float32
        assert error(value, truth) < 1e-5

    wide = [leaf(tensor.double()) for tensor in leaves]
    truths = gradients(plain(wide[0], wide[1], targets, wide[2], temperature), wide)
    for value, truth in zip(gradients(fused, leaves), truths, strict=True):
        assert value.dtype == torch.bfloat16
        # Rounded once, at the end: half a unit in the last of 8 bits.
        assert error(value, truth) < 2**-8


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that any operation within wrote into memory of its own."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


def test_no_tensor_is_larger_than_the_weight_or_a_block() -> None:
    hidden, weight, targets, _ = example(64, 8, 5000)
    leaves = [leaf(hidden), leaf(weight)]
    with LargestTensor() as largest:
        gradients(
            fused_logprobs(leaves[0], leaves[1], targets, keep_bytes=0, block=(16, 500)), leaves
        )
    assert largest.bytes == weight.nbytes < 64 * 5000 * 4


def tiny_llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SMALL, **changes})).eval()


def tiny_qwen(**changes: Any) -> Any:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**{**SMALL, "head_dim": 8, **changes})).eval()


TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
ROWS = torch.tensor([2, 3, 4, 6])
"""Rows whose next token belongs to a completion."""


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("temperature", [0.6, 1.3])
def test_a_model_with_the_fused_head_learns_what_the_plain_model_learns(
    make: Any, tied: bool, temperature: float
) -> None:
    """With tied embeddings, gradients of the embedding and of the head meet in one parameter."""
    targets = TOKENS[0, ROWS + 1]
    model = make(tie_word_embeddings=tied)
    logits = model(TOKENS, logits_to_keep=ROWS, use_cache=False).logits[0]
    log_probs = torch.log_softmax(logits / temperature, -1)
    logp = log_probs.gather(1, targets[:, None])[:, 0]
    entropy = -(log_probs.exp() * log_probs).sum(1)
    exact = gradients((logp, entropy), list(model.parameters()))

    head = fuse_head(model)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    with head.scoring(targets, temperature):
        scores = model(TOKENS, logits_to_keep=ROWS, use_cache=False).logits
    assert scores.shape == (1, 4, 2)
    fused = gradients(tuple(scores[0].unbind(-1)), list(model.parameters()))
    assert error(scores[0, :, 0], logp) < 1e-5 and error(scores[0, :, 1], entropy) < 1e-5
    for value, truth in zip(fused, exact, strict=True):
        assert error(value, truth) < 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_outside_scoring_the_fused_head_is_the_head_it_replaced(tied: bool) -> None:
    model = tiny_llama(tie_word_embeddings=tied)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = model(TOKENS).logits
    answer = model.generate(TOKENS, max_new_tokens=5, do_sample=False)

    head = fuse_head(model)
    assert fuse_head(model) is head is model.lm_head
    after = model.state_dict()
    assert list(after) == list(before) and "lm_head.weight" in after
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [name for name, _ in model.named_parameters()].count("lm_head.weight") == (not tied)
    assert torch.equal(model(TOKENS).logits, logits)
    assert torch.equal(model.generate(TOKENS, max_new_tokens=5, do_sample=False), answer)


def test_a_fused_model_is_saved_as_the_plain_one(tmp_path: Path) -> None:
    model = tiny_llama(tie_word_embeddings=True)
    fuse_head(model)
    model.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    assert type(again.lm_head) is nn.Linear
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_a_head_with_a_bias_keeps_it() -> None:
    linear = nn.Linear(8, 12)
    head = FusedHead(linear)
    assert dict(head.named_parameters()).keys() == {"weight", "bias"}
    assert head.weight is linear.weight and head.bias is linear.bias
    hidden = torch.randn(2, 3, 8)
    assert torch.equal(head(hidden), linear(hidden))
    targets = torch.arange(6)
    with head.scoring(targets, 0.6):
        scores = head(hidden)
    exact = plain(hidden.view(6, 8), linear.weight, targets, linear.bias, 0.6)
    assert scores.shape == (2, 3, 2)
    assert error(scores.view(6, 2), torch.stack(exact, -1)) < 1e-5


def test_scoring_ends_with_its_block_even_by_an_error() -> None:
    head = FusedHead(nn.Linear(8, 12, bias=False))
    hidden = torch.randn(3, 8)
    wrong = pytest.raises(AssertionError, match="3 rows reach the head, 2 targets")
    with wrong, head.scoring(torch.tensor([0, 1]), 1.0):
        head(hidden)
    assert head(hidden).shape == (3, 12)
    twice = pytest.raises(AssertionError, match="already")
    with head.scoring(torch.arange(3), 1.0), twice, head.scoring(torch.arange(3), 1.0):
        pass


def test_a_model_without_a_linear_output_layer_is_refused() -> None:
    model = tiny_llama()
    with pytest.raises(ValueError, match="output layer of LlamaModel is a NoneType"):
        fuse_head(model.model)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """This process as the only one of a distributed run."""
    where = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_a_sharded_model_scores_through_its_own_forward() -> None:
    """FSDP2 gathers a tied head only within the root's forward and backward passes."""
    model = tiny_llama(tie_word_embeddings=True)
    head = fuse_head(model)
    targets = TOKENS[0, ROWS + 1]

    def learn() -> tuple[Tensor, Tensor]:
        with head.scoring(targets, 1.3):
            scores = model(TOKENS, logits_to_keep=ROWS, use_cache=False).logits
        scores.sum().backward()
        gradient = model.model.embed_tokens.weight.grad
        assert gradient is not None
        return scores.detach(), gradient

    scores, gradient = learn()
    model.zero_grad()
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    sharded_scores, sharded_gradient = learn()
    assert isinstance(sharded_gradient, DTensor)
    assert torch.equal(sharded_scores, scores)
    assert torch.equal(sharded_gradient.full_tensor(), gradient)
