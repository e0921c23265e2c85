r"""Judging mathematics: the answers of MATH-500 and hostile ones, one by one through a worker pool.

    python benchmarks/mathematics.py

Every reference answer is judged against itself, other ways to write it, and ten other answers of
the suite; hostile answers are judged against a number, an expression and an interval. A pool of one
worker that is warm gets one response at a time; what is measured is the wall time until its
verdict, and the CPU time that a verdict may take is the default of `Policy`.

Reads math500.jsonl from the folder beside this repository that the tests read real data from.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

from archer.types import Problem
from archer.verify.policy import Policy
from archer.verify.pool import WorkerPool
from tests.real_data import DATA, rows
from tests.verify.forms import other_forms, truly_same
from tests.verify.hostile import HOSTILE

SUITE = "math500.jsonl"
OTHERS = 10
"""Other answers that each reference answer is judged against."""
GOLDS = (r"\frac{1}{2}", r"x^{2}+\sqrt{3}", r"(-\infty, 2) \cup [3, \infty)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An answer, and whether it is right; one that is not may get any verdict but `correct`."""

    kind: str
    gold: str
    answer: str
    right: bool


def main() -> None:
    """Judges everything and prints a line per kind."""
    if not (DATA / SUITE).is_file():
        raise SystemExit(f"{DATA / SUITE} is missing: put the test set of MATH-500 there")
    golds = sorted({row["answer"] for row in rows(SUITE)})
    cases = [*cases_of(golds), *hostile_cases()]
    policy = Policy()
    kinds = list(dict.fromkeys(case.kind for case in cases))
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    outcomes: dict[str, list[tuple[Case, str]]] = {kind: [] for kind in kinds}
    with WorkerPool(workers=1, policy=policy) as pool:
        judged(pool, Case(kind="", gold=r"\sqrt{2}", answer=r"\frac{2}{\sqrt{2}}", right=True))
        for case in cases:
            begin = time.perf_counter()
            outcome = judged(pool, case)
            times[case.kind].append(time.perf_counter() - begin)
            outcomes[case.kind].append((case, outcome))
    print(
        f"{'':16}{'pairs':>7}{'median':>10}{'p99':>10}{'max':>10}{'late':>6}{'right':>9}{'false':>7}"
    )
    for kind in kinds:
        print(line(kind, times[kind], outcomes[kind], policy.cpu_seconds))
    everything = [taken for kind in kinds for taken in times[kind]]
    print(
        line("all", everything, [pair for k in kinds for pair in outcomes[k]], policy.cpu_seconds)
    )
    print("times in ms; late: over the CPU seconds of the policy; false: wrong answers accepted")
    for case, outcome in (pair for kind in kinds for pair in outcomes[kind]):
        if outcome == "error" or (outcome == "correct") is not case.right:
            print(f"  {outcome}: {case.answer[:60]!r} for {case.gold[:60]!r}")


def judged(pool: WorkerPool, case: Case) -> str:
    """The outcome of the case's answer in a box."""
    problem = Problem(id="p", prompt="?", verifier="math", answer=case.gold)
    pool.ledger()  # forgets earlier verdicts, so that none is taken from them
    response = f"All in all, it is $\\boxed{{{case.answer}}}$."
    return pool.submit(problem, response, False).result().outcome


def line(kind: str, times: list[float], judged: list[tuple[Case, str]], deadline: float) -> str:
    """One row of the table."""
    ordered = sorted(1000 * taken for taken in times)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    right = sum((outcome == "correct") is case.right for case, outcome in judged) / len(judged)
    false = sum(outcome == "correct" and not case.right for case, outcome in judged)
    late = sum(taken > deadline for taken in times)
    return (
        f"{kind:16}{len(ordered):7}{ordered[len(ordered) // 2]:10.3f}{p99:10.1f}{ordered[-1]:10.1f}"
        f"{late:6}{right:9.2%}{false:7}"
    )


def cases_of(golds: list[str]) -> Iterator[Case]:
    """Reference answers with themselves, their other forms, and other answers."""
    rng = random.Random(0)
    for gold in golds:
        yield Case(kind="itself", gold=gold, answer=gold, right=True)
        for form in dict.fromkeys(other_forms(gold)):
            if form != gold:
                yield Case(kind="rewritten", gold=gold, answer=form, right=True)
        for other in rng.sample(golds, OTHERS):
            if not truly_same(gold, other):
                yield Case(kind="other answers", gold=gold, answer=other, right=False)


def hostile_cases() -> Iterator[Case]:
    """Answers made to take long, or to end whoever reads them."""
    for answer in HOSTILE.values():
        for gold in GOLDS:
            yield Case(kind="hostile", gold=gold, answer=answer, right=False)


if __name__ == "__main__":
    main()
