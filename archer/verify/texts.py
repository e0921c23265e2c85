"""Short texts: equal to an accepted one as they are, or once case, articles and marks are dropped.

Both read what the answer pattern found, or else the whole text outside the thought.
`problem.answer` is a text or a list of accepted texts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from archer.verdict import Problem, Verdict
from archer.verify.extract import Reading
from archer.verify.math import accepted_answers


def exact(problem: Problem, reading: Reading) -> Verdict:
    """The same text as one of the accepted ones; blanks are counted as one, `é` is `é`.

    `"ignore_case": true` in `problem.meta` does so.
    """
    fold = str.casefold if problem.meta.get("ignore_case") else str
    return _compared(problem, reading, lambda text: fold(plain(text)))


def normalised(problem: Problem, reading: Reading) -> Verdict:
    """The same words as one of the accepted texts.

    As SQuAD compares (Rajpurkar et al. 2016, arXiv 1606.05250; `normalize_answer` of its
    evaluate-v1.1.py): without case, punctuation, the articles a, an and the, and surplus blanks;
    here also for letters and punctuation beyond ASCII. For words, not for numbers: -5 is 5 here.
    """
    return _compared(problem, reading, bare_words)


def judged_text(reading: Reading) -> str:
    """What is compared."""
    return reading.answer or reading.text.strip()


def _compared(problem: Problem, reading: Reading, form: Callable[[str], str]) -> Verdict:
    answer = judged_text(reading)
    if not answer:
        return Verdict(outcome="no_answer", score=0.0)
    correct = form(answer) in {form(text) for text in accepted_answers(problem.answer)}
    return Verdict(outcome="correct" if correct else "wrong", score=float(correct))


def plain(text: str) -> str:
    """Letters composed, blanks joined."""
    return " ".join(unicodedata.normalize("NFC", text).split())


_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_ASCII_MARKS = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def bare_words(text: str) -> str:
    """Words alone, in lower case; where nothing is left ("A", "+"), all of it in lower case."""
    text = unicodedata.normalize("NFKC", text).casefold()
    # Twice, for folding may take apart what was composed.
    text = unicodedata.normalize("NFKC", text)
    words = "".join(letter for letter in text if not _is_mark(letter))
    return " ".join(_ARTICLE.sub(" ", words).split()) or " ".join(text.split())


def _is_mark(letter: str) -> bool:
    return letter in _ASCII_MARKS or unicodedata.category(letter)[0] == "P"
