"""One JSON array of code problems in the layout released with Archer, of any size.

No two problems are alike, an empty program passes none of them, and the same arguments give the
same bytes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LINES = 1000
"""Different inputs of tests that there are."""
WORDS = 5000
"""Different words that prompts are made of."""
PROMPT = 150
"""Words of a prompt, about 1 kB."""
TESTS = 10
"""Tests of a problem."""


def write_array(path: Path, rows: int, *, row_bytes: int = 5800) -> int:
    """Writes an array of so many rows, of about so many bytes each; returns the bytes written."""
    with open(path, "w") as file:
        for number, row in enumerate(large_rows(rows, row_bytes)):
            file.write((",\n" if number else "[") + json.dumps(row))
        file.write("]\n")
    return path.stat().st_size


def large_rows(rows: int, row_bytes: int) -> Iterator[dict[str, Any]]:
    """The rows one by one."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randrange(2, 10))) for _ in range(WORDS)]
    numbers = (row_bytes - 1500) // (TESTS * 5)
    inputs = [[draw.randrange(1000, 10_000) for _ in range(numbers)] for _ in range(LINES)]
    lines = [(" ".join(map(str, found)) + "\n", f"{sum(found)}\n") for found in inputs]
    for number in range(rows):
        tests = draw.choices(lines, k=TESTS)
        truth = {"inputs": [given for given, _ in tests], "outputs": [said for _, said in tests]}
        question = " ".join(draw.choices(words, k=PROMPT))
        yield {
            "data_source": "code",
            "prompt": [{"role": "user", "content": f"Problem {number}. Add them up. {question}"}],
            "ability": "code",
            "reward_model": {"style": "rule", "ground_truth": json.dumps(truth)},
            "extra_info": {"index": number, "split": "train"},
        }
