"""Responses in the format of LiveCodeBench's official runner, and back: `archer convert`.

    to_runner(Path("evals/a.jsonl"), Path("a.json"))
    from_runner(Path("a_eval_all.json"), Path("problems.jsonl"), Path("a.jsonl"))

The runner writes one JSON array, an object a problem: "question_id", "output_list" (the responses),
"code_list" (the program in each, "" where it found none) and, when it has judged them,
"graded_list". Its `custom_evaluator` reads the same, of which it needs "question_id" and
"code_list". What its rules and ours have in common, and what not, stands in docs/livecodebench.md.
Nothing is judged here: rows that come with the runner's verdicts are compared with ours by
`archer grade`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archer.data.problems import Row, read_problems, shown, to_row
from archer.data.rows import read_file
from archer.files import written_whole
from archer.grade import read_answered
from archer.records import to_line
from archer.types import Problem
from archer.verify.extract import OPEN, last_program, outside_thought


def convert(file: Path, out: Path, problems: Path | None) -> str:
    """From rows (.jsonl) to the runner's format (.json), or back; returns what was done as a text.

    ValueError for whatever is wrong with the files, before anything is written.
    """
    kinds = (file.suffix, out.suffix)
    if kinds not in ((".jsonl", ".json"), (".json", ".jsonl")):
        raise ValueError(
            f"{file} to {out}: rows are .jsonl and what the runner of LiveCodeBench reads and "
            "writes is .json; give one of each"
        )
    if out.exists():
        raise ValueError(f"{out} is there already; give another --out")
    if file.suffix == ".jsonl":
        if problems is not None:
            raise ValueError(f"{file} holds its problems; leave out --problems {problems}")
        return to_runner(file, out)
    if problems is None:
        raise ValueError(
            f"{file} holds no tests; give the prepared problems, --problems FILE.jsonl"
        )
    return from_runner(file, problems, out)


# --- to the runner ---


def to_runner(file: Path, out: Path) -> str:
    """Writes the responses of `file` as the runner's `custom_evaluator` reads them.

    ValueError for rows of anything but LiveCodeBench, and where one problem has more responses
    than another, which the runner does not take.
    """
    entries: dict[str, dict[str, list[str]]] = {}
    for answered in read_answered(file):
        problem = answered.problem
        if problem.source != "livecodebench":
            raise ValueError(
                f"{file}: the problem {problem.id!r} has the source {problem.source!r}; the runner "
                "of LiveCodeBench knows its own alone, so give responses to those"
            )
        text = outside_thought(answered.response, answered.in_thought)
        entry = entries.setdefault(problem.id, {"output_list": [], "code_list": []})
        # A thought that the prompt has opened is not closed for whoever sees the response alone.
        entry["output_list"].append(OPEN * answered.in_thought + answered.response)
        entry["code_list"].append((text and last_program(text)) or "")
    counts = {len(entry["code_list"]): id for id, entry in entries.items()}
    if not counts:
        raise ValueError(f"{file}: the file is empty; give one with responses")
    if len(counts) > 1:
        said = " and ".join(f"{id!r} has {count}" for count, id in sorted(counts.items())[:2])
        raise ValueError(
            f"{file}: {said} responses; the runner wants the same number for every problem"
        )
    # In ASCII: the runner reads the file in the encoding of its locale.
    found = [{"question_id": id, **entries[id]} for id in sorted(entries)]
    with written_whole(out) as written:
        written.write((json.dumps(found, indent=1) + "\n").encode())
    empty = sum(not code for entry in entries.values() for code in entry["code_list"])
    return (
        f"{len(entries)} problems, responses to each: {next(iter(counts))}, without a program: "
        f"{empty}\n\n{out}, for custom_evaluator --custom_output_file; the runner wants every "
        "problem of the release and dates that it is given"
    )


# --- from the runner ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A problem's part of what the runner wrote.

    Example: Entry(id="abc301_a", outputs=None, codes=["print(5)"], graded=[True])
    """

    id: str
    codes: list[str]
    outputs: list[str] | None
    graded: list[bool] | None


def from_runner(file: Path, problems: Path, out: Path) -> str:
    """Writes what the runner wrote as rows for `archer grade`, with its verdicts if it has any.

    The response is what the model wrote; a program that is there alone stands in a fenced block.
    ValueError for an entry that is malformed or comes twice, and if none is of these problems.
    """
    known = {problem.id: problem for problem in read_problems(problems)}
    entries = list(_entries(file))
    ids = {entry.id for entry in entries}
    if not ids & known.keys():
        raise ValueError(
            f"{file}: none of its {len(ids)} problems is in {problems}; prepare livecodebench, in "
            "the release that was judged"
        )
    rows = responses = others = 0
    with written_whole(out) as written:
        for entry in entries:
            if entry.id in known:
                for row, is_other in _rows(known[entry.id], entry):
                    written.write(to_line(row))
                    responses += 1
                    others += is_other
                rows += 1
    said = f"{responses} responses to {rows} problems"
    if strange := len(ids - known.keys()):
        said += f"; problems that are not in {problems}: {strange}"
    if missing := len(known.keys() - ids):
        said += f"; problems without responses: {missing}"
    if others:
        said += f"; responses of which archer reads another program than the runner did: {others}"
    return f"{said}\n\n{out}, for archer grade"


def _rows(problem: Problem, entry: Entry) -> Iterator[tuple[Row, bool]]:
    """A row for each response, and whether archer reads another program of it than the runner."""
    for sample, code in enumerate(entry.codes):
        output = code if entry.outputs is None else entry.outputs[sample]
        response = output if output.strip() != code.strip() else fenced(code)
        row: Row = {**to_row(problem), "sample": sample, "response": response}
        if entry.graded is not None:
            right = entry.graded[sample]
            row |= {"outcome": "correct" if right else "wrong", "score": float(right)}
        text = outside_thought(response, in_thought=False)
        yield row, _lines((text and last_program(text)) or "") != _lines(code)


def _lines(code: str) -> list[str]:
    return code.replace("\r\n", "\n").replace("\r", "\n").strip().split("\n")


def fenced(code: str) -> str:
    """A program as the only block of a response, in a fence longer than any within; "" for none."""
    longest = max(map(len, re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}python\n{code}\n{fence}" if code.strip() else ""


def _entries(file: Path) -> Iterator[Entry]:
    ids: set[str] = set()
    for number, row in read_file(file):
        entry = _entry(row, f"{file}: entry {number}")
        if entry.id in ids:
            raise ValueError(
                f"{file}: entry {number}: the question {entry.id!r} came before; give each once"
            )
        ids.add(entry.id)
        yield entry


def _entry(row: Row, where: str) -> Entry:
    """One checked object of the runner's array."""
    if "question_id" not in row or "code_list" not in row:
        raise ValueError(
            f'{where} has the keys {", ".join(row) or "of nothing"}, not "question_id" and '
            '"code_list"; give what the runner wrote of code generation, as NAME_eval_all.json'
        )
    id = row["question_id"]
    if isinstance(id, bool) or not isinstance(id, str | int):
        raise ValueError(f'{where}: "question_id" is {shown(id)}; make it a text')
    lists: dict[str, list[Any]] = {}
    for name, kind, wanted in (
        ("code_list", str, "texts"),
        ("output_list", str, "texts"),
        ("graded_list", bool, "true and false"),
    ):
        if name in row:
            lists[name] = _list(row[name], kind, f'{where}: "{name}"', wanted)
    counts = {name: len(found) for name, found in lists.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f'"{name}" {count}' for name, count in counts.items())
        raise ValueError(
            f"{where}: its lists have different lengths ({said}); make them one length"
        )
    return Entry(
        id=str(id),
        codes=lists["code_list"],
        outputs=lists.get("output_list"),
        graded=lists.get("graded_list"),
    )


def _list(value: object, kind: type, name: str, wanted: str) -> list[Any]:
    if not (isinstance(value, list) and all(isinstance(item, kind) for item in value)):
        raise ValueError(f"{name} is {shown(value)}; make it a list of {wanted}")
    return value
