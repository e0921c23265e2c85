"""Sampling in process: one key-value cache, finished rows leave and new ones enter.

The sampler goes through the model's own modules, so what it samples from is what is trained. A
prompt is prefilled once for all of its completions, and what all prompts begin with (a template's
system message, a few worked examples) once for all of them. The unit of work is one call: the
requests of one call and the size of the cache decide which rows share a forward pass, and nothing
else does, neither time nor chance; so the same call gives the same numbers to the last bit.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from archer.engine.base import Request, Sample, Sampling, one_by_one
from archer.model.draw import draw
from archer.model.packing import Packed, pack
from archer.randomness import uniforms
from archer.types import Completion, StopReason

REFILL_SHARE = 4
"""New rows enter once this fraction (1/4) of the places is free, so that prefills are batched."""

SHARED_AT_LEAST = 8
"""Tokens that all prompts of a call begin with, from which on they are prefilled once."""

KV = tuple[Float[Tensor, "slots K L D"], Float[Tensor, "slots K L D"]]


@dataclass(slots=True, eq=False)
class _Cache:
    """Keys and values of the rows in flight, layer by layer; row i of a step lies in slot i."""

    layers: list[KV]

    def move(self, source: int, target: int, length: int) -> None:
        for states in self.layers:
            for tensor in states:
                tensor[target, :, :length] = tensor[source, :, :length]


@dataclass(slots=True, eq=False)
class _Prefill:
    """Attention of a prefill: packed, and every layer's keys and values are kept."""

    packed: Packed
    states: list[tuple[Tensor, Tensor]]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        assert layer == len(self.states), "layers are prefilled in their order"
        self.states.append((key.transpose(0, 1), value.transpose(0, 1)))
        return self.packed.attend(layer, query, key, value, scale)


@dataclass(slots=True, eq=False)
class _Decode:
    """Attention of one new token a row to all that its slot holds."""

    cache: _Cache
    rows: Int[Tensor, "n"]
    positions: Int[Tensor, "n"]
    longest: int
    mask: Float[Tensor, "n 1 1 L"]
    """0 where a row sees, -inf beyond its own length."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        n, heads, width = query.shape
        keys, values = self.cache.layers[layer]
        keys[self.rows, :, self.positions] = key
        values[self.rows, :, self.positions] = value
        # All query heads that share a key head are queries of it: no key is ever copied. Two plain
        # products take half the time of the flash kernel, which is made for many queries a row.
        grouped = query.reshape(n, keys.shape[1], -1, width)
        scores = grouped @ keys[:n, :, : self.longest].transpose(-1, -2)
        shares = (scores.float().mul_(scale) + self.mask).softmax(-1).to(values.dtype)
        return (shares @ values[:n, :, : self.longest]).reshape(n, heads, width)


@dataclass(slots=True, eq=False)
class _Row:
    """A completion in the making."""

    request: int
    number: int
    prompt_length: int
    uniforms: np.ndarray
    tokens: list[int]
    logps: list[float]
    entropies: list[float]

    @property
    def length(self) -> int:
        """Tokens whose keys and values lie in the cache once the newest token has been fed."""
        return self.prompt_length + len(self.tokens)


class Sampler:
    """Draws completions from a Hugging Face causal LM that uses `archer.model.packing`."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        stop_token_ids: Sequence[int],
        cache_tokens: int,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.stop_token_ids = frozenset(stop_token_ids)
        self.cache_tokens = cache_tokens

    @torch.no_grad()
    def take(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Takes over all parameters of the model, by name."""
        own = dict(self.model.named_parameters())
        for name, tensor in tensors:
            own.pop(name).copy_(tensor)
        assert not own, f"no weights came for {sorted(own)[0]}"

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, *, policy_version: int
    ) -> Generator[Sample, None, None]:
        """Yields completions as they finish."""
        return one_by_one(self.generate_by_step(requests, sampling, policy_version=policy_version))

    def generate_by_step(
        self, requests: Sequence[Request], sampling: Sampling, *, policy_version: int
    ) -> Generator[list[Sample], None, None]:
        """Yields the completions that a step has finished, together.

        At most `cache_tokens` tokens are in flight, counted at full length; at least one row is.
        """
        if not requests:
            return
        device = next(self.model.parameters()).device
        capacity = max(len(r.prompt_ids) for r in requests) + sampling.max_tokens
        waiting = [(i, j) for i, r in enumerate(requests) for j in range(len(r.names))]
        num_slots = max(1, min(len(waiting), self.cache_tokens // capacity))
        cache = self._new_cache(num_slots, capacity, device)
        shared = shared_prefix([request.prompt_ids for request in requests])
        prompts: dict[int, tuple[list[tuple[Tensor, Tensor]], Tensor]] = {}
        rows: list[_Row] = []
        waiting.reverse()
        while rows or waiting:
            free = num_slots - len(rows)
            logits: list[Tensor] = []
            if waiting and (not rows or free >= max(1, num_slots // REFILL_SHARE)):
                entering = [waiting.pop() for _ in range(min(free, len(waiting)))]
                first = self._admit(entering, requests, shared, sampling, prompts, rows, cache)
                logits.append(first)
            fed = len(rows) - sum(map(len, logits))
            if fed:
                logits.insert(0, self._step(rows[:fed], cache, device))
            self._extend(rows, torch.cat(logits) if len(logits) > 1 else logits[0], sampling)
            if finished := self._retire(rows, requests, sampling, policy_version, cache):
                yield finished

    def _new_cache(self, slots: int, capacity: int, device: torch.device) -> _Cache:
        config = self.model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        dtype = next(self.model.parameters()).dtype

        def empty() -> Tensor:
            # Zeros, not whatever lay there: what is masked must still not be NaN.
            return torch.zeros(slots, heads, capacity, width, dtype=dtype, device=device)

        return _Cache([(empty(), empty()) for _ in range(config.num_hidden_layers)])

    @torch.inference_mode()
    def _admit(
        self,
        entering: list[tuple[int, int]],
        requests: Sequence[Request],
        shared: int,
        sampling: Sampling,
        prompts: dict[int, tuple[list[tuple[Tensor, Tensor]], Tensor]],
        rows: list[_Row],
        cache: _Cache,
    ) -> Float[Tensor, "n V"]:
        """Puts new rows behind the present ones; returns the logits of their first tokens."""
        new = sorted({i for i, _ in entering} - prompts.keys())
        if new:
            prompts.update(self._prefill(new, requests, shared))
        for i, j in entering:
            slot, length = len(rows), len(requests[i].prompt_ids)
            for (keys, values), (prompt_keys, prompt_values) in zip(
                cache.layers, prompts[i][0], strict=True
            ):
                keys[slot, :, :length] = prompt_keys
                values[slot, :, :length] = prompt_values
            draws = uniforms(sampling.max_tokens, "sample", *requests[i].names[j])
            rows.append(_Row(i, j, length, draws, [], [], []))
        first = torch.stack([prompts[i][1] for i, _ in entering])
        last = entering[-1]
        for i in [i for i in prompts if i < last[0] or last[1] + 1 == len(requests[i].names)]:
            del prompts[i]
        return first

    def _prefill(
        self, new: list[int], requests: Sequence[Request], shared: int
    ) -> dict[int, tuple[list[tuple[Tensor, Tensor]], Tensor]]:
        """Keys, values (layer by layer, [K, length, D]) and last logits of each new prompt."""
        device = next(self.model.parameters()).device
        ids = [torch.from_numpy(requests[i].prompt_ids.astype(np.int64)).to(device) for i in new]
        packed, rows = pack_prompts(ids, shared)
        context = _Prefill(packed, [])
        logits = self.model(
            input_ids=packed.input_ids[None],
            position_ids=packed.position_ids[None],
            context=context,
            use_cache=False,
            logits_to_keep=torch.stack([own[-1] for own in rows]),
        ).logits[0]
        return {
            i: ([(keys[:, own], values[:, own]) for keys, values in context.states], logits[line])
            for line, (i, own) in enumerate(zip(new, rows, strict=True))
        }

    @torch.inference_mode()
    def _step(self, rows: list[_Row], cache: _Cache, device: torch.device) -> Float[Tensor, "n V"]:
        """Feeds each row its newest token; returns the logits of the next one."""
        positions = torch.tensor([row.length - 1 for row in rows], device=device)
        longest = max(row.length for row in rows)
        beyond = torch.arange(longest, device=device)[None, :] > positions[:, None]
        mask = torch.zeros(beyond.shape, device=device).masked_fill_(beyond, -torch.inf)
        context = _Decode(
            cache=cache,
            rows=torch.arange(len(rows), device=device),
            positions=positions,
            longest=longest,
            mask=mask[:, None, None, :],
        )
        tokens = torch.tensor([row.tokens[-1] for row in rows], device=device)
        return self.model(  # type: ignore[no-any-return]
            input_ids=tokens[None], position_ids=positions[None], context=context, use_cache=False
        ).logits[0]

    @torch.inference_mode()
    def _extend(self, rows: list[_Row], logits: Float[Tensor, "n V"], sampling: Sampling) -> None:
        numbers = torch.tensor([row.uniforms[len(row.tokens)] for row in rows], dtype=torch.float64)
        drawn = draw(
            logits,
            numbers.to(logits.device),
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
        )
        columns = zip(rows, *(column.tolist() for column in drawn), strict=True)
        for row, token, logp, entropy in columns:
            row.tokens.append(token)
            row.logps.append(logp)
            row.entropies.append(entropy)

    def _retire(
        self,
        rows: list[_Row],
        requests: Sequence[Request],
        sampling: Sampling,
        policy_version: int,
        cache: _Cache,
    ) -> list[Sample]:
        """Takes finished rows out; the last row moves into the place of each."""
        samples: list[Sample] = []
        slot = 0
        while slot < len(rows):
            row = rows[slot]
            finished = self._finished(row, sampling)
            if finished is None:
                slot += 1
                continue
            last = rows.pop()
            if last is not row:
                cache.move(len(rows), slot, last.length)
                rows[slot] = last
            reason, text = finished
            request = requests[row.request]
            completion = Completion(
                prompt_ids=request.prompt_ids,
                token_ids=np.array(row.tokens, dtype=np.int32),
                logps=np.array(row.logps, dtype=np.float32),
                entropies=np.array(row.entropies, dtype=np.float32),
                policy_version=policy_version,
                stop=reason,
                in_thought=request.in_thought,
                text=text,
            )
            samples.append(Sample(row.request, row.number, completion))
        return samples

    def _finished(self, row: _Row, sampling: Sampling) -> tuple[StopReason, str] | None:
        """Why the row ends here, with its text; None while it goes on."""
        if row.tokens[-1] in self.stop_token_ids:
            return "stop", self._text(row.tokens[:-1])
        if sampling.stop:
            # A stop string of n characters ends within the last n tokens or the ones before it.
            tail = self._text(row.tokens[-2 * max(map(len, sampling.stop)) :])
            if any(string in tail for string in sampling.stop):
                text = self._text(row.tokens)
                ends = [text.find(string) for string in sampling.stop if string in text]
                return "stop", text[: min(ends)] if ends else text
        if len(row.tokens) >= sampling.max_tokens:
            return "length", self._text(row.tokens)
        return None

    def _text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)  # type: ignore[return-value]


def shared_prefix(prompts: Sequence[Int32[np.ndarray, " prompt"]]) -> int:
    """Number of tokens that all prompts begin with, each keeping one at least for itself.

    0 where there is one prompt alone, and where they are too few to be worth it.
    """
    if len(prompts) < 2:
        return 0
    shared = min(map(len, prompts)) - 1
    for prompt in prompts[1:]:
        unlike = np.flatnonzero(prompt[:shared] != prompts[0][:shared])
        shared = int(unlike[0]) if len(unlike) else shared
    return shared if shared >= SHARED_AT_LEAST else 0


def pack_prompts(
    prompts: list[Int[Tensor, "_"]], shared: int
) -> tuple[Packed, list[Int[Tensor, "_"]]]:
    """Prompts in one flat row, their first `shared` tokens once, and the rows of each prompt.

    Example, (7 8 9) and (7 8 5 6) with 2 shared: the flat row is 7 8 9 5 6, the prompts' rows are
    (0 1 2) and (0 1 3 4).
    """
    device = prompts[0].device
    own = torch.tensor([len(prompt) - shared for prompt in prompts])
    if shared:
        # To `pack` they are answers to one prompt. An answer's last token is not fed, so one more.
        answers = torch.cat([torch.cat([prompt[shared:], prompt[-1:]]) for prompt in prompts])
        alone = torch.zeros(len(prompts), dtype=torch.int64)
        packed = pack(prompts[0][:shared], torch.tensor([shared]), alone, answers, own + 1)
    else:
        packed = pack(torch.cat(prompts), own)
    starts = (shared + torch.cumsum(own, 0) - own).tolist()
    common = torch.arange(shared, device=device)
    rows = [
        torch.cat([common, torch.arange(start, start + n, device=device)])
        for start, n in zip(starts, own.tolist(), strict=True)
    ]
    return packed, rows
