"""A run that goes on with fewer learners when a machine is lost.

Two node daemons on this machine stand for two machines with a GPU each; there is none, and what is
placed by GPUs computes on the CPU.
"""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archer.cli import main
from archer.config import config_from
from archer.engine.cluster.session import Numbers, fitting, shared_out
from tests.drive import Drive, gone, rollouts
from tests.machines import two_machines


def found(room: int, *, sampler: str = "own", **cluster: int) -> tuple[int, int] | None:
    """Learners and samplers for which there is room."""
    tree = tomllib.loads(RECIPE)
    tree["rollout"]["sampler"] = sampler
    tree |= {"cluster": cluster, "mismatch": {"kind": "tis"}}
    numbers = fitting(config_from(tree, where="test"), room)
    return None if numbers is None else (numbers.learners, numbers.samplers)


@pytest.mark.parametrize(
    ("room", "expected"),
    [(8, (6, 2)), (7, (5, 2)), (4, (2, 2)), (3, (2, 1)), (2, None), (0, None)],
)
def test_learners_give_way_first_then_samplers(room: int, expected: tuple[int, int] | None) -> None:
    assert found(room, learners=6, samplers=2, least_learners=2) == expected


def test_learners_that_sample_need_no_other() -> None:
    assert found(1, learners=4, least_learners=1) == (1, 0)
    assert found(1, learners=4, least_learners=2) is None
    assert found(3, learners=4) is None


@pytest.mark.parametrize(
    ("room", "expected"), [(10, (6, 2)), (9, (5, 2)), (6, (2, 2)), (5, (2, 1)), (3, None)]
)
def test_a_sampler_that_is_cut_gives_way_as_a_whole(
    room: int, expected: tuple[int, int] | None
) -> None:
    knobs = {"learners": 6, "samplers": 2, "least_learners": 2, "tensor_parallel": 2}
    assert found(room, sampler="vllm", **knobs) == expected


@pytest.mark.parametrize(("room", "expected"), [(6, (6, 3)), (5, (4, 2)), (2, (2, 1)), (1, None)])
def test_by_turns_learners_stay_a_multiple_of_what_a_sampler_is_cut_into(
    room: int, expected: tuple[int, int] | None
) -> None:
    knobs = {"learners": 6, "least_learners": 2, "tensor_parallel": 2}
    assert found(room, sampler="vllm", **knobs) == expected


def test_numbers_are_said_in_words() -> None:
    def said(**numbers: int) -> str:
        sizes = {"samplers": 0, "parts": 1, "shared": 0, **numbers}
        shared = bool(sizes.pop("shared"))
        return str(Numbers(**sizes, shared=shared))

    assert said(learners=1) == "1 learner"
    assert said(learners=3, samplers=1) == "3 learners and 1 sampler"
    assert said(learners=2, samplers=2, parts=2) == "2 learners and 2 samplers of 2 processes"
    assert said(learners=1, samplers=1, shared=1) == "1 learner and 1 sampler in the same places"


def test_cores_are_shared_out_among_the_processes_of_each_machine() -> None:
    cores = {"a": 8, "b": 5}
    assert shared_out(cores, [1, 1, 2], {0: "a", 1: "a", 2: "b"}) == {0: 4, 1: 4, 2: 2}
    assert shared_out(cores, [1, 8], {0: "a", 1: "b"}) == {0: 8, 1: 1}


RECIPE = """
engine = "cluster"
[model]
name = "tiny"
threads = 1
[data]
train = [{ source = "arithmetic", count = 20 }]
[rollout]
problems = 4
samples = 6
max_tokens = 4
filter = "keep"
[verify]
workers = 1
[loss]
name = "grpo"
[update]
minibatch = 4
learning_rate = 1e-4
[train]
steps = 8
[checkpoint]
every = 2
[cluster]
learners = 2
least_learners = 1
silent_seconds = 8.0
wait_seconds = 120.0
"""


def in_order(run: Path) -> list[list[tuple[str, int]]]:
    """Problem and sample of each completion, step by step."""
    return [[(row["id"], row["sample"]) for row in step] for step in rollouts(run)]


@pytest.fixture
def two() -> Iterator[Any]:
    with two_machines(gpus=1) as cluster:
        yield cluster


@pytest.mark.full
def test_a_run_goes_on_with_the_learners_that_are_left(
    two: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", two.address)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    drive = Drive(tmp_path)
    until = time.monotonic() + 200
    while drive.steps() < 3:
        assert not drive.ended() and time.monotonic() < until, "".join(drive.lines)
        time.sleep(0.05)
    two.remove_node(two.worker_nodes.copy().pop(), allow_graceful=False)
    code = drive.process.wait(timeout=200)
    drive.reader.join()
    said = "".join(drive.lines)
    assert code == 0, said
    assert "going on from the last checkpoint, restart 1 of" in said
    assert "no room for 2 learners on" in said
    assert "going on with 1 learner in place of 2 learners" in said
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == list(range(1, 9))
    gone(drive)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "recipe.toml", "--run", "alone", 'engine="local"']) == 0
    assert in_order(tmp_path / "run") == in_order(tmp_path / "alone")
