r"""One way to write a mathematical answer, and the numbers that are written so.

`clean` brings the many ways to write one thing (`\dfrac`, `\left(`, `1{,}234`, a degree sign) to
one, and `exact_number` reads a number without rounding it. What an answer is made of is the matter
of archer.verify.parts, what an expression means that of archer.verify.symbolic.

Standard library only. Nothing longer than `MAX_CHARACTERS` or nested deeper than `MAX_NESTING` is
looked at, which bounds the time that is spent here and in everything that reads a cleaned text.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

MAX_CHARACTERS = 1000
"""Answers longer than this are not read; those of the well-known suites have up to 200."""
MAX_NESTING = 12
"""Nor are brackets deeper than this: those suites have 3, and for 20 the parser needs seconds."""


class TooLarge(Exception):
    """An answer beyond a limit: it is not judged, and its verdict is `limit`."""


# --- one way to write one thing ---

_UNICODE = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2013\u2014", "-"), **dict.fromkeys("\u00a0\u2009\u202f", " "),
        **dict.fromkeys("∕⁄", "/"),
        **dict.fromkeys("·⋅", r"\cdot "),
        **dict.fromkeys("≤⩽", r"\le "), **dict.fromkeys("≥⩾", r"\ge "), "≠": r"\ne ",
        "≈": r"\approx ", "×": r"\times ", "÷": r"\div ", "±": r"\pm ", "∓": r"\mp ",
        "√": r"\sqrt ", "²": "^{2}", "³": "^{3}", "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ",
        "β": r"\beta ", "∞": r"\infty ", "∈": r"\in ", "∪": r"\cup ", "∅": r"\emptyset ",
        "½": r" \frac{1}{2}", "⅓": r" \frac{1}{3}",
        "⅔": r" \frac{2}{3}", "¼": r" \frac{1}{4}", "¾": r" \frac{3}{4}", "，": ",", "。": ".",
        "¢": r"\text{ cents}",
        "（": "(", "）": ")", "…": "...", "°": "^{\\circ}",
    }
)  # fmt: skip

DEGREE = "\N{DEGREE SIGN}"
ROW = "\x01"
r"""Stands for `\\`, the end of a row, so that no rule takes half of it for another command."""

_COMMANDS = {
    name: replacement
    for names, replacement in (
        ("left right middle big Big bigg Bigg bigl bigr Bigl Bigr displaystyle textstyle", ""),
        ("limits nolimits rm bf it underline ensuremath fbox boxed", ""),
        ("textdollar dollar", "$"),
        ("pounds", "£"),
        ("euro", "€"),
        ("quad qquad", " "),
        ("dfrac tfrac cfrac", r"\frac"),
        ("dbinom tbinom", r"\binom"),
        ("textbf textit textrm textsf texttt textnormal mbox hbox", r"\text"),
        ("mathrm mathbf mathit mathsf mathtt mathnormal boldsymbol bm", r"\text"),
        ("leq leqslant leqq", r"\le"),
        ("geq geqslant geqq", r"\ge"),
        ("neq", r"\ne"),
        ("lt", "<"),
        ("gt", ">"),
        ("varnothing", r"\emptyset"),
        ("langle lparen", "("),
        ("rangle rparen", ")"),
        ("lbrack", "["),
        ("rbrack", "]"),
        ("lbrace", r"\{"),
        ("rbrace", r"\}"),
        ("vert lvert rvert", "|"),
        ("ldots cdots dots dotsc dotsb", "..."),
        ("colon", ":"),
        ("cdotp", r"\cdot"),
        ("lg", r"\log_{10}"),
        ("degree", "^{\\circ}"),
        ("bar dot", r"\overline"),
        ("bmod", r"\mod"),
    )
    for name in names.split()
}
_COMMAND = re.compile(r"\\([A-Za-z]+)")


def _rules(*rules: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


_BEFORE_COMMANDS = _rules(
    (r"\\\\(?:\s*\[[^\]]*\])?", ROW),
    (r"\\\$", "$"),  # no delimiter of mathematics: those are gone by now
    (r"\\[()\[\]]", " "),  # the delimiters of mathematics
    (r"\\(?:left|right)\s*\.", ""),
    # Spaces that part thousands, then all others.
    (r"(?<=\d)(?:\{,\}|,\s*\\!|\s*\\[,;:! ]|~)\s*(?=\d{3}(?!\d))", ""),
    (r"\\[,;:! ]|~|\\[hv]space\*?\{[^{}]*\}", " "),
    (r"\\%", "%"),
    (r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}", r"\\frac{\1}{\2}"),
    (r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}", r"\\binom{\1}{\2}"),
    (r"\\(?:text)?color\s*\{[A-Za-z]+\}", ""),
    (r"\\operatorname\*?\s*\{([a-z]+)\}", r"\\\1 "),
)
_AFTER_COMMANDS = _rules(
    (r"\\\{\s*\\\}", r"\\emptyset "),
    (r"\\text\s*\{\s*([eid]|)\s*\}", r"\1"),
    (r"\\mathbb\s*([A-Z])", r"\\mathbb{\1}"),
    (r"\\text\s*\{\s*((?:arc)?(?:sin|cos|tan|cot|sec|csc)|ln|log|exp)\s*\}", r"\\\1 "),
    (r"\\text\s*\{", r"\\text{"),
    (r"\\text\{\s*([$€£¥])\s*\}", r"\1"),
    (r"\\overline\s*\{?(\d+)\}?", r"\\overline{\1}"),
    (r"\^\s*\{?\s*\\circ(?![A-Za-z])\s*\}?", DEGREE),
    (r"(?<=\d)\^\s*\{?\\text\{ ?o ?\}\}?", DEGREE),
    (r"\\log\s*_\s*(?:\{\s*e\s*\}|e(?![A-Za-z]))", r"\\ln "),
)
_PLAIN = _rules(
    (r"^\s*\\text\{([^{}]*\d[^{}]*)\}(?=[\s.]*$)", r"\1"),
    (r"\\text\{\s*(?:[dD]egrees?|deg)\.?\s*\}", DEGREE),
    (r"(?<![A-Za-z\\])(?:[dD]egrees?|deg)(?![A-Za-z])", DEGREE),
    (r"\s*(?:[pP]er ?cent(?:age)?|pct)(?![A-Za-z])", "%"),
    (rf"\\text\{{\s*{DEGREE}\s*\}}", DEGREE),
    (
        rf"(?:\\text\{{\s*)?{DEGREE}\s*(C|F|[Cc]elsius|[Ff]ahrenheit)(?![A-Za-z])\s*\}}?",
        rf"{DEGREE}\\text{{\1}}",
    ),
    (r"\\text\{\s*%\s*\}", "%"),
    (r"(?<=\d)\^\{?o\}?(?![A-Za-z])", DEGREE),
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
    (r"\\text\{\s*\\infty\s*\}", r"\\infty "),
    (r"\+\s*\\infty", r"\\infty"),
    (r"\s+", " "),
    # A space matters between digits (4 2/3) and letters (m n), and after a comma (1, 234).
    (r"(?<=[^A-Za-z0-9,.;]) | (?=[^A-Za-z0-9.])", ""),
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
    text = _without_delimiters(text)
    if not text.isascii():
        text = _ROOT.sub(r"\\sqrt{\1}", text)
        text = text.translate(_UNICODE)
    if "\\" in text or "~" in text or "{,}" in text:
        if "\\begin" not in text:  # no rows that could end in a double backslash
            text = _ESCAPED_TWICE.sub(r"\\", text)
        text = _apply(_BEFORE_COMMANDS, text)
        text = _COMMAND.sub(lambda command: _COMMANDS.get(command[1], command[0]), text)
        text = _apply(_AFTER_COMMANDS, text)
    text = _apply(_PLAIN, text)
    text = _unwrapped(_LEADING_SIGN.sub("", text).strip().rstrip(",;").strip())
    if not text.endswith("..."):
        text = text.rstrip(". ")
    return _brace(text) if "\\" in text else text


_ROOT = re.compile(r"√ ?(\d+)")  # TeX's own would take one digit only
_DELIMITER = re.compile(r"(?<!\\)\$")


def _without_delimiters(text: str) -> str:
    """Without the `$` that begin and end mathematics; one alone before a digit is a dollar's."""
    alone = text.count("$") == 1 and re.search(r"\$\d", text)
    return text if alone else _DELIMITER.sub("", text)


_WRAPPED = re.compile(r"(?:\\text)?\{")


def _unwrapped(text: str) -> str:
    r"""`\text{\frac{1}{2}}` (from bold type) and `{5}` without what is around them."""
    wrapped = _WRAPPED.match(text)
    if not wrapped or closing(text, wrapped.end() - 1) != len(text) - 1:
        return text
    inside = text[wrapped.end() : -1]
    return inside if wrapped.group() == "{" or "\\" in inside else text


def _apply(rules: tuple[tuple[re.Pattern[str], str], ...], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


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


_ARGUMENTS = {"\\frac": 2, "\\binom": 2, "\\sqrt": 1, "\\pmod": 1}
_TAKES_ARGUMENTS = re.compile(r"\\(?:frac|binom|sqrt|pmod)(?![A-Za-z])")
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
_UNSIGNED = r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)"
_FRACTION = re.compile(
    r"(?P<sign>[-+]?)(?:(?P<whole>\d+)(?: (?=\d+/\d)|(?=\\frac)))?"
    rf"(?:\\frac\{{(?P<top>[-+]?{_UNSIGNED})\}}\{{(?P<bottom>[-+]?{_UNSIGNED})\}}"
    rf"|\(?(?P<over>{_UNSIGNED})\)?/\(?(?P<under>-?{_UNSIGNED})\)?)"
)
_SCIENTIFIC = re.compile(
    r"(?P<digits>[-+]?(?:\d+(?:\.\d*)?|\.\d+))(?:[eE](?P<e>[-+]?\d{1,3})"
    r"|(?:\\times ?|\\cdot ?|\*| ?x ?)10\^(?:\{(?P<braced>[-+]?\d{1,3})\}|(?P<bare>\d)(?!\d)))"
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
