"""Two results problem by problem: numbers by hand, settings by name, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from archer.cli import main
from archer.compare import compare
from archer.data.problems import write_problems
from archer.data.sources import load_source
from archer.scores import problem_scores

SETTINGS: dict[str, Any] = {
    "prompt": {"system": None, "suffix": " =", "template": "model"},
    "sampling": {"temperature": 0.8, "stop": []},
    "verify": {"answer_pattern": "box", "cpu_seconds": 5.0},
    "samples": 2,
    "seed": 0,
    "problems_hash": "abc",
}


def result(path: Path, scores: Mapping[str, Sequence[float | None]], **settings: Any) -> Path:
    """A result as `archer eval` writes it; None is an error of the grader."""
    evaluation = {
        "problems": len(scores),
        "samples": 2,
        "score": {"mean": 0.0, "low": 0.0, "high": 0.0},
        "pass_at": {},
        "truncated": 0.0,
        "outcomes": {},
        "by_source": {},
        "mean_tokens": 1.0,
        "settings": {**SETTINGS, **settings},
        "model": path.stem,
    }
    path.write_text(json.dumps(evaluation))
    lines = [
        {"id": id, "outcome": "error" if score is None else "wrong", "score": score or 0.0}
        for id, own in scores.items()
        for score in own
    ]
    path.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def words(text: str, beginning: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith(beginning)).split()


def test_a_difference_by_hand(tmp_path: Path) -> None:
    one = result(tmp_path / "a.json", {"p": [0, 0], "q": [1, 0], "r": [1, 1], "s": [0, 1]})
    other = result(tmp_path / "b.json", {"s": [1, 0], "q": [1, 1], "r": [0, 1], "p": [1, 1]})
    text = compare(one, other)
    # p +1, q +1/2, r -1/2, s 0: problems are matched by id, whatever their order.
    assert words(text, "mean score")[2:5] == ["0.500", "0.750", "+0.250"]
    assert "problems: 2 better in B · 1 worse · 1 the same" in text
    assert "4 problems in both" in text and "left out" not in text
    assert text.endswith("settings: the same")
    assert words(compare(other, one), "mean score")[4] == "-0.250"


def test_what_is_in_one_only_is_left_out_and_said(tmp_path: Path) -> None:
    one = result(tmp_path / "a.json", {"p": [1, None], "q": [0, 0], "r": [None, None], "s": [None]})
    other = result(tmp_path / "b.json", {"p": [1], "q": [None, None], "r": [1, 1], "s": [None]})
    text = compare(one, other)
    assert "1 problem in both" in text
    assert "left out: 1 problems judged in A alone, 1 in B alone, 1 in neither" in text
    assert problem_scores(one) == {"p": 1.0, "q": 0.0}


def test_an_equal_gain_everywhere_has_an_interval_of_one_point(tmp_path: Path) -> None:
    one = result(tmp_path / "a.json", {str(i): [i % 2, 0] for i in range(30)})
    other = result(tmp_path / "b.json", {str(i): [i % 2, 1] for i in range(30)})
    assert "[+0.500, +0.500]" in compare(one, other)


def test_settings_that_differ_are_named_and_all_fits_80_columns(tmp_path: Path) -> None:
    one = result(tmp_path / "a.json", {"p": [1]})
    long = tmp_path / ("deep" * 20)
    long.mkdir()
    other = result(
        long / "b.json",
        {"p": [1]},
        prompt={**SETTINGS["prompt"], "template": "{% for message in messages %}" * 9},
        verify={"answer_pattern": "number", "cpu_seconds": 5.0},
        sampling={"temperature": 1.0, "stop": [], "min_p": 0.1},
    )
    text = compare(one, other)
    assert words(text, "verify.answer_pattern")[1:] == ['"box"', '"number"']
    assert words(text, "sampling.temperature")[1:] == ["0.8", "1.0"]
    assert words(text, "sampling.min_p")[1:] == ["null", "0.1"]
    assert words(text, "prompt.template")[1] == '"model"'
    assert "cpu_seconds" not in text and "suffix" not in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("changed", "scores", "message"),
    [
        ({"problems_hash": "xyz"}, {"p": [1]}, "different problems (problems_hash abc and xyz)"),
        ({}, {"p": [None]}, "have no judged problem in common"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_code_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, Any],
    scores: dict[str, list[float | None]],
    message: str,
) -> None:
    one = result(tmp_path / "a.json", {"p": [1]})
    other = result(tmp_path / "b.json", scores, **changed)
    assert main(["eval", "--compare", str(one), str(other)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


@pytest.mark.parametrize("damage", ["absent", "foreign", "no responses", "foreign responses"])
def test_files_that_are_no_results_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    one, other = (result(tmp_path / name, {"p": [1]}) for name in ("a.json", "b.json"))
    if damage == "absent":
        other.unlink()
    elif damage == "foreign":
        other.write_text('{"score": 1}')
    elif damage == "no responses":
        other.with_suffix(".jsonl").unlink()
    else:
        other.with_suffix(".jsonl").write_text('{"id": "p"}\n')
    assert main(["eval", "--compare", str(one), str(other)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "b.json" in lines[0]


@pytest.mark.parametrize(
    "arguments",
    [[], ["tiny", "--compare", "A", "B"], ["--compare", "A", "B", "--samples", "0"]],
)
def test_a_model_and_a_comparison_exclude_each_other(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["eval", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "--compare" in lines[0]


def test_what_archer_eval_wrote_is_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = tmp_path / "problems.jsonl"
    write_problems(problems, load_source("arithmetic", count=3))
    for name, seed in (("a", "1"), ("b", "2")):
        out = str(tmp_path / f"{name}.json")
        command = ["eval", "tiny", "--problems", str(problems), "--max-tokens", "8"]
        assert main([*command, "--seed", seed, "--out", out, "--quiet"]) == 0
    capsys.readouterr()
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    assert main(["eval", "--compare", *files]) == 0
    text = capsys.readouterr().out
    assert "3 problems in both" in text
    assert words(text, "seed") == ["seed", "1", "2"]
