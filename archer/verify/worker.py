"""A process that has responses judged by children that it forks.

    python -P -m archer.verify.worker PARENT_PID

It reads a JSON line per response on its standard input and writes JSON lines to its standard
output: {"began": true} when what the verifier imports is loaded and a child has the response, then
one of

    {"verdict": {...}}   the child's verdict, or `limit` where the child ran out of CPU time
    {"died": "..."}      how the child ended without one

A child is a copy of this process as it was after the imports. A user's function gets a fresh one
for every response, so no verdict depends on what was judged before; the verifiers of `REUSED` keep
nothing between calls, and theirs serves `MAX_SERVED` responses (a fork costs 40 ms, most of it page
faults, and reading a formula 3 ms). The kernel limits each response's CPU time and the child's
memory. The wall clock is the parent's matter (archer.verify.pool): it kills the process group.

Ctrl-C is ignored, it is the parent's to answer. When the parent dies this process does, and its
child with it.
"""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import select
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from archer.verdict import Problem
    from archer.verify.policy import Policy

Request = dict[str, Any]
"""A problem's fields as "problem", "response", "in_thought", and the fields of "policy"."""

REUSED = frozenset(
    "math exact normalised choice json_schema thought_format language composite".split()
)
"""Verifiers whose child serves more than one response; a composite's where all its parts are."""
SANDBOXED = frozenset({"code"})
"""Verifiers that run programs in the sandbox: this process is then the trusted side, and stays."""
MAX_SERVED = 200
"""Responses that such a child serves, so that no cache of its libraries grows without end."""


def main() -> None:
    """Serves requests until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(int(sys.argv[1]))
    replies = os.dup(1)
    os.dup2(2, 1)  # what a verifier prints must not end up among the replies
    child: Child | None = None
    for line in _lines(0):
        request = json.loads(line)
        try:
            verifiers = _load_all(request["problem"])
        except Exception as fault:  # noqa: BLE001 - a user's module may raise anything
            _write(replies, {"verdict": _error(fault)})
            continue
        if verifiers & SANDBOXED:
            _write(replies, {"began": True, "wall_seconds": _longest_wait(request)})
            _write(replies, {"verdict": _judge(request)})
            continue
        if child and child.verifiers != verifiers:
            end(child)
            child = None
        child = child or fork(verifiers, replies)
        _write(replies, {"began": True})
        reply = ask(child, line)
        if reply is None:
            end(child)
            return
        answer = {"verdict": json.loads(reply)} if reply else None
        child.served += 1
        if not answer or not _may_serve_on(child, answer["verdict"]["outcome"]):
            status = end(child)
            child = None
            answer = answer or _ending(status, request["policy"]["cpu_seconds"])
        _write(replies, answer)


def _lines(descriptor: int) -> Iterator[bytes]:
    """Complete lines as they arrive; none is read ahead of the one that is being served."""
    received = bytearray()
    while chunk := os.read(descriptor, 1 << 16):
        received += chunk
        while (end_of_line := received.find(b"\n", max(0, len(received) - len(chunk)))) >= 0:
            line = bytes(received[: end_of_line + 1])
            del received[: end_of_line + 1]
            yield line


def die_with(parent: int) -> None:
    """Has the kernel (Linux) kill this process when its parent dies; ends it if it already has."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)


def _write(descriptor: int, message: Request) -> None:
    _send(descriptor, json.dumps(message).encode() + b"\n")


def _send(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _load_all(problem: Request) -> frozenset[str]:
    """Loads all that a problem's verdict asks; returns the verifiers' names."""
    from archer.verify.verifiers import verifiers_of

    verifiers = verifiers_of(problem["verifier"], problem["answer"])
    for verifier in sorted(verifiers):
        _load(verifier)
    return verifiers


@cache
def _load(verifier: str) -> None:
    from archer.verify.verifiers import prepare

    prepare(verifier)
    gc.collect()
    gc.freeze()  # pages that no collection touches stay shared with the children


def _error(fault: BaseException) -> Request:
    return {"outcome": "error", "score": 0.0, "detail": f"{type(fault).__name__}: {fault}"[:500]}


def _may_serve_on(child: Child, outcome: str) -> bool:
    sound = outcome not in ("limit", "error")  # an exhausted memory may not come back
    return sound and child.verifiers <= REUSED and child.served < MAX_SERVED


def _ending(status: int, allowed: float) -> Request:
    """What to say of a child that ended without a verdict."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number in (signal.SIGPROF, signal.SIGXCPU):
            detail = f"more than {allowed:g} s of CPU time"
            verdict = {"outcome": "limit", "score": 0.0, "detail": detail, "seconds": allowed}
            return {"verdict": verdict}
        return {"died": f"killed by {signal.Signals(number).name}"}
    return {"died": f"exit status {os.waitstatus_to_exitcode(status)}"}


# --- children ---


@dataclass(slots=True, kw_only=True)
class Child:
    """A copy of this process that judges responses: reads `requests`, writes `verdicts`."""

    pid: int
    verifiers: frozenset[str]
    requests: int
    verdicts: int
    served: int = 0


def fork(verifiers: frozenset[str], replies: int) -> Child:
    """A child for these verifiers; `replies` is what it must not hold."""
    worker = os.getpid()
    child_requests, requests = os.pipe()
    verdicts, child_verdicts = os.pipe()
    pid = os.fork()
    if pid == 0:
        for descriptor in (replies, requests, verdicts):
            os.close(descriptor)
        _judge_all(child_requests, child_verdicts, worker)
    os.close(child_requests)
    os.close(child_verdicts)
    return Child(pid=pid, verifiers=verifiers, requests=requests, verdicts=verdicts)


def ask(child: Child, line: bytes) -> bytes | None:
    """The child's verdict; empty where it died, None where this process's parent did."""
    with suppress(BrokenPipeError):
        _send(child.requests, line)
    poll = select.poll()
    poll.register(child.verdicts, select.POLLIN)
    poll.register(0, select.POLLIN)
    reply = b""
    while not reply.endswith(b"\n"):
        ready = [descriptor for descriptor, _ in poll.poll()]
        if child.verdicts not in ready:
            return None  # nothing more is sent before the reply, so this is the end of the input
        chunk = os.read(child.verdicts, 1 << 16)
        if not chunk:
            return b""
        reply += chunk
    return reply


def end(child: Child) -> int:
    """Kills a child if it still lives, and returns how it ended."""
    os.close(child.requests)
    os.close(child.verdicts)
    with suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)
    return os.waitpid(child.pid, 0)[1]


def _judge_all(requests: int, verdicts: int, worker: int) -> NoReturn:
    """In the child: a verdict for every request, until it is killed or has been asked for all."""
    try:
        die_with(worker)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        warnings.simplefilter("ignore")
        limit_memory = True
        for line in _lines(requests):
            request = json.loads(line)
            if limit_memory:
                limit(resource.RLIMIT_AS, _address_space() + request["policy"]["memory_mb"] * 2**20)
                limit(resource.RLIMIT_CORE, 0)
                limit_memory = False
            _write(verdicts, _judge(request))
    finally:
        os._exit(1)


def _judge(request: Request) -> Request:
    from archer.verify.verifiers import verify

    problem, policy = _asked(request)
    if problem.verifier not in SANDBOXED:
        _same_random_numbers()
        _start_cpu_clock(policy.cpu_seconds)
    try:
        verdict = verify(problem, request["response"], request["in_thought"], policy)
    except BaseException as fault:  # noqa: BLE001 - sys.exit() in a verifier is no verdict either
        return _error(fault)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return asdict(verdict)


def _asked(request: Request) -> tuple[Problem, Policy]:
    from archer.verdict import Problem
    from archer.verify.policy import Policy

    fields = request["problem"]
    if isinstance(fields["prompt"], list):
        fields["prompt"] = tuple(fields["prompt"])
    return Problem(**fields), Policy(**request["policy"])


def _longest_wait(request: Request) -> float:
    from archer.verify.code import longest_wait

    return longest_wait(*_asked(request))


def _same_random_numbers() -> None:
    """Whatever a verifier draws, it draws the same in every process."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "sympy" in sys.modules:
        sys.modules["sympy.core.random"].seed(0)


def _start_cpu_clock(cpu_seconds: float) -> None:
    """From here on so much CPU time, then the kernel ends the process with SIGPROF."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    # Whoever turns the timer off (a profiler in a user's verifier) still meets this limit.
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + cpu_seconds) + 2)


def limit(kind: int, value: int) -> None:
    """Sets a limit of this process, as far as the one it was started with allows."""
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with suppress(ValueError, OSError):  # a system that does not know this limit
        resource.setrlimit(kind, (value, hard))


def _address_space() -> int:
    """What the interpreter and its libraries already take, in bytes; 0 where that is not known."""
    with suppress(OSError), open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()
    return 0


if __name__ == "__main__":
    main()
