import gzip
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from archer.data.problems import problems_hash, read_problems
from archer.data.rows import BLOCK, read_file
from archer.prepare import Prepared, parse_args, prepare
from archer.types import Problem
from tests.children import child_environment
from tests.real_data import real_file

Row = dict[str, Any]


def write(path: Path, *rows: object) -> str:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepared(tmp_path: Path, *rows: object) -> tuple[Prepared, list[Problem]]:
    out = tmp_path / "out.jsonl"
    done = prepare(write(tmp_path / "raw.jsonl", *rows), out)
    return done, list(read_problems(out, verifiers=("math", "code")))


def only(tmp_path: Path, row: Row) -> Problem:
    (problem,) = prepared(tmp_path, row)[1]
    return problem


# Layouts, each with rows of our own


def archer_row(truth: object, **changes: object) -> Row:
    return {
        "data_source": "math",
        "prompt": [{"role": "user", "content": "2+3?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"index": 7, "split": "train"},
    } | changes


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        ("5", "5"),
        (5, "5"),
        (5.0, "5"),
        (0.5, "0.5"),
        ("025", "25"),
        ("-025", "-25"),
        ("0", "0"),
        ("0.50", "0.50"),
        (r"so \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("$x+1$", "x+1"),
        ("$1$ or $2$", "$1$ or $2$"),
        (["5", 5.5], ["5", "5.5"]),
        (["5"], "5"),
    ],
)
def test_archer_mathematics(tmp_path: Path, truth: object, answer: object) -> None:
    assert only(tmp_path, archer_row(truth)) == Problem(
        id="math-7", prompt="2+3?", verifier="math", answer=answer, source="math"
    )


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        (
            {"functional": "def check(candidate): ...\n\ncheck(Solution().f)"},
            {"kind": "assert", "code": "def check(candidate): ...\n\ncheck(Solution().f)"},
        ),
        (
            {"inputs": ["1\n", "2\n"], "outputs": ["1\n", "4\n"]},
            {
                "kind": "stdin",
                "tests": [{"input": "1\n", "output": "1\n"}, {"input": "2\n", "output": "4\n"}],
            },
        ),
        (
            [{"input": "1", "output": "2", "testtype": "stdin", "metadata": {"func_name": None}}],
            {
                "kind": "stdin",
                "tests": [{"input": "1", "output": "2"}],
                "time_limit_s": 6,
                "runner": "livecodebench",
            },
        ),
        (
            [
                {
                    "input": '[1, 2]\n"a"',
                    "output": "null",
                    "testtype": "functional",
                    "metadata": {"func_name": "f"},
                }
            ],
            {
                "kind": "call",
                "name": "f",
                "tests": [{"input": [[1, 2], "a"], "output": None}],
                "time_limit_s": 6,
                "runner": "livecodebench",
            },
        ),
    ],
)
def test_archer_code(tmp_path: Path, truth: object, answer: object) -> None:
    row = archer_row(json.dumps(truth), data_source="livecodebench_v5", ability="coding")
    problem = only(tmp_path, row)
    assert (problem.id, problem.verifier) == ("livecodebench_v5-7", "code")
    assert problem.answer == answer


def test_a_method_is_called_on_solution(tmp_path: Path) -> None:
    test = {"input": "1", "output": "2", "testtype": "functional", "metadata": {"func_name": "f"}}
    prompt = [{"role": "user", "content": "class Solution:\n    def f(self, x): ..."}]
    row = archer_row(json.dumps([test]), data_source="livecodebench", prompt=prompt)
    assert only(tmp_path, row).answer["name"] == "Solution.f"


@pytest.mark.parametrize(
    ("truth", "reason"),
    [
        ("", "no tests, or tests that do not parse"),
        ("{", "no tests, or tests that do not parse"),
        ([], "no tests, or tests that do not parse"),
        ({"inputs": ["1"], "outputs": []}, "no tests, or tests that do not parse"),
        ({"inputs": [], "outputs": []}, "no tests, or tests that do not parse"),
        (
            {"inputs": ["1"], "outputs": ["1"], "fn_name": "f"},
            "no tests, or tests that do not parse",
        ),
        (
            [{"input": "1", "output": "2", "testtype": "other"}],
            "no tests, or tests that do not parse",
        ),
        ([{"input": "1", "output": "x", "testtype": "functional"}], "no tests, or tests that do"),
        ({"inputs": [1], "outputs": ["1"]}, "malformed prompt or answer"),
        ([{"input": "1", "testtype": "stdin"}], "malformed prompt or answer"),
    ],
)
def test_code_without_tests_is_left_out(tmp_path: Path, truth: object, reason: str) -> None:
    good = archer_row("5")
    text = truth if isinstance(truth, str) else json.dumps(truth)
    done, problems = prepared(tmp_path, good, archer_row(text, ability="coding"))
    assert len(problems) == 1
    (found,) = done.dropped
    assert found.startswith(reason)


def test_archer_flat(tmp_path: Path) -> None:
    row = {
        "prompt": "Add.",
        "ground_truth": '{"inputs": ["1"], "outputs": ["2"]}',
        "ability": "code",
    }
    problem = only(tmp_path, row)
    assert (problem.id, problem.source, problem.verifier) == ("raw-000001", "raw", "code")
    assert only(tmp_path, row | {"ability": "math", "ground_truth": "3"}).answer == "3"


def test_a_row_whose_tests_cannot_be_unpacked_is_counted_and_named(tmp_path: Path) -> None:
    row = {
        "question_content": "Double it.",
        "public_test_cases": '[{"input": "1", "output": "2", "testtype": "stdin"}]',
    }
    bad = row | {"question_content": "Halve it.", "private_test_cases": "no base64"}
    done, (problem,) = prepared(tmp_path, row, bad)
    assert done.dropped == {"private tests that cannot be unpacked": 1}
    assert problem.id == "raw-000001"
    assert "| private tests that cannot be unpacked | 1 | 2 |" in done.card.read_text()
    assert "rows without private tests have public ones only" in done.card.read_text()


@pytest.mark.parametrize(
    ("row", "id", "answer"),
    [
        ({"question": "a?", "answer": "1+1=<<1+1=2>>2\n#### 1,002"}, "raw-000001", "1002"),
        ({"problem": "a?", "answer": r"\pi", "unique_id": "test/1.json"}, "test/1.json", r"\pi"),
        ({"id": 60, "problem": "a?", "question": "a?", "answer": "025"}, "raw-60", "25"),
        ({"id": "3", "question": "a?", "answer": 70.0}, "raw-3", "70"),
        ({"id": 5, "question": "a?", "final_answer": ["$2n$"]}, "olympiadbench-5", "2n"),
        (
            {"question": "a?", "final_answer": ["$1$,$x$"], "is_multiple_answer": True},
            "raw-000001",
            "1,x",
        ),
    ],
)
def test_mathematics(tmp_path: Path, row: Row, id: str, answer: str) -> None:
    problem = only(tmp_path, row)
    assert (problem.id, problem.prompt, problem.answer) == (id, "a?", answer)
    assert problem.verifier == "math"


def test_a_problem_file_is_checked_and_copied(tmp_path: Path) -> None:
    row = {"id": "a", "prompt": "2+3?", "verifier": "math", "answer": "5", "meta": {"level": 1}}
    assert only(tmp_path, row).meta == {"level": 1}
    with pytest.raises(ValueError, match=r'raw\.jsonl:2: "answer" holds the number 5; write it as'):
        prepared(tmp_path, row, row | {"id": "b", "answer": 5})


# Counting


def test_every_row_that_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    rows = [
        {"problem": "one?", "answer": "1"},
        {"problem": "two?", "answer": None},
        {"problem": "three?", "answer": " "},
        {"problem": " one? ", "answer": "1"},
        {"problem": "", "answer": "1"},
        {"question_": "five?"},
        {"problem": "six?", "answer": "6", "unique_id": "same"},
        {"problem": "seven?", "answer": "7", "unique_id": "same"},
        {"problem": "eight?", "answer": True},
        {"problem": "nine?", "answer": []},
        {"problem": "ten?", "answer": {"value": 10}},
        {"problem": "\ud800", "answer": "11"},
    ]
    source = write(tmp_path / "raw.json", *rows)
    done = prepare(source, tmp_path / "out.jsonl")
    assert (done.layout, done.rows_in, done.rows_out) == ("mathematics", 12, 2)
    assert done.dropped == {
        "no answer": 5,
        "repeated prompt": 1,
        "no prompt": 1,
        "not in the layout of the first row": 1,
        "repeated id": 1,
        "malformed prompt or answer": 1,
    }
    assert done.rows_in == done.rows_out + sum(done.dropped.values())
    card = done.card.read_text()
    assert done.card == tmp_path / "out.card.md"
    assert "| no answer | 5 | 2-3, 9-11 |" in card
    assert "| repeated prompt | 1 | 4 |" in card
    assert "| rows read | 12 |" in card
    assert "| problems written | 2 |" in card
    assert done.hash == problems_hash(read_problems(done.out)) and done.hash in card


def test_the_same_input_gives_the_same_bytes_without_dates_and_folders(tmp_path: Path) -> None:
    rows = [{"problem": f"{n}?", "answer": str(n)} for n in range(5)]
    found = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        done = prepare(
            write(tmp_path / folder / "raw.json", *rows), tmp_path / folder / "out.jsonl"
        )
        found.append((done.out.read_bytes(), done.card.read_bytes()))
    assert found[0] == found[1]
    assert str(tmp_path) not in found[0][1].decode()


def test_a_limit_takes_the_first_problems_and_reads_no_further(tmp_path: Path) -> None:
    rows: list[object] = [{"problem": f"{n}?", "answer": str(n)} for n in range(5)]
    source = write(tmp_path / "raw.jsonl", *rows, "no row")
    done = prepare(source, tmp_path / "out.jsonl", limit=3)
    assert (done.rows_in, done.rows_out) == (3, 3)
    assert [problem.answer for problem in read_problems(done.out)] == ["0", "1", "2"]


def test_a_generated_task_is_written_with_its_seed_and_arguments(tmp_path: Path) -> None:
    knobs: Row = {"limit": 20, "args": {"operations": "*"}}
    one, same, other = (
        prepare("arithmetic", tmp_path / f"{n}.jsonl", seed=seed, **knobs)
        for n, seed in enumerate((0, 0, 1))
    )
    assert one.out.read_bytes() == same.out.read_bytes() != other.out.read_bytes()
    card = other.card.read_text()
    assert "| seed | 1 |" in card and '| arguments | {"operations": "*"} |' in card


def test_a_failed_run_leaves_what_was_there(tmp_path: Path) -> None:
    row = {"id": "a", "prompt": "2+3?", "verifier": "math", "answer": "5"}
    done, _ = prepared(tmp_path, row)
    before = done.out.read_bytes(), done.card.read_bytes()
    with pytest.raises(ValueError, match=r"raw\.jsonl:2: unknown key"):
        prepared(tmp_path, row, row | {"id": "b", "x": 1})
    assert (done.out.read_bytes(), done.card.read_bytes()) == before
    assert {path.name for path in tmp_path.iterdir()} == {"raw.jsonl", "out.jsonl", "out.card.md"}


# What is refused


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("raw.jsonl", "", "the file has no rows; give one that has some"),
        ("raw.jsonl", '{"a": 1}\n', "no layout has the keys a; convert it into one of problems, "),
        (
            "raw.jsonl",
            '{"problem": "a?", "answer": null}\n',
            "no row became a problem (1 no answer)",
        ),
        ("raw.jsonl", "{\n", "1: malformed JSON"),
        ("raw.json", "", "row 1 does not begin with '['; the file must be one JSON array"),
        ("raw.json", '{"a": 1}', "row 1 does not begin with '['; the file must be one JSON array"),
        ("raw.json", "[]", "the file has no rows; give one that has some"),
        ("raw.json", "[1]", "row 1 is 1; make it a JSON object"),
        ("raw.json", '[{"a": }]', "row 1: malformed JSON, Expecting value; repair the file"),
        ("raw.json", '[{"a": NaN}]', "row 1: malformed JSON, NaN is no JSON number; repair"),
        ("raw.json", '[{"problem": "a?", "answer": "1"} {}]', "row 2 does not begin with ','"),
        ("raw.json", '[{"problem": "a?", "answer": "1"}', "row 2 does not begin with ','"),
        ("raw.json", '[{"problem": "a?", "answer": "1"}] []', "more stands behind the array; the"),
        ("raw.json", '[{"problem": "a?", "ans', "row 1: malformed JSON, Unterminated string"),
        ("raw.json", '[{"problem": "\udcff"}]', "not UTF-8 text ("),
        ("raw.csv", "a,b\n", ".csv is not read; a file's name must end in .jsonl, .jsonl.gz, ."),
        ("raw.parquet", "PAR1", "Parquet file size is 4 bytes"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_cure(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(text.encode(errors="surrogateescape"))
    pattern = f"^{re.escape(str(path))}: ?{re.escape(message)}"
    with pytest.raises(ValueError, match=pattern) as caught:
        prepare(str(path), tmp_path / "out.jsonl")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("source", "knobs", "message"),
    [
        ("none.jsonl", {}, "none.jsonl: No such file or directory; give the path of a"),
        ("none.json", {}, "none.json: No such file or directory; give the path of a file"),
        ("none.jsonl", {"args": {"a": 1}}, "none.jsonl: a file has no args; remove a"),
        ("none.jsonl", {"limit": 0}, "limit is 0; make it at least 1"),
        ("arithmetic", {}, "arithmetic has no end; give a limit"),
        ("gsm9k", {}, 'unknown source "gsm9k"; '),
    ],
)
def test_a_source_that_cannot_be_had_is_refused(
    tmp_path: Path, source: str, knobs: Row, message: str
) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        prepare(source, tmp_path / "out.jsonl", **knobs)
    assert not list(tmp_path.iterdir())


def test_a_raw_file_is_never_written_over(tmp_path: Path) -> None:
    path = write(tmp_path / "raw.jsonl", {"problem": "a?", "answer": "1"})
    before = Path(path).read_bytes()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"raw\.jsonl: the raw file would be written over; give"):
        prepare(path, tmp_path / "folder" / ".." / "raw.jsonl")
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl.gz", "p"])
def test_a_problem_file_under_a_name_that_no_recipe_reads_is_refused(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(ValueError, match=r"a problem file's name ends in \.jsonl; give another"):
        prepare("functions", tmp_path / name, limit=1)
    assert not list(tmp_path.iterdir())


def test_arguments_are_json_or_else_text() -> None:
    assert parse_args(["max_value=50", "form=words", 'operations=["+"]', "a=b=c"]) == {
        "max_value": 50,
        "form": "words",
        "operations": ["+"],
        "a": "b=c",
    }
    with pytest.raises(ValueError, match="the argument 'digits' has no value; write it as key="):
        parse_args(["digits"])


# Readers


def test_an_array_is_read_wherever_its_blocks_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_numbers = random.Random(0)
    rows: list[Row] = [
        {
            "a": 'x"\\[]{},é\U0001f600\u2028' * random_numbers.randrange(4),
            "b": [n, -1.5e-7, None, True],
        }
        for n in range(12)
    ]
    path = tmp_path / "raw.json"
    for text in (json.dumps(rows), json.dumps(rows, indent=2, ensure_ascii=False)):
        path.write_text(text)
        for block in (1, 2, 3, 7, 16, 64, 1 << 20):
            monkeypatch.setattr("archer.data.rows.BLOCK", block)
            assert [row for _, row in read_file(path)] == rows


def test_a_packed_file_has_the_rows_and_the_name_of_the_plain_one(tmp_path: Path) -> None:
    plain = write(tmp_path / "raw.v1.jsonl", {"problem": "a?", "answer": "1"})
    packed = tmp_path / "raw.v1.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    one = prepare(plain, tmp_path / "one.jsonl")
    other = prepare(str(packed), tmp_path / "other.jsonl")
    assert one.out.read_bytes() == other.out.read_bytes()
    assert [problem.id for problem in read_problems(one.out)] == ["raw.v1-000001"]


@pytest.mark.parametrize("cut", [5, 30])
def test_a_broken_packed_file_is_refused(tmp_path: Path, cut: int) -> None:
    packed = gzip.compress(b'{"problem": "a?", "answer": "1"}\n')
    path = tmp_path / "raw.jsonl.gz"
    for content in (packed[:cut], b"{" + packed, packed[:12] + b"\xff" * 20):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"raw\.jsonl\.gz: .*; give a whole gzip file"):
            prepare(str(path), tmp_path / "out.jsonl")


def test_a_large_array_is_never_held_whole(tmp_path: Path) -> None:
    path = tmp_path / "raw.json"
    with open(path, "w") as file:
        file.write("[")
        for n in range(300):
            file.write(("," if n else "") + json.dumps({"n": n, "text": "x" * 100_000}))
        file.write("]")
    assert path.stat().st_size > 25 * BLOCK
    tracemalloc.start()
    assert [row["n"] for _, row in read_file(path)] == list(range(300))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * BLOCK


def measured(*arguments: str) -> tuple[str, int]:
    """What benchmarks/big_prepare.py says, and the megabytes of memory in it."""
    script = Path(__file__).parents[1] / "benchmarks" / "big_prepare.py"
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"peak resident memory (\d+) MB", done.stdout)
    assert found is not None, done.stdout
    return done.stdout, int(found[1])


def test_memory_hardly_grows_with_the_rows() -> None:
    """Two digests a row are remembered, for what repeats another one: 3,000 rows more, which are 17
    MB, take 1 MB."""
    (_, few), (_, many) = measured("--rows", "1000"), measured("--rows", "4000")
    assert many - few < 6


@pytest.mark.full
@pytest.mark.parametrize("more", [(), ("--near-duplicates", "0.7")], ids=["plain", "near"])
def test_a_gigabyte_is_prepared_in_less_than_one_of_memory(more: tuple[str, ...]) -> None:
    if shutil.disk_usage(tempfile.gettempdir()).free < 5e9:
        pytest.skip("less than 5 GB are free for a file and what becomes of it")
    said, _ = measured(*more)
    assert re.match(r"200,000 rows, 1,\d\d\d MB -> 200,000 problems", said), said


def test_parquet_rows_are_those_of_json(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [archer_row("5"), archer_row("6", prompt=[{"role": "user", "content": "3+3?"}])]
    rows[1]["extra_info"] = {"index": 8, "split": "train"}
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "raw.parquet")
    one = prepare(str(tmp_path / "raw.parquet"), tmp_path / "one.jsonl")
    other = prepare(write(tmp_path / "raw.json", *rows), tmp_path / "other.jsonl")
    assert one.out.read_bytes() == other.out.read_bytes()


# Real data


@pytest.mark.parametrize(
    ("name", "layout", "rows_in", "dropped"),
    [
        ("gsm8k_test.jsonl", "gsm8k", 1319, {}),
        ("math500.jsonl", "mathematics", 500, {}),
        ("aime2024.jsonl", "mathematics", 30, {}),
        ("aime2025.jsonl", "mathematics", 30, {}),
        ("amc23.jsonl", "mathematics", 40, {}),
        (
            "olympiadbench_oe_to_maths_en.jsonl",
            "olympiadbench",
            675,
            {"needs a tolerance, which the math verifier has not": 1},
        ),
        ("humaneval.jsonl", "humaneval", 164, {}),
        ("leetcodedataset_v0.3.1_test.jsonl.gz", "leetcodedataset", 228, {}),
        ("code_contests_sample.jsonl", "code_contests", 20, {}),
        ("mbpp.jsonl", "mbpp", 974, {}),
        ("livecodebench_v1_public.jsonl", "livecodebench", 400, {}),
        ("livecodebench_v1_3rows_full.jsonl", "livecodebench", 3, {}),
        pytest.param("gsm8k_train.jsonl", "gsm8k", 7473, {}, marks=pytest.mark.full),
        pytest.param(
            "deepscaler_train_math.json",
            "mathematics",
            7474,
            {"no answer": 4, "repeated prompt": 1},
            marks=pytest.mark.full,
        ),
    ],
)
def test_real_data_is_prepared(
    tmp_path: Path, name: str, layout: str, rows_in: int, dropped: dict[str, int]
) -> None:
    done = prepare(str(real_file(name)), tmp_path / "out.jsonl", check=False)
    assert (done.layout, done.rows_in, done.dropped) == (layout, rows_in, dropped)
    problems = list(read_problems(done.out, verifiers=("math", "code")))
    assert len(problems) == done.rows_out == rows_in - sum(dropped.values())
    if name.startswith(("aime", "amc")):
        assert all(problem.answer == str(int(problem.answer)) for problem in problems)


def test_a_file_that_was_not_prepared_is_never_written_over(tmp_path: Path) -> None:
    out = tmp_path / "mine.jsonl"
    out.write_text("keep\n", "utf-8")
    with pytest.raises(ValueError, match=r"no card beside it: give another --out"):
        prepare("arithmetic", out, limit=3)
    assert out.read_text("utf-8") == "keep\n"
    other = tmp_path / "other.jsonl"
    for _ in range(2):  # what it has written itself it may write again
        prepare("arithmetic", other, limit=3)
