"""What is printed when a run ends: before and after, the curve, where the time went, what is next.

Made from the files of the run folder alone, so it can be had of any run at any time. Comparisons
of runs, and pages, are made elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from archer.config import Config, load_config
from archer.run import checkpoint_steps
from archer.terminal import table

PARTS = {
    "rollout": "sampling and judging",
    "score": "log-probs before the update",
    "update": "update",
    "publish": "handing over weights",
    "eval": "evaluation",
}
"""Parts of the time, as `seconds/NAME` in metrics.jsonl; what is left is everything else."""

CURVE_WIDTH, CURVE_HEIGHT = 60, 7

Rows = Sequence[dict[str, Any]]


def summary(folder: Path) -> str:
    """A text of at most 80 columns, as long as the folder's own name is short."""
    config = load_config(folder / "config.toml")
    rows = _metrics(folder)
    parts = [
        _before_and_after(folder),
        _curve([(row["step"], row["accuracy"]) for row in rows if row.get("accuracy") is not None]),
        _times(rows),
        _numbers(rows),
        _places(folder, config),
        _next(folder, config),
    ]
    return "\n\n".join(part for part in parts if part)


def _metrics(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _before_and_after(folder: Path) -> str:
    """The first and the last evaluation, and the best one if it is neither."""
    found = {
        int(path.stem.removeprefix("step-")): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((folder / "eval").glob("step-*.json"))
    }
    if not found:
        return "This run was not evaluated: its recipe names no data.evaluate."
    first, last = min(found), max(found)
    best = max(found, key=lambda step: (found[step]["score"]["mean"], -step))
    names = {first: "before" if first == 0 else "first", last: "after"}
    names.setdefault(best, "best")
    rows: list[tuple[str, ...]] = []
    for step in sorted(names):
        score = found[step]["score"]
        rows.append(
            (
                f"{names[step]} (step {step})",
                f"{score['mean']:.3f}",
                f"[{score['low']:.3f}, {score['high']:.3f}]",
                f"{found[step]['truncated']:.3f}",
                f"{found[step]['mean_tokens']:.1f}",
            )
        )
    one = found[last]
    header = ("evaluation", "score", "95 % interval", "truncated", "tokens")
    return (
        f"{table(rows, header)}\n{one['problems']} problems, {one['samples']} "
        f"sample{'s' * (one['samples'] > 1)} each"
    )


def _curve(points: Sequence[tuple[int, float]]) -> str:
    """Accuracy in training over the steps, drawn in text; steps of one column are averaged."""
    if len(points) < 2:
        return ""
    num_columns = min(CURVE_WIDTH, len(points))
    columns: list[list[float]] = [[] for _ in range(num_columns)]
    for place, (_, value) in enumerate(points):
        columns[place * num_columns // len(points)].append(value)
    means = [sum(column) / len(column) for column in columns]
    low, high = min(means), max(means)
    span = high - low or 1.0
    heights = [round((mean - low) / span * (CURVE_HEIGHT - 1)) for mean in means]
    lines = []
    for level in reversed(range(CURVE_HEIGHT)):
        label = {CURVE_HEIGHT - 1: f"{high:.3f}", 0: f"{low:.3f}"}.get(level, "")
        dots = "".join("*" if height == level else " " for height in heights)
        lines.append(f"{label:>9} |{dots}".rstrip())
    first, last = f"{points[0][0]}", f"{points[-1][0]}"
    gap = max(1, num_columns - len(first) - len(last))
    axis = f"{'step':>9}  {first}{' ' * gap}{last}"
    return "\n".join(["accuracy of the samples trained on, by step", *lines, axis])


def _times(rows: Rows) -> str:
    """Seconds by part and their share. Judging runs beside sampling: it is no part of its own."""
    spent = {part: _sum(rows, f"seconds/{part}") for part in PARTS}
    whole = _sum(rows, "seconds/step") + spent["eval"]
    if not whole:
        return ""
    spent["rest"] = max(0.0, whole - sum(spent.values()))
    lines: list[tuple[str, ...]] = [
        (PARTS.get(part, "everything else"), f"{seconds:.1f} s", f"{seconds / whole:.0%}")
        for part, seconds in spent.items()
        if seconds >= 0.005 * whole
    ]
    lines.append(("in all", f"{whole:.1f} s", ""))
    return table(lines, ("where the time went", "", ""))


def _numbers(rows: Rows) -> str:
    peak, together = (_most(rows, f"memory/{name}_gb") for name in ("peak", "all"))
    if peak is None:
        return ""
    several = together is not None and together > peak
    lines = [
        ("tokens sampled", f"{_sum(rows, 'tokens/generated'):,.0f}"),
        ("tokens trained on", f"{_sum(rows, 'tokens/trained'):,.0f}"),
        ("optimizer steps", f"{_sum(rows, 'updates'):,.0f}"),
        ("weighted otherwise than by grpo", _share(rows, "weighted_unlike_grpo")),
        ("weighted otherwise than by 1", _share(rows, "weighted_unlike_one")),
        ("grader errors", f"{_sum(rows, 'verdicts/error'):,.0f}"),
        ("peak memory", f"{peak:.2f} GB" + " in one process" * several),
        *([("peaks of all processes", f"{together:.2f} GB")] if several else []),
    ]
    return table([*lines])


def _places(folder: Path, config: Config) -> str:
    steps = checkpoint_steps(folder)
    lines = [f"metrics      {folder / 'metrics.jsonl'}", f"answers      {folder / 'rollouts'}/"]
    if config.data.evaluate:
        lines.append(f"evaluations  {folder / 'eval'}/")
    if steps:
        lines.append(f"weights      {folder / 'checkpoints' / f'step-{steps[-1]:06d}'}/")
    return "\n".join(lines)


def _next(folder: Path, config: Config) -> str:
    more = config.train.steps * 2
    commands = [f"archer export {folder} {folder.name}-model"]
    if config.data.evaluate:
        commands.append(f"archer eval {folder} --samples 8")
    else:
        commands.append(f"archer eval {folder} --problems FILE.jsonl --samples 8")
    commands.append(f"archer train {folder / 'config.toml'} train.steps={more} --run {folder}")
    return "\n".join(["what to try next", *(f"  {command}" for command in commands)])


def _share(rows: Rows, name: str) -> str:
    """Mean over the steps that learned something."""
    found = [row[name] for row in rows if row.get(name) is not None]
    return f"{sum(found) / len(found):.1%} of tokens" if found else "-"


def _most(rows: Rows, name: str) -> float | None:
    return max((row[name] for row in rows if name in row), default=None)


def _sum(rows: Rows, name: str) -> float:
    return float(sum(row.get(name) or 0 for row in rows))
