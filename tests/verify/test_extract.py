"""Which part of a response is judged."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archer.verify.extract import (
    Reading,
    check_answer_pattern,
    last_box,
    last_json,
    last_number,
    last_program,
    outside_thought,
    read_response,
)

R1_RESPONSE = "2 + 3 is 5, or is it \\boxed{6}? No.\n</think>\n\nThe sum is \\boxed{5}."


def answer(response: str, in_thought: bool = False, pattern: str = "box") -> str | None:
    reading = read_response(response, in_thought, pattern)
    assert reading is not None
    return reading.answer


# --- thoughts ---


def test_a_response_that_begins_inside_a_thought_is_read_after_it() -> None:
    reading = read_response(R1_RESPONSE, True)
    assert reading == Reading(
        text="\n\nThe sum is \\boxed{5}.", answer="5", response=R1_RESPONSE, in_thought=True
    )


def test_a_thought_that_the_prompt_opened_and_nobody_closed_has_no_answer() -> None:
    assert read_response("surely \\boxed{5}", True) is None


def test_a_thought_that_the_response_opened_and_never_closed_has_no_answer() -> None:
    assert read_response("<think>surely \\boxed{5}", False) is None
    assert read_response("Let me see. <think>surely \\boxed{5}", False) is None


def test_a_second_thought_that_is_never_closed_has_no_answer() -> None:
    assert read_response("<think>a</think> so <think>\\boxed{5}", False) is None


def test_a_thought_opened_and_closed_by_the_response_is_left_out() -> None:
    assert answer("<think>\\boxed{6}</think>\\boxed{5}") == "5"


def test_a_box_inside_the_thought_alone_is_no_answer() -> None:
    assert answer("<think>\\boxed{5}</think> So it is.") is None


def test_mistake_33_two_closing_tags_do_not_lose_the_answer() -> None:
    assert answer("a </think> b </think> \\boxed{5}", in_thought=True) == "5"
    assert answer("<think>a</think> b </think> \\boxed{5}") == "5"


def test_mistake_33_a_box_in_an_unfinished_thought_earns_nothing() -> None:
    assert read_response("So far \\boxed{5}, but let me check", True) is None


def test_a_response_without_any_thought_is_read_whole() -> None:
    assert outside_thought("2 + 3 = 5", False) == "2 + 3 = 5"


# --- boxes ---


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {5}", "5"),
        (r"\boxed{\left\{1, 2\right.}", r"\left\{1, 2\right."),  # escaped braces are none of TeX's
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{a\\} b", r"a\\"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{5} and so \boxed{6", "5"),
        (r"\boxed{ \boxed{5}", "5"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\fbox{\frac{1}{2}}}", r"\frac{1}{2}"),
        (r"\boxed{x = \boxed{5}}", r"x = \boxed{5}"),
        (r"} { \boxed{5}", "5"),
        ("\\boxed{\n5\n}", "\n5\n"),
        (r"\boxed{}", ""),
    ],
)
def test_the_last_complete_box_counts(text: str, content: str) -> None:
    assert last_box(text) == content


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\fbox{7}", "7"),
        (r"\boxed 5", "5"),
        (r"it is $\boxed 5$.", "5"),
        (r"\boxed 3.14, about", "3.14"),
        (r"\boxed -2.", "-2"),
        (r"\boxed5", "5"),
        (r"\boxed A", "A"),
    ],
)
def test_mistake_38_fbox_and_boxes_without_braces_count(text: str, content: str) -> None:
    assert last_box(text) == content


@pytest.mark.parametrize("text", ["5", r"use \boxed to mark it", r"\boxed{5", r"\boxedx{5}", ""])
def test_without_a_complete_box_there_is_none(text: str) -> None:
    assert last_box(text) is None


def test_an_empty_box_holds_no_answer() -> None:
    assert answer(r"\boxed{5} \boxed{ }") is None


# --- numbers and patterns ---


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12", "12"),
        ("The answer is 12.", "12"),
        ("2 apples and 1,234.5 pears.", "1,234.5"),
        ("x = -5", "-5"),
        ("x = \N{MINUS SIGN}5", "-5"),
        ("7-5", "5"),
        ("(-5)", "-5"),
        ("$3.50 each", "3.50"),
        ("a half is 1/2", "1/2"),
        ("12cm", "12"),
        ("about 1e-5", "1e-5"),
        (".5", ".5"),
        ("1, 2, 3", "3"),
        ("12,34", "34"),
        ("H2O", None),
        ("none", None),
    ],
)
def test_the_last_number_of_a_text(text: str, number: str | None) -> None:
    assert last_number(text) == number


def test_the_number_pattern_needs_no_box() -> None:
    assert answer("2 + 3 = 5", pattern="number") == "5"
    assert answer("2 + 3 = 5") is None


def test_a_users_pattern_takes_the_group_of_its_last_match() -> None:
    pattern = r"[Aa]nswer: (\S+)"
    assert answer("answer: 4 ... Answer: 5 .", pattern=pattern) == "5"
    assert answer("<think>answer: 6</think> Answer: 5", pattern=pattern) == "5"
    assert answer("it is 5", pattern=pattern) is None


@pytest.mark.parametrize("pattern", ["(", "answer", "(a)(b)"])
def test_a_pattern_without_exactly_one_group_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="answer pattern"):
        check_answer_pattern(pattern)


@pytest.mark.parametrize("pattern", ["box", "number", "answer: (.*)", "(?:a|b)(c)"])
def test_good_patterns_are_accepted(pattern: str) -> None:
    check_answer_pattern(pattern)


@pytest.mark.parametrize(
    "text", ["{", "\\boxed{", "1", "1,", "\\", "\\boxed ", "1,111", "-", "<think>", "\\boxed{}}"]
)
def test_a_million_characters_take_a_moment(text: str) -> None:
    hostile = text * (10**6 // len(text))
    begin = time.thread_time()
    last_box("\\boxed{" + hostile)
    last_number(hostile)
    outside_thought(hostile, True)
    assert time.thread_time() - begin < 20


# --- code ---


def block(code: str, tag: str = "python", fence: str = "```") -> str:
    return f"{fence}{tag}\n{code}\n{fence}"


@pytest.mark.parametrize(
    "tag",
    [
        "python",
        "Python",
        "py",
        "PY3",
        "python3",
        " python ",
        'python title="sum.py"',
        "python linenums",
        "python,linenos",
        "python{1,3}",
        "python:sum.py",
        "{.python}",
        "{.python .numberLines}",
        "{python}",
        "",
        "   ",
    ],
)
def test_a_block_of_python_or_without_a_tag_is_a_program(tag: str) -> None:
    assert last_program(f"Like so:\n\n{block('x = 1', tag)}\n\nDone.") == "x = 1\n"


@pytest.mark.parametrize(
    "tag", ["text", "output", "cpp", "bash", "pycon", "python-repl", "pythonic", 'title="x"', "3"]
)
def test_a_block_with_another_tag_is_never_taken(tag: str) -> None:
    assert last_program(block("x = 1", tag)) is None
    assert last_program(block("x = 1") + "\n" + block("x = 2", tag)) == "x = 1\n"


def test_the_last_program_counts() -> None:
    assert last_program(f"First {block('no', '')}\n{block('a')}\nor\n{block('b')}") == "b\n"


def test_a_tagged_block_comes_before_untagged_ones_wherever_it_stands() -> None:
    assert last_program(block("x = 1") + "\nIt prints\n" + block("1", "")) == "x = 1\n"
    assert last_program(block("1", "") + "\n" + block("x = 1")) == "x = 1\n"
    assert last_program(block("x = 1", "") + "\n" + block("x = 2", "")) == "x = 2\n"


@pytest.mark.parametrize("text", ["", "x = 1", "```python\nx = 1", "```", "`x = 1`", "```x = 1```"])
def test_without_a_complete_block_there_is_no_program(text: str) -> None:
    assert last_program(text) is None


def test_a_block_that_is_never_closed_leaves_the_earlier_ones() -> None:
    assert last_program(block("x = 1") + "\n```python\nx = 2\n") == "x = 1\n"
    assert last_program(block("x = 1") + "\n```python\nx = 2\n~~~\n``") == "x = 1\n"


def test_a_block_of_blanks_is_no_program() -> None:
    assert last_program(block("x = 1") + "\n" + block("  ")) == "x = 1\n"
    assert last_program("```\n```") is None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("~~~python\nx = 1\n~~~", "x = 1\n"),
        ("````python\n```\nx\n```\n````", "```\nx\n```\n"),
        ("```python\n~~~\n```", "~~~\n"),
        ("```python\nx\n`````", "x\n"),  # a closing fence may be longer
        ("`````python\nx\n```\ny\n`````", "x\n```\ny\n"),  # but not shorter
        ("```python\nx\n``` \t", "x\n"),
        ("```python\nx\n``` y\n```", "x\n``` y\n"),  # words after a fence: it does not close
        ("~~~ python `a`\nx\n~~~", "x\n"),
        ("```python `a`\nx\n```", None),  # CommonMark: code in a line, and then an open block
        ("a ```python\nx\n```", None),
    ],
)
def test_fences_are_those_of_commonmark(text: str, code: str | None) -> None:
    assert last_program(text) == code


def test_an_indented_block_loses_the_indentation_of_its_fence() -> None:
    text = "1. Write\n\n    ```python\n    if x:\n        y\n\n  z\n    ```\n"
    assert last_program(text) == "if x:\n    y\n\nz\n"
    assert last_program("\t```python\n\tx\n\t```") == "x\n"
    assert last_program("  ```python\n  x\n```") == "x\n"


def test_a_fence_further_in_than_its_block_is_a_line_of_it() -> None:
    code = 'def f():\n    """\n    ```\n    f()\n    ```\n    """'
    assert last_program(block(code)) == code + "\n"


def test_lines_may_end_in_any_way_and_only_lines_end_them() -> None:
    assert last_program("```python\r\nx = 1\r\ny\r\n```\r\n") == "x = 1\ny\n"
    assert last_program("```python\rx = 1\r```") == "x = 1\n"
    assert last_program("```python\ns = '\x0c\u2028\x85'\n```") == "s = '\x0c\u2028\x85'\n"


def test_json_is_found_as_programs_are() -> None:
    assert last_json(block("{}", "JSON") + "\n" + block("[]", "")) == "{}\n"
    assert last_json(block("[]", "")) == "[]\n"
    assert last_json(block("{}")) is None


def plain_last_program(text: str) -> str | None:
    """The same, written as CommonMark says it, line by line and without a regex."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    found: dict[bool, str] = {}
    while lines:
        opening = lines.pop(0)
        mark = opening.lstrip(" \t")[:1]
        body = opening.lstrip(" \t").lstrip(mark)
        indent = len(opening) - len(opening.lstrip(" \t"))
        length = len(opening) - indent - len(body)
        if mark not in ("`", "~") or length < 3 or (mark == "`" and "`" in body):
            continue
        content = ""
        while lines:
            line = lines.pop(0)
            inside = line.lstrip(" \t")
            if (
                inside.rstrip(" \t") == mark * len(inside.rstrip(" \t"))
                and len(inside.rstrip(" \t")) >= length
                and len(line) - len(inside) <= indent + 3
            ):
                tag = body.strip(" \t{.").split(" ")[0].split("}")[0].lower()
                if content.strip() and tag in ("", "python", "py", "python3", "py3"):
                    found[tag != ""] = content
                break
            for _ in range(indent):
                if line[:1] in (" ", "\t"):
                    line = line[1:]
            content += line + "\n"
    return found.get(True, found.get(False))


MARKDOWN = [
    "```",
    "~~~",
    "````",
    "`",
    "python",
    "{.py}",
    "text",
    " ",
    "    ",
    "\t",
    "x",
    "\n",
    "\r\n",
]


@given(st.lists(st.sampled_from(MARKDOWN), max_size=40).map("".join))
def test_the_last_program_is_what_a_plain_reader_finds(text: str) -> None:
    assert last_program(text) == plain_last_program(text)


@pytest.mark.parametrize(
    "text",
    [
        "```\n",
        "```python\nx\n```\n",
        "`",
        "~",
        "``` `\n",
        " ",
        "\t```",
        "\r",
        "```a`\n",
        "{",
    ],
)
def test_a_million_characters_of_fences_take_a_moment(text: str) -> None:
    hostile = text * (10**6 // len(text))
    begin = time.thread_time()
    for prefix in ("", "~~~~python\n"):
        last_program(prefix + hostile)
    assert time.thread_time() - begin < 60
