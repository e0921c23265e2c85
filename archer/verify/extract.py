"""Which part of a response is judged: what stands outside the thought, and the answer in it.

A response that is still inside its thought when it ends has no answer, whatever boxes the thought
holds: see `outside_thought`. Of what stands outside, an answer pattern picks the answer:

    "box"      the last complete `\\boxed{...}`, `\\fbox{...}` or `\\boxed 5`
    "number"   the last number, for models that were never taught to use a box
    a regex    with one group: what the group holds in its last match

Programs and JSON stand in fenced blocks, of which `last_program` and `last_json` pick one. What an
answer means is the verifiers' matter. Standard library only. Everything here takes time
linear in the length of the response, except a user's own regex, which may take for ever and is
therefore only run where it can be killed (archer.verify.worker).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    r"""What was read from a response.

    Example, the response "<think>2+3</think>So it is \boxed{5}.":
        Reading(text="So it is \\boxed{5}.", answer="5", response="<think>2+3</think>So ...")
    """

    text: str
    """All that stands outside the thought."""
    answer: str | None
    """What the answer pattern picked from the text; None where it found nothing."""
    response: str = ""
    """The whole of it, for verifiers that judge its form."""
    in_thought: bool = False
    """Whether the rendered prompt had already opened a `<think>`."""


def read_response(response: str, in_thought: bool, answer_pattern: str = "box") -> Reading | None:
    """What is to be judged, or None where a thought was opened and never closed.

    in_thought: whether the rendered prompt had already opened a `<think>`.
    """
    text = outside_thought(response, in_thought)
    if text is None:
        return None
    if answer_pattern == "box":
        answer = last_box(text)
    elif answer_pattern == "number":
        answer = last_number(text)
    else:
        answer = last_match(text, answer_pattern)
    answer = (answer or "").strip() or None
    return Reading(text=text, answer=answer, response=response, in_thought=in_thought)


def check_answer_pattern(answer_pattern: str) -> None:
    """ValueError unless the pattern is "box", "number" or a regex with exactly one group."""
    if answer_pattern in ("box", "number"):
        return
    try:
        groups = re.compile(answer_pattern).groups
    except re.error as fault:
        raise ValueError(
            f"answer pattern {answer_pattern!r} is not a regex ({fault}): use box, number or a "
            "regex with one group"
        ) from None
    if groups != 1:
        raise ValueError(
            f"answer pattern {answer_pattern!r} has {groups} groups: put exactly one group, "
            "( ... ), around the answer and write the others as (?: ... )"
        )


def outside_thought(response: str, in_thought: bool) -> str | None:
    """What follows the last `</think>`, or the whole response where there is no thought at all.

    None where the response ends inside a thought: opened by the prompt, or by the response itself
    (also after an earlier thought was closed), and not closed again.
    """
    closed = response.rfind(CLOSE)
    if closed < 0 and in_thought:
        return None
    text = response if closed < 0 else response[closed + len(CLOSE) :]
    return None if OPEN in text else text


# A box with its opening brace, a box without braces (a number or a single letter), an escaped
# character (`\{` is a brace on paper, not one of TeX's), or a brace.
_BOX_TOKENS = re.compile(
    r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?P<bare>\{|[-+]?[\d.][^\s{}$\\]*|[A-Za-z](?![A-Za-z]))?"
    r"|\\.|[{}]",
    re.DOTALL,
)


def last_box(text: str) -> str | None:
    r"""Content of the complete box that ends last; None without a complete box.

    Only complete boxes count (`\boxed{5} ... \boxed{6` holds 5), and of nested ones the outermost;
    a box that holds nothing but another box is unwrapped.
    """
    if "\\boxed" not in text and "\\fbox" not in text:
        return None
    last = whole = (0, 0)  # where the content of the last box lies, and the box with its command
    braces: list[tuple[int, int] | None] = []  # a box's command and content begin; other braces
    for token in _BOX_TOKENS.finditer(text):
        kind, bare = token.group(), token.group("bare")
        if bare == "{":
            braces.append((token.start(), token.end()))
        elif bare:
            begin = token.start("bare")
            last, whole = (begin, begin + len(bare.rstrip(".,;:!?)"))), token.span()
        elif kind == "{":
            braces.append(None)
        elif kind == "}" and braces and (box := braces.pop()):
            if whole != (box[1], token.start()):
                last = (box[1], token.start())
            whole = (box[0], token.end())
    return text[slice(*last)] if whole != (0, 0) else None


# A sign counts where no operand stands before it: "7-5" ends in 5, "x = -5" in -5.
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}.%])[-+\u2212])?(?<![\w.])"
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:[eE][-+]?\d+|/\d+(?:\.\d+)?)?"
)


def last_number(text: str) -> str | None:
    """The last number of a text: "2 apples and 1,234.5 pears." -> "1,234.5"."""
    number = None
    for match in _NUMBER.finditer(text):
        number = match.group()
    return number.replace("\u2212", "-") if number else None


def last_match(text: str, answer_pattern: str) -> str | None:
    """What the one group of a regex holds in its last match."""
    answer = None
    for match in re.finditer(answer_pattern, text):
        answer = match.group(1)
    return answer


# --- code ---

PYTHON_TAGS = frozenset({"python", "python3", "py", "py3"})
JSON_TAGS = frozenset({"json"})


def last_program(text: str) -> str | None:
    r"""The Python program of a response: its last complete fenced block; None without one.

    Blocks tagged as Python come before untagged ones, wherever they stand; blocks with another tag
    and blocks that hold nothing but blanks are never taken. Lines end in "\n", whatever they ended
    in.
    """
    return _last_block(text, PYTHON_TAGS)


def last_json(text: str) -> str | None:
    """The same for a block tagged as JSON."""
    return _last_block(text, JSON_TAGS)


def _last_block(text: str, tags: frozenset[str]) -> str | None:
    tagged = untagged = None
    for tag, content in _fenced_blocks(text):
        if not content.strip():
            continue
        if tag in tags:
            tagged = content
        elif not tag:
            untagged = content
    return untagged if tagged is None else tagged


# CommonMark 0.31, 4.5, but for the indentation, which may be any: models put fences into lists.
# Every `+` keeps what it has taken (`++`), so that no line is read twice.
_FENCE = re.compile(r"^(?P<indent>[ \t]*+)(?P<fence>`{3,}+|~{3,}+)(?P<info>.*+)", re.MULTILINE)
_END_OF_TAG = re.compile(r"[\s,:;{}]")


def _fenced_blocks(text: str) -> Iterator[tuple[str, str]]:
    """Tag and content of each complete block. One that is never closed swallows all the rest."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    opening: re.Match[str] | None = None
    for mark in _FENCE.finditer(text):
        if opening is None:
            if mark["fence"][0] == "~" or "`" not in mark["info"]:
                opening = mark
        elif _closes(mark, opening):
            content = text[opening.end() + 1 : mark.start()]
            yield _tag(opening["info"]), _without_indent(content, len(opening["indent"]))
            opening = None


def _tag(info: str) -> str:
    """`Python title="x"`, `python{1,3}` and `{.python .numbered}` are tags that say python."""
    return _END_OF_TAG.split(info.lstrip(" \t{."), maxsplit=1)[0].lower()


def _closes(mark: re.Match[str], opening: re.Match[str]) -> bool:
    """Four columns further in than the block it is a line of it: a fence in a docstring, say."""
    return (
        mark["fence"].startswith(opening["fence"])
        and not mark["info"].strip(" \t")
        and len(mark["indent"]) <= len(opening["indent"]) + 3
    )


def _without_indent(content: str, width: int) -> str:
    return re.sub(rf"^[ \t]{{1,{width}}}", "", content, flags=re.MULTILINE) if width else content
