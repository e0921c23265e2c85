"""How big a model is: its parameters, bytes and floating-point operations, without its weights.

`SHAPES` holds the well-known base models, so that a plan can be made while the hub is away. What a
training step needs on top (activations, optimizer states) is the planner's business.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

ATTENTION_BIAS = {"qwen2": (True, False)}
"""Kinds whose projections carry a bias that no config key tells: (query, key, value) and output."""

FORMULA_KINDS = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Kinds that `parameter_count` describes to the last parameter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes of a decoder of the Llama family: attention, gated MLP, RMS norms.

    Example, SmolLM2-135M:
        ModelShape(layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, intermediate=1536,
                   vocabulary=49152, tied=True, max_positions=8192)
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    """The embedding is the head."""
    max_positions: int
    query_bias: bool = False
    """Query, key and value projections have a bias (Qwen2)."""
    output_bias: bool = False
    """The output projection of attention has one."""
    mlp_bias: bool = False
    head_norms: bool = False
    """Queries and keys are normalised per head (Qwen3)."""
    other_parameters: int = 0
    """Parameters of a real model of this kind that the fields above do not account for."""


def shape_of(config: Any) -> ModelShape:
    """The shape that a Hugging Face config describes.

    For a kind outside `FORMULA_KINDS` an instance without memory (on the meta device) is counted,
    and what the fields do not explain (other norms, experts) becomes `other_parameters`.
    """
    kind = config.model_type
    bias = bool(getattr(config, "attention_bias", False))
    query_bias, output_bias = ATTENTION_BIAS.get(kind, (bias, bias))
    heads = config.num_attention_heads
    shape = ModelShape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        vocabulary=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
        max_positions=config.max_position_embeddings,
        query_bias=query_bias,
        output_bias=output_bias,
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
        head_norms=kind == "qwen3",
    )
    if kind in FORMULA_KINDS:
        return shape
    return replace(shape, other_parameters=_counted(config) - parameter_count(shape))


def known_shape(name: str) -> ModelShape | None:
    """The shape of a well-known model, `Qwen/Qwen2.5-1.5B-Instruct` for example, or None.

    The owner, capital letters and the endings `-Instruct` and `-Base` do not matter.
    """
    bare = name.rsplit("/", 1)[-1].lower()
    for ending in ("", "-instruct", "-base"):
        if bare.endswith(ending) and (shape := SHAPES.get(bare.removesuffix(ending))):
            return shape
    return None


def part_of(shape: ModelShape, parts: int) -> ModelShape:
    """What each process has of a model that so many sample with together (tensor parallelism).

    Heads, the gated MLP's columns and the vocabulary are dealt out, as vLLM does it; norms are held
    by all, and so are key and value heads of which there are fewer than processes.

    ValueError where they can not be dealt evenly.
    """
    heads, kv_heads, columns = shape.heads, shape.kv_heads, shape.intermediate
    vocabulary = -(-shape.vocabulary // 64) * 64  # vLLM fills it up
    uneven = heads % parts or columns % parts or vocabulary % parts
    if uneven or (kv_heads % parts and parts % kv_heads):
        raise ValueError(
            f"cluster.tensor_parallel = {parts} does not divide model.name, which has {heads} "
            f"attention heads, {kv_heads} key and value heads, {columns} columns in its MLPs and "
            f"{vocabulary} words"
        )
    return replace(
        shape,
        heads=heads // parts,
        kv_heads=max(1, kv_heads // parts),
        intermediate=columns // parts,
        vocabulary=vocabulary // parts if parts > 1 else shape.vocabulary,
    )


def parameter_count(shape: ModelShape) -> int:
    """All trained numbers, a shared embedding and head counted once."""
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    final_norm = shape.hidden
    return (
        embeddings + shape.layers * _layer_parameters(shape) + final_norm + shape.other_parameters
    )


def weight_bytes(shape: ModelShape, *, bytes_per_number: int = 4) -> int:
    """Memory of the weights alone; 4 bytes a number in float32, 2 in bfloat16."""
    return parameter_count(shape) * bytes_per_number


def cache_bytes_per_token(shape: ModelShape, *, bytes_per_number: int = 4) -> int:
    """Memory that one token takes in the key-value cache, over all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * bytes_per_number


def body_flops_per_token(shape: ModelShape, *, context: int = 0) -> int:
    """Floating-point operations of one token's forward pass up to the last hidden state.

    Two for every weight of a matrix, and four per head dimension for each of the `context` tokens
    attended to (the score and the weighted sum); norms and activations are left out. A backward
    pass costs twice as much. Experts count as if every token went through all of them.
    """
    weights = shape.layers * _layer_matrices(shape) + shape.other_parameters
    attended = 4 * shape.layers * shape.heads * shape.head_dim * context
    return 2 * weights + attended


def head_flops_per_token(shape: ModelShape) -> int:
    """Floating-point operations from a last hidden state to the logits of all words."""
    return 2 * shape.hidden * shape.vocabulary


def _layer_matrices(shape: ModelShape) -> int:
    query = shape.heads * shape.head_dim
    key_value = 2 * shape.kv_heads * shape.head_dim
    attention = shape.hidden * (query + key_value) + query * shape.hidden
    return attention + 3 * shape.hidden * shape.intermediate


def _layer_parameters(shape: ModelShape) -> int:
    query = shape.heads * shape.head_dim
    key_value = 2 * shape.kv_heads * shape.head_dim
    vectors = 2 * shape.hidden  # the norms before attention and before the MLP
    if shape.query_bias:
        vectors += query + key_value
    if shape.output_bias:
        vectors += shape.hidden
    if shape.mlp_bias:
        vectors += 2 * shape.intermediate + shape.hidden
    if shape.head_norms:
        vectors += 2 * shape.head_dim
    return _layer_matrices(shape) + vectors


def _counted(config: Any) -> int:
    # Only kinds outside the formula pay for these imports.
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def _qwen2(
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    intermediate: int,
    *,
    vocabulary: int = 152_064,
    tied: bool = False,
    max_positions: int = 131_072,
) -> ModelShape:
    return ModelShape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=hidden // heads,
        intermediate=intermediate,
        vocabulary=vocabulary,
        tied=tied,
        max_positions=max_positions,
        query_bias=True,
    )


def _qwen3(
    layers: int, hidden: int, heads: int, intermediate: int, *, tied: bool = False
) -> ModelShape:
    return ModelShape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=8,
        head_dim=128,
        intermediate=intermediate,
        vocabulary=151_936,
        tied=tied,
        max_positions=40_960,
        head_norms=True,
    )


def _llama(
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    intermediate: int,
    *,
    vocabulary: int = 128_256,
    tied: bool = True,
    max_positions: int = 131_072,
) -> ModelShape:
    return ModelShape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=hidden // heads,
        intermediate=intermediate,
        vocabulary=vocabulary,
        tied=tied,
        max_positions=max_positions,
    )


_SMOLLM2_135M = _llama(30, 576, 9, 3, 1536, vocabulary=49_152, max_positions=8192)
_QWEN2_1_5B = _qwen2(28, 1536, 12, 2, 8960, vocabulary=151_936, tied=True)
_QWEN2_7B = _qwen2(28, 3584, 28, 4, 18_944)
_QWEN2_14B = _qwen2(48, 5120, 40, 8, 13_824)
_QWEN2_32B = _qwen2(64, 5120, 40, 8, 27_648)

SHAPES: dict[str, ModelShape] = {
    "smollm2": _SMOLLM2_135M,
    "smollm2-135m": _SMOLLM2_135M,
    "smollm2-360m": _llama(32, 960, 15, 5, 2560, vocabulary=49_152, max_positions=8192),
    "smollm2-1.7b": _llama(24, 2048, 32, 32, 8192, vocabulary=49_152, max_positions=8192),
    "qwen2.5-0.5b": _qwen2(
        24, 896, 14, 2, 4864, vocabulary=151_936, tied=True, max_positions=32_768
    ),
    "qwen2.5-1.5b": _QWEN2_1_5B,
    "qwen2.5-3b": _qwen2(
        36, 2048, 16, 2, 11_008, vocabulary=151_936, tied=True, max_positions=32_768
    ),
    "qwen2.5-7b": _QWEN2_7B,
    "qwen2.5-14b": _QWEN2_14B,
    "qwen2.5-32b": _QWEN2_32B,
    "qwen2.5-math-1.5b": replace(_QWEN2_1_5B, max_positions=4096),
    "qwen2.5-math-7b": replace(_QWEN2_7B, max_positions=4096),
    "deepseek-r1-distill-qwen-1.5b": replace(_QWEN2_1_5B, tied=False),
    "deepseek-r1-distill-qwen-7b": _QWEN2_7B,
    "deepseek-r1-distill-qwen-14b": _QWEN2_14B,
    "deepseek-r1-distill-qwen-32b": _QWEN2_32B,
    "qwen3-0.6b": _qwen3(28, 1024, 16, 3072, tied=True),
    "qwen3-1.7b": _qwen3(28, 2048, 16, 6144, tied=True),
    "qwen3-4b": _qwen3(36, 2560, 32, 9728, tied=True),
    "qwen3-8b": _qwen3(36, 4096, 32, 12_288),
    "qwen3-14b": _qwen3(40, 5120, 40, 17_408),
    "qwen3-32b": _qwen3(64, 5120, 64, 25_600),
    "llama-3.2-1b": _llama(16, 2048, 32, 8, 8192),
    "llama-3.2-3b": _llama(28, 3072, 24, 8, 8192),
    "llama-3.1-8b": _llama(32, 4096, 32, 8, 14_336, tied=False),
    "meta-llama-3.1-8b": _llama(32, 4096, 32, 8, 14_336, tied=False),
}
