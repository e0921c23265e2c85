"""How responses are judged: the knobs that all verdicts of a run or of a file share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from archer.verdict import MAX_CPU_SECONDS, MAX_MEMORY_MB
from archer.verify.extract import check_answer_pattern

Level = Literal["full", "restricted", "weak"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""Levels of the sandbox, the safest first; see docs/sandbox.md."""
LIBERTIES = ("percent", "order", "units")
"""What the mathematics verifier can be lenient about; archer.verify.math has the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How responses are judged. Raises ValueError for knobs that can't be.

    Example: Policy(answer_pattern="number", cpu_seconds=2.0, liberties=("percent",))
    """

    answer_pattern: str = "box"
    """Where the answer stands: "box", "number" or a regex, see archer.verify.extract."""
    liberties: tuple[str, ...] = ()
    """Conventions that mathematical answers need not keep to, of `LIBERTIES`; none is strict."""
    cpu_seconds: float = 5.0
    """What a verdict may take of a core."""
    memory_mb: int = 1024
    """And of memory, beyond what the libraries take."""
    max_tests: int = 0
    """Tests of a program that are run, the same ones for all its samples; 0: all."""
    partial: bool = False
    """Whether a program is run on all tests and scored by the share that it passes."""
    sandbox: str = "auto"
    """Level of the sandbox: "auto" (the best there is, never weak) or one of LEVELS."""

    def __post_init__(self) -> None:
        if not 0 < self.cpu_seconds <= MAX_CPU_SECONDS or not 1 <= self.memory_mb <= MAX_MEMORY_MB:
            raise ValueError(
                f"cpu_seconds={self.cpu_seconds}, memory_mb={self.memory_mb}: both must be "
                f"positive, at most {MAX_CPU_SECONDS} and {MAX_MEMORY_MB}"
            )
        if self.max_tests < 0:
            raise ValueError(f"max_tests={self.max_tests}: it must be 0 (all) or more")
        if self.sandbox not in ("auto", *LEVELS):
            raise ValueError(
                f"sandbox level {self.sandbox!r}: use one of auto, {', '.join(LEVELS)}"
            )
        check_answer_pattern(self.answer_pattern)
        object.__setattr__(self, "liberties", tuple(self.liberties))  # JSON has lists only
        unknown = [name for name in self.liberties if name not in LIBERTIES]
        if unknown:
            raise ValueError(
                f"there is no liberty {unknown[0]!r}: take some of {', '.join(LIBERTIES)}"
            )
