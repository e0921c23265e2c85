"""Right programs are accepted and wrong ones are not: on the tests of real data sets."""

from __future__ import annotations

import ast
import gzip
import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from archer.data.code_rows import (
    code_contests,
    humaneval,
    leetcodedataset,
    livecodebench,
    mbpp,
    reference,
)
from archer.types import Problem, Verdict
from archer.verify.pool import WorkerPool
from tests.verify.solutions import CHECKERS, MISTAKES, SOLUTIONS

Row = dict[str, Any]
Converter = Callable[[Row, str, str], Problem]

DATA = Path(__file__).parents[3] / "shared" / "data"
CONTESTS: tuple[tuple[str, Converter], ...] = (
    ("code_contests_sample.jsonl", code_contests),
    ("livecodebench_v1_3rows_full.jsonl", livecodebench),
)
SETS: dict[str, tuple[str, Converter]] = {
    "HumanEval": ("humaneval.jsonl", humaneval),
    "MBPP": ("mbpp.jsonl", mbpp),
    "LeetCodeDataset": ("leetcodedataset_v0.3.1_test.jsonl.gz", leetcodedataset),
}
PART = 25
"""Rows of each set that `make test` judges."""
LEAST = {"HumanEval": 164, "MBPP": 968, "LeetCodeDataset": 227}
"""References of a whole set that must be accepted."""
EXCEPTIONS = {
    "mbpp-126": "its function is named sum, and the tests take that for Python's own",
    "find-the-number-of-subsequences-with-equal-gcd": "one of its calls takes some 5 s of CPU time",
}
"""Problem id -> why its own reference is refused, or may be."""

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's"),
    pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(workers=2) as opened:
        yield opened


@cache
def rows(name: str) -> list[Row]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} does not lie in ../shared/data")
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        return [json.loads(line) for line in lines]


def contests() -> list[Problem]:
    """The 23 problems, with our checkers where a test has several right answers."""
    problems = [convert(row, "x", "x") for name, convert in CONTESTS for row in rows(name)]
    return [
        replace(problem, answer=problem.answer | {"checker": CHECKERS[problem.id]})
        if problem.id in CHECKERS
        else problem
        for problem in problems
    ]


def judged(pool: WorkerPool, pairs: list[tuple[Problem, str]]) -> list[Verdict]:
    """The verdicts on these responses to these problems."""
    return pool.collect([pool.submit(problem, response, False) for problem, response in pairs])


def fenced(program: str) -> str:
    return f"```python\n{program.strip()}\n```"


def stub(problem: Problem) -> str:
    """A program that defines every name that the tests of a function use, and returns nothing."""
    tree = ast.parse(problem.answer["code"])
    names = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    methods = sorted({name.rpartition(".")[2] for name in names if name.startswith("Solution")})
    functions = sorted(filter(str.isidentifier, names))
    lines = [f"def {name}(*a, **k): pass" for name in functions]
    lines += ["class Solution:", "    pass"]
    lines += [f"    def {name}(self, *a, **k): pass" for name in methods]
    return "\n".join(lines)


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
    pairs = [(SETS[name][1](row, "x", "x"), reference(row)) for row in chosen]
    return [(problem, response) for problem, response in pairs if response is not None]


def with_stubs(name: str, chosen: list[Row]) -> list[tuple[Problem, str]]:
    problems = [SETS[name][1](row, "x", "x") for row in chosen]
    return [(problem, fenced(stub(problem))) for problem in problems]


def not_accepted(pool: WorkerPool, pairs: list[tuple[Problem, str]]) -> dict[str, str]:
    """Problem id -> what was said of a response that is not correct."""
    verdicts = judged(pool, pairs)
    return {
        problem.id: f"{verdict.outcome}: {verdict.detail}"
        for (problem, _), verdict in zip(pairs, verdicts, strict=True)
        if verdict.outcome != "correct"
    }


@pytest.mark.parametrize("name", SETS)
def test_references_of_a_part_are_accepted(pool: WorkerPool, name: str) -> None:
    found = not_accepted(pool, with_references(name, drawn(name)))
    assert {id: said for id, said in found.items() if id not in EXCEPTIONS} == {}


@pytest.mark.parametrize("name", SETS)
def test_no_stub_of_a_part_is_accepted(pool: WorkerPool, name: str) -> None:
    assert len(not_accepted(pool, with_stubs(name, drawn(name)))) == PART


@pytest.mark.full
@pytest.mark.parametrize("name", SETS)
def test_references_of_a_whole_set_are_accepted(pool: WorkerPool, name: str) -> None:
    pairs = with_references(name, rows(SETS[name][0]))
    found = not_accepted(pool, pairs)
    assert {id: said for id, said in found.items() if id not in EXCEPTIONS} == {}
    assert len(pairs) - len(found) >= LEAST[name]


@pytest.mark.full
@pytest.mark.parametrize("name", SETS)
def test_no_stub_of_a_whole_set_is_accepted(pool: WorkerPool, name: str) -> None:
    pairs = with_stubs(name, rows(SETS[name][0]))
    assert len(not_accepted(pool, pairs)) == len(pairs)
