"""Problem files: JSONL, one problem a line, checked line by line.

    {"id": "sum-1", "prompt": "2+3?", "verifier": "math", "answer": "5", "source": "", "meta": {}}

`prompt` is a text or a list of chat messages; `source` and `meta` may be left out. A file is read
in a stream: one row and sixteen bytes for each id are held, never the whole file. Whatever is wrong
with a row is said in one line that begins with FILE:LINE. Other formats are read by
`archer.prepare`; answers are compared by `archer.verify`, here only their shape is looked at.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from hashlib import blake2b
from math import isinf
from typing import Any, NoReturn

from archer.files import written_whole
from archer.types import Message, Problem
from archer.verdict import MAX_CPU_SECONDS, MAX_MEMORY_MB

Row = dict[str, Any]

REQUIRED = ("id", "prompt", "verifier", "answer")
OPTIONAL = ("source", "meta")


def read_problems(
    path: str | os.PathLike[str], *, verifiers: Collection[str] | None = None
) -> Iterator[Problem]:
    """The problems of a file, one at a time. `verifiers` are the known names (None: any name).

    A name of the form "module:function" is always allowed. ValueError for a file that is missing
    or empty, for a malformed row and for an id that an earlier row has.
    """
    lines: dict[bytes, int] = {}
    for line, row in read_rows(path):
        problem = to_problem(row, where=f"{path}:{line}", verifiers=verifiers)
        earlier = lines.setdefault(digest(problem.id), line)
        if earlier != line:
            raise ValueError(
                f"{path}:{line}: the id {problem.id!r} stands in line {earlier} already; "
                "give each problem an id of its own"
            )
        yield problem
    if not lines:
        raise ValueError(f"{path}: the file is empty; write at least one problem into it")


def read_rows(path: str | os.PathLike[str]) -> Iterator[tuple[int, Row]]:
    """The JSON objects of a JSONL file with their line numbers, from 1; blank lines are passed by.

    ValueError for a file that cannot be read and for a line that is no JSON object in UTF-8.
    """
    try:
        with open(path, "rb") as file:
            yield from parse_lines(file, path)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; give the path of a JSONL file") from error


def parse_lines(lines: Iterable[bytes], path: str | os.PathLike[str]) -> Iterator[tuple[int, Row]]:
    """The JSON objects in lines, as `read_rows` gives them; `path` stands in messages."""
    for number, line in enumerate(lines, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield number, parse_object(line, f"{path}:{number}")


def to_problem(row: Row, *, where: str, verifiers: Collection[str] | None = None) -> Problem:
    """A checked problem from one row; `where` (FILE:LINE) begins each message."""
    for name in REQUIRED:
        if name not in row:
            raise ValueError(f'{where}: the key "{name}" is missing; a row needs {_list(REQUIRED)}')
    for name in row:
        if name not in REQUIRED + OPTIONAL:
            raise ValueError(f'{where}: unknown key "{name}"; {nearest(name, REQUIRED + OPTIONAL)}')
    for name, kind in (("id", str), ("verifier", str), ("source", str), ("meta", dict)):
        if name in row and not isinstance(row[name], kind):
            _wrong(where, f'"{name}"', row[name], {str: "a text", dict: "an object"}[kind])
    for name in ("id", "verifier"):
        if not row[name]:
            raise ValueError(f'{where}: "{name}" is empty; give it a text')
    verifier = row["verifier"]
    is_import = re.fullmatch(OWN_VERIFIER, verifier) is not None
    if verifiers is not None and verifier not in verifiers and not is_import:
        cure = nearest(verifier, sorted(verifiers))
        raise ValueError(f'{where}: unknown verifier "{verifier}"; {cure} (or "module:function")')
    if verifier in ANSWER_SHAPES:
        ANSWER_SHAPES[verifier](row["answer"], where)
    if verifier in ("choice", "composite") and "choices" in row.get("meta", {}):
        _choices(row["meta"]["choices"], where)
    return Problem(
        id=row["id"],
        prompt=_prompt(row["prompt"], where),
        verifier=verifier,
        answer=row["answer"],
        source=row.get("source", ""),
        meta=row.get("meta", {}),
    )


def to_row(problem: Problem) -> Row:
    """The JSON object of a problem, with every key."""
    prompt = problem.prompt
    return {
        "id": problem.id,
        "prompt": prompt if isinstance(prompt, str) else [dict(message) for message in prompt],
        "verifier": problem.verifier,
        "answer": problem.answer,
        "source": problem.source,
        "meta": dict(problem.meta),
    }


def write_problems(path: str | os.PathLike[str], problems: Iterable[Problem]) -> int:
    """Writes a problem file and returns the number of problems: wholly, or it is as it was."""
    count = 0
    with written_whole(path) as file:
        for problem in problems:
            file.write(to_line(problem))
            count += 1
    return count


def to_line(problem: Problem) -> bytes:
    """The line of a problem in a file, line end included."""
    return json.dumps(to_row(problem), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def problems_hash(problems: Iterable[Problem]) -> str:
    """32 hex digits that change with every field of every problem and with their order."""
    total = blake2b(digest_size=16)
    for problem in problems:
        total.update(canonical(to_row(problem)) + b"\n")
    return total.hexdigest()


def canonical(value: object) -> bytes:
    """JSON with sorted keys, without spaces, in ASCII: equal values, equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(text: str) -> bytes:
    """16 bytes that stand for a text where many are remembered."""
    return blake2b(text.encode(), digest_size=16).digest()


def prompt_key(prompt: str | Collection[Message]) -> bytes:
    """What two prompts share if they read alike: text and roles, whatever the white space."""
    if isinstance(prompt, str):
        prompt = ({"role": "user", "content": prompt},)
    words = [[message["role"], *message["content"].split()] for message in prompt]
    return blake2b(canonical(words), digest_size=16).digest()


def nearest(name: str, known: Collection[str]) -> str:
    """The cure for a wrong name: the right ones, the nearest first; of many only near ones."""
    close = difflib.get_close_matches(name, list(known), n=3)
    if len(known) <= 12:
        return (f'did you mean "{close[0]}"? ' if close else "") + f"known: {_list(known)}"
    return f"near to it: {_list(close)}" if close else f"{len(known)} are known, none is near to it"


def _text_or_texts(answer: object, where: str) -> None:
    """The answer of `math`, `exact`, `normalised`: a text, or a list of accepted texts."""
    texts = answer if isinstance(answer, list) else [answer]
    if not texts:
        raise ValueError(f'{where}: "answer" is an empty list; give at least one accepted text')
    for text in texts:
        if isinstance(text, int | float) and not isinstance(text, bool):
            cure = f'write it as a text, "{text}"'
            raise ValueError(f'{where}: "answer" holds the number {text}; {cure}')
        if not isinstance(text, str):
            _wrong(where, '"answer"', answer, "a text or a list of texts")
        if not text.strip():
            raise ValueError(f'{where}: "answer" holds an empty text; give the right answer')


CALLABLE = r"([^\W\d]\w*(\(\))?\.)?[^\W\d]\w*"
"""What a program can be called by; "Solution().f" is LeetCodeDataset's way to write it."""
MOST = {"time_limit_s": MAX_CPU_SECONDS, "memory_limit_mb": MAX_MEMORY_MB, "tolerance": 1e300}
"""Numbers of a `code` answer, and the largest that the clock, the kernel and a float can hold."""


def _code(answer: object, where: str) -> None:
    """The answer of `code`: tests by stdin, by calls, or as assert statements."""
    kinds = {"stdin": ("tests",), "call": ("name", "tests"), "assert": ("code",)}
    if not isinstance(answer, dict):
        _wrong(where, '"answer"', answer, f'an object with a "kind" of {_list(kinds)}')
    kind = answer.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        _wrong(where, '"answer.kind"', kind, f"one of {_list(kinds)}")
    # Assert statements compare for themselves.
    comparisons = () if kind == "assert" else ("tolerance", "checker", "runner")
    known = ("kind", *kinds[kind], "time_limit_s", "memory_limit_mb", *comparisons)
    for name in kinds[kind]:
        if name not in answer:
            raise ValueError(f'{where}: "answer.{name}" is missing; kind "{kind}" needs it')
    for name in answer:
        if name not in known:
            raise ValueError(f'{where}: unknown key "answer.{name}"; {nearest(name, known)}')
    for name in ("name", "code"):
        if name in answer and not (isinstance(answer[name], str) and answer[name].strip()):
            _wrong(where, f'"answer.{name}"', answer[name], "a text")
    if "name" in answer and not re.fullmatch(CALLABLE, answer["name"]):
        wanted = 'the name of a function, "f", or of a method, "Solution.f"'
        _wrong(where, '"answer.name"', answer["name"], wanted)
    for name, most in MOST.items():
        number = answer.get(name, most)
        if isinstance(number, bool) or not isinstance(number, int | float) or number <= 0:
            _wrong(where, f'"answer.{name}"', number, "a number above 0")
        if number > most:
            _wrong(where, f'"answer.{name}"', number, f"a number up to {most:,}")
    _comparison(answer, where)
    if "tests" in answer:
        _tests(answer["tests"], kind, where)


RUNNERS = ("livecodebench",)
"""Whose rules a `code` answer may ask for: docs/livecodebench.md."""


def _comparison(answer: Row, where: str) -> None:
    """How outputs are compared, where it is not by equality."""
    runner = answer.get("runner", "livecodebench")
    if runner not in RUNNERS:
        _wrong(where, '"answer.runner"', runner, f"one of {_list(RUNNERS)}")
    for name in ("tolerance", "checker"):
        if "runner" in answer and name in answer:
            raise ValueError(
                f'{where}: "answer" has the "runner" {shown(runner)} and a "{name}", but a runner '
                f'compares by rules of its own; remove "{name}" or "runner"'
            )
    checker = answer.get("checker", "given")
    if not (isinstance(checker, str) and checker.strip()):
        wanted = "the source of a function check(input, output, expected)"
        _wrong(where, '"answer.checker"', checker, wanted)
    if "checker" in answer and "tolerance" in answer:
        raise ValueError(
            f'{where}: "answer" has a "checker" and the "tolerance" {answer["tolerance"]}, but a '
            'checker compares alone; remove "tolerance" and allow for it in the checker'
        )


def _tests(tests: object, kind: str, where: str) -> None:
    if not isinstance(tests, list) or not tests:
        _wrong(where, '"answer.tests"', tests, "a list of at least one test")
    for number, test in enumerate(tests):
        name = f'"answer.tests[{number}]"'
        if not isinstance(test, dict) or set(test) != {"input", "output"}:
            _wrong(where, name, test, 'an object with just "input" and "output"')
        if kind == "stdin" and not (
            isinstance(test["input"], str) and isinstance(test["output"], str)
        ):
            _wrong(where, name, test, "two texts, what the program reads and what it writes")
        if kind == "call" and not isinstance(test["input"], list):
            _wrong(where, name, test, 'an "input" that is the list of arguments')


def _reasoning_gym(answer: object, where: str) -> None:
    """The answer of `reasoning_gym`: the name of the task and the entry that the task made."""
    if (
        not isinstance(answer, dict)
        or set(answer) != {"task", "entry"}
        or not isinstance(answer["task"], str)
        or not isinstance(answer["entry"], dict)
    ):
        _wrong(where, '"answer"', answer, 'an object with "task" (a text) and "entry" (an object)')


def _choice(answer: object, where: str) -> None:
    """The answer of `choice`: a letter, or a list of accepted letters."""
    letters = answer if isinstance(answer, list) else [answer]
    if not letters or not all(isinstance(x, str) and re.fullmatch("[A-Z]", x) for x in letters):
        _wrong(where, '"answer"', answer, 'a letter from A to Z, "C", or a list of letters')


def _choices(choices: object, where: str) -> None:
    """What `choice` may find in `meta`: the texts of the choices, in order."""
    if not isinstance(choices, list) or not all(isinstance(text, str) for text in choices):
        _wrong(where, '"meta.choices"', choices, "a list of texts")


def _json_schema(answer: object, where: str) -> None:
    """The answer of `json_schema`: the schema, and a value where just one is right."""
    fields = _object(answer, where, needed=("schema",), optional=("value",))
    if not isinstance(fields["schema"], dict):
        _wrong(where, '"answer.schema"', fields["schema"], "an object, the JSON schema")


def _no_answer(answer: object, where: str) -> None:
    """The answer of `thought_format`: it judges the form alone."""
    if answer is not None:
        _wrong(where, '"answer"', answer, "null; the form alone is judged")


def _language(answer: object, where: str) -> None:
    """The answer of `language`: which one, what share of the text, and whether of the thought."""
    fields = _object(answer, where, needed=("language",), optional=("min_share", "thought"))
    codes, share, thought = fields["language"], fields.get("min_share", 1), fields.get("thought")
    listed = codes if isinstance(codes, list) else [codes]
    if not listed or not all(isinstance(x, str) and re.fullmatch("[a-z]{2}", x) for x in listed):
        wanted = 'a code of two letters, "de", or a list of codes'
        _wrong(where, '"answer.language"', codes, wanted)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        _wrong(where, '"answer.min_share"', share, "a number above 0 and up to 1")
    if "thought" in fields and not isinstance(thought, bool):
        _wrong(where, '"answer.thought"', thought, "true or false")


NO_PARTS = ("composite", "code")
"""What can't be part of a composite: itself, and what needs a sandbox."""


def _composite(answer: object, where: str) -> None:
    """The answer of `composite`: verifiers with their answers, weights and gates."""
    parts = _object(answer, where, needed=("parts",))["parts"]
    if not isinstance(parts, list) or not parts:
        _wrong(where, '"answer.parts"', parts, "a list of at least one part")
    for number, part in enumerate(parts):
        _part(part, f"answer.parts[{number}]", where)
    if not any(part.get("weight", not part.get("gate")) for part in parts):
        raise ValueError(f"{where}: no part of the composite has a weight; give one above 0")


def _part(part: object, name: str, where: str) -> None:
    known = {"needed": ("verifier", "answer"), "optional": ("weight", "gate")}
    fields = _object(part, where, name=name, **known)
    verifier, gate = fields["verifier"], fields.get("gate", False)
    if not isinstance(verifier, str) or not verifier:
        _wrong(where, f'"{name}.verifier"', verifier, "the name of a verifier")
    if verifier in NO_PARTS:
        _wrong(where, f'"{name}.verifier"', verifier, "another one, or a row of its own")
    if verifier not in ANSWER_SHAPES and not re.fullmatch(OWN_VERIFIER, verifier):
        cure = nearest(verifier, sorted(ANSWER_SHAPES.keys() - set(NO_PARTS)))
        raise ValueError(f'{where}: unknown verifier "{verifier}" in "{name}"; {cure}')
    if not isinstance(gate, bool):
        _wrong(where, f'"{name}.gate"', gate, "true or false")
    weight, least = fields.get("weight", 1), "a number from 0" if gate else "a number above 0"
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not 0 <= weight < float("inf") or (weight == 0 and not gate):
        _wrong(where, f'"{name}.weight"', weight, least)
    if verifier in ANSWER_SHAPES:
        ANSWER_SHAPES[verifier](fields["answer"], f"{where}: in {name}")


def _object(
    value: object,
    where: str,
    *,
    name: str = "answer",
    needed: tuple[str, ...],
    optional: tuple[str, ...] = (),
) -> Row:
    """The value, where it is an object with just these keys."""
    if not isinstance(value, dict):
        _wrong(where, f'"{name}"', value, f"an object with {_list(needed + optional)}")
    for key in needed:
        if key not in value:
            raise ValueError(f'{where}: "{name}.{key}" is missing; give it')
    for key in value:
        if key not in needed + optional:
            cure = nearest(key, needed + optional)
            raise ValueError(f'{where}: unknown key "{name}.{key}"; {cure}')
    return value


OWN_VERIFIER = r"[\w.]+:\w+"
"""The name of a user's own, "module:function"."""

ANSWER_SHAPES: dict[str, Callable[[object, str], None]] = {
    "math": _text_or_texts,
    "exact": _text_or_texts,
    "normalised": _text_or_texts,
    "choice": _choice,
    "json_schema": _json_schema,
    "thought_format": _no_answer,
    "language": _language,
    "composite": _composite,
    "code": _code,
    "reasoning_gym": _reasoning_gym,
}
"""What the answer of each verifier must look like. Another verifier's answer is any JSON value."""


def _prompt(prompt: object, where: str) -> str | tuple[Message, ...]:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError(f'{where}: "prompt" is empty; write the question into it')
        return prompt
    if not isinstance(prompt, list) or not prompt:
        _wrong(where, '"prompt"', prompt, "a text or a list of chat messages")
    for number, message in enumerate(prompt):
        if (
            not isinstance(message, dict)
            or set(message) != {"role", "content"}
            or not all(isinstance(value, str) for value in message.values())
        ):
            wanted = 'an object with just "role" and "content", both texts'
            _wrong(where, f'"prompt[{number}]"', message, wanted)
    return tuple(prompt)


def parse_object(line: bytes, where: str) -> Row:
    """The JSON object in a line. ValueError, beginning with `where`, if there is none."""
    try:
        text = line.decode()
        row = json.loads(text, parse_constant=refuse_constant, parse_float=finite)
        if b"\\u" in line:
            # An escaped half of a surrogate pair is JSON, but no text: it would fail later.
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise ValueError(f"{where}: not UTF-8 text ({error}); save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        fact = f"malformed JSON, {error.msg} at column {error.colno}"
        raise ValueError(f"{where}: {fact}; write one JSON object a line") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where}: malformed JSON, {error}; write one JSON object a line"
        ) from error
    if not isinstance(row, dict):
        _wrong(where, "the row", row, "a JSON object")
    return row


def refuse_constant(name: str) -> NoReturn:
    """For json's `parse_constant`: NaN and Infinity are Python's idea, not JSON's."""
    raise ValueError(f"{name} is no JSON number")


def finite(number: str) -> float:
    """For json's `parse_float`: 1e999 is JSON, but reads as infinity, which can't be written."""
    value = float(number)
    if isinf(value):
        raise ValueError(f"{number:.20} is more than a float can hold")
    return value


def _wrong(where: str, name: str, value: object, wanted: str) -> NoReturn:
    raise ValueError(f"{where}: {name} is {shown(value)}; make it {wanted}")


def shown(value: object, width: int = 60) -> str:
    """A JSON value as a message shows it, cut to a width."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= width else text[: width - 3] + "..."


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
