"""Rows of raw data files: JSONL (also packed by gzip), one JSON array of any size, parquet.

All are read in a stream; what the rows mean is `archer.prepare`'s matter. The small functions at
the end read single values, which no data set holds in one form alone.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from itertools import count as numbers_from
from pathlib import Path
from typing import IO, Any

from archer.data.problems import Row, parse_lines, read_rows, refuse_constant
from archer.types import Message


def read_file(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of a file with their numbers, counted from 1 (in a JSONL file: lines).

    ValueError for a file that is missing, broken, of another kind than `READERS` has, or in another
    encoding than UTF-8.
    """
    if ending(path) not in READERS:
        raise ValueError(
            f"{path}: {path.suffix or 'such a file'} is not read; "
            f"a file's name must end in {', '.join(READERS)}"
        )
    try:
        yield from READERS[ending(path)](path)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; give the path of a file") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}); save the file as UTF-8") from error


def ending(path: Path) -> str:
    """What decides how a file is read: ".json" of "a.b.json", ".jsonl.gz" of "a.b.jsonl.gz"."""
    return "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix


def _read_gzip(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        with gzip.open(path, "rb") as file:
            yield from parse_lines(file, path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: {error}; give a whole gzip file") from error


def _read_array(path: Path) -> Iterator[tuple[int, Row]]:
    """The objects of one JSON array; holds no more than the largest of them and a block."""
    decoder = json.JSONDecoder(parse_constant=refuse_constant)
    with open(path, encoding="utf-8-sig") as file:
        text, place, mark = "", 0, "["
        for number in numbers_from(1):
            text, place = _skip_space(file, text, place)
            if text[place : place + 1] != mark:
                fact = f"row {number} does not begin with {mark!r}"
                raise ValueError(f"{path}: {fact}; the file must be one JSON array of objects")
            text, place = _skip_space(file, text, place + 1)
            if number == 1 and text[place : place + 1] == "]":
                break
            row, text, place = _decode(decoder, file, text, place, f"{path}: row {number}")
            if not isinstance(row, dict):
                raise ValueError(f"{path}: row {number} is {row!r:.60}; make it a JSON object")
            yield number, row
            text, place = _skip_space(file, text, place)
            if text[place : place + 1] == "]":
                break
            mark = ","
        text, place = _skip_space(file, text, place + 1)
        if text[place:]:
            raise ValueError(
                f"{path}: more stands behind the array; the file must be one JSON array"
            )


BLOCK = 1 << 20


def _decode(
    decoder: json.JSONDecoder, file: IO[str], text: str, place: int, where: str
) -> tuple[object, str, int]:
    """The value that begins at a place; reads on where the block ends before the value does."""
    while True:
        try:
            value, place = decoder.raw_decode(text, place)
            return value, text, place
        except json.JSONDecodeError as error:
            # Where the block cuts a value off, the fault lies at the block's end or is a text that
            # has none. A fault elsewhere is the file's, and reading on would not cure it.
            cut_off = error.pos > len(text) - 16 or error.msg.startswith("Unterminated")
            more = file.read(max(BLOCK, len(text) - place)) if cut_off else ""
            if not more:
                raise ValueError(
                    f"{where}: malformed JSON, {error.msg}; repair the file"
                ) from error
            text, place = text[place:] + more, 0
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: malformed JSON, {error}; repair the file") from error


def _skip_space(file: IO[str], text: str, place: int) -> tuple[str, int]:
    """The text and the place of its next character that is no white space, if the file has one."""
    while True:
        match = re.compile(r"\s*").match(text, place)
        assert match is not None
        if match.end() < len(text):
            return text, match.end()
        text, place = file.read(BLOCK), 0
        if not text:
            return "", 0


def _read_parquet(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(f'{path}: {error}; pip install "archer-rl[data]"') from error
    try:
        batches = ParquetFile(path).iter_batches(batch_size=64)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from enumerate(rows, start=1)
    except (ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # it cannot be opened at all
            raise
        raise ValueError(f"{path}: {error}; give a whole parquet file") from error


READERS: dict[str, Callable[[Path], Iterator[tuple[int, Row]]]] = {
    ".jsonl": read_rows,
    ".jsonl.gz": _read_gzip,
    ".json": _read_array,
    ".parquet": _read_parquet,
}


BROKEN = object()
"""What `as_json` gives for a text that is no JSON; None is JSON's null."""


def as_json(text: object) -> Any:
    """What a JSON text holds; anything but a text is left as it is."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return BROKEN


def as_text(value: object) -> str:
    """A text that is not blank; empty for all else."""
    return value if isinstance(value, str) and value.strip() else ""


def as_chat(prompt: object) -> str | tuple[Message, ...]:
    """A prompt as it is, or as plain text if it is one user message; empty if it is neither."""
    if isinstance(prompt, str):
        return as_text(prompt)
    if not (isinstance(prompt, list) and all(isinstance(message, dict) for message in prompt)):
        return ""
    messages: list[Message] = [
        {"role": str(message.get("role")), "content": as_text(message.get("content"))}
        for message in prompt
    ]
    if not messages or not messages[-1]["content"]:
        return ""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return tuple(messages)


def some_of(row: Row, *keys: str) -> Row:
    """Those of the values that are texts or numbers."""
    return {key: row[key] for key in keys if isinstance(row.get(key), str | int | float)}
