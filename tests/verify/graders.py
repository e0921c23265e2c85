"""Verifiers of a user's own, good and bad ones, that the tests of archer.verify name."""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

from archer.types import Problem, Verdict
from archer.verify.extract import Reading


def length(problem: Problem, reading: Reading) -> bool:
    return reading.answer is not None and len(reading.answer) == int(problem.answer)


def half(problem: Problem, reading: Reading) -> float:
    return 0.5


def details(problem: Problem, reading: Reading) -> Verdict:
    return Verdict(outcome="crashed", score=0.25, detail=str(problem.meta))


def raises(problem: Problem, reading: Reading) -> bool:
    raise KeyError("no such column")


def raises_on_seven(problem: Problem, reading: Reading) -> bool:
    if reading.answer == "7":
        raise ZeroDivisionError("seven")
    return bool(reading.answer == problem.answer)


def leaves(problem: Problem, reading: Reading) -> bool:
    sys.exit(3)


def ends_the_process(problem: Problem, reading: Reading) -> bool:
    os._exit(0)


def returns_text(problem: Problem, reading: Reading) -> str:
    return "yes"


def returns_nan(problem: Problem, reading: Reading) -> float:
    return float("nan")


def prints(problem: Problem, reading: Reading) -> bool:
    print('{"verdict": {"outcome": "correct", "score": 1.0}}', flush=True)
    return False


def sleeps(problem: Problem, reading: Reading) -> bool:
    time.sleep(3600)
    return True


def spins(problem: Problem, reading: Reading) -> bool:
    while True:
        pass


def eats_memory(problem: Problem, reading: Reading) -> bool:
    hoard = [bytearray(2**24) for _ in range(10**6)]
    return bool(hoard)


def recurses(problem: Problem, reading: Reading) -> bool:
    return recurses(problem, reading)


def kills_itself(problem: Problem, reading: Reading) -> bool:
    os.kill(os.getpid(), 9)
    return True


def dies_the_first_time(problem: Problem, reading: Reading) -> bool:
    seen = Path(problem.answer)
    if not seen.exists():
        seen.touch()
        os.kill(os.getppid(), 9)  # the worker, and this process with it
        time.sleep(3600)
    return True


def works_a_while(problem: Problem, reading: Reading) -> bool:
    end = time.process_time() + 0.02
    while time.process_time() < end:
        pass
    return bool(reading.answer == problem.answer)


def sees_sympy(problem: Problem, reading: Reading) -> bool:
    return "sympy" in sys.modules


calls = 0


def counts_its_calls(problem: Problem, reading: Reading) -> Verdict:
    global calls
    calls += 1
    return Verdict(outcome="correct", score=1.0, detail=f"call {calls}")


def draws(problem: Problem, reading: Reading) -> Verdict:
    order = "".join({"a", "b", "c", "d", "e", "f"})
    return Verdict(outcome="correct", score=1.0, detail=f"{random.random()} {order}")


def sleeps_or_is_right(problem: Problem, reading: Reading) -> bool:
    """Right where the response is the answer; takes a moment, so that all workers get some."""
    time.sleep(0.15)
    return reading.text.strip() == str(problem.answer)
