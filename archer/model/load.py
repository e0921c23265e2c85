"""Weights, tokenizer and config of a model, by whatever name a person gives it.

A name is "tiny" (made on the spot), "smollm2" (the quickstart's model, from a Python package), the
path of a `.gguf` file, a local folder, or a Hugging Face hub name; they are tried in that order.
Kinds that are not served are refused before any weight is read.

Attention functions, precision of the optimizer and placement over several devices are decided
elsewhere.
"""

from __future__ import annotations

import functools
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from archer.files import cache_folder
from archer.model.convert import UNREADABLE, gguf_folder, one_line, smollm2_folder
from archer.model.supported import check_supported
from archer.model.tiny import tiny, tiny_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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
    transformers_logging.disable_progress_bar()  # archer shows bars of its own
    if name == "tiny":
        model = tiny()
        for parameter in model.parameters():  # not `.to(dtype)`, see below
            parameter.data = parameter.data.to(number_type)
    else:
        config = load_config(name, revision=revision)
        _silence(config)
        model = _read_weights(name, config, number_type, revision)
    model.config.use_cache = False
    # Buffers keep their type: rotary frequencies in bfloat16 would spoil positions.
    return model.to(device).train()


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
            f"the tokenizer of {name!r} cannot be read ({one_line(error)}): put the model's "
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
            f"the config of {name!r} cannot be read ({one_line(error)}): give a hub name, or a "
            "folder with the config.json of a model that transformers knows"
        ) from error
    check_supported(config)
    return config


def empty_model(name: str, *, revision: str | None = None) -> Any:
    """The model of that name as transformers makes it, without weights: on the meta device.

    Its generation config is the one that goes with the name.

    Raises:
        ValueError: nothing is found under this name, or the kind is not served.
    """
    transformers_logging.disable_progress_bar()
    if name == "tiny":
        return tiny().to("meta")
    model = _on_meta(load_config(name, revision=revision))
    place, options = _locate(name, revision)
    with suppress(OSError):  # there need not be one
        model.generation_config = GenerationConfig.from_pretrained(place, **options)
    return model


def unfilled_model(name: str, *, revision: str | None = None) -> Any:
    """What `load_model` gives in float32, on the meta device: for weights that come another way.

    Raises:
        ValueError: nothing is found under this name, or the kind is not served.
    """
    if name == "tiny":
        model = tiny().to("meta")
    else:
        config = load_config(name, revision=revision)
        _silence(config)
        model = _on_meta(config, dtype=torch.float32)
    model.config.use_cache = False
    return model.train()


def find_model(name: str, *, revision: str | None = None) -> str:
    """The folder of a model, or its hub name, for code that loads weights by itself.

    Raises:
        ValueError: nothing is found under this name, or it has no files.
    """
    if name == "tiny":
        raise ValueError('"tiny" is made on the spot and has no files: give another model')
    return _locate(name, revision)[0]


def stop_token_ids(tokenizer: Any, generation_config: Any) -> tuple[int, ...]:
    """The tokens that end an answer: generation_config's and the tokenizer's eos, ascending."""
    found = {tokenizer.eos_token_id}
    configured = generation_config.eos_token_id
    found.update(configured if isinstance(configured, list | tuple) else [configured])
    return tuple(sorted(int(token) for token in found if token is not None))


def _on_meta(config: Any, **options: Any) -> Any:
    auto_class: Any = AutoModelForCausalLM
    with torch.device("meta"):
        return auto_class.from_config(config, trust_remote_code=False, **options)


def end_tokens(name: str, tokenizer: Any, *, revision: str | None = None) -> tuple[int, ...]:
    """`stop_token_ids` of a model whose weights are read elsewhere.

    Raises:
        ValueError: nothing is found under this name, or the kind is not served.
    """
    return stop_token_ids(tokenizer, empty_model(name, revision=revision).generation_config)


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
            f"the weights of {name!r} cannot be read ({one_line(error)}): copy or download the "
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
        return smollm2_folder(cache_folder())
    path = Path(name).expanduser()
    if name.endswith(".gguf"):
        if not path.is_file():
            raise ValueError(f"there is no file {name!r}: correct the path of the GGUF file")
        state = path.stat()
        return gguf_folder(cache_folder(), path.resolve(), state.st_size, state.st_mtime_ns)
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
            f"the Hugging Face hub gives no model {name!r} ({one_line(error)}): correct the name, "
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
                f"cannot be reached ({one_line(error)}): download it where there is a network and "
                'give the folder, or use "smollm2" or a .gguf file'
            ) from error
        except ValueError:
            pass  # it is here; what is wrong with it, loading says
        return False
