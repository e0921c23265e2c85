"""Random numbers that are a function of names: no global state, no generator that is carried along.

Whoever needs a number says what for: `uniforms(64, "sampling", seed, step, problem, sample)`. The
same names give the same numbers in every process, on every machine and after every restart. The
names are hashed with blake2b, and the hash keys a Philox4x64-10 generator (Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3"). Only its raw 64-bit words are used: numpy keeps
those as they are for good, while it may change how its distributions are made from them.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from jaxtyping import Float64, Int64, UInt64

Part = str | int


def key(*parts: Part) -> int:
    """128 bits from names and numbers; `key("a", "b")`, `key("ab")` and `key("a", 1)` all differ.

    Each part is hashed with its kind and its length before it, so no two lists of parts read alike.
    """
    digest = blake2b(digest_size=16)
    for part in parts:
        assert isinstance(part, str) or type(part) is int, (
            f"{part!r} is no name and no whole number"
        )
        text = str(part).encode()
        digest.update(b"%c%d:" % (b"s" if isinstance(part, str) else b"i", len(text)) + text)
    return int.from_bytes(digest.digest(), "little")


def uniforms(n: int, *parts: Part) -> Float64[np.ndarray, " n"]:
    """n numbers in [0, 1), multiples of 2**-53. A larger n only appends to a smaller one's."""
    numbers: Float64[np.ndarray, " n"] = (_words(n, *parts) >> np.uint64(11)) * 2.0**-53
    return numbers


def permutation(n: int, *parts: Part) -> Int64[np.ndarray, " n"]:
    """The numbers 0 to n-1 in a random order."""
    return np.argsort(_words(n, *parts), kind="stable").astype(np.int64, copy=False)


def _words(n: int, *parts: Part) -> UInt64[np.ndarray, " n"]:
    return np.asarray(np.random.Philox(key=key(*parts)).random_raw(n), dtype=np.uint64)
