"""What tests that start processes share."""

from __future__ import annotations

import os
from pathlib import Path

SECONDS = 60.0
"""How long anything that must happen may take on a busy machine."""


def child_environment(*folders: Path) -> dict[str, str]:
    """This process's variables, for a child that finds archer, the tests and these folders."""
    paths = [str(Path(__file__).parents[1]), *map(str, folders)]
    if inherited := os.environ.get("PYTHONPATH"):
        paths.append(inherited)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
