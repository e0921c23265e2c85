"""The verbs, seen from the process that runs the loop: it holds no weights, only names of those
who do.

Learners hold one model together. When one of them is lost the others cannot go on, so all of them
are ended and `EngineLost` says why; the loop starts them again from its last checkpoint. Samplers
are replaced one by one (`archer.engine.cluster.samplers`).

How work is cut does not depend on who is alive: the requests of one call are dealt to as many
units as the recipe has places that sample, and a unit is sampled as a whole, by whoever takes it.
So the same call gives the same tokens to the last bit, whatever was lost on the way.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError

from archer.algo.batch import TokenBatch, take
from archer.algo.objective import Tallies
from archer.config import Config
from archer.engine.base import EngineLost, Generates, Request, Sample, Sampling
from archer.engine.choices import choose_objective
from archer.engine.cluster.balance import balanced
from archer.engine.cluster.pulse import Pulse, last_line
from archer.engine.cluster.rank import LearnerRank
from archer.engine.cluster.replica import Published
from archer.engine.cluster.samplers import POLL_SECONDS, Samplers
from archer.engine.cluster.session import Session, open_session
from archer.engine.learner import needs_gradient
from archer.engine.local import COUNTERS, LOOP, peak_bytes
from archer.engine.vllm import sampled_dtype
from archer.model.load import load_config
from archer.model.shapes import part_of, shape_of, weight_bytes

ANSWER_SECONDS = 5.0
"""Longest wait for what a process says of itself, which it says whatever it works on."""


class ClusterEngine:
    """The verbs of `archer.engine.base.Engine`, in many processes."""

    def __init__(self, config: Config, say: Callable[[str], None]) -> None:
        self.config, self.say = config, say
        self.objective = choose_objective(config)
        name, revision = config.model.name, config.model.revision
        self.shape = shape_of(load_config(name, revision=revision))
        part_of(self.shape, config.cluster.tensor_parallel)  # or a ValueError says why not
        self.pulse = Pulse(config.cluster.silent_seconds)
        number_bytes = 4 if sampled_dtype(config) == "float32" else 2
        weights = weight_bytes(self.shape, bytes_per_number=number_bytes)
        fetched = 0 if config.learners_sample else weights
        self.session: Session = open_session(config, fetched, say)
        self.learners: dict[str, Any] = {}
        self.published: dict[int, Published] = {}
        self.policy_version = 0
        self.heard: dict[Any, float] = {}
        """When each that samples last gave an answer."""
        self.watching = threading.Lock()
        self.closed = False
        self.samplers = Samplers(config, self.session, self.pulse, self.watching, say)
        try:
            self.samplers.start()
            self._start_learners()
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------ sampling

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Sample]:
        """With the newest weights."""
        yield from self.at(self.policy_version).generate(requests, sampling)

    def at(self, version: int) -> Generates:
        """Samples with the weights of a version that is not yet forgotten."""
        return _At(self, version)

    @property
    def samples_apart(self) -> bool:
        return bool(self.config.cluster.samplers)

    def generate_at(
        self, version: int, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[Sample]:
        """Deals the requests to units, and yields what any of them has finished."""
        places = self._able()
        self.samplers.awake = True
        published = self.published[version]
        units = [
            _Unit(entries, name)
            for entries, name in zip(dealt(requests, len(places)), places, strict=False)
        ]
        for unit in units:
            self._submit(unit, requests, sampling, published)
        begun = time.monotonic()
        try:
            while running := [unit for unit in units if not unit.done]:
                if not self.config.learners_sample:
                    stranded = self._replace_lost(running) or self._not_started(running, begun)
                    for place, unit in stranded:
                        self._leave(unit)
                        unit.place = place
                        self._submit(unit, requests, sampling, published)
                else:
                    self._check(self.learners)
                streams = [unit.stream for unit in running if unit.stream is not None]
                since = time.monotonic()
                ready = ray.wait(streams, timeout=POLL_SECONDS)[0] if streams else []
                self._count(running, ready, time.monotonic() - since)
                for unit in running:
                    if unit.stream in ready:
                        yield from self._take(unit)
        finally:
            for unit in units:
                self._leave(unit)

    def _able(self) -> list[str]:
        """Who is to sample each unit: as many as the recipe has places.

        One that is not there yet may never be, so where others are it is asked for nothing: what
        waits for it would hold the weights, and keep it from newer requests.
        """
        places = list(self._sampling())
        if self.config.learners_sample:
            return places
        self._replace_lost([])
        ready = self.samplers.ready()
        turns = itertools.cycle(ready)
        return [name if name in ready or not ready else next(turns) for name in places]

    def _count(self, units: Sequence[_Unit], ready: Sequence[Any], seconds: float) -> None:
        """Counts how long each unit has been waited for; EngineLost for a sampler that says
        nothing, to this call or another one that it answers first.

        Without what the loop did in between, and without the start of its sampler.
        """
        patience, now = self.config.cluster.wait_seconds, time.monotonic()
        for unit in units:
            if unit.stream in ready:
                unit.waited, self.heard[unit.process] = 0.0, now
            elif self.config.learners_sample or self.pulse.is_ready(unit.process):
                unit.waited += seconds
            if unit.waited > patience and now - self.heard.get(unit.process, 0.0) > patience:
                raise EngineLost(
                    f"waited {patience:g} s (cluster.wait_seconds) for an answer of {unit.place}"
                )

    def _leave(self, unit: _Unit) -> None:
        """Ends what a unit's sampler does for it, if that is not done or lost.

        Where the sampler is still starting it is done for nothing: Ray 2.60 may forget all calls
        behind one that is cancelled just before its actor is there.
        """
        if unit.stream is not None and not unit.done and self.pulse.is_ready(unit.process):
            ray.cancel(unit.stream, recursive=False)  # what it told its other parts they do
            if self.session.numbers.parts > 1:
                unit.process.leave.remote()

    def _sampling(self) -> dict[str, Any]:
        """Those who are told what to sample."""
        return self.learners if self.config.learners_sample else self.samplers.first

    def _submit(
        self, unit: _Unit, requests: Sequence[Request], sampling: Sampling, published: Published
    ) -> None:
        own = [
            replace(requests[i], names=tuple(requests[i].names[j] for j in numbers))
            for i, numbers in unit.entries
        ]
        unit.process, unit.waited = self._sampling()[unit.place], 0.0
        unit.stream = unit.process.generate_by_step.options(num_returns="streaming").remote(
            own, sampling, published
        )

    def _take(self, unit: _Unit) -> Iterator[Sample]:
        """What has come of a unit; what came before its sampler was lost is the same, and known."""
        try:
            samples = ray.get(next(unit.stream))
        except StopIteration:
            unit.done = True
            return
        except RayTaskError as error:
            if isinstance(error.cause, ObjectLostError):
                # Only a sampler fetches anything: with another one it would be no better.
                raise EngineLost("the weights went with the learner that held them") from error
            words = last_line(error)
            if words != unit.words and self.samplers.lost_a_part(unit.place, unit.process):
                unit.words, unit.stream = words, None
                return
            self._check(self.learners if self.config.learners_sample else {})
            raise error.cause from error
        except RayError as error:
            if self.config.learners_sample:
                self._check(self.learners, patience=5.0)
                raise EngineLost(f"{unit.place}: {last_line(error)}") from error
            unit.stream = None  # what sampled is gone
            return
        for sample in samples:
            entry, numbers = unit.entries[sample.request]
            place = entry, numbers[sample.number]
            if place not in unit.known:
                unit.known.add(place)
                yield Sample(*place, sample.completion)

    def _replace_lost(self, units: Sequence[_Unit]) -> list[tuple[str, _Unit]]:
        """Units whose sampler is gone, and the one that each is to go to."""
        with self.watching:
            if self.closed:
                raise EngineLost("the engine was closed while it sampled")
            lost = self.samplers.replace_lost()
            places = dict(self.samplers.first)
        # Another call may have replaced a sampler that this one's requests went to.
        stranded = [
            unit for unit in units if unit.stream is None or unit.process is not places[unit.place]
        ]
        found = []
        for number, unit in enumerate(stranded):
            others = [n for n in places if n not in lost and n != unit.place]
            found.append((others[number % len(others)] if others else unit.place, unit))
        return found

    def _not_started(self, units: Sequence[_Unit], begun: float) -> list[tuple[str, _Unit]]:
        """Units whose sampler is still starting, and one each that has nothing to do.

        Where its machine was lost, another one may never find a place.
        """
        ready = self.samplers.ready()
        busy = {unit.place for unit in units}
        idle = [name for name in ready if name not in busy]
        waiting = [unit for unit in units if unit.place not in ready]
        waited = time.monotonic() - max(begun, *self.samplers.started.values())
        if not ready and waited > self.config.cluster.wait_seconds:
            raise EngineLost(
                f"waited {self.config.cluster.wait_seconds:g} s (cluster.wait_seconds) for "
                f"{', '.join(self.samplers.first)} to start"
            )
        return list(zip(idle, waiting, strict=False))

    # ------------------------------------------------------------------ learning

    def score(self, batch: TokenBatch, *, old: bool, reference: bool) -> TokenBatch:
        if old:
            logp, entropy = self._score(batch, reference=False)
            batch = replace(batch, old_logp=logp, old_entropy=entropy)
        if reference:
            logp, _ = self._score(batch, reference=True)
            batch = replace(batch, ref_logp=logp)
        return batch

    def _score(self, batch: TokenBatch, *, reference: bool) -> tuple[torch.Tensor, torch.Tensor]:
        self.samplers.sleep()
        shares = balanced(batch, range(len(batch.lengths)), len(self.learners), self.shape)
        found = self._parted("log-probs", "score", batch, shares, reference=reference)
        of_rows: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for rows, values in zip(shares, found, strict=True):
            lengths = batch.lengths[rows].tolist()
            split = (value.split(lengths) for value in values)
            of_rows.update(zip(rows, zip(*split, strict=True), strict=True) if rows else ())
        ordered = [of_rows[row] for row in range(len(batch.lengths))]
        return torch.cat([logp for logp, _ in ordered]), torch.cat([h for _, h in ordered])

    def update(
        self, minibatch: TokenBatch, *, lr: float, entropy_coefficient: float | None = None
    ) -> Tallies:
        objective = self.objective
        if entropy_coefficient is not None:
            objective = replace(objective, entropy_coefficient=entropy_coefficient)
        self.samplers.sleep()
        needed = torch.nonzero(needs_gradient(minibatch, objective)).flatten().tolist()
        shares = balanced(minibatch, needed, len(self.learners), self.shape)
        knobs = {"lr": lr, "entropy_coefficient": entropy_coefficient}
        found = self._parted("an optimizer step", "update", minibatch, shares, **knobs)
        tallies: Tallies = found[0]
        return tallies

    def publish(self) -> int:
        self._publish(self.policy_version + 1)
        return self.policy_version

    def _publish(self, version: int) -> None:
        self.published[version] = self._all("new weights", "publish", version)[0]
        self.policy_version = version
        oldest = version - self.config.rollout.ahead
        self.published = {v: p for v, p in self.published.items() if v >= oldest}

    # ------------------------------------------------------------------ checkpoints

    def save(self, folder: Path) -> Callable[[], None]:
        counters = self._all("a checkpoint", "save", str(folder.resolve()))[0]
        state = {**counters, "policy_version": self.policy_version}
        (folder / COUNTERS).write_text(json.dumps(state) + "\n")

        def wait() -> None:
            self._all("a checkpoint on the disk", "written", group="saving")

        return wait

    def load(self, folder: Path) -> None:
        state = json.loads((folder / COUNTERS).read_text())
        self.samplers.sleep()
        self._all("a checkpoint", "load", str(folder.resolve()), state)
        self.published = {}
        self._publish(state["policy_version"])

    # ------------------------------------------------------------------ processes

    def memory(self) -> dict[str, int]:
        """Of the loop, each learner and each sampler. One that does not answer is left out.

        Whoever is lost is found where its work is waited for, and not here; who is still starting
        is not asked.
        """
        processes = self.learners | self.samplers.processes
        self._lost(processes)  # which looks who is there
        asked = {
            process.peak.options(concurrency_group="pulse").remote(): name
            for name, process in processes.items()
            if self.pulse.is_ready(process)
        }
        found = {LOOP: peak_bytes()}
        for answer in ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)[0]:
            with suppress(RayError):
                found[asked[answer]] = ray.get(answer)
        return found

    def _start_learners(self) -> None:
        world = self.session.numbers.learners
        for rank in range(world):
            self.learners[f"learner {rank}"] = self.session.start(
                LearnerRank, rank, self.config, rank=rank, world=world
            )
        meet = self._await([self.learners["learner 0"].address.remote()], "learner 0 to start")[0]
        self._all("the learners to load the model", "join", *meet)
        self._publish(0)

    def _all(self, what: str, method: str, *arguments: Any, group: str | None = None) -> list[Any]:
        """Calls a method of every learner, and waits for all.

        group: of `session.THREADS`, for what goes on beside other calls.
        """
        self._check_open(what)
        calls = [
            getattr(process, method).options(concurrency_group=group).remote(*arguments)
            for process in self.learners.values()
        ]
        return self._await(calls, what)

    def _parted(
        self,
        what: str,
        method: str,
        batch: TokenBatch,
        shares: Sequence[Sequence[int]],
        **knobs: Any,
    ) -> list[Any]:
        """Calls a method of every learner with its rows of a batch, None for no rows."""
        parts = [take(batch, rows) if rows else None for rows in shares]
        calls = [
            getattr(process, method).remote(part, **knobs)
            for process, part in zip(self.learners.values(), parts, strict=True)
        ]
        return self._await(calls, what)

    def _await(self, refs: Sequence[Any], what: str) -> list[Any]:
        """The results, in order. Raises EngineLost when a learner is lost or nothing comes."""
        deadline = time.monotonic() + self.config.cluster.wait_seconds
        waiting = list(refs)
        while waiting:
            self._check_open(what)
            ready, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL_SECONDS)
            try:
                ray.get(ready)
            except RayTaskError as error:
                # One that lost its peer says so in its own words: who is lost is what matters.
                self._check(self.learners, patience=5.0)
                raise error.cause from error
            except RayActorError:
                self._check(self.learners, patience=5.0)
                raise
            self._check(self.learners)
            if waiting and time.monotonic() > deadline:
                late = [
                    name for name, ref in zip(self.learners, refs, strict=False) if ref in waiting
                ]
                raise EngineLost(
                    f"waited {self.config.cluster.wait_seconds:g} s (cluster.wait_seconds) for "
                    f"{what}: {', '.join(late)} did not finish"
                )
        return list(ray.get(list(refs)))

    def _check_open(self, what: str) -> None:
        """Raises EngineLost, in a thread that still waits for something, when this is closed."""
        if self.closed:
            raise EngineLost(f"the engine was closed before there was {what}")

    def _check(self, processes: Mapping[str, Any], patience: float = 0.0) -> None:
        """Raises EngineLost when one of the learners is dead or silent."""
        until = time.monotonic() + patience
        while not (lost := self._lost(processes)) and time.monotonic() < until:
            time.sleep(0.1)
        if lost:
            raise EngineLost("; ".join(f"{name} {fault}" for name, fault in lost.items()))

    def _lost(self, processes: Mapping[str, Any]) -> dict[str, str]:
        with self.watching:
            return self.pulse.lost(processes)

    def close(self) -> None:
        with self.watching:
            self.closed = True
        for process in [*self.learners.values(), *self.samplers.processes.values()]:
            ray.kill(process)
        self.session.close()


@dataclass(frozen=True, slots=True, eq=False)
class _At:
    """What samples with one version of the weights."""

    engine: ClusterEngine
    version: int

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Sample]:
        return self.engine.generate_at(self.version, requests, sampling)


@dataclass(slots=True, eq=False)
class _Unit:
    """Completions that are sampled in one piece: (request, its names) each, by number."""

    entries: list[tuple[int, list[int]]]
    place: str
    process: Any = None
    stream: Any = None
    done: bool = False
    waited: float = 0.0
    """Seconds since its last answer."""
    words: str = ""
    """Of an error that was taken for the loss of a part: the same ones again are not."""
    known: set[tuple[int, int]] = field(default_factory=set)


def dealt(requests: Sequence[Request], units: int) -> list[list[tuple[int, list[int]]]]:
    """Cuts requests into at most so many units of about equal numbers of completions.

    All completions of a request share its prompt, so requests are cut only where there are fewer of
    them than units. Example, two requests of three completions for three units:
        [[(0, [0, 1])], [(0, [2]), (1, [2])], [(1, [0, 1])]]
    """
    blocks = [(i, list(range(len(request.names)))) for i, request in enumerate(requests)]
    if len(requests) < units:
        cuts = -(-units // max(1, len(requests)))
        blocks = [
            (i, numbers[k : k + -(-len(numbers) // cuts)])
            for i, numbers in blocks
            for k in range(0, len(numbers), -(-len(numbers) // cuts))
        ]
    shares: list[list[tuple[int, list[int]]]] = [[] for _ in range(units)]
    sizes = [0] * units
    for block in blocks:
        unit = min(range(units), key=sizes.__getitem__)
        shares[unit].append(block)
        sizes[unit] += len(block[1])
    return [sorted(share) for share in shares if share]
