"""The order in which training sees its problems. Where it stands is one integer.

Position p is problem p mod P of epoch p div P, and every epoch has an order of its own. Nothing is
carried along, so a run that continues needs only the number of problems drawn so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Int64

from archer.randomness import permutation
from archer.types import Problem


class ProblemStream:
    """Problems without end, each once an epoch, in an order that the seed alone decides.

    A step that reaches over the end of an epoch can hold the same problem twice. Whoever samples
    must therefore tell its groups apart by position in the stream, not by problem id.
    """

    def __init__(self, problems: Sequence[Problem], seed: int) -> None:
        if not problems:
            raise ValueError("the training set has no problems; give a source that has some")
        self.problems = problems
        self.seed = seed

    def take(self, position: int, n: int) -> list[Problem]:
        """The n problems from `position` on. The caller goes on at position + n."""
        assert position >= 0 and n >= 0, f"position {position}, n {n}"
        size = len(self.problems)
        places = [divmod(place, size) for place in range(position, position + n)]
        return [
            self.problems[int(_epoch_order(size, self.seed, epoch)[rank])] for epoch, rank in places
        ]


@lru_cache(maxsize=2)
def _epoch_order(size: int, seed: int, epoch: int) -> Int64[np.ndarray, " P"]:
    return permutation(size, "stream", seed, epoch)
