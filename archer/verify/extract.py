"""Which part of a response is judged: what stands outside the thought, and the answer in it.

A response that is still inside its thought when it ends has no answer, whatever boxes the thought
holds: see `outside_thought`. Of what stands outside, an answer pattern picks the answer:

    "box"      the last complete `\\boxed{...}`, `\\fbox{...}` or `\\boxed 5`
    "number"   the last number, for models that were never taught to use a box
    a regex    with one group: what the group holds in its last match

What the answer means is the verifiers' matter. Standard library only. Everything here takes time
linear in the length of the response, except a user's own regex, which may take for ever and is
therefore only run where it can be killed (archer.verify.worker).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    r"""What was read from a response.

    Example, the response "<think>2+3</think>So it is \boxed{5}.":
        Reading(text="So it is \\boxed{5}.", answer="5")
    """

    text: str
    """All that stands outside the thought."""
    answer: str | None
    """What the answer pattern picked from the text; None where it found nothing."""


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
    return Reading(text=text, answer=(answer or "").strip() or None)


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
