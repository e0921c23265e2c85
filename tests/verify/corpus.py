"""Programs that a sandbox must survive, refuse or let pass, and the outcomes that each may get.

    bomb     takes memory, threads, disk, descriptors, output, the parser, the stack
    hang     never ends, or not in a way that anybody would notice
    cheat    wants to be `correct` without solving anything, or to cost the grader an `error`
    honest   is odd and right: all of these are `correct`
    reach    looks for what lies outside: files, processes, sockets, the environment
    form     is about the response that the program stands in
    mistake  is just wrong, as most programs are

Nearly all of them are asked for the same sum, so a program can be given as any kind of problem.
Programs that reach for something print what they found, and are right only where it is nothing.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

SECRET = "a-secret-of-the-parent-5f1c"
"""Stands in the environment of the process that grades; no program may find it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A program with its problem.

    Example: Entry(name="prints six", group="mistake", answer={"kind": "stdin", ...},
                   response="```python\\nprint(6)\\n```", allowed=frozenset({"wrong"}))
    """

    name: str
    group: str
    answer: dict[str, Any]
    response: str
    allowed: frozenset[str]
    in_thought: bool = False
    not_at: frozenset[str] = frozenset()
    """Levels at which it is another matter; see the reasons beside the entries."""


GROUPS = ("bomb", "hang", "cheat", "honest", "reach", "form", "mistake")
ENTRIES: list[Entry] = []

_SUM = [{"input": "2 3\n", "output": "5\n"}, {"input": "10 -4\n", "output": "6\n"}]
_CALLS = [{"input": [2, 3], "output": 5}, {"input": [10, -4], "output": 6}]
_ASSERTS = "assert add(2, 3) == 5\nassert add(10, -4) == 6"
_LIMITS = {"time_limit_s": 0.5, "memory_limit_mb": 256}


def _add(
    group: str, name: str, allowed: str, answer: dict[str, Any], program: str, **more: Any
) -> None:
    response = f"```python\n{textwrap.dedent(program).strip()}\n```"
    not_at = frozenset(more.pop("not_at", "").split())
    ENTRIES.append(
        Entry(
            name=name,
            group=group,
            answer=answer | _LIMITS | more,
            response=response,
            allowed=frozenset(allowed.split()),
            not_at=not_at,
        )
    )


def _stdin(group: str, name: str, allowed: str, program: str, **more: Any) -> None:
    """A program that reads two numbers and prints their sum, or other `tests`."""
    answer = {"kind": "stdin", "tests": more.pop("tests", _SUM)}
    _add(group, name, allowed, answer, program, **more)


_SPLITS = """
def check(given, output, expected):
    return sum(map(int, output.split())) == int(given)
"""


def _one(given: str, output: str) -> list[dict[str, str]]:
    return [{"input": given, "output": output}]


def _call(group: str, name: str, allowed: str, program: str, **more: Any) -> None:
    """A program that defines `add(a, b)`, or other `tests` of another `function`."""
    tests, function = more.pop("tests", _CALLS), more.pop("function", "add")
    answer = {"kind": "call", "name": function, "tests": tests}
    _add(group, name, allowed, answer, program, **more)


def _assert(group: str, name: str, allowed: str, program: str, **more: Any) -> None:
    """The same for asserts, or other `code`."""
    answer = {"kind": "assert", "code": more.pop("code", _ASSERTS)}
    _add(group, name, allowed, answer, program, **more)


def _function(group: str, name: str, allowed: str, program: str, **more: Any) -> None:
    """A program that defines `add`, once called and once asserted."""
    _call(group, f"{name}, called", allowed, program, **more)
    _assert(group, f"{name}, asserted", allowed, program, **more)


# --- bombs ---

# weak lets processes be made, and holds neither their number nor what all of them take
_stdin(
    "bomb",
    "forks without end",
    "crashed",
    """
    import os
    while True:
        os.fork()
    """,
    not_at="weak",
)
_stdin(
    "bomb",
    "starts processes by posix_spawn and subprocess",
    "correct",
    """
    import os, subprocess
    done = 0
    for way in (
        lambda: os.posix_spawn("/bin/sh", ["sh", "-c", "exit"], {}),
        lambda: subprocess.run(["true"]),
        lambda: os.system("true") and 1 / 0,
        lambda: os.execv("/bin/sh", ["sh"]),
    ):
        try:
            way()
            done += 1
        except Exception:
            pass
    print(done or sum(map(int, input().split())))
    """,
    not_at="weak",
)
_stdin(
    "bomb",
    "starts threads until it may not",
    "correct",
    """
    import threading, time
    end = threading.Event()
    threading.stack_size(64 << 10)
    try:
        for _ in range(5000):
            threading.Thread(target=end.wait).start()
        print("no limit")
    except RuntimeError:
        print(sum(map(int, input().split())))
    end.set()
    """,
    time_limit_s=2,
    not_at="weak restricted",  # there threads are counted per user, if at all
)
_stdin(
    "bomb",
    "threads that spin",
    "limit",
    """
    import threading
    def spin():
        while True:
            pass
    for _ in range(50):
        threading.Thread(target=spin).start()
    """,
)
_stdin("bomb", "appends without end", "limit", "x = []\nwhile True:\n    x.append('x' * 10**6)")
_stdin("bomb", "asks for all memory at once", "limit", "x = bytearray(1 << 40)")
_stdin("bomb", "a list of a billion", "limit", "x = [0] * 10**9\nprint(sum(x))")
_function("bomb", "memory in a call", "limit", "def add(a, b):\n    return len([a] * 10**9)")
_stdin(
    "bomb",
    "maps memory and touches it",
    "crashed limit",
    """
    import mmap
    kept = []
    while True:
        kept.append(mmap.mmap(-1, 16 << 20))
        for place in range(0, 16 << 20, 4096):
            kept[-1][place] = 1
    """,
)
_stdin(
    "bomb",
    "catches MemoryError and goes on",
    "limit",
    """
    kept = []
    while True:
        try:
            kept.append(bytearray(10**7))
        except MemoryError:
            pass
    """,
)
_stdin(
    "bomb",
    "shared memory and files in memory",
    "correct",
    """
    import ctypes, os
    from multiprocessing import shared_memory
    got = []
    libc = ctypes.CDLL(None)
    for way in (
        lambda: os.memfd_create("x"),
        lambda: shared_memory.SharedMemory(create=True, size=1 << 20),
        lambda: os.write(os.open("/dev/shm/x", os.O_CREAT | os.O_RDWR), b"x"),
        lambda: None if libc.shmget(0, 4096, 0o1600) < 0 else got.append("shm"),
        lambda: None if libc.semget(0, 1, 0o1600) < 0 else got.append("sem"),
        lambda: None if libc.msgget(0, 0o1600) < 0 else got.append("msg"),
        lambda: None if libc.mq_open(b"/x", 0o102, 0o600, None) < 0 else got.append("mq"),
    ):
        try:
            if way():
                got.append("file")
        except (OSError, ImportError):
            pass
    print(got or sum(map(int, input().split())))
    """,
    not_at="weak",
)
_stdin(
    "bomb",
    "fills the disk",
    "correct",
    """
    written = 0
    try:
        for number in range(100):
            with open(f"f{number}", "wb", buffering=0) as file:
                for _ in range(63):
                    written += file.write(b"x" * 2**20)
    except OSError:
        pass
    print(sum(map(int, input().split())) if written < 2**27 else written)
    """,
    time_limit_s=3,
    not_at="weak",  # its scratch folder is on the disk
)
_stdin(
    "bomb",
    "one file too large",
    "crashed",
    "open('x', 'wb').write(b'x' * (100 << 20))",
    time_limit_s=3,
    memory_limit_mb=512,
)
_stdin(
    "bomb",
    "makes files until there are no inodes",
    "correct",
    """
    import os
    made = 0
    try:
        while made < 50000:
            os.mkdir(f"d{made}")
            made += 1
    except OSError:
        pass
    print(sum(map(int, input().split())) if made < 5000 else made)
    """,
    not_at="weak",
)
_stdin(
    "bomb",
    "a sparse file of a terabyte",
    "crashed",
    "import os\nos.truncate(os.open('x', os.O_CREAT | os.O_RDWR), 1 << 40)",
)
_stdin(
    "bomb",
    "opens descriptors until it may not",
    "correct",
    """
    import os
    made = 0
    try:
        while made < 10**6:
            os.pipe()
            made += 2
    except OSError:
        pass
    print(sum(map(int, input().split())) if made < 1000 else made)
    """,
)
_stdin("bomb", "floods stdout", "limit", "while True:\n    print('x' * 10000)")
_stdin(
    "bomb", "floods stdout with blanks", "limit", "print(5)\nwhile True:\n    print(' ' * 10000)"
)
_stdin(
    "bomb",
    "floods stderr",
    "limit",
    "import os\nwhile True:\n    os.write(2, b'x' * 65536)",
)
_stdin(
    "bomb", "floods stdout byte by byte", "limit", "import os\nwhile True:\n    os.write(1, b'x')"
)
_call(
    "bomb",
    "floods stdout while it is called",
    "limit",
    "def add(a, b):\n    while True:\n        print('x' * 10000)",
)
_stdin("bomb", "a power with a billion digits", "limit", "print(9**9**9)", not_at="weak")
_stdin("bomb", "prints a huge integer", "crashed limit", "print(10**100000)")
_stdin(
    "bomb",
    "prints a huge integer without the digit limit",
    "limit",
    "import sys\nsys.set_int_max_str_digits(0)\nprint(len(str(7 ** 3_000_000)))",
)
_function("bomb", "returns a huge integer", "wrong", "def add(a, b):\n    return 10**100000")
_stdin(
    "bomb",
    "a regex that backtracks for ever",
    "limit",
    "import re\nre.match('(a+)+$', 'a' * 60 + 'b')",
)
_stdin("bomb", "recursion without end", "crashed", "def f():\n    return f()\nf()")
_stdin(
    "bomb",
    "recursion without end or limit",
    "crashed limit",
    "import sys\nsys.setrecursionlimit(10**9)\ndef f(x):\n    return f(x + 1) + 1\nf(0)",
)
_stdin(
    "bomb",
    "overflows the C stack",
    "crashed limit",
    """
    import sys
    sys.setrecursionlimit(10**9)
    class A:
        def __getattr__(self, name):
            return repr(getattr(self, name + "x"))
    A().y
    """,
)
_stdin("bomb", "segfault", "crashed", "import ctypes\nctypes.string_at(0)")
_stdin("bomb", "aborts", "crashed", "import os\nos.abort()")
_function(
    "bomb", "segfault", "crashed", "import ctypes\ndef add(a, b):\n    return ctypes.string_at(1)"
)
_stdin("bomb", "half a million terms", "crashed limit", "print(" + "1+" * 500_000 + "1)")
_stdin("bomb", "ten thousand brackets", "crashed", "x = " + "(" * 10_000 + ")" * 10_000)
_stdin("bomb", "a chain of attributes", "crashed limit", "x" + ".x" * 200_000)
_stdin(
    "bomb",
    "a hundred levels of blocks",
    "crashed",
    "".join(" " * depth + "if 1:\n" for depth in range(150)) + " " * 150 + "print(5)",
)
_stdin("bomb", "a folded constant", "crashed limit wrong", "x = 'x' * 10**5 * 10**5\nprint(len(x))")
_stdin("bomb", "nested f-strings and lambdas", "crashed limit", "x = " + "lambda: " * 5000 + "0")
_call(
    "bomb",
    "returns what is nested too deeply",
    "wrong",
    "def add(a, b):\n    x = []\n    for _ in range(10**5):\n        x = [x]\n    return x",
)
_call(
    "bomb", "returns itself", "wrong", "def add(a, b):\n    x = []\n    x.append(x)\n    return x"
)
_call(
    "bomb",
    "returns a linked list in a circle",
    "wrong limit",
    "def add(a, b):\n    node = ListNode(1)\n    node.next = node\n    return node",
)
_call("bomb", "returns ten million numbers", "limit", "def add(a, b):\n    return [7] * 10**7")
_assert(
    "bomb",
    "an iterator without end",
    "limit wrong",
    "def numbers():\n    while True:\n        yield 1",
    code="assert list(numbers()) == [1, 2, 3]",
    time_limit_s=0.1,
)

# --- hangs ---

_stdin("hang", "spins", "limit", "while True:\n    pass")
_function("hang", "spins", "limit", "def add(a, b):\n    while True:\n        pass")
_stdin("hang", "spins while it is compiled or loaded", "limit", "x = sum(i for i in range(10**12))")
_stdin("hang", "sleeps", "limit", "import time\ntime.sleep(10**6)")
_function("hang", "sleeps", "limit", "import time\ndef add(a, b):\n    time.sleep(10**6)")
_stdin(
    "hang",
    "ignores every signal",
    "limit",
    """
    import signal, time
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    while True:
        pass
    """,
)
_stdin(
    "hang",
    "catches everything",
    "limit",
    """
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
    """,
)
_stdin(
    "hang",
    "stops itself",
    "limit",
    """
    import os, signal, time
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(10**6)
    """,
)
_stdin(
    "hang",
    "a daemon that holds stdout",
    "correct",
    """
    import threading, time
    threading.Thread(target=time.sleep, args=(10**6,), daemon=True).start()
    print(sum(map(int, input().split())))
    """,
)
_stdin(
    "hang",
    "a thread that is no daemon",
    "limit",
    """
    import threading, time
    print(sum(map(int, input().split())))
    threading.Thread(target=time.sleep, args=(10**6,)).start()
    """,
)
# weak has processes: there the child is ended, and the program with it
_stdin(
    "hang",
    "a child in a session of its own that writes late",
    "crashed",
    """
    import os, time
    print(sum(map(int, input().split())), flush=True)
    if os.fork() == 0:
        os.setsid()
        time.sleep(1)
        print("late", flush=True)
        time.sleep(10**6)
    """,
    not_at="weak",
)
_stdin(
    "hang",
    "sleeps in a finalizer",
    "limit",
    """
    import time
    class A:
        def __del__(self):
            time.sleep(10**6)
    a = A()
    del a
    """,
)
_stdin(
    "hang",
    "sleeps at exit",
    "limit",
    "import atexit, time\nprint(5)\natexit.register(time.sleep, 10**6)",
)
_stdin(
    "hang",
    "reads from a pipe that nobody writes to",
    "limit",
    "import os\nr, w = os.pipe()\nos.read(r, 1)",
)
_stdin(
    "hang",
    "fills a pipe that nobody reads",
    "limit",
    "import os\nr, w = os.pipe()\nwhile True:\n    os.write(w, b'x' * 65536)",
)
_stdin(
    "hang",
    "a lock that is taken twice",
    "limit",
    "import threading\na = threading.Lock()\na.acquire()\na.acquire()",
)
_stdin(
    "hang",
    "two threads in a deadlock",
    "limit",
    """
    import threading, time
    a, b = threading.Lock(), threading.Lock()
    def take(one, other):
        with one:
            time.sleep(0.1)
            with other:
                print(5)
    for locks in ((a, b), (b, a)):
        threading.Thread(target=take, args=locks).start()
    """,
)
_stdin(
    "hang",
    "many threads that wake at once to do next to nothing",
    "limit",
    """
    import threading, time
    def nap():
        while True:
            time.sleep(0.1 - time.monotonic() % 0.1)
    threading.stack_size(64 << 10)
    for _ in range(100):
        threading.Thread(target=nap).start()
    """,
    time_limit_s=1,
)
_stdin(
    "hang",
    "closes its streams and sleeps",
    "limit",
    "import os, time\nos.closerange(0, 100)\ntime.sleep(10**6)",
)
_call(
    "hang",
    "closes its channel and sleeps",
    "limit",
    "import os, time\nos.close(3)\ntime.sleep(10**6)",
)
_call(
    "hang",
    "its main thread ends and another goes on",
    "limit",
    """
    import ctypes, threading, time
    threading.Thread(target=time.sleep, args=(10**6,)).start()
    ctypes.CDLL(None).pthread_exit(None)
    """,
)
_assert(
    "hang",
    "yields, but slowly",
    "limit",
    """
    import time
    def numbers():
        while True:
            time.sleep(0.5)
            yield from range(100)
    """,
    code="assert list(numbers()) == [1, 2, 3]",
)
_assert(
    "hang",
    "calls back for ever",
    "limit",
    """
    import time
    def apply(function):
        while True:
            function(1)
            time.sleep(0.5)
    """,
    code="assert apply(lambda x: x + 1) == 2",
)

_assert(
    "hang",
    "ends while it is not looked at",
    "crashed correct",
    """
    import os, threading
    def add(a, b):
        threading.Timer(0.1, os._exit, (0,)).start()
        return a + b
    """,
    code="import time\nfor i in range(3):\n    assert add(i, 1) == i + 1\n    time.sleep(0.2)",
)
_call(
    "hang",
    "ends while its answer is checked",
    "correct",
    """
    import os, threading
    def add(a, b):
        threading.Timer(1.0, os._exit, (0,)).start()
        return a + b
    """,
    checker="import time\ndef check(a, b, c):\n    time.sleep(1.3)\n    return True",
)

# --- cheats ---

for _name, _exit in {
    "exit(0)": "exit(0)",
    "sys.exit()": "import sys; sys.exit()",
    "raise SystemExit": "raise SystemExit",
    "os._exit(0)": "import os; os._exit(0)",
    "os._exit(0) by a thread": (
        "import os, threading as t; x = t.Thread(target=os._exit, args=(0,)); x.start(); x.join()"
    ),
}.items():
    _stdin("cheat", f"{_name} before it prints", "wrong", _exit)
    _function("cheat", f"{_name} when it is loaded", "crashed", _exit)
    _function(
        "cheat",
        f"{_name} when it is called",
        "crashed",
        f"def add(a, b):\n    {_exit}",
    )
_function(
    "cheat",
    "exit(0) at exit, and excepthook",
    "wrong",
    """
    import atexit, os, sys
    atexit.register(os._exit, 0)
    sys.excepthook = lambda *_: os._exit(0)
    def add(a, b):
        return 0
    """,
)
_function(
    "cheat",
    "an object that equals everything",
    "wrong",
    """
    class Equal:
        def __eq__(self, other): return True
        def __ne__(self, other): return False
        def __hash__(self): return hash(5)
        def __bool__(self): return True
        def __len__(self): return 1
    def add(a, b):
        return Equal()
    """,
)
for _base, _value in (
    ("int", "0"),
    ("float", "0.0"),
    ("str", "''"),
    ("list", "[]"),
    ("dict", "{}"),
):
    _function(
        "cheat",
        f"a subclass of {_base} that equals everything",
        "wrong",
        f"""
        class Equal({_base}):
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 0
            def __repr__(self): return "5"
            def __int__(self): return 5
            def __iter__(self): return iter([5])
            def __reduce__(self): return (int, (5,))
        def add(a, b):
            return Equal({_value})
        """,
    )
_call(
    "cheat",
    "a class that says it is an int",
    "wrong",
    """
    class A:
        __class__ = int
        __module__ = "numpy"
        ndim = None
        def __eq__(self, other): return True
    def add(a, b):
        return A()
    """,
)
_function(
    "cheat",
    "looks for the answer in frames and through gc",
    "wrong",
    """
    import gc, sys
    def add(a, b):
        found = []
        frame = sys._getframe()
        while frame:
            found += [v for v in frame.f_locals.values() if isinstance(v, dict)]
            frame = frame.f_back
        for thing in found + gc.get_objects():
            if isinstance(thing, dict):
                for key in ("output", "expected"):
                    if type(thing.get(key)) is int:
                        return thing[key]
        return None
    """,
)
_function(
    "cheat",
    "traces its callers and changes what they know",
    "wrong",
    """
    import ctypes, sys
    def trace(frame, event, argument):
        for name in ("result", "value", "failed", "right", "passed"):
            if name in frame.f_locals:
                frame.f_locals[name] = 5
                ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
        return trace
    sys.settrace(trace)
    def add(a, b):
        frame = sys._getframe()
        while frame := frame.f_back:
            frame.f_trace = trace
        return 0
    """,
)
_function(
    "cheat",
    "patches comparison, json and builtins",
    "wrong crashed",
    """
    import builtins, json, math, operator
    builtins.all = builtins.any = builtins.isinstance = lambda *_: True
    builtins.len = lambda *_: 2
    operator.eq = math.isclose = lambda *_, **__: True
    json.loads = lambda *_, **__: True
    def add(a, b):
        return 0
    """,
)
_function(
    "cheat",
    "changes the constants of small integers",
    "wrong crashed limit",
    """
    import ctypes
    def add(a, b):
        ctypes.c_uint32.from_address(id(0) + 24).value = 5
        return 7
    """,
)
_function(
    "cheat",
    "forges results on every descriptor",
    "crashed",
    """
    import os
    for line in (b'{"right": true}', b'{"passed": 9, "failed": 0, "detail": "", "kind": ""}',
                 b'!{"passed": 9, "failed": 0, "detail": "", "kind": ""}',
                 b'{"verdict": {"outcome": "correct", "score": 1.0}}'):
        for descriptor in range(1, 300):
            try:
                os.write(descriptor, line + b"\\n")
            except OSError:
                pass
    def add(a, b):
        return 0
    """,
)
_stdin(
    "cheat",
    "forges results on every descriptor and prints nothing",
    "wrong",
    """
    import os
    for descriptor in range(2, 300):
        try:
            os.write(descriptor, b'{"right": true, "verdict": {"outcome": "correct"}}\\n')
        except OSError:
            pass
    """,
)
_function(
    "cheat",
    "answers before it is asked",
    "wrong",
    """
    import os
    for _ in range(9):
        os.write(3, b'{"loaded": true}\\n{"value": 4, "seconds": 0}\\n')
    def add(a, b):
        return a + b
    """,
)
_call(
    "cheat",
    "answers twice, in the hope of the second",
    "wrong",
    """
    import os
    def add(a, b):
        os.write(3, b'{"value": 5}\\n')
        return 6
    """,
    tests=[{"input": [2, 3], "output": 6}, {"input": [10, -4], "output": 6}],
)
_call(
    "cheat",
    "is right on the first test alone",
    "wrong",
    "def add(a, b):\n    return 5",
)
_stdin("cheat", "prints the first line of two", "wrong", "print(1)", tests=_one("", "1\n2\n"))
_stdin(
    "cheat",
    "prints a line too many",
    "wrong",
    "print(1)\nprint(2)\nprint(3)",
    tests=_one("", "1\n2\n"),
)
_stdin("cheat", "prints all guesses", "wrong", "for i in range(99):\n    print(i)")
_stdin("cheat", "echoes its input", "wrong", "import sys\nprint(sys.stdin.read())")
_stdin(
    "cheat",
    "prints the answer and then fails",
    "crashed",
    "print(sum(map(int, input().split())), flush=True)\n1 / 0",
)
_stdin(
    "cheat",
    "is killed by a limit that it has set itself",
    "limit crashed",
    """
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
    while True:
        pass
    """,
    time_limit_s=3,
)
_stdin(
    "cheat",
    "kills itself",
    "wrong crashed",
    "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\nprint('alive')",
)
_stdin(
    "cheat",
    "a call of a 32 bit machine",
    "crashed",
    """
    import ctypes, mmap
    code = mmap.mmap(-1, 4096, prot=7)
    code.write(bytes.fromhex("b814000000cd80c3"))  # getpid by int 0x80
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
    """,
    not_at="weak",
)
_call(
    "cheat",
    "a complex number that is too large",
    "wrong",
    """
    import os
    os.write(3, b'{"loaded": true}\\n{"value": {"complex": [1' + b'0' * 400 + b', 0]}}\\n')
    def add(a, b):
        return a
    """,
)
_call(
    "cheat",
    "an integer too large for a float where floats are compared",
    "wrong",
    "def add(a, b):\n    return 10**400",
    tests=[{"input": [2, 3], "output": 5.0}],
    tolerance=1e-6,
)
_call(
    "cheat",
    "numbers whose hashes are all the same",
    "wrong",
    "def add(a, b):\n    return {i * (2**61 - 1) for i in range(1)} if 0 else S()\n"
    "class S(set):\n    pass\n"
    "import os\n"
    "items = ','.join(str(i * (2**61 - 1)) for i in range(45000))\n"
    "os.write(3, b'{\"loaded\": true}\\n')\n"
    "data = ('{\"value\": {\"set\": [' + items + ']}}\\n').encode()\n"
    "while data:\n    data = data[os.write(3, data):]",
)
_call(
    "cheat",
    "keys whose hashes are all the same",
    "wrong",
    """
    import os
    items = ",".join(f"[{i * (2**61 - 1)}, 0]" for i in range(38000))
    data = ('{"loaded": true}\\n{"value": {"dict": [' + items + "]}}\\n").encode()
    while data:
        data = data[os.write(3, data):]
    def add(a, b):
        return a
    """,
)
for _name, _message in {
    "no JSON": "b'hello'",
    "no object": "b'[1, 2]'",
    "no text": "bytes(range(128, 256)).replace(b'\\n', b'')",
    "half a text": "b'\"\\\\ud800\"'",
    "seconds that are no number": 'b\'{"value": 7, "seconds": NaN}\'',
    "seconds that are huge": 'b\'{"value": 7, "seconds": -1\' + b"0" * 4000 + b"}"',
    "an integer of a million digits": "b'{\"value\": ' + b'1' * 10**6 + b'}'",
    "a hundred thousand brackets": "b'{\"value\": ' + b'[' * 10**5 + b']' * 10**5 + b'}'",
    "nine hundred brackets": "b'{\"value\": ' + b'[' * 900 + b']' * 900 + b'}'",
    "a value with two tags": 'b\'{"value": {"tuple": [], "set": []}}\'',
    "a value with an unknown tag": 'b\'{"value": {"eval": "5"}}\'',
    "a range without a step": 'b\'{"value": {"range": [0, 5, 0]}}\'',
    "an unhashable key": 'b\'{"value": {"dict": [[[1], 2]]}}\'',
    "a call back": 'b\'{"callback": 0, "arguments": []}\'',
    "an object of another": 'b\'{"value": {"object": 0}}\'',
    "a change of what it was not given": 'b\'{"value": 5, "changed": [[7, [1]]]}\'',
}.items():
    _wrong = "correct" if _name.startswith("a change") else "wrong"
    _program = f"""
        import os
        def add(a, b):
            data = {_message} + b"\\n"
            while data:
                data = data[os.write(3, data):]
            return a
        """
    if _name.startswith("a change"):
        _assert("cheat", f"says {_name}", "wrong", _program)
    else:
        _function("cheat", f"says {_name}", "wrong", _program)
_call(
    "cheat",
    "raises what is nested almost too deeply",
    "crashed",
    """
    import os
    def add(a, b):
        os.write(3, b'{"raised": ' + b'[' * 940 + b']' * 940 + b'}\\n')
    """,
)
_function(
    "cheat",
    "a line without an end",
    "limit",
    "import os\ndef add(a, b):\n    while True:\n        os.write(3, b'x' * 65536)",
)
_function(
    "cheat",
    "a flood of tiny answers",
    "wrong limit",
    "import os\ndef add(a, b):\n    while True:\n        os.write(3, b'1\\n' * 1000)",
)
_call(
    "cheat",
    "never reads what it is sent",
    "wrong",
    """
    import os
    os.write(3, b'{"loaded": true}\\n' + b'{"value": 5}\\n' * 9)
    import time
    time.sleep(10**6)
    """,
    tests=[{"input": [[7] * 10**5], "output": 6}] * 2,
)
_assert(
    "cheat",
    "answers without reading what it is asked",
    "wrong",
    """
    import os, time
    os.write(3, b'{"loaded": true}\\n' + b'{"value": 5}\\n' * 50)
    time.sleep(10**6)
    """,
    code="x = [add([0] * 20000, 0) for _ in range(50)]\nassert add(2, 3) == 5",
)
_stdin(
    "cheat",
    "prints the answer and then the limit of blanks",
    "limit",
    """
    import os
    data = b"5\\n" + b" " * (2**20 + 3 * 2**14)
    while data:
        data = data[os.write(1, data):]
    os._exit(0)
    """,
    tests=_one("2 3", "5"),
)
_function(
    "cheat",
    "raises what can't be written",
    "crashed",
    "def add(a, b):\n    raise ValueError('\\ud800' + chr(27) + '[2J')",
)
_function(
    "cheat",
    "raises what can't be told",
    "crashed",
    """
    class Odd(Exception):
        def __str__(self):
            raise SystemExit
    def add(a, b):
        raise Odd
    """,
)
_assert(
    "cheat",
    "raises a text of a megabyte",
    "crashed",
    """
    import os
    def add(a, b):
        data = b'{"raised": "' + b"\\\\u0001" * 170000 + b'"}\\n'
        while data:
            data = data[os.write(3, data):]
    """,
)
_assert(
    "cheat",
    "ends a map early",
    "crashed wrong",
    "def add(a, b):\n    raise StopIteration",
    code="assert all(map(lambda c: add(*c[0]) == c[1], [((2, 3), 5), ((1, 1), 2)]))",
)
_assert(
    "cheat",
    "is all that its test code hopes for",
    "wrong crashed",
    """
    class Any:
        def __getattr__(self, name): return self
        def __call__(self, *a, **k): return self
        def __eq__(self, other): return True
        def __bool__(self): return True
        def __iter__(self): return iter([self])
        def __contains__(self, item): return True
    add = Any()
    """,
    code="r = add(2, 3)\nassert r\nassert r == 5 and 5 in r and not r != 5",
)
_assert(
    "cheat",
    "reads the test code",
    "wrong",
    """
    import gc, inspect, sys
    def add(a, b):
        for thing in gc.get_objects():
            if isinstance(thing, str) and "assert add" in thing:
                return 5
        return [f.filename for f in inspect.stack() if "tests" in f.filename] and 5 or None
    """,
)
_stdin(
    "cheat",
    "a checker is told what it likes to hear",
    "wrong",
    "print('True')\nprint('right')",
    checker="def check(given, output, expected):\n    return output.split() == expected.split()",
)
_stdin(
    "cheat",
    "breaks a checker that trusts",
    "wrong",
    "print('not a number')",
    checker="def check(given, output, expected):\n    return int(output) == int(expected)",
)
_stdin(
    "cheat",
    "sends a checker to sleep",
    "wrong",
    "print(10**9)",
    checker="def check(given, output, expected):\n    return sum(range(int(output))) < 0 or "
    "output.split() == expected.split()",
)

# --- honest oddities ---

_stdin(
    "honest",
    "no newline at the end",
    "correct",
    "import sys\nsys.stdout.write(str(sum(map(int, input().split()))))",
)
_stdin(
    "honest",
    "\\r\\n",
    "correct",
    "import sys\nprint(sum(map(int, sys.stdin.read().split())), end='\\r\\n')",
    tests=_one("2 3\r\n", "5\r\n"),
)
_stdin(
    "honest",
    "unicode",
    "correct",
    "s = input()\nprint(s[::-1], len(s))",
    tests=_one("añ𝄞é\n", "é𝄞ña 4\n"),
)
_stdin(
    "honest",
    "no input",
    "correct",
    "import sys\nprint(repr(sys.stdin.read()))",
    tests=_one("", "''\n"),
)
_stdin(
    "honest",
    "an end of input that is met",
    "correct",
    "try:\n    while True:\n        print(int(input()) * 2)\nexcept EOFError:\n    pass",
    tests=_one("1\n2\n3", "2\n4\n6\n"),
)
_stdin(
    "honest",
    "trailing blanks and empty lines",
    "correct",
    "print(sum(map(int, input().split())), '  ')\nprint()\nprint()",
)
_stdin("honest", "open(0)", "correct", "print(sum(map(int, open(0).read().split())))")
_stdin(
    "honest",
    "readline of the buffer in a loop",
    "correct",
    """
    import sys
    read = sys.stdin.buffer.readline
    print(sum(sum(map(int, read().split())) for _ in range(3)))
    """,
    tests=_one("1 2\n3 4\n5 6\n", "21\n"),
)
_stdin(
    "honest",
    "os.read of the size of the input",
    "correct",
    "import io, os\nread = io.BytesIO(os.read(0, os.fstat(0).st_size)).readline\n"
    "print(sum(map(int, read().split())))",
)
_stdin(
    "honest",
    "iterates over its input",
    "correct",
    "import sys\nprint(sum(sum(map(int, line.split())) for line in sys.stdin))",
)
_stdin(
    "honest",
    "fileinput",
    "correct",
    "import fileinput\nprint(sum(sum(map(int, line.split())) for line in fileinput.input()))",
)
_stdin(
    "honest",
    "seeks in its input",
    "correct",
    "import sys\nsys.stdin.read()\nsys.stdin.seek(0)\nprint(sum(map(int, input().split())))",
)
_stdin("honest", "a prompt", "correct", "print(sum(map(int, input('').split())))")
_stdin(
    "honest",
    "fifty megabytes of input",
    "correct",
    "import sys\nprint(len(sys.stdin.buffer.read()))",
    tests=_one("1234567 " * 6_250_000, "50000000"),
    time_limit_s=3,
)
_stdin(
    "honest",
    "a megabyte of output",
    "correct",
    "print('\\n'.join(str(i) for i in range(150000)))",
    tests=_one("", "\n".join(map(str, range(150_000)))),
    time_limit_s=2,
)
_stdin(
    "honest",
    "a thread with a large stack",
    "correct",
    """
    import sys, threading
    sys.setrecursionlimit(10**6)
    threading.stack_size(64 << 20)
    def depth(n):
        return n and 1 + depth(n - 1)
    def main():
        print(depth(50000) * 0 + sum(map(int, input().split())))
    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
    """,
    time_limit_s=2,
)
_stdin(
    "honest",
    "recursion to a hundred thousand",
    "correct",
    """
    import sys
    sys.setrecursionlimit(10**6)
    def depth(n):
        return 0 if n == 0 else 1 + depth(n - 1)
    print(depth(100000))
    """,
    tests=_one("", "100000"),
    time_limit_s=2,
)
_stdin(
    "honest",
    "an unlimited stack is asked for",
    "correct",
    """
    import resource, sys
    try:
        resource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY,) * 2)
    except ValueError:
        pass
    resource.getrlimit(resource.RLIMIT_CPU)
    print(sum(map(int, input().split())))
    """,
)
_stdin(
    "honest",
    "__main__",
    "correct",
    """
    def main():
        print(sum(map(int, input().split())))
    if __name__ == "__main__":
        main()
    """,
)
_stdin(
    "honest",
    "output at exit",
    "correct",
    "import atexit\natexit.register(lambda: print(sum(map(int, input().split()))))",
)
_stdin(
    "honest",
    "output by a thread after the end",
    "correct",
    """
    import threading, time
    def late():
        time.sleep(0.1)
        print(sum(map(int, input().split())))
    threading.Thread(target=late).start()
    """,
)
for _name, _exit in {
    "exit()": "exit()",
    "sys.exit(0)": "import sys; sys.exit(0)",
    "quit": "quit()",
    "raise SystemExit": "raise SystemExit",
}.items():
    _stdin(
        "honest", f"ends with {_name}", "correct", f"print(sum(map(int, input().split())))\n{_exit}"
    )
_stdin(
    "honest",
    "os._exit after a flush",
    "correct",
    "import os\nprint(sum(map(int, input().split())), flush=True)\nos._exit(0)",
)
_stdin(
    "honest",
    "closes all descriptors but its own",
    "correct",
    "import os\nos.closerange(3, 256)\nprint(sum(map(int, input().split())))",
)
_stdin(
    "honest",
    "buffers its output itself",
    "correct",
    "import io, sys\nsys.stdout = out = io.StringIO()\nprint(sum(map(int, input().split())))\n"
    "sys.__stdout__.write(out.getvalue())",
)
_stdin(
    "honest",
    "writes to the buffer and to the descriptor",
    "correct",
    "import os, sys\na, b = map(int, input().split())\nsys.stdout.buffer.write(b'%d ' % a)\n"
    "sys.stdout.flush()\nos.write(1, b'%d\\n' % b)",
    tests=_one("2 3", "2 3"),
)
_stdin(
    "honest",
    "talks on stderr",
    "correct",
    "import sys\nprint('debug ' * 10000, file=sys.stderr)\nprint(sum(map(int, input().split())))",
)
_stdin(
    "honest",
    "warns",
    "correct",
    "import warnings\nwarnings.warn('old')\nprint(sum(map(int, input().split())))",
)
_stdin(
    "honest",
    "within a tolerance",
    "correct",
    "print(0.1 + 0.2, 1e6 + 0.5)",
    tests=_one("", "0.3 1000000.4999999"),
    tolerance=1e-6,
)
_stdin(
    "honest",
    "numpy",
    "correct",
    "import numpy as np\nprint(int(np.array(input().split(), dtype=np.int64).sum()))",
    time_limit_s=2,
)
_stdin(
    "honest",
    "numpy by another name",
    "correct",
    "m = __import__('num' + 'py')\nprint(sum(map(int, input().split())))",
    time_limit_s=3,
)
_stdin(
    "honest",
    "sortedcontainers",
    "correct",
    "from sortedcontainers import SortedList\nprint(sum(SortedList(map(int, input().split()))))",
    time_limit_s=2,
)
_stdin(
    "honest",
    "asyncio",
    "correct",
    """
    import asyncio
    async def main():
        await asyncio.gather(*(asyncio.sleep(0.01) for _ in range(10)))
        print(sum(map(int, input().split())))
    asyncio.run(main())
    """,
    time_limit_s=2,
)
_stdin(
    "honest",
    "a pool of threads",
    "correct",
    """
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(20) as pool:
        print(sum(pool.map(int, input().split())))
    """,
    time_limit_s=2,
)
_stdin(
    "honest",
    "an alarm",
    "correct",
    """
    import signal, time
    signal.signal(signal.SIGALRM, lambda *_: print(sum(map(int, input().split()))))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    time.sleep(0.2)
    """,
)
_stdin(
    "honest",
    "a scratch file",
    "correct",
    """
    import os, tempfile
    with tempfile.TemporaryFile("w+") as file:
        file.write(input())
        file.seek(0)
        print(sum(map(int, file.read().split())))
    open("here.txt", "w").write("x")
    os.remove("here.txt")
    """,
    not_at="restricted",
)  # which has no folder of its own
_stdin(
    "honest",
    "a class with finalizers and circles",
    "correct",
    """
    import gc
    class Node:
        def __del__(self): pass
    for _ in range(10000):
        node = Node()
        node.self = node
    gc.collect()
    print(sum(map(int, input().split())))
    """,
    time_limit_s=2,
)
_stdin(
    "honest",
    "catches MemoryError and gives up",
    "correct",
    "try:\n    x = bytearray(1 << 40)\nexcept MemoryError:\n    pass\n"
    "print(sum(map(int, input().split())))",
)
_stdin(
    "honest",
    "catches RecursionError",
    "correct",
    "def f(): return f()\ntry:\n    f()\nexcept RecursionError:\n    pass\n"
    "print(sum(map(int, input().split())))",
)
_stdin(
    "honest",
    "dataclasses, pickles and introspection",
    "correct",
    """
    import dataclasses, inspect, pickle
    @dataclasses.dataclass
    class Pair:
        a: int
        b: int
    pair = pickle.loads(pickle.dumps(Pair(*map(int, input().split()))))
    print(sum(dataclasses.astuple(pair)))
    """,
)
_stdin(
    "honest",
    "a checker accepts another answer",
    "correct",
    "print('3 2')",
    tests=_one("5", "2 3"),
    checker=_SPLITS,
)
_stdin(
    "honest",
    "a checker that compares by numpy",
    "correct",
    "print(5)",
    tests=_one("2 3", "5"),
    time_limit_s=2,
    checker="import numpy\ndef check(given, output, expected):\n"
    "    return numpy.float64(output) == numpy.float64(expected)",
)
_function(
    "honest",
    "prints beside its answer",
    "correct",
    "def add(a, b):\n    print('adding', a, b)\n    return a + b",
)
_function(
    "honest",
    "a main that is guarded",
    "correct",
    "def add(a, b):\n    return a + b\n"
    "if __name__ == '__main__':\n    print(add(*map(int, input().split())))",
)
_function(
    "honest",
    "a lambda with a cache",
    "correct",
    "from functools import lru_cache\nadd = lru_cache(None)(lambda a, b: a + b)",
)
_function(
    "honest",
    "an int of numpy",
    "correct",
    "import numpy as np\ndef add(a, b):\n    return np.int64(a) + np.int64(b)",
    time_limit_s=2,
)
_function(
    "honest",
    "a method of Solution",
    "correct",
    "class Solution:\n    def add(self, a: int, b: int) -> int:\n        return a + b",
    function="Solution.add",
    code="assert Solution().add(2, 3) == 5",
)
_function(
    "honest",
    "raises inside and answers",
    "correct",
    "def add(a, b):\n    try:\n        return {}[a]\n    except KeyError:\n        return a + b",
)
_call(
    "honest",
    "changes its argument and returns it",
    "correct",
    "def add(x):\n    x.sort()\n    return x",
    tests=[{"input": [[3, 1, 2]], "output": [1, 2, 3]}],
)
_call(
    "honest",
    "a tuple for a list, and a dict with numbers for keys",
    "correct",
    "def add(a):\n    return (a, {a: (1, 2)})",
    tests=[{"input": [7], "output": [7, {"7": [1, 2]}]}],
)
_call(
    "honest",
    "a linked list",
    "correct",
    """
    from typing import Optional
    class Solution:
        def reverse(self, head: Optional[ListNode]) -> Optional[ListNode]:
            last = None
            while head:
                head.next, last, head = last, head, head.next
            return last
    """,
    function="Solution.reverse",
    tests=[{"input": [[1, 2, 3]], "output": [3, 2, 1]}, {"input": [[]], "output": []}],
)
_call(
    "honest",
    "none, true and an empty text",
    "correct",
    "def add(a):\n    return [None, True, '', a]",
    tests=[{"input": ["ü\ud800"], "output": [None, True, "", "ü\ud800"]}],
)
_assert(
    "honest",
    "sorts in place",
    "correct",
    "def order(x):\n    x.sort()",
    code="x = [3, 1, 2]\nassert order(x) is None\nassert x == [1, 2, 3]",
)
_assert(
    "honest",
    "raises what the test expects",
    "correct",
    "def add(a, b):\n    raise ValueError('no')",
    code="try:\n    add(1, 2)\n    assert False\n"
    "except ValueError as fault:\n    assert 'no' in str(fault)",
)
_assert(
    "honest",
    "an object with state",
    "correct",
    "class Counter:\n    def __init__(self): self.n = 0\n    def up(self):\n        self.n += 1\n"
    "        return self.n",
    code="c = Counter()\nassert c.up() == 1\nassert c.up() == 2",
)
_assert(
    "honest",
    "a function that is handed over and called back",
    "correct",
    "def apply(function, x):\n    return [function(i) for i in x]",
    code="assert apply(lambda x: x + 1, [1, 2]) == [2, 3]",
)
_assert(
    "honest",
    "a generator",
    "correct",
    "def numbers(n):\n    yield from range(n)",
    code="assert list(numbers(250)) == list(range(250))",
    time_limit_s=1,
)
_assert(
    "honest",
    "a large argument and a large answer",
    "correct",
    "def double(x):\n    return [2 * i for i in x]",
    code="x = list(range(10**6, 10**6 + 200000))\nassert double(x) == [2 * i for i in x]",
    time_limit_s=5,
)
_assert(
    "honest",
    "a check of a candidate",
    "correct",
    "def add(a, b):\n    return a + b",
    code="def check(candidate):\n    assert candidate(2, 3) == 5\ncheck(add)",
)

# --- reach ---

_OUTSIDE = """
    found = []
    def look(what, way):
        try:
            if (got := way()) is not None:
                found.append((what, got))
        except (OSError, ImportError, AttributeError, ValueError) as fault:
            pass
    {looks}
    print(found or sum(map(int, input().split())))
"""


def _reach(name: str, looks: str, **more: Any) -> None:
    body = textwrap.indent(textwrap.dedent(looks).strip(), "    ").strip()
    _stdin("reach", name, "correct", _OUTSIDE.format(looks=body), **more)


_reach(
    "loopback, abstract sockets and names",
    """
    import socket
    def connect(family, address):
        with socket.socket(family) as s:
            s.settimeout(0.2)
            s.connect(address)
            return address
    def listen(family, address):
        s = socket.socket(family)
        s.bind(address)
        s.listen()
        return address
    look("tcp", lambda: connect(socket.AF_INET, ("127.0.0.1", 22)))
    look("tcp6", lambda: listen(socket.AF_INET6, ("::1", 0)))
    look("listen", lambda: listen(socket.AF_INET, ("127.0.0.1", 0)))
    look("abstract", lambda: listen(socket.AF_UNIX, chr(0) + "archer"))
    look("unix", lambda: listen(socket.AF_UNIX, "socket"))
    look("raw", lambda: socket.socket(socket.AF_PACKET))
    look("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
    look("name", lambda: socket.gethostbyname("localhost"))
    """,
    not_at="weak",
)
_reach(
    "urllib and http",
    """
    import urllib.request
    look("http", lambda: urllib.request.urlopen("http://127.0.0.1:9/", timeout=0.2).read())
    """,
    time_limit_s=3,
)
# restricted has Landlock, which lets a file be seen that it does not let be opened
_reach(
    "files outside",
    """
    import glob, os
    for path in ("/etc/passwd", "/etc/hostname", "/proc/self/environ", "/proc/1/environ",
                 "/proc/self/maps", "/proc/self/mem", "/sys/kernel", "/root/.ssh", "/dev/mem"):
        look(path, lambda: open(path, "rb").read(1))
    for folder in ("/home", "/etc", "/proc", "/var", "/dev/shm", "/run", "/boot", "/sys"):
        look(folder, lambda: os.listdir(folder) or None)
    look("glob", lambda: glob.glob("/home/*/*") or glob.glob("/proc/[0-9]*/cmdline") or None)
    """,
    not_at="weak",
)
_reach(
    "files of the project",
    """
    import importlib, os, sys
    for name in ("archer", "archer.verify.code", "tests.verify.corpus", "torch", "pytest"):
        def load(name=name):
            if name in sys.modules and not name.startswith("archer"):
                return name
            module = importlib.import_module(name)
            return name if "code" in name or "torch" in name or "pytest" in name else None
        look(name, load)
    look("cwd", lambda: [n for n in os.listdir("../") if n == "home"] or None)
    """,
    not_at="weak restricted",
)  # where folders are seen
_reach(
    "other processes",
    """
    import ctypes, os
    libc = ctypes.CDLL(None)
    for pid in [os.getppid(), *range(2, 300)]:
        if pid != os.getpid():
            look(pid, lambda: os.kill(pid, 0) or "signal")
            look(pid, lambda: os.pidfd_open(pid))
            look(pid, lambda: None if libc.ptrace(16, pid, 0, 0) < 0 else "trace")
            look(pid, lambda: os.getpgid(pid) if pid > 1 else None)
    """,
    not_at="weak restricted",
)  # which share the numbers of all processes
_reach(
    "ways out by mounts, namespaces and roots",
    """
    import ctypes, os
    libc = ctypes.CDLL(None, use_errno=True)
    ok = lambda result: None if result < 0 else result
    look("unshare", lambda: ok(libc.unshare(0x10000000)))
    look("setns", lambda: ok(libc.setns(3, 0)))
    look("mount", lambda: ok(libc.mount(b"proc", b"/tmp", b"proc", 0, None)))
    look("umount", lambda: ok(libc.umount2(b"/tmp", 2)))
    look("chroot", lambda: os.chroot("/tmp"))
    look("setuid", lambda: os.setuid(0))
    look("mknod", lambda: os.mknod("x", 0o020666, 259))
    look("bpf", lambda: ok(libc.syscall(321, 0, 0, 0)))
    look("io_uring", lambda: ok(libc.syscall(425, 8, 0)))
    look("keyctl", lambda: ok(libc.syscall(250, 0, -3, 1)))
    look("userfaultfd", lambda: ok(libc.syscall(323, 1)))
    look("perf", lambda: ok(libc.syscall(298, 0, 0, -1, -1, 0)))
    look("clone3", lambda: ok(libc.syscall(435, 0, 0)))
    look("seccomp", lambda: ok(libc.prctl(22, 0, 0, 0, 0)))
    look("dumpable", lambda: ok(libc.prctl(4, 1, 0, 0, 0)))
    look("reboot", lambda: ok(libc.syscall(169, 0, 0, 0)))
    look("handle", lambda: ok(libc.syscall(304, 3, 0, 0)))
    """,
    not_at="weak",
)
_reach(
    "a descriptor that it should not have",
    """
    import os, stat
    for number in range(4, 1024):
        look(number, lambda: os.fstat(number) and number)
    look("stdin", lambda: os.write(0, b"x"))
    look("stdin is cut", lambda: os.ftruncate(0, 0) or "cut")
    """,
)
_reach(
    "limits that can be raised",
    """
    import resource
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
        look(kind, lambda: resource.setrlimit(kind, (resource.RLIM_INFINITY,) * 2) or kind)
    look("priority", lambda: os.nice(-5))
    """.replace("import resource", "import os, resource"),
)
_FIND_SECRET = f"""
    import ctypes, gc, glob, os, sys
    want = {SECRET[:12]!r} + {SECRET[12:]!r}
    def has(data):
        return "secret" if want.encode() in data else None
    look("environ", lambda: "secret" if want in str(dict(os.environ)) else None)
    look("environb", lambda: has(repr(os.environb).encode()))
    def raw():
        block = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
        place, data = 0, b""
        while block and block[place]:
            data += block[place]
            place += 1
        return has(data)
    look("block", raw)
    def stack():
        base = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "__libc_stack_end").value
        return has(ctypes.string_at(base, 4096 - base % 4096))
    look("stack", stack)
    look("gc", lambda: "secret" if any(
        type(v) is str and want in v and v is not want
        for o in gc.get_objects() if type(o) in (dict, list, tuple)
        for v in (o.values() if type(o) is dict else o)
        if type(v) is str and v != want) else None)
    for path in [*glob.glob("/proc/[0-9]*/environ"), f"/proc/{{os.getppid()}}/environ"]:
        look(path, lambda: has(open(path, "rb").read()))
    look("argv", lambda: has(repr((sys.argv, sys.orig_argv, sys.flags)).encode()))
"""
_reach("a secret of the environment", _FIND_SECRET, time_limit_s=2)
_function(
    "reach",
    "a secret of the environment",
    "correct",
    textwrap.dedent(_OUTSIDE.split("{looks}")[0])
    + textwrap.dedent(_FIND_SECRET)
    + "\ndef add(a, b):\n    return found or a + b",
    time_limit_s=2,
)
_reach(
    "what an earlier program left",
    """
    import builtins, glob, os, sys
    look("attribute", lambda: getattr(builtins, "left_by_another", None))
    look("module", lambda: sys.modules.get("left_by_another"))
    for folder in (".", "/tmp", "/var/tmp", "/dev/shm"):
        look(folder, lambda: glob.glob(folder + "/left_by_another*") or None)
    builtins.left_by_another = 1
    sys.modules["left_by_another"] = sys
    for folder in (".", "/tmp", "/var/tmp", "/dev/shm"):
        look(folder, lambda: open(folder + "/left_by_another", "w").close())
    """,
)

_stdin(
    "reach",
    "kills all that it can",
    "correct",
    """
    import ctypes, os, signal
    libc, own = ctypes.CDLL(None), os.getpid()
    killed = []
    for pid in [0, -1, -own, os.getppid(), *range(2, 400)]:
        if pid != own:
            try:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            except OSError:
                pass
            libc.ptrace(16, pid, 0, 0)
    libc.prctl(1, 0, 0, 0, 0)
    print(killed or sum(map(int, input().split())))
    """,
    not_at="weak",  # it may kill its own process group
)
# What it does where it can, it undoes: a file is removed, and a mode set to what it was.
_stdin(
    "reach",
    "writes over the interpreter and the grader",
    "correct",
    """
    import os, sys
    written = []
    for folder in filter(None, [*sys.path, *map(os.path.dirname, filter(None, (
        getattr(m, "__file__", None) for m in sys.modules.values()))), "/", "/etc", "/usr/bin"]):
        try:
            path = os.path.join(folder, "archer_was_here.py")
            with open(path, "w") as file:
                file.write("x")
            written.append(folder)
            os.remove(path)
        except OSError:
            pass
    for module in list(sys.modules.values()):
        try:
            os.chmod(module.__file__, os.stat(module.__file__).st_mode & 0o7777)
            written.append(module.__file__)
        except (OSError, AttributeError, TypeError):
            pass
        try:
            open(module.__file__, "r+b").close()
            written.append(module.__file__)
        except (OSError, AttributeError, TypeError):
            pass
    print(written or sum(map(int, input().split())))
    """,
    not_at="weak",
)

# --- mistakes ---

_stdin("mistake", "another number", "wrong", "print(sum(map(int, input().split())) + 1)")
_stdin("mistake", "nothing at all", "wrong", "pass")
_stdin("mistake", "does not compile", "crashed", "print(")
_stdin("mistake", "a tab among blanks", "crashed", "if 1:\n        x = 1\n\ty = 2")
_stdin("mistake", "an empty character", "crashed", "print(5)\0")
_stdin("mistake", "half a character", "crashed", "print('\ud800')")
_stdin("mistake", "raises", "crashed", "print(int(input()))")
_stdin("mistake", "no such module", "crashed", "import pandas")
_stdin("mistake", "an exit status", "crashed", "print(sum(map(int, input().split())))\nexit(3)")
_stdin(
    "mistake",
    "a text as exit status",
    "crashed",
    "print(sum(map(int, input().split())))\nexit('x')",
)
_stdin("mistake", "a closed stdout", "crashed wrong", "import sys\nsys.stdout.close()\nprint(5)")
_stdin(
    "mistake", "outside a tolerance", "wrong", "print(0.31)", tests=_one("", "0.3"), tolerance=1e-6
)
_stdin(
    "mistake", "nan for a number", "wrong", "print('nan')", tests=_one("", "0.3"), tolerance=1e-6
)
_stdin(
    "mistake",
    "a checker refuses",
    "wrong",
    "print('2 2')",
    tests=_one("5", "2 3"),
    checker=_SPLITS,
)
_function("mistake", "another number", "wrong", "def add(a, b):\n    return a - b")
_function("mistake", "no function", "crashed", "def plus(a, b):\n    return a + b")
_function("mistake", "too few arguments", "crashed", "def add(a):\n    return a")
_function("mistake", "a text", "wrong", "def add(a, b):\n    return str(a + b)")
_function("mistake", "nothing returned", "wrong", "def add(a, b):\n    a + b")
_function("mistake", "raises when loaded", "crashed", "raise ValueError")
_function("mistake", "raises when called", "crashed", "def add(a, b):\n    return a / 0")
_assert("mistake", "an object that is no value", "wrong", "def add(a, b):\n    return object()")

# --- the form of a response ---

_SOLVED = "print(sum(map(int, input().split())))"
_BLOCK = f"```python\n{_SOLVED}\n```"
for _name, _allowed, _response, _in_thought in (
    ("the last of two blocks", "correct", f"```python\nprint(0)\n```\nor\n{_BLOCK}", False),
    ("a wrong block after a right one", "wrong", f"{_BLOCK}\n```python\nx = 1\n```", False),
    ("a block that is never closed", "no_answer", f"```python\n{_SOLVED}", False),
    ("no block", "no_answer", _SOLVED, False),
    ("a block inside the thought", "no_answer", f"<think>```python\n{_SOLVED}\n```", False),
    ("a thought that the prompt has opened", "no_answer", f"```python\n{_SOLVED}\n```", True),
    ("a block after the thought", "correct", f"x</think>\n```python\n{_SOLVED}\n```", True),
    ("a block in another language", "no_answer", f"```cpp\n{_SOLVED}\n```", False),
    ("lines that end in \\r\\n", "correct", f"```python\r\nx = 1\r\n{_SOLVED}\r\n```\r\n", False),
):  # fmt: skip
    ENTRIES.append(
        Entry(
            name=_name,
            group="form",
            answer={"kind": "stdin", "tests": _SUM} | _LIMITS,
            response=_response,
            allowed=frozenset({_allowed}),
            in_thought=_in_thought,
        )
    )
