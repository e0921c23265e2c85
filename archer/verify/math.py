r"""Mathematical answers: is what stands in the box equal to one of the accepted answers?

Three steps, each only where the one before has not decided:

1. the same text once both are cleaned (archer.verify.latex): microseconds;
2. the answer taken apart (archer.verify.parts), part against part, numbers exactly;
3. expressions worked out to many digits (archer.verify.symbolic): milliseconds, in a worker.

`judge_math` with `symbols=False` stops before the third step, which may take long, and can so be
called in the process that trains. Nothing is ever rounded, and nothing evaluated as code.

What is a convention, and how it is decided here:

| accepted    | response       | verdict | because                                            |
|-------------|----------------|---------|----------------------------------------------------|
| 1/3         | 0.333          | wrong   | a rounded number is another number                 |
| \frac{1}{2} | \frac{2}{4}    | correct | lowest terms are not asked for                     |
| 50%         | 0.5 or 50      | correct | equal, or the sign left out                        |
| 0.5         | 0.5%           | wrong   | up to 1 the sign makes the difference              |
| 15 cm       | 15             | correct | a unit may be left out, or added                   |
| 15 cm       | 15 m           | wrong   | but not changed                                    |
| 90^\circ    | 90             | correct | so may the sign of degrees or of a currency        |
| 52_8        | 52             | wrong   | a base may not be left out                         |
| {1, 2}      | 2, 1           | correct | lists and sets have no order                       |
| (1, 2)      | (2, 1) or 1, 2 | wrong   | tuples have one, and brackets                      |
| x = 5       | 5              | correct | the name may be left out, or added                 |
| x = 5       | y = 5          | wrong   | but not changed                                    |
| x > 2       | (2, \infty)    | correct | an interval says the same                          |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
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

QUICK_CHARACTERS = 200
"""Answers longer than this are not taken apart in the process that trains."""

Same = bool | None
"""Whether two answers are the same; None where an expression would have to be worked out."""


def math(problem: Problem, reading: Reading) -> Verdict:
    """The verifier. `problem.answer` is an accepted answer or a list of them, texts or numbers."""
    verdict = judge_math(problem, reading, symbols=True)
    assert verdict is not None, "with symbols every answer is decided"
    return verdict


def judge_math(problem: Problem, reading: Reading, *, symbols: bool) -> Verdict | None:
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
        same = _any(same_answer(gold, answer, symbols=symbols) for gold in accepted)
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


def same_answer(gold: str, answer: str, *, symbols: bool = True) -> Same:
    """Whether a response's answer says the same as an accepted one.

    Raises TooLarge for what is too large to be read.
    """
    return clean(gold) == clean(answer) or _same(read_answer(gold), read_answer(answer), symbols)


def _same(gold: Node, answer: Node, symbols: bool) -> Same:
    if isinstance(gold, Quantity) or isinstance(answer, Quantity):
        return _same_quantity(gold, answer, symbols)
    if isinstance(gold, Named | Relation) or isinstance(answer, Named | Relation):
        return _same_relation(gold, answer, symbols)
    if isinstance(gold, Group) or isinstance(answer, Group):
        return _same_group(gold, answer, symbols)
    if isinstance(gold, Number) and isinstance(answer, Number):
        return _same_number(gold, answer)
    if isinstance(gold, Numeral) or isinstance(answer, Numeral):
        return gold == answer
    one, other = _text(gold), _text(answer)
    if isinstance(gold, Words) or isinstance(answer, Words):
        letter = len(one) == 1 or len(other) == 1  # a choice, or a variable
        if not letter or (isinstance(gold, Words) and isinstance(answer, Words)):
            return one == other
    return _same_expression(one, other, symbols)


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


def _same_number(gold: Number, answer: Number) -> bool:
    if gold.percent == answer.percent:
        return gold.value == answer.value
    percent, bare = (gold, answer) if gold.percent else (answer, gold)
    sign_left_out = percent.value == bare.value and abs(bare.value) > 1
    return sign_left_out or percent.value / 100 == bare.value


def _same_quantity(gold: Node, answer: Node, symbols: bool) -> Same:
    gold, gold_unit = _without_unit(gold)
    answer, unit = _without_unit(answer)
    if gold_unit != unit and is_known_unit(gold_unit) and is_known_unit(unit):
        return False
    return _same(gold, answer, symbols)


def _without_unit(node: Node) -> tuple[Node, str]:
    if isinstance(node, Quantity):
        return node.value, node.unit
    return node, "%" if isinstance(node, Number) and node.percent else ""


def _same_expression(gold: str, answer: str, symbols: bool) -> Same:
    if gold == answer:
        return True
    if INFINITY in (gold.lstrip("-"), answer.lstrip("-")):
        return False
    if not symbols:
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
_LETTERS = re.compile(r"\\[A-Za-z]+|[A-Za-z]")
_FLIPPED = {"=": "=", "\\ne": "\\ne", "<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}


def _same_relation(gold: Node, answer: Node, symbols: bool) -> Same:
    if isinstance(gold, Named) and isinstance(answer, Named):
        return _any(_same_named(gold, answer, symbols))
    if isinstance(gold, Named) and not isinstance(answer, Relation):
        return _same(gold.value, answer, symbols)
    if isinstance(answer, Named) and not isinstance(gold, Relation):
        return _same(gold, answer.value, symbols)
    one, other = _relation(gold), _relation(answer)
    if one and other:
        return _same_equation(one, other, symbols)
    if other and set(other.signs) == {"="} and not any(map(_has_variable, other.sides)):
        return _same(gold, read_answer(other.sides[-1]), symbols)  # "2 + 3 = 5" for 5
    return False


def _has_variable(text: str) -> bool:
    return any(len(letter) == 1 for letter in _LETTERS.findall(text))


def _same_named(gold: Named, answer: Named, symbols: bool) -> Iterable[Same]:
    if gold.name == answer.name:
        yield _same(gold.value, answer.value, symbols)
    elif renamed := _with_argument_of(gold, answer):
        yield _same(gold.value, read_answer(renamed), symbols)
    if gold.relation and answer.relation:
        yield _same_equation(gold.relation, answer.relation, symbols)


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


def _same_equation(gold: Relation, answer: Relation, symbols: bool) -> Same:
    if gold.signs != answer.signs and set(answer.signs) <= set(_FLIPPED):
        answer = _flipped(answer)
    if gold.signs != answer.signs:
        return False
    if len(gold.signs) > 1 or gold.signs[0] not in _FLIPPED:
        sides = zip(gold.sides, answer.sides, strict=True)
        return _all(_same(read_answer(one), read_answer(other), symbols) for one, other in sides)
    if not symbols:
        return None
    from archer.verify.symbolic import same_relation

    if gold.signs[0] in (">", "\\ge"):
        gold, answer = _flipped(gold), _flipped(answer)
    (left, right), (answer_left, answer_right) = gold.sides, answer.sides
    return same_relation(gold.signs[0], (left, right), (answer_left, answer_right))


def _flipped(relation: Relation) -> Relation:
    signs = tuple(_FLIPPED[sign] for sign in reversed(relation.signs))
    return Relation(signs=signs, sides=relation.sides[::-1])


# --- several values in one ---


def _same_group(gold: Node, answer: Node, symbols: bool) -> Same:
    one, other = _items(gold), _items(answer)
    kinds = {gold.kind if isinstance(gold, Group) else "set"} | {
        answer.kind if isinstance(answer, Group) else "set"
    }
    if kinds <= {"list", "set"} or kinds == {"union"}:  # {5} is 5
        return _same_unordered(one, other, symbols)
    if len(kinds) > 1 or len(one) != len(other):
        return False
    if kinds == {":"}:
        return _same_ratio(one, other)
    return _all(_same(a, b, symbols) for a, b in zip(one, other, strict=True))


def _items(node: Node) -> tuple[Node, ...]:
    return node.items if isinstance(node, Group) else (node,)


def _same_unordered(gold: Sequence[Node], answer: Sequence[Node], symbols: bool) -> Same:
    if len(gold) != len(answer):
        return False
    if _by_names(gold, answer) or _by_names(answer, gold):
        return _all(_same(a, b, symbols) for a, b in zip(gold, answer, strict=True))
    left = list(answer)
    for item in gold:
        same = [_same(item, other, symbols) for other in left]
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
