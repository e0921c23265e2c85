"""Verifiers on all machines of a cluster: the pool of `archer.verify.pool`, with workers elsewhere.

The pool beside the loop hands out responses and counts verdicts, as on one machine. On each other
machine an actor keeps worker processes, a thread for each; on this one the pool keeps its own. A
machine that is lost costs no verdict: what it was judging is judged again elsewhere.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from archer.cores import num_cores
from archer.verdict import Verdict
from archer.verify.policy import Policy
from archer.verify.pool import LocalWorker, Worker, WorkerDied, WorkerPool, WorkerSilent

NOBODY = object()
"""Stands where a machine has no more room than others."""


START_SECONDS = 60.0
"""For the `Judge` of each machine to start; others do without it."""

SILENT_SECONDS = 30.0
"""After so long without an answer to a plain question a `Judge` is taken for lost."""


class Judge:
    """Worker processes of one machine, by number."""

    def __init__(self) -> None:
        self.workers: dict[int, LocalWorker] = {}

    def cores(self) -> int:
        """How many workers there is room for."""
        return num_cores()

    def judge(self, number: int, request: bytes, wall_seconds: float) -> tuple[str, Any, bool]:
        """What came of a request ("verdict", "silent" or "died"), and whether the worker lives."""
        worker = self.workers.get(number)
        if worker is None:
            worker = self.workers[number] = LocalWorker()
        try:
            return "verdict", worker.judge(request, wall_seconds), worker.alive
        except WorkerSilent as silence:
            return "silent", str(silence), worker.alive
        except (WorkerDied, OSError) as fault:
            return "died", str(fault), worker.alive

    def end(self, number: int) -> None:
        """Ends a worker, if it was ever started."""
        worker = self.workers.pop(number, None)
        if worker is not None:
            worker.kill()
            worker.bury()


class RemoteWorker:
    """One worker of another machine's `Judge`, as the pool sees it."""

    def __init__(self, judge: Any, number: int, lost: Callable[[], None]) -> None:
        self._judge, self._number, self._lost = judge, number, lost
        self.alive = True

    def judge(self, request: bytes, wall_seconds: float) -> Verdict:
        """As `archer.verify.pool.Worker`."""
        try:
            call = self._judge.judge.remote(self._number, request, wall_seconds)
            while not ray.wait([call], timeout=SILENT_SECONDS)[0]:
                # It may take its time, as long as the process that it is in answers.
                ray.get(self._judge.cores.remote(), timeout=SILENT_SECONDS)
            came, what, self.alive = ray.get(call)
        except RayError:
            self.alive = False
            self._lost()
            raise WorkerDied("the machine that judged it was lost") from None
        if came == "verdict":
            verdict: Verdict = what
            return verdict
        raise (WorkerSilent if came == "silent" else WorkerDied)(what)

    def kill(self) -> None:
        with suppress(RayError):
            self._judge.end.remote(self._number)

    def bury(self) -> None:
        """The other machine does."""


def open_judges(
    policy: Policy,
    *,
    workers: int,
    step_seconds: float,
    say: Callable[[str], None] = lambda _: None,
) -> WorkerPool:
    """A pool over all machines of the cluster that this process has joined.

    workers: on each machine; 0 takes one per core. say: is told of a machine that judges nothing.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [n for n in ray.nodes() if n["Alive"] and n["NodeID"] != here]  # type: ignore[no-untyped-call]
    judges = [_start(node["NodeID"], workers) for node in others]
    asked = [judge.cores.remote() for judge in judges]
    if asked:
        ray.wait(asked, num_returns=len(asked), timeout=START_SECONDS)
    # This machine first, then machine by machine in turn: few responses are spread, too.
    rooms: list[tuple[Any, int]] = [(None, num_cores())]
    for node, judge, cores in zip(others, judges, asked, strict=True):
        try:
            rooms.append((judge, ray.get(cores, timeout=0)))
        except RayError as error:  # it is lost, which Ray may have been late to know, or stuck
            what = f"after {START_SECONDS:g} s" if isinstance(error, GetTimeoutError) else "there"
            say(f"no verifier starts on {node['NodeName']} {what}: nothing is judged there")
    turns = itertools.zip_longest(*([m] * (workers or n) for m, n in rooms), fillvalue=NOBODY)
    places = [machine for turn in turns for machine in turn if machine is not NOBODY]
    next_place, number = itertools.cycle(places), itertools.count()
    lost: set[Any] = set()
    lock = threading.Lock()

    def start_worker() -> Worker:
        with lock:
            judge = next(place for place in next_place if place not in lost)
            if judge is None:
                return LocalWorker()
            return RemoteWorker(judge, next(number), lambda: lost.add(judge))

    return WorkerPool(
        workers=len(places), policy=policy, step_seconds=step_seconds, start_worker=start_worker
    )


def _start(node: str, workers: int) -> Any:
    actor = ray.remote(Judge).options(
        num_cpus=0,
        max_concurrency=2 * (workers or 256),  # a question has room beside every response
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    )
    return actor.remote()
