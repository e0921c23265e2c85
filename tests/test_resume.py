"""A run that was killed, and started again by the same command, is the run that was not killed."""

import errno
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import archer.pipeline
import archer.train
from archer.cli import main
from archer.engine.base import EngineLost
from archer.evaluate import evaluate_data
from archer.run import MANIFEST, _seal, ahead_name, checkpoint_steps, read_checkpoint
from archer.train import step_line
from archer.types import OUTCOMES

RECIPE = """
[model]
name = "tiny"
threads = 1
[data]
train = [{ source = "arithmetic", count = 20, args = { operations = "+" }, prompt = "{question}" }]
evaluate = [{ source = "arithmetic", count = 5, seed = 1, args = { operations = "+" } }]
[rollout]
problems = 4
samples = 4
max_tokens = 3
filter = "refill"
max_rounds = 2
[verify]
answer_pattern = "number"
workers = 1
[loss]
name = "aspo_archer"
[kl]
knowledge = 0.01
[entropy]
target = 1.0
[update]
minibatch = 2
passes = 2
learning_rate = 3e-3
[train]
steps = STEPS
[eval]
every = 5
[checkpoint]
every = 3
[log]
arrays_every = 4
"""


EVERY_KEY = {
    *("step", "reward/mean", "accuracy", "entropy", "kl", "grad_norm", "lr", "truncated"),
    *("response_length/mean", "groups/uniform", "tokens/generated", "tokens/trained"),
    *(f"verdicts/{outcome}" for outcome in OUTCOMES),
    *(f"seconds/{part}" for part in ("rollout", "verify", "score", "update", "publish")),
    *("memory/peak_gb", "memory/all_gb"),
}


def recipe(folder: Path, steps: int) -> Path:
    path = folder / "recipe.toml"
    path.write_text(RECIPE.replace("STEPS", str(steps)))
    return path


def run_until(command: Sequence[str], kill_at: int | None) -> tuple[list[str], bool]:
    """Runs to the end, or to the announcement of that number; its lines, and whether it ended."""
    lines: list[str] = []
    events = 0
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("watched_train.py")), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            lines.append(line.rstrip())
            events += line.startswith("event ")
            if kill_at is not None and events == kill_at:
                os.kill(child.pid, signal.SIGKILL)
    ended = child.returncode == 0
    assert ended or child.returncode == -signal.SIGKILL, "\n".join(lines)
    return lines, ended


def without_clock(value: Any) -> Any:
    """Drops times and memory, which no two runs share."""
    if isinstance(value, dict):
        return {
            key: without_clock(item)
            for key, item in value.items()
            if "seconds" not in key and not key.startswith("memory/")
        }
    return [without_clock(item) for item in value] if isinstance(value, list) else value


def contents(folder: Path) -> dict[str, Any]:
    """All that a run leaves, times and memory aside: parsed lines, and bytes for the rest."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name in (".lock", "environment.json") or path.name == "manifest.json":
            continue
        if path.suffix in (".jsonl", ".json"):
            text = path.read_text()
            rows = text.splitlines() if path.suffix == ".jsonl" else [text]
            found[name] = [without_clock(json.loads(row)) for row in rows]
        else:
            found[name] = path.read_bytes()
    return found


def check_a_killed_run(tmp_path: Path, *, steps: int, kills: int, seed: int) -> None:
    path = recipe(tmp_path, steps)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    lines, ended = run_until(["train", str(path), "--run", str(whole)], None)
    assert ended
    num_events = sum(line.startswith("event ") for line in lines)
    draw = random.Random(seed)
    after_first_checkpoint = inside_a_write = 0
    kinds: list[str] = []
    for _ in range(kills):
        before = checkpoint_steps(broken) if broken.exists() else []
        # So far apart that the whole of the run is covered, and never past its end.
        kill_at = draw.randint(2, max(3, 2 * num_events // kills))
        lines, ended = run_until(["train", str(path), "--run", str(broken)], kill_at)
        check_continuation(lines, before)
        if ended:
            break
        last = [line for line in lines if line.startswith("event ")][-1].split()[1]
        kinds.append(last)
        after_first_checkpoint += bool(before)
        inside_a_write += last in ("write", "rename", "replace", "remove")
    before = checkpoint_steps(broken)
    lines, ended = run_until(["train", str(path), "--run", str(broken)], None)
    assert ended
    check_continuation(lines, before)
    expected, found = contents(whole), contents(broken)
    assert found.keys() == expected.keys()
    for name, content in expected.items():
        assert found[name] == content, f"{name} differs after kills at {kinds}"
    if kills >= 20:
        assert len(kinds) == 20, f"the run was over after {len(kinds)} kills"
        assert after_first_checkpoint >= 15 and inside_a_write >= 5, kinds


def check_continuation(lines: list[str], checkpoints: list[int]) -> None:
    """It goes on from the newest complete checkpoint, says so, and samples no step before it."""
    newest = max(checkpoints, default=0)
    at_work = any(line.startswith(("event sample", "event update")) for line in lines)
    if newest and at_work:  # else it was killed before it could say so
        assert any(
            line.startswith(f"continuing after step {newest} from ")
            and line.endswith(f"step-{newest:06d}")
            for line in lines
        ), "\n".join(lines[:5])
    sampled = [int(line.split()[2]) for line in lines if line.startswith("event sample")]
    assert all(step > newest for step in sampled)
    assert len(set(sampled)) == len(sampled)


def test_a_run_killed_four_times_equals_the_unbroken_run(tmp_path: Path) -> None:
    check_a_killed_run(tmp_path, steps=9, kills=4, seed=0)


@pytest.mark.full
def test_a_run_killed_at_twenty_moments_equals_the_unbroken_run(tmp_path: Path) -> None:
    check_a_killed_run(tmp_path, steps=60, kills=20, seed=1)


def test_judged_groups_on_disk_are_not_sampled_again(tmp_path: Path) -> None:
    path, folder = recipe(tmp_path, 3), tmp_path / "run"
    command = ["train", str(path), "--run", str(folder)]
    lines, _ = run_until(command, None)
    events = [line for line in lines if line.startswith("event ")]
    first_update = next(i for i, line in enumerate(events) if line.startswith("event update"))
    other = tmp_path / "other"
    command[-1] = str(other)
    run_until(command, first_update + 1)
    lines, _ = run_until(command, None)
    assert "step 1: judged groups are on disk, not sampled again" in lines
    assert [line for line in lines if line.startswith("event sample")] == [
        "event sample 2",
        "event sample 3",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_the_same_command_continues(
    tmp_path: Path, number: signal.Signals
) -> None:
    path, folder = recipe(tmp_path, 40), tmp_path / "run"
    command = [sys.executable, "-m", "archer.cli", "train", str(path), "--run", str(folder)]
    out = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        for line in child.stdout:
            out.append(line)
            if line.startswith("step  4/40"):
                child.send_signal(number)
        error = child.stderr.read()
    assert child.returncode == 128 + number and "Traceback" not in error
    assert "the same command goes on" in out[-1]
    stopped = checkpoint_steps(folder)[-1]
    assert 4 <= stopped < 40
    again = subprocess.run([*command, f"train.steps={stopped + 1}"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"continuing after step {stopped} from" in again.stdout


def test_a_changed_knob_is_named_and_needs_a_fork(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = recipe(tmp_path, 2), tmp_path / "run"
    assert main(["train", str(path), "--run", str(folder), "--quiet"]) == 0
    capsys.readouterr()
    changed = ["train", str(path), "update.passes=3", "train.steps=4", "--run", str(folder)]
    assert main(changed) == 2
    error = capsys.readouterr().err
    assert "update.passes = 2 -> 3" in error and "--fork" in error and "train.steps" not in error
    assert main([*changed, "--fork", str(tmp_path / "forked")]) == 0
    out = capsys.readouterr().out
    assert "forked" in out and "at step 2" in out
    rows = (tmp_path / "forked/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert checkpoint_steps(folder) == [2], "the run that was forked is as it was"


def test_a_fork_samples_later_steps_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint of a run with steps ahead has their groups, of that run's recipe."""
    path, folder, forked = recipe(tmp_path, 2), tmp_path / "run", tmp_path / "forked"
    assert main(["train", str(path), "--run", str(folder), "--quiet"]) == 0
    checkpoint = folder / "checkpoints/step-000002"
    state = read_checkpoint(checkpoint)
    (checkpoint / ahead_name(3)).write_bytes(b"groups of step 3")
    (checkpoint / MANIFEST).unlink()
    _seal(checkpoint, state)
    command = ["train", str(path), "update.passes=3", "train.steps=3", "--run", str(folder)]
    assert main([*command, "--fork", str(forked)]) == 0
    assert "judged groups are on disk" not in capsys.readouterr().out
    assert checkpoint_steps(forked)[-1] == 3


def test_a_fork_that_was_stopped_goes_on_by_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder, forked = recipe(tmp_path, 2), tmp_path / "run", tmp_path / "forked"
    assert main(["train", str(path), "--run", str(folder), "--quiet"]) == 0
    (folder / "metrics.jsonl").unlink()  # not needed for a fork
    half_done = tmp_path / ".forked.partial" / "eval"
    half_done.mkdir(parents=True)
    command = ["train", str(path), "update.passes=3", "train.steps=3", "--run", str(folder)]
    command += ["--fork", str(forked)]
    assert main(command) == 0
    assert main([*command, "train.steps=4"]) == 0
    out = capsys.readouterr().out
    assert out.count(f"forked {folder} at step 2 into {forked}") == 1
    assert f"continuing after step 3 from {forked}" in out
    assert not half_done.exists()


def test_the_best_evaluated_step_keeps_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when no checkpoint was due at it. The scores are given: before, and after four steps."""
    scores = iter((0.1, 0.2, 0.9, 0.3, 0.4))

    def scored(*args: Any, **kwargs: Any) -> Any:
        evaluation, groups = evaluate_data(*args, **kwargs)
        return replace(evaluation, score={**evaluation.score, "mean": next(scores)}), groups

    monkeypatch.setattr(archer.train, "evaluate_data", scored)
    path, folder = recipe(tmp_path, 4), tmp_path / "run"
    knobs = ["eval.every=1", "checkpoint.every=100", "checkpoint.keep=1"]
    assert main(["train", str(path), *knobs, "--run", str(folder), "--quiet"]) == 0
    assert checkpoint_steps(folder) == [2, 4]


def test_a_signal_before_the_first_step_does_not_wait_for_the_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(*args: Any, **kwargs: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return evaluate_data(*args, **kwargs)

    path, folder = recipe(tmp_path, 2), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(archer.train, "evaluate_data", signalled)
        assert main(["train", str(path), "--run", str(folder)]) == 128 + signal.SIGTERM
    assert "stopped after step 0; the same command goes on" in capsys.readouterr().out
    assert not (folder / "metrics.jsonl").exists() and not list((folder / "eval").iterdir())
    assert main(["train", str(path), "--run", str(folder), "--quiet"]) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_engine_is_opened_ends_the_run_at_once(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    """A large model is read, or room on a cluster is waited for: there is no step to save."""

    def opened(*args: Any) -> Any:
        signal.raise_signal(number)
        raise AssertionError("it went on")

    monkeypatch.setattr(archer.train, "open_engine", opened)
    path, folder = recipe(tmp_path, 2), tmp_path / "run"
    assert main(["train", str(path), "--run", str(folder)]) == 128 + number
    assert "stopped at once" in capsys.readouterr().err


def test_a_run_that_was_to_stop_does_not_begin_again_when_a_learner_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a whole machine is told to stop: what is lost then would be waited for in vain."""

    def lost(*args: Any, **kwargs: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        raise EngineLost("learner 0 died")

    monkeypatch.setattr(archer.train, "evaluate_data", lost)
    path, folder = recipe(tmp_path, 2), tmp_path / "run"
    assert main(["train", str(path), "--run", str(folder)]) == 128 + signal.SIGTERM
    out, error = capsys.readouterr()
    assert "learner 0 died: not begun again" in out and "restart" not in out
    assert "by the same command" in error


def test_every_step_has_every_key_also_where_no_group_teaches(tmp_path: Path) -> None:
    path, folder = recipe(tmp_path, 1), tmp_path / "run"
    nothing_is_an_answer = "verify.answer_pattern=(no such words)"
    command = ["train", str(path), nothing_is_an_answer, "--run", str(folder), "--quiet"]
    assert main(command) == 0
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["groups/teaching"] == 0 and row["seconds/update"] == 0
    assert EVERY_KEY - row.keys() == set()


def test_the_line_of_a_step_fits_a_terminal() -> None:
    score = {"eval/mean": 0.964, "eval/low": 0.94, "eval/high": 0.98}
    trained = {"accuracy": None, "entropy": 1.08, "response_length/mean": 1024.0}
    assert step_line(0, 300, score) == "step   0/300  eval 0.964 [0.940, 0.980]"
    line = step_line(300, 300, {**trained, "seconds/step": 1000.0, **score})
    assert line.endswith("accuracy nan  entropy 1.08  length 1024.0  1000.0 s  eval 0.964")
    assert len(line) <= 80


def test_free_knobs_may_change_and_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = recipe(tmp_path, 2), tmp_path / "run"
    assert main(["train", str(path), "--run", str(folder)]) == 0
    assert main(["train", str(path), "train.steps=3", "--run", str(folder)]) == 0
    assert "changed since the run began: train.steps = 2 -> 3" in capsys.readouterr().out


def test_two_processes_never_share_a_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = recipe(tmp_path, 1), tmp_path / "run"
    folder.mkdir()
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["train", str(path), "--run", str(folder)]) == 2
    assert "in use by another process" in capsys.readouterr().err


def test_a_disk_without_locks_can_be_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert main(["train", str(recipe(tmp_path, 1)), "--run", str(tmp_path / "run")]) == 0
