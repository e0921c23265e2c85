import json
import math
import os
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archer.data.problems import (
    ANSWER_SHAPES,
    problems_hash,
    prompt_key,
    read_problems,
    to_line,
    write_problems,
)
from archer.files import written_whole
from archer.types import Problem

SUM: dict[str, Any] = {"id": "sum-1", "prompt": "2+3?", "verifier": "math", "answer": "5"}
CALL: dict[str, Any] = {"kind": "call", "name": "f", "tests": [{"input": [2], "output": 4}]}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
texts = st.text(min_size=1).filter(str.strip)
prompts = texts | st.lists(
    st.fixed_dictionaries({"role": texts, "content": st.text()}), min_size=1, max_size=3
).map(tuple)
# Rows and not problems: the type checks of the test run draw at random when a problem is made.
fields: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    id=st.text(min_size=1),
    prompt=prompts,
    verifier=st.just("my.module:verify"),
    answer=json_values,
    source=st.text(),
    meta=st.dictionaries(st.text(), json_values, max_size=2),
)


def write(path: Path, *rows: object) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def complaint(path: Path, *rows: object) -> str:
    """What reading these rows is refused with, without the folder."""
    write(path, *rows)
    with pytest.raises(ValueError, match=re.escape(path.name)) as caught:
        list(read_problems(path, verifiers=ANSWER_SHAPES))
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{path.parent}{os.sep}", "")


def test_a_row_becomes_a_problem(tmp_path: Path) -> None:
    row = SUM | {"source": "sums", "meta": {"level": 1}}
    assert list(read_problems(write(tmp_path / "p.jsonl", row))) == [
        Problem(
            id="sum-1",
            prompt="2+3?",
            verifier="math",
            answer="5",
            source="sums",
            meta={"level": 1},
        )
    ]


def test_a_chat_and_a_list_of_answers_are_read(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": ""}, {"role": "user", "content": "2+3?"}]
    row = SUM | {"prompt": chat, "answer": ["5", "five"]}
    (problem,) = read_problems(write(tmp_path / "p.jsonl", row))
    assert problem.prompt == tuple(chat)
    assert problem.answer == ["5", "five"]


@given(st.lists(fields, min_size=1, max_size=4, unique_by=lambda row: row["id"]))
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    made = [Problem(**row) for row in rows]
    path = tmp_path_factory.mktemp("round") / "p.jsonl"
    assert write_problems(path, made) == len(made)
    assert list(read_problems(path, verifiers=())) == made
    assert problems_hash(read_problems(path)) == problems_hash(made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, '"prompt" is empty; write the question into it'),
        ({"prompt": 5}, '"prompt" is 5; make it a text or a list of chat messages'),
        ({"prompt": []}, '"prompt" is []; make it a text or a list of chat messages'),
        (
            {"prompt": [{"role": "user"}]},
            '"prompt[0]" is {"role": "user"}; make it an object with just "role" and "content", '
            "both texts",
        ),
        ({"id": 7}, '"id" is 7; make it a text'),
        ({"id": ""}, '"id" is empty; give it a text'),
        ({"meta": []}, '"meta" is []; make it an object'),
        ({"source": None}, '"source" is null; make it a text'),
        ({"anwser": "5"}, 'unknown key "anwser"; did you mean "answer"? known: '),
        ({"verifier": "maths"}, 'unknown verifier "maths"; did you mean "math"? known: choice, '),
        ({"answer": 5}, '"answer" holds the number 5; write it as a text, "5"'),
        ({"answer": ["5", 0.5]}, '"answer" holds the number 0.5; write it as a text, "0.5"'),
        ({"answer": None}, '"answer" is null; make it a text or a list of texts'),
        ({"answer": True}, '"answer" is true; make it a text or a list of texts'),
        ({"answer": []}, '"answer" is an empty list; give at least one accepted text'),
        ({"answer": " "}, '"answer" holds an empty text; give the right answer'),
        (
            {"verifier": "reasoning_gym", "answer": {"task": "gcd"}},
            '"answer" is {"task": "gcd"}; make it an object with "task"',
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_cure(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    assert complaint(tmp_path / "p.jsonl", SUM | change).startswith(f"p.jsonl:1: {message}")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("5", '"answer" is "5"; make it an object with a "kind" of stdin, call, assert'),
        ({"kind": "run"}, '"answer.kind" is "run"; make it one of stdin, call, assert'),
        ({"kind": "stdin"}, '"answer.tests" is missing; kind "stdin" needs it'),
        ({"kind": "stdin", "tests": []}, '"answer.tests" is []; make it a list of at least'),
        (
            {"kind": "stdin", "tests": [{"input": "1", "output": 2}]},
            '"answer.tests[0]" is {"input": "1", "output": 2}; make it two texts',
        ),
        (
            {"kind": "stdin", "tests": [{"input": "1"}]},
            '"answer.tests[0]" is {"input": "1"}; make it an object with just "input"',
        ),
        (
            {"kind": "call", "name": "f", "tests": [{"input": 1, "output": 2}]},
            '"answer.tests[0]" is {"input": 1, "output": 2}; make it an "input" that is the list',
        ),
        (
            {"kind": "call", "name": "", "tests": [{"input": [1], "output": 2}]},
            '"answer.name" is ""; make it a text',
        ),
        (
            {"kind": "assert", "code": "assert 1", "test": []},
            'unknown key "answer.test"; known: kind, code, time_limit_s, memory_limit_mb',
        ),
        (
            {"kind": "assert", "code": "assert 1", "time_limit_s": 0},
            '"answer.time_limit_s" is 0; make it a number above 0',
        ),
        (
            CALL | {"time_limit_s": 1e9},
            '"answer.time_limit_s" is 1000000000.0; make it a number up to 3,600',
        ),
        (
            CALL | {"memory_limit_mb": 10**13},
            '"answer.memory_limit_mb" is 10000000000000; make it a number up to 1,048,576',
        ),
        (
            CALL | {"tolerance": 10**300 * 2},
            f'"answer.tolerance" is 2{"0" * 56}...; make it a number up to 1e+300',
        ),
        (
            CALL | {"name": "my f"},
            '"answer.name" is "my f"; make it the name of a function, "f", or of a method, "Solut',
        ),
        (CALL | {"name": " f"}, '"answer.name" is " f"; make it the name of a function'),
        (CALL | {"name": "f()"}, '"answer.name" is "f()"; make it the name of a function'),
        (CALL | {"tolerance": 0}, '"answer.tolerance" is 0; make it a number above 0'),
        (CALL | {"tolerance": True}, '"answer.tolerance" is true; make it a number above 0'),
        (CALL | {"tolerance": "1e-6"}, '"answer.tolerance" is "1e-6"; make it a number above 0'),
        (
            CALL | {"checker": " "},
            '"answer.checker" is " "; make it the source of a function check(input, output, exp',
        ),
        (CALL | {"checker": None}, '"answer.checker" is null; make it the source of a function'),
        (
            CALL | {"checker": "def check(): ...", "tolerance": 0.1},
            '"answer" has a "checker" and the "tolerance" 0.1, but a checker compares alone;',
        ),
        (
            {"kind": "assert", "code": "assert 1", "tolerance": 0.1},
            'unknown key "answer.tolerance"; known: kind, code, time_limit_s, memory_limit_mb',
        ),
    ],
)
def test_a_wrong_code_answer_is_named_with_its_cure(
    tmp_path: Path, answer: object, message: str
) -> None:
    row = SUM | {"verifier": "code", "answer": answer}
    assert complaint(tmp_path / "p.jsonl", row).startswith(f"p.jsonl:1: {message}")


@pytest.mark.parametrize(
    "answer",
    [
        {"kind": "stdin", "tests": [{"input": "1\n", "output": "2\n"}], "time_limit_s": 6},
        {"kind": "call", "name": "Solution.f", "tests": [{"input": [2], "output": None}]},
        {"kind": "assert", "code": "assert f(2) == 4\n", "memory_limit_mb": 512.5},
        {"kind": "call", "name": "Solution().f", "tests": [{"input": [2], "output": None}]},
        CALL | {"time_limit_s": 3600, "memory_limit_mb": 1 << 20},
        CALL | {"tolerance": 1e-6},
        CALL | {"checker": "def check(input, output, expected): return True"},
        {"kind": "stdin", "tests": [{"input": "1\n", "output": "2\n"}], "tolerance": 1},
    ],
)
def test_right_code_answers_are_read_as_they_are(tmp_path: Path, answer: object) -> None:
    row = SUM | {"verifier": "code", "answer": answer}
    (problem,) = read_problems(write(tmp_path / "p.jsonl", row))
    assert problem.answer == answer


EXACT = {"verifier": "exact", "answer": "5"}


@pytest.mark.parametrize(
    ("verifier", "answer", "message"),
    [
        ("normalised", 5, '"answer" holds the number 5; write it as a text, "5"'),
        ("choice", "c", '"answer" is "c"; make it a letter from A to Z, "C", or a list of'),
        ("choice", "Paris", '"answer" is "Paris"; make it a letter'),
        ("choice", 2, '"answer" is 2; make it a letter'),
        ("choice", [], '"answer" is []; make it a letter'),
        ("choice", ["A", None], '"answer" is ["A", null]; make it a letter'),
        ("json_schema", [], '"answer" is []; make it an object with schema, value'),
        ("json_schema", {"value": 1}, '"answer.schema" is missing; give it'),
        ("json_schema", {"schema": True}, '"answer.schema" is true; make it an object, the JSON'),
        ("json_schema", {"schema": {}, "vlue": 1}, 'unknown key "answer.vlue"; did you mean "val'),
        ("thought_format", "5", '"answer" is "5"; make it null; the form alone is judged'),
        ("language", "de", '"answer" is "de"; make it an object with language, min_share, thought'),
        ("language", {}, '"answer.language" is missing; give it'),
        ("language", {"language": "German"}, '"answer.language" is "German"; make it a code of'),
        ("language", {"language": []}, '"answer.language" is []; make it a code of'),
        (
            "language",
            {"language": "de", "min_share": 90},
            '"answer.min_share" is 90; make it a number above 0 and up to 1',
        ),
        (
            "language",
            {"language": "de", "min_share": True},
            '"answer.min_share" is true; make it a number above 0 and up to 1',
        ),
        (
            "language",
            {"language": "de", "thought": 1},
            '"answer.thought" is 1; make it true or false',
        ),
        (
            "composite",
            [EXACT],
            '"answer" is [{"verifier": "exact", "answer": "5"}]; make it an obj',
        ),
        ("composite", {"parts": []}, '"answer.parts" is []; make it a list of at least one part'),
        ("composite", {"parts": [5]}, '"answer.parts[0]" is 5; make it an object with verifier, '),
        (
            "composite",
            {"parts": [EXACT, {"verifier": "exact"}]},
            '"answer.parts[1].answer" is missing; give it',
        ),
        (
            "composite",
            {"parts": [EXACT | {"wieght": 1}]},
            'unknown key "answer.parts[0].wieght"; did you mean "weight"? known: verifier, ',
        ),
        (
            "composite",
            {"parts": [EXACT | {"weight": 0}]},
            '"answer.parts[0].weight" is 0; make it a number above 0',
        ),
        (
            "composite",
            {"parts": [EXACT | {"weight": -1, "gate": True}]},
            '"answer.parts[0].weight" is -1; make it a number from 0',
        ),
        (
            "composite",
            {"parts": [EXACT | {"weight": "1"}]},
            '"answer.parts[0].weight" is "1"; make it a number above 0',
        ),
        (
            "composite",
            {"parts": [EXACT | {"gate": 1}]},
            '"answer.parts[0].gate" is 1; make it true or false',
        ),
        (
            "composite",
            {"parts": [EXACT | {"gate": True}]},
            "no part of the composite has a weight; give one above 0",
        ),
        (
            "composite",
            {"parts": [{"verifier": "exakt", "answer": "5"}]},
            'unknown verifier "exakt" in "answer.parts[0]"; did you mean "exact"? known: choice, ',
        ),
        (
            "composite",
            {"parts": [{"verifier": "composite", "answer": {"parts": [EXACT]}}]},
            '"answer.parts[0].verifier" is "composite"; make it another one, or a row of its own',
        ),
        (
            "composite",
            {"parts": [{"verifier": "code", "answer": {}}]},
            '"answer.parts[0].verifier" is "code"; make it another one, or a row of its own',
        ),
        (
            "composite",
            {"parts": [EXACT, {"verifier": "math", "answer": 5}]},
            'in answer.parts[1]: "answer" holds the number 5; write it as a text, "5"',
        ),
    ],
)
def test_a_wrong_answer_of_any_verifier_is_named_with_its_cure(
    tmp_path: Path, verifier: str, answer: object, message: str
) -> None:
    row = SUM | {"verifier": verifier, "answer": answer}
    assert complaint(tmp_path / "p.jsonl", row).startswith(f"p.jsonl:1: {message}")


def test_choices_in_meta_must_be_texts_where_they_are_read(tmp_path: Path) -> None:
    row = SUM | {"verifier": "choice", "answer": "A", "meta": {"choices": ["Rome", 5]}}
    assert complaint(tmp_path / "p.jsonl", row).startswith(
        'p.jsonl:1: "meta.choices" is ["Rome", 5]; make it a list of texts'
    )
    other = SUM | {"meta": {"choices": 5}}
    assert len(list(read_problems(write(tmp_path / "p.jsonl", other)))) == 1


@pytest.mark.parametrize(
    "part",
    [
        EXACT | {"weight": 0, "gate": True},
        {"verifier": "thought_format", "answer": None, "weight": 0.1, "gate": False},
        {"verifier": "my.module:verify", "answer": [1]},
        {"verifier": "reasoning_gym", "answer": {"task": "gcd", "entry": {}}},
    ],
)
def test_right_composites_are_read_as_they_are(tmp_path: Path, part: dict[str, Any]) -> None:
    row = SUM | {"verifier": "composite", "answer": {"parts": [EXACT, part]}}
    (problem,) = read_problems(write(tmp_path / "p.jsonl", row), verifiers=ANSWER_SHAPES)
    assert problem.answer == row["answer"]


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    row = {key: value for key, value in SUM.items() if key != "answer"}
    message = complaint(tmp_path / "p.jsonl", row)
    assert message == (
        'p.jsonl:1: the key "answer" is missing; a row needs id, prompt, verifier, answer'
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a",', "malformed JSON, Expecting property name enclosed in double quotes"),
        ("[1, 2]", "the row is [1, 2]; make it a JSON object"),
        ('{"id": NaN}', "malformed JSON, NaN is no JSON number; write one JSON object a line"),
        ('{"id": "\\ud800"}', "not UTF-8 text ("),
        ("[" * 100_000, "malformed JSON, "),
        ("9" * 5000, "malformed JSON, "),
    ],
)
def test_a_malformed_row_is_named_by_its_line(tmp_path: Path, line: str, message: str) -> None:
    rows = [SUM, "", line]
    assert complaint(tmp_path / "p.jsonl", *rows).startswith(f"p.jsonl:3: {message}")


def test_bytes_that_are_no_text_are_named_by_their_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(json.dumps(SUM).encode() + b'\n{"id": "\xff"}\n')
    with pytest.raises(ValueError, match=r"p\.jsonl:2: not UTF-8 text"):
        list(read_problems(path))


def test_a_repeated_id_is_named_with_both_lines(tmp_path: Path) -> None:
    message = complaint(tmp_path / "p.jsonl", SUM, SUM | {"id": "b"}, SUM)
    assert message == (
        "p.jsonl:3: the id 'sum-1' stands in line 1 already; give each problem an id of its own"
    )


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"p\.jsonl: the file is empty; write at least one"):
        list(read_problems(path))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.jsonl: No such file or directory; give the path"):
        list(read_problems(tmp_path / "none.jsonl"))


def test_a_byte_order_mark_and_other_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    strange = SUM | {"id": "\u2028"}
    text = "\ufeff" + json.dumps(SUM) + "\r\n" + json.dumps(strange, ensure_ascii=False)
    path.write_bytes(text.encode())
    assert [problem.id for problem in read_problems(path)] == ["sum-1", "\u2028"]


def test_reading_holds_one_row_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = (SUM | {"id": str(i), "prompt": "x" * 100_000} for i in range(200))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tracemalloc.start()
    assert sum(1 for _ in read_problems(path)) == 200
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_the_hash_sees_every_field_and_the_order() -> None:
    problem = Problem(id="a", prompt="p", verifier="math", answer="1", source="s", meta={"m": 1})
    other = Problem(id="b", prompt="p", verifier="math", answer="1")
    changed = [
        Problem(id="x", prompt="p", verifier="math", answer="1", source="s", meta={"m": 1}),
        Problem(id="a", prompt="x", verifier="math", answer="1", source="s", meta={"m": 1}),
        Problem(id="a", prompt="p", verifier="exact", answer="1", source="s", meta={"m": 1}),
        Problem(id="a", prompt="p", verifier="math", answer="x", source="s", meta={"m": 1}),
        Problem(id="a", prompt="p", verifier="math", answer="1", source="x", meta={"m": 1}),
        Problem(id="a", prompt="p", verifier="math", answer="1", source="s", meta={"m": 1.0}),
    ]
    hashes = {problems_hash([problem])} | {problems_hash([change]) for change in changed}
    assert len(hashes) == 7
    assert problems_hash([problem, other]) != problems_hash([other, problem])


def test_the_hash_does_not_see_the_order_of_keys() -> None:
    one = Problem(id="a", prompt="p", verifier="v", answer={"x": 1, "y": 2})
    other = Problem(id="a", prompt="p", verifier="v", answer={"y": 2, "x": 1})
    assert problems_hash([one]) == problems_hash([other])
    assert problems_hash([one]) == "4917670db71741ac38578f2aad464e53"


def test_prompts_that_differ_in_white_space_alone_are_alike() -> None:
    user = ({"role": "user", "content": "2 + 3\n= ?"},)
    assert prompt_key("2 +  3 = ?\n") == prompt_key(user)
    assert prompt_key("2 + 3 = ?") != prompt_key(({"role": "system", "content": "2 + 3 = ?"},))
    assert prompt_key("2 + 3 = ?") != prompt_key("2 + 4 = ?")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    good = Problem(id="a", prompt="p", verifier="v", answer="1")
    write_problems(path, [good])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="Out of range float values"):
        write_problems(path, [good, Problem(id="b", prompt="p", verifier="v", answer=math.nan)])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_is_not_seen_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "p.jsonl"
    with written_whole(path) as file:
        file.write(to_line(Problem(id="a", prompt="p", verifier="v", answer="1")))
        assert not path.exists()
    assert path.exists()


def test_a_number_beyond_all_floats_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    row = b'{"id": "a", "prompt": "2+3?", "verifier": "math", "answer": "5", "meta": {"a": -1e999}}'
    path.write_bytes(row)
    with pytest.raises(ValueError, match="1: malformed JSON, -1e999 is more than a float can hold"):
        list(read_problems(path))
