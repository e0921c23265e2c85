"""Sampling with vLLM: the same requests, the same names, another sampler.

Prompts go in as tokens and tokens come out, so a template is rendered once, here. Each completion
has a seed of its own, made from its name; which rows share a forward pass is vLLM's business, so
log-probs, and with them draws that hang by a hair, may differ from run to run by rounding.

vLLM's engine works in this process, not in one of its own: new weights are tensors that it is
handed, and nothing is left when this process is killed. There can be one in a process, and it
takes torch's default process group for itself. Nothing else imports vllm.

A model may be cut over several processes with a GPU each (tensor parallelism, vLLM's "external
launcher"): each has an engine of its own, is given the same requests, and takes the same steps at
the same time. Whether there is a next step, the first one says.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from archer.config import Config
from archer.engine.base import Request, Sample, Sampling, one_by_one
from archer.model.load import (
    end_tokens,
    find_model,
    load_config,
    load_tokenizer,
)
from archer.model.shapes import ModelShape, cache_bytes_per_token, part_of, shape_of
from archer.randomness import key
from archer.types import Completion, StopReason

dist: Any = torch.distributed  # much of which has no types

MISSING = "vLLM is not installed: pip install 'archer-rl[vllm]', or sample without it"

LEAST_SHARE = 0.01
"""Of the memory, asked for where the size of the cache is said instead; vLLM wants some number."""

SPARE_TOKENS = 256
"""Of the cache: two blocks on a CPU, one that is only begun and one that vLLM keeps empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Which part of a model that is cut over processes is this one's, and where they meet.

    Example, the first of two: Part(number=0, parts=2, store=("10.0.0.1", 40123), seconds=1800.0)
    """

    number: int
    parts: int
    store: tuple[str, int]
    """Host and port of a `torch.distributed.TCPStore`."""
    seconds: float
    """Longest wait for the others."""


class VllmSampler:
    """Draws completions with vLLM, offline, in this process.

    Args:
        model: a folder or a hub name.
        revision: branch, tag or commit on the hub.
        tokenizer: the model's, as `archer.model.load` gives it.
        stop_token_ids: end a completion, beside what vLLM takes from the model itself.
        dtype: "float32" or "bfloat16".
        context: tokens of the longest prompt and completion together.
        memory_share: of the device's memory that vLLM takes; the rest is left to others.
        cache_bytes: size of its cache, in place of what `memory_share` leaves.
        weights: whether the model's own are read; random ones without, until `take`.
        sleeps: whether `sleep` is to give a GPU's memory back.
        part: of a model that is cut over processes, which all make one of these at once.

    Raises:
        ValueError: vLLM is missing.
    """

    def __init__(
        self,
        model: str,
        *,
        tokenizer: Any,
        stop_token_ids: Sequence[int],
        dtype: str,
        context: int,
        memory_share: float = LEAST_SHARE,
        cache_bytes: int | None = None,
        revision: str | None = None,
        weights: bool = True,
        sleeps: bool = False,
        part: Part | None = None,
    ) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it warns at every `take`
        try:
            from vllm import LLM, SamplingParams
        except ImportError:
            raise ValueError(MISSING) from None
        self._params = SamplingParams
        self._tokenizer = tokenizer
        self._stop_token_ids = sorted(stop_token_ids)
        self._sleeps, self._asleep = sleeps, False
        self._leads = part is None or part.number == 0
        self._telling = None if part is None else _meet(part)
        self._llm = LLM(
            model=model,
            revision=revision,
            tokenizer_revision=revision,
            dtype=dtype,
            max_model_len=context,
            gpu_memory_utilization=memory_share,
            kv_cache_memory_bytes=cache_bytes,
            load_format="auto" if weights else "dummy",
            enable_sleep_mode=sleeps,
            # Compiled for a CPU it samples a sixth faster and starts ten times as slowly.
            enforce_eager=not torch.cuda.is_available(),
            logprobs_mode="processed_logprobs",  # of the distribution that is drawn from
            generation_config="vllm",  # no temperature or top-k of the model's own
            disable_log_stats=True,
            tensor_parallel_size=1 if part is None else part.parts,
            distributed_executor_backend=None if part is None else "external_launcher",
            # vLLM's own reductions look for the others' GPUs, and each process sees its own alone.
            disable_custom_all_reduce=part is not None,
            compilation_config={"pass_config": {"fuse_allreduce_rms": False}} if part else None,
        )
        # vLLM keeps a stream for each thread, and a Ray actor is made in another one than it works.
        self._stream = torch.cuda.current_stream() if torch.cuda.is_available() else None

    def take(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Takes over all parameters, by the names that transformers gives them."""
        self._use_own_stream()
        if self._asleep:
            torch.cuda.empty_cache()  # what a learner in this process has left of the memory
            self._llm.wake_up()
            self._asleep = False
        self._llm.collective_rpc(_load, args=(tensors,))
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM keeps keys and values of the weights before")

    def sleep(self) -> bool:
        """Gives the GPU's memory back, weights too, until the next `take`; False where it stays."""
        self._use_own_stream()
        if self._sleeps and not self._asleep:
            self._llm.sleep(level=2)
            self._asleep = True
        return self._asleep

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, *, policy_version: int = 0
    ) -> Generator[Sample, None, None]:
        """Yields completions as they finish; what is left is dropped if nobody asks for more."""
        return one_by_one(self.generate_by_step(requests, sampling, policy_version=policy_version))

    def generate_by_step(
        self, requests: Sequence[Request], sampling: Sampling, *, policy_version: int
    ) -> Generator[list[Sample], None, None]:
        """Yields the completions that a step has finished, together; when closed, drops the rest.

        Entropies are not known: NaN. Where a model is cut over processes all of them go through
        this together, each with the same requests, and it ends for all when it does for the first.
        """
        self._use_own_stream()
        wanted = [(i, j) for i, r in enumerate(requests) for j in range(len(r.names))]
        ids = self._llm.enqueue(
            [{"prompt_token_ids": requests[i].prompt_ids.tolist()} for i, _ in wanted],
            [self._sampling(sampling, requests[i].names[j]) for i, j in wanted],
            use_tqdm=False,
        )
        # What comes back has the number alone, of "7-1a2b3c4d".
        places = dict(zip((id.partition("-")[0] for id in ids), wanted, strict=True))
        stepping = False
        try:
            while places and self._goes_on(True):
                stepping = True
                if not self._llm.llm_engine.has_unfinished_requests():
                    raise RuntimeError(f"vLLM ended without {len(places)} of its completions")
                # All of a step at once: what is left is then the same in every process.
                outputs = [
                    (places.pop(output.request_id), output.outputs[0])
                    for output in self._llm.llm_engine.step()
                    if output.finished and output.request_id in places
                ]
                stepping = False
                finished = [
                    Sample(i, j, self._completion(requests[i], output, sampling, policy_version))
                    for (i, j), output in outputs
                ]
                if finished:
                    yield finished
        finally:
            if places:
                if self._leads and not stepping:  # in the midst of a step the others don't listen
                    self._goes_on(False)
                self._llm.llm_engine.abort_request(list(places))

    def _use_own_stream(self) -> None:
        """Has this thread go on where the one that made vLLM, or called it last, has stopped."""
        if self._stream is not None:
            torch.cuda.set_stream(self._stream)

    def _goes_on(self, wanted: bool) -> bool:
        """Whether there is a next step: what the process with the first part wants."""
        if self._telling is None:
            return wanted
        told = torch.tensor([wanted])
        dist.broadcast(told, src=0, group=self._telling)
        return bool(told)

    def close(self) -> None:
        """Gives its memory back."""
        self._llm.llm_engine.engine_core.shutdown()

    def _sampling(self, sampling: Sampling, name: tuple[str | int, ...]) -> Any:
        return self._params(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            stop=list(sampling.stop) or None,
            stop_token_ids=self._stop_token_ids,
            seed=key("sample", *name) % 2**63,
            logprobs=0,  # of the sampled token alone
        )

    def _completion(
        self, request: Request, output: Any, sampling: Sampling, policy_version: int
    ) -> Completion:
        tokens = list(output.token_ids)
        logps = [step[token].logprob for step, token in zip(output.logprobs, tokens, strict=True)]
        stop: StopReason = "length" if output.finish_reason == "length" else "stop"
        return Completion(
            prompt_ids=request.prompt_ids,
            token_ids=np.array(tokens, dtype=np.int32),
            logps=np.array(logps, dtype=np.float32),
            entropies=np.full(len(tokens), np.nan, dtype=np.float32),
            policy_version=policy_version,
            stop=stop,
            in_thought=request.in_thought,
            text=self._text(tokens, sampling),
        )

    def _text(self, tokens: list[int], sampling: Sampling) -> str:
        """As the sampler in process gives it: without special tokens and the stop string."""
        if tokens and tokens[-1] in self._stop_token_ids:
            tokens = tokens[:-1]
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        ends = [text.find(string) for string in sampling.stop if string in text]
        return text[: min(ends)] if ends else text


def _meet(part: Part) -> Any:
    """Meets the processes with the other parts; a group of them for words on the CPU.

    vLLM takes the default group for its own when there is one.
    """
    os.environ |= {"RANK": str(part.number), "LOCAL_RANK": "0"}  # each sees its own GPU alone
    os.environ |= {"VLLM_ALLREDUCE_USE_SYMM_MEM": "0", "VLLM_ALLREDUCE_USE_FLASHINFER": "0"}
    seconds, cuda = timedelta(seconds=part.seconds), torch.cuda.is_available()
    host, port = part.store
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=dist.TCPStore(host, port, part.parts, is_master=False, timeout=seconds),
        rank=part.number,
        world_size=part.parts,
        timeout=seconds,
    )
    if not cuda:
        # Its shared memory on a CPU has the same name for every model on a machine, and outlives
        # processes that are killed. It goes by torch.distributed where ranks do not agree on it.
        from vllm.distributed.device_communicators import cpu_communicator

        cpu_communicator.CpuCommunicator._all_group_ranks_share_shm_group_name = lambda _: False
    return dist.new_group(backend="gloo", timeout=seconds)


def _load(worker: Any, tensors: Iterable[tuple[str, Tensor]]) -> None:
    worker.reload_weights(weights_iterator=tensors)
    model = worker.model_runner.get_model()
    if worker.device.type == "cpu" and model.config.tie_word_embeddings:
        # No weights come for a tied head, so vLLM would keep the copy that it packed for the CPU.
        model.lm_head.quant_method.process_weights_after_loading(model.lm_head)


def open_vllm(config: Config, *, sleeps: bool = False, part: Part | None = None) -> VllmSampler:
    """vLLM as a recipe has it, of no use before its first `take`.

    Raises:
        ValueError: vLLM is missing, or the model has no files.
    """
    name, revision = config.model.name, config.model.revision
    place, described = find_model(name, revision=revision), load_config(name, revision=revision)
    dtype, whole = sampled_dtype(config), shape_of(described)
    shape = part_of(whole, 1 if part is None else part.parts)
    per_token = cache_bytes_per_token(shape, bytes_per_number=4 if dtype == "float32" else 2)
    tokenizer = load_tokenizer(name, revision=revision)
    return VllmSampler(
        place,
        revision=revision,
        tokenizer=tokenizer,
        stop_token_ids=end_tokens(name, tokenizer, revision=revision),
        dtype=dtype,
        context=longest_row(config, whole),
        cache_bytes=per_token * cached_tokens(config, whole),
        weights=False,
        sleeps=sleeps,
        part=part,
    )


def longest_row(config: Config, shape: ModelShape) -> int:
    """Tokens of the longest prompt and answer together, of training or evaluation."""
    answer = max(config.rollout.max_tokens, config.eval.max_tokens or 0)
    return min(config.data.max_prompt_tokens + answer, shape.max_positions)


def cached_tokens(config: Config, shape: ModelShape) -> int:
    """Tokens that vLLM's cache has room for, all of which it takes at once."""
    return max(config.rollout.cache_tokens, longest_row(config, shape)) + SPARE_TOKENS


def sampled_dtype(config: Config) -> str:
    """The number type that a recipe's model is sampled in: "float32" or "bfloat16".

    vLLM's own "auto" would make a 16-bit model of a 32-bit one.
    """
    if config.model.dtype != "auto":
        return config.model.dtype
    cuda = config.model.device != "cpu" and torch.cuda.is_available()
    return "bfloat16" if cuda else "float32"
