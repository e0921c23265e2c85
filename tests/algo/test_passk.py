"""avg@k, pass@k and majority@k against all draws one by one; intervals seeded and wide enough."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archer.algo.passk import (
    average_at_k,
    interval,
    majority_at_k,
    paired_interval,
    pass_at_k,
)


def test_average_is_the_mean_score() -> None:
    assert average_at_k([1.0, 0.0, 0.5, 1.0]) == 0.625
    with pytest.raises(ValueError, match="0 samples"):
        average_at_k([])


def test_pass_at_k_equals_counting_every_draw_for_all_n_up_to_12() -> None:
    for n in range(1, 13):
        for c in range(n + 1):
            for k in range(1, n + 1):
                # The correct samples are the numbers below c; a draw fails if its least is not.
                draws = list(combinations(range(n), k))
                passed = sum(draw[0] < c for draw in draws)
                assert pass_at_k(n, c, k) == float(Fraction(passed, len(draws)))


def test_pass_at_k_keeps_its_digits_for_many_samples() -> None:
    assert pass_at_k(1024, 1, 512) == 0.5
    assert pass_at_k(4096, 2, 1) == 2 / 4096


def test_pass_at_1_is_the_average() -> None:
    assert pass_at_k(64, 16, 1) == average_at_k([1.0] * 16 + [0.0] * 48) == 0.25


@pytest.mark.parametrize("k", [0, 5])
def test_k_beyond_the_samples_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k is {k} with 4 samples"):
        pass_at_k(4, 1, k)


def test_mistake_43_pass_at_k_is_not_the_maximum_over_the_first_k() -> None:
    """With one correct of four, the maximum of two is 0 or 1 by luck; its expectation is 1/2."""
    assert pass_at_k(4, 1, 2) == 0.5


def slow_majority(answers: list[str | None], scores: dict[str, float], k: int) -> Fraction:
    total, draws = Fraction(0), 0
    for draw in combinations(answers, k):
        draws += 1
        votes = Counter(answer for answer in draw if answer is not None)
        most = max(votes.values(), default=0)
        leaders = [answer for answer, count in votes.items() if count == most]
        if leaders:
            total += sum((Fraction(scores[answer]) for answer in leaders), Fraction(0)) / len(
                leaders
            )
    return total / draws


@given(st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=1, max_size=9), st.data())
def test_majority_at_k_equals_counting_every_draw(
    answers: list[str | None], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(answers)))
    scores = {"a": 1.0, "b": 0.0, "c": 0.5, "d": 0.0}
    given_scores = [0.0 if answer is None else scores[answer] for answer in answers]
    found = majority_at_k(answers, given_scores, k)
    assert found == pytest.approx(float(slow_majority(answers, scores, k)), abs=1e-12)


def test_majority_of_all_is_the_plain_vote() -> None:
    assert majority_at_k(["5", "5", "4"], [1.0, 1.0, 0.0], 3) == 1
    assert majority_at_k(["5", "4", "4"], [1.0, 0.0, 0.0], 3) == 0
    assert majority_at_k(["5", "4"], [1.0, 0.0], 2) == 0.5
    assert majority_at_k([None, None, "5"], [0.0, 0.0, 1.0], 3) == 1
    assert majority_at_k([None, None], [0.0, 0.0], 2) == 0


def test_majority_of_many_samples_is_exact() -> None:
    answers = ["right"] * 40 + ["wrong"] * 24
    found = majority_at_k(answers, [1.0] * 40 + [0.0] * 24, 3)
    # Two or three of three drawn are right: hypergeometric.
    two, three, every = 40 * 39 // 2 * 24, 40 * 39 * 38 // 6, 64 * 63 * 62 // 6
    assert found == pytest.approx((two + three) / every)


def test_intervals_are_the_same_for_the_same_seed_and_hold_the_mean() -> None:
    values = [0.0, 0.21, 0.5, 1.0, 1.0, 0.03, 0.77, 0.49]
    one, again, other = (interval(values, seed=seed) for seed in (3, 3, 4))
    assert one == again != other
    assert one.mean == 0.5
    assert one.low < 0.5 < one.high
    assert one.low >= 0
    assert one.high <= 1


def test_interval_has_the_width_that_the_normal_law_gives() -> None:
    values = np.random.Generator(np.random.Philox(0)).random(400)
    found = interval(list(values), seed=1)
    half = 1.96 * values.std() / 20
    assert found.high - found.mean == pytest.approx(half, rel=0.08)
    assert found.mean - found.low == pytest.approx(half, rel=0.08)


@pytest.mark.parametrize("times", [50, pytest.param(300, marks=pytest.mark.full)])
def test_intervals_hold_the_true_mean_19_times_in_20(times: int) -> None:
    """Evaluations of 100 problems with 4 samples: most problems are easy or out of reach (Beta(0.3,
    0.7), mean 0.3), and a second model solves a tenth of what the first one fails at (0.07 more).

    The percentile bootstrap of so many problems is a little narrow; 3.5 standard deviations of the
    simulation itself are allowed.
    """
    random = np.random.Generator(np.random.Philox(7))
    held = held_paired = 0
    for seed in range(times):
        rates = random.beta(0.3, 0.7, 100)
        first = random.binomial(4, rates) / 4
        second = random.binomial(4, rates + 0.1 * (1 - rates)) / 4
        one = interval(list(first), seed=seed)
        paired = paired_interval(list(first), list(second), seed=seed)
        held += one.low <= 0.3 <= one.high
        held_paired += paired.low <= 0.07 <= paired.high
    spread = 3.5 * (0.95 * 0.05 / times) ** 0.5
    for share in (held / times, held_paired / times):
        assert 0.94 - spread <= share <= 0.96 + spread


def test_interval_of_equal_values_is_a_point() -> None:
    found = interval([0.5], seed=0)
    assert (found.low, found.mean, found.high) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="0 problems"):
        interval([], seed=0)


def test_paired_interval_is_narrow_where_problems_differ_and_models_hardly_do() -> None:
    random = np.random.Generator(np.random.Philox(2))
    first = list(random.random(200))
    second = [min(value + 0.02, 1.0) for value in first]
    paired = paired_interval(first, second, seed=5)
    assert paired.low > 0
    assert paired.mean == pytest.approx(0.02, abs=1e-3)
    apart = interval(second, seed=5)
    assert paired.high - paired.low < 0.1 * (apart.high - apart.low)
    with pytest.raises(ValueError, match="200 and 1 problems"):
        paired_interval(first, [0.0], seed=5)
