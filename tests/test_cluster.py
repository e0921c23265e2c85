"""Runs on a Ray cluster are the runs that one process makes: how many ranks, who samples and when.

Each run starts a cluster of its own on this machine. What is lost on the way is in test_faults.py.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import archer.engine.cluster.engine as cluster_engine
import archer.engine.cluster.samplers as samplers
from archer.config import load_config
from archer.engine.cluster.rank import LearnerRank
from archer.engine.cluster.replica import Replica
from archer.engine.local import stored_weights
from archer.terminal import Terminal
from archer.train import train

RECIPE = """
[model]
name = "tiny"
threads = 1
[data]
train = [{ source = "arithmetic", count = 40, args = { operations = "+" }, prompt = "{question}" }]
evaluate = [{ source = "arithmetic", count = 5, seed = 1, args = { operations = "+" } }]
[rollout]
problems = 6
samples = 8
max_tokens = 4
[verify]
answer_pattern = "number"
workers = 1
[loss]
name = "aspo_archer"
[kl]
knowledge = 0.01
[update]
minibatch = 3
learning_rate = 1e-4
microbatch_tokens = 60
[train]
steps = 5
[eval]
every = 2
samples = 2
[checkpoint]
every = 2
"""

RANKS = {
    "one rank": ('engine="cluster"',),
    "two ranks": ('engine="cluster"', "cluster.learners=2"),
    "two ranks, two samplers": ('engine="cluster"', "cluster.learners=2", "cluster.samplers=2"),
}

AHEAD = ("rollout.ahead=1", 'mismatch.kind="tis"')


def trained(folder: Path, name: str, *overrides: str) -> Path:
    """Trains in `folder`/`name` (further, if a run is there) and returns the run's folder."""
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE)
    train(load_config(recipe, overrides), folder / name, Terminal(quiet=True))
    return folder / name


def metrics(run: Path) -> list[dict[str, Any]]:
    """Every step's line without what a clock or a memory meter said."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if not k.startswith(("seconds/", "memory/"))} for row in rows
    ]


def answers(run: Path, step: int) -> list[tuple[Any, ...]]:
    lines = (run / f"rollouts/step-{step:06d}.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["id"], row["sample"], row["response"], row["tokens"]) for row in rows]


def furthest_apart(run: Path, other: Path, step: int = 5) -> float:
    """Largest difference between two weights of the runs' checkpoints."""
    here, there = (stored_weights(r / f"checkpoints/step-{step:06d}") for r in (run, other))
    assert here.keys() == there.keys()
    return max(float((here[name] - there[name]).abs().max()) for name in here)


def alike(run: Path, other: Path, *, but: Sequence[str] = ("weighted_unlike_grpo",)) -> None:
    """Equal metrics up to rounding; but for shares that a threshold makes of rounding."""
    for row, expected in zip(metrics(run), metrics(other), strict=True):
        assert row.keys() == expected.keys()
        for name in expected.keys() - set(but):
            value = expected[name]
            near = pytest.approx(value, rel=1e-4, abs=1e-5) if isinstance(value, float) else value
            assert row[name] == near, (name, row["step"])


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("local"), "run")


@pytest.mark.parametrize(
    "kind", [k if k != "one rank" else pytest.param(k, marks=pytest.mark.full) for k in RANKS]
)
def test_any_number_of_ranks_trains_like_one_process(
    local: Path, tmp_path: Path, kind: str
) -> None:
    run = trained(tmp_path, "run", *RANKS[kind])
    assert answers(run, 1) == answers(local, 1)
    assert furthest_apart(run, local) <= 1e-6
    alike(run, local)


def test_steps_ahead_are_sampled_with_the_weights_that_the_recipe_names(tmp_path: Path) -> None:
    run = trained(tmp_path, "run", "rollout.ahead=2", 'mismatch.kind="tis"', "checkpoint.keep=5")
    assert [row.get("staleness") for row in metrics(run)[1:]] == [0, 1, 2, 2, 2]
    assert metrics(run)[2]["kl/sampler"] > 0
    # Those of the last steps were there before the steps that they follow.
    assert sorted(path.name for path in (run / "checkpoints/step-000002").glob("ahead-*")) == [
        "ahead-000003.npz",
        "ahead-000004.npz",
    ]


def test_a_run_with_steps_ahead_goes_on_from_its_checkpoint_alone(tmp_path: Path) -> None:
    """Weights of steps past are gone, and so may be what lay in pending/."""
    whole = trained(tmp_path, "whole", *AHEAD)
    part = trained(tmp_path, "part", *AHEAD, "train.steps=4")
    shutil.rmtree(part / "checkpoints/step-000004")
    shutil.rmtree(part / "pending")
    trained(tmp_path, "part", *AHEAD)
    assert metrics(part) == metrics(whole)
    assert furthest_apart(part, whole) == 0.0


def slowed(seed: int) -> tuple[type, type]:
    """A replica and a rank that stop to think, now and then. By value, for Ray to send along."""

    def seconds(own: int) -> float:
        import random

        return random.Random(f"{seed} {own} {time.time()}").choice([0.0, 0.0, 0.1, 0.6])

    class SlowReplica(Replica):
        def generate_by_step(self, *arguments: Any) -> Iterator[Any]:
            for samples in super().generate_by_step(*arguments):
                for sample in samples:
                    if sample.number == 0:
                        time.sleep(seconds(1))
                    yield [sample]

    class SlowRank(LearnerRank):
        def update(self, *arguments: Any, **knobs: Any) -> Any:
            time.sleep(seconds(2))
            return super().update(*arguments, **knobs)

    return SlowReplica, SlowRank


def test_delays_change_no_metric_of_a_pipelined_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = ('engine="cluster"', "cluster.samplers=2", *AHEAD)
    runs = [trained(tmp_path, "undelayed", *kind)]
    for seed in (1,):
        replica, rank = slowed(seed)
        monkeypatch.setattr(samplers, "Replica", replica)
        monkeypatch.setattr(cluster_engine, "LearnerRank", rank)
        runs.append(trained(tmp_path, f"delayed-{seed}", *kind))
    for run in runs[1:]:
        assert metrics(run) == metrics(runs[0])
        assert furthest_apart(run, runs[0]) == 0.0
    # And it is the run that one process makes, which samples the same steps ahead by turns.
    in_turns = trained(tmp_path, "in-turns", *AHEAD)
    assert furthest_apart(runs[0], in_turns) <= 1e-6
    alike(runs[0], in_turns)


PAIRS = [
    (2, 3),
    *(
        pytest.param((a, b), marks=pytest.mark.full)
        for a in (1, 2, 3)
        for b in (1, 2, 3)
        if (a, b) != (2, 3)
    ),
]


@pytest.mark.parametrize("ranks", PAIRS, ids=lambda pair: f"{pair[0]}-to-{pair[1]}")
def test_a_checkpoint_goes_on_with_any_number_of_ranks(
    local: Path, tmp_path: Path, ranks: tuple[int, int]
) -> None:
    first, second = (('engine="cluster"', f"cluster.learners={n}") for n in ranks)
    trained(tmp_path, "run", *first, "train.steps=2")
    run = trained(tmp_path, "run", *second)
    assert furthest_apart(run, local) <= 1e-6
    alike(run, local)


def test_a_run_of_one_process_goes_on_with_its_optimizer_in_the_cpus_memory(
    local: Path, tmp_path: Path
) -> None:
    trained(tmp_path, "run", "train.steps=2")
    run = trained(tmp_path, "run", *RANKS["two ranks"], "cluster.offload=true")
    assert furthest_apart(run, local) <= 1e-6
    alike(run, local)


def test_a_checkpoint_of_a_cluster_is_exported_and_goes_on_in_one_process(
    local: Path, tmp_path: Path
) -> None:
    from archer.export import export

    run = trained(tmp_path, "run", *RANKS["two ranks"], "train.steps=2")
    said = export(run, tmp_path / "out", dtype="float32", terminal=Terminal(quiet=True))
    assert "live - exported" in said
    trained(tmp_path, "run")
    assert furthest_apart(run, local) <= 1e-6
