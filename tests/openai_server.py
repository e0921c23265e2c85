"""A small server on this machine that speaks as much of OpenAI's language as sampling needs.

What it answers is a function of the request's body, so a test says what it wants to see; the server
counts what it was asked, and how much of that at a time.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What is sent back; status 0 drops the connection without a word."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)


def told(value: object, status: int = 200, **headers: str) -> Reply:
    """A JSON value as a reply."""
    return Reply(status, json.dumps(value).encode(), headers)


def completion(text: str = "5", **more: Any) -> Reply:
    """A completion as vLLM words it, with other fields of the choice or of the whole."""
    whole = {name: more.pop(name) for name in ("usage",) if name in more}
    usage = {"prompt_tokens": 0, "completion_tokens": 2}
    return told(
        {
            "usage": usage,
            **whole,
            "choices": [{"index": 0, "text": text, "finish_reason": "stop", **more}],
        }
    )


def message(finish_reason: str = "stop", **said: Any) -> Reply:
    """A chat completion with the fields of its message."""
    choice = {"index": 0, "message": {"role": "assistant", **said}, "finish_reason": finish_reason}
    return told({"choices": [choice], "usage": {"completion_tokens": 7}})


class OpenAIServer(ThreadingHTTPServer):
    """Its models, its answers, and what it was asked."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Callable[[Body], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.answer = answer
        self.models: Reply | None = None
        """What GET /models answers instead of `names`."""
        self.names = ["mine"]
        self.asked: list[tuple[str, Body]] = []
        """Path and body of each POST, in the order of their arrival."""
        self.keys: set[str | None] = set()
        """What came as Authorization."""
        self.most = 0
        """Requests that were open at a time, at the most."""
        self.open = 0
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked may be gone; anything else is this test's own mistake, and shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def bodies(self) -> list[Body]:
        return [body for _, body in self.asked]


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: OpenAIServer

    def do_GET(self) -> None:
        self.server.keys.add(self.headers.get("Authorization"))
        if self.path != "/v1/models":
            self.send(told({"detail": "Not Found"}, 404))
            return
        listed = {"object": "list", "data": [{"id": name} for name in self.server.names]}
        self.send(self.server.models or told(listed))

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        data = self.rfile.read(length)
        if len(data) < length:  # whoever asked is gone
            self.close_connection = True
            return
        body, server = json.loads(data), self.server
        with server.lock:
            server.keys.add(self.headers.get("Authorization"))
            server.asked.append((self.path, body))
            server.open += 1
            server.most = max(server.most, server.open)
        try:
            reply = server.answer(body)
        finally:
            with server.lock:
                server.open -= 1
        self.send(reply)

    def send(self, reply: Reply) -> None:
        self.close_connection = not reply.status
        if not reply.status:
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def serving(answer: Callable[[Body], Reply] | None = None) -> Iterator[OpenAIServer]:
    """A server that answers while the block runs; without a function always "5"."""
    with OpenAIServer(answer or (lambda body: completion())) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
