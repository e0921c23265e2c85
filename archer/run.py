"""The run folder: what is in it, how checkpoints become complete, and how a run goes on.

    config.toml            the resolved recipe
    environment.json       versions, device, threads, data hashes
    metrics.jsonl          one object a step
    rollouts/step-*.jsonl  every completion with its verdict; .npz beside it: per-token arrays
    pending/step-*.npz     judged groups of steps that no checkpoint covers yet
    eval/step-*.json       evaluations
    checkpoints/step-*/    weights, optimizer, state, judged groups of the steps that were sampled
                           ahead, and a manifest with a checksum of each file

A checkpoint is complete or not there: it is written aside, synced, and renamed, while the next step
is under way. When a run goes on, everything later than its newest checkpoint is cut back, except
judged groups: replaying a step from the same weights and the same groups gives the same bits, so
they are not sampled again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from archer.config import Config, changed_knobs, config_toml, flat, load_config
from archer.files import PARTIAL, lock, sync_folder, written_whole
from archer.records import StepGroups, load_groups, save_groups

MANIFEST, STATE = "manifest.json", "state.json"

FOLDERS = ("rollouts", "pending", "eval", "checkpoints")

NAMED_AFTER_A_STEP = re.compile(r"step-(\d{6,})(?:\.jsonl|\.json|\.npz)?")
"""What a run may remove. Any other name was put there by a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What the loop itself carries from step to step, beside the engine's tensors.

    Example, after step 3 of 8 problems each:
        State(step=3, position=24, entropy_coefficient=0.0, best_score=0.4, best_step=2)
    """

    step: int = 0
    position: int = 0
    """Of the problem stream: problems drawn so far."""
    entropy_coefficient: float = 0.0
    best_score: float | None = None
    best_step: int | None = None


class Run:
    """A run folder that this process alone writes to."""

    def __init__(self, folder: Path, config: Config, held: IO[bytes]) -> None:
        self.folder = folder
        self.config = config
        self._lock = held
        self._metrics: IO[str] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._checkpoint: Future[None] | None = None

    def path(self, kind: str, step: int, suffix: str = "") -> Path:
        return self.folder / kind / f"step-{step:06d}{suffix}"

    # ------------------------------------------------------------------ metrics and groups

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends a step's line; on disk when this returns."""
        if self._metrics is None:
            self._metrics = open(self.folder / "metrics.jsonl", "a", encoding="utf-8")
        self._metrics.write(json.dumps({"step": step, **metrics}) + "\n")
        self._metrics.flush()
        os.fsync(self._metrics.fileno())

    def keep_groups(self, step: int, groups: StepGroups) -> None:
        """Puts a step's judged groups on disk before they are learned from."""
        save_groups(self.path("pending", step, ".npz"), groups)

    def kept_groups(self, step: int) -> StepGroups | None:
        """A step's judged groups from before a kill; ValueError when the file is damaged.

        Those that a checkpoint holds for the steps behind it are looked for in the newest one.
        """
        path = self.path("pending", step, ".npz")
        if not path.exists() and (steps := checkpoint_steps(self.folder)):
            stored = self.path("checkpoints", steps[-1]) / ahead_name(step)
            if stored.exists():
                with written_whole(path) as file:
                    file.write(stored.read_bytes())
        return load_groups(path) if path.exists() else None

    # ------------------------------------------------------------------ checkpoints

    def checkpoint(self, state: State, save: Callable[[Path], Callable[[], None]]) -> Path:
        """Begins a checkpoint; it becomes complete in a thread (`finish_checkpoint`).

        `save` takes what belongs into it, as it is now, for the folder that it is given; what it
        returns waits until that is written. The old ones go only after this one is complete: the
        newest `checkpoint.keep` stay, and the best.
        """
        self.finish_checkpoint()
        target = self.path("checkpoints", state.step)
        aside = target.with_name(f".{target.name}{PARTIAL}")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        with _removed_if_it_fails(aside):
            written = save(aside)
        self._checkpoint = self._thread.submit(self._complete, aside, target, state, written)
        return target

    def finish_checkpoint(self, *, wait: bool = True) -> None:
        """Waits until the checkpoint that was begun is there; raises what hindered it.

        Without `wait` it is left alone where it is not yet done.
        """
        begun = self._checkpoint
        if begun is not None and (wait or begun.done()):
            self._checkpoint = None
            begun.result()

    def _complete(
        self, aside: Path, target: Path, state: State, written: Callable[[], None]
    ) -> None:
        with _removed_if_it_fails(aside):
            written()
            _seal(aside, state)
        os.rename(aside, target)
        sync_folder(target.parent)
        self._prune(state)

    def _prune(self, state: State) -> None:
        steps = checkpoint_steps(self.folder)
        keep = {*steps[-self.config.checkpoint.keep :], state.best_step}
        for step in steps:
            if step not in keep:
                # Renamed first: one that is being removed is not there, like one being written.
                path = self.path("checkpoints", step)
                shutil.rmtree(path.rename(path.with_name(f".{path.name}{PARTIAL}")))
        for step, path in _of_steps(self.folder / "pending"):
            if step <= state.step:
                path.unlink()

    def close(self) -> None:
        # A checkpoint that is still being written when an error ends the run may yet become whole.
        self._thread.shutdown(wait=True)
        if self._metrics is not None:
            self._metrics.close()
        self._lock.close()


def open_run(
    folder: Path, config: Config, *, say: Callable[[str], None], fork: Path | None = None
) -> tuple[Run, State]:
    """Opens a run folder, new or to go on with, and says from which step.

    With `fork`, the newest checkpoint of `folder` is continued in the new folder `fork`, whatever
    knobs have changed; the same call again goes on with the fork. Raises ValueError for a folder
    that cannot be used, a recipe whose knobs differ where they must not, and a damaged checkpoint.
    """
    if fork is not None:
        if fork.resolve() == folder.resolve():
            raise ValueError(f"--fork {fork} is the run itself; give a new folder")
        if not (fork / "config.toml").is_file():
            _fork(folder, fork, config, say)
        folder = fork
    for name in FOLDERS:
        try:
            (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"{folder}: cannot be written to ({error.strerror}); give another --run folder"
            ) from None
    held = _lock(folder)
    try:
        _take_recipe(folder / "config.toml", config, say)
        run = Run(folder, config, held)
        state = _newest_state(run)
        _cut_back(run, state.step)
    except BaseException:
        held.close()
        raise
    if state.step:
        say(f"continuing after step {state.step} from {run.path('checkpoints', state.step)}")
    return run, state


def _take_recipe(stored: Path, config: Config, say: Callable[[str], None]) -> None:
    """Writes the recipe into the run; ValueError when it is not the one that the run began with."""
    folder = stored.parent
    if not stored.exists() and ((folder / "metrics.jsonl").exists() or checkpoint_steps(folder)):
        raise ValueError(
            f"{folder} holds metrics or checkpoints, but no {stored.name} says of which run; "
            f"put its {stored.name} back, or give another --run folder"
        )
    if stored.exists():
        before = load_config(stored)
        free, fixed = changed_knobs(before, config)
        if fixed and not _is_begun(folder):
            say(f"begun anew: {folder} held a recipe and no step")
        elif fixed:
            raise ValueError(
                f"{folder} was begun with other knobs: "
                f"{_differences(before, config, fixed)}; "
                "set them back, or continue in a new folder with --fork NEWDIR"
            )
        elif free:
            say(f"changed since the run began: {_differences(before, config, free)}")
    with written_whole(stored) as file:
        file.write(config_toml(config).encode())


def _is_begun(folder: Path) -> bool:
    """Whether anything was sampled or learned: a mistake may have ended the run before that."""
    return any(any((folder / name).iterdir()) for name in FOLDERS if (folder / name).is_dir()) or (
        (folder / "metrics.jsonl").exists()
    )


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints of a run, oldest first."""
    found = _of_steps(folder / "checkpoints")
    return [step for step, path in found if path.is_dir() and not path.suffix]


def read_checkpoint(folder: Path) -> State:
    """Checks every file of a checkpoint against its manifest and returns the loop's state.

    Raises ValueError, naming the file and the cure, when one is missing or damaged.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError):
        raise ValueError(
            f"{folder}: no readable {MANIFEST}, so this is no complete checkpoint; "
            "delete the folder to use the one before it"
        ) from None
    for name, expected in files.items():
        path = folder / name
        if not path.exists() or checksum(path) != expected:
            fault = "does not match its checksum" if path.exists() else "is missing"
            raise ValueError(
                f"{path} {fault}: the checkpoint is damaged; "
                f"delete {folder} to use the one before it"
            )
    return State(**json.loads((folder / STATE).read_text()))


def ahead_name(step: int) -> str:
    """File of a checkpoint that holds the judged groups of a later step."""
    return f"ahead-{step:06d}.npz"


def checksum(path: Path) -> str:
    """blake2b of a file, 128 bits in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@contextmanager
def _removed_if_it_fails(folder: Path) -> Iterator[None]:
    """What was written of a checkpoint must not keep a full disk full."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _seal(folder: Path, state: State) -> None:
    """Adds the loop's state and the manifest, and syncs every file."""
    (folder / STATE).write_text(json.dumps(asdict(state), indent=1) + "\n")
    names = sorted(path.name for path in folder.iterdir())
    manifest = {"files": {name: checksum(folder / name) for name in names}}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    for name in [*names, MANIFEST]:
        _sync(folder / name)
    sync_folder(folder)


def _newest_state(run: Run) -> State:
    steps = checkpoint_steps(run.folder)
    if not steps:
        return State(entropy_coefficient=run.config.entropy.coefficient)
    return read_checkpoint(run.path("checkpoints", steps[-1]))


def _cut_back(run: Run, step: int) -> None:
    """Removes what was written after the checkpoint of `step`, and what a kill left half done."""
    last = step or -1  # without a checkpoint, what came before the first step is done again too
    path = run.folder / "metrics.jsonl"
    if path.exists():
        rows = [row for row in _whole_lines(path) if row["step"] <= last]
        with written_whole(path) as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    for kind in ("rollouts", "eval"):
        for written, path in _of_steps(run.folder / kind):
            if written > last:
                path.unlink()
    for kind in FOLDERS:  # what lies beside them is written anew at every start
        for path in (run.folder / kind).glob(f".*{PARTIAL}"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _fork(source: Path, target: Path, config: Config, say: Callable[[str], None]) -> None:
    """Makes `target` a run of `config` that stands at the newest checkpoint of `source`."""
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"--fork {target}: the folder is not empty; name a new one")
    steps = checkpoint_steps(source)
    if not steps:
        raise ValueError(f"{source} has no checkpoint to fork from; train it first")
    checkpoint = source / "checkpoints" / f"step-{steps[-1]:06d}"
    state = replace(read_checkpoint(checkpoint), best_score=None, best_step=None)
    if config.entropy != load_config(source / "config.toml").entropy:
        state = replace(state, entropy_coefficient=config.entropy.coefficient)
    aside = target.with_name(f".{target.name}{PARTIAL}")
    shutil.rmtree(aside, ignore_errors=True)
    for kind in ("rollouts", "eval"):
        (aside / kind).mkdir(parents=True)
        for step, path in _of_steps(source / kind):
            if step <= state.step:
                shutil.copy2(path, aside / kind / path.name)
    copied = aside / "checkpoints" / checkpoint.name
    # Groups of later steps (`ahead_name`) were sampled by another recipe: this one samples its own.
    ignored = shutil.ignore_patterns(MANIFEST, "ahead-*")
    shutil.copytree(checkpoint, copied, ignore=ignored)
    _seal(copied, state)
    if (source / "metrics.jsonl").exists():
        shutil.copy2(source / "metrics.jsonl", aside / "metrics.jsonl")
    (aside / "config.toml").write_text(config_toml(config), encoding="utf-8")
    os.rename(aside, target)
    sync_folder(target.parent)
    say(f"forked {source} at step {state.step} into {target}")


def _lock(folder: Path) -> IO[bytes]:
    file = open(folder / ".lock", "wb")
    try:
        lock(
            file,
            f"{folder} is in use by another process; wait for it, or give another --run folder",
        )
    except ValueError:
        file.close()
        raise
    return file


def _differences(before: Config, after: Config, names: Sequence[str]) -> str:
    old, new = flat(before), flat(after)
    return ", ".join(f"{name} = {old.get(name)!r} -> {new.get(name)!r}" for name in names)


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file without those that a kill tore."""
    rows = []
    for line in path.read_bytes().splitlines():
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def _of_steps(folder: Path) -> list[tuple[int, Path]]:
    """What lies in a folder under the name of a step, in the order of the steps."""
    found = [(NAMED_AFTER_A_STEP.fullmatch(path.name), path) for path in folder.glob("step-*")]
    return sorted((int(name[1]), path) for name, path in found if name)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
