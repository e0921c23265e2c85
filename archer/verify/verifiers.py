r"""Which verifiers there are, and `verify`: from a problem and a response to a verdict.

A verifier is a function of a problem and of what was read from a response. To add one, write the
function and a line in `VERIFIERS`; one of your own needs no line, its name is "module:function":

    def parity(problem: Problem, reading: Reading) -> bool:
        answer = reading.answer or ""
        return answer.isdecimal() and int(answer[-1]) % 2 == problem.answer

It returns a Verdict, or just its score: True or 1 is correct, everything below is wrong. What it
raises ends as the outcome `error`, which no statistic counts. Each call runs in a process of its
own (archer.verify.worker), so it can keep nothing between calls, and nothing that it does can
change another verdict. docs/verifiers.md has a row for each.

Importing this module loads no computer algebra and no other large library: `prepare` does.
"""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from functools import partial
from math import fsum, isfinite
from typing import Any

from archer.own import own_function
from archer.verdict import OUTCOMES, Outcome, Problem, Verdict
from archer.verify.choice import choice, stated_choice
from archer.verify.code import code
from archer.verify.extract import Reading, last_program, outside_thought, read_response
from archer.verify.formats import language, language_identifier, thought_format
from archer.verify.json_schema import check_schema, json_schema
from archer.verify.math import judge_math, math
from archer.verify.policy import Policy
from archer.verify.texts import exact, judged_text, normalised

Verifier = Callable[[Problem, Reading], Verdict | float]

DEFAULT = Policy()
MAX_DETAIL = 500
"""Characters of a verdict's detail that are kept."""
QUICK_TEXT = 20_000
"""Responses longer than this outside their thought are not read in the process that trains."""
QUICK_WORDS = 1000
"""Nor are longer texts compared there: putting accents in order takes time quadratic in them."""
QUICK_CHOICE = 4000
"""Nor longer ones searched for a choice."""


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


SEVERITY: tuple[Outcome, ...] = ("error", "limit", "crashed", "wrong", "no_answer", "correct")


def composite(problem: Problem, reading: Reading, policy: Policy) -> Verdict:
    """Several verifiers' verdicts in one: a weighted mean, and gates.

    `problem.answer` is {"parts": [{"verifier": ..., "answer": ..., "weight": 0.9}, ...]}. Each part
    is judged as a problem of its own, with the same meta. The score is the mean of the parts'
    scores, weighted by their "weight" (1, or 0 for a gate); it is 0 where a part with
    `"gate": true` is not correct. The outcome is that of the part that is worst off, in the order
    of SEVERITY: `correct` only where all parts are, `error` as soon as one is.
    """
    parts = problem.answer["parts"]
    verdicts = [_part_verdict(problem, part, reading, policy) for part in parts]
    outcome = min((verdict.outcome for verdict in verdicts), key=SEVERITY.index)
    detail = "; ".join(
        f"{part['verifier']}: {verdict.outcome}{verdict.detail and f' ({verdict.detail})'}"
        for part, verdict in zip(parts, verdicts, strict=True)
        if verdict.outcome != "correct"
    )
    weights = [part.get("weight", 0 if part.get("gate") else 1) for part in parts]
    score = fsum(
        weight * verdict.score for weight, verdict in zip(weights, verdicts, strict=True)
    ) / fsum(weights)
    closed = any(
        part.get("gate") and verdict.outcome != "correct"
        for part, verdict in zip(parts, verdicts, strict=True)
    )
    score = 0.0 if closed or outcome == "error" else score
    return Verdict(outcome=outcome, score=score, detail=detail)


def _part_verdict(
    problem: Problem, part: dict[str, Any], reading: Reading, policy: Policy
) -> Verdict:
    if part["verifier"] in ("composite", "code"):
        raise ValueError(
            f"{part['verifier']} can't be part of a composite: give it a row of its own"
        )
    asked = replace(problem, verifier=part["verifier"], answer=part["answer"])
    return _caught(partial(_judge_reading, asked, reading, policy))


VERIFIERS: dict[str, Callable[..., Verdict | float]] = {
    "math": math,
    "code": code,
    "exact": exact,
    "normalised": normalised,
    "choice": choice,
    "json_schema": json_schema,
    "thought_format": thought_format,
    "language": language,
    "reasoning_gym": reasoning_gym,
    "composite": composite,
}


POLICED = frozenset({"math", "code", "composite"})
"""Verifiers that are handed the policy too."""


def _handed(problem: Problem, reading: Reading, policy: Policy) -> tuple[object, ...]:
    return (problem, reading, policy) if problem.verifier in POLICED else (problem, reading)


def verifiers_of(verifier: str, answer: Any) -> frozenset[str]:
    """Every verifier that a problem's verdict asks: its own, and those of its parts."""
    if verifier != "composite":
        return frozenset({verifier})
    return frozenset({verifier, *(part["verifier"] for part in answer["parts"])})


def find_verifier(name: str) -> Callable[..., Verdict | float]:
    """The verifier of this name, or the function that "module:function" names."""
    if name in VERIFIERS:
        return VERIFIERS[name]
    if ":" not in name:
        known = ", ".join(sorted(VERIFIERS))
        raise ValueError(f"unknown verifier {name!r}: use one of {known} or module:function")
    verifier: Verifier = own_function(name)
    return verifier


def check_verifiers(problems: Iterable[Problem]) -> None:
    """ValueError for a problem that no response can be judged for: an own verifier that is not
    there, a schema that is none. Found before anything is sampled."""
    names: set[str] = set()
    for problem in problems:
        for verifier, answer in _parts(problem):
            if verifier == "json_schema":
                try:
                    check_schema(answer["schema"])
                except ValueError as error:
                    raise ValueError(f"problem {problem.id!r}: {error}") from None
            elif verifier not in names:
                names.add(verifier)
                try:
                    find_verifier(verifier)
                except ValueError as error:
                    raise ValueError(f"problem {problem.id!r}: {error}") from None


def _parts(problem: Problem) -> list[tuple[str, Any]]:
    if problem.verifier != "composite":
        return [(problem.verifier, problem.answer)]
    return [(part["verifier"], part["answer"]) for part in problem.answer["parts"]]


def prepare(name: str) -> None:
    """Loads what a verifier imports when it is used, so that no verdict has to wait for it."""
    find_verifier(name)
    if name == "math":
        from archer.verify.symbolic import warm_up

        warm_up()
    elif name == "json_schema":
        importlib.import_module("jsonschema.validators")
    elif name == "language":
        language_identifier()
    elif name == "reasoning_gym":
        importlib.import_module("reasoning_gym")


def verify(problem: Problem, response: str, in_thought: bool, policy: Policy = DEFAULT) -> Verdict:
    """The verdict on one response. Raises nothing but what ends the process.

    in_thought: whether the rendered prompt had already opened a `<think>`. What the verifier raises
    becomes the outcome `error`, an exhausted memory or stack `limit`.
    """
    begin = time.perf_counter()
    verdict = _caught(partial(_judge, problem, response, in_thought, policy))
    detail = verdict.detail[:MAX_DETAIL]
    return replace(verdict, detail=detail, seconds=time.perf_counter() - begin)


def _caught(judge: Callable[[], Verdict]) -> Verdict:
    """The boundary: what a verifier raises is a verdict too, and never a zero."""
    try:
        return judge()
    except (MemoryError, RecursionError) as fault:
        return Verdict(outcome="limit", score=0.0, detail=type(fault).__name__)
    except Exception as fault:  # noqa: BLE001 - whatever it is, it is the grader's failure
        return Verdict(outcome="error", score=0.0, detail=f"{type(fault).__name__}: {fault}")


def _judge(problem: Problem, response: str, in_thought: bool, policy: Policy) -> Verdict:
    reading = read_response(response, in_thought, policy.answer_pattern)
    return UNCLOSED if reading is None else _judge_reading(problem, reading, policy)


def _judge_reading(problem: Problem, reading: Reading, policy: Policy) -> Verdict:
    verdict = find_verifier(problem.verifier)(*_handed(problem, reading, policy))
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


# --- in the process that trains ---


def quick_verdict(
    problem: Problem, response: str, in_thought: bool, policy: Policy = DEFAULT
) -> Verdict | None:
    """The verdict where it takes well under a millisecond, whatever the response; None elsewhere.

    The same as that of `verify`. Runs no regex and no function of a user, and no computer algebra.
    """
    begin = time.perf_counter()
    if problem.verifier not in QUICK or policy.answer_pattern not in ("box", "number"):
        return None
    text = outside_thought(response, in_thought)
    if text is None:
        return replace(UNCLOSED, seconds=time.perf_counter() - begin)
    if len(text) > QUICK_TEXT:
        return None
    try:
        reading = read_response(text, False, policy.answer_pattern)
        assert reading is not None, "the text is what stands outside a thought"
        verdict = QUICK[problem.verifier](*_handed(problem, reading, policy))
    except Exception:  # noqa: BLE001 - whatever it is, `verify` will say it in a worker
        return None
    return verdict and replace(verdict, seconds=time.perf_counter() - begin)


def _quick_math(problem: Problem, reading: Reading, policy: Policy) -> Verdict | None:
    return judge_math(problem, reading, symbols=False, liberties=policy.liberties)


def _quick_text(verifier: Verifier, problem: Problem, reading: Reading) -> Any:
    return verifier(problem, reading) if len(judged_text(reading)) <= QUICK_WORDS else None


def _quick_choice(problem: Problem, reading: Reading) -> Verdict | None:
    return choice(problem, reading) if len(reading.text) <= QUICK_CHOICE else None


QUICK: dict[str, Callable[..., Verdict | None]] = {
    "math": _quick_math,
    "exact": partial(_quick_text, exact),
    "normalised": partial(_quick_text, normalised),
    "choice": _quick_choice,
}
"""Of the verifiers that may be quick; None where they are not."""


def judged_part(
    problem: Problem, response: str, in_thought: bool, policy: Policy = DEFAULT
) -> Hashable:
    """What decides the verdict on a response: where two have it in common, so the verdict.

    As quick as `quick_verdict`, and as careful: for all it can't say safely it is the whole
    response.
    """
    text = outside_thought(response, in_thought)
    if text is None:
        return ("unclosed",)
    whole = ("response", response, in_thought)
    if problem.verifier not in READ_PARTS or policy.answer_pattern not in ("box", "number"):
        return whole
    if len(text) > QUICK_TEXT:
        return whole
    try:
        reading = read_response(text, False, policy.answer_pattern)
        assert reading is not None, "the text is what stands outside a thought"
        return ("read", READ_PARTS[problem.verifier](problem, reading))
    except Exception:  # noqa: BLE001 - whatever it is, `verify` will say it in a worker
        return whole


def _read_choice(problem: Problem, reading: Reading) -> Hashable:
    if len(reading.text) > QUICK_CHOICE:
        return reading.answer, reading.text
    return stated_choice(problem, reading)


READ_PARTS: dict[str, Callable[[Problem, Reading], Hashable]] = {
    "math": lambda problem, reading: reading.answer,
    "code": lambda problem, reading: last_program(reading.text),
    "exact": lambda problem, reading: judged_text(reading),
    "normalised": lambda problem, reading: judged_text(reading),
    "choice": _read_choice,
}
"""What some verifiers read of a response. A user's own may read all of it."""
