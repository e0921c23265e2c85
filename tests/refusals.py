"""Commands that must be refused in one line, and a disk that is full."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from archer.cli import USER_MISTAKE, main


class Refusals:
    """Runs commands that must be refused, and returns the line that says why."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str | Path) -> str:
        self.capsys.readouterr()
        code: object = None
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code
        said = self.capsys.readouterr().err
        assert code == USER_MISTAKE, said
        assert said.startswith("archer: ")
        assert said.endswith("\n")
        assert said.count("\n") == 1, said
        assert "Traceback" not in said
        return said


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing more into a file fails, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
