"""What a recipe takes as processes on the CPUs of one machine: `engine = "cluster"` without a GPU.

The operations and bytes of one process (`archer.plan.estimate`), cut into as many shares as there
are learners or places that sample, and beside them what a cluster costs (`archer.plan.costs`).

Left out: machines beside this one, whose processes have cores of their own but a network between
them; and what is left out of one process's estimate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from archer.config import Config
from archer.model.shapes import parameter_count, part_of
from archer.plan.cluster import Load, Times, reading_bytes, root_and_layer
from archer.plan.costs import (
    CHECKSUM_RATE,
    GATHER_RATE,
    LAYER_SECONDS,
    PUBLISH_SECONDS,
    PUT_RATE,
    SCORE_SECONDS,
    TENSOR_SECONDS,
    UPDATE_SECONDS,
    collecting_seconds,
    dealing_seconds,
    tensor_count,
    told_seconds,
)
from archer.plan.estimate import (
    EFFICIENCY,
    OPTIMIZER_BYTES,
    Job,
    Memory,
    Speed,
    body_passes,
    estimate_memory,
    group_flops,
    learned_groups,
    pass_seconds,
    sampling_seconds,
    score_passes,
    scored_groups,
    update_flops,
)

LIBRARY_BYTES = {"loop": 520e6, "learner": 535e6, "sampler": 520e6}
"""Resident memory of a process before any weight: Python, torch, transformers and Ray; the loop has
the problems too, a learner torch.distributed. Measured on the tiny recipe with torch 2.13.0 (CPU)
and Ray 2.60, of which 0.18 GB are files that processes on one machine share."""

HEAP_BYTES = 32 << 20
"""glibc takes smaller buffers from its heap and keeps what is freed in its midst; larger ones it
always gives back (mallopt(3), M_MMAP_THRESHOLD and its upper limit)."""

DAEMON_BYTES = 0.4e9
"""Of Ray's own processes on a machine, what is shared counted once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """Processes of a run on one machine.

    Example, two learners and two samplers with one thread each on two cores:
        Processes(learners=2, samplers=2, threads=1, cores=2)
    """

    learners: int
    samplers: int
    threads: int
    """Of torch, in each."""
    cores: int
    by_turns: bool = False
    """Whether samplers wait while learners learn, and learners while they sample."""
    parts: int = 1
    """Samplers that have a model between them."""

    @property
    def places(self) -> int:
        """How many models sample."""
        return self.samplers // self.parts or self.learners

    def crowd(self, working: int) -> float:
        """How much slower each is while so many of them compute."""
        return max(1.0, working * self.threads / self.cores)


def processes_of(config: Config, cores: int) -> Processes:
    """Those of a recipe, with the threads that `archer.engine.cluster.session` gives them."""
    cluster = config.cluster
    learners, apart = cluster.learners, cluster.samplers * cluster.tensor_parallel
    shared = not apart and not config.learners_sample
    return Processes(
        learners=learners,
        samplers=learners if shared else apart,
        threads=config.model.threads or max(1, cores // (learners + apart)),
        cores=cores,
        by_turns=shared,
        parts=cluster.tensor_parallel,
    )


# ------------------------------------------------------------------ bytes


def process_loads(job: Job, processes: Processes) -> dict[str, Load]:
    """Peak memory of each kind of process, by part."""
    first = _learner_load(job, processes, reads=True)
    if processes.samplers:
        # Rank 0 puts the weights into shared memory, where they count as its own.
        first = Load(parts={**first.parts, "new weights": _published_bytes(job)})
    loads = {
        "loop": Load(parts={"libraries": LIBRARY_BYTES["loop"]}),
        "learner 0": first,
        "learner": _learner_load(job, processes, reads=False),
        "sampler": _sampler_load(job, processes),
    }
    return {who: loads[who] for who in counted(processes)}


def counted(processes: Processes) -> dict[str, int]:
    """How many there are of each kind of process; learner 0 does what the others need not."""
    counts = {"loop": 1, "learner 0": 1, "learner": processes.learners - 1}
    return {who: n for who, n in {**counts, "sampler": processes.samplers}.items() if n}


def together(loads: dict[str, Load], processes: Processes) -> float:
    """The sum over all processes, which is what `memory/all_gb` is in a run."""
    return sum(number * loads[who].peak for who, number in counted(processes).items())


def _learner_load(job: Job, processes: Processes, *, reads: bool) -> Load:
    """What a rank holds throughout, and the largest of what it does in turn.

    reads: whether it is rank 0, which reads the whole model, and copies it for a reference; the
    others are sent their shards a layer at a time, which takes less than learning does.
    """
    config, parameters, ranks = job.config, parameter_count(job.shape), processes.learners
    held = {
        "libraries": LIBRARY_BYTES["learner"],
        "weights": 4 * parameters / ranks,
        "Adam": 8 * parameters / ranks,
        "reference": 4 * parameters / ranks if config.kl.used else 0.0,
        "sampler": 0.0 if processes.samplers else float(job.itemsize * parameters),
    }
    learned = estimate_memory(_share(job, ranks, of=config.update.minibatch))
    update = 4 * parameters / ranks + _gathered_bytes(job) + learned.activations + learned.head
    reading = reading_bytes(job) if reads else 0.0
    turns = {
        "update": update,
        "reading": reading - sum(held.values()) + held["libraries"],
        "sampling": 0.0 if processes.samplers else _sampled(job, processes).cache,
    }
    turn = max(turns, key=turns.__getitem__)
    return Load(parts={**held, turn: turns[turn]})


def _gathered_bytes(job: Job) -> float:
    """What a pass makes whole: the root's weights, its gradient and a copy of that to be reduced.

    Of the layers two and one, where buffers are large; small ones are taken from the heap and stay
    there as holes, so that at last every layer's weights and gradients have had room of their own.
    """
    shape = job.shape
    root, layer = root_and_layer(shape)
    layers = shape.layers if 4 * layer < HEAP_BYTES else 2
    return (job.itemsize + 8) * root + layers * (job.itemsize + 4) * layer


def _published_bytes(job: Job) -> float:
    """Versions of the weights in shared memory: those still wanted, and the one that comes."""
    return float((job.config.rollout.ahead + 2) * job.itemsize * parameter_count(job.shape))


def _sampler_load(job: Job, processes: Processes) -> Load:
    """A model or a part of one, the cache of its share, and the versions that it has read."""
    own = part_of(job.shape, processes.parts)
    return Load(
        parts={
            "libraries": LIBRARY_BYTES["sampler"],
            "weights": float(job.itemsize * parameter_count(own)),
            "cache": _sampled(replace(job, shape=own), processes).cache,
            "new weights": _published_bytes(job),
        }
    )


def _sampled(job: Job, processes: Processes) -> Memory:
    return estimate_memory(_share(job, processes.places, of=job.config.rollout.problems))


def _share(job: Job, places: int, *, of: int) -> Job:
    """The part that one of so many places has of some problems, in as few of them as can be."""
    rollout = job.config.rollout
    problems = math.ceil(of / places)
    samples = math.ceil(of * rollout.samples / places / problems)
    part = rollout.model_copy(update={"problems": problems, "samples": samples})
    return replace(job, config=job.config.model_copy(update={"rollout": part}))


# ------------------------------------------------------------------ seconds


def process_times(job: Job, speed: Speed, processes: Processes) -> Times:
    """Seconds of a training step by part, with the speed of one process that has the machine."""
    pace, speed = speed.pace, speed.over_pace
    overlap = bool(job.config.rollout.ahead and processes.samplers and not processes.by_turns)
    everyone = processes.learners + processes.samplers
    learners = everyone if overlap else processes.learners
    samplers = everyone if overlap else processes.samplers or processes.learners
    slow, learning = pace * processes.crowd(learners), _shared(speed, processes, learners)
    sampling = _sampling_seconds(job, _shared(speed, processes, samplers), processes)
    return Times(
        sampling=pace * processes.crowd(samplers) * sampling,
        score=slow * score_passes(job.config) * _score_seconds(job, learning, processes),
        update=slow * job.config.update.passes * _update_seconds(job, learning, processes),
        weights=slow * _weights_seconds(job, learning, processes),
        overlap=overlap,
    )


def _shared(speed: Speed, processes: Processes, working: int) -> Speed:
    """The one memory is shared by those who compute at the same time."""
    return replace(speed, memory=speed.memory * processes.crowd(working) / working)


def _sampling_seconds(job: Job, speed: Speed, processes: Processes) -> float:
    """The share of one place; then all answers come to the loop."""
    rollout, places, longest = job.config.rollout, processes.places, job.lengths.longest_answer
    groups = rollout.problems / (job.teaching if rollout.filter == "refill" else 1)
    sampling = sampling_seconds(_share(job, places, of=rollout.problems), speed)
    collecting = collecting_seconds(groups * rollout.samples, places=places, longest=longest)
    return sampling / processes.parts + collecting


def _score_seconds(job: Job, speed: Speed, processes: Processes) -> float:
    """A forward pass over a rank's share, and the layers gathered for each of its micro-batches."""
    ranks, groups = processes.learners, scored_groups(job)
    computing = sum(group_flops(job)) * groups / ranks / (EFFICIENCY["score"] * speed.training)
    computing += pass_seconds(job, groups / ranks)
    rows = groups * job.config.rollout.samples
    passes = _passes(job, groups / ranks)
    layers = passes * (job.shape.layers + 1) * LAYER_SECONDS["score"]
    moving = passes * _moved_seconds(job, ranks)
    beside = SCORE_SECONDS + told_seconds(ranks) + dealing_seconds(rows, ranks)
    return beside + computing + layers + moving


def _update_seconds(job: Job, speed: Speed, processes: Processes) -> float:
    """All optimizer steps of one pass over a step's data."""
    config, ranks, groups = job.config, processes.learners, learned_groups(job)
    steps = math.ceil(groups / config.update.minibatch)
    computing = update_flops(job, groups) / ranks / (EFFICIENCY["update"] * speed.training)
    computing += body_passes(config) * pass_seconds(job, groups / ranks)
    # Weights are gathered for the forward and for the backward pass, gradients reduced once.
    passes = _passes(job, groups / steps / ranks)
    layers = passes * (job.shape.layers + 1) * LAYER_SECONDS["update"]
    moving = passes * 3 * _moved_seconds(job, ranks)
    stepping = OPTIMIZER_BYTES * parameter_count(job.shape) / ranks / speed.memory
    rows = groups / steps * config.rollout.samples
    beside = UPDATE_SECONDS + 2 * told_seconds(ranks) + dealing_seconds(rows, ranks)
    return computing + steps * (beside + layers + moving + stepping)


def _passes(job: Job, groups: float) -> int:
    """Micro-batches of a rank that has so many groups."""
    tokens = groups * (job.lengths.prompt + job.config.rollout.samples * job.lengths.answer)
    return max(1, math.ceil(tokens / job.config.update.microbatch_tokens))


def _moved_seconds(job: Job, ranks: int) -> float:
    """A whole model in float32 gathered or reduced; alone, a rank has it."""
    return 4 * parameter_count(job.shape) / GATHER_RATE if ranks > 1 else 0.0


def _weights_seconds(job: Job, speed: Speed, processes: Processes) -> float:
    """Made whole tensor by tensor; by rank 0 into the object store, and read from there."""
    version = job.itemsize * parameter_count(job.shape)
    seconds = PUBLISH_SECONDS + tensor_count(job.shape) * TENSOR_SECONDS
    seconds += _moved_seconds(job, processes.learners)
    if not processes.samplers:
        return seconds + 2 * version / speed.memory
    stored = version / CHECKSUM_RATE + version / PUT_RATE
    return seconds + stored + version / CHECKSUM_RATE + 2 * version / speed.memory
