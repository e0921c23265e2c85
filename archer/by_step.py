"""The scores of a run's checkpoints by step: a table and metrics, made from the files of results.

    step-000030-NAME.json     a result of `archer eval` on the problem file NAME
    step-000030-NAME.missed   why there is none: "gone", or what was wrong
    scores.md                 the table
    metrics.jsonl             the same numbers, one object a step

Table and metrics are functions of the other files alone: whoever writes them, in whichever order
the results came, they are the same bytes. Left out: how results come about (archer.watch).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from archer.scores import Evaluation, read_evaluation
from archer.terminal import table

GONE = "gone"
"""The reason where a checkpoint was removed before it was evaluated."""

RESULT = re.compile(r"step-(\d{6,})-(.+)\.(json|missed)")

LONGEST = 40
"""Characters of a problem file's name that the terminal shows."""

HEADER = ("step", "score", "95 % interval", "pass@{k}", "truncated", "tokens", "")

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What there is of one problem file.

    Example: Found(results={30: Evaluation(...)}, missed={10: "gone"})
    """

    results: dict[int, Evaluation]
    missed: dict[int, str]

    @property
    def best(self) -> int | None:
        """The step of the highest score, the first of several."""
        means = {step: result.score["mean"] for step, result in self.results.items()}
        return max(means, key=lambda step: (means[step], -step), default=None)

    @property
    def steps(self) -> list[int]:
        return sorted(self.results.keys() | self.missed.keys())


def result_path(folder: Path, step: int, name: str) -> Path:
    """Where the result of a step on a problem file is."""
    return folder / f"step-{step:06d}-{name}.json"


def missed_path(folder: Path, step: int, name: str) -> Path:
    """Where stands why there is no such result."""
    return folder / f"step-{step:06d}-{name}.missed"


def find_results(folder: Path) -> dict[str, Found]:
    """All results of a folder, by problem file; a step has a result, or a reason for none."""
    found: dict[str, Found] = {}
    for path in sorted(folder.glob("step-*")):
        match = RESULT.fullmatch(path.name)
        if match is None:
            continue
        of_name = found.setdefault(match[2], Found(results={}, missed={}))
        if match[3] == "json":
            of_name.results[int(match[1])] = read_evaluation(path)
        elif not path.with_suffix(".json").exists():
            of_name.missed[int(match[1])] = path.read_text(encoding="utf-8").strip()
    return found


def best_overall(found: Mapping[str, Found]) -> tuple[int, float] | None:
    """The step of the highest mean over all problem files, of the steps that have all results."""
    common = set.intersection(*(set(each.results) for each in found.values())) if found else set()
    means = {
        step: sum(each.results[step].score["mean"] for each in found.values()) / len(found)
        for step in common
    }
    return max(means.items(), key=lambda item: (item[1], -item[0]), default=None)


def markdown(found: Mapping[str, Found]) -> str:
    """The table as scores.md holds it."""
    lines = ["# Scores by step", ""]
    for name, of_name in found.items():
        header, rows = _rows(of_name)
        lines += [f"## {name}", "", *_facts(of_name)]
        lines += [_line(header), _line(("--:",) * len(header)), *map(_line, rows), ""]
        lines += [f"- step {step}: {reason}" for step, reason in of_name.missed.items()]
        lines += [""] * bool(of_name.missed)
    return "\n".join([*lines, *_overall(found)]).rstrip() + "\n"


def text(found: Mapping[str, Found]) -> str:
    """The table as a terminal shows it, in at most 80 columns but for reasons."""
    parts = []
    for name, of_name in found.items():
        header, rows = _rows(of_name)
        title = name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..."
        facts = "".join(f": {line}" for line in _facts(of_name)[:1])
        reasons = [f"step {step}: {reason}" for step, reason in of_name.missed.items()]
        parts.append("\n".join([title + facts, table(rows, header), *reasons]))
    return "\n\n".join([*parts, *filter(None, _overall(found))]) or "nothing is evaluated yet"


def metrics(found: Mapping[str, Found]) -> str:
    """The lines of metrics.jsonl, by step."""
    steps = sorted({step for each in found.values() for step in each.results})
    rows: list[dict[str, float]] = []
    for step in steps:
        row: dict[str, float] = {"step": step}
        for name, of_name in found.items():
            if step in of_name.results:
                row |= numbers(name, of_name.results[step])
        rows.append(row)
    return "".join(json.dumps(row) + "\n" for row in rows)


def numbers(name: str, result: Evaluation) -> dict[str, float]:
    """A result as metrics.

    Example: {"watch/sums/score": 0.3, "watch/sums/low": 0.2, "watch/sums/high": 0.4,
              "watch/sums/pass@4": 0.6, "watch/sums/truncated": 0.0, "watch/sums/tokens": 11.5}
    """
    k = max(map(int, result.pass_at), default=0)
    found = {
        "score": result.score["mean"],
        "low": result.score["low"],
        "high": result.score["high"],
        **({f"pass@{k}": result.pass_at[str(k)]} if k else {}),
        "truncated": result.truncated,
        "tokens": result.mean_tokens,
    }
    return {f"watch/{name}/{key}": value for key, value in found.items()}


def _rows(found: Found) -> tuple[Row, list[Row]]:
    """Header and a row a step. The k of pass@k is the largest; grader errors can leave it out."""
    k = max((int(k) for result in found.results.values() for k in result.pass_at), default=1)
    header = tuple(cell.format(k=k) for cell in HEADER)
    return header, list(_cells(found, str(k)))


def _cells(found: Found, k: str) -> Iterator[Row]:
    best = found.best
    for step in found.steps:
        if step in found.missed:
            why = GONE if found.missed[step] == GONE else "failed"
            yield (str(step), "-", "-", "-", "-", "-", why)
            continue
        result = found.results[step]
        yield (
            str(step),
            f"{result.score['mean']:.3f}",
            f"[{result.score['low']:.3f}, {result.score['high']:.3f}]",
            f"{result.pass_at[k]:.3f}" if k in result.pass_at else "-",
            f"{result.truncated:.3f}",
            f"{result.mean_tokens:.1f}",
            "best" if step == best else "",
        )


def _facts(found: Found) -> list[str]:
    for result in found.results.values():
        plural = "s" * (result.samples > 1)
        return [f"{result.problems} problems, {result.samples} sample{plural} each", ""]
    return []


def _overall(found: Mapping[str, Found]) -> list[str]:
    best = best_overall(found)
    if len(found) < 2 or best is None:
        return []
    return [f"best over all {len(found)} problem files: step {best[0]}, mean score {best[1]:.3f}"]


def _line(cells: Row) -> str:
    return f"| {' | '.join(cells)} |"
