"""Programs and their verdicts: what each kind of problem accepts, and how failures are called."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest

from archer.types import Problem, Verdict
from archer.verify.code import chosen_tests, judge_program, same_tokens, same_value
from archer.verify.policy import Level, Policy
from archer.verify.sandbox.client import Limits, Sandbox
from archer.verify.sandbox.servers import STACK_BYTES
from archer.verify.verifiers import verify
from tests.needs import needs_sandbox
from tests.verify.processes import sandbox_processes

pytestmark = needs_sandbox

ADD = {
    "kind": "stdin",
    "tests": [{"input": "2 3", "output": "5"}, {"input": "1 1\n", "output": "2\n"}],
}
ADD_CALL = {
    "kind": "call",
    "name": "add",
    "tests": [{"input": [2, 3], "output": 5}, {"input": [1, 1], "output": 2}],
}
ADD_ASSERT = {"kind": "assert", "code": "assert add(2, 3) == 5\nassert add([1], [2]) == [1, 2]"}
PATIENT = Policy(cpu_seconds=2.0)
"""Enough on a slow machine for what ends."""
QUICK = Policy(cpu_seconds=0.5)
"""For what never ends."""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as opened:
        yield opened


def problem(answer: dict[str, Any], id: str = "p") -> Problem:
    return Problem(id=id, prompt="?", verifier="code", answer=answer)


def judged(
    sandbox: Sandbox, answer: dict[str, Any], program: str, policy: Policy = PATIENT
) -> Verdict:
    return judge_program(problem(answer), program, policy, sandbox)


def limits() -> Limits:
    return Limits(cpu_seconds=0.5, wall_seconds=9.0, memory_mb=512, output_bytes=1 << 20)


def calls(name: str, *tests: tuple[list[Any], Any], **more: Any) -> dict[str, Any]:
    rows = [{"input": given, "output": output} for given, output in tests]
    return {"kind": "call", "name": name, "tests": rows, **more}


# --- what is right and what is not ---


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        (ADD, "print(sum(map(int, input().split())))"),
        (ADD, "import sys\na, b = map(int, open(0).read().split())\nsys.stdout.write(f'{a + b}')"),
        (ADD, "if __name__ == '__main__':\n    print(sum(map(int, input().split())))\n    exit()"),
        (ADD_CALL, "def add(a, b):\n    return a + b"),
        (ADD_CALL, "class Solution:\n    def add(self, a, b):\n        return a + b"),
        (ADD_CALL, "from operator import add"),
        (ADD_CALL, "def add(a, b):\n    return a + b\nif __name__ == '__main__':\n    input()"),
        ({**ADD_CALL, "name": "Solution.add"}, "def add(a, b):\n    return a + b"),
        (ADD_ASSERT, "def add(a, b):\n    return a + b"),
    ],
)
def test_a_right_program_is_correct(sandbox: Sandbox, answer: dict[str, Any], program: str) -> None:
    verdict = judged(sandbox, answer, program)
    assert (verdict.outcome, verdict.score, verdict.sandbox) == ("correct", 1.0, sandbox.level)


@pytest.mark.parametrize(
    ("program", "outcome", "detail"),
    [
        ("print(5)", "wrong", "test 2 of 2: 5 is not 2"),
        ("pass", "wrong", "test 1 of 2"),
        ("x = (", "crashed", "SyntaxError"),
        ("print(5)\nraise ValueError('no')", "crashed", "ValueError: no"),
        ("print(5)\nimport sys\nsys.exit(3)", "crashed", "exit status 3"),
        ("import ctypes\nctypes.string_at(0)", "crashed", "killed by signal 11"),
        ("while True: pass", "limit", "more than 2 s of CPU time"),
        ("while True: print('y' * 10**5)", "limit", "too much output"),
        ("x = bytearray(10**10)", "limit", "MemoryError"),
    ],
)
def test_every_failure_has_its_name(
    sandbox: Sandbox, program: str, outcome: str, detail: str
) -> None:
    verdict = judged(sandbox, ADD, program)
    assert (verdict.outcome, verdict.score) == (outcome, 0.0)
    assert detail in verdict.detail


def test_a_program_that_sleeps_is_ended_by_the_wall_clock(sandbox: Sandbox) -> None:
    verdict = judged(sandbox, ADD, "import time\ntime.sleep(60)", QUICK)
    assert verdict.outcome == "limit" and "no end within 4 s" in verdict.detail


@pytest.mark.parametrize("answer", [ADD_CALL, ADD_ASSERT])
@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("def add(a, b): pass", "wrong"),
        ("def sub(a, b): return a + b", "crashed"),
        ("", "crashed"),
        ("def add(a, b): return {}[a]", "crashed"),
        ("def add(a, b): raise SystemExit(0)", "crashed"),
        ("import os\ndef add(a, b): os._exit(0)", "crashed"),
        ("class E:\n    def __eq__(self, o): return True\ndef add(a, b): return E()", "wrong"),
        ("class E(int):\n    __eq__ = lambda s, o: True\ndef add(a, b): return E(7)", "wrong"),
        ("def add(a, b):\n    while True: pass", "limit"),
        ("def add(a, b): return bytearray(10**10)", "limit"),
    ],
)
def test_a_function_that_is_not_right_is_never_correct(
    sandbox: Sandbox, answer: dict[str, Any], program: str, outcome: str
) -> None:
    assert judged(sandbox, answer, program).outcome == outcome


@pytest.mark.parametrize("name", ["gcd", "add", "reduce", "count", "deque", "heapify", "randint"])
def test_a_name_that_is_imported_for_everyone_solves_nothing(sandbox: Sandbox, name: str) -> None:
    found = {
        kind: judged(sandbox, answer, "pass").outcome
        for kind, answer in {
            "call": calls(name, ([4, 6], 2)),
            "assert": {"kind": "assert", "code": f"assert {name}(4, 6) == 2"},
        }.items()
    }
    assert found == {"call": "crashed", "assert": "crashed"}


def test_programs_that_are_called_find_what_leetcode_imports_for_them(sandbox: Sandbox) -> None:
    program = """
class Solution:
    def f(self, values: List[int]) -> Optional[int]:
        counts, heap = Counter(values), []
        for value in values:
            heappush(heap, -value)
        @cache
        def power(n): return pow(2, n, 1000) + gcd(n, n) + bisect_left([1, 2], n)
        return [counts[1], heappop(heap), power(3), min(inf, 1.5), SortedList([2])[0]]
"""
    answer = calls("Solution.f", ([[1, 1, 3]], [2, -3, 13, 1.5, 2]))
    assert judged(sandbox, answer, "import sortedcontainers" + program).outcome == "correct"
    assert judged(sandbox, {**ADD}, "print(gcd(2, 3))").outcome == "crashed"  # not by stdin


def test_lists_and_trees_are_made_where_the_annotations_ask_for_them(sandbox: Sandbox) -> None:
    program = """
class Solution:
    def turned(self, head: Optional[ListNode]) -> Optional[ListNode]:
        last = None
        while head:
            head.next, last, head = last, head, head.next
        return last
    def mirror(self, root: 'TreeNode | None') -> 'TreeNode | None':
        if root:
            root.left, root.right = self.mirror(root.right), self.mirror(root.left)
        return root
    def merged(self, lists: List[Optional[ListNode]]) -> Optional[ListNode]:
        values = []
        for node in lists:
            while node:
                values.append(node.val)
                node = node.next
        first = None
        for value in sorted(values, reverse=True):
            first = ListNode(value, first)
        return first
"""
    for answer in (
        calls("Solution.turned", ([[1, 2, 3]], [3, 2, 1]), ([[]], [])),
        calls("Solution.mirror", ([[1, 2, 3, None, 4]], [1, 3, 2, None, None, 4]), ([[]], [])),
        calls("Solution.merged", ([[[1, 4], [], [2, 3]]], [1, 2, 3, 4])),
    ):
        assert judged(sandbox, answer, program).outcome == "correct"
    code = (
        "def check(candidate):\n"
        "    assert is_same_list(candidate(list_node([1, 2])), list_node([2, 1]))\n"
        "    assert candidate(None) is None\n"
        "check(Solution().turned)\n"
        "assert is_same_tree(Solution().mirror(tree_node([1, 2])), tree_node([1, None, 2]))"
    )
    assert judged(sandbox, {"kind": "assert", "code": code}, program).outcome == "correct"


def test_test_code_may_look_at_changed_arguments_iterators_callbacks_and_exceptions(
    sandbox: Sandbox,
) -> None:
    program = """
def order(x, seen):
    x.sort()
    seen[1] = {2}
def apply(f, x): return f(f(x))
def kept(values, kind): return [value for value in values if isinstance(value, kind)]
def items():
    yield from range(3)
def refuse(): raise ValueError("no")
class Stack:
    def __init__(self): self.kept = []
    def push(self, x): self.kept.append(x)
    def pop(self): return self.kept.pop()
"""
    code = """
x, seen = [3, 1, 2], {}
order(x, seen)
assert x == [1, 2, 3] and seen == {1: {2}}
assert apply(lambda n: n * 3, 2) == 18
assert apply(str, 2) == "2" and kept([1, "a"], int) == [1]
assert list(items()) == [0, 1, 2] and sum(items()) == 3
try:
    refuse()
except ValueError as fault:
    assert str(fault) == "no"
else:
    assert False
stack = Stack()
stack.push((1, "a"))
assert stack.pop() == (1, "a")
"""
    verdict = judged(sandbox, {"kind": "assert", "code": code}, program)
    assert verdict.outcome == "correct", verdict.detail
    assert judged(sandbox, {"kind": "assert", "code": code}, program + "items = len").outcome != (
        "correct"
    )


@pytest.mark.parametrize(
    "program",
    [
        "out = open(1, 'w')\nout.write('5')",
        "import os\nprint(5, file=(out := os.fdopen(1, 'w')))",
        "class Last:\n    def __del__(self): print(5)\nlast = Last()",
        "\ufeffprint(5)",
    ],
)
def test_a_program_ends_as_python_ends_it(sandbox: Sandbox, program: str) -> None:
    answer = {"kind": "stdin", "tests": [{"input": "", "output": "5"}]}
    verdict = judged(sandbox, answer, program)
    assert verdict.outcome == "correct", verdict.detail


def test_a_method_with_a_cache_is_given_the_nodes_that_it_asks_for(sandbox: Sandbox) -> None:
    program = """
class Solution:
    @cache
    def total(self, root: Optional[TreeNode]) -> int:
        return root.val + self.total(root.left) + self.total(root.right) if root else 0
"""
    verdict = judged(sandbox, calls("Solution.total", ([[1, 2, 3]], 6)), program)
    assert verdict.outcome == "correct", verdict.detail


def test_integers_cross_at_any_length(sandbox: Sandbox) -> None:
    fact = "def fact(n):\n    return n * fact(n - 1) if n else 1\ndef half(n): return n // 2"
    code = "assert fact(900) == math.factorial(900)\nassert half(-2 * 10**9000) == -(10**9000)"
    verdict = judged(sandbox, {"kind": "assert", "code": code}, fact)
    assert verdict.outcome == "correct", verdict.detail
    for result in ("10**9000", "[10**9000]", "{10**9000: 1}"):
        verdict = judged(sandbox, calls("f", ([], 5)), f"def f(): return {result}")
        assert verdict.outcome == "wrong", verdict.detail


def test_attributes_of_an_object_are_compared_by_what_crosses(sandbox: Sandbox) -> None:
    program = """
class Point:
    kind = "point"
    def __init__(self, x): self.x, self.seen, self.self = x, [], self
    def __eq__(self, other): return True
    __lt__ = __eq__
"""
    right = (
        "p = Point(2)\np.seen.append(1)\n"
        "assert p.x == 2 and p.x != 3 and 2 == p.x and p.x < 3 and 1 <= p.x\n"
        "assert p.seen == [1] and not Point(1).seen and Point.kind == 'point'"
    )
    verdict = judged(sandbox, {"kind": "assert", "code": right}, program)
    assert verdict.outcome == "correct", verdict.detail
    for wrong in ("Point(2).x == 3", "Point(2) == 3", "Point(2).self == 3", "Point(2) < 3"):
        verdict = judged(sandbox, {"kind": "assert", "code": f"assert {wrong}"}, program)
        assert verdict.outcome == "wrong", wrong


# --- several right answers ---


def test_floats_may_differ_only_where_the_problem_says_so(sandbox: Sandbox) -> None:
    third = {"kind": "stdin", "tests": [{"input": "", "output": "0.3333333 yes"}]}
    assert judged(sandbox, third, "print(1/3, 'yes')").outcome == "wrong"
    assert judged(sandbox, {**third, "tolerance": 1e-6}, "print(1/3, 'yes')").outcome == "correct"
    assert judged(sandbox, {**third, "tolerance": 1e-6}, "print(0.34, 'yes')").outcome == "wrong"
    tenths = calls("f", ([], [0.3]))
    assert judged(sandbox, tenths, "def f(): return [0.1 + 0.2]").outcome == "wrong"
    tolerant = {**tenths, "tolerance": 1e-9}
    assert judged(sandbox, tolerant, "def f(): return [0.1 + 0.2]").outcome == "correct"


def test_a_checker_decides_where_a_problem_has_one(sandbox: Sandbox) -> None:
    checker = "def check(input, output, expected):\n    return sorted(output) == sorted(expected)"
    permuted = calls("f", ([3], [0, 1, 2]), checker=checker)
    assert judged(sandbox, permuted, "def f(n): return [*range(n)][::-1]").outcome == "correct"
    assert judged(sandbox, permuted, "def f(n): return [0] * n").outcome == "wrong"
    unreadable = judged(sandbox, permuted, "def f(n): return n")
    assert unreadable.outcome == "wrong" and "can't read" in unreadable.detail
    by_text = {**ADD, "checker": "check = lambda i, o, e: int(o) == sum(map(int, i.split()))"}
    assert judged(sandbox, by_text, "print(eval('+'.join(input().split())))").outcome == "correct"
    assert judged(sandbox, by_text, "print('five')").outcome == "wrong"


# --- problems that are broken themselves ---

SOLVED = "def add(a, b):\n    return a + b\n"
BROKEN_TESTS = {
    "does not compile": "assert add(2, 3) ==",
    "imports what is not there": "import no_such_module\nassert add(2, 3) == 5",
    "never calls the program": "assert 2 + 3 == 5",
    "raises before a call": "1 / 0\nassert add(2, 3) == 5",
    "asserts nothing": "add(2, 3)\nprint(add(2, 3))",
    "spins before a call": "while True: pass\nassert add(2, 3) == 5",
    "ends itself": "import os\nadd(2, 3)\nos._exit(0)\nassert 0",
    "returns outside a function": "assert add(2, 3) == 5\nreturn",
    "is empty": "",
    "takes all memory": "x = [0] * 10**10\nassert add(2, 3) == 5",
}
BROKEN_CHECKERS = {
    "does not compile": "def check(",
    "has no check": "def chek(given, output, expected): return True",
    "raises when loaded": "1 / 0",
    "ends itself when it is loaded": "import os\nos._exit(0)",
    "raises when called": "def check(given, output, expected): return undefined",
    "takes no arguments": "def check(): return True",
    "spins": "def check(given, output, expected):\n    while True: pass",
    "ends itself": "import os\ndef check(given, output, expected): os._exit(0)",
    "says nothing": "def check(given, output, expected): output == expected",
    "says a text": "def check(given, output, expected): return 'no'",
}


@pytest.mark.parametrize("name", BROKEN_TESTS)
def test_broken_test_code_is_an_error(sandbox: Sandbox, name: str) -> None:
    answer = {"kind": "assert", "code": BROKEN_TESTS[name], "time_limit_s": 0.5}
    verdict = judged(sandbox, answer, SOLVED)
    assert verdict.outcome == "error", verdict


@pytest.mark.parametrize("kind", ["stdin", "call"])
@pytest.mark.parametrize("name", BROKEN_CHECKERS)
def test_a_broken_checker_is_an_error(sandbox: Sandbox, name: str, kind: str) -> None:
    answer = {"kind": kind, "name": "add", "checker": BROKEN_CHECKERS[name], "time_limit_s": 0.5}
    test = {"input": "", "output": "5"} if kind == "stdin" else {"input": [2, 3], "output": 5}
    verdict = judged(sandbox, answer | {"tests": [test]}, f"{SOLVED}print(add(2, 3))")
    assert verdict.outcome == "error", verdict


# --- the policy ---


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        (ADD, "print(5)"),
        (ADD_CALL, "def add(a, b): return 5"),
        (ADD_ASSERT, "def add(a, b): return 5"),
        (ADD_CALL, "import os\ndef add(a, b):\n    return 5 if a == 2 else os._exit(1)"),
    ],
)
def test_the_share_of_the_tests_is_the_score_where_it_is_asked_for(
    sandbox: Sandbox, answer: dict[str, Any], program: str
) -> None:
    assert judged(sandbox, answer, program).score == 0.0
    verdict = judged(sandbox, answer, program, replace(PATIENT, partial=True))
    assert verdict.score == 0.5 and verdict.outcome in ("wrong", "crashed")


@pytest.mark.parametrize("answer", [ADD, ADD_CALL])
def test_a_program_is_run_on_the_tests_that_are_chosen_and_on_no_others(
    sandbox: Sandbox, answer: dict[str, Any]
) -> None:
    (chosen,) = chosen_tests(problem(answer), 1)
    (other,) = [test for test in answer["tests"] if test is not chosen]
    for right, outcome in ((chosen, "correct"), (other, "wrong")):
        value = right["output"]
        program = f"print({value})" if answer is ADD else f"def add(a, b): return {value}"
        verdict = judged(sandbox, answer, program, replace(PATIENT, max_tests=1))
        assert verdict.outcome == outcome and "of 1" in verdict.detail
        assert judged(sandbox, answer, program, replace(PATIENT, max_tests=2)).outcome == "wrong"


def test_the_time_limit_is_for_each_test_and_counts_cpu_time(sandbox: Sandbox) -> None:
    spin = "import time\ndef f(x):\n    end = time.process_time() + x\n"
    spin += "    while time.process_time() < end: pass\n    return x"
    tests = [([seconds], seconds) for seconds in (0.3, 0.4, 0.35, 0.4)]
    assert judged(sandbox, calls("f", *tests, time_limit_s=1.0), spin).outcome == "correct"
    assert judged(sandbox, calls("f", *tests, time_limit_s=0.38), spin).outcome == "limit"
    slept = "import time\ndef f(x):\n    time.sleep(x)\n    return x"
    assert judged(sandbox, calls("f", *tests, time_limit_s=0.25), slept).outcome == "correct"


def test_a_slow_checker_costs_the_program_nothing(sandbox: Sandbox) -> None:
    spin = "import time\ndef f(x):\n    end = time.process_time() + x\n"
    spin += "    while time.process_time() < end: pass\n    return x"
    checker = "import time\ndef check(input, output, expected):\n"
    checker += "    time.sleep(0 if expected else 0.5)\n    return output == expected"
    tests = [([seconds], seconds) for seconds in (0, 0, 0, 0, *[0.15] * 12)]
    answer = calls("f", *tests, time_limit_s=0.5, checker=checker)
    verdict = judged(sandbox, answer, spin)
    assert verdict.outcome == "correct", verdict.detail


@pytest.mark.parametrize("drop", ["b' '", "b'1\\n'"])
def test_what_drips_on_the_channel_buys_no_time(sandbox: Sandbox, drop: str) -> None:
    drip = "import os, time\nwhile time.process_time() < 6:\n"
    drip += f"    for _ in range(1500): pass\n    os.write(3, {drop})\nprint(5)"
    answer = {"kind": "stdin", "tests": [{"input": "", "output": "5"}]}
    with sandbox.start("stdin", drip, limits()) as run:
        run.confirm()
        ending = run.finish()
    assert ending.reason == "cpu" and ending.cpu_seconds < 5  # by itself it stops at 6
    assert judged(sandbox, answer, drip, QUICK).outcome == "limit"


@pytest.mark.parametrize("byte", ["b' '", "b'\\n'"])
@pytest.mark.parametrize("answer", [ADD, ADD_CALL, ADD_ASSERT], ids=["stdin", "call", "assert"])
def test_a_program_that_keeps_talking_gains_no_time(
    sandbox: Sandbox, answer: dict[str, Any], byte: str
) -> None:
    loop = f"while True: os.write(3, {byte})"
    program = f"import os, time\ndef add(a, b):\n    {loop}\n"
    source = program if answer is not ADD else f"import os\n{loop}"
    verdict = judged(sandbox, answer, source, QUICK)
    assert verdict.outcome in ("wrong", "limit", "crashed")
    assert "no end" not in verdict.detail  # the wall clock is for what sleeps


def test_the_memory_limit_is_the_problems(sandbox: Sandbox) -> None:
    hungry = "x = bytearray(300 * 2**20)\nprint(sum(map(int, input().split())))"
    generous = Policy(cpu_seconds=20.0)  # on some machines fresh memory takes seconds
    assert judged(sandbox, ADD, hungry, generous).outcome == "correct"
    verdict = judged(sandbox, {**ADD, "memory_limit_mb": 256}, hungry, generous)
    assert verdict.outcome == "limit" and "MemoryError" in verdict.detail


# --- what is taken from a response ---


@pytest.mark.parametrize(
    ("response", "in_thought", "outcome"),
    [
        ("```python\nprint(sum(map(int, input().split())))\n```", False, "correct"),
        (
            "```python\nprint(0)\n```\n\n```py\nprint(sum(map(int, input().split())))\n```",
            False,
            "correct",
        ),
        ("<think>```python\nprint(sum(map(int, input().split())))\n```", False, "no_answer"),
        ("```python\nprint(sum(map(int, input().split())))\n```", True, "no_answer"),
        ("hm</think>\n```\nprint(sum(map(int, input().split())))\n```", True, "correct"),
        ("print(sum(map(int, input().split())))", False, "no_answer"),
        ("```python\nprint(sum(map(int, input().split())))", False, "no_answer"),
    ],
)
def test_the_last_complete_block_outside_the_thought_is_judged(
    response: str, in_thought: bool, outcome: str
) -> None:
    assert verify(problem(ADD), response, in_thought, PATIENT).outcome == outcome


def test_many_problems_of_assert_code_in_a_row_share_one_server(sandbox: Sandbox) -> None:
    for number in range(40):  # two runs at a time on one socket: each hears its own news
        program = f"def add(a, b): return {'a' if number % 2 else 'a + b'}  # {number}"
        outcome = judged(sandbox, ADD_ASSERT, program).outcome
        assert outcome == ("wrong" if number % 2 else "correct")


# --- when the sandbox fails ---


@pytest.mark.parametrize("place", [0, -1], ids=["the link", "the server below it"])
def test_a_fork_server_that_dies_loses_no_verdict(place: int) -> None:
    others = sandbox_processes()
    with Sandbox() as sandbox:
        assert judged(sandbox, ADD, "print(5)").outcome == "wrong"
        ours = [process for process in sandbox_processes() if process not in others]
        ours[place].kill()
        right = "print(sum(map(int, input().split())))"
        assert judged(sandbox, ADD, right).outcome == "correct"
        assert ours[place] not in sandbox_processes()


def test_a_fork_server_ends_with_the_process_above_it(needs_level: Callable[[Level], None]) -> None:
    needs_level("full")
    others = sandbox_processes()
    with Sandbox("full") as sandbox:
        assert judged(sandbox, ADD, "print(5)").outcome == "wrong"
        link, server = (process for process in sandbox_processes() if process not in others)
        link.kill()
        server.wait(30.0)  # by the kernel: the control socket is still open


def test_a_fork_server_has_a_large_stack_and_its_starter_keeps_its_own() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    own = 8 << 20 if hard == resource.RLIM_INFINITY else min(8 << 20, hard)
    large = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    said = "import resource\nprint(resource.getrlimit(resource.RLIMIT_STACK)[0])"
    answer = {"kind": "stdin", "tests": [{"input": "", "output": str(large)}]}
    resource.setrlimit(resource.RLIMIT_STACK, (own, hard))
    try:
        with Sandbox() as sandbox:
            assert judged(sandbox, answer, said).outcome == "correct"
        assert resource.getrlimit(resource.RLIMIT_STACK) == (own, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))


def test_a_server_that_ends_leaves_no_descriptor_of_a_run_that_heard_nothing() -> None:
    gc.collect()  # what other tests have left would close its descriptors between the two counts
    before = psutil.Process().num_fds()
    with Sandbox() as sandbox:
        unheard = sandbox.start("stdin", "", limits())
        with sandbox.start("stdin", "", limits()) as run:
            run.finish()
    unheard.close()
    assert psutil.Process().num_fds() == before


def test_without_a_sandbox_there_is_an_error_and_no_verdict(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError("namespaces are forbidden here")

    monkeypatch.setattr("archer.verify.sandbox.servers._map_users", fails)
    with Sandbox("full") as none, pytest.raises(OSError, match="forbidden"):
        judged(none, ADD, "print(5)")


def test_a_level_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="use one of auto, full, restricted, weak"):
        Sandbox("strong")


# --- comparing ---


@pytest.mark.parametrize(
    ("output", "expected", "tolerance", "same"),
    [
        (b"5\n", b"5", 0, True),
        (b" 5 \r\n\n", b"5\n", 0, True),
        (b"1 2\n3", b"1\n2 3\n", 0, True),
        (b"5 6", b"5", 0, False),
        (b"5", b"5 6", 0, False),
        (b"", b"", 0, True),
        (b"", b"5", 0, False),
        (b"5.0", b"5", 0, False),
        (b"5.0", b"5", 1e-9, True),
        (b"0.3333333", b"0.3333334", 1e-6, True),
        (b"0.333", b"0.3333334", 1e-6, False),
        (b"1e3 x", b"1000 x", 1e-6, True),
        (b"1e3 x", b"1000 y", 1e-6, False),
        (b"nan", b"0.5", 1e9, False),
        (b"inf", b"0.5", 1e-6, False),
        (b"inf", b"inf", 1e-9, True),
        (b"1_0", b"10", 1e-6, False),
        (b"YES", b"yes", 0, False),
        ("é".encode(), "é".encode(), 0, True),
        (b"\xff\xfe", b"\xff\xfe", 0, True),
    ],
)
def test_outputs_are_the_same_by_their_words(
    output: bytes, expected: bytes, tolerance: float, same: bool
) -> None:
    assert same_tokens(output, expected, tolerance) is same


@pytest.mark.parametrize(
    ("value", "expected", "tolerance", "same"),
    [
        (5, 5, 0, True),
        (5, 6, 0, False),
        ((1, (2,)), [1, [2]], 0, True),
        ([1, 2], [1], 0, False),
        ([1], [1, 2], 0, False),
        ({1: "a"}, {"1": "a"}, 0, True),
        ({1: "a", None: 2}, {"1": "a", "null": 2}, 0, True),
        ({1: "a", "1": "a"}, {"1": "a"}, 0, False),
        ({1: "a", "1": "b"}, {"1": "b"}, 0, False),
        ({"a": (1,)}, {"a": [1]}, 0, True),
        ({"a": 1}, {"a": 1, "b": 2}, 0, False),
        ({1, 2}, [1, 2], 0, False),
        ("5", 5, 0, False),
        (None, None, 0, True),
        (2, 2.0, 0, True),
        (None, 0, 0, False),
        (None, [], 0, False),
        (float("nan"), float("nan"), 0, True),
        (0.1 + 0.2, 0.3, 0, False),
        (0.1 + 0.2, 0.3, 1e-9, True),
        ([[0.1 + 0.2]], [[0.3]], 1e-9, True),
        (True, 0.9999999, 1e-3, False),
        (10**400, 1.0, 1e-6, False),
        (10**400, 10**400, 1e-6, True),
        (b"x", "x", 0, False),
        (range(3), [0, 1, 2], 0, False),
    ],
)
def test_results_are_compared_as_json_would_write_them(
    value: Any, expected: Any, tolerance: float, same: bool
) -> None:
    assert same_value(value, expected, tolerance) is same


def test_chosen_tests_are_the_same_for_all_samples_and_stay_in_order() -> None:
    tests = [{"input": str(number), "output": ""} for number in range(20)]

    def chosen(id: str, most: int) -> list[int]:
        return [int(test["input"]) for test in chosen_tests(problem({"tests": tests}, id), most)]

    assert chosen("a", 0) == chosen("a", 20) == chosen("a", 99) == list(range(20))
    assert chosen("a", 5) == chosen("a", 5) == sorted(chosen("a", 5))
    assert len(set(chosen("a", 5))) == 5
    assert chosen("a", 5) != chosen("b", 5)
    assert set(chosen("a", 5)) < set(chosen("a", 6))
    assert chosen_tests(problem({"kind": "assert"}), 3) == []
