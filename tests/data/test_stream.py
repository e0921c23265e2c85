from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archer.data.stream import ProblemStream
from archer.types import Problem


def problems(n: int) -> list[Problem]:
    return [Problem(id=str(i), prompt=f"{i}?", verifier="math", answer=str(i)) for i in range(n)]


def ids(stream: ProblemStream, position: int, n: int) -> list[str]:
    return [problem.id for problem in stream.take(position, n)]


def test_a_known_order_stays_as_it_is() -> None:
    assert "".join(ids(ProblemStream(problems(8), seed=0), 0, 16)) == "0165423775613402"


@given(st.integers(1, 9), st.integers(0, 30), st.lists(st.integers(0, 12), max_size=5))
def test_it_goes_on_from_its_position_alone(size: int, start: int, steps: list[int]) -> None:
    whole = ids(ProblemStream(problems(size), seed=3), start, sum(steps))
    parts = []
    for step in steps:
        parts += ids(ProblemStream(problems(size), seed=3), start, step)
        start += step
    assert parts == whole


def test_each_epoch_holds_each_problem_once_in_an_order_of_its_own() -> None:
    stream = ProblemStream(problems(20), seed=1)
    epochs = [ids(stream, epoch * 20, 20) for epoch in range(4)]
    assert all(Counter(epoch) == Counter(str(i) for i in range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_seed_decides_the_order() -> None:
    assert ids(ProblemStream(problems(20), seed=1), 0, 20) != ids(
        ProblemStream(problems(20), seed=2), 0, 20
    )


def test_no_problems_are_refused() -> None:
    with pytest.raises(ValueError, match="the training set has no problems; give a source"):
        ProblemStream([], seed=0)
