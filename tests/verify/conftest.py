"""What tests of programs need of the machine; without it they are skipped, with the reason.

`archer` must not be imported before a test asks: pytest first puts the checks of shapes and types
under it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from archer.verify.policy import Level


@pytest.fixture(scope="session")
def needs_level() -> Callable[[Level], None]:
    """Skips where a level of the sandbox is not to be had: `needs_level("full")`."""
    from archer.verify.sandbox.selftest import try_level

    @cache
    def fault(level: Level) -> str:
        return try_level(level).fault

    def skip_without(level: Level) -> None:
        if why := fault(level):
            pytest.skip(f"level {level} is not to be had here: {why}")

    return skip_without
