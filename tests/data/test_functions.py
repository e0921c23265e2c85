import re
from collections.abc import Iterator
from typing import Any

import pytest

from archer.data.functions import ABOUT, FAMILIES, Family, Task, Value, make_task
from archer.data.problems import to_problem, to_row
from archer.data.sources import load_source

ALL = [(family, value, make_task(family, value)) for family in FAMILIES for value in family.values]


def cases(task: Task) -> list[tuple[Any, Any]]:
    return [(*test["input"], test["output"]) for test in task.answer["tests"]]


def passes(function: Any, task: Task) -> bool:
    def right(x: Any, output: Any) -> bool:
        try:
            found = function(x)
        except (IndexError, ValueError):
            return False
        return type(found) is type(output) and found == output

    return all(right(x, output) for x, output in cases(task))


def others(family: Family, task: Task) -> Iterator[tuple[str, Family, Value]]:
    for other, value, its in ALL:
        if other.about == family.about and its is not task:
            yield its.answer["name"], other, value


def test_every_function_has_a_name_and_a_question_of_its_own() -> None:
    assert len(ALL) > 700
    assert len({task.answer["name"] for _, _, task in ALL}) == len(ALL)
    assert len({task.question for _, _, task in ALL}) == len(ALL)
    for _, _, task in ALL:
        assert re.fullmatch(r"[a-z][a-z_0-9]*", task.answer["name"])
        assert f" {task.answer['name']}(x) that returns " in task.question


def test_no_other_function_passes_the_tests_of_one() -> None:
    passed = [
        (task.answer["name"], name)
        for family, _, task in ALL
        for name, other, value in others(family, task)
        if passes(lambda x, other=other, value=value: other.function(x, value), task)
    ]
    assert passed == []


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x,
        lambda x: None,
        lambda x: 0,
        lambda x: True,
        lambda x: False,
        lambda x: "",
        lambda x: [],
        lambda x: -x if isinstance(x, int) else x * 2,
        lambda x: x * x if isinstance(x, int) else len(x),
    ],
)
def test_no_lazy_function_passes(wrong: Any) -> None:
    passed = {task.answer["name"] for _, _, task in ALL if passes(wrong, task)}
    assert passed <= {"negate", "power_2", "repeat_2", "text_length", "list_length"}


def test_tests_hold_zero_negative_numbers_and_what_is_empty() -> None:
    for family, _, task in ALL:
        inputs = [x for x, _ in cases(task)]
        assert 6 <= len(inputs) <= 20
        if family.about == "numbers":
            assert 0 in inputs and min(inputs) < 0
        if family.about == "texts":
            assert "" in inputs
        if family.about == "lists":
            assert any(min(x, default=0) < 0 for x in inputs)


def test_the_same_function_has_the_same_problem_whatever_it_is_drawn_with() -> None:
    one = {p.id: p for p in load_source("functions", count=300, seed=0)}
    other = {
        p.id: p for p in load_source("functions", count=200, seed=1, args={"about": ["texts"]})
    }
    shared = one.keys() & other.keys()
    assert shared
    assert all(one[id] == other[id] for id in shared)
    assert list(one) != [p.id for p in load_source("functions", count=300, seed=2)]


def test_problems_are_valid_and_all_can_be_had() -> None:
    problems = load_source("functions", count=len(ALL))
    for problem in problems:
        to_problem(to_row(problem), where="row", verifiers=("code",))
    assert {p.source for p in problems} == {f"functions:{about}" for about in ABOUT}


def test_known_functions_stay_as_they_are() -> None:
    (problem,) = load_source("functions", count=1, seed=5)
    assert (problem.id, problem.answer["name"]) == (
        "functions-f4b1ed8b44bf924a",
        "is_over_22",
    )


@pytest.mark.parametrize("about", [[], ["sets"], "texts", ["texts", "texts"]])
def test_what_functions_are_about_is_checked(about: object) -> None:
    with pytest.raises(ValueError, match=r"functions: about is .*; list some of numbers, texts,"):
        load_source("functions", count=1, args={"about": about})
