"""Verdicts on stored responses: in order, whole or continued, and never on a file that is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archer.grade import Answered, _verdicts, grade, to_answered
from archer.records import write_rollouts
from archer.terminal import Terminal
from archer.types import Completion, Group, Problem, Rollout, Verdict
from archer.verify.policy import Policy
from archer.verify.pool import WorkerPool

QUIET = Terminal(quiet=True)

Line = dict[str, Any]


def row(id: str, response: str, **more: Any) -> Line:
    problem = {"id": id, "prompt": "2+3?", "verifier": "math", "answer": "5"}
    return {**problem, "response": response, **more}


ROWS = [
    row("right", r"so \boxed{5}"),
    row("wrong", r"so \boxed{6}"),
    row("none", "five"),
    row("thinking", r"<think> \boxed{5}"),
    row("thought", r"<think> 6? </think> \boxed{5}"),
    row("inside", r"\boxed{5}", in_thought=True),
    row("sum", r"\boxed{\frac{10}{2}}"),
]
OUTCOMES = ["correct", "wrong", "no_answer", "no_answer", "correct", "no_answer", "correct"]


def write(path: Path, rows: list[Line]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(file: Path, out: Path, **settings: Any) -> str:
    return grade(file, out, QUIET, workers=1, policy=Policy(**settings))


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grade")
    run(write(folder / "rows.jsonl", ROWS), folder / "out.jsonl")
    return folder


def test_one_verdict_a_row_in_the_order_of_the_rows(graded: Path) -> None:
    lines = read(graded / "out.jsonl")
    assert [line["id"] for line in lines] == [row["id"] for row in ROWS]
    assert [line["outcome"] for line in lines] == OUTCOMES
    assert [line["score"] for line in lines] == [float(name == "correct") for name in OUTCOMES]
    assert all(set(line) == {"id", "outcome", "score", "detail", "seconds"} for line in lines)


def test_the_card_holds_counts_settings_and_the_hash_of_the_input(graded: Path) -> None:
    card = json.loads((graded / "out.jsonl.card.json").read_text())
    assert card["rows"] == 7
    assert card["outcomes"] == {
        "correct": 3, "wrong": 1, "crashed": 0, "limit": 0, "no_answer": 3, "error": 0,
    }  # fmt: skip
    assert card["score"] == pytest.approx(3 / 7)
    assert card["answer_pattern"] == "box"
    assert len(card["input_hash"]) == 32


def test_verdicts_are_compared_with_the_outcomes_that_rows_came_with(tmp_path: Path) -> None:
    """Right or not is what counts; a failure of the grader and an unknown word are no outcome."""
    rows = [
        row("same", r"\boxed{5}", outcome="correct"),
        row("also", "five", outcome="wrong"),
        row("lost", r"\boxed{6}", outcome="correct"),
        row("lost", "five", outcome="correct"),
        row("won", r"\boxed{5}", outcome="limit"),
        row("failed", r"\boxed{5}", outcome="error"),
        row("unknown", r"\boxed{5}", outcome=["wrong"]),
        row("none", r"\boxed{5}"),
    ]
    text = run(write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl")
    first, *lines = text.split("\n\n")[1].splitlines()
    assert first == "3 of 5 verdicts differ from the outcome that the row came with"
    assert [line.partition(": ")[0] for line in lines] == ["lost (2)", "won (1)"]
    changed = json.loads((tmp_path / "out.jsonl.card.json").read_text())["before"]["changed"]
    assert [said[:20] for said in changed["lost"]] == [
        "correct, now wrong: ",
        "correct, now no_answ",
    ]
    assert changed["won"][0].startswith("limit, now correct")


def test_of_many_changed_problems_some_are_told_and_the_card_has_all(tmp_path: Path) -> None:
    rows = [row(f"p{number}", r"\boxed{6}", outcome="correct") for number in range(23)]
    text = run(write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl")
    assert "p19 (1): " in text
    assert "p20" not in text
    assert "\nand 3 more problems, see the card\n" in text
    card = json.loads((tmp_path / "out.jsonl.card.json").read_text())
    assert len(card["before"]["changed"]) == 23


def test_without_such_outcomes_nothing_is_compared(graded: Path) -> None:
    assert "before" not in json.loads((graded / "out.jsonl.card.json").read_text())


# ------------------------------------------------------------------ rows


def test_the_lines_of_a_run_are_rows_as_they_are(tmp_path: Path) -> None:
    completion = Completion(
        prompt_ids=np.array([7], dtype=np.int32),
        token_ids=np.array([5, 2], dtype=np.int32),
        logps=np.array([-0.5, -0.1], dtype=np.float32),
        entropies=np.array([0.5, 0.1], dtype=np.float32),
        policy_version=0,
        stop="stop",
        in_thought=True,
        text="</think> 5",
    )
    problem = Problem(
        id="sum-1", prompt="2+3?", verifier="exact", answer="5", source="arithmetic", meta={"n": 2}
    )
    verdict = Verdict(outcome="correct", score=1.0, sandbox="full")
    rollout = Rollout(completion=completion, verdict=verdict, reward=0.5)
    rollouts = tmp_path / "step-000001.jsonl"
    groups = [Group(problem=problem, rollouts=(rollout, rollout))]
    write_rollouts(rollouts, groups, {0: [1.0, -1.0]})
    answered = [to_answered(line, where="here") for line in read(rollouts)]
    assert answered == [Answered(problem=problem, response="</think> 5", in_thought=True)] * 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"response": None}, '"response" is null; make it a text'),
        ({"in_thought": 1}, '"in_thought" is 1; make it true or false'),
        ({"answer": 5}, '"answer" holds the number 5'),
        ({"verifier": "maths"}, 'unknown verifier "maths"; did you mean "math"?'),
        ({"respons": "5"}, 'unknown key "respons"'),
    ],
)
def test_a_wrong_row_is_named_before_anything_is_judged(
    tmp_path: Path, bad: Line, message: str
) -> None:
    file = write(tmp_path / "rows.jsonl", [*ROWS[:2], {**row("bad", "5"), **bad}])
    with pytest.raises(ValueError, match=re.escape(f"rows.jsonl:3: {message}")):
        run(file, tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_row_without_a_response_is_no_row(tmp_path: Path) -> None:
    problem = {key: value for key, value in ROWS[0].items() if key != "response"}
    file = write(tmp_path / "rows.jsonl", [problem])
    with pytest.raises(ValueError, match=r'rows\.jsonl:1: the key "response" is missing'):
        run(file, tmp_path / "out.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "the file is empty"), ("{", "rows.jsonl:1: malformed JSON"), (None, "No such file")],
)
def test_a_file_without_rows_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


# ------------------------------------------------------------------ going on


def copied(graded: Path, target: Path) -> tuple[Path, Path]:
    for path in graded.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target / "rows.jsonl", target / "out.jsonl"


@pytest.mark.parametrize("torn", [b"", b'{"id": "non', b'{"id": "none"'])
def test_an_interrupted_grading_goes_on_where_it_stopped(
    graded: Path, tmp_path: Path, torn: bytes
) -> None:
    file, out = copied(graded, tmp_path)
    lines = out.read_bytes().splitlines(keepends=True)
    marked = lines[0].replace(b'"detail": "', b'"detail": "judged before')
    out.write_bytes(b"".join([marked, lines[1], torn]))
    run(file, out)
    assert out.read_bytes().startswith(marked + lines[1])
    assert [line["outcome"] for line in read(out)] == OUTCOMES
    assert [line["id"] for line in read(out)] == [row["id"] for row in ROWS]


def test_a_finished_grading_is_left_as_it_is(graded: Path, tmp_path: Path) -> None:
    file, out = copied(graded, tmp_path)
    before = out.read_bytes()
    assert "3" in run(file, out)
    assert out.read_bytes() == before


@pytest.mark.parametrize("fault", ["other rows", "other settings", "no card", "other ids", "more"])
def test_verdicts_on_something_else_are_never_touched(
    graded: Path, tmp_path: Path, fault: str
) -> None:
    file, out = copied(graded, tmp_path)
    settings: dict[str, Any] = {}
    if fault == "other rows":
        write(file, [*ROWS[:-1], row("sum", "5")])
    elif fault == "other settings":
        settings["liberties"] = ("units",)
    elif fault == "no card":
        (tmp_path / "out.jsonl.card.json").unlink()
    elif fault == "other ids":
        out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[1:]))
    else:
        out.write_bytes(out.read_bytes() + b'{"id": "more"}\n')
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"does not hold verdicts on .* give another --out"):
        run(file, out, **settings)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_grading_with_liberties_goes_on_and_its_card_names_them(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [*ROWS, row("unit", r"\boxed{5 cm}")])
    out = tmp_path / "out.jsonl"
    run(file, out, liberties=("units",))
    whole = out.read_text()
    assert read(out)[-1]["outcome"] == "correct"
    assert json.loads((tmp_path / "out.jsonl.card.json").read_text())["liberties"] == ["units"]
    out.write_text("".join(whole.splitlines(keepends=True)[:3]))
    run(file, out, liberties=("units",))
    assert [line["id"] for line in read(out)] == [json.loads(s)["id"] for s in whole.splitlines()]


def test_what_can_be_read_only_once_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=r"pipe\.jsonl: no regular file; save the rows"):
        run(pipe, tmp_path / "out.jsonl")
    file = write(tmp_path / "rows.jsonl", ROWS)
    for out in (pipe, tmp_path, Path(".")):
        with pytest.raises(ValueError, match="give another --out"):
            run(file, out)


def test_a_file_is_not_graded_into_itself(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(ValueError, match="give another --out"):
        run(file, file)
    assert read(file) == ROWS


# ------------------------------------------------------------------ cost


def test_only_a_window_of_responses_is_held() -> None:
    read_ahead = 0

    def rows() -> Iterator[Answered]:
        nonlocal read_ahead
        for number in range(200):
            read_ahead += 1
            yield to_answered(row(str(number), r"\boxed{5}"), where="here")

    with WorkerPool(workers=1) as pool:
        for done, (id, verdict) in enumerate(_verdicts(pool, rows(), window=8)):
            assert id == str(done)
            assert verdict.outcome == "correct"
            assert read_ahead - done <= 9


def test_grading_loads_no_torch() -> None:
    code = "import sys, archer.grade; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
