"""What a recipe takes on GPUs that need not be here: memory of each by part, and seconds of a step.

A written cost model: learners share the float32 weights, moments and gradients (FSDP2), and gather
one layer at a time in bfloat16; samplers hold a whole model in bfloat16 and share the completions.
What is taken for known of GPUs stands at the top, and was not measured on such GPUs by us; what the
loop, Ray and messages between processes cost was measured, on CPUs (`archer.plan.costs`).

Left out: judging, evaluation, checkpoints, and what a slow or shared network adds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from archer.config import Config
from archer.engine.vllm import cached_tokens
from archer.model.logprobs import KEEP_BYTES
from archer.model.shapes import (
    ModelShape,
    body_flops_per_token,
    cache_bytes_per_token,
    head_flops_per_token,
    parameter_count,
    part_of,
)
from archer.plan.costs import (
    CHECKSUM_RATE,
    FETCH_RATE,
    PUT_RATE,
    SCORE_SECONDS,
    UPDATE_SECONDS,
    collecting_seconds,
    dealing_seconds,
    tensor_count,
    told_seconds,
)
from archer.plan.estimate import (
    FRAMEWORK_BYTES,
    HEAD_BLOCK,
    LAYER_SECONDS,
    OPTIMIZER_BYTES,
    Job,
    Lengths,
    activation_bytes,
    answers_in_flight,
    body_passes,
    group_flops,
    largest_microbatch,
    learned_groups,
    score_passes,
    scored_groups,
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
    pcie: float
    """Bytes a second to the memory of its machine, one way: 16 lanes of generation 5, or 4."""
    host: float
    """Bytes a second of that memory, for all CPUs: 16 channels of DDR5-4800, as in a DGX H100 or
    H200, or of DDR4-3200, as in a DGX A100."""


GPUS = {
    "a100": Gpu(
        memory=80e9,
        flops=312e12,
        bandwidth=2.0e12,
        link=300e9,
        network=25e9,
        pcie=32e9,
        host=410e9,
    ),
    "h100": Gpu(
        memory=80e9,
        flops=989e12,
        bandwidth=3.35e12,
        link=450e9,
        network=50e9,
        pcie=64e9,
        host=614e9,
    ),
    "h200": Gpu(
        memory=141e9,
        flops=989e12,
        bandwidth=4.8e12,
        link=450e9,
        network=50e9,
        pcie=64e9,
        host=614e9,
    ),
}

PER_MACHINE = 8

REACHED = 0.8
"""Share of a link that a ring reaches: 350 to 360 of 450 GB/s gathering and reducing between H100
(NVIDIA/nccl, issue 1281), 235 of 300 GB/s between A100. Taken for the network and PCIe as well."""

RING_SECONDS = (8.4e-6, 3.4e-6, 14e-6)
"""Start of a ring, a hop to a GPU of the same machine, and one to another machine: the numbers that
NCCL chooses its algorithms by (src/graph/tuning.cc: ring, protocol Simple, NVLink and network)."""

UTILISATION = 0.35
"""Share of its operations that a GPU reaches in training passes of long packed sequences."""

DECODING = 0.5
"""Share of its bandwidth that a GPU reaches while it decodes."""

HOST_REACHED = 0.5
"""Share of its memory's bandwidth that a machine's CPUs reach in clipping and AdamW: taken."""

ADDING_BYTES = 12
"""Traffic per parameter where a micro-batch's gradient is added to that of those before it."""

SPARE = 0.92
"""Share of a GPU's memory that may be planned with; the rest is lost between allocations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Processes of a run on GPUs.

    Example, 8 learners that sample by turns on one machine; 4, and 2 samplers over 2 GPUs each:
        Placement(gpu="h100", learners=8, samplers=0)
        Placement(gpu="h100", learners=4, samplers=2, parts=2)
    """

    gpu: str
    learners: int
    samplers: int
    """Models that sample apart."""
    parts: int = 1
    """GPUs that each model that samples is cut over."""

    @property
    def by_turns(self) -> bool:
        return self.samplers == 0

    @property
    def sampling(self) -> int:
        """How many models sample."""
        return self.samplers or self.learners // self.parts

    @property
    def gpus(self) -> int:
        return self.learners + self.samplers * self.parts

    @property
    def machines(self) -> int:
        return math.ceil(self.gpus / PER_MACHINE)


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


def gpu_job(config: Config, shape: ModelShape, lengths: Lengths) -> Job:
    """What is planned: bfloat16 on GPUs."""
    return Job(config=config, shape=shape, lengths=lengths, device="cuda", itemsize=2)


def learner_load(job: Job, place: Placement) -> Load:
    """A learner's GPU: its shard, what it gathers, and the largest micro-batch."""
    config, shape = job.config, job.shape
    ranks = place.learners
    micro = largest_microbatch(config, job.lengths)
    root, layer = root_and_layer(shape)
    # Of what is offloaded the root and a layer are on their way.
    passing = {"passing": 4 * (root + layer) / ranks}
    parts = {
        "libraries": FRAMEWORK_BYTES["cuda"] + 1e9 * (ranks > 1),  # NCCL's buffers
        **(passing if config.cluster.offload else _shard_bytes(job, place)),
        # The root's whole weights and their gradient; two layers' weights and one's gradient.
        "gathered": 2 * root + 4 * root + (2 * 2 + 4) * layer,
        "activations": activation_bytes(job, micro),
        "head": _head_bytes(shape, micro.scored),
    }
    if place.by_turns:
        # The cache is given back before learning begins, and learning's memory before sampling.
        # So are vLLM's weights, but it is a process of its own.
        sampled, vllm = _sampled_bytes(job, place), config.rollout.sampler == "vllm"
        parts["sampler"] = _sampler_libraries(place) if vllm else sampled
        learning = parts.get("gradients", 0.0) + parts["activations"] + parts["head"]
        taken = _cache_bytes(job, place) + sampled * vllm
        parts["cache"] = max(0.0, taken - learning)
    return Load(parts=parts)


def _shard_bytes(job: Job, place: Placement) -> dict[str, float]:
    """What a learner keeps from step to step, on its GPU or, offloaded, in its machine's memory."""
    shard = parameter_count(job.shape) / place.learners
    parts = {"weights": 4 * shard, "moments": 8 * shard, "gradients": 4 * shard}
    return {**parts, "reference": 4 * shard} if job.config.kl.used else parts


def offloaded_bytes(job: Job, place: Placement) -> tuple[float, float]:
    """Of one machine's memory, and at most: all but the moments is pinned, in powers of two.

    From torch: `CPUOffloadPolicy` pins weights, gradients come by a copy that does not block, and
    ATen/core/CachingHostAllocator.h rounds up what it pins.
    """
    if not job.config.cluster.offload:
        return 0.0, 0.0
    parts, learners = _shard_bytes(job, place), min(place.learners, PER_MACHINE)
    kept = learners * sum(parts.values())
    return kept, 2 * kept - learners * parts["moments"]


def reading_bytes(job: Job) -> float:
    """Of one machine's memory while rank 0 reads: the model in float32, and a copy as reference.

    The others are sent their shards a layer at a time (`archer.engine.cluster.fsdp`), which takes
    less of a GPU than learning does.
    """
    return 4.0 * parameter_count(job.shape) * (2 if job.config.kl.used else 1)


def sampler_load(job: Job, place: Placement) -> Load:
    """A GPU that samples alone: a whole model, or its part of one, and its cache."""
    return Load(
        parts={
            "libraries": _sampler_libraries(place),
            "whole model" if place.parts == 1 else "part of a model": _sampled_bytes(job, place),
            "cache": _cache_bytes(job, place),
        }
    )


# ------------------------------------------------------------------ what goes between GPUs


def ring_seconds(size: float, ranks: int, gpu: str) -> float:
    """Seconds in which ranks gather `size` bytes in all, or reduce as many and scatter the sums.

    Of the whole, (n-1)/n passes each GPU's link, and between m machines of eight (m-1)/m the
    network of a machine, which each of its GPUs has a share of (nccl-tests, doc/PERFORMANCE.md).
    Besides, a message goes n-1 hops, m-1 of them between machines (RING_SECONDS).
    """
    if ranks == 1:
        return 0.0
    kind, machines = GPUS[gpu], math.ceil(ranks / PER_MACHINE)
    inside = size * (ranks - 1) / ranks / kind.link
    between = size * (machines - 1) / machines / (PER_MACHINE * kind.network)
    start, hop, far_hop = RING_SECONDS
    hops = (ranks - machines) * hop + (machines - 1) * far_hop
    return max(inside, between) / REACHED + start + hops


def gathered_seconds(shape: ModelShape, ranks: int, gpu: str) -> tuple[float, float]:
    """Of a forward pass, and of a backward pass: weights gathered, gradients reduced.

    From the code (`archer.engine.cluster.fsdp`): layer by layer in bfloat16, and the root once;
    backwards the layers again, and all gradients in float32.
    """
    root, layer = root_and_layer(shape)
    weights = shape.layers * ring_seconds(2 * layer, ranks, gpu)
    gradients = shape.layers * ring_seconds(4 * layer, ranks, gpu)
    return (
        weights + ring_seconds(2 * root, ranks, gpu),
        weights + gradients + ring_seconds(4 * root, ranks, gpu),
    )


def copied_seconds(job: Job, place: Placement) -> float:
    """A learner's weights, or their gradients, between its GPU and its machine's memory."""
    if not job.config.cluster.offload:
        return 0.0
    return 4 * parameter_count(job.shape) / place.learners / (GPUS[place.gpu].pcie * REACHED)


def handing_seconds(job: Job, place: Placement) -> float:
    """New weights, from the ranks to those who sample.

    From the code: every tensor is made whole in float32, one after the other. Learners that sample
    have it then. For others, vLLM by turns among them, rank 0 computes a checksum and puts all into
    Ray's object store, from where each machine that samples fetches them, and each sampler checks
    them. At most: all are taken to fetch from rank 0's machine, one after the other; Ray may find
    other copies.
    """
    shape, ranks = job.shape, place.learners
    tensors, version = tensor_count(shape), 2 * parameter_count(shape)
    seconds = tensors * ring_seconds(2 * version / tensors, ranks, place.gpu)
    seconds += copied_seconds(job, place)
    if place.by_turns and job.config.rollout.sampler != "vllm":
        return seconds
    machines = math.ceil((place.samplers * place.parts or place.learners) / PER_MACHINE)
    machines -= place.by_turns or place.machines == 1  # where rank 0 is
    seconds += version / CHECKSUM_RATE + version / PUT_RATE
    return seconds + machines * version / FETCH_RATE + version / CHECKSUM_RATE


# ------------------------------------------------------------------ seconds


def step_times(job: Job, place: Placement) -> Times:
    """Seconds of a training step by part."""
    config = job.config
    return Times(
        sampling=sampling_seconds(job, place),
        score=score_passes(config) * _score_seconds(job, place),
        update=config.update.passes * _update_seconds(job, place),
        weights=handing_seconds(job, place),
        overlap=bool(config.rollout.ahead) and not place.by_turns,
    )


def _score_seconds(job: Job, place: Placement) -> float:
    """A forward pass: computing, or gathering where that takes longer; and the loop's part."""
    groups, ranks = scored_groups(job), place.learners
    tokens, flops = busiest(job, groups, ranks)
    passes = math.ceil(tokens / job.config.update.microbatch_tokens)
    computing = flops / (GPUS[place.gpu].flops * UTILISATION)
    forward, _ = gathered_seconds(job.shape, ranks, place.gpu)
    moving = passes * (forward + copied_seconds(job, place))
    beside = SCORE_SECONDS + told_seconds(ranks)
    beside += dealing_seconds(groups * job.config.rollout.samples, ranks)
    return max(computing, moving) + beside


def _update_seconds(job: Job, place: Placement) -> float:
    """All optimizer steps of one pass over a step's data."""
    config, gpu, ranks = job.config, GPUS[place.gpu], place.learners
    groups = learned_groups(job)
    steps = math.ceil(groups / config.update.minibatch)
    tokens, flops = busiest(job, groups / steps, ranks)
    passes = math.ceil(tokens / config.update.microbatch_tokens)
    computing = body_passes(config) * flops / (gpu.flops * UTILISATION)
    # Weights are copied for the forward and for the backward pass, gradients once.
    copying = 3 * copied_seconds(job, place)
    moving = passes * (sum(gathered_seconds(job.shape, ranks, place.gpu)) + copying)
    stepping = _stepping_seconds(job, place, passes)
    beside = UPDATE_SECONDS + 2 * told_seconds(ranks)
    beside += dealing_seconds(groups / steps * config.rollout.samples, ranks)
    return steps * (max(computing, moving) + stepping + beside)


def _stepping_seconds(job: Job, place: Placement, passes: int) -> float:
    """Clipping and AdamW on the GPU; or on the CPUs, where micro-batches' gradients are added too.

    A machine's CPUs share its memory's bandwidth.
    """
    gpu, shard = GPUS[place.gpu], parameter_count(job.shape) / place.learners
    if not job.config.cluster.offload:
        return OPTIMIZER_BYTES * shard / gpu.bandwidth
    traffic = (OPTIMIZER_BYTES + ADDING_BYTES * (passes - 1)) * shard
    return traffic * min(place.learners, PER_MACHINE) / (gpu.host * HOST_REACHED)


def busiest(job: Job, groups: float, ranks: int) -> tuple[float, float]:
    """Tokens and forward operations of the rank that has most to do of so many groups.

    Sequences are never cut, so it is an equal share only as long as that is more than the longest
    answer alone: beyond, more ranks do not help.
    """
    lengths, samples = job.lengths, job.config.rollout.samples
    tokens = groups * (lengths.prompt + samples * lengths.answer) / ranks
    longest = lengths.prompt + lengths.longest_answer
    context = round(lengths.prompt + lengths.longest_answer / 2)
    alone = longest * (
        body_flops_per_token(job.shape, context=context) + head_flops_per_token(job.shape)
    )
    return max(tokens, longest), max(sum(group_flops(job)) * groups / ranks, alone)


def sampling_seconds(job: Job, place: Placement) -> float:
    """Each decoding step reads the weights and the cache of what is in flight, and calls torch.

    Where a model is cut over GPUs, each has its part of that, and twice in a layer all add up what
    they have, and at the end gather the logits. Beside it the loop takes in all answers.
    """
    shape, lengths, gpu = job.shape, job.lengths, GPUS[place.gpu]
    rollout = job.config.rollout
    groups = rollout.problems / (job.teaching if rollout.filter == "refill" else 1)
    tokens = groups * (lengths.prompt + rollout.samples * lengths.answer) / place.sampling
    rows = _rows(job, place)
    steps = max(lengths.longest_answer, tokens / rows)
    context = lengths.prompt + lengths.answer / 2
    own = part_of(shape, place.parts)
    cache = rows * context * cache_bytes_per_token(own, bytes_per_number=2)
    reading = steps * (2 * parameter_count(own) + cache) / (gpu.bandwidth * DECODING)
    per_token = body_flops_per_token(shape, context=round(context)) + head_flops_per_token(shape)
    computing = tokens * per_token / place.parts / (gpu.flops * UTILISATION)
    # A sum is a reduction and a gathering.
    adding = 2 * 2 * ring_seconds(2 * rows * shape.hidden, place.parts, place.gpu)
    gathering = ring_seconds(2 * rows * shape.vocabulary, place.parts, place.gpu)
    layers = shape.layers * (LAYER_SECONDS["cuda"] + adding)
    decoding = max(reading, computing) + steps * (layers + gathering)
    answers, longest = groups * rollout.samples, lengths.longest_answer
    return max(decoding, collecting_seconds(answers, places=place.sampling, longest=longest))


def _rows(job: Job, place: Placement) -> int:
    """Completions in flight on one model."""
    completions = job.config.rollout.problems * job.config.rollout.samples
    own = math.ceil(completions / place.sampling)
    return min(own, answers_in_flight(job.config, job.lengths))


def _sampler_libraries(place: Placement) -> float:
    return FRAMEWORK_BYTES["cuda"] + 1e9 * (place.parts > 1)  # NCCL's buffers


def _sampled_bytes(job: Job, place: Placement) -> float:
    """Weights of a model that samples, or of a part of one, in bfloat16."""
    return 2.0 * parameter_count(part_of(job.shape, place.parts))


def _cache_bytes(job: Job, place: Placement) -> float:
    rows, vllm = _rows(job, place), job.config.rollout.sampler == "vllm"
    row = job.lengths.longest_prompt + job.lengths.longest_answer
    tokens = cached_tokens(job.config, job.shape) if vllm else rows * row
    keys = tokens * cache_bytes_per_token(part_of(job.shape, place.parts), bytes_per_number=2)
    return keys + 4 * 4 * rows * job.shape.vocabulary  # and the logits they are continued from


def root_and_layer(shape: ModelShape) -> tuple[float, float]:
    """Parameters of the two kinds of groups that are gathered: embedding and head, and a layer."""
    root = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    return root, (parameter_count(shape) - root) / shape.layers


def _head_bytes(shape: ModelShape, scored: int) -> float:
    rows, columns = HEAD_BLOCK
    kept = min(KEEP_BYTES, 4 * scored * shape.vocabulary)
    return kept + 8 * min(scored, rows) * min(shape.vocabulary, columns)


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
    "weights": "more learners, or set cluster.offload = true",
    "moments": "more learners, or set cluster.offload = true",
    "gradients": "more learners, or set cluster.offload = true",
    "passing": "more learners",
    "gathered": "take a larger GPU",
    "whole model": "cut it over GPUs (rollout.sampler = vllm, cluster.tensor_parallel = 2)",
    "part of a model": "raise cluster.tensor_parallel",
    "activations": "lower update.microbatch_tokens, or set model.checkpoint_activations = true",
    "head": "lower update.microbatch_tokens",
    "reference": "more learners, or set cluster.offload = true, or kl.knowledge = 0 and "
    "kl.reasoning = 0",
    "sampler": "give the samplers GPUs of their own (cluster.samplers)",
    "cache": "lower rollout.cache_tokens",
}
