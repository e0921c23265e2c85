"""Which problems are left out for what they are: a filter says why, or nothing.

    tests = at_least_tests(5)
    tests(problem)              # "fewer than 5 tests", or None

Filters by N-grams stand in `archer.data.grams`; whether an answer is accepted by its own verifier
is found out in `archer.prepare.references`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from archer.types import Problem

Filter = Callable[[Problem], str | None]
"""The reason why a problem is left out, the same words for all; None where it stays."""


def at_least_tests(number: int) -> Filter:
    """Leaves out problems of code with fewer tests; of assert statements nobody can tell."""

    def too_few(problem: Problem) -> str | None:
        is_counted = problem.verifier == "code" and "tests" in problem.answer
        return reason if is_counted and len(problem.answer["tests"]) < number else None

    reason = f"fewer than {number} tests"
    return too_few


def at_most_tokens(number: int, model: str) -> Filter:
    """Leaves out problems whose prompt, in the chat template of a model, has more tokens."""
    from archer.model.load import load_tokenizer
    from archer.model.prompts import Renderer

    renderer = Renderer(load_tokenizer(model))
    reason = f"a prompt of more than {number} tokens of {model}"

    def too_long(problem: Problem) -> str | None:
        return reason if len(renderer.render(problem.prompt).token_ids) > number else None

    return too_long


def solved_sometimes(rates: Mapping[str, float]) -> Filter:
    """Leaves out problems that a model always solves or never, by its mean scores."""

    def outside(problem: Problem) -> str | None:
        rate = rates.get(problem.id)
        if rate is None:
            return "no pass rate"
        return "never solved" if rate <= 0 else "always solved" if rate >= 1 else None

    return outside
