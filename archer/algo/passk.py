"""Scores of an evaluation: avg@k, unbiased pass@k, majority@k, and intervals over problems.

Plain numbers in and out, numpy only. One value per problem comes first; `interval` and
`paired_interval` then say how sure the mean over problems is. Left out: who was sampled how.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from jaxtyping import Float64

RESAMPLES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over problems and the bounds of its 95% bootstrap interval.

    Example: Interval(mean=0.31, low=0.24, high=0.38)
    """

    mean: float
    low: float
    high: float


def average_at_k(scores: Sequence[float]) -> float:
    """avg@k of one problem: the mean score of its k samples."""
    if not scores:
        raise ValueError("0 samples of a problem: avg@k needs at least one")
    return sum(scores) / len(scores)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """pass@k of one problem: 1 - C(n - c, k) / C(n, k), exact (arXiv 2107.03374, Eq. 1).

    The chance that k of the n samples, drawn without replacement, hold a correct one; unbiased.
    """
    _check_k(num_samples, k)
    assert 0 <= num_correct <= num_samples, "more correct samples than samples"
    every = comb(num_samples, k)
    return (every - comb(num_samples - num_correct, k)) / every


def majority_at_k(answers: Sequence[Hashable | None], scores: Sequence[float], k: int) -> float:
    """majority@k of one problem: the expected score of the most frequent of k answers, exact.

    The k are drawn without replacement from all samples; a tie is settled by an even draw among
    those that lead. None is a sample without an answer: it can be drawn, and has no vote; when
    nobody votes the score is 0. Equal answers are taken to have equal scores (the first one's).
    """
    _check_k(len(answers), k)
    votes = Counter(answer for answer in answers if answer is not None)
    score_of = dict(reversed(list(zip(answers, scores, strict=True))))
    silent = len(answers) - votes.total()
    expected = 0.0
    for answer, count in votes.items():
        if score_of[answer]:
            rivals = [other for name, other in votes.items() if name != answer]
            expected += score_of[answer] * _chance_to_lead(count, rivals, silent, k)
    return expected


def _chance_to_lead(count: int, rivals: Sequence[int], silent: int, k: int) -> float:
    """Chance that an answer with `count` samples wins the vote among k drawn samples.

    For each number of votes m that it may get, counts the ways to draw the other k - m such that no
    rival has more than m, by how many rivals have exactly m.
    """
    draws = comb(silent + count + sum(rivals), k)
    won = 0.0
    for m in range(1, min(count, k) + 1):
        # ways[used][ties]: draws of `used` samples so far, `ties` rivals level with m.
        ways: dict[tuple[int, int], int] = {
            (drawn, 0): comb(silent, drawn) for drawn in range(min(silent, k - m) + 1)
        }
        for rival in rivals:
            extended: Counter[tuple[int, int]] = Counter()
            for (used, ties), number in ways.items():
                for drawn in range(min(rival, m, k - m - used) + 1):
                    extended[used + drawn, ties + (drawn == m)] += number * comb(rival, drawn)
            ways = extended
        for (used, ties), number in ways.items():
            if used == k - m:
                won += comb(count, m) * number / ((ties + 1) * draws)
    return won


def interval(values: Sequence[float], *, seed: int) -> Interval:
    """Mean of one value per problem, with the percentile bootstrap over problems (95%)."""
    observed = _observed(values)
    means = _resampled_means(observed, seed)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(mean=float(observed.mean()), low=float(low), high=float(high))


def paired_interval(first: Sequence[float], second: Sequence[float], *, seed: int) -> Interval:
    """Mean of `second` minus `first` on the same problems in the same order, with its interval.

    Resampling whole problems keeps the pairing, so what makes a problem hard for both cancels
    (Koehn, Statistical Significance Tests for Machine Translation Evaluation, 2004; for language
    models arXiv 2411.00640, which takes the normal law where this takes percentiles).
    """
    if len(first) != len(second):
        raise ValueError(
            f"{len(first)} and {len(second)} problems: a paired difference needs the same ones"
        )
    return interval([b - a for a, b in zip(first, second, strict=True)], seed=seed)


def _resampled_means(observed: Float64[np.ndarray, "P"], seed: int) -> Float64[np.ndarray, "R"]:
    random = np.random.Generator(np.random.Philox(seed))
    means = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        means[i] = observed[random.integers(0, len(observed), len(observed))].mean()
    return means


def _observed(values: Sequence[float]) -> Float64[np.ndarray, "P"]:
    if not len(values):
        raise ValueError("0 problems: an interval needs at least one")
    return np.asarray(values, dtype=np.float64)


def _check_k(num_samples: int, k: int) -> None:
    if not 1 <= k <= num_samples:
        raise ValueError(f"k is {k} with {num_samples} samples a problem: give k from 1 to that")
