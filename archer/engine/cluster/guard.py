"""A process that stands beside a Ray cluster of one run, and ends what the run can not.

    python -m archer.engine.cluster.guard SILENT_SECONDS PID...

The numbers are those of the processes that the run started (Ray's daemons). While the run lives, a
daemon that is stopped is killed after so many seconds: Ray would wait for it without end, while one
that is dead is a loss like another, after which the run begins a new cluster. Where the run is
stopped as well, as by Ctrl-Z, all of it goes on later. When the run is gone (standard input ends),
what is left of those processes and of theirs is killed: some of Ray's own outlive a killed run by
minutes.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

LOOK_SECONDS = 1.0

GRACE_SECONDS = 3.0
"""For what ends by itself once the run is gone."""


def start_guard(
    silent_seconds: float, processes: Sequence[psutil.Process]
) -> subprocess.Popen[bytes]:
    """Starts the guard of these processes; closing its standard input tells it to finish."""
    numbers = [str(process.pid) for process in processes]
    command = [sys.executable, "-m", "archer.engine.cluster.guard", str(silent_seconds), *numbers]
    # Out of the reach of the terminal's Ctrl-C.
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def _guard(silent_seconds: float, daemons: Sequence[psutil.Process]) -> None:
    known, run = set(daemons), psutil.Process(os.getppid())
    stopped: dict[psutil.Process, float] = {}
    while not select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
        with suppress(psutil.NoSuchProcess):
            if run.status() == psutil.STATUS_STOPPED:
                stopped.clear()
                continue
        for daemon in daemons:
            with suppress(psutil.NoSuchProcess):
                known.update(daemon.children(recursive=True))
                if daemon.status() != psutil.STATUS_STOPPED:
                    stopped.pop(daemon, None)
                elif (
                    time.monotonic() - stopped.setdefault(daemon, time.monotonic()) > silent_seconds
                ):
                    daemon.kill()
    _, alive = psutil.wait_procs(known, timeout=GRACE_SECONDS)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _processes(numbers: Sequence[str]) -> list[psutil.Process]:
    found = []
    for number in numbers:
        with suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(int(number)))
    return found


if __name__ == "__main__":
    _guard(float(sys.argv[1]), _processes(sys.argv[2:]))
