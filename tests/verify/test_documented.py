"""What docs/verifiers.md says of the verifiers is so."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from archer.data.problems import ANSWER_SHAPES
from archer.grade import to_answered
from archer.verify.math import same_answer
from archer.verify.policy import LIBERTIES
from archer.verify.verifiers import VERIFIERS, verify
from tests.needs import needs_sandbox

PAGE = (Path(__file__).parents[2] / "docs" / "verifiers.md").read_text("utf-8")


def blocks(tag: str) -> list[str]:
    return re.findall(rf"```{tag}\n(.*?)\n```", PAGE, re.DOTALL)


ROWS = [json.loads(line) for line in blocks("jsonl")[0].splitlines()]


@pytest.fixture(autouse=True)
def the_function_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [code for code in blocks("python") if "my_verifiers.py" in code]
    (tmp_path / "my_verifiers.py").write_text(code, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_the_table_lists_every_verifier_and_none_else() -> None:
    table = PAGE.partition("\nOutcomes are")[0]
    named = re.findall(r"^\| `([\w:]+)` \|", table, re.MULTILINE)
    assert set(named) == {*VERIFIERS, "module:function"}
    assert VERIFIERS.keys() <= ANSWER_SHAPES.keys()


def test_every_verifier_has_an_example() -> None:
    own = {row["verifier"] for row in ROWS} - VERIFIERS.keys()
    assert own == {"my_verifiers:parity"}
    assert {row["verifier"] for row in ROWS} >= VERIFIERS.keys()


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row["id"], marks=needs_sandbox if row["verifier"] == "code" else ())
        for row in ROWS
    ],
)
def test_every_example_gets_the_verdict_that_stands_beside_it(row: dict[str, object]) -> None:
    if row["verifier"] == "reasoning_gym" and not find_spec("reasoning_gym"):
        pytest.skip("reasoning-gym is not installed")
    asked = to_answered(row, where=str(row["id"]))
    verdict = verify(asked.problem, asked.response, asked.in_thought)
    assert (verdict.outcome, verdict.score) == (row["outcome"], pytest.approx(row["score"]))


# --- mathematics ---


def rows_of(section: str) -> Iterator[list[list[str]]]:
    """The answers in each row of a table of the page, cell by cell."""
    text = PAGE.split(f"### {section}\n")[1].split("\n#")[0]
    for row in re.findall(r"^\|(.*)\|$", text, re.MULTILINE):
        cells = [re.findall("`([^`]*)`", cell) for cell in row.split("|")]
        if cells[0]:
            yield cells


def test_the_page_says_what_is_always_accepted_and_what_never() -> None:
    always, never = list(rows_of("Always accepted")), list(rows_of("Never"))
    assert len(always) > 15
    assert len(never) > 10
    for rows, liberties, expected in ((always, (), True), (never, LIBERTIES, False)):
        for golds, responses, *_ in rows:
            for gold, response in ((gold, response) for gold in golds for response in responses):
                assert same_answer(gold, response, liberties=liberties) is expected, response


def test_the_page_says_what_each_liberty_forgives() -> None:
    rows = list(rows_of("Only with a liberty"))
    assert {row[0][0] for row in rows} == set(LIBERTIES)
    for (liberty,), (gold,), responses, refused in rows:
        for response in responses:
            assert not same_answer(gold, response)
            assert same_answer(gold, response, liberties=(liberty,)), response
            assert same_answer(response, gold, liberties=(liberty,)), response
        for response in refused:
            assert not same_answer(gold, response, liberties=(liberty,)), response
