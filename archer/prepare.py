"""`archer prepare`: from a raw data set or a generated task to a checked problem file with a card.

    prepare("gsm8k_train.jsonl", "train.jsonl")
    prepare("reasoning_gym:gcd", "gcd.jsonl", limit=500, args={"max_value": 50})

Local files are read row by row: .jsonl, .jsonl.gz, .json (one array of objects, of any size) and
.parquet. `LAYOUTS` lists the layouts of rows that are known; the first row decides which one a file
has. Every row becomes a problem or is left out for a reason, and the card (NAME.card.md beside the
problem file) counts the reasons and names the rows. The same input gives the same bytes.

Left out: downloads, filters by difficulty or overlap, and any check of the answers by their
verifier.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any

from archer.data import code_rows
from archer.data.problems import (
    REQUIRED,
    Row,
    digest,
    problems_hash,
    prompt_key,
    to_line,
    to_problem,
    to_row,
)
from archer.data.rows import READERS, as_chat, as_text, ending, read_file, some_of
from archer.data.sources import (
    REPEATED,
    SOURCES,
    Dropped,
    Item,
    SourceSpec,
    draw,
    gsm8k_problem,
)
from archer.files import written_whole
from archer.types import Message, Problem
from archer.verify.extract import last_box

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What `prepare` did.

    Example, 30 rows of which one had no answer:
        Prepared(out=Path("aime.jsonl"), card=Path("aime.card.md"), layout="mathematics",
                 rows_in=30, rows_out=29, dropped={"no answer": 1}, hash="9f…")
    """

    out: Path
    card: Path
    layout: str
    """The layout of the rows, or "generated"."""
    rows_in: int
    rows_out: int
    dropped: Mapping[str, int]
    """How many rows were left out for which reason."""
    hash: str
    """`archer.data.problems.problems_hash` of what was written."""


def prepare(
    source: str,
    out: str | Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    args: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Writes problems to `out` and a card beside it, each wholly or not at all.

    source: the path of a raw file, or a name of `archer.data.sources`, drawn by `seed` and `args`.
    limit: how many problems at most; a generated task needs it, of a file the first are taken.
    progress: called with the number of rows read so far.
    ValueError for whatever is wrong with the source, and if no row becomes a problem.
    """
    out = Path(out)
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; make it at least 1")
    if out.suffix != ".jsonl":
        raise ValueError(f"{out}: a problem file's name ends in .jsonl; give another --out")
    tally = Tally()
    if _is_file(source):
        if args:
            raise ValueError(f"{source}: a file has no args; remove {', '.join(args)}")
        path = Path(source)
        if path.resolve() == out.resolve():
            raise ValueError(f"{out}: the raw file would be written over; give another --out")
        layout, items = _convert(path)
        problems = _sieve(items, tally, progress)
        facts = {"source": path.name, "layout": layout, "sha256 of the source": _sha256(path)}
        if layout in LAYOUTS and LAYOUTS[layout].note:
            facts["note"] = LAYOUTS[layout].note
    else:
        spec = SourceSpec(source=source, count=limit, seed=seed, args=args or {})
        drawn, tally.dropped = draw(spec, progress=progress)
        tally.rows = len(drawn) + tally.dropped.total()
        problems, layout = iter(drawn), "generated"
        facts = {"source": source, "seed": str(seed), "arguments": json.dumps(spec.args)}
    if limit is not None:
        facts["limit"] = str(limit)
    card = out.with_suffix(".card.md")
    if out.exists() and not card.exists():
        raise ValueError(f"{out} is there, and no card beside it: give another --out")
    verifiers: Counter[str] = Counter()
    with written_whole(card) as card_file, written_whole(out) as file:
        hash = problems_hash(_through(problems, file, limit, verifiers))
        if not verifiers:
            reasons = ", ".join(f"{count} {reason}" for reason, count in tally.dropped.items())
            raise ValueError(f"{source}: no row became a problem ({reasons}); give another source")
        card_file.write(_card(out.name, facts, tally, verifiers, hash).encode())
    return Prepared(
        out=out,
        card=card,
        layout=layout,
        rows_in=tally.rows,
        rows_out=verifiers.total(),
        dropped=dict(tally.dropped),
        hash=hash,
    )


def parse_args(pairs: Sequence[str]) -> dict[str, Any]:
    """`["max_value=50", "form=words"]` as `{"max_value": 50, "form": "words"}`: JSON, else text."""
    args: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise ValueError(f"the argument {pair!r} has no value; write it as key=value")
        try:
            args[name] = json.loads(value)
        except json.JSONDecodeError:
            args[name] = value
    return args


@dataclass(slots=True)
class Tally:
    """What has been read and left out so far.

    Example:
        Tally(rows=12, dropped=Counter({"no answer": 1}), numbers={"no answer": [7]})
    """

    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    numbers: dict[str, list[int]] = field(default_factory=dict)
    """Which rows, counted from 1 (in a JSONL file: lines)."""


def _is_file(source: str) -> bool:
    if source.partition(":")[0] in SOURCES:
        return False
    path = Path(source)
    if ending(path) not in READERS and path.exists():
        raise ValueError(
            f"{source}: {path.suffix or 'such a file'} is not read; "
            f"a file's name must end in {', '.join(READERS)}"
        )
    return ending(path) in READERS


def _sieve(
    items: Iterable[tuple[int, Item]], tally: Tally, progress: Progress | None
) -> Iterator[Problem]:
    """The problems that no earlier one repeats; all others are counted."""
    prompts: set[bytes] = set()
    ids: set[bytes] = set()
    for number, item in items:
        tally.rows += 1
        if progress is not None:
            progress(tally.rows)
        if isinstance(item, Dropped):
            reason = item.reason
        elif (prompt := prompt_key(item.prompt)) in prompts:
            reason = REPEATED
        elif (id := digest(item.id)) in ids:
            reason = "repeated id"
        else:
            prompts.add(prompt)
            ids.add(id)
            yield item
            continue
        tally.dropped[reason] += 1
        tally.numbers.setdefault(reason, []).append(number)


def _through(
    problems: Iterator[Problem], file: IO[bytes], limit: int | None, verifiers: Counter[str]
) -> Iterator[Problem]:
    """Writes the problems as they pass by, and stops before it reads one too many."""
    while limit is None or verifiers.total() < limit:
        problem = next(problems, None)
        if problem is None:
            return
        file.write(to_line(problem))
        verifiers[problem.verifier] += 1
        yield problem


def _convert(path: Path) -> tuple[str, Iterator[tuple[int, Item]]]:
    """The layout that the first row has, and all rows in that layout as problems."""
    rows = read_file(path)
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{path}: the file has no rows; give one that has some")
    rows, stem = chain([first], rows), path.name.removesuffix(ending(path))
    if all(key in first[1] for key in REQUIRED):
        return "problems", ((n, to_problem(row, where=f"{path}:{n}")) for n, row in rows)
    for name, layout in LAYOUTS.items():
        if layout.fits(first[1]):
            return name, ((n, _convert_row(layout, row, stem, n)) for n, row in rows)
    keys, known = ", ".join(first[1]), ", ".join(["problems", *LAYOUTS])
    raise ValueError(f"{path}: no layout has the keys {keys}; convert it into one of {known}")


def _convert_row(layout: Layout, row: Row, name: str, number: int) -> Item:
    if not layout.fits(row):
        return Dropped(reason="not in the layout of the first row")
    try:
        item = layout.convert(row, f"{name}-{number:06d}", name)
    except ValueError as error:
        return Dropped(reason=str(error))
    if isinstance(item, Problem):
        try:
            to_problem(to_row(item), where="")
            to_line(item)
        except ValueError:
            return Dropped(reason="malformed prompt or answer")
    return item


def _card(
    name: str, facts: Mapping[str, str], tally: Tally, verifiers: Counter[str], hash: str
) -> str:
    facts = {
        **facts,
        "rows read": str(tally.rows),
        "problems written": str(verifiers.total()),
        "verifiers": ", ".join(f"{name} {count}" for name, count in sorted(verifiers.items())),
        "hash of the problems (blake2b)": hash,
    }
    lines = [f"# {name}", "", "| | |", "|---|---|"]
    lines += [f"| {fact} | {value.replace('|', chr(92) + '|')} |" for fact, value in facts.items()]
    if tally.dropped:
        lines += ["", "## Left out", "", "| reason | rows | which |", "|---|---|---|"]
        for reason, count in tally.dropped.most_common():
            lines.append(f"| {reason} | {count} | {_ranges(tally.numbers.get(reason, []))} |")
    return "\n".join(lines) + "\n"


def _ranges(numbers: Sequence[int], most: int = 40) -> str:
    """1, 2, 3, 7 as "1-3, 7"."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in runs[:most]]
    rest = sum(b - a + 1 for a, b in runs[most:])
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Layouts: one function each, from a row to a problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A known shape of rows.

    Example:
        Layout(fits=_has("text", "test_list"), convert=_mbpp)
    """

    fits: Callable[[Row], bool]
    convert: Callable[[Row, str, str], Item]
    """Called with the row, an id for rows that have none, and the file's name for the source."""
    note: str = ""
    """What a reader of the card should know."""


def _archer(row: Row, id: str, source: str) -> Item:
    """The data sets released with Archer, mathematics and code."""
    origin, model, extra = row["data_source"], row["reward_model"], row.get("extra_info")
    truth = model.get("ground_truth") if isinstance(model, dict) else None
    if isinstance(extra, dict) and isinstance(extra.get("index"), int | str):
        id = f"{origin}-{extra['index']}"
    return _by_ability(row["prompt"], truth, f"{row.get('ability', '')} {origin}", id, str(origin))


def _archer_flat(row: Row, id: str, source: str) -> Item:
    """The later data set released with Archer2.0: three texts."""
    return _by_ability(row["prompt"], row["ground_truth"], str(row["ability"]), id, source)


def _by_ability(prompt: object, truth: object, ability: str, id: str, source: str) -> Item:
    prompt = as_chat(prompt)
    if not re.search(r"\b(cod(e|ing)|livecodebench|humaneval|mbpp)", ability):
        return _mathematical(prompt, truth, id, source)
    return code_rows.released(prompt, truth, id, source)


def _olympiadbench(row: Row, id: str, source: str) -> Item:
    """A row of OlympiadBench (open-ended, text only): all of several answers belong to one."""
    if row.get("error"):
        return Dropped(reason="needs a tolerance, which the math verifier has not")
    answers = row["final_answer"]
    if isinstance(answers, list) and row.get("is_multiple_answer"):
        answers = ", ".join(str(answer).replace("$", "") for answer in answers)
    meta = some_of(row, "subfield", "answer_type", "unit")
    id = f"olympiadbench-{row['id']}" if "id" in row else id
    return _mathematical(as_chat(row["question"]), answers, id, "olympiadbench", meta)


def _gsm8k(row: Row, id: str, source: str) -> Item:
    return gsm8k_problem(row, id=id)


def _plain_mathematics(row: Row, id: str, source: str) -> Item:
    """MATH-500, AIME, AMC23, DeepScaleR: a problem and its answer."""
    if isinstance(row.get("unique_id"), str):
        id = row["unique_id"]
    elif isinstance(row.get("id"), str | int):
        id = f"{source}-{row['id']}"
    meta = some_of(row, "subject", "type", "level", "difficulty")
    question = row["problem"] if "problem" in row else row["question"]
    return _mathematical(as_chat(question), row["answer"], id, source, meta)


def _has(*keys: str) -> Callable[[Row], bool]:
    return lambda row: all(key in row for key in keys)


def _is_gsm8k(row: Row) -> bool:
    return "question" in row and "####" in as_text(row.get("answer"))


def _is_mathematics(row: Row) -> bool:
    return "answer" in row and ("problem" in row or "question" in row)


LAYOUTS: dict[str, Layout] = {
    "archer": Layout(fits=_has("prompt", "data_source", "reward_model"), convert=_archer),
    "archer-flat": Layout(fits=_has("prompt", "ground_truth", "ability"), convert=_archer_flat),
    "livecodebench": Layout(
        fits=_has("question_content", "public_test_cases"),
        convert=code_rows.livecodebench,
        note="rows without private tests have public ones only: too few to trust a score",
    ),
    # Its rows have the keys of HumanEval's too.
    "leetcodedataset": Layout(
        fits=_has("problem_description", "starter_code", "entry_point", "test"),
        convert=code_rows.leetcodedataset,
    ),
    "humaneval": Layout(fits=_has("prompt", "entry_point", "test"), convert=code_rows.humaneval),
    "mbpp": Layout(fits=_has("text", "test_list"), convert=code_rows.mbpp),
    "code_contests": Layout(
        fits=_has("content", "labels", "test"),
        convert=code_rows.code_contests,
        note="where several outputs are right, the tests know one of them",
    ),
    "olympiadbench": Layout(fits=_has("question", "final_answer"), convert=_olympiadbench),
    "gsm8k": Layout(fits=_is_gsm8k, convert=_gsm8k),
    "mathematics": Layout(fits=_is_mathematics, convert=_plain_mathematics),
}
"""The foreign layouts by name; the first that fits a file's first row is taken."""

NO_ANSWER = "no answer"


def _mathematical(
    prompt: str | tuple[Message, ...],
    truth: object,
    id: str,
    source: str,
    meta: Mapping[str, Any] | None = None,
) -> Item:
    if not prompt:
        return Dropped(reason=code_rows.NO_PROMPT)
    answers = [_plain(answer) for answer in (truth if isinstance(truth, list) else [truth])]
    if not answers or not all(answers):
        return Dropped(reason=NO_ANSWER)
    return Problem(
        id=id,
        prompt=prompt,
        verifier="math",
        answer=answers if len(answers) > 1 else answers[0],
        source=source,
        meta=meta or {},
    )


def _plain(answer: object) -> str:
    """An answer without its box, its dollars and leading zeros: "025" is "25", 70.0 is "70"."""
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return ""
    text = (last_box(str(answer)) or str(answer)).strip()
    if re.fullmatch(r"\$[^$]+\$", text):
        text = text[1:-1].strip()
    return re.sub(r"^(-?)0+(\d+)$", r"\1\2", text)
