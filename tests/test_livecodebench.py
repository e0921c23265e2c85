"""LiveCodeBench as its official runner has it: its rules, its files, its problems that are bad.

The rules are written down here once more, in another way, and held against ours.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archer.cli import main
from archer.data.code_rows import livecodebench
from archer.data.problems import to_problem, to_row, write_problems
from archer.grade import grade, read_answered
from archer.livecodebench import convert, fenced
from archer.prepare import prepare
from archer.prepare.filters import KNOWN_BAD, not_known_bad
from archer.terminal import Terminal
from archer.types import Problem, Verdict
from archer.verify.code import judge_program, same_lines, same_result, same_tokens, same_value
from archer.verify.extract import last_program, outside_thought
from archer.verify.policy import Policy
from archer.verify.sandbox.client import Sandbox
from tests.needs import needs_sandbox
from tests.real_data import real_file, rows

PUBLIC, FULL = "livecodebench_v1_public.jsonl", "livecodebench_v1_3rows_full.jsonl"
QUIET = Terminal(quiet=True)


# --- the rules of comparison, a second time ---

NUMBER = re.compile(r"([+-]?)(?:(\d+)\.?(\d*)|\.(\d+))(?:e([+-]?\d+))?", re.IGNORECASE)
INFINITY = re.compile(r"([+-]?)inf(?:inity)?", re.IGNORECASE)
NAN = re.compile(r"[+-]?nan\d*", re.IGNORECASE)


def number(word: str) -> object:
    """What a word is worth as a decimal number; None for a word that is none."""
    if found := NUMBER.fullmatch(word.replace("_", "")):
        sign, whole, digits, alone, power = found.groups()
        behind = digits or alone or ""
        value = Fraction(int((whole or "") + behind), 10 ** len(behind))
        return value * Fraction(10) ** int(power or 0) * (-1 if sign == "-" else 1)
    if found := INFINITY.fullmatch(word):
        return ("infinity", found[1] == "-")
    return object() if NAN.fullmatch(word) else None  # a NaN is equal to nothing


def runner_takes(expected: str, printed: str) -> bool:
    """Whether the official runner takes a printed output for the expected one."""
    wanted, given = ([*map(str.strip, text.strip().split("\n"))] for text in (expected, printed))
    if len(wanted) != len(given):
        return False
    for line, other in zip(wanted, given, strict=True):
        one, two = [*map(number, line.split())], [*map(number, other.split())]
        if line != other and (None in one or None in two or one != two):
            return False
    return True


def runner_takes_value(expected: Any, value: Any, *, outermost: bool = True) -> bool:
    """The same for what a function returned: Python's rules, and a list for the outermost tuple."""
    if outermost and isinstance(value, tuple):
        value = [*value]
    if isinstance(expected, list):
        return (
            isinstance(value, list)
            and len(value) == len(expected)
            and all(
                runner_takes_value(a, b, outermost=False)
                for a, b in zip(expected, value, strict=True)
            )
        )
    if isinstance(expected, dict):
        return (
            isinstance(value, dict)
            and value.keys() == expected.keys()
            and all(runner_takes_value(expected[k], value[k], outermost=False) for k in expected)
        )
    if isinstance(expected, bool | int | float):
        return isinstance(value, bool | int | float) and worth(value) == worth(expected)
    return type(value) is type(expected) and str(value) == str(expected)


def worth(value: float) -> object:
    """A number without rounding; infinity by its name, and NaN as something of its own."""
    if isinstance(value, float) and not math.isfinite(value):
        return object() if math.isnan(value) else str(value)
    return Fraction(value)


PRINTED = [
    # expected, printed, whether the runner takes it, whether it is the same by its words
    ("5", "5", True, True),
    ("5\n", "5", True, True),
    ("5", "5   ", True, True),
    ("5", "   5", True, True),
    ("5", "\n\n5\n\n", True, True),
    ("5", "\t5\r\n", True, True),
    ("1 2", "1 2 \n", True, True),
    ("1 2", "1  2", True, True),
    ("a b", "a  b", False, True),
    ("1 2\n3", "1 2\n3", True, True),
    ("1\n2", "1 \n  2", True, True),
    ("1\n2", "1\r\n2\r\n", True, True),
    ("1\n2", "1\n\n2", False, True),
    ("1\n\n2", "1\n2", False, True),
    ("1\n\n2", "1\n \n2", True, True),
    ("1 2", "1\n2", False, True),
    ("1\n2", "1 2", False, True),
    ("1 2\n3", "1\n2 3", False, True),
    ("", "", True, True),
    ("", "\n \n", True, True),
    ("", "0", False, False),
    ("0", "", False, False),
    ("Yes", "YES", False, False),
    ("Yes", "Yes", True, True),
    ("Yes", "Yes.", False, False),
    ("No", "Nо", False, False),  # the second one is Cyrillic
    ("True", "1", False, False),
    ("true", "True", False, False),
    ("5", "5.0", True, False),
    ("5.0", "5", True, False),
    ("2.5", "2.50", True, False),
    (".5", "0.5", True, False),
    ("5", "5.", True, False),
    ("1000", "1e3", True, False),
    ("1e3", "1E+3", True, False),
    ("0.001", "1e-3", True, False),
    ("0.3", "0.30000000000000004", False, False),
    ("0.1", "0.1000001", False, False),
    ("0.5", "0.50000005", False, False),
    ("3.14159", "3.1415927", False, False),
    ("0", "-0", True, False),
    ("0", "-0.0", True, False),
    ("0", "1e-400", False, False),
    ("5", "+5", True, False),
    ("-5", "5", False, False),
    ("00101", "101", True, False),
    ("007", "7", True, False),
    ("1000", "1_000", True, False),
    ("1000", "1,000", False, False),
    ("0x10", "16", False, False),
    ("50000000000000000", "50000000000000001", False, False),
    ("123456789012345678901234567890", "123456789012345678901234567890.0", True, False),
    ("9" * 400, "9" * 400, True, True),
    ("9" * 400, "9" * 399 + "8", False, False),
    ("nan", "nan", True, True),
    ("nan", "NaN", False, False),
    ("nan", "1", False, False),
    ("inf", "Infinity", True, False),
    ("inf", "-inf", False, False),
    ("1 2 x", "1.0 2 x", False, False),
    ("1 2", "1.0 2.00", True, False),
    ("1 2", "1 2 3", False, False),
    ("1 2 3", "1 2", False, False),
    ("[1, 2]", "[1,2]", False, False),
    ("[1, 2]", "[1, 2]", True, True),
    ("(1, 2)", "[1, 2]", False, False),
    ("None", "None", True, True),
    ("None", "", False, False),
    ("é", "é", True, True),
    ("1/2", "0.5", False, False),
    ("12", "1 2", False, False),
    ("sNaN", "1", False, False),
    ("1\u00a02", "1 2", True, False),  # a space that does not break
]
RETURNED = [
    # expected, returned, whether the runner takes it, whether JSON would write the same
    (5, 5, True, True),
    (5, 5.0, True, True),
    (5.0, 5, True, True),
    (5, "5", False, False),
    ("5", 5, False, False),
    (5, 6, False, False),
    (True, True, True, True),
    (True, 1, True, True),
    (1, True, True, True),
    (False, 0, True, True),
    (False, None, False, False),
    (True, "true", False, False),
    (0, -0.0, True, True),
    (0.3, 0.1 + 0.2, False, False),
    (0.5, 0.5 + 1e-7, False, False),
    (2.5, 2.5, True, True),
    (10**30, 10**30, True, True),
    (10**30, 10**30 + 1, False, False),
    (10**400, 10**400, True, True),
    (2**53, 2.0**53, True, True),
    (2**53 + 1, 2.0**53, False, False),
    (None, None, True, True),
    (None, 0, False, False),
    (None, [], False, False),
    ([], None, False, False),
    ([], [], True, True),
    ([], (), True, True),
    ([1, 2], [1, 2], True, True),
    ([1, 2], (1, 2), True, True),
    ([1, 2], [2, 1], False, False),
    ([1, 2], [1], False, False),
    ([1], [1, 2], False, False),
    ([1, 2], [1.0, True + 1], True, True),
    ([[1, 2], [3]], [[1, 2], [3]], True, True),
    ([[1, 2], [3]], [(1, 2), (3,)], False, True),
    ([[1, 2], [3]], ((1, 2), (3,)), False, True),
    ([[1, 2], [3]], ([1, 2], [3]), True, True),
    ([1, 2], {1, 2}, False, False),
    ([0, 1, 2], range(3), False, False),
    ("ab", "ab", True, True),
    ("ab", "AB", False, False),
    ("ab", "ab ", False, False),
    ("ab", ["a", "b"], False, False),
    ("ab", b"ab", False, False),
    (["a"], ["a"], True, True),
    ({"1": 2}, {"1": 2}, True, True),
    ({"1": 2}, {1: 2}, False, True),
    ({"a": [1]}, {"a": (1,)}, False, True),
    (float("nan"), float("nan"), False, True),
    (float("inf"), float("inf"), True, True),
]


@pytest.mark.parametrize(("expected", "printed", "runner", "words"), PRINTED)
def test_a_printed_output_is_judged_by_the_lines_and_decimals_of_the_runner(
    expected: str, printed: str, runner: bool, words: bool
) -> None:
    assert runner_takes(expected, printed) is runner
    assert same_lines(printed, expected) is runner
    assert same_tokens(printed.encode(), expected.encode()) is words


@pytest.mark.parametrize(("expected", "returned", "runner", "as_json"), RETURNED)
def test_a_result_is_judged_by_the_equality_of_the_runner(
    expected: Any, returned: Any, runner: bool, as_json: bool
) -> None:
    assert runner_takes_value(expected, returned) is runner
    assert same_result(returned, expected) is runner
    assert same_value(returned, expected) is as_json


WORDS = st.sampled_from(
    ["1", "1.0", "01", "-0", "0", "1e1", "10", "+1", "x", "X", "nan", "inf", "1_0", "", "\n", "\r"]
)
TEXTS = st.lists(st.tuples(WORDS, st.sampled_from([" ", "  ", "\n", "\t", ""])), max_size=6).map(
    lambda pairs: "".join(word + blank for word, blank in pairs)
)


@given(TEXTS, TEXTS)
def test_any_two_outputs_are_judged_as_the_runner_judges_them(expected: str, printed: str) -> None:
    assert same_lines(printed, expected) is runner_takes(expected, printed)


# --- on the runner's own rows ---


def bent_texts(text: str) -> Iterator[str]:
    """An output in ways that programs are wrong, or differ in form alone."""
    body = text.strip()
    yield from (text, body, f"\n{body}\n\n", body.replace("\n", " \n "), body.replace("\n", "\r\n"))
    yield from (body.replace("\n", " "), body.replace(" ", "\n"), body.replace("\n", "\n\n"))
    yield from (body.replace(" ", "  "), body[:-1], f"{body}0", f"{body} 0", f"{body}\n0", "")
    yield from (body.upper(), body.lower(), body.swapcase(), body.replace("1", "2"), "x")
    yield re.sub(r"\b\d+\b", lambda m: f"{m[0]}.0", body)
    yield re.sub(r"\b\d+\b", lambda m: f"0{m[0]}", body)
    yield re.sub(r"\b\d+\b", lambda m: f"{m[0]}.0000001", body)
    yield re.sub(r"\b\d+\b", lambda m: str(int(m[0]) + 1), body)
    yield re.sub(r"(\d\.\d{7})\d*", r"\1", body)
    yield "\n".join(body.split("\n")[:-1])


def bent_values(value: Any) -> Iterator[Any]:
    """The same for what a function should return."""
    yield from (value, [value], (value,), None, "", [], str(value), json.dumps(value))
    if isinstance(value, bool):
        yield from (int(value), not value, float(value))
    elif isinstance(value, int | float):
        yield from (float(value), value + 1, value + 1e-7, -value, value == 1)
    elif isinstance(value, str):
        yield from (value.upper(), f"{value} ", list(value), value[:-1])
    elif isinstance(value, list):
        yield from (tuple(value), value[:-1], [*value, 0], value[::-1], [*map(str, value)])
        yield from ([tuple(v) if isinstance(v, list) else v for v in value], set(map(str, value)))
        yield [float(v) if isinstance(v, int) else v for v in value]


@pytest.mark.parametrize("name", [PUBLIC, FULL])
def test_on_the_outputs_of_its_own_rows_the_runner_and_archer_agree(name: str) -> None:
    seen = {True: 0, False: 0}
    for row in rows(name):
        answer = livecodebench(row, "x", "x").answer
        assert (answer["runner"], answer["time_limit_s"]) == ("livecodebench", 6)
        for test in answer["tests"]:
            wanted = test["output"]
            if answer["kind"] == "stdin":
                assert same_lines(wanted, wanted)
                for text in bent_texts(wanted):
                    agreed = same_lines(text, wanted)
                    assert agreed is runner_takes(wanted, text), (wanted, text)
                    seen[agreed] += 1
            else:
                assert same_result(wanted, wanted)
                for value in bent_values(wanted):
                    agreed = same_result(value, wanted)
                    assert agreed is runner_takes_value(wanted, value), (wanted, value)
                    seen[agreed] += 1
    assert min(seen.values()) > 20


def parrot(problem: Problem, bend: Callable[[Any], Any] = lambda output: output) -> str:
    """A program that knows each test by its input, and bends the output of the last one."""
    answer = problem.answer
    pairs = [(test["input"], test["output"]) for test in answer["tests"]]
    pairs[-1] = pairs[-1][0], bend(pairs[-1][1])
    if answer["kind"] == "stdin":
        return f"import sys\nsys.stdout.write({dict(pairs)!r}[sys.stdin.read()])"
    known = {repr(arguments): output for arguments, output in pairs}
    name = answer["name"].removeprefix("Solution.")
    return (
        f"class Solution:\n    def {name}(self, *arguments):\n"
        f"        return {known!r}[repr(list(arguments))]"
    )


def spoiled(output: Any) -> Any:
    if isinstance(output, str):
        return f"{output.rstrip()}x"
    return [output, output] if isinstance(output, list) else [output]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as opened:
        yield opened


def judged(sandbox: Sandbox, problem: Problem, program: str) -> Verdict:
    return judge_program(problem, program, Policy(), sandbox)


def check_rows(sandbox: Sandbox, chosen: list[dict[str, Any]]) -> None:
    for row in chosen:
        problem = livecodebench(row, "x", "x")
        right = judged(sandbox, problem, parrot(problem))
        assert right.outcome == "correct", (problem.id, right.detail)
        wrong = judged(sandbox, problem, parrot(problem, spoiled))
        assert wrong.outcome == "wrong", (problem.id, wrong.detail)


@needs_sandbox
def test_expected_outputs_of_real_rows_are_correct_and_spoiled_ones_wrong(sandbox: Sandbox) -> None:
    check_rows(sandbox, [*rows(FULL), *rows(PUBLIC)[::40]])


@needs_sandbox
@pytest.mark.full
def test_so_it_is_on_every_real_row(sandbox: Sandbox) -> None:
    check_rows(sandbox, rows(PUBLIC))


# --- what programs find ---


def stdin_problem(*tests: tuple[str, str], **more: Any) -> Problem:
    answer = {"kind": "stdin", "tests": [{"input": a, "output": b} for a, b in tests], **more}
    return Problem(id="p", prompt="?", verifier="code", answer=answer)


def call_problem(*tests: tuple[list[Any], Any], **more: Any) -> Problem:
    pairs = [{"input": a, "output": b} for a, b in tests]
    answer = {"kind": "call", "name": "Solution.f", "tests": pairs, **more}
    return Problem(id="p", prompt="?", verifier="code", answer=answer)


RUNNER = {"runner": "livecodebench"}
IMPORTED_FOR_ALL = """
words = stdin.readline().split()
line = deque(sorted(map(int, words)))
print(gcd(*line), ceil(2.5), mean(line), Counter(words)["4"], defaultdict(int)[0])
print(re.findall("[0-9]", " ".join(words)), dumps([1]), reduce(add, line), date(2024, 1, 2))
print(pow(2, 5, 7), sub(5, 3), maxsize > 0, StringIO("x").read(), sys.getrecursionlimit())
"""
DEEP = "def down(n):\n    return n and down(n - 1)\nprint(down(int(input())))"
LONG = "print(10 ** int(input()))"


@needs_sandbox
@pytest.mark.parametrize(
    ("program", "given", "output"),
    [
        (
            IMPORTED_FOR_ALL,
            "4 6\n",
            "2 3 5 1 0\n['4', '6'] [1] 10 2024-01-02\n4 2 True x 50000",
        ),
        (DEEP, "40000", "0"),
        (LONG, "20000", "1" + "0" * 20000),
        ("print(5 / 1)", "", "5"),
    ],
    ids=["names", "recursion", "digits", "decimals"],
)
def test_a_program_finds_what_the_runner_sets_up_where_the_problem_asks_for_it(
    sandbox: Sandbox, program: str, given: str, output: str
) -> None:
    test = (given, output)
    verdict = judged(sandbox, stdin_problem(test, **RUNNER), program)
    assert verdict.outcome == "correct", verdict.detail
    assert judged(sandbox, stdin_problem(test), program).outcome in ("crashed", "wrong")


@needs_sandbox
def test_a_method_finds_it_too_and_its_result_is_compared_as_the_runner_does(
    sandbox: Sandbox,
) -> None:
    pairs = "class Solution:\n    def f(self, n):\n        return [(n, mean([n]))]"
    one = ([1], [[1, 1]])
    assert judged(sandbox, call_problem(one, **RUNNER), pairs).outcome == "wrong"
    assert judged(sandbox, call_problem(one), pairs).outcome == "crashed"  # no mean
    lists = pairs.replace("[(n, mean([n]))]", "([n, mean([n])],)")
    assert judged(sandbox, call_problem(one, **RUNNER), lists).outcome == "correct"
    deep = "class Solution:\n    def f(self, n):\n        return n and self.f(n - 1)"
    assert judged(sandbox, call_problem(([40000], 0), **RUNNER), deep).outcome == "correct"
    assert judged(sandbox, call_problem(([40000], 0)), deep).outcome == "crashed"


@needs_sandbox
def test_a_name_that_the_runner_imports_solves_nothing(sandbox: Sandbox) -> None:
    answer = {"kind": "call", "name": "gcd", "tests": [{"input": [4, 6], "output": 2}], **RUNNER}
    problem = Problem(id="p", prompt="?", verifier="code", answer=answer)
    assert judged(sandbox, problem, "pass").outcome == "crashed"


@needs_sandbox
def test_where_python_and_the_runner_differ_a_program_is_run_as_python_runs_it(
    sandbox: Sandbox,
) -> None:
    """Each of these fails in the runner: docs/livecodebench.md says why it should not."""
    programs = {
        "global": "n = 0\ndef more():\n    global n\n    n += 1\nmore()\nprint(n + 4)",
        "blank line": "input()\nassert input() == ''\nprint(input())",
        "end of input": "import sys\nwhile line := sys.stdin.readline():\n    x = line\nprint(x)",
        "line ends": "import sys\nassert sys.stdin.readline() == 'a\\n'\nprint(5)",
        "bytes": "import sys\nlines = sys.stdin.buffer.readlines()\nprint(int(lines[2]))",
        "bytes out": "import sys\nsys.stdout.buffer.write(b'5')",
        "descriptor": "import os\nos.write(1, b'5')",
        "future": "from __future__ import annotations\nprint(5)",
        "quit": "print(5)\nquit()",
        "main": "def main():\n    print(5)\nif __name__ == '__main__':\n    main()\nx = 1",
    }
    test = ("a\n\n5\n", "5")
    found = {
        name: judged(sandbox, stdin_problem(test, **RUNNER), program).detail
        for name, program in programs.items()
    }
    assert found == dict.fromkeys(programs, "1 of 1 tests")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"runner": "other"}, '"answer.runner" is "other"; make it one of livecodebench'),
        ({"runner": None}, '"answer.runner" is null; make it one of livecodebench'),
        ({"tolerance": 1e-6, **RUNNER}, 'and a "tolerance", but a runner compares by rules of its'),
        ({"checker": "def check(): ...", **RUNNER}, 'remove "checker" or "runner"'),
        ({"kind": "assert", "code": "f()", **RUNNER}, 'unknown key "answer.runner"'),
    ],
)
def test_a_runner_is_known_and_compares_alone(more: dict[str, Any], message: str) -> None:
    row = to_row(stdin_problem(("1", "2")))
    row["answer"] = ({} if "kind" in more else row["answer"]) | more
    with pytest.raises(ValueError, match=re.escape(message)):
        to_problem(row, where="here")


# --- what is taken of a response ---


def taken_by_runner(response: str) -> str:
    """What the runner takes for the program: all between the last two lines that hold ```."""
    lines = response.split("\n")
    fences = [place for place, line in enumerate(lines) if "```" in line]
    return "\n".join(lines[fences[-2] + 1 : fences[-1]]) if len(fences) > 1 else ""


def taken(response: str) -> str:
    text = outside_thought(response, in_thought=False)
    return ((text and last_program(text)) or "").removesuffix("\n")


@pytest.mark.parametrize(
    ("response", "runner", "ours"),
    [
        ("```python\na\n```", "a", "a"),
        ("So:\n```\na\n```\nDone.", "a", "a"),
        ("```python\na\n```\nBetter:\n```python\nb\n```", "b", "b"),
        ("a", "", ""),
        ("```python\na", "", ""),
        ("<think>\n```python\na\n```\n</think>\n```python\nb\n```", "b", "b"),
        # Another tag, a fence within a line, a block that is not closed, a thought, other fences.
        ("```python\na\n```\nprints\n```text\n5\n```", "5", "a"),
        ("```python\na\n```\nIn short, ```b``` it is.", "", "a"),
        ("```python\na\n```\n```python\nb", "", "a"),
        ("<think>\n```python\na\n```", "a", ""),
        ("~~~python\na\n~~~", "", "a"),
        ("- so:\n  ```python\n  a\n  ```", "  a", "a"),
    ],
)
def test_of_most_responses_the_runner_and_archer_take_the_same_program(
    response: str, runner: str, ours: str
) -> None:
    assert (taken_by_runner(response), taken(response)) == (runner, ours)


@given(st.text(alphabet="ab `~\n\t<", max_size=30))
def test_a_program_is_taken_back_from_the_block_that_it_is_put_into(code: str) -> None:
    assert taken(fenced(code)) == (code if code.strip() else "")


# --- files of the runner ---


def problems_file(folder: Path, *ids: str) -> Path:
    problems = [
        Problem(
            id=id,
            prompt="Print 5.",
            verifier="code",
            answer={"kind": "stdin", "tests": [{"input": "", "output": "5"}], **RUNNER},
            source="livecodebench",
        )
        for id in ids
    ]
    write_problems(folder / "problems.jsonl", problems)
    return folder / "problems.jsonl"


def response_rows(folder: Path, *responses: tuple[str, str, bool]) -> Path:
    """A file of responses with what a run says of them."""
    known = {
        row["id"]: row
        for row in map(json.loads, problems_file(folder, "a", "b", "c").read_text().splitlines())
    }
    path = folder / "responses.jsonl"
    lines = [
        {**known[id], "response": response, "in_thought": in_thought, "sample": 0, "reward": 0.5}
        for id, response, in_thought in responses
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


FIVE, SIX = "```python\nprint(5)\n```", "```python\nprint(6)\n```"
RESPONSES = (
    ("b", f"é\n{FIVE}", False),
    ("b", "no program", False),
    ("a", f"a thought </think>{SIX}", True),
    ("a", f"still a thought {FIVE}", True),
)


def test_responses_are_written_as_the_runner_reads_them(tmp_path: Path) -> None:
    file, out = response_rows(tmp_path, *RESPONSES), tmp_path / "out.json"
    said = convert(file, out, None)
    assert said.startswith("2 problems, responses to each: 2, without a program: 2\n")
    assert out.read_bytes().isascii()
    assert (
        json.loads(out.read_text())
        == [  # in the order that the runner sorts its own by
            {
                "question_id": "a",
                "output_list": [f"<think>{text}" for _, text, _ in RESPONSES[2:]],
                "code_list": ["print(6)\n", ""],
            },
            {
                "question_id": "b",
                "output_list": [text for _, text, _ in RESPONSES[:2]],
                "code_list": ["print(5)\n", ""],
            },
        ]
    )


def test_what_was_written_for_the_runner_is_read_back_as_it_was(tmp_path: Path) -> None:
    file, out, back = (
        response_rows(tmp_path, *RESPONSES), tmp_path / "out.json", tmp_path / "back.jsonl",
    )  # fmt: skip
    convert(file, out, None)
    said = convert(out, back, tmp_path / "problems.jsonl")
    assert said.startswith("4 responses to 2 problems; problems without responses: 1\n")
    before = {(a.problem.id, taken("<think>" * a.in_thought + a.response)) for a in answers(file)}
    assert {(a.problem.id, taken(a.response)) for a in answers(back)} == before


def answers(path: Path) -> list[Any]:
    return list(read_answered(path))


def runner_file(folder: Path, *entries: object) -> Path:
    path = folder / "run_eval_all.json"
    path.write_text(json.dumps(list(entries)))
    return path


def test_what_the_runner_wrote_becomes_rows_with_its_verdicts(tmp_path: Path) -> None:
    file = runner_file(
        tmp_path,
        {
            "question_title": "t",
            "question_id": "a",
            "output_list": [f"Look:\n{FIVE}", f"{FIVE}\n```text\n5\n```", "print(6)"],
            "code_list": ["print(5)", "5", "print(6)"],
            "graded_list": [True, False, True],
            "pass@1": 2 / 3,
            "metadata": ["{}", "{}", "{}"],
        },
        {"question_id": "b", "code_list": ["print('```')", ""]},
        {"question_id": "z", "code_list": ["print(5)"]},
    )
    out = tmp_path / "rows.jsonl"
    said = convert(file, out, problems_file(tmp_path, "a", "b", "c"))
    assert said.split("\n")[0] == (
        f"5 responses to 2 problems; problems that are not in {tmp_path}/problems.jsonl: 1; "
        "problems without responses: 1; "
        "responses of which archer reads another program than the runner did: 1"
    )
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a", "a", "a", "b", "b"]
    assert [line["sample"] for line in lines] == [0, 1, 2, 0, 1]
    assert [line["response"] for line in lines] == [
        f"Look:\n{FIVE}",
        f"{FIVE}\n```text\n5\n```",
        "```python\nprint(6)\n```",
        "````python\nprint('```')\n````",
        "",
    ]
    assert [line.get("outcome") for line in lines] == ["correct", "wrong", "correct", None, None]
    assert [taken(answered.response) for answered in answers(out)] == [
        "print(5)", "print(5)", "print(6)", "print('```')", "",
    ]  # fmt: skip


@needs_sandbox
def test_grading_them_tells_where_the_runner_said_something_else(tmp_path: Path) -> None:
    file = runner_file(
        tmp_path,
        {"question_id": "a", "code_list": ["print(5)", "print(6)"], "graded_list": [True, True]},
        {"question_id": "b", "code_list": ["print(5)", "1 / 0"], "graded_list": [False, False]},
        {"question_id": "c", "code_list": ["print(5)", "print(5)"]},
    )
    responses, out = tmp_path / "rows.jsonl", tmp_path / "verdicts.jsonl"
    convert(file, responses, problems_file(tmp_path, "a", "b", "c"))
    said = grade(responses, out, QUIET, workers=1, policy=Policy())
    assert (
        "2 of 4 verdicts differ from the outcome that the row came with\n"
        "a (1): correct, now wrong: test 1 of 1: 6 is not 5\n"
        "b (1): wrong, now correct: 1 of 1 tests\n"
    ) in said
    card = json.loads((tmp_path / "verdicts.jsonl.card.json").read_text())
    assert card["before"] == {
        "compared": 4,
        "changed": {
            "a": ["correct, now wrong: test 1 of 1: 6 is not 5"],
            "b": ["wrong, now correct: 1 of 1 tests"],
        },
    }
    assert (
        grade(responses, out, QUIET, workers=1, policy=Policy()) == said
    )  # once more, all is done


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"code_list": ["a"]}, 'has the keys code_list, not "question_id" and "code_list"; give'),
        ({"question_id": "a"}, 'has the keys question_id, not "question_id" and "code_list"; give'),
        ({"question_id": None, "code_list": []}, '"question_id" is null; make it a text'),
        ({"question_id": "a", "code_list": "x"}, '"code_list" is "x"; make it a list of texts'),
        ({"question_id": "a", "code_list": [1]}, '"code_list" is [1]; make it a list of texts'),
        (
            {"question_id": "a", "code_list": ["x"], "graded_list": [1]},
            '"graded_list" is [1]; make it a list of true and false',
        ),
        (
            {"question_id": "a", "code_list": ["x"], "output_list": []},
            'its lists have different lengths ("code_list" 1, "output_list" 0); make them one',
        ),
        ({"question_id": "ok", "code_list": []}, "the question 'ok' came before; give each once"),
        ([["x"]], "row 2 is [['x']]; make it a JSON object"),
    ],
)
def test_a_malformed_entry_is_named_with_its_cure(
    tmp_path: Path, entry: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = runner_file(tmp_path, {"question_id": "ok", "code_list": ["x"]}, entry)
    problems, out = problems_file(tmp_path, "ok", "a"), tmp_path / "out.jsonl"
    assert main(["convert", str(file), "--problems", str(problems), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert re.match(re.escape(f"archer: {file}: ") + "(entry|row) 2", said)
    assert message in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_files_that_can_not_be_converted_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = problems_file(tmp_path, "a", "b", "c")
    mine = response_rows(tmp_path, *RESPONSES)
    uneven = tmp_path / "uneven.jsonl"
    uneven.write_text("".join(mine.read_text("utf-8").splitlines(keepends=True)[:3]), "utf-8")
    other = tmp_path / "other.jsonl"
    other.write_text(mine.read_text("utf-8").replace('"livecodebench", "meta"', '"mbpp", "meta"'))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    strange = runner_file(tmp_path, {"question_id": "z", "code_list": []})
    there = tmp_path / "there.json"
    there.write_text("[]")
    json_out, rows_out = tmp_path / "new.json", tmp_path / "new.jsonl"
    refused: list[tuple[list[Path], str]] = [
        ([mine, rows_out], "give one of each"),
        ([strange, json_out], "give one of each"),
        ([mine, there], "is there already; give another --out"),
        ([mine, json_out, problems], "holds its problems; leave out --problems"),
        ([strange, rows_out], "holds no tests; give the prepared problems, --problems FILE.jsonl"),
        ([strange, rows_out, problems], "none of its 1 problems is in "),
        ([uneven, json_out], "'a' has 1 and 'b' has 2 responses; the runner wants the same number"),
        ([other, json_out], "has the source 'mbpp'; the runner of LiveCodeBench knows its own"),
        ([empty, json_out], "the file is empty; give one with responses"),
        ([tmp_path / "none.json", rows_out, problems], "No such file or directory; give the path"),
        ([there, rows_out, problems], "none of its 0 problems is in "),
    ]
    for (file, out, *more), message in refused:
        given = [f"--problems={path}" for path in more]
        assert main(["convert", str(file), "--out", str(out), *given]) == 2, message
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert not json_out.exists()
    assert not rows_out.exists()


# --- problems that are known to be bad ---


def test_seventeen_problems_are_known_to_be_bad() -> None:
    names = [name for group in KNOWN_BAD.values() for name in group]
    assert len(names) == len(set(names)) == 17
    assert all(re.fullmatch(r"(abc|arc)\d{3}_[a-h]|[a-z]+(-[a-z]+)+", name) for name in names)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"question_id": "abc337_e", "platform": "atcoder"}, "it wants a judge that answers"),
        ({"question_id": "abc337_f", "platform": "atcoder"}, None),
        ({"question_id": "1", "question_title": "find-the-peaks"}, "several answers are right"),
        ({"question_id": "1", "question_title": "Find the Peaks"}, "several answers are right"),
        ({"question_id": "1", "question_title": "most-frequent-ids"}, "its tests are wrong"),
        ({"question_id": "find-the-peaks", "question_title": "two-sum"}, None),
        ({"question_title": "Find the Peaks", "platform": "atcoder"}, None),
    ],
)
def test_a_bad_problem_is_known_by_its_id_or_by_the_title_that_leetcode_gave_it(
    more: dict[str, str], why: str | None
) -> None:
    row = {
        "question_id": "q",
        "question_content": "Print 5.",
        "platform": "leetcode",
        "public_test_cases": '[{"input": "", "output": "5", "testtype": "stdin"}]',
        **more,
    }
    if more.get("platform") == "leetcode" or "platform" not in more:
        row.setdefault("question_title", "t")
    dropped = not_known_bad()(livecodebench(row, "x", "x"))
    assert (dropped and dropped.detail) == why


def test_a_problem_of_leetcode_without_a_title_can_not_be_told() -> None:
    problem = Problem(
        id="1", prompt="?", verifier="code", answer={}, source="livecodebench",
        meta={"platform": "leetcode"},
    )  # fmt: skip
    with pytest.raises(ValueError, match='\'1\' has no "question_title" in its "meta"'):
        not_known_bad()(problem)


def test_the_bad_ones_among_the_real_rows_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ["prepare", str(real_file(PUBLIC)), "--out", str(out), "--unchecked"]
    assert main([*arguments, "--without-known-bad"]) == 0
    assert "390 problems from 400 rows, 10 dropped (known to be bad)" in capsys.readouterr().out
    card = (tmp_path / "out.card.md").read_text("utf-8")
    assert "| filters | not known to be bad |" in card
    assert "| known to be bad | 10 | " in card
    assert "| abc337_e | it wants a judge that answers |" in card
    ids = {json.loads(line)["id"] for line in out.read_text("utf-8").splitlines()}
    assert ids.isdisjoint({"abc311_c", "abc343_a", "3194", "3221", "3308"})


def test_nothing_is_left_out_that_nobody_asked_for(tmp_path: Path) -> None:
    done = prepare(str(real_file(PUBLIC)), tmp_path / "out.jsonl", check=False)
    assert (done.rows_out, done.dropped) == (400, {})
