"""What a run would lack on this machine, each with its cure: model, data, packages, room.

Nothing is loaded, and nothing is downloaded but a model's config where its shape is not known.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from archer.config import Config, SourceConfig
from archer.files import cache_folder
from archer.model.convert import CHECKSUMS
from archer.model.load import load_config
from archer.model.shapes import ModelShape, known_shape, parameter_count, shape_of
from archer.plan.estimate import Job, Memory, checkpoint_bytes

SMOLLM2_FOLDER = "SmolLM2-135M-Instruct"
"""Of the quickstart's model, in the cache."""

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class Missing(NamedTuple):
    """A fact and its cure, both without a full stop."""

    fact: str
    cure: str


# ------------------------------------------------------------------ the model


def is_described(config: Config) -> bool:
    """Whether the model's config and tokenizer are on this machine, or made on the spot."""
    return _has(config, "config.json") and _has(config, "tokenizer_config.json")


def has_weights(config: Config) -> bool:
    """Whether the model's weights are on this machine, or made on the spot."""
    return any(_has(config, file) for file in WEIGHT_FILES)


def _has(config: Config, file: str) -> bool:
    name = config.model.name
    if name == "tiny":
        return True
    if name == "smollm2":
        return (cache_folder() / SMOLLM2_FOLDER / CHECKSUMS).is_file()
    path = Path(name).expanduser()
    if path.is_dir() or name.endswith(".gguf"):
        return path.is_file() or (path / file).is_file()
    try:
        return isinstance(try_to_load_from_cache(name, file, revision=config.model.revision), str)
    except HFValidationError:  # a path with nothing there
        return False


def find_shape(config: Config) -> ModelShape | None:
    """From the model's config if it is here, else from the table of shapes, else from the hub.

    None where all three fail. ValueError for a model of a kind that is not served.
    A GGUF file is converted on the way, once, as the run would do.
    """
    name, revision = config.model.name, config.model.revision
    if is_described(config):
        return shape_of(load_config(name, revision=revision))
    if known := known_shape(name):
        return known
    try:
        return shape_of(load_config(name, revision=revision))
    except ValueError:
        if _has(config, "config.json"):  # its config has come, so it is the model that is wrong
            raise
        return None


def missing_model(config: Config) -> list[Missing]:
    """The model, if its weights are not here."""
    name = config.model.name
    if has_weights(config):
        return []
    if name == "smollm2":
        return [Missing("smollm2 is not on this machine", "the first run fetches it, 92 MB")]
    if name and Path(name).expanduser().is_dir():
        return [Missing(f"the folder {name} holds no weights", "put model.safetensors into it")]
    if name.endswith(".gguf") or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return [Missing(f"no model is found at {name}", "correct the path, or give a hub name")]
    shape = known_shape(name)
    size = f", {2 * parameter_count(shape) / 1e9:.1f} GB in bfloat16" if shape else ""
    cure = f"hf download {name}, or let the first run do it{size}"
    return [Missing(f"the weights of {name} are not on this machine", cure)]


# ------------------------------------------------------------------ data and packages


def missing_sources(config: Config) -> list[Missing]:
    """Problem files and task libraries that the recipe names and this machine does not have."""
    sources = (*config.data.train, *config.data.evaluate)
    found = [missing for source in sources if (missing := _missing_source(source))]
    return list(dict.fromkeys(found))


def _missing_source(source: SourceConfig) -> Missing | None:
    name, _, detail = source.source.partition(":")
    if name == "reasoning_gym" and importlib.util.find_spec("reasoning_gym") is None:
        return Missing("reasoning-gym is not installed", 'pip install "archer-rl[tasks]"')
    path = detail if name == "gsm8k" else source.source
    if not path.endswith(".jsonl") or Path(path).is_file():
        return None
    if name == "gsm8k":
        cure = "get it from github.com/openai/grade-school-math"
    else:
        cure = f"archer prepare RAW_DATA --out {path}"
    return Missing(f"the problem file {path} is not here", cure)


def missing_sinks(config: Config) -> list[Missing]:
    """Packages of the services that metrics should go to."""
    return [
        Missing(f"{sink} is not installed", f'pip install "archer-rl[{sink}]"')
        for sink in config.log.sinks
        if importlib.util.find_spec(sink) is None
    ]


# ------------------------------------------------------------------ room


def missing_device(config: Config) -> list[Missing]:
    """A GPU that the recipe asks for."""
    if config.model.device != "cuda" or torch.cuda.is_available():
        return []
    cure = "run it where there is one, or set model.device = auto; what follows is for the CPU"
    return [Missing("torch sees no CUDA GPU", cure)]


def missing_room(job: Job, memory: Memory, *, free: float, disk: float) -> list[Missing]:
    """Memory and disk, if the estimate is more than the bytes that are free."""
    cure = _memory_cure(job, memory, free)
    return _missing_memory(memory.peak, free, cure) + _missing_disk(job, disk)


def missing_room_for_processes(
    job: Job, needed: float, *, free: float, disk: float
) -> list[Missing]:
    """The same for several processes on this machine, which need so many bytes together."""
    cure = "fewer processes (cluster.learners, cluster.samplers), or more machines"
    return _missing_memory(needed, free, cure) + _missing_disk(job, disk)


def _missing_memory(needed: float, free: float, cure: str) -> list[Missing]:
    if needed <= free:
        return []
    fact = f"{needed / 1e9:.1f} GB of memory are needed, {free / 1e9:.1f} GB are free"
    return [Missing(fact, cure)]


def _missing_disk(job: Job, disk: float) -> list[Missing]:
    needed = checkpoint_bytes(job.shape) * (job.config.checkpoint.keep + 2)
    if needed <= disk:
        return []
    fact = f"checkpoints take up to {needed / 1e9:.1f} GB, {disk / 1e9:.1f} GB are free here"
    return [Missing(fact, "free some disk, or give --run a folder on another one")]


def _memory_cure(job: Job, memory: Memory, free: float) -> str:
    config = job.config
    if memory.held + memory.gradients > free:
        gpu = "a GPU with more" if job.device == "cpu" else "a GPU with more of it"
        return f"{gpu}, or a smaller model"
    if memory.cache > memory.update:
        return f"lower rollout.cache_tokens, now {config.rollout.cache_tokens:,}"
    cure = f"lower update.microbatch_tokens, now {config.update.microbatch_tokens:,}"
    if config.model.checkpoint_activations:
        return cure
    return f"{cure}, or set model.checkpoint_activations = true"


def free_memory(device: str) -> float:
    """Bytes that a new process could have."""
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    return float(psutil.virtual_memory().available)


def free_disk() -> float:
    """Bytes that are free where the command is given."""
    return float(shutil.disk_usage(Path.cwd()).free)
