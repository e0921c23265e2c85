"""A server's completions: asked once each, as many at a time as wanted, and never guessed at."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import archer.evaluate
from archer.cli import main
from archer.compare import compare
from archer.config import load_config
from archer.data.problems import read_problems, write_problems
from archer.data.sources import load_source
from archer.engine import server as archer_server
from archer.engine.base import Generates, Request, Sample, Sampling
from archer.engine.server import NO_TOKEN, WAITS, Address, Server, open_server, seed
from archer.evaluate import eval_sampling
from archer.evaluate_model import evaluation_config, find_subject, open_sampler, sections
from archer.model.load import load_tokenizer
from archer.model.prompts import MessageRenderer, Renderer
from archer.scores import read_evaluation
from archer.terminal import Terminal
from archer.train import train
from archer.types import Completion
from tests.children import SECONDS
from tests.openai_server import Body, OpenAIServer, Reply, completion, message, serving, told

SAMPLING = Sampling(max_tokens=8, temperature=0.7, top_p=0.9)
KEY = "sk-of-a-test"
NO_GZIP = Reply(body=b"{}", headers={"Content_Encoding": "gzip"})


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy and no key of the machine's."""
    for name in [name for name in os.environ if "proxy" in name.lower()]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were to be waited, and are not."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(archer_server, "sleep", sleep)
    return waited


def requests(num: int, samples: int = 1) -> list[Request]:
    return [
        Request(
            prompt_ids=np.array([7, i], dtype=np.int32),
            in_thought=False,
            names=tuple(("eval", 0, f"sum-{i}", j) for j in range(samples)),
            messages=({"role": "user", "content": f"{i}?"},),
        )
        for i in range(num)
    ]


def opened(server: OpenAIServer, **how: Any) -> Server:
    return open_server(Address(url=server.address, **how))


def asked(server: OpenAIServer, num: int = 1, **how: Any) -> list[Sample]:
    return list(opened(server, **how).generate(requests(num), SAMPLING))


def one(reply: Reply, sampling: Sampling = SAMPLING, **how: Any) -> Completion:
    """The completion that a reply is taken for."""
    with serving(lambda body: reply) as server:
        (sample,) = opened(server, **how).generate(requests(1), sampling)
    return sample.completion


def refusal(answer: Callable[[Body], Reply], **how: Any) -> tuple[str, int]:
    """The one line that an answer ends in, and how often the server was asked."""
    with serving(answer) as server:
        with pytest.raises(ValueError, match=server.address) as refused:
            asked(server, **how)
        said = str(refused.value).replace(server.address, "URL")
        assert "\n" not in said
        return said, len(server.asked)


# ------------------------------------------------------------------ what is sent


def test_a_prompt_is_sent_as_its_tokens_and_every_setting_is_said() -> None:
    with serving() as server:
        client = opened(server)
        assert isinstance(client, Generates)
        stopping = Sampling(max_tokens=8, temperature=0.0, stop=("\n", "!"))
        assert len(list(client.generate(requests(1), stopping))) == 1
    assert server.asked == [
        (
            "/v1/completions",
            {
                "model": "mine",
                "prompt": [7, 0],
                "max_tokens": 8,
                "temperature": 0.0,
                "top_p": 1.0,
                "stop": ["\n", "!"],
                "seed": seed(("eval", 0, "sum-0", 0)),
                # A server's own defaults would be others.
                "top_k": -1,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "return_token_ids": True,
            },
        )
    ]


def test_in_chat_messages_are_sent_and_nothing_that_a_service_might_refuse() -> None:
    with serving(lambda body: message(content="5")) as server:
        assert [each.completion.text for each in asked(server, chat=True)] == ["5"]
    assert server.asked == [
        (
            "/v1/chat/completions",
            {
                "model": "mine",
                "messages": [{"role": "user", "content": "0?"}],
                "max_tokens": 8,
                "temperature": 0.7,
                "top_p": 0.9,
                "seed": seed(("eval", 0, "sum-0", 0)),
            },
        )
    ]


def test_every_completion_is_a_request_with_a_seed_of_its_own_the_same_in_every_run() -> None:
    seeds = []
    for concurrency in (1, 4):
        with serving() as server:
            samples = list(
                opened(server, concurrency=concurrency).generate(requests(3, 4), SAMPLING)
            )
        assert {(each.request, each.number) for each in samples} == {
            (i, j) for i in range(3) for j in range(4)
        }
        seeds.append(Counter(body["seed"] for body in server.bodies))
    assert seeds[0] == seeds[1]
    assert len(seeds[0]) == 12
    assert all(0 <= number < 2**31 for number in seeds[0])


def test_the_key_goes_to_the_server_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    with serving() as server:
        client = opened(server)
        assert list(client.generate(requests(1), SAMPLING))
        assert KEY not in repr(client)
    assert server.keys == {f"Bearer {KEY}"}
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n{KEY}")
    with pytest.raises(ValueError, match="OPENAI_API_KEY holds what no key does") as refused:
        opened(server)
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("knob", ["top_k", "min_p"])
def test_what_not_every_server_knows_is_refused(knob: str) -> None:
    with serving() as server:
        sampling = Sampling(max_tokens=8, **{knob: 1})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"{knob} = 1"):
            next(opened(server).generate(requests(1), sampling))
    assert not server.asked


def test_the_other_name_of_the_limit_is_taken_where_a_service_asks_for_it() -> None:
    def answer(body: Body) -> Reply:
        if "max_tokens" in body:
            return told({"error": {"message": "Use 'max_completion_tokens' instead."}}, 400)
        return message(content="5")

    with serving(answer) as server:
        assert asked(server, chat=True)
    assert [body.get("max_completion_tokens") for body in server.bodies] == [None, 8]
    answer_never, times = refusal(
        lambda body: told({"error": {"message": "max_completion_tokens is too large"}}, 400)
    )
    assert times == 2 and "too large" in answer_never


# ------------------------------------------------------------------ what is answered


def test_counts_tokens_and_reasons_are_the_servers() -> None:
    counted = one(completion("5", finish_reason="length"))
    assert counted.text == "5" and counted.stop == "length"
    assert counted.token_ids.tolist() == [NO_TOKEN] * 2
    assert counted.prompt_ids.tolist() == [7, 0]
    assert np.isnan(counted.logps).all() and np.isnan(counted.entropies).all()
    named = one(completion("5", token_ids=[4, 9, 2], usage={"prompt_tokens": 2}))
    assert named.token_ids.tolist() == [4, 9, 2] and named.stop == "stop"
    assert one(completion("", finish_reason="content_filter")).stop == "filtered"


def test_a_text_ends_before_its_first_stop_string() -> None:
    sampling = Sampling(max_tokens=8, stop=("!", "\n"))
    assert one(completion("5\n6!"), sampling).text == "5"
    cut = one(completion("5!", finish_reason="length"), sampling)
    assert (cut.text, cut.stop) == ("5", "stop")
    assert one(completion("56"), sampling).text == "56"


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"content": "5"}, "5"),
        ({"content": "5", "reasoning_content": "2+3"}, "<think>2+3</think>5"),
        ({"content": "5", "reasoning": "2+3"}, "<think>2+3</think>5"),
        ({"content": None, "reasoning_content": "2+"}, "<think>2+"),
        ({"content": "", "reasoning": "2+", "reasoning_content": None}, "<think>2+"),
        ({"content": None}, ""),
    ],
)
def test_a_thought_stands_before_its_answer_and_is_closed_where_there_is_one(
    said: dict[str, Any], text: str
) -> None:
    assert one(message(**said), chat=True).text == text


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(body=b"<html>hello"), "Invalid JSON"),
        (Reply(body=b"\xff\xfe"), "Invalid JSON"),
        (Reply(body=b"[]"), "Input should be an object"),
        (told({"usage": {}}), "choices: Field required"),
        (NO_GZIP, "sends what cannot be read"),
        (told({"choices": []}), "choices: List should have at least 1 item"),
        (told({"error": {"message": "out of credits"}}), "out of credits"),
        (completion(text=5), "choices.0.text: Input should be a valid string"),  # type: ignore[arg-type]
        (completion(text=None), "no text"),  # type: ignore[arg-type]
        (completion(finish_reason=None), "choices.0.finish_reason"),
        (completion(finish_reason="abort"), "unknown finish_reason 'abort'"),
        (completion(token_ids=[1.5]), "choices.0.token_ids.0"),
        (completion(token_ids=[2**31]), "choices.0.token_ids.0"),
        (completion(usage={"completion_tokens": -1}), "usage.completion_tokens"),
        (completion(usage={}), "no usage.completion_tokens"),
        (completion(usage={"prompt_tokens": 3}), "read 3 tokens where 2 were sent"),
    ],
)
def test_an_answer_that_is_none_is_told_and_not_asked_for_again(reply: Reply, words: str) -> None:
    said, times = refusal(lambda body: reply)
    assert words in said
    assert times == 1


def test_the_key_is_not_shown_where_a_server_repeats_what_it_was_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for reply in (told({"you sent": f"Bearer {KEY}"}), completion(finish_reason=KEY)):
        said, _ = refusal(lambda body, reply=reply: reply)  # type: ignore[misc]
        assert KEY not in said and "..." in said


# ------------------------------------------------------------------ when


def test_completions_come_in_the_order_in_which_they_finish() -> None:
    last = threading.Event()

    def answer(body: Body) -> Reply:
        if body["prompt"] == [7, 0]:
            assert last.wait(SECONDS)
        return completion()

    with serving(answer) as server:
        finishing = opened(server).generate(requests(3), SAMPLING)
        assert {next(finishing).request, next(finishing).request} == {1, 2}
        last.set()
        assert [each.request for each in finishing] == [0]


def test_no_more_are_asked_at_a_time_than_wanted_and_as_many_as_wanted() -> None:
    together = threading.Barrier(3)

    def answer(body: Body) -> Reply:
        together.wait(SECONDS)
        return completion()

    with serving(answer) as server:
        assert len(asked(server, 12, concurrency=3)) == 12
        assert server.most == 3
        assert {body["prompt"][1] for body in server.bodies[:3]} == {0, 1, 2}


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the shell has started this in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_at_once_and_what_has_not_begun_is_not_asked(interruptible: None) -> None:
    never = threading.Event()

    def answer(body: Body) -> Reply:
        if body["prompt"] == [7, 1]:
            os.kill(os.getpid(), signal.SIGINT)
        if body["prompt"] != [7, 0]:
            never.wait(SECONDS)
        return completion()

    with serving(answer) as server:
        with pytest.raises(KeyboardInterrupt):
            asked(server, 20, concurrency=2)
        assert len(server.asked) <= 3
        assert not _asking(), "the thread that asks is gone"
        never.set()


def test_whoever_takes_no_more_closes_it() -> None:
    never = threading.Event()

    def answer(body: Body) -> Reply:
        if body["prompt"] != [7, 0]:
            never.wait(SECONDS)
        return completion()

    with serving(answer) as server:
        finishing = opened(server, concurrency=2).generate(requests(20), SAMPLING)
        assert isinstance(finishing, Iterator) and next(finishing).request == 0
        finishing.close()  # type: ignore[attr-defined]
        assert len(server.asked) <= 3
        assert not _asking()
        never.set()


def _asking() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "_run" in thread.name]


# ------------------------------------------------------------------ what goes wrong


def after(troubles: list[Reply]) -> Callable[[Body], Reply]:
    """Answers with the troubles one by one, and then as it should."""
    left = iter(troubles)
    return lambda body: next(left, completion())


def test_what_may_do_better_is_asked_again_after_longer_and_longer_waits(
    waits: list[float],
) -> None:
    busy = [Reply(status=status) for status in (503, 408, 409, 425, 429)]
    with serving(after([*busy, Reply(status=0)])) as server:
        assert len(asked(server)) == 1
    assert waits == list(WAITS) == sorted(WAITS)
    assert len({json.dumps(body) for body in server.bodies}) == 1
    assert len(server.asked) == 7


def test_the_server_may_ask_for_a_longer_wait_but_not_for_any(waits: list[float]) -> None:
    with serving(
        after([told({}, 429, Retry_After="90"), told({}, 503, Retry_After="0")])
    ) as server:
        assert asked(server)
    assert waits == [90.0, 2.0]
    dated = after([told({}, 429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")])
    with serving(dated) as server:
        assert asked(server)
    assert waits.pop() == 1.0
    said, times = refusal(lambda body: told({"error": "spent"}, 429, Retry_After="86400"))
    assert "answers 429 (spent) and asks to wait 86400 s" in said
    assert times == 1


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (told({"error": {"message": "too\nmany"}}, 503), "answers 503 (too many), 7 times"),
        (Reply(500, b""), "answers 500 (Internal Server Error), 7 times"),
        (Reply(0), "cannot be reached ("),
    ],
)
def test_after_as_many_tries_it_is_given_up(waits: list[float], reply: Reply, words: str) -> None:
    said, times = refusal(lambda body: reply)
    assert words in said
    assert "the same command again" in said
    assert times == len(WAITS) + 1
    assert waits == list(WAITS)


@pytest.mark.parametrize(
    ("reply", "chat", "words"),
    [
        (told({"error": {"message": f"bad key {KEY}"}}, 401), False, "answers 401 (bad key ...)"),
        (told({"error": "no"}, 403), False, "set OPENAI_API_KEY to a key that it takes"),
        (told({"message": "no model"}, 404), False, "give --server-model a name that it has"),
        (told({"detail": "Not Found"}, 404), False, "or --chat if it has no /completions"),
        (
            told({"detail": "Not Found"}, 404),
            True,
            "give as MODEL a name that it has (did you mean",
        ),
        (told({"error": {"message": "x" * 999}}, 400), False, f"({'x' * 200}) for 'min': change"),
        (told({"error": "prompt"}, 400), False, "or give --chat if it takes no token ids"),
        (told({"error": "spent"}, 402), False, "see to that and run the same command again"),
        (Reply(307, b"", {"Location": "/"}), False, "answers 307 (Temporary Redirect)"),
    ],
)
def test_a_refusal_is_told_with_its_cure_and_not_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, waits: list[float], reply: Reply, chat: bool, words: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    said, times = refusal(lambda body: reply, model="min", chat=chat)
    assert words in said
    assert KEY not in said
    assert times == 1
    assert waits == []


def test_the_first_error_ends_all() -> None:
    def answer(body: Body) -> Reply:
        return told({}, 400) if body["prompt"] == [7, 2] else completion()

    with serving(answer) as server:
        finishing = opened(server, concurrency=1).generate(requests(9), SAMPLING)
        assert [next(finishing).request for _ in range(2)] == [0, 1]
        with pytest.raises(ValueError, match="answers 400"):
            next(finishing)
        assert len(server.asked) == 3


# ------------------------------------------------------------------ the address and the model


def test_an_address_is_taken_with_and_without_v1() -> None:
    with serving() as server:
        for ending in ("", "/", "/v1", "/v1/"):
            found = open_server(Address(url=server.address + ending))
            assert found.url == f"{server.address}/v1"


def test_a_wrong_address_is_found_before_anything_is_asked() -> None:
    with serving() as server:
        with pytest.raises(ValueError, match=r"/v2/models answers 404 .* as far as /v1"):
            open_server(Address(url=f"{server.address}/v2"))
        server.models = told({"error": "loading"}, 503)
        with pytest.raises(
            ValueError, match=r"answers 503 \(loading\): try again when it is ready"
        ):
            opened(server)
        server.models = told({}, 401)
        with pytest.raises(ValueError, match="OPENAI_API_KEY"):
            opened(server)
        server.models = told({"data": [{"name": "x"}]})
        with pytest.raises(ValueError, match="does not answer as an OpenAI-compatible server"):
            opened(server)
        server.models = NO_GZIP
        with pytest.raises(ValueError, match=r"sends what cannot be read .* correct --server"):
            opened(server)
        with pytest.raises(ValueError, match="--concurrency 0"):
            opened(server, concurrency=0)
    with pytest.raises(ValueError, match=r"cannot be reached .* start the server"):
        opened(server)
    for url in ("http://not a host/v1", "http://a..b:1", f"http://{'a' * 70}.com"):
        with pytest.raises(ValueError, match=r"cannot be reached .* or correct --server"):
            open_server(Address(url=url))
    for url in (
        "localhost:8000",
        "ftp://x",
        "http://",
        "http://x:y",
        "http://x/v1?a=b",
        "http://[",
    ):
        with pytest.raises(ValueError, match="is no address of a server"):
            open_server(Address(url=url))
    with pytest.raises(ValueError, match="is no address of a server") as refused:
        open_server(Address(url="http://me:secret@x"))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "what://127.0.0.1:1"])
def test_a_proxy_that_cannot_be_used_is_one_line(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setitem(sys.modules, "socksio", None)  # importing it is an error now
    with serving() as server, pytest.raises(ValueError, match="unset ALL_PROXY") as refused:
        opened(server)
    assert "\n" not in str(refused.value)


def test_the_model_is_the_one_named_or_the_own_one_or_the_only_one() -> None:
    with serving() as server:
        assert open_server(Address(url=server.address), own="other").model == "mine"
        server.names = ["mine", "own"]
        assert open_server(Address(url=server.address), own="own").model == "own"
        assert open_server(Address(url=server.address, model="hidden"), own="own").model == "hidden"
        with pytest.raises(ValueError, match=r"which model of .*--server-model NAME; .*mine, own"):
            open_server(Address(url=server.address), own="other")
        server.models = told([{"id": "alone"}])
        assert open_server(Address(url=server.address)).model == "alone"
        server.models = told({"data": []})
        with pytest.raises(ValueError, match="it lists none"):
            opened(server)


# ------------------------------------------------------------------ archer eval

NUM_PROBLEMS, SAMPLES = 5, 3
SETTINGS: dict[str, Any] = {
    "samples": SAMPLES,
    "max_tokens": 6,
    "temperature": 0.8,
    "seed": 3,
    "answer_pattern": "number",
    "suffix": " =",
}
OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("problems") / "sums.jsonl"
    write_problems(path, load_source("arithmetic", count=NUM_PROBLEMS))
    return path


@pytest.fixture(scope="module")
def tiny(problems: Path) -> Callable[[Body], Reply]:
    """Answers what the model of that name does in process, by the draws that a seed stands for.

    All at once, as in process: which token a draw hits may depend on what is sampled beside it.
    """
    config = evaluation_config(find_subject("tiny"), problems=problems, **sections(**SETTINGS))
    renderer = Renderer(load_tokenizer("tiny"), suffix=" =")
    wanted = [
        Request(
            prompt_ids=renderer.render(problem.prompt).token_ids,
            in_thought=False,
            names=tuple(("eval", 3, problem.source, problem.id, j) for j in range(SAMPLES)),
        )
        for problem in read_problems(problems)
    ]
    done = {
        (seed(wanted[each.request].names[each.number]), *each.completion.prompt_ids): each
        for each in open_sampler(config, None).generate(wanted, eval_sampling(config))
    }

    def answer(body: Body) -> Reply:
        completed = done[body["seed"], *body["prompt"]].completion
        usage = {
            "prompt_tokens": len(body["prompt"]),
            "completion_tokens": len(completed.token_ids),
        }
        return completion(completed.text, finish_reason=completed.stop, usage=usage)

    return answer


def evaluate(problems: Path, out: Path, *more: str) -> int:
    given = ["--problems", str(problems), "--out", str(out), "--quiet", *OPTIONS, *more]
    return main(["eval", "tiny", *given])


def rows(out: Path) -> list[dict[str, Any]]:
    """The responses, as far as they are the model's: log-probs only the sampler knows."""
    read = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key not in ("logp", "entropy")} for row in read]


def test_a_server_gives_the_scores_that_the_model_has_in_process(
    problems: Path,
    tiny: Callable[[Body], Reply],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    assert evaluate(problems, here) == 0
    with serving(tiny) as server:
        server.names = ["tiny", "other"]
        assert evaluate(problems, there, "--server", server.address) == 0
    sent = {(body["temperature"], body["top_p"], body["max_tokens"]) for body in server.bodies}
    assert sent == {(0.8, 1.0, 6)}
    assert len(server.asked) == NUM_PROBLEMS * SAMPLES
    assert rows(there) == rows(here)
    assert len({row["response"] for row in rows(here)}) > 3
    one, other = read_evaluation(here), read_evaluation(there)
    assert other.settings == {**one.settings, "engine": "server"}
    assert (other.score, other.mean_tokens, other.model) == (one.score, one.mean_tokens, "tiny")
    said = compare(here, there)
    assert [line.split() for line in said.splitlines()[-1:]] == [["engine", "null", '"server"']]
    line = json.loads(there.with_suffix(".jsonl").read_text().splitlines()[0])
    assert line["logp"] is None and line["entropy"] is None
    assert not [path for path in tmp_path.iterdir() if KEY in path.read_text()]


def test_an_evaluation_that_broke_off_goes_on_and_asks_for_nothing_twice(
    problems: Path,
    tiny: Callable[[Body], Reply],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(archer.evaluate, "UNIT", 2 * SAMPLES)
    whole, out = tmp_path / "whole.json", tmp_path / "out.json"
    answered: list[int] = []

    def limited(body: Body) -> Reply:
        if len(answered) == 4 * SAMPLES:
            return told({"error": "spent"}, 402)
        answered.append(body["seed"])
        return tiny(body)

    with serving(limited) as server:
        at = ["--server", server.address, "--concurrency", "1"]
        assert evaluate(problems, out, *at) == 2
        part = out.with_suffix(".jsonl.part").read_text()
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
        assert str(server.server_port) not in part
        assert json.loads(part.splitlines()[0])["engine"] == {"backend": "server", "model": "mine"}
        server.names = ["another"]
        assert evaluate(problems, out, *at) == 2
        assert "engine.model" in capsys.readouterr().err
    with serving(lambda body: answered.append(body["seed"]) or tiny(body)) as server:  # type: ignore[func-returns-value]
        assert evaluate(problems, out, "--server", server.address) == 0
    assert len(answered) == len(set(answered)) == NUM_PROBLEMS * SAMPLES
    with serving(tiny) as server:
        assert evaluate(problems, whole, "--server", server.address) == 0
    for suffix in (".json", ".jsonl"):
        assert out.with_suffix(suffix).read_bytes() == whole.with_suffix(suffix).read_bytes()


def test_what_a_server_has_answered_is_kept_wherever_it_breaks_off(
    problems: Path,
    tiny: Callable[[Body], Reply],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All problems are one unit here, so that nothing is judged and written before the last."""
    whole, out = tmp_path / "whole.json", tmp_path / "out.json"
    with serving(tiny) as server:
        assert evaluate(problems, whole, "--server", server.address) == 0
    answered: list[int] = []
    limits = iter([0, 1, 7, 11, 99])

    def limited(limit: int) -> Callable[[Body], Reply]:
        def answer(body: Body) -> Reply:
            if len(answered) >= limit:
                return told({"error": "spent"}, 402)
            answered.append(body["seed"])
            return tiny(body)

        return answer

    def go_on() -> int:
        with serving(limited(next(limits))) as server:
            return evaluate(problems, out, "--server", server.address, "--concurrency", "1")

    part = out.with_suffix(".jsonl.part")
    assert go_on() == 2
    assert not part.exists(), "nothing came, nothing is left"
    assert go_on() == 2
    assert len(part.read_bytes().splitlines()) == 2
    assert go_on() == 2
    lines = part.read_bytes().splitlines(True)
    assert len(lines) == 1 + 7
    answered.pop()  # a kill while the last one was written
    part.write_bytes(b"".join(lines).removesuffix(b"\n"))
    assert go_on() == 2
    assert go_on() == 0
    assert sorted(answered) == sorted(set(answered)) and len(answered) == NUM_PROBLEMS * SAMPLES
    assert "402" in capsys.readouterr().err
    for suffix in (".json", ".jsonl"):
        assert out.with_suffix(suffix).read_bytes() == whole.with_suffix(suffix).read_bytes()
    assert not part.exists()


def test_a_kill_while_a_units_responses_are_written_asks_for_none_again(
    problems: Path, tiny: Callable[[Body], Reply], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archer.evaluate, "UNIT", 2 * SAMPLES)
    whole, out = tmp_path / "whole.json", tmp_path / "out.json"
    taken: list[bytes] = []
    remove = Path.unlink

    def unlink(self: Path, missing_ok: bool = False) -> None:
        if self.name == "whole.jsonl.part":
            taken.append(self.read_bytes())
        remove(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with serving(tiny) as server:
        assert evaluate(problems, whole, "--server", server.address) == 0
    lines = taken[0].splitlines(True)
    assert len(lines) == 1 + 2 * NUM_PROBLEMS * SAMPLES
    unit = 2 * SAMPLES  # lines are: header, a unit's completions, its responses, and so on
    for num_lines, num_kept in [(1 + unit + 2, unit), (1 + 2 * unit, unit), (1 + 3 * unit, 12)]:
        out.with_suffix(".jsonl.part").write_bytes(b"".join(lines[:num_lines]) + b'{"id"')
        with serving(tiny) as server:
            assert evaluate(problems, out, "--server", server.address) == 0
        assert len(server.asked) == NUM_PROBLEMS * SAMPLES - num_kept
        for suffix in (".json", ".jsonl"):
            again = out.with_suffix(suffix)
            assert again.read_bytes() == whole.with_suffix(suffix).read_bytes()
            again.unlink()


def test_in_chat_no_tokenizer_is_needed(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with serving(lambda body: message(content="5", reasoning="2+3")) as server:
        given = ["--problems", str(problems), "--server", server.address, "--chat", "--quiet"]
        options = ["--system", "Add.", "--suffix", " =", "--answer-pattern", "number"]
        assert main(["eval", "some/judge-8b", *given, *options]) == 0
    asked = [problem.prompt for problem in load_source("arithmetic", count=NUM_PROBLEMS)]
    assert sorted(body["messages"][1]["content"] for body in server.bodies) == sorted(
        f"{prompt} =" for prompt in asked
    )
    assert {body["messages"][0]["content"] for body in server.bodies} == {"Add."}
    assert {body["model"] for body in server.bodies} == {"some/judge-8b"}
    found = read_evaluation(tmp_path / "evals" / "judge-8b-sums.json")
    assert found.model == "judge-8b"
    assert found.mean_tokens == 7
    assert found.settings["prompt"] == MessageRenderer(system="Add.", suffix=" =").describe()


def test_answers_that_the_service_withheld_are_counted_and_said(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else they could not be told from answers in which the model said nothing."""
    withheld = load_source("arithmetic", count=NUM_PROBLEMS)[0].prompt

    def answer(body: Body) -> Reply:
        if withheld in body["messages"][-1]["content"]:
            return message("content_filter", content=None, refusal="no")
        return message(content="5")

    out = tmp_path / "out.json"
    with serving(answer) as server:
        given = ["--problems", str(problems), "--server", server.address, "--chat"]
        assert main(["eval", "judge", *given, "--out", str(out), "--answer-pattern=number"]) == 0
    assert read_evaluation(out).filtered == 1 / NUM_PROBLEMS
    assert [row["stop"] for row in rows(out)].count("filtered") == 1
    assert ["filtered", "0.200"] in [line.split() for line in capsys.readouterr().out.splitlines()]


RECIPE = """
model = { name = "tiny", threads = 1 }
prompt = { system = "add" }
verify = { answer_pattern = "number", workers = 1 }
update = { minibatch = 2, learning_rate = 3e-3 }
train = { steps = 1 }
eval = { samples = 1, temperature = 0.5 }
[data]
train = [{ source = "arithmetic", count = 9 }]
evaluate = [{ source = "arithmetic", count = 4, seed = 1 }]
[rollout]
problems = 2
samples = 2
max_tokens = 6
filter = "keep"
"""


def test_a_run_brings_its_recipe_and_what_is_served_the_name(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    run, out = tmp_path / "run", tmp_path / "out.json"
    train(load_config(tmp_path / "recipe.toml"), run, Terminal(quiet=True))
    with serving() as server:
        server.names = ["served"]
        command = ["eval", str(run), "--server", server.address, "--out", str(out), "--quiet"]
        assert main(command) == 0
        # The model that training began with is not the run's.
        server.names = ["tiny", "trained"]
        assert main([*command[:-2], str(tmp_path / "other.json"), "--quiet"]) == 2
    renderer = Renderer(load_tokenizer("tiny"), system="add")
    wanted = load_source("arithmetic", count=4, seed=1)
    assert sorted(body["prompt"] for body in server.bodies) == sorted(
        renderer.render(problem.prompt).token_ids.tolist() for problem in wanted
    )
    assert {body["temperature"] for body in server.bodies} == {0.5}
    assert read_evaluation(out).model == "served"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--chat"], "--chat is for a server; give --server URL too"),
        (["--server-model", "x"], "--server-model is for a server"),
        (["--concurrency", "4"], "--concurrency is for a server"),
        (["--server", "URL", "--chat", "--server-model", "x"], "leave --server-model x out"),
        (["--server", "URL", "--chat", "--template", "raw"], "template = 'raw', but in chat"),
        (["--server", "URL", "--chat", "--template-arg", "a=1"], "template_args = {'a'"),
        (["--server", "URL", "--concurrency", "0"], "--concurrency 0: give a number from 1 on"),
        (["--server", "http://127.0.0.1:1/v1"], "cannot be reached"),
        (["--server", "URL", "--max-tokens", "9999"], "need a context of"),
    ],
)
def test_a_mistake_is_one_line(
    problems: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    with serving() as server:
        given = [server.address if option == "URL" else option for option in options]
        out = ["--out", str(tmp_path / "out.json"), "--quiet"]
        assert main(["eval", "tiny", "--problems", str(problems), *out, *given]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.startswith("archer: ") and said.count("\n") == 1
    assert not server.asked
    assert list(tmp_path.iterdir()) == []
