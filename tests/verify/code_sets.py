"""Real data sets of programming problems, and programs that no test of theirs may accept."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from archer.data.code_rows import code_contests, humaneval, leetcodedataset, livecodebench, mbpp
from archer.data.problems import Row
from archer.types import Problem

Converter = Callable[[Row, str, str], Problem]

SETS: dict[str, tuple[str, Converter]] = {
    "HumanEval": ("humaneval.jsonl", humaneval),
    "MBPP": ("mbpp.jsonl", mbpp),
    "LeetCodeDataset": ("leetcodedataset_v0.3.1_test.jsonl.gz", leetcodedataset),
    "CodeContests": ("code_contests_sample.jsonl", code_contests),
    "LiveCodeBench": ("livecodebench_v1_3rows_full.jsonl", livecodebench),
}
"""Name -> its file, and what makes a problem of a row."""


def stub(problem: Problem) -> str:
    """A program that defines every name that the tests ask for, and returns nothing."""
    answer: dict[str, Any] = problem.answer
    if answer["kind"] == "stdin":
        return "pass"
    if answer["kind"] == "call":
        names = {answer["name"]}
    else:
        tree = ast.parse(answer["code"])
        names = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    methods = {name.rpartition(".")[2] for name in names if name.startswith("Solution")}
    body = "".join(f"    def {name}(self, *a, **k): pass\n" for name in sorted(methods))
    functions = "".join(
        f"def {name}(*a, **k): pass\n" for name in sorted(names) if name.isidentifier()
    )
    return f"{functions}class Solution:\n    pass\n{body}"
