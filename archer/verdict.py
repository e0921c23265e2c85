"""A problem and a verdict on an answer to it: all that those who judge need to know.

Apart from `archer.types`, which holds the other nouns, because numpy and jaxtyping take longer to
import than a worker that judges may take to start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Message = Mapping[str, str]
"""One chat message, `{"role": "user", "content": "2+3?"}`."""

Outcome = Literal["correct", "wrong", "crashed", "limit", "no_answer", "error"]
"""What a verifier can say. `error` means that the grader itself failed: never counted as wrong."""

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

MAX_CPU_SECONDS = 3600
"""What a verdict may be given of a core, at the most."""
MAX_MEMORY_MB = 1 << 20
"""And of memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A question with the answer that its verifier needs.

    Example:
        Problem(id="sum-1", prompt="2+3?", verifier="math", answer="5", source="arithmetic")
    """

    id: str
    prompt: str | tuple[Message, ...]
    verifier: str
    answer: Any
    """Whatever JSON value the verifier understands: `"5"` or `["5", "five"]` for math."""
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the grader says of one response.

    Example:
        Verdict(outcome="wrong", score=0.0, detail="4 is not 5", seconds=0.0004)
    """

    outcome: Outcome
    score: float
    """1 for right, 0 for wrong; a verifier may give parts of a point between."""
    detail: str = ""
    seconds: float = 0.0
    sandbox: str = ""
    """The level of the sandbox that a program was run in; empty where none was run."""
