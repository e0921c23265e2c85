"""The plan for GPUs that are not here: its arithmetic by hand, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from archer.cli import main
from archer.config import Config, config_from
from archer.plan.cluster import (
    DECODING,
    GPUS,
    UTILISATION,
    Placement,
    learner_load,
    sampler_load,
    step_times,
    too_large,
)
from archer.plan.estimate import LAYER_SECONDS, Lengths
from tests.test_plan import TOY

ROOT = Path(__file__).parents[1]

LENGTHS = Lengths(prompt=10.0, longest_prompt=12, answer=20.0, longest_answer=30)


def a_config(**rollout: Any) -> Config:
    tree = {
        "model": {"name": "tiny", "checkpoint_activations": True},
        "data": {"train": [{"source": "arithmetic", "count": 4}]},
        "rollout": {"problems": 4, "samples": 4, "max_tokens": 30, "filter": "keep", **rollout},
        "kl": {"knowledge": 0.1, "reasoning": 0.1},
        "update": {"minibatch": 2, "learning_rate": 1e-6, "microbatch_tokens": 100},
        "mismatch": {"kind": "tis"},
        "train": {"steps": 3},
    }
    return config_from(tree, where="test")


def test_a_learners_memory_by_hand() -> None:
    """TOY has 2,850 parameters, 1,000 in the root, 925 a layer with its share of the last norm."""
    place = Placement(gpu="h100", learners=2, samplers=2)
    parts = learner_load(a_config(), TOY, LENGTHS, place).parts
    assert parts["libraries"] == 1.6e9
    assert parts["weights"] == parts["gradients"] == parts["reference"] == 4 * 2850 / 2
    assert parts["moments"] == 8 * 2850 / 2
    # Root: 2 + 4 bytes of 1,000 numbers; two layers of 2 bytes and a gradient of 4, 925 numbers.
    assert parts["gathered"] == 6 * 1000 + 8 * 925
    # Two answers of 30 to a prompt of 12 fit 100 tokens; three take 102. So 60 scored rows, whose
    # 60 * 100 logits are kept, and two blocks of 60 x 100.
    assert parts["head"] == 4 * 60 * 100 + 8 * 60 * 100
    assert "sampler" not in parts
    assert "cache" not in parts


def test_a_samplers_memory_by_hand() -> None:
    """16 completions on two: 8 rows of 42 tokens, each 2 * 2 * 1 * 5 numbers of 2 bytes."""
    place = Placement(gpu="h100", learners=2, samplers=2)
    parts = sampler_load(a_config(), TOY, LENGTHS, place).parts
    assert parts["weights"] == 2 * 2850
    assert parts["cache"] == 8 * 42 * 40 + 16 * 8 * 100


def test_by_turns_the_cache_takes_the_place_of_what_learning_holds() -> None:
    place = Placement(gpu="h100", learners=4, samplers=0)
    parts = learner_load(a_config(), TOY, LENGTHS, place).parts
    assert parts["sampler"] == 2 * 2850
    cache = 4 * 42 * 40 + 16 * 4 * 100
    learning = parts["gradients"] + parts["activations"] + parts["head"]
    assert parts["cache"] == max(0.0, cache - learning)


def test_seconds_by_hand() -> None:
    """A token costs 3,600 operations, 80 for each of 20 it attends to, and 2,000 in the head."""
    place = Placement(gpu="h100", learners=1, samplers=1)
    times = step_times(a_config(ahead=1), TOY, LENGTHS, place)
    gpu, tokens, per_token = GPUS["h100"], 4 * (10 + 4 * 20), 3600 + 80 * 20 + 2000
    update = 4 * tokens * per_token / (gpu.flops * UTILISATION)
    assert times.update == pytest.approx(update)
    # Old and reference log-probs: a forward pass each.
    assert times.score == pytest.approx(2 * update / 4)
    # 360 tokens in 16 rows are 22.5 steps; the longest answer takes 30.
    cache = 16 * 20 * 40
    reading = 30 * (2 * 2850 + cache) / (gpu.bandwidth * DECODING)
    assert times.sampling == pytest.approx(reading + 30 * 2 * LAYER_SECONDS["cuda"])
    assert times.overlap
    assert times.step == pytest.approx(max(times.sampling, times.score + update + times.weights))


@pytest.mark.parametrize("gpus", [8, 16])
@pytest.mark.parametrize(
    "recipe", sorted((ROOT / "recipes").glob("*1.5b*.toml")), ids=lambda p: p.stem
)
def test_the_published_recipes_fit_one_and_two_machines(
    recipe: Path, gpus: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(recipe), "--gpus", str(gpus)]) == 0
    said = capsys.readouterr().out
    assert f"{gpus} learners, which sample by turns, on {gpus // 8} machine" in said
    assert "of 80.0 GB" in " ".join(said.split())
    assert max(map(len, said.splitlines())) <= 80


def test_what_does_not_fit_is_refused_with_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(ROOT / "recipes/archer2_math_1.5b.toml")
    assert main(["plan", recipe, "--gpus", "8", "update.microbatch_tokens=400000"]) == 2
    said = capsys.readouterr().err
    assert "GB are needed on one GPU and 73.6 of 80 GB can be used" in said
    assert "lower update.microbatch_tokens" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpus", "8", "--gpu", "tpu"], "--gpu tpu is not known; known are a100, h100, h200"),
        (["--gpus", "-1"], "--gpus -1 is no number of GPUs"),
        (["--gpus", "4", "cluster.samplers=4"], "leaves none to learn"),
    ],
)
def test_mistakes(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(ROOT / "recipes/archer_math_1.5b.toml"), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_the_largest_part_names_its_cure() -> None:
    place = Placement(gpu="a100", learners=1, samplers=1)
    load = sampler_load(a_config(), TOY, LENGTHS, place)
    assert too_large(load, "a100") == ""
    load.parts["cache"] = 90e9
    assert too_large(load, "a100").endswith("is for cache: lower rollout.cache_tokens")
