"""`archer cluster` starts Ray where it is told, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray._common.utils import get_ray_address_file

from archer.engine.cluster.node import GREETING, MARK, processes, stop
from archer.engine.cluster.up import Cluster, _command
from tests.children import child_environment
from tests.test_cluster import RECIPE

SECONDS = 240.0
"""Longest that one command may take on a busy machine."""

CLUSTER = ('engine="cluster"', "cluster.learners=2", "cluster.samplers=1", "train.steps=2")


def archer(*words: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "archer.cli", *words],
        env=variables,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def variables(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Of commands whose clusters are remembered in this test alone, and ended with it."""
    made = {**child_environment(), "ARCHER_CACHE": str(tmp_path / "cache"), "SECRET": "swordfish"}
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):  # the second of the process that tests
        made.pop(name, None)
    yield made
    for file in (tmp_path / "cache/clusters").glob("*.json"):
        for process in processes(json.loads(file.read_text())["mark"]):
            process.kill()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("", 0))
        return int(taken.getsockname()[1])


def mark(folder: Path) -> str:
    """Of the only cluster that is remembered."""
    (file,) = (folder / "cache/clusters").glob("*.json")
    return str(json.loads(file.read_text())["mark"])


def trained(folder: Path, address: str, variables: dict[str, str]) -> list[int]:
    """The steps of a small run on the cluster at an address."""
    (folder / "recipe.toml").write_text(RECIPE)
    words = ("train", str(folder / "recipe.toml"), "--run", str(folder / "run"), *CLUSTER)
    ran = archer(*words, variables={**variables, "RAY_ADDRESS": address})
    assert ran.returncode == 0, ran.stderr
    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


@pytest.mark.full
def test_a_cluster_on_this_machine_trains_and_leaves_nothing(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    (tmp_path / "hosts.txt").write_text("one slots=1\ntwo slots=2\n")
    there = ("--local", "--hostfile", str(tmp_path / "hosts.txt"))
    port = str(free_port())
    up = archer("cluster", "up", *there, "--port", port, "--env", "SECRET", variables=variables)
    assert up.returncode == 0, up.stderr
    found = re.fullmatch(rf"export RAY_ADDRESS=(\S+:{port})", up.stdout.splitlines()[-1])
    assert found
    ours = processes(mark(tmp_path))
    assert any(process.environ().get("SECRET") == "swordfish" for process in ours)
    assert not any("swordfish" in " ".join(process.cmdline()) for process in ours)
    remembered = next((tmp_path / "cache/clusters").iterdir()).read_text()
    assert "swordfish" not in remembered

    again = archer("cluster", "up", *there, variables=variables)
    assert again.returncode == 2
    assert f"it is up already, at {found[1]}" in again.stderr
    taken = archer("cluster", "up", "--local", "--port", port, variables=variables)
    assert taken.returncode == 2
    assert f"port {port} is taken; give another one with --port" in taken.stderr

    # As README has it, in a shell that knows the address, and with no mode of Ray's set.
    exported = variables | {"RAY_ADDRESS": found[1]}
    status = archer("cluster", "status", *there, variables=exported)
    assert status.returncode == 0, status.stdout
    assert [line.split()[:2] for line in status.stdout.splitlines()[:2]] == [
        ["one", "in"],
        ["two", "in"],
    ]
    assert "1 CPUs" in status.stdout and "2 CPUs" in status.stdout

    assert trained(tmp_path, found[1], variables) == [0, 1, 2]

    down = archer("cluster", "down", *there, variables=variables)
    assert down.returncode == 0, down.stdout
    assert re.fullmatch(r"this machine: \d+ processes stopped\n", down.stdout)
    assert not any(process.is_running() for process in ours)
    assert not list((tmp_path / "cache/clusters").iterdir())
    newest = Path(get_ray_address_file(None))
    assert not newest.exists() or newest.read_text() != found[1]


@pytest.mark.full
def test_a_machine_that_cannot_be_reached_is_named_and_nothing_runs(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    (tmp_path / "hosts.txt").write_text(f"{socket.gethostname()}\nno-such-machine.invalid\n")
    there = ("--hostfile", str(tmp_path / "hosts.txt"))
    up = archer("cluster", "up", *there, "--port", str(free_port()), variables=variables)
    assert up.returncode == 2
    (line,) = up.stderr.splitlines()
    assert "1 of 2 machines are not in: " in line and line.endswith("; nothing was left running")
    assert "no-such-machine.invalid: " in line and "correct its name in the hostfile" in line
    assert not list((tmp_path / "cache/clusters").iterdir())


def test_one_machine_under_two_names_is_refused_before_anything_is_started(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    (tmp_path / "hosts.txt").write_text("localhost\n127.0.0.1\n")
    there = ("--hostfile", str(tmp_path / "hosts.txt"))
    up = archer("cluster", "up", *there, "--port", str(free_port()), variables=variables)
    assert up.returncode == 2
    (line,) = up.stderr.splitlines()
    assert "localhost and 127.0.0.1 are one machine; leave one of the two lines out" in line
    assert "starting the head" not in up.stdout
    assert not list((tmp_path / "cache/clusters").iterdir())


@pytest.mark.full
def test_a_cluster_with_a_dead_node_says_so_and_can_be_ended(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    up = archer("cluster", "up", "--local", "--port", str(free_port()), variables=variables)
    assert up.returncode == 0, up.stderr
    for process in processes(mark(tmp_path)):
        process.kill()
    status = archer("cluster", "status", "--local", variables=variables)
    assert status.returncode == 1
    assert status.stdout.startswith("localhost  missing")
    assert archer("cluster", "down", "--local", variables=variables).returncode == 0


def test_what_was_asked_to_start_is_ended_before_it_has_started_anything() -> None:
    """As when Ctrl-C comes then: it would have begun when all was thought to be ended."""
    mark = uuid.uuid4().hex
    cluster = Cluster(
        mark=mark,
        address="",
        names=("here",),
        folder=".",
        python=sys.executable,
        local=True,
        ssh_config="",
    )
    with subprocess.Popen(
        _command(cluster, "here", "start"),
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as asked:
        try:
            assert asked.stdout is not None
            assert asked.stdout.readline() == f"{GREETING}\n"
            assert stop(cluster=mark, address="") == {"processes": 1}
        finally:
            asked.kill()


def test_what_has_ended_does_not_count_though_nobody_asked_how() -> None:
    mark = uuid.uuid4().hex
    with subprocess.Popen(
        ["sh", "-c", "sleep 0 & exec sleep 60"],
        env={**os.environ, MARK: mark},
        start_new_session=True,
    ) as sleeping:
        try:
            parent = psutil.Process(sleeping.pid)
            while [child.status() for child in parent.children()] != [psutil.STATUS_ZOMBIE]:
                time.sleep(0.01)
            assert [process.pid for process in processes(mark)] == [sleeping.pid]
            assert stop(cluster=mark, address="") == {"processes": 1}
        finally:
            sleeping.kill()
