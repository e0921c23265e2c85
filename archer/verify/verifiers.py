r"""Which verifiers there are, and `verify`: from a problem and a response to a verdict.

A verifier is a function of a problem and of what was read from a response. To add one, write the
function and a line in `VERIFIERS`; one of your own needs no line, its name is "module:function":

    def parity(problem: Problem, reading: Reading) -> bool:
        return reading.answer is not None and int(reading.answer) % 2 == problem.answer

It returns a Verdict, or just its score: True or 1 is correct, everything below is wrong. What it
raises ends as the outcome `error`, which no statistic counts. Each call runs in a process of its
own (archer.verify.worker), so it can keep nothing between calls, and nothing that it does can
change another verdict.

Importing this module loads no computer algebra and no data set library: `prepare` does.
"""

from __future__ import annotations

import importlib
import re
import time
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from math import isfinite

from archer.own import own_function
from archer.types import OUTCOMES, Problem, Verdict
from archer.verify.code import code
from archer.verify.extract import Reading, outside_thought, read_response
from archer.verify.math import accepted_answers, judge_math, math
from archer.verify.policy import Policy

Verifier = Callable[[Problem, Reading], Verdict | float]

DEFAULT = Policy()
MAX_DETAIL = 500
"""Characters of a verdict's detail that are kept."""
QUICK_TEXT = 20_000
"""Responses longer than this outside their thought are not read in the process that trains."""


def exact(problem: Problem, reading: Reading) -> Verdict:
    """The same text as one of the accepted ones; blanks are counted as one, `é` is `é`.

    Without an answer that the answer pattern found, the whole text outside the thought is compared.
    `problem.answer` is a text or a list of texts; `"ignore_case": true` in `problem.meta` does so.
    """
    answer = reading.answer or reading.text.strip()
    if not answer:
        return Verdict(outcome="no_answer", score=0.0)
    fold = str.casefold if problem.meta.get("ignore_case") else str
    accepted = {fold(_plain(text)) for text in accepted_answers(problem.answer)}
    correct = fold(_plain(answer)) in accepted
    return Verdict(outcome="correct" if correct else "wrong", score=float(correct))


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def reasoning_gym(problem: Problem, reading: Reading) -> Verdict | float:
    """The score of the reasoning-gym task that made the problem; it may lie between 0 and 1.

    `problem.answer` is {"task": its name, "entry": the entry that it made}. Without an answer that
    the answer pattern found, what stands between the last <answer> tags is scored, or else the
    whole text outside the thought.
    """
    from reasoning_gym.factory import get_score_answer_fn
    from reasoning_gym.utils import extract_answer

    answer = reading.answer or extract_answer(reading.text) or reading.text.strip()
    if not answer:
        return Verdict(outcome="no_answer", score=0.0)
    task = problem.answer["task"]
    if task in RUN_ANSWERS and not RUN_ANSWERS[task](answer):
        return Verdict(outcome="wrong", score=0.0, detail="not a plain value of the task's kind")
    score, entry = get_score_answer_fn(task), problem.answer["entry"]
    try:
        return float(score(answer=answer, entry=entry))
    except Exception as fault:  # noqa: BLE001 - some scorers raise on an answer they can't read
        score(answer=entry["answer"], entry=entry)  # raises where the entry is at fault
        return Verdict(outcome="wrong", score=0.0, detail=f"{type(fault).__name__}: {fault}")


# Without parentheses nothing is called. Where they are needed, only these names may stand before
# them, and a dot, by which everything else could be reached, only within numbers.
_LITERAL = re.compile(r"[\w\s,'\"\[\]|#*-]*", re.ASCII)
_FORMULA = re.compile(r"[A-Za-z0-9\s()+*/^,.-]*")
_FORMULA_NAME = re.compile(r"[A-Za-z]{2,}")
_FORMULA_NAMES = frozenset(
    "sin cos tan cot sec csc asin acos atan sinh cosh tanh exp log ln sqrt pi Abs".split()
)
_DOT_BEFORE_NAME = re.compile(r"\.\s*[A-Za-z]")


def _is_literal(answer: str) -> bool:
    return _LITERAL.fullmatch(answer) is not None


def _is_formula(answer: str) -> bool:
    return (
        _FORMULA.fullmatch(answer) is not None
        and _DOT_BEFORE_NAME.search(answer) is None
        and _FORMULA_NAMES.issuperset(_FORMULA_NAME.findall(answer))
    )


RUN_ANSWERS: dict[str, Callable[[str], bool]] = {
    "binary_matrix": _is_literal,
    "n_queens": _is_literal,
    "spiral_matrix": _is_literal,
    "string_insertion": _is_literal,
    "countdown": _is_formula,
    "intermediate_integration": _is_formula,
    "polynomial_multiplication": _is_formula,
    "puzzle24": _is_formula,
    "simple_integration": _is_formula,
}
"""Tasks of reasoning-gym whose scorers run the answer as Python (`eval`, sympy's `parse_expr`), and
what an answer must look like before it is handed to them."""

VERIFIERS: dict[str, Callable[..., Verdict | float]] = {
    "math": math,
    "code": code,
    "exact": exact,
    "reasoning_gym": reasoning_gym,
}


POLICED = frozenset({"code"})
"""Verifiers that are handed the policy too."""


def find_verifier(name: str) -> Callable[..., Verdict | float]:
    """The verifier of this name, or the function that "module:function" names."""
    if name in VERIFIERS:
        return VERIFIERS[name]
    if ":" not in name:
        known = ", ".join(sorted(VERIFIERS))
        raise ValueError(f"unknown verifier {name!r}: use one of {known} or module:function")
    verifier: Verifier = own_function(name)
    return verifier


def prepare(name: str) -> None:
    """Loads what a verifier imports when it is used, so that no verdict has to wait for it."""
    find_verifier(name)
    if name == "math":
        from archer.verify.symbolic import warm_up

        warm_up()
    elif name == "reasoning_gym":
        importlib.import_module("reasoning_gym")


def verify(problem: Problem, response: str, in_thought: bool, policy: Policy = DEFAULT) -> Verdict:
    """The verdict on one response. Raises nothing but what ends the process.

    in_thought: whether the rendered prompt had already opened a `<think>`. What the verifier raises
    becomes the outcome `error`, an exhausted memory or stack `limit`.
    """
    begin = time.perf_counter()
    try:
        verdict = _judge(problem, response, in_thought, policy)
    except (MemoryError, RecursionError) as fault:
        verdict = Verdict(outcome="limit", score=0.0, detail=type(fault).__name__)
    except Exception as fault:  # noqa: BLE001 - the boundary: a grader's failure is no zero
        verdict = Verdict(outcome="error", score=0.0, detail=f"{type(fault).__name__}: {fault}")
    detail = verdict.detail[:MAX_DETAIL]
    return replace(verdict, detail=detail, seconds=time.perf_counter() - begin)


def _judge(problem: Problem, response: str, in_thought: bool, policy: Policy) -> Verdict:
    reading = read_response(response, in_thought, policy.answer_pattern)
    if reading is None:
        return UNCLOSED
    verifier = find_verifier(problem.verifier)
    policed = (policy,) if problem.verifier in POLICED else ()
    verdict = verifier(problem, reading, *policed)
    if not isinstance(verdict, Verdict):
        return _scored(verdict)
    if verdict.outcome not in OUTCOMES or not isfinite(verdict.score):
        raise ValueError(f"a verifier returned {verdict}: its outcome must be one of {OUTCOMES}")
    return verdict


UNCLOSED = Verdict(outcome="no_answer", score=0.0, detail="the thought was never closed")


def _scored(score: object) -> Verdict:
    if not isinstance(score, bool | int | float) or not 0 <= score <= 1:
        raise ValueError(f"a verifier returned {score!r}: return a Verdict or a score from 0 to 1")
    return Verdict(outcome="correct" if score == 1 else "wrong", score=float(score))


def quick_verdict(
    problem: Problem, response: str, in_thought: bool, policy: Policy = DEFAULT
) -> Verdict | None:
    """The verdict where it takes well under a millisecond, whatever the response; None elsewhere.

    The same as that of `verify`. Runs no regex and no function of a user, and no computer algebra.
    """
    begin = time.perf_counter()
    if problem.verifier not in ("math", "exact") or policy.answer_pattern not in ("box", "number"):
        return None
    text = outside_thought(response, in_thought)
    if text is None:
        return replace(UNCLOSED, seconds=time.perf_counter() - begin)
    if len(text) > QUICK_TEXT:
        return None
    try:
        reading = read_response(text, False, policy.answer_pattern)
        assert reading is not None, "the text is what stands outside a thought"
        if problem.verifier == "math":
            verdict = judge_math(problem, reading, symbols=False)
        else:
            verdict = exact(problem, reading)
    except Exception:  # noqa: BLE001 - whatever it is, `verify` will say it in a worker
        return None
    return verdict and replace(verdict, seconds=time.perf_counter() - begin)
