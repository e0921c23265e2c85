"""What a recipe takes on GPUs that need not be here: memory of each by part, and seconds of a step.

A written cost model: learners share the float32 weights, moments and gradients (FSDP2), and gather
one layer at a time in bfloat16; samplers hold a whole model in bfloat16 and share the completions.
What is taken for known stands at the top. Nothing of it was measured on such GPUs by us.

Left out: judging, evaluation, checkpoints, and what a slow or shared network adds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from archer.config import Config
from archer.model.logprobs import KEEP_BYTES
from archer.model.shapes import (
    ModelShape,
    body_flops_per_token,
    cache_bytes_per_token,
    head_flops_per_token,
    parameter_count,
)
from archer.plan.estimate import (
    EXPECTED_TEACHING,
    FRAMEWORK_BYTES,
    HEAD_BLOCK,
    LAYER_SECONDS,
    Job,
    Lengths,
    activation_bytes,
    answers_in_flight,
    largest_microbatch,
    score_passes,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A kind of GPU, as its maker describes it."""

    memory: float
    """Bytes."""
    flops: float
    """Dense bfloat16 operations a second."""
    bandwidth: float
    """Bytes of its memory a second."""
    link: float
    """Bytes a second to another GPU of the same machine, one way."""
    network: float
    """Bytes a second to a GPU of another machine: 400 Gbit/s a GPU, half of that for an A100."""


GPUS = {
    "a100": Gpu(memory=80e9, flops=312e12, bandwidth=2.0e12, link=300e9, network=25e9),
    "h100": Gpu(memory=80e9, flops=989e12, bandwidth=3.35e12, link=450e9, network=50e9),
    "h200": Gpu(memory=141e9, flops=989e12, bandwidth=4.8e12, link=450e9, network=50e9),
}

PER_MACHINE = 8

UTILISATION = 0.35
"""Share of its operations that a GPU reaches in training passes of long packed sequences."""

DECODING = 0.5
"""Share of its bandwidth that a GPU reaches while it decodes."""

SPARE = 0.92
"""Share of a GPU's memory that may be planned with; the rest is lost between allocations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Processes of a run on GPUs.

    Example, 8 learners that sample by turns on one machine:
        Placement(gpu="h100", learners=8, samplers=0)
    """

    gpu: str
    learners: int
    samplers: int

    @property
    def by_turns(self) -> bool:
        return self.samplers == 0

    @property
    def sampling(self) -> int:
        """How many processes sample."""
        return self.samplers or self.learners

    @property
    def machines(self) -> int:
        return math.ceil((self.learners + self.samplers) / PER_MACHINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Bytes on one GPU by part.

    Example: Load(parts={"weights": 2e9, "moments": 4e9, "activations": 3e9}).peak == 9e9
    """

    parts: dict[str, float]

    @property
    def peak(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds of a training step on GPUs by part."""

    sampling: float
    score: float
    update: float
    weights: float
    """Handing new weights to those who sample."""
    overlap: bool
    """Whether sampling goes on while the others learn."""

    @property
    def step(self) -> float:
        learning = self.score + self.update + self.weights
        return max(self.sampling, learning) if self.overlap else self.sampling + learning


def learner_load(config: Config, shape: ModelShape, lengths: Lengths, place: Placement) -> Load:
    """A learner's GPU: its shard, what it gathers, and the largest micro-batch."""
    parameters, ranks = parameter_count(shape), place.learners
    job = _job(config, shape, lengths)
    micro = largest_microbatch(config, lengths)
    root = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    layer = (parameters - root) / shape.layers
    parts = {
        "libraries": FRAMEWORK_BYTES["cuda"] + 1e9 * (ranks > 1),  # NCCL's buffers
        "weights": 4 * parameters / ranks,
        "moments": 8 * parameters / ranks,
        "gradients": 4 * parameters / ranks,
        # The root's whole weights and their gradient; two layers' weights and one's gradient.
        "gathered": 2 * root + 4 * root + (2 * 2 + 4) * layer,
        "activations": activation_bytes(job, micro),
        "head": _head_bytes(shape, micro.scored),
    }
    if config.kl.used:
        parts["reference"] = 4 * parameters / ranks
    if place.by_turns:
        # The cache is given back before learning begins, and learning's memory before sampling.
        parts["sampler"] = 2 * parameters
        learning = parts["gradients"] + parts["activations"] + parts["head"]
        parts["cache"] = max(0.0, _cache_bytes(config, shape, lengths, place) - learning)
    return Load(parts=parts)


def sampler_load(config: Config, shape: ModelShape, lengths: Lengths, place: Placement) -> Load:
    """A GPU that samples alone: a whole model and its cache."""
    return Load(
        parts={
            "libraries": FRAMEWORK_BYTES["cuda"],
            "weights": 2.0 * parameter_count(shape),
            "cache": _cache_bytes(config, shape, lengths, place),
        }
    )


def step_times(config: Config, shape: ModelShape, lengths: Lengths, place: Placement) -> Times:
    """Seconds of a training step by part."""
    gpu, rollout = GPUS[place.gpu], config.rollout
    context = round(lengths.prompt + lengths.answer / 2)
    per_token = body_flops_per_token(shape, context=context) + head_flops_per_token(shape)
    groups = rollout.problems / (EXPECTED_TEACHING if rollout.filter == "refill" else 1)
    tokens = groups * (lengths.prompt + rollout.samples * lengths.answer)
    learned = tokens * (EXPECTED_TEACHING if rollout.filter == "drop" else 1)
    speed = gpu.flops * UTILISATION * place.learners
    recomputed = 4 if config.model.checkpoint_activations else 3
    wire = gpu.link if place.machines == 1 else gpu.network
    # A pass gathers all weights once in bfloat16, a backward pass again, and sends gradients back.
    passes = math.ceil(learned / place.learners / config.update.microbatch_tokens)
    gathering = passes * 2 * parameter_count(shape) / wire if place.learners > 1 else 0.0
    update = max(recomputed * learned * per_token / speed, 4 * gathering)
    score = max(learned * per_token / speed, gathering)
    return Times(
        sampling=_sampling_seconds(config, shape, lengths, place, tokens),
        score=score_passes(config) * score,
        update=config.update.passes * update,
        weights=2 * parameter_count(shape) / (gpu.link if place.by_turns else wire),
        overlap=bool(rollout.ahead) and not place.by_turns,
    )


def _sampling_seconds(
    config: Config, shape: ModelShape, lengths: Lengths, place: Placement, tokens: float
) -> float:
    """Each decoding step reads the weights and the cache of what is in flight, and calls torch."""
    gpu = GPUS[place.gpu]
    rows = _rows(config, lengths, place)
    steps = max(lengths.longest_answer, tokens / place.sampling / rows)
    context = lengths.prompt + lengths.answer / 2
    cache = rows * context * cache_bytes_per_token(shape, bytes_per_number=2)
    reading = steps * (2 * parameter_count(shape) + cache) / (gpu.bandwidth * DECODING)
    per_token = body_flops_per_token(shape, context=round(context)) + head_flops_per_token(shape)
    computing = tokens / place.sampling * per_token / (gpu.flops * UTILISATION)
    return max(reading, computing) + steps * shape.layers * LAYER_SECONDS["cuda"]


def _rows(config: Config, lengths: Lengths, place: Placement) -> int:
    """Completions in flight on one GPU."""
    completions = config.rollout.problems * config.rollout.samples
    own = math.ceil(completions / place.sampling)
    return min(own, answers_in_flight(config, lengths))


def _cache_bytes(config: Config, shape: ModelShape, lengths: Lengths, place: Placement) -> float:
    row = lengths.longest_prompt + lengths.longest_answer
    rows = _rows(config, lengths, place)
    keys = rows * row * cache_bytes_per_token(shape, bytes_per_number=2)
    return keys + 4 * 4 * rows * shape.vocabulary  # and the logits they are continued from


def _head_bytes(shape: ModelShape, scored: int) -> float:
    rows, columns = HEAD_BLOCK
    kept = min(KEEP_BYTES, 4 * scored * shape.vocabulary)
    return kept + 8 * min(scored, rows) * min(shape.vocabulary, columns)


def _job(config: Config, shape: ModelShape, lengths: Lengths) -> Job:
    return Job(config=config, shape=shape, lengths=lengths, device="cuda", itemsize=2)


def too_large(load: Load, gpu: str) -> str:
    """What does not fit, with its cure; empty where all does."""
    room = GPUS[gpu].memory * SPARE
    if load.peak <= room:
        return ""
    part = max(load.parts, key=load.parts.__getitem__)
    return (
        f"{load.peak / 1e9:.1f} GB are needed on one GPU and {room / 1e9:.1f} of "
        f"{GPUS[gpu].memory / 1e9:.0f} GB can be used; the most, {load.parts[part] / 1e9:.1f} GB, "
        f"is for {part}: {CURES[part]}"
    )


CURES = {
    "libraries": "take a larger GPU",
    "weights": "more learners",
    "moments": "more learners",
    "gradients": "more learners",
    "gathered": "take a larger GPU",
    "activations": "lower update.microbatch_tokens, or set model.checkpoint_activations = true",
    "head": "lower update.microbatch_tokens",
    "reference": "more learners, or set kl.knowledge = 0 and kl.reasoning = 0",
    "sampler": "give the samplers GPUs of their own (cluster.samplers)",
    "cache": "lower rollout.cache_tokens",
}
