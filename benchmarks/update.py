"""One optimizer step, archer against a plain loss on full logits: 2 prompts x 8 x 64 tokens.

    python benchmarks/update.py

The plain side is what one writes first: all sequences with their prompts in one batch, full logits,
log_softmax, clipped loss on the completion tokens, fused AdamW. Tokens are completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from sides import compare
from work import SAMPLES, TOKENS, model_and_tokenizer, prompt_ids

PROMPTS = 2
ROWS = PROMPTS * SAMPLES


def answers() -> tuple[np.ndarray, np.ndarray]:
    """Random completion tokens and advantages, the same on both sides."""
    random = np.random.Generator(np.random.Philox(0))
    return random.integers(100, 49_000, (ROWS, TOKENS)), random.standard_normal(ROWS)


def ours() -> Callable[[], int]:
    """archer's learner."""
    import torch

    from archer.algo.batch import TokenBatch, minibatches
    from archer.algo.losses import LOSSES
    from archer.algo.objective import Objective
    from archer.engine.learner import Learner
    from archer.model.adapt import adapt

    model, tokenizer = model_and_tokenizer()
    adapt(model)
    learner = Learner(model, Objective(loss=LOSSES["grpo"]), temperature=1.0, microbatch_tokens=640)
    prompts = prompt_ids(tokenizer, PROMPTS)
    tokens, advantages = answers()
    old = torch.full((ROWS * TOKENS,), -10.0)
    batch = TokenBatch(
        prompt_tokens=torch.from_numpy(np.concatenate(prompts)).long(),
        prompt_lengths=torch.tensor([len(ids) for ids in prompts]),
        prompt_index=torch.arange(PROMPTS).repeat_interleave(SAMPLES),
        tokens=torch.from_numpy(tokens).flatten(),
        lengths=torch.full((ROWS,), TOKENS),
        counted=torch.ones(ROWS, dtype=torch.bool),
        advantages=torch.from_numpy(advantages).float().repeat_interleave(TOKENS),
        weights=torch.zeros(ROWS * TOKENS),
        sampler_logp=old,
        old_logp=old,
        old_entropy=torch.ones(ROWS * TOKENS),
    )
    (minibatch,) = minibatches(batch, problems=PROMPTS, average="token")

    def play() -> int:
        learner.update(minibatch, lr=1e-6)
        return ROWS * TOKENS

    return play


def plain() -> Callable[[], int]:
    """The loss that one writes first."""
    import torch

    model, tokenizer = model_and_tokenizer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0, fused=True)
    prompts = np.repeat(np.stack(prompt_ids(tokenizer, PROMPTS)), SAMPLES, axis=0)
    tokens, advantages = answers()
    ids = torch.from_numpy(np.concatenate([prompts, tokens], axis=1)).long()
    advantage = torch.from_numpy(advantages).float()[:, None]

    def play() -> int:
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        logp = logits.log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)[:, -TOKENS:]
        ratio = (logp + 10.0).exp()
        loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return ROWS * TOKENS

    return play


if __name__ == "__main__":
    compare(str(Path(__file__).resolve()), {"archer": ours, "plain": plain}, rounds=5)
