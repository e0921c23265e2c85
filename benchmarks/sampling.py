"""Sampling, archer against Hugging Face generate: 8 prompts x 8 samples x 64 tokens, one batch.

    python benchmarks/sampling.py

Both draw from the whole distribution at temperature 1 with stop tokens off, so both make exactly
the same number of tokens. Hugging Face gets its own best attention (sdpa) and a dynamic cache.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from sides import compare
from work import PROMPTS, SAMPLES, TOKENS, model_and_tokenizer, prompt_ids


def ours() -> Callable[[], int]:
    """archer's sampler."""
    from archer.engine.base import Request, Sampling
    from archer.engine.sampler import Sampler
    from archer.model.adapt import adapt

    model, tokenizer = model_and_tokenizer()
    adapt(model)
    sampler = Sampler(model, tokenizer, stop_token_ids=(), cache_tokens=65536)
    requests = [
        Request(prompt_ids=ids, in_thought=False, names=tuple((i, j) for j in range(SAMPLES)))
        for i, ids in enumerate(prompt_ids(tokenizer, PROMPTS))
    ]

    def play() -> int:
        found = sampler.generate(requests, Sampling(max_tokens=TOKENS), policy_version=0)
        return sum(len(sample.completion.token_ids) for sample in found)

    return play


def hugging_face() -> Callable[[], int]:
    """transformers' generate."""
    import torch

    model, tokenizer = model_and_tokenizer()
    prompts = np.repeat(np.stack(prompt_ids(tokenizer, PROMPTS)), SAMPLES, axis=0)
    ids = torch.from_numpy(prompts.astype(np.int64))

    def play() -> int:
        with torch.inference_mode():
            found = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=TOKENS,
                min_new_tokens=TOKENS,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                use_cache=True,
            )
        return int(found[:, ids.shape[1] :].numel())

    return play


if __name__ == "__main__":
    here = str(Path(__file__).resolve())
    compare(here, {"archer": ours, "generate": hugging_face}, rounds=5)
