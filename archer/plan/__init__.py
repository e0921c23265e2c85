"""`archer plan`: what a recipe would run, what that takes here, and what is missing for it.

The text is for a terminal of 80 columns. No weight is read; the arithmetic stands in `estimate`,
what is looked for on the machine in `missing`.
"""

from __future__ import annotations

import textwrap

import torch

from archer.config import Config
from archer.cores import num_cores
from archer.engine.local import resolve_device
from archer.model.shapes import ModelShape, parameter_count, part_of
from archer.plan.cluster import (
    GPUS,
    PER_MACHINE,
    Load,
    Placement,
    Times,
    gpu_job,
    learner_load,
    offloaded_bytes,
    reading_bytes,
    sampler_load,
    step_times,
    too_large,
)
from archer.plan.estimate import (
    EXPECTED_LENGTH,
    EXPECTED_TOKENS,
    Job,
    Lengths,
    Memory,
    Seconds,
    Speed,
    answers_in_flight,
    checkpoint_bytes,
    estimate_memory,
    estimate_seconds,
    largest_microbatch,
    measure_speed,
    score_passes,
    updates_per_step,
)
from archer.plan.missing import (
    Missing,
    find_shape,
    free_disk,
    free_memory,
    is_described,
    missing_device,
    missing_model,
    missing_room,
    missing_room_for_processes,
    missing_sinks,
    missing_sources,
)
from archer.plan.processes import (
    DAEMON_BYTES,
    process_loads,
    process_times,
    processes_of,
    together,
)
from archer.setup import Data, check_recipe, load_data, longest_answer, num_threads

WIDTH = 80

UNKNOWN_PROMPT_TOKENS = 256
"""Taken for a mean prompt where prompts cannot be read yet."""

Lines = list[tuple[str, str]]
"""Labels, and what is said of each."""


def plan(config: Config, *, gpus: int = 0, gpu: str = "h100") -> str:
    """The plan of a recipe, here or on `gpus` GPUs of a kind (`archer.plan.cluster.GPUS`).

    On GPUs all learn that the recipe gives no sampler, and what does not fit is refused. A recipe
    for a cluster is planned as processes on this machine's CPUs, or on as many GPUs as it has
    processes where this machine has GPUs.

    Raises ValueError for a recipe that is wrong: an unknown loss or knob, a model of a kind that is
    not served, malformed data, prompts that do not fit. What can be fetched or made is no error,
    it is listed as missing.
    """
    if gpu not in GPUS:
        raise ValueError(f"--gpu {gpu} is not known; known are {', '.join(GPUS)}")
    check_recipe(config)
    sources = missing_sources(config)
    missing = [*missing_model(config), *sources, *missing_sinks(config), *missing_device(config)]
    shape = find_shape(config)
    data = load_data(config) if is_described(config) and not sources else None
    lengths = expected_lengths(config, data)
    sections = [
        _section("What runs", _run_lines(config, lengths, data)),
        _section("What is on and off", _choice_lines(config, data)),
    ]
    if shape is None:
        sections.append(f"Nothing is known of {config.model.name}, so nothing is estimated.")
        return "\n\n".join([*sections, _missing(missing)])
    _check_context(config, shape)
    job = job_of(config, shape, lengths)
    if config.engine == "cluster" and job.device == "cuda":
        cluster = config.cluster
        gpus = gpus or cluster.learners + cluster.samplers * cluster.tensor_parallel
    if gpus:
        place = _placement(config, gpus, gpu)
        part_of(shape, place.parts)  # or a ValueError says why not
        lines = _gpu_lines(gpu_job(config, shape, lengths), place)
        sections.append(_section(f"On {gpus} {_plural('GPU', gpus)}", lines))
        return "\n\n".join([*sections, _missing(missing)])
    if config.engine == "cluster":
        here, lacking = _processes_here(job)
        return "\n\n".join([*sections, *here, _missing(missing + lacking)])
    memory, free = estimate_memory(job), free_memory(job.device)
    speed = measure_speed(job, threads=num_threads(config))
    missing += missing_room(job, memory, free=free, disk=free_disk())
    seconds, most = estimate_seconds(job, speed), estimate_seconds(job.at_most, speed)
    sections += [
        _section("The model", _model_lines(job)),
        _section("Memory, estimated", _memory_lines(job, memory, free)),
        _section("Time, estimated", _time_lines(job, seconds, most, speed)),
    ]
    return "\n\n".join([*sections, _missing(missing)])


def _check_context(config: Config, shape: ModelShape) -> None:
    """Prompts that can be read are checked with the data; this is for those that cannot yet."""
    answer, knob = longest_answer(config)
    if answer >= shape.max_positions:
        raise ValueError(
            f"completions of up to {answer} tokens do not fit into the context of "
            f"{config.model.name}, {shape.max_positions}: lower {knob}"
        )


def expected_lengths(config: Config, data: Data | None) -> Lengths:
    """Of the prompts as they are, or as the recipe limits them; of answers as is assumed."""
    limit = config.rollout.max_tokens
    longest = config.data.max_prompt_tokens
    mean = float(min(UNKNOWN_PROMPT_TOKENS, longest))
    if data is not None:
        sizes = [len(data.render(problem).token_ids) for problem in data.train]
        mean, longest = sum(sizes) / len(sizes), max(sizes)
    return Lengths(
        prompt=mean,
        longest_prompt=longest,
        answer=min(max(1.0, EXPECTED_LENGTH * limit), EXPECTED_TOKENS),
        longest_answer=limit,
    )


def job_of(config: Config, shape: ModelShape, lengths: Lengths) -> Job:
    """The job on this machine; one that wants an absent GPU is planned for the CPU."""
    cuda = torch.cuda.is_available() and resolve_device(config.model.device).type == "cuda"
    half = config.model.dtype == "bfloat16" or (config.model.dtype == "auto" and cuda)
    return Job(
        config=config,
        shape=shape,
        lengths=lengths,
        device="cuda" if cuda else "cpu",
        itemsize=2 if half else 4,
    )


# ------------------------------------------------------------------ what runs


def _run_lines(config: Config, lengths: Lengths, data: Data | None) -> Lines:
    rollout, update, steps = config.rollout, config.update, config.train.steps
    completions, updates = rollout.problems * rollout.samples, updates_per_step(config)
    # Groups that are dropped make fewer mini-batches, and one of uniform groups alone has no step.
    always = rollout.filter == "keep" and (config.kl.used or config.entropy.coefficient)
    up_to = "" if always else "up to "
    minibatch = min(update.minibatch, rollout.problems)
    passes = "once" if update.passes == 1 else f"{update.passes} times"
    warmup = f", after a rise over {update.warmup} steps" if update.warmup else ""
    return [
        (
            "a step",
            f"{rollout.problems} problems x {rollout.samples} samples = {completions:,} "
            f"completions of at most {rollout.max_tokens:,} tokens, at temperature "
            f"{rollout.temperature:g}",
        ),
        (
            "its update",
            f"mini-batches of {minibatch} problems, all gone through {passes}: "
            f"{up_to}{updates} optimizer {_plural('step', updates)}; forward passes over at most "
            f"{update.microbatch_tokens:,} tokens, which changes memory alone",
        ),
        (
            "the run",
            f"{steps:,} steps: {completions * steps:,} completions, {up_to}{updates * steps:,} "
            "optimizer steps",
        ),
        *_places(config),
        *_sampler(config),
        ("problems", _problems(config, lengths, data)),
        (
            "learning",
            f"loss {config.loss.name}, advantage {config.advantage.name}, "
            f"{AVERAGES[update.average]}; learning rate {update.learning_rate:g}, "
            f"{update.schedule}{warmup}",
        ),
    ]


def _places(config: Config) -> Lines:
    if config.engine == "local":
        return []
    return [("processes", _who(config, config.cluster.learners))]


def _who(config: Config, learners: int) -> str:
    """Who learns and who samples, with so many learners."""
    samplers, parts = config.cluster.samplers, config.cluster.tensor_parallel
    learning = f"{learners} {_plural('learner', learners)}"
    if config.learners_sample:
        return f"{learning} that sample{'s' * (learners == 1)} too, by turns"
    models = samplers or learners // parts
    sampling = f"{models} {_plural('sampler', models)}"
    sampling += f" over {parts} processes each" * (parts > 1)
    return f"{learning}, {sampling} " + ("apart" if samplers else "in the same places, by turns")


def _sampler(config: Config) -> Lines:
    if config.rollout.sampler == "own":
        return []
    return [
        (
            "sampler",
            "vLLM, with a copy of the weights; the time below is that of archer's own sampler",
        )
    ]


AVERAGES = {
    "token": "averaged over tokens",
    "sequence": "averaged over answers, each its own mean",
    "constant": "each answer's sum over a constant",
}


def _problems(config: Config, lengths: Lengths, data: Data | None) -> str:
    if data is None:
        return "not counted yet, see what is missing"
    drawn, size = config.train.steps * config.rollout.problems, len(data.train)
    often = f"{drawn:,} of them drawn" if drawn < size else f"each drawn {drawn / size:.1f} times"
    return (
        f"{size:,} to learn from, {often}, and {len(data.evaluate):,} to be judged by; prompts of "
        f"{lengths.prompt:.0f} tokens on average, {lengths.longest_prompt} at most"
    )


def _choice_lines(config: Config, data: Data | None) -> Lines:
    return [
        ("KL", _kl(config)),
        ("entropy bonus", _entropy(config)),
        ("uniform groups", FILTERS[config.rollout.filter]),
        ("long answers", _overlong(config)),
        ("mismatch", _mismatch(config)),
        ("old log-probs", _old_logp(config)),
        ("evaluation", _evaluation(config, data)),
    ]


FILTERS = {
    "keep": "kept, they count in the averages",
    "drop": "dropped, a step learns from fewer",
    "refill": "replaced by others until enough teach",
}


def _kl(config: Config) -> str:
    kl = config.kl
    if not kl.used:
        return "off, no reference model is held"
    if kl.knowledge == kl.reasoning:
        return f"on, {kl.knowledge:g} on all tokens ({kl.estimator}); a reference model is held"
    return (
        f"on, {kl.knowledge:g} on tokens of low entropy, {kl.reasoning:g} on those of high entropy "
        f"({kl.estimator}, parted at quantile {kl.quantile:g}); a reference model is held"
    )


def _entropy(config: Config) -> str:
    entropy = config.entropy
    if entropy.target is not None:
        return f"on, from {entropy.coefficient:g}, moved to hold {entropy.target:g} nats"
    return f"on, {entropy.coefficient:g}" if entropy.coefficient else "off"


def _overlong(config: Config) -> str:
    overlong = config.rollout.overlong
    penalty = "no penalty"
    if overlong.buffer:
        penalty = f"penalty up to {overlong.penalty:g} over the last {overlong.buffer} tokens"
    return f"{penalty}; cut ones {'do not count' if overlong.mask else 'count'}"


def _mismatch(config: Config) -> str:
    mismatch = config.mismatch
    if mismatch.kind == "none":
        return "not corrected, the sampler is taken for the learner"
    bounds = f"[{mismatch.low:g}, {mismatch.high:g}]"
    return f"corrected, {mismatch.kind} by {mismatch.level} with ratios in {bounds}"


def _old_logp(config: Config) -> str:
    if config.update.old_logp == "sampler":
        return "the sampler's, no pass of the learner"
    if score_passes(config) > int(config.kl.used):
        return "from a pass of the learner"
    return "none needed, a step is one update"


def _evaluation(config: Config, data: Data | None) -> str:
    if not config.data.evaluate:
        return "none, no problems are set apart"
    problems = "the problems" if data is None else f"{len(data.evaluate):,} problems"
    every = f", every {config.eval.every} steps" if config.eval.every else ""
    return f"{problems} x {config.eval.samples}, before the first step{every} and after the last"


# ------------------------------------------------------------------ what it takes


def _model_lines(job: Job) -> Lines:
    config, shape = job.config, job.shape
    numbers = "float32" if job.itemsize == 4 else "bfloat16"
    threads = num_threads(config)
    where = f", on the CPU with {threads} {_plural('thread', threads)}"
    if config.engine == "cluster":
        where = ""  # told of each process
    elif job.device == "cuda":
        where = ", on one GPU"
    return [
        (
            config.model.name,
            f"{parameter_count(shape) / 1e6:,.1f} million parameters in {shape.layers} layers, "
            f"{numbers}{where}",
        ),
        (
            "checkpoints",
            f"every {config.checkpoint.every} steps, {_size(checkpoint_bytes(shape))} each, at "
            f"most {config.checkpoint.keep + 1} kept",
        ),
    ]


def _memory_lines(job: Job, memory: Memory, free: float) -> Lines:
    parts = {
        "weights": memory.weights + memory.masters,
        "Adam": memory.moments,
        "reference": memory.reference,
        "libraries": memory.framework,
    }
    held = ", ".join(f"{name} {_size(part)}" for name, part in parts.items() if part)
    micro = largest_microbatch(job.config, job.lengths)
    in_flight = answers_in_flight(job.config, job.lengths)
    lines = [
        ("held", f"{_size(memory.held)}: {held}"),
        (
            "sampling",
            f"+ {_size(memory.cache)}: cache and logits of {in_flight:,} answers in flight",
        ),
        (
            "update",
            f"+ {_size(memory.update)}: gradients {_size(memory.gradients)}, activations of "
            f"{micro.rows:,} tokens {_size(memory.activations)}, head {_size(memory.head)}",
        ),
        ("saving", f"+ {_size(memory.saving)}: a checkpoint on its way to the disk"),
        ("peak", f"{_size(memory.peak)}, of {_size(free)} that are free"),
    ]
    return [line for line in lines if line[0] != "saving" or memory.saving]


def _time_lines(job: Job, seconds: Seconds, most: Seconds, speed: Speed) -> Lines:
    steps = job.config.train.steps
    return [
        ("sampling", _duration(seconds.sampling)),
        ("score", _duration(seconds.score) if seconds.score else "no pass needed"),
        ("update", _duration(seconds.update)),
        (
            "a step",
            f"{_duration(seconds.step)} if answers take {job.lengths.answer:,.0f} tokens and "
            f"{job.teaching:.0%} of the groups teach, {_duration(most.step)} at most",
        ),
        ("the run", f"{_duration(seconds.step * steps)} and its evaluations"),
        ("measured now", _measured(speed)),
    ]


def _measured(speed: Speed) -> str:
    return (
        f"{_number(speed.training / 1e9)} GFLOP/s for training, "
        f"{_number(speed.decoding / 1e9)} for sampling, memory {_number(speed.memory / 1e9)} GB/s, "
        f"small calls take {speed.pace:.1f} x the usual"
    )


def _processes_here(job: Job) -> tuple[list[str], list[Missing]]:
    """Sections on the processes of a cluster on this machine's CPUs, and what they lack."""
    processes = processes_of(job.config, num_cores())
    loads, free = process_loads(job, processes), free_memory(job.device)
    needed = together(loads, processes) + DAEMON_BYTES
    speed = measure_speed(job, threads=processes.threads)
    times, most = (process_times(j, speed, processes) for j in (job, job.at_most))
    threads = f"{processes.threads} {_plural('thread', processes.threads)}"
    memory = [
        (
            "places",
            f"{_who(job.config, processes.learners)}, with {threads} each, and the loop, "
            f"all on this machine of {processes.cores} {_plural('core', processes.cores)}",
        ),
        *_load_lines(loads),
        (
            "together",
            f"{_size(needed)} with {_size(DAEMON_BYTES)} of Ray's own, of {_size(free)} that are "
            "free; without judging",
        ),
    ]
    time = [*_cluster_time_lines(job, times, most), ("measured now", _measured(speed))]
    sections = [
        _section("The model", _model_lines(job)),
        _section("Who is where, with peak memory", memory),
        _section("Time, estimated", time),
    ]
    lacking = missing_room_for_processes(job, needed, free=free, disk=free_disk())
    return sections, lacking


def _load_lines(loads: dict[str, Load]) -> Lines:
    return [
        (
            {"loop": "the loop", "learner 0": "learner 0"}.get(who, f"a {who}"),
            f"{_size(load.peak)}: "
            + ", ".join(f"{part} {_size(size)}" for part, size in load.parts.items() if size),
        )
        for who, load in loads.items()
    ]


def _cluster_time_lines(job: Job, times: Times, most: Times) -> Lines:
    beside = ", sampling beside learning" if times.overlap else ""
    return [
        ("sampling", _duration(times.sampling)),
        ("score", _duration(times.score) if times.score else "no pass needed"),
        ("update", _duration(times.update)),
        ("weights", f"{_duration(times.weights)} to hand them to those who sample"),
        (
            "a step",
            f"{_duration(times.step)} if answers take {job.lengths.answer:,.0f} tokens and "
            f"{job.teaching:.0%} of the groups teach, {_duration(most.step)} at most{beside}",
        ),
        ("the run", f"{_duration(times.step * job.config.train.steps)} and its evaluations"),
    ]


def _placement(config: Config, gpus: int, gpu: str) -> Placement:
    samplers, parts = config.cluster.samplers, config.cluster.tensor_parallel
    if gpus < 0:
        raise ValueError(f"--gpus {gpus} is no number of GPUs; give 1 or more")
    learners = gpus - samplers * parts
    if learners < 1:
        over = f" over {parts} GPUs each" * (parts > 1)
        raise ValueError(
            f"--gpus {gpus} leaves none to learn beside cluster.samplers = {samplers}{over}: give "
            "more GPUs, or lower cluster.samplers"
        )
    if samplers and parts > PER_MACHINE:
        raise ValueError(
            f"cluster.tensor_parallel = {parts} is more than the {PER_MACHINE} GPUs of a machine: "
            "lower it, or set cluster.samplers = 0"
        )
    if not samplers and learners % parts:
        raise ValueError(
            f"--gpus {gpus} is no multiple of cluster.tensor_parallel = {parts}: by turns, models "
            "that sample are cut over the learners' GPUs"
        )
    return Placement(gpu=gpu, learners=learners, samplers=samplers, parts=parts)


def _gpu_lines(job: Job, place: Placement) -> Lines:
    """Who is where, memory by part, and seconds; ValueError for what does not fit."""
    loads = {"learner": learner_load(job, place)}
    if place.samplers:
        loads["sampler"] = sampler_load(job, place)
    for who, load in loads.items():
        if fault := too_large(load, place.gpu):
            raise ValueError(
                f"{job.config.model.name} on {place.gpu}: each {who} does not fit: {fault}"
            )
    times, most = step_times(job, place), step_times(job.at_most, place)
    machines = f"{place.machines} {_plural('machine', place.machines)}"
    sequences = round(job.config.update.minibatch * job.config.rollout.samples)
    lines = [
        (
            "places",
            f"{_who(job.config, place.learners)}, on {machines} ({place.gpu}, "
            f"{_size(GPUS[place.gpu].memory)} each)",
        ),
        *_load_lines(loads),
        (
            "loading",
            f"{_size(reading_bytes(job))} of the memory of the machine with the first learner",
        ),
        *_offloaded(job, place),
        *_cluster_time_lines(job, times, most),
        ("to run it", f"archer train RECIPE engine=cluster cluster.learners={place.learners}"),
        ("taken for known", "a written cost model (docs/scale.md), not measured on such GPUs"),
    ]
    if sequences < place.learners:
        lines.append(
            ("too many", f"an optimizer step has {sequences:,} answers, so other learners idle")
        )
    return lines


def _offloaded(job: Job, place: Placement) -> Lines:
    kept, most = offloaded_bytes(job, place)
    if not kept:
        return []
    learners = min(place.learners, PER_MACHINE)
    what = "masters, moments, gradients and reference"
    if not job.config.kl.used:
        what = "masters, moments and gradients"
    machine = "the machine" if place.machines == 1 else "a machine"
    return [
        (
            "offloaded",
            f"{_size(kept)} of the memory of {machine}: {what} of {learners} "
            f"{_plural('learner', learners)}; {_size(most)} at most, as pinned memory is given out "
            "in powers of two",
        )
    ]


# ------------------------------------------------------------------ as text


def _section(title: str, lines: Lines) -> str:
    width = max(len(label) for label, _ in lines if len(label) <= 16) + 4
    rows = [title]
    for label, text in lines:
        first, rest = f"  {label}".ljust(width), " " * width
        if len(label) > 16:
            rows.append(f"  {label}")
            first = rest
        rows += textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest)
    return "\n".join(rows).replace(NO_BREAK, " ")


NO_BREAK = "\N{NO-BREAK SPACE}"
"""Holds a number and its unit together while lines are broken."""


def _missing(missing: list[Missing]) -> str:
    if not missing:
        return "What is missing: nothing"
    rows = ["What is missing, and the cure"]
    for fact, cure in missing:
        # A path or a name that is broken at its hyphens could not be copied.
        rows += textwrap.wrap(
            f"- {fact}: {cure}", WIDTH, subsequent_indent="  ", break_on_hyphens=False
        )
    return "\n".join(rows)


def _size(number: float) -> str:
    """Bytes as GB (10^9) or MB, with three digits at most."""
    if number < 0.9995e9:
        return (
            f"{number / 1e6:.0f}{NO_BREAK}MB"
            if number >= 9.95e6
            else f"{number / 1e6:.1f}{NO_BREAK}MB"
        )
    digits = 2 if number < 9.995e9 else 1 if number < 99.95e9 else 0
    return f"{number / 1e9:,.{digits}f}{NO_BREAK}GB"


def _number(number: float) -> str:
    return f"{number:,.0f}" if number >= 99.5 else f"{number:.2g}"


def _plural(word: str, number: int) -> str:
    return word if number == 1 else f"{word}s"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f}{NO_BREAK}{unit}"
    return f"{seconds:.1f}{NO_BREAK}s" if seconds >= 1 else f"{seconds * 1000:.0f}{NO_BREAK}ms"
