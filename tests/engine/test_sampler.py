"""The sampler gives what one sequence alone would give, whoever else is in flight."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from archer.engine.base import Request, Sampling
from archer.engine.sampler import Sampler, pack_prompts, shared_prefix
from archer.model.adapt import adapt
from archer.model.draw import draw
from archer.model.tiny import tiny_model, tiny_tokenizer
from archer.randomness import uniforms
from archer.types import Completion

PROMPTS = ([7, 8, 9, 10, 11], [3], [20, 21, 22], [30, 31])
COMMON = list(range(40, 52))
BEGUN_ALIKE = ([*COMMON, 7, 8, 9], [*COMMON, 3], [*COMMON[:10], 20, 21, 22], COMMON[:11])
STOP = 0


def requests(samples: int = 3, prompts: Sequence[list[int]] = PROMPTS) -> list[Request]:
    return [
        Request(
            prompt_ids=np.array(prompt, dtype=np.int32),
            in_thought=False,
            names=tuple(("test", i, j) for j in range(samples)),
        )
        for i, prompt in enumerate(prompts)
    ]


def sampled(
    model: Any,
    sampling: Sampling,
    *,
    cache_tokens: int = 10_000,
    stop: Sequence[int] = (STOP,),
    prompts: Sequence[list[int]] = PROMPTS,
) -> dict[tuple[int, int], Completion]:
    sampler = Sampler(model, tiny_tokenizer(), stop_token_ids=stop, cache_tokens=cache_tokens)
    found = sampler.generate(requests(prompts=prompts), sampling, policy_version=5)
    return {(request, number): completion for request, number, completion in found}


def slow_sample(
    model: Any, prompt: list[int], name: Sequence[str | int], sampling: Sampling
) -> Any:
    """One sequence alone, the whole prefix recomputed for every token by transformers itself."""
    numbers = uniforms(sampling.max_tokens, "sample", *name)
    tokens: list[int] = []
    logps: list[float] = []
    with torch.no_grad():
        while len(tokens) < sampling.max_tokens and (not tokens or tokens[-1] != STOP):
            logits = model(input_ids=torch.tensor([prompt + tokens]), use_cache=False).logits[:, -1]
            drawn = draw(
                logits,
                torch.tensor([numbers[len(tokens)]]),
                temperature=sampling.temperature,
                top_p=sampling.top_p,
            )
            tokens.append(int(drawn.tokens))
            logps.append(float(drawn.logp))
    return tokens, logps


def gpt_neox() -> Any:
    """A kind whose config names no key-value heads, because every query head has its own."""
    config = GPTNeoXConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPTNeoXForCausalLM(config).eval()


@pytest.mark.parametrize("prompts", [PROMPTS, BEGUN_ALIKE])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gpt_neox"])
def test_it_equals_one_sequence_alone_without_a_cache(
    kind: Any, prompts: Sequence[list[int]]
) -> None:
    model = gpt_neox() if kind == "gpt_neox" else tiny_model(kind)
    sampling = Sampling(max_tokens=12, temperature=0.9)
    expected = {
        (i, j): slow_sample(model, list(prompt), ("test", i, j), sampling)
        for i, prompt in enumerate(prompts)
        for j in range(3)
    }
    adapt(model)
    found = sampled(model, sampling, prompts=prompts)
    assert found.keys() == expected.keys()
    for place, (tokens, logps) in expected.items():
        assert found[place].token_ids.tolist() == tokens
        assert np.allclose(found[place].logps, logps, atol=1e-4)


@pytest.mark.parametrize("prompts", [PROMPTS, BEGUN_ALIKE])
@pytest.mark.parametrize("cache_tokens", [1, 20, 40, 60, 100])
def test_how_many_rows_are_in_flight_changes_no_token(
    cache_tokens: int, prompts: Sequence[list[int]]
) -> None:
    model = tiny_model()
    adapt(model)
    everything = sampled(model, Sampling(max_tokens=12), prompts=prompts)
    few = sampled(model, Sampling(max_tokens=12), cache_tokens=cache_tokens, prompts=prompts)
    assert few.keys() == everything.keys()
    for place, completion in few.items():
        assert completion.token_ids.tolist() == everything[place].token_ids.tolist()
        assert np.allclose(completion.logps, everything[place].logps, atol=1e-5)


def test_the_same_call_gives_the_same_bits() -> None:
    model = tiny_model()
    adapt(model)
    first = sampled(model, Sampling(max_tokens=12), cache_tokens=60)
    second = sampled(model, Sampling(max_tokens=12), cache_tokens=60)
    for place, completion in first.items():
        assert completion.logps.tobytes() == second[place].logps.tobytes()
        assert completion.entropies.tobytes() == second[place].entropies.tobytes()


def test_a_stop_token_ends_the_completion_and_belongs_to_it() -> None:
    model = tiny_model()
    adapt(model)
    found = sampled(model, Sampling(max_tokens=200), cache_tokens=2000, stop=range(32)).values()
    assert all(completion.stop == "stop" for completion in found)
    for completion in found:
        assert completion.token_ids[-1] < 32 and (completion.token_ids[:-1] >= 32).all()


def test_the_token_limit_ends_a_completion_as_length() -> None:
    model = tiny_model()
    adapt(model)
    for completion in sampled(model, Sampling(max_tokens=4), stop=()).values():
        assert completion.stop == "length" and len(completion.token_ids) == 4


def test_a_stop_token_at_the_very_limit_is_a_stop() -> None:
    model = tiny_model()
    adapt(model)
    for completion in sampled(model, Sampling(max_tokens=1), stop=range(64)).values():
        assert completion.stop == "stop"


def test_a_stop_string_ends_the_completion_and_is_cut_from_its_text() -> None:
    model = tiny_model()
    adapt(model)
    stop = tuple("abcdefghijklm")
    for completion in sampled(model, Sampling(max_tokens=100, stop=stop), stop=()).values():
        whole = tiny_tokenizer().decode(completion.token_ids.tolist(), skip_special_tokens=True)
        assert completion.stop == "stop"
        assert whole[:-1] == completion.text and whole[-1] in stop


def test_each_prompt_is_prefilled_once_for_all_its_samples() -> None:
    model = tiny_model()
    adapt(model)
    fed: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    sampled(model, Sampling(max_tokens=1))
    assert fed == [sum(map(len, PROMPTS))]


def test_what_a_step_finishes_comes_at_once() -> None:
    model = tiny_model()
    adapt(model)
    sampler = Sampler(model, tiny_tokenizer(), stop_token_ids=(STOP,), cache_tokens=10_000)
    sampling = Sampling(max_tokens=40)
    steps = list(sampler.generate_by_step(requests(), sampling, policy_version=0))
    lengths = [{len(sample.completion.token_ids) for sample in samples} for samples in steps]
    assert all(len(of_a_step) == 1 for of_a_step in lengths)  # all began together
    assert lengths == sorted(lengths, key=max)
    assert len(set.union(*lengths)) == len(steps) < sum(map(len, steps))
    alone = list(sampler.generate(requests(), sampling, policy_version=0))
    assert [sample[:2] for samples in steps for sample in samples] == [s[:2] for s in alone]


def test_no_requests_give_no_samples() -> None:
    model = tiny_model()
    adapt(model)
    sampler = Sampler(model, tiny_tokenizer(), stop_token_ids=(), cache_tokens=10)
    assert list(sampler.generate([], Sampling(max_tokens=3), policy_version=0)) == []


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        (BEGUN_ALIKE, 10),
        (BEGUN_ALIKE[:2], 12),
        ((COMMON, COMMON), 11),  # each keeps a token of its own
        ((COMMON, [*COMMON, 1, 2]), 11),
        ((COMMON[:8], COMMON[:9]), 0),  # seven are too few
        (PROMPTS, 0),
        (BEGUN_ALIKE[:1], 0),
    ],
)
def test_what_all_prompts_begin_with_is_found(prompts: Sequence[list[int]], expected: int) -> None:
    assert shared_prefix([np.array(prompt, dtype=np.int32) for prompt in prompts]) == expected


def test_a_shared_beginning_is_fed_once() -> None:
    prompts = [torch.tensor(prompt) for prompt in ([7, 8, 9], [7, 8, 5, 6])]
    packed, rows = pack_prompts(prompts, shared=2)
    assert packed.input_ids.tolist() == [7, 8, 9, 5, 6]
    assert packed.position_ids.tolist() == [0, 1, 2, 2, 3]
    assert [own.tolist() for own in rows] == [[0, 1, 2], [0, 1, 3, 4]]
    packed, rows = pack_prompts(prompts, shared=0)
    assert packed.input_ids.tolist() == [7, 8, 9, 7, 8, 5, 6]
    assert [own.tolist() for own in rows] == [[0, 1, 2], [3, 4, 5, 6]]
