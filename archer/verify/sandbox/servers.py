"""Fork servers as the trusted side holds them: started, told what may be read, spoken to.

What happens inside one is told in server.py. One that ends, or says nothing, raises ServerDied:
another one will do. One that can't be had at all raises SandboxFault.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import resource
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import archer
from archer.verify.policy import Level
from archer.verify.sandbox.confine import DEVICES, NOBODY

LIBRARIES = ("numpy", "sortedcontainers")
"""What programs can import besides the standard library, where it is installed."""
HIDDEN = ("site-packages", "dist-packages")
"""Folders within the interpreter's library that hold other people's packages."""
STACK_BYTES = 512 << 20
MAX_MESSAGE = 1 << 16
START_SECONDS = 30.0
"""Wall time that a server may take to start, on a busy machine."""


class SandboxFault(Exception):
    """The sandbox failed; of the program nothing is known."""


class ServerDied(SandboxFault):
    """The fork server ended: another one will do."""


class ForkServer:
    """One fork server process and the socket to it."""

    def __init__(self, level: Level, preload: Sequence[str]) -> None:
        self.level = level
        self.ended = False
        self._numbers = iter(range(1, 2**62))
        self._news: dict[int, list[tuple[dict[str, Any], list[int]]]] = {}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control = ours
        source = str(Path(archer.__file__).parents[1])
        boot = (
            f"import sys; sys.path.insert(0, {source!r}); "
            "from archer.verify.sandbox.server import main; main()"
        )
        with theirs, _large_stack():
            self._process = subprocess.Popen(
                [_interpreter(), "-P", "-s", "-S", "-B", "-c", boot, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                cwd="/",
            )
        try:
            self._set_up(source, preload)
        except BaseException:
            self.close()
            raise

    def _set_up(self, source: str, preload: Sequence[str]) -> None:
        self.control.settimeout(START_SECONDS)
        setup = {"level": self.level, "source": source, "preload": preload, **_places()}
        self._send(setup)
        if self.level == "full":
            if "failed" in (answer := self._receive()[0]):
                raise SandboxFault(answer["failed"])
            _map_users(self._process.pid)
            self._send({"mapped": True})
        answer = self._receive()[0]
        if "ready" not in answer:
            raise SandboxFault(answer["failed"])
        self.control.setblocking(False)

    def launch(self, request: dict[str, Any], descriptors: list[int]) -> int:
        """Sends a run's descriptors and what it is to do; returns its number."""
        number = next(self._numbers)
        self._send({"run": number, **request}, descriptors)
        return number

    def has_news(self, run: int) -> bool:
        """Whether something was received of a run that it has not heard yet."""
        return run in self._news

    def news(self, run: int) -> Iterator[tuple[dict[str, Any], list[int]]]:
        """What the server has said of a run since the last call; raises ServerDied."""
        while not self.ended:
            try:
                message, descriptors = self._receive()
            except BlockingIOError:
                break
            self._news.setdefault(message["run"], []).append((message, descriptors))
        yield from self._news.pop(run, [])

    def _send(self, message: dict[str, Any], descriptors: list[int] | None = None) -> None:
        try:
            socket.send_fds(self.control, [json.dumps(message).encode()], descriptors or [])
        except (OSError, TimeoutError) as fault:
            self.ended = True
            raise ServerDied(f"the fork server is gone: {fault}") from None

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        try:
            data, descriptors, _, _ = socket.recv_fds(self.control, MAX_MESSAGE, 1)
        except BlockingIOError:
            raise
        except OSError as fault:
            self.ended = True
            raise ServerDied(f"the fork server says nothing: {fault}") from None
        if not data:
            self.ended = True
            raise ServerDied("the fork server ended")
        return json.loads(data), descriptors

    def close(self) -> None:
        """Ends the server; the kernel ends all that it has forked."""
        self.ended = True
        for _, descriptors in chain.from_iterable(self._news.values()):
            for descriptor in descriptors:  # of runs that were given up before they heard
                os.close(descriptor)
        self._news.clear()
        self.control.close()
        self._process.kill()
        self._process.wait()


def _map_users(pid: int) -> None:
    """Names the users of a new user namespace: nobody, and root for root while it mounts."""
    if os.getuid() == 0:
        both = f"0 0 1\n{NOBODY} {NOBODY} 1\n"
        lines = {"uid_map": both, "gid_map": both}
    else:  # who is not root may name no one but himself, and must give up groups
        lines = {
            "setgroups": "deny",
            "uid_map": f"{NOBODY} {os.getuid()} 1\n",
            "gid_map": f"{NOBODY} {os.getgid()} 1\n",
        }
    for name, content in lines.items():
        try:
            Path(f"/proc/{pid}/{name}").write_text(content)
        except (FileNotFoundError, ProcessLookupError):
            raise ServerDied("the fork server ended at its start") from None
        except OSError as fault:
            raise SandboxFault(f"{name}: {fault.strerror}") from None


@contextmanager
def _large_stack() -> Iterator[None]:
    """For deep recursion: how far a stack may grow is decided when an interpreter starts.

    Afterwards this process has its own limit again, which all else that it starts inherits.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    wanted = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))


@functools.cache
def _interpreter() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@functools.cache
def _places() -> dict[str, Any]:
    """What programs may read: the interpreter's library, the system's shared objects, LIBRARIES."""
    library = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    with open("/proc/self/maps") as maps:
        shared = {line.split()[-1] for line in maps if ".so" in line}
    system = {os.path.dirname(path) for path in shared if _stem(path) in ("libc", "ld")}
    own = {path for path in shared if _stem(path).startswith("libpython")}
    entries = [entry for folder in library for entry in os.scandir(folder)]
    hidden = [entry.path for entry in entries if entry.name in HIDDEN]
    libraries, beside = _libraries()
    return {
        "folders": sorted(library | system),
        "hidden": hidden,
        "places": [*own],
        "site": [*libraries.values(), *beside],
        "readable": [
            *(entry.path for entry in entries if entry.name not in HIDDEN),
            *system,
            *own,
            *libraries.values(),
            *beside,
            *DEVICES,
        ],
        "libraries": libraries,
    }


def _stem(path: str) -> str:
    """ "libc" for "/usr/lib/x86_64-linux-gnu/libc.so.6", "ld" for the dynamic loader."""
    return os.path.basename(path).partition(".")[0].partition("-")[0]


def _libraries() -> tuple[dict[str, str], list[str]]:
    """Where the LIBRARIES are that are installed, and the folders of shared objects beside them."""
    found: dict[str, str] = {}
    for name in LIBRARIES:
        spec = importlib.util.find_spec(name)
        for folder in (spec and spec.submodule_search_locations) or ():
            found[name] = os.path.realpath(folder)
    beside = [f"{folder}.libs" for folder in found.values() if os.path.isdir(f"{folder}.libs")]
    return found, beside
