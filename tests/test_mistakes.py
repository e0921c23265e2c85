"""What goes wrong with `archer prepare`: one line says it, and nothing that was there is lost."""

from __future__ import annotations

import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from archer.cli import main
from archer.data.problems import read_problems
from archer.data.rows import READERS
from archer.data.sources import Dropped
from archer.files import lock
from archer.prepare import prepare, problems_of, references
from archer.prepare.layouts import LAYOUTS, Converted, convert_row, find_layout
from archer.types import Problem
from archer.verify.pool import Ticket
from tests.held import ROWS, fill, rows
from tests.local_hub import reached
from tests.needs import needs_sandbox
from tests.refusals import Refusals, files_of_at_most

ROW = {"problem": "1+1?", "answer": "2"}
LINE = json.dumps(ROW) + "\n"
PROBLEM = {"id": "a", "prompt": "1+1?", "verifier": "math", "answer": "2"}


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refusals:
    return Refusals(capsys)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command is given: a good file, one that is somebody's, and one that is prepared."""
    monkeypatch.chdir(tmp_path)
    files = {
        "good.jsonl": LINE,
        "mine.jsonl": "mine\n",
        "file": "mine",
        "empty.jsonl": "",
        "cut.jsonl": LINE + '{"problem": "2+',
        "array.jsonl": json.dumps([ROW]),
        "lines.json": LINE + LINE,
        "plain.jsonl.gz": LINE,
        "others.jsonl": '{"a": 1}\n',
        "result.json": "{}",
        "table.csv": "a,b\n",
        "more.json": json.dumps([PROBLEM])[:-2] + ', "meta": {"level": 1e999}}]',
        "half.json": json.dumps([PROBLEM | {"prompt": "\ud800"}]),
    }
    for name, text in files.items():
        Path(name).write_text(text)
    Path("wide.jsonl").write_bytes(LINE.encode("utf-16"))
    Path("cut.jsonl.gz").write_bytes(gzip.compress(LINE.encode() * 100)[:40])
    Path("a folder.jsonl").mkdir()
    assert main(["prepare", "good.jsonl", "--out", "out.jsonl", "--quiet"]) == 0
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        # what is prepared
        ("", "required: SOURCE, --out; see archer prepare --help"),
        ("good.jsonl good.jsonl", "unrecognized arguments: good.jsonl"),
        ("goood.jsonl", "goood.jsonl: No such file or directory; give the path of a"),
        ("a\\ folder.jsonl", "a folder.jsonl: Is a directory; give the path of a"),
        ("file", "file: such a file is not read; a file's name must end in .jsonl, .jsonl.gz, "),
        ("table.csv", "table.csv: .csv is not read; a file's name must end in .jsonl, "),
        ("math50", 'unknown source "math50"; near to it: math500'),
        ("GSM8K", 'unknown source "GSM8K"; near to it: gsm8k'),
        ("openai/gsm8k", 'unknown source "openai/gsm8k"; near to it: gsm8k'),
        ("something", 'unknown source "something"; 23 are known, none is near to it'),
        ("no:such", 'unknown source "no:such": no:such cannot be imported'),
        ("arithmetic:x --limit 3", 'unknown source "arithmetic:x"; write "arithmetic"'),
        ("gsm8k:goood.jsonl", "goood.jsonl: No such file or directory; give the path of a"),
        ("gsm8k:file", "file: such a file is not read; a file's name must end in"),
        ("gsm8k:table.csv", "table.csv: .csv is not read; a file's name must end in"),
        ("archer2-math:good.jsonl", "archer2-math is 3 data sets; give the file alone"),
        # what is in it
        ("empty.jsonl", "empty.jsonl: the file has no rows; give one that has some"),
        ("cut.jsonl", "cut.jsonl:2: malformed JSON, Unterminated string"),
        ("array.jsonl", "array.jsonl:1: the row is ["),
        ("lines.json", "lines.json: row 1 does not begin with '['; the file must be one JSON"),
        ("wide.jsonl", "wide.jsonl:1: not UTF-8 text"),
        ("plain.jsonl.gz", "plain.jsonl.gz: Not a gzipped file"),
        ("cut.jsonl.gz", "cut.jsonl.gz: Compressed file ended before"),
        ("others.jsonl", "others.jsonl: no layout has the keys a; convert it into one of"),
        ("more.json", "more.json:1: it cannot be written as JSON (Out of range float"),
        ("half.json", "half.json:1: it cannot be written as JSON ('utf-8' codec"),
        # where it goes
        ("good.jsonl --out", "argument --out: expected one argument"),
        ("good.jsonl --out out.txt", "out.txt: a problem file's name ends in .jsonl; give"),
        ("good.jsonl --out good.jsonl", "the raw file would be written over; give another"),
        ("good.jsonl --out mine.jsonl", "mine.jsonl is there, and no card beside it: give"),
        ("good.jsonl --out a\\ folder.jsonl", "a folder.jsonl is there, and no card beside"),
        ("good.jsonl --out file/out.jsonl", "file: Not a directory; give another --out"),
        ("good.jsonl --out file/in/out.jsonl", "file: Not a directory; give another --out"),
        ("good.jsonl --out /proc/out.jsonl", "/proc: No such file or directory; give another"),
        (f"good.jsonl --out {'x' * 250}.jsonl", "File name too long; give another name"),
        # how
        ("good.jsonl --limit many", "argument --limit: invalid int value: 'many'"),
        ("good.jsonl --limit 0", "limit is 0; make it at least 1"),
        ("good.jsonl --frobnicate", "unrecognized arguments: --frobnicate"),
        ("good.jsonl --arg level", "the argument 'level' has no value; write it as key=value"),
        ("good.jsonl --arg level=1", "good.jsonl: a file has no args; remove level"),
        ("good.jsonl --revision main", "good.jsonl is not on the hub and has no revision"),
        ("gsm8k --arg split=dev", "gsm8k: split is 'dev'; make it one of train, test"),
        ("arithmetic", "arithmetic has no end; give a limit"),
        ("functions --limit 3 --arg about=5", "functions: about is 5; list some of numbers, "),
        ("good.jsonl --near-duplicates 2", "share 2.0 of their N-grams; make it 0.5 to 1"),
        ("good.jsonl --min-tests 0", "at least 0 tests; make it at least 1"),
        ("good.jsonl --max-prompt-tokens 9", "--max-prompt-tokens 9 of which model?"),
        ("good.jsonl --max-prompt-tokens 0 --model tiny", "at most 0 tokens; make it at least"),
        ("good.jsonl --model tiny", "--model tiny counts for --max-prompt-tokens; give both"),
        ("good.jsonl --pass-rates none.json", "none.jsonl: No such file or directory"),
        ("good.jsonl --pass-rates result.json", "result.jsonl: No such file or directory"),
        ("good.jsonl --without table.csv", "table.csv: .csv is not read; a file's name must"),
        ("good.jsonl --without arithmetic", "arithmetic is generated; name a data set or a file"),
        ("good.jsonl --without gsm8k", "'openai/gsm8k' was never downloaded whole at main"),
        ("good.jsonl --without good.jsonl", "no row became a problem (1 stands in good too)"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_mistake_is_one_line_and_changes_nothing(
    refused: Refusals, folder: Path, asked: str, words: str
) -> None:
    before = contents(folder)
    arguments = [word.replace("\\", " ") for word in asked.replace("\\ ", "\\").split()]
    if arguments and "--out" not in arguments:
        arguments += ["--out", "out.jsonl"]
    assert words in refused("prepare", *arguments)
    assert contents(folder) == before


# Files of a kind that says of itself what it holds


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: b"PAR1" + bytes(200) + b"PAR1",
        lambda whole: whole[:200] + bytes(each ^ 0x55 for each in whole[200:400]) + whole[400:],
        lambda whole: whole[:1000] + bytes(3000) + whole[4000:],
        lambda whole: whole[:-200] + b"\xff" * 150 + whole[-50:],
    ],
    ids=["half", "hollow", "flipped", "a hole", "foot"],
)
def test_a_damaged_parquet_file_is_said_to_be_one(
    refused: Refusals, folder: Path, damage: Any
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    many = [ROW | {"problem": f"What is {n} + 1? " * 30} for n in range(2000)]
    parquet.write_table(pyarrow.Table.from_pylist(many), "raw.parquet")
    Path("raw.parquet").write_bytes(damage(Path("raw.parquet").read_bytes()))
    said = refused("prepare", "raw.parquet", "--out", "out.jsonl", "--unchecked")
    assert said.startswith("archer: raw.parquet: ") and "None" not in said
    assert said.endswith("; give a whole parquet file\n")


@pytest.mark.parametrize("value", [datetime.date(2025, 2, 1), b"\xff", float("nan")])
def test_a_parquet_file_may_hold_what_json_cannot(
    refused: Refusals, folder: Path, value: object
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    strange = PROBLEM | {"meta": {"value": value}}
    parquet.write_table(pyarrow.Table.from_pylist([strange]), "raw.parquet")
    said = refused("prepare", "raw.parquet", "--out", "out.jsonl")
    assert said.startswith("archer: raw.parquet:1: it cannot be written as JSON (")


STRANGE: list[Any] = [
    *(None, True, -1, 1.5, float("nan"), 10**30, "", "x", "[]", "null", "\ud800", b"x"),
    *([], [None], [[1]], {}, {"a": 1}, [{"role": "user"}], datetime.date(2025, 2, 1)),
    *({"input": 1, "output": 2}, {"input": ["1"], "output": []}, {"input": [b"x"], "output": [1]}),
    *({"language": [3], "solution": []}, {"language": None, "solution": None}),
    [{"testtype": "functional", "metadata": {"func_name": "f"}, "input": "1", "output": b"x"}],
    *({"ground_truth": [b"x"]}, {"ground_truth": {"inputs": 1}}),
]


@pytest.mark.parametrize("name", sorted(path.stem for path in ROWS.iterdir()))
def test_a_row_with_anything_at_any_key_is_a_problem_or_is_left_out(name: str) -> None:
    row = rows(name)[0]
    layout = find_layout(row)
    if layout is None:
        return  # a file of problems, which are not converted
    for key in [*row, "id", "solutions", "private_tests", "memory_limit_bytes"]:
        for value in STRANGE:
            found = convert_row(LAYOUTS[layout], {**row, key: value}, "id", "source")
            if isinstance(found, Converted):
                assert references.trials(found.problem, found.reference) is not None
            else:
                assert len(found.reason) < 60, "rows are counted by reason: it names no value"


def test_what_a_file_s_name_ends_in_decides_how_it_is_read(tmp_path: Path) -> None:
    for name in READERS:
        with pytest.raises(ValueError, match="No such file or directory; give the path of a"):
            prepare(str(tmp_path / f"raw{name}"), tmp_path / "out.jsonl")


def test_a_suite_of_the_hub_that_is_a_source_of_recipes_too_can_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reached(tmp_path, monkeypatch) as hub:
        fill(hub, "gsm8k", tmp_path)
        assert len(list(problems_of("gsm8k"))) == len(rows("gsm8k"))


# Two at once, a full disk, and what was interrupted


@pytest.mark.parametrize("check", [True, False])
def test_one_process_at_a_time_writes_a_file(folder: Path, check: bool) -> None:
    before = contents(folder)
    with open(".out.jsonl.judged", "wb") as other:
        lock(other, "it is free")
        with pytest.raises(ValueError, match="in use by another process; wait for it, or give"):
            prepare("good.jsonl", "out.jsonl", check=check)
    Path(".out.jsonl.judged").unlink()
    assert contents(folder) == before
    prepare("good.jsonl", "out.jsonl", check=check)
    assert not Path(".out.jsonl.judged").exists()


MBPP = {
    "text": "Add.",
    "code": "def add(a, b): return a + b",
    "test_list": ["assert add(1, 2) == 3"],
}


def programs(number: int) -> None:
    lines = [json.dumps(MBPP | {"text": f"Add {n}."}) + "\n" for n in range(number)]
    Path("raw.jsonl").write_text("".join(lines))


@needs_sandbox
def test_a_full_disk_is_one_line_and_what_was_judged_is_kept(
    refused: Refusals, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    programs(40)
    before = contents(folder)
    with files_of_at_most(2000):
        said = refused("prepare", "raw.jsonl", "--out", "out.jsonl")
    assert "no more can be written" in said and "free some space" in said
    assert not caplog.records, "no thread prints what it could not write"
    judged = Path(".out.jsonl.judged").read_bytes()
    assert judged.count(b"\n") > 10
    assert {name: contents(folder)[name] for name in before} == before
    assert main(["prepare", "raw.jsonl", "--out", "out.jsonl", "--quiet"]) == 0
    assert not Path(".out.jsonl.judged").exists()
    assert len(list(read_problems("out.jsonl"))) == 40


@needs_sandbox
def test_what_was_interrupted_goes_on_with_other_settings_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Verdicts are of problems: whatever is asked for next, none of them is made twice."""
    programs(60)
    next_one, calls = references.Tester.next, iter(range(60))

    def interrupted(self: references.Tester) -> tuple[Problem, Dropped | None]:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return next_one(self)

    command = ["prepare", "raw.jsonl", "--out", "out.jsonl", "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(references.Tester, "next", interrupted)
        assert main(command) == 130
    assert capsys.readouterr().err.startswith("archer: stopped at once; train, prepare, ")
    kept = folder / ".out.jsonl.judged"
    judged = kept.read_bytes()
    assert 10 <= judged.count(b"\n") < 120
    assert main([*command, "--unchecked"]) == 0
    assert kept.read_bytes() == judged, "it was not asked for, and is not thrown away"
    made: list[str] = []
    keep = references.Tester._keep

    def counted(self: references.Tester, key: str, ticket: Ticket) -> None:
        made.append(key)
        keep(self, key, ticket)

    monkeypatch.setattr(references.Tester, "_keep", counted)
    assert main([*command, "--limit", "40"]) == 0
    assert made and not set(made) & {json.loads(line)[0] for line in judged.splitlines()}
    assert not kept.exists()
