"""Clusters that do not answer, do not come up or refuse us.

A file of its own: where another test's engine is open, its cluster is joined instead.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from archer.config import Config, config_from
from archer.cores import num_cores
from archer.engine.base import EngineLost, Request, Sampling
from archer.setup import open_engine
from tests.children import child_environment


def recipe() -> Config:
    knobs = {
        "model": {"name": "tiny", "threads": 1},
        "data": {"train": [{"source": "arithmetic", "count": 4}]},
        "rollout": {"problems": 2, "samples": 2, "max_tokens": 4},
        "loss": {"name": "grpo"},
        "update": {"minibatch": 2, "learning_rate": 1e-4},
        "train": {"steps": 1},
        "engine": "cluster",
    }
    return config_from(knobs, where="test")


@pytest.mark.parametrize(
    ("weights", "ahead", "shared", "store"),
    [
        (0, 0, 64, 2),
        (3, 0, 64, 6),
        (3, 2, 64, 12),
        (3, 2, 16, 8),
        (0, 0, 1, 0.5),
        (0, 0, 1 / 16, None),
    ],
)
def test_the_store_holds_the_versions_that_may_be_asked_for(
    weights: int, ahead: int, shared: float, store: float | None
) -> None:
    """In GiB: those that are served and the next one, in at most half of the shared memory.

    A container has 64 MB of that where nobody asked for more: less than Ray takes.
    """
    from archer.engine.cluster.session import store_bytes

    found = store_bytes(weights << 30, ahead, int(shared * 2**30))
    assert found == (store and store * 2**30)


def until(true: Callable[[], bool]) -> bool:
    """Waits for it, for half a minute at most."""
    deadline = time.monotonic() + 30.0
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


GUARDED = """
import os, subprocess, sys, time
import psutil
from archer.engine.cluster.guard import start_guard
daemon = subprocess.Popen(["sleep", "60"])
guard = start_guard(2.0, [psutil.Process(daemon.pid)])
print(daemon.pid, guard.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.full
def test_a_run_that_is_stopped_with_its_daemons_goes_on_with_them() -> None:
    """Ctrl-Z stops both; a daemon that is stopped alone is lost."""
    command = [sys.executable, "-c", GUARDED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        daemon, guard = (psutil.Process(int(word)) for word in run.stdout.readline().split())
        try:
            time.sleep(1.0)
            run.send_signal(signal.SIGSTOP)
            daemon.suspend()
            time.sleep(5.0)
            run.send_signal(signal.SIGCONT)
            daemon.resume()
            time.sleep(1.5)
            assert daemon.status() == psutil.STATUS_SLEEPING
            daemon.suspend()
            assert until(lambda: daemon.status() == psutil.STATUS_ZOMBIE)
        finally:
            run.kill()
    assert until(lambda: not runs(guard))


ASKED = """
import os
import ray
from archer.engine.cluster.session import _connect
from tests.engine.test_session import recipe
_connect(recipe(), 0, print)
print(os.environ["RAY_AUTH_MODE"], ray.get(ray.remote(num_cpus=0)(lambda: 1 + 1).remote()))
"""


@pytest.mark.full
@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_a_cluster_is_asked_with_a_token_if_it_wants_one(tmp_path: Path, mode: str) -> None:
    """A token may be here of another cluster, and with one Ray's calls to one without are lost."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("0123456789abcdef" * 2)
    clean = {k: v for k, v in child_environment().items() if not k.startswith("RAY_")}
    clean["HOME"] = str(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={port}"]
    command += ["--include-dashboard=false", "--disable-usage-stats", "--num-cpus=1", "--block"]
    command += ["--dashboard-agent-listen-port=0"]
    theirs = clean | {"RAY_AUTH_MODE": mode}
    with subprocess.Popen(command, env=theirs, stdout=subprocess.DEVNULL) as head:
        try:
            done = _asked(clean | {"RAY_ADDRESS": f"127.0.0.1:{port}"})
        finally:
            head.terminate()
    assert done.stdout.splitlines()[-1] == f"{mode} 2", done.stderr


def _asked(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """As soon as the cluster is there."""
    for _ in range(60):
        command = [sys.executable, "-c", ASKED]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if "no Ray cluster answers" not in done.stderr:
            break
        time.sleep(1.0)
    return done


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "ray://127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match=f"no Ray cluster answers at RAY_ADDRESS = {address}"):
        open_engine(recipe())


def test_an_address_that_asks_for_a_cluster_of_the_runs_own_has_a_guard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from archer.engine.cluster.engine import ClusterEngine

    monkeypatch.setenv("RAY_ADDRESS", "local")
    with closing(open_engine(recipe())) as engine:
        assert isinstance(engine, ClusterEngine)
        assert engine.session.guard is not None


def test_sigterm_is_noted_by_whoever_noted_it_before(capfd: pytest.CaptureFixture[str]) -> None:
    """Ray would end the run at once, with a dump and without a checkpoint."""
    noted: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: noted.append(number))
    try:
        with closing(open_engine(recipe())):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert noted == [signal.SIGTERM]
    assert "SIGTERM" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        # A daemon that is lost while it starts: Ray says so with a bare Exception.
        (
            Exception("The current node timed out during startup."),
            EngineLost("the cluster did not come up: The current node timed out during startup"),
        ),
        (KeyboardInterrupt(), KeyboardInterrupt()),
    ],
)
def test_a_cluster_that_does_not_come_up_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException, told: BaseException
) -> None:
    import ray

    started: list[subprocess.Popen[bytes]] = []

    def half_up(**options: Any) -> None:
        started.append(subprocess.Popen(["sleep", "60"]))
        raise raised

    monkeypatch.setattr(ray, "init", half_up)
    with pytest.raises(type(told)) as caught:
        open_engine(recipe())
    assert str(caught.value) == str(told)
    assert not psutil.pid_exists(started[0].pid)
    started[0].wait()  # it is gone, and Popen must hear of it


def test_a_cluster_of_our_own_without_room_ends_with_its_guard() -> None:
    """Two cores have room for 200 processes, however many are asked for."""
    config, before = recipe(), set(psutil.Process().children(recursive=True))
    many = config.cluster.model_copy(update={"learners": 100 * num_cores() + 1, "wait_seconds": 1})
    with pytest.raises(ValueError, match=r"no room for \d+ learners on 1 machine with 0 GPUs"):
        open_engine(config.model_copy(update={"cluster": many}))
    assert set(psutil.Process().children(recursive=True)) <= before


def test_a_cluster_that_refuses_us_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong token, for one: what Ray says, in one line."""
    import ray
    from ray.exceptions import AuthenticationError

    from archer.engine.cluster import session

    def refused(**options: Any) -> None:
        raise AuthenticationError("InvalidAuthToken: Authentication token is missing.\nMore.")

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.setattr(session, "knock", lambda address: None)
    monkeypatch.setattr(ray, "init", refused)
    with pytest.raises(ValueError, match="Authentication token is missing"):
        open_engine(recipe())


def test_who_waits_for_a_checkpoint_of_an_engine_that_is_closed_begins_no_cluster(
    tmp_path: Path,
) -> None:
    """As a run does that has lost a learner while its checkpoint is written in a thread."""
    import ray

    engine = open_engine(recipe())
    written = engine.save(tmp_path)
    engine.close()
    with pytest.raises(EngineLost, match="was closed before there was a checkpoint on the disk"):
        written()
    with pytest.raises(Exception, match="Ray has not been started yet"):
        ray.wait([ray.ObjectRef.nil()], timeout=0.1)
    assert not ray.is_initialized()


@pytest.mark.full
def test_a_sampler_that_dies_late_in_a_long_call_has_its_time_to_start_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import archer.engine.cluster.engine as cluster_engine
    import archer.engine.cluster.samplers as of_samplers
    from archer.engine.cluster.replica import Replica

    class Slow(Replica):
        def generate_by_step(self, *arguments: Any) -> Iterator[Any]:
            for samples in super().generate_by_step(*arguments):
                for sample in samples:
                    time.sleep(2.0)
                    yield [sample]

    monkeypatch.setattr(of_samplers, "Replica", Slow)
    config = recipe()
    cluster = config.cluster.model_copy(update={"samplers": 1, "wait_seconds": 40.0})
    with closing(open_engine(config.model_copy(update={"cluster": cluster}))) as engine:
        assert isinstance(engine, cluster_engine.ClusterEngine)
        request = Request(
            prompt_ids=np.array([50, 43, 51, 61], dtype=np.int32),
            in_thought=False,
            names=tuple(("train", 0, 1, "2+3=", j) for j in range(24)),
        )
        answers = engine.generate([request], Sampling(max_tokens=4, temperature=1.0))
        begun = time.monotonic()
        found = [next(answers)]
        (sampler,) = engine.samplers.first.values()
        while time.monotonic() - begun < 41.0:
            found.append(next(answers))
        os.kill(engine.pulse.places[sampler][1], signal.SIGKILL)
        assert len([*found, *answers]) == 24
