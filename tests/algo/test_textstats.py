"""Repetition and reflection words, worked out by hand."""

from __future__ import annotations

import pytest

from archer.algo.textstats import reflection_words, repetition, text_tallies


def test_repetition_is_the_share_of_ngrams_that_were_there_before() -> None:
    # Pairs: (a b) (b a) (a b) (b c): one of four was there before.
    assert repetition("a b a b c", n=2) == (0.25, 2)
    assert repetition("A b\na  B", n=2) == pytest.approx((1 / 3, 2))


def test_repetition_of_a_loop_comes_near_one() -> None:
    rate, most = repetition("so the answer is five " * 100)
    # 500 words: 481 20-grams, of which 5 are distinct.
    assert rate == pytest.approx(1 - 5 / 481)
    assert most == 97


def test_short_answers_repeat_nothing() -> None:
    assert repetition("") == (0, 0)
    assert repetition(" ".join(map(str, range(19)))) == (0, 0)
    assert repetition(" ".join(map(str, range(20)))) == (0, 1)


def test_reflection_words_are_whole_words_of_any_case() -> None:
    assert reflection_words("Wait, that is WRONG. Let me recheck: wait") == 4
    assert reflection_words("waiting, checked, unverified") == 0


def test_text_tallies_are_sums_and_counts_over_answers() -> None:
    found = text_tallies(["wait wait", "fine"])
    assert found["reflection_words"] == (2, 2)
    assert found["repetition/rate"] == (0, 2)
    assert text_tallies([])["repetition/max_count"] == (0, 0)
