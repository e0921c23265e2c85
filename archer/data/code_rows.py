"""Rows of programming data sets as problems for the verifier `code`: one function a layout.

    humaneval({"task_id": "HumanEval/0", "prompt": "def f(x):\\n", ...}, "row-1", "rows")

Each takes a row, an id for rows that have none, and a name for where rows without one come from. A
row that is no problem raises a ValueError whose one line is the same for every row with that fault,
so that it can be counted; the caller says which row. `reference` gives the solution that some
layouts hold. Tests that come packed are unpacked here; no program is run.
"""

from __future__ import annotations

import ast
import base64
import pickletools
import re
import warnings
import zlib
from collections.abc import Sequence
from typing import Any

from archer.data.problems import Row
from archer.data.rows import BROKEN, as_json, as_text, some_of
from archer.types import Message, Problem

NO_PROMPT = "no prompt"
NO_TESTS = "no tests, or tests that do not parse"
NOT_UNPACKED = "private tests that cannot be unpacked"
TOO_LARGE = "private tests larger than the limit when unpacked"
NOT_A_TEXT = "private tests in a pickle that holds anything but a text"

RUNNER = {"time_limit_s": 6, "runner": "livecodebench"}
"""What the official runner of LiveCodeBench allows for a test, and that its rules are meant."""

MOST_UNPACKED = 512 << 20
"""Bytes that private tests may have when unpacked: a few kilobytes can pack any number."""


def humaneval(row: Row, id: str, source: str) -> Problem:
    """A row of HumanEval: the head of a function, and `check(candidate)`."""
    head, test, name = (as_text(row[key]) for key in ("prompt", "test", "entry_point"))
    if not head:
        raise ValueError(NO_PROMPT)
    if not (test and name):
        raise ValueError(NO_TESTS)
    # Three tests call a helper that stands in the prompt. It is the data set's, not the answer's:
    # an answer could weaken its own copy.
    program = head + (as_text(row.get("canonical_solution")) or "    pass\n")
    helpers = _needed(program, _words(test) - {name}, (ast.Import, ast.ImportFrom, ast.FunctionDef))
    return _problem(
        id=as_text(row.get("task_id")) or id,
        prompt=HUMANEVAL.format(head=head.strip()),
        answer=_assertions(f"{helpers}{test}\n\ncheck({name})\n"),
        source="humaneval",
    )


def mbpp(row: Row, id: str, source: str) -> Problem:
    """A row of MBPP: a task in words and assert statements, which its official prompt shows."""
    tests, task = row["test_list"], as_text(row["text"])
    if not (isinstance(tests, list) and tests and all(isinstance(test, str) for test in tests)):
        raise ValueError(NO_TESTS)
    if not task:
        raise ValueError(NO_PROMPT)
    code = "\n".join(filter(None, [as_text(row.get("test_setup_code")), *tests])) + "\n"
    # A test that uses a module leaves the import to the reference solution.
    imports = _needed(as_text(row.get("code")), _words(code), (ast.Import, ast.ImportFrom))
    return _problem(
        id=f"mbpp-{row['task_id']}" if "task_id" in row else id,
        prompt=MBPP.format(task=task.strip(), tests="\n".join(tests)),
        answer=_assertions(imports + code),
        source="mbpp",
    )


def mbppplus(row: Row, id: str, source: str) -> Problem:
    """A row of MBPP+: the task of MBPP with its tests shown, and EvalPlus's own to judge by."""
    shown, task, test = row["test_list"], as_text(row["prompt"]), as_text(row["test"])
    if not task:
        raise ValueError(NO_PROMPT)
    if not (test and isinstance(shown, list) and all(isinstance(each, str) for each in shown)):
        raise ValueError(NO_TESTS)
    return _problem(
        id=f"mbppplus-{row['task_id']}" if "task_id" in row else id,
        prompt=MBPP.format(task=task.strip(), tests="\n".join(shown)),
        answer=_assertions(test),
        source="mbppplus",
    )


def leetcodedataset(row: Row, id: str, source: str) -> Problem:
    """A row of LeetCodeDataset: a question, starter code and `check(candidate)`."""
    question, test = as_text(row["problem_description"]), as_text(row["test"])
    name = as_text(row["entry_point"])
    if not question:
        raise ValueError(NO_PROMPT)
    if not (test and name):
        raise ValueError(NO_TESTS)
    return _problem(
        id=as_text(row.get("task_id")) or id,
        prompt=contest_prompt(question, as_text(row["starter_code"])),
        answer=_assertions(f"{test}\n\ncheck({name})\n"),
        source="leetcodedataset",
        meta=some_of(row, "difficulty", "estimated_date"),
    )


def livecodebench(row: Row, id: str, source: str) -> Problem:
    """A row of LiveCodeBench, with the prompt of its official runner; private tests if it has any.

    Private tests are a JSON text, or base64 of zlib of a pickle of such a text.
    """
    question, starter = as_text(row["question_content"]), as_text(row.get("starter_code"))
    if not question:
        raise ValueError(NO_PROMPT)
    tests = as_json(row["public_test_cases"])
    if packed := row.get("private_test_cases"):
        private = unpacked_tests(packed) if isinstance(packed, str) else packed
        if not (isinstance(tests, list) and isinstance(private, list)):
            raise ValueError(NO_TESTS)
        tests = tests + private
    metadata = as_json(row.get("metadata"))
    name = metadata.get("func_name") if isinstance(metadata, dict) else None
    return _problem(
        id=as_text(row.get("question_id")) or id,
        prompt=contest_prompt(question, starter),
        answer=_contest_tests(tests, name, starter),
        source="livecodebench",
        meta=some_of(row, "question_title", "platform", "difficulty", "contest_date"),
    )


def code_contests(row: Row, id: str, source: str) -> Problem:
    """A row of CodeContests as SandboxFusion keeps it: tests of {"stdin"} and {"stdout"}."""
    question, tests = as_text(row["content"]), as_json(row["test"])
    if not question:
        raise ValueError(NO_PROMPT)
    if not (isinstance(tests, list) and tests):
        raise ValueError(NO_TESTS)
    labels = as_json(row["labels"])
    return _problem(
        id=f"code_contests-{row['id']}" if "id" in row else id,
        prompt=contest_prompt(question, ""),
        answer={"kind": "stdin", "tests": [_piped(test) for test in tests]},
        source="code_contests",
        meta=some_of(labels, "name", "source", "difficulty") if isinstance(labels, dict) else {},
    )


def deepmind_code_contests(row: Row, id: str, source: str) -> Problem:
    """A row of CodeContests as DeepMind keeps it: public, private and generated tests."""
    question, tests = as_text(row["description"]), []
    if not question:
        raise ValueError(NO_PROMPT)
    if as_text(row.get("input_file")) or as_text(row.get("output_file")):
        raise ValueError("reads or writes a file of its own")
    for name in ("public_tests", "private_tests", "generated_tests"):
        match row.get(name) or {"input": [], "output": []}:
            case {"input": list(given), "output": list(said)} if len(given) == len(said):
                tests += list(zip(given, said, strict=True))
            case _:
                raise ValueError(NO_TESTS)
    if not tests:
        raise ValueError(NO_TESTS)
    answer = _paired([given for given, _ in tests], [expected for _, expected in tests])
    limit = row.get("memory_limit_bytes")
    megabytes = limit >> 20 if isinstance(limit, int) else 0
    return _problem(
        id=as_text(row.get("name")) or id,
        prompt=contest_prompt(question, ""),
        answer=answer | ({"memory_limit_mb": megabytes} if megabytes else {}),
        source="code_contests",
        meta=some_of(row, "difficulty", "cf_rating"),
    )


def released(prompt: str | tuple[Message, ...], truth: object, id: str, source: str) -> Problem:
    """A programming problem of the data sets released with Archer; `truth` is its ground truth.

    That is a JSON text: {"functional": tests}, {"inputs", "outputs"}, or LiveCodeBench's list.
    """
    if not prompt:
        raise ValueError(NO_PROMPT)
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    truth = as_json(truth)
    if isinstance(truth, dict) and set(truth) == {"functional"} and as_text(truth["functional"]):
        answer = _assertions(truth["functional"])
    elif isinstance(truth, dict) and set(truth) == {"inputs", "outputs"}:
        answer = _paired(truth["inputs"], truth["outputs"])
    else:
        answer = _contest_tests(truth, None, text)
    return _problem(id=id, prompt=prompt, answer=answer, source=source)


def reference(row: Row) -> str | None:
    """The solution that a row of one of these data sets holds, as a model answers.

    None for rows without one. What the data set takes for given (LeetCodeDataset's imports and
    helpers, HumanEval's head) is part of it.
    """
    if "starter_code" in row and as_text(row.get("completion")):
        # The header imports all of math, whose pow takes no modulus; two solutions need Python's.
        header = f"{as_text(row.get('prompt'))}\nfrom builtins import *\n\n"
        program = header + row["completion"]
    elif as_text(row.get("canonical_solution")):
        program = as_text(row.get("prompt")) + row["canonical_solution"]
    elif "test_list" in row and as_text(row.get("code")):
        program = row["code"]
    elif isinstance(row.get("solutions"), dict):
        return _first_in_python(row["solutions"])
    else:
        return None
    return f"```python\n{program.strip()}\n```"


def _first_in_python(solutions: Row) -> str | None:
    """Of CodeContests, which numbers its languages."""
    python_3 = 3
    languages, texts = solutions.get("language"), solutions.get("solution")
    if not (isinstance(languages, list) and isinstance(texts, list)):
        return None
    pairs = zip(languages, texts, strict=False)
    return next((f"```python\n{text}\n```" for kind, text in pairs if kind == python_3), None)


# Tests


def _assertions(code: str) -> Row:
    # LeetCode's tests know infinity by this name, from a header that every solution gets there.
    return {"kind": "assert", "code": _needed(INFINITY, _words(code), (ast.Assign,)) + code}


INFINITY = "inf = float('inf')\n"


def _paired(inputs: object, outputs: object) -> Row:
    """The tests of programs that read a text and write one."""
    if not (isinstance(inputs, list) and isinstance(outputs, list)):
        raise ValueError(NO_TESTS)
    if not inputs or len(inputs) != len(outputs):
        raise ValueError(NO_TESTS)
    pairs = zip(inputs, outputs, strict=True)
    return {"kind": "stdin", "tests": [{"input": a, "output": b} for a, b in pairs]}


def _piped(test: object) -> Row:
    """{"input": {"stdin": a}, "output": {"stdout": b}} as {"input": a, "output": b}."""
    match test:
        case {"input": {"stdin": str(given)}, "output": {"stdout": str(expected)}}:
            return {"input": given, "output": expected}
    raise ValueError(NO_TESTS)


def _contest_tests(tests: object, name: object, program: str) -> Row:
    """LiveCodeBench's tests: of whole programs, or of a function with JSON in and out.

    name: the function that is called, where the row knows it. program: the text that shows whether
    it is a method of `Solution`.
    """
    if not (isinstance(tests, list) and tests and all(isinstance(test, dict) for test in tests)):
        raise ValueError(NO_TESTS)
    kinds = {test.get("testtype") for test in tests}
    if kinds == {"stdin"}:
        cases = [{"input": test.get("input"), "output": test.get("output")} for test in tests]
        return {"kind": "stdin", "tests": cases, **RUNNER}
    metadata = tests[0].get("metadata")
    if name is None and isinstance(metadata, dict):
        name = metadata.get("func_name")
    if kinds != {"functional"} or not isinstance(name, str):
        raise ValueError(NO_TESTS)
    method = f"Solution.{name}" if "class Solution" in program else name
    calls = [_call(test) for test in tests]
    return {"kind": "call", "name": method, "tests": calls, **RUNNER}


def _call(test: Row) -> Row:
    """The test of a function: one JSON value a line for each argument."""
    lines = as_text(test.get("input")).split("\n")  # other line ends may stand in a JSON text
    arguments = [as_json(line) for line in lines if line.strip()]
    output = as_json(test.get("output"))
    if any(value is BROKEN for value in (*arguments, output)):
        raise ValueError(NO_TESTS)
    return {"input": arguments, "output": output}


def unpacked_tests(text: str, *, limit: int = MOST_UNPACKED) -> list[Any]:
    """LiveCodeBench's private tests: a JSON text, or base64 of zlib of a pickle of one.

    No more than `limit` bytes are unpacked, and no pickle is run.
    """
    if not text.lstrip().startswith("["):
        inflater = zlib.decompressobj()
        try:
            pickled = inflater.decompress(base64.b64decode(text), limit + 1)
        except (ValueError, zlib.error) as error:
            raise ValueError(NOT_UNPACKED) from error
        if len(pickled) > limit:
            raise ValueError(TOO_LARGE)
        if not inflater.eof:
            raise ValueError(NOT_UNPACKED)
        text = pickled_text(pickled)
    tests = as_json(text)
    if not isinstance(tests, list):
        raise ValueError(NO_TESTS)
    return tests


def pickled_text(pickled: bytes) -> str:
    """The text in a pickle that holds one text and nothing else.

    The instructions are read and not carried out: a pickle's may import, call and allocate.
    """
    found: list[str] = []
    try:
        for instruction, value, _ in pickletools.genops(pickled):
            if instruction.name in TEXTS:
                found.append(str(value))
            elif instruction.name not in HARMLESS:
                raise ValueError(NOT_A_TEXT)
            if len(found) > 1:
                raise ValueError(NOT_A_TEXT)
    except ValueError as error:
        raise ValueError(NOT_A_TEXT) from error
    if not found:
        raise ValueError(NOT_A_TEXT)
    return found[0]


TEXTS = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE")
HARMLESS = ("PROTO", "FRAME", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "STOP")


# Names that tests use and do not define


def _needed(program: str, words: set[str], kinds: tuple[type[ast.stmt], ...]) -> str:
    """Those statements of a program, of these kinds, that give the words a meaning, and theirs.

    Read from the end: where a name is bound twice, the later statement counts. A program that does
    not parse gives nothing.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes in somebody else's texts
            statements = ast.parse(program).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    words, taken = set(words), []
    for statement in reversed(statements):
        names = _names(statement)
        if names & words:
            words -= names
            if isinstance(statement, kinds):
                taken.append(ast.unparse(statement))
                words |= _words(taken[-1]) - names
    return "".join(f"{text}\n\n" for text in reversed(taken))


def _names(statement: ast.stmt) -> set[str]:
    """The names that a statement of a module binds."""
    match statement:
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return {(name.asname or name.name).partition(".")[0] for name in names}
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Assign(targets=targets):
            return {target.id for target in targets if isinstance(target, ast.Name)}
    return set()


def _words(code: str) -> set[str]:
    """Every word in a text: at least the names that it uses."""
    return set(re.findall(r"[^\W\d]\w*", code))


# Problems and their prompts


def _problem(
    *,
    id: str,
    prompt: str | Sequence[Message],
    answer: Row,
    source: str,
    meta: Row | None = None,
) -> Problem:
    prompt = prompt if isinstance(prompt, str) else tuple(prompt)
    return Problem(
        id=id, prompt=prompt, verifier="code", answer=answer, source=source, meta=meta or {}
    )


def contest_prompt(question: str, starter: str) -> tuple[Message, ...]:
    """The prompt of LiveCodeBench's official runner, with starter code or without ("")."""
    task = STARTER_CODE.format(starter=starter) if starter else PLAIN_PROGRAM
    return (
        {"role": "system", "content": CODE_SYSTEM},
        {"role": "user", "content": f"### Question:\n{question}\n\n{task}{ANSWER_HERE}"},
    )


# The prompts of the official runner of LiveCodeBench, which LeetCodeDataset uses too, and of the
# papers of HumanEval and MBPP.

CODE_SYSTEM = (
    "You are an expert Python programmer. You will be given a question (problem specification) and "
    "will generate a correct Python program that matches the specification and passes all tests."
)
STARTER_CODE = (
    "### Format: You will use the following starter code to write the solution to the problem and "
    "enclose your code within delimiters.\n```python\n{starter}\n```\n\n"
)
PLAIN_PROGRAM = (
    "### Format: Read the inputs from stdin solve the problem and write the answer to stdout (do "
    "not directly test on the sample inputs). Enclose your code within delimiters as follows. "
    "Ensure that when the python program runs, it reads the inputs, runs the algorithm and writes "
    "output to STDOUT.\n```python\n# YOUR CODE HERE\n```\n\n"
)
ANSWER_HERE = "### Answer: (use the provided format with backticks)\n\n"
HUMANEVAL = (
    "Complete the following Python function. Answer with the whole code, the given lines included, "
    "in one block.\n```python\n{head}\n```"
)
MBPP = (
    "You are an expert Python programmer, and here is your task: {task} Your code should pass "
    "these tests:\n\n{tests}"
)
