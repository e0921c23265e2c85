r"""The answers of real suites: what else the same answer looks like, and which of them are one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

from archer.verify.latex import clean
from archer.verify.parts import Group, Number, read_answer


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
