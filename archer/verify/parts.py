r"""What a mathematical answer is made of: numbers, lists, intervals, equations, words, the rest.

`read_answer` takes an answer apart:

    "-2, \frac{1}{2}"    Group("list", Number(-2), Number(1/2))
    "x \in (2, \pi]"     Named("x", Group("(]", Number(2), Expression("\pi")))
    "52_8"               Numeral("52", "8")
    "3\sqrt{13}"         Expression("3\sqrt{13}")

Parts are compared by archer.verify.math. Standard library only, so that most answers are judged
without loading a computer algebra system.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from archer.verify.latex import DEGREE, ROW, clean, closing, exact_number


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
    r"""An answer that says what it is the value of. "x > 2" is "x" with the value (2, \infty)."""

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


@lru_cache(maxsize=4096)
def read_answer(text: str) -> Node:
    """Takes an answer apart. Raises TooLarge as `clean` does."""
    return _read(clean(text))


def _read(text: str) -> Node:
    text = text.strip()
    return (
        _read_number(text)
        or _read_currency(text)
        or _read_words(text)
        or _read_matrix(text)
        or _read_list(text)
        or _read_relation(text)
        or _read_bracket(text)
        or _read_plus_minus(text)
        or _read_numeral(text)
        or _read_quantity(text)
        or _read_ratio(text)
        or Expression(text=_CURRENCY_SIGN.sub("", text))
    )


def _read_number(text: str) -> Number | Quantity | None:
    bare, percent = text.rstrip(DEGREE), text.endswith("%")
    value = exact_number(bare[:-1].rstrip() if percent else bare)
    if value is None:
        return None
    number = Number(value=value, percent=percent)
    return number if bare == text else Quantity(value=number, unit="degree")


_CURRENCY_SIGN = re.compile("[$€£¥]")
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "gbp", "¥": "yen"}
_CURRENCY = re.compile(
    r"(?P<minus>-?) ?(?P<before>[$€£¥]) ?(?P<value>.+)|(?P<bare>.+?) ?(?P<after>[$€£¥])"
)


_SEVERAL = re.compile(
    r"[,;=<>$€£¥]|\\(?:le|ge|ne|cup)(?![A-Za-z])|(?<![A-Za-z])(?:and|or)(?![A-Za-z])"
)


def _read_currency(text: str) -> Quantity | None:
    match = _CURRENCY.fullmatch(text)
    if not match:
        return None
    amount = match["bare"] or match["minus"] + match["value"]
    if exact_number(amount) is None and _SEVERAL.search(amount):
        return None
    unit, value = _CURRENCIES[match["before"] or match["after"]], _read(amount)
    if isinstance(value, Quantity):  # "$18 per hour", "$25 dollars"
        rest = "" if value.unit == unit else value.unit
        return Quantity(value=value.value, unit=unit + rest)
    return Quantity(value=value, unit=unit)


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
    r"(?:(?P<month>[a-z]+)\.? (?P<day>\d{1,2})"
    r"|(?P<day_first>\d{1,2}) (?:of )?(?P<month_last>[a-z]+))(?:,? (?P<year>\d{4}))?"
)
_ORDINAL = re.compile(r"(?<=\d)(?:st|nd|rd|th)(?![a-z])")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_WORDS = re.compile(r"[A-Za-z][A-Za-z'\u2019 .-]*")
_CHOICE = re.compile(r"\(?([A-Z])[).]?")
_CHOICE_WITH_TEXT = re.compile(  # "(A) 5", but not "(A) or (B)"
    r"\(?([A-E])\) ?(?!.*(?<![A-Za-z])(?:or|and)(?![A-Za-z]))[\w\\$][^()]*"
)
_TIME_OF_DAY = re.compile(r"(\d{1,2})(?::(\d\d))? ?([ap])\.? ?m\.?")
_SYNONYMS = {"no solutions": "no solution", "empty set": "\\emptyset"}
_FIGURE = re.compile(r"\\(?:angle|triangle) ?[A-Z]{2,}")
_FUNCTION_WORDS = frozenset("sin cos tan cot sec csc log ln exp sqrt frac pi".split())
_SHORT_WORDS = frozenset("yes no odd all red".split())
_ALL_NUMBERS = frozenset(("\\mathbb{r}", "all real numbers", "all reals"))
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen".split()
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_CARDINALS = {
    word: Number(value=Fraction(value))
    for value, word in [
        *enumerate(_ONES),
        *((10 * ten, word) for ten, word in enumerate(_TENS, start=2)),
        *(
            (10 * ten + one, f"{word}-{_ONES[one]}")
            for ten, word in enumerate(_TENS, start=2)
            for one in range(1, 10)
        ),
    ]
}


def _read_words(text: str) -> Node | None:
    plain = " ".join(_TEXT.sub(r" \1 ", text).split())
    if choice := _CHOICE.fullmatch(plain) or _CHOICE_WITH_TEXT.fullmatch(plain):
        return Words(text=choice[1])
    if _FIGURE.fullmatch(plain):
        return Words(text=plain.replace(" ", ""))
    lower = _ORDINAL.sub("", plain.lower().removeprefix("the "))
    if (date := _DATE.fullmatch(lower)) and (date["month"] or date["month_last"]) in _MONTHS:
        month = _MONTHS[date["month"] or date["month_last"]]
        return Words(text=f"date {date['year']} {month} {int(date['day'] or date['day_first'])}")
    if time := _TIME_OF_DAY.fullmatch(lower):
        return Words(text=f"time {int(time[1])}:{time[2] or '00'} {time[3]}m")
    if lower in _SYNONYMS:
        return Words(text=_SYNONYMS[lower])
    if lower in _CARDINALS:
        return _CARDINALS[lower]
    head, _, rest = lower.partition(" ")
    if head in ("minus", "negative") and rest in _CARDINALS:
        return Number(value=-_CARDINALS[rest].value)
    if head in ("one", "a") and rest in _PARTS:
        return Number(value=_PARTS[rest])
    if lower in _ALL_NUMBERS:
        return Group(kind="()", items=(Expression(text="-" + INFINITY), Expression(text=INFINITY)))
    if not _WORDS.fullmatch(plain):
        return None
    if _LIST.search(plain):
        return None if plain == text else _read(plain)
    letters = plain.replace(" ", "")
    name = len(letters) > 2 and letters[0].isupper() and letters[1:].islower()
    if name or lower in _SHORT_WORDS or (len(letters) > 3 and "\\text" in text):
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
            if not items:
                return None
            together = all("and" in sign for sign in signs)
            named = _both(items) if together else _union_of_named(items)
            return named or Group(kind=kind, items=items)
    return None


def _both(items: tuple[Node, ...]) -> Named | None:
    """`x > 1 and x < 3` as x in (1, 3); None where it is no interval between numbers."""
    if len(items) != 2 or not all(isinstance(item, Named) for item in items):
        return None
    low, high = sorted(items, key=lambda item: _end(item, 0) is None)
    bottom, top = _end(low, 0), _end(high, 1)
    assert isinstance(low, Named) and isinstance(high, Named)
    if low.name != high.name or bottom is None or top is None or bottom.value >= top.value:
        return None
    assert isinstance(low.value, Group) and isinstance(high.value, Group)
    kind = low.value.kind[0] + high.value.kind[1]
    return Named(name=low.name, value=Group(kind=kind, items=(bottom, top)))


def _end(item: Node, place: int) -> Number | None:
    """Where a named interval that is open to one side begins (place 0) or ends (place 1)."""
    interval = item.value if isinstance(item, Named) else None
    if not isinstance(interval, Group) or interval.kind not in INTERVALS:
        return None
    end, other = interval.items[place], interval.items[1 - place]
    far = isinstance(other, Expression) and other.text.lstrip("-") == INFINITY
    return end if isinstance(end, Number) and far else None


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
    r"(?:(?:m ?)?\\angle ?|"
    r"\\(?:alpha|beta|gamma|delta|theta|lambda|mu|phi|varphi|omega|rho|sigma|tau)|"
    r"\\overline\{[A-Za-z]+\}|\\text\{[^{}]*\}|[A-Za-z])[A-Za-z ]*'*"
    r"(?:_(?:\{[^{}]*\}|\w|\\[a-z]+))?(?:\^\{-1\})?(?:\([A-Za-z0-9](?:, ?[A-Za-z0-9])*\))?"
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
    if signs == ["\\ne"] and is_name(sides[0]) and (value := exact_number(sides[1])) is not None:
        return Named(name=_bare(sides[0]), value=_all_but(Number(value=value)), relation=relation)
    if signs in (["\\in"], ["\\equiv"]) and is_name(sides[0]):
        return Named(name=_bare(sides[0]), value=_read(sides[1]), relation=relation)
    return _read_inequality(relation) or relation


def _all_but(number: Number) -> Group:
    r"""The real numbers without one: (-\infty, 3) and (3, \infty)."""
    low = Group(kind="()", items=(Expression(text="-" + INFINITY), number))
    high = Group(kind="()", items=(number, Expression(text=INFINITY)))
    return Group(kind="union", items=(low, high))


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


_SET_OF_ALL = re.compile(
    r"\\\{ ?(?P<name>[a-z]) ?(?:\\in ?\\mathbb\{R\})?"
    r"(?:\\mid(?![a-z])|\||:)(?P<condition>.+)\\\}"
)
_OUTWARD = re.compile(r"(?P<open>[\](\[])(?P<ends>[^()\[\]]+,[^()\[\]]+)(?P<close>[\[)\]])")


def _read_bracket(text: str) -> Node | None:
    if match := _SET_OF_ALL.fullmatch(text):  # {x | x > 3} is x > 3
        value = _read(match["condition"])
        return value if isinstance(value, Named) and value.name == match["name"] else None
    if (match := _OUTWARD.fullmatch(text)) and (match["open"] == "]" or match["close"] == "["):
        opener, closer = match["open"].replace("]", "("), match["close"].replace("[", ")")
        return _read(opener + match["ends"] + closer)  # ]0, 1[ is (0, 1)
    opener = "\\{" if text.startswith("\\{") else text[:1]
    closer = "\\}" if text.endswith("\\}") else text[-1:]
    if opener not in ("(", "[", "\\{") or closing(text, 0) != len(text) - len(closer):
        return None
    inside = text[len(opener) : -len(closer)]
    pieces = [piece for piece in _split(inside, _COMMA)[0] if piece]
    if opener == "\\{":
        if closer != "\\}" or not pieces or re.search(r"\\mid(?![a-z])|\||:|\\emptyset", inside):
            return None
        return Group(kind="set", items=flat(map(_read, pieces), "list"))
    if closer not in (")", "]"):
        return None
    if (opener, closer) == ("(", ")") and len(pieces) == 1:
        return _read(inside)
    return Group(kind=opener + closer, items=tuple(map(_read, pieces))) if pieces else None


_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![A-Za-z]) ?")


def _read_plus_minus(text: str) -> Group | None:
    if not _PLUS_MINUS.search(text):
        return None
    upper = _PLUS_MINUS.sub(lambda sign: "+" if sign[1] == "pm" else "-", text)
    lower = _PLUS_MINUS.sub(lambda sign: "-" if sign[1] == "pm" else "+", text)
    both = _read(upper.removeprefix("+")), _read(lower.removeprefix("+"))
    return Group(kind="list", items=flat(both, "list"))


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
    r"\(?(?:\\text\{)?(?P<digits>[0-9][0-9A-Fa-f]*|[A-Fa-f]*[0-9][0-9A-Fa-f]*)\}?\)?_(?:\{(?:\\text\{)?\s*(?P<base>\w+)\s*\}?\}|(?P<digit>\d+))"
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
        "h hr hour", "day", "week", "month", "year yr", "mi/h mph", "km/h kph kmh",
        "cent", "dollar usd", "euro eur", "gbp", "yen", "degree", "rad radian",
        "n newton", "j joule", "w watt", "am", "pm", "celsius c", "fahrenheit f",
    )
    for name in line.split()
}  # fmt: skip
_POWERS = {"square": "^2", "sq": "^2", "squared": "^2", "cubic": "^3", "cubed": "^3"}
_SHORT_UNITS = frozenset("cm mm km kg ft hr lb oz".split())
_PARTS = {
    "half": Fraction(1, 2), "halve": Fraction(1, 2), "third": Fraction(1, 3),
    "fourth": Fraction(1, 4), "fifth": Fraction(1, 5), "sixth": Fraction(1, 6),
    "seventh": Fraction(1, 7), "eighth": Fraction(1, 8), "ninth": Fraction(1, 9),
    "tenth": Fraction(1, 10), "hundredth": Fraction(1, 100), "thousandth": Fraction(1, 10**3),
    "millionth": Fraction(1, 10**6), "billionth": Fraction(1, 10**9), "permille": Fraction(1, 1000),
}  # fmt: skip
_SCALES: dict[str, int | Fraction] = {
    "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "quadrillion": 10**15, "quintillion": 10**18, "sextillion": 10**21, "septillion": 10**24,
    "octillion": 10**27, "nonillion": 10**30, "decillion": 10**33, "googol": 10**100,
    "lakh": 10**5, "crore": 10**7, "mil": 10**3, "mio": 10**6, "mrd": 10**9, "bn": 10**9,
    "dozen": 12, **_PARTS,
}  # fmt: skip
_NO_UNITS = frozenset(
    "squared cubed factorial and or plus minus of out over mod modulo remainder more less fewer "
    "most least below above not is but to base pair pairs ten tens score gross point no none never "
    "nor wrong false except without exceeding exceeds beyond under until double doubles doubled "
    "triple triples tripled quadruple quadrupled twice thrice halved trio trios half-dozen "
    "half-dozens twos threes fours fives sixes sevens eights nines reciprocal inverse inverted "
    "negative negated opposite sqrt root roots cube cubes power powers log logs ish basis "
    "percentile thousandfold tenfold grand".split()
)
"""Words that make another value of a number."""
_TEXT_UNIT = re.compile(
    r"(?P<value>.*(?:[\d})!\N{DEGREE SIGN}]|\\pi))\s*\\text\{(?P<unit>[^{}]*)\}"
    r"(?:\^\{?(?P<power>[23])\}?)?(?P<per>/\\text\{[^{}]*\})?"
)
_COUNTED = re.compile(r"[a-z][a-z' -]+[a-z]")
"""Words that say what was counted: "apples", and neither x nor "(mod 6)"."""
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
        apart = text[match.start("unit") - 1] == " "
        spelled = spelled or (apart and match["power"] is not None)
        words = apart and max(map(len, unit.split())) > 3
        if not (known and spelled) and not words:
            return None  # 2ab is a product, and so may be 2mg
    else:
        return None
    unit = unit.strip().strip(".").lower()
    if not unit:
        return _read(match["value"])
    if not _NO_UNITS.isdisjoint(unit.split()):
        return None
    value = _read(match["value"])
    if isinstance(value, Quantity) and value.unit == "degree":  # of Celsius or Fahrenheit
        value = value.value
    scale, _, counted = unit.partition(" ")
    if scale.rstrip("s") in _SCALES and isinstance(value, Number):  # "2 million dollars"
        value, unit = Number(value=value.value * _SCALES[scale.rstrip("s")]), counted
        if not unit:
            return value
    power = f"^{match['power']}" if match["power"] else ""
    name = unit_name(unit) + power
    if not is_known_unit(name) and not _COUNTED.fullmatch(unit):
        return None
    if any(word in _CARDINALS or word.rstrip("s") in _SCALES for word in unit.split()):
        return None
    return Quantity(value=value, unit=name)


def unit_name(unit: str) -> str:
    """One name for each unit: "square inches" -> "in^2", "metres per second" -> "m/s"."""
    words = unit.lower().replace(".", "").split()
    powers = [_POWERS[word] for word in words if word in _POWERS]
    names = " ".join(word for word in words if word not in _POWERS)
    parts = re.split(r" ?/ ?|(?:^| )per ", names)
    return "/".join(_UNITS.get(name, _singular(name)) for name in parts) + "".join(powers[:1])


def _singular(name: str) -> str:
    singular = name[:-1] if len(name) > 2 and name.endswith("s") else name
    return _UNITS.get(singular, singular)


def is_known_unit(unit: str) -> bool:
    """Whether a unit is one that can be told from others, and no word for what was counted."""
    return unit == "%" or any(part in _UNITS.values() for part in re.split(r"[/^]", unit))


_TIME = re.compile(r"\d{1,2}:0\d?")  # or the score of a game


def _read_ratio(text: str) -> Group | None:
    if _TIME.fullmatch(text):
        return None
    numbers = [exact_number(part.strip()) for part in re.split(r":| to ", text)]
    if len(numbers) < 2 or any(number is None for number in numbers):
        return None
    items = tuple(Number(value=number) for number in numbers if number is not None)
    return Group(kind=":", items=items)
