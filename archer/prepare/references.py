"""Problems that are held against their own verifier before they are written.

A reference answer or solution must be judged correct. Where a row has only tests, a program that
does nothing must fail them, and they must run. What fails is left out and listed: a wrong reference
teaches a model that right answers are wrong, and a test that everything passes teaches nothing.

Verdicts are kept in a file beside the one that is prepared until that is whole, so that what was
interrupted goes on without judging anything twice.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import IO

import archer
from archer.data.problems import canonical, to_row
from archer.data.sources import Dropped
from archer.files import lock
from archer.types import Outcome, Problem, Verdict
from archer.verify.code import below_full, check_sandbox
from archer.verify.policy import Policy
from archer.verify.pool import Ticket, WorkerPool
from archer.verify.verifiers import QUICK

EMPTY_PROGRAM = "```python\npass\n```"
DETAIL = 120
"""Characters of a verdict's detail that are kept."""

REFUSED = "its own reference is not accepted"
PASSED_BY_NOTHING = "an empty program passes its tests"
NOT_RUN = "its tests do not run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A response to a problem, and whether it must be judged correct or must not.

    Example: Trial(response="\\\\boxed{5}", is_right=True)
    """

    response: str
    is_right: bool


def trials(problem: Problem, reference: str | None) -> list[Trial]:
    """The responses that a problem is tried with; none where nothing is known of its answer."""
    found = [] if reference is None else [Trial(response=reference, is_right=True)]
    if problem.verifier == "code":
        return [*found, Trial(response=EMPTY_PROGRAM, is_right=False)]
    own = _own_answers(problem)
    return [*found, *(Trial(response=text, is_right=True) for text in own)]


def _own_answers(problem: Problem) -> list[str]:
    """The accepted answers as responses."""
    answer = problem.answer
    texts = answer if isinstance(answer, list) else [answer]
    if problem.verifier in ("math", "choice"):
        return [f"\\boxed{{{text}}}" for text in texts]
    if problem.verifier in ("exact", "normalised"):
        return list(texts)
    if problem.verifier == "reasoning_gym":
        own = answer["entry"].get("answer")
        return [] if own is None else [f"<answer>{own}</answer>"]
    if problem.verifier == "json_schema" and "value" in answer:
        return [f"```json\n{json.dumps(answer['value'])}\n```"]
    return []


def find_trouble(outcomes: list[tuple[Trial, Outcome, str]]) -> Dropped | None:
    """What the verdicts on the trials of a problem say against it, if anything."""
    for trial, outcome, detail in outcomes:
        said = f"{outcome}: {detail}" if detail else outcome
        if trial.is_right and outcome != "correct":
            return Dropped(reason=REFUSED, detail=said)
        if not trial.is_right and outcome == "correct":
            return Dropped(reason=PASSED_BY_NOTHING, detail=said)
        if not trial.is_right and outcome == "error":
            return Dropped(reason=NOT_RUN, detail=said)
    return None


class Known:
    """Verdicts that are made, in a file that one process at a time has open."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._lock = threading.Lock()
        self.verdicts: dict[str, tuple[Outcome, str]] = {}
        end = 0
        for line in file:
            try:
                key, outcome, detail = json.loads(line)
            except ValueError:  # torn by a kill
                break
            self.verdicts[key] = (outcome, detail)
            end += len(line)
        file.truncate(end)
        file.seek(end)

    def add(self, key: str, outcome: Outcome, detail: str) -> None:
        """Keeps one more; a crash of the machine may cost the last few, a kill none."""
        with self._lock:
            self.verdicts[key] = (outcome, detail)
            self._file.write(json.dumps([key, outcome, detail]).encode() + b"\n")
            self._file.flush()


@contextmanager
def open_known(path: Path, *, is_used: bool = True) -> Iterator[Known]:
    """The verdicts kept at `path`, which is removed when the block ends well or there are none.

    is_used: False for a block that needs none and leaves them to the next: what it gets is that no
        other process is at work.
    ValueError where another process has them open.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        lock(file, f"{path} is in use by another process; wait for it, or give another --out")
        file.seek(0)
        known = Known(file)
        is_done = False
        try:
            yield known
            is_done = True
        finally:
            if (is_done and is_used) or not known.verdicts:
                path.unlink()


def judged_key(problem: Problem, trial: Trial, policy: Policy) -> str:
    """Changes with everything that a verdict depends on, the version of archer included."""
    facts = [archer.__version__, to_row(problem), trial.response, repr(policy)]
    return blake2b(canonical(facts), digest_size=16).hexdigest()


@dataclass(slots=True)
class _Waiting:
    problem: Problem
    trials: list[tuple[Trial, str, Ticket | None]]
    """With the key that the verdict is kept by, and what is waited for if it has to be made."""


class Tester:
    """Judges the trials of many problems at once, and gives the problems back in their order.

    say: hears at which level programs run, if that is below full.
    """

    def __init__(
        self,
        pool: WorkerPool,
        known: Known,
        policy: Policy,
        *,
        window: int,
        say: Callable[[str], None],
    ) -> None:
        self._pool, self._known, self._policy, self._say = pool, known, policy, say
        self._waiting: deque[_Waiting] = deque()
        self.window = window
        self._submitted = 0
        self._has_sandbox = False
        self._trouble: OSError | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, problem: Problem, reference: str | None) -> None:
        """Has a problem tried."""
        if self._submitted % self.window == 0:
            self._pool.ledger()  # or it would remember every response
        self._submitted += 1
        waiting = _Waiting(problem=problem, trials=[])
        if problem.verifier == "code" and not self._has_sandbox:
            if said := below_full(check_sandbox(self._policy.sandbox)):
                self._say(said)
            self._has_sandbox = True
        for trial in trials(problem, reference):
            is_quick = problem.verifier in QUICK  # those take less time than to be kept
            key = "" if is_quick else judged_key(problem, trial, self._policy)
            ticket = None
            if key not in self._known.verdicts:
                ticket = self._pool.submit(problem, trial.response, False)
                if not is_quick:
                    ticket.add_done_callback(partial(self._keep, key))
            waiting.trials.append((trial, key, ticket))
        self._waiting.append(waiting)

    def next(self) -> tuple[Problem, Dropped | None]:
        """The problem that was submitted first, and what is wrong with it. Waits for it.

        OSError where a verdict could not be kept.
        """
        if self._trouble is not None:
            raise self._trouble
        waiting = self._waiting.popleft()
        outcomes = []
        for trial, key, ticket in waiting.trials:
            found = self._known.verdicts[key] if ticket is None else _short(ticket.result())
            outcomes.append((trial, *found))
        return waiting.problem, find_trouble(outcomes)

    def _keep(self, key: str, ticket: Ticket) -> None:
        """Called in the pool's thread as soon as the verdict is there."""
        if ticket.exception() is None:
            try:
                self._known.add(key, *_short(ticket.result()))
            except OSError as error:  # a full disk: raised here, it would be printed and forgotten
                self._trouble = error


def _short(verdict: Verdict) -> tuple[Outcome, str]:
    return verdict.outcome, " ".join(verdict.detail.split())[:DETAIL]
