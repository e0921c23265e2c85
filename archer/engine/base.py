"""The few verbs that the loop calls, and the records that they take.

`LocalEngine` is one implementation; a cluster is another. Where tensors live, how many processes
there are and what samples is nobody's business above this file.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from archer.algo.batch import TokenBatch
from archer.algo.objective import Tallies
from archer.types import Completion, Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How completions are drawn. Temperature 0 is greedy."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A rendered prompt and one name per completion that is wanted of it.

    A name such as `("train", seed, step, "sum-17", sample)` decides every random draw of its
    completion; nothing else does.

    Example:
        Request(prompt_ids=[7, 8, 9], in_thought=False, names=(("train", 0, 1, "sum-1", 0),))
    """

    prompt_ids: Int32[np.ndarray, " prompt"]
    in_thought: bool
    names: tuple[tuple[str | int, ...], ...]
    messages: tuple[Message, ...] = ()
    """What is asked instead of `prompt_ids` where a server renders the chat."""


class Sample(NamedTuple):
    """A finished completion: which request, which of its names, and the completion."""

    request: int
    number: int
    completion: Completion


def one_by_one(steps: Generator[list[Sample], None, None]) -> Generator[Sample, None, None]:
    """Yields the samples of each step; when closed, closes what they come from."""
    with closing(steps):
        for finished in steps:
            yield from finished


@runtime_checkable
class Generates(Protocol):
    """What sampling needs: all that evaluation asks of an engine."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Sample]:
        """Yields each completion when it is finished; all of one call are one unit of work."""
        ...


class EngineLost(RuntimeError):
    """A part of the engine is gone that nothing can stand in for: back to the last checkpoint."""


@runtime_checkable
class Engine(Generates, Protocol):
    """What the loop needs of whatever holds the tensors."""

    @property
    def samples_apart(self) -> bool:
        """Whether it can sample while it learns."""
        ...

    def at(self, version: int) -> Generates:
        """What samples with the weights of a version: the newest, or `rollout.ahead` before it."""
        ...

    def score(self, batch: TokenBatch, *, old: bool, reference: bool) -> TokenBatch:
        """Fills `old_logp` and `old_entropy`, and `ref_logp`, from the present weights."""
        ...

    def update(
        self, minibatch: TokenBatch, *, lr: float, entropy_coefficient: float | None = None
    ) -> Tallies:
        """One optimizer step; returns tallies (sum, count) that can be added and divided."""
        ...

    def publish(self) -> int:
        """Makes the sampler serve the learner's weights; returns the new policy version."""
        ...

    def save(self, folder: Path) -> Callable[[], None]:
        """Writes weights and optimizer state, as they are now, into a folder that exists.

        What is returned waits until all of it is there, in any thread; until then learning may go
        on.
        """
        ...

    def load(self, folder: Path) -> None: ...

    def memory(self) -> dict[str, int]:
        """The most bytes that each of its processes has held so far, by the process's name."""
        ...

    def close(self) -> None: ...
