"""The plan for processes on this machine's CPUs: its arithmetic by hand, beside the code it is of,
and beside a run."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from archer.cli import main
from archer.config import Config, config_from, load_config
from archer.model.shapes import parameter_count, shape_of
from archer.model.tiny import KINDS, tiny_model
from archer.plan.costs import (
    ANSWER_SECONDS,
    CALL_SECONDS,
    CHECKSUM_RATE,
    DEALING_SECONDS,
    GATHER_RATE,
    GENERATE_SECONDS,
    LAYER_SECONDS,
    MESSAGE_SECONDS,
    PUBLISH_SECONDS,
    PUT_RATE,
    SCORE_SECONDS,
    TELL_SECONDS,
    TENSOR_SECONDS,
    UPDATE_SECONDS,
    tensor_count,
)
from archer.plan.estimate import (
    EFFICIENCY,
    Job,
    Lengths,
    Speed,
    estimate_memory,
    group_flops,
    pass_seconds,
    sampling_seconds,
    update_flops,
)
from archer.plan.processes import (
    LIBRARY_BYTES,
    Processes,
    process_loads,
    process_times,
    processes_of,
    together,
)
from tests.children import child_environment
from tests.test_plan import TOY

ROOT = Path(__file__).parents[1]
LENGTHS = Lengths(prompt=10.0, longest_prompt=12, answer=20.0, longest_answer=30)
SPEED = Speed(training=1e6, decoding=5e5, memory=1e9)
BY_TURNS = Processes(learners=2, samplers=0, threads=1, cores=2)
APART = Processes(learners=2, samplers=2, threads=1, cores=2)


def a_config(problems: int = 4, samples: int = 4, **rollout: Any) -> Config:
    """Four groups of four, all with a gradient: two optimizer steps, two scoring passes."""
    tree = {
        "engine": "cluster",
        "model": {"name": "tiny"},
        "data": {"train": [{"source": "arithmetic", "count": 4}]},
        "rollout": {
            "problems": problems,
            "samples": samples,
            "max_tokens": 30,
            "filter": "keep",
            **rollout,
        },
        "kl": {"knowledge": 0.1, "reasoning": 0.1},
        "update": {"minibatch": 2, "learning_rate": 1e-6, "microbatch_tokens": 100},
        "mismatch": {"kind": "tis"},
        "train": {"steps": 3},
    }
    return config_from(tree, where="test")


def a_job(config: Config | None = None) -> Job:
    return Job(config=config or a_config(), shape=TOY, lengths=LENGTHS, device="cpu", itemsize=4)


# ------------------------------------------------------------------ memory


def test_a_learners_memory_by_hand() -> None:
    """TOY has 2,850 parameters: 1,000 in the root and 925 in each of two layers."""
    load = process_loads(a_job(), BY_TURNS)["learner"]
    assert load.parts["libraries"] == LIBRARY_BYTES["learner"]
    assert load.parts["weights"] == load.parts["reference"] == 4 * 2850 / 2
    assert load.parts["Adam"] == 8 * 2850 / 2
    assert load.parts["sampler"] == 4 * 2850
    # A mini-batch is two groups, a rank's half of it one. The root's weights, gradient and copy;
    # both layers' weights and gradients, for they are small.
    one = estimate_memory(a_job(a_config(problems=1)))
    gathered = 12 * 1000 + 2 * 8 * 925
    update = 4 * 2850 / 2 + gathered + one.activations + one.head
    assert load.parts["update"] == pytest.approx(update)
    assert load.peak == pytest.approx(sum(load.parts.values()))


def test_large_layers_are_given_back_and_small_ones_are_not() -> None:
    """Beyond 32 MB a layer: two of them are held, however many there are."""
    wide = replace(TOY, layers=10, hidden=1000, intermediate=4000)
    deep = replace(wide, layers=20)

    def update(shape: Any) -> float:
        job = replace(a_job(), shape=shape)
        parts = process_loads(job, BY_TURNS)["learner"].parts
        one = estimate_memory(replace(a_job(a_config(problems=1)), shape=shape))
        return parts["update"] - one.gradients / 2 - one.activations - one.head

    assert update(deep) == pytest.approx(update(wide), rel=1e-4)  # the last norm is shared out
    assert update(replace(TOY, layers=20)) > update(replace(TOY, layers=10))


def test_reading_the_model_is_the_peak_of_rank_0_alone() -> None:
    """Many learners: the shards are small, and one has read all of it, twice for the reference."""
    many = replace(BY_TURNS, learners=1000, samplers=1)
    shape = replace(TOY, layers=100, hidden=1000, intermediate=4000)
    loads = process_loads(replace(a_job(), shape=shape), many)
    first = loads["learner 0"]
    read = first.peak - LIBRARY_BYTES["learner"] - first.parts["new weights"]
    assert read == pytest.approx(8 * parameter_count(shape))
    assert loads["learner"].peak - LIBRARY_BYTES["learner"] < read / 4


def test_weights_on_their_way_are_shared_memory_of_rank_0_and_of_samplers() -> None:
    """The version that is served and the one that comes; one more for each step ahead."""
    for ahead, versions in ((0, 2), (1, 3)):
        loads = process_loads(a_job(a_config(ahead=ahead)), APART)
        new = versions * 4 * 2850
        assert loads["learner 0"].peak - loads["learner"].peak == new
        # 16 completions on two: 8 rows of 42 tokens with 20 numbers, and four rows of 100 logits.
        cache = 8 * 42 * 20 * 4 + 4 * 4 * 8 * 100
        expected = LIBRARY_BYTES["sampler"] + 4 * 2850 + cache + new
        assert loads["sampler"].peak == pytest.approx(expected)


def test_together_counts_every_process() -> None:
    loads = process_loads(a_job(), APART)
    peaks = [loads[who].peak for who in ("loop", "learner 0", "learner", "sampler", "sampler")]
    assert together(loads, APART) == pytest.approx(sum(peaks))
    loads = process_loads(a_job(), BY_TURNS)
    peaks = [loads[who].peak for who in ("loop", "learner 0", "learner")]
    assert together(loads, BY_TURNS) == pytest.approx(sum(peaks))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_tensors_are_those_of_the_model(kind: Any, tied: bool) -> None:
    model = tiny_model(kind, tied=tied, layers=3)
    assert tensor_count(shape_of(model.config)) == len(list(model.parameters()))


# ------------------------------------------------------------------ time


def dealt(sequences: int) -> float:
    """Of two ranks."""
    return DEALING_SECONDS * sequences * 2 + CALL_SECONDS * 2


def test_update_time_by_hand() -> None:
    """Two steps of two groups, a group and 90 tokens for each rank: one micro-batch."""
    job = a_job()
    computing = update_flops(job, 4) / 2 / (EFFICIENCY["update"] * 1e6) + 3 * pass_seconds(job, 2)
    layers = 3 * LAYER_SECONDS["update"]
    moving = 3 * 4 * 2850 / GATHER_RATE
    stepping = 40 * 2850 / 2 / 0.5e9  # two ranks share one memory
    beside = UPDATE_SECONDS + 2 * TELL_SECONDS + dealt(8)
    found = process_times(job, SPEED, BY_TURNS).update
    assert found == pytest.approx(computing + 2 * (beside + layers + moving + stepping))


def test_score_time_by_hand() -> None:
    """Two passes over four groups, 180 tokens for each rank: two micro-batches."""
    job = a_job()
    once = 4 * sum(group_flops(job)) / 2 / (EFFICIENCY["score"] * 1e6) + pass_seconds(job, 2)
    once += 2 * (3 * LAYER_SECONDS["score"] + 4 * 2850 / GATHER_RATE)
    once += SCORE_SECONDS + TELL_SECONDS + dealt(16)
    assert process_times(job, SPEED, BY_TURNS).score == pytest.approx(2 * once)


def test_sampling_time_is_a_share_and_all_answers_for_the_loop() -> None:
    share = sampling_seconds(a_job(a_config(problems=2)), replace(SPEED, memory=0.5e9))
    expected = share + GENERATE_SECONDS + 16 * (MESSAGE_SECONDS + ANSWER_SECONDS)
    assert process_times(a_job(), SPEED, BY_TURNS).sampling == pytest.approx(expected)
    assert process_times(a_job(), SPEED, APART).sampling == pytest.approx(expected)


def test_weights_time_by_hand() -> None:
    """Twenty tensors, gathered in float32; apart, through the object store and two checksums."""
    made_whole = PUBLISH_SECONDS + 20 * TENSOR_SECONDS + 4 * 2850 / GATHER_RATE
    taken = 2 * 4 * 2850 / 0.5e9
    times = process_times(a_job(), SPEED, BY_TURNS)
    assert times.weights == pytest.approx(made_whole + taken)
    stored = 2 * 4 * 2850 / CHECKSUM_RATE + 4 * 2850 / PUT_RATE
    times = process_times(a_job(), SPEED, APART)
    assert times.weights == pytest.approx(made_whole + stored + taken)


def test_a_rank_alone_gathers_nothing() -> None:
    alone = process_times(a_job(), SPEED, replace(BY_TURNS, learners=1)).weights
    assert alone == pytest.approx(PUBLISH_SECONDS + 20 * TENSOR_SECONDS + 2 * 4 * 2850 / 1e9)


@pytest.mark.parametrize("processes", [BY_TURNS, APART])
def test_where_small_calls_take_longer_so_do_messages(processes: Processes) -> None:
    nothing_else = Speed(training=1e30, decoding=1e30, memory=1e30)
    messages = process_times(a_job(), nothing_else, processes)
    once = process_times(a_job(), SPEED, processes)
    thrice = process_times(a_job(), replace(SPEED, pace=3.0), processes)
    for part in ("sampling", "score", "update", "weights"):
        more = getattr(thrice, part) - getattr(once, part)
        assert more == pytest.approx(2 * getattr(messages, part))


def test_more_processes_than_cores_slow_each_other() -> None:
    """Two with two threads each on two cores take turns: each has the memory for itself then."""
    found = process_times(a_job(), SPEED, replace(APART, threads=2))
    expected = process_times(a_job(), replace(SPEED, memory=2e9), APART)
    for part in ("sampling", "score", "update", "weights"):
        assert getattr(found, part) == pytest.approx(2 * getattr(expected, part))


def test_steps_ahead_are_sampled_beside_learning_and_share_the_cores() -> None:
    """Four processes work on two cores, so each takes twice as long, and the longer side counts."""
    in_turn = process_times(a_job(), SPEED, APART)
    assert not in_turn.overlap
    times = process_times(a_job(a_config(ahead=1)), SPEED, APART)
    assert times.overlap
    assert times.update == pytest.approx(2 * in_turn.update)
    assert times.sampling == pytest.approx(2 * in_turn.sampling)
    assert times.step == max(times.sampling, times.score + times.update + times.weights)


@pytest.mark.parametrize(
    ("learners", "samplers", "cores", "threads"), [(2, 0, 8, 4), (2, 2, 8, 2), (3, 0, 2, 1)]
)
def test_cores_are_shared_as_the_run_shares_them(
    learners: int, samplers: int, cores: int, threads: int
) -> None:
    tree = a_config().model_dump()
    tree["cluster"] |= {"learners": learners, "samplers": samplers}
    assert processes_of(Config.model_validate(tree), cores).threads == threads


# ------------------------------------------------------------------ what is said


@pytest.mark.parametrize("samplers", [0, 2])
def test_the_plan_of_a_cluster_names_who_is_where(
    samplers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ['engine="cluster"', "cluster.learners=2", f"cluster.samplers={samplers}"]
    assert main(["plan", str(ROOT / "recipes/tiny.toml"), *overrides]) == 0
    said = capsys.readouterr().out
    flat = " ".join(said.split())
    who = "2 learners, 2 samplers apart" if samplers else "2 learners that sample too, by turns"
    assert f"places {who}, with 1 thread each, and the loop" in flat
    assert ("a sampler" in flat) == bool(samplers)
    assert "to hand them to those who sample" in flat
    assert max(map(len, said.splitlines())) <= 80


def test_a_machine_with_gpus_is_planned_with_one_for_each_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    overrides = ['engine="cluster"', "cluster.learners=2", "cluster.samplers=1"]
    assert main(["plan", str(ROOT / "recipes/tiny.toml"), *overrides]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "On 3 GPUs places 2 learners, 1 sampler apart, on 1 machine (h100" in said


def test_too_little_memory_for_all_processes_is_said_with_its_cure() -> None:
    from archer.plan.missing import missing_room_for_processes

    job = a_job()
    assert missing_room_for_processes(job, 2e9, free=3e9, disk=1e12) == []
    (missing,) = missing_room_for_processes(job, 4e9, free=3e9, disk=1e12)
    assert missing.fact == "4.0 GB of memory are needed, 3.0 GB are free"
    assert "cluster.learners" in missing.cure
    (missing,) = missing_room_for_processes(job, 2e9, free=3e9, disk=1e3)
    assert "checkpoints" in missing.fact


@pytest.mark.full
def test_a_run_takes_the_memory_that_was_planned() -> None:
    """On the tiny recipe with two ranks, within 20 %; time is the benchmark's alone."""
    command = [sys.executable, "benchmarks/planned.py", "--rounds", "1", "--steps", "20"]
    environment = child_environment()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    ratios = [float(found) for found in re.findall(r"process.* ratio (\d+\.\d+)", done.stdout)]
    assert len(ratios) == 4, done.stdout + done.stderr
    assert all(0.8 <= ratio <= 1.2 for ratio in ratios), done.stdout


def test_a_recipe_for_one_process_is_planned_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    assert load_config(ROOT / "recipes/tiny.toml").engine == "local"
    assert main(["plan", str(ROOT / "recipes/tiny.toml")]) == 0
    assert "Who is where" not in capsys.readouterr().out
