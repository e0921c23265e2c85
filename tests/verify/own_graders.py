"""Lets tests name the functions of graders.py as verifiers: import the fixture into a test file."""

from __future__ import annotations

from pathlib import Path

import pytest

GRADERS = Path(__file__).parent


@pytest.fixture(autouse=True)
def graders_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(GRADERS))
