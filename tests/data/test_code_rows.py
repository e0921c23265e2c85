import ast
import base64
import gzip
import json
import pickle
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from archer.data import code_rows
from archer.data.code_rows import (
    NO_PROMPT,
    NO_TESTS,
    NOT_A_TEXT,
    NOT_UNPACKED,
    TOO_LARGE,
    code_contests,
    humaneval,
    leetcodedataset,
    livecodebench,
    mbpp,
    pickled_text,
    reference,
    released,
    unpacked_tests,
)
from archer.data.problems import to_problem, to_row
from archer.types import Problem
from tests.real_data import real_file

Row = dict[str, Any]

HUMANEVAL: Row = {
    "task_id": "HumanEval/0",
    "prompt": "import math\n\ndef helper(x):\n    return math.sqrt(x)\n\ndef f(x):\n",
    "entry_point": "f",
    "canonical_solution": "    return x\n",
    "test": "def check(candidate):\n    assert candidate(1) == 1\n",
}
MBPP: Row = {
    "task_id": 3,
    "text": "Square.",
    "code": "import sys\r\nfrom operator import f, mul\r\ndef f(x):\r\n  return mul(x, x)\r\n",
    "test_list": ["assert f(1) == 1", "assert f(2) == 4"],
    "test_setup_code": "four = 4",
}
LEETCODE: Row = {
    "task_id": "double",
    "difficulty": "Easy",
    "problem_description": "Double it.",
    "starter_code": "class Solution:\n    def f(self, x: int) -> int:\n        ",
    "prompt": "from math import *\n\ninf = float('inf')\n",
    "completion": "class Solution:\n    def f(self, x):\n        return 2 * x\n",
    "entry_point": "Solution().f",
    "test": "def check(candidate):\n    assert candidate(x = 1) == 2\n",
}
FUNCTIONAL: Row = {"input": "1", "output": "2", "testtype": "functional"}
STDIN: Row = {"input": "1\n", "output": "2\n", "testtype": "stdin"}
LIVECODEBENCH: Row = {
    "question_content": "Double it.",
    "question_id": "q1",
    "platform": "leetcode",
    "difficulty": "easy",
    "contest_date": "2024-08-01T00:00:00",
    "starter_code": "class Solution:\n    def f(self, x): ",
    "public_test_cases": json.dumps([FUNCTIONAL]),
    "metadata": '{"func_name": "f"}',
}
CODE_CONTESTS: Row = {
    "id": 4,
    "content": "Double it.",
    "labels": '{"difficulty": "EASY", "name": "a", "source": "CODECHEF"}',
    "test": '[{"input": {"stdin": "1"}, "output": {"stdout": "2\\n"}}]',
}


def valid(problem: Problem) -> Problem:
    return to_problem(to_row(problem), where="row", verifiers=("code",))


def run_tests(problem: Problem, program: str) -> None:
    """Runs tests of our own, from above, beside a program of our own."""
    names: Row = {}
    exec(program, names)
    exec(problem.answer["code"], names)


# HumanEval


def test_humaneval_shows_the_head_and_checks_the_function() -> None:
    problem = valid(humaneval(HUMANEVAL, "x", "x"))
    assert (problem.id, problem.source) == ("HumanEval/0", "humaneval")
    assert f"```python\n{HUMANEVAL['prompt'].strip()}\n```" in str(problem.prompt)
    assert problem.answer["code"] == HUMANEVAL["test"] + "\n\ncheck(f)\n"
    run_tests(problem, "f = lambda x: x")
    with pytest.raises(AssertionError):
        run_tests(problem, "f = lambda x: x + 1")


def test_a_helper_that_the_test_calls_is_the_data_sets_and_not_the_answers() -> None:
    test = "def check(candidate):\n    assert helper(candidate(4)) == 2\n"
    problem = humaneval(HUMANEVAL | {"test": test}, "x", "x")
    assert problem.answer["code"].startswith(
        "import math\n\ndef helper(x):\n    return math.sqrt(x)\n\ndef check(candidate):"
    )
    run_tests(problem, "def f(x):\n    return x\ndef helper(x):\n    return 2")
    with pytest.raises(AssertionError):
        run_tests(problem, "def f(x):\n    return 9\ndef helper(x):\n    return 2")


def test_the_function_itself_is_never_taken_from_the_data_set() -> None:
    test = "def check(candidate):\n    assert f(1) == 1\n"
    assert "def f" not in humaneval(HUMANEVAL | {"test": test}, "x", "x").answer["code"]


# MBPP


def test_mbpp_shows_its_tests_and_sets_them_up() -> None:
    problem = valid(mbpp(MBPP, "x", "x"))
    assert (problem.id, problem.source) == ("mbpp-3", "mbpp")
    assert problem.answer["code"] == "four = 4\nassert f(1) == 1\nassert f(2) == 4\n"
    assert str(problem.prompt).endswith("these tests:\n\nassert f(1) == 1\nassert f(2) == 4")


def test_a_module_that_a_test_uses_is_imported_as_the_solution_does() -> None:
    row = MBPP | {"test_list": ["assert f(1) == sys.getsizeof(0)"], "test_setup_code": ""}
    code = mbpp(row, "x", "x").answer["code"]
    assert code == "import sys\n\nassert f(1) == sys.getsizeof(0)\n"


# LeetCodeDataset


def test_leetcodedataset_asks_with_starter_code_and_checks_the_method() -> None:
    problem = valid(leetcodedataset(LEETCODE, "x", "x"))
    assert (problem.id, problem.source) == ("double", "leetcodedataset")
    assert problem.meta == {"difficulty": "Easy"}
    assert problem.answer["code"] == LEETCODE["test"] + "\n\ncheck(Solution().f)\n"
    user = problem.prompt[-1]
    assert isinstance(user, dict)
    assert f"```python\n{LEETCODE['starter_code']}\n```" in user["content"]
    run_tests(problem, LEETCODE["completion"])


def test_infinity_is_defined_where_a_test_names_it() -> None:
    test = "def check(candidate):\n    assert candidate(x = 1) == inf\n"
    code = "inf = float('inf')\n\n" + test
    assert leetcodedataset(LEETCODE | {"test": test}, "x", "x").answer["code"].startswith(code)
    truth = json.dumps({"functional": test})
    assert released("Double.", truth, "x", "x").answer == {"kind": "assert", "code": code}


# LiveCodeBench


def test_livecodebench_gets_the_prompt_of_its_runner() -> None:
    problem = valid(livecodebench(LIVECODEBENCH, "x", "x"))
    assert (problem.id, problem.source) == ("q1", "livecodebench")
    assert isinstance(problem.prompt, tuple)
    system, user = problem.prompt
    assert system["content"].startswith("You are an expert Python programmer. You will be given")
    assert user["content"] == (
        "### Question:\nDouble it.\n\n### Format: You will use the following starter code to write "
        "the solution to the problem and enclose your code within delimiters.\n```python\n"
        "class Solution:\n    def f(self, x): \n```\n\n"
        "### Answer: (use the provided format with backticks)\n\n"
    )
    assert problem.answer == {
        "kind": "call",
        "name": "Solution.f",
        "tests": [{"input": [1], "output": 2}],
        "time_limit_s": 6,
        "runner": "livecodebench",
    }
    assert problem.meta["difficulty"] == "easy"


def test_a_contest_without_starter_code_is_a_program_that_reads_and_writes() -> None:
    row = LIVECODEBENCH | {"starter_code": "", "public_test_cases": json.dumps([STDIN])}
    problem = valid(livecodebench(row | {"metadata": "{}"}, "x", "x"))
    assert problem.answer == {
        "kind": "stdin",
        "tests": [{"input": "1\n", "output": "2\n"}],
        "time_limit_s": 6,
        "runner": "livecodebench",
    }
    user = problem.prompt[-1]
    assert isinstance(user, dict)
    assert "Read the inputs from stdin" in user["content"]


def packed(value: object, protocol: int = 4) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value, protocol))).decode()


def test_arguments_are_parted_by_line_feeds_alone() -> None:
    test = FUNCTIONAL | {"input": '"a\u2028b\x85"\r\n[1]\n'}
    row = LIVECODEBENCH | {"public_test_cases": json.dumps([test])}
    assert livecodebench(row, "x", "x").answer["tests"][0]["input"] == ["a\u2028b\x85", [1]]


PRIVATE = json.dumps([FUNCTIONAL | {"input": "[1, 2]\n\n3", "output": "null"}])


@pytest.mark.parametrize("pack", [str, packed, lambda text: packed(text, 0)])
def test_private_tests_follow_the_public_ones(pack: Callable[[str], str]) -> None:
    row = LIVECODEBENCH | {"private_test_cases": pack(PRIVATE)}
    assert livecodebench(row, "x", "x").answer["tests"] == [
        {"input": [1], "output": 2},
        {"input": [[1, 2], 3], "output": None},
    ]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("text", ["", "[]", "é\n\\u0041\U0001f600", "x" * 100_000])
def test_a_pickled_text_is_read_without_running_the_pickle(text: str, protocol: int) -> None:
    assert pickled_text(pickle.dumps(text, protocol)) == text


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("a pickle was run",)


@pytest.mark.parametrize(
    "value", [Runs(), ["[]"], ("[]", "[]"), b"[]", 5, None, {"a": "[]"}, int, bytearray(b"[]")]
)
def test_a_pickle_of_anything_but_a_text_is_refused(
    value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=f"^{NOT_A_TEXT}$"):
        unpacked_tests(packed(value))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("pickled", [b"", b".", b"\x80\x04.", b"\x80\x04X\xff\xff\xff\xff", b"?"])
def test_a_broken_pickle_is_refused(pickled: bytes) -> None:
    with pytest.raises(ValueError, match=f"^{NOT_A_TEXT}$"):
        pickled_text(pickled)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    text = json.dumps([STDIN | {"input": "x" * (4 << 20)}])
    small = packed(text)
    assert len(small) < 10_000
    assert len(unpacked_tests(small, limit=5 << 20)) == 1
    with pytest.raises(ValueError, match=f"^{TOO_LARGE}$"):
        unpacked_tests(small, limit=3 << 20)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", NOT_UNPACKED),
        ("abc", NOT_UNPACKED),
        ("no base64!", NOT_UNPACKED),
        (base64.b64encode(b"no zlib").decode(), NOT_UNPACKED),
        (base64.b64encode(zlib.compress(pickle.dumps("[]"))[:-6]).decode(), NOT_UNPACKED),
        ("[1, 2", NO_TESTS),
        (packed("{}"), NO_TESTS),
        (packed("[NaN]"), NO_TESTS),
    ],
)
def test_tests_that_cannot_be_unpacked_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}$"):
        unpacked_tests(text)


# CodeContests


def test_code_contests_is_read_as_sandboxfusion_keeps_it() -> None:
    problem = valid(code_contests(CODE_CONTESTS, "x", "x"))
    assert (problem.id, problem.source) == ("code_contests-4", "code_contests")
    assert problem.answer == {"kind": "stdin", "tests": [{"input": "1", "output": "2\n"}]}
    assert problem.meta == {"name": "a", "source": "CODECHEF", "difficulty": "EASY"}


# What is refused


@pytest.mark.parametrize(
    ("convert", "row", "change", "reason"),
    [
        (humaneval, HUMANEVAL, {"prompt": " "}, NO_PROMPT),
        (humaneval, HUMANEVAL, {"test": None}, NO_TESTS),
        (humaneval, HUMANEVAL, {"entry_point": 5}, NO_TESTS),
        (mbpp, MBPP, {"text": ""}, NO_PROMPT),
        (mbpp, MBPP, {"test_list": []}, NO_TESTS),
        (mbpp, MBPP, {"test_list": "assert f(1) == 1"}, NO_TESTS),
        (mbpp, MBPP, {"test_list": [1]}, NO_TESTS),
        (leetcodedataset, LEETCODE, {"problem_description": ""}, NO_PROMPT),
        (leetcodedataset, LEETCODE, {"test": ""}, NO_TESTS),
        (leetcodedataset, LEETCODE, {"entry_point": None}, NO_TESTS),
        (livecodebench, LIVECODEBENCH, {"question_content": None}, NO_PROMPT),
        (livecodebench, LIVECODEBENCH, {"public_test_cases": "[]"}, NO_TESTS),
        (livecodebench, LIVECODEBENCH, {"public_test_cases": "[1]"}, NO_TESTS),
        (livecodebench, LIVECODEBENCH, {"public_test_cases": "{"}, NO_TESTS),
        (livecodebench, LIVECODEBENCH, {"metadata": "{}"}, NO_TESTS),
        (livecodebench, LIVECODEBENCH, {"metadata": '{"func_name": 5}'}, NO_TESTS),
        (livecodebench, LIVECODEBENCH, {"private_test_cases": {}}, None),
        (livecodebench, LIVECODEBENCH, {"private_test_cases": {"a": 1}}, NO_TESTS),
        (livecodebench, LIVECODEBENCH, {"private_test_cases": json.dumps([STDIN])}, NO_TESTS),
        (
            livecodebench,
            LIVECODEBENCH,
            {"private_test_cases": json.dumps([FUNCTIONAL | {"input": "1 2"}])},
            NO_TESTS,
        ),
        (code_contests, CODE_CONTESTS, {"content": ""}, NO_PROMPT),
        (code_contests, CODE_CONTESTS, {"test": "[]"}, NO_TESTS),
        (code_contests, CODE_CONTESTS, {"test": '[{"input": {"stdin": "1"}}]'}, NO_TESTS),
        (code_contests, CODE_CONTESTS, {"test": "[1]"}, NO_TESTS),
        (code_contests, CODE_CONTESTS, {"labels": None}, None),
    ],
)
def test_a_row_without_prompt_or_tests_is_refused(
    convert: Callable[[Row, str, str], Problem], row: Row, change: Row, reason: str | None
) -> None:
    if reason is None:
        valid(convert(row | change, "x", "x"))
        return
    with pytest.raises(ValueError, match=f"^{reason}$"):
        convert(row | change, "x", "x")


# Reference solutions


def test_a_reference_is_a_block_with_all_that_it_needs() -> None:
    assert reference(HUMANEVAL) == f"```python\n{HUMANEVAL['prompt']}    return x\n```"
    found = reference(LEETCODE)
    assert found is not None and found.startswith("```python\nfrom math import *\n")
    assert found.endswith("        return 2 * x\n```")
    assert "def f(x):" in str(reference(MBPP))


def test_a_leetcode_reference_keeps_pythons_own_pow_behind_its_header() -> None:
    completion = "class Solution:\n    def f(self, x):\n        return pow(x, 2, 5), sqrt(x)\n"
    found = reference(LEETCODE | {"completion": completion})
    names: Row = {}
    exec(str(found).removeprefix("```python\n").removesuffix("```"), names)
    assert names["Solution"]().f(4) == (1, 2)


@pytest.mark.parametrize("row", [LIVECODEBENCH, CODE_CONTESTS, {}, HUMANEVAL | {"test": ""}])
def test_a_row_without_a_solution_has_no_reference(row: Row) -> None:
    without = {key: value for key, value in row.items() if key != "canonical_solution"}
    assert reference(without) is None


# Real data


def real(name: str) -> Iterator[Row]:
    path = real_file(name)
    lines = gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")
    with lines:
        yield from map(json.loads, lines)


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "convert", "num_rows"),
    [
        ("humaneval.jsonl", humaneval, 164),
        ("mbpp.jsonl", mbpp, 974),
        ("leetcodedataset_v0.3.1_test.jsonl.gz", leetcodedataset, 228),
    ],
)
def test_every_real_row_has_tests_and_a_reference_that_parse(
    name: str, convert: Callable[[Row, str, str], Problem], num_rows: int
) -> None:
    rows = list(real(name))
    assert len(rows) == num_rows
    for row in rows:
        problem = valid(convert(row, "x", "x"))
        assert problem.answer["kind"] == "assert"
        ast.parse(problem.answer["code"])
        text = reference(row)
        assert text is not None and text.count("```") == 2
        ast.parse(text.removeprefix("```python\n").removesuffix("```"))


def test_the_three_humaneval_tests_that_call_helpers_have_them() -> None:
    found = {
        row["task_id"]: humaneval(row, "x", "x").answer["code"] for row in real("humaneval.jsonl")
    }
    helpers = {"32": "poly", "38": "encode_cyclic", "50": "encode_shift"}
    for number, helper in helpers.items():
        assert f"def {helper}(" in found[f"HumanEval/{number}"]


def test_the_rows_with_private_tests_have_more_than_their_public_ones() -> None:
    kinds = []
    for row in real("livecodebench_v1_3rows_full.jsonl"):
        problem = valid(livecodebench(row, "x", "x"))
        public = livecodebench(row | {"private_test_cases": ""}, "x", "x").answer["tests"]
        assert problem.answer["tests"][: len(public)] == public
        assert len(problem.answer["tests"]) > len(public)
        kinds.append(problem.answer["kind"])
    assert kinds == ["stdin", "call", "stdin"]


def test_all_public_rows_of_livecodebench_and_the_contests_sample_parse() -> None:
    rows = list(real("livecodebench_v1_public.jsonl"))
    calls = [valid(livecodebench(row, "x", "x")).answer["kind"] for row in rows].count("call")
    assert (len(rows), calls) == (400, 181)
    samples = [valid(code_contests(row, "x", "x")) for row in real("code_contests_sample.jsonl")]
    assert len(samples) == 20


def test_leetcodes_official_query_is_the_prompt_that_is_asked() -> None:
    row = next(real("leetcodedataset_v0.3.1_test.jsonl.gz"))
    messages = leetcodedataset(row, "x", "x").prompt
    assert isinstance(messages, tuple)
    asked = "\n\n".join(message["content"] for message in messages)
    assert asked.split() == row["query"].split()


def test_no_row_is_read_with_a_module_that_can_run_a_pickle() -> None:
    assert "pickle" not in vars(code_rows)
