r"""Mathematical answers: is what stands in the box equal to one of the accepted answers?

Three steps, each only where the one before has not decided:

1. the same text once both are cleaned (archer.verify.latex): microseconds;
2. the answer taken apart (archer.verify.parts), part against part, numbers exactly;
3. expressions worked out to many digits (archer.verify.symbolic): milliseconds, in a worker.

`judge_math` with `symbols=False` stops before the third step, which may take long, and can so be
called in the process that trains. Nothing is ever rounded, and nothing evaluated as code.

Strict is the default. The liberties of a policy (archer.verify.policy) forgive one kind of
difference each:

| accepted    | response            | strict  | why, and which liberty forgives it            |
|-------------|---------------------|---------|-----------------------------------------------|
| 50%         | 0.5 or 1/2          | wrong   | `percent`: equal numbers                      |
| 50%         | 50                  | wrong   | `units`: the sign left out (of more than 1 %) |
| 15 cm       | 15                  | wrong   | `units`: left out, or added                   |
| 15 cm       | 15 m                | wrong   | none: another unit                            |
| 90^\circ    | 90                  | correct | the sign of degrees may be left out or added  |
| 90^\circ    | 90 rad              | wrong   | none: another unit                            |
| \$25        | 25 or 25 dollars    | correct | and so may that of a currency                 |
| \$25        | 25 cents            | wrong   | none: another unit                            |
| 5 apples    | 5                   | correct | and words that say what was counted           |
| (1, 2)      | \{1, 2\} or 1, 2    | wrong   | `order`: the same elements                    |
| (1, 2)      | (2, 1)              | wrong   | `order`: the same elements                    |
| (1, 2)      | [1, 2]              | wrong   | none: open or closed, these may be intervals  |
| \{1, 2\}    | 2, 1 or \{1, 2, 2\} | correct | lists and sets have no order                  |
| 1/3         | 0.333               | wrong   | none: a rounded number is another number      |
| \frac{1}{2} | \frac{2}{4}         | correct | lowest terms are not asked for                |
| 52_8        | 52                  | wrong   | none: a base may not be left out              |
| x = 5       | 5                   | correct | the name may be left out, or added            |
| x = 5       | y = 5               | wrong   | none: but not changed                         |
| 73          | m + n = 73          | correct | what was asked for, and its value             |
| 7           | x + 2 = 7, 14 = 7   | wrong   | none: still to be solved, and false           |
| (2, -3)     | x = 2, y = -3       | correct | coordinates by their names                    |
| x > 2       | (2, \infty)         | correct | an interval says the same                     |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from archer.verdict import Problem, Verdict
from archer.verify.extract import Reading
from archer.verify.latex import TooLarge, clean
from archer.verify.parts import (
    INFINITY,
    Expression,
    Group,
    Named,
    Node,
    Number,
    Numeral,
    Quantity,
    Relation,
    Words,
    is_known_unit,
    read_answer,
)
from archer.verify.policy import LIBERTIES, Policy

QUICK_CHARACTERS = 200
"""Answers longer than this are not taken apart in the process that trains."""

Same = bool | None
"""Whether two answers are the same; None where an expression would have to be worked out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How two answers are compared. Example: Rules(symbols=False, liberties=("percent",))"""

    symbols: bool
    """Whether expressions may be worked out, which takes milliseconds and a library."""
    liberties: Sequence[str]
    """Differences that are forgiven, see the table above."""


def math(problem: Problem, reading: Reading, policy: Policy) -> Verdict:
    """The verifier. `problem.answer` is an accepted answer or a list of them, texts or numbers."""
    verdict = judge_math(problem, reading, symbols=True, liberties=policy.liberties)
    assert verdict is not None, "with symbols every answer is decided"
    return verdict


def judge_math(
    problem: Problem, reading: Reading, *, symbols: bool, liberties: Sequence[str] = ()
) -> Verdict | None:
    """The verdict; without `symbols` None where an expression would have to be worked out."""
    if reading.answer is None:
        return Verdict(outcome="no_answer", score=0.0)
    answer, accepted = reading.answer, accepted_answers(problem.answer)
    if any(answer == gold.strip() for gold in accepted):
        return Verdict(outcome="correct", score=1.0)
    if not symbols and len(answer) > QUICK_CHARACTERS:
        return None
    for gold in accepted:
        _check_size(gold)
    try:
        same = _any(
            same_answer(gold, answer, symbols=symbols, liberties=liberties) for gold in accepted
        )
    except TooLarge as reason:
        return Verdict(outcome="limit", score=0.0, detail=str(reason))
    if same is None:
        return None
    if same:
        return Verdict(outcome="correct", score=1.0)
    return Verdict(
        outcome="wrong", score=0.0, detail=f"{_short(answer)} is not {_short(accepted[0])}"
    )


def accepted_answers(answer: Any) -> list[str]:
    """The accepted answers of a problem as texts. ValueError where they are none."""
    answers = answer if isinstance(answer, Sequence) and not isinstance(answer, str) else [answer]
    for accepted in answers:
        if isinstance(accepted, bool) or not isinstance(accepted, str | int | float):
            raise ValueError(
                f"{accepted!r} is no mathematical answer: give a text, a number or a list of them"
            )
    texts = [str(accepted) for accepted in answers]
    if not texts or not all(text.strip() for text in texts):
        raise ValueError(f"{answer!r} holds no answer: give a text, a number or a list of them")
    return texts


def _check_size(accepted: str) -> None:
    """A problem whose own answer can't be taken apart is the user's to mend, not the response's."""
    try:
        clean(accepted)
    except TooLarge as reason:
        raise ValueError(
            f"the accepted answer {_short(accepted)} is {reason}: shorten it"
        ) from None


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def same_answer(
    gold: str, answer: str, *, symbols: bool = True, liberties: Sequence[str] = ()
) -> Same:
    """Whether a response's answer says the same as an accepted one.

    Raises TooLarge for what is too large to be read.
    """
    rules = Rules(symbols=symbols, liberties=liberties)
    if _on_paper(clean(gold)) == _on_paper(clean(answer)):
        return True
    return _same(read_answer(gold), read_answer(answer), rules)


_TEXT = re.compile(r"\\text\{ ?([^{}]*?) ?\}")
_UNSEEN = re.compile(r"(?<=[A-Za-z]) | (?=[A-Za-z])|\\text\{\s*\}")


def _on_paper(text: str) -> str:
    r"""What one sees of an answer: `27\text{ m}^{3}` and `27 m^3` look the same."""
    if "\\text" in text:
        text = _TEXT.sub(r"\1", text)
    return _UNSEEN.sub("", text).replace("^{2}", "^2").replace("^{3}", "^3")


def _same(gold: Node, answer: Node, rules: Rules) -> Same:
    if isinstance(gold, Named | Relation) or isinstance(answer, Named | Relation):
        return _same_relation(gold, answer, _in_order(rules, gold, answer))
    if isinstance(gold, Quantity) or isinstance(answer, Quantity):
        return _same_quantity(gold, answer, rules)
    if isinstance(gold, Group) or isinstance(answer, Group):
        return _same_group(gold, answer, rules)
    if isinstance(gold, Number) and isinstance(answer, Number):
        return _same_number(gold, answer, rules)
    if isinstance(gold, Numeral) or isinstance(answer, Numeral):
        return gold == answer
    one, other = _text(gold), _text(answer)
    if isinstance(gold, Words) or isinstance(answer, Words):
        letter = len(one) == 1 or len(other) == 1  # a choice, or a variable
        if not letter or (isinstance(gold, Words) and isinstance(answer, Words)):
            return one == other
    return _same_expression(one, other, rules)


def _any(answers: Iterable[Same]) -> Same:
    undecided = False
    for answer in answers:
        if answer:
            return True
        undecided = undecided or answer is None
    return None if undecided else False


def _all(answers: Iterable[Same]) -> Same:
    undecided = False
    for answer in answers:
        if answer is False:
            return False
        undecided = undecided or answer is None
    return None if undecided else True


# --- single values ---


def _same_number(gold: Number, answer: Number, rules: Rules) -> bool:
    if gold.percent == answer.percent:
        return gold.value == answer.value
    percent, bare = (gold, answer) if gold.percent else (answer, gold)
    if "percent" in rules.liberties and percent.value / 100 == bare.value:
        return True
    # Up to 1 a number is a share, and the sign makes the difference: 0.5 and 0.5%.
    return "units" in rules.liberties and percent.value == bare.value and abs(bare.value) > 1


def _same_quantity(gold: Node, answer: Node, rules: Rules) -> Same:
    gold, gold_unit = _without_unit(gold)
    answer, unit = _without_unit(answer)
    if gold_unit != unit:
        extra = gold_unit or unit
        needed = is_known_unit(extra) and extra not in MAY_BE_LEFT_OUT
        if (gold_unit and unit) or (needed and "units" not in rules.liberties):
            return False
    return _same(gold, answer, rules)


MAY_BE_LEFT_OUT = ("degree", "dollar", "euro", "gbp", "yen", "%")
"""Units that are often nothing but a sign; what a percent sign means `_same_number` decides."""


def _without_unit(node: Node) -> tuple[Node, str]:
    if isinstance(node, Quantity):
        return node.value, node.unit
    return node, "%" if isinstance(node, Number) and node.percent else ""


def _same_expression(gold: str, answer: str, rules: Rules) -> Same:
    if gold == answer:
        return True
    if INFINITY in (gold.lstrip("-"), answer.lstrip("-")):
        return False
    if not rules.symbols:
        return None
    from archer.verify.symbolic import same_expression

    return same_expression(gold, answer)


def _text(node: Node) -> str:
    """A single value as LaTeX."""
    if isinstance(node, Number):
        value = node.value / 100 if node.percent else node.value
        top, bottom = value.numerator, value.denominator
        return str(top) if bottom == 1 else f"\\frac{{{top}}}{{{bottom}}}"
    assert isinstance(node, Words | Expression), node
    return node.text


# --- names, equations and inequalities ---

_FUNCTION = re.compile(r"(?P<name>[A-Za-z]\w*)\((?P<argument>[A-Za-z])\)")
_FIGURE = re.compile(r"\\(?:angle|triangle)")  # whose letters are no product
_LETTERS = re.compile(r"\\[A-Za-z]+|[A-Za-z]")
_GREEK = frozenset(
    r"\alpha \beta \gamma \delta \theta \lambda \mu \phi \varphi \omega \rho \sigma \tau".split()
)
_OF_ANGLES = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc|det)(?![A-Za-z])")
_NUMBER_ALONE = re.compile(r"(?:^|[-+])\d+(?:\.\d+)?(?=$|[-+])")
_FLIPPED = {"=": "=", "\\ne": "\\ne", "<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}


def _same_relation(gold: Node, answer: Node, rules: Rules) -> Same:
    if isinstance(gold, Named) and isinstance(answer, Named):
        same = _any(_same_named(gold, answer, rules))
        return _all((same, *_arithmetic_holds(answer.relation, rules)))
    if isinstance(gold, Named) and not isinstance(answer, Relation):
        return _same(gold.value, answer, rules)
    if isinstance(answer, Named) and not isinstance(gold, Relation):
        return _all((_same(gold, answer.value, rules), *_arithmetic_holds(answer.relation, rules)))
    one, other = _relation(gold), _relation(answer)
    if one and other:
        return _same_equation(one, other, rules)
    if other and set(other.signs) == {"="} and _is_asked_for(other.sides[0], other.sides[-1]):
        value = read_answer(other.sides[-1])
        return _all((_same(gold, value, rules), *_arithmetic_holds(other, rules)))
    return False


def _in_order(rules: Rules, *nodes: Node) -> Rules:
    """For inequalities and what holds intervals: no liberty makes (2, 1) the same as (1, 2)."""
    relations = [relation for node in nodes if (relation := _relation(node))]
    if all(set(relation.signs) == {"="} for relation in relations):
        return rules
    return _keeping_order(rules)


def _keeping_order(rules: Rules) -> Rules:
    return replace(rules, liberties=[name for name in rules.liberties if name != "order"])


def _arithmetic_holds(relation: Relation | None, rules: Rules) -> Iterable[Same]:
    """Whether a chain is true as far as it is arithmetic: "2 + 3 = 5" is, "x = 14 = 7" is not."""
    if relation is None or set(relation.signs) != {"="}:
        return
    last, lenient = relation.sides[-1], replace(rules, liberties=LIBERTIES)
    for side in relation.sides[:-1]:
        if not _variables(side) and not _variables(last):
            yield _same(_without_unit(read_answer(last))[0], read_answer(side), lenient)


def _is_asked_for(left: str, right: str) -> bool:
    """Whether an equation says what something is, and is none that has still to be solved.

    Its left side is arithmetic (2 + 3), made of several variables (m + n) or a function of an angle
    (the cosine of A), and its right side a value.
    """
    names = _variables(left)
    if not names:
        return True
    several = len(names) > 1 and not _NUMBER_ALONE.search(left)
    return (several or _OF_ANGLES.search(left) is not None) and not _variables(right)


def _variables(text: str) -> set[str]:
    return {name for name in _LETTERS.findall(text) if len(name) == 1 or name in _GREEK} - {
        "e",
        "i",
    }


def _same_named(gold: Named, answer: Named, rules: Rules) -> Iterable[Same]:
    if gold.name == answer.name:
        yield _same(gold.value, answer.value, rules)
    elif renamed := _with_argument_of(gold, answer):
        yield _same(gold.value, read_answer(renamed), rules)
    if gold.relation and answer.relation and not _FIGURE.search(gold.name + answer.name):
        yield _same_equation(gold.relation, answer.relation, rules)


def _with_argument_of(gold: Named, answer: Named) -> str | None:
    """The right side of f(n) = n + 1 with the argument that the gold has, f(x) = x + 1."""
    one, other = _FUNCTION.fullmatch(gold.name), _FUNCTION.fullmatch(answer.name)
    if not one or not other or one["name"] != other["name"] or answer.relation is None:
        return None
    right, argument = answer.relation.sides[-1], one["argument"]
    if argument in _LETTERS.findall(right):
        return None
    return _LETTERS.sub(
        lambda letter: argument if letter[0] == other["argument"] else letter[0], right
    )


def _relation(node: Node) -> Relation | None:
    return (
        node.relation if isinstance(node, Named) else node if isinstance(node, Relation) else None
    )


def _same_equation(gold: Relation, answer: Relation, rules: Rules) -> Same:
    if _is_solved(gold) and not _is_solved(answer):
        return False  # "2x = 6" may be the question that "x = 3" answers
    if gold.signs != answer.signs and set(answer.signs) <= set(_FLIPPED):
        answer = _flipped(answer)
    if gold.signs != answer.signs:
        return False
    if len(gold.signs) > 1 or gold.signs[0] not in _FLIPPED:
        sides = zip(gold.sides, answer.sides, strict=True)
        return _all(_same(read_answer(one), read_answer(other), rules) for one, other in sides)
    if not rules.symbols:
        return None
    from archer.verify.symbolic import same_relation

    if gold.signs[0] in (">", "\\ge"):
        gold, answer = _flipped(gold), _flipped(answer)
    (left, right), (answer_left, answer_right) = gold.sides, answer.sides
    return same_relation(gold.signs[0], (left, right), (answer_left, answer_right))


_NAME = re.compile(r"(?:[A-Za-z]|\\[A-Za-z]+)(?:_\{?\w+\}?)?")


def _is_solved(relation: Relation) -> bool:
    """Whether one side is a name alone and the others are free of names: "x > 2", not "y = 2x"."""
    names = [side for side in relation.sides if _NAME.fullmatch(side.strip())]
    others = [side for side in relation.sides if side not in names]
    return len(names) == 1 and not any(map(_variables, others))


def _flipped(relation: Relation) -> Relation:
    signs = tuple(_FLIPPED[sign] for sign in reversed(relation.signs))
    return Relation(signs=signs, sides=relation.sides[::-1])


# --- several values in one ---


def _same_group(gold: Node, answer: Node, rules: Rules) -> Same:
    one, other = _items(gold), _items(answer)
    kinds = {_kind(gold), _kind(answer)}
    if kinds == {"union"}:
        return _same_unordered(one, other, _keeping_order(rules))
    if kinds <= {"list", "set"}:  # {5} is 5
        if isinstance(gold, Group) and isinstance(answer, Group) and kinds == {"set"}:
            return _same_sets(gold, answer, rules)
        return _same_unordered(one, other, rules)
    if kinds == {"list", "()"} and (_coordinates(one) or _coordinates(other)):
        one, other = _coordinates(one) or one, _coordinates(other) or other
        return _all_same(one, other, rules)
    may_be_tuples = kinds <= {"list", "set", "()", "[]"} and not any(
        map(_is_interval, (gold, answer))
    )
    if may_be_tuples and "order" in rules.liberties:
        return _same_unordered(one, other, rules)
    if len(kinds) > 1 or len(one) != len(other):
        return False
    if kinds == {":"}:
        return _same_ratio(one, other)
    return _all_same(one, other, rules)


def _kind(node: Node) -> str:
    return node.kind if isinstance(node, Group) else "set"


def _items(node: Node) -> tuple[Node, ...]:
    return node.items if isinstance(node, Group) else (node,)


def _all_same(gold: Sequence[Node], answer: Sequence[Node], rules: Rules) -> Same:
    if len(gold) != len(answer):
        return False
    return _all(_same(a, b, rules) for a, b in zip(gold, answer, strict=True))


def _is_interval(node: Node) -> bool:
    """Brackets that can't be meant as those of a tuple: closed on a side, or without an end."""
    if not isinstance(node, Group) or len(node.items) != 2:
        return False
    ends = [item.text.lstrip("-") for item in node.items if isinstance(item, Expression)]
    return "[" in node.kind or "]" in node.kind or INFINITY in ends


def _coordinates(items: Sequence[Node]) -> tuple[Node, ...] | None:
    """The values of "y = -3, x = 2" in the order of their names; None where some have none."""
    named = {item.name: item.value for item in items if isinstance(item, Named)}
    if len(named) < len(items) or len(named) < 2:
        return None
    return tuple(named[name] for name in sorted(named, key=lambda name: name.lstrip("\\")))


def _same_sets(gold: Group, answer: Group, rules: Rules) -> Same:
    """Each element of one in the other: {1, 1, 2} is {1, 2}, but the list 1, 1, 2 is not."""
    found = (_any(_same(one, other, rules) for one in gold.items) for other in answer.items)
    named = (_any(_same(one, other, rules) for other in answer.items) for one in gold.items)
    return _all(chain(found, named))


def _same_unordered(gold: Sequence[Node], answer: Sequence[Node], rules: Rules) -> Same:
    if len(gold) != len(answer):
        return False
    if _by_names(gold, answer) or _by_names(answer, gold):
        return _all_same(gold, answer, rules)
    left = list(answer)
    for item in gold:
        same = [_same(item, other, rules) for other in left]
        if True not in same:
            return None if None in same else False
        del left[same.index(True)]
    return True


def _by_names(named: Sequence[Node], bare: Sequence[Node]) -> bool:
    """Whether one side names its values (x = 1, y = 2) and the other has them in that order."""
    names = {node.name for node in named if isinstance(node, Named)}
    return len(names) > 1 and not any(isinstance(node, Named) for node in bare)


def _same_ratio(gold: Sequence[Node], answer: Sequence[Node]) -> bool:
    """6:8 is 3:4."""
    pairs = [
        (one.value, other.value)
        for one, other in zip(gold, answer, strict=True)
        if isinstance(one, Number) and isinstance(other, Number)
    ]
    (first, first_answer), rest = pairs[0], pairs[1:]
    return first != 0 != first_answer and all(
        one * first_answer == other * first for one, other in rest
    )
