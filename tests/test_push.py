"""An export is uploaded when it passed its check, and kept when the hub does not take it.

The hub is a small server on this machine that speaks as much of the hub's language as an upload
needs. The real one takes large files by another way (Xet), which the tests switch off.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from archer.cli import main
from archer.model.tiny import tiny
from tests.children import child_environment


class Hub(ThreadingHTTPServer):
    """Keeps what is uploaded; holds the weights of an earlier upload."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.blobs: dict[str, bytes] = {}
        self.lines: list[dict[str, Any]] = []
        self.tokens: set[str | None] = set()
        self.refusing = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def files(self) -> dict[str, bytes]:
        found = {}
        for line in self.lines:
            value = line["value"]
            if line["key"] == "file":
                found[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                found[value["path"]] = self.blobs[value["oid"]]
        return found


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.command == "PUT":
            self.server.blobs[hashlib.sha256(body).hexdigest()] = body
        if self.path.startswith("/api/models/"):
            self.server.tokens.add(self.headers.get("Authorization"))
        status, said = self.reply(body)
        content = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def reply(self, body: bytes) -> tuple[int, Any]:
        address = f"{self.server.address}/some/model"
        if self.server.refusing:
            return 403, {"error": "no rights to write here"}
        if self.path == "/api/repos/create":
            return 200, {"url": address}
        if "/tree/" in self.path:
            return 200, [{"type": "file", "path": "old.safetensors", "size": 1, "oid": "0"}]
        if "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith("safetensors") else "regular" for path in paths}
            files = [
                {"path": path, "uploadMode": mode, "shouldIgnore": False}
                for path, mode in modes.items()
            ]
            return 200, {"files": files}
        if self.path.endswith("/objects/batch"):
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.server.address}/lfs"}}}
                for item in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if "/commit/" in self.path:
            self.server.lines = [json.loads(line) for line in body.splitlines()]
            return 200, {"commitUrl": f"{address}/commit/abc", "commitOid": "abc", "hookOutput": ""}
        return 200, {}

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def push(folder: Path, address: str, *, token: str = "hf_of_a_test") -> Any:
    """`archer export` of a one-rank checkpoint, in a process that reads this hub's address."""
    torch.save(tiny().state_dict(), folder / "model_world_size_1_rank_0.pt")
    inherited = child_environment()
    environment = {name: value for name, value in inherited.items() if "proxy" not in name.lower()}
    environment |= {
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HOME": str(folder / "home"),
        "HF_TOKEN": token,
    }
    command = [sys.executable, "-m", "archer.cli", "export", str(folder), str(folder / "out")]
    command += ["--base", "tiny", "--push", "some/model", "--quiet"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def test_the_folder_is_uploaded_whole_and_old_weights_go(hub: Hub, tmp_path: Path) -> None:
    done = push(tmp_path, hub.address)
    assert done.returncode == 0, done.stderr
    assert f"uploaded: {hub.address}/some/model" in done.stdout
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.files == written
    assert {"model.safetensors", "config.json", "README.md", "parity.json"} <= written.keys()
    assert {"key": "deletedFile", "value": {"path": "old.safetensors"}} in hub.lines
    assert hub.tokens == {"Bearer hf_of_a_test"}


@pytest.mark.full
def test_a_hub_that_refuses_leaves_the_folder(hub: Hub, tmp_path: Path) -> None:
    hub.refusing = True
    done = push(tmp_path, hub.address)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is written and checked, but" in done.stderr
    assert "upload it later with `hf upload some/model" in done.stderr
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == tiny().state_dict().keys()


@pytest.mark.full
def test_a_hub_that_is_away_leaves_the_folder(hub: Hub, tmp_path: Path) -> None:
    address = hub.address
    hub.shutdown()  # or its thread would spin on a closed socket
    hub.server_close()
    done = push(tmp_path, address)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is written and checked, but" in done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model", "has no namespace"),
        ("a/b/c", "cannot be a name on the hub"),
        ("some/no name", "cannot be a name on the hub"),
        ("some/model", "HF_HUB_OFFLINE set"),
    ],
)
def test_a_target_that_cannot_be_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    torch.save(tiny().state_dict(), tmp_path / "model_world_size_1_rank_0.pt")
    arguments = ["export", str(tmp_path), str(tmp_path / "out"), "--base", "tiny", "--push", name]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_a_missing_token_is_said_before_any_work(tmp_path: Path) -> None:
    done = push(tmp_path, "http://127.0.0.1:9", token="")
    assert done.returncode == 2
    assert "needs a token of the hub" in done.stderr
    assert not (tmp_path / "out").exists()
