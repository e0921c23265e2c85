"""The parts of the sandbox by themselves: filter, values that cross, names, the self-test."""

from __future__ import annotations

import ast
import errno
import json
import re
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archer.verify.code import plain
from archer.verify.policy import Level
from archer.verify.sandbox import filter, leetcode
from archer.verify.sandbox.program import can_fail, free_names
from archer.verify.sandbox.selftest import try_level
from archer.verify.sandbox.values import decode, encode

# --- the filter: classic BPF, run step by step ---

ALLOW, KILL = "allow", "kill"
PID = 4321
MACHINES = list(filter.ARCHITECTURES)
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def run(code: bytes, number: int, *arguments: int, audit: int) -> str | int:
    """What a filter says of a call: "allow", "kill" or an errno. A slow and plain interpreter."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=IIQ6Q", number, audit, 0, *(x & 2**64 - 1 for x in padded))
    steps = list(struct.iter_unpack("=HBBI", code))
    assert len(steps) <= 4096  # BPF_MAXINSNS
    place = accumulator = 0
    while True:
        operation, yes, no, operand = steps[place]
        place += 1
        if operation == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif operation == 0x54:  # BPF_ALU | BPF_AND | BPF_K
            accumulator &= operand
        elif operation == 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
            place += yes if accumulator == operand else no
        elif operation == 0x35:  # BPF_JMP | BPF_JGE | BPF_K
            place += yes if accumulator >= operand else no
        elif operation == 0x06:  # BPF_RET | BPF_K
            if operand == 0x7FFF0000:
                return ALLOW
            if operand == 0x80000000:
                return KILL
            assert operand >> 16 == 5  # SECCOMP_RET_ERRNO
            return int(operand & 0xFFFF)
        else:
            raise AssertionError(f"operation {operation:#x} is not known")


def asked(machine: str, call: str | int, *arguments: int) -> str | int:
    """The same for the filter of a machine, by the name of a call."""
    audit, column = filter.ARCHITECTURES[machine]
    number = filter.SYSCALLS[call][column] if isinstance(call, str) else call
    assert number is not None
    code = filter.for_process(filter.build(machine), PID)
    return run(code, number, *arguments, audit=audit)


@pytest.mark.parametrize("machine", MACHINES)
def test_every_call_of_the_table_is_allowed_in_the_cases_that_it_names(machine: str) -> None:
    column = filter.ARCHITECTURES[machine][1]
    for name, numbers in filter.SYSCALLS.items():
        if numbers[column] is None:
            continue
        if name not in filter.CONDITIONS:
            assert asked(machine, name, *[2**63 - 1] * 6) == ALLOW
        for case in filter.CONDITIONS.get(name, []):
            arguments = [0] * 6
            for condition in case:
                value = PID if condition.value == filter.PID else condition.value
                arguments[condition.argument] |= value
            assert asked(machine, name, *arguments) == ALLOW, (name, case)


# Numbers on x86-64 and on aarch64.
FORBIDDEN = {
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "seccomp": (317, 277),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "setuid": (105, 146),
    "setsid": (112, 157),
    "capset": (126, 91),
    "chown": (92, None),
    "fchownat": (260, 54),
    "mknodat": (259, 33),
    "setxattr": (188, 5),
    "open_by_handle_at": (304, 265),
    "init_module": (175, 105),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "sched_setaffinity": (203, 122),
    "vmsplice": (278, 75),
    "inotify_init1": (294, 26),
    "mlockall": (151, 230),
    "acct": (163, 89),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_forbidden_calls_fail_whatever_their_arguments(machine: str) -> None:
    column = filter.ARCHITECTURES[machine][1]
    for name, numbers in FORBIDDEN.items():
        if (number := numbers[column]) is not None:
            for argument in (0, 1, PID, 2**32 - 1, 2**64 - 1):
                assert asked(machine, number, *[argument] * 6) == errno.EPERM, name


@pytest.mark.parametrize("machine", MACHINES)
def test_numbers_that_are_not_in_the_table_fail(machine: str) -> None:
    column = filter.ARCHITECTURES[machine][1]
    known = {numbers[column] for numbers in filter.SYSCALLS.values()}
    for number in {*range(700), 2**30 - 1, 2**31, 2**32 - 1} - known:
        assert asked(machine, number) == errno.EPERM


THREAD = 0x3D0F00  # what pthread_create gives clone
REFUSED = [
    ("clone", (0x11,), errno.EPERM),  # SIGCHLD: a fork
    ("clone", (0x4111,), errno.EPERM),  # CLONE_VFORK | CLONE_VM
    ("clone", (THREAD | 0x10000000,), errno.EPERM),  # CLONE_NEWUSER
    ("clone", (THREAD | 0x20000,), errno.EPERM),  # CLONE_NEWNS
    ("clone", (THREAD | 0x2000000,), errno.EPERM),  # CLONE_NEWCGROUP
    ("clone3", (1, 88), errno.ENOSYS),
    ("kill", (1, 9), errno.EPERM),
    ("kill", (0, 9), errno.EPERM),
    ("kill", (2**64 - 1, 9), errno.EPERM),
    ("kill", (2**32 - PID, 9), errno.EPERM),
    ("tgkill", (1, 1, 9), errno.EPERM),
    ("prctl", (1, 0), errno.EPERM),  # PR_SET_PDEATHSIG
    ("prctl", (4, 1), errno.EPERM),  # PR_SET_DUMPABLE
    ("prctl", (22, 0), errno.EPERM),  # PR_SET_SECCOMP
    ("prctl", (0x59616D61, 1), errno.EPERM),  # PR_SET_PTRACER
    ("ioctl", (0, 0x5412), errno.ENOTTY),  # TIOCSTI
    ("ioctl", (0, 0x541C), errno.ENOTTY),  # TIOCLINUX
    ("ioctl", (0, 0x5452), errno.ENOTTY),  # FIOASYNC
    ("fcntl", (1, 8, PID), errno.EPERM),  # F_SETOWN
    ("fcntl", (1, 10, 9), errno.EPERM),  # F_SETSIG
    ("fcntl", (1, 1024, 0), errno.EPERM),  # F_SETLEASE
    ("fcntl", (1, 1031, 1 << 20), errno.EPERM),  # F_SETPIPE_SZ
    ("fcntl", (0, 1033, 0), errno.EPERM),  # F_ADD_SEALS
    ("sendto", (3, 1, 1, 0, 0x7F00_0000), errno.EPERM),
    ("sendto", (3, 1, 1, 0, 1 << 32), errno.EPERM),
    ("socketpair", (2, 1), errno.EPERM),  # AF_INET
    ("socketpair", (1, 2), errno.EPERM),  # SOCK_DGRAM
    ("socketpair", ((1 << 32) | 1, 1), errno.EPERM),
    ("prlimit64", (1, 7, 0, 1), errno.EPERM),  # of another process
    ("prlimit64", (0, 0, 1, 0), errno.EPERM),  # RLIMIT_CPU is set
    ("prlimit64", (PID, 0, 1 << 32, 0), errno.EPERM),
]
GRANTED = [
    ("clone", (THREAD,)),
    ("kill", (PID, 9)),
    ("tgkill", (PID, PID + 1, 10)),
    ("prctl", (15, 1)),
    ("ioctl", (0, 0x5401)),
    ("fcntl", (1, 3)),
    ("fcntl", (1, 1030, 10)),
    ("sendto", (3, 1, 1, 0, 0)),
    ("socketpair", (1, 1 | 0o2000000)),  # SOCK_CLOEXEC
    ("prlimit64", (0, 0, 0, 1)),  # RLIMIT_CPU is read
    ("prlimit64", (0, 3, 1, 1)),  # RLIMIT_STACK is set
    ("prlimit64", (PID, 15, 1, 1)),
]


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_are_refused_by_their_arguments_with_the_right_error(machine: str) -> None:
    for name, arguments, error in REFUSED:
        assert asked(machine, name, *arguments) == error, (name, arguments)
    for name, arguments in GRANTED:
        assert asked(machine, name, *arguments) == ALLOW, (name, arguments)
    assert asked(machine, "setrlimit", 0, 1) == errno.EPERM
    assert asked(machine, "setrlimit", 3, 1) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_of_another_machine_kill_and_those_of_x32_fail(machine: str) -> None:
    code = filter.build(machine)
    for audit in (0x40000003, 0x40000028, 0, *(a for a, _ in filter.ARCHITECTURES.values())):
        if audit != filter.ARCHITECTURES[machine][0]:
            assert run(code, 0, audit=audit) == KILL
    for number in (0, 1, 39, 512, 520):
        assert asked(machine, 0x40000000 | number) == errno.EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_a_filter_is_for_one_process(machine: str) -> None:
    code = filter.build(machine)
    steps = list(struct.iter_unpack("=HBBI", code))
    named = sum(step[3] == filter.PID for step in steps)
    assert code.count(struct.pack("=I", filter.PID)) == named > 0  # none across two instructions
    changed = list(struct.iter_unpack("=HBBI", filter.for_process(code, 1)))
    assert [s for s in changed if s[3] == filter.PID] == []


@pytest.mark.parametrize("machine", MACHINES)
def test_jumps_stay_inside_and_end_in_a_return(machine: str) -> None:
    steps = list(struct.iter_unpack("=HBBI", filter.build(machine)))
    for place, (operation, yes, no, _) in enumerate(steps):
        if operation & 7 == 5:
            assert place + 1 + max(yes, no) < len(steps)
    assert steps[-1][0] == 0x06


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_refused_besides_is_refused(machine: str) -> None:
    audit, column = filter.ARCHITECTURES[machine]
    code = filter.build(machine, filter.ATTRIBUTES)
    for name, numbers in filter.SYSCALLS.items():
        if (number := numbers[column]) is not None and name not in filter.CONDITIONS:
            said = run(code, number, audit=audit)
            assert said == (errno.EPERM if name in filter.ATTRIBUTES else ALLOW)


@pytest.mark.parametrize("machine", MACHINES)
def test_numbers_are_those_of_the_kernel(machine: str) -> None:
    header = HEADERS[machine]
    if not header.exists():
        pytest.skip(f"{header} is not installed")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\b", header.read_text())
    kernel = {name: int(number) for name, number in found}
    if machine == "aarch64":  # the generic table names the 64-bit variants so
        kernel["newfstatat"] = kernel.pop("fstatat")
    column = filter.ARCHITECTURES[machine][1]
    for name, numbers in {**filter.SYSCALLS, **FORBIDDEN}.items():
        number = numbers[column]
        if name in kernel:
            assert number == kernel[name], name
        elif name not in ("epoll_pwait2", "faccessat2", "memfd_secret"):  # newer than some headers
            assert number is None, name


# --- values ---

NODES = (leetcode.ListNode, leetcode.TreeNode)
keys = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.binary()
    | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
values = st.recursive(
    keys
    | st.complex_numbers(allow_nan=False)
    | st.binary().map(bytearray)
    | st.builds(range, st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 9)),
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.sets(keys) | st.dictionaries(keys, inner)
    ),
    max_leaves=12,
)


def crossed(value: Any) -> Any:
    return decode(json.loads(json.dumps(encode(value))), NODES)


def typed(value: Any) -> Any:
    """A value with the exact types of all its parts."""
    kind = type(value).__name__
    if isinstance(value, list | tuple):
        return kind, [typed(item) for item in value]
    if isinstance(value, set | frozenset):
        return kind, sorted(repr(typed(item)) for item in value)
    if isinstance(value, dict):
        return kind, [(typed(key), typed(item)) for key, item in value.items()]
    return kind, repr(value)


@given(values)
def test_values_arrive_as_they_were(value: Any) -> None:
    assert crossed(value) == value
    assert typed(crossed(value)) == typed(value)


class Int(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__

    def __int__(self) -> int:
        return 99


class List(list[Any]):
    def __iter__(self) -> Any:
        return iter([1, 2, 3])

    def __len__(self) -> int:
        return 3


class Dict(dict[Any, Any]):
    def items(self) -> Any:
        return {"a": 1}.items()


class Text(str):
    def __str__(self) -> str:
        return "another"


class Tuple(tuple[Any, ...]):
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = tuple.__hash__


@pytest.mark.parametrize(
    ("odd", "base"),
    [
        (Int(5), 5),
        (List([7]), [7]),
        (Dict(b=2), {"b": 2}),
        (Text("text"), "text"),
        (Tuple([1]), (1,)),
        ([Int(0), {Int(1): Text("x")}], [0, {1: "x"}]),
        (type("Float", (float,), {})(1.5), 1.5),
        (type("Bytes", (bytes,), {})(b"x"), b"x"),
    ],
)
def test_subclasses_arrive_as_their_base_type(odd: object, base: object) -> None:
    assert typed(crossed(odd)) == typed(base)


@pytest.mark.parametrize(
    "odd", [object(), len, iter([]), type, ..., (1).__add__, memoryview(b""), [object()]]
)
def test_other_objects_do_not_cross(odd: object) -> None:
    with pytest.raises(TypeError, match="plain value"):
        encode(odd)


SAME_HASH = [number * (2**61 - 1) for number in range(50_000)]


@pytest.mark.parametrize(
    "coded",
    [
        {},
        {"tuple": [1], "set": [2]},
        {"eval": "1"},
        {"__class__": []},
        {"tuple": 5},
        {"tuple": None},
        {"set": [[1]]},
        {"set": [{"dict": []}]},
        {"dict": 5},
        {"dict": [1]},
        {"dict": [[1]]},
        {"dict": [[1, 2, 3]]},
        {"dict": [[[1], 2]]},
        {"range": [1, 2, 0]},
        {"range": ["a"]},
        {"range": []},
        {"complex": [1, 2, 3]},
        {"complex": ["x"]},
        {"complex": [10**400, 0]},
        {"bytes": 5},
        {"bytes": "\u1234"},
        {"bytearray": ["x"]},
        {"object": 0},
        {"callback": 0},
        {"at": ["f"]},
        {"list_node": 3},
        {"tree_node": {}},
        {"set": SAME_HASH},
        {"frozenset": SAME_HASH},
        {"dict": [[key, 0] for key in SAME_HASH]},
        [1, [2, {"tuple": [{"frozenset": [{"unknown": 1}]}]}]],
    ],
    ids=lambda coded: repr(coded)[:40],
)
def test_hostile_values_are_refused_at_once(coded: Any) -> None:
    begin = time.thread_time()
    if coded == {"tree_node": {}}:
        assert decode(coded, NODES) is None  # the same as an empty tree
    else:
        with pytest.raises(ValueError, match=r"tag|known|unpack|zero|malformed|hash"):
            decode(coded, NODES)
    assert time.thread_time() - begin < 10.0  # a quarter of a minute where every key meets all


TAGS = "tuple set frozenset dict range complex bytes bytearray list_node tree_node x".split()
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(TAGS),
            inner,
            max_size=2,
        )
    ),
    max_leaves=10,
)


@given(json_values)
def test_whatever_json_a_program_sends_is_a_value_or_a_value_error(coded: Any) -> None:
    for read in (plain, lambda coded: decode(coded, NODES)):
        with suppress(ValueError):
            read(coded)


# --- names of LeetCode ---


def test_lists_and_trees_are_made_and_compared() -> None:
    one, same = leetcode.list_node([1, 2, 3]), leetcode.list_node([1, 2, 3])
    assert one is not None and one.next is not None and one.next.val == 2
    assert leetcode.is_same_list(one, same)
    assert not leetcode.is_same_list(one, leetcode.list_node([1, 2]))
    assert not leetcode.is_same_list(one, leetcode.list_node([1, 2, 4]))
    assert leetcode.is_same_list(None, leetcode.list_node([]))

    tree = leetcode.tree_node([1, None, 2, 3])
    assert tree is not None and tree.left is None
    assert tree.right is not None and tree.right.left is not None and tree.right.left.val == 3
    assert leetcode.is_same_tree(tree, leetcode.tree_node([1, None, 2, 3]))
    assert not leetcode.is_same_tree(tree, leetcode.tree_node([1, 2, None, 3]))
    assert not leetcode.is_same_tree(tree, None)
    assert leetcode.tree_node([]) is None and leetcode.tree_node([None]) is None


@given(st.lists(st.integers(), max_size=9))
def test_lists_and_trees_cross_as_what_they_hold(items: list[object]) -> None:
    assert leetcode.is_same_list(crossed(leetcode.list_node(items)), leetcode.list_node(items))
    root = leetcode.tree_node(items)
    assert leetcode.is_same_tree(crossed(root), root)
    assert plain(encode(leetcode.list_node(items))) == (items or None)


def test_what_runs_in_a_circle_does_not_cross() -> None:
    node = leetcode.ListNode(1)
    node.next = node
    with pytest.raises(TypeError, match="circle"):
        encode(node)
    root = leetcode.TreeNode(1)
    root.left = root
    with pytest.raises(TypeError, match="circle"):
        encode(root)
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(RecursionError):
        encode(circle)


def test_names_that_programs_find_hide_no_builtin() -> None:
    names = leetcode.program_names("")
    assert {"List", "Optional", "deque", "heappush", "gcd", "inf", "ListNode"} <= set(names)
    assert not {"pow", "sum", "print", "open"} & set(names)
    assert "gcd" not in leetcode.test_names()  # a test would judge it in place of the program's


# --- names of tests ---


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("assert add(2, 3) == 5", {"add"}),
        ("x = 5\nassert f(x) == x", {"f"}),
        ("def check(candidate):\n    assert candidate(1)\ncheck(f)", {"f"}),
        ("def check():\n    assert f(1)\ncheck()", {"f"}),
        ("import math\nassert math.isclose(f(1), 2)", {"f"}),
        ("from math import pi as p\nassert f(p)", {"f"}),
        ("assert [g(x) for x in range(3)] == list(map(h, range(3)))", {"g", "h"}),
        ("assert (lambda y: f(y) + z)(1)", {"f", "z"}),
        ("class A:\n    x = f(1)\n    def m(self):\n        return self.x + g()", {"f", "g"}),
        ("for i in range(3):\n    assert f(i)", {"f"}),
        ("try:\n    f()\nexcept Exception as fault:\n    assert str(fault)", {"f"}),
        ("with f() as x:\n    assert x", {"f"}),
        ("if (n := f(1)) > 2:\n    assert n", {"f"}),
        (
            "def outer():\n    x = 1\n    def inner():\n        return x + f()\n    return inner",
            {"f"},
        ),
        ("assert len('x') == 1", set()),
        ("", set()),
    ],
)
def test_free_names_are_those_that_only_the_program_can_have(code: str, names: set[str]) -> None:
    assert free_names(code) == names


def test_code_that_asserts_nothing_can_not_fail() -> None:
    for code in ("assert f()", "def c():\n    assert f()\nc()", "raise ValueError", "self.fail()",
                 "t.assertEqual(f(), 1)", "np.testing.assert_allclose(f(), 1)"):  # fmt: skip
        assert can_fail(ast.parse(code)), code
    for code in ("f()", "print(f() == 5)", "", "x = f()\nx == 5"):
        assert not can_fail(ast.parse(code)), code


# --- the self-test ---


@pytest.mark.parametrize("level", ["full", "restricted"])
def test_no_attempt_of_the_self_test_gets_out(
    level: Level, needs_level: Callable[[Level], None]
) -> None:
    needs_level(level)
    finding = try_level(level)
    assert (finding.fault, finding.succeeded) == ("", ())


def test_the_self_test_finds_the_holes_of_level_weak(needs_level: Callable[[Level], None]) -> None:
    needs_level("weak")
    finding = try_level("weak")
    assert {"start a process", "open a socket", "read a file of the machine"} <= {
        *finding.succeeded
    }
