"""Which problems are left out for what they are: a filter says why, or nothing.

    tests = at_least_tests(5)
    tests(problem)              # Dropped(reason="fewer than 5 tests"), or None

Filters by N-grams stand in `archer.prepare.grams`; whether an answer is accepted by its own
verifier is found out in `archer.prepare.references`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from archer.data.sources import Dropped
from archer.types import Problem

Filter = Callable[[Problem], Dropped | None]
"""Why a problem is left out; None where it stays."""


def at_least_tests(number: int) -> Filter:
    """Leaves out problems of code with fewer tests; of assert statements nobody can tell.

    ValueError for a number below 1.
    """
    if number < 1:
        raise ValueError(f"at least {number} tests; make it at least 1")

    def too_few(problem: Problem) -> Dropped | None:
        is_counted = problem.verifier == "code" and "tests" in problem.answer
        return dropped if is_counted and len(problem.answer["tests"]) < number else None

    dropped = Dropped(reason=f"fewer than {number} tests")
    return too_few


def at_most_tokens(number: int, model: str) -> Filter:
    """Leaves out problems whose prompt, in the chat template of a model, has more tokens.

    ValueError for a number below 1 and a model that is not there.
    """
    if number < 1:
        raise ValueError(f"at most {number} tokens; make it at least 1")
    from archer.model.load import load_tokenizer
    from archer.model.prompts import Renderer

    renderer = Renderer(load_tokenizer(model))
    dropped = Dropped(reason=f"a prompt of more than {number} tokens of {model}")

    def too_long(problem: Problem) -> Dropped | None:
        return dropped if len(renderer.render(problem.prompt).token_ids) > number else None

    return too_long


def solved_sometimes(rates: Mapping[str, float]) -> Filter:
    """Leaves out problems that a model always solves or never, by its mean scores."""

    def outside(problem: Problem) -> Dropped | None:
        rate = rates.get(problem.id)
        if rate is None:
            return Dropped(reason="no pass rate")
        if 0 < rate < 1:
            return None
        return Dropped(reason="always solved" if rate >= 1 else "never solved")

    return outside


KNOWN_BAD: dict[str, tuple[str, ...]] = {
    "several answers are right": (
        "abc311_c",
        "abc326_d",
        "abc327_b",
        "abc333_e",
        "abc343_a",
        "abc343_e",
        "abc362_c",
        "arc185_c",
        "find-words-containing-character",
        "find-the-peaks",
        "generate-binary-strings-without-adjacent-zeros",
    ),
    "it wants a judge that answers": ("abc337_e", "abc355_e"),
    "its tests are wrong": (
        "abc350_c",
        "apply-operations-to-make-string-empty",
        "arc189_a",
        "most-frequent-ids",
    ),
}
"""Problems of LiveCodeBench that right programs fail: its ERRATA.md. AtCoder's by their ids; those
of LeetCode, which have numbers for ids, by their titles."""


def not_known_bad() -> Filter:
    """Leaves out the problems of LiveCodeBench that are in KNOWN_BAD.

    ValueError for one of LeetCode's that was prepared without its title.
    """
    whys = {name: why for why, names in KNOWN_BAD.items() for name in names}

    def is_bad(problem: Problem) -> Dropped | None:
        if problem.source != "livecodebench":
            return None
        name = problem.id
        if problem.meta.get("platform") == "leetcode":
            if "question_title" not in problem.meta:
                raise ValueError(
                    f'the problem {problem.id!r} has no "question_title" in its "meta", by which '
                    "LeetCode's are known; prepare it from the data set again"
                )
            title = str(problem.meta["question_title"]).lower()
            name = re.sub(r"[^a-z0-9]+", "-", title).strip("-")
        why = whys.get(name)
        return Dropped(reason="known to be bad", detail=why) if why else None

    return is_bad
