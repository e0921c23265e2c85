"""The pool: every response gets the verdict that it deserves, whatever happens to the workers."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from archer.types import Problem, Verdict
from archer.verify.policy import Policy
from archer.verify.pool import Ticket, WorkerPool
from archer.verify.verifiers import verifiers_of
from archer.verify.worker import REUSED
from tests.children import SECONDS, child_environment
from tests.verify.hostile import HOSTILE
from tests.verify.own_graders import GRADERS, graders_can_be_imported  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    """One for all tests that need no other: a worker takes a second to load what it needs."""
    with WorkerPool(
        workers=1, policy=Policy(cpu_seconds=1.0, memory_mb=256), wall_factor=20.0
    ) as opened:
        yield opened


@pytest.fixture(autouse=True)
def nothing_was_judged_before(pool: WorkerPool) -> None:
    pool.ledger()


def problem(verifier: str, answer: Any, name: str = "p") -> Problem:
    return Problem(id=name, prompt="?", verifier=verifier, answer=answer)


def boxed(answer: str) -> str:
    return rf"So it is \boxed{{{answer}}}."


def judged(pool: WorkerPool, verifier: str, answer: Any, response: str = boxed("5")) -> Verdict:
    return pool.submit(problem(verifier, answer), response, False).result(SECONDS)


def verdicts(tickets: list[Ticket]) -> list[Verdict]:
    return [ticket.result(SECONDS) for ticket in tickets]


def workers(of: int | None = None) -> list[psutil.Process]:
    """Worker processes and their children, below a process (this one if none is named)."""
    return [
        process
        for process in psutil.Process(of).children(recursive=True)
        if "archer.verify.worker" in _command(process)
    ]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def are_done(tickets: list[Ticket], count: int) -> bool:
    return sum(ticket.done() for ticket in tickets) >= count


def eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


# --- verdicts ---


def test_quick_and_slow_answers_are_judged(pool: WorkerPool) -> None:
    assert judged(pool, "math", "5").outcome == "correct"
    assert judged(pool, "math", "5", boxed("4")).outcome == "wrong"
    assert judged(pool, "math", "5", "five").outcome == "no_answer"
    assert judged(pool, "math", r"\sqrt{2}", boxed(r"\frac{2}{\sqrt{2}}")).outcome == "correct"
    assert judged(pool, "math", r"\sqrt{2}", boxed("1.41421356237")).outcome == "wrong"
    assert judged(pool, "graders:length", 3, boxed("abc")).outcome == "correct"


def test_thoughts_are_left_out_in_workers_too(pool: WorkerPool) -> None:
    asked = problem("math", r"\sqrt{2}")
    inside, outside = boxed(r"\frac{3}{\sqrt{2}}"), boxed(r"\frac{2}{\sqrt{2}}")
    answered = pool.submit(asked, f"{inside}</think>{outside}", True)
    unclosed = pool.submit(asked, outside, True)
    assert answered.result(SECONDS).outcome == "correct"
    assert unclosed.result(SECONDS).outcome == "no_answer"


def test_verdicts_come_back_to_the_tickets_they_belong_to(pool: WorkerPool) -> None:
    tickets = [
        pool.submit(
            problem("math", rf"\sqrt{{{number}}}", str(number)),
            boxed(rf"\frac{{{number + number % 3}}}{{\sqrt{{{number}}}}}"),
            False,
        )
        for number in range(2, 40)
    ]
    expected = ["wrong" if number % 3 else "correct" for number in range(2, 40)]
    assert [verdict.outcome for verdict in verdicts(tickets)] == expected


def test_chat_prompts_and_odd_texts_reach_the_verifier(pool: WorkerPool) -> None:
    asked = Problem(
        id="p",
        prompt=({"role": "user", "content": "?"},),
        verifier="graders:length",
        answer=3,
        meta={"ключ": ["é", "\x00"]},
    )
    assert pool.submit(asked, boxed("a\ud800b"), False).result(SECONDS).outcome == "correct"


def test_a_problem_that_cannot_be_written_down_is_an_error(pool: WorkerPool) -> None:
    verdict = judged(pool, "graders:length", {1, 2})
    assert verdict.outcome == "error"
    assert "can't be written as JSON" in verdict.detail


def test_a_users_answer_pattern_is_used() -> None:
    with WorkerPool(workers=1, policy=Policy(answer_pattern=r"answer: (\S+)")) as pool:
        assert judged(pool, "exact", "5", "answer: 4, no, answer: 5").outcome == "correct"
    with pytest.raises(ValueError, match="exactly one group"):
        Policy(answer_pattern="answer")


@pytest.mark.parametrize(
    "wrong",
    [
        {"cpu_seconds": 0.0},
        {"cpu_seconds": float("nan")},
        {"cpu_seconds": float("inf")},
        {"memory_mb": 0},
        {"memory_mb": 10**30},
    ],
)
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Policy(**wrong)


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"workers": 1, "wall_factor": 0.5}])
def test_a_pool_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="make it at least 1"):
        WorkerPool(**wrong)


# --- failures and limits ---


@pytest.mark.parametrize(
    ("verifier", "detail"),
    [
        ("graders:raises", "KeyError"),
        ("graders:leaves", "SystemExit"),
        ("graders:ends_the_process", "exit status 0"),
        ("graders:kills_itself", "killed by SIGKILL"),
        ("graders:missing", "has no attribute 'missing'"),
        ("no_such_module:f", "No module named"),
    ],
)
def test_a_verifier_that_fails_is_an_error_and_never_a_zero(
    pool: WorkerPool, verifier: str, detail: str
) -> None:
    verdict = judged(pool, verifier, "5")
    assert verdict.outcome == "error"
    assert detail in verdict.detail
    assert judged(pool, "graders:length", 1).outcome == "correct"  # and the pool goes on


def test_what_a_verifier_prints_is_no_verdict(pool: WorkerPool) -> None:
    assert judged(pool, "graders:prints", None).outcome == "wrong"


def test_memory_and_stack_that_run_out_are_a_limit(pool: WorkerPool) -> None:
    assert judged(pool, "graders:eats_memory", None).outcome == "limit"
    assert judged(pool, "graders:recurses", None).outcome == "limit"


def test_mistake_37_a_verifier_that_spins_is_ended_by_its_cpu_time() -> None:
    with WorkerPool(workers=1, policy=Policy(cpu_seconds=0.3), wall_factor=100.0) as pool:
        verdict = judged(pool, "graders:spins", None)
        assert verdict.outcome == "limit"
        assert verdict.detail == "more than 0.3 s of CPU time"
        assert pool.ledger()["verify/workers_lost"] == 0


def test_mistake_37_a_verifier_that_hangs_is_ended_by_the_wall_clock() -> None:
    with WorkerPool(workers=1, policy=Policy(cpu_seconds=0.5), wall_factor=4.0) as pool:
        assert judged(pool, "graders:sleeps", None).outcome == "limit"
        assert pool.ledger()["verify/workers_lost"] == 2
        assert judged(pool, "graders:length", 1).outcome == "correct"


def test_hostile_answers_end_within_their_limits(pool: WorkerPool) -> None:
    asked = problem("math", r"\sqrt{2}+x")
    tickets = [pool.submit(asked, boxed(answer), False) for answer in HOSTILE.values()]
    outcomes = {verdict.outcome for verdict in verdicts(tickets)}
    assert outcomes <= {"wrong", "limit", "no_answer"}  # blanks are no answer
    assert judged(pool, "math", r"\sqrt{2}", boxed("2^{1/2}")).outcome == "correct"


def composite(*verifiers: str) -> dict[str, Any]:
    return {"parts": [{"verifier": name, "answer": "5"} for name in verifiers]}


def test_all_that_a_composite_asks_is_loaded_before_its_time_begins() -> None:
    parts = [
        {"verifier": "graders:sees_sympy", "answer": None},  # judged before the one that loads it
        {"verifier": "math", "answer": r"\sqrt{2}"},
    ]
    with WorkerPool(workers=1) as pool:  # a worker that has loaded nothing
        verdict = judged(pool, "composite", {"parts": parts}, boxed(r"\frac{2}{\sqrt2}"))
    assert verdict.outcome == "correct", verdict.detail


def test_the_child_of_a_composite_serves_on_if_all_its_parts_do(pool: WorkerPool) -> None:
    counting = composite("exact", "graders:counts_its_calls")
    for response in (boxed("5"), f"then {boxed('5')}"):
        assert judged(pool, "composite", counting, response).outcome == "correct"
    assert verifiers_of("composite", counting) - REUSED == {"graders:counts_its_calls"}
    assert verifiers_of("composite", composite("exact", "math")) <= REUSED


def test_a_composite_that_makes_no_sense_is_an_error(pool: WorkerPool) -> None:
    wrong: list[Any] = [None, {}, {"parts": [5]}, {"parts": []}, composite("graders:missing")]
    for answer in wrong:
        assert judged(pool, "composite", answer).outcome == "error"


def test_a_verdict_does_not_depend_on_what_was_judged_before(pool: WorkerPool) -> None:
    first = judged(pool, "graders:counts_its_calls", None, boxed("1"))
    second = judged(pool, "graders:counts_its_calls", None, boxed("2"))
    assert first.detail == second.detail == "call 1"


def test_what_is_drawn_in_a_verifier_is_drawn_the_same_in_every_worker() -> None:
    drawn = set()
    for _ in range(2):
        with WorkerPool(workers=1) as pool:
            drawn.add(judged(pool, "graders:draws", None).detail)
    assert len(drawn) == 1


@pytest.mark.full
def test_verdicts_are_the_same_under_load_and_in_any_order() -> None:
    answers = [*HOSTILE.values(), "2^{1/2}+x", r"x+\sqrt2", r"\sqrt{3}+x", "1.414+x", "5"]
    asked = problem("math", r"\sqrt{2}+x")
    load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    seen: list[dict[str, str]] = []
    try:
        for seed in range(3):
            shuffled = random.Random(seed).sample(answers, len(answers))
            with WorkerPool(workers=3, policy=Policy(cpu_seconds=3.0), wall_factor=40.0) as pool:
                tickets = [pool.submit(asked, boxed(answer), False) for answer in shuffled]
                outcomes = [verdict.outcome for verdict in verdicts(tickets)]
            seen.append(dict(zip(shuffled, outcomes, strict=True)))
    finally:
        for process in load:
            process.kill()
            process.wait()
    assert all(outcomes == seen[0] for outcomes in seen)


# --- workers that die ---


def test_workers_killed_in_the_middle_lose_no_verdict() -> None:
    others = workers()
    with WorkerPool(workers=2) as pool:
        asked = [
            problem("graders:works_a_while", str(number % 2), str(number)) for number in range(60)
        ]
        tickets = [pool.submit(each, boxed("1"), False) for each in asked]
        for done in (5, 25, 45):  # far enough apart that no response is met twice
            assert eventually(partial(are_done, tickets, done))
            ours = [process for process in workers() if process not in others]
            os.kill(random.Random(done).choice(ours).pid, signal.SIGKILL)
        outcomes = [verdict.outcome for verdict in verdicts(tickets)]
        assert outcomes == ["correct" if number % 2 else "wrong" for number in range(60)]
        ledger = pool.ledger()
        assert ledger["verify/graders:works_a_while/correct"] == 30
        assert ledger["verify/graders:works_a_while/wrong"] == 30


def test_the_response_that_a_worker_died_with_is_judged_once_more(tmp_path: Path) -> None:
    with WorkerPool(workers=1) as pool:
        seen = str(tmp_path / "seen")
        assert judged(pool, "graders:dies_the_first_time", seen).outcome == "correct"
        assert pool.ledger()["verify/workers_lost"] == 1


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, time\n"
        "from archer.types import Problem\n"
        "from archer.verify.policy import Policy\n"
        "from archer.verify.pool import WorkerPool\n"
        "pool = WorkerPool(workers=2, policy=Policy(cpu_seconds=100))\n"
        "for name in 'ab':\n"
        "    asked = Problem(id=name, prompt='?', verifier='graders:sleeps', answer=1)\n"
        "    pool.submit(asked, 'x', False)\n"
        "time.sleep(3600)\n",
        "utf-8",
    )
    parent = subprocess.Popen([sys.executable, script], env=child_environment(GRADERS))
    try:
        assert eventually(lambda: len(workers(parent.pid)) == 4)  # two, and a child of each
        orphans = workers(parent.pid)
    finally:
        parent.kill()
        parent.wait()
    assert eventually(lambda: not any(map(is_alive, orphans)))


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_workers_leave_ctrl_c_to_their_parent() -> None:
    others = workers()
    with WorkerPool(workers=1) as pool:
        assert judged(pool, "graders:length", 1).outcome == "correct"
        (worker,) = [process for process in workers() if process not in others]
        assert os.getsid(worker.pid) == worker.pid != os.getsid(0)  # out of the terminal's reach
        os.kill(worker.pid, signal.SIGINT)
        assert judged(pool, "graders:length", 1, boxed("6")).outcome == "correct"
        assert pool.ledger()["verify/workers_lost"] == 0


# --- closing ---


def test_closing_leaves_no_process_and_no_thread() -> None:
    processes, threads = workers(), threading.active_count()
    with WorkerPool(workers=2) as pool:
        tickets = [
            pool.submit(problem("graders:works_a_while", "5", str(number)), boxed("5"), False)
            for number in range(4)
        ]
        verdicts(tickets)
        assert len(workers()) > len(processes)
    assert workers() == processes
    assert threading.active_count() == threads
    pool.close()  # once more does nothing


def test_closing_does_not_wait_for_what_hangs() -> None:
    with WorkerPool(workers=1, policy=Policy(cpu_seconds=100.0)) as pool:
        tickets = [
            pool.submit(problem("graders:sleeps", None, name), boxed("5"), False) for name in "abc"
        ]
        assert eventually(lambda: len(workers()) >= 2)
    for ticket in tickets:
        with pytest.raises(CancelledError):
            ticket.result(SECONDS)
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(problem("math", "5"), boxed("5"), False)


def test_a_pool_that_only_met_quick_answers_starts_no_process() -> None:
    before = workers()
    with WorkerPool(workers=4) as pool:
        for number in range(20):
            assert judged(pool, "math", "5", boxed(str(number))).outcome in ("correct", "wrong")
        assert workers() == before


# --- the ledger ---


def test_equal_responses_of_a_step_are_judged_once(pool: WorkerPool) -> None:
    asked = problem("graders:counts_its_calls", None)
    same = [pool.submit(asked, boxed("5"), False) for _ in range(5)]
    thought = pool.submit(asked, boxed("5"), True)
    other = pool.submit(problem("graders:counts_its_calls", "another"), boxed("5"), False)
    assert len({id(ticket) for ticket in same}) == 1
    assert thought is not same[0]
    assert other is not same[0]
    verdicts([*same, thought, other])
    ledger = pool.ledger()
    assert ledger["verify/joined"] == 4
    assert ledger["verify/graders:counts_its_calls/correct"] == 6
    assert ledger["verify/graders:counts_its_calls/no_answer"] == 1
    again = pool.submit(asked, boxed("5"), False)
    assert again is not same[0]
    assert verdicts([again])[0].outcome == "correct"


@pytest.mark.parametrize("gold", ["5", r"\sqrt{2}"])  # judged at once, and by a worker
def test_equal_answers_of_different_responses_are_judged_once(pool: WorkerPool, gold: str) -> None:
    asked = problem("math", gold)
    right, wrong = (rf"\frac{{{number}}}{{\sqrt{{2}}}}" for number in (2, 3))
    tickets = [
        pool.submit(asked, f"<think>{number}</think> {boxed(answer)} {number}", False)
        for number in range(4)
        for answer in (right, wrong)
    ]
    found = verdicts(tickets)
    ledger = pool.ledger()
    assert len({id(ticket) for ticket in tickets}) == 2
    assert ledger["verify/joined"] == 6
    assert sum(ledger[name] for name in ledger if name.startswith("verify/math/")) == 8
    alone = [judged(pool, "math", gold, boxed(answer)) for answer in (right, wrong)]
    for verdict, one in zip(found, alone * 4, strict=True):
        assert replace(verdict, seconds=0) == replace(one, seconds=0)


def test_equal_answers_to_different_problems_are_not_joined(pool: WorkerPool) -> None:
    asked = [problem("math", "5", "a"), problem("math", "5", "b"), problem("math", "6", "a")]
    outcomes = [pool.submit(each, boxed("5"), False).result(SECONDS).outcome for each in asked]
    assert outcomes == ["correct", "correct", "wrong"]
    assert pool.ledger()["verify/joined"] == 0


def test_responses_that_were_judged_already_are_counted_when_they_come_again(
    pool: WorkerPool,
) -> None:
    for _ in range(3):
        judged(pool, "math", "5")
    assert pool.ledger()["verify/math/correct"] == 3


def test_the_ledger_counts_by_verifier_and_outcome_and_begins_anew(pool: WorkerPool) -> None:
    judged(pool, "math", "5")
    judged(pool, "math", "5", boxed("6"))
    judged(pool, "math", "5", "none")
    judged(pool, "graders:raises", "5")
    ledger = pool.ledger()
    counts = {name: count for name, count in ledger.items() if name.count("/") == 2}
    assert counts == {
        "verify/graders:raises/error": 1,
        "verify/math/correct": 1,
        "verify/math/no_answer": 1,
        "verify/math/wrong": 1,
    }
    assert ledger["seconds/verify"] > 0
    assert ledger["seconds/verify_queue"] >= 0
    assert pool.ledger() == {
        "seconds/verify": 0,
        "seconds/verify_queue": 0,
        "verify/joined": 0,
        "verify/workers_lost": 0,
    }


def test_what_is_not_judged_in_a_steps_time_is_an_error_and_nothing_is_missing() -> None:
    policy = Policy(cpu_seconds=100.0)
    with WorkerPool(workers=1, policy=policy, step_seconds=3.0) as pool:
        asked = [problem("graders:length", 1, "a"), problem("graders:sleeps", 1, "b")]
        tickets = [pool.submit(one, boxed("5"), False) for one in asked]
        tickets.append(pool.submit(problem("graders:length", 1, "c"), boxed("5"), False))
        tickets[0].result(SECONDS)  # a worker's start is not of the step's time
        found = pool.collect(tickets)
        ledger = pool.ledger()
    assert [verdict.outcome for verdict in found] == ["correct", "error", "error"]
    assert found[1].detail == "no verdict within 3 s"
    assert ledger["verify/graders:sleeps/error"] == ledger["verify/graders:length/error"] == 1


def test_a_steps_deadline_holds_for_two_problems_of_one_id() -> None:
    """Their answers differ: the second took the place of the first among those waited for."""
    policy = Policy(cpu_seconds=100.0)
    with WorkerPool(workers=1, policy=policy, step_seconds=2.0) as pool:
        same = [problem("graders:sleeps", answer, "same") for answer in (1, 2)]
        found = pool.collect([pool.submit(each, boxed("5"), False) for each in same])
    assert [verdict.detail for verdict in found] == ["no verdict within 2 s"] * 2
