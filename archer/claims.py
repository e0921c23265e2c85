"""Who works on what, among processes that share nothing but a folder, perhaps over NFS.

    FOLDER/by-MACHINE-PID-START-TOKEN/alive   a process's sign of life, touched every few seconds
    FOLDER/NAME.N                             a claim of NAME: a hard link to its holder's sign

A claim is made by link(2), which like O_EXCL succeeds for one alone, on NFS too; the new name is at
once complete, whenever its maker is killed. As a second name of the sign of life it says who holds
it, and all claims of a process are touched together. Nobody renames or removes what another holds:
a claim whose holder has ended is taken over by the next number, N + 1, and the highest number that
lives is the holder. Ages are differences of times that the folder's own file system has set, never
of a local clock. Left out: what is worked on (archer.watch).
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

BEAT = 5.0
"""Seconds between signs of life."""

STALE = 300.0
"""Seconds without a sign after which a holder has ended, as far as other machines can tell. Longer
than NFS keeps what it knows of a file, and than a machine stands still for."""


class ClaimLost(Exception):
    """Another process has taken over what this one was working on."""


class Claims:
    """What this process has claimed in a folder.

    Example:
        claims = Claims(Path("runs/quickstart/watch/.claims"))
        if claims.take("step-000030"):
            ...
            claims.release("step-000030")
        claims.close()
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._begin()
        self._checked = time.monotonic()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="archer-claims")
        self._thread.start()
        self._sweep()

    def _begin(self) -> None:
        host, pid = socket.gethostname(), os.getpid()
        start = _start(pid)
        self.own = self.folder / f"by-{_machine()}-{pid}-{start}-{secrets.token_hex(4)}"
        """A folder for what only this process writes; what a kill leaves in it is cleared away."""
        while not self.own.is_dir():
            with suppress(FileNotFoundError):  # whoever closed last may remove the folder just now
                self.own.mkdir(parents=True)
        self._alive = self.own / "alive"
        self._file = open(self._alive, "w", encoding="utf-8")  # open: its inode is not given anew
        who = {"host": host, "machine": _machine(), "pid": pid, "start": start}
        self._file.write(json.dumps(who) + "\n")
        self._file.flush()

    def take(self, name: str) -> bool:
        """Claims a name, where nobody who lives holds it; true as well where it is held already."""
        numbers = self._numbers(name)
        if self._mine(name, numbers):
            return True
        for lost in numbers:
            if self._is_own(self._path(name, lost)):  # it would keep others from taking the next
                self._path(name, lost).unlink(missing_ok=True)
        if numbers and not self._ended(self._path(name, numbers[-1])):
            return False
        number = numbers[-1] + 1 if numbers else 0
        path = self._path(name, number)
        try:
            os.link(self._alive, path)
        except FileExistsError:  # also said, over NFS, of a link that was made and not confirmed
            if not self._is_own(path):
                return False
        except FileNotFoundError:  # asleep for so long that others have cleared this one away
            asleep = self._file
            self._begin()
            asleep.close()
            return False
        except OSError as error:
            raise ValueError(
                f"{self.folder}: no hard links can be made here ({error.strerror}), and claims are "
                "made of them; give --out on another file system"
            ) from None
        # What was listed above may be long over. Whoever links first and looks second sees the
        # other, if there is one; so at most one of two goes on.
        others = [each for each in self._numbers(name) if each != number]
        if any(not self._ended(self._path(name, each)) for each in others):
            path.unlink()
            return False
        return True

    def holds(self, name: str) -> bool:
        """Whether the claim is still this process's own."""
        return self._mine(name, self._numbers(name))

    def check(self, name: str) -> None:
        """Raises ClaimLost where it is another's; looks only now and then, so call it often."""
        if time.monotonic() - self._checked < BEAT:
            return
        if not self.holds(name):
            raise ClaimLost(name)
        self._checked = time.monotonic()

    def claimed(self, name: str) -> bool:
        """Whether there is a claim, be its holder alive or not."""
        return bool(self._numbers(name))

    def busy(self, name: str) -> bool:
        """Whether another process that lives holds it."""
        numbers = self._numbers(name)
        if not numbers or self._mine(name, numbers):
            return False
        return not self._ended(self._path(name, numbers[-1]))

    def release(self, name: str) -> None:
        """Removes all claims of a name that is done with: whoever takes it then finds it done."""
        for number in self._numbers(name):
            self._path(name, number).unlink(missing_ok=True)

    def now(self) -> float:
        """The time by the clock of the folder's file system."""
        os.utime(self._file.fileno())
        return os.fstat(self._file.fileno()).st_mtime

    def close(self) -> None:
        """Gives back at once what is still claimed, and clears away."""
        self._closing.set()
        self._thread.join()
        self._sweep()
        os.utime(self._file.fileno(), (0, 0))
        self._file.close()
        shutil.rmtree(self.own, ignore_errors=True)
        with suppress(OSError):  # not empty: others are at work, or something waits to be gone on
            self.folder.rmdir()

    def _beat(self) -> None:
        while not self._closing.wait(BEAT):
            with suppress(OSError, ValueError):  # what fails now is tried again
                os.utime(self._file.fileno())

    def _sweep(self) -> None:
        """Removes the folders of processes that have ended."""
        for folder in self.folder.glob("by-*"):
            _, machine, pid, start, _ = folder.name.split("-")
            alive = folder / "alive"
            with suppress(FileNotFoundError):
                if _dead(machine, int(pid), int(start)) or self._is_old(
                    (alive if alive.exists() else folder).stat().st_mtime
                ):
                    shutil.rmtree(folder, ignore_errors=True)

    def _numbers(self, name: str) -> list[int]:
        found = self.folder.glob(f"{name}.*")
        return sorted(int(path.name.removeprefix(f"{name}.")) for path in found)

    def _path(self, name: str, number: int) -> Path:
        return self.folder / f"{name}.{number}"

    def _mine(self, name: str, numbers: list[int]) -> bool:
        return bool(numbers) and self._is_own(self._path(name, numbers[-1]))

    def _is_own(self, path: Path) -> bool:
        with suppress(FileNotFoundError):
            return os.path.samestat(os.stat(path), os.fstat(self._file.fileno()))
        return False

    def _ended(self, path: Path) -> bool:
        """Whether the holder of a claim has ended. A claim that is gone says nothing: False."""
        try:
            with open(path, encoding="utf-8") as file:  # opening asks an NFS server anew
                touched = os.fstat(file.fileno()).st_mtime
                who = json.loads(file.read())
        except FileNotFoundError:
            return False
        return self._is_old(touched) or _dead(who["machine"], who["pid"], who["start"])

    def _is_old(self, touched: float) -> bool:
        return self.now() - touched > STALE


def _dead(machine: str, pid: int, start: int) -> bool:
    """Whether a process has ended, as far as this machine can know it."""
    return machine == _machine() and _start(pid) != start


def _start(pid: int) -> int:
    """When a process was started, which tells it from a later one of its number; 0 if it ended."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return 0
        return round(process.create_time() * 100)
    except psutil.NoSuchProcess:
        return 0


def _machine() -> str:
    """What processes have in common that can see each other by their numbers.

    A name is not enough: containers of one name do not see each other's processes, and after a
    restart the numbers are others'.
    """
    facts = [socket.gethostname()]
    with suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        facts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.blake2b("\n".join(facts).encode(), digest_size=6).hexdigest()
