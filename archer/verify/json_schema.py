"""JSON that must satisfy a schema, and may have to equal a value.

`problem.answer` is {"schema": {...}} or {"schema": {...}, "value": ...}. The JSON of a response is
its last complete fenced block tagged json, or else the last untagged one, or else what the answer
pattern found, or else the whole text outside the thought. JSON here is what RFC 8259 calls so: NaN
and Infinity are none, and neither are objects with the same key twice, of which two readers may
read two things. What is very deep, very long or beyond a float is not read.

The schema may be of any draft that its "$schema" names, 2020-12 if it names none; "format" is not
asserted, as that draft has it. Nothing is fetched: a "$ref" outside the schema that is none of the
drafts' own is the problem's fault, an `error`. Its patterns are run as Python's, in a worker, where
a catastrophic one ends by the clock.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from archer.verdict import Problem, Verdict
from archer.verify.extract import Reading, last_json

MAX_CHARACTERS = 200_000
MAX_DEPTH = 100
MAX_DIGITS = 300
"""Of a number: what is longer may not fit a float, in which some schemas have to be worked out."""


def json_schema(problem: Problem, reading: Reading) -> Verdict:
    """Correct where the response's JSON satisfies the schema, and equals the value if one is given.

    Raises ValueError or what jsonschema raises where the schema or the value is at fault.
    """
    text = (last_json(reading.text) or reading.answer or reading.text).strip()
    if not text:
        return Verdict(outcome="no_answer", score=0.0)
    try:
        value = _read(text)
    except (ValueError, RecursionError) as fault:
        return _wrong(f"not JSON: {fault}")
    answer = problem.answer
    if "value" in answer and (unfit := _misfit(answer["schema"], answer["value"])):
        raise ValueError(f"the value of the answer does not satisfy its own schema: {unfit}")
    if unfit := _misfit(answer["schema"], value):
        return _wrong(unfit)
    if "value" in answer and not _equal(answer["value"], value):
        return _wrong("another value")
    return Verdict(outcome="correct", score=1.0)


def _wrong(detail: str) -> Verdict:
    return Verdict(outcome="wrong", score=0.0, detail=detail)


def check_schema(schema: dict[str, Any]) -> None:
    """ValueError for what is no schema."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for

    try:
        validator_for(schema, default=Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        fault = " ".join(error.message.split())
        raise ValueError(
            f"its JSON schema is none ({fault}, at {error.json_path}); mend it"
        ) from None


def _misfit(schema: dict[str, Any], value: Any) -> str | None:
    """Where a value does not satisfy a schema, and why."""
    import jsonschema_specifications
    from jsonschema.exceptions import best_match
    from jsonschema.validators import Draft202012Validator, validator_for

    validator = validator_for(schema, default=Draft202012Validator)
    validator.check_schema(schema)
    # With a registry of our own, or jsonschema would fetch what it does not know.
    fault = best_match(
        validator(schema, registry=jsonschema_specifications.REGISTRY).iter_errors(value)
    )
    return None if fault is None else f"{fault.json_path}: {fault.message}"


# --- JSON ---


def _read(text: str) -> Any:
    """The value. ValueError or RecursionError for what is no JSON, or too much of it."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{len(text)} characters, more than {MAX_CHARACTERS}")
    value = json.loads(
        text,
        parse_constant=_refuse,
        parse_float=_float,
        parse_int=_int,
        object_pairs_hook=_object,
    )
    if _depth(value) > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} levels")
    return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is beyond a float")
    return number


def _int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key stands twice in an object")
    return fields


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [inner for outer in level for inner in _inside(outer)]
    return depth


def _inside(value: object) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _equal(one: object, other: object) -> bool:
    """As JSON has it: 1 is 1.0, and true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other
