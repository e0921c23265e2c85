"""From a checkpoint of many ranks to one Hugging Face folder, and the check of what was written.

The checkpoint may be of other code: there is no recipe and there are no recorded responses, so what
is compared is the weights alone. The folder is loaded again and each tensor held against the one
that was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import archer
from archer.model.load import DTYPES, empty_model, load_tokenizer
from archer.model.sharded import RELEASED, layout, rank_files, read_sharded, same_bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What was read from a checkpoint of many ranks, and the model that it belongs to.

    Example: the 290 tensors of a Qwen2 whose head is its embedding,
        Weights(folder=Path("global_step_20/actor"), base="global_step_20/actor/huggingface",
                model=Qwen2ForCausalLM(...), tensors={"model.embed_tokens.weight": ..., ...})
    """

    folder: Path
    base: str
    """Where config, tokenizer and generation config come from."""
    model: Any
    """On the meta device."""
    tensors: dict[str, Tensor]
    """By the names of the model's parameters; one that is tied to another is not among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightParity:
    """How the weights of a folder that was loaded again differ from those that were read.

    Example, float32 weights written in bfloat16:
        WeightParity(tensors=290, parameters=1543714304, read="float32", dtype="bfloat16",
                     not_exported=0, largest_rounding=0.0039)
    """

    tensors: int
    parameters: int
    read: str
    """Number types that the checkpoint holds."""
    dtype: str
    """Of the exported weights."""
    not_exported: int
    """Tensors that are not, bit for bit, what was read, in the new number type. 0, or the folder is
    not delivered."""
    largest_rounding: float
    """Largest difference between a weight as read and as exported: 0 where the type is kept."""


def find_sharded(path: Path) -> Path | None:
    """The folder with the files of all ranks: this one or the `actor` in it; None if neither."""
    return next((folder for folder in (path, path / "actor") if layout(folder)), None)


def read_weights(folder: Path, base: str | None) -> Weights:
    """Reads a checkpoint of many ranks.

    Args:
        folder: as `find_sharded` gives it.
        base: the model that config and tokenizer are taken from, None for those in the folder.

    Raises:
        ValueError: files are missing or damaged, no config is found, or it is of another model.
    """
    base = base or _base_inside(folder)
    model = empty_model(base)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    tensors = read_sharded(folder, shapes)
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    for name in shapes.keys() - own.keys() - tensors.keys():
        del shapes[name]  # tied, and not stored a second time
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != shapes:
        name = min(n for n in found.keys() | shapes.keys() if found.get(n) != shapes.get(n))
        raise ValueError(
            f"{folder} holds the weights of another model than {base!r}: {name} has shape "
            f"{_shown(found.get(name))} there and {_shown(shapes.get(name))} here; name the model "
            "that it was trained from with --base"
        )
    return Weights(folder=folder, base=base, model=model, tensors=_untied(model, tensors, base))


def write_model(weights: Weights, out: Path, *, dtype: str, max_shard_size: str) -> None:
    """Writes weights, config, generation config and tokenizer into the folder `out`."""
    model, number_type = weights.model, DTYPES[dtype]
    tensors = {name: tensor.to(number_type) for name, tensor in weights.tensors.items()}
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    model.config.dtype = number_type
    model.save_pretrained(out, max_shard_size=max_shard_size)
    load_tokenizer(weights.base).save_pretrained(out)


def compare_weights(weights: Weights, out: Path, *, dtype: str) -> WeightParity:
    """Loads the folder `out` with transformers alone and holds each tensor against the read one."""
    auto_class: Any = AutoModelForCausalLM
    model = auto_class.from_pretrained(out, dtype="auto", local_files_only=True)
    exported = model.state_dict()
    different, largest = 0, 0.0
    for name, tensor in weights.tensors.items():
        different += not same_bits(tensor.to(DTYPES[dtype]), exported[name])
        if tensor.numel():
            apart = (tensor.float() - exported[name].float()).abs().max()
            largest = max(largest, float(apart))
    return WeightParity(
        tensors=len(weights.tensors),
        parameters=sum(tensor.numel() for tensor in weights.tensors.values()),
        read=_dtypes(weights.tensors),
        dtype=dtype,
        not_exported=different,
        largest_rounding=largest,
    )


def _base_inside(folder: Path) -> str:
    for place in (folder / "huggingface", folder):
        if (place / "config.json").is_file():
            return str(place)
    raise ValueError(
        f"{folder} has no config.json, neither itself nor in huggingface/: name the model that it "
        "was trained from with --base"
    )


def _untied(model: Any, tensors: Mapping[str, Tensor], base: str) -> dict[str, Tensor]:
    """Without the second copies of tied tensors, which must be the same as the first."""
    tied = model.state_dict(keep_vars=True)
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters():
        names[id(parameter)] = name
    kept = {}
    for name, tensor in tensors.items():
        first = names.get(id(tied[name]), name)
        if not same_bits(tensors[first], tensor):
            raise ValueError(
                f"{base!r} ties {name} to {first}, but the checkpoint has two different tensors "
                "for them; give a --base whose config says tie_word_embeddings = false"
            )
        if first == name:
            kept[name] = tensor
    return kept


def _shown(shape: torch.Size | None) -> str:
    return "none" if shape is None else str(list(shape))


def _dtypes(tensors: Mapping[str, Tensor]) -> str:
    found = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
    return ", ".join(sorted(found))


# ------------------------------------------------------------------ the card


def weights_card(weights: Weights, parity: WeightParity) -> str:
    """A model card that says what is known, and what can not be known from such a checkpoint."""
    folder, kind = weights.folder.resolve(), layout(weights.folder)
    source = "/".join(folder.parts[-2:]) if folder.name == "actor" else folder.name
    ranks = f", written by {len(rank_files(folder))}" if kind == RELEASED else ""
    is_hub_name = weights.base.count("/") == 1 and not Path(weights.base).exists()
    head = ["---", "library_name: transformers"]
    head += [f"base_model: {weights.base}"] if is_hub_name else []
    head += ["tags: [reinforcement-learning, reasoning, archer]", "---"]
    text = [
        *head,
        f"# {source}",
        "",
        f"A `{weights.model.config.model_type}` model of {parity.parameters:,} parameters, put "
        f"together by archer {archer.__version__} from the checkpoint `{source}` ({kind}{ranks}).",
        "",
        "## Weights",
        "",
        f"Stored as {parity.read} by the training run, as {parity.dtype} here. This folder was "
        f"loaded again and its {parity.tensors} tensors compared with those that were read: all "
        f"are the same bits after the change of number type, which moved a weight by at most "
        f"{parity.largest_rounding:.1e}.",
        "",
        "## What is not known",
        "",
        "Recipe, data, scores, and the log-probs of trainer and sampler are not part of such a "
        "checkpoint. archer records and compares them for runs of its own.",
    ]
    return "\n".join(text) + "\n"
