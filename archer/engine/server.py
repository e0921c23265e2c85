"""Sampling by a server that speaks OpenAI's language: vLLM, SGLang, llama.cpp, hosted services.

    server = open_server(Address(url="http://localhost:8000/v1"))
    for sample in server.generate(requests, sampling): ...

A prompt goes to URL/completions as the tokens that it has in training, so nothing is rendered
twice or otherwise. In chat its messages go to URL/chat/completions, and the server's own template
renders them. Every completion is a request of its own, with a seed from its name; whether equal
seeds give equal texts is the server's matter. A key is taken from OPENAI_API_KEY.

vLLM and llama.cpp sample by defaults of their own (the model's generation_config; top-k 40) unless
told otherwise, so a request for a completion tells them all. One in chat holds only what every
service knows: there the server's own top-k, min-p and penalties stand.

Left out: log-probs and entropies, which are NaN, streaming, and learning from such completions.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from asyncio import sleep
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import httpx2
import numpy as np
from pydantic import BaseModel, Field, RootModel, ValidationError

from archer.data.problems import nearest, shown
from archer.engine.base import Request, Sample, Sampling
from archer.randomness import key
from archer.types import Completion, StopReason

CONCURRENCY = 32
"""Requests at a time where nothing else is asked for."""

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds before the next tries of a request, longer where the server asks for it."""

LONGEST_WAIT = 600.0
"""Seconds; a server that asks for more is not waited for."""

CONNECT_SECONDS = 10.0
"""That a connection, and the list of models, may take."""

SECONDS, SECONDS_PER_TOKEN = 600.0, 0.1
"""That an answer may take: in the queue, and for each token of its limit."""

BUSY = {408, 409, 425, 429}
"""What a server answers that may do better in a moment, beside 500 and above."""

STOPS: dict[str, StopReason] = {"stop": "stop", "content_filter": "filtered", "length": "length"}
"""Reasons to finish that leave an answer; `abort` is none of them."""

WHOLE_DISTRIBUTION = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""What the local sampler does, in words that vLLM, SGLang and llama.cpp agree on."""

NO_TOKEN = -1
"""Stands for each token of a completion whose server counts them but does not name them."""

SHOWN = 200
"""Characters of a server's message that are shown."""

KEY_CURE = "set OPENAI_API_KEY to a key that it takes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server is, and how it is to be asked.

    Example:
        Address(url="http://localhost:8000", chat=False, concurrency=64)
    """

    url: str
    """With or without /v1."""
    model: str | None = None
    """Its name on the server; None leaves it to `open_server`."""
    chat: bool = False
    concurrency: int = CONCURRENCY


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A model that a server samples from.

    Example:
        Server(url="http://localhost:8000/v1", model="mine", models=("mine",), chat=False,
               concurrency=32)
    """

    url: str
    """What /completions stands behind."""
    model: str
    models: tuple[str, ...]
    """What the server listed."""
    chat: bool
    concurrency: int
    """Requests that wait for an answer at a time."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Sample]:
        """Yields completions as they finish; what is not finished when it is closed is given up.

        `token_ids` are the server's, or as many times NO_TOKEN as it counts.

        ValueError for a server that refuses, answers otherwise than it should, or is still busy
        after all tries, and for sampling that it may not know (top-k, min-p).
        """
        if sampling.top_k or sampling.min_p:
            raise ValueError(
                f"top_k = {sampling.top_k} and min_p = {sampling.min_p}, which not every server "
                "knows: set both to 0, or sample without a server"
            )
        finished: SimpleQueue[Sample | BaseException] = SimpleQueue()
        loop = asyncio.new_event_loop()
        asking = loop.create_task(self._ask_all(requests, sampling, finished.put))
        thread = Thread(target=_run, args=(loop, asking, finished.put), daemon=True)
        thread.start()
        try:
            for _ in range(sum(len(request.names) for request in requests)):
                sample = finished.get()
                if isinstance(sample, BaseException):
                    raise sample
                yield sample
        except BaseException:
            with suppress(RuntimeError):  # the loop is closed: all is over
                loop.call_soon_threadsafe(asking.cancel)
            raise
        finally:
            thread.join()

    async def _ask_all(
        self, requests: Sequence[Request], sampling: Sampling, tell: Callable[[Sample], None]
    ) -> None:
        """Tells each sample; the first error ends all."""
        places = asyncio.Semaphore(self.concurrency)
        seconds = SECONDS + SECONDS_PER_TOKEN * sampling.max_tokens

        async def ask(client: httpx2.AsyncClient, i: int, j: int) -> None:
            await places.acquire()
            answer = await self._answer(client, self._body(requests[i], j, sampling))
            completion = self._completion(requests[i], answer, sampling)
            places.release()  # not after an error: nothing more is to begin then
            tell(Sample(i, j, completion))

        async with (
            httpx2.AsyncClient(
                headers=_headers(),
                timeout=httpx2.Timeout(seconds, connect=CONNECT_SECONDS, pool=None),
                limits=httpx2.Limits(max_keepalive_connections=self.concurrency),
            ) as client,
            asyncio.TaskGroup() as tasks,
        ):
            for i, request in enumerate(requests):
                for j in range(len(request.names)):
                    tasks.create_task(ask(client, i, j))

    def _body(self, request: Request, number: int, sampling: Sampling) -> dict[str, Any]:
        body = {
            "model": self.model,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed(request.names[number]),
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if self.chat:
            return {**body, "messages": [dict(message) for message in request.messages]}
        prompt = request.prompt_ids.tolist()
        return {**body, "prompt": prompt, **WHOLE_DISTRIBUTION, "return_token_ids": True}

    async def _answer(self, client: httpx2.AsyncClient, body: dict[str, Any]) -> httpx2.Response:
        """The server's answer with status 200; asks again where that may help."""
        url = f"{self.url}/chat/completions" if self.chat else f"{self.url}/completions"
        waits = iter(WAITS)
        while True:
            longer = 0.0
            try:
                answer = await client.post(url, json=body)
            except httpx2.TransportError as error:
                trouble = f"cannot be reached ({_one_line(error)})"
            except httpx2.DecodingError as error:
                raise _garbled(url, error) from error
            else:
                if answer.status_code == 200:
                    return answer
                if "max_tokens" in body and _wants_other_limit(answer):
                    body["max_completion_tokens"] = body.pop("max_tokens")
                    continue
                if answer.status_code not in BUSY and answer.status_code < 500:
                    raise self._refusal(answer)
                trouble, longer = _status(answer), _retry_after(answer)
            wait = next(waits, None)
            if longer > LONGEST_WAIT:
                raise ValueError(
                    f"{self.url} {trouble} and asks to wait {longer:.0f} s: run the same command "
                    "again then, which goes on"
                )
            if wait is None:
                raise ValueError(
                    f"{self.url} {trouble}, {len(WAITS) + 1} times in turn: see to the server and "
                    "run the same command again, which goes on"
                )
            await sleep(max(wait, longer))

    def _refusal(self, answer: httpx2.Response) -> ValueError:
        """What the server says, with the cure."""
        if answer.status_code in (401, 403):
            cure = KEY_CURE
        elif answer.status_code == 404:
            what = "as MODEL" if self.chat else "--server-model"
            cure = f"give {what} a name that it has ({nearest(self.model, self.models)})"
            cure += "" if self.chat else ", or --chat if it has no /completions"
        elif answer.status_code in (400, 413, 422):
            cure = "change what it names"
            cure += "" if self.chat else ", or give --chat if it takes no token ids"
        else:
            cure = "see to that and run the same command again, which goes on"
        return ValueError(f"{self.url} {_status(answer)} for {self.model!r}: {cure}")

    def _completion(
        self, request: Request, answer: httpx2.Response, sampling: Sampling
    ) -> Completion:
        told = _checked(_Answer, answer)
        choice, usage = told.choices[0], told.usage
        whole = _text_of(choice.message) if choice.message else choice.text
        if whole is None:
            raise _unfit(answer, "no text")
        if choice.finish_reason not in STOPS:
            raise _unfit(answer, f"the unknown finish_reason {choice.finish_reason!r}")
        if not self.chat and usage.prompt_tokens and usage.prompt_tokens != len(request.prompt_ids):
            raise ValueError(
                f"{self.url} read {usage.prompt_tokens} tokens where {len(request.prompt_ids)} "
                f"were sent: {self.model!r} must read prompts as they are, with the tokenizer of "
                "MODEL; correct one of them, or give --chat"
            )
        ids = choice.token_ids
        if ids is None and usage.completion_tokens is None:
            raise _unfit(answer, "no usage.completion_tokens")
        ids = [NO_TOKEN] * (usage.completion_tokens or 0) if ids is None else ids
        unknown = np.full(len(ids), np.nan, dtype=np.float32)
        text = _before_stop(whole, sampling.stop)
        return Completion(
            prompt_ids=request.prompt_ids,
            token_ids=np.array(ids, dtype=np.int32),
            logps=unknown,
            entropies=unknown,
            policy_version=0,
            stop=STOPS[choice.finish_reason] if text == whole else "stop",
            in_thought=request.in_thought,
            text=text,
        )


def open_server(address: Address, *, own: str | None = None) -> Server:
    """A server that answers, and the name of its model.

    Where the address names no model it is `own`, if the server lists that, else the only one that
    it lists.

    ValueError for an address that is none, a server that does not list its models, and a choice
    that is left open.
    """
    if address.concurrency < 1:
        raise ValueError(f"--concurrency {address.concurrency}: give a number from 1 on")
    url = _base(address.url)
    models = _listed(url)
    model = address.model
    if model is None:
        named = [name for name in models if name == own] or models
        if len(named) != 1:
            which = nearest(own or "", models) if models else "it lists none"
            raise ValueError(f"which model of {url}? Give --server-model NAME; {which}")
        model = named[0]
    return Server(
        url=url, model=model, models=models, chat=address.chat, concurrency=address.concurrency
    )


def seed(name: tuple[str | int, ...]) -> int:
    """The seed that a completion's name gives: 31 bits, which every server takes."""
    return key("sample", *name) >> (128 - 31)


def _run(
    loop: asyncio.AbstractEventLoop,
    asking: asyncio.Task[None],
    tell: Callable[[BaseException], None],
) -> None:
    """The thread that asks: not the caller's own, where another loop may run already."""
    loop.run_until_complete(asyncio.wait([asking]))
    loop.run_until_complete(loop.shutdown_asyncgens())  # and so a turn in which connections close
    loop.close()
    if not asking.cancelled() and (error := asking.exception()) is not None:
        tell(error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error)


# What is sent


def _base(url: str) -> str:
    """The address with /v1 where it has no path; what is shown holds no password."""
    try:
        parts = urlsplit(url)
        fit = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        fit = False
    if not fit or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            f"{url.rpartition('@')[2]!r} is no address of a server: give --server one such as "
            "http://localhost:8000/v1, and a key in OPENAI_API_KEY"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


def _api_key() -> str:
    """The key; ValueError where the HTTP library would refuse it, for that one shows it."""
    found = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (found.isascii() and found.isprintable()):
        raise ValueError("OPENAI_API_KEY holds what no key does: set it anew, in plain characters")
    return found


def _headers() -> dict[str, str]:
    return {"Authorization": f"Bearer {found}"} if (found := _api_key()) else {}


def _listed(url: str) -> tuple[str, ...]:
    """The names of a server's models."""
    headers = _headers()
    try:
        answer = httpx2.get(f"{url}/models", headers=headers, timeout=CONNECT_SECONDS)
    except httpx2.DecodingError as error:
        raise _garbled(f"{url}/models", error) from error
    except (httpx2.RequestError, httpx2.InvalidURL, UnicodeError) as error:
        raise ValueError(
            f"{url} cannot be reached ({_one_line(error)}): start the server, or correct --server"
        ) from error
    except (ImportError, ValueError) as error:  # before anything is sent
        raise ValueError(
            f"{url} cannot be asked by way of the proxy that the environment names "
            f"({_one_line(error)}): install what that one needs, or unset ALL_PROXY, HTTPS_PROXY "
            "and HTTP_PROXY"
        ) from error
    if answer.status_code != 200:
        cure = "try again when it is ready"
        if answer.status_code in (401, 403):
            cure = KEY_CURE
        elif answer.status_code < 500:
            cure = "give --server as far as /v1, such as http://localhost:8000/v1"
        raise ValueError(f"{url}/models {_status(answer)}: {cure}")
    found = _checked(_Models, answer).root
    return tuple(each.id for each in (found.data if isinstance(found, _Listing) else found))


# What is answered


Count = Annotated[int, Field(ge=0, lt=2**31)]


class _Model(BaseModel, strict=True):
    """One of GET /models."""

    id: str


class _Listing(BaseModel, strict=True):
    """What nearly every service wraps the list in."""

    data: list[_Model]


class _Models(RootModel[_Listing | list[_Model]]):
    """GET /models."""


class _Usage(BaseModel, strict=True):
    """What the server counts."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class _Message(BaseModel, strict=True):
    """An answer in chat. The thought has one of two names, by the server."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(BaseModel, strict=True):
    """A completion: `text`, or in chat a `message`."""

    finish_reason: str
    text: str | None = None
    message: _Message | None = None
    token_ids: list[Count] | None = None


class _Answer(BaseModel, strict=True):
    """POST /completions and POST /chat/completions."""

    choices: list[_Choice] = Field(min_length=1, max_length=1)
    usage: _Usage = _Usage()


M = TypeVar("M", bound=BaseModel)


def _checked(kind: type[M], answer: httpx2.Response) -> M:
    try:
        return kind.model_validate_json(answer.content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise _unfit(answer, f"{where}: {first['msg']}" if where else first["msg"]) from None


def _unfit(answer: httpx2.Response, fault: str) -> ValueError:
    said = shown(_hidden(" ".join(answer.text.split())), SHOWN)
    return ValueError(
        f"{answer.url} does not answer as an OpenAI-compatible server ({_hidden(fault)}) but "
        f"{said}: correct --server, or see to it"
    )


def _garbled(url: str, error: httpx2.DecodingError) -> ValueError:
    """For a body that is not in the encoding that its headers name."""
    return ValueError(
        f"{url} sends what cannot be read ({_one_line(error)}): correct --server, or see to it"
    )


def _text_of(message: _Message) -> str:
    """Thought and answer as a model writes them; a thought that was cut off is not closed."""
    thought, content = message.reasoning_content or message.reasoning, message.content or ""
    if not thought:
        return content
    return f"<think>{thought}</think>{content}" if content else f"<think>{thought}"


def _before_stop(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop string, which some servers leave there."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def _wants_other_limit(answer: httpx2.Response) -> bool:
    """OpenAI's own reasoning models know the token limit by its newer name alone."""
    return answer.status_code == 400 and "max_completion_tokens" in answer.text


def _retry_after(answer: httpx2.Response) -> float:
    """Seconds that the server asks to wait; 0 where it names none, or a date."""
    told = answer.headers.get("Retry-After", "")
    return float(told) if re.fullmatch(r"\d{1,9}(\.\d+)?", told) else 0.0


def _status(answer: httpx2.Response) -> str:
    """Status and message, shortened, without the key that a server may repeat in it."""
    try:
        told = json.loads(answer.content)
    except ValueError:
        told = answer.text
    for name in ("error", "message", "detail"):
        told = told.get(name, told) if isinstance(told, dict) else told
    said = _hidden(" ".join(str(told).split())) or answer.reason_phrase
    return f"answers {answer.status_code} ({said[:SHOWN]})"


def _hidden(text: str) -> str:
    found = _api_key()
    return text.replace(found, "...") if found else text


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
