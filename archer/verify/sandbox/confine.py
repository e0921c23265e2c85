"""The kernel's ways to confine a process, by ctypes. Every function raises OSError where it fails.

Linux on x86-64 and aarch64, whose system call numbers agree for everything newer than 2011. What is
done here in which order is told in server.py.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
from collections.abc import Iterable, Mapping
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

# linux/sched.h
NEW_MOUNTS, NEW_UTS, NEW_IPC = 0x0002_0000, 0x0400_0000, 0x0800_0000
NEW_USER, NEW_PIDS, NEW_NETWORK = 0x1000_0000, 0x2000_0000, 0x4000_0000

# linux/mount.h
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 0x1000, 0x4000, 1 << 18
_MNT_DETACH = 2
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000

# linux/prctl.h
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_SECUREBITS, _SET_NO_NEW_PRIVS = 1, 4, 28, 38
_SET_CHILD_SUBREAPER = 36
_NO_SETUID_FIXUP = 1 << 2

_NUMBERS = {
    "x86_64": {"pivot_root": 155, "capset": 126, "seccomp": 317},
    "aarch64": {"pivot_root": 41, "capset": 91, "seccomp": 277},
}
_EVERYWHERE = {
    "mount_setattr": 442,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}

NOBODY = 65534
DEVICES = ("/dev/null", "/dev/urandom")
"""Those that a program finds."""


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(name: str, *arguments: object) -> int:
    number = (_EVERYWHERE | _NUMBERS[platform.machine()])[name]
    return _checked(_libc.syscall(number, *arguments), name)


def _prctl(option: int, value: int) -> None:
    _checked(_libc.prctl(option, value, 0, 0, 0), f"prctl {option}")


# --- the process ---


def die_with_parent() -> None:
    """SIGKILL for this process when the thread that forked it ends."""
    _prctl(_SET_PDEATHSIG, 9)


def adopt_orphans() -> None:
    """Processes below this one whose parents end become its children."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def hide() -> None:
    """No core dumps, and none of its own kind may trace it."""
    _prctl(_SET_DUMPABLE, 0)


def become_nobody() -> None:
    """The user nobody, without groups, and with the capabilities that this process has."""
    _prctl(_SET_SECUREBITS, _NO_SETUID_FIXUP)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def drop_capabilities() -> None:
    """No capability is left, and none can be had by executing something."""
    _prctl(_SET_NO_NEW_PRIVS, 1)
    header = (ctypes.c_uint32 * 2)(0x2008_0522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    _syscall("capset", header, (ctypes.c_uint32 * 6)())


def limit(limits: Mapping[int, int]) -> None:
    """Resource limits, `resource.RLIMIT_...` -> value; both the soft and the hard one."""
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def filter_syscalls(code: bytes) -> None:
    """From here on only what the filter allows; see filter.py. Needs no_new_privs."""
    program = _Program(len(code) // 8, code)
    _syscall("seccomp", 1, 0, ctypes.byref(program))  # SECCOMP_SET_MODE_FILTER


# --- namespaces ---


def unshare(flags: int) -> None:
    """New namespaces for this process (for its children, where it is NEW_PIDS)."""
    _checked(_libc.unshare(flags), f"unshare {flags:#x}")


def enter(namespace: int) -> None:
    """The namespace that a descriptor of /proc/PID/ns stands for."""
    _checked(_libc.setns(namespace, 0), "setns")


# --- files ---


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    arguments = [os.fsencode(source), os.fsencode(target), kind and kind.encode()]
    done = _libc.mount(*arguments, ctypes.c_ulong(flags), options.encode())
    _checked(done, f"mount {source} on {target}")


class _Attributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns"))


def _protect(path: str, flags: int) -> None:
    """Adds flags to a mount and to all mounts below it."""
    attributes = _Attributes(flags, 0, 0, 0)
    size = ctypes.sizeof(attributes)
    target = os.fsencode(path)
    _syscall("mount_setattr", _AT_FDCWD, target, _AT_RECURSIVE, ctypes.byref(attributes), size)


def mount_scratch(path: str, size_mb: int, inodes: int) -> None:
    """An empty folder in memory, of limited size and number of files."""
    options = f"size={size_mb}m,nr_inodes={inodes},mode=0700"
    _mount("scratch", path, "tmpfs", _MS_NOSUID | _MS_NODEV, options)


def enter_root(folders: Iterable[str], hidden: Iterable[str], places: Mapping[str, str]) -> None:
    """A root of its own, read-only, with these folders and places; `hidden` folders are empty.

    Folders keep their names, places (path -> place) are put where they say. Needs mount and user
    namespaces. An empty /tmp is made.
    """
    root = "/proc"  # no longer needed here, and nothing that is bound lies below it
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("root", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=0755")
    for path in folders:
        _bind(path, root + path)
    for path in hidden:
        _mount("hidden", root + path, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=0755")
    for path, place in places.items():
        _bind(path, root + place)
    for path in DEVICES:
        _make_place(path, root + path)
    os.makedirs(f"{root}/tmp", 0o755, exist_ok=True)
    _protect(root, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV)
    for path in DEVICES:
        _mount(path, root + path, None, _MS_BIND)
        _protect(root + path, _ATTR_RDONLY | _ATTR_NOSUID)
    os.chdir(root)
    _syscall("pivot_root", b".", b".")  # the old root now lies on top of the new one
    _checked(_libc.umount2(b".", _MNT_DETACH), "umount of the old root")
    os.chdir("/")


def _bind(path: str, target: str) -> None:
    _make_place(path, target)
    _mount(path, target, None, _MS_BIND | _MS_REC)


def _make_place(path: str, target: str) -> None:
    os.makedirs(target if os.path.isdir(path) else os.path.dirname(target), exist_ok=True)
    if not os.path.isdir(path):
        Path(target).touch()


# --- Landlock: https://docs.kernel.org/userspace-api/landlock.html ---

_READ_DIR = 0b1000
_READ = _READ_DIR | 0b101  # and execute, as in loading a library, and read a file
_ALL_FILES = {3: 0x7FFF, 4: 0x7FFF}
_ALL_FILES_LATER = 0xFFFF
_ALL_NETWORK, _ALL_SCOPES = 0b11, 0b11  # TCP bind and connect; abstract sockets and signals


def landlock(readable: Iterable[str], listable: Iterable[str]) -> None:
    """From here on these folders and files can be read, and nothing else can be opened at all.

    listable: folders of which no more than the names below them can be read.

    What the kernel knows of network and scopes is denied as well. Raises OSError without Landlock.
    """
    version = _syscall("landlock_create_ruleset", None, 0, 1)
    if version < 3:  # which lets files be cut to nothing
        raise OSError(
            errno.ENOSYS, f"Landlock of version 3, in Linux 6.2: this is version {version}"
        )
    handled = (ctypes.c_uint64 * 3)(
        _ALL_FILES.get(version, _ALL_FILES_LATER),
        _ALL_NETWORK if version >= 4 else 0,
        _ALL_SCOPES if version >= 6 else 0,
    )
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _syscall("landlock_create_ruleset", ctypes.byref(handled), size, 0)
    try:
        for path in readable:
            _let(rules, path, _READ if os.path.isdir(path) else _READ & ~_READ_DIR)
        for path in listable:
            _let(rules, path, _READ_DIR)
        _prctl(_SET_NO_NEW_PRIVS, 1)
        _syscall("landlock_restrict_self", rules, 0)
    finally:
        os.close(rules)


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("parent", ctypes.c_int32))


def _let(rules: int, path: str, access: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        beneath = _Beneath(access, place)
        _syscall("landlock_add_rule", rules, 1, ctypes.byref(beneath), 0)
    finally:
        os.close(place)
