"""An evaluation on its way: its responses on disk, so that the same command goes on after a kill.

OUT.jsonl.part holds a header, which says what is evaluated and how, and then the lines of the
result's responses. They are written unit by unit (archer.evaluate), each synced before the next is
begun: what a kill costs is the unit that was being sampled. Left out: sampling and scores.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from archer.data.problems import shown
from archer.files import lock, written_whole
from archer.records import to_line
from archer.scores import Answer, Answers, answer_lines, different_settings, to_answers
from archer.types import Group, Problem, Verdict

VALUE_WIDTH = 40
"""Characters of a differing setting that a message shows."""


class OtherEvaluation(ValueError):
    """What stands there was begun with other settings."""


class Unfinished:
    """The responses that are judged. One process at a time has them open."""

    def __init__(self, file: IO[bytes], begin: int, units: list[list[Answers]]) -> None:
        self._file = file
        self._begin = begin
        self.num_units = len(units)
        self.answers = [answers for unit in units for answers in unit]

    def add(self, unit: Sequence[Group]) -> None:
        """A unit's responses, on disk when this returns."""
        self._file.writelines(answer_lines(unit, first=len(self.answers)))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.num_units += 1
        self.answers += map(to_answers, unit)

    def write_responses(self, path: Path) -> None:
        """All lines behind the header, byte for byte."""
        self._file.seek(self._begin)
        with written_whole(path) as file:
            shutil.copyfileobj(self._file, file)


@contextmanager
def open_unfinished(
    path: Path, header: Mapping[str, Any], units: Sequence[Sequence[Problem]], samples: int
) -> Iterator[Unfinished]:
    """Begins the file, or goes on with what it holds; what is no whole unit is cut off.

    Whoever opened it removes it when its responses are elsewhere; without any it removes itself.
    OtherEvaluation for a file with another header; ValueError for one that another process has
    open.
    """
    if not path.exists():
        with written_whole(path) as file:
            file.write(to_line(header))
    with open(path, "r+b") as file:
        lock(file, f"{path} is in use by another process; wait for it, or give another --out")
        _check_header(file.readline(), json.loads(to_line(header)), path)
        begin = file.tell()
        unfinished = Unfinished(file, begin, _whole_units(file, units, samples))
        file.truncate()
        try:
            yield unfinished
        finally:
            if not unfinished.answers:
                path.unlink()


def _check_header(line: bytes, wanted: dict[str, Any], path: Path) -> None:
    try:
        stored = dict(json.loads(line))
    except (ValueError, TypeError):
        raise OtherEvaluation(
            f"{path} is no unfinished evaluation; give another --out, or delete it"
        ) from None
    if them := differences(stored, wanted):
        raise OtherEvaluation(
            f"{path} holds another evaluation, unfinished: {them}; finish it by its own command, "
            "give another --out, or delete it"
        )


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The settings in which two evaluations differ, as a message names them; "" if in none.

    Example: "settings.seed (0 there, 1 here)"
    """
    return ", ".join(
        f"{name} ({shown(one, VALUE_WIDTH)} there, {shown(other, VALUE_WIDTH)} here)"
        for name, (one, other) in different_settings(there, here).items()
    )


def _whole_units(
    file: IO[bytes], units: Sequence[Sequence[Problem]], samples: int
) -> list[list[Answers]]:
    """The units from here on that are whole; the file is left behind the last of them."""
    found: list[list[Answers]] = []
    place, end = 0, file.tell()
    for unit in units:
        try:
            answers = [
                _read_answers(file, problem, number, samples)
                for number, problem in enumerate(unit, start=place)
            ]
        except (ValueError, KeyError, TypeError):  # torn: from here on all is sampled again
            break
        found.append(answers)
        place, end = place + len(unit), file.tell()
    file.seek(end)
    return found


def _read_answers(file: IO[bytes], problem: Problem, place: int, samples: int) -> Answers:
    """The next `samples` lines; ValueError, KeyError or TypeError where they are none of these."""
    answers = []
    for sample in range(samples):
        line = file.readline()
        row = json.loads(line)
        if not line.endswith(b"\n") or (row["id"], row["group"], row["sample"]) != (
            problem.id,
            place,
            sample,
        ):
            raise ValueError("no line of this evaluation")
        verdict = Verdict(
            outcome=row["outcome"],
            score=row["score"],
            detail=row["detail"],
            sandbox=row.get("sandbox", ""),
        )
        answers.append(
            Answer(
                text=row["response"],
                in_thought=row["in_thought"],
                verdict=verdict,
                num_tokens=row["tokens"],
                stop=row["stop"],
            )
        )
    return Answers(problem=problem, answers=tuple(answers))
