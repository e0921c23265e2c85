"""What a run takes, by arithmetic: operations, bytes and seconds from a model's shape and a recipe.

Pure functions of a `Job`, and the measurements that turn operations into seconds on this machine.
What a run makes of its sizes, how long answers get and how many groups teach, is not known
beforehand: the assumptions and the measured constants stand at the top, each with what it is.

Left out of the time: loading, evaluation, judging that outlasts sampling, writing checkpoints.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch

from archer.config import Config
from archer.engine.vllm import cached_tokens
from archer.model.logprobs import KEEP_BYTES
from archer.model.shapes import (
    ModelShape,
    body_flops_per_token,
    cache_bytes_per_token,
    head_flops_per_token,
    parameter_count,
)

EXPECTED_LENGTH = 0.75
"""Share of `rollout.max_tokens` that a mean answer is taken to have (quickstart: 0.78) ..."""

EXPECTED_TOKENS = 8192
"""... and its tokens at most: about what models that think at length write on average."""

EXPECTED_TEACHING = 0.5
"""Share of groups that are taken to teach: neither all right nor all wrong (quickstart: 0.49)."""

FRAMEWORK_BYTES = {"cpu": 400e6, "cuda": 600e6}
"""Held before any weight. CPU: Python, torch, transformers and the data as resident memory,
measured with torch 2.13. CUDA: workspaces of the libraries, an assumption."""

EFFICIENCY = {"sampling": 0.6, "score": 0.8, "update": 0.8}
"""Speed of a whole pass beside that of one product with one of its matrices; the rest goes to
norms, attention, softmax and the traffic between. Set by judgement a little below the medians of
0.67, 0.87 and 0.84 that one thread of a CPU reached on the quickstart."""

LAYER_SECONDS = {"cpu": 200e-6, "cuda": 300e-6}
"""What one layer of one pass takes however little it computes: some thirty calls of torch."""

ANSWER_SECONDS = 8e-5
"""What an answer takes in Python beside the model: its text, verdict and records in sampling, its
part in packing a pass of the learner."""

CALLS_SECONDS = 52e-6
"""Of `small_calls` on the machine of `archer.plan.costs`."""

NORM_NUMBERS = 4
"""Kept for a layer's backward pass, per token and hidden unit: input and output of two norms."""

MLP_NUMBERS = 2
"""The same per intermediate unit: gate and up; their product is made again."""

OPTIMIZER_BYTES = 40
"""Traffic of an optimizer step per parameter: clipping reads the gradient twice and writes it,
AdamW reads four numbers and writes three."""

HEAD_BLOCK = (2048, 4096)
"""Rows and columns, at most, of each of the two blocks of logits that the fused head works in."""


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
class Job:
    """What is estimated: a recipe, the shape of its model, its lengths, and where it computes.

    Example, in float32 on the CPU:
        Job(config=config, shape=SHAPES["smollm2"], lengths=lengths, device="cpu", itemsize=4)
    """

    config: Config
    shape: ModelShape
    lengths: Lengths
    device: Literal["cpu", "cuda"]
    itemsize: Literal[2, 4]
    """Bytes of a number in the forward pass."""
    teaching: float = EXPECTED_TEACHING
    """Share of groups that teach."""

    @property
    def at_most(self) -> Job:
        """The same where every answer runs to the limit and every group teaches."""
        whole = replace(self.lengths, answer=float(self.lengths.longest_answer))
        return replace(self, lengths=whole, teaching=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What this machine does.

    Example, two CPU cores:
        Speed(training=2.1e11, decoding=1.4e11, memory=1.5e10, pace=1.1)
    """

    training: float
    """Floating-point operations a second in a product of a micro-batch with a weight matrix."""
    decoding: float
    """The same with one row for each answer in flight."""
    memory: float
    """Bytes a second that are read or written."""
    pace: float = 1.0
    """How long small calls of torch take, beside `CALLS_SECONDS`: 2.0 is half as fast. Measured
    constants, here and in `archer.plan.costs`, are taken to be so much slower as well."""

    @property
    def over_pace(self) -> Speed:
        """The rates of a machine that is `pace` times as fast in all it does.

        Its small calls take `CALLS_SECONDS`, so the constants hold there as they are; here all
        that it does takes `pace` times as long.
        """
        return Speed(
            training=self.pace * self.training,
            decoding=self.pace * self.decoding,
            memory=self.pace * self.memory,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes by part: what is held throughout, and what sampling, update and saving add in turn.

    Example, in GB: 1 is held, and the update adds most:
        Memory(framework=0.4, weights=0.2, masters=0, moments=0.4, reference=0, cache=0.3,
               gradients=0.2, activations=0.5, head=0.1, saving=0.4).peak == 1.8
    """

    framework: float
    weights: float
    """In the type of the forward pass."""
    masters: float
    """In float32, where that is another type."""
    moments: float
    """Adam's two."""
    reference: float
    cache: float
    """Keys and values of the answers in flight, and the logits they are continued from."""
    gradients: float
    activations: float
    """Of the largest micro-batch."""
    head: float
    """Logits kept for the backward pass, two blocks, and the head's gradient on its way."""
    saving: float
    """The copy of a checkpoint's larger part on its way to the disk."""

    @property
    def held(self) -> float:
        return self.framework + self.weights + self.masters + self.moments + self.reference

    @property
    def update(self) -> float:
        return self.gradients + self.activations + self.head

    @property
    def peak(self) -> float:
        return self.held + max(self.cache, self.update, self.saving)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Of one training step.

    Example:
        Seconds(sampling=4.0, score=0.0, update=6.5).step == 10.5
    """

    sampling: float
    score: float
    update: float

    @property
    def step(self) -> float:
        return self.sampling + self.score + self.update


# ------------------------------------------------------------------ sizes


def updates_per_step(config: Config) -> int:
    """Optimizer steps of a training step in which every group teaches."""
    return math.ceil(config.rollout.problems / config.update.minibatch) * config.update.passes


def score_passes(config: Config) -> int:
    """Forward passes over a step's data before its update: old log-probs, reference log-probs."""
    needed = updates_per_step(config) > 1 or config.mismatch.kind != "none"
    return int(config.update.old_logp == "score" and needed) + int(config.kl.used)


def answers_in_flight(config: Config, lengths: Lengths) -> int:
    """Rows that the sampler decodes together: each takes its full length of the cache."""
    row = lengths.longest_prompt + lengths.longest_answer
    completions = config.rollout.problems * config.rollout.samples
    return max(1, min(completions, config.rollout.cache_tokens // row))


class Micro(NamedTuple):
    """Sizes of a micro-batch.

    Example, two answers of 4 tokens to one prompt of 3: rows 3 + 2 * 3 = 9, scored 2 * 4 = 8,
    attended 2 * (3 + 3) = 12.
    """

    rows: int
    """Tokens of the forward pass: prompts once, and answers but for their last tokens."""
    scored: int
    """Tokens that get a log-prob."""
    attended: int
    """Tokens in attention, where each sequence has its prompt for itself."""


def largest_microbatch(config: Config, lengths: Lengths) -> Micro:
    """As many of the longest sequences as the budget of tokens admits, and at least one."""
    samples, budget = config.rollout.samples, config.update.microbatch_tokens
    prompt, answer = lengths.longest_prompt, lengths.longest_answer

    def cost(sequences: int) -> int:
        return math.ceil(sequences / samples) * prompt + sequences * answer

    most = min(config.update.minibatch, config.rollout.problems) * samples
    n = max((n for n in range(1, most + 1) if cost(n) <= budget), default=1)
    return Micro(rows=cost(n) - n, scored=n * answer, attended=n * (prompt + answer - 1))


# ------------------------------------------------------------------ bytes


def estimate_memory(job: Job) -> Memory:
    """Bytes by part at the largest micro-batch and the fullest cache."""
    shape, itemsize, parameters = job.shape, job.itemsize, parameter_count(job.shape)
    micro = largest_microbatch(job.config, job.lengths)
    in_flight = answers_in_flight(job.config, job.lengths)
    row = job.lengths.longest_prompt + job.lengths.longest_answer
    vllm = job.config.rollout.sampler == "vllm"  # which has a copy of the weights
    cached = cached_tokens(job.config, shape) if vllm else in_flight * row
    keys_and_values = cached * cache_bytes_per_token(shape, bytes_per_number=itemsize)
    # A decoding step's logits, shifted, their probabilities, and running sums of those.
    drawing = 4 * 4 * in_flight * shape.vocabulary
    # Shared weights get a second gradient from the embedding before both are added up.
    on_their_way = (2 if shape.tied else 1) * shape.vocabulary * shape.hidden * itemsize
    half = itemsize == 2
    return Memory(
        framework=FRAMEWORK_BYTES[job.device],
        weights=parameters * itemsize * (2 if vllm else 1),
        masters=4 * parameters if half else 0,
        moments=8 * parameters,
        reference=parameters * itemsize if job.config.kl.used else 0,
        cache=keys_and_values + drawing,
        gradients=4 * parameters + (2 * parameters if half else 0),
        activations=activation_bytes(job, micro),
        head=_kept_logits(job, micro) + _block_bytes(job, micro) + on_their_way,
        saving=8 * parameters if job.device == "cpu" else 0,
    )


def activation_bytes(job: Job, micro: Micro) -> float:
    """Kept from forward to backward pass: inputs of norms, matrices, activation and attention."""
    shape, itemsize = job.shape, job.itemsize
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    per_row = NORM_NUMBERS * shape.hidden + MLP_NUMBERS * shape.intermediate + query
    if shape.head_norms:
        per_row += query + key
    # Attention keeps queries, keys, values and what comes out.
    layer = itemsize * (micro.rows * per_row + micro.attended * 2 * (query + key))
    if not job.config.model.checkpoint_activations:
        return shape.layers * layer
    # The inputs of all layers, and one layer computed anew beside its gradients.
    return shape.layers * micro.rows * shape.hidden * itemsize + 2 * layer


def _kept_logits(job: Job, micro: Micro) -> int:
    return min(KEEP_BYTES, 4 * micro.scored * job.shape.vocabulary)


def _block_bytes(job: Job, micro: Micro) -> int:
    rows, columns = HEAD_BLOCK
    return 2 * 4 * min(micro.scored, rows) * min(job.shape.vocabulary, columns)


def checkpoint_bytes(shape: ModelShape) -> int:
    """Float32 weights and Adam's two moments."""
    return 12 * parameter_count(shape)


# ------------------------------------------------------------------ seconds


def estimate_seconds(job: Job, speed: Speed) -> Seconds:
    """Of a training step, from its operations and its traffic."""
    pace, speed = speed.pace, speed.over_pace
    return Seconds(
        sampling=pace * sampling_seconds(job, speed),
        score=pace * _score_seconds(job, speed),
        update=pace * _update_seconds(job, speed),
    )


def sampling_seconds(job: Job, speed: Speed) -> float:
    """Bound by operations or by what each decoding step reads: weights, keys and values.

    speed: over its pace, by which the caller multiplies.
    """
    rollout, lengths, shape = job.config.rollout, job.lengths, job.shape
    groups = rollout.problems / (job.teaching if rollout.filter == "refill" else 1)
    tokens = groups * rollout.samples * lengths.answer
    context = lengths.prompt + lengths.answer / 2
    # With room for all of them the last answers go on while the others are done.
    steps = max(lengths.longest_answer, tokens / answers_in_flight(job.config, lengths))
    flops = tokens * (_body_flops(shape, context) + head_flops_per_token(shape))
    flops += groups * lengths.prompt * _body_flops(shape, lengths.prompt / 2)
    read = steps * parameter_count(shape) * job.itemsize
    read += tokens * context * cache_bytes_per_token(shape, bytes_per_number=job.itemsize)
    bound = max(flops / (EFFICIENCY["sampling"] * speed.decoding), read / speed.memory)
    overhead = steps * shape.layers * LAYER_SECONDS[job.device]
    return bound + overhead + groups * rollout.samples * ANSWER_SECONDS


def _score_seconds(job: Job, speed: Speed) -> float:
    groups = scored_groups(job)
    flops = sum(group_flops(job)) * groups
    once = flops / (EFFICIENCY["score"] * speed.training) + pass_seconds(job, groups)
    return score_passes(job.config) * once


def _update_seconds(job: Job, speed: Speed) -> float:
    """A backward pass costs two forward passes; what was not kept is computed once more."""
    config, groups = job.config, learned_groups(job)
    learning = update_flops(job, groups) / (EFFICIENCY["update"] * speed.training)
    learning += body_passes(config) * pass_seconds(job, groups)
    optimizer_steps = math.ceil(groups / config.update.minibatch)
    stepping = optimizer_steps * OPTIMIZER_BYTES * parameter_count(job.shape) / speed.memory
    return config.update.passes * (learning + stepping)


def scored_groups(job: Job) -> float:
    """Groups of a step that are gone through before its update."""
    rollout = job.config.rollout
    return rollout.problems * (job.teaching if rollout.filter == "drop" else 1)


def learned_groups(job: Job) -> float:
    """Groups of a step with a gradient."""
    config = job.config
    reads_all = config.rollout.filter == "refill" or (
        config.rollout.filter == "keep" and bool(config.kl.used or config.entropy.coefficient)
    )
    return config.rollout.problems * (1 if reads_all else job.teaching)


def body_passes(config: Config) -> int:
    """Forward passes through the layers that an update costs: a backward pass costs two."""
    return 4 if config.model.checkpoint_activations else 3


def update_flops(job: Job, groups: float) -> float:
    """Operations of the update on so many groups; logits that were not kept are made again."""
    micro = largest_microbatch(job.config, job.lengths)
    kept = _kept_logits(job, micro) / (4 * micro.scored * job.shape.vocabulary)
    body, head = group_flops(job)
    return groups * (body_passes(job.config) * body + (4 - kept) * head)


def group_flops(job: Job) -> tuple[float, float]:
    """Of a forward pass over one group, its prompt computed once: all layers, and the head."""
    lengths, answers = job.lengths, job.config.rollout.samples * job.lengths.answer
    context = lengths.prompt + lengths.answer / 2
    body = (lengths.prompt + answers) * _body_flops(job.shape, context)
    return body, answers * head_flops_per_token(job.shape)


def _body_flops(shape: ModelShape, context: float) -> int:
    return body_flops_per_token(shape, context=round(context))


def pass_seconds(job: Job, groups: float) -> float:
    """What forward passes over so many groups take beside operations in matrices."""
    tokens = groups * (job.lengths.prompt + job.config.rollout.samples * job.lengths.answer)
    update = job.config.update
    passes = max(math.ceil(groups / update.minibatch), math.ceil(tokens / update.microbatch_tokens))
    answers = groups * job.config.rollout.samples
    return passes * job.shape.layers * LAYER_SECONDS[job.device] + answers * ANSWER_SECONDS


def measure_speed(job: Job, *, threads: int, budget: float = 0.1) -> Speed:
    """Times products with one of the model's own matrices, a copy and small calls.

    budget: seconds of each product and of the copy; small calls take three times as long, so that
    one interruption is not all there is.
    """
    shape = job.shape
    training = min(largest_microbatch(job.config, job.lengths).rows, MOST_ROWS[job.device])
    decoding = answers_in_flight(job.config, job.lengths)
    dtype = torch.float32 if job.itemsize == 4 else torch.bfloat16
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        matrix = torch.ones(shape.hidden, shape.intermediate, dtype=dtype, device=job.device)

        def product(rows: int) -> float:
            hidden = torch.ones(rows, shape.hidden, dtype=dtype, device=job.device)
            return 2 * rows * matrix.numel() / _median(lambda: hidden @ matrix, job.device, budget)

        block = torch.zeros(16 << 20, device=job.device)
        target = torch.empty_like(block)
        copying = _median(lambda: target.copy_(block), job.device, budget)
        return Speed(
            training=product(training),
            decoding=product(decoding),
            memory=2 * block.nbytes / copying,
            pace=_mean(small_calls, 3 * budget) / CALLS_SECONDS if job.device == "cpu" else 1.0,
        )
    finally:
        torch.set_num_threads(before)


MOST_ROWS = {"cpu": 512, "cuda": 8192}
"""More rows make a product no faster, only longer."""


@torch.inference_mode()
def small_calls() -> torch.Tensor:
    """Some thirty calls of torch on a CPU, as a layer has, that compute next to nothing."""
    hidden, matrix = torch.ones(8, 32), torch.full((32, 32), 0.03)
    for _ in range(5):
        hidden = hidden @ matrix
        scale = hidden.pow(2).mean(-1, keepdim=True).add(1e-5).rsqrt()
        hidden = torch.nn.functional.silu(hidden * scale)
    return hidden


def _mean(work: Callable[[], object], budget: float) -> float:
    """Seconds of a call. With its interruptions: whoever shares the machine is there in a run."""
    work()
    start, calls = time.perf_counter(), 0
    while (taken := time.perf_counter() - start) < budget:
        work()
        calls += 1
    return taken / calls


def _median(work: Callable[[], object], device: str, budget: float) -> float:
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
