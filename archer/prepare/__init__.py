"""`archer prepare`: from a raw data set or a generated task to a checked problem file with a card.

    prepare("math500", "math500.jsonl")
    prepare("gsm8k_train.jsonl", "train.jsonl")
    prepare("reasoning_gym:gcd", "gcd.jsonl", limit=500, args={"max_value": 50})

A source is a data set of the hub by name (`archer.prepare.named`), a local file (.jsonl, .jsonl.gz,
.json with one array of objects, of any size, .parquet), or a generated task. Rows are read one by
one; the first row of a file decides which layout (`archer.prepare.layouts`) it has. Every row
becomes a problem or is left out for a reason: what it is (`filters`), or because its own reference
does not pass its own verifier (`references`). The card (NAME.card.md beside the problem file)
counts the reasons and names the rows. The same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

from archer.cores import num_cores
from archer.data.problems import (
    REQUIRED,
    Row,
    digest,
    nearest,
    problems_hash,
    prompt_key,
    to_line,
    to_problem,
)
from archer.data.rows import READERS, ending, read_file
from archer.data.sources import REPEATED, SOURCES, Dropped, SourceSpec, draw
from archer.files import written_whole
from archer.prepare.filters import Filter
from archer.prepare.layouts import LAYOUTS, Converted, convert_row, find_layout
from archer.prepare.named import NAMED, Part, find_parts
from archer.prepare.references import Known, Tester, open_known
from archer.terminal import Terminal
from archer.types import Problem
from archer.verify.policy import Policy
from archer.verify.pool import WorkerPool

Advance = Callable[[int, int], None]
"""As of `Terminal.bar`."""


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
    notes: tuple[str, ...] = ()
    """What the user should know."""


def prepare(
    source: str,
    out: str | Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    args: Mapping[str, Any] | None = None,
    revision: str | None = None,
    filters: Mapping[str, Filter] | None = None,
    near_duplicates: float | None = None,
    check: bool = True,
    terminal: Terminal | None = None,
) -> Prepared:
    """Writes problems to `out` and a card beside it, each wholly or not at all.

    source: a name of `NAMED`, with ":PATH" behind it for a copy that lies here; the path of a raw
        file; or a name of `archer.data.sources`, drawn by `seed`. The first and the last take args.
    limit: how many problems at most; a generated task needs it, of a file the first are taken.
    revision: branch, tag or commit on the hub.
    filters: what they are called in the card -> what they leave out, in this order.
    near_duplicates: share of its N-grams by which a problem repeats one that is written.
    check: whether references and tests are run, see `archer.prepare.references`.
    terminal: hears what is going on.
    ValueError for whatever is wrong with the source, and if no row becomes a problem.
    """
    out = Path(out)
    card = out.with_suffix(".card.md")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; make it at least 1")
    _check_out(out)
    terminal = terminal or Terminal(quiet=True)
    names = list(filters or {})
    near = None
    if near_duplicates is not None:
        from archer.prepare.grams import no_near_duplicates

        near = no_near_duplicates(near_duplicates)
        names.append(f"less than {near_duplicates:.0%} as one before")
    raw = _open(source, limit, seed, args or {}, revision, terminal)
    if out.resolve() in (path.resolve() for path in raw.files):
        raise ValueError(f"{out}: the raw file would be written over; give another --out")
    if out.exists() and not card.exists():
        raise ValueError(f"{out} is there, and no card beside it: give another --out")
    facts, tally, verifiers = dict(raw.facts), Tally(), Counter[str]()
    if limit is not None:
        facts["limit"] = str(limit)
    if names:
        facts["filters"] = ", ".join(names)
    if not check:
        facts["references"] = "not checked"
    tally.dropped += raw.dropped
    tally.rows += raw.dropped.total()
    with ExitStack() as stack:
        advance = stack.enter_context(terminal.bar("rows", raw.expected or 0, "rows"))
        written = Written(near=near)
        candidates = _sieve(raw.rows, (filters or {}).values(), written, tally, advance)
        known = out.with_name(f".{out.name}.judged")
        verdicts = stack.enter_context(open_known(known, is_used=check))
        tester = stack.enter_context(_open_tester(verdicts, terminal)) if check else None
        problems = _chosen(candidates, tester, limit, written, tally)
        card_file, file = (stack.enter_context(written_whole(path)) for path in (card, out))
        hash = problems_hash(_through(problems, file, limit, verifiers))
        if not verifiers:
            reasons = ", ".join(f"{count} {reason}" for reason, count in tally.dropped.items())
            raise ValueError(f"{source}: no row became a problem ({reasons}); give another source")
        card_file.write(_card(out.name, facts, tally, verifiers, hash).encode())
    return Prepared(
        out=out,
        card=card,
        layout=facts.get("layout", "generated"),
        rows_in=tally.rows,
        rows_out=verifiers.total(),
        dropped=dict(tally.dropped),
        hash=hash,
        notes=() if limit else _notes(raw, tally, None if names else verifiers.total()),
    )


def problems_of(source: str, *, terminal: Terminal | None = None) -> Iterator[Problem]:
    """What any source that `prepare` takes but generated tasks asks, to be compared with others.

    Nothing is left out: a row that is no problem, for want of an answer perhaps, comes with its
    question alone. Rows without one are said. ValueError where no row has any.
    """
    name = source.partition(":")[0]
    if name in SOURCES and name not in NAMED:
        raise ValueError(f"{source} is generated; name a data set or a file")
    terminal = terminal or Terminal(quiet=True)
    return _asked(source, _open(source, None, 0, {}, None, terminal).rows, terminal)


def _asked(source: str, rows: Rows, terminal: Terminal) -> Iterator[Problem]:
    asked, silent = 0, Counter[str]()
    for place, item in rows:
        if isinstance(item, Converted):
            problem = item.problem
        elif item.prompt:
            where = f"{place.file}:{place.row}"
            problem = Problem(id=where, prompt=item.prompt, verifier="", answer=None)
        else:
            silent[item.reason] += 1
            continue
        asked += 1
        yield problem
    reasons = ", ".join(f"{count} {reason}" for reason, count in silent.items())
    if not asked:
        raise ValueError(f"{source}: no row asks anything ({reasons}); name another suite")
    if silent:
        terminal.say(f"{source}: rows that ask nothing are passed over ({reasons})")


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


def _check_out(out: Path) -> None:
    """Finds out before anything is fetched or read whether problems can be written there."""
    if out.suffix != ".jsonl":
        raise ValueError(f"{out}: a problem file's name ends in .jsonl; give another --out")
    folder = out.parent
    try:
        folder = next(place for place in out.absolute().parents if place.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{folder}: {error.strerror}; give another --out") from error


# What is read


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A row: the name of its file and its number there, counted from 1 (in a JSONL file: lines).

    Example: Place(file="test2.jsonl", row=17)
    """

    file: str
    row: int


Rows = Iterator[tuple[Place, Converted | Dropped]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """A source that is open: what the card says of it, and its rows.

    Example: Raw(facts={"source": "aime.jsonl", "layout": "mathematics"}, rows=...)
    """

    facts: Mapping[str, str]
    rows: Rows
    files: tuple[Path, ...] = ()
    """Where they are read from; none where they are generated."""
    dropped: Counter[str] = field(default_factory=Counter)
    """What was left out before, by reason."""
    expected: int | None = None
    """How many rows others count in just this data."""


def _open(
    source: str,
    limit: int | None,
    seed: int,
    args: Mapping[str, Any],
    revision: str | None,
    terminal: Terminal,
) -> Raw:
    name, _, detail = source.partition(":")
    if name in NAMED and not Path(source).exists():
        parts = find_parts(name, args)
        if detail:
            if revision is not None:
                raise ValueError(f"{source} lies here and has no revision; leave --revision out")
            if len(parts) > 1:
                raise ValueError(
                    f"{name} is {len(parts)} data sets; give the file alone, without the name"
                )
            return _open_files(parts, [[Path(detail)]], {})
        return _open_hub(name, parts, args, revision, terminal)
    if revision is not None:
        raise ValueError(f"{source} is not on the hub and has no revision; leave --revision out")
    if _is_file(source):
        if args:
            raise ValueError(f"{source}: a file has no args; remove {', '.join(args)}")
        return _open_files((None,), [[Path(source)]], {})
    return _open_generated(SourceSpec(source=source, count=limit, seed=seed, args=args))


def _is_file(source: str) -> bool:
    if source.partition(":")[0] in SOURCES:
        return False
    path = Path(source)
    return path.exists() or ending(path) in READERS


def _open_generated(spec: SourceSpec) -> Raw:
    name, colon, _ = spec.source.partition(":")
    if name not in SOURCES and not colon:
        known = list(dict.fromkeys([*NAMED, *SOURCES]))
        near = nearest(spec.source.lower().rpartition("/")[2], known)
        cure = f"give the path of a file or one of {', '.join(known)}"
        raise ValueError(f'unknown source "{spec.source}"; {near}; {cure}')
    if spec.count is None and name in SOURCES and SOURCES[name].endless:
        raise ValueError(f"{spec.source} has no end; give a limit")
    drawn, dropped = draw(spec)
    facts = {"source": spec.source, "seed": str(spec.seed), "arguments": json.dumps(spec.args)}
    places = (Place(file=spec.source, row=row) for row in range(1, len(drawn) + 1))
    rows = zip(places, (Converted(problem=problem) for problem in drawn), strict=True)
    return Raw(facts=facts, rows=rows, dropped=dropped)


def _open_hub(
    name: str,
    parts: Sequence[Part],
    args: Mapping[str, Any],
    revision: str | None,
    terminal: Terminal,
) -> Raw:
    from archer.data.hub import fetch

    if revision is not None and len({part.repo for part in parts}) > 1:
        raise ValueError(f"{name} is of several repositories; leave --revision out")
    facts, paths = {"source": name, "arguments": json.dumps(args)}, []
    for part in parts:
        with terminal.bar(f"download {part.repo}", 100, "MB") as advance:
            found = fetch(
                part.repo, part.files, revision=revision, progress=partial(_percent, advance)
            )
        if found.offline:
            terminal.say(f"{part.repo}: the hub was not asked, this is what was downloaded before")
        licence = found.licence or "none is stated"
        facts[f"hub: {part.repo}"] = f"revision {found.revision}, licence: {licence}"
        paths.append(list(found.paths))
    return _open_files(parts, paths, facts)


def _percent(advance: Advance, num_bytes: int, total: int) -> None:
    advance(100 * num_bytes // max(total, 1), num_bytes // 10**6)


def _open_files(
    parts: Sequence[Part | None], paths: Sequence[Sequence[Path]], facts: Mapping[str, str]
) -> Raw:
    """The rows of all files, one after the other; each is in the layout of its first row."""
    streams, layouts, hashes, notes = [], [], {}, []
    for part, files in zip(parts, paths, strict=True):
        opened = [_find_rows(path) for path in files]
        streams.append(_convert(part, opened))
        for path, name, _ in opened:
            layouts.append(name)
            hashes[path.name] = _sha256(path)
            if name in LAYOUTS and LAYOUTS[name].note:
                notes.append(LAYOUTS[name].note)
    several = len(hashes) > 1
    found = {
        "source": ", ".join(hashes),
        **facts,
        "layout": ", ".join(dict.fromkeys(layouts)),
        **{f"sha256 of {name if several else 'the source'}": hash for name, hash in hashes.items()},
    }
    if notes:
        found["note"] = "; ".join(dict.fromkeys(notes))
    known = [part.expected for part in parts if part is not None]
    expected = known[0] if len(known) == 1 else None
    return Raw(
        facts=found,
        rows=chain.from_iterable(streams),
        files=tuple(chain.from_iterable(paths)),
        expected=expected,
    )


Opened = tuple[Path, str, Iterator[tuple[int, Row]]]
"""A file, the layout that its first row has, and its rows with their numbers."""


def _find_rows(path: Path) -> Opened:
    rows = read_file(path)
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{path}: the file has no rows; give one that has some")
    name = "problems" if all(key in first[1] for key in REQUIRED) else find_layout(first[1])
    if name is None:
        keys, known = ", ".join(first[1]), ", ".join(["problems", *LAYOUTS])
        raise ValueError(f"{path}: no layout has the keys {keys}; convert it into one of {known}")
    return path, name, chain([first], rows)


def _convert(part: Part | None, files: Iterable[Opened]) -> Rows:
    """All rows as problems, each file's in its layout. Ids are numbered through all files."""
    before = 0
    for path, layout, rows in files:
        name = path.name.removesuffix(ending(path)) if part is None else part.name
        number = 0
        for number, row in rows:
            if layout == "problems":
                item: Converted | Dropped = Converted(problem=_checked(row, f"{path}:{number}"))
            elif part is not None and part.keep is not None and not part.keep(row):
                item = Dropped(reason=NOT_MEANT)
            else:
                item = convert_row(LAYOUTS[layout], row, f"{name}-{before + number:06d}", name)
            yield Place(file=path.name, row=number), item
        before += number


def _checked(row: Row, where: str) -> Problem:
    """The row of a file that holds problems already; ValueError if it is none."""
    problem = to_problem(row, where=where)
    try:
        to_line(problem)
    except (ValueError, TypeError) as error:  # infinity, half a character; a date of parquet
        fact = f"it cannot be written as JSON ({error})"
        raise ValueError(f"{where}: {fact}; write another value there") from error
    return problem


NOT_MEANT = "outside the dates"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# What is left out


@dataclass(slots=True)
class Tally:
    """What has been read and left out so far.

    Example:
        Tally(rows=12, dropped=Counter({"no answer": 1}),
              runs={"no answer": {"raw.jsonl": [(7, 7)]}})
    """

    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    runs: dict[str, dict[str, list[tuple[int, int]]]] = field(default_factory=dict)
    """First and last rows of what was left out in a row, by reason and file: a file may repeat
    every problem a hundred times."""
    details: dict[str, list[tuple[Place, str, str]]] = field(default_factory=dict)
    """By reason the rows of which something is to be said: where, the problem's id, and that."""

    def drop(self, place: Place, dropped: Dropped, id: str = "") -> None:
        """One row less."""
        self.dropped[dropped.reason] += 1
        if dropped.detail:
            self.details.setdefault(dropped.reason, []).append((place, id, dropped.detail))
        runs = self.runs.setdefault(dropped.reason, {}).setdefault(place.file, [])
        if runs and runs[-1][1] == place.row - 1:
            runs[-1] = (runs[-1][0], place.row)
        else:
            runs.append((place.row, place.row))


@dataclass(slots=True, kw_only=True)
class Candidate:
    """A row on its way into the file: a problem, or why it is left out, as far as that is known.

    Example: Candidate(place=Place(file="aime.jsonl", row=3), item=Converted(...), id="aime-000003",
                       prompt=b"...", id_digest=b"...")
    """

    place: Place
    item: Converted | Dropped
    id: str = ""
    """Of what was a problem once; the digests too."""
    prompt: bytes = b""
    id_digest: bytes = b""


@dataclass(slots=True, kw_only=True)
class Written:
    """What later rows may not repeat. A problem that is left out takes no other one with it."""

    near: Filter | None = None
    """Remembers what it lets through, and so is asked only of what passes all else."""
    prompts: set[bytes] = field(default_factory=set)
    ids: set[bytes] = field(default_factory=set)

    def repeats(self, one: Candidate) -> Dropped | None:
        """Whether a row repeats what is written so far."""
        if one.prompt in self.prompts:
            return Dropped(reason=REPEATED)
        return Dropped(reason="repeated id") if one.id_digest in self.ids else None

    def add(self, one: Candidate) -> None:
        """Remembers a row that is written."""
        self.prompts.add(one.prompt)
        self.ids.add(one.id_digest)


def _sieve(
    rows: Rows, filters: Iterable[Filter], written: Written, tally: Tally, advance: Advance
) -> Iterator[Candidate]:
    """All rows. A problem that a filter leaves out, or that repeats one, is none any more."""
    filters = list(filters)
    for place, item in rows:
        tally.rows += 1
        advance(tally.rows, tally.rows)
        one = Candidate(place=place, item=item)
        if isinstance(item, Converted):
            problem = item.problem
            one.id = problem.id
            one.prompt, one.id_digest = prompt_key(problem.prompt), digest(problem.id)
            found = written.repeats(one)  # most repeats are known here, before they cost anything
            if found is None:
                found = next(filter(None, (reject(problem) for reject in filters)), None)
            one.item = found or item
        yield one


@contextmanager
def _open_tester(verdicts: Known, terminal: Terminal) -> Iterator[Tester]:
    """Whoever tries references, and keeps what it has found."""
    policy = Policy(cpu_seconds=CPU_SECONDS)
    with WorkerPool(workers=num_cores(), policy=policy) as pool:
        yield Tester(pool, verdicts, policy, window=WINDOW * num_cores(), say=terminal.say)


CPU_SECONDS = 20.0
"""Of a verdict, where the problem has no limit of its own: four times what training allows, so that
no reference is left out for a slow machine."""
WINDOW = 8
"""Problems whose references are judged at a time, per core: some have megabytes of tests."""
AHEAD = 16
"""For each problem that is judged at a time so many rows may wait for their turn, most of them left
out already."""


def _chosen(
    candidates: Iterator[Candidate],
    tester: Tester | None,
    limit: int | None,
    written: Written,
    tally: Tally,
) -> Iterator[Problem]:
    """The problems that repeat none before them and whose references and tests hold.

    Rows are decided in their order, however many are judged at once, so that the same are left out
    for the same reasons. No row is read that may not be needed.
    """
    waiting: deque[Candidate] = deque()
    at_once = 1 if tester is None else tester.window
    pending, passed = 0, 0  # problems among those that wait, and problems that were chosen
    while True:
        while (
            pending < at_once
            and len(waiting) < AHEAD * at_once
            and (limit is None or passed + pending < limit)
        ):
            read = next(candidates, None)
            if read is None:
                break
            waiting.append(read)
            if isinstance(read.item, Converted):
                pending += 1
                if tester is not None:
                    tester.submit(read.item.problem, read.item.reference)
        if not waiting:
            return
        one = waiting.popleft()
        if isinstance(one.item, Dropped):
            tally.drop(one.place, written.repeats(one) or one.item, one.id)
            continue
        problem, pending = one.item.problem, pending - 1
        trouble = None if tester is None else tester.next()[1]
        found = written.repeats(one) or trouble
        if found is None and written.near is not None:
            found = written.near(problem)
        if found is not None:
            tally.drop(one.place, found, one.id)
        else:
            written.add(one)
            passed += 1
            yield problem


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


def _notes(raw: Raw, tally: Tally, written: int | None) -> tuple[str, ...]:
    """Where others count another number. written: None where filters were to leave some out."""
    rows = tally.rows - tally.dropped[NOT_MEANT]
    counted = f"others count {raw.expected} problems in this data"
    if raw.expected is None:
        return ()
    if rows != raw.expected:
        return (f"{counted}, here are {rows}",)
    if written is not None and written != rows:
        return (f"{counted}, {written} of its {rows} rows are written",)
    return ()


# The card


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
    lines += [f"| {fact} | {_cell(value)} |" for fact, value in facts.items()]
    if tally.dropped:
        lines += ["", "## Left out", "", "| reason | rows | which |", "|---|---|---|"]
        for reason, count in tally.dropped.most_common():
            lines.append(f"| {reason} | {count} | {_which(tally.runs.get(reason, {}))} |")
    for reason, rows in tally.details.items():
        lines += ["", f"## Left out: {reason}", "", "| row | problem | why |", "|---|---|---|"]
        lines += [f"| {place.row} | {_cell(id)} | {_cell(said)} |" for place, id, said in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _which(runs: Mapping[str, Sequence[tuple[int, int]]]) -> str:
    """The rows of each file; the name of a file only where there are several."""
    if len(runs) == 1:
        return _ranges(next(iter(runs.values())))
    return "; ".join(f"{name}: {_ranges(of_file)}" for name, of_file in runs.items())


def _ranges(runs: Sequence[tuple[int, int]], most: int = 40) -> str:
    """(1, 3), (7, 7) as "1-3, 7"."""
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in runs[:most]]
    rest = sum(b - a + 1 for a, b in runs[most:])
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
