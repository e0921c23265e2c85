"""Right programs are accepted and wrong ones are not: on the tests of real data sets."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from archer.data.code_rows import reference
from archer.data.problems import Row
from archer.types import Problem, Verdict
from archer.verify.policy import Policy
from archer.verify.pool import WorkerPool
from tests.needs import needs_sandbox
from tests.real_data import rows
from tests.verify.code_sets import SETS, stub
from tests.verify.solutions import CHECKERS, MISTAKES, SOLUTIONS

CONTESTS = ("CodeContests", "LiveCodeBench")
PART = 25
"""Rows of each set with references that `make test` judges."""
LEAST = {"HumanEval": 164, "MBPP": 968, "LeetCodeDataset": 228}
"""References of a whole set that must be accepted."""
EXCEPTIONS = {"mbpp-126": "its function is named sum, and the tests take that for Python's own"}
"""Problem id -> why its own reference is refused."""
CPU_SECONDS = 60
"""Far more than any right program takes: a slow machine finds none of them too slow."""

pytestmark = [
    needs_sandbox,
    pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(workers=2, policy=Policy(cpu_seconds=CPU_SECONDS)) as opened:
        yield opened


def problems_of(name: str, chosen: list[Row]) -> list[Problem]:
    return [SETS[name][1](row, "x", "x") for row in chosen]


def contests() -> list[Problem]:
    """The 23 problems, with our checkers where a test has several right answers."""
    found = []
    for problem in [one for name in CONTESTS for one in problems_of(name, rows(SETS[name][0]))]:
        # In place of the limit that a problem may bring.
        ours: dict[str, Any] = {"time_limit_s": CPU_SECONDS}
        if problem.id in CHECKERS:
            ours["checker"] = CHECKERS[problem.id]
        found.append(replace(problem, answer=problem.answer | ours))
    return found


def judged(pool: WorkerPool, pairs: list[tuple[Problem, str]]) -> list[Verdict]:
    """The verdicts on these responses to these problems."""
    return pool.collect([pool.submit(problem, response, False) for problem, response in pairs])


def fenced(program: str) -> str:
    return f"```python\n{program.strip()}\n```"


# Programs of contests


def test_every_contest_problem_has_a_program_and_a_mistake() -> None:
    ids = {problem.id for problem in contests()}
    assert len(ids) == 23
    assert set(SOLUTIONS) == set(MISTAKES) == ids
    assert set(CHECKERS) < ids
    for id, (right, _) in MISTAKES.items():
        assert SOLUTIONS[id].count(right) == 1, id


def test_right_programs_of_contests_are_correct(pool: WorkerPool) -> None:
    problems = contests()
    verdicts = judged(pool, [(problem, fenced(SOLUTIONS[problem.id])) for problem in problems])
    told = {p.id: v.detail for p, v in zip(problems, verdicts, strict=True)}
    assert told == {
        p.id: f"{len(p.answer['tests'])} of {len(p.answer['tests'])} tests" for p in problems
    }
    assert {(verdict.outcome, verdict.score) for verdict in verdicts} == {("correct", 1.0)}


def test_empty_and_slightly_wrong_programs_of_contests_are_not_correct(pool: WorkerPool) -> None:
    problems = contests()
    wrong = [(p, fenced(SOLUTIONS[p.id].replace(*MISTAKES[p.id]))) for p in problems]
    empty = [(p, fenced("pass")) for p in problems]
    outcomes = {verdict.outcome for verdict in judged(pool, wrong + empty)}
    assert outcomes <= {"wrong", "crashed"}


# References


def drawn(name: str) -> list[Row]:
    """A part of a set. This seed leaves out the two references that take a quarter of a minute."""
    return random.Random(f"{name} 2").sample(rows(SETS[name][0]), PART)


def with_references(name: str, chosen: list[Row]) -> list[tuple[Problem, str]]:
    pairs = zip(problems_of(name, chosen), map(reference, chosen), strict=True)
    return [(problem, response) for problem, response in pairs if response is not None]


def with_stubs(name: str, chosen: list[Row]) -> list[tuple[Problem, str]]:
    return [(problem, fenced(stub(problem))) for problem in problems_of(name, chosen)]


def not_accepted(pool: WorkerPool, pairs: list[tuple[Problem, str]]) -> dict[str, str]:
    """Problem id -> what was said of a response that is not correct."""
    verdicts = judged(pool, pairs)
    return {
        problem.id: f"{verdict.outcome}: {verdict.detail}"
        for (problem, _), verdict in zip(pairs, verdicts, strict=True)
        if verdict.outcome != "correct"
    }


@pytest.mark.parametrize("name", LEAST)
def test_references_of_a_part_are_accepted(pool: WorkerPool, name: str) -> None:
    found = not_accepted(pool, with_references(name, drawn(name)))
    assert {id: said for id, said in found.items() if id not in EXCEPTIONS} == {}


@pytest.mark.parametrize("name", LEAST)
def test_no_stub_of_a_part_is_accepted(pool: WorkerPool, name: str) -> None:
    assert len(not_accepted(pool, with_stubs(name, drawn(name)))) == PART


@pytest.mark.full
@pytest.mark.parametrize("name", LEAST)
def test_references_of_a_whole_set_are_accepted(pool: WorkerPool, name: str) -> None:
    pairs = with_references(name, rows(SETS[name][0]))
    found = not_accepted(pool, pairs)
    assert {id: said for id, said in found.items() if id not in EXCEPTIONS} == {}
    assert len(pairs) - len(found) >= LEAST[name]


@pytest.mark.full
@pytest.mark.parametrize("name", LEAST)
def test_no_stub_of_a_whole_set_is_accepted(pool: WorkerPool, name: str) -> None:
    pairs = with_stubs(name, rows(SETS[name][0]))
    assert len(not_accepted(pool, pairs)) == len(pairs)
