"""JSON that must satisfy a schema."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from archer.types import Problem, Verdict
from archer.verify.policy import Policy
from archer.verify.pool import WorkerPool
from archer.verify.verifiers import verify

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


def problem(schema: Any, **value: Any) -> Problem:
    answer = {"schema": schema, **value}
    return Problem(id="p", prompt="?", verifier="json_schema", answer=answer)


def judged(response: str, schema: Any = PERSON, **value: Any) -> Verdict:
    return verify(problem(schema, **value), response, False)


@pytest.mark.parametrize(
    "response",
    [
        '{"name": "Ada"}',
        '```json\n{"name": "Ada", "age": 36}\n```',
        'So:\n```\n{"name": "Ada"}\n```\nThere.',
        '```json\n{"name": "Ada"}\n```\n```\n[]\n```\n```text\n[]\n```',
        r"\boxed{ {"
        '"name": "Ada"'
        r"} }",
        '<think>[]</think>{"name": "Ada"}',
    ],
)
def test_json_that_satisfies_the_schema_is_correct(response: str) -> None:
    assert judged(response).outcome == "correct"


@pytest.mark.parametrize(
    ("response", "detail"),
    [
        ('{"age": 3}', "$: 'name' is a required property"),
        ('{"name": "Ada", "age": -1}', "$.age: -1 is less than the minimum of 0"),
        ('{"name": "Ada", "sex": 1}', "$: Additional properties are not allowed"),
        ("[]", "$: [] is not of type 'object'"),
        ("{'name': 'Ada'}", "not JSON: Expecting property name"),
        ('{"name": "Ada"} and more', "not JSON: Extra data"),
        ('{"name": "Ada", "name": "Eve"}', "not JSON: a key stands twice"),
        ('{"name": NaN}', "not JSON: NaN is no JSON number"),
        ("1e999", "not JSON: 1e999 is beyond a float"),
        ("9" * 301, "not JSON: a number of 301 digits"),
        ("[" * 101 + "]" * 101, "not JSON: more than 100 levels"),
        ("[" * 100_000, "not JSON: "),
        (" " * 10 + "1" * 200_001, "not JSON: 200001 characters"),
    ],
)
def test_anything_else_is_wrong_and_the_reason_given(response: str, detail: str) -> None:
    verdict = judged(response)
    assert (verdict.outcome, verdict.score) == ("wrong", 0.0)
    assert verdict.detail.startswith(detail)


def test_an_empty_response_is_no_answer() -> None:
    assert judged("<think>{}</think>\n").outcome == "no_answer"


@pytest.mark.parametrize(
    ("value", "response", "outcome"),
    [
        ({"a": 1, "b": [True, None]}, '{"b": [true, null], "a": 1.0}', "correct"),
        ({"a": 1}, '{"a": true}', "wrong"),
        ([1, 2], "[2, 1]", "wrong"),
        ([1], "[1, 1]", "wrong"),
        (None, "null", "correct"),
        (None, "false", "wrong"),
        (0, "false", "wrong"),
        ("1", "1", "wrong"),
    ],
)
def test_a_value_must_be_equal_as_json_has_it(value: object, response: str, outcome: str) -> None:
    assert judged(response, {}, value=value).outcome == outcome


@pytest.mark.parametrize(
    ("schema", "value", "reason"),
    [
        ({"type": "text"}, {}, "'text' is not valid under any of the given schemas"),
        ({"pattern": "("}, {}, "'(' is not a 'regex'"),
        ({"$ref": "#/$defs/none"}, {}, "PointerToNowhere"),
        ({"type": "array"}, {"value": 1}, "does not satisfy its own schema"),
    ],
)
def test_a_schema_or_value_at_fault_is_an_error(
    schema: Any, value: dict[str, Any], reason: str
) -> None:
    verdict = judged('"a"', schema, **value)
    assert verdict.outcome == "error"
    assert reason in verdict.detail


def test_a_schema_that_stands_elsewhere_is_never_fetched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"
        verdict = judged("{}", {"$ref": address})
        assert verdict.outcome == "error"
        assert address in verdict.detail
        with pytest.raises(BlockingIOError):
            server.accept()


def test_references_within_a_schema_and_to_the_drafts_are_followed() -> None:
    schema = {"$defs": {"n": {"type": "integer"}}, "items": {"$ref": "#/$defs/n"}}
    assert judged("[1, 2]", schema).outcome == "correct"
    assert judged('[1, "2"]', schema).outcome == "wrong"
    draft = {"$ref": "https://json-schema.org/draft/2020-12/schema"}
    assert judged('{"type": "array"}', draft).outcome == "correct"
    assert judged('{"type": 5}', draft).outcome == "wrong"


def test_the_draft_that_a_schema_names_is_used() -> None:
    schema = {"$schema": "http://json-schema.org/draft-04/schema#", "exclusiveMinimum": True}
    assert judged("1", {**schema, "minimum": 1}).outcome == "wrong"
    assert judged("1", {"exclusiveMinimum": True, "minimum": 1}).outcome == "error"


def test_a_catastrophic_pattern_ends_by_its_cpu_time() -> None:
    asked = problem({"type": "string", "pattern": "^(a+)+$"})
    with WorkerPool(workers=1, policy=Policy(cpu_seconds=0.5), wall_factor=100.0) as pool:
        slow = pool.submit(asked, json.dumps("a" * 40 + "!"), False)
        quick = pool.submit(asked, json.dumps("aaa"), False)
        assert slow.result(60).outcome == "limit"
        assert quick.result(60).outcome == "correct"


@pytest.mark.parametrize(
    "schema",
    [{"multipleOf": 0.1}, {"multipleOf": 1e-300}, {"uniqueItems": True}, {"minimum": 1e300}],
)
@pytest.mark.parametrize("response", ["9" * 300, "1e308", "-0.0", "[1e308, 1]", "[[1], [true]]"])
def test_no_number_of_a_response_makes_it_an_error(schema: Any, response: str) -> None:
    assert judged(response, schema).outcome in ("correct", "wrong")
