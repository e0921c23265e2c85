"""The summary says what the files say, fits a terminal, and names commands that exist."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from archer.cli import _parser
from archer.config import config_from, config_toml
from archer.summary import _curve, summary

RECIPE: dict[str, Any] = {
    "model": {"name": "tiny"},
    "data": {"train": [{"source": "arithmetic", "count": 9}], "evaluate": [{"source": "e.jsonl"}]},
    "rollout": {"problems": 2, "samples": 2, "max_tokens": 4},
    "update": {"minibatch": 1, "learning_rate": 1e-3},
    "train": {"steps": 4},
}


def evaluation(mean: float) -> dict[str, Any]:
    return {
        "problems": 40,
        "samples": 2,
        "score": {"mean": mean, "low": mean - 0.05, "high": mean + 0.05},
        "truncated": 0.125,
        "mean_tokens": 7.5,
    }


def row(step: int, accuracy: float) -> dict[str, Any]:
    return {
        "step": step,
        "accuracy": accuracy,
        "tokens/generated": 1000,
        "tokens/trained": 800,
        "updates": 2,
        "verdicts/error": 1,
        "seconds/step": 10.0,
        "seconds/rollout": 6.0,
        "seconds/verify": 3.0,
        "seconds/update": 3.0,
        "memory/peak_gb": 1.0 + step / 10,
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs") / "quickstart"
    (folder / "eval").mkdir(parents=True)
    (folder / "config.toml").write_text(config_toml(config_from(RECIPE, where="here")))
    rows = [{"step": 0, "eval/mean": 0.2, "seconds/eval": 5.0}]
    rows += [row(step, step / 10) for step in (1, 2, 3, 4)]
    rows[-1]["seconds/eval"] = 5.0
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    for step, mean in ((0, 0.2), (2, 0.7), (4, 0.6)):
        (folder / "eval" / f"step-{step:06d}.json").write_text(json.dumps(evaluation(mean)))
    (folder / "checkpoints" / "step-000004").mkdir(parents=True)
    return folder


def line_with(text: str, words: str) -> str:
    found = [line for line in text.splitlines() if words in line]
    assert len(found) == 1, found
    return " ".join(found[0].split())


def test_before_after_and_best_are_told_with_their_intervals(folder: Path) -> None:
    text = summary(folder)
    assert line_with(text, "before (step 0)") == "before (step 0) 0.200 [0.150, 0.250] 0.125 7.5"
    assert line_with(text, "best (step 2)") == "best (step 2) 0.700 [0.650, 0.750] 0.125 7.5"
    assert line_with(text, "after (step 4)") == "after (step 4) 0.600 [0.550, 0.650] 0.125 7.5"
    assert "40 problems, 2 samples each" in text


def test_times_are_shares_of_steps_and_evaluations(folder: Path) -> None:
    """4 steps of 10 s and 2 evaluations of 5 s; judging runs beside sampling."""
    text = summary(folder)
    assert line_with(text, "sampling and judging") == "sampling and judging 24.0 s 48%"
    assert line_with(text, "update  ") == "update 12.0 s 24%"
    assert line_with(text, "10.0 s") == "evaluation 10.0 s 20%"
    assert line_with(text, "everything else") == "everything else 4.0 s 8%"
    assert line_with(text, "in all") == "in all 50.0 s"


def test_counts_are_summed_and_memory_is_its_peak(folder: Path) -> None:
    text = summary(folder)
    assert line_with(text, "tokens sampled") == "tokens sampled 4,000"
    assert line_with(text, "tokens trained on") == "tokens trained on 3,200"
    assert line_with(text, "optimizer steps") == "optimizer steps 8"
    assert line_with(text, "grader errors") == "grader errors 4"
    assert line_with(text, "peak memory") == "peak memory 1.40 GB"
    assert "all processes" not in text  # there is one


def test_memory_of_several_processes_is_told_by_the_largest_and_together(folder: Path) -> None:
    found = [row(1, 0.5) | {"memory/all_gb": 3.5}, row(2, 0.5) | {"memory/all_gb": 3.4}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    text = summary(folder)
    assert line_with(text, "peak memory") == "peak memory 1.20 GB in one process"
    assert line_with(text, "peaks of all") == "peaks of all processes 3.50 GB"


def test_it_fits_a_terminal_and_names_files_that_are_there(folder: Path) -> None:
    text = summary(folder)
    assert max(map(len, text.splitlines())) <= 80
    for name in ("metrics      ", "evaluations  ", "weights      "):
        assert Path(line_with(text, name).split()[1]).exists()


def test_the_commands_it_names_are_commands(folder: Path) -> None:
    lines = summary(folder).split("what to try next\n")[1].splitlines()
    assert [line.split()[1] for line in lines] == ["export", "eval", "train"]
    for line in lines:
        _parser().parse_args(shlex.split(line)[1:])


def test_a_run_without_evaluations_or_steps_has_a_summary(folder: Path) -> None:
    for path in (folder / "eval").iterdir():
        path.unlink()
    (folder / "metrics.jsonl").write_text("")
    text = summary(folder)
    assert "not evaluated" in text
    assert "step  1" not in text


def test_the_curve_is_drawn_as_it_is() -> None:
    points = list(zip(range(1, 8), (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6), strict=True))
    assert _curve(points) == (
        "accuracy of the samples trained on, by step\n"
        "    0.600 |      *\n"
        "          |     *\n"
        "          |    *\n"
        "          |   *\n"
        "          |  *\n"
        "          | *\n"
        "    0.000 |*\n"
        "     step  1     7"
    )


def test_a_long_run_is_averaged_into_the_width_of_the_curve() -> None:
    points = [(step, float(step % 2)) for step in range(1, 1201)]
    lines = _curve(points).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1].split() == ["step", "1", "1200"]
    assert lines[-2].count("*") == 60  # every column is the mean of as many zeros as ones
