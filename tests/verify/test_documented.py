"""What docs/verifiers.md says of the verifiers is so."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from archer.data.problems import ANSWER_SHAPES
from archer.grade import to_answered
from archer.verify.verifiers import VERIFIERS, verify

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


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_every_example_gets_the_verdict_that_stands_beside_it(row: dict[str, object]) -> None:
    if row["verifier"] == "reasoning_gym" and not find_spec("reasoning_gym"):
        pytest.skip("reasoning-gym is not installed")
    asked = to_answered(row, where=str(row["id"]))
    verdict = verify(asked.problem, asked.response, asked.in_thought)
    assert (verdict.outcome, verdict.score) == (row["outcome"], pytest.approx(row["score"]))
