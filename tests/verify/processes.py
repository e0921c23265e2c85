"""Processes of the sandbox as tests find them: by their command line, below a process."""

from __future__ import annotations

from contextlib import suppress

import psutil

SERVER = "archer.verify.sandbox.server"


def sandbox_processes(below: int | None = None) -> dict[psutil.Process, int]:
    """Process -> how many others of its sandbox stand above it; below a process, or this one.

    All have one command line: each is a fork of the one above, which stands before it here. At
    level full 0 is the link, 1 the fork server and 2 a run; at the others 0 is the server.
    """
    found: dict[psutil.Process, int] = {}
    for process in psutil.Process(below).children(recursive=True):
        with suppress(psutil.Error):
            parent = process.ppid()
            if _is_of_a_sandbox(process):
                above = [found[other] for other in found if other.pid == parent]
                found[process] = above[0] + 1 if above else 0
    return found


def orphans() -> list[psutil.Process]:
    """Those whose parent is gone, anywhere on this machine."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.ppid() in (0, 1) and _is_of_a_sandbox(process):
                found.append(process)
    return found


def _is_of_a_sandbox(process: psutil.Process) -> bool:
    return any(SERVER in word for word in process.cmdline())
