"""The task "functions": one-line Python functions that a very small model can learn to write.

    Write a Python function add_3(x) that returns x plus 3. Answer with a short python code block …

`FAMILIES` lists the kinds of functions; each has one problem for each of its constants. The tests
of a problem depend on nothing but the problem. They are chosen so that no other function of the
list passes them: they lie on both sides of a limit, hold what is counted or removed, and hold 0,
negative numbers, the empty text and the empty list wherever the function has a value there.

Nothing here runs a program: what a test expects is computed by the family's own function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count as numbers_from
from typing import Any

from archer.data.problems import Row
from archer.randomness import uniforms

Value = int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Functions that differ in a constant.

    Example, x + 1 to x + 30:
        Family(about="numbers", name="add_{k}", text="x plus {k}", values=range(1, 31),
               function=lambda x, k: x + k, inputs=_numbers)
    """

    about: str
    """What the functions take: "numbers", "texts" or "lists" (of numbers)."""
    name: str
    text: str
    """What the function returns, in words."""
    values: Sequence[Value]
    """The constants that stand for `{k}`."""
    function: Callable[[Any, Any], Any]
    """Called with x and the constant."""
    inputs: Callable[[str, Any], list[Any]]
    """Called with the name of the problem and the constant; the values of x that are tested."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One function to write.

    Example, with one of its tests:
        Task(about="numbers", question="Write a Python function add_3(x) that returns x plus 3. …",
             answer={"kind": "call", "name": "add_3", "tests": [{"input": [0], "output": 3}]})
    """

    about: str
    question: str
    answer: Row


def function_tasks(seed: int, about: object) -> Iterator[Task]:
    """Tasks without end, every function equally likely; `about` lists some of `ABOUT`."""
    given = list(about) if isinstance(about, list | tuple) else []
    chosen = [name for name in ABOUT if name in given]
    if not chosen or len(chosen) != len(given):
        raise ValueError(
            f"functions: about is {about!r}; list some of {', '.join(ABOUT)}, each once"
        )
    all_of_them = [
        (family, value) for family in FAMILIES if family.about in chosen for value in family.values
    ]
    for block in numbers_from():
        for pick in uniforms(256, "functions", *chosen, seed, block):
            yield make_task(*all_of_them[int(pick * len(all_of_them))])


def make_task(family: Family, value: Value) -> Task:
    """The task of a family with one constant."""
    name, text = family.name.format(k=value), family.text.format(k=value)
    tests = [
        {"input": [x], "output": family.function(x, value)} for x in family.inputs(name, value)
    ]
    return Task(
        about=family.about,
        question=QUESTION.format(name=name, text=text),
        answer={"kind": "call", "name": name, "tests": tests},
    )


QUESTION = (
    "Write a Python function {name}(x) that returns {text}. "
    "Answer with a short python code block only."
)

# What is tested


def _numbers(name: str, k: int) -> list[Any]:
    near = [k - 1, k, k + 1, -k, 2 * k, 3 * k, k // 2, k // 3, k // 5]
    drawn = [int(u * 400) - 200 for u in uniforms(3, "functions", name)]
    return _different([0, 1, -1, 2, -2, 7, 10, 60, *near, *drawn])


def _texts(name: str, k: Value) -> list[Any]:
    letter = k if isinstance(k, str) else "e"
    drawn = [LETTERS[int(u * 26)] for u in uniforms(24, "functions", name)]
    words = ["".join(drawn[:10]) + letter, letter + "".join(drawn[10:]) + letter.upper()]
    fixed = ["", "a", "Hello World", "banana", "Python 3", "abcdefghijklmnopqrstuvwxyz"]
    around = [letter, letter.upper(), letter * 3, f"-{letter}-", f"{letter}-", f"-{letter}"]
    return _different([*fixed, *around, *words])


def _lists(name: str, k: Value) -> list[Any]:
    others = [number for number in range(31) if number != k]
    return _different([[], [5], others, *_long_lists(name, k)])


def _long_lists(name: str, k: Value) -> list[Any]:
    """Lists of eight or more, which have a largest item, a first one and a seventh."""
    number = k if isinstance(k, int) else 0
    drawn = [int(u * 60) - 30 for u in uniforms(24, "functions", name)]
    return [
        [number, *drawn[:7], number],
        [*drawn[7:14], number, *drawn[14:16]],
        [3 - number, *drawn[16:]],
        [-8, -3, -9, -4, -6, -5, -7, -2, -2],
        [100, 2, 3, 50, 4, 6, 8, 9, 11],
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    ]


def _different(values: list[Any]) -> list[Any]:
    return [value for place, value in enumerate(values) if value not in values[:place]]


LETTERS = "abcdefghijklmnopqrstuvwxyz"

# The families: name, what is returned, constants, and the function itself

Rows = list[tuple[str, str, Sequence[Value], Callable[[Any, Any], Any]]]

ALONE = (0,)
"""The constants of a family of one."""

NUMBERS: Rows = [
    ("add_{k}", "x plus {k}", range(1, 41), lambda x, k: x + k),
    ("subtract_{k}", "x minus {k}", range(1, 41), lambda x, k: x - k),
    ("times_{k}", "x times {k}", range(2, 41), lambda x, k: x * k),
    ("subtract_from_{k}", "{k} minus x", range(1, 41), lambda x, k: k - x),
    ("power_{k}", "x to the power of {k}", range(2, 7), lambda x, k: x**k),
    ("square_plus_{k}", "x squared plus {k}", range(1, 21), lambda x, k: x * x + k),
    ("double_plus_{k}", "2 times x plus {k}", range(1, 21), lambda x, k: 2 * x + k),
    ("max_with_{k}", "the larger of x and {k}", range(1, 31), max),
    ("min_with_{k}", "the smaller of x and {k}", range(1, 31), min),
    ("distance_from_{k}", "the distance of x from {k}", range(1, 31), lambda x, k: abs(x - k)),
    ("remainder_{k}", "the remainder of x divided by {k}", range(2, 21), lambda x, k: x % k),
    (
        "is_multiple_of_{k}",
        "True if x is a multiple of {k}, else False",
        range(3, 21),
        lambda x, k: x % k == 0,
    ),
    ("is_over_{k}", "True if x is more than {k}, else False", range(1, 31), lambda x, k: x > k),
    ("is_under_{k}", "True if x is less than {k}, else False", range(1, 31), lambda x, k: x < k),
    ("is_even", "True if x is even, else False", ALONE, lambda x, _: x % 2 == 0),
    ("is_odd", "True if x is odd, else False", ALONE, lambda x, _: x % 2 == 1),
    ("is_negative", "True if x is less than 0, else False", ALONE, lambda x, _: x < 0),
    ("absolute", "the absolute value of x", ALONE, lambda x, _: abs(x)),
    ("negate", "minus x", ALONE, lambda x, _: -x),
]

TEXTS: Rows = [
    ("count_{k}", 'how often "{k}" is in the text x', LETTERS, lambda x, k: x.count(k)),
    (
        "starts_with_{k}",
        'True if the text x starts with "{k}", else False',
        LETTERS,
        lambda x, k: x.startswith(k),
    ),
    (
        "ends_with_{k}",
        'True if the text x ends with "{k}", else False',
        LETTERS,
        lambda x, k: x.endswith(k),
    ),
    ("has_{k}", 'True if "{k}" is in the text x, else False', LETTERS, lambda x, k: k in x),
    ("remove_{k}", 'the text x without any "{k}"', LETTERS, lambda x, k: x.replace(k, "")),
    ("append_{k}", 'the text x with "{k}" at its end', LETTERS, lambda x, k: x + k),
    ("prepend_{k}", 'the text x with "{k}" at its start', LETTERS, lambda x, k: k + x),
    ("repeat_{k}", "the text x repeated {k} times", range(2, 10), lambda x, k: x * k),
    ("first_{k}_letters", "the first {k} letters of the text x", range(2, 8), lambda x, k: x[:k]),
    ("last_{k}_letters", "the last {k} letters of the text x", range(2, 8), lambda x, k: x[-k:]),
    ("text_length", "the length of the text x", ALONE, lambda x, _: len(x)),
    ("reverse", "the text x reversed", ALONE, lambda x, _: x[::-1]),
    ("upper", "the text x in upper case", ALONE, lambda x, _: x.upper()),
    ("lower", "the text x in lower case", ALONE, lambda x, _: x.lower()),
]

LISTS: Rows = [
    (
        "list_sum_plus_{k}",
        "{k} more than the sum of the list x",
        range(1, 21),
        lambda x, k: sum(x) + k,
    ),
    ("contains_{k}", "True if {k} is in the list x, else False", range(31), lambda x, k: k in x),
    ("count_{k}", "how often {k} is in the list x", range(31), lambda x, k: x.count(k)),
    ("append_{k}", "the list x with {k} at its end", range(31), lambda x, k: [*x, k]),
    ("first_{k}_items", "the first {k} items of the list x", range(2, 8), lambda x, k: x[:k]),
    ("last_{k}_items", "the last {k} items of the list x", range(2, 8), lambda x, k: x[-k:]),
    ("sum_list", "the sum of the list x", ALONE, lambda x, _: sum(x)),
    ("list_length", "the length of the list x", ALONE, lambda x, _: len(x)),
    ("sort_list", "the list x sorted", ALONE, lambda x, _: sorted(x)),
    ("reverse_list", "the list x reversed", ALONE, lambda x, _: x[::-1]),
]

LISTS_WITH_ITEMS: Rows = [
    ("item_{k}", "the item at index {k} of the list x", range(1, 7), lambda x, k: x[k]),
    ("first_item", "the first item of the list x", ALONE, lambda x, _: x[0]),
    ("last_item", "the last item of the list x", ALONE, lambda x, _: x[-1]),
    ("largest", "the largest item of the list x", ALONE, lambda x, _: max(x)),
    ("smallest", "the smallest item of the list x", ALONE, lambda x, _: min(x)),
]

FAMILIES = [
    Family(about=about, name=name, text=text, values=values, function=function, inputs=inputs)
    for about, inputs, rows in (
        ("numbers", _numbers, NUMBERS),
        ("texts", _texts, TEXTS),
        ("lists", _lists, LISTS),
        ("lists", _long_lists, LISTS_WITH_ITEMS),
    )
    for name, text, values, function in rows
]

ABOUT = ("numbers", "texts", "lists")
