"""`archer cluster up`, `status` and `down`: Ray on the machines of a hostfile, head first.

Each machine is reached by ssh with the user's own settings, never with a question; this machine
itself is reached without. The same virtual environment and the same working folder are expected
everywhere. What has to be done there is in `node`. What was started is remembered in a small file
in the cache folder (names, an address and a mark: no secret), and `down` ends that and no more.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from archer.engine.cluster.hosts import Host, read_hosts
from archer.engine.cluster.node import GRACE_SECONDS, GREETING, MARK, addresses_here, last_lines
from archer.files import cache_folder, written_whole

ANSWER_SECONDS = 30.0
"""For ssh and an answer, on top of what the work takes."""

SSH = (
    *("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
)

CURES = {
    "Permission denied": "give this machine's key to it with ssh-copy-id, so that ssh does not ask "
    "for a password, or name the right user, as in user@name",
    "Host key for": "if it was set up anew, do so and log in by hand once; if not, another machine "
    "answers by its name",
    "Host key verification failed": "log in by hand once, so that ssh knows it",
    "No route to host": "is it on?",
    "Connection timed out": "is it on, and may ssh pass to it?",
    "Connection refused": "start sshd there",
    "Could not resolve hostname": "correct its name in the hostfile, or give it in ~/.ssh/config",
    "No module named 'archer": "install archer there in the same virtual environment",
    "No module named archer": "install archer there in the same virtual environment",
    "No such file or directory": "the working folder and the virtual environment must have the "
    "same path there",
}
"""What ssh or Python says, and what a person can do about it."""

Reply = dict[str, Any]
"""What a machine answered; {"error": why} where it did not do what it was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What was started, as it is remembered.

    Example: Cluster(mark="9f2c41d0", address="10.0.0.1:6379", names=("node0", "node1"),
    folder="/srv/rl", python="/srv/rl/.venv/bin/python", local=False, ssh_config="").
    """

    mark: str
    """In the environment of all its processes."""
    address: str
    """Of its head; "" until that is up."""
    names: tuple[str, ...]
    """Machines, the head first."""
    folder: str
    python: str
    local: bool
    """Whether every node is a process on this machine."""
    ssh_config: str
    """A file for ssh in place of the user's own; "" for that."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What to tell, and whether all is as it should be."""

    text: str
    whole: bool


def up(
    hostfile: Path | None,
    *,
    tell: Callable[[str], None],
    local: bool = False,
    port: int = 6379,
    wait: float = 120.0,
    variables: Sequence[str] = (),
    ssh_config: Path | None = None,
) -> str:
    """Starts Ray on every machine; returns the address once all are in.

    ValueError when one of them is not in after `wait` seconds; nothing is left running then.
    """
    hosts = _hosts(hostfile, local)
    if not local and shutil.which("ssh") is None:
        raise ValueError("there is no ssh here; install it, or give --local for this machine alone")
    passed = _passed(variables)
    cluster = Cluster(
        mark=secrets.token_hex(8),
        address="",
        names=tuple(host.name for host in hosts),
        folder=os.getcwd(),
        python=sys.executable,
        local=local,
        ssh_config=str(ssh_config.resolve()) if ssh_config else "",
    )
    token = _token()
    file = _file(hostfile)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(file, "x") as opened:
            json.dump(asdict(cluster), opened)
    except FileExistsError:
        before = _remembered(hostfile)
        raise ValueError(
            f"it is up already, at {before.address or 'no address yet'}; "
            f"archer cluster down {_option(hostfile)} ends it"
        ) from None
    reached: set[str] = set()
    try:
        if not local:
            _refuse_one_twice(cluster)
        return _started(cluster, hosts, port, wait, passed, token, file, reached, tell)
    except BaseException as error:
        tell("stopping what was started")
        replies = _stop(_remembered(hostfile), file, reached)
        left = [f"{name}: {reply['error']}" for name, reply in replies.items() if "error" in reply]
        end = "nothing was left running"
        if left:
            again = f"archer cluster down {_option(hostfile)} tries again"
            end = f"not stopped: {'; '.join(left)}; {again}"
        if isinstance(error, ValueError):
            raise ValueError(f"{error}; {end}") from None
        tell(end)
        raise


def status(hostfile: Path | None) -> Outcome:
    """For every machine, and for nodes that came by other ways, whether it is in."""
    cluster = _remembered(hostfile)
    head = cluster.names[0]
    rows = []
    reply: Reply = {"error": "its head is not up"}
    if cluster.address:
        request = _look(cluster, (), _token(), 0.0)
        reply = _ask(cluster, {head: request}, ANSWER_SECONDS)[head]
    nodes = {node["name"]: node for node in reply.get("nodes", [])}
    missing = [name for name in cluster.names if name not in nodes]
    request = {"verb": "find", "cluster": cluster.mark}
    there = _ask(cluster, dict.fromkeys(missing, request), ANSWER_SECONDS)
    for name in cluster.names:
        if name in nodes:
            rows.append((name, "in", _has(nodes[name])))
        elif "error" in there[name]:
            rows.append((name, "missing", there[name]["error"]))
        else:
            whose = "the cluster's" if cluster.local else "its"
            rows.append((name, "missing", f"{there[name]['processes']} of {whose} processes run"))
    rows += [(n, "not ours", _has(nodes[n])) for n in sorted(nodes.keys() - set(cluster.names))]
    width = max(len(name) for name, *_ in rows)
    lines = [f"{name:<{width}}  {state:<8}  {more}" for name, state, more in rows]
    if "error" in reply:
        lines.append(f"{head}: {reply['error']}")
    return Outcome("\n".join([*lines, f"export RAY_ADDRESS={cluster.address}"]), not missing)


def down(hostfile: Path | None) -> Outcome:
    """Ends every process that `up` started, and no other."""
    cluster = _remembered(hostfile)
    file = _file(hostfile)
    replies = _stop(cluster, file)
    lines = []
    for name, reply in replies.items():
        if "error" in reply:
            lines.append(f"{name}: not stopped: {reply['error']}")
        else:
            lines.append(f"{name}: {reply['processes']} processes stopped")
    whole = not any("error" in reply for reply in replies.values())
    if not whole:
        lines.append(f"the same command tries again; where a machine is gone for good, rm {file}")
    return Outcome("\n".join(lines), whole)


def _hosts(hostfile: Path | None, local: bool) -> list[Host]:
    if hostfile is not None:
        return read_hosts(hostfile)
    assert local
    return [Host(name="localhost")]


def _passed(variables: Sequence[str]) -> dict[str, str]:
    """The values of variables that are passed by name."""
    for name in variables:
        if name not in os.environ:
            raise ValueError(f"--env {name}: it is not set here; export it, or leave it out")
    return {name: os.environ[name] for name in variables}


def _token() -> str:
    """Ray's own token of this user, made by Ray where there is none yet."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"]
    asked = subprocess.run(command, capture_output=True, text=True)
    if "No module named" in asked.stderr:
        raise ValueError(f"no Ray in {sys.prefix}; pip install 'archer-rl[cluster]'")
    if asked.returncode or not asked.stdout.strip():
        raise ValueError(f"Ray gives no token: {last_lines(asked.stderr)}")
    return asked.stdout.split()[-1]


def _refuse_one_twice(cluster: Cluster) -> None:
    """ValueError where two names are of one machine, or one cannot be asked."""
    replies = _ask(cluster, {name: {"verb": "who"} for name in cluster.names}, ANSWER_SECONDS)
    _refuse_absent({name: r["error"] for name, r in replies.items() if "error" in r}, cluster)
    names: dict[str, str] = {}
    for name, reply in replies.items():
        before = names.setdefault(reply["machine"], name)
        if before != name:
            raise ValueError(
                f"{before} and {name} are one machine; leave one of the two lines out, or give "
                "--local for a rehearsal"
            )


def _refuse_absent(why: Mapping[str, str], cluster: Cluster) -> None:
    """ValueError that names the machines that are not in, if there are any, and the reasons."""
    if why:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in why.items())
        raise ValueError(f"{len(why)} of {len(cluster.names)} machines are not in: {reasons}")


def _started(
    cluster: Cluster,
    hosts: Sequence[Host],
    port: int,
    wait: float,
    passed: Mapping[str, str],
    token: str,
    file: Path,
    reached: set[str],
    tell: Callable[[str], None],
) -> str:
    """The address, once every machine is in; `reached` gets those where something was begun."""
    deadline = time.monotonic() + wait
    head, *others = hosts

    def begin(begun: Sequence[Host], address: str) -> dict[str, Reply]:
        left = max(1.0, deadline - time.monotonic())
        requests = {
            host.name: {
                "verb": "start",
                "environment": dict(passed),
                "cluster": cluster.mark,
                "name": host.name,
                "head": address,
                "port": port,
                "slots": host.slots,
                "token": token,
                "seconds": left,
            }
            for host in begun
        }
        return _ask(cluster, requests, left + ANSWER_SECONDS, reached)

    tell(f"{head.name}: starting the head")
    reply = begin([head], "")[head.name]
    if "error" in reply:
        raise ValueError(f"{head.name}: {reply['error']}")
    cluster = replace(cluster, address=reply["address"])
    _remember(cluster, file)
    if others:
        tell(f"{len(others)} more to join {cluster.address}")
    why = {n: r["error"] for n, r in begin(others, cluster.address).items() if "error" in r}
    if not why:
        left = max(0.0, deadline - time.monotonic())
        request = _look(cluster, cluster.names, token, left)
        reply = _ask(cluster, {head.name: request}, left + ANSWER_SECONDS)[head.name]
        if "error" in reply:
            raise ValueError(f"{head.name}: {reply['error']}")
        inside = {node["name"]: node for node in reply["nodes"]}
        lost = f"Ray runs there, and was not in after {wait:g} s: can it reach {cluster.address}?"
        why = {name: lost for name in cluster.names if name not in inside}
    _refuse_absent(why, cluster)
    for name in cluster.names:
        tell(f"{name}: in, {_has(inside[name])}")
    return cluster.address


def _look(cluster: Cluster, names: Sequence[str], token: str, seconds: float) -> dict[str, Any]:
    return {
        "verb": "look",
        "address": cluster.address,
        "names": list(names),
        "token": token,
        "seconds": seconds,
    }


def _has(node: Mapping[str, Any]) -> str:
    memory = node["memory"] / (1 << 30)
    return f"{node['address']}, {node['cpus']:g} CPUs, {node['gpus']:g} GPUs, {memory:.1f} GiB"


def _stop(cluster: Cluster, file: Path, reached: Container[str] | None = None) -> dict[str, Reply]:
    """Ends what runs on all machines, and forgets those where that was done.

    `reached`: where something may have been begun, if that is known. Others are forgotten, too, if
    they do not even answer, as after a wrong hostfile.
    """
    request = {"verb": "stop", "cluster": cluster.mark, "address": cluster.address}
    machines = ("this machine",) if cluster.local else cluster.names
    replies = _ask(cluster, dict.fromkeys(machines, request), 3 * GRACE_SECONDS + ANSWER_SECONDS)
    if reached is not None:
        replies = {n: r for n, r in replies.items() if n in reached or r["reached"]}
    left = tuple(name for name, reply in replies.items() if "error" in reply)
    if left:
        _remember(cluster if cluster.local else replace(cluster, names=left), file)
    else:
        file.unlink(missing_ok=True)
    return replies


def _ask(
    cluster: Cluster, requests: Mapping[str, Any], seconds: float, reached: set[str] | None = None
) -> dict[str, Reply]:
    """What each machine answers to its request; all are asked at once.

    `reached` gets those that had begun to answer, also when this is interrupted.
    """
    deadline = time.monotonic() + seconds
    asked: dict[str, subprocess.Popen[str]] = {}
    replies: dict[str, Reply] = {}
    try:
        for name, request in requests.items():
            asked[name] = subprocess.Popen(
                _command(cluster, name, request["verb"]),
                cwd=cluster.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is for this process, which ends them
            )
            pipe = asked[name].stdin
            assert pipe is not None
            with suppress(BrokenPipeError):  # ssh has failed, and says why
                pipe.write(json.dumps(request))
                pipe.close()
            asked[name].stdin = None
        for name, process in asked.items():
            replies[name] = _reply(process, deadline, seconds)
        return replies
    finally:
        for name, process in asked.items():
            if name not in replies:
                process.kill()
                replies[name] = {"reached": GREETING in process.communicate()[0]}
        if reached is not None:
            reached.update(name for name, reply in replies.items() if reply["reached"])


def _command(cluster: Cluster, name: str, verb: str) -> list[str]:
    module = [cluster.python, "-m", "archer.engine.cluster.node"]
    here = cluster.local or addresses_here(name)
    if verb == "start":  # it can be stopped before it has started anything
        # How the user's own login reached this machine is not how the others do.
        unset = ["-u", "SSH_CONNECTION"] if here else []
        module = ["env", *unset, f"{MARK}={cluster.mark}", *module]
    if here:
        return module
    config = ["-F", cluster.ssh_config] if cluster.ssh_config else []
    there = f"cd {shlex.quote(cluster.folder)} && exec {shlex.join(module)}"
    return [*SSH, *config, name, there]


def _reply(process: subprocess.Popen[str], deadline: float, seconds: float) -> Reply:
    try:
        out, said = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        out, said = process.communicate()
        return {
            "error": f"no answer in {seconds:.0f} s ({last_lines(said)})",
            "reached": GREETING in out,
        }
    reached = GREETING in out
    if reached and not process.returncode:
        reply: Reply = json.loads(out.splitlines()[-1])
        return {**reply, "reached": True}
    reason = last_lines(said)
    cures = [cure for words, cure in CURES.items() if words in said]
    return {"error": "; ".join([reason, *cures[:1]]), "reached": reached}


def _file(hostfile: Path | None) -> Path:
    """Where it is remembered what was started for a hostfile."""
    if hostfile is None:
        return cache_folder() / "clusters" / "local.json"
    key = hashlib.sha256(str(hostfile.resolve()).encode()).hexdigest()[:16]
    return cache_folder() / "clusters" / f"{key}.json"


def _remember(cluster: Cluster, file: Path) -> None:
    with written_whole(file) as opened:
        opened.write(json.dumps(asdict(cluster)).encode())


def _remembered(hostfile: Path | None) -> Cluster:
    file = _file(hostfile)
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"nothing is up that archer cluster up {_option(hostfile)} started; "
            "clusters of others are left alone"
        ) from None
    except json.JSONDecodeError:  # it is complete before anything is started
        raise ValueError(
            f"archer cluster up {_option(hostfile)} was killed before it started anything; "
            f"rm {file}"
        ) from None
    return Cluster(**{**found, "names": tuple(found["names"])})


def _option(hostfile: Path | None) -> str:
    return "--local" if hostfile is None else f"--hostfile {hostfile}"
