"""Which kinds of models packed full attention and a plain head compute rightly.

Judged by the config alone, before any weight is read. What is not listed here as a hindrance is let
through: the kinds of which the tests hold that packed equals alone are Llama, Qwen2 and Qwen3.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

SINKS = (
    "deepseek_v4",
    "flint",
    "gpt_oss",
    "granite_swa",
    "granitemoe_swa",
    "hy_v4",
    "mimo_v2_flash",
)
"""Kinds whose softmax has a learned sink; their configs have no key that would tell."""

OWN_ATTENTION = ("bert-generation", "diffllama", "hrm_text", "jetmoe", "nemotron")
"""Kinds that call attention in ways of their own: twice a layer, per expert, or in both directions;
their configs have no key that would tell."""

SOFT_CAPS = (
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logits_soft_cap",
    "output_logit_soft_cap",
)
LOGIT_SCALES = ("logit_scale", "logits_scaling")
RECURRENT_LAYERS = ("linear_attention", "mamba", "recurrent", "conv", "hybrid", "hybrid_sliding")


def check_supported(config: Any) -> None:
    """Refuse what packed full attention and a plain head would compute wrongly.

    Raises:
        ValueError: names the kind, what is not served about it, and what is.
    """
    if reason := _unsupported(config):
        raise ValueError(
            f"models of kind {config.model_type!r} cannot be trained: {reason}; choose a causal "
            "language model with plain full attention, such as Qwen2, Qwen3 or Llama"
        )


def _unsupported(config: Any) -> str | None:
    """What stands in the way of this kind, None if nothing does."""
    kind = config.model_type
    if config.is_encoder_decoder:
        return "it is an encoder-decoder"
    parts = [part for part in config.sub_configs if part.endswith("_config")]
    if "text_config" in parts or any("vision" in part or "audio" in part for part in parts):
        return f"it is multimodal ({', '.join(parts)})"
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "transformers has no causal language model of this kind"
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return "it reads in both directions"
    if getattr(config, "quantization_config", None) is not None:
        return "its weights are quantised"
    return _unsupported_attention(config, kind) or _unsupported_head(config)


def _unsupported_attention(config: Any, kind: str) -> str | None:
    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    layers = set(getattr(config, "layer_types", None) or ())
    strange = sorted(layers - {"full_attention"})
    if getattr(model_class, "_is_stateful", False) or layers & set(RECURRENT_LAYERS):
        return f"it has linear, recurrent or hybrid layers ({', '.join(strange) or 'all'})"
    if kind in SINKS:
        return "it has attention sinks"
    window = getattr(config, "sliding_window", None)
    if "sliding_attention" in layers or (window and not layers):
        return f"it uses sliding-window attention (sliding_window = {window})"
    if strange:
        return f"it has layers other than full attention ({', '.join(strange)})"
    if rank := getattr(config, "kv_lora_rank", None):
        return f"it keeps its keys and values compressed (kv_lora_rank = {rank})"
    if kind in OWN_ATTENTION or not getattr(model_class, "_supports_attention_backend", True):
        return "it keeps an attention of its own that cannot be exchanged"
    for rope_type in _rope_types(config):
        if rope_type in ("dynamic", "longrope"):
            return f"its positions depend on the longest sequence of a batch ({rope_type} rope)"
    return None


def _unsupported_head(config: Any) -> str | None:
    for key in SOFT_CAPS:
        if getattr(config, key, None):
            return f"it soft-caps its logits ({key} = {getattr(config, key)})"
    for key in LOGIT_SCALES:
        if getattr(config, key, None) not in (None, 1):
            return f"it scales its logits ({key} = {getattr(config, key)})"
    return None


def _rope_types(config: Any) -> list[str]:
    parameters = getattr(config, "rope_parameters", None) or {}
    per_layer_type = [value for value in parameters.values() if isinstance(value, dict)]
    return [str(each.get("rope_type")) for each in (per_layer_type or [parameters])]
