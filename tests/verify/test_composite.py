"""Several verifiers' verdicts in one."""

from __future__ import annotations

from typing import Any

import pytest

from archer.types import OUTCOMES, Problem, Verdict
from archer.verify.verifiers import SEVERITY, verify
from tests.verify.own_graders import graders_can_be_imported  # noqa: F401 - a fixture

MATH = {"verifier": "math", "answer": "5"}
FORM = {"verifier": "thought_format", "answer": None}
GOOD, BARE, FALSE = r"<think>2+3</think>\boxed{5}", r"\boxed{5}", r"<think>2+3</think>\boxed{6}"


def judged(response: str, *parts: Any, **meta: Any) -> Verdict:
    answer = {"parts": list(parts)}
    asked = Problem(id="p", prompt="?", verifier="composite", answer=answer, meta=meta)
    return verify(asked, response, False)


@pytest.mark.parametrize(
    ("response", "outcome", "score"),
    [(GOOD, "correct", 1.0), (BARE, "wrong", 0.9), (FALSE, "wrong", 0.1), ("5", "wrong", 0.0)],
)
def test_the_score_is_the_weighted_mean_of_the_parts(
    response: str, outcome: str, score: float
) -> None:
    for scale in (1, 7):
        parts = MATH | {"weight": 0.9 * scale}, FORM | {"weight": 0.1 * scale}
        verdict = judged(response, *parts)
        assert verdict.outcome == outcome
        assert verdict.score == pytest.approx(score)


def test_without_weights_all_parts_weigh_the_same() -> None:
    parts = MATH, FORM, {"verifier": "exact", "answer": "5"}
    assert judged(BARE, *parts).score == pytest.approx(2 / 3)
    assert judged(GOOD, *parts).score == 1


def test_all_correct_is_exactly_one_whatever_the_weights() -> None:
    parts = [MATH | {"weight": weight} for weight in (0.1, 0.2, 0.3, 1e-9, 7)]
    assert judged(GOOD, *parts).score == 1.0


def test_a_gate_that_is_not_correct_leaves_nothing() -> None:
    gate = FORM | {"gate": True}
    assert judged(GOOD, MATH, gate).score == 1
    assert judged(BARE, MATH, gate).score == 0
    assert judged(BARE, MATH, gate).outcome == "wrong"
    assert judged(FALSE, MATH, gate).score == 0  # a gate has no weight of its own,
    assert judged(FALSE, MATH, gate | {"weight": 1}).score == 0.5  # unless it is given one


def test_parts_of_a_point_are_weighted_too() -> None:
    half = {"verifier": "graders:half", "answer": None}
    verdict = judged(GOOD, MATH, half | {"weight": 3})
    assert (verdict.outcome, verdict.score) == ("wrong", pytest.approx(0.625))
    assert verdict.detail == "graders:half: wrong"
    assert judged(GOOD, MATH, half | {"gate": True}).score == 0


def test_the_outcome_is_that_of_the_part_that_is_worst_off() -> None:
    assert set(SEVERITY) == set(OUTCOMES)
    crashed = {"verifier": "graders:details", "answer": None}
    limit = {"verifier": "graders:recurses", "answer": None}
    error = {"verifier": "graders:raises", "answer": None}
    assert judged("none", MATH, MATH).outcome == "no_answer"
    assert judged("<think>a</think>none", MATH, FORM).outcome == "no_answer"
    assert judged("none", MATH, FORM).outcome == "wrong"
    assert judged(BARE, FORM, crashed).outcome == "crashed"
    assert judged(BARE, FORM, crashed, limit, MATH).outcome == "limit"
    assert judged(BARE, FORM, error, crashed, limit, MATH).outcome == "error"
    assert judged("<think>" + BARE, MATH).outcome == "no_answer"


def test_a_part_that_fails_makes_the_whole_an_error_that_names_it() -> None:
    verdict = judged(GOOD, MATH, {"verifier": "graders:raises", "answer": None, "weight": 0.01})
    assert (verdict.outcome, verdict.score) == ("error", 0.0)
    assert verdict.detail == "graders:raises: error (KeyError: 'no such column')"
    assert judged(GOOD, MATH, {"verifier": "maths", "answer": "5"}).outcome == "error"


@pytest.mark.parametrize("verifier", ["composite", "code"])
def test_what_cant_be_a_part_is_an_error(verifier: str) -> None:
    verdict = judged(GOOD, MATH, {"verifier": verifier, "answer": {"parts": [MATH]}})
    assert verdict.outcome == "error"
    assert f"{verifier} can't be part of a composite" in verdict.detail


def test_parts_see_the_meta_of_the_problem() -> None:
    choice = {"verifier": "choice", "answer": "B"}
    assert judged("Rome", choice, choices=["London", "Rome"]).outcome == "correct"
    assert judged("Rome", choice).outcome == "no_answer"
