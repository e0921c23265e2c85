"""The policy by itself: which knobs are refused, and how that is said."""

from __future__ import annotations

import pytest

from archer.verify.policy import Policy


def test_a_level_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="use one of auto, full, restricted, weak"):
        Policy(sandbox="strong")


def test_a_number_of_tests_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_tests=-1: it must be 0 \(all\) or more"):
        Policy(max_tests=-1)
