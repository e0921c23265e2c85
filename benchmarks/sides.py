"""Two programs measured side by side: each in a process of its own, turn by turn.

The speed of a shared machine drifts by factors within the hour, so only a ratio taken in one
interleaved run says anything. Each side loads, warms up, and then does one round whenever it is
told to; the other side sleeps meanwhile. Printed are medians, their ratio, each side's peak memory,
and the rate of a plain matrix product beside them.

A side is a function that prepares and returns a function for one round, which returns the number of
tokens that it worked on.
"""

from __future__ import annotations

import contextlib
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

Side = Callable[[], Callable[[], int]]


def compare(script: str, sides: dict[str, Side], *, rounds: int, warm_up: int = 1) -> None:
    """Runs the sides of `script` in turn and prints what came out; the first is archer's."""
    if len(sys.argv) > 2 and sys.argv[1] == "--side":
        _serve(sides[sys.argv[2]])
        return
    children = {
        name: subprocess.Popen(
            [sys.executable, script, "--side", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )
        for name in sides
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    peaks: dict[str, float] = {}
    gemm: list[float] = []
    for number in range(warm_up + rounds):
        if number >= warm_up:
            gemm.append(gemm_gflops())
        for name, child in children.items():
            took, tokens, peak = _ask(child)
            if number >= warm_up:
                seconds[name].append(took)
                rates[name].append(tokens / took)
                peaks[name] = peak
                print(f"  round {number - warm_up + 1}  {name:<10} {took:7.2f} s", flush=True)
    for child in children.values():
        child.communicate("stop\n")
    print(f"{'':10}  {'seconds':>8}  {'tokens/s':>8}  {'peak GB':>8}")
    for name in sides:
        median = statistics.median(seconds[name])
        print(
            f"{name:<10}  {median:8.2f}  {statistics.median(rates[name]):8.0f}  {peaks[name]:8.2f}"
        )
    first, *others = sides
    for other in others:
        ratios = [b / a for a, b in zip(seconds[first], seconds[other], strict=True)]
        print(
            f"{first} is {statistics.median(ratios):.2f} x as fast as {other} "
            f"(rounds: {min(ratios):.2f} to {max(ratios):.2f})"
        )
    print(
        f"matrix product beside it: {statistics.median(gemm):.0f} GFLOPS ({min(gemm):.0f} to "
        f"{max(gemm):.0f}), {os.cpu_count()} cores"
    )


def gemm_gflops() -> float:
    """Rate of a float32 matrix product of 1536 x 1536, the best of five."""
    import torch

    a = torch.randn(1536, 1536)
    best = 1e9
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return float(2 * 1536**3 / best / 1e9)


def _ask(child: subprocess.Popen[str]) -> tuple[float, int, float]:
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write("go\n")
    child.stdin.flush()
    line = child.stdout.readline()
    if not line:
        sys.exit("a side ended early; see its message above")
    took, tokens, peak = line.split()
    return float(took), int(tokens), float(peak)


def _serve(side: Side) -> None:
    """In a side's own process: a round for each line on standard input."""
    answers = os.fdopen(os.dup(1), "w")
    with contextlib.redirect_stdout(sys.stderr):
        play = side()
        for line in sys.stdin:
            if line.strip() != "go":
                break
            start = time.perf_counter()
            tokens = play()
            took = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
            answers.write(f"{took} {tokens} {peak}\n")
            answers.flush()
