"""Commands in child processes that kill themselves at a given event.

Not a test: `killing` starts this file as a program, tests write commands to its standard input, a
line of JSON each, and read what came of them. Everything is imported once; each command is a fork
of that, so that a kill costs no second.

    {"commands": [["watch", ...], ...], "kill_at": [7]}
    -> {"codes": [-9], "events": 7}

The commands run at the same time; `kill_at` holds a number for each that is to be killed. Events
are steps of the work and not of the clock, so that a slow machine and a fast one are killed at the
same places. Wherever files change: a sync, a rename, a link, a removal. In `eval` and `watch`: a
call of the sampler, a response that goes to a verifier, a unit that is written, of which half is on
disk at the kill. In `prepare`: a request to the hub, every 64 kB that come, a verdict that is kept,
of whose line half is on disk at the kill, and a problem that is written.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from tests.children import child_environment

UNIT = 6
"""Completions that are sampled together."""
STRIDE = 1 << 16
"""Bytes of a download that are an event."""

Main = Callable[[Sequence[str]], int]

# What tests use


class Killed:
    """Runs commands, and says what they noted."""

    def __init__(self, program: subprocess.Popen[str], folder: Path) -> None:
        self._program, self._log = program, folder / "log"
        self.said = folder / "said"

    def __call__(
        self, *commands: Sequence[str], kill_at: Sequence[int] = ()
    ) -> tuple[list[int], int]:
        """The exit code of each command (-9 if it was killed), and the events of one of them."""
        assert self._program.stdin is not None and self._program.stdout is not None
        asked = {"commands": commands, "kill_at": kill_at}
        self._program.stdin.write(json.dumps(asked) + "\n")
        self._program.stdin.flush()
        ended = json.loads(self._program.stdout.readline())
        return ended["codes"], ended["events"]

    def noted(self) -> list[dict[str, Any]]:
        """What was noted since the last time; see `set_up_sampling` and `set_up_preparing`."""
        rows = [json.loads(line) for line in self._log.read_text().splitlines()]
        self._log.write_text("")
        return rows


@contextmanager
def killing(kind: str, folder: Path, **environment: str) -> Iterator[Killed]:
    """A program for commands of a kind of `KINDS`, with these variables laid over our own."""
    (folder / "log").touch()
    own = {
        name: value for name, value in child_environment().items() if "proxy" not in name.lower()
    }
    with subprocess.Popen(
        [sys.executable, str(Path(__file__)), kind, str(folder)],
        env={**own, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdin is not None and program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        yield Killed(program, folder)
        program.stdin.close()


def moments(events: int, number: int) -> list[int]:
    """So many random events, one of each equal part of the work, in their order."""
    draw = random.Random(number)
    bounds = [1 + events * part // number for part in range(number + 1)]
    return [draw.randrange(first, end) for first, end in pairwise(bounds)]


# The program

state: dict[str, Any] = {"count": count(1), "kill_at": None, "log": -1, "out": ""}


def is_the_last() -> bool:
    """Counts an event. May be called by several threads."""
    return bool(next(state["count"]) == state["kill_at"])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def note(**row: Any) -> None:
    os.write(state["log"], json.dumps({"pid": os.getpid(), **row}).encode() + b"\n")


def announced(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if is_the_last():
            die()
        return function(*args, **kwargs)

    return wrapped


def announce(module: Any, *names: str) -> None:
    for name in names:
        setattr(module, name, announced(getattr(module, name)))


def set_up_sampling() -> None:
    """Notes of each completion that is asked for its name, of each response its problem's id."""
    import archer.evaluate
    import archer.evaluate_model
    import archer.watch
    from archer.engine.base import Request, Sample, Sampling
    from archer.evaluate_model import SamplerAlone
    from archer.scores import answer_lines
    from archer.types import Group, Problem
    from archer.unfinished import Unfinished
    from archer.verify.pool import Ticket, WorkerPool

    archer.evaluate.UNIT = UNIT
    add, generate, measure = Unfinished.add, SamplerAlone.generate, archer.evaluate_model.measure
    submit = WorkerPool.submit

    def torn(self: Unfinished, unit: Sequence[Group]) -> None:
        if is_the_last():
            lines = b"".join(answer_lines(unit, first=len(self.answers)))
            self._file.write(lines[: len(lines) // 2])
            self._file.flush()
            die()
        add(self, unit)

    def sampled(
        self: SamplerAlone, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[Sample]:
        if is_the_last():
            die()
        names = [repr(name) for request in requests for name in request.names]
        note(out=state["out"], sampled=names)
        return generate(self, requests, sampling)

    def judged(self: WorkerPool, problem: Problem, response: str, in_thought: bool) -> Ticket:
        if is_the_last():
            die()
        note(out=state["out"], judged=problem.id)
        return submit(self, problem, response, in_thought)

    def measured(subject: Any, config: Any, data: Any, path: Path, **rest: Any) -> Any:
        state["out"] = path.stem
        return measure(subject, config, data, path, **rest)

    Unfinished.add = torn  # type: ignore[method-assign]
    SamplerAlone.generate = sampled  # type: ignore[method-assign]
    WorkerPool.submit = judged  # type: ignore[method-assign]
    for module in (archer.evaluate_model, archer.watch):
        module.measure = measured  # type: ignore[attr-defined]


def set_up_preparing() -> None:
    """Notes the bytes of each block that came, and the key of each verdict when it is `made` and
    when it is `kept`."""
    import archer.prepare
    from archer.data import hub
    from archer.prepare.references import Known, Tester
    from archer.verify.pool import Ticket

    add, keep, append = Known.add, Tester._keep, hub._append
    come = [0]

    def received(partial: Path, url: str, advance: Callable[[int], None]) -> None:
        def counted(num_bytes: int) -> None:
            note(bytes=num_bytes)
            advance(num_bytes)
            before, come[0] = come[0], come[0] + num_bytes
            for _ in range(come[0] // STRIDE - before // STRIDE):
                if is_the_last():
                    die()

        append(partial, url, counted)

    def made(self: Tester, key: str, ticket: Ticket) -> None:
        if ticket.exception() is None:
            note(made=key)
        keep(self, key, ticket)

    def torn(self: Known, key: str, outcome: Any, detail: str) -> None:
        if is_the_last():
            with self._lock:
                line = json.dumps([key, outcome, detail]).encode()
                self._file.write(line[: len(line) // 2])
                self._file.flush()
                die()
        add(self, key, outcome, detail)
        note(kept=key)

    hub._append = received
    Tester._keep = made  # type: ignore[method-assign]
    Known.add = torn  # type: ignore[method-assign]
    announce(hub, "_ask", "_append", "_link")
    announce(archer.prepare, "to_line")


KINDS = {"sampling": set_up_sampling, "preparing": set_up_preparing}


def child(main: Main, command: Sequence[str], kill_at: int | None, folder: Path) -> None:
    appended = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    state.update(count=count(1), kill_at=kill_at, log=os.open(folder / "log", appended))
    out = os.open(folder / "said", appended)
    os.dup2(out, 1)
    os.dup2(out, 2)
    try:
        code = main(command)
    finally:
        sys.stdout.flush()
    (folder / "events").write_text(str(next(state["count"]) - 1))
    os._exit(code)


def start(main: Main, command: Sequence[str], kill_at: int | None, folder: Path) -> int:
    pid = os.fork()
    if not pid:
        try:
            child(main, command, kill_at, folder)
        finally:
            os._exit(99)
    return pid


def serve(kind: str, folder: Path) -> None:
    import archer.cli

    KINDS[kind]()
    announce(os, "fsync", "rename", "replace", "link", "symlink", "unlink")
    assert threading.active_count() == 1, "a process with threads must not be forked"
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        kills = dict(enumerate(asked["kill_at"]))
        pids = [
            start(archer.cli.main, command, kills.get(place), folder)
            for place, command in enumerate(asked["commands"])
        ]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        path = folder / "events"
        events = int(path.read_text()) if path.exists() else 0
        print(json.dumps({"codes": codes, "events": events}), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
