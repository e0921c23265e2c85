"""How responses are judged: the knobs that all verdicts of a run or of a file share."""

from __future__ import annotations

from dataclasses import dataclass

from archer.verify.extract import check_answer_pattern

MAX_CPU_SECONDS = 3600
"""What a verdict may be given of a core, at the most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How responses are judged. Raises ValueError for knobs that can't be.

    Example: Policy(answer_pattern="number", cpu_seconds=2.0)
    """

    answer_pattern: str = "box"
    """Where the answer stands: "box", "number" or a regex, see archer.verify.extract."""
    cpu_seconds: float = 5.0
    """What a verdict may take of a core."""
    memory_mb: int = 1024
    """And of memory, beyond what the libraries take."""

    def __post_init__(self) -> None:
        if not 0 < self.cpu_seconds <= MAX_CPU_SECONDS or self.memory_mb < 1:
            raise ValueError(
                f"cpu_seconds={self.cpu_seconds}, memory_mb={self.memory_mb}: both must be "
                f"positive, and cpu_seconds at most {MAX_CPU_SECONDS}"
            )
        check_answer_pattern(self.answer_pattern)
