"""Test suites by name: the settings they score with, the problems they bring, and what is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from archer.cli import main
from archer.data.problems import read_problems
from archer.evaluate import eval_sampling
from archer.evaluate_model import evaluation_config, find_subject, sections
from archer.prepare import prepare
from archer.prepare.named import WINDOWS
from archer.suites import SUITES, laid_over, listed, suite_problems, unexpected
from archer.terminal import Terminal
from tests.children import SECONDS
from tests.held import fill
from tests.local_hub import Hub, reached
from tests.needs import needs_sandbox

SHORT = ["--samples", "2", "--max-tokens", "4"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    with reached(tmp_path, monkeypatch) as server:
        yield server


@pytest.mark.parametrize("name", SUITES)
def test_the_settings_of_a_suite_are_knobs_that_there_are(name: str) -> None:
    config = evaluation_config(
        find_subject("tiny"), problems=Path("x.jsonl"), **sections(**SUITES[name].settings)
    )
    for key in ("samples", "temperature", "max_tokens"):
        assert getattr(config.eval, key) == SUITES[name].settings[key]
    assert config.eval.top_p == SUITES[name].settings.get("top_p", 1.0)


def test_the_papers_settings() -> None:
    """Section 4.1 of both papers; the released scripts differ in top-p and in AIME's samples."""
    papers = {"aime24": 64, "aime25": 64, "amc23": 64, "minerva": 8, "math500": 4}
    papers |= {"olympiadbench": 4, "livecodebench-v5": 8, "livecodebench-v6": 16}
    for name, samples in papers.items():
        settings = SUITES[name].settings
        assert settings == {
            "samples": samples, "temperature": 0.8, "top_p": 1.0, "max_tokens": 32768,
        }  # fmt: skip
        if f"{name}-released" in SUITES:
            released = SUITES[f"{name}-released"].settings
            assert released["top_p"] == 0.95
            assert released["samples"] == (32 if name.startswith("aime") else samples)
    windows = {
        (args["start"], args["end"])
        for args in (SUITES[f"livecodebench-{version}"].args for version in ("v5", "v6"))
    }
    assert windows == WINDOWS.keys()
    assert [SUITES[f"livecodebench-{v}"].expected for v in ("v5", "v6", "official")] == [
        279, 131, 1055,
    ]  # fmt: skip


def test_the_defaults_of_livecodebenchs_runner() -> None:
    """lcb_runner/runner/parser.py at d48241ce, which vllm_runner.py hands on to the sampler."""
    official = SUITES["livecodebench-official"].settings
    assert official == {
        "samples": 10, "temperature": 0.2, "top_p": 0.95, "max_tokens": 2000, "stop": ("###",),
    }  # fmt: skip
    config = evaluation_config(
        find_subject("tiny"), problems=Path("x.jsonl"), **sections(**official)
    )
    assert eval_sampling(config).stop == ("###",)


def test_what_is_asked_for_lies_over_the_settings() -> None:
    asked = {"samples": 2, "temperature": None, "seed": 5, "top_p": None}
    assert laid_over("aime24", asked) == {
        "samples": 2, "temperature": 0.8, "seed": 5, "top_p": 1.0, "max_tokens": 32768,
    }  # fmt: skip


def test_a_suite_prepares_its_problems_once_and_says_how_many_are_missing(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(hub, "math500", tmp_path)
    assert main(["eval", "tiny", "--suite", "math500", *SHORT]) == 0
    output = capsys.readouterr().out
    assert "math500: 3 problems are scored, and others count 500" in output
    problems = tmp_path / "evals" / "suites" / "math500.jsonl"
    assert len(list(read_problems(problems))) == 3
    assert problems.with_suffix(".card.md").exists()
    settings = json.loads((tmp_path / "evals" / "tiny-math500.json").read_text())["settings"]
    assert settings["suite"] == "math500"
    assert settings["samples"] == 2
    assert settings["sampling"]["temperature"] == 0.8
    asked = len(hub.asked)
    assert main(["eval", "tiny", "--suite", "math500", *SHORT]) == 0
    assert len(hub.asked) == asked


def test_two_that_need_a_suite_at_once_prepare_it_once(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(hub, "math500", tmp_path)
    said: SimpleQueue[str] = SimpleQueue()
    monkeypatch.setattr(Terminal, "say", lambda self, line: said.put(line))
    terminal = Terminal()
    with ThreadPoolExecutor() as other:
        found: list[Future[Path]] = []

        def slow(*arguments: Any, **more: Any) -> Any:
            assert not found, "it is there already"
            said.get()
            found.append(other.submit(suite_problems, "math500", terminal))
            assert "another process prepares its problems" in said.get(timeout=SECONDS)
            return prepare(*arguments, **more)

        monkeypatch.setattr("archer.suites.prepare", slow)
        path = suite_problems("math500", terminal)
        assert found[0].result(SECONDS) == path and path.exists()


def test_a_suite_can_be_scored_on_a_file(hub: Hub, tmp_path: Path) -> None:
    row = {"id": "own", "prompt": "1+1?", "verifier": "math", "answer": "2"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["eval", "tiny", "--suite", "aime24", "--problems", "mine.jsonl", *SHORT]) == 0
    result = json.loads((tmp_path / "evals" / "tiny-mine.json").read_text())
    assert (result["problems"], result["settings"]["suite"]) == (1, "aime24")
    assert not hub.asked


@needs_sandbox
def test_a_window_of_contests_is_prepared_with_both_its_ends(hub: Hub, tmp_path: Path) -> None:
    fill(hub, "livecodebench", tmp_path)
    path = suite_problems("livecodebench-v6", Terminal(quiet=True))
    assert [problem.id for problem in read_problems(path)] == ["own_c", "own_d"]
    assert "an empty program" not in path.with_suffix(".card.md").read_text()


def test_the_number_of_problems_is_only_told_where_it_differs() -> None:
    assert unexpected("aime24", 30) == ""
    assert unexpected("aime24", 29) == "aime24: 29 problems are scored, and others count 30"
    assert unexpected("olympiadbench", 3) == ""  # nobody says how many


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--suite", "aime42"], "no suite is called 'aime42'; near to it: aime25"),
        (["--suite", "aime24", "--temperature", "-1"], "eval.temperature = -1.0"),
        (["--suite", "aime24", "--k", "65"], "pass@65 cannot be measured with 64 samples"),
        (["--suite", "aime24", "--cpu-seconds", "0"], "verify.cpu_seconds = 0.0"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"id": "own", "prompt": "1+1?", "verifier": "math", "answer": "2"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["eval", "tiny", "--problems", "mine.jsonl", *asked]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_the_table_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--suite", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == listed().splitlines()
    assert len(lines) == len(SUITES) + 2
    assert all(len(line) <= 80 for line in lines)
