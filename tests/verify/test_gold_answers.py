r"""The reference answers of real suites: accepted, in other forms too, and no other one is."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest

from archer.types import Problem
from archer.verify.latex import clean
from archer.verify.math import same_answer
from archer.verify.parts import Group, Number, read_answer
from archer.verify.verifiers import quick_verdict, verify

DATA = Path(__file__).parents[3] / "shared" / "data"
SUITES = ("math500", "gsm8k_test", "aime2024", "aime2025", "amc23", "olympiadbench_oe_to_maths_en")
PART = 40
"""Answers of each suite that `make test` looks at."""

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="real data sets are not on this machine")


@cache
def gold_answers(suite: str) -> list[str]:
    rows = [json.loads(line) for line in (DATA / f"{suite}.jsonl").read_text("utf-8").splitlines()]
    if suite == "gsm8k_test":
        answers = [row["answer"].split("####")[1].strip() for row in rows]
    elif suite.startswith("olympiad"):
        answers = [row["final_answer"][0] for row in rows]
    else:
        answers = [str(row["answer"]) for row in rows]
    return sorted(set(answers))


def part(suite: str) -> list[str]:
    answers = gold_answers(suite)
    return random.Random(0).sample(answers, min(PART, len(answers)))


def accepted(gold: str, answer: str) -> bool:
    problem = Problem(id="p", prompt="?", verifier="math", answer=gold)
    response = f"Adding all of it up, the answer is $\\boxed{{{answer}}}$, as was to be shown."
    return verify(problem, response, False).outcome == "correct"


def other_forms(gold: str) -> Iterator[str]:
    """The same answer in other LaTeX, as another fraction or decimal, in another order."""
    yield gold.replace(r"\frac", r"\dfrac").replace(r"\left", "").replace(r"\right", "")
    yield re.sub(
        r"\\sqrt\{(\d)\}", r"\\sqrt\1", re.sub(r"\\frac\{(\d)\}\{(\d)\}", r"\\frac\1\2", gold)
    )
    yield spaced(gold)
    answer = read_answer(gold)
    if isinstance(answer, Number) and not answer.percent:
        yield from number_forms(answer.value)
    if isinstance(answer, Group) and not re.search(r"\\pm|where", gold):
        yield from reordered(clean(gold), answer)


def spaced(gold: str) -> str:
    r"""With `\left(` and `\right)`, and blanks wherever TeX has none to show."""
    if "\\text" in gold or "\\mbox" in gold:
        return f" {gold} "
    if "\\left" not in gold and "[" not in gold:
        gold = gold.replace("(", r"\left( ").replace(")", r" \right)")
    return re.sub(r"(?<=[\w)}])(?<!e)([-+=])(?=[\w(\\])", r" \1 ", gold)


def reordered(text: str, answer: Group) -> Iterator[str]:
    """Lists, sets and unions backwards: they have no order."""
    separators = {"list": ", ", "set": ", ", "union": r"\cup "}
    if answer.kind not in separators:
        return
    inner = text[2:-2] if answer.kind == "set" else text
    pieces = re.split(r"(?:, ?|\\cup ?)(?![^(\[{]*[)\]}])", inner)
    if len(pieces) == len(answer.items):
        backwards = separators[answer.kind].join(reversed(pieces))
        yield rf"\{{{backwards}\}}" if answer.kind == "set" else backwards


def number_forms(value: Fraction) -> Iterator[str]:
    yield f"{value.numerator}/{value.denominator}"
    yield rf"\frac{{{3 * value.numerator}}}{{{3 * value.denominator}}}"
    for places in range(9):
        if 10**places % value.denominator == 0:
            digits = str(abs(value.numerator) * 10**places // value.denominator)
            digits = digits.rjust(places + 1, "0")
            sign = "-" * (value < 0)
            yield f"{sign}{digits[: len(digits) - places]}.{digits[len(digits) - places :]}"
            return


def check_accepted(golds: list[str]) -> None:
    assert [gold for gold in golds if not accepted(gold, gold)] == []


def check_forms(golds: list[str]) -> None:
    pairs = [(gold, form) for gold in golds for form in other_forms(gold)]
    assert [pair for pair in pairs if not accepted(*pair)] == []


def truly_same(one: str, other: str) -> bool:
    """Two answers of a suite that say the same: 36 and 36 degrees, or f(n) = n and f(z) = z.

    Told by their letters alone, and by nothing that is tested here.
    """
    bare = [
        re.sub(
            r"\\mbox\{.*|\\text\{ .*|,(?:\\!)?(?=\d{3}$)|[\\$^{}% ]|circ|x=|k=",
            "",
            re.sub(r"\\frac\{(\d+)\}\{(\d+)\}", r"\1/\2", text),
        )
        for text in (one, other)
    ]
    for place, text in enumerate(bare):
        if function := re.fullmatch(r"[a-z]\((.)\)=([^=]*)", text):
            bare[place] = function[2].replace(function[1], "x")
    return bare[0] == bare[1] or sorted(bare[0].split(",")) == sorted(bare[1].split(","))


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
    rows = json.loads((DATA / "deepscaler_train_math.json").read_text("utf-8"))
    golds = sorted({row["answer"] for row in rows if row["answer"]})
    check_accepted(golds)
    check_forms(golds)
