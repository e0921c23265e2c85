"""The form of a response: its thought, and the language it is written in.

Most useful as parts of a `composite`, beside a verifier that judges the answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from archer.verdict import Problem, Verdict
from archer.verify.extract import CLOSE, OPEN, Reading

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier


def thought_format(problem: Problem, reading: Reading) -> Verdict:
    """One thought that holds something, before it nothing, and behind it an answer.

    The prompt may have opened it or the response, but not both. `problem.answer` is null.
    """
    before, opened, rest = reading.response.partition(OPEN)
    num_opened = reading.response.count(OPEN) + reading.in_thought
    if num_opened != 1 or reading.response.count(CLOSE) != 1:
        num_closed = reading.response.count(CLOSE)
        return _unformed(f"{num_opened} thoughts opened, {num_closed} closed")
    if opened and before.strip():
        return _unformed("text before the thought")
    thought = (rest if opened else reading.response).partition(CLOSE)[0]
    if not thought.strip():
        return _unformed("nothing in the thought")
    if not reading.text.strip():
        return Verdict(outcome="no_answer", score=0.0, detail="nothing behind the thought")
    return Verdict(outcome="correct", score=1.0)


def _unformed(detail: str) -> Verdict:
    return Verdict(outcome="wrong", score=0.0, detail=detail)


# --- language ---

MIN_SHARE = 0.9
"""Of the text that must be in the language where the problem does not say."""
MIN_BYTES = 15
"""Shorter texts are in no language: "OK" is good in many."""
PIECE_BYTES = 60
"""Pieces whose language is told are at least so long, where the text is."""


def language(problem: Problem, reading: Reading) -> Verdict:
    """Whether the response is written in the language that is asked for.

    `problem.answer` is {"language": "de"}, with a code of ISO 639-1 or a list of accepted ones. At
    least "min_share" of the text (0.9) must be in it, or the score is the share that is: as the
    language consistency reward of DeepSeek-R1 (arXiv 2501.12948, 2.3.2), which is the share of
    words in the chain of thought. `"thought": true` has the thought read too, not only what stands
    outside. Formulas, code, links and tags are in no language, nor is what is shorter than a
    sentence; a response that holds nothing else has no answer.

    Texts are told apart by py3langid (Lui and Baldwin 2011, 2012), to within a sentence, and words
    in another script wherever they stand. Shares are of bytes in UTF-8, in which texts of like
    content are of like length whatever their script.
    """
    wanted = problem.answer["language"]
    codes = [wanted] if isinstance(wanted, str) else wanted
    identifier = language_identifier()
    if unknown := [code for code in codes if code not in identifier.labels]:
        known = ", ".join(sorted(identifier.labels))
        raise ValueError(f"unknown language {unknown[0]!r}: use one of {known}")
    text = reading.response if problem.answer.get("thought") else reading.text
    pieces = _pieces(text)
    total = sum(map(_num_bytes, pieces))
    if total < MIN_BYTES:
        return Verdict(outcome="no_answer", score=0.0, detail="too little text to tell")
    found = sum(_num_bytes(piece) for piece in pieces if identifier.classify(piece)[0] in codes)
    share = found / total
    if share >= problem.answer.get("min_share", MIN_SHARE):
        return Verdict(outcome="correct", score=1.0)
    return Verdict(outcome="wrong", score=share, detail=f"{share:.0%} is {' or '.join(codes)}")


@cache
def language_identifier() -> LanguageIdentifier:
    """py3langid, with the languages that have a code of two letters: others mimic large ones."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages([code for code in identifier.labels if len(code) == 2])
    return identifier


# No formula is longer than that: an opening without an end must not hide the text behind it.
_NO_PROSE = re.compile(
    r"(?s:```.{0,20000}?```|\$\$.{0,2000}?\$\$|\\\[.{0,2000}?\\\]|\\\(.{0,500}?\\\))"
    r"|`[^`\n]{0,500}`|\$[^$\n]{0,500}\$|\\[A-Za-z]+(?:\{[^{}]{0,500}\})*|https?://\S+|</?[A-Za-z]+>"
)
_SENTENCE_END = re.compile(r"[.!?:;。!?:;।\n]")
# From a letter on to a blank, a digit or a mark, but not to the signs that are parts of letters.
_WORD = re.compile(r"[^\W\d_][^\s\d!-&(-/:-@\[-`{-~,、()「」『』《》“”„«»…–—]*")
_EAST_ASIAN = frozenset({"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HANGUL"})


def _pieces(text: str) -> list[str]:
    """The words of a text, sentence by sentence, each script for itself; short ones are joined."""
    pieces: dict[str, list[str]] = {}
    waiting: dict[str, str] = {}
    for sentence in _SENTENCE_END.split(_NO_PROSE.sub("\n", text)):
        for script, word in _words(sentence):
            waiting[script] = f"{waiting.get(script, '')} {word}"
        for script in [name for name, piece in waiting.items() if _num_bytes(piece) >= PIECE_BYTES]:
            pieces.setdefault(script, []).append(waiting.pop(script))
    for script, rest in waiting.items():
        if script in pieces:
            pieces[script][-1] += rest
        else:
            pieces[script] = [rest]
    return [piece for of_script in pieces.values() for piece in of_script]


def _words(sentence: str) -> Iterator[tuple[str, str]]:
    """Words with their scripts. A single letter of Latin or Greek is a variable, and no word."""
    for match in _WORD.finditer(sentence):
        script, begin, run = "", 0, match.group()
        scripts = [_script(letter) for letter in run]
        for place, found in enumerate([*scripts, "end"]):
            if not found or found == script:  # a sign belongs to the letter before it
                continue
            if script and not (place - begin == 1 and script in ("LATIN", "GREEK")):
                yield script, run[begin:place]
            script, begin = found, place


@lru_cache(maxsize=10_000)
def _script(letter: str) -> str:
    """The script of a letter, by its name in Unicode; "" for what is none."""
    if not letter.isalpha():
        return ""
    name = unicodedata.name(letter, "").split(" ")[0]
    return "EAST ASIAN" if name in _EAST_ASIAN else name


def _num_bytes(text: str) -> int:
    return len(text.encode(errors="replace"))
