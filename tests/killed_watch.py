"""`archer watch`, in child processes that kill themselves at a given event, or are killed.

Not a test: tests write commands to its standard input, a line of JSON each, and read what came of
them. Everything is imported once; each command is a fork of that, so that a kill costs no second.

    {"commands": [[...], ...], "kill_at": [7], "kill_after": null, "log": "sampled.jsonl"}
    -> {"codes": [-9], "events": 7}

The commands run at the same time; `kill_at` holds a number for each that is to be killed. An event
is a write, a rename, a link, a removal, a call of the sampler, or a unit's being written, of which
half is on disk at the kill.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

UNIT = 6

counted = {"events": 0, "kill_at": -1}
log: list[Any] = [None]


def is_the_last() -> bool:
    counted["events"] += 1
    return counted["events"] == counted["kill_at"]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def announced(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if is_the_last():
            die()
        return function(*args, **kwargs)

    return wrapped


def set_up() -> Callable[[Sequence[str]], int]:
    """Imports all, and puts events around it."""
    import archer.cli
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
    out = [""]

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
        log[0].write(json.dumps({"pid": os.getpid(), "out": out[0], "names": names}) + "\n")
        log[0].flush()
        return generate(self, requests, sampling)

    def judged(self: WorkerPool, problem: Problem, response: str, in_thought: bool) -> Ticket:
        log[0].write(json.dumps({"pid": os.getpid(), "out": out[0], "judged": problem.id}) + "\n")
        log[0].flush()
        return submit(self, problem, response, in_thought)

    def measured(subject: Any, config: Any, data: Any, path: Path, **rest: Any) -> Any:
        out[0] = path.stem
        return measure(subject, config, data, path, **rest)

    Unfinished.add = torn  # type: ignore[method-assign]
    SamplerAlone.generate = sampled  # type: ignore[method-assign]
    archer.watch.measure = measured  # type: ignore[assignment,attr-defined]
    WorkerPool.submit = judged  # type: ignore[method-assign]
    for name in ("fsync", "rename", "replace", "link", "unlink"):
        setattr(os, name, announced(getattr(os, name)))
    return archer.cli.main


def child(
    main: Callable[[Sequence[str]], int], command: Sequence[str], asked: Any, kill_at: int | None
) -> None:
    counted.update(events=0, kill_at=kill_at or -1)
    log[0] = open(asked["log"], "a")
    out = os.open(f"{asked['log']}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    try:
        code = main(command)
    finally:
        sys.stdout.flush()
    Path(f"{asked['log']}.events").write_text(str(counted["events"]))
    os._exit(code)


def start(
    main: Callable[[Sequence[str]], int], command: Sequence[str], asked: Any, kill_at: int | None
) -> int:
    pid = os.fork()
    if not pid:
        try:
            child(main, command, asked, kill_at)
        finally:
            os._exit(99)
    if asked.get("kill_after"):
        time.sleep(asked["kill_after"])
        os.kill(pid, signal.SIGKILL)
    return pid


if __name__ == "__main__":
    run = set_up()
    assert threading.active_count() == 1, "a process with threads must not be forked"
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        kills = dict(enumerate(asked.get("kill_at", [])))
        pids = [start(run, c, asked, kills.get(i)) for i, c in enumerate(asked["commands"])]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        path = Path(f"{asked['log']}.events")
        events = int(path.read_text()) if path.exists() else 0
        print(json.dumps({"codes": codes, "events": events}), flush=True)
