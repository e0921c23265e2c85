"""The trusted side of the sandbox: starts runs, feeds them, reads them, and keeps their limits.

    with Sandbox("auto") as sandbox, sandbox.start("stdin", source, limits, stdin=b"2 3") as run:
        ending = run.finish()           # Ending(outcome="ended", status=0, ...)
        run.stdout                      # b"5\n"

A run is limited in CPU time, measured by the kernel's clock of that process; the wall clock is a
backstop for what sleeps. Whatever goes wrong on this side of the line (a server that dies, a
namespace that can't be had) raises `SandboxFault`: it says nothing about the program.

Linux only: elsewhere `Sandbox` raises SandboxFault.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from archer.cores import num_cores
from archer.verify.policy import LEVELS, Level
from archer.verify.sandbox.servers import START_SECONDS, ForkServer, SandboxFault, ServerDied

NUMPY = ("numpy", "numpy.random")
"""What is loaded before a program that speaks of numpy."""
CHUNK = 1 << 18
"""More than a socket holds: one read takes all the answers that there are."""
MAX_STDERR = 1 << 16
"""Bytes of the standard error that are kept, the last ones."""
MAX_STDERR_WRITTEN = 64 << 20
"""And that may be written before it counts as a flood."""
LEAST_PATIENCE = 0.005
"""Seconds between two looks at a clock, at the least."""
MAX_WAITING = 5.0
"""A program that waits for a core is given up after so many times its wall seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one run may use. CPU and wall seconds are for what it does between two `mark`s.

    Example: Limits(cpu_seconds=2.0, wall_seconds=9.0, memory_mb=512, output_bytes=1 << 20)
    """

    cpu_seconds: float
    wall_seconds: float
    memory_mb: int
    output_bytes: int
    """Of standard output, and of one message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run ended.

    Example: Ending(reason="ended", status=1, detail="", cpu_seconds=0.02)
    """

    reason: Literal["ended", "killed", "cpu", "wall", "output"]
    """By itself, by a signal that nobody here sent, or stopped for what it used too much of."""
    status: int
    """Exit status; for "killed" the signal."""
    cpu_seconds: float


class Sandbox:
    """Fork servers of one level, one for each flavour of program; used by one thread at a time.

    level: "auto" takes the best that the machine has, but never "weak"; see docs/sandbox.md.
    """

    def __init__(self, level: str = "auto") -> None:
        if sys.platform != "linux":
            raise SandboxFault("programs can be judged on Linux alone")
        if platform.machine() not in ("x86_64", "aarch64"):
            raise SandboxFault(f"no system call filter for {platform.machine()} is known")
        if level not in ("auto", *LEVELS):
            raise ValueError(f"sandbox level {level!r}: use one of auto, {', '.join(LEVELS)}")
        self.level: Level | None = None if level == "auto" else cast(Level, level)
        self._servers: dict[bool, ForkServer] = {}

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the servers, and with them whatever still runs."""
        while self._servers:
            self._servers.popitem()[1].close()

    def start(self, role: str, source: Any, limits: Limits, *, stdin: bytes = b"") -> Run:
        """Starts a run; see program.py for the roles. Raises SandboxFault."""
        wants_numpy = isinstance(source, str) and "numpy" in source
        server = self._servers.get(wants_numpy)
        if server is None or server.ended:
            if server is not None:
                server.close()
            server = self._servers[wants_numpy] = self._open(NUMPY if wants_numpy else ())
        return Run(server, role, source, limits, stdin)

    def _open(self, preload: Sequence[str]) -> ForkServer:
        if self.level is not None:
            return ForkServer(self.level, preload)
        try:
            server = ForkServer("full", preload)
        except ServerDied:  # which says nothing of the level
            raise
        except SandboxFault as no_full:
            try:
                server = ForkServer("restricted", preload)
            except SandboxFault as no_restricted:
                raise SandboxFault(
                    f"no sandbox to be had: level full fails with {no_full}; level restricted "
                    f"with {no_restricted}"
                ) from None
        self.level = server.level
        return server


class Run:
    """A program at work. Close it (or leave its `with`) before anything is concluded from it."""

    def __init__(
        self, server: ForkServer, role: str, source: Any, limits: Limits, stdin: bytes
    ) -> None:
        self.level = server.level
        self.answers = 0
        """Lines that have come since the last mark."""
        self.spent_answering = 0.0
        """CPU seconds from that mark to the last of them; some may be for the line after it."""
        self._server, self._limits = server, limits
        self._pidfd, self._pid = -1, 0
        self._ending: Ending | None = None
        self._stop: Literal["cpu", "wall", "output"] | None = None
        self._out, self._err, self._inbox = bytearray(), bytearray(), bytearray()
        self._err_written = 0
        self._wants_line = False
        self._outbox = memoryview(json.dumps(source).encode() + b"\n")
        self._open: dict[int, bytearray] = {}
        self._poll = select.poll()
        self._cpu_mark, self._wall_mark = 0.0, time.monotonic()
        stdout, child_stdout = os.pipe()
        stderr, child_stderr = os.pipe()
        ours, theirs = socket.socketpair()
        self._channel = ours
        self._stdout, self._stderr = stdout, stderr
        child_stdin = _sealed(stdin)
        children = [child_stdin, child_stdout, child_stderr, theirs.fileno()]
        try:
            self._number = server.launch(
                {
                    "role": role,
                    "memory_mb": limits.memory_mb,
                    "cpu_seconds": int(limits.cpu_seconds) + 3600,  # ours is the limit that counts
                },
                children,
            )
        except BaseException:
            self._close_pipes()
            raise
        finally:
            theirs.close()
            for descriptor in children[:3]:
                os.close(descriptor)
        for descriptor, kept in (
            (stdout, self._out),
            (stderr, self._err),
            (ours.fileno(), self._inbox),
        ):
            os.set_blocking(descriptor, False)
            self._open[descriptor] = kept
            self._poll.register(descriptor, select.POLLIN)
        self._poll.register(server.control, select.POLLIN)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def stdout(self) -> bytes:
        """What the program has written to its standard output."""
        return bytes(self._out)

    @property
    def stderr(self) -> str:
        """The end of what it has written to its standard error."""
        return self._err[-MAX_STDERR:].decode("utf-8", "replace")

    def cpu(self) -> float:
        """Seconds of CPU time that the program has used."""
        if not self._pid:
            return 0.0
        try:
            return time.clock_gettime(~self._pid << 3 | 2)  # MAKE_PROCESS_CPUCLOCK, CPUCLOCK_SCHED
        except OSError:  # it has just ended
            return self._cpu_mark

    def spent(self) -> float:
        """Seconds of CPU time since the last mark."""
        return self.cpu() - self._cpu_mark

    def elapsed(self) -> float:
        """Wall seconds since the last mark."""
        return time.monotonic() - self._wall_mark

    def waited(self) -> float:
        """Seconds that the program was ready to run and no core was free."""
        return core_waits(self._pid)

    def has_unsent(self) -> bool:
        """Whether the program has not taken all that it was sent."""
        return bool(self._outbox)

    def has_line(self) -> bool:
        """Whether a whole line has come that was not received yet."""
        return b"\n" in self._inbox

    def mark(self) -> None:
        """From here on a new allowance of CPU and wall seconds counts."""
        self._cpu_mark, self._wall_mark = self.cpu(), time.monotonic()
        self.answers, self.spent_answering = 0, 0.0

    def send(self, message: Any) -> None:
        """Queues a message for the program."""
        self.send_line(json.dumps(message).encode() + b"\n")

    def send_line(self, line: bytes) -> None:
        """Queues a line that is a message already."""
        self._outbox = memoryview(bytes(self._outbox) + line)

    def confirm(self) -> None:
        """Waits until the program is confined and about to begin. Raises SandboxFault if it isn't.

        What comes on the channel until then is said by trusted code.
        """
        said = self.receive()
        if not isinstance(said, dict) or "ready" not in said:
            fault = said["fault"] if isinstance(said, dict) else "it ended before it was confined"
            raise SandboxFault(f"a run can't be confined: {fault}")

    def receive_line(self) -> bytes | None:
        """The next line that the program sends; None when it has ended, or was stopped."""
        self._wants_line = True
        searched = 0
        while (end := self._inbox.find(b"\n", searched)) < 0:
            searched = len(self._inbox)
            if not self._step():
                return None
        line = bytes(self._inbox[:end])
        del self._inbox[: end + 1]
        return line

    def receive(self) -> Any:
        """The message in that line; None as there. ValueError for what is no JSON."""
        line = self.receive_line()
        try:
            return None if line is None else json.loads(line)
        except RecursionError:
            raise ValueError("a message that is nested too deeply") from None

    def last_message(self) -> Any:
        """Of a run that has ended: the last line that it sent, or None. It may say anything."""
        try:
            return json.loads(bytes(self._inbox).rpartition(b"\n")[0].rpartition(b"\n")[2])
        except (ValueError, RecursionError):
            return None

    def finish(self) -> Ending:
        """Waits for the end of the program, and of all that it has written."""
        self._wants_line = False
        while self._step():
            pass
        assert self._ending is not None
        if self._stop == "output":  # it may have ended before all was read
            return replace(self._ending, reason="output")
        return self._ending

    def close(self) -> None:
        """Stops the program if it still runs; returns when it is gone with all that it started."""
        if self._ending is None and not self._server.ended:
            with suppress(SandboxFault):
                self._kill("wall")
                while self._ending is None:
                    self._wait(None)
        self._close_pipes()

    def _close_pipes(self) -> None:
        for descriptor in (self._stdout, self._stderr, self._pidfd):
            if descriptor >= 0:
                os.close(descriptor)
        self._stdout = self._stderr = self._pidfd = -1
        self._channel.close()

    def _step(self) -> bool:
        """Waits for something to happen. False when the run has ended and all is read.

        The clock is looked at first: whoever waits for a line has just found that none is there.
        """
        if self._ending is not None and not self._open:
            return False
        if self._stop is None and self._ending is None:
            self._check_clock()
        self._wait(self._patience())
        if self._stop is None:
            self._check_output()
        return True

    def _wait(self, seconds: float | None) -> None:
        """Handles what happens next; None waits for what the server is sure to say soon."""
        if self._server.has_news(self._number):
            self._hear()  # another run of this server has met it on the common socket
            return
        if self._outbox and self._channel.fileno() in self._open:
            self._poll.modify(self._channel, select.POLLIN | select.POLLOUT)
        events = self._poll.poll((START_SECONDS if seconds is None else seconds) * 1000)
        if seconds is None and not events:
            self._server.ended = True
            raise ServerDied(f"the fork server has said nothing for {START_SECONDS:g} s")
        for ready, event in events:
            if ready == self._server.control.fileno():
                self._hear()
            elif event & select.POLLOUT and self._outbox:
                self._write()
            elif ready in self._open:
                self._read(ready)

    def _patience(self) -> float | None:
        """How long nothing can go over a limit."""
        if self._ending is not None or self._stop:
            return None
        wall = self._limits.wall_seconds - self.elapsed()
        left = self._limits.cpu_seconds - self.spent()
        return max(LEAST_PATIENCE, min(wall, left / num_cores()))

    def _check_clock(self) -> None:
        wall, most = self.elapsed(), self._limits.wall_seconds
        reason: Literal["cpu", "wall"] | None = None
        if self.spent() > self._limits.cpu_seconds:
            reason = "cpu"
        elif wall > most and (wall > MAX_WAITING * most or wall - self.waited() > most):
            reason = "wall"
        if reason and not (self._wants_line and self._finds_line()):
            self._kill(reason)

    def _finds_line(self) -> bool:
        """Whether the answer that is waited for has come: in time, however late it is looked at."""
        if self._channel.fileno() in self._open:
            self._read(self._channel.fileno())
        return self.has_line()

    def _check_output(self) -> None:
        most = self._limits.output_bytes
        if len(self._out) > most or len(self._inbox) > most + CHUNK:
            self._kill("output")
        if self._err_written > MAX_STDERR_WRITTEN:
            self._kill("output")

    def _kill(self, reason: Literal["cpu", "wall", "output"]) -> None:
        while self._pidfd < 0 and self._ending is None:  # it may not even have been forked yet
            self._wait(None)
        self._stop = reason
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _hear(self) -> None:
        for message, descriptors in self._server.news(self._number):
            if "fault" in message:
                raise SandboxFault(message["fault"])
            if "started" in message:
                self._pidfd = descriptors[0]
                self._pid = _pid_of(self._pidfd)
            elif self._ending is None:
                self._ending = self._how(message["status"], message["cpu"])
                self._check_killer(self._ending)

    def _how(self, status: int, cpu_seconds: float) -> Ending:
        code = os.waitstatus_to_exitcode(status)
        reason = self._stop or ("ended" if code >= 0 else "killed")
        if not self._cpu_mark and cpu_seconds > self._limits.cpu_seconds:
            reason = "cpu"  # whether or not it was noticed in time
        return Ending(reason=reason, status=abs(code), cpu_seconds=cpu_seconds)

    def _check_killer(self, ending: Ending) -> None:
        if (self.level, ending.reason, ending.status) == ("full", "killed", signal.SIGKILL):
            raise SandboxFault("someone else has killed a run")  # process 1 can't do it to itself

    def _write(self) -> None:
        try:
            sent = self._channel.send(self._outbox)
        except BlockingIOError:
            return
        except OSError:  # the program has closed its end
            sent = len(self._outbox)
        self._outbox = self._outbox[sent:]
        if not self._outbox:
            self._poll.modify(self._channel, select.POLLIN)

    def _read(self, descriptor: int) -> None:
        spent = self.spent()
        try:
            chunk = os.read(descriptor, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._poll.unregister(descriptor)
            del self._open[descriptor]
            if descriptor == self._channel.fileno():
                self._outbox = memoryview(b"")
            return
        kept = self._open[descriptor]
        if kept is self._inbox:
            self.answers += chunk.count(b"\n")
            self.spent_answering = spent
        if kept is self._err:
            self._err_written += len(chunk)
            if len(kept) > 2 * MAX_STDERR:
                del kept[:-MAX_STDERR]
        if not self._stop:
            kept += chunk


def _sealed(data: bytes) -> int:
    """A file in memory that nobody can change, to be read from its beginning."""
    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(descriptor, 1033, 0b1111)  # F_ADD_SEALS: seal, shrink, grow, write
    return descriptor


def _pid_of(pidfd: int) -> int:
    """The number, here, of the process that a descriptor stands for; 0 when it is gone."""
    with open(f"/proc/self/fdinfo/{pidfd}") as info:
        for line in info:
            if line.startswith("Pid:"):
                return max(0, int(line.split()[1]))
    return 0


def core_waits(pid: int) -> float:
    """Seconds that a process has been ready to run and no core was free: its thread that did most.

    Not their sum: a hundred threads that wake at once, for nothing, wait for each other all day.
    """
    waited = 0.0
    with suppress(OSError, ValueError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError), open(f"/proc/{pid}/task/{task}/schedstat") as numbers:
                waited = max(waited, int(numbers.read().split()[1]) / 1e9)
    return waited
