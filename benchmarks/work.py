"""The work that all benchmarks share: SmolLM2-135M, the same prompts, the same number of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

PROMPTS, SAMPLES, TOKENS = 8, 8, 64


def questions(count: int) -> list[str]:
    """Sums to be worked out at some length."""
    return [
        f"What is {12 + 7 * i} + {31 + 3 * i}? Show how you add the digits, then give the sum."
        for i in range(count)
    ]


def model_and_tokenizer() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct in float32, with one torch thread per core."""
    import torch

    from archer.cores import num_cores
    from archer.model.load import load_model, load_tokenizer

    torch.set_num_threads(num_cores())
    return load_model("smollm2", dtype="float32"), load_tokenizer("smollm2")


def prompt_ids(tokenizer: Any, count: int) -> list[np.ndarray]:
    """Rendered prompts, all cut to one length, so that no side has padding to pay for."""
    from archer.model.prompts import Renderer

    renderer = Renderer(tokenizer)
    rendered = [renderer.render(question).token_ids for question in questions(count)]
    shortest = min(map(len, rendered))
    return [ids[-shortest:] for ids in rendered]
