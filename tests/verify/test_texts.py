"""Short texts and multiple choice."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archer.types import Problem, Verdict
from archer.verify.choice import SEVERAL, stated_choice
from archer.verify.extract import read_response
from archer.verify.texts import bare_words
from archer.verify.verifiers import quick_verdict, verify

CITIES = ["London", "Rome", "Paris", "Both A and B"]


def problem(verifier: str, answer: Any, **meta: Any) -> Problem:
    return Problem(id="p", prompt="?", verifier=verifier, answer=answer, meta=meta)


def judged(verifier: str, answer: Any, response: str, **meta: Any) -> Verdict:
    return verify(problem(verifier, answer, **meta), response, False)


def stated(response: str, choices: list[str] | None = None) -> str | None:
    reading = read_response(response, False)
    assert reading is not None
    asked = problem("choice", "C", choices=choices) if choices else problem("choice", "C")
    return stated_choice(asked, reading)


# --- normalised ---


@pytest.mark.parametrize(
    ("answer", "response", "outcome"),
    [
        ("The Beatles", r"\boxed{beatles}", "correct"),
        ("Beatles", "the Beatles!", "correct"),
        ("an apple a day", "Apple  day.", "correct"),
        ("U.S.A.", "usa", "correct"),
        ("Straße", "STRASSE", "correct"),
        ("caf\u00e9", "Cafe\u0301", "correct"),
        ("\ufb01ne \uff11\uff12", "fine 12", "correct"),
        ("«oui»", "oui", "correct"),
        (["Paris", "City of Light"], "The city of light", "correct"),
        ("Paris", "It is Paris", "wrong"),
        ("theatre", "atre", "wrong"),  # an article is a word, not a part of one
        ("A", "the", "wrong"),  # where nothing is left all of it is compared
        ("A", "a", "correct"),
        ("+", "-", "wrong"),
        ("Paris", "", "no_answer"),
        ("Paris", "<think>Paris</think> ", "no_answer"),
    ],
)
def test_normalised_compares_words(answer: Any, response: str, outcome: str) -> None:
    assert judged("normalised", answer, response).outcome == outcome


@given(st.text(max_size=30))
def test_bare_words_of_bare_words_are_the_same(text: str) -> None:
    once = bare_words(text)
    words = [word for word in once.split() if word not in ("a", "an", "the")]
    assert bare_words(once) == " ".join(words) or not words


# --- choice ---


@pytest.mark.parametrize(
    "response",
    [
        "C",
        "C.",
        "C)",
        "(C)",
        "**C**",
        r"\boxed{C}",
        r"\boxed{(C)}",
        r"\boxed{c}",
        r"\boxed{[C]}",
        r"$\boxed{\text{C}}$",
        r"\boxed{\textbf{(C)}\ 12}",
        r"\boxed{C. Paris}",
        r"\boxed{C: Paris}",
        r"\boxed{Answer: C}",
        r"\boxed{\text{Option C}}",
        r"It holds \boxed{7}, so the answer is C",
        "Answer: C",
        "**Answer:** C",
        "answer:\n\nC",
        "ANSWER: (C)",
        "The answer is **C**",
        "the answer is $C$.",
        "The correct answer is (C) Paris.",
        "The correct option is C, since A and B are too large.",
        "The best choice would be option C.",
        "The answer is therefore C.",
        "Final Answer: The final answer is $\\boxed{C}$. I hope it is correct.",
        "I would choose C.",
        "I think it is option C.",
        "It must be (C).",
        "Option C is correct.",
        "(C) is the right answer, and not option A.",
        "First I thought the answer is B. But the answer is C.",
        "The answer is C. Option D would be too large.",
        "Option A is wrong. Option B is wrong. The answer is C. Option D is wrong.",
        "The answer is B? No, option C is correct.",
        "Rome is no capital of France.\n\nC. Paris",
        "A. London is in England.\nLet me see.\n- C) Paris",
        "The answer is C. Vitamin A",
    ],
)
def test_a_stated_letter_is_found(response: str) -> None:
    assert stated(response) == "C"


@pytest.mark.parametrize(
    "response",
    [
        "",
        "A cat is an animal.",
        "The answer is A cat",
        "The answer is not A.",
        "I think so.",
        "The answer is I think hard to find.",
        "The answer is a number.",
        "Let f(A) = 3.",
        "The answer is C = 5",
        "The answer is C++.",
        "The answer is C'",
        "Option A is wrong.",
        "It is not (A).",
        "(A) and (B)",
        "The answer is 42.",
        "A. London\nB. Rome\nC. Paris",
        "A) 1\n\nB) 2\n\nC) 3",
        "Vitamin C",
    ],
)
def test_a_letter_that_is_not_stated_is_none(response: str) -> None:
    assert stated(response) in (None, SEVERAL)
    assert judged("choice", ["A", "B", "C", "I"], response).outcome == "no_answer"


@pytest.mark.parametrize(
    "response",
    [
        "A, B, C, D",
        r"\boxed{A, B}",
        r"\boxed{A and B}",
        r"\boxed{A. B. C.}",
        "Answer: A, B, C or D",
        "The answer is A and C.",
        "The answer is (A) or (B)",
        r"The answer is C: \boxed{A/B}",  # the box counts, whatever the text says
    ],
)
def test_several_letters_are_no_answer(response: str) -> None:
    assert stated(response) == SEVERAL
    verdict = judged("choice", "A", response)
    assert (verdict.outcome, verdict.detail) == ("no_answer", "states several letters")


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        (r"\boxed{Paris}", "C"),
        (r"\boxed{\text{paris.}}", "C"),
        ("Paris", "C"),
        ("The answer is Paris.", "C"),
        ("The answer is:\n**Paris**", "C"),
        (r"\boxed{C. Paris}", "C"),
        (r"\boxed{Both A and B}", "D"),
        (r"\boxed{D. Both A and B}", "D"),
        ("B. a city in Italy", "B"),
        (r"\boxed{C. Rome}", "C"),  # the letter is what is asked for
        ("London or Paris", None),
        ("It is Paris.", None),
        ("A. London\nB. Rome\nC. Paris\nD. Both A and B", None),
    ],
)
def test_the_text_of_just_one_choice_is_its_letter(response: str, letter: str | None) -> None:
    assert stated(response, CITIES) == letter


def test_the_text_of_two_choices_is_no_letter() -> None:
    assert stated(r"\boxed{Paris}", ["paris", "Rome", "Paris!"]) is None
    assert stated(r"\boxed{Rome}", ["paris", "Rome", "Paris!"]) == "B"


def test_any_of_several_right_letters_is_correct() -> None:
    assert judged("choice", ["A", "C"], "Answer: C").outcome == "correct"
    verdict = judged("choice", ["A", "C"], "Answer: B")
    assert (verdict.outcome, verdict.detail) == ("wrong", "B is not A or C")


def test_choices_that_are_no_list_of_texts_are_the_problems_fault() -> None:
    verdict = judged("choice", "A", "A", choices="ABCD")
    assert verdict.outcome == "error"
    assert "make it a list of texts" in verdict.detail


# --- both ---

HOSTILE = ["a", " ", "\n", "{", "(A) ", "I ", "A, ", "answer is ", "answer: A cat ", "answer   "]


@pytest.mark.parametrize("verifier", ["exact", "normalised", "choice"])
@pytest.mark.parametrize("text", [*HOSTILE, "the ", "!", "option A ", "a\u0300"])
def test_a_hundred_thousand_characters_take_a_moment(verifier: str, text: str) -> None:
    asked, hostile = problem(verifier, "A"), text * (10**5 // len(text))
    begin = time.thread_time()
    verify(asked, hostile, False)
    quick_verdict(asked, hostile[:20_000], False)
    assert time.thread_time() - begin < 5


SNIPPETS = [
    "C",
    "A",
    "(C)",
    "answer is ",
    "Answer: ",
    "\\boxed{",
    "}",
    " ",
    ".",
    "\n",
    "and",
    "the",
    "<think>",
    "</think>",
]


@given(st.lists(st.sampled_from(SNIPPETS), max_size=12).map("".join))
def test_the_quick_path_agrees_with_the_whole(response: str) -> None:
    for verifier in ("exact", "normalised", "choice", "math"):
        asked = problem(verifier, "C")
        quick, whole = quick_verdict(asked, response, False), verify(asked, response, False)
        assert quick is not None or verifier == "math"  # formulas are left to a worker
        if quick is not None:
            said = (quick.outcome, quick.score, quick.detail)
            assert said == (whole.outcome, whole.score, whole.detail)


def test_long_texts_are_left_to_a_worker() -> None:
    marks = "\u0315\u0300" * 2000
    for verifier in ("exact", "normalised", "choice"):
        assert quick_verdict(problem(verifier, "C"), marks + "C", False) is None
