"""Many verdicts at once: a pool of worker processes that can be killed.

`Verifiers` is what the loop sees, `WorkerPool` the one on this machine. An answer that is quickly
judged (equal numbers, most of them) is judged in the call itself; all others go to a worker, in the
order in which they were submitted, while whoever submitted them goes on.

No verdict depends on the clock where CPU time can decide: a response gets `limit` when its child
has used its CPU seconds, however long that took. The wall clock ends only what uses no CPU (a
verifier that sleeps): a worker silent for `wall_factor` times the CPU seconds is killed. A worker
that died takes no response with it: another one judges it again, once.

This module never forks: a process with torch's threads must not. Workers are started afresh
(archer.verify.worker), in a session of their own, out of the reach of the terminal's Ctrl-C.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, runtime_checkable

import archer
from archer.verdict import Problem, Verdict
from archer.verify.policy import Policy
from archer.verify.verifiers import MAX_DETAIL, judged_part, quick_verdict

Ticket = Future[Verdict]
"""What a submitted response is exchanged for; `ticket.result()` waits for the verdict."""

START_SECONDS = 120.0
"""Wall time that a worker may take to start and to import what a verifier needs."""


@runtime_checkable
class Verifiers(Protocol):
    """Whoever turns responses into verdicts: workers on this machine, or on a cluster."""

    def submit(self, problem: Problem, response: str, in_thought: bool) -> Ticket:
        """Has a response judged. Equal answers between two calls of `ledger` are judged once."""
        ...

    def collect(self, tickets: Sequence[Ticket]) -> list[Verdict]:
        """Waits for the verdicts on a step's tickets; those that come too late are `error`."""
        ...

    def ledger(self) -> dict[str, float]:
        """What was done since the last call, for the metrics. Forgets what was judged till then."""
        ...

    def close(self) -> None:
        """Ends all workers. Tickets without a verdict raise CancelledError."""
        ...

    def __enter__(self) -> Verifiers: ...

    def __exit__(self, *exception: object) -> None: ...


@dataclass(slots=True, kw_only=True, eq=False)
class _Task:
    """A response that is to be judged; `holders` is how often it was submitted."""

    problem: Problem
    response: str
    in_thought: bool
    submitted: float
    holders: int = 1
    verdict: Verdict | None = None
    ticket: Ticket = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.ticket.set_running_or_notify_cancel()  # others may hold it too: not to be cancelled


class WorkerPool:
    """Verifiers in `workers` processes of this machine.

    wall_factor: times the CPU seconds, after which a worker that says nothing is killed.
    step_seconds: how long `collect` waits in all. What is not judged by then ends as `error`.
    start_worker: gives a worker elsewhere; called in the thread that will use it.

    Workers start with the first response that needs one.
    """

    def __init__(
        self,
        *,
        workers: int,
        policy: Policy | None = None,
        wall_factor: float = 8.0,
        step_seconds: float = math.inf,
        start_worker: Callable[[], Worker] | None = None,
    ) -> None:
        if workers < 1:
            raise ValueError(f"{workers} workers cannot judge; make it at least 1")
        if not wall_factor >= 1:
            raise ValueError(f"wall_factor is {wall_factor}; make it at least 1")
        self._policy = policy or Policy()
        self._wall_seconds = self._policy.cpu_seconds * wall_factor
        self._step_seconds = step_seconds
        self._lock = threading.Lock()
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._step: dict[tuple[str, str, Hashable], _Task] = {}
        self._open: dict[Ticket, _Task] = {}
        self._counts: defaultdict[str, float] = defaultdict(float)
        self._closing = False
        self._start: Callable[[], Worker] = start_worker or LocalWorker
        self._workers: set[Worker] = set()
        self._threads: list[threading.Thread] = []
        self._num_workers = workers

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def submit(self, problem: Problem, response: str, in_thought: bool) -> Ticket:
        """Has a response judged. Equal answers between two calls of `ledger` are judged once."""
        part = judged_part(problem, response, in_thought, self._policy)
        key = (problem.verifier, problem.id, part)
        with self._lock:
            if self._closing:
                raise RuntimeError("these verifiers are closed: open new ones")
            earlier = self._step.get(key)
            if earlier is not None and earlier.problem == problem:
                self._counts["verify/joined"] += 1
                earlier.holders += 1
                if earlier.verdict is not None:
                    self._count(earlier.problem, earlier.verdict, 1)
                return earlier.ticket
        task = _Task(
            problem=problem, response=response, in_thought=in_thought, submitted=time.perf_counter()
        )
        verdict = quick_verdict(problem, response, in_thought, self._policy)
        with self._lock:
            self._step[key] = task
            self._open[task.ticket] = task
        if verdict is not None:
            self._settle(task, verdict)
        else:
            self._enqueue(task)
        return task.ticket

    def collect(self, tickets: Sequence[Ticket]) -> list[Verdict]:
        """Waits for the verdicts on a step's tickets; those that come too late are `error`."""
        wait(tickets, None if math.isinf(self._step_seconds) else self._step_seconds)
        with self._lock:
            late = [self._open[ticket] for ticket in set(tickets) if ticket in self._open]
        for task in late:
            self._settle(task, _error(f"no verdict within {self._step_seconds:g} s"))
        return [ticket.result() for ticket in tickets]

    def ledger(self) -> dict[str, float]:
        """What was done since the last call, for the metrics. Forgets what was judged till then.

        `verify/math/correct` and its like count verdicts by verifier and outcome, `verify/joined`
        those that needed no judging of their own, `verify/workers_lost` workers that died.
        `seconds/verify` is the time that judging took, over all workers, and `seconds/verify_queue`
        the time that responses waited for a worker.
        """
        with self._lock:
            counts, self._counts = self._counts, defaultdict(float)
            self._step = {}
        always = ("seconds/verify", "seconds/verify_queue", "verify/joined", "verify/workers_lost")
        return {name: counts[name] for name in sorted({*always, *counts})}

    def close(self) -> None:
        """Ends all workers. Tickets without a verdict raise CancelledError."""
        with self._lock:
            self._closing = True
            for worker in self._workers:
                worker.kill()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        while self._workers:
            self._workers.pop().bury()

    def _enqueue(self, task: _Task) -> None:
        with self._lock:
            if self._closing:
                raise RuntimeError("these verifiers are closed: open new ones")
            if len(self._threads) < self._num_workers:
                thread = threading.Thread(target=self._serve, daemon=True, name="archer-verify")
                self._threads.append(thread)
                thread.start()
            self._tasks.put(task)

    def _serve(self) -> None:
        """In a thread of its own: hands tasks to one worker, and replaces it when it dies."""
        worker: Worker | None = None
        while (task := self._tasks.get()) is not None:
            if task.ticket.done():
                continue  # it is too late for it
            waited = time.perf_counter() - task.submitted
            try:
                verdict, worker = self._judge(task, worker)
            except BaseException as fault:  # noqa: BLE001 - whoever holds the ticket must hear of it
                if not task.ticket.done():
                    task.ticket.set_exception(fault)
                continue
            with self._lock:
                self._counts["seconds/verify_queue"] += waited
            self._settle(task, verdict)

    def _judge(self, task: _Task, worker: Worker | None) -> tuple[Verdict, Worker | None]:
        """The verdict, and the worker that lives on."""
        try:
            request = self._request(task)
        except (TypeError, ValueError) as fault:
            return _error(f"problem {task.problem.id} can't be written as JSON: {fault}"), worker
        verdict = None
        for _ in range(2):
            try:
                worker = worker or self._start_worker()
                return worker.judge(request, self._wall_seconds), worker
            except WorkerSilent as silence:
                verdict = Verdict(outcome="limit", score=0.0, detail=str(silence))
            except (WorkerDied, OSError) as fault:
                verdict = _error(str(fault))
            if self._closing:
                verdict = None
                break
            if worker is not None and not worker.alive:
                self._discard(worker)
                worker = None
                with self._lock:
                    self._counts["verify/workers_lost"] += 1
        if verdict is None:
            raise CancelledError("the verifiers were closed before this verdict")
        return verdict, worker

    def _request(self, task: _Task) -> bytes:
        problem = task.problem
        fields = {name: getattr(problem, name) for name in Problem.__slots__}
        fields["meta"] = dict(problem.meta)
        if not isinstance(problem.prompt, str):
            fields["prompt"] = [dict(message) for message in problem.prompt]
        request = {
            "problem": fields,
            "response": task.response,
            "in_thought": task.in_thought,
            "policy": asdict(self._policy),
        }
        return json.dumps(request).encode() + b"\n"

    def _start_worker(self) -> Worker:
        """Called in the thread that keeps the worker: the kernel ends it when that thread ends."""
        with self._lock:
            if self._closing:
                raise CancelledError("the verifiers were closed before this verdict")
            worker = self._start()
            self._workers.add(worker)
        return worker

    def _discard(self, worker: Worker) -> None:
        with self._lock:
            self._workers.discard(worker)
        worker.kill()
        worker.bury()

    def _settle(self, task: _Task, verdict: Verdict) -> None:
        with self._lock:
            if task.verdict is not None:
                return  # it came too late
            task.verdict = verdict
            self._open.pop(task.ticket, None)
            self._counts["seconds/verify"] += verdict.seconds
            self._count(task.problem, verdict, task.holders)
        task.ticket.set_result(verdict)

    def _count(self, problem: Problem, verdict: Verdict, holders: int) -> None:
        self._counts[f"verify/{problem.verifier}/{verdict.outcome}"] += holders


def _error(detail: str) -> Verdict:
    return Verdict(outcome="error", score=0.0, detail=detail[:MAX_DETAIL])


class WorkerDied(Exception):
    """A worker, or its child, ended without a verdict."""


class WorkerSilent(Exception):
    """A verifier said nothing for longer than it may."""


@runtime_checkable
class Worker(Protocol):
    """Judges one response after the other, wherever it is. Used by one thread at a time."""

    alive: bool

    def judge(self, request: bytes, wall_seconds: float) -> Verdict:
        """The verdict on a request. Raises WorkerSilent or WorkerDied; of use only if `alive`."""
        ...

    def kill(self) -> None:
        """Ends it, with all that it has started."""
        ...

    def bury(self) -> None:
        """Waits until it is gone. After `kill`."""
        ...


class LocalWorker:
    """One process of archer.verify.worker, with its pipes. Used by one thread at a time."""

    def __init__(self) -> None:
        paths = [str(Path(archer.__file__).parents[1]), *(path or os.getcwd() for path in sys.path)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),  # a user's module is found there as it is here
            "PYTHONHASHSEED": "0",  # and sets have the same order in every worker
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "archer.verify.worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            env=environment,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._replies = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._requests, False)
        os.set_blocking(self._replies, False)
        self._received = b""
        self.alive = True

    def judge(self, request: bytes, wall_seconds: float) -> Verdict:
        """The verdict on a request; see `Worker`."""
        left = memoryview(request)
        deadline = time.monotonic() + START_SECONDS
        late: Exception = WorkerDied(f"the worker was not ready within {START_SECONDS:g} s")
        while True:
            reply, left = self._exchange(left, deadline, late)
            if "wall_seconds" in reply:  # it limits its programs itself, and should be done by then
                deadline = time.monotonic() + reply["wall_seconds"]
                late = WorkerDied("the sandbox has brought no program to its end")
            elif "began" in reply:
                deadline = time.monotonic() + wall_seconds
                late = WorkerSilent("no answer from the verifier within its wall time")
            elif "verdict" in reply:
                return Verdict(**reply["verdict"])
            elif "died" in reply:
                raise WorkerDied(f"the verifier ended without a verdict: {reply['died']}")

    def _exchange(
        self, left: memoryview, deadline: float, late: Exception
    ) -> tuple[dict[str, Any], memoryview]:
        """Writes what is left of a request until a reply comes: the reply, and what is left now."""
        poll = select.poll()
        poll.register(self._replies, select.POLLIN)
        while b"\n" not in self._received:
            if left:
                poll.register(self._requests, select.POLLOUT)
            # A reply that has arrived counts, however late this thread gets to look at it.
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready:
                self.alive = False
                raise late
            for descriptor, _ in ready:
                if descriptor == self._replies:
                    self._receive()
                else:
                    left = self._send(left)
            if not left:
                with suppress(KeyError):
                    poll.unregister(self._requests)
        line, _, self._received = self._received.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply, left

    def _receive(self) -> None:
        chunk = os.read(self._replies, 1 << 16)
        if not chunk:
            self.alive = False
            raise WorkerDied("the worker ended without a verdict")
        self._received += chunk

    def _send(self, left: memoryview) -> memoryview:
        try:
            return left[os.write(self._requests, left) :]
        except BlockingIOError:
            return left
        except BrokenPipeError:
            self.alive = False
            raise WorkerDied("the worker ended before it had read the response") from None

    def kill(self) -> None:
        """Kills the process and its children. Before `bury`: its number is still its own."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def bury(self) -> None:
        """Waits until the process is gone, and closes its pipes."""
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
