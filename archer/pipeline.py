"""The judged groups of each step, in order: sampled when they are asked for, or while others learn.

With `rollout.ahead = k` the groups of step t are sampled with the weights after step t - 1 - k, or
with those that the run began with. So they may be begun k steps before they are needed, and they do
not depend on when they were: an engine whose samplers stand apart samples in a thread beside the
loop, one that takes turns samples the same groups with the same weights before it learns.

Groups are on disk before anyone learns from them. A checkpoint of step s holds those of the steps
s + 1 to s + k as well: the weights that they were sampled with are gone when a run goes on.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from archer.config import Config
from archer.data.stream import ProblemStream
from archer.engine.base import Engine
from archer.records import StepGroups
from archer.rollout import Progress, Render, sample_step
from archer.run import Run, State, ahead_name
from archer.terminal import Terminal
from archer.verify.pool import Verifiers

LOOK_SECONDS = 0.1
"""Between two looks at how far the thread is."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, raised where a step can be left without a trace."""


class Rollouts:
    """Judged groups of the steps after `state`, in their order."""

    def __init__(
        self,
        run: Run,
        config: Config,
        engine: Engine,
        verifiers: Verifiers,
        stream: ProblemStream,
        render: Render,
        terminal: Terminal,
        stopped: Callable[[], bool],
        state: State,
    ) -> None:
        """verifiers: those of this object alone where the engine's samplers stand apart."""
        self.run, self.config, self.engine, self.verifiers = run, config, engine, verifiers
        self.stream, self.render, self.terminal, self.stopped = stream, render, terminal, stopped
        self.first_version = self.version = state.step
        self.position = state.position
        self.sampled = state.step
        """The last step whose groups are there."""
        self.ready: dict[int, StepGroups] = {}
        self.progress = (0, 0)
        """Completions and tokens of the step that the thread samples."""
        self.idle = 0.0
        """Seconds that the thread has waited for weights since that was last asked for."""
        self.fault: BaseException | None = None
        self.closed = False
        self.changed = threading.Condition()
        self.thread: threading.Thread | None = None
        if config.rollout.ahead and engine.samples_apart:
            self.thread = threading.Thread(target=self._sample_all, daemon=True)
            self.thread.start()

    def next(self, step: int) -> StepGroups:
        """The groups of a step: each step's once, in order.

        Raises Interrupted where the run was asked to stop.
        """
        self._reach(step if self.thread else self._last_for(step), self.stopped)
        with self.changed:
            return self.ready.pop(step)

    def _reach(self, step: int, stopped: Callable[[], bool]) -> None:
        """Comes back when the groups up to this step, or the run's last one, are on disk."""
        step = min(step, self.config.train.steps)
        rollout = self.config.rollout
        while self.sampled < step:
            label, total = f"step {self.sampled + 1}", rollout.problems * rollout.samples
            with self.terminal.bar(label, total) as advance:
                if self.thread:
                    self._wait_for(self.sampled + 1, advance, stopped)
                else:
                    self._sample(self.sampled + 1, advance)

    def published(self, version: int) -> None:
        """Says that the weights after this step are there to be sampled with."""
        with self.changed:
            self.version = version
            self.changed.notify_all()

    def keep_ahead(self, state: State, folder: Path) -> None:
        """Puts the groups that a run which goes on after `state` can not sample into `folder`."""
        last = self._last_for(state.step)
        self._reach(last, lambda: False)  # also where the run is to stop: it ends with these
        for step in range(state.step + 1, min(last, self.config.train.steps) + 1):
            shutil.copyfile(self.run.path("pending", step, ".npz"), folder / ahead_name(step))

    def idle_seconds(self) -> float:
        """How long sampling has waited for learning since the last call."""
        with self.changed:
            found, self.idle = self.idle, 0.0
            return found

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        if self.thread is not None:
            # It looks up at its next completion. An engine that has none left is closed next.
            self.thread.join(timeout=5.0)

    # ------------------------------------------------------------------ one step

    def _last_for(self, step: int) -> int:
        """The last step whose groups may be sampled before this one is learned from."""
        return step + self.config.rollout.ahead

    def _version_for(self, step: int) -> int:
        return max(self.first_version, step - 1 - self.config.rollout.ahead)

    def _sample(self, step: int, progress: Progress) -> None:
        """A step's judged groups: from before a kill if they are on disk, else sampled now."""
        kept = self.run.kept_groups(step)
        if kept is not None:
            self.terminal.say(f"step {step}: judged groups are on disk, not sampled again")
        else:
            kept = self._sampled(step, progress)
        with self.changed:
            self.ready[step], self.position, self.sampled = kept, kept.position, step
            self.changed.notify_all()

    def _sampled(self, step: int, progress: Progress) -> StepGroups:
        self.verifiers.ledger()  # what evaluation left in it is not this step's

        def went_on(done: int, tokens: int) -> None:
            if self.closed or (self.thread is None and self.stopped()):
                raise Interrupted
            progress(done, tokens)

        groups, position = sample_step(
            self.engine.at(self._version_for(step)),
            self.verifiers,
            self.stream,
            self.render,
            self.config.rollout,
            seed=self.config.train.seed,
            step=step,
            position=self.position,
            progress=went_on,
        )
        sampled = StepGroups(groups=groups, position=position, ledger=self.verifiers.ledger())
        self.run.keep_groups(step, sampled)
        if lost := int(sampled.ledger.get("verify/workers_lost", 0)):
            self.terminal.say(f"step {step}: verifier workers that died and were replaced: {lost}")
        return sampled

    # ------------------------------------------------------------------ in a thread

    def _wait_for(self, step: int, advance: Progress, stopped: Callable[[], bool]) -> None:
        """Until the thread has this step."""
        with self.changed:
            while self.sampled < step:
                if self.fault is not None:
                    raise self.fault
                if stopped():
                    raise Interrupted
                advance(*self.progress)
                self.changed.wait(LOOK_SECONDS)

    def _sample_all(self) -> None:
        try:
            for step in range(self.sampled + 1, self.config.train.steps + 1):
                start = time.perf_counter()
                with self.changed:
                    while self.version < self._version_for(step) and not self.closed:
                        self.changed.wait()
                    self.idle += time.perf_counter() - start
                    if self.closed:
                        return
                self._sample(step, self._note)
        except BaseException as fault:  # noqa: BLE001 - the loop raises it where it waits
            with self.changed:
                self.fault = fault
                self.changed.notify_all()

    def _note(self, done: int, tokens: int) -> None:
        self.progress = done, tokens
