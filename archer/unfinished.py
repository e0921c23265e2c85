"""An evaluation on its way: its responses on disk, so that the same command goes on after a kill.

OUT.jsonl.part holds a header, which says what is evaluated and how, and then the lines of the
result's responses. They are written unit by unit (archer.evaluate), each synced before the next is
begun: what a kill costs is the unit that was being sampled. A server's completions cost money or
others' time and don't depend on what is sampled beside them. So each of them is kept as it comes,
in a line before those of its unit, and a kill costs what was still being waited for. Left out:
sampling and scores.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from archer.data.problems import shown
from archer.engine.base import Generates, Request, Sample, Sampling
from archer.engine.server import NO_TOKEN
from archer.files import lock, written_whole
from archer.records import to_line
from archer.scores import Answer, Answers, answer_lines, different_settings, to_answers
from archer.types import Completion, Group, Problem, StopReason, Verdict

KEPT = b'{"kept": '
"""How the line of a completion begins that is not judged yet; a response's begins with its id."""

VALUE_WIDTH = 40
"""Characters of a differing setting that a message shows."""


class OtherEvaluation(ValueError):
    """What stands there was begun with other settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A completion that is on disk and not judged, as far as a response's line depends on it.

    Example: Kept(text="5", stop="stop", num_tokens=2)
    """

    text: str
    stop: StopReason
    num_tokens: int


Name = tuple[str | int, ...]
"""Of a completion (archer.engine.base.Request)."""


class Unfinished:
    """The responses that are judged. One process at a time has them open."""

    def __init__(
        self,
        path: Path,
        file: IO[bytes],
        begin: int,
        units: list[list[Answers]],
        kept: dict[Name, Kept],
    ) -> None:
        self._path = path
        self._file = file
        self._begin = begin
        self.num_units = len(units)
        self.answers = [answers for unit in units for answers in unit]
        self.kept = kept
        """What `keep` was given since the last unit."""

    def keep(self, name: Name, completion: Completion) -> None:
        """A completion that a kill does not cost from here on; a power cut may."""
        kept = Kept(
            text=completion.text, stop=completion.stop, num_tokens=len(completion.token_ids)
        )
        row = {"text": kept.text, "stop": kept.stop, "tokens": kept.num_tokens}
        self._file.write(to_line({"kept": name, **row}))
        self._file.flush()
        self.kept[name] = kept

    def add(self, unit: Sequence[Group]) -> None:
        """A unit's responses, on disk when this returns."""
        self._file.writelines(answer_lines(unit, first=len(self.answers)))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.num_units += 1
        self.answers += map(to_answers, unit)
        self.kept.clear()

    def write_responses(self, path: Path) -> None:
        """All responses, byte for byte."""
        self._file.seek(self._begin)
        with written_whole(path) as file:
            file.writelines(line for line in self._file if not line.startswith(KEPT))

    def remove(self) -> None:
        """Removes the file, unless another process has put its own in the place (archer.watch)."""
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno())):
                self._path.unlink()


@dataclass(frozen=True, slots=True, eq=False)
class Keeping:
    """A server whose completions are kept as they come, and which is asked for none a second time.

    Their tokens are known by their number alone.
    """

    server: Generates
    unfinished: Unfinished

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Sample]:
        """Yields what is kept, and then what the server says."""
        places = [(i, j) for i, each in enumerate(requests) for j in range(len(each.names))]
        left = []
        for i, j in places:
            request, name = requests[i], requests[i].names[j]
            if kept := self.unfinished.kept.get(name):
                yield Sample(i, j, _restored(kept, request))
            else:
                left.append((i, j, replace(request, names=(name,))))
        for sample in self.server.generate([request for _, _, request in left], sampling):
            i, j, request = left[sample.request]
            self.unfinished.keep(request.names[0], sample.completion)
            yield Sample(i, j, sample.completion)


def _restored(kept: Kept, request: Request) -> Completion:
    unknown = np.full(kept.num_tokens, np.nan, dtype=np.float32)
    return Completion(
        prompt_ids=request.prompt_ids,
        token_ids=np.full(kept.num_tokens, NO_TOKEN, dtype=np.int32),
        logps=unknown,
        entropies=unknown,
        policy_version=0,
        stop=kept.stop,
        in_thought=request.in_thought,
        text=kept.text,
    )


@contextmanager
def open_unfinished(
    path: Path, header: Mapping[str, Any], units: Sequence[Sequence[Problem]], samples: int
) -> Iterator[Unfinished]:
    """Begins the file, or goes on with what it holds; what is no whole unit is cut off, but for
    completions that were kept.

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
        unfinished = Unfinished(path, file, begin, *_whole_units(file, units, samples))
        file.truncate()
        try:
            yield unfinished
        finally:
            if not unfinished.answers and not unfinished.kept:
                unfinished.remove()


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
) -> tuple[list[list[Answers]], dict[Name, Kept]]:
    """The units from here on that are whole, and what is kept behind the last of them; the file is
    left there."""
    found: list[list[Answers]] = []
    place, kept, end = 0, _read_kept(file), file.tell()
    for unit in units:
        try:
            answers = [
                _read_answers(file, problem, number, samples)
                for number, problem in enumerate(unit, start=place)
            ]
        except (ValueError, KeyError, TypeError):  # torn: from here on all is sampled again
            break
        found.append(answers)
        place, kept, end = place + len(unit), _read_kept(file), file.tell()
    file.seek(end)
    return found, kept


def _read_kept(file: IO[bytes]) -> dict[Name, Kept]:
    """The completions from here on, up to a line that is another one's or torn."""
    found: dict[Name, Kept] = {}
    while True:
        begin, line = file.tell(), file.readline()
        try:
            row = json.loads(line)
            kept = Kept(text=row["text"], stop=row["stop"], num_tokens=int(row["tokens"]))
            if not line.endswith(b"\n"):
                raise ValueError("a line that is torn")
            found[tuple(row["kept"])] = kept
        except (ValueError, KeyError, TypeError):
            file.seek(begin)
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
