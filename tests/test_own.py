"""A user's own function is found beside the command, and hides nothing."""

import sys
from pathlib import Path

import pytest

from archer.own import own_function


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_function_of_the_working_folder_is_found(folder: Path) -> None:
    (folder / "my_losses_of_today.py").write_text("def half(x):\n    return x / 2\n")
    assert own_function("my_losses_of_today:half")(3) == 1.5


def test_a_folder_beside_the_command_hides_no_package(folder: Path) -> None:
    (folder / "difflib.py").write_text("def ndiff():\n    raise RuntimeError\n")
    assert own_function("difflib:ndiff")(["a"], ["a"])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module_here:f", "No module named 'no_such_module_here'"),
        ("math:no_such_function", "no attribute 'no_such_function'"),
        ("math:pi", "math:pi is a float, not a function"),
        (":f", "Empty module name"),
    ],
)
def test_what_is_not_there_is_told_with_its_cure(folder: Path, name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        own_function(name)
