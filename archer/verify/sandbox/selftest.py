"""Attempts to get out of the sandbox, made by programs inside it; `archer doctor` shows what became
of them.

Each attempt is an expression or a few statements that succeed only where the sandbox has a hole.
The program that makes them says which of them succeeded; that it is honest about it is part of the
test, for these programs are ours.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass

from archer.verify.policy import LEVELS, Level
from archer.verify.sandbox.client import Limits, Sandbox
from archer.verify.sandbox.servers import SandboxFault

ATTEMPTS = {
    "start a process": "import os\nif os.fork() == 0: os._exit(0)",
    "run a command": "import os\nos.execv('/bin/true', ['true']) if os.fork() == 0 else 0",
    "open a socket": "import socket\nsocket.socket()",
    "read a file of the machine": "open('/etc/passwd').read()",
    "list the home folders": "import os\nassert os.listdir('/home') or os.listdir('/root')",
    "look at other processes": "import os\nassert os.listdir('/proc')",
    "write beside the library": (
        "import os\nx = os.path.dirname(os.__file__) + '/archer_attempt.py'\n"
        "open(x, 'x').close()\nos.remove(x)"  # where it succeeds, too, nothing is left
    ),
    "fill the disk": "import os\nf = open('x', 'wb')\nfor i in range(200): f.write(bytes(2**20))",
    "signal its parent": "import os\nassert os.getppid() > 1\nos.kill(os.getppid(), 0)",
    "signal everything": "import os\nassert os.getpid() > 1\nos.kill(-1, 0)",
    "trace a process": "assert libc.ptrace(0, 0, 0, 0) == 0",
    "make a namespace": "assert libc.unshare(0x10000000) == 0",
    "share memory by System V": (
        "x = libc.shmget(0, 4096, 0o1600)\nassert x >= 0\n"
        "libc.shmctl(x, 0, None)"  # IPC_RMID: it would outlive the program and all above it
    ),
    "keep memory out of its limit": "import os\nos.memfd_create('x')",
    "take more memory than allowed": "bytearray(2**30)",
    "see the environment": "import os\nassert set(os.environ) - {'OPENBLAS_NUM_THREADS'}",
    "raise its limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "become root": "import os\nos.setuid(0)\nassert os.getuid() == 0",
}
"""What is attempted -> how; it fails by raising."""

_PROGRAM = """
import ctypes, json
libc = ctypes.CDLL(None)
succeeded = []
for name, attempt in {attempts}.items():
    try:
        exec(attempt, {{"libc": libc}})
        succeeded.append(name)
    except BaseException:
        pass
print(json.dumps(succeeded))
"""
_LIMITS = Limits(cpu_seconds=5.0, wall_seconds=30.0, memory_mb=256, output_bytes=1 << 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a level does on this machine.

    Example: Finding(level="full", fault="", succeeded=())
    """

    level: Level
    fault: str
    """Why there is no such level here; empty where there is."""
    succeeded: tuple[str, ...] = ()
    """The attempts that got out."""


def try_level(level: Level) -> Finding:
    """Makes all attempts at a level of the sandbox."""
    source = textwrap.dedent(_PROGRAM).format(attempts=repr(ATTEMPTS))
    try:
        with Sandbox(level) as sandbox, sandbox.start("stdin", source, _LIMITS) as run:
            run.confirm()
            ending = run.finish()
            said = run.stdout.splitlines()
    except SandboxFault as fault:
        return Finding(level=level, fault=str(fault))
    if ending.reason != "ended" or ending.status or not said:
        return Finding(level=level, fault=f"the self-test did not end by itself: {ending}")
    return Finding(level=level, fault="", succeeded=tuple(json.loads(said[-1])))


def best_level() -> tuple[Finding, list[Finding]]:
    """The first of "full" and "restricted" that there is here, or else "weak"; and those before."""
    missing: list[Finding] = []
    for level in LEVELS:
        finding = try_level(level)
        if not finding.fault:
            return finding, missing
        missing.append(finding)
    return missing.pop(), missing
