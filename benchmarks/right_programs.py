"""Are right programs accepted, and empty ones refused? Every reference solution that is at hand.

    python benchmarks/right_programs.py FOLDER [--show]

FOLDER holds the data sets by the names in tests/verify/code_sets.py. Each problem is judged with
its data set's own solution, where it has one, and with a stub that defines whatever the tests ask
for and returns nothing.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from pathlib import Path

from archer.data.code_rows import reference
from archer.data.rows import read_file
from archer.verify.pool import Ticket, WorkerPool
from tests.verify.code_sets import SETS, Converter, stub

CORES = len(os.sched_getaffinity(0))


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
    convert: Converter,
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
