"""The plan for GPUs that are not here: its arithmetic by hand, and what it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from archer.cli import main
from archer.config import Config, EvalConfig, config_from
from archer.engine.vllm import SPARE_TOKENS, cached_tokens, longest_row
from archer.plan.cluster import (
    DECODING,
    GPUS,
    HOST_REACHED,
    REACHED,
    UTILISATION,
    Placement,
    busiest,
    gathered_seconds,
    gpu_job,
    handing_seconds,
    learner_load,
    offloaded_bytes,
    reading_bytes,
    ring_seconds,
    sampler_load,
    sampling_seconds,
    step_times,
    too_large,
)
from archer.plan.costs import (
    ANSWER_SECONDS,
    CALL_SECONDS,
    CHECKSUM_RATE,
    DEALING_SECONDS,
    FETCH_RATE,
    GENERATE_SECONDS,
    MESSAGE_SECONDS,
    PUT_RATE,
    SCORE_SECONDS,
    TELL_SECONDS,
    UPDATE_SECONDS,
)
from archer.plan.estimate import FRAMEWORK_BYTES, LAYER_SECONDS, Job, Lengths
from tests.children import child_environment
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


def a_job(*, offload: bool = False, **rollout: Any) -> Job:
    config = a_config(**rollout)
    cluster = config.cluster.model_copy(update={"offload": offload})
    return gpu_job(config.model_copy(update={"cluster": cluster}), TOY, LENGTHS)


def test_a_learners_memory_by_hand() -> None:
    """TOY has 2,850 parameters, 1,000 in the root, 925 a layer with its share of the last norm."""
    place = Placement(gpu="h100", learners=2, samplers=2)
    parts = learner_load(a_job(), place).parts
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
    parts = sampler_load(a_job(), place).parts
    assert parts["whole model"] == 2 * 2850
    assert parts["cache"] == 8 * 42 * 40 + 16 * 8 * 100


def test_by_turns_the_cache_takes_the_place_of_what_learning_holds() -> None:
    place = Placement(gpu="h100", learners=4, samplers=0)
    parts = learner_load(a_job(), place).parts
    assert parts["sampler"] == 2 * 2850
    cache = 4 * 42 * 40 + 16 * 4 * 100
    learning = parts["gradients"] + parts["activations"] + parts["head"]
    assert parts["cache"] == max(0.0, cache - learning)


def test_a_part_of_a_model_by_hand() -> None:
    """TOY over its two heads' two GPUs: of 2,850 parameters, 50 in norms are held by both.

    A layer's other 900 are 200 of queries and output, 100 of a key and a value head that both hold,
    and 600 of the MLP; the root's 100 words are filled up to 128.
    """
    place = Placement(gpu="h100", learners=2, samplers=2, parts=2)
    parts = sampler_load(a_job(), place).parts
    assert parts["libraries"] == 1.6e9
    assert parts["part of a model"] == 2 * (640 + 2 * (100 + 100 + 300) + 50)
    assert parts["cache"] == 8 * 42 * 40 + 16 * 8 * 100  # its key and value head in both
    assert (place.gpus, place.sampling) == (6, 2)
    assert Placement(gpu="h100", learners=4, samplers=0, parts=2).sampling == 2


def test_vllm_takes_all_of_its_cache_at_once_and_sleeps_while_others_learn() -> None:
    job = a_job(sampler="vllm", cache_tokens=1000)
    apart = Placement(gpu="h100", learners=2, samplers=2)
    cache = (1000 + SPARE_TOKENS) * 40 + 16 * 8 * 100
    assert sampler_load(job, apart).parts["cache"] == cache
    parts = learner_load(job, Placement(gpu="h100", learners=2, samplers=0)).parts
    assert parts["sampler"] == FRAMEWORK_BYTES["cuda"]  # a process beside the learner
    learning = parts["gradients"] + parts["activations"] + parts["head"]
    assert parts["cache"] == max(0.0, cache + 2 * 2850 - learning)


def test_vllms_cache_has_room_for_the_longest_answer_of_training_or_evaluation() -> None:
    """Prompts of 1,024 tokens at most by default; TOY has positions for 2,048."""
    shape = replace(TOY, max_positions=2048)
    config = a_config(sampler="vllm", cache_tokens=100)
    assert longest_row(config, shape) == 1024 + 30
    assert cached_tokens(config, shape) == 1024 + 30 + SPARE_TOKENS
    longer = config.model_copy(update={"eval": EvalConfig(max_tokens=500)})
    assert longest_row(longer, shape) == 1024 + 500
    assert longest_row(longer, replace(TOY, max_positions=1200)) == 1200
    roomy = a_config(sampler="vllm", cache_tokens=9000)
    assert cached_tokens(roomy, shape) == 9000 + SPARE_TOKENS


def test_what_is_offloaded_leaves_the_gpu_for_the_machines_memory_by_hand() -> None:
    """Of 20 bytes a parameter those on their way stay, 4 of the root and of a layer."""
    place = Placement(gpu="h100", learners=2, samplers=2)
    parts = learner_load(a_job(), place).parts
    kept = learner_load(a_job(offload=True), place).parts
    assert parts.keys() - kept.keys() == {"weights", "moments", "gradients", "reference"}
    assert kept.pop("passing") == 4 * (1000 + 925) / 2
    assert kept == {name: parts[name] for name in kept}
    # Of 12 of them, weights, gradients and reference, twice as much may be taken: it is pinned.
    assert offloaded_bytes(a_job(offload=True), place) == (20 * 2850, 32 * 2850)
    # Eight learners on each of two machines have half of it in each.
    many = Placement(gpu="h100", learners=16, samplers=0)
    assert offloaded_bytes(a_job(offload=True), many) == (20 * 2850 / 2, 32 * 2850 / 2)
    assert offloaded_bytes(a_job(), place) == (0, 0)


def test_what_reading_the_model_takes_by_hand() -> None:
    """Twice in float32: the model, and a copy of it as the reference."""
    assert reading_bytes(a_job()) == 2 * 4 * 2850


# ------------------------------------------------------------------ messages


def test_a_ring_by_hand() -> None:
    """8 GPUs: 7/8 of the bytes pass a link, 7 hops. 16 on two machines: half of the bytes pass the
    network of a machine, 8 times a GPU's, which is slower than the links; 14 hops and a far one."""
    eight = 7 / 8 * 1e9 / (450e9 * REACHED) + 8.4e-6 + 7 * 3.4e-6
    assert ring_seconds(1e9, 8, "h100") == pytest.approx(eight)
    sixteen = max(15 / 16 / 450e9, 1 / 2 / 400e9) * 1e9 / REACHED
    assert ring_seconds(1e9, 16, "h100") == pytest.approx(sixteen + 8.4e-6 + 14 * 3.4e-6 + 14e-6)
    far = 127 / 128 / 400e9 * 1e9 / REACHED + 8.4e-6 + 896 * 3.4e-6 + 127 * 14e-6
    assert ring_seconds(1e9, 1024, "h100") == pytest.approx(far)
    assert ring_seconds(1e9, 1, "h100") == 0.0


def test_a_pass_gathers_layers_and_root_by_hand() -> None:
    forward, backward = gathered_seconds(TOY, 8, "h100")
    layer, root = (ring_seconds(2 * n, 8, "h100") for n in (925, 1000))
    gradients = 2 * ring_seconds(4 * 925, 8, "h100") + ring_seconds(4 * 1000, 8, "h100")
    assert forward == pytest.approx(2 * layer + root)
    assert backward == pytest.approx(2 * layer + gradients)


def test_handing_over_weights_by_hand() -> None:
    """TOY has 20 tensors, in float32 on the ring; apart, 5,700 bytes through the object store."""
    by_turns = Placement(gpu="h100", learners=8, samplers=0)
    ring = 20 * ring_seconds(4 * 2850 / 20, 8, "h100")
    assert handing_seconds(a_job(), by_turns) == pytest.approx(ring)
    apart = Placement(gpu="h100", learners=8, samplers=16)
    stored = 5700 / CHECKSUM_RATE + 5700 / PUT_RATE
    fetched = 2 * 5700 / FETCH_RATE + 5700 / CHECKSUM_RATE  # two machines, one after the other
    assert handing_seconds(a_job(), apart) == pytest.approx(ring + stored + fetched)
    beside = Placement(gpu="h100", learners=4, samplers=4)
    ring = 20 * ring_seconds(4 * 2850 / 20, 4, "h100")
    here = ring + stored + 5700 / CHECKSUM_RATE  # on the machine that they are put on
    assert handing_seconds(a_job(), beside) == pytest.approx(here)
    vllm = Placement(gpu="h100", learners=4, samplers=0)
    assert handing_seconds(a_job(sampler="vllm"), vllm) == pytest.approx(here)


# ------------------------------------------------------------------ time

PER_TOKEN = 3600 + 80 * 20 + 2000
"""A token costs 3,600 operations, 80 for each of 20 it attends to, and 2,000 in the head."""


def test_the_busiest_rank_has_its_share_or_the_longest_answer() -> None:
    """4 groups of 90 tokens; the longest answer has 30, and attends to 25 in the middle."""
    groups = 4 * (90 * (3600 + 80 * 20) + 80 * 2000)
    assert busiest(a_job(), 4, 1) == (360, groups)
    assert busiest(a_job(), 4, 2) == (180, groups / 2)
    assert busiest(a_job(), 4, 64) == (40, 40 * (3600 + 80 * 25 + 2000))


def test_seconds_by_hand() -> None:
    place = Placement(gpu="h100", learners=1, samplers=1)
    job = a_job(ahead=1)
    times = step_times(job, place)
    gpu = GPUS["h100"]
    # Two optimizer steps on two groups; four passes through the layers, for they are recomputed.
    flops = 2 * (90 * (3600 + 80 * 20) + 80 * 2000)
    beside = UPDATE_SECONDS + DEALING_SECONDS * 8 + CALL_SECONDS + 40 * 2850 / gpu.bandwidth
    update = 2 * (4 * flops / (gpu.flops * UTILISATION) + beside)
    assert times.update == pytest.approx(update)
    # Old and reference log-probs: a forward pass each.
    beside = SCORE_SECONDS + DEALING_SECONDS * 16 + CALL_SECONDS
    assert times.score == pytest.approx(2 * (2 * flops / (gpu.flops * UTILISATION) + beside))
    # 360 tokens in 16 rows are 22.5 steps; the longest answer takes 30.
    cache = 16 * 20 * 40
    reading = 30 * (2 * 2850 + cache) / (gpu.bandwidth * DECODING)
    decoding = reading + 30 * 2 * LAYER_SECONDS["cuda"]
    collecting = GENERATE_SECONDS + 16 * (MESSAGE_SECONDS + ANSWER_SECONDS)
    assert times.sampling == pytest.approx(max(decoding, collecting))
    assert times.overlap
    assert times.step == pytest.approx(max(times.sampling, times.score + update + times.weights))


def test_a_model_that_is_cut_samples_in_its_parts_time_by_hand() -> None:
    """16 rows on one model: half of the weights, all of the one key and value head, and two sums of
    16 x 10 numbers in each of two layers, and 16 x 100 logits, in each of 30 steps."""
    place = Placement(gpu="h100", learners=1, samplers=1, parts=2)
    gpu = GPUS["h100"]
    weights, cache = 2 * (640 + 2 * (100 + 100 + 300) + 50), 16 * 20 * 40
    reading = 30 * (weights + cache) / (gpu.bandwidth * DECODING)
    adding = 30 * 2 * 2 * 2 * ring_seconds(2 * 16 * 10, 2, "h100")
    logits = 30 * ring_seconds(2 * 16 * 100, 2, "h100")
    expected = reading + 30 * 2 * LAYER_SECONDS["cuda"] + adding + logits
    assert sampling_seconds(a_job(ahead=1), place) == pytest.approx(expected)


def test_seconds_of_what_is_offloaded_by_hand() -> None:
    """A shard of 2,850 / 2 numbers in float32 goes to the GPU twice a pass, its gradient back."""
    place = Placement(gpu="h100", learners=2, samplers=2)
    copy = 4 * 2850 / 2 / (64e9 * REACHED)
    forward, backward = gathered_seconds(TOY, 2, "h100")
    # Two optimizer steps on two groups, 90 tokens a rank; a micro-batch has 100, so one pass each.
    # Clipping and AdamW move 40 bytes a parameter, all of them on one machine, 614 GB/s shared.
    stepping = 40 * 2850 / (614e9 * HOST_REACHED)
    beside = UPDATE_SECONDS + 2 * TELL_SECONDS + DEALING_SECONDS * 8 * 2 + CALL_SECONDS * 2
    times = step_times(a_job(offload=True), place)
    assert times.update == pytest.approx(2 * (forward + backward + 3 * copy + stepping + beside))
    # Old and reference log-probs: two passes each, for which a shard is copied once.
    beside = SCORE_SECONDS + TELL_SECONDS + DEALING_SECONDS * 16 * 2 + CALL_SECONDS * 2
    assert times.score == pytest.approx(2 * (2 * (forward + copy) + beside))
    here = handing_seconds(a_job(), place)
    assert handing_seconds(a_job(offload=True), place) == pytest.approx(here + copy)
    # Alone, a rank has 180 tokens: the second pass adds its gradients, 12 bytes a parameter.
    alone = Placement(gpu="h100", learners=1, samplers=1)
    flops = 2 * (90 * (3600 + 80 * 20) + 80 * 2000)
    computing, copying = 4 * flops / (989e12 * UTILISATION), 2 * 3 * 2 * copy
    assert copying > computing
    stepping = (40 + 12) * 2850 / (614e9 * HOST_REACHED)
    beside = UPDATE_SECONDS + DEALING_SECONDS * 8 + CALL_SECONDS
    update = 2 * (copying + stepping + beside)
    assert step_times(a_job(offload=True), alone).update == pytest.approx(update)


def test_gathering_counts_where_it_takes_longer_than_computing() -> None:
    """On 16 ranks a step of 8 answers is a pass each, whose messages outlast its operations."""
    place = Placement(gpu="h100", learners=16, samplers=0)
    moving = sum(gathered_seconds(TOY, 16, "h100"))
    beside = UPDATE_SECONDS + 2 * 15 * TELL_SECONDS + DEALING_SECONDS * 8 * 16 + CALL_SECONDS * 16
    beside += 40 * 2850 / 16 / GPUS["h100"].bandwidth
    assert step_times(a_job(), place).update == pytest.approx(2 * (moving + beside))


def test_sampling_waits_for_the_loop_where_answers_come_faster_than_it_takes_them() -> None:
    place = Placement(gpu="h100", learners=8, samplers=1000)
    many = gpu_job(a_config(problems=40_000), TOY, LENGTHS)
    # A thousand samplers send a message for each of their 30 steps.
    expected = GENERATE_SECONDS + 30_000 * MESSAGE_SECONDS + 160_000 * ANSWER_SECONDS
    assert sampling_seconds(many, place) == pytest.approx(expected)


# ------------------------------------------------------------------ what is said


@pytest.mark.parametrize("gpus", [8, 16])
@pytest.mark.parametrize(
    "recipe", sorted((ROOT / "recipes").glob("*1.5b*.toml")), ids=lambda p: p.stem
)
def test_the_published_recipes_fit_one_and_two_machines(
    recipe: Path, gpus: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(recipe), "--gpus", str(gpus)]) == 0
    said = capsys.readouterr().out
    flat = " ".join(said.split())
    assert f"{gpus} learners that sample too, by turns, on {gpus // 8} machine" in flat
    assert "(h100, 80.0 GB each)" in flat
    assert f"archer train RECIPE engine=cluster cluster.learners={gpus} " in flat
    assert max(map(len, said.splitlines())) <= 80


def test_a_model_too_large_to_be_sampled_is_refused_with_the_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """32.8 billion parameters in bfloat16 on each GPU, however many share the learner."""
    recipe, model = str(ROOT / "recipes/archer2_math_1.5b.toml"), "DeepSeek-R1-Distill-Qwen-32B"
    assert main(["plan", recipe, "--gpus", "1024", f'model.name="deepseek-ai/{model}"']) == 2
    said = capsys.readouterr().err
    assert "the most, 65.5 GB, is for sampler: give the samplers GPUs of their own" in said
    assert len(said.splitlines()) == 1


def test_learners_that_have_nothing_to_do_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(ROOT / "recipes/archer2_math_1.5b.toml"), "--gpus", "512"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "an optimizer step has 256 answers, so other learners idle" in said


def test_what_does_not_fit_is_refused_with_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(ROOT / "recipes/archer2_math_1.5b.toml")
    assert main(["plan", recipe, "--gpus", "8", "update.microbatch_tokens=400000"]) == 2
    said = capsys.readouterr().err
    assert "GB are needed on one GPU and 73.6 of 80 GB can be used" in said
    assert "lower update.microbatch_tokens" in said
    assert len(said.splitlines()) == 1


def test_what_no_longer_fits_one_gpu_does_when_it_is_offloaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """7.6 billion parameters: 8 bytes each for moments, and 20 in the memory of the machine."""
    recipe = str(ROOT / "recipes/archer2_math_1.5b.toml")
    model = "model.name=deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
    plan = ["plan", recipe, "--gpus", "1", model, "rollout.cache_tokens=262144"]
    assert main(plan) == 2
    refused = capsys.readouterr().err
    assert "60.9 GB, is for moments: more learners, or set cluster.offload = true" in refused
    assert main([*plan, "cluster.offload=true"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "152 GB of the memory of the machine: masters, moments, gradients and reference of 1 "
        "learner; 244 GB at most" in said
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpus", "8", "--gpu", "tpu"], "--gpu tpu is not known; known are a100, h100, h200"),
        (["--gpu", "tpu"], "--gpu tpu is not known; known are a100, h100, h200"),
        (["--gpus", "-1"], "--gpus -1 is no number of GPUs"),
        (["--gpus", "4", "cluster.samplers=4"], "leaves none to learn"),
    ],
)
def test_mistakes(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(ROOT / "recipes/archer_math_1.5b.toml"), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_the_projection_in_the_documentation_is_what_its_command_prints() -> None:
    command = [sys.executable, "benchmarks/projection.py"]
    done = subprocess.run(
        command, cwd=ROOT, env=child_environment(), capture_output=True, text=True, check=True
    )
    _, _, section = (ROOT / "docs/scale.md").read_text().partition("## From 8 to 1,024 GPUs")
    rows = [line for line in section.splitlines() if re.match(r"\| [0-9]", line)]
    assert len(rows) == 3 * (8 + 4)
    assert set(rows) <= set(done.stdout.splitlines())


def test_the_largest_part_names_its_cure() -> None:
    place = Placement(gpu="a100", learners=1, samplers=1)
    load = sampler_load(a_job(), place)
    assert too_large(load, "a100") == ""
    load.parts["cache"] = 90e9
    assert too_large(load, "a100").endswith("is for cache: lower rollout.cache_tokens")
