"""The fork server: has imported what programs import, and forks a confined process for each run.

    python -P -s -S -B -c "... main()" CONTROL

Its first message says how to confine ("level") and what may be read; then comes a message per run,
with the descriptors that the run gets as 0 to 3. It answers `started` with a descriptor of the
process (a pidfd), and `ended` with how it ended. It never reads what a run reads or writes, so
nothing of one run can be found in the memory of a later one.

Level full, once:   new user, mount, pid, network, IPC and UTS namespaces; a read-only root that
                    holds the interpreter and its libraries alone; the user nobody
      for each run: a new pid namespace, in which the program is process 1 and its end the end of
                    all; a scratch folder in memory; a user namespace without any user, so that its
                    threads are counted alone; limits; no capability; a system call filter
Level restricted:   Landlock instead of namespaces, no scratch folder; limits, filter
Level weak:         limits alone
"""

from __future__ import annotations

import builtins
import gc
import importlib
import importlib.util
import json
import os
import platform
import resource
import select
import signal
import socket
import sys
import threading
from _sitebuiltins import Quitter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from archer.verify.sandbox import confine, filter
from archer.verify.sandbox.program import run_role

CONTROL = 3
"""The descriptor of the server's side of the control socket, once it has moved it there."""
MAX_MESSAGE = 1 << 16
MAX_DESCRIPTORS = 1024
"""More than a server ever holds open."""
SITE = "/site"
"""Where libraries are at level full: their own places may lie below /tmp, which is scratch."""
SCRATCH = "archer-run-"
SCRATCH_MB, SCRATCH_FILES = 64, 4096
MAX_OPEN_FILES, MAX_THREADS = 256, 128
THREAD_STACK = 8 << 20
"""What Linux gives a thread by default; here it would be the stack limit, which is far larger."""

Message = dict[str, Any]

PRELOADED = (
    "array bisect collections copy datetime functools heapq io itertools json math operator queue "
    "random re string sys threading time traceback typing"
).split()
"""What most programs import. Each module more makes every fork dearer: with asyncio, dataclasses
and a dozen others a run took 5.3 ms of CPU time instead of 4.0."""


MORE = (
    "ast asyncio base64 csv dataclasses decimal enum fractions hashlib inspect pprint shutil "
    "statistics symtable tempfile textwrap uuid"
).split()
"""At level weak, too: there the server may lose the right to read the interpreter's library."""


@dataclass(slots=True, kw_only=True)
class State:
    """What the server knows when it forks."""

    level: str
    filter: bytes
    own_pids: int
    """A descriptor of the server's own pid namespace; -1 where it has none of its own."""
    address_space: int
    """Bytes that the interpreter and its libraries take."""


def main() -> None:
    """Serves until the control socket closes."""
    given = int(sys.argv[1])
    if given != CONTROL:
        os.dup2(given, CONTROL)
        os.close(given)
    control = socket.socket(fileno=CONTROL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o022)
    try:
        state = _prepare(control, json.loads(control.recv(MAX_MESSAGE)))
    except (OSError, ImportError) as fault:
        _send(control, {"failed": f"{type(fault).__name__}: {fault}"})
        return
    _send(control, {"ready": state.level})
    _serve(control, state)


def _prepare(control: socket.socket, setup: Message) -> State:
    level = setup["level"]
    confine.die_with_parent()
    own_pids = _isolate(control, setup) if level == "full" else -1
    size = os.open("/proc/self/statm", os.O_RDONLY)
    if level == "full":
        site = {path: f"{SITE}/{os.path.basename(path)}" for path in setup["site"]}
        places = {path: path for path in setup["places"]}
        confine.enter_root(setup["folders"], setup["hidden"], places | site)
        setup["libraries"] = {name: site[path] for name, path in setup["libraries"].items()}
    sys.path.remove(setup["source"])
    sys.meta_path.append(Libraries(setup["libraries"]))
    os.environ.clear()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # or numpy, loaded by a run, wants stacks for threads
    threading.stack_size(THREAD_STACK)
    builtins.exit, builtins.quit = Quitter("exit", ""), Quitter("quit", "")
    more = MORE if level == "weak" else ()
    for name in [*PRELOADED, *more, *setup["preload"]]:
        importlib.import_module(name)
    if level == "restricted":
        confine.landlock(setup["readable"], setup["folders"])
    elif level == "weak":
        confine.adopt_orphans()
    if os.getuid() == 0 and level != "restricted":
        confine.become_nobody()  # but without a root of its own nobody may not reach the libraries
    confine.die_with_parent()  # a change of user has undone it
    if level != "full":
        confine.drop_capabilities()
        if not os.access(os.__file__, os.R_OK):  # imports would fail, by no program's fault
            raise OSError(f"the user nobody can't read {os.__file__}")
    confine.hide()
    pages = int(os.pread(size, 100, 0).split()[0])
    os.close(size)
    gc.collect()
    gc.freeze()  # pages that no collection touches stay shared with the runs
    return State(
        level=level,
        filter=b"" if level == "weak" else filter.build(platform.machine(), _refused(level)),
        own_pids=own_pids,
        address_space=pages * resource.getpagesize(),
    )


def _refused(level: str) -> frozenset[str]:
    """Without a root of its own, a program could change the files of its user, and be root's."""
    return filter.ATTRIBUTES if level == "restricted" else frozenset()


class Libraries:
    """Finds packages by their folders, where nothing else around them may be found."""

    def __init__(self, folders: dict[str, str]) -> None:
        self._folders = folders

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        """As `importlib.abc.MetaPathFinder` has it."""
        if name not in self._folders:
            return None
        folder = self._folders[name]
        return importlib.util.spec_from_file_location(
            name, f"{folder}/__init__.py", submodule_search_locations=[folder]
        )


def _isolate(control: socket.socket, setup: Message) -> int:
    """Goes on as process 1 of new namespaces; returns a descriptor of its pid namespace."""
    confine.unshare(
        confine.NEW_USER
        | confine.NEW_MOUNTS
        | confine.NEW_PIDS
        | confine.NEW_NETWORK
        | confine.NEW_IPC
        | confine.NEW_UTS
    )
    _send(control, {"unshared": True})  # the users of a namespace are written from outside
    control.recv(MAX_MESSAGE)
    if pid := os.fork():
        # Stays as the link between the one that started this and the new process 1: the kernel
        # ends each when the one above it ends.
        control.close()
        os.waitpid(pid, 0)
        os._exit(0)
    confine.die_with_parent()
    return os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)


def _send(control: socket.socket, message: Message, descriptors: Sequence[int] = ()) -> None:
    socket.send_fds(control, [json.dumps(message).encode()], descriptors)


def _serve(control: socket.socket, state: State) -> None:
    poll = select.poll()
    poll.register(control, select.POLLIN)
    runs: dict[int, tuple[int, int, str]] = {}  # pidfd -> (run, pid, scratch folder)
    while True:
        for ready, _ in poll.poll():
            if ready == CONTROL:
                data, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE, 4)
                if not data:
                    return
                request = json.loads(data)
                folder = _new_folder() if state.level == "weak" else "/"
                try:
                    pid = _fork(request, descriptors, folder, state)
                except OSError as fault:
                    if state.level == "weak":
                        _remove_folder(folder)
                    _send(control, {"run": request["run"], "fault": f"fork: {fault}"})
                    continue
                finally:
                    for descriptor in descriptors:
                        os.close(descriptor)
                pidfd = os.pidfd_open(pid)
                runs[pidfd] = request["run"], pid, folder
                poll.register(pidfd, select.POLLIN)
                _send(control, {"run": request["run"], "started": True}, [pidfd])
            else:
                run, pid, folder = runs.pop(ready)
                poll.unregister(ready)
                os.close(ready)
                _, status, usage = os.wait4(pid, 0)
                if state.level == "weak":
                    _end_strays({pid for _, pid, _ in runs.values()})
                    _remove_folder(folder)
                used = usage.ru_utime + usage.ru_stime
                _send(control, {"run": run, "status": status, "cpu": used})


def _fork(request: Message, descriptors: Sequence[int], folder: str, state: State) -> int:
    if state.level == "full":
        confine.unshare(confine.NEW_PIDS)
    try:
        pid = os.fork()
        if pid == 0:
            _run(request, descriptors, folder, state)
        return pid
    finally:
        if state.level == "full":
            confine.enter(state.own_pids)  # or the next run could not have a namespace of its own


def _run(request: Message, descriptors: Sequence[int], folder: str, state: State) -> NoReturn:
    """In the child: confines itself, then does what is asked for. Never returns."""
    try:
        for place, descriptor in enumerate(descriptors):
            os.dup2(descriptor, place)
        os.closerange(len(descriptors), MAX_DESCRIPTORS)
        _confine(request, folder, state)
    except BaseException as fault:  # noqa: BLE001 - whatever it is, it is not the program's
        with suppress(OSError):
            os.write(3, json.dumps({"fault": f"{type(fault).__name__}: {fault}"}).encode() + b"\n")
        os._exit(70)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_role(request["role"], seed=0)


def _confine(request: Message, folder: str, state: State) -> None:
    memory = state.address_space + request["memory_mb"] * 2**20
    if state.level == "full":
        confine.unshare(confine.NEW_MOUNTS)
        confine.mount_scratch("/tmp", SCRATCH_MB, SCRATCH_FILES)
        os.chdir("/tmp")
        confine.unshare(confine.NEW_USER)
    else:
        confine.die_with_parent()
        os.setsid()
        os.chdir(folder)
    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: request["cpu_seconds"],
        resource.RLIMIT_FSIZE: SCRATCH_MB * 2**20,
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if state.level == "full":
        limits[resource.RLIMIT_NPROC] = MAX_THREADS
    confine.limit(limits)
    confine.drop_capabilities()
    confine.hide()
    if state.filter:
        confine.filter_syscalls(filter.for_process(state.filter, os.getpid()))


def _new_folder() -> str:
    import tempfile

    return tempfile.mkdtemp(prefix=SCRATCH)


def _remove_folder(folder: str) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def _end_strays(known: set[int]) -> None:
    """Ends what a run has left behind: orphans have become children of this process."""
    own = str(os.getpid())
    while True:
        strays = [pid for pid, parent in _parents() if parent == own and pid not in known]
        for pid in strays:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        if not strays:
            return


def _parents() -> list[tuple[int, str]]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat") as stat:
                found.append((int(name), stat.read().rpartition(")")[2].split()[1]))
    return found
