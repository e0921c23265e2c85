# mypy: disable-error-code="no-untyped-call"
"""What `archer cluster` does on one machine; it runs there, started by ssh (or by itself here).

    python -m archer.engine.cluster.node

A request comes as JSON on standard input and the answer goes as JSON to standard output, in its
last line. The token and variables arrive so, and are in no command line and in no file of ours.

Processes that belong to a cluster are told by a variable in their environment, MARK, that Ray's
daemons were started with; with them goes their whole session (setsid) and all their descendants.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from archer.cores import num_cores

GREETING = "archer cluster is here"
"""First line of every answer: without it nothing was begun."""

MARK = "ARCHER_CLUSTER"
"""Variable that names the cluster a process belongs to."""

GRACE_SECONDS = 3.0
"""For Ray's daemons to end by themselves."""

KNOCK_SECONDS = 10.0
"""For a cluster's head to answer."""

LAST_LINES = 4
"""Of what a command said, as the reason of its failure."""


def who() -> dict[str, Any]:
    """What tells this machine from others, by whatever name it was reached.

    Machines made of namespaces, containers among them, share all but their name and their network.
    """
    try:
        facts = [Path("/proc/sys/kernel/random/boot_id").read_text().strip()]
        facts.append(os.readlink("/proc/self/ns/net"))
    except OSError:  # no Linux
        facts = [f"{uuid.getnode():012x}"]
    return {"machine": " ".join([socket.gethostname(), *facts])}


def start(
    *, cluster: str, name: str, head: str, port: int, slots: int | None, token: str, seconds: float
) -> dict[str, Any]:
    """Starts Ray here; `head` is the address of the cluster to join, "" to be its head.

    Returns the address of the cluster. What it started is stopped again if it fails.
    """
    try:
        import ray
    except ImportError:
        raise ValueError(
            f"no Ray in {sys.prefix}; pip install 'archer-rl[cluster]' there"
        ) from None
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-name={name}"]
    command += ["--disable-usage-stats", "--include-log-monitor=false", "--log-style=record"]
    # Several nodes of a rehearsal share a machine, where fixed ports would meet.
    command += ["--dashboard-agent-listen-port=0"]
    if head:
        command.append(f"--address={head}")
    else:
        _refuse_taken(port)
        address = _reached_at() or own_address(name) or ray.util.get_node_ip_address()
        head = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        command += ["--head", f"--port={port}", "--include-dashboard=false"]
        command.append(f"--node-ip-address={address}")
    if slots is not None:
        command += _counts(slots)
    _keep_token(token)
    # Ray gives its processes titles, and where its own name is short would write them over the
    # variables that we know them by: with SPT_NOENV it does not.
    environment = {**os.environ, MARK: cluster, "SPT_NOENV": "1"}
    environment.pop("RAY_ADDRESS", None)
    # A file, not a pipe: Ray's daemons hold what they inherit open for as long as they live.
    with tempfile.TemporaryFile() as said:
        try:
            code = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # it outlives ssh, and its session is known by it
                timeout=seconds,
            ).returncode
            if code:
                said.seek(0)
                raise ValueError(last_lines(said.read().decode(errors="replace")))
        except subprocess.TimeoutExpired:
            stop(cluster=cluster, address=head)
            raise ValueError(
                f"ray start was not done after {seconds:.0f} s; give it longer with --wait"
            ) from None
        except BaseException:
            stop(cluster=cluster, address=head)
            raise
    return {"address": head}


def look(*, address: str, names: list[str], token: str, seconds: float) -> dict[str, Any]:
    """The nodes of a cluster, as soon as all of these are in, or after so many seconds."""
    os.environ["RAY_AUTH_TOKEN"] = token
    import ray

    try:
        knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"no cluster answers at {address}: {last_lines(str(error))}") from None
    deadline = time.monotonic() + seconds
    while True:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        if {node["NodeName"] for node in nodes} >= set(names) or time.monotonic() > deadline:
            break
        time.sleep(0.3)
    ray.shutdown()
    return {
        "nodes": [
            {
                "name": node["NodeName"],
                "address": node["NodeManagerAddress"],
                "cpus": node["Resources"].get("CPU", 0),
                "gpus": node["Resources"].get("GPU", 0),
                "memory": node["Resources"].get("memory", 0),
            }
            for node in nodes
        ]
    }


def knock(address: str) -> None:
    """OSError where nobody listens at HOST:PORT: Ray itself would try for minutes.

    An address of another form is left to Ray.
    """
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()


def find(*, cluster: str) -> dict[str, Any]:
    """How many processes of a cluster run here."""
    return {"processes": len(processes(cluster))}


def stop(*, cluster: str, address: str) -> dict[str, Any]:
    """Ends every process of a cluster here: those of other clusters are left alone.

    ValueError when some do not end.
    """
    found = processes(cluster)
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
            process.resume()  # one that is stopped would never hear of it
    psutil.wait_procs(found, timeout=GRACE_SECONDS)
    deadline = time.monotonic() + GRACE_SECONDS
    # A worker may have come while its daemon was ending.
    while left := {*processes(cluster), *filter(_runs, found)}:
        if time.monotonic() > deadline:
            numbers = ", ".join(str(process.pid) for process in left)
            raise ValueError(f"processes that do not end, even when killed: {numbers}")
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=GRACE_SECONDS)
    _forget_address(address)
    return {"processes": len(found)}


def _forget_address(address: str) -> None:
    """Ray notes which cluster is this machine's newest, and would look for it after its end."""
    with suppress(ImportError, FileNotFoundError):
        from ray._common.utils import get_ray_address_file

        file = Path(get_ray_address_file(None))
        if file.read_text() == address:
            file.unlink()


def processes(cluster: str) -> list[psutil.Process]:
    """Those of a cluster: with its mark, of their sessions, and started by any of them."""
    every = list(psutil.process_iter())
    marked = [process for process in every if _mark(process) == cluster]
    sessions = {_session(process) for process in marked} - {None, os.getsid(0)}
    found = {process for process in every if _session(process) in sessions}
    found.update(marked)
    for process in tuple(found):
        with suppress(psutil.NoSuchProcess):
            found.update(process.children(recursive=True))
    found.discard(psutil.Process())
    return sorted(filter(_runs, found), key=lambda process: process.pid)


def _runs(process: psutil.Process) -> bool:
    """Not so one that has ended and that nobody asks for the reason, as in some containers."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _mark(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except (psutil.Error, OSError):  # another user's
        return None


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:  # gone meanwhile
        return None


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            raise ValueError(f"port {port} is taken; give another one with --port") from None


def own_address(name: str) -> str | None:
    """The address of this machine that a name stands for, if others reach it by that.

    IPv4 before IPv6, in which Ray and gloo are less at home.
    """
    own = [address for address in addresses_here(name) if not _here_alone(address)]
    return min(own, key=lambda address: ":" in address, default=None)


def addresses_here(name: str) -> list[str]:
    """The addresses of this machine that a name stands for; none where it is another one's."""
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(name, None)]
    except OSError:
        return []  # perhaps an alias that ssh knows
    own = own_addresses()
    return [address for address in found if address in own]


def own_addresses() -> set[str]:
    """All addresses of this machine."""
    return {a.address for entries in psutil.net_if_addrs().values() for a in entries}


def _here_alone(address: str) -> bool:
    """Whether it means another machine elsewhere, or one only beside the name of an interface."""
    read = ipaddress.ip_address(address.partition("%")[0])
    return read.is_loopback or read.is_link_local


def _reached_at() -> str | None:
    """The address that ssh was reached at, so that others reach this machine by it, too."""
    words = os.environ.get("SSH_CONNECTION", "").split()
    if len(words) != 4 or _here_alone(words[2]):
        return None
    return words[2]


def _counts(slots: int) -> list[str]:
    """Options of `ray start` for so many GPUs, or CPUs where there are none."""
    import torch

    if gpus := torch.cuda.device_count():
        if slots > gpus:
            raise ValueError(f"slots={slots}, and there are {gpus} GPUs; write slots={gpus}")
        return [f"--num-gpus={slots}"]
    if slots > num_cores():
        raise ValueError(
            f"slots={slots}, and there are no GPUs and {num_cores()} CPUs; write "
            f"slots={num_cores()}"
        )
    return [f"--num-cpus={slots}"]


def _keep_token(token: str) -> None:
    """Ray's token for commands on this machine, where Ray has kept none yet; for Ray's daemons it
    is in their environment, whatever the file says."""
    os.environ["RAY_AUTH_TOKEN"] = token
    file = Path.home() / ".ray" / "auth_token"
    file.parent.mkdir(mode=0o700, exist_ok=True)
    with suppress(FileExistsError):
        number = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(number, "w") as opened:
            opened.write(token)


def last_lines(text: str) -> str:
    """The end of what a command said, in one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-LAST_LINES:]) or "it said nothing"


VERBS: dict[str, Callable[..., dict[str, Any]]] = {
    "who": who,
    "start": start,
    "look": look,
    "find": find,
    "stop": stop,
}


def _main() -> None:
    print(GREETING, flush=True)
    request = json.load(sys.stdin)
    os.environ.update(request.pop("environment", {}))
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # ours has one, whatever RAY_ADDRESS names
    try:
        reply = VERBS[request.pop("verb")](**request)
    except (ValueError, OSError) as error:
        reply = {"error": " ".join(str(error).split())}
    print(f"\n{json.dumps(reply)}", flush=True)


if __name__ == "__main__":
    _main()
