"""Packed attention with shared prompts equals each sequence alone, for every family served."""

from typing import Any

import pytest
import torch
from torch import Tensor

from archer.model.packing import pack, use_packed_attention
from archer.model.tiny import Kind, tiny_model

PROMPTS = [[7, 8, 9, 10, 11], [3], [20, 21, 22]]
ANSWERS = [(0, [5, 2]), (0, [6, 4, 2, 9, 9, 12, 13, 14]), (2, [40]), (1, [1, 2, 3]), (0, [50, 51])]


def packed_logits(model: Any) -> Tensor:
    packed = pack(
        torch.tensor([token for prompt in PROMPTS for token in prompt]),
        torch.tensor([len(prompt) for prompt in PROMPTS]),
        torch.tensor([prompt for prompt, _ in ANSWERS]),
        torch.tensor([token for _, answer in ANSWERS for token in answer]),
        torch.tensor([len(answer) for _, answer in ANSWERS]),
    )
    logits: Tensor = model(
        input_ids=packed.input_ids[None],
        position_ids=packed.position_ids[None],
        context=packed,
        use_cache=False,
        logits_to_keep=packed.predict,
    ).logits[0]
    return logits


def alone_logits(model: Any) -> Tensor:
    """Each prompt with one answer, through transformers' own attention; predicting rows only."""
    rows = []
    for prompt, answer in ANSWERS:
        ids = torch.tensor([PROMPTS[prompt] + answer])
        logits = model(input_ids=ids, use_cache=False).logits[0]
        rows.append(logits[len(PROMPTS[prompt]) - 1 : -1])
    return torch.cat(rows)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_packed_with_shared_prompts_equals_each_sequence_alone(kind: Kind, tied: bool) -> None:
    model = tiny_model(kind, tied=tied)
    expected = alone_logits(model)
    use_packed_attention(model)
    assert torch.allclose(packed_logits(model), expected, atol=1e-5)


def test_gradients_through_a_shared_prompt_equal_those_of_each_sequence_alone() -> None:
    model = tiny_model("qwen2")
    weigh = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    (alone_logits(model) * weigh).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    use_packed_attention(model)
    (packed_logits(model) * weigh).sum().backward()
    for name, parameter in model.named_parameters():
        error = (parameter.grad - expected[name]).norm() / (expected[name].norm() + 1e-3)
        assert error < 1e-5, name


def test_a_worked_layout() -> None:
    packed = pack(
        torch.tensor([7, 8, 9]),
        torch.tensor([3]),
        torch.tensor([0, 0]),
        torch.tensor([5, 2, 6, 4, 2]),
        torch.tensor([2, 3]),
    )
    assert packed.input_ids.tolist() == [7, 8, 9, 5, 6, 4]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 3, 4]
    assert packed.predict.tolist() == [2, 3, 2, 4, 5]


def test_a_prefill_predicts_from_the_last_token_of_each_prompt() -> None:
    packed = pack(torch.tensor([7, 8, 9, 4]), torch.tensor([3, 1]))
    assert packed.predict.tolist() == [2, 3]
    assert packed.position_ids.tolist() == [0, 1, 2, 0]


def test_lengths_far_apart_are_not_padded_to_each_other() -> None:
    packed = pack(
        torch.zeros(2, dtype=torch.int64),
        torch.tensor([1, 1]),
        torch.tensor([0, 1, 1]),
        torch.zeros(1020, dtype=torch.int64),
        torch.tensor([1000, 10, 10]),
    )
    assert sorted(bucket.shape for bucket in packed.buckets) == [(1, 1000), (2, 10)]
