"""Sampling with vLLM for real: `make test-vllm`. Skipped where vLLM is not installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from archer.data.problems import write_problems
from archer.data.sources import load_source
from archer.engine.base import Request, Sample, Sampling
from archer.engine.sampler import Sampler
from archer.engine.vllm import VllmSampler
from archer.evaluate_model import evaluate_model
from archer.files import cache_folder
from archer.model.adapt import adapt
from archer.model.convert import smollm2_folder
from archer.model.load import load_model, load_tokenizer, stop_token_ids
from archer.model.prompts import Renderer
from archer.scores import different_settings, read_evaluation
from archer.terminal import Terminal

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")
pytestmark = pytest.mark.filterwarnings("ignore")  # what others' code warns of on import

QUESTIONS = [f"What is {a}+{b}?" for a in range(1, 5) for b in range(1, 4)]
SAMPLES = 3


@pytest.fixture(scope="module")
def folder() -> Path:
    return smollm2_folder(cache_folder())


@pytest.fixture(scope="module")
def vllm(folder: Path) -> Iterator[VllmSampler]:
    tokenizer = load_tokenizer(str(folder))
    made = VllmSampler(
        str(folder),
        tokenizer=tokenizer,
        stop_token_ids=[tokenizer.eos_token_id],
        dtype="float32",
        context=512,
        memory_share=0.3,
    )
    yield made
    made.close()


@pytest.fixture(scope="module")
def local(folder: Path) -> Sampler:
    model, tokenizer = load_model(str(folder), dtype="float32"), load_tokenizer(str(folder))
    adapt(model)
    model.eval()
    ends = stop_token_ids(tokenizer, model.generation_config)
    return Sampler(model, tokenizer, stop_token_ids=ends, cache_tokens=65536)


@pytest.fixture(scope="module")
def requests(folder: Path) -> list[Request]:
    renderer = Renderer(load_tokenizer(str(folder)))
    return [
        Request(
            prompt_ids=renderer.render(question).token_ids,
            in_thought=False,
            names=tuple(("eval", 0, question, sample) for sample in range(SAMPLES)),
        )
        for question in QUESTIONS
    ]


def by_place(samples: Iterator[Sample]) -> dict[tuple[int, int], Sample]:
    return {(sample.request, sample.number): sample for sample in samples}


def test_log_probs_are_those_of_the_model(
    vllm: VllmSampler, folder: Path, requests: list[Request]
) -> None:
    """Of the tempered distribution that was drawn from: <= 1e-3 at most, 1e-4 in the mean."""
    model = load_model(str(folder), dtype="float32").eval()
    for temperature in (1.0, 0.7):
        found = by_place(vllm.generate(requests, Sampling(max_tokens=24, temperature=temperature)))
        assert len(found) == len(QUESTIONS) * SAMPLES
        apart = []
        for sample in found.values():
            completion = sample.completion
            tokens = np.concatenate([completion.prompt_ids, completion.token_ids])
            inputs = torch.from_numpy(tokens.astype(np.int64))[None]
            with torch.no_grad():
                logits = model(input_ids=inputs).logits[0] / temperature
            begin = len(completion.prompt_ids)
            own = logits.log_softmax(-1)[begin - 1 : -1].gather(1, inputs[0, begin:, None])[:, 0]
            apart.append(np.abs(own.numpy() - completion.logps))
        assert max(each.max() for each in apart) <= 1e-3
        assert np.concatenate(apart).mean() <= 1e-4


def test_greedy_answers_are_those_of_the_sampler_in_process(
    vllm: VllmSampler, local: Sampler, requests: list[Request]
) -> None:
    sampling = Sampling(max_tokens=24, temperature=0.0)
    ours = by_place(local.generate(requests, sampling, policy_version=0))
    theirs = by_place(vllm.generate(requests, sampling))
    for place, sample in ours.items():
        own, other = sample.completion, theirs[place].completion
        assert (own.text, own.stop) == (other.text, other.stop)
        assert own.token_ids.tolist() == other.token_ids.tolist()


def test_a_name_decides_its_draws(vllm: VllmSampler, requests: list[Request]) -> None:
    sampling = Sampling(max_tokens=16)
    first = by_place(vllm.generate(requests, sampling))
    again = by_place(vllm.generate(requests, sampling))
    texts = {place: sample.completion.text for place, sample in first.items()}
    same = [again[place].completion.text == text for place, text in texts.items()]
    assert np.mean(same) > 0.9  # rounding decides a draw now and then
    assert len(set(texts.values())) > len(QUESTIONS)


def test_stop_strings_and_the_limit_end_an_answer(
    vllm: VllmSampler, requests: list[Request]
) -> None:
    (cut,) = list(vllm.generate(requests[:1], Sampling(max_tokens=3, temperature=0.0)))[:1]
    assert (cut.completion.stop, len(cut.completion.token_ids)) == ("length", 3)
    whole = by_place(vllm.generate(requests[:1], Sampling(max_tokens=24, temperature=0.0)))
    text = whole[0, 0].completion.text
    stop = text[len(text) // 2 :][:2]
    stopped = by_place(
        vllm.generate(requests[:1], Sampling(max_tokens=24, temperature=0.0, stop=(stop,)))
    )[0, 0].completion
    assert stopped.stop == "stop"
    assert stopped.text == text[: text.find(stop)]


def test_what_is_left_is_dropped(vllm: VllmSampler, requests: list[Request]) -> None:
    begun = vllm.generate(requests, Sampling(max_tokens=24))
    next(begun)
    del begun
    alone = list(vllm.generate(requests[:1], Sampling(max_tokens=4)))
    assert [sample.request for sample in alone] == [0] * SAMPLES


def test_an_evaluation_answers_as_without_vllm(tmp_path: Path, vllm: VllmSampler) -> None:
    """Greedy, so that draws do not matter; a rounding may part two answers now and then."""
    vllm.close()  # its memory is needed
    problems = load_source("arithmetic", count=20)
    write_problems(tmp_path / "sums.jsonl", problems)
    answers = []
    for name, share in (("local", None), ("vllm", 0.3)):
        evaluate_model(
            "smollm2",
            terminal=Terminal(quiet=True),
            problems=tmp_path / "sums.jsonl",
            out=tmp_path / f"{name}.json",
            vllm=share,
            temperature=0.0,
            max_tokens=32,
        )
        rows = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        answers.append([json.loads(row)["response"] for row in rows])
    same = [one == other for one, other in zip(*answers, strict=True)]
    assert sum(same) >= 19
    settings = [read_evaluation(tmp_path / f"{n}.json").settings for n in ("local", "vllm")]
    assert different_settings(*settings) == {"engine": (None, "vllm")}
