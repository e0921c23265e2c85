"""Which kinds of models are served, and that the others are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from archer.model.load import load_model
from archer.model.supported import check_supported


@pytest.mark.parametrize(
    ("kind", "knobs"),
    [
        ("llama", {}),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 4096}),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 32}),
        ("qwen3", {}),
        ("mistral", {"sliding_window": None}),
        ("smollm3", {}),
        ("olmo2", {}),
        ("gpt_neox", {}),
        ("gpt2", {}),
        ("qwen3_moe", {}),
        ("granite", {}),
    ],
)
def test_plain_full_attention_is_served(kind: str, knobs: dict[str, Any]) -> None:
    check_supported(AutoConfig.for_model(kind, **knobs))


@pytest.mark.parametrize(
    ("kind", "knobs", "reason"),
    [
        ("mistral", {"sliding_window": 4096}, "sliding-window attention .sliding_window = 4096"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 4}, "sliding-window"),
        ("gemma3_text", {}, "sliding-window"),
        ("gemma2", {"layer_types": ["full_attention"] * 26}, "soft-caps its logits"),
        ("gemma2", {}, "sliding-window"),
        ("gpt_oss", {}, "attention sinks"),
        ("llama4_text", {}, "layers other than full attention .chunked_attention"),
        ("mamba", {}, "linear, recurrent or hybrid layers"),
        ("qwen3_next", {}, "linear, recurrent or hybrid layers .linear_attention"),
        ("jamba", {}, "linear, recurrent or hybrid"),
        ("recurrent_gemma", {}, "linear, recurrent or hybrid"),
        ("rwkv", {}, "linear, recurrent or hybrid"),
        ("t5", {}, "encoder-decoder"),
        ("bart", {}, "encoder-decoder"),
        ("bert", {}, "reads in both directions"),
        ("llava", {}, "multimodal"),
        ("gemma3", {}, "multimodal"),
        ("vit", {}, "no causal language model"),
        ("bloom", {}, "attention of its own"),
        ("nemotron", {}, "attention of its own"),
        ("diffllama", {}, "attention of its own"),
        ("deepseek_v3", {}, "keys and values compressed .kv_lora_rank = 512"),
        ("cohere", {}, "scales its logits .logit_scale = 0.0625"),
        ("granite", {"logits_scaling": 8.0}, "scales its logits"),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, "weights are quantised"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "longest sequence of a batch .dynamic rope",
        ),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_by_name(
    kind: str, knobs: dict[str, Any], reason: str
) -> None:
    expected = (
        rf"\Amodels of kind '{kind}' cannot be trained: [^\n]*{reason}[^\n]*; choose [^\n]*\Z"
    )
    with pytest.raises(ValueError, match=expected):
        check_supported(AutoConfig.for_model(kind, **knobs))


def test_a_kind_is_refused_before_weights_are_looked_for(tmp_path: Path) -> None:
    AutoConfig.for_model("gemma2").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'gemma2' cannot be trained"):
        load_model(str(tmp_path))
