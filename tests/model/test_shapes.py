"""Shapes: parameter counts against real models and published totals, operations by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from archer.model.shapes import (
    SHAPES,
    ModelShape,
    body_flops_per_token,
    cache_bytes_per_token,
    head_flops_per_token,
    known_shape,
    parameter_count,
    shape_of,
    weight_bytes,
)

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 64,
}

TOTALS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B-Base": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Meta-Llama-3.1-8B": 8_030_261_248,
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("config_class", "extra"),
    [
        (LlamaConfig, {}),
        (LlamaConfig, {"attention_bias": True, "mlp_bias": True, "head_dim": 8}),
        (MistralConfig, {"sliding_window": None}),
        (Qwen2Config, {}),
        (Qwen3Config, {"head_dim": 20}),
        (Qwen3Config, {"head_dim": 20, "attention_bias": True}),
        (Olmo2Config, {}),
        (Qwen3MoeConfig, {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 12}),
    ],
)
def test_the_count_is_that_of_the_real_class(
    config_class: Any, extra: dict[str, Any], tied: bool
) -> None:
    config: PreTrainedConfig = config_class(**SIZES, **extra, tie_word_embeddings=tied)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    assert parameter_count(shape_of(config)) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("name", "total"), TOTALS.items())
def test_well_known_models_have_their_published_totals(name: str, total: int) -> None:
    shape = known_shape(name)
    assert shape is not None
    assert parameter_count(shape) == total


def test_every_shape_of_the_table_is_consistent() -> None:
    for name, shape in SHAPES.items():
        assert known_shape(name.upper()) is shape
        assert shape.heads % shape.kv_heads == 0
        assert shape.head_dim in (64, 128)


@pytest.mark.parametrize("name", ["someone/unknown-7B", "Qwen/Qwen2.5-1.5B-Instruct-GPTQ", ""])
def test_a_name_that_only_resembles_one_has_no_shape(name: str) -> None:
    assert known_shape(name) is None


def test_bytes_and_operations_of_a_shape_counted_by_hand() -> None:
    shape = ModelShape(
        layers=2, hidden=8, heads=2, kv_heads=1, head_dim=4, intermediate=16, vocabulary=10,
        tied=True, max_positions=32,
    )  # fmt: skip
    # query 8x8, key 8x4, value 8x4, output 8x8, three MLP matrices 8x16, two norms of 8
    layer = 64 + 32 + 32 + 64 + 3 * 128
    assert parameter_count(shape) == 80 + 2 * (layer + 16) + 8
    assert weight_bytes(shape, bytes_per_number=2) == 2 * parameter_count(shape)
    assert cache_bytes_per_token(shape) == 2 * 2 * 4 * 4  # layers, key and value, four floats
    assert body_flops_per_token(shape) == 2 * 2 * layer
    # each token attended to: 8 multiply-adds for its score and 8 for its value, in both layers
    assert body_flops_per_token(shape, context=5) - body_flops_per_token(shape) == 5 * 2 * 2 * 16
    assert head_flops_per_token(shape) == 2 * 8 * 10
