"""`archer export`: from a checkpoint to a Hugging Face folder that anyone can load, and its check.

The folder holds safetensors, tokenizer, chat template, generation config, a model card, the recipe
(`archer.toml`, from which `archer eval` takes its settings) and `parity.json`: how far apart the
log-probs of the reloaded folder, of the live weights and of the sampler were. It is written aside
and renamed when that is known. Only then, and where it was asked for, is it uploaded.

A checkpoint that many ranks wrote, here or with other code, has no recipe and no responses: its
weights are compared (`archer.merge`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import archer
from archer.config import Config, config_toml, load_config
from archer.engine.local import stored_weights
from archer.files import sync_folder
from archer.merge import compare_weights, find_sharded, read_weights, weights_card, write_model
from archer.model.load import load_config as load_model_config
from archer.model.load import load_model, load_tokenizer
from archer.model.sharded import layout
from archer.parity import PARITY, Difference, Parity, compare, read_responses, reload
from archer.push import check_target, push
from archer.run import MANIFEST, State, checkpoint_steps, read_checkpoint
from archer.terminal import Terminal, table

RECIPE, DIFFERENCES = "archer.toml", "parity.json"

SHARD_SIZE = "5GB"

BROKEN = 0.1
"""Mean difference in nats beyond which an export is not of these weights; bfloat16's own rounding
stays far below it."""


class ParityBroken(RuntimeError):
    """The exported folder does not compute what was trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint of a run, with the recipe that it was trained by.

    Example:
        Checkpoint(folder=Path("runs/quickstart/checkpoints/step-000030"),
                   run=Path("runs/quickstart"), config=..., state=State(step=30, ...))
    """

    folder: Path
    run: Path
    config: Config
    state: State

    @property
    def label(self) -> str:
        return f"{self.run.resolve().name}-{self.folder.name}"


def export(
    checkpoint: Path,
    out: Path,
    *,
    dtype: str,
    terminal: Terminal,
    base: str | None = None,
    max_shard_size: str = SHARD_SIZE,
    push_to: str | None = None,
) -> str:
    """Writes a checkpoint to the new folder `out`, and says what came of it.

    Args:
        checkpoint: a run (its newest), one of its checkpoints, or a folder that many ranks wrote.
        out: must not be there yet, or be empty.
        dtype: of the weights, "float32" or "bfloat16".
        terminal: hears what is going on.
        base: for a folder of many ranks, the model that gives config and tokenizer.
        max_shard_size: of one safetensors file, such as "5GB".
        push_to: a name on the hub that the folder is uploaded to when it is finished.

    Raises ValueError for a folder that is no checkpoint, a damaged one, an `out` that is in use, or
    a hub that does not take the folder, which then stays;
    ParityBroken when the reloaded folder gives other log-probs or weights than what was trained.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already and not empty; name a new folder")
    if not re.fullmatch(r"[1-9]\d*[KMGT]B", max_shard_size):
        raise ValueError(f"{max_shard_size!r} is no size of a file: give one such as 500MB or 5GB")
    if push_to is not None:
        check_target(push_to)
    if not is_checkpoint(checkpoint) and (folder := find_sharded(checkpoint)):
        said = _export_sharded(folder, out, dtype, base, max_shard_size, terminal)
    elif base is None:
        said = _export_run(find_checkpoint(checkpoint), out, dtype, max_shard_size, terminal)
    else:
        raise ValueError(
            f"{checkpoint} is not what many ranks wrote, and --base is for that alone: a run knows "
            "its model; leave --base out"
        )
    if push_to is not None:
        terminal.say(f"uploading {out} as {push_to}")
        said += f"\nuploaded: {push(out, push_to)}"
    return said


def _export_run(
    found: Checkpoint, out: Path, dtype: str, max_shard_size: str, terminal: Terminal
) -> str:
    terminal.say(f"exporting {found.folder} in {dtype}")
    with _written_aside(out) as aside:
        write_trained(found, aside, dtype, max_shard_size)
        responses = read_responses(found.folder / PARITY)
        terminal.say("loading it again in a fresh process, to compare log-probs")
        parity = compare(responses, reload(aside, found.folder / PARITY), dtype=dtype)
        if parity.live_exported.mean > BROKEN:
            raise ParityBroken(
                f"the exported model gives other log-probs than the trained one, by "
                f"{parity.live_exported.mean:.3g} nats a token: {out} is not written; please "
                "report this with the recipe"
            )
        (aside / DIFFERENCES).write_text(json.dumps(asdict(parity), indent=1) + "\n")
        (aside / "README.md").write_text(_card(found, parity), encoding="utf-8")
    return f"{out}: step {found.state.step} of {found.run}, {dtype}\n\n" + describe_parity(parity)


def _export_sharded(
    folder: Path, out: Path, dtype: str, base: str | None, max_shard_size: str, terminal: Terminal
) -> str:
    terminal.say(f"putting {folder} together ({layout(folder)})")
    weights = read_weights(folder, base)
    with _written_aside(out) as aside:
        write_model(weights, aside, dtype=dtype, max_shard_size=max_shard_size)
        terminal.say("loading it again, to compare weights")
        parity = compare_weights(weights, aside, dtype=dtype)
        if parity.not_exported:
            raise ParityBroken(
                f"{parity.not_exported} of {parity.tensors} exported tensors are not what was read "
                f"from {folder}: {out} is not written; please report this with the config.json"
            )
        (aside / DIFFERENCES).write_text(json.dumps(asdict(parity), indent=1) + "\n")
        (aside / "README.md").write_text(weights_card(weights, parity), encoding="utf-8")
    return (
        f"{out}: {parity.parameters:,} parameters of {folder}, {dtype}\n"
        f"loaded again: {parity.tensors} tensors, each as it was read ({parity.read}), "
        f"rounded to {dtype} by at most {parity.largest_rounding:.1e}"
    )


def find_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in this folder, or the newest one of the run in it, checked against its sums.

    Raises ValueError when there is none, and when it is damaged.
    """
    if is_run(path):
        steps = checkpoint_steps(path)
        if not steps:
            raise ValueError(f"{path} has no complete checkpoint yet; train it first")
        path = path / "checkpoints" / f"step-{steps[-1]:06d}"
    elif not path.is_dir():
        raise ValueError(f"there is no folder {path}; name a run or one of its checkpoints")
    elif not is_checkpoint(path):
        raise ValueError(
            f"{path} is neither a run (it has no config.toml) nor a checkpoint (no {MANIFEST}); "
            "name a run such as runs/quickstart, a folder in its checkpoints/, or one with the "
            "files that many ranks wrote"
        )
    run = path.resolve().parents[1]
    if not (run / "config.toml").is_file():
        raise ValueError(
            f"{path} is no longer in its run: no config.toml in {run}; put it back, or name the run"
        )
    state = read_checkpoint(path)
    shown = path.parents[1] if len(path.parents) > 1 else run
    return Checkpoint(folder=path, run=shown, config=load_config(run / "config.toml"), state=state)


def is_run(path: Path) -> bool:
    """Whether this is a run's folder."""
    return (path / "config.toml").is_file()


def is_checkpoint(path: Path) -> bool:
    """Whether this is a complete checkpoint's folder."""
    return (path / MANIFEST).is_file()


def trained_model(checkpoint: Checkpoint, *, dtype: str, device: torch.device) -> Any:
    """The recipe's model as transformers makes it, with the checkpoint's weights.

    Raises ValueError when the checkpoint's names and shapes are another model's.
    """
    origin = checkpoint.config.model
    model = load_model(origin.name, dtype=dtype, device=device, revision=origin.revision)
    weights = stored_weights(checkpoint.folder)
    own = dict(model.named_parameters())
    if {n: w.shape for n, w in own.items()} != {n: w.shape for n, w in weights.items()}:
        raise ValueError(
            f"{checkpoint.folder} holds the weights of another model than model.name = "
            f"{origin.name!r} has now; give the run's config.toml the model it was trained from"
        )
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(weights[name])
    return model


def write_trained(
    checkpoint: Checkpoint, folder: Path, dtype: str, max_shard_size: str = SHARD_SIZE
) -> None:
    """Weights, config, generation config, tokenizer and recipe, into a folder that exists."""
    config = checkpoint.config
    model = trained_model(checkpoint, dtype=dtype, device=torch.device("cpu"))
    # As its makers wrote it: for training, the cache and all that is random were switched off.
    model.config = load_model_config(config.model.name, revision=config.model.revision)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer = load_tokenizer(config.model.name, revision=config.model.revision)
    if config.prompt.template not in ("model", "raw"):
        tokenizer.chat_template = Path(config.prompt.template).expanduser().read_text("utf-8")
        prompt = config.prompt.model_copy(update={"template": "model"})
        config = config.model_copy(update={"prompt": prompt})
    tokenizer.save_pretrained(folder)
    (folder / RECIPE).write_text(config_toml(config), encoding="utf-8")


def describe_parity(parity: Parity) -> str:
    """The three differences as a table."""
    rows = [
        _row("live - exported", parity.live_exported),
        _row("live - sampler", parity.live_sampler),
        _row("sampler - exported", parity.sampler_exported),
    ]
    header = (f"log-probs of {parity.tokens} tokens", "largest difference", "mean")
    return table(rows, header)


def _row(name: str, difference: Difference) -> tuple[str, ...]:
    return name, f"{difference.max:.1e}", f"{difference.mean:.1e}"


@contextmanager
def _written_aside(out: Path) -> Iterator[Path]:
    """A folder that takes the place of `out` when the block ends well, and is removed if not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.{os.getpid()}.aside")
    aside.mkdir()
    try:
        yield aside
        for path in [aside, *aside.rglob("*")]:
            if path.is_dir():  # a tokenizer's further templates lie in one
                sync_folder(path)
                continue
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        os.rename(aside, out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


# ------------------------------------------------------------------ the card

HUB_NAMES = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}


def _card(checkpoint: Checkpoint, parity: Parity) -> str:
    """A model card with what one needs to judge the weights, and to train them again."""
    config, run = checkpoint.config, checkpoint.run
    base = HUB_NAMES.get(config.model.name, config.model.name)
    is_hub_name = base.count("/") == 1 and not Path(base).exists()
    head = ["---", "library_name: transformers", *([f"base_model: {base}"] if is_hub_name else [])]
    head += ["tags: [reinforcement-learning, reasoning, archer]", "---"]
    text = [
        *head,
        f"# {checkpoint.label}",
        "",
        f"{base}, trained to step {checkpoint.state.step} with the loss `{config.loss.name}` by "
        f"archer {archer.__version__}: reinforcement learning from verifiable rewards.",
        "",
        "## Scores",
        "",
        *_scores(run, checkpoint.state.step),
        "",
        "## Prompts",
        "",
        f"System message: {config.prompt.system!r}. Appended to each question: "
        f"{config.prompt.suffix!r}. Template: `{config.prompt.template}`"
        + (f", with {config.prompt.template_args}." if config.prompt.template_args else "."),
        "",
        "## Log-probs",
        "",
        f"{parity.responses} responses scored by this folder, loaded again in a fresh process, "
        f"differ from what the trained weights gave by at most {parity.live_exported.max:.1e} nats "
        f"a token (mean {parity.live_exported.mean:.1e}); the sampler from the trained weights by "
        f"at most {parity.live_sampler.max:.1e}. All numbers are in `{DIFFERENCES}`.",
        "",
        "## Data",
        "",
        *_data(run),
        "",
        "## Recipe",
        "",
        "```toml",
        config_toml(config).rstrip(),
        "```",
    ]
    return "\n".join(text) + "\n"


def _scores(run: Path, step: int) -> list[str]:
    """The first evaluation of the run and the last one up to this step, as table rows."""
    names = sorted((run / "eval").glob("step-*.json"))
    reached = [path for path in names if int(path.stem.removeprefix("step-")) <= step]
    if not reached:
        return ["This run was not evaluated up to this step."]
    lines = ["| step | score | 95 % interval | problems | samples |", "|--:|--:|--:|--:|--:|"]
    for path in dict.fromkeys((reached[0], reached[-1])):
        found = json.loads(path.read_text())
        score = found["score"]
        lines.append(
            f"| {int(path.stem.removeprefix('step-'))} | {score['mean']:.3f} | "
            f"{score['low']:.3f} to {score['high']:.3f} | {found['problems']} | "
            f"{found['samples']} |"
        )
    return lines


def _data(run: Path) -> list[str]:
    path = run / "environment.json"
    if not path.is_file():
        return ["The run's environment.json is not there."]
    data = json.loads(path.read_text())["data"]
    return [
        f"- {part}: {data[part]} problems, hash `{data['hashes'][part]}`"
        for part in ("train", "evaluate")
    ]
