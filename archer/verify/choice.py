r"""Multiple choice: which letter does the response state?

Where the answer pattern found a statement, or nothing but a choice, that is it:

    C   (C)   [c]   C.   \text{C}   **C**   option C   Answer: C   C. Paris   (C) Paris

or the text of just one choice, "Paris", where `problem.meta["choices"]` lists them. Else the text
outside the thought is read, and the first of these that is there decides:

1. the last statement: "the answer is **C**", "Answer: (C)", "I choose C", "option C is correct",
   "the correct choice is Paris"
2. the last line, where it is nothing but a choice and the line before it is not another one
3. "(C)" or "option C" anywhere, where no other letter is marked so

A letter in a sentence ("A cat is ...") states nothing, and "A and C" no single choice. English
only: for another language have a box asked for, or give an answer pattern. Takes time linear in
the text.
"""

from __future__ import annotations

import re

from archer.verdict import Problem, Verdict
from archer.verify.extract import Reading
from archer.verify.math import accepted_answers
from archer.verify.texts import bare_words

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SEVERAL = "several letters"
"""What is stated where it is no single letter."""
MAX_CHARACTERS = 300
"""After "the answer is" so much is looked at, and no longer box or line is a choice."""
MAX_STATEMENTS = 20
"""So many, from the end, are looked at for one that names a choice."""

Choices = dict[str, str]
"""Letters by the words of their choices, {"paris": "C"}."""


def choice(problem: Problem, reading: Reading) -> Verdict:
    """`problem.answer` is the right letter, or a list of letters of which each is right."""
    accepted = accepted_answers(problem.answer)
    stated = stated_choice(problem, reading)
    if stated is None or stated == SEVERAL:
        return Verdict(outcome="no_answer", score=0.0, detail=f"states {stated or 'no choice'}")
    if stated in accepted:
        return Verdict(outcome="correct", score=1.0)
    return Verdict(outcome="wrong", score=0.0, detail=f"{stated} is not {' or '.join(accepted)}")


def stated_choice(problem: Problem, reading: Reading) -> str | None:
    """The letter that a response states, SEVERAL, or None where it states none."""
    choices = _choices(problem)
    answer, text = _MARKUP.sub("", reading.answer or ""), _MARKUP.sub("", reading.text)
    return (
        _last_statement(answer, choices)
        or _alone(answer, choices)
        or _last_statement(text, choices)
        or _last_line(text, choices)
        or _only_mark(text)
    )


def _choices(problem: Problem) -> Choices:
    """Choices that read alike have no letter."""
    texts = problem.meta.get("choices", [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f'"choices" in meta is {texts!r}: make it a list of texts')
    words = [bare_words(text) for text in texts]
    named = zip(words, LETTERS, strict=False)
    return {each: letter for each, letter in named if each and words.count(each) == 1}


_MARKUP = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|bf|rm|boxed|fbox|left|right)(?![A-Za-z])"
    r"|\\[ ,;!]|[*_`$~{}]"
)
# A letter in brackets, or one that no neighbour makes part of a word, a name or a formula.
_LETTER = re.compile(
    r"\(\s?([A-Za-z])\s?\)|\[\s?([A-Za-z])\s?\]"
    r"|(?:(?:option|choice|letter)\s)?([A-Za-z])(?![\w'’#^\\]|\s?[=+<>])",
    re.IGNORECASE,
)
_NEXT_LETTER = re.compile(r"\s*(?:[,;/&]|and\b|or\b)\s*(?:and\b|or\b)?\s*(?:option\s|choice\s)?")
_DESCRIPTION = re.compile(r"\s*(?:[.):]|[-–—]\s)\s*")


def _alone(text: str, choices: Choices) -> str | None:
    """The letter of a box or a line that is nothing but a choice."""
    text = text.strip().lstrip("-#>• ")
    if not text or len(text) > MAX_CHARACTERS:
        return None
    letter, rest = _leading_letter(text)
    if letter is None or not rest.strip(" .,:;!?"):
        return letter or choices.get(bare_words(text))
    if _goes_on_with_letter(rest):
        return SEVERAL
    described = _DESCRIPTION.match(rest)
    if described is None:
        return choices.get(bare_words(text))
    description = rest[described.end() :]
    is_its_own = choices.get(bare_words(description)) == letter
    return letter if is_its_own or _stated_letter(description)[0] is None else SEVERAL


def _leading_letter(text: str) -> tuple[str | None, str]:
    """The letter that a text begins with, and what follows it."""
    mark = _LETTER.match(text)
    if mark is None:
        return None, text
    return (mark[1] or mark[2] or mark[3]).upper(), text[mark.end() :]


def _goes_on_with_letter(rest: str) -> bool:
    joined = _NEXT_LETTER.match(rest)
    return joined is not None and _stated_letter(rest[joined.end() :])[0] is not None


# --- in a text ---

_CUE = re.compile(
    r"\b(?:(?:answer|option|choice)(?:\s+(?:choice|option|letter))?"
    r"(?:\s+(?:is|must\s+be|should\s+be|would\s+be|will\s+be)\b|\s?[:=])"
    r"(?:\s+(?:therefore|thus|hence|then|clearly|simply|definitely|probably|most\s+likely)\b)?"
    r"|I(?:\s+will|\s+would|['’]ll|['’]d)?\s+(?:choose|pick|select|go\s+with))"
    r"[\s:,]*(?:the\s+)?",
    re.IGNORECASE,
)
_AFFIRMED = re.compile(
    r"(?:\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer|[Ll]etter)\s([A-Z])|\(([A-Z])\))"
    r"\s+is\s+(?:the\s+)?(?:correct|right|best|answer)\b"
)
_MARKED = re.compile(
    r"(?<!\w)(?<!not )(?:\(([A-Z])\)|\b(?:[Oo]ption|[Cc]hoice)\s([A-Z])\b)"
    r"(?!\s+(?:is|was|are|were|can|cannot|does|would|seems)\b)"
)
# What may stand behind a letter that could as well be a word, as in "the answer is A because".
_BEHIND_LETTER = re.compile(
    r"\s*(?:$|[.):;,!?(\]]|[-–—]\s|(?:because|since|as|which|with|and|or|but|so)\b)"
)


def _last_statement(text: str, choices: Choices) -> str | None:
    statements = [(match.start(), match[1] or match[2]) for match in _AFFIRMED.finditer(text)]
    place, last = statements[-1] if statements else (-1, None)
    for cue in reversed(list(_CUE.finditer(text))[-MAX_STATEMENTS:]):
        if cue.start() < place:
            return last
        line = text[cue.end() : cue.end() + MAX_CHARACTERS].partition("\n")[0]
        letter, rest = _stated_letter(line)
        if letter:
            return SEVERAL if _goes_on_with_letter(rest) else letter
        if stated := choices.get(bare_words(line)):
            return stated
    return last


def _stated_letter(line: str) -> tuple[str | None, str]:
    """As `_leading_letter`, of a sentence: no letter that is a word of it."""
    letter, rest = _leading_letter(line)
    if letter is None:
        return None, line
    bare = line[: len(line) - len(rest)][-1]
    could_be_word = bare in "AI" and not _BEHIND_LETTER.match(rest)
    return (None, line) if could_be_word or bare.islower() else (letter, rest)


def _last_line(text: str, choices: Choices) -> str | None:
    """None where the last line ends a list of choices: it only repeats the question."""
    lines = ["", "", *(line for line in text.split("\n") if line.strip())]
    before, stated = (_alone(line, choices) for line in lines[-2:])
    return stated if before in (None, stated) else None


def _only_mark(text: str) -> str | None:
    letters = {match[1] or match[2] for match in _MARKED.finditer(text)}
    return letters.pop() if len(letters) == 1 else None
