"""What the text of answers shows of a run's health: repetition and words of reflection.

Words are what stands between white space. Left out: lengths and truncation, which the completions
know already.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

NGRAM = 20

REFLECTION_WORDS = (
    "actually",
    "alternatively",
    "check",
    "hmm",
    "however",
    "mistake",
    "recheck",
    "reconsider",
    "rethink",
    "verify",
    "wait",
    "wrong",
)

_REFLECTION = re.compile(rf"\b(?:{'|'.join(REFLECTION_WORDS)})\b")


def repetition(text: str, n: int = NGRAM) -> tuple[float, int]:
    """Share of an answer's n-grams that it held before, and how often its commonest one stands.

    Lower-cased words; the definition of the ASPO paper's runs (arXiv 2510.06062, Figure 2). An
    answer shorter than n words has neither: (0, 0).
    """
    words = text.lower().split()
    grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    if not grams:
        return 0.0, 0
    return 1 - len(grams) / grams.total(), max(grams.values())


def reflection_words(text: str) -> int:
    """How many of `REFLECTION_WORDS` stand in an answer, as whole words of any case."""
    return len(_REFLECTION.findall(text.lower()))


def text_tallies(texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Sums and counts over answers, to be added and divided as those of the objective are."""
    repeated = [repetition(text) for text in texts]
    count = float(len(texts))
    return {
        "repetition/rate": (sum((rate for rate, _ in repeated), 0.0), count),
        "repetition/max_count": (float(sum(most for _, most in repeated)), count),
        "reflection_words": (float(sum(reflection_words(text) for text in texts)), count),
    }
