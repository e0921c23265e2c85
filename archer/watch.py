"""`archer watch`: evaluates every checkpoint of a run once, as it appears.

    RUN/watch/
      step-000030-NAME.json, .jsonl   as `archer eval` writes them, for each problem file
      step-000030-NAME.missed         why there is no result
      step-000030-NAME.sent           its scores were sent to the services that the recipe names
      settings-NAME.json              what all evaluations on this problem file have in common
      scores.md, metrics.jsonl        all scores by step (archer.by_step)
      held-step-000030/               what is being evaluated: hard links to a checkpoint, or its
                                      export; a run removes old checkpoints, and these remain
      .claims/                        who works on which step (archer.claims)

Any number of watchers share a folder, on one machine or several: a step is worked on by whoever
claimed it, and everything that another needs to know is a file. A killed watcher leaves a claim
that ends with it; whoever takes that over goes on with what is judged already (archer.unfinished).

Beside runs, folders of exports and of what many ranks wrote are watched, by the number at the end
of each name (`global_step_20`). Those say neither when they are complete nor when there are no
more: a folder is taken when it has not changed for a minute, and watching ends with Ctrl-C, or
--once.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from errno import EMLINK, EOPNOTSUPP, EPERM, EXDEV
from functools import cache
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple

from safetensors import SafetensorError

from archer.by_step import (
    GONE,
    LONGEST,
    find_results,
    markdown,
    metrics,
    missed_path,
    numbers,
    result_path,
    text,
)
from archer.claims import ClaimLost, Claims
from archer.config import Config, load_config
from archer.data.sources import SourceSpec, train_and_eval
from archer.evaluate import described
from archer.evaluate_model import (
    Asked,
    Job,
    SamplerAlone,
    Subject,
    asked_by_suite,
    find_subject,
    measure,
    open_job,
    open_sampler,
    part_of,
)
from archer.export import Checkpoint, export, is_checkpoint, is_run
from archer.merge import find_sharded
from archer.run import checkpoint_steps, read_checkpoint
from archer.scores import Evaluation, read_evaluation
from archer.sinks import Sink, check_sinks, open_sinks
from archer.suites import unexpected
from archer.terminal import Terminal
from archer.unfinished import OtherEvaluation, differences
from archer.verify.verifiers import VERIFIERS

POLL = 10.0
"""Seconds between two looks at the folder."""

BACK_OFF = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds before each further attempt at a checkpoint that cannot be evaluated."""

QUIET = 60.0
"""Seconds without a change after which a folder of other code's is taken to be complete."""

NO_LINKS = (EXDEV, EPERM, EOPNOTSUPP, EMLINK)
"""Where no hard link can be made, a checkpoint is evaluated where it is."""

TROUBLE = (OSError, RuntimeError, SafetensorError)
"""What may be otherwise the next time: a file being copied, memory that others use."""

NUMBERED = re.compile(r".*?(\d+)")

HELD = "held-step-"


class Watched(NamedTuple):
    """The table, and how many evaluations were given up."""

    table: str
    failed: int


class Gone(Exception):
    """The checkpoint was removed before it was held."""


class Trouble(Exception):
    """The checkpoint cannot be evaluated now; the message says why."""


def watch(
    run: Path,
    *,
    terminal: Terminal,
    problems: Sequence[Path] = (),
    suites: Sequence[str] = (),
    out: Path | None = None,
    poll: float = POLL,
    once: bool = False,
    base: str | None = None,
    ks: Sequence[int] = (),
    **asked: Any,
) -> Watched:
    """Evaluates the checkpoints of `run` on each problem file and suite, until the run is finished.

    Args:
        run: a run, or a folder of exports or of what many ranks wrote.
        terminal: hears of each result.
        problems: files, each with a name of its own.
        suites: names of `archer.suites.SUITES`.
        out: where results go, RUN/watch if not given.
        poll: seconds between two looks.
        once: ends when what is there is evaluated, by whichever watcher.
        base: for what many ranks wrote, the model that gives config and tokenizer.
        ks: of pass@k.
        asked: settings as `evaluate_model` takes them; what is not given is as in the suite, else
            as the run was trained.

    Raises ValueError, before weights load, for a folder that is nothing of the kind, and for
    problems and settings that cannot be evaluated, or are not those that `out` was begun with.
    """
    if not poll > 0:
        raise ValueError(f"--poll {poll:g}: must be above 0; give the seconds between two looks")
    source = find_source(run)
    files = [Asked(problems=path, ks=ks, settings=asked) for path in problems]
    found = [asked_by_suite(name, asked, terminal, ks=ks) for name in suites]
    exams = _by_name([*files, *found])
    config = load_config(run / "config.toml") if source.is_run else None
    jobs: dict[str, Job] = {}
    if config is not None:
        if base is not None:
            raise ValueError(
                f"--base {base} is for what many ranks wrote: {run} is a run and knows its model; "
                "leave --base out"
            )
        check_sinks(config.log.sinks)
        subject = Subject(label=run.resolve().name, recipe=config.model_dump(mode="json"))
        jobs = {name: open_job(subject, by) for name, by in exams.items()}
        counts = {name: len(data.evaluate) for name, (_, data) in jobs.items()}
    else:  # settings are checked by the first that is complete
        counts = {name: _num_problems(by) for name, by in exams.items()}
    out = out or run / "watch"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{out}: cannot be written to ({error.strerror}); give another --out"
        ) from None
    for name, by in exams.items():
        if by.suite and (note := unexpected(by.suite, counts[name])):
            terminal.say(note)
    with (
        closing(Claims(out / ".claims")) as claims,
        closing(Services(run, out, config)) as services,
    ):
        watcher = Watcher(
            source=source,
            out=out,
            exams=exams,
            jobs=jobs,
            base=base,
            terminal=terminal,
            claims=claims,
            services=services,
            again=set(out.glob("step-*.missed")),
        )
        for name, job in jobs.items():
            watcher.check_settings(name, job)
        watcher.until_done(poll, once)
    results = find_results(out)
    failed = sum(
        why != GONE for name in exams.keys() & results for why in results[name].missed.values()
    )
    return Watched(f"{text(results)}\n\n{out / 'scores.md'}", failed)


# ------------------------------------------------------------------ what there is to evaluate


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A folder in which checkpoints appear.

    Example: Source(folder=Path("runs/quickstart"), is_run=True)
    """

    folder: Path
    is_run: bool

    def found(self) -> dict[int, Path]:
        """What has a step's number, by step, complete or not."""
        if self.is_run:
            names = {step: f"step-{step:06d}" for step in checkpoint_steps(self.folder)}
            return {step: self.folder / "checkpoints" / name for step, name in names.items()}
        found: dict[int, Path] = {}
        for path in sorted(self.folder.iterdir()):
            match = NUMBERED.fullmatch(path.name)
            if match is None or path.name.startswith(".") or not _is_model(path):
                continue
            if other := found.get(int(match[1])):
                raise ValueError(
                    f"{other} and {path} are of one step by their names; put one elsewhere"
                )
            found[int(match[1])] = path
        return found

    def is_complete(self, path: Path, now: float) -> bool:
        """Whether nothing more is written to it, as far as can be told: what is copied may still be
        damaged, and no file of an export says that all others are there."""
        if self.is_run:
            return is_checkpoint(path)
        with suppress(FileNotFoundError):
            changed = max(each.stat().st_mtime for each in [path, *path.rglob("*")])
            return now - changed > QUIET
        return False

    def is_finished(self) -> bool:
        """Whether no more will come: the last step of a run always has a checkpoint."""
        if not self.is_run:
            return False
        complete = [step for step, path in self.found().items() if is_checkpoint(path)]
        steps = load_config(self.folder / "config.toml").train.steps
        return max(complete, default=0) >= steps


def find_source(folder: Path) -> Source:
    """What a folder is; ValueError where nothing in it can be watched."""
    if is_run(folder):
        return Source(folder=folder, is_run=True)
    if is_checkpoint(folder) or _is_model(folder):
        raise ValueError(
            f"{folder} is one checkpoint or export; name the folder that they appear in, or use "
            "archer eval"
        )
    source = Source(folder=folder, is_run=False)
    if not folder.is_dir() or not source.found():
        raise ValueError(
            f"{folder} is no run (it has no config.toml), and holds no exports or checkpoints of "
            "many ranks whose names end in a step's number; name a run such as runs/quickstart"
        )
    return source


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file() or find_sharded(path) is not None


def _by_name(exams: Sequence[Asked]) -> dict[str, Asked]:
    """What is asked for, by the names of results. ValueError for nothing, and for a name twice."""
    if not exams:
        raise ValueError("nothing to score checkpoints by; give --problems or --suite")
    found: dict[str, Asked] = {}
    for by in exams:
        assert by.problems is not None
        name = by.suite or by.problems.stem
        if other := found.get(name):
            raise ValueError(
                f"--problems {other.problems} and {by.problems}: results are named after {name!r} "
                "for both; rename one of them"
            )
        found[name] = by
    return found


def _num_problems(by: Asked) -> int:
    """How many problems there are; ValueError for a file that is wrong."""
    spec = SourceSpec(source=str(by.problems))
    _, problems, _ = train_and_eval([], [spec], verifiers=VERIFIERS)
    return len(problems)


# ------------------------------------------------------------------ evaluating it


@dataclass(slots=True, kw_only=True)
class Watcher:
    """One process that evaluates what appears; all but when to try again is in files."""

    source: Source
    out: Path
    exams: Mapping[str, Asked]
    """What is asked for, by the names of the results."""
    jobs: Mapping[str, Job]
    """What to evaluate a run's checkpoints by; empty where each brings its own settings."""
    base: str | None
    terminal: Terminal
    claims: Claims
    services: Services
    again: set[Path]
    """Given up by an earlier command; this one tries once more."""
    seen: dict[int, Path] = field(default_factory=dict)
    tries: dict[int, int] = field(default_factory=dict)
    due: dict[int, float] = field(default_factory=dict)
    """When a step that could not be evaluated is tried again."""

    def until_done(self, poll: float, once: bool) -> None:
        """Evaluates until no more can come, or with `once` until all that is there is done."""
        while True:
            may_end = once or self.source.is_finished()  # asked first, or the last could be missed
            waiting, incomplete = self._waiting()
            if may_end and not waiting and not incomplete:
                self._publish()
                return
            now = monotonic()
            if not any(self._work(step) for step in waiting if self.due.get(step, now) <= now):
                later = [at - now for step in waiting if (at := self.due.get(step, 0.0)) > now]
                sleep(min([poll, *later]))

    def _waiting(self) -> tuple[list[int], bool]:
        """The steps that are not settled, and whether others are still being written."""
        now, found = self.claims.now(), self.source.found()
        complete = {s: path for s, path in found.items() if self.source.is_complete(path, now)}
        self.seen |= complete
        held = [int(path.name.removeprefix(HELD)) for path in self.out.glob(f"{HELD}*")]
        waiting = [step for step in sorted({*self.seen, *held}) if not self._is_settled(step)]
        # In a run, what has no manifest will never be a checkpoint: they appear whole.
        return waiting, not self.source.is_run and len(complete) < len(found)

    def _is_settled(self, step: int) -> bool:
        if not all(self._is_final(step, name) for name in self.exams):
            return False
        if self.claims.busy(_key(step)):  # with problem files of its own
            return True
        return not self.claims.claimed(_key(step)) and not self._held(step).exists()

    def _is_final(self, step: int, name: str) -> bool:
        result, missed = result_path(self.out, step, name), missed_path(self.out, step, name)
        if result.exists():
            left = part_of(result).exists() or missed.exists()
            return not left and self.services.have(result)
        return missed.exists() and not (missed in self.again and self._is_there(step))

    def _is_there(self, step: int) -> bool:
        return step in self.seen and self.seen[step].exists()

    def _work(self, step: int) -> bool:
        """Does what is left of a step, unless another does; False where nothing was done."""
        if not self.claims.take(_key(step)):
            return False
        left = [name for name in self.exams if not self._is_final(step, name)]
        try:
            self._evaluate(step, left)
        except ClaimLost:
            self.terminal.say(f"step {step}: taken over by another watcher")
            return True
        except Gone:
            self._give_up(step, GONE)
        except Trouble as trouble:
            if self._put_off(step, str(trouble)):
                return True
            self._give_up(step, str(trouble))
        self.due.pop(step, None)
        self.tries.pop(step, None)
        self._discard(self._held(step))
        self.claims.release(_key(step))
        return True

    def _evaluate(self, step: int, names: Sequence[str]) -> None:
        """Raises ClaimLost, Gone and Trouble; ValueError for the user's mistakes."""
        unmeasured = [name for name in names if not result_path(self.out, step, name).exists()]
        if unmeasured:
            with self._as_trouble(step, ValueError, *TROUBLE):
                subject, jobs = self._prepare(step, unmeasured)
            self._measure(step, subject, jobs)
        for name in names:
            out = result_path(self.out, step, name)
            part_of(out).unlink(missing_ok=True)  # a kill may have left it behind the result
            missed_path(self.out, step, name).unlink(missing_ok=True)
            self._publish()
            self.services.send(step, name, out)

    def _measure(self, step: int, subject: Subject, jobs: Mapping[str, Job]) -> None:
        config = next(iter(jobs.values()))[0]  # all have the same model
        engine = cache(lambda: open_sampler(config, subject.checkpoint))
        for name, job in jobs.items():
            self.check_settings(name, job)
        for name, job in jobs.items():
            with self._as_trouble(step, *TROUBLE):
                evaluation = self._go_on(step, name, subject, job, engine)
            score = evaluation.score
            self.terminal.say(
                f"step {step:<6}  {score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
                f"  {name[:LONGEST]}"
            )

    def _go_on(
        self, step: int, name: str, subject: Subject, job: Job, engine: Callable[[], SamplerAlone]
    ) -> Evaluation:
        (config, data), out = job, result_path(self.out, step, name)

        def go_on() -> Evaluation:
            return measure(
                subject,
                config,
                data,
                out,
                ks=self.exams[name].ks,
                terminal=self.terminal,
                engine=engine,
                check=lambda: self.claims.check(_key(step)),
            )

        if part_of(out).exists():
            # Whoever lost the claim may have it open and wake up: this one is another file.
            copied = shutil.copyfile(part_of(out), self.claims.own / out.name)
            os.replace(copied, part_of(out))
        try:
            return go_on()
        except OtherEvaluation:
            self.terminal.say(f"step {step}: begun on another kind of machine; sampled anew")
            for path in (part_of(out), out.with_suffix(".jsonl")):
                path.unlink(missing_ok=True)
            return go_on()

    @contextmanager
    def _as_trouble(self, step: int, *kinds: type[Exception]) -> Iterator[None]:
        """Errors of these kinds as Trouble, or as Gone where the checkpoint is no longer there."""
        try:
            yield
        except OtherEvaluation:
            raise
        except kinds as error:
            if not self._is_there(step) and not self._held(step).exists():
                raise Gone from error
            where = f"{self.seen[step].parent}{os.sep}" if step in self.seen else ""
            fault = " ".join(str(error).split()) or type(error).__name__
            raise Trouble(fault.replace(where, "") if where else fault) from error

    def _put_off(self, step: int, fault: str) -> bool:
        """Notes when to try again; False when that was done often enough."""
        tries = self.tries[step] = self.tries.get(step, 0) + 1
        if tries > len(BACK_OFF):
            return False
        if tries == 1:
            self.terminal.say(f"step {step}: {fault}; trying again for a while")
        self.due[step] = monotonic() + BACK_OFF[tries - 1]
        return True

    def _give_up(self, step: int, reason: str) -> None:
        for name in self.exams:
            if not result_path(self.out, step, name).exists():
                path = missed_path(self.out, step, name)
                self._put(path, reason + "\n")
                self.again.discard(path)
        self._publish()
        self.terminal.say(f"step {step}: {reason if reason == GONE else 'given up'}")

    # -------------------------------------------------------------- holding a checkpoint

    def _held(self, step: int) -> Path:
        return self.out / f"{HELD}{step:06d}"

    def _prepare(self, step: int, names: Sequence[str]) -> tuple[Subject, dict[str, Job]]:
        """Holds a step, checks its files, and says what to evaluate it by."""
        held = self._held(step)
        if not held.exists():
            if not self._is_there(step):
                raise Gone
            self._hold(self.seen[step], held)
        folder = held if held.exists() else self.seen[step]
        try:
            subject = self._subject(step, folder)
            jobs = {
                name: self.jobs.get(name) or open_job(subject, self.exams[name]) for name in names
            }
        except ValueError as error:
            self._discard(held)  # its copy may be mended
            raise ValueError(
                str(error).replace(str(held), str(self.seen.get(step, held)))
            ) from error
        return subject, jobs

    def _hold(self, source: Path, held: Path) -> None:
        """Keeps what is to be evaluated, whatever becomes of the checkpoint."""
        aside = self.claims.own / held.name
        shutil.rmtree(aside, ignore_errors=True)
        try:
            sharded = None if self.source.is_run else find_sharded(source)
            if sharded is None:
                _link_files(source, aside)
            else:
                quiet = Terminal(quiet=True)
                export(sharded, aside, dtype="float32", terminal=quiet, base=self.base)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
        else:
            os.rename(aside, held)

    def _subject(self, step: int, folder: Path) -> Subject:
        label = f"{self.source.folder.resolve().name}-{_key(step)}"
        if not self.source.is_run:
            return replace(find_subject(str(folder.resolve())), label=label)
        state = read_checkpoint(folder)
        config = load_config(self.source.folder / "config.toml")
        found = Checkpoint(folder=folder, run=self.source.folder, config=config, state=state)
        return Subject(label=label, recipe=config.model_dump(mode="json"), checkpoint=found)

    def _discard(self, folder: Path) -> None:
        """Removes a folder that is whole until it is not there."""
        with suppress(FileNotFoundError):
            shutil.rmtree(folder.rename(self.claims.own / f"{folder.name}.discarded"))

    # -------------------------------------------------------------- what others read

    def _publish(self) -> None:
        """Writes table and metrics; again, where a result came meanwhile from another watcher."""
        written: dict[str, str] = {}
        while (files := _files(self.out)) != written:
            for name, content in files.items():
                self._put(self.out / name, content)
            written = files

    def _put(self, path: Path, content: str) -> None:
        """A file that is there whole, whoever else writes it at the same time."""
        aside = self.claims.own / path.name
        aside.write_text(content, encoding="utf-8")
        os.replace(aside, path)

    def check_settings(self, name: str, job: Job) -> None:
        """ValueError where the folder was begun with others. The first to come sets them."""
        config, data = job
        path = self.out / f"settings-{name}.json"
        here = json.loads(json.dumps({**described(data, config), "k": list(self.exams[name].ks)}))
        if not path.exists():
            aside = self.claims.own / path.name
            aside.write_text(json.dumps(here, indent=1) + "\n", encoding="utf-8")
            with suppress(FileExistsError):
                os.link(aside, path)
            aside.unlink()
        try:
            there = dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError):
            raise ValueError(f"{path} holds no settings; give another --out") from None
        if them := differences(there, here):
            raise OtherEvaluation(
                f"{self.out} was begun with other settings for {name}: {them}; give those, or "
                "another --out"
            )


class Services:
    """The services that a run's recipe names, which hear of scores as of a run beside it.

    The run is named after the watched one, RUN-watch, since a service takes a run's metrics from
    one process. Several watchers send to the same: what comes behind a later step W&B leaves out.
    """

    def __init__(self, run: Path, out: Path, config: Config | None) -> None:
        self._config = config if config is not None and config.log.sinks else None
        self._folder = out / f"{run.resolve().name}-watch"
        self._sinks: list[Sink] | None = None

    def have(self, result: Path) -> bool:
        """Whether nothing is left to send of a result."""
        return self._config is None or result.with_suffix(".sent").exists()

    def send(self, step: int, name: str, result: Path) -> None:
        """Sends a result, once unless it is interrupted right behind that."""
        if self._config is None or self.have(result):
            return
        if self._sinks is None:
            self._folder.mkdir(exist_ok=True)
            recipe, log = self._config.model_dump(mode="json"), self._config.log
            # Nothing that was sent before is to be taken back, so it "goes on" behind all of it.
            last = max(step for each in find_results(result.parent).values() for step in each.steps)
            self._sinks = open_sinks(log.sinks, self._folder, log.project, max(1, last), recipe)
        for sink in self._sinks:
            sink.log(step, numbers(name, read_evaluation(result)))
        result.with_suffix(".sent").touch()

    def close(self) -> None:
        for sink in self._sinks or ():
            sink.close()


def _key(step: int) -> str:
    return f"step-{step:06d}"


def _files(out: Path) -> dict[str, str]:
    found = find_results(out)
    return {"scores.md": markdown(found), "metrics.jsonl": metrics(found)}


def _link_files(source: Path, target: Path) -> None:
    """A folder of hard links to the files of another; symbolic links are followed, for they may go
    with the checkpoint, and a relative one leads elsewhere from here."""

    def refuse(error: OSError) -> None:
        raise error

    for folder, _, names in os.walk(source, onerror=refuse, followlinks=True):
        new = target / Path(folder).relative_to(source)
        new.mkdir()
        for name in names:
            os.link(os.path.realpath(Path(folder, name)), new / name)
