"""Data sets by name, from a hub on this machine that holds small files of our own in their layouts.

What the real repositories hold today can't be seen from here: names and patterns are checked
against what `archer.prepare.named` says of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archer.cli import main
from archer.data.problems import read_problems
from archer.prepare import Prepared, prepare
from archer.prepare.layouts import LAYOUTS
from archer.prepare.named import NAMED, WINDOWS, find_parts
from tests.held import HELD, ROWS, content, fill
from tests.local_hub import Hub, reached
from tests.needs import needs_sandbox


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with reached(tmp_path, monkeypatch) as server:
        yield server


def test_every_name_is_held_by_the_hub_of_these_tests() -> None:
    assert NAMED.keys() - HELD.keys() == {"archer2-math"}
    assert {path.stem for path in ROWS.iterdir()} == {*LAYOUTS, "problems", "dapo", "skywork"}


@pytest.mark.parametrize("name", HELD)
def test_a_name_brings_its_problems_with_revision_and_licence(
    hub: Hub, tmp_path: Path, name: str
) -> None:
    commit = fill(hub, name, tmp_path)
    done = prepare(name, tmp_path / "out" / f"{name}.jsonl", check=False)
    assert done.rows_out == len(list(read_problems(done.out))) > 0
    card = done.card.read_text()
    (part,) = find_parts(name, {})
    assert f"| hub: {part.repo} | revision {commit}, licence: mit |" in card
    assert card.count("sha256 of ") == len(HELD[name])
    if part.expected is not None:
        assert done.notes == (
            f"others count {part.expected} problems in this data, here are {done.rows_in}",
        )


def answers(done: Prepared) -> list[Any]:
    return [problem.answer for problem in read_problems(done.out)]


def test_the_mathematics_of_the_papers_is_three_data_sets(hub: Hub, tmp_path: Path) -> None:
    for name in ("deepscaler", "skywork-or1-math", "dapo-math-17k"):
        fill(hub, name, tmp_path)
    done = prepare("archer2-math", tmp_path / "out.jsonl")
    assert answers(done) == ["1024", "61", "366", r"\frac{1}{2}", "12", "34", "-5"]
    assert [problem.prompt for problem in read_problems(done.out)][-1] == "What is 3 - 8?"
    assert done.dropped == {"repeated prompt": 1}
    with pytest.raises(ValueError, match="of several repositories; leave --revision out"):
        prepare("archer2-math", tmp_path / "other.jsonl", revision="main")


@pytest.mark.parametrize(
    ("args", "ids"),
    [
        ({"release": "v1"}, ["own_a", "own_b", "own_c", "own_d"]),
        ({"release": "v1", "start": "2024-08-01", "end": "2025-02-01"}, ["own_b", "own_c"]),
        ({"release": "v1", "start": "2025-02-01"}, ["own_c", "own_d"]),
        ({"release": "v1", "end": "2024-07-31"}, ["own_a"]),
    ],
)
def test_a_window_of_livecodebench_holds_both_its_ends(
    hub: Hub, tmp_path: Path, args: dict[str, str], ids: list[str]
) -> None:
    fill(hub, "livecodebench", tmp_path)
    done = prepare("livecodebench", tmp_path / "out.jsonl", args=args, check=False)
    assert [problem.id for problem in read_problems(done.out)] == ids
    assert done.dropped.get("outside the dates", 0) == 4 - len(ids)
    assert f"| arguments | {json.dumps(args)} |" in done.card.read_text()
    assert [name for name, _ in hub_files(hub)] == ["test.jsonl"]


def hub_files(hub: Hub) -> list[tuple[str, int]]:
    """Names and bytes of the files that were sent."""
    names = {
        sum: name
        for repository in hub.repositories.values()
        for files in repository.commits.values()
        for name, data in files.items()
        for sum in [_sum(name, data)]
    }
    return [(names[request.name], request.num_bytes) for request in hub.sent if request.num_bytes]


def _sum(name: str, data: bytes) -> str:
    from tests.local_hub import checksum

    return checksum(name, data)


def test_the_windows_of_the_papers_have_their_own_numbers() -> None:
    for (start, end), number in WINDOWS.items():
        (part,) = find_parts("livecodebench", {"start": start, "end": end})
        assert part.expected == number and len(part.files) == 6
    assert WINDOWS == {("2024-08-01", "2025-02-01"): 279, ("2025-02-01", "2025-05-01"): 131}


def test_a_copy_that_lies_here_is_read_as_the_one_of_the_hub(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    args = {"start": "2024-08-01", "end": "2025-02-01"}
    done = prepare(f"livecodebench:{ROWS / 'livecodebench.jsonl'}", out, args=args, check=False)
    assert done.rows_out == 2
    assert done.notes == ("others count 279 problems in this data, here are 2",)


def test_one_file_is_no_copy_of_three_data_sets(tmp_path: Path) -> None:
    source = f"archer2-math:{ROWS / 'dapo.jsonl'}"
    with pytest.raises(ValueError, match="archer2-math is 3 data sets; give the file alone"):
        prepare(source, tmp_path / "out.jsonl")


@needs_sandbox
@pytest.mark.parametrize("name", sorted(path.stem for path in ROWS.iterdir()))
def test_every_layout_passes_its_own_references(tmp_path: Path, name: str) -> None:
    done = prepare(str(ROWS / f"{name}.jsonl"), tmp_path / "out.jsonl")
    expected = {
        "dapo": {"repeated prompt": 1},
        "deepmind_code_contests": {"reads or writes a file of its own": 1},
        "olympiadbench": {"needs a tolerance, which the math verifier has not": 1},
    }
    assert done.dropped == expected.get(name, {})
    assert done.layout == {"dapo": "archer", "skywork": "archer"}.get(name, name)


@pytest.mark.parametrize(
    ("source", "args", "said"),
    [
        ("gsm8k", {"split": "dev"}, "gsm8k: split is 'dev'; make it one of train, test"),
        ("gsm8k", {"spilt": "test"}, 'gsm8k: unknown arg "spilt"; did you mean "split"?'),
        ("math500", {"split": "test"}, 'math500: unknown arg "split"; it has none'),
        ("livecodebench", {"release": 6}, "livecodebench: release is 6; make it one of v1, v2"),
        ("livecodebench", {"start": "2024-8-1"}, "start is '2024-8-1' (not of ten characters); wr"),
        ("livecodebench", {"end": "2024-02-30"}, "end is '2024-02-30' (day is out of range for"),
        ("livecodebench", {"end": 2024}, "end is 2024 ("),
    ],
)
def test_arguments_that_a_name_has_not_are_refused(
    tmp_path: Path, source: str, args: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=": ") as caught:
        prepare(source, tmp_path / "out.jsonl", args=args)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_the_hub_says(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gsm8k.jsonl"
    assert main(["prepare", "gsm8k", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "shows no data set 'openai/gsm8k'" in said and said.count("\n") == 1
    fill(hub, "gsm8k", tmp_path)
    assert main(["prepare", "gsm8k", "--out", str(out), "--revision", "later"]) == 2
    assert "has no revision 'later'" in capsys.readouterr().err
    assert main(["prepare", "gsm8k", "--out", str(out)]) == 0
    assert "2 problems from 2 rows\nothers count 1319 problems in this data, here are 2" in (
        capsys.readouterr().out
    )
    first = out.read_bytes(), out.with_suffix(".card.md").read_bytes()
    hub.forget()
    assert main(["prepare", "gsm8k", "--out", str(out)]) == 0
    assert (out.read_bytes(), out.with_suffix(".card.md").read_bytes()) == first
    assert not hub.sent, "nothing is downloaded twice"


def questions(file: str, word: str, number: int) -> tuple[str, list[dict[str, Any]]]:
    """A file of rows that have no id."""
    return file, [{"question": f"What is {n} {word} 3?", "answer": str(n)} for n in range(number)]


def test_rows_without_ids_are_numbered_through_all_files(hub: Hub, tmp_path: Path) -> None:
    first, second = questions("I.jsonl", "plus", 15), questions("II.jsonl", "times", 15)
    files = {f"aime2025-{name}": content(name, rows, tmp_path) for name, rows in (first, second)}
    hub.commit("opencompass/AIME2025", files)
    done = prepare("aime25", tmp_path / "out.jsonl")
    ids = [problem.id for problem in read_problems(done.out)]
    assert ids == [f"aime25-{number:06d}" for number in range(1, 31)]
    assert (done.rows_in, done.dropped, done.notes) == (30, {}, ())


def test_problems_that_are_missing_from_what_is_written_are_said(hub: Hub, tmp_path: Path) -> None:
    file, rows = questions("aime2025-I.jsonl", "plus", 15)
    twice = {name: content(name, rows, tmp_path) for name in (file, "aime2025-II.jsonl")}
    hub.commit("opencompass/AIME2025", twice)
    out = tmp_path / "out.jsonl"
    said = "others count 30 problems in this data, 15 of its 30 rows are written"
    assert prepare("aime25", out).notes == (said,)
    assert prepare("aime25", out, filters={"own": lambda problem: None}).notes == ()
