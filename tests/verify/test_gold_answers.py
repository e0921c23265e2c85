r"""The reference answers of real suites: accepted, in other forms too, and no other one is."""

from __future__ import annotations

import random
import re

import pytest

from archer.types import Problem
from archer.verify.math import same_answer
from archer.verify.verifiers import quick_verdict, verify
from tests.real_data import rows
from tests.verify.forms import other_forms, truly_same

SUITES = ("math500", "gsm8k_test", "aime2024", "aime2025", "amc23", "olympiadbench_oe_to_maths_en")
PART = 40
"""Answers of each suite that `make test` looks at."""


def gold_answers(suite: str) -> list[str]:
    found = rows(f"{suite}.jsonl")
    if suite == "gsm8k_test":
        answers = [row["answer"].split("####")[1].strip() for row in found]
    elif suite.startswith("olympiad"):
        answers = [row["final_answer"][0] for row in found]
    else:
        answers = [str(row["answer"]) for row in found]
    return sorted(set(answers))


def part(suite: str) -> list[str]:
    answers = gold_answers(suite)
    return random.Random(0).sample(answers, min(PART, len(answers)))


def accepted(gold: str, answer: str) -> bool:
    problem = Problem(id="p", prompt="?", verifier="math", answer=gold)
    response = f"Adding all of it up, the answer is $\\boxed{{{answer}}}$, as was to be shown."
    return verify(problem, response, False).outcome == "correct"


def check_accepted(golds: list[str]) -> None:
    assert [gold for gold in golds if not accepted(gold, gold)] == []


def check_forms(golds: list[str]) -> None:
    pairs = [(gold, form) for gold in golds for form in other_forms(gold)]
    assert [pair for pair in pairs if not accepted(*pair)] == []


def check_others_rejected(suite: str, golds: list[str]) -> None:
    rng = random.Random(1)
    others = gold_answers(suite)
    for gold in golds:
        for other in rng.sample(others, min(20, len(others))):
            if same_answer(gold, other) and gold != other:
                assert truly_same(gold, other), (gold, other)


def check_changed_rejected(golds: list[str]) -> None:
    """With one digit changed, or the whole negated, it is another answer."""
    rng = random.Random(2)
    for gold in golds:
        changed = []
        if places := [digit.start() for digit in re.finditer(r"\d", gold)]:
            place = rng.choice(places)
            digit = (int(gold[place]) + rng.randint(1, 9)) % 10
            changed.append(f"{gold[:place]}{digit}{gold[place + 1 :]}")
        if not re.match(r"\$?0", gold):
            changed.append(f"-{gold}")
        assert [other for other in changed if same_answer(gold, other)] == []


@pytest.mark.parametrize("suite", SUITES)
def test_reference_answers_are_accepted(suite: str) -> None:
    check_accepted(part(suite))


@pytest.mark.parametrize("suite", SUITES)
def test_reference_answers_are_accepted_in_other_forms(suite: str) -> None:
    check_forms(part(suite))


@pytest.mark.parametrize("suite", SUITES)
def test_reference_answers_of_other_problems_are_rejected(suite: str) -> None:
    check_others_rejected(suite, part(suite))


@pytest.mark.parametrize("suite", SUITES)
def test_reference_answers_with_another_digit_or_sign_are_rejected(suite: str) -> None:
    check_changed_rejected(part(suite))


@pytest.mark.full
@pytest.mark.parametrize("suite", SUITES)
def test_every_reference_answer_is_accepted_in_every_form(suite: str) -> None:
    golds = gold_answers(suite)
    check_accepted(golds)
    check_forms(golds)
    check_others_rejected(suite, golds)
    check_changed_rejected(golds)


def test_most_reference_answers_are_judged_on_the_quick_path() -> None:
    golds = gold_answers("math500")
    quick = [
        quick_verdict(
            Problem(id="p", prompt="?", verifier="math", answer=gold), f"\\boxed{{{gold}}}", False
        )
        for gold in golds
    ]
    assert all(verdict is not None and verdict.outcome == "correct" for verdict in quick)


@pytest.mark.full
def test_mathematics_of_a_training_set_is_accepted_in_other_forms() -> None:
    found = rows("deepscaler_train_math.json")
    golds = sorted({row["answer"] for row in found if row["answer"]})
    check_accepted(golds)
    check_forms(golds)
