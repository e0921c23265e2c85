"""What a forked child does: runs a program on its input, calls it, tests it, checks for it.

Descriptor 3 is the channel to the trusted side, a JSON value a line each way; 0, 1 and 2 are the
program's own. In the roles "stdin" and "call" the program is the untrusted one, and so is then all
that is said on its channel: no line of it is a verdict. In the roles "test" and "check" the code is
the problem's, in a process of its own, and reaches the program's values only as base types.

    stdin   runs the program as `python solution.py` does, to the end of threads and atexit
    call    loads the program as a module, then answers requests: call this with that
    test    runs assert statements; names that they don't define are the program's
    check   a function `check(input, output, expected)`, for problems with many right answers

"livecodebench:stdin" and "livecodebench:call" run programs under what LiveCodeBench's official
runner sets up for them: its imports, its recursion limit, its longest number.
"""

from __future__ import annotations

import atexit
import builtins
import json
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from archer.verify.sandbox import leetcode
from archer.verify.sandbox.values import Coded, decode, encode, refuse

if TYPE_CHECKING:
    import ast  # loaded by test code alone: each module more makes every fork dearer

CHANNEL = 3
FILE_NAME = "solution.py"
MAX_TEXT = 300
"""Characters of a message that are told."""
RUNNER_DEPTH, RUNNER_DIGITS = 50_000, 50_000
"""Calls within calls and digits of a number that is written, as LiveCodeBench's runner has it."""


def run_role(role: str, seed: int) -> NoReturn:
    """Does what the role says and ends the process, whatever happens in it."""
    try:
        random.seed(seed)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(seed)
        _open_streams()
        channel = Channel()
        source = channel.receive()
        channel.send({"ready": True})
        ROLES[role](channel, source)
    finally:
        os._exit(1)


class Channel:
    """Lines of JSON to and from the trusted side."""

    def __init__(self) -> None:
        self._received = bytearray()

    def receive(self) -> Any:
        """The next message; ends the process where there is none."""
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            chunk = os.read(CHANNEL, 1 << 16)
            if not chunk:
                os._exit(0)
            self._received += chunk
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return json.loads(line)

    def send(self, message: Any, mark: bytes = b"") -> None:
        """A message as one line."""
        left = memoryview(mark + json.dumps(message).encode() + b"\n")
        while left:
            left = left[os.write(CHANNEL, left) :]


def _open_streams() -> None:
    for number, mode, name in ((0, "r", "stdin"), (1, "w", "stdout"), (2, "w", "stderr")):
        errors = "backslashreplace" if name == "stderr" else "surrogateescape"
        stream = open(number, mode, encoding="utf-8", errors=errors, closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _module(name: str) -> ModuleType:
    module = ModuleType(name)
    module.__file__ = FILE_NAME
    module.__dict__["__builtins__"] = builtins
    sys.modules[name] = module
    sys.argv = [FILE_NAME]
    return module


def _said(fault: BaseException) -> str:
    if type(fault) is Raised:
        return str(fault)[:MAX_TEXT]
    try:
        text = str(fault)
    except BaseException:  # noqa: BLE001 - an exception of the program's own
        text = ""
    return f"{type(fault).__name__}: {text}"[:MAX_TEXT]


# --- stdin ---


def _run(channel: Channel, source: str, names: dict[str, Any] | None = None) -> None:
    module = _module("__main__")
    if names:
        module.__dict__["__builtins__"] = vars(builtins) | names
    status, fault = 0, ""
    try:
        exec(compile(source, FILE_NAME, "exec", dont_inherit=True), module.__dict__)
    except SystemExit as end:
        status = _exit_status(end)
    except BaseException as raised:  # noqa: BLE001 - told as Python tells it
        status, fault = 1, _said(raised)
        raised = raised.with_traceback(raised.__traceback__ and raised.__traceback__.tb_next)
        traceback.print_exception(raised, limit=-20)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    status = _flush(status)
    for name in [*module.__dict__]:  # files that only the program holds are flushed by their end
        module.__dict__[name] = None
    status = _flush(status)
    with suppress(OSError):  # a program may close all descriptors that it does not know
        channel.send({"raised": fault})
    os._exit(status)


def _flush(status: int) -> int:
    """Writes out the standard streams; the exit status, which is 120 where that fails."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            stream.flush()  # type: ignore[union-attr]
        except (OSError, ValueError, AttributeError):
            status = status or 120 * (stream is sys.__stdout__ and not _is_closed(stream))
    return status


def _is_closed(stream: Any) -> bool:
    return bool(getattr(stream, "closed", True))


def _exit_status(end: SystemExit) -> int:
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code & 0xFF
    print(end.code, file=sys.stderr)
    return 1


# --- call ---


class _Program:
    """A program as a module, and those of its objects that someone outside has a number for."""

    def __init__(self, source: str, names: dict[str, Any]) -> None:
        module = _module("solution")
        self.names = module.__dict__
        # Behind its own names, not among them: a program that does not define `gcd` has no `gcd`.
        self.names["__builtins__"] = vars(builtins) | leetcode.program_names(source) | names
        self._objects: list[object] = []
        exec(compile(source, FILE_NAME, "exec", dont_inherit=True), self.names)

    def find(self, name: str) -> Callable[..., object]:
        """The function of this name, or the method of a fresh `Solution`. KeyError without it."""
        owner, _, method = name.rpartition(".")
        if owner and owner in self.names:
            return getattr(self.names[owner](), method)  # type: ignore[no-any-return]
        if method in self.names:
            return self.names[method]  # type: ignore[no-any-return]
        if "Solution" in self.names and hasattr(self.names["Solution"], method):
            return getattr(self.names["Solution"](), method)  # type: ignore[no-any-return]
        raise KeyError(name)

    def object_at(self, path: list[str | int]) -> Any:
        """What ["Solution", "f"] or [number, "f"] leads to."""
        first, *rest = path
        if isinstance(first, str) and first not in self.names:
            raise NameError(f"the program has no {first}")
        found = self.names[first] if isinstance(first, str) else self._objects[first]
        for name in rest:
            found = getattr(found, str(name))
        return found

    def refer(self, value: object) -> Coded:
        """A tag for an object that can't cross."""
        self._objects.append(value)
        return {"object": len(self._objects) - 1}

    def nodes(self) -> tuple[Any, Any]:
        """The program's classes for list and tree nodes."""
        get = self.names.get
        return get("ListNode", leetcode.ListNode), get("TreeNode", leetcode.TreeNode)


def _serve_calls(channel: Channel, source: str, names: dict[str, Any] | None = None) -> None:
    try:
        program = _Program(source, names or {})
    except BaseException as fault:  # noqa: BLE001 - SystemExit too: nothing is left to be called
        channel.send({"raised": _said(fault)})
        return
    channel.send({"loaded": True})
    while True:
        request = channel.receive()
        if "name" not in request:
            channel.send(_do(channel, program, request))
            continue
        for arguments in request["tests"]:
            begin = time.process_time()
            reply = _answer(program, request["name"], arguments)
            channel.send({**reply, "seconds": time.process_time() - begin})


def _answer(program: _Program, name: str, arguments: list[Any]) -> dict[str, Coded]:
    """One test: a call with arguments that were written as plain JSON."""
    try:
        function = program.find(name)
    except KeyError:
        return {"raised": f"NameError: the program has no {name}"}
    except BaseException as fault:  # noqa: BLE001 - Solution() may raise
        return {"raised": _said(fault)}
    hints = getattr(function, "__annotations__", {})
    try:
        result = function(*_as_hinted(arguments, function, hints, program))
    except BaseException as fault:  # noqa: BLE001 - the program's
        return {"raised": _said(fault)}
    try:
        if result is None and "Node" in str(hints.get("return", "")):
            return {"value": []}  # as LeetCode writes an empty list or tree
        return {"value": encode(result)}
    except BaseException as fault:  # noqa: BLE001 - the program's objects
        return {"unreadable": _said(fault)}


def _as_hinted(
    arguments: list[Any], function: Any, hints: dict[str, Any], program: _Program
) -> list[Any]:
    """Arguments with lists made into the nodes that the function's annotations ask for."""
    code = getattr(getattr(function, "__wrapped__", function), "__code__", None)
    if not hints or code is None:
        return arguments
    skipped = int(hasattr(function, "__self__"))
    names = code.co_varnames[skipped : code.co_argcount]
    made = []
    for place, argument in enumerate(arguments):
        hint = str(hints.get(names[place], "")) if place < len(names) else ""
        made.append(_as_node(argument, hint, program.nodes()))
    return made


def _as_node(argument: Any, hint: str, nodes: tuple[Any, Any]) -> Any:
    for name, node, build in (("ListNode", nodes[0], _linked), ("TreeNode", nodes[1], _tree)):
        if name in hint and isinstance(argument, list):
            if "List[" in hint or "list[" in hint:
                return [build(item or [], node) for item in argument]
            return build(argument, node)
    return argument


def _linked(values: list[Any], node: Any) -> Any:
    return decode({"list_node": values}, (node, node))


def _tree(values: list[Any], node: Any) -> Any:
    return decode({"tree_node": values}, (node, node))


def _do(channel: Channel, program: _Program, request: Any) -> Coded:
    """One request of a test: call, iterate, measure or index what a path leads to."""

    def callback(number: int) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            channel.send({"callback": number, "arguments": encode(list(arguments), program.refer)})
            return read(channel.receive()["value"])

        return call

    def read(coded: Coded) -> Any:
        return decode(
            coded,
            program.nodes(),
            {"at": program.object_at, "callback": callback, "builtin": _builtin},
        )

    arguments: list[Any] = []
    try:
        target = program.object_at(request["at"])
        arguments = read(request["arguments"])
        before = [_told(argument) for argument in arguments]
        value = _ACTIONS[request["do"]](target, arguments, read(request["keywords"]))
    except BaseException as fault:  # noqa: BLE001 - the program's
        return {"raised": _said(fault)}
    try:
        told = [_told(argument) for argument in arguments]
        changed = [[i, new] for i, new in enumerate(told) if new != before[i]]
        return {"value": encode(value, program.refer), "changed": changed}
    except BaseException as fault:  # noqa: BLE001 - the program's objects
        return {"raised": _said(fault)}


def _builtin(name: str) -> object:
    return getattr(builtins, name)


def _told(argument: object) -> Coded:
    try:
        return encode(argument)
    except TypeError:
        return None


def _next(iterator: Any, _: Any, __: Any) -> object:
    """Up to so many items at once: ([items], whether that was all)."""
    items: list[object] = []
    for item in iterator:
        items.append(item)
        if len(items) == ITEMS_AT_ONCE:
            return (items, False)
    return (items, True)


ITEMS_AT_ONCE = 100
_ACTIONS: dict[str, Callable[[Any, Any, Any], object]] = {
    "call": lambda target, arguments, keywords: target(*arguments, **keywords),
    "iter": lambda target, _, __: _Kept(iter(target)),
    "next": _next,
    "len": lambda target, _, __: len(target),
    "item": lambda target, arguments, _: target[arguments[0]],
    "set": lambda target, arguments, _: setattr(target, *arguments),
    "get": lambda target, _, __: target,
}


class _Kept:
    """An iterator that crosses as a reference, never as what it yields."""

    def __init__(self, iterator: Iterator[object]) -> None:
        self._iterator = iterator

    def __iter__(self) -> Iterator[object]:
        return self._iterator


# --- test ---


class Raised(Exception):
    """The program raised this in a call."""


def _test(channel: Channel, request: Any) -> None:
    """Runs the test code; one line at the end, marked, says how far it got."""
    _Tests(channel).run(request["code"], request["partial"])


class _Tests:
    """Test code, the program that it reaches over the channel, and what it found."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._callbacks: list[Callable[..., object]] = []
        self.calls = 0

    def run(self, code: str, partial: bool) -> None:
        """Runs statement by statement; with `partial` a failed assert does not end it."""
        import ast

        passed = failed = 0
        detail, kind = "", ""
        try:
            tree = ast.parse(code)
            names = leetcode.test_names() | {"__name__": "tests"}
            for name in free_names(code):
                names.setdefault(name, Remote(self, [name]))
            for statement in tree.body:
                block = compile(ast.Module([statement], []), "tests.py", "exec")
                try:
                    exec(block, names)
                    passed += isinstance(statement, ast.Assert)
                except BaseException as fault:  # noqa: BLE001 - told by its kind
                    failed += 1
                    if not kind:
                        detail, kind = _describe(fault, statement), self._kind(fault)
                    if not (partial and isinstance(statement, ast.Assert)):
                        break
        except (SyntaxError, ValueError, RecursionError, MemoryError) as fault:
            failed, detail, kind = 1, _said(fault), "test"
        if not failed and not self.calls:
            detail, kind = "the test code never calls the program", "test"
        elif not failed and not can_fail(tree):
            detail, kind = "the test code asserts nothing", "test"
        told = {"passed": passed, "failed": failed, "detail": detail, "kind": kind}
        self._channel.send(told, mark=b"!")
        self._channel.receive()

    def _kind(self, fault: BaseException) -> str:
        if isinstance(fault, Raised):
            return "raised"
        return "wrong" if self.calls else "test"

    def ask(self, do: str, at: list[Any], arguments: Any = (), keywords: Any = None) -> Any:
        """Has the program's process do something; returns its value or raises what it raised."""
        self.calls += 1
        self._channel.send(
            {
                "do": do,
                "at": at,
                "arguments": encode(list(arguments), self._refer),
                "keywords": encode(keywords or {}, self._refer),
            }
        )
        while "callback" in (reply := self._channel.receive()):
            value = self._callbacks[reply["callback"]](*self._read(reply["arguments"]))
            self._channel.send({"value": encode(value, self._refer)})
        if "raised" in reply:
            raise _as_raised(str(reply["raised"]))
        for place, coded in reply.get("changed", ()):
            _change(arguments[place], self._read(coded))
        return self._read(reply["value"])

    def _refer(self, value: object) -> Coded:
        if type(value) is Remote:
            return {"at": value._path}
        name = getattr(value, "__name__", "")
        if name and getattr(builtins, name, None) is value:
            return {"builtin": name}
        if callable(value):
            self._callbacks.append(value)
            return {"callback": len(self._callbacks) - 1}
        return refuse(value)

    def _read(self, coded: Coded) -> Any:
        nodes = (leetcode.ListNode, leetcode.TreeNode)
        return decode(coded, nodes, {"object": lambda number: Remote(self, [int(number)])})


class Remote:
    """An object of the program, as the test code sees it.

    It can be called, iterated, measured and indexed; its attributes are such objects and can be
    set. Compared, or asked whether it is true, is the value that crosses; where none does that
    fails: what can't be seen can't pass a test.
    """

    __hash__ = None  # type: ignore[assignment]
    _tests: _Tests
    _path: list[Any]

    def __init__(self, tests: _Tests, path: list[Any]) -> None:
        self.__dict__.update(_tests=tests, _path=path)

    def __call__(self, *arguments: object, **keywords: object) -> Any:
        return self._tests.ask("call", self._path, arguments, keywords)

    def __getattr__(self, name: str) -> Remote:
        if name.startswith("__"):
            raise AttributeError(name)
        return Remote(self._tests, [*self._path, name])

    def __setattr__(self, name: str, value: object) -> None:
        self._tests.ask("set", self._path, [name, value])

    def __iter__(self) -> Iterator[Any]:
        iterator = self._tests.ask("iter", self._path)
        done = False
        while not done:
            items, done = self._tests.ask("next", iterator._path)
            yield from items

    def __len__(self) -> int:
        return int(self._tests.ask("len", self._path))

    def __getitem__(self, place: object) -> Any:
        return self._tests.ask("item", self._path, [place])

    def _value(self) -> Any:
        value = self._tests.ask("get", self._path)
        if type(value) is Remote:
            raise TypeError("an object of the program can't be compared, nor is it true or false")
        return value

    def __eq__(self, other: object) -> Any:
        return self._value() == other

    def __ne__(self, other: object) -> Any:
        return self._value() != other

    def __lt__(self, other: object) -> Any:
        return self._value() < other

    def __le__(self, other: object) -> Any:
        return self._value() <= other

    def __gt__(self, other: object) -> Any:
        return self._value() > other

    def __ge__(self, other: object) -> Any:
        return self._value() >= other

    def __bool__(self) -> bool:
        return bool(self._value())


def can_fail(tree: ast.AST) -> bool:
    """Whether test code asserts anything, in a statement or by a function such as assertEqual."""
    import ast

    for node in ast.walk(tree):
        name = getattr(node, "attr", None) or getattr(node, "id", None) or ""
        if isinstance(node, ast.Assert | ast.Raise) or name.startswith(("assert", "fail")):
            return True
    return False


def free_names(code: str) -> set[str]:
    """Names that code uses and never defines."""
    import symtable

    top = symtable.symtable(code, "tests.py", "exec")
    defined = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    used: set[str] = set()
    tables = [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        used |= {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_referenced() and (symbol.is_global() or table is top)
        }
    return {name for name in used - defined if not hasattr(builtins, name)}


def _as_raised(said: str) -> Raised:
    """The program's exception, as one that the test code can catch by its builtin name."""
    name, _, text = said.partition(": ")
    base = getattr(builtins, name, None)
    is_end = base in (StopIteration, StopAsyncIteration)  # to `map` it would be the end, no fault
    if isinstance(base, type) and issubclass(base, Exception) and not is_end:
        try:
            made: Raised = type(name, (Raised, base), {})(text)
            return made
        except TypeError:  # its __init__ wants more than a text
            pass
    return Raised(said)


def _describe(fault: BaseException, statement: ast.stmt) -> str:
    import ast

    if isinstance(fault, AssertionError) and isinstance(statement, ast.Assert):
        return f"failed: {ast.unparse(statement)}"[:MAX_TEXT]
    return _said(fault)


def _change(old: Any, new: Any) -> None:
    """Does to an argument what the program did to its copy of it."""
    if isinstance(old, list | bytearray):
        old[:] = new
    elif isinstance(old, dict | set):
        old.clear()
        old.update(new)
    elif isinstance(old, leetcode.ListNode | leetcode.TreeNode):
        old.__dict__.update(new.__dict__)


# --- check ---


def _check(channel: Channel, source: str) -> None:
    """Answers {"input", "output", "expected"} with whether the output is right."""
    names: dict[str, Any] = leetcode.test_names() | {"__name__": "checker"}
    try:
        exec(compile(source, "checker.py", "exec", dont_inherit=True), names)
        check = names["check"]
    except BaseException as fault:  # noqa: BLE001 - the problem's
        channel.send({"raised": _said(fault)})
        return
    channel.send({"loaded": True})
    while True:
        asked = channel.receive()
        nodes = (leetcode.ListNode, leetcode.TreeNode)
        try:
            output = decode(asked["output"], nodes)
            right = check(asked["input"], output, asked["expected"])
            if type(right).__module__ == "numpy":
                right = right.item()
            if type(right) not in (bool, int):
                raise TypeError(f"check returned {right!r}, neither true nor false")
            channel.send({"right": right == 1})
        except BaseException as fault:  # noqa: BLE001 - the problem's
            channel.send({"raised": _said(fault)})


# --- as LiveCodeBench's runner ---


def _as_runner(source: str) -> dict[str, Any]:
    """Sets this process up as the runner does; returns the names that it imports for programs."""
    sys.setrecursionlimit(RUNNER_DEPTH)
    sys.set_int_max_str_digits(RUNNER_DIGITS)
    return leetcode.runner_names(source)


ROLES: dict[str, Callable[[Channel, Any], None]] = {
    "stdin": _run,
    "call": _serve_calls,
    "livecodebench:stdin": lambda channel, source: _run(channel, source, _as_runner(source)),
    "livecodebench:call": lambda channel, source: _serve_calls(channel, source, _as_runner(source)),
    "test": _test,
    "check": _check,
}
