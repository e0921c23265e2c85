"""`archer plan`: what a recipe would run, what that takes here, and what is missing for it.

No weight is read. The estimates are arithmetic on the model's shape and the recipe's batch sizes,
and on two speeds of this machine that take a fraction of a second to measure. What a run will do
with its sizes, such as how long answers get and how many groups teach, is not known beforehand: the
assumptions are constants below, and the text says them.

Left out of the time: loading, evaluation, judging that outlasts sampling, writing checkpoints.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
import statistics
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from archer.config import Config
from archer.model.convert import CHECKSUMS, cache_folder
from archer.model.load import load_config
from archer.model.logprobs import BLOCK_BYTES, KEEP_BYTES
from archer.model.shapes import (
    ModelShape,
    body_flops_per_token,
    cache_bytes_per_token,
    head_flops_per_token,
    known_shape,
    parameter_count,
    shape_of,
)
from archer.setup import Data, check_recipe, load_data, num_threads

WIDTH = 80

SMOLLM2_FOLDER = "SmolLM2-135M-Instruct"
"""Of the quickstart's model, in the cache."""

UNKNOWN_PROMPT_TOKENS = 256
"""Taken for the mean prompt where prompts cannot be read yet."""

EXPECTED_LENGTH = 0.75
"""Share of `rollout.max_tokens` that a mean answer is taken to have."""

EXPECTED_TEACHING = 0.5
"""Share of groups taken to be neither all right nor all wrong."""

FRAMEWORK_BYTES = {"cpu": 400e6, "cuda": 600e6}
"""Held by the process before any weight: on the CPU Python, torch and transformers as resident
memory (measured, torch 2.13), on CUDA what the libraries' workspaces take of the allocator."""

ALLOCATOR_SHARE = 0.05
"""What the allocator holds beside what is in use, of the peak."""

EFFICIENCY = {"sampling": 0.6, "score": 0.7, "update": 0.7}
"""Share of the measured speed of one matrix product that a whole forward (and backward) reaches;
the rest goes to norms, attention, activations and traffic between them."""

LAYER_SECONDS = {"cpu": 200e-6, "cuda": 300e-6}
"""Time that one layer of one forward pass takes however small it is: some thirty calls to torch."""

NORM_BYTES = {4: 24, 2: 16}
"""Kept for the backward pass of a layer, per token and hidden unit, by bytes of a number: two RMS
norms keep input, normalised input and output; transformers computes them in float32."""


# ------------------------------------------------------------------ records


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """The arithmetic of a step.

    Example, 8 problems x 8 samples, mini-batches of 3 problems, 2 passes, 30 steps:
        Batches(completions=64, updates=6, total_updates=180, total_completions=1920)
    """

    completions: int
    updates: int
    """Optimizer steps of a training step in which every group teaches."""
    total_updates: int
    total_completions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens of prompts and answers.

    Example, prompts of 40 to 63 tokens, answers of at most 24 that are taken to have 18:
        Lengths(prompt=47.0, longest_prompt=63, answer=18.0, longest_answer=24)
    """

    prompt: float
    longest_prompt: int
    answer: float
    longest_answer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What this machine does, as measured.

    Example, two CPU cores:
        Speed(training=2.1e11, decoding=1.4e11, memory=1.5e10)
    """

    training: float
    """Floating-point operations a second in a product of a micro-batch with a weight matrix."""
    decoding: float
    """The same with one row for each answer in flight."""
    memory: float
    """Bytes a second that are read or written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes by part. What a step holds throughout, and what sampling, update and saving add."""

    framework: float
    weights: float
    """In the type that the model computes in."""
    masters: float
    """Float32 masters, where the model computes in another type."""
    moments: float
    """Adam's two."""
    reference: float
    cache: float
    """Keys and values of the answers in flight, and the logits that the next tokens are drawn
    from."""
    gradients: float
    activations: float
    """Of the largest micro-batch."""
    head: float
    """Logits held for the backward pass, two blocks, and a gradient of the head on its way."""
    saving: float
    """A copy of what a checkpoint writes at a time."""
    allocator: float

    @property
    def held(self) -> float:
        return self.framework + self.weights + self.masters + self.moments + self.reference

    @property
    def peak(self) -> float:
        update = self.gradients + self.activations + self.head
        return self.held + max(self.cache, update, self.saving) + self.allocator


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Of one training step, by part."""

    sampling: float
    score: float
    update: float

    @property
    def step(self) -> float:
        return self.sampling + self.score + self.update


class Missing(NamedTuple):
    """What a run would lack, and what to do about it."""

    fact: str
    cure: str


# ------------------------------------------------------------------ the plan


def plan(config: Config) -> str:
    """The plan of a recipe as text of at most 80 columns.

    Raises ValueError for a recipe that is wrong: an unknown loss or knob, a model of a kind that is
    not served, malformed data, prompts that do not fit. What can be fetched or made is no error,
    it is listed as missing.
    """
    check_recipe(config)
    sources = missing_sources(config)
    missing = [*missing_model(config), *sources, *missing_sinks(config)]
    readable = is_described(config) and not sources
    data = load_data(config) if readable else None
    lengths = expected_lengths(config, data)
    batches = count_batches(config)
    shape = find_shape(config)
    sections = [
        _section("What runs", _the_run(config, batches, lengths, data)),
        _section("What is on and off", _on_and_off(config, data)),
    ]
    if shape is None:
        sections.append(f"The model {config.model.name} is not known: no estimates")
    else:
        more, room = _estimates(config, shape, lengths)
        sections += more
        missing += room
    return "\n\n".join([*sections, _missing(missing)])


def _estimates(
    config: Config, shape: ModelShape, lengths: Lengths
) -> tuple[list[str], list[Missing]]:
    """The sections on model, memory and time, and what this machine lacks for them."""
    device, itemsize = place(config)
    micro, in_flight = largest_microbatch(config, lengths), answers_in_flight(config, lengths)
    memory = estimate_memory(shape, config, lengths, device=device, itemsize=itemsize)
    speed = measure_speed(
        shape,
        training_rows=micro.rows,
        decoding_rows=in_flight,
        device=device,
        dtype=torch.float32 if itemsize == 4 else torch.bfloat16,
        threads=num_threads(config),
    )
    whole = replace(lengths, answer=float(lengths.longest_answer))
    expected = estimate_seconds(shape, config, lengths, speed, device=device, itemsize=itemsize)
    most = estimate_seconds(
        shape, config, whole, speed, device=device, itemsize=itemsize, teaching=1.0
    )
    sections = [
        _section("The model", _the_model(config, shape, device, itemsize)),
        _section("Memory, in GB", _memory(memory, free_memory(device), micro, in_flight)),
        _section("Time, estimated", _time(config, expected, most, speed, lengths)),
    ]
    return sections, missing_room(config, shape, memory, device)


# ------------------------------------------------------------------ sizes of a step


def count_batches(config: Config) -> Batches:
    """Completions and optimizer steps of a training step, and of the run."""
    rollout, update = config.rollout, config.update
    completions = rollout.problems * rollout.samples
    updates = math.ceil(rollout.problems / update.minibatch) * update.passes
    return Batches(
        completions=completions,
        updates=updates,
        total_updates=updates * config.train.steps,
        total_completions=completions * config.train.steps,
    )


def expected_lengths(config: Config, data: Data | None) -> Lengths:
    """Of the prompts as they are, or as the recipe limits them; of answers as assumed above."""
    limit = config.rollout.max_tokens
    answer = max(1.0, EXPECTED_LENGTH * limit)
    if data is None:
        longest = config.data.max_prompt_tokens
        mean = float(min(UNKNOWN_PROMPT_TOKENS, longest))
    else:
        sizes = [len(data.render(problem).token_ids) for problem in data.train]
        mean, longest = sum(sizes) / len(sizes), max(sizes)
    return Lengths(prompt=mean, longest_prompt=longest, answer=answer, longest_answer=limit)


def answers_in_flight(config: Config, lengths: Lengths) -> int:
    """Rows that the sampler decodes together: each takes its full length of the cache."""
    row = lengths.longest_prompt + lengths.longest_answer
    completions = config.rollout.problems * config.rollout.samples
    return max(1, min(completions, config.rollout.cache_tokens // row))


class Micro(NamedTuple):
    """A micro-batch: rows of the model's forward pass, tokens scored, and tokens in attention,
    where every sequence has its prompt for itself."""

    rows: int
    scored: int
    attended: int


def largest_microbatch(config: Config, lengths: Lengths) -> Micro:
    """As many of the longest sequences as `update.microbatch_tokens` admits, and at least one.

    A prompt is counted once for the answers that share it; the last token of an answer is scored
    but is no input.
    """
    samples, limit = config.rollout.samples, config.update.microbatch_tokens
    prompt, answer = lengths.longest_prompt, lengths.longest_answer
    most = min(config.update.minibatch, config.rollout.problems) * samples

    def cost(sequences: int) -> int:
        return math.ceil(sequences / samples) * prompt + sequences * answer

    fitting = [n for n in range(1, most + 1) if cost(n) <= limit]
    n = fitting[-1] if fitting else 1
    return Micro(rows=cost(n) - n, scored=n * answer, attended=n * (prompt + answer - 1))


# ------------------------------------------------------------------ memory


def estimate_memory(
    shape: ModelShape, config: Config, lengths: Lengths, *, device: str, itemsize: int
) -> Memory:
    """Bytes by part of a run on "cpu" or "cuda", in numbers of `itemsize` bytes (4 or 2)."""
    parameters = parameter_count(shape)
    vocabulary_weights = shape.vocabulary * shape.hidden
    micro = largest_microbatch(config, lengths)
    rows = answers_in_flight(config, lengths)
    longest = lengths.longest_prompt + lengths.longest_answer
    cache = rows * longest * cache_bytes_per_token(shape, bytes_per_number=itemsize)
    # The logits of a decoding step, and their probabilities, shifted copy and running sums.
    cache += 4 * rows * shape.vocabulary * 4
    logits = min(KEEP_BYTES, micro.scored * shape.vocabulary * 4)
    # Shared weights get a second gradient from the embedding before both are added up.
    on_their_way = (2 if shape.tied else 1) * vocabulary_weights * itemsize
    memory = Memory(
        framework=FRAMEWORK_BYTES[device],
        weights=parameters * itemsize,
        masters=0 if itemsize == 4 else 4 * parameters,
        moments=8 * parameters,
        reference=parameters * itemsize if config.kl.used else 0,
        cache=cache,
        gradients=4 * parameters + (0 if itemsize == 4 else itemsize * parameters),
        activations=_activation_bytes(shape, config, micro, itemsize),
        head=logits + 2 * BLOCK_BYTES[device] + on_their_way,
        saving=8 * parameters if device == "cpu" else 0,
        allocator=0,
    )
    return replace(memory, allocator=ALLOCATOR_SHARE * memory.peak)


def _activation_bytes(shape: ModelShape, config: Config, micro: Micro, itemsize: int) -> float:
    """Kept from the forward pass for the backward pass, plus a layer's gradients in the making."""
    query, key_value = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    per_row = NORM_BYTES[itemsize] * shape.hidden
    per_row += itemsize * (4 * shape.intermediate + query)
    if shape.head_norms:
        per_row += 8 * (query + key_value)
    layer = micro.rows * per_row + micro.attended * 2 * itemsize * (query + key_value)
    if not config.model.checkpoint_activations:
        return shape.layers * layer
    # Only the input of each layer is kept; one layer at a time is computed anew.
    return shape.layers * micro.rows * shape.hidden * itemsize + 2 * layer


# ------------------------------------------------------------------ time


def estimate_seconds(
    shape: ModelShape,
    config: Config,
    lengths: Lengths,
    speed: Speed,
    *,
    device: str,
    itemsize: int,
    teaching: float = EXPECTED_TEACHING,
) -> Seconds:
    """Seconds of a training step by part; `teaching` is the share of groups that teach."""
    return Seconds(
        sampling=_sampling_seconds(shape, config, lengths, speed, device, itemsize, teaching),
        score=_score_seconds(shape, config, lengths, speed, device, teaching),
        update=_update_seconds(shape, config, lengths, speed, device, teaching),
    )


def _sampling_seconds(
    shape: ModelShape,
    config: Config,
    lengths: Lengths,
    speed: Speed,
    device: str,
    itemsize: int,
    teaching: float,
) -> float:
    """A decoding step is bound by its operations or by what it reads: weights, keys and values."""
    rollout = config.rollout
    draws = 1 / teaching if rollout.filter == "refill" else 1.0
    tokens = draws * rollout.problems * rollout.samples * lengths.answer
    context = lengths.prompt + lengths.answer / 2
    steps = max(lengths.longest_answer, tokens / answers_in_flight(config, lengths))
    flops = tokens * (_body(shape, context) + head_flops_per_token(shape))
    flops += draws * rollout.problems * lengths.prompt * _body(shape, lengths.prompt / 2)
    read = steps * parameter_count(shape) * itemsize
    read += tokens * context * cache_bytes_per_token(shape, bytes_per_number=itemsize)
    bound = max(flops / (EFFICIENCY["sampling"] * speed.decoding), read / speed.memory)
    return bound + steps * shape.layers * LAYER_SECONDS[device]


def _score_seconds(
    shape: ModelShape,
    config: Config,
    lengths: Lengths,
    speed: Speed,
    device: str,
    teaching: float,
) -> float:
    passes = score_passes(config)
    groups = config.rollout.problems * (teaching if config.rollout.filter == "drop" else 1.0)
    body, head = _group_flops(shape, config, lengths)
    seconds = groups * (body + head) / (EFFICIENCY["score"] * speed.training)
    return passes * (seconds + _layer_seconds(shape, config, lengths, groups, device))


def _update_seconds(
    shape: ModelShape,
    config: Config,
    lengths: Lengths,
    speed: Speed,
    device: str,
    teaching: float,
) -> float:
    """A backward pass costs two forward passes; what was not kept is computed once more."""
    uniform_cost_nothing = not config.kl.used and not config.entropy.coefficient
    skipped = config.rollout.filter == "drop" or (
        config.rollout.filter == "keep" and uniform_cost_nothing
    )
    groups = config.rollout.problems * (teaching if skipped else 1.0)
    body, head = _group_flops(shape, config, lengths)
    again = 1 if config.model.checkpoint_activations else 0
    logits = largest_microbatch(config, lengths).scored * shape.vocabulary * 4
    head_again = 1 - min(1.0, KEEP_BYTES / logits)
    flops = groups * ((3 + again) * body + (3 + head_again) * head)
    seconds = flops / (EFFICIENCY["update"] * speed.training)
    seconds += (3 + again) * _layer_seconds(shape, config, lengths, groups, device)
    # Clipping reads the gradient twice and writes it; Adam reads four numbers and writes three.
    optimizer = 40 * parameter_count(shape) / speed.memory
    cuts = math.ceil(groups / config.update.minibatch)
    return config.update.passes * (seconds + cuts * optimizer)


def score_passes(config: Config) -> int:
    """Forward passes over a step's data before its update: old log-probs, reference log-probs."""
    several = count_batches(config).updates > 1
    old = config.update.old_logp == "score" and (several or config.mismatch.kind != "none")
    return int(old) + int(config.kl.used)


def _group_flops(shape: ModelShape, config: Config, lengths: Lengths) -> tuple[float, float]:
    """Of one forward pass over a group, its prompt computed once: layers, and head."""
    answers = config.rollout.samples * lengths.answer
    body = (lengths.prompt + answers) * _body(shape, lengths.prompt + lengths.answer / 2)
    return body, answers * head_flops_per_token(shape)


def _layer_seconds(
    shape: ModelShape, config: Config, lengths: Lengths, groups: float, device: str
) -> float:
    tokens = groups * (lengths.prompt + config.rollout.samples * lengths.answer)
    passes = max(
        math.ceil(groups / config.update.minibatch),
        math.ceil(tokens / config.update.microbatch_tokens),
    )
    return passes * shape.layers * LAYER_SECONDS[device]


def _body(shape: ModelShape, context: float) -> int:
    return body_flops_per_token(shape, context=round(context))


def measure_speed(
    shape: ModelShape,
    *,
    training_rows: int,
    decoding_rows: int,
    device: str,
    dtype: torch.dtype,
    threads: int,
) -> Speed:
    """Times products with one of the model's own matrices, and a copy, for 0.1 s each."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        matrix = torch.ones(shape.intermediate, shape.hidden, dtype=dtype, device=device)

        def product(rows: int) -> float:
            hidden = torch.ones(rows, shape.hidden, dtype=dtype, device=device)
            seconds = _median_seconds(lambda: hidden @ matrix.t(), device)
            return 2 * rows * matrix.numel() / seconds

        block = torch.zeros(16 << 20, device=device)
        target = torch.empty_like(block)
        copied = 2 * block.nbytes / _median_seconds(lambda: target.copy_(block), device)
        return Speed(
            training=product(training_rows), decoding=product(decoding_rows), memory=copied
        )
    finally:
        torch.set_num_threads(before)


def _median_seconds(work: Callable[[], object], device: str, *, budget: float = 0.1) -> float:
    def once() -> float:
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()  # the first call sets things up
    taken = [once()]
    while sum(taken) < budget:
        taken.append(once())
    return statistics.median(taken)


# ------------------------------------------------------------------ what is here


def is_described(config: Config) -> bool:
    """Whether config and tokenizer of the model are on this machine, or made on the spot."""
    return _has_files(config, "config.json", "tokenizer_config.json")


def has_weights(config: Config) -> bool:
    """Whether the model's weights are on this machine, or made on the spot."""
    return any(_has_files(config, file) for file in WEIGHT_FILES)


WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def _has_files(config: Config, *files: str) -> bool:
    name, revision = config.model.name, config.model.revision
    if name == "tiny":
        return True
    if name == "smollm2":
        return (cache_folder() / SMOLLM2_FOLDER / CHECKSUMS).is_file()
    path = Path(name).expanduser()
    if name.endswith(".gguf"):
        return path.is_file()
    if path.is_dir():
        return all((path / file).is_file() for file in files)
    try:
        found = [try_to_load_from_cache(name, file, revision=revision) for file in files]
    except HFValidationError:  # a path, and nothing is there
        return False
    return all(isinstance(place, str) for place in found)


def find_shape(config: Config) -> ModelShape | None:
    """From the model's own config if it is here, from the table of known shapes, from the hub.

    None if there is neither. ValueError for a model that is here and of a kind that is not served.
    """
    name, revision = config.model.name, config.model.revision
    if is_described(config):
        return shape_of(load_config(name, revision=revision))
    if known := known_shape(name):
        return known
    try:
        return shape_of(load_config(name, revision=revision))
    except ValueError:
        return None


def missing_model(config: Config) -> list[Missing]:
    """The model, if its weights are not here."""
    name = config.model.name
    if has_weights(config):
        return []
    if name == "smollm2":
        return [
            Missing("the model smollm2 is not on this machine", "the first run fetches it, 92 MB")
        ]
    if name.endswith(".gguf") or name.count("/") > 1 or name.startswith((".", "/", "~")):
        return [Missing(f"there is no model at {name}", "correct the path, or give a hub name")]
    shape = known_shape(name)
    size = f", {_gb(2 * parameter_count(shape))} GB in bfloat16" if shape else ""
    cure = f"hf download {name}; or the first run fetches it{size}"
    return [Missing(f"the weights of {name} are not on this machine", cure)]


def missing_sources(config: Config) -> list[Missing]:
    """Problem files and task libraries that the recipe names and this machine does not have."""
    found = []
    for source in (*config.data.train, *config.data.evaluate):
        name, _, detail = source.source.partition(":")
        if name == "reasoning_gym" and importlib.util.find_spec("reasoning_gym") is None:
            cure = 'pip install "archer-rl[tasks]"'
            found.append(Missing("the package reasoning-gym is not installed", cure))
        if name == "gsm8k" and not Path(detail).is_file():
            cure = "get it from github.com/openai/grade-school-math"
            found.append(Missing(f"the file {detail} is not here", cure))
        if (
            source.source.endswith(".jsonl")
            and name != "gsm8k"
            and not Path(source.source).is_file()
        ):
            cure = f"archer prepare RAW_DATA --out {source.source}"
            found.append(Missing(f"the problem file {source.source} is not here", cure))
    return list(dict.fromkeys(found))


def missing_sinks(config: Config) -> list[Missing]:
    """Packages of the services that metrics should go to."""
    return [
        Missing(f"the package {sink} is not installed", f'pip install "archer-rl[{sink}]"')
        for sink in config.log.sinks
        if importlib.util.find_spec(sink) is None
    ]


def missing_room(config: Config, shape: ModelShape, memory: Memory, device: str) -> list[Missing]:
    """A GPU that was asked for, memory, and room on the disk for checkpoints."""
    found = []
    if config.model.device == "cuda" and device != "cuda":
        cure = "run on a machine with one, or set model.device = auto"
        found.append(Missing("torch sees no CUDA GPU", cure))
    free = free_memory(device)
    if memory.peak > free:
        fact = f"{_gb(memory.peak)} GB of memory are needed and {_gb(free)} GB are free"
        found.append(Missing(fact, _memory_cure(config, memory, free, device)))
    needed = checkpoint_bytes(shape) * (config.checkpoint.keep + 2)
    room = shutil.disk_usage(Path.cwd()).free
    if needed > room:
        fact = f"checkpoints take up to {_gb(needed)} GB of disk and {_gb(room)} GB are free here"
        found.append(Missing(fact, "free some space, or give --run a folder on another disk"))
    return found


def _memory_cure(config: Config, memory: Memory, free: float, device: str) -> str:
    if memory.held + memory.gradients > free:
        gpu = "a GPU" if device == "cpu" else "a larger GPU"
        return f"{gpu} of that size and more, or a smaller model"
    if memory.cache > memory.gradients + memory.activations + memory.head:
        return f"lower rollout.cache_tokens, now {config.rollout.cache_tokens:,}"
    cure = f"lower update.microbatch_tokens, now {config.update.microbatch_tokens:,}"
    keeps = not config.model.checkpoint_activations
    return cure + (", or set model.checkpoint_activations = true" if keeps else "")


def place(config: Config) -> tuple[str, int]:
    """Where the run would compute, "cpu" or "cuda", and the bytes of its numbers."""
    cuda = config.model.device != "cpu" and torch.cuda.is_available()
    half = config.model.dtype == "bfloat16" or (config.model.dtype == "auto" and cuda)
    return ("cuda" if cuda else "cpu"), (2 if half else 4)


def free_memory(device: str) -> float:
    """Bytes that a new process could have."""
    return float(
        torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    )


def checkpoint_bytes(shape: ModelShape) -> int:
    """Float32 weights and Adam's two moments."""
    return 12 * parameter_count(shape)


# ------------------------------------------------------------------ in words

Lines = list[tuple[str, str]]
"""A label, and what is to be said under it."""


def _the_run(config: Config, batches: Batches, lengths: Lengths, data: Data | None) -> Lines:
    rollout, update = config.rollout, config.update
    up_to = "" if rollout.filter in ("keep", "refill") else "up to "
    passes = "gone through once" if update.passes == 1 else f"gone through {update.passes} times"
    lines = [
        (
            "a step",
            f"{rollout.problems} problems x {rollout.samples} samples = {batches.completions:,} "
            f"completions of at most {rollout.max_tokens:,} tokens, temperature "
            f"{rollout.temperature:g}",
        ),
        (
            "its update",
            f"mini-batches of {update.minibatch} problems, {passes}: {up_to}{batches.updates} "
            f"optimizer steps; at most {update.microbatch_tokens:,} tokens share a forward pass",
        ),
        (
            "the run",
            f"{config.train.steps:,} steps, {batches.total_completions:,} completions, "
            f"{up_to}{batches.total_updates:,} optimizer steps",
        ),
    ]
    if data is None:
        lines.append(("problems", "not counted: see what is missing"))
    else:
        drawn = config.train.steps * rollout.problems
        lines.append(
            (
                "problems",
                f"{len(data.train):,} to learn from, gone through {drawn / len(data.train):.1f} "
                f"times; {len(data.evaluate):,} to be judged by; prompts of {lengths.prompt:.0f} "
                f"tokens on average, {lengths.longest_prompt} at most",
            )
        )
    schedule = f"{update.schedule} learning rate {update.learning_rate:g}"
    warmup = f" after {update.warmup} steps of warm-up" if update.warmup else ""
    return [
        *lines,
        (
            "learning",
            f"loss {config.loss.name}, advantage {config.advantage.name}, "
            f"{AVERAGES[update.average]}; {schedule}{warmup}",
        ),
    ]


AVERAGES = {
    "token": "averaged over tokens",
    "sequence": "averaged over answers, each its own mean",
    "constant": "summed over a constant",
}


def _on_and_off(config: Config, data: Data | None) -> Lines:
    kl, entropy, overlong = config.kl, config.entropy, config.rollout.overlong
    passes = {True: "from a pass of the learner", False: "none needed, a step is one update"}
    if config.update.old_logp == "sampler":
        old = "the sampler's, no pass of the learner"
    else:
        old = passes[score_passes(config) > int(kl.used)]
    penalty = f"penalty up to {overlong.penalty:g} in the last {overlong.buffer} tokens"
    return [
        (
            "KL",
            f"{kl.knowledge:g} on tokens of low entropy, {kl.reasoning:g} on those of high entropy "
            f"({kl.estimator}); a reference model is held"
            if kl.used
            else "off, no reference model",
        ),
        (
            "entropy bonus",
            "off"
            if not entropy.coefficient and entropy.target is None
            else f"{entropy.coefficient:g}"
            + (f", moved to hold {entropy.target:g} nats" if entropy.target is not None else ""),
        ),
        ("uniform groups", FILTERS[config.rollout.filter]),
        (
            "overlong",
            (penalty if overlong.buffer else "no penalty")
            + (", cut answers do not count" if overlong.mask else ", cut answers count"),
        ),
        (
            "mismatch",
            "off, the sampler is taken for the learner"
            if config.mismatch.kind == "none"
            else f"{config.mismatch.kind} by {config.mismatch.level}, ratio in "
            f"[{config.mismatch.low:g}, {config.mismatch.high:g}]",
        ),
        ("old log-probs", old),
        ("evaluation", _evaluation(config, data)),
    ]


FILTERS = {
    "keep": "kept: they count in the averages",
    "drop": "dropped: a step learns from fewer groups",
    "refill": "replaced by others, drawn until enough teach",
}


def _evaluation(config: Config, data: Data | None) -> str:
    if not config.data.evaluate:
        return "none"
    every = f", every {config.eval.every} steps" if config.eval.every else ""
    problems = "the problems" if data is None else f"{len(data.evaluate):,} problems"
    return f"before the first step{every} and after the last: {problems} x {config.eval.samples}"


def _the_model(config: Config, shape: ModelShape, device: str, itemsize: int) -> str:
    kind = "float32" if itemsize == 4 else "bfloat16"
    where = "one GPU" if device == "cuda" else f"the CPU, {num_threads(config)} threads"
    return (
        f"{config.model.name}: {parameter_count(shape) / 1e6:,.1f} million parameters, "
        f"{shape.layers} layers, {kind} on {where}; each checkpoint takes "
        f"{_gb(checkpoint_bytes(shape))} GB, at most {config.checkpoint.keep + 1} are kept"
    )


def _memory(memory: Memory, free: float, micro: Micro, in_flight: int) -> Lines:
    held = (
        f"{_gb(memory.held)}: weights {_gb(memory.weights + memory.masters)}, Adam "
        f"{_gb(memory.moments)}, reference {_gb(memory.reference)}, libraries "
        f"{_gb(memory.framework)}"
    )
    update = memory.gradients + memory.activations + memory.head
    return [
        ("held", held),
        ("sampling", f"+ {_gb(memory.cache)}: cache and logits of {in_flight:,} answers in flight"),
        (
            "update",
            f"+ {_gb(update)}: gradients {_gb(memory.gradients)}, activations "
            f"{_gb(memory.activations)} of a micro-batch of {micro.rows:,} tokens, head "
            f"{_gb(memory.head)}",
        ),
        ("saving", f"+ {_gb(memory.saving)}: a copy on its way to the disk"),
        (
            "peak",
            f"{_gb(memory.peak)} of {_gb(free)} that are free, the allocator's share included",
        ),
    ]


def _time(config: Config, seconds: Seconds, most: Seconds, speed: Speed, lengths: Lengths) -> Lines:
    return [
        ("sampling", _duration(seconds.sampling)),
        ("score", _duration(seconds.score) if seconds.score else "no pass"),
        ("update", _duration(seconds.update)),
        (
            "a step",
            f"{_duration(seconds.step)} if answers take {lengths.answer:,.0f} tokens and "
            f"{EXPECTED_TEACHING:.0%} of groups teach; at most {_duration(most.step)}",
        ),
        ("the run", f"{_duration(seconds.step * config.train.steps)}, without evaluation"),
        (
            "measured now",
            f"{speed.training / 1e9:,.0f} GFLOP/s in training, {speed.decoding / 1e9:,.0f} in "
            f"sampling, memory {speed.memory / 1e9:,.0f} GB/s",
        ),
    ]


def _section(title: str, lines: Lines | str) -> str:
    if isinstance(lines, str):
        return "\n".join(
            [title, *textwrap.wrap(lines, WIDTH, initial_indent="  ", subsequent_indent="  ")]
        )
    width = max(len(label) for label, _ in lines) + 2
    rows = []
    for label, text in lines:
        wrapped = textwrap.wrap(text, WIDTH - 2 - width)
        rows += [f"  {label:{width}}{wrapped[0]}"]
        rows += [" " * (2 + width) + more for more in wrapped[1:]]
    return "\n".join([title, *rows])


def _missing(missing: Sequence[Missing]) -> str:
    if not missing:
        return "What is missing: nothing"
    rows: list[str] = []
    for fact, cure in missing:
        rows += textwrap.wrap(f"- {fact}: {cure}", WIDTH, subsequent_indent="  ")
    return "\n".join(["What is missing, and the cure", *rows])


def _gb(number: float) -> str:
    """In GB (10^9 bytes), two digits below ten."""
    return f"{number / 1e9:.2f}" if number < 9.995e9 else f"{number / 1e9:,.0f}"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"
