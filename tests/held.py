"""What a hub of these tests holds of each data set: small files of our own, in its layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from archer.prepare.named import find_parts
from tests.local_hub import Hub

ROWS = Path(__file__).with_name("rows")
"""A file for each layout, and two more for data sets that write the first one in their own way."""


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROWS / f"{name}.jsonl").read_text().splitlines()]


def content(file: str, rows: list[dict[str, Any]], folder: Path) -> bytes:
    """The bytes of a file of this name with these rows."""
    if file.endswith(".jsonl"):
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if file.endswith(".json"):
        return json.dumps(rows).encode()
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    return (folder / "rows.parquet").read_bytes()


HELD = {
    "archer-code-1.5b": {"train/archercoder-1.5b-train.json": "archer"},
    "archer2-code-1.5b": {"archer2.0-code-1.5b-train.json": "archer-flat"},
    "deepscaler": {"deepscaler.json": "mathematics"},
    "dapo-math-17k": {"data/dapo-math-17k.parquet": "dapo"},
    "skywork-or1-math": {"data/math-00000-of-00001.parquet": "skywork"},
    "gsm8k": {"main/test-00000-of-00001.parquet": "gsm8k"},
    "math500": {"test.jsonl": "mathematics"},
    "aime24": {"data/train-00000-of-00001.parquet": "gsm8k"},
    "aime25": {"aime2025-I.jsonl": "mathematics", "aime2025-II.jsonl": "gsm8k"},
    "amc23": {"data/test-00000-of-00001.parquet": "gsm8k"},
    "minerva": {"data/test-00000-of-00001.parquet": "gsm8k"},
    "olympiadbench": {"OE_TO_maths_en_COMP/OE_TO_maths_en_COMP.parquet": "olympiadbench"},
    "livecodebench": {
        "test.jsonl": "livecodebench",
        **{f"test{n}.jsonl": "code_contests" for n in range(2, 7)},
    },
    "humaneval": {"openai_humaneval/test-00000-of-00001.parquet": "humaneval"},
    "humaneval+": {"data/test-00000-of-00001-5973903632b82d40.parquet": "humaneval"},
    "mbpp": {
        f"full/{split}-00000-of-00001.parquet": "mbpp"
        for split in ("train", "validation", "test", "prompt")
    },
    "mbpp+": {"data/test-00000-of-00001-d5781c9c51e02795.parquet": "mbppplus"},
    "leetcode": {"LeetCodeDataset-v0.3.1-train.jsonl": "leetcodedataset"},
    "code-contests": {
        "data/train-00000-of-00039-e991a271dbfa9925.parquet": "deepmind_code_contests"
    },
}
"""The files that a data set's repository has, and whose rows each of them gets here."""


def fill(hub: Hub, name: str, folder: Path) -> str:
    """Gives the hub the repository of a data set; returns its commit."""
    (part,) = find_parts(name, {})
    files = {file: content(file, rows(of), folder) for file, of in HELD[name].items()}
    return hub.commit(part.repo, {"README.md": b"own\n", **files})
