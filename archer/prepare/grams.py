"""Problems that read nearly alike, found by the N-grams of their words.

    no_near_duplicates(0.7)(problem)        # Dropped(reason="nearly repeats ...") or None
    not_in("aime24", problems)(problem)     # Dropped(reason="stands in aime24 too") or None

Words are runs of letters and digits, in lower case, and signs of operations, one by one; brackets
and punctuation are passed over, for LaTeX is written in many ways. A near-duplicate shares most of
its 5-grams with one that was kept (Jaccard index, found through MinHash; Broder 1997). A problem
of a test suite is known where runs of 8 words hold more than half of it (the rule of Tülu 3, arXiv
2411.15124).
"""

from __future__ import annotations

import math
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt32

from archer.data.sources import Dropped
from archer.prepare.filters import Filter
from archer.types import Problem

_IDEOGRAPH = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_IDEOGRAPH}]|[^\W_{_IDEOGRAPH}]+|[-+*/^=<>|%&~≤≥≠±×÷]")
"""Chinese and Japanese have no spaces: each of their signs is a word."""
_FIGURE = re.compile(r"\d+")

NEAR = 5
"""N of near-duplicates."""
SUITE = 8
"""N of problems of a test suite."""
COVERED = 0.5
"""Share of a suite's problem that makes it known, if there is more of it."""
FRAME_SHARE, FRAME_PROBLEMS = 0.02, 5
"""An N-gram in so many of a suite's problems, as a share and as a number, is its frame ("write the
answer to stdout"), and says nothing of the problem."""
MISSED = 0.01
"""Chance that a pair just as alike as was asked for is overlooked; less for pairs more alike."""
MAX_SKETCH = 128
"""Numbers that stand for a problem at most."""


def no_near_duplicates(least: float) -> Filter:
    """Leaves out problems that share `least` of all 5-grams of the two with one it let through.

    It remembers those, so it is to be asked last, of what passes all else. Other numbers make
    another problem, except of code, where examples may differ. ValueError where `least` is no share
    from 0.5 to 1, or datasketch is missing.
    """
    if not 0.5 <= least <= 1:
        raise ValueError(f"near-duplicates share {least} of their N-grams; make it 0.5 to 1")
    try:
        from datasketch import MinHash
    except ImportError:
        raise ValueError(
            "near-duplicates are found by datasketch: pip install 'archer-rl[data]'"
        ) from None
    bands, rows = _bands(least)
    first = MinHash(num_perm=bands * rows)
    kept: list[_Kept] = []
    # A band's key -> places in `kept`, as a tuple because there are millions of them: the library's
    # own index has a set for each, which together take more than all the rest.
    index: dict[int, tuple[int, ...]] = {}

    def nearly_repeats(problem: Problem) -> Dropped | None:
        own = _Kept.of(problem)
        sketch = MinHash(
            bands * rows, hashfunc=int, permutations=first.permutations, scheme=first.scheme
        )
        sketch.update_batch(own.grams.tolist())
        seed = zlib.crc32(" ".join(own.figures).encode())
        keys = [
            zlib.crc32(band.tobytes(), seed + number)
            for number, band in enumerate(sketch.hashvalues.reshape(bands, rows))
        ]
        # Keys that agree by chance cost a comparison.
        for place in sorted(set().union(*(index.get(key, ()) for key in keys))):
            alike = own.alike(kept[place])
            if alike >= least:
                return Dropped(
                    reason="nearly repeats another problem",
                    detail=f"{alike:.0%} as {kept[place].id}",
                )
        here = (len(kept),)  # one for all bands that are new
        for key in keys:
            index[key] = index[key] + here if key in index else here
        kept.append(own)
        return None

    return nearly_repeats


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """What near-duplicates are told by.

    Example: _Kept(id="aime-3", grams=[17, 2054, ...], figures=("2", "15"))
    """

    id: str
    grams: UInt32[np.ndarray, " N"]
    """Each once, in rising order."""
    figures: tuple[str, ...]
    """The numbers in the text, sorted; none of code."""

    @staticmethod
    def of(problem: Problem) -> _Kept:
        found = words(text_of(problem))
        # Of "3x" and "x2" too, which are words of letters and digits.
        figures = () if problem.verifier == "code" else sorted(_FIGURE.findall(" ".join(found)))
        return _Kept(id=problem.id, grams=np.unique(grams(found, NEAR)), figures=tuple(figures))

    def alike(self, other: _Kept) -> float:
        """Jaccard index, from 0 to 1; 0 where the numbers differ."""
        if self.figures != other.figures:
            return 0.0
        shared = np.intersect1d(self.grams, other.grams, assume_unique=True).size
        return shared / max(1, self.grams.size + other.grams.size - shared)


def _bands(least: float) -> tuple[int, int]:
    """Bands, and rows of each, for a pair to share a band with probability 1 - MISSED.

    Two sketches agree in a row with probability `least`, so in no band with (1 - least^r)^b. More
    rows let fewer pairs through that are not alike.
    """
    best = (2, 1)
    for rows in range(1, MAX_SKETCH // 2 + 1):
        shared = least**rows
        bands = 2 if shared == 1 else max(2, math.ceil(math.log(MISSED) / math.log1p(-shared)))
        if bands * rows <= MAX_SKETCH:
            best = (bands, rows)
    return best


def not_in(suite: str, problems: Iterable[Problem]) -> Filter:
    """Leaves out what a test suite of this name holds too: see the text above.

    ValueError for a suite that no run of words tells anything of.
    """
    ids: dict[str, str] = {}  # by the words: problems that a suite repeats would look like frame
    sizes: list[int] = []
    places: _Places = {}
    for problem in problems:
        found = words(text_of(problem))
        if (key := " ".join(found)) in ids:
            continue
        for start, run in enumerate(runs(found, SUITE)):
            places.setdefault(run, []).append((len(ids), start))
        ids[key] = problem.id
        sizes.append(len(found))
    _drop_frame(places, len(ids))
    if not places:
        raise ValueError(
            f"{suite}: none of its {len(ids)} problems has {SUITE} words in a row that tell it "
            "from the others; name another suite"
        )
    names = list(ids.values())
    whole = {
        place: len(_covered(starts, sizes[place]))
        for place, starts in _by_problem(places.values()).items()
    }

    def stands_there(problem: Problem) -> Dropped | None:
        own = {run for run in runs(words(text_of(problem)), SUITE) if run in places}
        for place, starts in sorted(_by_problem(places[run] for run in own).items()):
            share = len(_covered(starts, sizes[place])) / whole[place]
            if share > COVERED:
                return Dropped(
                    reason=f"stands in {suite} too", detail=f"{share:.0%} of {names[place]}"
                )
        return None

    return stands_there


_Places = dict[str, list[tuple[int, int]]]
"""N-gram -> in which problems it begins, and at which word."""


def _drop_frame(places: _Places, problems: int) -> None:
    """Takes away the N-grams that many problems have."""
    most = max(FRAME_PROBLEMS, FRAME_SHARE * problems)
    for run in [r for r, own in places.items() if len({problem for problem, _ in own}) >= most]:
        del places[run]


def _by_problem(found: Iterable[list[tuple[int, int]]]) -> dict[int, list[int]]:
    """Problem -> at which of its words an N-gram begins."""
    starts: dict[int, list[int]] = {}
    for places in found:
        for problem, start in places:
            starts.setdefault(problem, []).append(start)
    return starts


def _covered(starts: Iterable[int], size: int) -> set[int]:
    """The words that lie in N-grams which begin there."""
    return {word for start in starts for word in range(start, min(start + SUITE, size))}


def text_of(problem: Problem) -> str:
    """What the user asks; system messages and earlier answers are left out."""
    if isinstance(problem.prompt, str):
        return problem.prompt
    return "\n".join(each["content"] for each in problem.prompt if each["role"] == "user")


def words(text: str) -> list[str]:
    """The words of a text.

    Example: words("If $x_1 < 2$, find x") = ["if", "x", "1", "<", "2", "find", "x"]
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def runs(found: list[str], n: int) -> Iterator[str]:
    """Each run of n words, in their order; a shorter text is one run by itself."""
    starts = range(max(1, len(found) - n + 1)) if found else range(0)
    return (" ".join(found[start : start + n]) for start in starts)


def grams(found: list[str], n: int) -> UInt32[np.ndarray, " N"]:
    """A number for each run of n words, in their order."""
    return np.fromiter((zlib.crc32(run.encode()) for run in runs(found, n)), dtype=np.uint32)
