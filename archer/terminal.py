"""What a person sees: bars with rates on long work, one line a step, plain lines in a pipe.

Progress goes to standard error and results to standard output, so that a pipe holds results alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Terminal:
    """Standard output for lines, standard error for bars; `quiet` leaves only results."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._bars = Console(stderr=True)

    def say(self, line: str) -> None:
        """A line about what is going on."""
        if not self.quiet:
            print(line, flush=True)

    def result(self, line: str) -> None:
        """A line that was asked for, also with --quiet."""
        print(line, flush=True)

    @contextmanager
    def bar(
        self, label: str, total: int, unit: str = "tok"
    ) -> Iterator[Callable[[int, int], None]]:
        """A progress bar; call what it yields with (done, tokens). Nothing where no one looks.

        A total of 0 is one that is not known. `unit`: what the rate counts, if not tokens.
        """
        if self.quiet or not sys.stderr.isatty():
            yield lambda done, tokens: None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("<"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._bars, transient=True) as progress:
            task = progress.add_task(label, total=total or None, rate="")

            def advance(done: int, tokens: int) -> None:
                seconds = progress.tasks[0].elapsed or 0.0
                rate = f"{tokens / seconds:,.0f} {unit}/s" if tokens and seconds else ""
                progress.update(task, completed=done, rate=rate)

            yield advance


def table(rows: list[tuple[str, ...]], header: tuple[str, ...] | None = None) -> str:
    """Columns lined up for 80 characters; the first to the left, the others to the right."""
    whole = [header, *rows] if header else rows
    widths = [max(len(row[i]) for row in whole) for i in range(len(whole[0]))]
    lines = []
    for row in whole:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    if header:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
