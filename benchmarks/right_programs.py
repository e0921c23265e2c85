"""Are right programs accepted, and empty ones refused? Every reference solution that is at hand.

    python benchmarks/right_programs.py FOLDER [--show]

FOLDER holds the data sets by the names in `SETS`. Each problem is judged with its data set's own
solution, where it has one, and with a stub that defines whatever the tests ask for and returns
nothing.
"""

from __future__ import annotations

import argparse
import ast
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from archer.data.code_rows import (
    code_contests,
    humaneval,
    leetcodedataset,
    livecodebench,
    mbpp,
    reference,
)
from archer.data.problems import Row
from archer.data.rows import read_file
from archer.types import Problem
from archer.verify.pool import Ticket, WorkerPool

SETS: dict[str, tuple[str, Callable[[Row, str, str], Problem]]] = {
    "HumanEval": ("humaneval.jsonl", humaneval),
    "MBPP": ("mbpp.jsonl", mbpp),
    "LeetCodeDataset": ("leetcodedataset_v0.3.1_test.jsonl.gz", leetcodedataset),
    "CodeContests": ("code_contests_sample.jsonl", code_contests),
    "LiveCodeBench": ("livecodebench_v1_3rows_full.jsonl", livecodebench),
}
"""Name -> its file, and what makes a problem of a row."""

CORES = len(os.sched_getaffinity(0))


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


def main() -> None:
    """Judges and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--show", action="store_true", help="name what is not accepted")
    options = parser.parse_args()
    print(f"{'data set':16}  {'rows':>5}  {'right':>9}  {'stubs':>5}  {'seconds':>7}  others")
    with WorkerPool(workers=CORES) as pool:
        for name, (file, convert) in SETS.items():
            path = options.folder / file
            if path.exists():
                _judge_set(pool, name, path, convert, options.show)
            else:
                print(f"{name:16}  {file} is not in {options.folder}")


def _judge_set(
    pool: WorkerPool,
    name: str,
    path: Path,
    convert: Callable[[Row, str, str], Problem],
    show: bool,
) -> None:
    begin = time.perf_counter()
    right: dict[str, Ticket] = {}
    stubs: dict[str, Ticket] = {}
    for number, row in read_file(path):
        problem = convert(row, f"{name}-{number}", name)
        if response := reference(row):
            right[problem.id] = pool.submit(problem, response, False)
        stubs[problem.id] = pool.submit(problem, f"```python\n{stub(problem)}\n```", False)
    accepted = sum(ticket.result().outcome == "correct" for ticket in right.values())
    fooled = [id for id, ticket in stubs.items() if ticket.result().outcome == "correct"]
    others = Counter(ticket.result().outcome for ticket in right.values())
    del others["correct"]
    seconds = time.perf_counter() - begin
    counts = ", ".join(f"{count} {outcome}" for outcome, count in others.items())
    print(
        f"{name:16}  {len(stubs):5}  {accepted:4}/{len(right):4}  {len(fooled):5}  {seconds:7.1f}  "
        f"{counts}"
    )
    if show:
        for id, ticket in right.items():
            if ticket.result().outcome != "correct":
                print(f"    {id}: {ticket.result().outcome}, {ticket.result().detail}")
        for id in fooled:
            print(f"    {id}: the stub is accepted")


if __name__ == "__main__":
    main()
