"""Whatever is written into a file of responses: every line is answered, and nothing is traced back.

Rows and responses are thrown together from fragments that verifiers look for (fences, thoughts,
boxes, numbers, brackets, statements) and from plain noise, all from a seed.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from archer.cli import main
from archer.types import OUTCOMES
from tests.children import child_environment
from tests.needs import needs_sandbox

FRAGMENTS = (
    "<think> </think> ```python\n ``` \n```\n ```json\n ~~~ \\boxed{ } { \\frac{ \\sqrt[3]{ ^{ _{ "
    "\\left( \\right) $ % 1/3 0.333... -5 1e999 9^{9^9} \\infty \\pi x= , ; 1,234 [1,2) "
    "\\{1,2\\} A (B) The answer is print( ) def f(x): return x class Solution: import os; "
    "while True: input() [ ] lambda: yield 1/0 raise exit() '''\u2028 \x00 \x1b[31m \ufeff "
    "\u202e \U0001f600 e\u0301 é \t "
    '{"a": null true NaN \\u0000 " \' \\'
).split(" ")
PROGRAMS = (
    "print(sum(map(int, input().split())))",
    "print(input()[::-1])",
    "def f(x):\n    return x",
    "def f(x):\n    return x + 1",
    "class Solution:\n    def f(self, x):\n        return [x]",
    "import sys\nsys.stdout.write(sys.stdin.read())",
    "raise SystemExit",
    "print('5' * 10**5)",
    "x = [0] * 10**9",
)
ANSWERS: dict[str, tuple[Any, ...]] = {
    "math": ("5", "\\frac{1}{3}", ["(1,2)", "x=5"], "\\{1,2\\}", "50\\%"),
    "exact": ("5", "A"),
    "normalised": ("The answer", "é"),
    "choice": ("A", ["B", "C"]),
    "json_schema": ({"schema": {"type": "object"}}, {"schema": {}, "value": [1]}),
    "thought_format": (None,),
    "language": ({"language": "en"},),
    "composite": (
        {
            "parts": [
                {"verifier": "math", "answer": "5"},
                {"verifier": "thought_format", "answer": None, "gate": True},
            ]
        },
    ),
    "code": (
        {"kind": "stdin", "tests": [{"input": "2 3", "output": "5"}]},
        {"kind": "call", "name": "f", "tests": [{"input": [1], "output": 1}]},
        {"kind": "assert", "code": "assert f(1) == 1"},
    ),
    "no_such_module:f": (None,),
}


def row(rng: random.Random, number: int) -> dict[str, Any]:
    verifier = rng.choice([*ANSWERS, "code", "code", "math"])
    answer = rng.choice(ANSWERS[verifier])
    if verifier == "code":
        answer = {**answer, "time_limit_s": 0.2, "memory_limit_mb": 64}
    return {
        "id": f"{number}",
        "prompt": "?",
        "verifier": verifier,
        "answer": answer,
        "response": response(rng),
        "in_thought": rng.random() < 0.1,
    }


def response(rng: random.Random) -> str:
    if rng.random() < 0.4:
        program = _mutated(rng, rng.choice(PROGRAMS))
        return f"{_noise(rng)}```{rng.choice(('python', '', 'py', 'js'))}\n{program}\n```"
    return _noise(rng)


def _noise(rng: random.Random) -> str:
    words = [rng.choice(FRAGMENTS) for _ in range(rng.choice((0, 1, 3, 10, 40)))]
    return rng.choice(("", " ", "\n")).join(words)


def _mutated(rng: random.Random, program: str) -> str:
    for _ in range(rng.choice((0, 0, 1, 3))):
        place = rng.randrange(len(program) + 1)
        program = program[:place] + rng.choice(FRAGMENTS) + program[place + rng.randrange(3) :]
    return program


def grade(file: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "archer.cli", "grade", str(file), "--out", str(out)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=file.parent, env=child_environment()
    )


@needs_sandbox
@pytest.mark.parametrize(
    "rows", [300, pytest.param(10_000, marks=pytest.mark.full)], ids=["some", "many"]
)
def test_every_line_is_answered_whatever_the_response(rows: int, tmp_path: Path) -> None:
    rng = random.Random(rows)
    asked = [row(rng, number) for number in range(rows)]
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in asked), "utf-8")
    done = grade(file, out)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    # Of bytes: a text has more ends of lines than \n, and JSON keeps \u2028 as it is.
    verdicts = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert [verdict["id"] for verdict in verdicts] == [one["id"] for one in asked]
    outcomes: Counter[tuple[str, str]] = Counter()
    for one, verdict in zip(asked, verdicts, strict=True):
        assert verdict["outcome"] in OUTCOMES and 0 <= verdict["score"] <= 1
        assert (verdict["outcome"] == "error") == (
            one["verifier"] == "no_such_module:f" and verdict["outcome"] != "no_answer"
        ), (one, verdict)
        outcomes[one["verifier"], verdict["outcome"]] += 1
    assert {outcome for _, outcome in outcomes} >= set(OUTCOMES) - {"limit"}


def _broken(rng: random.Random, line: str) -> bytes:
    """A line with a few bytes lost, doubled or exchanged."""
    data = bytearray(line.encode())
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data))
        data[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return bytes(data).replace(b"\n", b"")


def test_a_row_that_is_broken_is_named_before_anything_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(0)
    for number in range(12):
        lines = [json.dumps(row(rng, i)).encode() for i in range(5)]
        lines[3] = b"{" + _broken(rng, lines[3].decode())  # one brace too many, whatever else
        file, out = tmp_path / f"{number}.jsonl", tmp_path / f"{number}-out.jsonl"
        file.write_bytes(b"\n".join(lines))
        assert main(["grade", str(file), "--out", str(out)]) == 2
        assert f"{file}:4" in capsys.readouterr().err
        assert not out.exists()
