"""A killed evaluation goes on: nothing is done twice, its files are those of an unbroken one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import archer.evaluate
from archer.cli import main
from archer.config import load_config
from archer.data.problems import write_problems
from archer.data.sources import load_source
from archer.engine.base import Request, Sample, Sampling
from archer.evaluate import units
from archer.evaluate_model import SamplerAlone, evaluate_model
from archer.terminal import Terminal
from archer.train import train
from archer.types import Problem
from archer.unfinished import open_unfinished
from archer.verify.pool import Ticket, WorkerPool
from tests.killed import UNIT, Killed, killing, moments

QUIET = Terminal(quiet=True)
NUM_PROBLEMS, SAMPLES = 7, 3
"""A unit holds two problems: there are four, of which the last is smaller."""


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archer.evaluate, "UNIT", UNIT)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What was sampled (names of completions) and judged (ids), in the order of asking."""
    seen: dict[str, list[Any]] = {"sampled": [], "judged": []}
    generate, submit = SamplerAlone.generate, WorkerPool.submit

    def sampled(
        self: SamplerAlone, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[Sample]:
        seen["sampled"] += [name for request in requests for name in request.names]
        return generate(self, requests, sampling)

    def judged(self: WorkerPool, problem: Problem, response: str, in_thought: bool) -> Ticket:
        seen["judged"].append(problem.id)
        return submit(self, problem, response, in_thought)

    monkeypatch.setattr(SamplerAlone, "generate", sampled)
    monkeypatch.setattr(WorkerPool, "submit", judged)
    return seen


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("problems") / "sums.jsonl"
    write_problems(path, load_source("arithmetic", count=NUM_PROBLEMS))
    return path


def measure(problems: Path, out: Path | None = None, **asked: Any) -> None:
    knobs = {"samples": SAMPLES, "max_tokens": 6, "answer_pattern": "number", **asked}
    evaluate_model("tiny", terminal=QUIET, problems=problems, out=out, **knobs)


def arguments(problems: Path, out: Path) -> list[str]:
    """The same on the command line."""
    asked = ["--samples", str(SAMPLES), "--max-tokens", "6", "--answer-pattern", "number"]
    return ["eval", "tiny", "--problems", str(problems), "--out", str(out), "--quiet", *asked]


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.parent.iterdir())}


def stopped(problems: Path, out: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> Path:
    """The part of an evaluation that ended within the unit behind the first `after` ones."""
    out.parent.mkdir(exist_ok=True)
    generate, calls = SamplerAlone.generate, iter(range(100))

    def interrupted(
        self: SamplerAlone, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[Sample]:
        if next(calls) == after:
            raise KeyboardInterrupt
        return generate(self, requests, sampling)

    with monkeypatch.context() as patch:
        patch.setattr(SamplerAlone, "generate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            measure(problems, out)
    return out.with_suffix(".jsonl.part")


def test_units_hold_whole_problems_and_at_least_one() -> None:
    asked = load_source("arithmetic", count=5)
    assert [len(unit) for unit in units(asked, 3)] == [2, 2, 1]
    assert [len(unit) for unit in units(asked, 100)] == [1] * 5
    assert [problem for unit in units(asked, 1) for problem in unit] == asked
    with pytest.raises(ValueError, match="nothing to evaluate"):
        units([], 3)


def test_wherever_it_was_killed_an_evaluation_ends_as_the_unbroken_one(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: dict[str, list[Any]]
) -> None:
    whole = tmp_path / "whole" / "sums.json"
    measure(problems, whole)
    every = {name: list(asked) for name, asked in done.items()}
    assert len(every["sampled"]) == len(set(every["sampled"])) == NUM_PROBLEMS * SAMPLES
    again = tmp_path / "again" / "sums.json"
    header = stopped(problems, again, monkeypatch, after=1).read_bytes().splitlines(True)[0]
    lines = whole.with_suffix(".jsonl").read_bytes().splitlines(True)
    assert len(lines) == NUM_PROBLEMS * SAMPLES
    for num_lines, torn in [(0, 0), (5, 3), (6, 0), (6, 1), (11, -1), (12, 40), (20, -1), (21, 0)]:
        rest = lines[num_lines][:torn] if torn and num_lines < len(lines) else b""
        part = again.with_suffix(".jsonl.part")
        part.write_bytes(header + b"".join(lines[:num_lines]) + rest)
        for path in (again, again.with_suffix(".jsonl")):
            path.unlink(missing_ok=True)
        for asked in done.values():
            asked.clear()
        measure(problems, again)
        assert files(again) == files(whole), (num_lines, torn)
        kept = num_lines if num_lines == len(lines) else num_lines // UNIT * UNIT
        assert done["sampled"] == every["sampled"][kept:], "whole units are not sampled again"
        assert sorted(done["judged"]) == sorted(every["judged"][kept:])


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killed]:
    with killing("sampling", tmp_path_factory.mktemp("killed")) as killed:
        yield killed


def asked_for(killed: Killed) -> tuple[list[str], list[str]]:
    """What was sampled (names of completions) and judged (ids) since the last time, in order."""
    rows = killed.noted()
    sampled = [name for row in rows for name in row.get("sampled", ())]
    return sampled, [row["judged"] for row in rows if "judged" in row]


def num_kept(out: Path) -> int:
    """How many responses are on disk in whole units."""
    part, responses = out.with_suffix(".jsonl.part"), out.with_suffix(".jsonl")
    if not part.exists():
        return len(responses.read_bytes().splitlines()) if responses.exists() else 0
    lines = sum(line.endswith(b"\n") for line in part.read_bytes().splitlines(True)[1:])
    return lines if lines == NUM_PROBLEMS * SAMPLES else lines // UNIT * UNIT


@pytest.mark.parametrize("number", [3, pytest.param(20, marks=pytest.mark.full)])
def test_wherever_the_command_is_killed_it_ends_as_an_unbroken_one(
    problems: Path, tmp_path: Path, killed: Killed, number: int
) -> None:
    """A kill costs the unit that was under way: of that alone responses are sampled and judged a
    second time, and each at most once."""
    whole = tmp_path / "whole" / "sums.json"
    codes, events = killed(arguments(problems, whole))
    assert codes == [0] and events > 30, killed.said.read_text()
    sampled, judged = asked_for(killed)
    assert len(sampled) == len(set(sampled)) == len(judged) == NUM_PROBLEMS * SAMPLES
    for at in moments(events, number):
        out = tmp_path / str(at) / "sums.json"
        codes, _ = killed(arguments(problems, out), kill_at=[at])
        assert codes == [-signal.SIGKILL], killed.said.read_text()
        kept = num_kept(out)
        first = asked_for(killed)
        codes, _ = killed(arguments(problems, out))
        assert codes == [0], killed.said.read_text()
        second = asked_for(killed)
        assert files(out) == files(whole), at
        assert second[0] == sampled[kept:], "nothing that is on disk is sampled again"
        assert second[1] == judged[kept:], "nor judged"
        for asked, every in zip(first, (sampled, judged), strict=True):
            assert asked == every[: len(asked)]
            assert kept <= len(asked) <= kept + UNIT, "a kill costs one unit"


def test_a_kill_while_the_result_is_written_costs_no_sample(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: dict[str, list[Any]]
) -> None:
    out = tmp_path / "runs" / "sums.json"
    header = stopped(problems, out, monkeypatch, after=1).read_bytes().splitlines(True)[0]
    measure(problems, out)
    whole, part = files(out), out.with_suffix(".jsonl.part")
    for missing in (["sums.json", "sums.jsonl"], ["sums.json"], []):
        part.write_bytes(header + whole["sums.jsonl"])
        for name in missing:
            (out.parent / name).unlink()
        done["sampled"].clear()
        measure(problems, out)
        assert files(out) == whole
        assert not done["sampled"]
    with pytest.raises(ValueError, match="is there already"):
        measure(problems, out)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"seed": 1}, "settings.seed (0 there, 1 here)"),
        ({"temperature": 0.5}, "settings.sampling.temperature (1.0 there, 0.5 here)"),
        ({"suffix": "?"}, "settings.prompt.suffix"),
        ({"answer_pattern": "box"}, "settings.verify.answer_pattern"),
        ({"samples": 2}, "settings.samples (3 there, 2 here)"),
    ],
)
def test_other_settings_do_not_go_on_with_it(
    problems: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, Any],
    named: str,
) -> None:
    part = stopped(problems, tmp_path / "sums.json", monkeypatch, after=2)
    before = part.read_bytes()
    with pytest.raises(ValueError, match="holds another evaluation") as refused:
        measure(problems, tmp_path / "sums.json", **asked)
    assert named in str(refused.value)
    assert part.read_bytes() == before


def test_other_problems_another_model_and_another_file_are_refused(
    problems: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "sums.json"
    part = stopped(problems, out, monkeypatch, after=2)
    others = tmp_path / "others.jsonl"
    write_problems(others, load_source("arithmetic", count=NUM_PROBLEMS, seed=1))
    assert main(arguments(others, out)) == 2
    header, *rows = part.read_bytes().splitlines(True)
    told = json.loads(header)
    told["model"]["files"] = "0"
    part.write_bytes(json.dumps(told).encode() + b"\n" + b"".join(rows))
    assert main(arguments(problems, out)) == 2
    part.write_bytes(b"mine\n")
    assert main(arguments(problems, out)) == 2
    first, second, third = capsys.readouterr().err.splitlines()
    assert "settings.problems_hash" in first
    assert "model.files" in second
    assert "no unfinished evaluation" in third
    assert part.read_bytes() == b"mine\n"


def test_a_damaged_line_is_sampled_again_with_all_behind_it(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: dict[str, list[Any]]
) -> None:
    measure(problems, tmp_path / "whole" / "sums.json")
    out = tmp_path / "again" / "sums.json"
    part = stopped(problems, out, monkeypatch, after=3)
    header, *rows = part.read_bytes().splitlines(True)
    for number, damaged in ((8, b"{}\n"), (8, rows[9]), (7, b"\xff\x00\n")):
        part.write_bytes(header + b"".join([*rows[:number], damaged, *rows[number + 1 :]]))
        done["sampled"].clear()
        measure(problems, out)
        assert len(done["sampled"]) == NUM_PROBLEMS * SAMPLES - UNIT
        assert files(out) == files(tmp_path / "whole" / "sums.json")
        for path in (out, out.with_suffix(".jsonl")):
            path.unlink()


def test_two_processes_do_not_write_one_result(problems: Path, tmp_path: Path) -> None:
    asked = [load_source("arithmetic", count=2)]
    with open_unfinished(tmp_path / "a.jsonl.part", {"seed": 0}, asked, 3):
        second = open_unfinished(tmp_path / "a.jsonl.part", {"seed": 0}, asked, 3)
        with pytest.raises(ValueError, match="in use by another process"):
            second.__enter__()
    assert not (tmp_path / "a.jsonl.part").exists()


def test_whoever_lost_its_file_to_another_leaves_that_one_be(tmp_path: Path) -> None:
    """A watcher that slept too long wakes up when another has taken over with a copy."""
    part, asked = tmp_path / "a.jsonl.part", [load_source("arithmetic", count=2)]
    with ExitStack() as other:
        with open_unfinished(part, {"seed": 0}, asked, 3):
            os.replace(shutil.copyfile(part, tmp_path / "copy"), part)
            other.enter_context(open_unfinished(part, {"seed": 0}, asked, 3))
        assert part.exists()
    assert not part.exists()


def test_a_file_system_without_locks_is_no_other_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(file: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("archer.files.fcntl.flock", refused)
    asked = [load_source("arithmetic", count=2)]
    with open_unfinished(tmp_path / "a.jsonl.part", {"seed": 0}, asked, 3) as unfinished:
        assert not unfinished.answers


def test_what_ended_before_its_first_unit_leaves_nothing(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not stopped(problems, tmp_path / "sums.json", monkeypatch, after=0).exists()


def test_an_unfinished_result_keeps_its_default_name(
    problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stopped(problems, Path("evals") / "tiny-sums.json", monkeypatch, after=2)
    measure(problems)
    assert sorted(path.name for path in Path("evals").iterdir()) == [
        "tiny-sums.json",
        "tiny-sums.jsonl",
    ]


RECIPE = """
model = { name = "tiny", threads = 1 }
verify = { answer_pattern = "number", workers = 1 }
update = { minibatch = 2, learning_rate = 3e-3 }
train = { steps = 1 }
eval = { samples = 3, temperature = 0.8 }
[data]
train = [{ source = "arithmetic", count = 9 }]
evaluate = [{ source = "arithmetic", count = 7, seed = 1 }]
[rollout]
problems = 2
samples = 2
max_tokens = 6
cache_tokens = 200
filter = "keep"
"""


def test_in_units_too_a_checkpoint_scores_what_it_scored_in_training(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    train(load_config(tmp_path / "recipe.toml"), tmp_path / "run", QUIET)
    evaluate_model(str(tmp_path / "run"), terminal=QUIET, out=tmp_path / "again.json")
    in_training = tmp_path / "run" / "eval" / "step-000001.jsonl"
    assert (tmp_path / "again.jsonl").read_bytes() == in_training.read_bytes()
    assert len(in_training.read_bytes().splitlines()) == 7 * 3
