"""Everything in one process: learner and sampler share one set of weights.

So publishing costs nothing, and what is sampled from is what is trained, to the last bit of the
weights. vLLM holds weights of its own, and takes each version before it first samples with it. A
reference model is held only where the recipe has a KL term.
"""

from __future__ import annotations

import copy
import json
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from archer.algo.batch import TokenBatch
from archer.algo.objective import Objective, Tallies
from archer.config import Config
from archer.engine.base import Request, Sample, Sampling
from archer.engine.learner import Everyone, Learner, alone, score
from archer.engine.sampler import Sampler
from archer.engine.vllm import VllmSampler, open_vllm
from archer.model.adapt import adapt
from archer.model.load import stop_token_ids
from archer.model.sharded import METADATA, read_distributed

WEIGHTS, MOMENTS, COUNTERS = "weights.safetensors", "optimizer.safetensors", "engine.json"

LOOP = "loop"
"""Name of the process that runs the loop, among those of an engine."""


class LocalEngine:
    """The verbs of `archer.engine.base.Engine`, in this process, on one device."""

    samples_apart = False

    def __init__(self, model: Any, tokenizer: Any, config: Config, objective: Objective) -> None:
        adapt(model)
        self.model = model
        self.reference: Any = None
        if objective.uses_reference:
            self.reference = copy.deepcopy(model).requires_grad_(False).eval()
        self.learner = learner_of(model, config, objective)
        self.sampler: Sampler | VllmSampler
        if config.rollout.sampler == "vllm":
            self.sampler = open_vllm(config, sleeps=next(model.parameters()).is_cuda)
        else:
            self.sampler = Sampler(
                model,
                tokenizer,
                stop_token_ids=stop_token_ids(tokenizer, model.generation_config),
                cache_tokens=config.rollout.cache_tokens,
            )
        self.policy_version = 0
        self.taken = -1
        """Version of the weights that vLLM holds."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Sample]:
        if isinstance(self.sampler, VllmSampler) and self.taken != self.policy_version:
            self.sampler.take((n, p.detach()) for n, p in self.model.named_parameters())
            self.taken = self.policy_version
        return self.sampler.generate(requests, sampling, policy_version=self.policy_version)

    def at(self, version: int) -> LocalEngine:
        assert version == self.policy_version, "there is one set of weights, the present one"
        return self

    def score(self, batch: TokenBatch, *, old: bool, reference: bool) -> TokenBatch:
        self._learn()
        if old:
            logp, entropy = self.learner.score(batch)
            batch = replace(batch, old_logp=logp, old_entropy=entropy)
        if reference:
            assert self.reference is not None, "no KL term, no reference"
            learner = self.learner
            logp, _ = score(self.reference, batch, learner.temperature, learner.microbatch_tokens)
            batch = replace(batch, ref_logp=logp)
        return batch

    def update(
        self, minibatch: TokenBatch, *, lr: float, entropy_coefficient: float | None = None
    ) -> Tallies:
        self._learn()
        return self.learner.update(minibatch, lr=lr, entropy_coefficient=entropy_coefficient)

    def _learn(self) -> None:
        """Learning and vLLM take turns on a GPU."""
        if isinstance(self.sampler, VllmSampler) and self.sampler.sleep():
            self.taken = -1

    def publish(self) -> int:
        self.policy_version += 1
        return self.policy_version

    def save(self, folder: Path) -> Callable[[], None]:
        weights, moments, counters = self.learner.state()
        _save(weights, folder / WEIGHTS)
        _save(moments, folder / MOMENTS)
        state = {**counters, "policy_version": self.policy_version}
        (folder / COUNTERS).write_text(json.dumps(state) + "\n")
        return lambda: None  # a copy to be written later would take as much memory again

    def load(self, folder: Path) -> None:
        state = json.loads((folder / COUNTERS).read_text())
        self.learner.load_state(stored_weights(folder), stored_moments(folder), state)
        self.policy_version, self.taken = state["policy_version"], -1

    def memory(self) -> dict[str, int]:
        return {LOOP: peak_bytes()}

    def close(self) -> None:
        """Nothing outlives the process that holds this engine."""
        if isinstance(self.sampler, VllmSampler):
            self.sampler.close()


def learner_of(
    model: Any, config: Config, objective: Objective, everyone: Everyone = alone
) -> Learner:
    """A learner with the recipe's knobs, of a whole model or of one that ranks share."""
    return Learner(
        model,
        objective,
        temperature=config.rollout.temperature,
        microbatch_tokens=config.update.microbatch_tokens,
        betas=config.update.betas,
        weight_decay=config.update.weight_decay,
        max_grad_norm=config.update.max_grad_norm,
        max_skipped=config.update.max_skipped,
        checkpoint_activations=config.model.checkpoint_activations,
        everyone=everyone,
    )


def stored_weights(folder: Path) -> dict[str, Tensor]:
    """Whole weights of a checkpoint, whichever engine wrote it."""
    if (folder / METADATA).is_file():
        return read_distributed(folder, "model.")
    return load_file(folder / WEIGHTS)


def stored_moments(folder: Path) -> dict[str, Tensor]:
    """The optimizer's whole moments, likewise."""
    if (folder / METADATA).is_file():
        return read_distributed(folder, "optimizer.")
    return load_file(folder / MOMENTS)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)


def peak_bytes() -> int:
    """Most memory that this process has held: its GPU's where it uses one, else resident memory."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. ValueError when CUDA is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("model.device = cuda, but torch sees no CUDA GPU: use auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
