"""Judging programs: archer's sandbox against the two ways of the released code, in turn.

    python benchmarks/programs.py [--rounds 5]

Three ways to run a small program on its standard input, all on all cores, end to end:

    archer     the pool, full isolation: a fork server for each core, fresh namespaces for each run
    prlimit    `prlimit python program.py` as a new process, as the released verifier runs code
    manager    a multiprocessing Manager and a Process for each sample, as its other verifier does

The programs are all different, so that none is judged by joining it to an equal one. The last two
isolate nothing; the programs here are this file's own. Then: 50 calls of one program in one child,
and how long a worker takes from nothing to its first verdict.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from archer.types import Problem
from archer.verify.pool import WorkerPool

CORES = len(os.sched_getaffinity(0))
GIVEN, EXPECTED = "2 3\n", "5"


def program(number: int) -> str:
    """A small program, unlike those of other numbers."""
    return f"a, b = map(int, input().split())\nprint(a + b)  # {number}\n"


def problem(answer: dict[str, Any]) -> Problem:
    """A problem for it."""
    return Problem(id="sum", prompt="?", verifier="code", answer=answer)


STDIN = problem({"kind": "stdin", "tests": [{"input": GIVEN, "output": EXPECTED}]})
CALLS = problem(
    {
        "kind": "call",
        "name": "add",
        "tests": [{"input": [i, 7], "output": i + 7} for i in range(50)],
    }
)


def by_archer(pool: WorkerPool, programs: list[str]) -> int:
    """How many are correct by the pool."""
    tickets = [pool.submit(STDIN, f"```python\n{source}```", False) for source in programs]
    return sum(ticket.result().outcome == "correct" for ticket in tickets)


def by_prlimit(folder: Path, programs: list[str]) -> int:
    """How many are right, each a new process under `prlimit`."""

    def judge(place: int) -> bool:
        path = folder / f"{place}.py"
        path.write_text(programs[place])
        command = ["prlimit", f"--as={2**32}", sys.executable, str(path)]
        done = subprocess.run(command, input=GIVEN, capture_output=True, text=True, check=False)
        return done.stdout.strip() == EXPECTED

    with ThreadPoolExecutor(CORES) as threads:
        return sum(threads.map(judge, range(len(programs))))


def by_manager(programs: list[str]) -> int:
    """How many are right, each with a Manager and a Process of its own."""
    with ThreadPoolExecutor(CORES) as threads:
        return sum(threads.map(_in_a_manager, programs))


def _in_a_manager(source: str) -> bool:
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager:
        result = manager.list()
        process = context.Process(target=_execute, args=(source, result))
        process.start()
        process.join(6)
        return list(result) == [EXPECTED]


def _execute(source: str, result: Any) -> None:
    sys.stdin = io.StringIO(GIVEN)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(source, {})
    result.append(said.getvalue().strip())


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    rates: dict[str, list[float]] = {"archer": [], "prlimit": [], "manager": []}
    calls: list[float] = []
    with tempfile.TemporaryDirectory() as folder, WorkerPool(workers=CORES) as pool:
        by_archer(pool, [program(i) for i in range(-20, 0)])  # workers and servers start
        for number in range(rounds):
            first = number * 1000
            for name, count in (("archer", 800), ("prlimit", 60), ("manager", 60)):
                programs = [program(first + i) for i in range(count)]
                begin = time.perf_counter()
                if name == "archer":
                    right = by_archer(pool, programs)
                elif name == "prlimit":
                    right = by_prlimit(Path(folder), programs)
                else:
                    right = by_manager(programs)
                rates[name].append(count / (time.perf_counter() - begin) / CORES)
                assert right == count, f"{name}: {right} of {count}"
            calls.append(_calls(first))
    print(f"{'way':10}  {'programs a second and core':>28}")
    for name, found in rates.items():
        print(f"{name:10}  {_shown(found):>28}")
    for name in ("prlimit", "manager"):
        ratio = statistics.median(rates["archer"]) / statistics.median(rates[name])
        print(f"archer is {ratio:.1f} times as fast as {name}")
    print(f"50 calls of one program in one child: {_shown(calls)} calls a second, start included")
    print(f"from nothing to the first verdict of a worker: {_first_verdict():.0f} ms")


def _calls(first: int) -> float:
    """Calls a second with one worker, the start of each child included."""
    with WorkerPool(workers=1) as pool:
        responses = [
            f"```python\ndef add(a, b):\n    return a + b  # {first + i}\n```" for i in range(60)
        ]
        pool.submit(CALLS, "```python\nadd = lambda a, b: a + b\n```", False).result()
        begin = time.perf_counter()
        for ticket in [pool.submit(CALLS, response, False) for response in responses]:
            assert ticket.result().outcome == "correct"
        return 50 * len(responses) / (time.perf_counter() - begin)


def _first_verdict() -> float:
    """Milliseconds, the median of five workers."""
    took = []
    for i in range(5):
        with WorkerPool(workers=1) as pool:
            begin = time.perf_counter()
            pool.submit(STDIN, f"```python\n{program(i)}```", False).result()
            took.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(took)


def _shown(found: list[float]) -> str:
    return f"{statistics.median(found):,.0f} ({min(found):,.0f} to {max(found):,.0f})"


if __name__ == "__main__":
    main()
