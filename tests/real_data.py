"""Real data sets, read from the folder beside this repository; tests are skipped without them."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def real_file(name: str) -> Path:
    """Its path; skips where it is not there."""
    if not (DATA / name).exists():
        pytest.skip(f"{name} does not lie in ../shared/data")
    return DATA / name


@cache
def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a file: JSON lines, perhaps compressed, or one JSON list."""
    path = real_file(name)
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if path.suffix == ".json":
        return list(json.loads(data))
    return [json.loads(line) for line in data.splitlines()]
