"""From a problem and a response to a verdict: the verifiers, and what their failures become."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from archer.data.problems import to_problem
from archer.data.sources import load_source
from archer.types import Problem, Verdict
from archer.verify.extract import Reading
from archer.verify.policy import Policy
from archer.verify.texts import exact
from archer.verify.verifiers import (
    RUN_ANSWERS,
    VERIFIERS,
    find_verifier,
    judged_part,
    prepare,
    quick_verdict,
    verify,
)
from tests.needs import needs_sandbox
from tests.verify.own_graders import graders_can_be_imported  # noqa: F401 - a fixture


def problem(verifier: str, answer: Any, **meta: Any) -> Problem:
    return Problem(id="p", prompt="?", verifier=verifier, answer=answer, meta=meta)


def judged(verifier: str, answer: Any, response: str = r"\boxed{5}", **meta: Any) -> Verdict:
    return verify(problem(verifier, answer, **meta), response, False)


# --- exact ---


@pytest.mark.parametrize(
    ("answer", "response", "outcome"),
    [
        ("Paris", r"It is \boxed{Paris}.", "correct"),
        ("Paris", "Paris", "correct"),  # without a box the whole text counts
        ("Paris", "  Paris\n", "correct"),
        ("Paris", "It is Paris.", "wrong"),
        ("Paris", r"\boxed{paris}", "wrong"),
        ("New York", "New \n York", "correct"),
        (["Paris", "City of Light"], r"\boxed{City of Light}", "correct"),
        ("caf\u00e9", "cafe\u0301", "correct"),
        ("5", r"\boxed{5.0}", "wrong"),
        ("Paris", "", "no_answer"),
        ("Paris", "<think>Paris</think>", "no_answer"),
        ("Paris", "<think>Paris", "no_answer"),
    ],
)
def test_exact_compares_texts(answer: Any, response: str, outcome: str) -> None:
    assert judged("exact", answer, response).outcome == outcome


def test_exact_can_ignore_case() -> None:
    assert judged("exact", "Paris", r"\boxed{PARIS}", ignore_case=True).outcome == "correct"
    assert judged("exact", "Paris", r"\boxed{ROME}", ignore_case=True).outcome == "wrong"


# --- reasoning-gym ---


def test_reasoning_gym_scores_an_answer_as_its_task_does() -> None:
    reasoning_gym = pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    entry = reasoning_gym.create_dataset("word_sorting", size=1, seed=3)[0]
    answer = {"task": "word_sorting", "entry": entry}
    for response in (
        rf"\boxed{{{entry['answer']}}}",
        f"<answer>{entry['answer']}</answer>",
        entry["answer"],
    ):
        verdict = judged("reasoning_gym", answer, response)
        assert (verdict.outcome, verdict.score) == ("correct", 1.0)
    words = entry["answer"].split(", ")
    verdict = judged("reasoning_gym", answer, ", ".join(reversed(words)))
    assert verdict.outcome == "wrong"
    assert verdict.score < 1
    assert judged("reasoning_gym", answer, "<think>" + entry["answer"]).outcome == "no_answer"


def test_reasoning_gym_gives_parts_of_a_point_without_calling_them_correct() -> None:
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    entry = {"question": "?", "answer": "42", "metadata": {"source_dataset": "chain_sum"}}
    verdict = judged("reasoning_gym", {"task": "gcd", "entry": entry}, "it is 42, I think")
    assert verdict.outcome == "wrong"
    assert 0 < verdict.score < 1


def test_an_answer_that_a_task_cannot_read_is_wrong_and_a_broken_entry_an_error() -> None:
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    entry = {"question": "?", "answer": "2 \u00d7 3", "metadata": {}}
    answer = {"task": "prime_factorization", "entry": entry}
    assert judged("reasoning_gym", answer, "2 \u00d7 3").outcome == "correct"
    assert judged("reasoning_gym", answer, "two and three").outcome == "wrong"
    entry["answer"] = "two and three"
    assert judged("reasoning_gym", answer, "five").outcome == "error"


def test_an_unknown_task_is_an_error() -> None:
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    assert judged("reasoning_gym", {"task": "nonsense", "entry": {}}).outcome == "error"


def test_every_task_that_runs_answers_as_python_is_guarded() -> None:
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    from reasoning_gym.factory import DATASETS

    runs = {
        task
        for task, (dataset, _) in DATASETS.items()
        if dataset.score_answer.__qualname__.split(".")[0] == dataset.__name__
        and any(
            call in inspect.getsource(dataset.score_answer)
            for call in ("eval(answer", "parse_expr(answer", "exec(")
        )
    }
    assert runs == set(RUN_ANSWERS)


@pytest.mark.parametrize("task", sorted(RUN_ANSWERS))
@pytest.mark.parametrize(
    "attack",
    [
        "__import__('os').system('true')",
        "open('/tmp/x', 'w')",
        "[].__class__",
        "().__class__.__base__.__subclasses__()",
        "exec('1')",
        "lambda: 0",
        "x.func(1)",
        "f'{1}'",
        "eval(1)",
        "S. func(1)",
    ],
)
def test_no_answer_that_could_call_anything_is_handed_to_such_a_task(
    task: str, attack: str
) -> None:
    looks_harmless = RUN_ANSWERS[task](attack)
    assert not looks_harmless or ("(" not in attack and "." not in attack)


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("countdown", "(25 + 3) * 4 - 7/2"),
        ("polynomial_multiplication", "6*x**2 - 2.5*x + 1"),
        ("simple_integration", "x**3/3 + sin(2*x) + C"),
        ("binary_matrix", "0 1 2\n1 0 1"),
        ("spiral_matrix", "[1, 2, 3]"),
        ("string_insertion", "['A', 'B']"),
        ("n_queens", "_ Q _ _\n_ _ _ Q"),
    ],
)
def test_honest_answers_are_handed_to_such_a_task(task: str, answer: str) -> None:
    assert RUN_ANSWERS[task](answer)


# --- a user's own ---


def test_a_users_function_is_found_by_its_name() -> None:
    assert judged("graders:length", 1, r"\boxed{5}").outcome == "correct"
    assert judged("graders:length", 2, r"\boxed{5}").outcome == "wrong"


def test_a_users_score_below_one_is_wrong_and_kept() -> None:
    verdict = judged("graders:half", None)
    assert (verdict.outcome, verdict.score) == ("wrong", 0.5)


def test_a_users_verdict_is_taken_as_it_is() -> None:
    verdict = judged("graders:details", None, color="red")
    assert (verdict.outcome, verdict.score, verdict.detail) == ("crashed", 0.25, "{'color': 'red'}")


@pytest.mark.parametrize(
    ("verifier", "reason"),
    [
        ("graders:raises", "KeyError: 'no such column'"),
        ("graders:returns_text", "returned 'yes'"),
        ("graders:returns_nan", "returned nan"),
        ("graders:missing", "has no attribute 'missing'"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        (
            "maths",
            "unknown verifier 'maths': use one of choice, code, composite, exact, json_schema,",
        ),
    ],
)
def test_a_verifier_that_fails_ends_as_an_error(verifier: str, reason: str) -> None:
    verdict = judged(verifier, "5")
    assert (verdict.outcome, verdict.score) == ("error", 0.0)
    assert reason in verdict.detail


def test_a_stack_that_runs_out_is_a_limit() -> None:
    assert judged("graders:recurses", None).outcome == "limit"


def test_mistake_28_an_exception_ends_no_other_verdict() -> None:
    outcomes = [
        judged("graders:raises_on_seven", "5", rf"\boxed{{{number}}}").outcome
        for number in (4, 5, 7, 5)
    ]
    assert outcomes == ["wrong", "correct", "error", "correct"]


def test_mistake_31_an_unknown_kind_of_problem_is_an_error_that_names_the_known_ones() -> None:
    verdict = judged("minerva", "5")
    assert verdict.outcome == "error"
    assert all(name in verdict.detail for name in VERIFIERS)


@needs_sandbox
def test_mistake_32_every_kind_that_is_accepted_is_judged() -> None:
    responses: dict[str, list[tuple[Any, str]]] = {
        "math": [("5", r"\boxed{5}")],
        "code": [
            (
                {"kind": "call", "name": "f", "tests": [{"input": [2], "output": 3}]},
                "```python\ndef f(x):\n    return x + 1\n```",
            )
        ],
        "exact": [("five", "five")],
        "normalised": [("Five", "the five.")],
        "choice": [("B", "The answer is (B).")],
        "json_schema": [({"schema": {"type": "array"}}, "[1, 2]")],
        "thought_format": [(None, "<think>2 + 3</think>5")],
        "language": [({"language": "en"}, "This is the answer that was asked for.")],
        "composite": [({"parts": [{"verifier": "exact", "answer": "5"}]}, "5")],
        "reasoning_gym": [(p.answer, p.answer["entry"]["answer"]) for p in _countdowns()],
    }
    assert responses.keys() == VERIFIERS.keys()
    for kind, rows in responses.items():
        for answer, response in rows:
            row = {"id": "p", "prompt": "?", "verifier": kind, "answer": answer}
            accepted = to_problem(row, where="line 1", verifiers=VERIFIERS)
            assert verify(accepted, response, False).outcome == "correct", kind


def _countdowns() -> list[Problem]:
    pytest.importorskip("reasoning_gym", reason="needs archer-rl[tasks]")
    return load_source("reasoning_gym:countdown", count=2)


# --- in the process that trains ---


@pytest.mark.parametrize(
    "unjudged",
    [
        problem("graders:length", 1),
        problem("reasoning_gym", {"task": "gcd", "entry": {}}),
        problem("language", {"language": "de"}),
        problem("composite", {"parts": [{"verifier": "math", "answer": "5"}]}),
        problem("math", r"\sqrt{2}"),
        problem("math", None),
    ],
)
def test_the_quick_path_leaves_all_that_could_be_slow(unjudged: Problem) -> None:
    assert quick_verdict(unjudged, r"\boxed{\sqrt{3}}", False) is None
    assert quick_verdict(unjudged, r"\boxed{5}", False, Policy(answer_pattern="(.*)")) is None


# --- what decides a verdict ---

LONG = "word " * 5000

SAME_PART = [
    ("math", "5", r"a \boxed{5}", r"<think>b</think> c \boxed{5} d"),
    ("math", "5", "nothing", "nothing else"),
    ("math", "5", "<think>a", "<think>b"),
    ("exact", "5", r"a \boxed{5}", "5"),
    ("exact", "5", "five ", "<think></think>five"),
    ("normalised", "5", r"a \boxed{5}", "5"),
    ("choice", "C", r"a \boxed{C}", "The answer is (C), Paris."),
    ("choice", "C", "A cat", "I don't know"),
    ("graders:length", 1, "<think>a", "<think>b"),
]


@pytest.mark.parametrize(("verifier", "answer", "one", "other"), SAME_PART)
def test_responses_with_the_same_judged_part_have_the_same_verdict(
    verifier: str, answer: Any, one: str, other: str
) -> None:
    asked = problem(verifier, answer)
    assert judged_part(asked, one, False) == judged_part(asked, other, False)
    first, second = (verify(asked, response, False) for response in (one, other))
    assert replace(first, seconds=0) == replace(second, seconds=0)


@pytest.mark.parametrize(
    ("verifier", "answer", "one", "other"),
    [
        ("math", "5", r"\boxed{5}", r"\boxed{6}"),
        ("math", "5", r"\boxed{5}", r"\boxed{5.0}"),
        ("math", "5", "none", "<think>none"),  # no answer both, but not for the same reason
        ("math", "5", LONG + r"\boxed{5}", r"\boxed{5}"),
        ("exact", "5", "5", "5."),
        ("choice", "C", "The answer is C", "The answer is B"),
        ("choice", "C", LONG + "a (C)", LONG + "b (C)"),
        ("graders:length", 1, r"a \boxed{5}", r"b \boxed{5}"),
        ("reasoning_gym", None, r"a \boxed{5}", r"b \boxed{5}"),
        ("composite", {"parts": []}, r"a \boxed{5}", r"b \boxed{5}"),
        ("thought_format", None, r"a \boxed{5}", r"b \boxed{5}"),
    ],
)
def test_responses_that_may_be_judged_differently_have_different_parts(
    verifier: str, answer: Any, one: str, other: str
) -> None:
    asked = problem(verifier, answer)
    assert judged_part(asked, one, False) != judged_part(asked, other, False)


def test_no_regex_of_a_user_is_run_to_find_the_judged_part() -> None:
    policy = Policy(answer_pattern="(a+)+$")
    response = "a" * 60 + "!"
    assert judged_part(problem("math", "5"), response, True, policy) == ("unclosed",)
    assert response in str(judged_part(problem("math", "5"), response, False, policy))


def test_a_problem_at_fault_has_the_whole_response_as_its_judged_part() -> None:
    asked = problem("choice", "C", choices="ABCD")
    assert judged_part(asked, "a C", False) == ("response", "a C", False)


def test_exact_is_a_plain_function_of_problem_and_reading() -> None:
    assert find_verifier("exact") is exact
    verdict = exact(problem("exact", "a"), Reading(text="a", answer=None))
    assert verdict.outcome == "correct"
    prepare("exact")


def test_importing_the_verifiers_loads_no_heavy_library() -> None:
    heavy = "torch transformers sympy math_verify mpmath reasoning_gym jsonschema py3langid".split()
    code = (
        "import sys, archer.verify.pool, archer.verify.verifiers, archer.verify.worker;"
        f"print(*[name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []
