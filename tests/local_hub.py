"""A small hub on this machine that speaks as much of the hub's language as a download needs.

As on the real one, large files (here: .parquet and .jsonl) lie on a host of their own that the hub
leads to, have their sha256 for a name, and are said to lie in Xet as well; small ones come from the
hub itself and have git's sha1.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants

from archer.data import hub as archer_hub

TOKEN = "hf_of_a_test"


@dataclass
class Repository:
    """Its files by commit, and the commit of each branch or tag."""

    licence: str = "mit"
    gated: bool = False
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """One request for a file's bytes, and how many of them were sent."""

    name: str
    range: str | None
    num_bytes: int


class Hub(ThreadingHTTPServer):
    """What it holds, how it misbehaves, and what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.cuts: list[int] = []
        """After how many bytes each next body of a large file is cut off."""
        self.stall: threading.Event | None = None
        """What a body that is cut off waits for instead of closing the connection."""
        self.wrong = False
        """Other bytes of the same length are sent."""
        self.ranges = True
        self.refusals: list[int] = []
        """The status of each next answer."""
        self.asked: list[str] = []
        """Method and kind of each request: "GET api", "HEAD file", "GET file", "GET store"."""
        self.sent: list[Request] = []
        self.tokens: dict[str, set[str | None]] = {}
        """Which tokens came with which kind of request."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def store(self) -> str:
        return f"http://localhost:{self.server_port}/store"

    def commit(self, name: str, files: Mapping[str, bytes], *, branch: str = "main") -> str:
        """Puts files into a repository as a new commit, and returns its name."""
        repository = self.repositories.setdefault(name, Repository())
        told = json.dumps({path: checksum(path, data) for path, data in files.items()})
        commit = hashlib.sha1(told.encode()).hexdigest()
        repository.commits[commit] = dict(files)
        repository.branches[branch] = commit
        self.blobs |= {checksum(path, data): data for path, data in files.items()}
        return commit

    def forget(self) -> None:
        """Begins the count of requests anew."""
        self.asked, self.sent = [], []


def is_large(path: str) -> bool:
    return path.endswith((".parquet", ".jsonl"))


def checksum(path: str, data: bytes) -> str:
    if is_large(path):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        kind = "store" if path.startswith("/store/") else "api" if "/api/" in path else "file"
        self.server.asked.append(f"{self.command} {kind}")
        self.server.tokens.setdefault(kind, set()).add(self.headers.get("Authorization"))
        if self.server.refusals:
            self.reply(self.server.refusals.pop(0), b"{}")
        elif kind == "store":
            self.send_content(path, self.server.blobs[path.rpartition("/")[2]])
        else:
            self.find(kind, path)

    def find(self, kind: str, path: str) -> None:
        mark = "/revision/" if kind == "api" else "/resolve/"
        prefix = "/api/datasets/" if kind == "api" else "/datasets/"
        name, _, rest = path.removeprefix(prefix).partition(mark)
        repository = self.server.repositories.get(name)
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not allowed):
            # As the real one, which doesn't tell a stranger what there is.
            self.reply(404 if allowed else 401, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        revision, _, file = rest.partition("/")
        commit = repository.branches.get(revision or "main", revision)
        if commit not in repository.commits:
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif kind == "api":
            body = json.dumps(describe(name, repository, commit)).encode()
            self.reply(200, body, {"Content-Type": "application/json"})
        elif repository.gated and not allowed:
            self.reply(401, b"{}", {"X-Error-Code": "GatedRepo"})
        elif file not in repository.commits[commit]:
            self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        else:
            self.send_file(file, commit, repository.commits[commit][file])

    def send_file(self, path: str, commit: str, data: bytes) -> None:
        sum = checksum(path, data)
        if is_large(path):
            headers = {
                "X-Repo-Commit": commit,
                "X-Linked-Etag": f'"{sum}"',
                "X-Linked-Size": str(len(data)),
                "X-Xet-Hash": sum,
                "X-Xet-Refresh-Route": f"{self.server.address}/api/xet-read-token",
                "Location": f"{self.server.store}/{sum}",
            }
            self.reply(302, b"", headers)
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{sum}"'}
        if self.command == "HEAD":
            self.reply(200, data, headers)
        else:
            self.send_content(path, data, headers)

    def send_content(
        self, path: str, data: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        asked = self.headers.get("Range") if self.server.ranges else None
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        body = bytes(len(data)) if self.server.wrong else data
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        for header, value in (headers or {}).items():
            self.send_header(header, value)
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts else len(data)
        part = body[start:][:cut]
        self.wfile.write(part)
        name = path.rpartition("/")[2]
        self.server.sent.append(Request(name, self.headers.get("Range"), len(part)))
        if len(part) < len(data) - start:
            if self.server.stall is not None:
                self.server.stall.wait(60)
            self.close_connection = True

    def reply(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for header, value in (headers or {}).items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = answer

    def log_message(self, *arguments: object) -> None:
        pass


def describe(name: str, repository: Repository, commit: str) -> dict[str, Any]:
    """What the hub's interface says of a data set with `blobs=true`."""
    siblings = []
    for path, data in repository.commits[commit].items():
        sibling = {"rfilename": path, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
        if is_large(path):
            sum = checksum(path, data)
            sibling["lfs"] = {"sha256": sum, "size": len(data), "pointerSize": 130}
        else:
            sibling["blobId"] = checksum(path, data)
        siblings.append(sibling)
    card = {"license": repository.licence} if repository.licence else {}
    return {
        "id": name,
        "sha": commit,
        "private": repository.private,
        "gated": repository.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "cardData": card,
        "siblings": siblings,
    }


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers while the block runs."""
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextmanager
def reached(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the library in this process takes for the real one, with its cache in a folder."""
    for name in [name for name in os.environ if "proxy" in name.lower()]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(archer_hub, "WAITS", (0.01, 0.02, 0.04))
    close_session()
    with running() as server:
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server
        close_session()
