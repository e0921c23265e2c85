"""Services that can be sent the metrics of a run, beside `metrics.jsonl`.

Each is imported only where a recipe names it. On resume a sink is told the step from which the run
goes on: TensorBoard cuts its curve back to it, W&B drops the steps that it has already.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Sink(NamedTuple):
    """`log(step, metrics)` and `close()`."""

    log: Callable[[int, Mapping[str, float]], None]
    close: Callable[[], None]


Opener = Callable[[Any, Path, str, int, Mapping[str, Any]], Sink]
"""(module, run folder, project, step to go on from, recipe) -> Sink."""


def _wandb(module: Any, folder: Path, project: str, step: int, recipe: Mapping[str, Any]) -> Sink:
    name = folder.resolve().name
    # A run's id is its folder's name. W&B drops steps that it has: those that are replayed are the
    # same. Rewinding (resume_from) is a preview, and refuses a run that was killed just now.
    run = module.init(
        project=project,
        id=name,
        name=name,
        dir=str(folder),
        config=dict(recipe),
        resume="allow" if step else None,
    )
    return Sink(lambda at, metrics: run.log(dict(metrics), step=at), run.finish)


def _tensorboard(
    module: Any, folder: Path, project: str, step: int, recipe: Mapping[str, Any]
) -> Sink:
    purge_step = step + 1 if step else 0  # without a checkpoint the run begins anew, at step 0
    writer = module.SummaryWriter(log_dir=str(folder / "tensorboard"), purge_step=purge_step)

    def log(at: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            writer.add_scalar(key, value, at)
        writer.flush()

    return Sink(log, writer.close)


def _trackio(module: Any, folder: Path, project: str, step: int, recipe: Mapping[str, Any]) -> Sink:
    # trackio cannot take back what it was sent; repeated steps show as repeated points.
    run = module.init(
        project=project, name=folder.resolve().name, config=dict(recipe), resume="allow"
    )
    return Sink(lambda at, metrics: run.log(dict(metrics), step=at), run.finish)


SINKS: dict[str, tuple[str, Opener]] = {
    "wandb": ("wandb", _wandb),
    "tensorboard": ("torch.utils.tensorboard", _tensorboard),
    "trackio": ("trackio", _trackio),
}
"""Name in the recipe -> (module to import, how to open it)."""


def check_sinks(names: Sequence[str]) -> None:
    """ValueError, with the cure, when the package of a named sink is not installed."""
    for name in names:
        try:
            importlib.import_module(SINKS[name][0])
        except ImportError:
            raise ValueError(
                f"log.sinks names {name}, which is not installed: pip install 'archer-rl[{name}]'"
            ) from None


def open_sinks(
    names: Sequence[str], folder: Path, project: str, step: int, recipe: Mapping[str, Any]
) -> list[Sink]:
    """Opens the services that a recipe names; ValueError when one of them refuses."""
    sinks = []
    for name in names:
        module, open_sink = SINKS[name]
        try:
            sinks.append(open_sink(importlib.import_module(module), folder, project, step, recipe))
        except Exception as error:  # whatever a service thinks of: no key, no network ...
            raise ValueError(
                f"log.sinks: {name} cannot be opened: {error}; mend that, or leave it out"
            ) from error
    return sinks
