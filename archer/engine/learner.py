"""The learner: log-probs and entropies of packed sequences, and optimizer steps on them.

One class for every engine. It knows nothing of problems, rewards or files. What memory knobs change
is how many sequences share a forward pass; the gradient is the same, because every token carries
its share of the mini-batch's mean before micro-batches are cut.

The model may be whole, or sharded over ranks (`archer.engine.cluster.fsdp`) that each hold a
learner and some of the sequences. Then every forward pass is a common one, so all ranks make the
same number of them, and what is decided of a step is decided of all ranks' sums: `everyone` is the
one thing that a learner asks of the others.

The model is computed in its own dtype. Where that is bfloat16, float32 masters are kept beside it,
gradients are added up in float32, and the optimizer moves the masters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from archer.algo.batch import TokenBatch, microbatches, take
from archer.algo.objective import Objective, Tallies, add_tallies, token_gradients
from archer.model.logprobs import FusedHead
from archer.model.packing import pack

Everyone = Callable[[Any], list[Any]]
"""Gives what every rank says here, in the order of the ranks; all of them call it together."""


def alone(own: Any) -> list[Any]:
    """`Everyone` where the model is whole."""
    return [own]


class NonFiniteGradients(RuntimeError):
    """Too many optimizer steps in a row had a gradient that is not a number."""


class Learner:
    """Scores and updates a Hugging Face causal LM with a `FusedHead` and packed attention."""

    def __init__(
        self,
        model: Any,
        objective: Objective,
        *,
        temperature: float,
        microbatch_tokens: int,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        max_skipped: int = 3,
        checkpoint_activations: bool = False,
        everyone: Everyone = alone,
    ) -> None:
        assert isinstance(model.lm_head, FusedHead), "the learner needs the fused head"
        self.model = model
        self.objective = objective
        self.temperature = temperature
        self.microbatch_tokens = microbatch_tokens
        self.max_grad_norm = max_grad_norm
        self.max_skipped = max_skipped
        self.everyone = everyone
        self.skipped_in_a_row = 0
        if checkpoint_activations:
            _checkpoint_activations(model)
        model.train(checkpoint_activations)  # no dropout anywhere: only recomputing reads this
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.masters = {name: _master(p) for name, p in self.weights.items()}
        self.optimizer = torch.optim.AdamW(
            self.masters.values(), lr=0.0, betas=betas, weight_decay=weight_decay, fused=True
        )

    def log_probs(self, batch: TokenBatch) -> tuple[Float[Tensor, "T"], Float[Tensor, "T"]]:
        """Log-prob and entropy of every token at the training temperature, with their graph."""
        return log_probs(self.model, batch, self.temperature)

    @torch.no_grad()
    def score(self, batch: TokenBatch | None) -> tuple[Float[Tensor, "T"], Float[Tensor, "T"]]:
        """The same as plain values, micro-batch by micro-batch, in the batch's own order."""
        return score(
            self.model, batch, self.temperature, self.microbatch_tokens, everyone=self.everyone
        )

    def update(
        self, minibatch: TokenBatch | None, *, lr: float, entropy_coefficient: float | None = None
    ) -> Tallies:
        """One optimizer step. Returns tallies of the objective, the gradient norm and skips.

        On ranks: this one's part of the mini-batch, None where it has none; the tallies are of all.

        Where no sequence has a gradient (all groups uniform), there is no step and none is counted.

        A loss or gradient that is not finite changes nothing: the step is skipped and counted.
        Raises NonFiniteGradients when that happens `max_skipped` times in a row.
        """
        objective = self.objective
        if entropy_coefficient is not None:
            objective = replace(objective, entropy_coefficient=entropy_coefficient)
        parts = self._parts(minibatch, objective)
        passes = max(self.everyone(len(parts)))
        own = [self._backward(part, objective) for part in parts]
        for _ in range(passes - len(parts)):
            self._backward_nothing()
        trained = float(sum(len(part.tokens) for part in parts))
        tallies = add_tallies(
            each
            for rank in self.everyone([*own, {"tokens/trained": (trained, 1.0)}])
            for each in rank
        )
        norm = self._gradient_norm()
        # A clipped ratio that is not a number has a gradient of 0: only the loss tells.
        loss, _ = tallies.get("loss", (0.0, 0.0))
        finite = bool(torch.isfinite(norm)) and math.isfinite(loss)
        if finite and passes:
            self._step(lr, norm)
        self.optimizer.zero_grad(set_to_none=True)
        if passes:
            self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= self.max_skipped:
            raise NonFiniteGradients(
                f"the gradient was not finite {self.skipped_in_a_row} times in a row: lower "
                "update.learning_rate, or look at the last rollouts of the run"
            )
        return {
            **tallies,
            "tokens/trained": (tallies["tokens/trained"][0], 1.0),
            "grad_norm": (float(norm), 1.0) if finite and passes else (0.0, 0.0),
            "updates/skipped": (float(not finite), float(bool(passes))),
        }

    def _parts(self, minibatch: TokenBatch | None, objective: Objective) -> list[TokenBatch]:
        """The micro-batches: what of the mini-batch has a gradient."""
        if minibatch is None:
            return []
        needed = torch.nonzero(needs_gradient(minibatch, objective)).flatten()
        cut = microbatches(minibatch, max_tokens=self.microbatch_tokens, rows=needed)
        return [take(minibatch, rows) for rows in cut]

    def _backward_nothing(self) -> None:
        """A pass whose gradient is zero: its collectives are those of the ranks that have more."""
        logp, _ = log_probs(self.model, nothing(compute_device(self.model)), self.temperature)
        torch.autograd.backward([logp], [torch.zeros_like(logp)])

    def _backward(self, part: TokenBatch, objective: Objective) -> Tallies:
        part = part.to(compute_device(self.model))
        logp, entropy = self.log_probs(part)
        found = token_gradients(objective, logp.detach(), entropy.detach(), part)
        if found.d_entropy is None:
            torch.autograd.backward([logp], [found.d_logp])
        else:
            torch.autograd.backward([logp, entropy], [found.d_logp, found.d_entropy])
        for name, master in self.masters.items():
            weight = self.weights[name]
            if master is not weight and weight.grad is not None:
                gradient = weight.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                weight.grad = None
        return found.tallies

    def _gradient_norm(self) -> Tensor:
        gradients = [m.grad for m in self.masters.values() if m.grad is not None]
        norm = nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
        whole = getattr(norm, "full_tensor", None)  # of a sharded model: each rank has its part
        return norm if whole is None else whole()

    def _step(self, lr: float, norm: Tensor) -> None:
        nn.utils.clip_grads_with_norm_(self.masters.values(), self.max_grad_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        with torch.no_grad():
            for name, master in self.masters.items():
                if master is not self.weights[name]:
                    self.weights[name].copy_(master)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, int]]:
        """Master weights, optimizer moments by name, and counters: all that a resume needs."""
        moments = {}
        for name, master in self.masters.items():
            for key, value in self.optimizer.state.get(master, {}).items():
                moments[f"{name}.{key}"] = value
        return dict(self.masters), moments, {"skipped_in_a_row": self.skipped_in_a_row}

    @torch.no_grad()
    def load_state(
        self,
        weights: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        counters: Mapping[str, int],
    ) -> None:
        """Takes back what `state` gave. ValueError when the names or shapes are another model's."""
        shapes = {name: list(master.shape) for name, master in self.masters.items()}
        stored = {name: list(weight.shape) for name, weight in weights.items()}
        if shapes != stored:
            name = min(n for n in shapes.keys() | stored.keys() if shapes.get(n) != stored.get(n))
            raise ValueError(
                f"the checkpoint is of another model: {name} has shape {stored.get(name)} there, "
                f"{shapes.get(name)} in model.name; give the model that the run began with"
            )
        for name, master in self.masters.items():
            master.copy_(weights[name])
            if master is not self.weights[name]:
                self.weights[name].copy_(master)
            own = {k: moments[f"{name}.{k}"] for k in _MOMENTS if f"{name}.{k}" in moments}
            self.optimizer.state.pop(master, None)  # before its first step a weight has no moments
            if own:
                self.optimizer.state[master] = {
                    key: value.to(master.device, copy=True) for key, value in own.items()
                }
        self.skipped_in_a_row = counters["skipped_in_a_row"]


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def log_probs(
    model: Any, batch: TokenBatch, temperature: float
) -> tuple[Float[Tensor, "T"], Float[Tensor, "T"]]:
    """One forward pass over a whole batch: log-prob and entropy of its completion tokens."""
    packed = pack(
        batch.prompt_tokens, batch.prompt_lengths, batch.prompt_index, batch.tokens, batch.lengths
    )
    # A prompt's last row predicts the first token of each of its answers. The model would add their
    # gradients up in whatever order threads come by (index_put); the head does it in theirs.
    rows, place = torch.unique(packed.predict, return_inverse=True)
    with model.lm_head.scoring(batch.tokens, temperature, place):
        scores = model(
            input_ids=packed.input_ids[None],
            position_ids=packed.position_ids[None],
            context=packed,
            use_cache=False,
            logits_to_keep=rows,
        ).logits
    return scores[0, :, 0], scores[0, :, 1]


@torch.no_grad()
def score(
    model: Any,
    batch: TokenBatch | None,
    temperature: float,
    microbatch_tokens: int,
    *,
    everyone: Everyone = alone,
) -> tuple[Float[Tensor, "T"], Float[Tensor, "T"]]:
    """Log-prob and entropy of every token as plain values on the CPU, in the batch's order.

    On ranks: this one's part of the batch, None where it has none.
    """
    device = compute_device(model)
    cut = [] if batch is None else microbatches(batch, max_tokens=microbatch_tokens)
    for _ in range(max(everyone(len(cut))) - len(cut)):
        log_probs(model, nothing(device), temperature)
    if batch is None:
        return torch.zeros(0), torch.zeros(0)
    per_sequence: dict[int, tuple[Tensor, Tensor]] = {}
    for rows in cut:
        part = take(batch, rows)
        values = [v.cpu() for v in log_probs(model, part.to(device), temperature)]
        split = (value.split(part.lengths.tolist()) for value in values)
        per_sequence.update(zip(rows, zip(*split, strict=True), strict=True))
    ordered = [per_sequence[row] for row in range(len(batch.lengths))]
    return torch.cat([logp for logp, _ in ordered]), torch.cat([entropy for _, entropy in ordered])


def _checkpoint_activations(model: Any) -> None:
    # transformers renamed it in the midst of the versions that we work with.
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def compute_device(model: Any) -> torch.device:
    """Where a model's passes are made: where its weights are, or where shards of them are gathered.

    Shards themselves may lie in the CPU's memory.
    """
    weight = next(model.parameters())
    mesh = getattr(weight, "device_mesh", None)
    return torch.device(weight.device if mesh is None else mesh.device_type)


def nothing(device: torch.device) -> TokenBatch:
    """One prompt of one token, answered by one that counts in nothing."""
    token, one = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    zero = torch.zeros(1)
    batch = TokenBatch(
        prompt_tokens=token,
        prompt_lengths=one,
        prompt_index=token,
        tokens=token,
        lengths=one,
        counted=torch.zeros(1, dtype=torch.bool),
        advantages=zero,
        weights=zero,
        sampler_logp=zero,
        old_logp=zero,
        old_entropy=zero,
    )
    return batch.to(device)


def needs_gradient(batch: TokenBatch, objective: Objective) -> Bool[Tensor, "B"]:
    """Sequences whose gradient is not known to be zero: skipping the others changes nothing."""
    if objective.uses_reference or objective.entropy_coefficient:
        return batch.counted
    moved = torch.zeros(len(batch.lengths)).index_add_(
        0, batch.sequence_ids, batch.advantages.abs()
    )
    return batch.counted & (moved != 0)


def _master(weight: nn.Parameter) -> nn.Parameter:
    if weight.dtype == torch.float32:
        return weight
    return nn.Parameter(weight.detach().float())
