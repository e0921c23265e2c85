"""Loading by every kind of name, and what is refused."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from archer.model import load
from archer.model.load import (
    load_config,
    load_model,
    load_tokenizer,
    stop_token_ids,
)
from archer.model.tiny import KINDS, TOKENS, tiny_model, tiny_tokenizer

PROMPT = torch.arange(5, 20)[None]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    result: torch.Tensor = model(PROMPT).logits
    return result


def refusal(message: str) -> Any:
    """The error must be one line; `match` alone would let more through."""
    return pytest.raises(ValueError, match=rf"\A[^\n]*{message}[^\n]*\Z")


# Names


def test_tiny_needs_nothing() -> None:
    model, tokenizer = load_model("tiny"), load_tokenizer("tiny")
    assert len(tokenizer) == model.config.vocab_size == load_config("tiny").vocab_size == 64
    assert stop_token_ids(tokenizer, model.generation_config) == (TOKENS.index("<eos>"),)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_local_folder_gives_back_the_saved_model(kind: Any, tied: bool, tmp_path: Path) -> None:
    saved = tiny_model(kind, tied=tied)
    saved.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model, tokenizer = load_model(str(tmp_path)), load_tokenizer(str(tmp_path))
    assert torch.equal(logits(model), logits(saved))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert tokenizer.encode("<user>1+2=\n") == tiny_tokenizer().encode("<user>1+2=\n")
    assert len(tokenizer) == 64 and tokenizer.pad_token is None


def test_a_loaded_model_is_plain(tmp_path: Path) -> None:
    saved = tiny_model("llama")
    saved.config.attention_dropout = 0.5
    saved.config.use_cache = True
    saved.save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    assert model.training and not model.config.use_cache
    assert torch.equal(logits(model), logits(model.eval()))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


def test_bfloat16_is_for_weights_and_not_for_positions(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    for name in ("tiny", str(tmp_path)):
        model = load_model(name, dtype="bfloat16")
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}


def test_an_unknown_dtype_is_refused() -> None:
    with refusal("dtype 'half' is not known: use"):
        load_model("tiny", dtype="half")


def test_stop_tokens_are_those_of_both_together() -> None:
    tokenizer = tiny_tokenizer()
    assert stop_token_ids(tokenizer, GenerationConfig(eos_token_id=[9, 3])) == (0, 3, 9)
    assert stop_token_ids(tokenizer, GenerationConfig(eos_token_id=0)) == (0,)
    tokenizer.eos_token = None
    assert stop_token_ids(tokenizer, GenerationConfig(eos_token_id=None)) == ()


# Bad folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_missing_weights_are_never_made_up(folder: Path) -> None:
    weights = tiny_model("llama").state_dict()
    del weights["lm_head.weight"]
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with refusal("lack 1 of the model's parameters, 'lm_head.weight' first: give"):
        load_model(str(folder))


@pytest.mark.parametrize("damage", ["truncated", "gone", "other sizes"])
def test_damaged_weights_are_refused(folder: Path, damage: str) -> None:
    file = folder / "model.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1000])
    elif damage == "gone":
        file.unlink()
    else:
        tiny_model("llama", intermediate=96).save_pretrained(folder / "other")
        shutil.copy(folder / "other/model.safetensors", file)
    with refusal("the weights of .* cannot be read .*: copy or download"):
        load_model(str(folder))


def test_other_bad_folders_are_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with refusal("the tokenizer of .* cannot be read"):
        load_tokenizer(str(folder))
    (folder / "config.json").write_text("{")
    with refusal("the config of .* cannot be read"):
        load_config(str(folder))
    (folder / "config.json").write_text('{"model_type": "unheard_of"}')
    with refusal("the config of .* cannot be read .*unheard_of"):
        load_config(str(folder))
    (folder / "config.json").unlink()
    with refusal("holds no config.json: give the folder"):
        load_model(str(folder))
    (folder / "adapter_config.json").write_text("{}")
    with refusal("LoRA adapter: merge it"):
        load_model(str(folder))
    with refusal("there is no folder"):
        load_model(str(folder / "nowhere"))
    with refusal("there is no file"):
        load_model(str(folder / "nowhere.gguf"))
    with refusal("has no revision 'v2': drop it"):
        load_model(str(folder), revision="v2")


# The hub, which is away here


@pytest.fixture
def hub_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing listens at the hub's address, and downloads lie in the folder returned."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    load._hub_answers.cache_clear()
    return tmp_path / "hub"


@pytest.mark.usefixtures("hub_away")
def test_a_hub_name_without_network_is_refused_in_seconds() -> None:
    start = time.monotonic()
    with refusal("hub cannot be reached .*: download it where there is a network"):
        load_model("someone/some-model")
    assert time.monotonic() - start < 10


def test_what_was_downloaded_before_is_used_without_network(hub_away: Path, folder: Path) -> None:
    downloaded = hub_away / "models--someone--some-model"
    (downloaded / "refs").mkdir(parents=True)
    (downloaded / "refs/main").write_text("0" * 40)
    shutil.copytree(
        folder, downloaded / "snapshots" / ("0" * 40), ignore=shutil.ignore_patterns("hub")
    )
    model = load_model("someone/some-model")
    assert torch.equal(logits(model), logits(tiny_model("llama")))
    assert load_tokenizer("someone/some-model").eos_token == "<eos>"
