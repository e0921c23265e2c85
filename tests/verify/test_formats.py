"""The form of a response: its thought, and its language."""

from __future__ import annotations

import time
from typing import Any

import pytest

from archer.types import Problem, Verdict
from archer.verify.verifiers import verify

TEXTS = {
    "ar": "نحسب المجموع أولا. لذلك فإن الجواب هو خمسة.",
    "de": "Wir berechnen zuerst die Summe $x+y$. Somit gilt: Die Antwort ist \\boxed{5}.",
    "en": "We first compute the sum \\[ x^2 \\] and so on. Thus the answer is \\boxed{5}.",
    "es": "Primero calculamos la suma. Por lo tanto, la respuesta es cinco.",
    "fr": "Nous calculons d'abord la somme. La réponse est donc cinq.",
    "hi": "पहले हम योग की गणना करते हैं। इसलिए उत्तर पाँच है।",
    "ja": "まず合計を計算します。したがって答えは五です。",
    "ko": "먼저 합계를 계산합니다. 따라서 답은 다섯입니다.",
    "ru": "Сначала вычислим сумму. Итак, ответ равен пяти.",
    "zh": "我们先计算总和 $x+y$。因此答案是五。最后检查一下结果是否正确。",
}


def form(response: str, in_thought: bool = False) -> Verdict:
    asked = Problem(id="p", prompt="?", verifier="thought_format", answer=None)
    return verify(asked, response, in_thought)


def written(response: str, language: Any, in_thought: bool = False, **more: Any) -> Verdict:
    answer = {"language": language, **more}
    asked = Problem(id="p", prompt="?", verifier="language", answer=answer)
    return verify(asked, response, in_thought)


# --- thoughts ---


def test_one_thought_and_an_answer_behind_it_are_the_form_asked_for() -> None:
    assert form("<think>2+3</think>5").outcome == "correct"
    assert form("\n<think>\n2+3\n</think>\n\n5\n").outcome == "correct"
    assert form("2+3</think>5", in_thought=True).outcome == "correct"


@pytest.mark.parametrize(
    ("response", "in_thought", "detail"),
    [
        ("5", False, "0 thoughts opened, 0 closed"),
        ("2+3</think>5", False, "0 thoughts opened, 1 closed"),
        ("<think>2+3</think>5", True, "2 thoughts opened, 1 closed"),
        ("<think>2</think><think>3</think>5", False, "2 thoughts opened, 2 closed"),
        ("2</think>3</think>5", True, "1 thoughts opened, 2 closed"),
        ("Well: <think>2+3</think>5", False, "text before the thought"),
        ("</think><think>2+3", True, "the thought was never closed"),
        ("a</think>b<think>c</think>5", False, "1 thoughts opened, 2 closed"),
        ("<think> \n</think>5", False, "nothing in the thought"),
        ("</think>5", True, "nothing in the thought"),
        ("<think>2+3</think> \n", False, "nothing behind the thought"),
        ("<think>2+3", False, "the thought was never closed"),
        ("2+3", True, "the thought was never closed"),
    ],
)
def test_any_other_form_scores_nothing(response: str, in_thought: bool, detail: str) -> None:
    verdict = form(response, in_thought)
    assert verdict.score == 0
    assert verdict.detail == detail


def test_a_closing_tag_before_the_opening_one_is_another_form() -> None:
    assert form("</think> 2+3 <think> 5").score == 0
    assert form("</think><think>5").outcome == "no_answer"


# --- languages ---


@pytest.mark.parametrize("language", TEXTS)
def test_a_text_is_in_its_own_language_and_in_no_other(language: str) -> None:
    for other, text in TEXTS.items():
        verdict = written(text, language)
        assert (verdict.outcome, verdict.score) == (
            ("correct", 1.0) if other == language else ("wrong", 0.0)
        )


def test_a_mixed_text_scores_its_share() -> None:
    verdict = written(f"{TEXTS['de']} {TEXTS['zh']}", "de")
    assert verdict.outcome == "wrong"
    assert 0.3 < verdict.score < 0.7
    assert verdict.detail == f"{verdict.score:.0%} is de"
    assert written(f"{TEXTS['de']} {TEXTS['zh']}", "de", min_share=0.3).outcome == "correct"
    other = written(f"{TEXTS['de']} {TEXTS['zh']}", "zh")
    assert other.score == pytest.approx(1 - verdict.score)
    both = written(f"{TEXTS['de']} {TEXTS['zh']}", ["zh", "de"])
    assert (both.outcome, both.score) == ("correct", 1.0)


@pytest.mark.parametrize("text", ["所以 answer 是 five。", "所以answer是five。"])
def test_words_of_another_script_are_seen_wherever_they_stand(text: str) -> None:
    assert 0.7 < written(text + TEXTS["zh"], "zh").score < 0.95


@pytest.mark.parametrize(
    "formula",
    [
        "$a$",
        "$$\\text{the sum of all the others}$$",
        "\\[ the sum of all \\]",
        "\\boxed{the sum of all the others}",
        "```python\nthe = sum(of_all_the_others)\n```",
        "`the sum of all the others`",
        "https://example.org/the/sum/of/all/the/others",
        "x + y = z",
        "12345678901234567890",
    ],
)
def test_formulas_code_and_links_are_in_no_language(formula: str) -> None:
    assert written(f"{TEXTS['de']} {formula} {TEXTS['de']}", "de").score == 1
    assert written(formula, "de").outcome == "no_answer"


def test_too_little_text_is_in_no_language() -> None:
    for text in ("", "OK", "5", "\\boxed{5}"):
        assert written(text, "en").outcome == "no_answer"
    assert written("Die Antwort ist fünf.", "de").outcome == "correct"


def test_the_thought_is_read_where_it_is_asked_for() -> None:
    response = f"{TEXTS['zh'] * 3}</think>{TEXTS['de']}"
    assert written(response, "de", in_thought=True).outcome == "correct"
    assert written(response, "de", in_thought=True, thought=True).score < 0.5
    assert written(f"<think>{response}", "de", thought=True).score < 0.5


def test_an_unknown_language_is_an_error_that_names_the_known_ones() -> None:
    verdict = written(TEXTS["de"], "xx")
    assert verdict.outcome == "error"
    assert "unknown language 'xx': use one of af, am" in verdict.detail


@pytest.mark.parametrize(
    "text", ["\\[", "$", "`", "```", "\\a{", "a", "設", "x ", "a\u0300", "\\("]
)
def test_two_hundred_thousand_characters_take_a_moment(text: str) -> None:
    hostile = text * (200_000 // len(text))
    written(TEXTS["de"], "de")  # what the verifier imports is loaded
    begin = time.thread_time()
    assert written(hostile, "de").outcome in ("wrong", "no_answer")
    assert time.thread_time() - begin < 20  # 2 s; a regex that starts anew at each takes 26 or more


def test_a_lone_surrogate_does_no_harm() -> None:
    assert written(f"{TEXTS['de']} \ud800 a\ud800b", "de").outcome == "correct"
