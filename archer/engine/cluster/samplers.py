# mypy: disable-error-code="no-untyped-call"
"""The models that sample in processes of their own: who they are, who is lost, who takes over.

A sampler holds nothing that is not published: when one is lost its requests go to another, and a
new one is started in its place. A model that vLLM cuts over several processes is one sampler: its
first process is told what to do and tells the others, and without one of them it is lost.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import ray
import torch.distributed
from ray.exceptions import RayError, RayTaskError

from archer.config import Config
from archer.engine.base import EngineLost
from archer.engine.cluster.pulse import NEVER_READY, Pulse
from archer.engine.cluster.replica import Replica, here
from archer.engine.cluster.session import Session
from archer.engine.vllm import Part

dist: Any = torch.distributed  # much of which has no types

POLL_SECONDS = 0.5
"""Between two looks at who is alive, while something is waited for."""

WORDS_SECONDS = 5.0
"""From a sampler's own words of an error to the loss of a part that may have been its cause."""


class Samplers:
    """Of a session, by name: "sampler 0". None where learners sample themselves.

    Two threads may sample at once, and a third one save: who looks at them holds the lock.
    """

    def __init__(
        self,
        config: Config,
        session: Session,
        pulse: Pulse,
        lock: threading.Lock,
        say: Callable[[str], None],
    ) -> None:
        self.config, self.session, self.pulse, self.say = config, session, pulse, say
        self.lock = lock
        self.first: dict[str, Any] = {}
        """The process of each that is told what to do."""
        self.parts: dict[str, dict[str, Any]] = {}
        """All processes of each, by their own names."""
        self.stores: dict[str, Any] = {}
        """Where the parts of each meet, as long as it lives."""
        self.false_starts: Counter[str] = Counter()
        """How often each has ended before it was ready."""
        self.started: dict[str, float] = {}
        """When each was started last."""
        self.awake = True
        """Whether any may hold memory of the learners' GPUs."""

    def start(self) -> None:
        for number in range(self.session.numbers.samplers):
            self._start(f"sampler {number}")

    @property
    def processes(self) -> dict[str, Any]:
        """Of all samplers by name: "sampler 0", or "sampler 0 part 1" of one that is cut."""
        return {name: process for own in self.parts.values() for name, process in own.items()}

    def ready(self) -> list[str]:
        """Those that could sample at once."""
        return [
            sampler
            for sampler, own in self.parts.items()
            if all(self.pulse.is_ready(process) for process in own.values())
        ]

    def replace_lost(self) -> set[str]:
        """Starts a new one for each that is lost, and says who was. The caller holds the lock.

        Raises:
            EngineLost: none of them starts, or one does not again and again.
        """
        lost = self._lost()
        sound = [sampler for sampler in self.ready() if sampler not in lost]
        for sampler, fault in lost.items():
            if NEVER_READY in fault:
                # It is most likely the recipe's fault where no other one is ready, else that of
                # its machine, which may be gone.
                self.false_starts[sampler] += 1
                if not sound or self.false_starts[sampler] > self.config.cluster.restarts:
                    raise EngineLost(fault)
            self.say(f"{fault}: its requests go to another, and a new one is started")
            self._kill(sampler)
            for process in self.parts[sampler].values():
                self.pulse.forget(process)
            self._start(sampler)
        return set(lost)

    def lost_a_part(self, sampler: str, process: Any) -> bool:
        """Whether what a sampler's first process tells may be the loss of one of the others."""
        until = time.monotonic() + WORDS_SECONDS
        while self.session.numbers.parts > 1 and time.monotonic() < until:
            with self.lock:
                replaced = process is not self.first[sampler]  # by another call
                if replaced or self.pulse.lost(self.parts[sampler]):
                    return True
            time.sleep(0.1)
        return False

    def sleep(self) -> None:
        """Has all of them give their memory back before learners learn in the same places."""
        if not (self.session.numbers.shared and self.awake):
            return
        calls = {name: process.sleep.remote() for name, process in self.first.items()}
        deadline = time.monotonic() + self.config.cluster.wait_seconds
        while calls:
            done = ray.wait(list(calls.values()), num_returns=len(calls), timeout=POLL_SECONDS)[0]
            with self.lock:
                for name in [name for name, call in calls.items() if call in done]:
                    self._slept(name, calls.pop(name))
                for name in self._lost().keys() & calls.keys():
                    self._kill(name)  # replaced before it is next to sample
                    del calls[name]
            if calls and time.monotonic() > deadline:
                raise EngineLost(
                    f"waited {self.config.cluster.wait_seconds:g} s (cluster.wait_seconds) for "
                    f"{', '.join(calls)} to make room for learning"
                )
        self.awake = False

    def _slept(self, sampler: str, call: Any) -> None:
        try:
            ray.get(call)
        except RayTaskError as error:
            raise error.cause from error  # it lives, and would fail like this at every step
        except RayError:
            self._kill(sampler)

    def _kill(self, sampler: str) -> None:
        for process in self.parts[sampler].values():
            ray.kill(process)

    def _lost(self) -> dict[str, str]:
        """Those without one of their processes, and what happened to it."""
        faults = self.pulse.lost(self.processes)
        found: dict[str, str] = {}
        for sampler, own in self.parts.items():
            told = [f"{name} {faults[name]}" for name in own if name in faults]
            if told:
                # Where one is lost the others end as well: they say so, but it is not news.
                found[sampler] = min(told, key=lambda fault: NEVER_READY in fault)
        return found

    def _start(self, sampler: str) -> None:
        self.started[sampler] = time.monotonic()
        number, start = int(sampler.split()[1]), self.session.start
        numbers, parts = self.session.numbers, self.session.numbers.parts
        if parts == 1:
            self.first[sampler] = start(Replica, numbers.place(number, 0), self.config)
            self.parts[sampler] = {sampler: self.first[sampler]}
            return
        host, seconds = here()[0], self.config.cluster.wait_seconds
        store = dist.TCPStore(host, 0, None, is_master=True, wait_for_workers=False)
        self.stores[sampler] = store
        own: dict[str, Any] = {}
        for part in reversed(range(parts)):  # the first one last: it knows the others
            cut = Part(number=part, parts=parts, store=(host, store.port), seconds=seconds)
            others = [] if part else list(own.values())
            place = numbers.place(number, part)
            own[f"{sampler} part {part}"] = start(
                Replica, place, self.config, part=cut, others=others
            )
        self.parts[sampler] = dict(sorted(own.items()))
        self.first[sampler] = own[f"{sampler} part 0"]
