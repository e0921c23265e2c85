"""Files that are complete or not there, and the folder of those that are no user's own."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PARTIAL = ".partial"
"""Ending of what is being written; whoever owns a folder may remove what a kill left of it."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system says that has none, as NFS may; claims do without (archer.claims)."""


def cache_folder() -> Path:
    """Where converted models and notes on clusters are: `ARCHER_CACHE`, or `~/.cache/archer`."""
    chosen = os.environ.get("ARCHER_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "archer"


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file that is written aside, synced, and renamed when the block ends well.

    Its folder is made if need be. When the block raises, what stood there before still does.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}{PARTIAL}")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def lock(file: IO[bytes], refusal: str) -> None:
    """Until the file is closed no other process can lock it; ValueError if one has.

    Where the file system has no locks there is none, rather than no work.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise ValueError(refusal) from None


@contextmanager
def one_at_a_time(path: Path, tell: Callable[[], None]) -> Iterator[None]:
    """A block that one process at a time is in; `tell` is called where another has to be waited
    for. They meet at `path`, an empty file that remains.

    Where the file system has no locks nobody waits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                tell()
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
