"""Sampling with vLLM: the same requests, the same names, another sampler.

Prompts go in as tokens and tokens come out, so a template is rendered once, here. Each completion
has a seed of its own, made from its name; which rows share a forward pass is vLLM's business, so
log-probs, and with them draws that hang by a hair, may differ from run to run by rounding. Nothing
else imports vllm.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from archer.engine.base import Request, Sample, Sampling
from archer.randomness import key
from archer.types import Completion, StopReason

MISSING = "vLLM is not installed: pip install 'archer-rl[vllm]', or sample without it"


class VllmSampler:
    """Draws completions with vLLM, offline, in this process and the one that it starts.

    Args:
        model: a folder or a hub name.
        revision: branch, tag or commit on the hub.
        tokenizer: the model's, as `archer.model.load` gives it.
        stop_token_ids: end a completion, beside what vLLM takes from the model itself.
        dtype: "float32" or "bfloat16".
        context: tokens of the longest prompt and completion together.
        memory_share: of the device's memory that vLLM takes; the rest is left to others.

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
        memory_share: float,
        revision: str | None = None,
    ) -> None:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        try:
            from vllm import LLM, SamplingParams
        except ImportError:
            raise ValueError(MISSING) from None
        self._params = SamplingParams
        self._tokenizer = tokenizer
        self._stop_token_ids = sorted(stop_token_ids)
        self._llm = LLM(
            model=model,
            revision=revision,
            tokenizer_revision=revision,
            dtype=dtype,
            max_model_len=context,
            gpu_memory_utilization=memory_share,
            logprobs_mode="processed_logprobs",  # of the distribution that is drawn from
            generation_config="vllm",  # no temperature or top-k of the model's own
            disable_log_stats=True,
        )

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, *, policy_version: int = 0
    ) -> Iterator[Sample]:
        """Yields completions as they finish; what is left is dropped if nobody asks for more.

        Entropies are not known: NaN.
        """
        wanted = [(i, j) for i, r in enumerate(requests) for j in range(len(r.names))]
        ids = self._llm.enqueue(
            [{"prompt_token_ids": requests[i].prompt_ids.tolist()} for i, _ in wanted],
            [self._sampling(sampling, requests[i].names[j]) for i, j in wanted],
            use_tqdm=False,
        )
        # What comes back has the number alone, of "7-1a2b3c4d".
        places = dict(zip((id.partition("-")[0] for id in ids), wanted, strict=True))
        try:
            while places:
                if not self._llm.llm_engine.has_unfinished_requests():
                    raise RuntimeError(f"vLLM ended without {len(places)} of its completions")
                for output in self._llm.llm_engine.step():
                    if output.finished and output.request_id in places:
                        number, sample = places.pop(output.request_id)
                        completion = self._completion(
                            requests[number], output.outputs[0], sampling, policy_version
                        )
                        yield Sample(number, sample, completion)
        finally:
            if places:
                self._llm.llm_engine.abort_request(list(places))

    def close(self) -> None:
        """Ends vLLM's process and gives its memory back."""
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
