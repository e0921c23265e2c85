"""Which system calls a program may make: one table for two machines, and the BPF made from it.

The table allows; what is not in it fails with EPERM. Threads are allowed. Not allowed are new
processes and programs (fork, exec), sockets, tracing, namespaces and mounts, System V IPC, memory
that no limit counts (memfd), io_uring, bpf, keys, and everything that is not there yet today.

The numbers are those of Linux: arch/x86/entry/syscalls/syscall_64.tbl, and
include/uapi/asm-generic/unistd.h for aarch64. The filter's language is classic BPF over
`struct seccomp_data` (linux/seccomp.h): number at 0, architecture at 4, six 64-bit arguments at 16.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

SYSCALLS: dict[str, tuple[int | None, int | None]] = {
    # files and memory
    "read": (0, 63),
    "write": (1, 64),
    "open": (2, None),
    "openat": (257, 56),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "lseek": (8, 62),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "preadv": (295, 69),
    "pwritev": (296, 70),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "brk": (12, 214),
    "madvise": (28, 233),
    "msync": (26, 227),
    "mincore": (27, 232),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "flock": (73, 32),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "fallocate": (285, 47),
    "fadvise64": (221, 223),
    "sendfile": (40, 71),
    "copy_file_range": (326, 285),
    "getdents": (78, None),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "chdir": (80, 49),
    "fchdir": (81, 50),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "utime": (132, None),
    "utimes": (235, None),
    "utimensat": (280, 88),
    "umask": (95, 166),
    # waiting and time
    "select": (23, None),
    "pselect6": (270, 72),
    "poll": (7, None),
    "ppoll": (271, 73),
    "epoll_create": (213, None),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "epoll_pwait2": (441, 441),
    "eventfd": (284, None),
    "eventfd2": (290, 19),
    "sched_yield": (24, 124),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    "alarm": (37, None),
    "pause": (34, None),
    "restart_syscall": (219, 128),
    # signals, to oneself
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132),
    "kill": (62, 129),
    "tgkill": (234, 131),
    # who and where one is
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getgroups": (115, 158),
    "getpgrp": (111, None),
    "getpgid": (121, 155),
    "getsid": (124, 156),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "getpriority": (140, 141),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "setrlimit": (160, 164),
    "prlimit64": (302, 261),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getcpu": (309, 168),
    "getrandom": (318, 278),
    "prctl": (157, 167),
    # threads
    "clone": (56, 220),
    "clone3": (435, 435),
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "get_robust_list": (274, 100),
    "set_tid_address": (218, 96),
    "rseq": (334, 293),
    "membarrier": (324, 283),
    "sched_getaffinity": (204, 123),
    "sched_getscheduler": (145, 120),
    "sched_getparam": (143, 121),
    "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "wait4": (61, 260),
    "waitid": (247, 95),
    # a pair of sockets joined to each other, which asyncio wakes itself with
    "socketpair": (53, 199),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "shutdown": (48, 210),
    "getsockname": (51, 204),
    "getpeername": (52, 205),
    "getsockopt": (55, 209),
}
"""Name -> its number on x86-64 and on aarch64; None where the architecture does not have it."""

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Machine -> its AUDIT_ARCH (linux/audit.h) and its column in SYSCALLS."""

FULL = 0xFFFF_FFFF_FFFF_FFFF
PID = 0x5EED_71D0
"""Stands in a filter for the number of the process that it is for, see `for_process`."""

_CLONE_THREAD, _CLONE_NEW = 0x0001_0000, 0x7E02_0000  # CLONE_NEWNS and all namespaces after it
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE = 1, 1, 0xF


@dataclass(frozen=True, slots=True)
class Is:
    """What an argument must be: `argument & mask == value`."""

    argument: int
    value: int
    mask: int = FULL


def _one_of(argument: int, *values: int) -> list[tuple[Is, ...]]:
    return [(Is(argument, value, 0xFFFF_FFFF),) for value in values]


def _but_cpu(argument: int) -> list[Is]:
    """A limit other than RLIMIT_CPU, which is 0: one that has any bit. There are 16."""
    return [Is(argument, bit, bit) for bit in (1, 2, 4, 8)]


CONDITIONS: dict[str, list[tuple[Is, ...]]] = {
    "clone": [(Is(0, _CLONE_THREAD, _CLONE_THREAD | _CLONE_NEW),)],
    "clone3": [],  # its flags lie in memory, where no filter sees them: libc then takes clone
    "kill": _one_of(0, PID),
    "tgkill": _one_of(0, PID),
    # any limit may be read, and set but RLIMIT_CPU: there the kernel kills even process 1
    "prlimit64": [
        (Is(0, pid, 0xFFFF_FFFF), case) for pid in (0, PID) for case in (Is(2, 0), *_but_cpu(1))
    ],
    "setrlimit": [(case,) for case in _but_cpu(0)],
    "prctl": _one_of(0, 15, 16, 0x5356_4D41),  # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA
    # duplicates, flags, locks, the size of a pipe; not F_SETOWN, which aims signals
    "fcntl": _one_of(1, 0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032),
    # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
    "ioctl": _one_of(1, 0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451),
    "socketpair": [(Is(0, _AF_UNIX), Is(1, _SOCK_STREAM, _SOCK_TYPE))],
    "sendto": [(Is(4, 0),)],  # only to the other end, never to an address
}
"""Name -> the cases in which it is allowed; those not named here are allowed in all cases."""

ERRORS = {"clone3": errno.ENOSYS, "ioctl": errno.ENOTTY}
"""What a refused call fails with, where it is not EPERM."""

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_EQUAL, _AT_LEAST = 0x15, 0x35
_ALLOW, _FAIL, _KILL = 0x7FFF_0000, 0x0005_0000, 0x8000_0000
_X32 = 0x4000_0000

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, operand: `struct sock_filter`."""


ATTRIBUTES = frozenset("chmod fchmod fchmodat utime utimes utimensat".split())
"""Calls that change a file without opening it to write: Landlock knows none of them."""


def build(machine: str, without: frozenset[str] = frozenset()) -> bytes:
    """The filter for a machine ("x86_64", "aarch64") as an array of `struct sock_filter`.

    without: calls of the table that are refused all the same.
    """
    audit, column = ARCHITECTURES[machine]
    code: list[Instruction] = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
    ]
    if machine == "x86_64":
        code += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _FAIL | errno.EPERM)]
    for name, numbers in SYSCALLS.items():
        if (number := numbers[column]) is not None and name not in without:
            block = _block(name)
            code += [(_EQUAL, 0, len(block), number), *block]
    code.append((_RETURN, 0, 0, _FAIL | errno.EPERM))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _block(name: str) -> list[Instruction]:
    """What follows where the number is this call's: ends in a return, whatever the arguments."""
    if name not in CONDITIONS:
        return [(_RETURN, 0, 0, _ALLOW)]
    block: list[Instruction] = []
    for case in CONDITIONS[name]:
        tests: list[tuple[Instruction, ...]] = []
        for condition in case:
            for half in (0, 1):  # little-endian: the low word first
                mask = (condition.mask >> 32 * half) & 0xFFFF_FFFF
                value = (condition.value >> 32 * half) & 0xFFFF_FFFF
                if mask:
                    load = (_LOAD, 0, 0, 16 + 8 * condition.argument + 4 * half)
                    tests.append((load, (_AND, 0, 0, mask), (_EQUAL, 0, 0, value)))
        left = sum(map(len, tests)) + 1  # with the return at the end
        for load, cut, (code, yes, _, value) in tests:
            left -= 3
            block += [load, cut, (code, yes, left, value)]
        block.append((_RETURN, 0, 0, _ALLOW))
    block.append((_RETURN, 0, 0, _FAIL | ERRORS.get(name, errno.EPERM)))
    return block


def for_process(program: bytes, pid: int) -> bytes:
    """The filter for the process with this number, which may signal itself alone."""
    return program.replace(struct.pack("=I", PID), struct.pack("=I", pid))
