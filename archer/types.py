"""The nouns: a problem, an answer to it, the verdict on that answer, and the group of answers.

Frozen records without torch. Tensors over many tokens live in `archer.algo.batch.TokenBatch`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int32

from archer.verdict import OUTCOMES, Message, Outcome, Problem, Verdict

__all__ = (
    "OUTCOMES",
    "Completion",
    "Group",
    "Message",
    "Outcome",
    "Problem",
    "Rollout",
    "StopReason",
    "Verdict",
)

StopReason = Literal["stop", "length", "filtered"]
"""`stop`: a stop token or stop string ended the completion. `length`: the token limit did.
`filtered`: a service withheld it, or what was to come of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled answer, token by token.

    Example, the prompt "2+3?" answered by "5" and the stop token 2:
        Completion(prompt_ids=[7, 8, 9], token_ids=[5, 2], logps=[-0.1, -0.01],
                   entropies=[0.4, 0.1], policy_version=3, stop="stop", in_thought=False, text="5")
    """

    prompt_ids: Int32[np.ndarray, " prompt"]
    token_ids: Int32[np.ndarray, " T"]
    """The sampled tokens; a stop token that was sampled is the last of them."""
    logps: Float32[np.ndarray, " T"]
    """Log-probability of each token in the distribution it was drawn from, in nats."""
    entropies: Float32[np.ndarray, " T"]
    """Entropy of that distribution before any truncation (top-p and its like), in nats."""
    policy_version: int
    """How often the weights had been published when this was sampled."""
    stop: StopReason
    in_thought: bool
    """Whether the rendered prompt had already opened a `<think>`."""
    text: str
    """The decoded tokens without special tokens and without the stop string."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A completion, its verdict, and the reward it is trained with (score plus shaping)."""

    completion: Completion
    verdict: Verdict
    reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All rollouts of one problem in one step, in the order of their sample numbers."""

    problem: Problem
    rollouts: tuple[Rollout, ...]
