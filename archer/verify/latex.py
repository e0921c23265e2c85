r"""From the text of a mathematical answer to its parts: numbers, lists, intervals, words, the rest.

`clean` brings the many ways to write one thing (`\dfrac`, `\left(`, `1{,}234`, a degree sign) to one,
`exact_number` reads a number without rounding it, and `read_answer` takes an answer apart:

    "-2, \frac{1}{2}"    Group("list", Number(-2), Number(1/2))
    "x \in (2, \pi]"     Named("x", Group("(]", Number(2), Expression("\pi")))
    "52_8"               Numeral("52", 8)
    "3\sqrt{13}"         Expression("3\sqrt{13}")

What an expression means is left to archer.verify.symbolic. Standard library only, so that most
answers are judged without loading a computer algebra system. Nothing here looks at a text longer
than `MAX_CHARACTERS` or nested deeper than `MAX_NESTING`, which bounds the time that it takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

MAX_CHARACTERS = 1000
"""Answers longer than this are not taken apart; the longest of OlympiadBench has 400."""
MAX_NESTING = 20
"""Brackets deeper than this are not taken apart: math-verify's parser needs seconds for 20."""


class TooLarge(Exception):
    """An answer beyond the limits above: it is not judged, its verdict is `limit`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A rational number, exactly. "12.5%" is Number(value=25/2, percent=True)."""

    value: Fraction
    percent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Numeral:
    """Digits written in a base. "52_8" is Numeral(digits="52", base="8")."""

    digits: str
    base: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    r"""An answer in words. "\text{Evelyn}" is Words(text="evelyn")."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """Whatever has to be worked out, as cleaned LaTeX."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Several answers in one.

    kind: "list" (1, 2), "set" {1, 2} and "union" (of intervals) have no order. "()", "(]", "[)" and
    "[]" are tuples or intervals, "matrix" holds "row"s, ":" is a ratio; these have one.
    """

    kind: str
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    r"""An answer that says what it is the value of. "x > 2" is Named "x" with the value (2, \infty)."""

    name: str
    value: Node
    relation: Relation | None = None
    """The same, not taken apart; None for several of them ("x < 1 or x > 3")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """Equations and inequalities. "2x + y = 4" is Relation(signs=("=",), sides=("2x+y", "4"))."""

    signs: tuple[str, ...]
    sides: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    r"""A value with its unit. "15\mbox{ cm}^2" is Quantity(value=Number(15), unit="cm^2")."""

    value: Node
    unit: str


Node = Number | Numeral | Words | Expression | Group | Named | Relation | Quantity

INFINITY = "\\infty"
INTERVALS = ("()", "(]", "[)", "[]")


# --- one way to write one thing ---

_UNICODE = str.maketrans(
    {
        "\u2212": "-", "\u2013": "-", "\u2014": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ",
        "÷": r"\div ", "∕": "/", "⁄": "/", "π": r"\pi ", "√": r"\sqrt ", "∞": r"\infty ",
        "°": r"^{\circ}", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ",
        "≈": r"\approx ", "∈": r"\in ", "∪": r"\cup ", "∅": r"\emptyset ", "±": r"\pm ",
        "∓": r"\mp ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "²": "^{2}", "³": "^{3}",
        "½": r" \frac{1}{2}", "⅓": r" \frac{1}{3}", "⅔": r" \frac{2}{3}", "¼": r" \frac{1}{4}",
        "¾": r" \frac{3}{4}", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "，": ",", "。": ".",
        "€": "", "£": "", "¥": "", "（": "(", "）": ")", "…": "...",
    }
)  # fmt: skip

ROW = "\x01"
r"""Stands for `\\`, the end of a row, so that no rule takes half of it for another command."""

_COMMANDS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\\(?:\s*\[[^\]]*\])?", ROW),
        (r"\\\$|\\(?:textdollar|dollar|pounds|euro)(?![A-Za-z])", ""),
        (r"\\[()\[\]]", " "),  # the delimiters of mathematics
        (r"\\(?:left|right)\s*\.", ""),
        (
            r"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits|rm|bf|it)"
            r"(?![A-Za-z])",
            "",
        ),
        # Spaces that part thousands, then all others.
        (r"(?<=\d)(?:\{,\}|,?\s*\\[,;:! ]|,\\!|~)\s*(?=\d{3}(?!\d))", ""),
        (r"\\[,;:! ]|~|\\q?quad(?![A-Za-z])|\\[hv]space\*?\{[^{}]*\}", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (r"\\(?:mathrm|text)\s*\{([eid])\}", r"\1"),
        (r"\\(?:mathbf|mathit|boldsymbol|bm)\s*\{([A-Za-z])\}", r"\1"),
        (
            r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox)\s*\{",
            r"\\text{",
        ),
        (r"\\text\{\s*\}", ""),
        (r"\\operatorname\*?\s*\{([a-z]+)\}", r"\\\1 "),
        (r"\\text\{\s*((?:arc)?(?:sin|cos|tan|cot|sec|csc)|ln|log|exp)\s*\}", r"\\\1 "),
        (r"\\lg(?![A-Za-z])", r"\\log_{10}"),
        (r"\\(?:leq|leqslant|leqq)(?![A-Za-z])", r"\\le "),
        (r"\\(?:geq|geqslant|geqq)(?![A-Za-z])", r"\\ge "),
        (r"\\neq?(?![A-Za-z])", r"\\ne "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\(?:varnothing|O)(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
        (r"\\(?:langle|lparen)(?![A-Za-z])", "("),
        (r"\\(?:rangle|rparen)(?![A-Za-z])", ")"),
        (r"\\(?:lbrack)(?![A-Za-z])", "["),
        (r"\\(?:rbrack)(?![A-Za-z])", "]"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\[lr]?vert(?![A-Za-z])", "|"),
        (r"\\(?:ldots|cdots|dots|dotsc|dotsb)(?![A-Za-z])", "..."),
        (r"\\(?:bar|dot|overline)\s*\{?(\d+)\}?", r"\\overline{\1}"),
        (r"\\colon(?![A-Za-z])", ":"),
        (r"\\cdotp?(?![A-Za-z])", r"\\cdot "),
        (r"\^\s*\{?\s*\\(?:circ|degree)(?![A-Za-z])\s*\}?|\\degree(?![A-Za-z])", "\N{DEGREE SIGN}"),
        (r"\\%", "%"),
        (r"\\phantom\{[^{}]*\}|\\label\{[^{}]*\}", ""),
    )
)

_PLAIN: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\$", ""),
        (r"\\text\{\s*(?:[dD]egrees?|deg)\.?\s*\}", "\N{DEGREE SIGN}"),
        (r"(?<![A-Za-z\\])(?:[dD]egrees?|deg)(?![A-Za-z])", "\N{DEGREE SIGN}"),
        (r"\s*(?:[pP]er ?cent(?:age)?|pct)(?![A-Za-z])", "%"),
        (r"\\text\{\s*%\s*\}", "%"),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"!=", r"\\ne "),
        (r":=", "="),
        (r"\*\*", "^"),
        (r"(?<![A-Za-z\\])(?:infinity|infty|oo)(?![A-Za-z])", r"\\infty "),
        (r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
        (r"(?<![A-Za-z\\])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![A-Za-z\\])((?:arc)?(?:sin|cos|tan)|ln|log)(?=[\s(])", r"\\\1 "),
        (r"\^\s*\(([^()]*)\)", r"^{\1}"),
        (r"\+\s*\\infty", r"\\infty"),
        (r"\s+", " "),
        # A space matters between digits (4 2/3) and letters (m n), and after a comma (1, 234).
        (r"(?<=[^A-Za-z0-9,.;]) | (?=[^A-Za-z0-9.])", ""),
    )
)


_LEADING_SIGN = re.compile(r"^\s*(?:=|\\approx(?![A-Za-z]))")
_ESCAPED_TWICE = re.compile(r"(?<!\\)\\\\(?=[A-Za-z]{2})")


@lru_cache(maxsize=4096)
def clean(text: str) -> str:
    r"""The answer in one way of writing. "$\dfrac12\pi.$" and "\frac{1}{2} \pi" give the same.

    Raises TooLarge for what is too long or too deeply nested.
    """
    text = text.strip()
    if len(text) > MAX_CHARACTERS:
        raise TooLarge(f"an answer of {len(text)} characters (the limit is {MAX_CHARACTERS})")
    if text.isascii() and text.isdigit():
        return text
    _check_nesting(text)
    if not text.isascii():
        text = text.translate(_UNICODE)
    if "\\" in text or "~" in text or "{,}" in text:
        if "\\begin" not in text:  # no rows that could end in a double backslash
            text = _ESCAPED_TWICE.sub(r"\\", text)
        for pattern, replacement in _COMMANDS:
            text = pattern.sub(replacement, text)
    for pattern, replacement in _PLAIN:
        text = pattern.sub(replacement, text)
    text = _LEADING_SIGN.sub("", text).strip().rstrip(",;").strip()
    if not text.endswith("..."):
        text = text.rstrip(". ")
    return _brace(text) if "\\" in text else text


def _check_nesting(text: str) -> None:
    if sum(map(text.count, "([{")) <= MAX_NESTING:
        return
    depth = 0
    for character in text:
        if character in "([{":
            depth += 1
            if depth > MAX_NESTING:
                raise TooLarge(f"an answer with more than {MAX_NESTING} brackets in each other")
        elif character in ")]}":
            depth -= 1


_ARGUMENTS = {"\\frac": 2, "\\binom": 2, "\\sqrt": 1}
_TAKES_ARGUMENTS = re.compile(r"\\(?:frac|binom|sqrt)(?![A-Za-z])")
_ARGUMENT = re.compile(r"\s*(\\[A-Za-z]+|[^\s\\{}])")


def _brace(text: str) -> str:
    r"""Writes the braces that TeX allows to leave out: `\frac1{2}` becomes `\frac{1}{2}`."""
    done, position = "", 0
    while command := _TAKES_ARGUMENTS.search(text, position):
        done += text[position : command.end()]
        position = command.end()
        missing = _ARGUMENTS[command.group()]
        while missing:
            while position < len(text) and text[position] == " ":
                position += 1
            opener = text[position : position + 1]
            if opener == "{" or (opener == "[" and command.group() == "\\sqrt"):
                end = closing(text, position)
                if end is None:
                    return done + text[position:]
                done += opener + _brace(text[position + 1 : end]) + text[end]
                position = end + 1
                missing -= opener == "{"
            elif argument := _ARGUMENT.match(text, position):
                done += "{" + argument.group(1) + "}"
                position = argument.end()
                missing -= 1
            else:
                return done + text[position:]
    return done + text[position:]


_BRACKETS = re.compile(r"\\[{}]|[()\[\]{}]")
_OPENERS = ("(", "[", "{", "\\{")


def closing(text: str, position: int) -> int | None:
    """Where the bracket that opens at `position` closes; any closer closes any opener: "(3, 4]"."""
    depth = 0
    for bracket in _BRACKETS.finditer(text, position):
        depth += 1 if bracket.group() in _OPENERS else -1
        if depth == 0:
            return bracket.start()
    return None


# --- numbers ---

_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)?(?:\.\d*)?"
_DECIMAL_NUMBER = re.compile(rf"[-+]?(?=[.\d]){_DECIMAL}")
_FRACTION = re.compile(
    r"(?P<sign>[-+]?)(?:(?P<whole>\d+)(?: (?=\d+/\d)|(?=\\frac)))?"
    r"(?:\\frac\{(?P<top>[-+]?[\d.]+)\}\{(?P<bottom>[-+]?[\d.]+)\}"
    r"|\(?(?P<over>[\d.,]+)\)?/\(?(?P<under>-?[\d.,]+)\)?)"
)
_SCIENTIFIC = re.compile(
    r"(?P<digits>[-+]?(?:\d+(?:\.\d*)?|\.\d+))(?:[eE](?P<e>[-+]?\d{1,3})"
    r"|(?:\\times ?|\\cdot ?|\*|x)10\^(?:\{(?P<braced>[-+]?\d{1,3})\}|(?P<bare>\d)(?!\d)))"
)
_POWER_OF_TEN = re.compile(r"(?P<sign>-?)10\^(?:\{(?P<braced>[-+]?\d{1,3})\}|(?P<bare>\d))")
_REPEATING = re.compile(
    r"(?P<sign>[-+]?)(?P<whole>\d*)\.(?P<fixed>\d*)"
    r"(?:\\overline\{(?P<bar>\d+)\}|\((?P<round>\d+)\)|(?P<dots>\.\.\.))"
)


def exact_number(text: str) -> Fraction | None:
    r"""The rational number that a cleaned text writes down, or None where it is none.

    Integers, decimals, thousands ("1,234"), a/b, `\frac{a}{b}`, mixed numbers ("4 2/3"), powers of
    ten ("1.5\times 10^{3}", "1.5e3") and repeating decimals ("0.1\overline{6}", "0.1666...").
    """
    if _DECIMAL_NUMBER.fullmatch(text):
        return _decimal(text)
    if not any(map(str.isdigit, text)):
        return None
    if match := _FRACTION.fullmatch(text):
        return _fraction(match)
    if match := _SCIENTIFIC.fullmatch(text):
        exponent = match["e"] or match["braced"] or match["bare"]
        return Fraction(match["digits"].rstrip(".")) * Fraction(10) ** int(exponent)
    if match := _POWER_OF_TEN.fullmatch(text):
        power = Fraction(10) ** int(match["braced"] or match["bare"])
        return -power if match["sign"] else power
    if match := _REPEATING.fullmatch(text):
        return _repeating(match)
    if text.startswith("-(") and text.endswith(")"):
        inner = exact_number(text[2:-1])
        return None if inner is None else -inner
    return None


def _decimal(text: str) -> Fraction | None:
    digits = text.replace(",", "").replace(" ", "").rstrip(".")
    return Fraction(digits) if digits[-1:].isdigit() else None


def _fraction(match: re.Match[str]) -> Fraction | None:
    top = _decimal(match["top"] or match["over"])
    bottom = _decimal(match["bottom"] or match["under"])
    if top is None or not bottom:
        return None
    value = top / bottom
    if match["whole"]:
        whole = int(match["whole"])
        if 0 < value < 1:  # a mixed number, 4 2/3
            value += whole
        elif match["top"] and value > 0:  # 5\frac{3}{2} is a product
            value *= whole
        else:
            return None
    return -value if match["sign"] == "-" else value


def _repeating(match: re.Match[str]) -> Fraction | None:
    fixed, period = match["fixed"], match["bar"] or match["round"]
    if match["dots"]:
        found = _period(fixed)
        if found is None:
            return None
        fixed, period = fixed[: -len(found)], found
    whole = Fraction(int(match["whole"] or 0)) + Fraction(int(fixed or 0), 10 ** len(fixed))
    value = whole + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
    return -value if match["sign"] == "-" else value


def _period(digits: str) -> str | None:
    """The shortest block that ends the digits at least twice, over three digits: 1666 -> 6."""
    for size in range(1, len(digits) // 2 + 1):
        block = digits[-size:]
        if digits.endswith(block * max(2, -(-3 // size))):
            return block
    return None


# --- parts ---


@lru_cache(maxsize=4096)
def read_answer(text: str) -> Node:
    """Takes an answer apart. Raises TooLarge as `clean` does."""
    return _read(clean(text))


def _read(text: str) -> Node:
    text = text.strip()
    return (
        _read_number(text)
        or _read_words(text)
        or _read_list(text)
        or _read_relation(text)
        or _read_bracket(text)
        or _read_plus_minus(text)
        or _read_matrix(text)
        or _read_numeral(text)
        or _read_quantity(text)
        or _read_ratio(text)
        or Expression(text=text)
    )


def _read_number(text: str) -> Number | None:
    text = text.rstrip("\N{DEGREE SIGN}")
    percent = text.endswith("%")
    value = exact_number(text[:-1].rstrip() if percent else text)
    return None if value is None else Number(value=value, percent=percent)


_MONTHS = {
    month: number
    for number, names in enumerate(
        "january jan|february feb|march mar|april apr|may|june jun|july jul|august aug|"
        "september sep sept|october oct|november nov|december dec".split("|"),
        start=1,
    )
    for month in names.split()
}
_DATE = re.compile(
    r"(?:(?P<month>[a-z]+)\.? (?P<day>\d{1,2})|(?P<day_first>\d{1,2}) (?:of )?(?P<month_last>[a-z]+))"
    r"(?:,? (?P<year>\d{4}))?"
)
_ORDINAL = re.compile(r"(?<=\d)(?:st|nd|rd|th)(?![a-z])")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_WORDS = re.compile(r"[A-Za-z][A-Za-z'\u2019 .-]*")
_CHOICE = re.compile(r"\(?([A-Z])[).]?")
_FUNCTION_WORDS = frozenset("sin cos tan cot sec csc log ln exp sqrt frac pi".split())
_SHORT_WORDS = frozenset("yes no odd all red".split())
_CARDINALS = {
    word: Number(value=Fraction(value))
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve".split()
    )
}


def _read_words(text: str) -> Words | Number | None:
    plain = " ".join(_TEXT.sub(r" \1 ", text).split())
    if choice := _CHOICE.fullmatch(plain):
        return Words(text=choice[1])
    lower = _ORDINAL.sub("", plain.lower().removeprefix("the "))
    if (date := _DATE.fullmatch(lower)) and (date["month"] or date["month_last"]) in _MONTHS:
        month = _MONTHS[date["month"] or date["month_last"]]
        return Words(text=f"date {date['year']} {month} {int(date['day'] or date['day_first'])}")
    if lower in _CARDINALS:
        return _CARDINALS[lower]
    if not _WORDS.fullmatch(plain) or _LIST.search(plain):
        return None
    letters = plain.replace(" ", "")
    if lower in _SHORT_WORDS or (len(letters) > 3 and "\\text" in text):
        return Words(text=lower.rstrip("."))
    if "\\text" in text:
        return Words(text=plain)
    if letters.lower() in _FUNCTION_WORDS or len(max(plain.split(), key=len)) < 4:
        # `ab` is a product; AB may be a segment or a code.
        return Words(text=plain) if letters.isupper() and len(letters) > 1 else None
    return Words(text=lower.rstrip("."))


def _splitter(separators: str) -> re.Pattern[str]:
    return re.compile(
        rf"(?P<sign>{separators})|(?P<open>\\\{{|[(\[{{])|(?P<close>\\\}}|[)\]}}])",
    )


_LIST = _splitter(r"\\text\{\s*(?:,\s*)?(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|;")
_COMMA = _splitter(r",")
_UNION = _splitter(r"\\cup(?![A-Za-z])")
_RELATION = _splitter(r"=|<|>|\\(?:le|ge|ne|in|approx|equiv)(?![A-Za-z])")


def _split(text: str, separators: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """The pieces between separators that stand outside all brackets, and these separators."""
    pieces, signs, depth, begin = [], [], 0, 0
    for token in separators.finditer(text):
        if token["open"]:
            depth += 1
        elif token["close"]:
            depth -= 1
        elif depth == 0:
            pieces.append(text[begin : token.start()].strip())
            signs.append(token["sign"].strip())
            begin = token.end()
    return [*pieces, text[begin:].strip()], signs


def _read_list(text: str) -> Group | Named | None:
    for separators, kind in ((_LIST, "list"), (_COMMA, "list"), (_UNION, "union")):
        pieces, signs = _split(text, separators)
        if signs:
            # "1, 2, and 3" leaves an empty piece beside its "and".
            items = flat((_read(piece.strip(",")) for piece in pieces if piece.strip(",")), kind)
            return _union_of_named(items) or Group(kind=kind, items=items)
    return None


def _union_of_named(items: tuple[Node, ...]) -> Named | None:
    """`x < 1 or x > 3` as x in a union of intervals."""
    named = [item for item in items if isinstance(item, Named)]
    parts = [item.value for item in named]
    if len(named) < len(items) or len({item.name for item in named}) > 1:
        return None
    if not all(isinstance(part, Group) and part.kind in INTERVALS for part in parts):
        return None
    return Named(name=named[0].name, value=Group(kind="union", items=tuple(parts)))


def flat(items: Iterable[Node], kind: str) -> tuple[Node, ...]:
    r"""Items with the lists among them poured out: `1 \pm 2, 5` has three."""
    poured: list[Node] = []
    for item in items:
        inside = isinstance(item, Group) and item.kind in (kind, "list")
        poured.extend(item.items if isinstance(item, Group) and inside else (item,))
    return tuple(poured)


_NAME = re.compile(
    r"(?:\\(?:alpha|beta|gamma|delta|theta|lambda|mu|phi|varphi|omega|rho|sigma|tau|angle ?)|"
    r"\\overline\{[A-Za-z]+\}|\\text\{[^{}]*\}|[A-Za-z])[A-Za-z ]*'*"
    r"(?:_(?:\{[^{}]*\}|\w|\\[a-z]+))?(?:\([A-Za-z0-9](?:, ?[A-Za-z0-9])*\))?"
    r"|\([A-Za-z](?:, ?[A-Za-z])+\)|\|[A-Z]{2}\|"
)
_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}


def is_name(text: str) -> bool:
    r"""Whether a side of a relation is what the other side is the value of: x, f(x), a_{1}, AB."""
    return _NAME.fullmatch(text) is not None and text != "e"


def _read_relation(text: str) -> Node | None:
    sides, signs = _split(text, _RELATION)
    if "\\approx" in signs and sides[0]:  # what stands before it is the exact answer
        cut = signs.index("\\approx")
        return _read("".join(map("".join, zip(sides, [*signs[:cut], ""], strict=False))))
    if not signs or not all(sides):
        return None
    relation = Relation(signs=tuple(signs), sides=tuple(sides))
    if set(signs) == {"="}:
        if is_name(sides[0]):
            return Named(name=_bare(sides[0]), value=_read(sides[-1]), relation=relation)
        if len(sides) == 2 and is_name(sides[1]):
            return Named(name=_bare(sides[1]), value=_read(sides[0]), relation=relation)
    if signs == ["\\in"] and is_name(sides[0]):
        return Named(name=_bare(sides[0]), value=_read(sides[1]), relation=relation)
    return _read_inequality(relation) or relation


def _bare(name: str) -> str:
    return name.replace(" ", "").replace("\\text", "")


def _read_inequality(relation: Relation) -> Named | None:
    r"""`x > 2` as x in (2, \infty), `5 > x \ge 2` as x in [2, 5)."""
    signs, sides = relation.signs, relation.sides
    if not set(signs) <= set(_FLIPPED):
        return None
    if signs[0] in (">", "\\ge"):
        signs, sides = tuple(_FLIPPED[sign] for sign in reversed(signs)), sides[::-1]
    if not set(signs) <= {"<", "\\le"}:
        return None
    closed = ["[" if sign == "\\le" else "(" for sign in signs]
    ends = {"[": "]", "(": ")"}
    if len(sides) == 2 and is_name(sides[0]):
        name, low, high, kind = sides[0], "-" + INFINITY, sides[1], "(" + ends[closed[0]]
    elif len(sides) == 2 and is_name(sides[1]):
        name, low, high, kind = sides[1], sides[0], INFINITY, closed[0] + ")"
    elif len(sides) == 3 and is_name(sides[1]):
        name, low, high, kind = sides[1], sides[0], sides[2], closed[0] + ends[closed[1]]
    else:
        return None
    interval = Group(kind=kind, items=(_read(low), _read(high)))
    return Named(name=_bare(name), value=interval, relation=relation)


def _read_bracket(text: str) -> Node | None:
    opener = "\\{" if text.startswith("\\{") else text[:1]
    closer = "\\}" if text.endswith("\\}") else text[-1:]
    if opener not in ("(", "[", "\\{") or closing(text, 0) != len(text) - len(closer):
        return None
    inside = text[len(opener) : -len(closer)]
    pieces = [piece for piece in _split(inside, _COMMA)[0] if piece]
    if opener == "\\{":
        if closer != "\\}" or not pieces or re.search(r"\\mid(?![a-z])|\||:", inside):
            return None
        return Group(kind="set", items=flat(map(_read, pieces), "list"))
    if closer not in (")", "]"):
        return None
    if len(pieces) > 1:
        return Group(kind=opener + closer, items=tuple(map(_read, pieces)))
    return _read(inside) if (opener, closer) == ("(", ")") and pieces else None


def _read_plus_minus(text: str) -> Group | None:
    if "\\pm" not in text and "\\mp" not in text:
        return None
    upper = re.sub(r"\\pm(?![a-z]) ?", "+", re.sub(r"\\mp(?![a-z]) ?", "-", text))
    lower = re.sub(r"\\pm(?![a-z]) ?", "-", re.sub(r"\\mp(?![a-z]) ?", "+", text))
    return Group(kind="list", items=(_read(upper.removeprefix("+")), _read(lower)))


_MATRIX = re.compile(
    r"[(\[]?\\begin\{(?P<kind>[pb]?matrix|smallmatrix|array)\}(?:\{[lcr| ]*\})?(?P<body>.*?)"
    r"\\end\{(?P=kind)\}[)\]]?",
    re.DOTALL,
)


def _read_matrix(text: str) -> Group | None:
    match = _MATRIX.fullmatch(text)
    if not match:
        return None
    rows = [row for row in match["body"].split(ROW) if row.strip()]
    return Group(
        kind="matrix",
        items=tuple(
            Group(kind="row", items=tuple(_read(entry) for entry in row.split("&"))) for row in rows
        ),
    )


_NUMERAL = re.compile(
    r"\(?(?P<digits>[0-9][0-9A-Fa-f]*)\)?_(?:\{(?:\\text\{)?\s*(?P<base>\w+)\s*\}?\}|(?P<digit>\d+))"
)
_BASES = {
    word: str(base)
    for base, word in enumerate(
        "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
        "sixteen".split(),
        start=2,
    )
}


def _read_numeral(text: str) -> Numeral | None:
    match = _NUMERAL.fullmatch(text)
    if not match:
        return None
    base = match["base"] or match["digit"]
    return Numeral(digits=match["digits"].upper().lstrip("0") or "0", base=_BASES.get(base, base))


# Names of units that mean the same. Words that are in no line say what was counted ("apples").
_UNITS = {
    name: line.split()[0]
    for line in (
        "mm millimeter millimetre", "cm centimeter centimetre", "m meter metre",
        "km kilometer kilometre", "in inch inche", "ft foot feet", "yd yard", "mi mile",
        "mg milligram", "g gram", "kg kilogram", "lb pound", "oz ounce", "ton tonne",
        "ml milliliter millilitre", "l liter litre", "gal gallon", "s sec second", "min minute",
        "h hr hour", "day", "week", "month", "year yr", "mph", "km/h kph kmh", "m/s",
        "cent", "dollar usd", "euro eur", "rad radian", "n newton", "j joule", "w watt", "am", "pm",
    )
    for name in line.split()
}  # fmt: skip
_SHORT_UNITS = frozenset("cm mm km kg ft hr lb oz".split())
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "dozen": 12}
_TEXT_UNIT = re.compile(
    r"(?P<value>.*[\d})!\N{DEGREE SIGN}])\s*\\text\{(?P<unit>[^{}]*)\}(?:\^\{?(?P<power>[23])\}?)?"
    r"(?P<per>/\\text\{[^{}]*\})?"
)
_WORD_UNIT = re.compile(
    r"(?P<value>.*[\d})])\s*(?<![A-Za-z\\])(?P<unit>[A-Za-z]{2,}(?:[ /][A-Za-z]+)*)"
    r"(?:\^\{?(?P<power>[23])\}?)?"
)


def _read_quantity(text: str) -> Node | None:
    if match := _TEXT_UNIT.fullmatch(text):
        unit = match["unit"] + (match["per"] or "").replace("\\text{", "").replace("}", "")
    elif match := _WORD_UNIT.fullmatch(text):
        unit = match["unit"]
        known = is_known_unit(unit_name(unit)) or unit.rstrip("s") in _SCALES
        spelled = len(unit) > 2 or unit in _SHORT_UNITS
        counted = text[match.start("unit") - 1] == " " and max(map(len, unit.split())) > 3
        if not (known and spelled) and not counted:
            return None  # 2ab is a product, and so may be 2mg
    else:
        return None
    unit = unit.strip().strip(".").lower()
    value = _read(match["value"])
    if unit.rstrip("s") in _SCALES and isinstance(value, Number):
        return Number(value=value.value * _SCALES[unit.rstrip("s")])
    power = f"^{match['power']}" if match["power"] else ""
    return Quantity(value=value, unit=unit_name(unit) + power)


def unit_name(unit: str) -> str:
    """One name for each unit: "square inches" -> "in^2", "centimetres" -> "cm"."""
    words = unit.lower().replace(".", "").split()
    power = ""
    for name, exponent in (("square", "^2"), ("sq", "^2"), ("cubic", "^3")):
        if name in words:
            words.remove(name)
            power = exponent
    for name, exponent in (("squared", "^2"), ("cubed", "^3")):
        if name in words:
            words.remove(name)
            power = exponent
    name = " ".join(words)
    singular = name[:-1] if len(name) > 2 and name.endswith("s") else name
    return _UNITS.get(name, _UNITS.get(singular, singular)) + power


def is_known_unit(unit: str) -> bool:
    return unit == "%" or unit.split("^")[0] in _UNITS.values()


def _read_ratio(text: str) -> Group | None:
    numbers = [exact_number(part.strip()) for part in text.split(":")]
    if len(numbers) < 2 or any(number is None for number in numbers):
        return None
    items = tuple(Number(value=number) for number in numbers if number is not None)
    return Group(kind=":", items=items)
