"""Preparing a large file: rows a second and peak memory of `archer prepare` on one JSON array.

    python benchmarks/big_prepare.py [--rows 200000] [--checked] [--near-duplicates 0.7]
                                     [--without SUITE.jsonl]

The array holds code problems in the layout released with Archer, 1.2 GB of them by default, and is
written in a stream into a temporary folder that is removed afterwards. `archer prepare` reads it in
a process of its own, without trying references unless --checked is given; what it prints is left
out. Memory is the largest resident size of that process (with --checked: of the largest of its
workers, if that is larger). Exit code 1 if it passes 1 GB.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from large_file import write_array

LIMIT_MB = 1000
MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024
"""Of a unit of `ru_maxrss`."""


def main() -> int:
    """Measures, prints, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--checked", action="store_true", help="try references and tests")
    parser.add_argument("--near-duplicates", metavar="SHARE")
    parser.add_argument("--without", metavar="SUITE")
    options = parser.parse_args()
    more = [] if options.checked else ["--unchecked"]
    for name in ("near_duplicates", "without"):
        if (value := getattr(options, name)) is not None:
            more += [f"--{name.replace('_', '-')}", value]
    with tempfile.TemporaryDirectory() as folder:
        raw, out = Path(folder) / "raw.json", Path(folder) / "out.jsonl"
        size = write_array(raw, options.rows)
        begin = time.perf_counter()
        peak = prepare(raw, out, *more)
        seconds = time.perf_counter() - begin
        written = out.stat().st_size
        with open(out, "rb") as file:
            kept = sum(1 for _ in file)
    print(
        f"{options.rows:,} rows, {size / 1e6:,.0f} MB -> {kept:,} problems, {written / 1e6:,.0f} MB"
    )
    print(f"{seconds:.1f} s: {options.rows / seconds:,.0f} rows/s, {size / 1e6 / seconds:.1f} MB/s")
    print(f"peak resident memory {peak:,.0f} MB (allowed: {LIMIT_MB:,})")
    return int(peak > LIMIT_MB)


def prepare(raw: Path, out: Path, *more: str) -> float:
    """Runs the command; returns its peak memory in MB."""
    command = [
        sys.executable,
        "-m",
        "archer.cli",
        "prepare",
        str(raw),
        "--out",
        str(out),
        "--quiet",
    ]
    silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    pid = os.posix_spawn(sys.executable, [*command, *more], os.environ, file_actions=silent)
    _, status, usage = os.wait4(pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"archer prepare ended with exit code {code}")
    return usage.ru_maxrss * MAXRSS_BYTES / 1e6


if __name__ == "__main__":
    sys.exit(main())
