"""References and tests that do not hold are found before a model is trained on them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archer.cores import num_cores
from archer.data.problems import read_problems
from archer.data.sources import REPEATED, Dropped
from archer.prepare import Prepared, prepare
from archer.prepare.references import (
    NOT_RUN,
    PASSED_BY_NOTHING,
    REFUSED,
    find_trouble,
    open_known,
    trials,
)
from archer.terminal import Terminal
from archer.types import Outcome, Problem
from tests.killed import STRIDE, Killed, killing, moments
from tests.local_hub import Hub, running
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


def asked(prompt: str, answer: str, result: str = "5", **more: str) -> dict[str, Any]:
    """A row whose worked solution ends in this result: one that is not the answer is refused."""
    row = {"problem": prompt, "answer": answer, "solution": rf"It is \boxed{{{result}}}."}
    return row | more


def kept(done: Prepared) -> list[str]:
    return [problem.id for problem in read_problems(done.out)]


@pytest.mark.parametrize("limit", [None, 2])
def test_a_bad_first_copy_does_not_take_the_good_one_with_it(
    tmp_path: Path, limit: int | None
) -> None:
    rows = [asked("2+3?", "6"), asked("2+3?", "5"), asked("2+3?", "5"), asked("1+4?", "5")]
    done = prepared(tmp_path, *rows, limit=limit)
    assert kept(done) == ["raw-000002", "raw-000004"]
    assert done.dropped == {REFUSED: 1, REPEATED: 1} and done.rows_in == 4
    rows = [asked("2+3?", "6", unique_id="a"), asked("1+4?", "5", unique_id="a")]
    assert kept(prepared(tmp_path, *rows)) == ["a"]


def test_a_copy_that_a_filter_leaves_out_does_not_take_the_next_one_with_it(
    tmp_path: Path,
) -> None:
    def not_first(problem: Problem) -> Dropped | None:
        return Dropped(reason="first") if problem.id.endswith("1") else None

    rows = [asked("2+3?", "5"), asked("2+3?", "5"), asked("2+3?", "5")]
    for check in (True, False):
        done = prepared(tmp_path, *rows, filters={"own": not_first}, check=check)
        assert kept(done) == ["raw-000002"] and done.dropped == {"first": 1, REPEATED: 1}


def test_only_what_is_written_has_near_duplicates(tmp_path: Path) -> None:
    pytest.importorskip("datasketch")
    long = " ".join(f"{a}{b}" for a in "abcde" for b in "vwxyz")
    rows = [asked(f"{long} one?", "6"), *(asked(f"{long} {word}?", "5") for word in ("two", "ten"))]
    done = prepared(tmp_path, *rows, near_duplicates=0.7)
    assert kept(done) == ["raw-000002"]
    assert done.dropped == {REFUSED: 1, "nearly repeats another problem": 1}
    card = done.card.read_text()
    assert "| 3 | raw-000003 | 91% as raw-000002 |" in card
    assert "| filters | less than 70% as one before |" in card


def test_the_card_does_not_depend_on_how_many_are_judged_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reasons of equal count stand in the order in which the rows do."""
    draw = random.Random(0)
    rows = [
        asked(f"{draw.randrange(20)}?", draw.choice(["5", "5", "6", ""]), unique_id=str(number))
        for number in range(60)
    ]
    cards = []
    for window in (1, 3, 100):
        monkeypatch.setattr("archer.prepare.WINDOW", window)
        done = prepared(tmp_path, *rows)
        cards.append((done.out.read_bytes(), done.card.read_bytes()))
    assert cards[0] == cards[1] == cards[2]
    assert len(done.dropped) == 3


@needs_sandbox
@pytest.mark.parametrize("level", ["restricted", "full"])
def test_a_sandbox_below_full_is_said_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    level: str,
) -> None:
    monkeypatch.setattr("archer.prepare.references.check_sandbox", lambda asked: level)
    prepared(tmp_path, MBPP, MBPP | {"text": "Add again."}, terminal=Terminal())
    said = "programs run at sandbox level restricted: see docs/sandbox.md\n"
    assert capsys.readouterr().out == (said if level == "restricted" else "")


def test_two_processes_do_not_prepare_one_file(tmp_path: Path) -> None:
    with open_known(tmp_path / ".out.jsonl.judged"), pytest.raises(ValueError, match="in use by"):
        prepared(tmp_path, {"problem": "1+1?", "answer": "2"})


# Killed


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the hub's library keeps what it downloads."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running() as hub:
        yield hub


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, hub: Hub, home: Path) -> Iterator[Killed]:
    place = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
    with killing("preparing", tmp_path_factory.mktemp("killed"), **place) as killed:
        yield killed


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def noted(killed: Killed) -> tuple[int, list[str], list[str]]:
    """Since the last time: the bytes that came, and the verdicts that were made and kept."""
    rows = killed.noted()
    made, kept = ([row[name] for row in rows if name in row] for name in ("made", "kept"))
    return sum(row.get("bytes", 0) for row in rows), made, kept


@needs_sandbox
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.full)])
def test_however_often_it_is_killed_the_same_command_ends_as_an_unbroken_one(
    tmp_path: Path, killed: Killed, kills: int
) -> None:
    rows = [MBPP | {"text": f"Add {n}."} for n in range(10 * kills)]
    rows[7] |= {"code": "def add(a, b): return 0"}
    raw = tmp_path / "raw.jsonl"
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole, again = tmp_path / "whole", tmp_path / "again"
    command = ["prepare", str(raw), "--quiet", "--out"]
    codes, events = killed([*command, str(whole / "out.jsonl")])
    assert codes == [0], killed.said.read_text()
    _, made, every = noted(killed)
    assert len(every) == len(set(every)) == len(made) == 2 * len(rows) < events
    draw = random.Random(kills)
    for _ in range(kills):  # together they cost half of the events at most
        at = draw.randrange(1, events // (2 * kills))
        codes, _ = killed([*command, str(again / "out.jsonl")], kill_at=[at])
        assert codes == [-9], killed.said.read_text()
    codes, _ = killed([*command, str(again / "out.jsonl")])
    assert codes == [0], killed.said.read_text()
    assert files(again) == files(whole)
    assert sorted(files(whole)) == ["out.card.md", "out.jsonl"]
    _, made, kept = noted(killed)
    assert set(made) == set(every)
    assert len(kept) == len(set(kept)), "what was kept is not judged again"
    assert len(made) - len(every) <= kills * num_cores(), "a kill costs what was being judged"


def contest(number: int) -> dict[str, Any]:
    """A row of LiveCodeBench; an empty program passes every fifth."""
    said = "" if number % 5 == 4 else "0"
    tests = [{"input": str(number) * 50_000, "output": said, "testtype": "stdin"}]
    return {
        "question_id": f"own-{number}",
        "question_content": f"Do nothing {number} times.",
        "public_test_cases": json.dumps(tests),
    }


@needs_sandbox
@pytest.mark.parametrize("number", [3, pytest.param(20, marks=pytest.mark.full)])
def test_wherever_a_download_with_all_that_follows_is_killed_it_goes_on_from_there(
    tmp_path: Path, killed: Killed, hub: Hub, home: Path, number: int
) -> None:
    """A kill costs one block of the download and the verdicts that are under way, one a core."""
    content = {
        name: "".join(json.dumps(contest(n)) + "\n" for n in range(first, first + 10)).encode()
        for name, first in (("test.jsonl", 10), ("test2.jsonl", 20))
    }
    hub.commit("livecodebench/code_generation_lite", content)
    size = sum(map(len, content.values()))

    def run(out: Path, *kill_at: int) -> int:
        arguments = ["prepare", "livecodebench", "--arg", "release=v2", "--quiet", "--out"]
        codes, events = killed([*arguments, str(out)], kill_at=kill_at)
        assert codes == [-9 if kill_at else 0], killed.said.read_text()
        return events

    shutil.rmtree(home / "hub", ignore_errors=True)
    whole = tmp_path / "whole"
    events = run(whole / "out.jsonl")
    come, every, _ = noted(killed)
    assert come == size > 30 * STRIDE
    assert len(every) == len(set(every)) == 20
    cache = blobs(home)
    assert sorted(cache.values()) == sorted(content.values())
    for at in moments(events, number):
        shutil.rmtree(home / "hub")
        again = tmp_path / str(at)
        run(again / "out.jsonl", at)
        first_come, first_made, first_kept = noted(killed)
        run(again / "out.jsonl")
        come, made, _ = noted(killed)
        assert files(again) == files(whole), at
        assert blobs(home) == cache and not list(home.rglob("*.partial")), at
        assert 0 <= first_come + come - size <= STRIDE, "one block comes a second time at most"
        assert not set(made) & set(first_kept), "what was kept is not judged again"
        assert {*first_made, *made} == set(every)
        assert len(first_made) + len(made) - len(every) <= num_cores()


def blobs(home: Path) -> dict[str, bytes]:
    """The files that came, by checksum."""
    return {path.name: path.read_bytes() for path in home.glob("hub/*/blobs/*")}
