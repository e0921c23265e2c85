"""Who is still alive: every process answers a ping in a thread of its own, whatever it works on.

A process that was killed is known to Ray at once. One that hangs (stopped, or stuck in the kernel)
is found by its silence. That says nothing of how long work may take: a rank that waits for another
one answers, so the one that is named is the one at fault.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

PING_SECONDS = 2.0
"""Between an answer and the next question."""

NEVER_READY = "ended before it was ready"

LOOK_SECONDS = 5.0
"""Between two looks, after which an old question is not held against anyone."""


@dataclass(slots=True, eq=False)
class Pulse:
    """Asks processes, by name, whether they live. Cheap to call often: it never waits."""

    silent_seconds: float
    asked: dict[Any, tuple[Any, float]] = field(default_factory=dict)
    places: dict[Any, tuple[str, int]] = field(default_factory=dict)
    looked: float = 0.0

    def lost(self, processes: Mapping[str, Any]) -> dict[str, str]:
        """Names of those that are dead or silent, and what happened to each.

        A process that is still starting is not silent: how long that may take, others decide.
        """
        now = time.monotonic()
        if now - self.looked > LOOK_SECONDS:
            # Nobody looked for a while (this process itself may have been stopped): ask anew.
            self.asked.clear()
        self.looked, found = now, {}
        for name, process in processes.items():
            if fault := self._fault(process):
                found[name] = fault
        return found

    def _fault(self, process: Any) -> str:
        now = time.monotonic()
        if process not in self.asked:
            self._ask(process, now)
        question, since = self.asked[process]
        if ray.wait([question], timeout=0)[0]:
            try:
                self.places[process] = ray.get(question)
            except RayError as error:
                if process in self.places:
                    return f"died {self._where(process)}"
                # One that never was ready has not been killed, most likely: it says what is wrong.
                return f"{NEVER_READY}: {last_line(error)}"
            if now - since > PING_SECONDS:
                self._ask(process, now)
        elif process in self.places and now - since > self.silent_seconds:
            return f"has not answered for {now - since:.0f} s {self._where(process)}"
        return ""

    def _ask(self, process: Any, now: float) -> None:
        self.asked[process] = process.ping.options(concurrency_group="pulse").remote(), now

    def _where(self, process: Any) -> str:
        host, pid = self.places[process]
        return f"(process {pid} on {host})"

    def is_ready(self, process: Any) -> bool:
        """Whether it has answered yet."""
        return process in self.places

    def forget(self, process: Any) -> None:
        """Of a process that was replaced."""
        self.asked.pop(process, None)
        self.places.pop(process, None)


def last_line(error: BaseException) -> str:
    """The last line of an error's text: behind a remote traceback, what was raised there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of what Ray says, without what it adds in further ones."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
