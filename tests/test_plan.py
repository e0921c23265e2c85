"""The plan: its arithmetic by hand and beside the real thing, and what it says is missing."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import MistralConfig

from archer.algo.batch import TokenBatch, microbatches
from archer.cli import main
from archer.config import Config, config_from
from archer.engine.vllm import SPARE_TOKENS
from archer.model.adapt import adapt
from archer.model.packing import pack
from archer.model.shapes import (
    SHAPES,
    ModelShape,
    cache_bytes_per_token,
    parameter_count,
    shape_of,
)
from archer.model.tiny import KINDS, tiny_model, tiny_tokenizer
from archer.plan import expected_lengths, plan
from archer.plan.estimate import (
    ANSWER_SECONDS,
    EFFICIENCY,
    FRAMEWORK_BYTES,
    LAYER_SECONDS,
    Job,
    Lengths,
    Memory,
    Micro,
    Speed,
    activation_bytes,
    answers_in_flight,
    checkpoint_bytes,
    estimate_memory,
    estimate_seconds,
    largest_microbatch,
    measure_speed,
    score_passes,
    updates_per_step,
)
from archer.plan.missing import find_shape, missing_model, missing_room, missing_sources
from archer.setup import load_data

ROOT = Path(__file__).parents[1]

TOY = ModelShape(
    layers=2,
    hidden=10,
    heads=2,
    kv_heads=1,
    head_dim=5,
    intermediate=20,
    vocabulary=100,
    tied=True,
    max_positions=64,
)
"""A layer has 10 * (10 + 10) + 100 + 600 = 900 weights in matrices and 20 in norms, so all have
2 * 920 + 1000 + 10 = 2,850. A token costs 2 * 2 * 900 = 3,600 operations, and 4 * 2 * 10 = 80 for
each token attended to; the head costs 2,000."""

LENGTHS = Lengths(prompt=6.0, longest_prompt=8, answer=4.0, longest_answer=5)


def recipe(**sections: Any) -> Config:
    tree: dict[str, Any] = {
        "model": {"name": "tiny"},
        "data": {"train": [{"source": "arithmetic", "count": 30}]},
        "rollout": {"problems": 4, "samples": 3, "max_tokens": 5},
        "update": {"minibatch": 2, "learning_rate": 0.1},
        "train": {"steps": 10},
    }
    for name, knobs in sections.items():
        tree[name] = {**tree.get(name, {}), **knobs}
    return config_from(tree, where="recipe")


def job(
    config: Config | None = None,
    shape: ModelShape = TOY,
    lengths: Lengths = LENGTHS,
    device: Literal["cpu", "cuda"] = "cpu",
    itemsize: Literal[2, 4] = 4,
    teaching: float = 0.5,
) -> Job:
    return Job(
        config=config or recipe(),
        shape=shape,
        lengths=lengths,
        device=device,
        itemsize=itemsize,
        teaching=teaching,
    )


# ------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
    ("problems", "minibatch", "passes", "updates"),
    [(8, 2, 1, 4), (8, 3, 1, 3), (8, 3, 2, 6), (2, 8, 3, 3)],
)
def test_optimizer_steps_of_a_step_count_the_smaller_last_mini_batch(
    problems: int, minibatch: int, passes: int, updates: int
) -> None:
    config = recipe(
        rollout={"problems": problems}, update={"minibatch": minibatch, "passes": passes}
    )
    assert updates_per_step(config) == updates


@pytest.mark.parametrize(
    ("sections", "passes"),
    [
        ({}, 1),
        ({"kl": {"knowledge": 0.1}}, 2),
        ({"update": {"old_logp": "sampler"}}, 0),
        ({"update": {"old_logp": "sampler"}, "kl": {"reasoning": 0.1}}, 1),
        ({"update": {"minibatch": 4}}, 0),
        ({"update": {"minibatch": 4}, "mismatch": {"kind": "tis"}}, 1),
        ({"update": {"minibatch": 4, "passes": 2}}, 1),
    ],
)
def test_only_passes_that_something_reads_are_planned(
    sections: dict[str, Any], passes: int
) -> None:
    assert score_passes(recipe(**sections)) == passes


def test_answers_in_flight_take_their_full_length_of_the_cache() -> None:
    assert answers_in_flight(recipe(), LENGTHS) == 12  # all of them
    for tokens, rows in ((13, 1), (38, 2), (39, 3), (1, 1)):
        config = recipe(rollout={"cache_tokens": tokens})
        assert answers_in_flight(config, LENGTHS) == rows


def test_the_largest_micro_batch_by_hand() -> None:
    """A prompt of 8 for three answers of 5: 13, 18, 23 tokens; a second prompt: 36, 41, 46."""

    def largest(budget: int) -> Micro:
        return largest_microbatch(recipe(update={"microbatch_tokens": budget}), LENGTHS)

    assert largest(23) == Micro(rows=23 - 3, scored=15, attended=3 * 12)
    assert largest(35) == largest(23)
    assert largest(36) == Micro(rows=36 - 4, scored=20, attended=4 * 12)
    assert largest(1000) == Micro(rows=46 - 6, scored=30, attended=6 * 12)  # a whole mini-batch
    assert largest(5) == Micro(rows=13 - 1, scored=5, attended=12)  # one sequence in any case


@pytest.mark.parametrize("budget", [5, 20, 30, 50, 100])
def test_the_largest_micro_batch_is_the_one_that_the_learner_cuts(budget: int) -> None:
    config = recipe(update={"microbatch_tokens": budget})
    batch = equal_batch(prompts=2, samples=3, prompt=8, answer=5)
    rows = microbatches(batch, max_tokens=budget)[0]
    packed = pack(
        batch.prompt_tokens[: 8 * (1 + int(batch.prompt_index[rows[-1]]))],
        batch.prompt_lengths[: 1 + int(batch.prompt_index[rows[-1]])],
        batch.prompt_index[rows],
        batch.tokens[: 5 * len(rows)],
        batch.lengths[rows],
    )
    assert largest_microbatch(config, LENGTHS) == Micro(
        rows=len(packed.input_ids),
        scored=len(packed.predict),
        attended=sum(bucket.numel() for bucket in packed.buckets),
    )


def equal_batch(*, prompts: int, samples: int, prompt: int, answer: int) -> TokenBatch:
    sequences = prompts * samples
    zeros = torch.zeros(sequences * answer)
    return TokenBatch(
        prompt_tokens=torch.zeros(prompts * prompt, dtype=torch.int64),
        prompt_lengths=torch.full((prompts,), prompt),
        prompt_index=torch.arange(prompts).repeat_interleave(samples),
        tokens=torch.zeros(sequences * answer, dtype=torch.int64),
        lengths=torch.full((sequences,), answer),
        counted=torch.ones(sequences, dtype=torch.bool),
        advantages=zeros,
        weights=zeros,
        sampler_logp=zeros,
        old_logp=zeros,
        old_entropy=zeros,
    )


# ------------------------------------------------------------------ memory


def test_memory_by_hand() -> None:
    memory = estimate_memory(job())
    assert parameter_count(TOY) == 2850
    assert memory.weights == 4 * 2850
    assert memory.masters == 0
    assert memory.moments == 8 * 2850
    assert memory.reference == 0
    assert memory.gradients == 4 * 2850
    # 12 answers of 13 tokens with 2 * 2 layers * 1 head * 5 numbers, and 4 rows of 100 logits.
    assert memory.cache == 12 * 13 * 20 * 4 + 4 * 12 * 100 * 4
    # 40 rows: four numbers a hidden unit, two a unit of the MLP, one a unit of the queries;
    # 72 tokens in attention: queries, keys, values and what comes out.
    layer = 40 * (4 * 10 + 2 * 20 + 10) * 4 + 72 * (10 + 5 + 5 + 10) * 4
    assert memory.activations == 2 * layer
    # 30 tokens' logits, two blocks of them, and both gradients of the shared weights.
    assert memory.head == 30 * 100 * 4 + 2 * 30 * 100 * 4 + 2 * 100 * 10 * 4
    assert memory.held == FRAMEWORK_BYTES["cpu"] + 12 * 2850
    assert memory.peak == memory.held + memory.gradients + memory.activations + memory.head


def test_a_reference_is_held_for_kl_alone() -> None:
    with_kl = estimate_memory(job(recipe(kl={"knowledge": 0.1})))
    assert with_kl.reference == with_kl.weights
    assert with_kl.peak - estimate_memory(job()).peak == with_kl.weights


def test_bfloat16_halves_weights_and_cache_and_adds_masters() -> None:
    whole, half = estimate_memory(job()), estimate_memory(job(itemsize=2, device="cuda"))
    assert half.weights == whole.weights / 2
    assert half.masters == whole.weights
    assert half.moments == whole.moments
    assert half.gradients == whole.gradients * 1.5
    assert half.activations < whole.activations


def test_recomputing_activations_keeps_one_layer_and_the_inputs_of_all() -> None:
    deep = replace(TOY, layers=20)
    kept = estimate_memory(job(shape=deep)).activations
    config = recipe(model={"name": "tiny", "checkpoint_activations": True})
    recomputed = estimate_memory(job(config, shape=deep)).activations
    assert recomputed == 20 * 40 * 10 * 4 + 2 * kept / 20


def test_the_peak_is_that_of_the_hungriest_part() -> None:
    parts = dict.fromkeys((f for f in Memory.__dataclass_fields__), 1.0)
    for name in ("cache", "activations", "saving"):
        assert Memory(**{**parts, name: 10.0}).peak == 5 + 10 + (2 if name == "activations" else 0)


def test_a_checkpoint_holds_weights_and_two_moments_in_float32() -> None:
    assert checkpoint_bytes(TOY) == 12 * 2850


@pytest.mark.parametrize("itemsize", [4, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_what_autograd_keeps(kind: Any, itemsize: Literal[2, 4]) -> None:
    def kept(layers: int) -> tuple[float, float]:
        model = tiny_model(kind, layers=layers, hidden=96, intermediate=160)
        model.to(torch.float32 if itemsize == 4 else torch.bfloat16)
        config = recipe(update={"microbatch_tokens": 10_000})
        lengths = replace(LENGTHS, longest_prompt=20, longest_answer=12)
        planned = job(config, shape_of(model.config), lengths, itemsize=itemsize)
        estimate = activation_bytes(planned, largest_microbatch(config, lengths))
        return saved_bytes(model, equal_batch(prompts=2, samples=3, prompt=20, answer=12)), estimate

    (few, few_planned), (many, many_planned) = kept(1), kept(3)
    assert many_planned - few_planned == pytest.approx(many - few, rel=0.05)


def saved_bytes(model: Any, batch: TokenBatch) -> int:
    """Bytes that the forward pass keeps for the backward pass, weights aside."""
    adapt(model)
    packed = pack(
        batch.prompt_tokens, batch.prompt_lengths, batch.prompt_index, batch.tokens, batch.lengths
    )
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        model.lm_head.scoring(batch.tokens, 1.0),
    ):
        scores = model(
            input_ids=packed.input_ids[None],
            position_ids=packed.position_ids[None],
            context=packed,
            use_cache=False,
            logits_to_keep=packed.predict,
        )
    assert scores.logits.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


# ------------------------------------------------------------------ time

SPEED = Speed(training=1e6, decoding=5e5, memory=1e9)
BODY = 3600 + 80 * 8
"""Operations of a token in the layers, 6 + 4 / 2 tokens attended to."""


def test_update_time_by_hand() -> None:
    """Half of four groups teach: 2 * (6 + 3 * 4) tokens in the layers, 2 * 12 in the head."""
    flops = 3 * (36 * BODY + 24 * 2000)
    overhead = 3 * (2 * LAYER_SECONDS["cpu"] + 6 * ANSWER_SECONDS)  # one mini-batch, two layers
    expected = flops / (EFFICIENCY["update"] * 1e6) + overhead + 40 * 2850 / 1e9
    assert estimate_seconds(job(), SPEED).update == pytest.approx(expected)


def test_sampling_time_by_hand() -> None:
    flops = 48 * (BODY + 2000) + 24 * (3600 + 80 * 3)
    expected = flops / (EFFICIENCY["sampling"] * 5e5)
    expected += 5 * 2 * LAYER_SECONDS["cpu"] + 12 * ANSWER_SECONDS
    assert estimate_seconds(job(), SPEED).sampling == pytest.approx(expected)


def test_sampling_is_bound_by_memory_where_that_is_slower() -> None:
    slow = replace(SPEED, memory=1e3)
    read = 5 * 2850 * 4 + 48 * 8 * 2 * 2 * 5 * 4
    expected = read / 1e3 + 5 * 2 * LAYER_SECONDS["cpu"] + 12 * ANSWER_SECONDS
    assert estimate_seconds(job(), slow).sampling == pytest.approx(expected)


def test_passes_multiply_the_update_and_scoring_passes_the_score() -> None:
    once = estimate_seconds(job(recipe(kl={"knowledge": 0.1})), SPEED)
    config = recipe(kl={"knowledge": 0.1}, update={"passes": 3, "old_logp": "sampler"})
    thrice = estimate_seconds(job(config), SPEED)
    assert thrice.update == pytest.approx(3 * once.update)
    assert thrice.score == pytest.approx(once.score / 2)
    assert thrice.step == thrice.sampling + thrice.score + thrice.update


@pytest.mark.parametrize(
    ("sections", "groups"),
    [
        ({"rollout": {"filter": "drop"}}, 2),
        ({"rollout": {"filter": "keep"}}, 2),
        ({"rollout": {"filter": "keep"}, "kl": {"knowledge": 0.1}}, 4),
        ({"rollout": {"filter": "keep"}, "entropy": {"coefficient": 0.1}}, 4),
        ({"rollout": {"filter": "refill"}}, 4),
    ],
)
def test_groups_without_a_gradient_cost_no_update(sections: dict[str, Any], groups: int) -> None:
    fast = replace(SPEED, memory=1e30)
    found = estimate_seconds(job(recipe(**sections)), fast).update
    every = estimate_seconds(job(recipe(**sections), teaching=1.0), fast).update
    assert found == pytest.approx(every * groups / 4, rel=0.01)


def test_refilling_draws_more_and_dropping_does_not() -> None:
    drop = estimate_seconds(job(), SPEED).sampling
    refill = estimate_seconds(job(recipe(rollout={"filter": "refill"})), SPEED).sampling
    assert refill == pytest.approx(2 * drop, rel=0.01)


def test_recomputing_activations_costs_a_forward_pass_more() -> None:
    big = replace(LENGTHS, prompt=600.0)
    config = recipe(model={"name": "tiny", "checkpoint_activations": True})
    kept = estimate_seconds(job(lengths=big), SPEED).update
    recomputed = estimate_seconds(job(config, lengths=big), SPEED).update
    assert recomputed / kept == pytest.approx(4 / 3, rel=0.02)


def test_at_most_is_every_answer_at_the_limit_and_every_group_teaching() -> None:
    most = job().at_most
    assert (most.lengths.answer, most.teaching) == (5.0, 1.0)
    assert estimate_seconds(most, SPEED).step > estimate_seconds(job(), SPEED).step


def test_the_speed_of_this_machine_is_measured_and_threads_are_left_as_they_were() -> None:
    before = torch.get_num_threads()
    speed = measure_speed(job(shape=SHAPES["smollm2"]), threads=1, budget=0.01)
    assert torch.get_num_threads() == before
    assert 1e8 < speed.decoding < 1e14 and 1e8 < speed.training < 1e14
    assert 1e7 < speed.memory < 1e13
    assert 0.1 < speed.pace < 100


def test_where_small_calls_take_longer_the_operations_do_not() -> None:
    calls = estimate_seconds(job(), Speed(training=1e30, decoding=1e30, memory=1e30))
    once = estimate_seconds(job(), SPEED)
    thrice = estimate_seconds(job(), replace(SPEED, pace=3.0))
    assert calls.update > 0 and once.update > calls.update
    for part in ("sampling", "score", "update"):
        more = getattr(thrice, part) - getattr(once, part)
        assert more == pytest.approx(2 * getattr(calls, part))


# ------------------------------------------------------------------ what is missing


def test_nothing_is_missing_where_everything_is_here() -> None:
    text = plan(recipe())
    assert text.endswith("What is missing: nothing")
    words = " ".join(text.split())
    assert "4 problems x 3 samples = 12 completions of at most 5 tokens" in words
    assert "up to 2 optimizer steps" in words
    assert "10 steps: 120 completions, up to 20 optimizer steps" in words
    assert "30 to learn from, each drawn 1.3 times, and 0 to be judged by" in words
    assert "tiny 0.1 million parameters in 2 layers, float32" in words


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.stem)
def test_every_recipe_has_a_plan_that_fits_the_terminal(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["plan", str(path)]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for part in ("What runs", "What is on and off", "Memory, estimated", "Time, estimated"):
        assert part in text
    assert "\N{NO-BREAK SPACE}" not in text


def test_a_mini_batch_is_no_larger_than_the_step() -> None:
    words = " ".join(plan(recipe(update={"minibatch": 9})).split())
    assert "mini-batches of 4 problems, all gone through once: up to 1 optimizer step;" in words


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"filter": "drop"}, "up to 20 optimizer steps"),
        ({"filter": "refill"}, "up to 20 optimizer steps"),
        ({"filter": "keep"}, "up to 20 optimizer steps"),  # none for uniform groups alone
        ({"filter": "keep", "kl": 0.1}, "120 completions, 20 optimizer steps"),
    ],
)
def test_optimizer_steps_are_promised_where_every_group_has_a_gradient(
    sections: dict[str, Any], said: str
) -> None:
    kl, rollout = sections.pop("kl", 0.0), sections
    text = plan(recipe(rollout=rollout, kl={"knowledge": kl}))
    assert said in " ".join(text.split())


def test_what_is_on_is_told_from_what_is_off() -> None:
    off = plan(recipe())
    assert "KL              off" in off and "entropy bonus   off" in off
    on = plan(
        recipe(
            kl={"knowledge": 0.01},
            entropy={"coefficient": 0.02, "target": 0.3},
            mismatch={"kind": "tis"},
            rollout={"filter": "refill", "overlong": {"buffer": 2, "mask": True}},
        )
    )
    words = " ".join(on.split())
    assert "KL on, 0.01 on tokens of low entropy, 0 on those of high entropy" in words
    assert "entropy bonus on, from 0.02, moved to hold 0.3 nats" in words
    assert "mismatch corrected, tis by token with ratios in [0, 2]" in words
    assert "uniform groups replaced by others until enough teach" in words
    assert "long answers penalty up to 1 over the last 2 tokens; cut ones do not count" in words


VLLM: dict[str, Any] = {"rollout": {"sampler": "vllm"}, "mismatch": {"kind": "tis"}}


def test_a_recipe_for_vllm_is_planned_where_vllm_is_and_refused_in_a_line_where_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, find = set[str](), importlib.util.find_spec

    def spec(name: str) -> object:
        return name in here or None if name == "vllm" else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", spec)
    with pytest.raises(ValueError, match=r"^rollout.sampler = vllm: vLLM is not installed: pip "):
        plan(recipe(**VLLM))
    here.add("vllm")
    with pytest.raises(ValueError, match=r"^rollout.sampler = vllm reads a model's files, and "):
        plan(recipe(**VLLM))
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    own, config = recipe(), recipe(**VLLM, model={"name": str(tmp_path)})
    assert "vLLM, with a copy of the weights" in " ".join(plan(config).split())
    taken, drawn = estimate_memory(job(config)), estimate_memory(job(own))
    assert taken.weights == 2 * drawn.weights
    tokens = 65536 + SPARE_TOKENS - 12 * (LENGTHS.longest_prompt + LENGTHS.longest_answer)
    assert taken.cache - drawn.cache == tokens * cache_bytes_per_token(TOY)
    said = " ".join(plan(config, gpus=2).split())
    assert "2 learners, 2 samplers in the same places, by turns, on 1 machine" in said


def test_a_problem_file_that_is_not_here_is_reported_with_its_cure(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.jsonl")
    sources = [{"source": absent}, {"source": f"gsm8k:{absent}"}, {"source": absent, "seed": 1}]
    config = recipe(data={"train": sources})
    first, second = missing_sources(config)
    assert first.cure == f"archer prepare RAW_DATA --out {absent}"
    assert second.fact == first.fact and "grade-school-math" in second.cure
    text = plan(config)
    assert "not counted yet" in text and "What is missing, and the cure" in text
    assert "0.1 million parameters" in text


def test_the_name_of_a_missing_file_is_never_broken(tmp_path: Path) -> None:
    for width in range(20, 40):
        absent = f"data/{'x' * width}-with-some-hyphens-in-it.jsonl"
        text = plan(recipe(data={"train": [{"source": absent}]}))
        assert text.count(absent) == 2


def test_a_model_that_was_never_downloaded_is_reported_and_its_known_shape_used() -> None:
    config = recipe(model={"name": "Qwen/Qwen2.5-7B-Instruct"})
    (missing,) = missing_model(config)
    assert "hf download Qwen/Qwen2.5-7B-Instruct" in missing.cure
    assert "15.2 GB in bfloat16" in missing.cure
    assert find_shape(config) == SHAPES["qwen2.5-7b"]
    text = plan(config)
    assert "7,615.6 million parameters" in text
    assert "not counted yet" in text


def test_a_model_of_which_nothing_is_known_has_a_plan_without_estimates() -> None:
    text = plan(recipe(model={"name": "nobody/has-this-model"}))
    assert "Nothing is known of nobody/has-this-model" in text
    assert "4 problems x 3 samples" in text and "Memory" not in text
    assert "hf download nobody/has-this-model" in " ".join(text.split())


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "absent.gguf", "a/b/c"])
def test_a_path_with_no_model_is_reported_as_a_path(name: str) -> None:
    (missing,) = missing_model(recipe(model={"name": name}))
    assert missing == (f"no model is found at {name}", "correct the path, or give a hub name")


def test_a_folder_without_weights_is_planned_from_its_config_alone(tmp_path: Path) -> None:
    model = tiny_model("qwen3", layers=3)
    model.config.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    config = recipe(model={"name": str(tmp_path)})
    text = plan(config)
    assert find_shape(config) == shape_of(model.config)
    assert "in 3 layers" in text
    assert "30 to learn from" in text
    assert f"the folder {tmp_path} holds no weights" in " ".join(text.split())


def test_a_gpu_that_is_not_there_is_missing_and_not_an_error() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    text = plan(recipe(model={"name": "tiny", "device": "cuda"}))
    assert "torch sees no CUDA GPU" in text and "on the CPU" in text


def test_too_little_memory_names_the_knob_that_helps() -> None:
    small = dict.fromkeys(Memory.__dataclass_fields__, 1e9)

    def cure(part: str, free: float, **sections: Any) -> str:
        memory = Memory(**{**small, part: 50e9})
        found = missing_room(job(recipe(**sections)), memory, free=free, disk=1e15)
        assert len(found) == 1
        assert f"{memory.peak / 1e9:.1f} GB of memory are needed" in found[0].fact
        return found[0].cure

    assert "a GPU with more, or a smaller model" in cure("moments", 20e9)
    assert cure("cache", 20e9) == "lower rollout.cache_tokens, now 65,536"
    assert cure("activations", 20e9) == (
        "lower update.microbatch_tokens, now 4,096, or set model.checkpoint_activations = true"
    )
    recomputing = {"model": {"name": "tiny", "checkpoint_activations": True}}
    assert cure("activations", 20e9, **recomputing) == ("lower update.microbatch_tokens, now 4,096")
    fitting = Memory(**small)
    assert missing_room(job(), fitting, free=1e12, disk=1e12) == []


def test_too_little_disk_for_checkpoints_is_reported() -> None:
    memory = estimate_memory(job())
    (found,) = missing_room(job(), memory, free=1e12, disk=12 * 2850 * 4 - 1)
    assert "checkpoints take up to 0.0 GB" in found.fact
    assert missing_room(job(), memory, free=1e12, disk=12 * 2850 * 4) == []


# ------------------------------------------------------------------ what is wrong


def test_a_recipe_that_is_wrong_is_an_error_and_no_plan(tmp_path: Path) -> None:
    for sections, said in (
        ({"loss": {"name": "gropo"}}, "did you mean grpo"),
        ({"loss": {"name": "grpo", "clip_hi": 0.2}}, "did you mean loss.clip_high"),
        ({"rollout": {"problems": 4, "samples": 3, "max_tokens": 600}}, "need a context of"),
    ):
        with pytest.raises(ValueError, match=said):
            plan(recipe(**sections))
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps({"id": "a", "prompt": "1+1?", "verifier": "math"}) + "\n")
    with pytest.raises(ValueError, match=r"broken\.jsonl:1: .*answer"):
        plan(recipe(data={"train": [{"source": str(broken)}]}))


def test_a_model_that_is_here_but_not_served_is_an_error(tmp_path: Path) -> None:
    MistralConfig(sliding_window=8).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot be trained"):
        plan(recipe(model={"name": str(tmp_path)}))


def test_a_model_whose_config_alone_was_fetched_and_is_not_served_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    downloaded = tmp_path / "models--someone--windowed"
    (downloaded / "refs").mkdir(parents=True)
    (downloaded / "refs/main").write_text("0" * 40)
    MistralConfig(sliding_window=8).save_pretrained(downloaded / "snapshots" / ("0" * 40))
    with pytest.raises(ValueError, match="cannot be trained: it uses sliding-window"):
        plan(recipe(model={"name": "someone/windowed"}))


def test_an_answer_longer_than_a_known_context_is_an_error() -> None:
    config = recipe(
        model={"name": "Qwen/Qwen2.5-Math-1.5B"},
        rollout={"problems": 4, "samples": 3, "max_tokens": 4096},
    )
    with pytest.raises(ValueError, match=r"4096 tokens do not fit .* 4096: lower rollout\.max_tok"):
        plan(config)


def test_an_evaluated_answer_longer_than_a_known_context_is_an_error() -> None:
    config = recipe(model={"name": "Qwen/Qwen2.5-Math-1.5B"}, eval={"max_tokens": 4096})
    with pytest.raises(ValueError, match=r"4096 tokens do not fit .* 4096: lower eval\.max_tok"):
        plan(config)


def test_lengths_come_from_the_prompts_where_they_can_be_read() -> None:
    config = recipe(prompt={"template": "raw"}, rollout={"max_tokens": 100})
    data = load_data(config)
    lengths = expected_lengths(config, data)
    sizes = [len(str(problem.prompt)) for problem in data.train]  # one token a character
    assert lengths.longest_prompt == max(sizes)
    assert lengths.prompt == pytest.approx(sum(sizes) / len(sizes))
    assert (lengths.answer, lengths.longest_answer) == (75.0, 100)
    unread = expected_lengths(config, None)
    assert (unread.prompt, unread.longest_prompt) == (256.0, 1024)
    assert expected_lengths(recipe(rollout={"max_tokens": 40_000}), None).answer == 8192
