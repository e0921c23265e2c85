r"""Whether two expressions are equal: math-verify reads the LaTeX, numbers of many digits decide.

Equality is decided by evaluating both sides to at least `DIGITS` digits, and to more where a text
holds more digits itself, at several points where there are variables. So no rounded decimal equals
an irrational number or a third, and no comparison needs `simplify`, which takes seconds on answers
made for it. What cannot be evaluated (unknown functions) is left to math-verify's own comparison,
strict and without its time-outs; integrals, limits, derivatives and long sums are the same only if
they are written alike, for working them out may take for ever.

Importing this module loads sympy and math-verify (0.7 s): only processes that can be killed do so.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable
from functools import lru_cache, reduce
from typing import Any

import math_verify
import mpmath
import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

from archer.verify.latex import DEGREE, TooLarge

Expr = Any
"""A sympy object, made by math-verify's parser without evaluating anything."""
Value = Any
"""An mpmath number, real or complex."""

DIGITS = 60
"""Digits to which two values are worked out, at the least, before they are called equal."""
GUARD = 20
"""Digits of these that rounding may have spoilt."""
MAX_LITERAL = 2000
"""Digits that a number in a text adds at the most: it may stand in an exponent."""
MAX_DIGITS = 20_000
"""Numbers with more digits before the point are not compared."""
MAX_EXPRESSION = 500
"""Characters of an expression that is read: the parser takes a millisecond for two of them."""
MAX_TERMS = 1000
"""Sums and products of more terms are not worked out."""
MAX_EXPONENT = 10**7
"""Powers and factorials of larger numbers are not worked out: 9^{9^{9^9}}."""

logging.getLogger("math_verify").setLevel(logging.ERROR)
logging.getLogger("latex2sympy2_extended").setLevel(logging.ERROR)


class Unknown(Exception):
    """An expression that holds something without a value: it is left to math-verify."""


class Undefined(Exception):
    """An expression without a value at a point, such as 1/0."""


def same_expression(gold: str, answer: str) -> bool:
    """Whether two cleaned texts are the same number or the same function of their variables."""
    if gold == answer:
        return True
    gold_expr, answer_expr = parse(gold), parse(answer)
    if gold_expr is None or answer_expr is None:
        return False
    try:
        return _agree(gold_expr, answer_expr, _digits(gold, answer))
    except Unknown:
        return _verify(gold_expr, answer_expr)


def same_relation(sign: str, gold: tuple[str, str], answer: tuple[str, str]) -> bool:
    """Whether two equations or inequalities (left and right side) hold for the same points.

    True where one is a multiple of the other, which must be positive for inequalities.
    """
    exprs = [parse(side) for side in (*gold, *answer)]
    if not all(isinstance(expr, sympy.Expr) for expr in exprs):
        return False
    left, right, answer_left, answer_right = exprs
    difference, answer_difference = _minus(left, right), _minus(answer_left, answer_right)
    try:
        ratios = _ratios(difference, answer_difference, _digits(*gold, *answer))
    except Unknown:
        relations = {"=": sympy.Eq, "<": sympy.Lt, "\\le": sympy.Le, "\\ne": sympy.Ne}
        relation = relations[sign]
        return _verify(
            relation(left, right, evaluate=False),
            relation(answer_left, answer_right, evaluate=False),
        )
    if not ratios or any(
        abs(ratio - ratios[0]) > abs(ratios[0]) * _tolerance() for ratio in ratios
    ):
        return False
    return sign in ("=", "\\ne") or (mpmath.im(ratios[0]) == 0 and mpmath.re(ratios[0]) > 0)


# --- reading ---

_CONVERSION = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)
_DECIMAL = re.compile(r"(?<![\w.])(\d*)\.(\d+)(?![\d.])|(?<![\w.])(\d*)\.(\d+)(?=[A-Za-z])")
_MIXED = re.compile(r"(?<![\d}^_.)A-Za-z])(\d+) ?(\\frac\{(\d+)\}\{(\d+)\})(?!\^)")
_PERCENT = re.compile(r"(\d+|\))%")
_DEGREES = re.compile(rf"(\d+|\)){DEGREE}")
_LETTER = re.compile(r"\\text\{([A-Za-z])\}")
_MISREAD = re.compile(
    r"'|\\prime|!!|(?<![\d^_])\d+ \d|(?<![_\d])\d+_|\)_|\^\{?(?:T|\\top)(?![A-Za-z])"
)
"""What the parser takes for something else: y' for y, 3!! for (3!)!, 3 3 for 3 + 3, 12_3 for 12."""
_SLOW = re.compile(
    r"(?:[\^_] ?\{? ?(?:\\[A-Za-z]+|\d+|[A-Za-z])[ }]*){6}|-{9}|\\(?:gcd|lcm)(?![A-Za-z]).*[\^!]"
)
"""Towers, for which the parser's time doubles with every floor, and what it works out itself."""
MAX_BARS = 12
"""And so it does with every pair of bars."""
_LETTER_I = re.compile(r"\\[A-Za-z]+|I")
_ANGLE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")


@lru_cache(maxsize=256)
def parse(text: str) -> Expr | None:
    """The expression that a cleaned text writes down; None where it can't be read as one."""
    if _MISREAD.search(text):
        return None
    if len(text) > MAX_EXPRESSION or _SLOW.search(text) or text.count("|") > MAX_BARS:
        raise TooLarge("an expression that would take long to be read")
    # The parser takes I for the imaginary unit, and Xi for a letter like any other.
    text = _LETTER_I.sub(lambda letter: r"\Xi " if letter[0] == "I" else letter[0], text)
    text = _DECIMAL.sub(_exact_decimal, text)
    text = _MIXED.sub(_exact_mixed, text)
    text = _PERCENT.sub(r"\1\\cdot\\frac{1}{100}", text)
    degrees = r"\1\\cdot\\frac{\\pi}{180}" if _ANGLE.search(text) else r"\1"
    text = _LETTER.sub(r"\1", _DEGREES.sub(degrees, text).replace(DEGREE, ""))
    try:
        expr = latex2sympy(text, normalization_config=None, conversion_config=_CONVERSION)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # noqa: BLE001 - whatever it raises, it can't read the text
        return None
    return expr if isinstance(expr, sympy.Basic | sympy.MatrixBase) else None


def warm_up() -> None:
    """Has the parser meet what most answers are made of, which makes it ten times faster later."""
    for text in _COMMON:
        parse(text)
    parse.cache_clear()


_COMMON = (
    r"\frac{3\sqrt{13}}{2}-\sqrt[3]{5}",
    r"x^{2}-2xy+3(x+1)(y-1)",
    r"-\frac{2k+1}{n(n+1)}\pi",
    r"2^{n-1}+e^{-x}",
    r"\sin x+\cos\frac{\pi}{7}",
    r"\log_{2} n-\ln(x+1)",
    r"\lfloor\frac{n}{2}\rfloor",
    r"\binom{n}{2}\cdot 5!",
    r"a_{1}+|x|",
    "3-2i",
)


def _exact_decimal(match: re.Match[str]) -> str:
    whole, decimals = match[1] or match[3] or "", match[2] or match[4]
    return f"(\\frac{{{int(whole + decimals)}}}{{{10 ** len(decimals)}}})"


def _exact_mixed(match: re.Match[str]) -> str:
    proper = int(match[3]) < int(match[4])
    return f"({match[1]}+{match[2]})" if proper else match[0]


# --- evaluating ---


def _agree(gold: Expr, answer: Expr, digits: int) -> bool:
    """Whether two expressions have the same value at every point; Unknown where they have none."""
    compared = 0
    for point in _points(gold, answer):
        try:
            value = evaluate(gold, point, digits)
            digits_here = digits + _whole_digits(value)
        except Undefined:
            continue
        except TooLarge:
            if compared:
                continue  # far from zero only
            raise
        if point and mpmath.im(value) != 0 and not _has_imaginary(gold):
            continue  # outside the gold's domain, such as the logarithm of a negative number
        try:
            if not _equal_at(gold, answer, point, digits_here):
                return False
        except Undefined:
            return False
        compared += 1
    if not compared:
        raise Unknown
    return True


def _equal_at(gold: Expr, answer: Expr, point: dict[str, Value], digits: int) -> bool:
    """Equal to `digits`, and what is left of the difference shrinks when digits are added."""
    left = []
    for precision in (digits, 2 * digits):
        with mpmath.workdps(precision):
            one, other = evaluate(gold, point, precision), evaluate(answer, point, precision)
            if not (mpmath.isfinite(one) and mpmath.isfinite(other)):
                return bool(one == other)
            size = max(abs(one), abs(other), mpmath.mpf(1))
            left.append(abs(one - other) / size)
            if left[-1] > mpmath.mpf(10) ** (GUARD - precision):
                return False
    # A difference that stays where it is when digits are added is none of rounding: 10^{-80}.
    shrunk = max(left[0], mpmath.mpf(10) ** -digits) * mpmath.mpf(10) ** -(digits // 2)
    return bool(left[1] < shrunk)


def _whole_digits(value: Value) -> int:
    """Digits before the point: 2^{1009} and 2^{1009} + 1 differ in the 304th."""
    if not mpmath.isfinite(value) or not value:
        return 0
    whole = int(mpmath.mag(value) * 0.302)
    if whole > MAX_DIGITS:
        raise TooLarge(f"a number of {whole} digits (the limit is {MAX_DIGITS})")
    return max(0, whole)


def _ratios(gold: Expr, answer: Expr, digits: int) -> list[Value]:
    ratios: list[Value] = []
    for point in _points(gold, answer):
        try:
            one, other = evaluate(gold, point, digits), evaluate(answer, point, digits)
        except Undefined:
            continue
        except TooLarge:
            if ratios:
                continue  # far from zero only
            raise
        with mpmath.workdps(digits):
            if abs(one) < _tolerance() or abs(other) < _tolerance():
                return []
            ratios.append(one / other)
    return ratios


def _tolerance() -> Value:
    return mpmath.mpf(10) ** (GUARD - DIGITS)


_LITERAL = re.compile(r"\d{1,4}")


def _digits(*texts: str) -> int:
    """Enough digits to see what the texts can hide: the end of a long decimal, or a 2^{-1000}."""
    literals = [literal for text in texts for literal in _LITERAL.findall(text)]
    largest = max((int(literal) for literal in literals), default=0)
    return DIGITS + 2 * sum(map(len, literals)) + min(largest, MAX_LITERAL)


_STEPPED = (
    sympy.floor,
    sympy.ceiling,
    sympy.Mod,
    sympy.factorial,
    sympy.binomial,
)


def _points(*exprs: Expr) -> list[dict[str, Value]]:
    """Where expressions are compared: the same points every time, drawn from the variables' names.

    Whole numbers where a function of whole numbers occurs (for x, y and z at every fourth point
    only), and numbers of both signs elsewhere.
    """
    nodes = [node for expr in exprs for node in _nodes(expr)]
    names = sorted({node.name for node in nodes if isinstance(node, sympy.Symbol)} - {"i"})
    if not names:
        return [{}]
    whole = any(isinstance(node, _STEPPED) for node in nodes)
    return [
        {name: _coordinate(name, number, whole) for name in names}
        for number in range(24 if whole else 8)
    ]


def _coordinate(name: str, number: int, whole: bool) -> Value:
    draw = hashlib.blake2b(f"{name}/{number}".encode(), digest_size=8).digest()
    size = int.from_bytes(draw[:4])
    far = number % 4 == 3  # where |x - 3| is not 3 - x
    reach = 64 if far else 1
    if whole and (name not in ("x", "y", "z") or number % 4 == 1):
        return mpmath.mpf(1 + size % ((6 + 2 * number) * reach))
    sign = -1 if number % 8 >= 4 and (far or draw[4] % 2) else 1
    return sign * reach * (mpmath.mpf(size) / 2**31 + mpmath.mpf(1) / 8)


def _nodes(expr: Expr) -> list[Expr]:
    if isinstance(expr, sympy.MatrixBase):
        return [node for entry in expr for node in _nodes(entry)]
    return list(sympy.preorder_traversal(expr))


def _has_imaginary(expr: Expr) -> bool:
    return any(
        node is sympy.I or (isinstance(node, sympy.Symbol) and node.name == "i")
        for node in _nodes(expr)
    )


def evaluate(expr: Expr, point: dict[str, Value], digits: int) -> Value:
    """Value of an expression at a point, to so many digits.

    Raises Unknown for what has no rule here, Undefined where there is no value, TooLarge for powers
    that would not end.
    """
    with mpmath.workdps(digits):
        try:
            return _value(expr, point)
        except (ZeroDivisionError, ValueError) as fault:
            raise Undefined from fault
        except OverflowError as fault:
            raise TooLarge("a number too large to be worked out") from fault
        except (TypeError, NotImplementedError, mpmath.libmp.NoConvergence) as fault:
            raise Unknown from fault


def _value(expr: Expr, point: dict[str, Value]) -> Value:
    if isinstance(expr, sympy.Symbol):
        return mpmath.mpc(0, 1) if expr.name == "i" else point[expr.name]
    if isinstance(expr, sympy.Rational):
        return mpmath.mpf(expr.p) / expr.q
    if isinstance(expr, sympy.Sum | sympy.Product):
        return _repeated(expr, point)
    if expr in _CONSTANTS:
        return _CONSTANTS[expr]()
    rule = _RULES.get(type(expr).__name__)
    if rule is None:
        raise Unknown
    return rule(*(_value(argument, point) for argument in expr.args))


def _repeated(expr: Expr, point: dict[str, Value]) -> Value:
    """A sum or a product over a few whole numbers."""
    term, (name, first, last), *more = expr.args
    begin, end = _value(first, point), _value(last, point)
    if more or not (mpmath.isint(begin) and mpmath.isint(end)) or end - begin > MAX_TERMS:
        raise Unknown
    values = (
        _value(term, {**point, name.name: mpmath.mpf(k)}) for k in range(int(begin), int(end) + 1)
    )
    return _add(*values) if isinstance(expr, sympy.Sum) else _multiply(*values)


_CONSTANTS: dict[Expr, Callable[[], Value]] = {
    sympy.pi: lambda: +mpmath.pi,
    sympy.E: lambda: +mpmath.e,
    sympy.I: lambda: mpmath.mpc(0, 1),
    sympy.oo: lambda: mpmath.inf,
    -sympy.oo: lambda: -mpmath.inf,
}


def _add(*terms: Value) -> Value:
    return reduce(lambda total, term: total + term, terms, mpmath.mpf(0))


def _multiply(*factors: Value) -> Value:
    return reduce(lambda product, factor: product * factor, factors, mpmath.mpf(1))


def _power(base: Value, exponent: Value) -> Value:
    if abs(exponent) > MAX_EXPONENT:
        raise TooLarge("a power too large to be worked out")
    if mpmath.im(base) == 0 and mpmath.re(base) < 0 and mpmath.im(exponent) == 0:
        # The real root of a negative number, as school has it: \sqrt[3]{-8} = -2.
        root = 1 / exponent if exponent else mpmath.mpf(2)
        nearest = mpmath.nint(root)
        if nearest % 2 == 1 and abs(root - nearest) < _tolerance():
            return -mpmath.power(-base, exponent)
    return mpmath.power(base, exponent)


def _factorial(number: Value) -> Value:
    if abs(number) > MAX_EXPONENT:
        raise TooLarge("a factorial too large to be worked out")
    return mpmath.factorial(number)


def _logarithm(argument: Value, base: Value | None = None) -> Value:
    return mpmath.log(argument) if base is None else mpmath.log(argument) / mpmath.log(base)


def _real(function: Callable[..., Value]) -> Callable[..., Value]:
    """The function, for real arguments only."""

    def real_function(*arguments: Value) -> Value:
        if any(mpmath.im(argument) != 0 for argument in arguments):
            raise Undefined
        return function(*map(mpmath.re, arguments))

    return real_function


def _round_down(number: Value) -> Value:
    """The floor, with what rounding left of a whole number put back: floor(3 - 1e-60) is 3."""
    nearest = mpmath.nint(number)
    return nearest if abs(number - nearest) < _tolerance() else mpmath.floor(number)


_RULES: dict[str, Callable[..., Value]] = {
    "Add": _add,
    "Mul": _multiply,
    "Pow": _power,
    "exp": lambda exponent: _power(mpmath.e, exponent),
    "log": _logarithm,
    "Abs": abs,
    "UnevaluatedExpr": lambda value: value,
    "floor": _real(_round_down),
    "ceiling": _real(lambda number: -_round_down(-number)),
    "factorial": _factorial,
    "binomial": mpmath.binomial,
    "Mod": _real(lambda number, modulus: number - modulus * _round_down(number / modulus)),
    "Max": _real(max),
    "Min": _real(min),
    "conjugate": mpmath.conj,
    "re": mpmath.re,
    "im": mpmath.im,
    "sin": mpmath.sin,
    "cos": mpmath.cos,
    "tan": mpmath.tan,
    "cot": mpmath.cot,
    "sec": mpmath.sec,
    "csc": mpmath.csc,
    "asin": mpmath.asin,
    "acos": mpmath.acos,
    "atan": mpmath.atan,
    "acot": mpmath.acot,
    "sinh": mpmath.sinh,
    "cosh": mpmath.cosh,
    "tanh": mpmath.tanh,
    "asinh": mpmath.asinh,
    "acosh": mpmath.acosh,
    "atanh": mpmath.atanh,
}


# --- what has no value ---


def _minus(left: Expr, right: Expr) -> Expr:
    return sympy.Add(left, sympy.Mul(-1, right, evaluate=False), evaluate=False)


_ENDLESS = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative)


def _verify(gold: Expr, answer: Expr) -> bool:
    if any(isinstance(node, _ENDLESS) for node in (*_nodes(gold), *_nodes(answer))):
        return bool(gold == answer)
    return bool(
        math_verify.verify(
            gold, answer, float_rounding=DIGITS, numeric_precision=DIGITS, timeout_seconds=None
        )
    )
