# mypy: disable-error-code="no-untyped-call, call-overload"
"""A Ray cluster to run on, and processes of ours placed on it.

The cluster that RAY_ADDRESS names is used as it is, whoever started it (`archer cluster up`,
KubeRay, a Ray job). Where none is named, a small one is started on this machine alone, and ends
with this process. Ray places the processes; what we say is how many there are and what each needs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray._private.ray_constants import OBJECT_STORE_MINIMUM_MEMORY_BYTES
from ray.exceptions import RayError
from ray.util.placement_group import (
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from archer.config import Config
from archer.cores import num_cores
from archer.engine.base import EngineLost
from archer.engine.cluster import AUTH_MODE_GIVEN, named_cluster
from archer.engine.cluster.guard import start_guard
from archer.engine.cluster.node import knock
from archer.engine.cluster.pulse import first_line

SLIVER = 0.01
"""Of a CPU, asked for by a process without a GPU: cores are shared, threads say by how many."""

ROUND_SECONDS = 5.0
"""Between two looks at how much room there is."""

ASKING_SECONDS = 60.0
"""For a cluster that is there to say whether it wants a token."""

THREADS = {"pulse": 1, "saving": 1}
"""Of each process, beside the one that works: by the kinds of calls that they answer."""

LEAST_STORE_BYTES = 2 << 30
"""Shared memory of a cluster that we start ourselves, at least; it is taken as it is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """How many processes of which kind a run has.

    Example, two learners, and two samplers that have two GPUs each to themselves:
        Numbers(learners=2, samplers=2, parts=2, shared=False)
    """

    learners: int
    samplers: int
    """Models that sample, 0 where learners do that themselves."""
    parts: int
    """Processes of each of them."""
    shared: bool
    """Whether they are in the learners' places, and take turns with them."""

    @property
    def bundles(self) -> list[int]:
        """How many processes each place has room for: a sampler of its own is on one machine."""
        return [1] * self.learners + [self.parts] * (0 if self.shared else self.samplers)

    def __str__(self) -> str:
        """Example: "2 learners and 1 sampler of 2 processes in the same places"."""
        learners = f"{self.learners} learner{'s' * (self.learners != 1)}"
        samplers = f" and {self.samplers} sampler{'s' * (self.samplers != 1)}"
        samplers += f" of {self.parts} processes" * (self.parts > 1)
        return learners + samplers * bool(self.samplers) + " in the same places" * self.shared

    def place(self, sampler: int, part: int) -> int:
        """The place of a part of a sampler."""
        return sampler * self.parts + part if self.shared else self.learners + sampler


def numbers_of(config: Config, learners: int, samplers: int) -> Numbers:
    """Those of a recipe with so many learners, and samplers apart from them.

    Example, vLLM by turns with four learners, models cut in two:
        Numbers(learners=4, samplers=2, parts=2, shared=True)
    """
    parts = config.cluster.tensor_parallel
    shared = not samplers and not config.learners_sample
    return Numbers(
        learners=learners,
        samplers=learners // parts if shared else samplers,
        parts=parts,
        shared=shared,
    )


@dataclass(slots=True, eq=False)
class Session:
    """A connection to a cluster, and places on it: learners first, then samplers."""

    places: Any
    order: list[int]
    """The places' numbers in Ray, machine by machine where samplers are cut over the learners'."""
    numbers: Numbers
    gpus: bool
    threads: dict[int, int]
    """Of torch, in each process, by the places' numbers in Ray."""
    owner: bool
    """Whether the connection is ours to end."""
    guard: subprocess.Popen[bytes] | None = None
    """Of a cluster that is ours to end."""

    def start(self, kind: type, place: int, *arguments: Any, **options: Any) -> Any:
        """A process with an object of a class, at one of the places; it may still be starting."""
        share = 0.5 if self.numbers.shared else 1.0
        threads = self.threads[self.order[place]]
        actor = ray.remote(concurrency_groups=THREADS)(kind).options(
            num_cpus=SLIVER * share,
            num_gpus=share if self.gpus else 0,
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                self.places, placement_group_bundle_index=self.order[place]
            ),
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}},
        )
        return actor.remote(*arguments, threads=threads, **options)

    def close(self) -> None:
        if self.owner:
            ray.shutdown()
        else:
            remove_placement_group(self.places)
        _dismiss(self.guard)


def open_session(config: Config, weights: int, say: Callable[[str], None]) -> Session:
    """Joins or starts a cluster and reserves a place for every process of the recipe.

    weights: bytes of a version that samplers fetch, 0 where none do.

    For fewer where the recipe allows it and there is not room for all after
    `cluster.silent_seconds`. ValueError when there is none within `cluster.wait_seconds`.
    """
    owner = not ray.is_initialized()
    guard = _connect(config, weights, say) if owner else None
    nodes = [node for node in ray.nodes() if node["Alive"]]
    gpus = config.model.device != "cpu" and any(node["Resources"].get("GPU") for node in nodes)
    try:
        if gpus:
            _refuse_too_many_parts(config, [node["Resources"].get("GPU", 0.0) for node in nodes])
        places, numbers = _reserve(config, gpus, say)
    except BaseException:
        if owner:
            ray.shutdown()
            _dismiss(guard)
        raise
    machines = placement_group_table(places)["bundles_to_node_id"]
    cores = {node["NodeID"]: int(node["Resources"].get("CPU", 1)) for node in ray.nodes()}
    cores[ray.get_runtime_context().get_node_id()] = num_cores()  # as it is without Ray
    threads = shared_out(cores, numbers.bundles, machines)
    if config.model.threads:
        threads = dict.fromkeys(threads, config.model.threads)
    order = sorted(machines)
    if numbers.shared:
        order.sort(key=machines.__getitem__)  # those of a machine together
    return Session(
        places=places,
        order=order,
        numbers=numbers,
        gpus=gpus,
        threads=threads,
        owner=owner,
        guard=guard,
    )


def _refuse_too_many_parts(config: Config, gpus: Sequence[float]) -> None:
    """ValueError where no machine has the GPUs for a sampler of its own: none will have."""
    parts = config.cluster.tensor_parallel
    if config.cluster.samplers and parts > max(gpus):
        raise ValueError(
            f"cluster.tensor_parallel = {parts} needs so many GPUs on one machine, and the largest "
            f"has {max(gpus):g}: lower it, or set cluster.samplers = 0"
        )


def shared_out(
    cores: Mapping[str, int], bundles: Sequence[int], machines: Mapping[int, str]
) -> dict[int, int]:
    """Threads of a process in each place: the cores of a machine are divided among those on it.

    bundles: processes in each place; machines: where each is. Example, two places on "a" and one of
    two processes on "b":
        shared_out({"a": 8, "b": 5}, [1, 1, 2], {0: "a", 1: "a", 2: "b"}) == {0: 4, 1: 4, 2: 2}
    """
    crowds: Counter[str] = Counter()
    for place, machine in machines.items():
        crowds[machine] += bundles[place]
    return {place: max(1, cores[m] // crowds[m]) for place, m in machines.items()}


def _reserve(config: Config, gpus: bool, say: Callable[[str], None]) -> tuple[Any, Numbers]:
    """Places, and for how many processes they are."""
    cluster, scarce = config.cluster, "GPU" if gpus else "CPU"

    def reserved(numbers: Numbers) -> Any:
        each = {"CPU": SLIVER, "GPU": 1.0} if gpus else {"CPU": SLIVER}
        needs = [{kind: n * of_one for kind, of_one in each.items()} for n in numbers.bundles]
        # Together where the links between GPUs are fast, apart where cores are what is shared.
        return placement_group(needs, "PACK" if gpus else "SPREAD")

    everyone = numbers = numbers_of(config, cluster.learners, cluster.samplers)
    places = reserved(numbers)
    start, look = time.monotonic(), min(ROUND_SECONDS, cluster.wait_seconds)
    try:
        found = places.wait(look)
        if not found:
            say(f"{_no_room(everyone)} yet: waiting up to {cluster.wait_seconds:g} s for it")
        while not found:
            waited = time.monotonic() - start
            if waited >= cluster.wait_seconds:
                raise ValueError(
                    f"{_no_room(everyone)} after {cluster.wait_seconds:g} s: lower "
                    "cluster.learners or cluster.samplers, or add machines"
                )
            if waited >= cluster.silent_seconds:
                room = ray.available_resources().get(scarce, 0) / (1.0 if gpus else SLIVER)
                fewer = fitting(config, int(room))
                if fewer is not None and fewer != numbers:
                    remove_placement_group(places)
                    numbers, places = fewer, reserved(fewer)
            found = places.wait(look)
    except BaseException:
        remove_placement_group(places)
        raise
    if numbers != everyone:
        say(
            f"going on with {numbers} in place of {everyone} "
            f"(cluster.least_learners = {cluster.least_learners})"
        )
    return places, numbers


def fitting(config: Config, room: int) -> Numbers | None:
    """Those of a run that has room for so many processes, None for too few.

    Learners give way first, down to `cluster.least_learners`, then samplers, down to one: example,
    six learners of which two are enough, two samplers:
        room for 7: 5 and 2; for 3: 2 and 1; for 2: too few
    """
    cluster, parts = config.cluster, config.cluster.tensor_parallel
    if not cluster.least_learners:
        return None
    learners = min(cluster.learners, room - cluster.samplers * parts)
    if not cluster.samplers:
        learners -= learners % parts  # models that sample are cut over them
    learners = max(cluster.least_learners, learners)
    samplers = min(cluster.samplers, (room - learners) // parts)
    if samplers < min(1, cluster.samplers) or room < learners:
        return None
    return numbers_of(config, learners, samplers)


def _no_room(numbers: Numbers) -> str:
    has, machines = ray.cluster_resources(), sum(node["Alive"] for node in ray.nodes())
    return (
        f"no room for {numbers} on {machines} machine{'s' * (machines != 1)} with "
        f"{has.get('GPU', 0):g} GPUs and {has.get('CPU', 0):g} CPUs"
    )


def _connect(
    config: Config, weights: int, say: Callable[[str], None]
) -> subprocess.Popen[bytes] | None:
    """Joins the cluster that is named, or starts one and its guard."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    # Ray prints a page for each process that is lost; we say it in a line (`pulse`).
    ray._private.worker.listen_error_messages = lambda *_: None
    address = named_cluster()
    if address is None:
        # Never another run's: that one ends with its run.
        _choose_mode(None)
        shared = _shared_memory()
        store = store_bytes(weights, config.rollout.ahead, shared)
        if store is None:
            say(
                f"/dev/shm has {shared / 1e6:.0f} MB, so Ray keeps objects on the disk, which is "
                "slow: give a container more (docker run --shm-size=8g)"
            )
        before = set(psutil.Process().children(recursive=True))
        try:
            with _sigterm_kept():
                ray.init(
                    address="local", include_dashboard=False, object_store_memory=store, **quiet
                )
        except BaseException as error:
            ray.shutdown()
            _kill(p for p in psutil.Process().children(recursive=True) if p not in before)
            if not isinstance(error, Exception):  # Ctrl-C
                raise
            raise EngineLost(f"the cluster did not come up: {first_line(error)}") from error
        daemons = [p for p in psutil.Process().children() if p not in before]
        return start_guard(config.cluster.silent_seconds, daemons)
    try:
        knock(address)
        _choose_mode(address)
        with _sigterm_kept():
            ray.init(address=address, **quiet)
    except (
        OSError,
        RayError,
        ImportError,
        ValueError,
        RuntimeError,  # of another version
        subprocess.TimeoutExpired,
    ) as error:
        raise ValueError(
            f"no Ray cluster answers at RAY_ADDRESS = {address} ({first_line(error)}): start it, "
            "or unset RAY_ADDRESS"
        ) from None
    return None


def _choose_mode(address: str | None) -> None:
    """Has Ray use tokens, unless the user says how, or a cluster that is named answers without one.

    A process asks with a token or without; one that did so for another cluster changes its mind.
    """
    if AUTH_MODE_GIVEN:
        return
    mode = "token" if address is None or _wants_token(address) else "disabled"
    if os.environ.get("RAY_AUTH_MODE") != mode:
        os.environ["RAY_AUTH_MODE"] = mode
        core: Any = ray._raylet
        core.Config.initialize("")  # reads it anew, as Ray does when it sets the mode itself


def _wants_token(address: str) -> bool:
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    without = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    asked = subprocess.run(
        command, env=without, capture_output=True, text=True, timeout=ASKING_SECONDS
    )
    return asked.returncode != 0 and "version mismatch" not in asked.stderr.lower()


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray puts its own handlers for SIGTERM over the loop's: a dump, and an end without a
    checkpoint."""
    ray._private.utils.set_sigterm_handler = lambda *_: None
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # elsewhere none can be set
            signal.signal(signal.SIGTERM, before)


def _dismiss(guard: subprocess.Popen[bytes] | None) -> None:
    """Tells a guard that the run is over, and waits until it has looked for what is left."""
    if guard is not None and guard.stdin is not None:
        guard.stdin.close()
        guard.wait()


def _kill(processes: Iterable[psutil.Process]) -> None:
    """What was started for nothing, whether it runs or is stopped."""
    ended = list(processes)
    for process in ended:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(ended, timeout=5.0)


def store_bytes(weights: int, ahead: int, shared: int) -> int | None:
    """Size of the object store: for the versions that may be asked for and the one that comes.

    At most half of the shared memory; what does not fit goes by way of Ray's folder on the disk.
    None where that is less than Ray takes: then it chooses one on the disk itself.
    """
    store = min(max(LEAST_STORE_BYTES, (ahead + 2) * weights), shared // 2)
    return None if store < OBJECT_STORE_MINIMUM_MEMORY_BYTES else store


def _shared_memory() -> int:
    """Bytes that /dev/shm has, where there is one."""
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return 2 * LEAST_STORE_BYTES
    return found.f_bavail * found.f_frsize
