"""References and tests that do not hold are found before a model is trained on them."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from archer.prepare import Prepared, prepare
from archer.prepare.references import (
    NOT_RUN,
    PASSED_BY_NOTHING,
    REFUSED,
    find_trouble,
    open_known,
    trials,
)
from archer.types import Outcome, Problem
from tests.needs import needs_sandbox


def problem(verifier: str, answer: Any) -> Problem:
    return Problem(id="p", prompt="?", verifier=verifier, answer=answer)


def prepared(folder: Path, *rows: dict[str, Any], **knobs: Any) -> Prepared:
    raw = folder / "raw.jsonl"
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepare(str(raw), folder / "out.jsonl", **knobs)


@pytest.mark.parametrize(
    ("verifier", "answer", "responses"),
    [
        ("math", "5", [r"\boxed{5}"]),
        ("math", ["5", r"\frac{10}{2}"], [r"\boxed{5}", r"\boxed{\frac{10}{2}}"]),
        ("choice", "C", [r"\boxed{C}"]),
        ("exact", "a {", ["a {"]),
        ("normalised", ["an apple"], ["an apple"]),
        ("json_schema", {"schema": {}, "value": [1]}, ["```json\n[1]\n```"]),
        ("json_schema", {"schema": {}}, []),
        ("reasoning_gym", {"task": "gcd", "entry": {"answer": "7"}}, ["<answer>7</answer>"]),
        ("reasoning_gym", {"task": "gcd", "entry": {"answer": None}}, []),
        ("thought_format", None, []),
        ("mine:own", 5, []),
    ],
)
def test_a_problem_is_tried_with_its_own_answers(
    verifier: str, answer: Any, responses: list[str]
) -> None:
    found = trials(problem(verifier, answer), None)
    assert [trial.response for trial in found] == responses
    assert all(trial.is_right for trial in found)


def test_a_program_is_tried_with_its_reference_and_with_nothing() -> None:
    own, nothing = trials(problem("code", {}), "```python\nx\n```")
    cases: list[tuple[Outcome, Outcome, str]] = [
        ("limit", "wrong", REFUSED),
        ("correct", "correct", PASSED_BY_NOTHING),
        ("correct", "error", NOT_RUN),
    ]
    assert (own.is_right, nothing.is_right) == (True, False)
    assert nothing.response == "```python\npass\n```"
    assert find_trouble([(own, "correct", ""), (nothing, "wrong", "")]) is None
    assert find_trouble([(own, "correct", ""), (nothing, "crashed", "")]) is None
    for first, second, reason in cases:
        trouble = find_trouble([(own, first, "so"), (nothing, second, "so")])
        assert trouble is not None and trouble.reason == reason and trouble.detail.endswith(": so")


def test_an_answer_that_its_own_solution_does_not_reach_is_listed_and_left_out(
    tmp_path: Path,
) -> None:
    row = {"problem": "1+1?", "answer": "2", "solution": r"It is \boxed{2}."}
    bad = {"problem": "1+2?", "answer": "4", "solution": r"It is | \boxed{3}."}
    unread = {"problem": "1+3?", "answer": "4}"}
    done = prepared(tmp_path, row, bad, unread)
    assert (done.rows_in, done.rows_out, done.dropped) == (3, 1, {REFUSED: 2})
    card = done.card.read_text()
    assert f"| {REFUSED} | 2 | 2-3 |" in card
    assert "| 2 | raw-000002 | wrong: 3 is not 4 |" in card
    done = prepared(tmp_path, row, bad, unread, check=False)
    assert done.rows_out == 3
    assert "| references | not checked |" in done.card.read_text()


MBPP = {
    "text": "Add.",
    "code": "def add(a, b): return a + b",
    "test_list": ["assert add(1, 2) == 3"],
}


@needs_sandbox
def test_programs_whose_tests_do_not_hold_are_left_out(tmp_path: Path) -> None:
    done = prepared(
        tmp_path,
        MBPP,
        MBPP | {"text": "Wrong.", "code": "def add(a, b): return a - b"},
        MBPP | {"text": "Not Python.", "test_list": ["assert add(1, 2) == 3", "assert ("]},
    )
    assert done.rows_out == 1 and done.dropped == {REFUSED: 2}
    released = {
        "prompt": "Say nothing.",
        "ability": "code",
        "ground_truth": json.dumps({"inputs": ["1"], "outputs": [""]}),
    }
    broken = json.dumps({"functional": "def check(candidate):\n  assert (\ncheck(f)"})
    done = prepared(
        tmp_path,
        released | {"ground_truth": json.dumps({"inputs": ["1"], "outputs": ["1"]})},
        released | {"prompt": "Say nothing at all."},
        released | {"prompt": "Be tested.", "ground_truth": broken},
    )
    assert done.rows_out == 1 and done.dropped == {PASSED_BY_NOTHING: 1, NOT_RUN: 1}


@needs_sandbox
def test_a_limit_counts_what_holds_and_reads_no_row_too_many(tmp_path: Path) -> None:
    rows = [
        MBPP | {"text": f"Add {n}.", "code": MBPP["code"] if n % 2 else "def add(a, b): return 0"}
        for n in range(12)
    ]
    done = prepared(tmp_path, *rows, limit=3)
    assert (done.rows_in, done.rows_out, done.dropped) == (6, 3, {REFUSED: 3})


def test_two_processes_do_not_prepare_one_file(tmp_path: Path) -> None:
    with open_known(tmp_path / ".out.jsonl.judged"), pytest.raises(ValueError, match="in use by"):
        prepared(tmp_path, {"problem": "1+1?", "answer": "2"})


# Killed


def run(raw: Path, out: Path, log: Path, *, keys: int | None = None, seconds: float = 0.0) -> bool:
    """Runs the command to its end, or kills it so long after so many verdicts; True if it ended."""
    script = Path(__file__).with_name("killed_prepare.py")
    command = [sys.executable, str(script), str(raw), str(out), str(log)]
    log.touch()
    begin = log.stat().st_size
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        if keys is not None:
            while process.poll() is None and log.stat().st_size < begin + keys * KEY_BYTES:
                time.sleep(0.001)
            time.sleep(seconds)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
                return False
        assert process.wait() == 0
    return True


KEY_BYTES = 33


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@needs_sandbox
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.full)])
def test_wherever_it_is_killed_the_same_command_ends_as_an_unbroken_one(
    tmp_path: Path, kills: int
) -> None:
    program = "def add(a, b):\n    for _ in range(10**5): pass\n    return a + b"
    rows = [MBPP | {"text": f"Add {n}.", "code": program} for n in range(10 * kills)]
    rows[7] |= {"code": "def add(a, b): return 0"}
    raw = tmp_path / "raw.jsonl"
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert run(raw, whole / "out.jsonl", tmp_path / "whole.log")
    every = (tmp_path / "whole.log").read_text().split()
    assert len(every) == len(set(every)) == 2 * len(rows)
    draw, log = random.Random(kills), tmp_path / "again.log"
    for _ in range(kills):  # before the first verdict, too, and anywhere in between
        keys, seconds = draw.randrange(len(every) // (2 * kills)), draw.uniform(0.0, 0.05)
        if run(raw, again / "out.jsonl", log, keys=keys, seconds=seconds):
            break  # a fast machine was done before
    assert run(raw, again / "out.jsonl", log)
    assert files(again) == files(whole)
    assert sorted(files(whole)) == ["out.card.md", "out.jsonl"]
    kept = log.read_text().split()
    assert len(kept) == len(set(kept)), "nothing is judged twice"
    assert set(kept) <= set(every)
