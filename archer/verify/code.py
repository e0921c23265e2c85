"""Verifier of programs: `stdin`, `call` and `assert` problems, each program in the sandbox.

The answer of a problem is one of

    {"kind": "stdin", "tests": [{"input": "2 3", "output": "5"}]}
    {"kind": "call", "name": "add" (or "Solution.add"), "tests": [{"input": [2, 3], "output": 5}]}
    {"kind": "assert", "code": "assert add(2, 3) == 5"}

with "time_limit_s" (CPU time for each test) and "memory_limit_mb" where the policy's are not meant,
and for the first two kinds "tolerance" for floats, or "checker", the source of a function
`check(input, output, expected)`, where a test has several right answers, or "runner":
"livecodebench", where programs are run and compared as its official runner does
(docs/livecodebench.md).

Expected outputs never enter the program's process. What a program writes is compared here; what it
returns arrives here as base types; assert statements run in a process of their own and reach the
program over a pipe. A verdict `correct` follows only from what trusted code has seen, never from an
exit status alone, and is given when the program and all that it started is gone.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from functools import cache
from hashlib import blake2b
from math import isclose
from typing import Any, TypeVar

from archer.verdict import Outcome, Problem, Verdict
from archer.verify.extract import Reading, last_program
from archer.verify.policy import Policy
from archer.verify.sandbox.client import MAX_WAITING, Ending, Limits, Run, Sandbox, core_waits
from archer.verify.sandbox.servers import SandboxFault, ServerDied
from archer.verify.sandbox.values import Coded, decode, encode

WALL_FACTOR, WALL_SECONDS = 4.0, 2.0
"""Wall seconds for each CPU second of a test, and beyond: what ends a program that sleeps."""
SPARE_BYTES = 1 << 20
"""What a program may write beyond twice what is expected."""
TRIES = 6
"""A test whose fork server dies is run by another one, so often."""
MAX_CALLS = 100_000
"""Calls that the code of an `assert` problem may make."""
MESSAGE_BYTES = 16 << 20
"""The longest of their arguments and results; an expected length is not known there."""
SHORT_WAIT = 0.001
"""Seconds of each call that are the pipe's, and no sleep of the program."""
ASSERT_FACTOR = 20
"""Those calls together may take so many times the CPU time of one."""
SHOWN = 80
"""Characters of a value that are told."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a test was not passed.

    Example: Failure("wrong", "'4' is not '5'")
    """

    outcome: Outcome
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A program and what it is judged by. `tests` are those of the problem that are run."""

    program: str
    answer: dict[str, Any]
    tests: list[dict[str, Any]]
    limits: Limits
    partial: bool
    """Whether all tests are run, and their share that is passed is the score."""
    sandbox: Sandbox

    @property
    def tolerance(self) -> float:
        return float(self.answer.get("tolerance", 0.0))

    @property
    def by_runner(self) -> bool:
        """Whether the rules of LiveCodeBench's official runner are meant."""
        return self.answer.get("runner") == "livecodebench"

    def role(self, role: str) -> str:
        """The role that the program is run in."""
        return f"livecodebench:{role}" if self.by_runner else role


def code(problem: Problem, reading: Reading, policy: Policy) -> Verdict:
    """The verdict on the last complete fenced program of a response."""
    program = last_program(reading.text)
    if program is None:
        return Verdict(outcome="no_answer", score=0.0, detail="no complete fenced block of code")
    return judge_program(problem, program, policy, open_sandbox(policy.sandbox))


@cache
def open_sandbox(level: str) -> Sandbox:
    """This process's sandbox of a level; servers start when needed, and end with the process."""
    sandbox = Sandbox(level)
    atexit.register(sandbox.close)
    return sandbox


def check_sandbox(level: str) -> str:
    """The level that programs would run at. ValueError, with the cure, where they can't be run."""
    trivial = Problem(
        id="", prompt="", verifier="code", answer={"kind": "stdin", "tests": [_NOTHING]}
    )
    try:
        with Sandbox(level) as sandbox:
            verdict = judge_program(trivial, "", Policy(), sandbox)
    except SandboxFault as fault:
        verdict = Verdict(outcome="error", score=0.0, detail=str(fault))
    if verdict.outcome != "correct":
        raise ValueError(
            f"programs can't be run here at sandbox level {level}: {verdict.detail}; see "
            "docs/sandbox.md, or ask for weak by name if you would run them by hand"
        )
    return verdict.sandbox


def below_full(level: str) -> str:
    """What is to be said of a level that `check_sandbox` found; "" where nothing is."""
    if level in ("", "full"):
        return ""
    return f"programs run at sandbox level {level}: see docs/sandbox.md"


_NOTHING = {"input": "", "output": ""}


def judge_program(problem: Problem, program: str, policy: Policy, sandbox: Sandbox) -> Verdict:
    """The verdict on a program. What fails in the sandbox itself ends as `error`."""
    answer = problem.answer
    cpu_seconds = float(answer.get("time_limit_s", policy.cpu_seconds))
    job = Job(
        program=program.removeprefix("\ufeff"),  # as Python reads a file
        answer=answer,
        tests=chosen_tests(problem, policy.max_tests),
        limits=Limits(
            cpu_seconds=cpu_seconds,
            wall_seconds=wall_seconds(cpu_seconds),
            memory_mb=max(1, round(answer.get("memory_limit_mb", policy.memory_mb))),
            output_bytes=SPARE_BYTES,
        ),
        partial=policy.partial,
        sandbox=sandbox,
    )
    try:
        verdict = _KINDS[answer["kind"]](job)
    except SandboxFault as fault:
        verdict = Verdict(outcome="error", score=0.0, detail=f"sandbox: {fault}")
    detail = verdict.detail.encode("utf-8", "replace").decode()  # a program may raise any text
    return replace(verdict, detail=detail, sandbox=sandbox.level or "")


def wall_seconds(cpu_seconds: float) -> float:
    """The wall backstop of a test that may use so much CPU time."""
    return WALL_FACTOR * cpu_seconds + WALL_SECONDS


def longest_wait(problem: Problem, policy: Policy) -> float:
    """Wall seconds after which no verdict on a program can be still on its way."""
    answer = problem.answer
    runs = len(answer["tests"]) if "tests" in answer else ASSERT_FACTOR
    seconds = wall_seconds(float(answer.get("time_limit_s", policy.cpu_seconds)))
    return MAX_WAITING * seconds * (runs + 1)


def chosen_tests(problem: Problem, most: int) -> list[dict[str, Any]]:
    """The tests of a problem: all, or `most` of them, drawn by its id and so the same for all."""
    tests: list[dict[str, Any]] = problem.answer.get("tests", [])
    if not most or len(tests) <= most:
        return tests

    def draw(place: int) -> bytes:
        return blake2b(f"{problem.id} {place}".encode(), digest_size=8).digest()

    return [tests[i] for i in sorted(sorted(range(len(tests)), key=draw)[:most])]


def _retried(action: Callable[[], T]) -> T:
    """What an action gives, with a new fork server for each one that died under it."""
    for _ in range(TRIES - 1):
        try:
            return action()
        except ServerDied:
            continue
    return action()


def _verdict(failures: list[Failure | None], tests: int, *, partial: bool) -> Verdict:
    """The verdict on what became of the tests, in their order; None is a test that was passed."""
    for place, failure in enumerate(failures, start=1):
        if failure is not None:
            score = failures.count(None) / tests if partial else 0.0
            detail = f"test {place} of {tests}: {failure.detail}"
            return Verdict(outcome=failure.outcome, score=score, detail=detail)
    return Verdict(outcome="correct", score=1.0, detail=f"{tests} of {tests} tests")


def _ended(ending: Ending, job: Job, said: Any) -> Failure:
    """What the end of a program means where it was not to end, or not so."""
    limits = job.limits
    if ending.reason == "cpu":
        return Failure("limit", f"more than {limits.cpu_seconds:g} s of CPU time")
    if ending.reason == "wall":
        return Failure("limit", f"no end within {limits.wall_seconds:g} s")
    if ending.reason == "output":
        return Failure("limit", "too much output")
    if ending.reason == "killed":
        return Failure("crashed", f"killed by signal {ending.status}")
    raised = said.get("raised") if isinstance(said, dict) else None
    return _raised(str(raised) if raised else f"exit status {ending.status}")


def _raised(said: str) -> Failure:
    return Failure("limit" if said.startswith("MemoryError") else "crashed", said)


# --- stdin ---


def _by_stdin(job: Job) -> Verdict:
    failures: list[Failure | None] = []
    with Checker(job) as check:
        for test in job.tests:
            failures.append(_retried(lambda test=test: _stdin_test(job, test, check)))  # type: ignore[misc]
            if failures[-1] and not job.partial:
                break
    return _verdict(failures, len(job.tests), partial=job.partial)


def _stdin_test(job: Job, test: dict[str, Any], check: Checker) -> Failure | None:
    given, expected = _bytes(test["input"]), _bytes(test["output"])
    limits = replace(job.limits, output_bytes=2 * len(expected) + SPARE_BYTES)
    with job.sandbox.start(job.role("stdin"), job.program, limits, stdin=given) as run:
        run.confirm()
        ending = run.finish()
    if ending.reason != "ended" or ending.status:
        return _ended(ending, job, run.last_message())
    if check.source:
        output = run.stdout.decode("utf-8", "replace")
        return check(test["input"], output, test["output"])
    if job.by_runner:
        is_same = same_lines(run.stdout.decode("utf-8", "surrogateescape"), test["output"])
    else:
        is_same = same_tokens(run.stdout, expected, job.tolerance)
    if is_same:
        return None
    return Failure("wrong", f"{_shown(run.stdout)} is not {_shown(expected)}")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def same_tokens(output: bytes, expected: bytes, tolerance: float = 0.0) -> bool:
    """Whether two outputs hold the same words, whatever blanks and lines are between them.

    With a tolerance, words that read as numbers may differ by it, absolutely or relatively.
    """
    ours, theirs = output.split(), expected.split()
    if len(ours) != len(theirs):
        return False
    return ours == theirs or (
        tolerance > 0 and all(map(lambda a, b: _same_word(a, b, tolerance), ours, theirs))
    )


def _same_word(ours: bytes, theirs: bytes, tolerance: float) -> bool:
    if ours == theirs:
        return True
    if b"_" in ours:  # Python's way of writing 1_000, nobody else's
        return False
    try:
        return isclose(float(ours), float(theirs), rel_tol=tolerance, abs_tol=tolerance)
    except ValueError:
        return False


def same_lines(output: str, expected: str) -> bool:
    """Whether two outputs are the same to the official runner of LiveCodeBench.

    Blanks around the whole and around each line count for nothing, so many lines there must be,
    and each is the same text or the same decimal numbers: 1.50 is 1.5, but 0.333 is not 1/3.
    """
    ours, theirs = output.strip().split("\n"), expected.strip().split("\n")
    return len(ours) == len(theirs) and all(map(_same_line, ours, theirs))


def _same_line(ours: str, theirs: str) -> bool:
    if ours.strip() == theirs.strip():
        return True
    try:
        return [*map(Decimal, ours.split())] == [*map(Decimal, theirs.split())]
    except InvalidOperation:  # a word is no number; or a signalling NaN, which can't be compared
        return False


# --- call ---


def _by_calls(job: Job) -> Verdict:
    with Checker(job) as check:
        failures = _retried(lambda: _call_all(job, check))
    return _verdict(failures, len(job.tests), partial=job.partial)


def _call_all(job: Job, check: Checker) -> list[Failure | None]:
    """All tests in one process; a program that ends in one gets a fresh process for the next."""
    failures: list[Failure | None] = []
    expected = sum(len(json.dumps(test["output"])) for test in job.tests)
    limits = replace(job.limits, output_bytes=2 * expected + SPARE_BYTES)
    while len(failures) < len(job.tests):
        with job.sandbox.start(job.role("call"), job.program, limits) as run:
            if not_loaded := _load(run, job):
                return [not_loaded] * len(job.tests)
            left = job.tests[len(failures) :]
            run.send({"name": job.answer["name"], "tests": [test["input"] for test in left]})
            for test in left:
                failure, is_alive = _call_one(run, test, job, check)
                failures.append(failure)
                if failure and not job.partial:
                    return failures
                if not is_alive:
                    break
    return failures


def _load(run: Run, job: Job) -> Failure | None:
    """Waits until a program to be called is loaded."""
    run.confirm()
    said = _message(run)
    if said is None:
        return _ended(run.finish(), job, None)
    if "loaded" not in said:
        return _raised(str(said.get("raised")))
    return None


def _call_one(
    run: Run, test: dict[str, Any], job: Job, check: Checker
) -> tuple[Failure | None, bool]:
    """What became of the next test, and whether the program goes on.

    All tests were sent at once, and the program may be some ahead. The clock is read where it is
    not: for those between two readings it is what the child says that each has taken, and what all
    have taken together, with the one that it was at then, that is the kernel's word.
    """
    if not run.has_line():
        run.mark()
    reply = _message(run)
    if reply is None:
        return _ended(run.finish(), job, None), False
    most, said = job.limits.cpu_seconds, reply.get("seconds")
    together = most * (run.answers + 1)
    if (isinstance(said, int | float) and said > most) or run.spent_answering > together:
        return Failure("limit", f"more than {most:g} s of CPU time"), True
    return _judge_reply(reply, test, job, check), True


def _message(run: Run) -> dict[str, Any] | None:
    """The next message of a program; None when it has ended. What is no message is an empty one."""
    try:
        said = run.receive()
    except ValueError:
        return {}
    return said if said is None or isinstance(said, dict) else {}


def _judge_reply(
    reply: dict[str, Any], test: dict[str, Any], job: Job, check: Checker
) -> Failure | None:
    if "raised" in reply:
        return _raised(str(reply["raised"]))
    if "value" not in reply:
        return Failure("wrong", str(reply.get("unreadable", "it broke off the conversation")))
    if check.source:
        return check(test["input"], reply["value"], test["output"])
    try:
        value = plain(reply["value"])
        if job.by_runner:
            is_same = same_result(value, test["output"])
        else:
            is_same = same_value(value, test["output"], job.tolerance)
        if is_same:
            return None
    except (ValueError, RecursionError) as fault:
        return Failure("wrong", f"a result that can't be read: {fault}")
    return Failure("wrong", f"{_shown(value)} is not {_shown(test['output'])}")


def plain(coded: Coded) -> Any:
    """The value that a program sent; a linked list or a tree as the list that stands for it."""

    def as_list(items: Coded) -> list[Any]:
        return [plain(item) for item in items]

    nowhere = (None, None)
    return decode(coded, nowhere, {"list_node": as_list, "tree_node": as_list})


def same_value(value: Any, expected: Any, tolerance: float = 0.0) -> bool:
    """Whether a result is what a test expects, which is JSON: a tuple is a list there.

    The keys of a JSON object are texts, so a dict's keys are compared as JSON would write them.
    """
    if isinstance(value, list | tuple):
        return (
            isinstance(expected, list)
            and len(value) == len(expected)
            and all(same_value(a, b, tolerance) for a, b in zip(value, expected, strict=True))
        )
    if isinstance(value, dict) and isinstance(expected, dict):
        texts = {_key(key): item for key, item in value.items()}
        return len(texts) == len(value) == len(expected) and all(
            key in texts and same_value(texts[key], item, tolerance)
            for key, item in expected.items()
        )
    if tolerance and _is_number(value) and _is_number(expected):
        try:
            return isclose(value, expected, rel_tol=tolerance, abs_tol=tolerance)
        except OverflowError:  # an integer beyond all floats
            return bool(value == expected)
    return bool(value == expected) or (value != value and expected != expected)


def same_result(value: Any, expected: Any) -> bool:
    """Whether a result is what a test expects to the official runner of LiveCodeBench.

    That is Python's `==`, with a list for a tuple, but not for tuples within.
    """
    return bool((list(value) if isinstance(value, tuple) else value) == expected)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _key(key: object) -> str:
    if isinstance(key, str):
        return key
    return json.dumps(key) if key is None or isinstance(key, bool | int | float) else repr(key)


# --- assert ---


def _by_asserts(job: Job) -> Verdict:
    return _retried(lambda: _run_asserts(job))


def _run_asserts(job: Job) -> Verdict:
    """Carries calls from the test code to the program and what they give back to the test code."""
    source = {"code": job.answer["code"], "partial": job.partial}
    start = job.sandbox.start
    most = ASSERT_FACTOR * job.limits.cpu_seconds
    limits = replace(job.limits, output_bytes=MESSAGE_BYTES)
    wall, own = limits.wall_seconds, os.getpid()
    asleep, calls, own_waits = 0.0, 0, core_waits(own)
    with start("call", job.program, limits) as run:
        if not_loaded := _load(run, job):
            return Verdict(outcome=not_loaded.outcome, score=0.0, detail=not_loaded.detail)
        with start("test", source, limits) as tests:
            tests.confirm()
            for calls in range(MAX_CALLS):
                tests.mark()
                line = tests.receive_line()
                if line is None:
                    failure = _ended(tests.finish(), job, None)
                    is_driven = calls > 0 and failure.outcome == "limit"  # by what it was told
                    outcome: Outcome = "limit" if is_driven else "error"
                    detail = f"test code: {failure.detail}"
                    return Verdict(outcome=outcome, score=0.0, detail=detail)
                if line.startswith(b"!"):
                    return _tested(json.loads(line[1:]), job)
                run.mark()
                run.send_line(line + b"\n")
                reply = run.receive_line()
                if reply is None:
                    failure = _ended(run.finish(), job, None)
                    return Verdict(outcome=failure.outcome, score=0.0, detail=failure.detail)
                if run.has_unsent():
                    detail = "it answers what it was not asked yet"
                    return Verdict(outcome="wrong", score=0.0, detail=detail)
                asleep += max(0.0, run.elapsed() - run.spent() - SHORT_WAIT)
                if asleep > wall and asleep - run.waited() > wall + core_waits(own) - own_waits:
                    detail = f"asleep for more than {wall:g} s in all"
                    return Verdict(outcome="limit", score=0.0, detail=detail)
                if run.cpu() + tests.cpu() > most:
                    detail = f"more than {most:g} s of CPU time in all"
                    return Verdict(outcome="limit", score=0.0, detail=detail)
                tests.send_line(reply + b"\n")
    return Verdict(outcome="limit", score=0.0, detail=f"more than {MAX_CALLS} calls")


def _tested(told: dict[str, Any], job: Job) -> Verdict:
    """The verdict on what the test code found: its last line, which the program never sees."""
    passed, failed, detail = told["passed"], told["failed"], told["detail"]
    if told["kind"] == "test":
        return Verdict(outcome="error", score=0.0, detail=f"test code: {detail}")
    if not failed:
        return Verdict(outcome="correct", score=1.0, detail="the test code ran to its end")
    score = passed / (passed + failed) if job.partial else 0.0
    if told["kind"] == "raised":
        return Verdict(outcome=_raised(detail).outcome, score=score, detail=detail)
    return Verdict(outcome="wrong", score=score, detail=detail)


# --- checkers ---


class Checker:
    """A problem's function `check(input, output, expected)`, in a process of its own.

    It starts with the first output, and anew when its fork server has died. Without a "checker" in
    the answer there is no `source` and nothing starts.
    """

    def __init__(self, job: Job) -> None:
        self.source: str | None = job.answer.get("checker")
        self._job = job
        self._stack = ExitStack()
        self._run: Run | None = None

    def __enter__(self) -> Checker:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def __call__(self, given: Any, output: Coded, expected: Any) -> Failure | None:
        """None where the output is right. Raises SandboxFault where the checker itself fails.

        One that raises on an output but takes the expected one has met an output it can't read.
        """
        reply = self._ask(given, output, expected)
        if reply.get("right") is True:
            return None
        if "right" in reply:
            return Failure("wrong", f"the checker refuses {_shown(output)}")
        said = reply.get("raised", "it ended")
        if "right" in self._ask(given, encode(expected), expected):
            return Failure("wrong", f"the checker can't read {_shown(output)}: {said}")
        raise SandboxFault(f"the problem's checker fails: {said}")

    def _ask(self, given: Any, output: Coded, expected: Any) -> dict[str, Any]:
        run = self._run or self._start()
        run.mark()
        run.send({"input": given, "output": output, "expected": expected})
        try:
            reply = _message(run)
        except SandboxFault:
            self._run = None
            raise
        if reply is None:
            self._run = None
        return reply or {}

    def _start(self) -> Run:
        self._stack.close()
        run = self._job.sandbox.start("check", self.source, self._job.limits)
        self._stack.enter_context(run)
        if failure := _load(run, self._job):
            raise SandboxFault(f"the problem's checker does not load: {failure.detail}")
        self._run = run
        return run


def _shown(value: object) -> str:
    try:
        text = value.decode("utf-8", "replace").strip() if isinstance(value, bytes) else repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = f"{type(value).__name__} of a great length"
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


_KINDS: dict[str, Callable[[Job], Verdict]] = {
    "stdin": _by_stdin,
    "call": _by_calls,
    "assert": _by_asserts,
}
