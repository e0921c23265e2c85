"""What is exported is what was trained: the same weights, the same log-probs in a new process."""

from __future__ import annotations

import copy
import json
import shutil
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from archer.config import Config, load_config
from archer.data.sources import load_source
from archer.engine.choices import choose_objective
from archer.engine.local import LocalEngine
from archer.export import ParityBroken, export, find_checkpoint
from archer.model.prompts import Renderer
from archer.model.tiny import Kind, tiny_model, tiny_tokenizer
from archer.parity import PARITY, compare, plain_log_probs, read_responses, record
from archer.run import MANIFEST, checksum, open_run
from archer.setup import cached_render
from archer.terminal import Terminal
from archer.train import train

RECIPE = """
[model]
name = "MODEL"
threads = 1
[prompt]
suffix = " ="
[data]
train = [{ source = "arithmetic", count = 30, args = { operations = "+" } }]
evaluate = [{ source = "arithmetic", count = 6, seed = 1, args = { operations = "+" } }]
[rollout]
problems = 4
samples = 4
max_tokens = 6
temperature = 1.3
filter = "keep"
[verify]
answer_pattern = "number"
workers = 1
[entropy]
coefficient = 0.01
[update]
minibatch = 2
learning_rate = 3e-3
[train]
steps = 3
[checkpoint]
every = 1
"""
TOLERANCE = 1e-4


def recipe(folder: Path, model: str) -> Config:
    path = folder / "recipe.toml"
    path.write_text(RECIPE.replace("MODEL", model))
    return load_config(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that began with a folder whose head and embedding are one tensor."""
    folder = tmp_path_factory.mktemp("export")
    base = folder / "base"
    tiny_model("qwen2", tied=True).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    train(recipe(folder, str(base)), folder / "run", Terminal(quiet=True))
    return folder / "run"


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    out = run.parent / "exported"
    export(run, out, dtype="float32", terminal=Terminal(quiet=True))
    return out


def test_live_exported_and_sampler_log_probs_agree(exported: Path) -> None:
    parity = json.loads((exported / "parity.json").read_text())
    assert parity["responses"] == 64
    assert parity["temperature"] == 1.3
    for pair in ("live_exported", "live_sampler", "sampler_exported"):
        assert 0 <= parity[pair]["mean"] <= parity[pair]["max"] <= TOLERANCE


def test_the_export_holds_the_weights_of_the_newest_checkpoint(run: Path, exported: Path) -> None:
    weights = load_file(run / "checkpoints" / "step-000003" / "weights.safetensors")
    assert not torch.equal(
        weights["lm_head.weight" if "lm_head.weight" in weights else "model.embed_tokens.weight"],
        load_file(run.parent / "base" / "model.safetensors")["model.embed_tokens.weight"],
    )
    own = dict(AutoModelForCausalLM.from_pretrained(exported).named_parameters())
    assert own.keys() == weights.keys()
    assert all(torch.equal(own[name], weights[name]) for name in own)


def test_what_was_tied_is_tied_and_every_key_keeps_its_name(run: Path, exported: Path) -> None:
    files = [folder / "model.safetensors" for folder in (run.parent / "base", exported)]
    keys = [set(load_file(file)) for file in files]
    assert keys[0] == keys[1]
    assert not any("lm_head" in key for key in keys[1])
    model = AutoModelForCausalLM.from_pretrained(exported)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_config_tokenizer_and_template_are_those_of_the_base_model(
    run: Path, exported: Path
) -> None:
    base = run.parent / "base"
    configs = [json.loads((f / "config.json").read_text()) for f in (base, exported)]
    assert configs[0] == configs[1]
    tokenizers: list[Any] = [AutoTokenizer.from_pretrained(f) for f in (base, exported)]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    assert tokenizers[0].chat_template == tokenizers[1].chat_template
    assert (exported / "generation_config.json").is_file()


def test_the_card_names_recipe_data_scores_and_parity(run: Path, exported: Path) -> None:
    card = (exported / "README.md").read_text()
    data = json.loads((run / "environment.json").read_text())["data"]["hashes"]
    parity = json.loads((exported / "parity.json").read_text())
    last = json.loads((run / "eval" / "step-000003.json").read_text())
    assert data["train"] in card
    assert data["evaluate"] in card
    assert f"| 3 | {last['score']['mean']:.3f} |" in card
    assert f"{parity['live_exported']['max']:.1e}" in card
    assert (exported / "archer.toml").read_text().strip() in card


def test_responses_are_sampled_from_the_weights_that_are_saved(run: Path) -> None:
    """Not from those before the step's update, with which the step's own rollouts were sampled."""
    stored = [read_responses(run / "checkpoints" / f"step-00000{step}" / PARITY) for step in (2, 3)]
    for responses in stored:
        assert len(responses["lengths"]) == 64
        assert np.abs(responses["live_logp"] - responses["sampler_logp"]).max() <= TOLERANCE
    assert len(stored[0]["live_logp"]) != len(stored[1]["live_logp"]) or not np.allclose(
        stored[0]["live_logp"], stored[1]["live_logp"], atol=TOLERANCE
    )


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.3])
def test_plain_transformers_scores_what_was_sampled_alike(
    tmp_path: Path, kind: Kind, temperature: float
) -> None:
    model = tiny_model(kind)
    plain = copy.deepcopy(model).eval()
    responses = recorded(tmp_path, model, temperature)
    parity = compare(responses, plain_log_probs(plain, responses), dtype="float32")
    assert parity.live_exported.max <= TOLERANCE
    assert parity.live_sampler.max <= TOLERANCE


def test_other_weights_are_noticed(tmp_path: Path) -> None:
    responses = recorded(tmp_path, tiny_model("llama"), 1.0)
    other = tiny_model("llama", seed=1).eval()
    parity = compare(responses, plain_log_probs(other, responses), dtype="float32")
    assert parity.live_exported.mean > 0.1
    assert parity.live_sampler.max <= TOLERANCE


def test_recording_twice_gives_the_same_bits(tmp_path: Path) -> None:
    first, second = (recorded(tmp_path, tiny_model("llama"), 1.0) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def recorded(folder: Path, model: Any, temperature: float) -> dict[str, np.ndarray]:
    config = recipe(folder, "tiny")
    rollout = config.rollout.model_copy(update={"temperature": temperature})
    config = config.model_copy(update={"rollout": rollout})
    engine = LocalEngine(model, tiny_tokenizer(), config, choose_objective(config))
    problems = load_source("arithmetic", count=10, args={"operations": "+"})
    render = cached_render(Renderer(tiny_tokenizer()))
    return record(engine, problems, render, temperature=temperature, max_tokens=8, seed=0)


def test_an_export_that_computes_something_else_is_not_delivered(run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    checkpoint = broken / "checkpoints" / "step-000003"
    responses = read_responses(checkpoint / PARITY)
    np.savez(checkpoint / PARITY, **{**responses, "live_logp": responses["live_logp"] - 1.0})  # type: ignore[arg-type]
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"][PARITY] = checksum(checkpoint / PARITY)
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ParityBroken, match="1 nats a token"):
        export(broken, tmp_path / "out", dtype="float32", terminal=Terminal(quiet=True))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.full
def test_a_bfloat16_export_is_near(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "half", dtype="bfloat16", terminal=Terminal(quiet=True))
    parity = json.loads((tmp_path / "half" / "parity.json").read_text())
    assert parity["dtype"] == "bfloat16"
    assert TOLERANCE < parity["live_exported"]["max"] < 0.3
    weights = load_file(tmp_path / "half" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


@pytest.mark.full
def test_a_template_file_goes_with_the_tokenizer(tmp_path: Path) -> None:
    template = tmp_path / "plain.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}?")
    config = recipe(tmp_path, "tiny")
    prompt = config.prompt.model_copy(update={"template": str(template)})
    run = tmp_path / "run"
    train(config.model_copy(update={"prompt": prompt}), run, Terminal(quiet=True))
    export(run, tmp_path / "out", dtype="float32", terminal=Terminal(quiet=True))
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == template.read_text()
    assert load_config(tmp_path / "out" / "archer.toml").prompt.template == "model"


def test_a_model_with_several_templates_keeps_them_all(run: Path, tmp_path: Path) -> None:
    """Those beside the default one lie in a folder of their own."""
    tokenizer = tiny_tokenizer()
    templates = {"default": tokenizer.chat_template or "{{ messages }}", "tool_use": "{{ tools }}"}
    tokenizer.chat_template = templates
    base, again = tmp_path / "base", tmp_path / "run"
    shutil.copytree(run.parent / "base", base)
    tokenizer.save_pretrained(base)
    shutil.copytree(run, again)
    config = (again / "config.toml").read_text()
    (again / "config.toml").write_text(config.replace(str(run.parent / "base"), str(base)))
    export(again, tmp_path / "out", dtype="float32", terminal=Terminal(quiet=True))
    assert (tmp_path / "out" / "additional_chat_templates" / "tool_use.jinja").is_file()
    exported: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert exported.chat_template == templates


def test_a_folder_in_use_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty; name a new folder"):
        export(run, tmp_path, dtype="float32", terminal=Terminal(quiet=True))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_stands_for_its_newest_checkpoint(run: Path) -> None:
    assert find_checkpoint(run).state.step == 3
    older = find_checkpoint(run / "checkpoints" / "step-000002")
    assert older.state.step == 2
    assert older.run.samefile(run)


def test_weights_of_another_model_are_refused(run: Path, tmp_path: Path) -> None:
    changed = tmp_path / "run"
    shutil.copytree(run, changed)
    text = (changed / "config.toml").read_text()
    (changed / "config.toml").write_text(text.replace(str(run.parent / "base"), "tiny"))
    with pytest.raises(ValueError, match=r"weights of another model than model\.name = 'tiny'"):
        export(changed, tmp_path / "out", dtype="float32", terminal=Terminal(quiet=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no folder"),
        (lambda path: path.mkdir(), "neither a run"),
        (lambda path: shutil.copytree(path.parent / "empty", path), "no complete checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, make: Any, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.toml").write_text("")
    make(tmp_path / "named")
    with pytest.raises(ValueError, match=message):
        find_checkpoint(tmp_path / "named")


def test_mistake_45_a_checkpoint_is_not_picked_up_while_it_is_written(tmp_path: Path) -> None:
    run, state = open_run(tmp_path / "run", recipe(tmp_path, "tiny"), say=lambda _: None)

    def save(folder: Path) -> Callable[[], None]:
        (folder / "weights.safetensors").write_bytes(b"whole")
        return lambda: check(folder)

    def check(folder: Path) -> None:
        assert folder.parent == tmp_path / "run" / "checkpoints"
        with pytest.raises(ValueError, match="has no complete checkpoint yet"):
            find_checkpoint(tmp_path / "run")
        with pytest.raises(ValueError, match=f"no {MANIFEST}"):
            find_checkpoint(folder)

    with closing(run):
        written = run.checkpoint(replace(state, step=1), save)
    assert find_checkpoint(tmp_path / "run").folder == written


def test_learning_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    """It becomes whole later, or what hindered it is said at the next look, and the one before
    stays."""
    run, state = open_run(tmp_path / "run", recipe(tmp_path, "tiny"), say=lambda _: None)
    may_end, full = threading.Event(), OSError(28, "No space left on device")

    def slowly(folder: Path) -> Callable[[], None]:
        (folder / "weights.safetensors").write_bytes(b"whole")

        def written() -> None:
            assert may_end.wait(timeout=60.0)

        return written

    def in_vain(folder: Path) -> Callable[[], None]:
        def written() -> None:
            raise full

        return written

    with closing(run):
        first = run.checkpoint(replace(state, step=1), slowly)
        run.finish_checkpoint(wait=False)
        assert not first.exists()
        may_end.set()
        run.finish_checkpoint()
        assert first.exists()
        second = run.checkpoint(replace(state, step=2), in_vain)
        with pytest.raises(OSError, match="No space left"):
            run.finish_checkpoint()
        run.finish_checkpoint()  # what was said is not said again
    assert [path.name for path in second.parent.iterdir()] == [first.name]
