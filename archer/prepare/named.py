"""Data sets by name: where each lies on the Hugging Face hub, and which part of it is meant.

    livecodebench(release="v6", start="2025-02-01", end="2025-05-01")

One function a data set; its arguments are those that `archer prepare NAME --arg KEY=VALUE` takes.
`NAMED` lists them. Nothing is downloaded here (`archer.data.hub` does), and how rows are read is
the matter of `archer.prepare.layouts`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from archer.data.problems import Row, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Files of one repository of the hub that are read one after the other.

    Example:
        Part(name="gsm8k-test", repo="openai/gsm8k", files=("main/test-*.parquet",), expected=1319)
    """

    name: str
    """Stands in the ids and sources of rows that have none of their own."""
    repo: str
    files: tuple[str, ...]
    """Patterns as of `fnmatch`; each has at least one file."""
    keep: Callable[[Row], bool] | None = None
    """Which rows are meant; None: all."""
    expected: int | None = None
    """How many problems others count in just this part."""


Parts = tuple[Part, ...]


def find_parts(name: str, args: Mapping[str, Any]) -> Parts:
    """The parts that a name and its arguments stand for. ValueError for arguments it has not."""
    function = NAMED[name]
    known = list(inspect.signature(function).parameters)
    for arg in args:
        if arg not in known:
            cure = nearest(arg, known) if known else "it has none"
            raise ValueError(f'{name}: unknown arg "{arg}"; {cure}')
    return function(**args)


# What the papers train on


def archer_code() -> Parts:
    """The 6,753 problems that Archer-Code-1.5B was trained on (arXiv 2507.15778)."""
    repo, files = "wizardII/ArcherCodeR-Dataset", ("train/archercoder-1.5b-train.*",)
    return (Part(name="archer-code", repo=repo, files=files, expected=6753),)


def archer2_code() -> Parts:
    """The problems of Archer2.0-Code-1.5B (ASPO, arXiv 2510.06062)."""
    repo = "Fate-Zero/Archer2.0-Code-1.5B"
    return (Part(name="archer2-code", repo=repo, files=("*train*.json",), expected=8871),)


def archer2_math() -> Parts:
    """What the papers compose their mathematics of: DeepScaleR, Skywork-OR1 and DAPO-17k.

    They name three filters on it, with no settings: duplicates and the evaluation problems by
    N-grams, and the problems that the base model solves never or always. docs/data.md has the
    command.
    """
    return (*deepscaler(), *skywork_or1_math(), *dapo_math_17k())


def deepscaler() -> Parts:
    """DeepScaleR-Preview: AIME, AMC, Omni-MATH and Still."""
    repo = "agentica-org/DeepScaleR-Preview-Dataset"
    return (Part(name="deepscaler", repo=repo, files=("deepscaler.json",)),)


def skywork_or1_math() -> Parts:
    """The mathematics of Skywork-OR1 (arXiv 2505.22312)."""
    repo, files = "Skywork/Skywork-OR1-RL-Data", ("data/math-*.parquet",)
    return (Part(name="skywork-or1", repo=repo, files=files),)


def dapo_math_17k() -> Parts:
    """DAPO-Math-17k (arXiv 2503.14476); its file holds every problem many times."""
    repo, files = "BytedTsinghua-SIA/DAPO-Math-17k", ("data/*.parquet",)
    return (Part(name="dapo-math-17k", repo=repo, files=files),)


# Mathematics


def gsm8k(split: object = "test") -> Parts:
    """GSM8K (arXiv 2110.14168); `split` is train or test."""
    name, rows = _choice("gsm8k", "split", split, {"train": 7473, "test": 1319})
    files = (f"main/{name}-*.parquet",)
    return (Part(name=f"gsm8k-{name}", repo="openai/gsm8k", files=files, expected=rows),)


def math500() -> Parts:
    """The 500 problems of MATH that PRM800K tests on (arXiv 2305.20050)."""
    repo = "HuggingFaceH4/MATH-500"
    return (Part(name="math500", repo=repo, files=("test.jsonl",), expected=500),)


def aime24() -> Parts:
    """The American Invitational Mathematics Examination of 2024, I and II."""
    repo, files = "HuggingFaceH4/aime_2024", ("data/train-*.parquet",)
    return (Part(name="aime24", repo=repo, files=files, expected=30),)


def aime25() -> Parts:
    """The same of 2025."""
    repo, files = "opencompass/AIME2025", ("aime2025-I.jsonl", "aime2025-II.jsonl")
    return (Part(name="aime25", repo=repo, files=files, expected=30),)


def amc23() -> Parts:
    """The American Mathematics Competitions 12 of 2023, those with a number for an answer."""
    repo, files = "math-ai/amc23", ("data/test-*.parquet",)
    return (Part(name="amc23", repo=repo, files=files, expected=40),)


def minerva() -> Parts:
    """The undergraduate problems of Minerva (arXiv 2206.14858)."""
    repo, files = "math-ai/minervamath", ("data/test-*.parquet",)
    return (Part(name="minerva", repo=repo, files=files, expected=272),)


def olympiadbench() -> Parts:
    """OlympiadBench's open questions of mathematics, English, text alone (arXiv 2402.14008)."""
    files = ("OE_TO_maths_en_COMP/*.parquet",)
    return (Part(name="olympiadbench", repo="Hothan/OlympiadBench", files=files),)


# Programs

RELEASES = {
    "v1": 400,
    "v2": 511,
    "v3": 612,
    "v4": 713,
    "v5": 880,
    "v6": 1055,
}
"""Releases of LiveCodeBench and their numbers of problems; each holds all before it."""
WINDOWS = {("2024-08-01", "2025-02-01"): 279, ("2025-02-01", "2025-05-01"): 131}
"""The windows of the papers, called v5 and v6 there, and their numbers of problems. Both ends are
inside, so 2025-02-01 is in both."""


def livecodebench(release: object = "v6", start: object = None, end: object = None) -> Parts:
    """LiveCodeBench (arXiv 2403.07974); `start` and `end` are dates of contests, both inside."""
    version, rows = _choice("livecodebench", "release", release, RELEASES)
    files = ["test.jsonl", *(f"test{n}.jsonl" for n in range(2, int(version[1:]) + 1))]
    first, last = _date("start", start), _date("end", end)
    window = WINDOWS.get((first, last)) if version == "v6" else None
    bounded = start is not None or end is not None
    return (
        Part(
            name="livecodebench",
            repo="livecodebench/code_generation_lite",
            files=tuple(files),
            keep=(lambda row: first <= _day(row) <= last) if bounded else None,
            expected=window if bounded else rows,
        ),
    )


def _date(name: str, text: object) -> str:
    """A date of ISO 8601; one that is left out lies before or behind all others."""
    if text is None:
        return "" if name == "start" else "9999"
    try:
        if not isinstance(text, str) or not re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            raise ValueError("not of ten characters")
        date.fromisoformat(text)
    except ValueError as error:
        raise ValueError(
            f"livecodebench: {name} is {text!r} ({error}); write a date as 2025-02-01"
        ) from error
    return text


def _day(row: Row) -> str:
    """The day of a row's contest, whose date may have a time behind it."""
    return str(row.get("contest_date", ""))[:10]


def humaneval() -> Parts:
    """HumanEval (arXiv 2107.03374)."""
    repo, files = "openai/openai_humaneval", ("openai_humaneval/test-*.parquet",)
    return (Part(name="humaneval", repo=repo, files=files, expected=164),)


def humaneval_plus() -> Parts:
    """HumanEval with the tests of EvalPlus (arXiv 2305.01210)."""
    repo, files = "evalplus/humanevalplus", ("data/test-*.parquet",)
    return (Part(name="humanevalplus", repo=repo, files=files, expected=164),)


def mbpp() -> Parts:
    """MBPP (arXiv 2108.07732), all of it; its paper tests on the tasks 11 to 510."""
    files = tuple(f"full/{split}-*.parquet" for split in ("train", "validation", "test", "prompt"))
    repo = "google-research-datasets/mbpp"
    return (Part(name="mbpp", repo=repo, files=files, expected=974),)


def mbpp_plus() -> Parts:
    """Those of MBPP that EvalPlus has tests for."""
    repo, files = "evalplus/mbppplus", ("data/test-*.parquet",)
    return (Part(name="mbppplus", repo=repo, files=files, expected=378),)


def leetcode(split: object = "train") -> Parts:
    """LeetCodeDataset (arXiv 2504.14655); `split` is train or test."""
    name, rows = _choice("leetcode", "split", split, {"train": 2641, "test": 228})
    files = (f"LeetCodeDataset-v0.3.1-{name}.jsonl",)
    repo = "newfacade/LeetCodeDataset"
    return (Part(name=f"leetcode-{name}", repo=repo, files=files, expected=rows),)


def code_contests(split: object = "train") -> Parts:
    """CodeContests (AlphaCode, arXiv 2203.07814); `split` is train, valid or test."""
    name, rows = _choice(
        "code-contests", "split", split, {"train": 13328, "valid": 117, "test": 165}
    )
    repo, files = "deepmind/code_contests", (f"data/{name}-*.parquet",)
    return (Part(name=f"code-contests-{name}", repo=repo, files=files, expected=rows),)


def _choice(source: str, arg: str, value: object, known: Mapping[str, int]) -> tuple[str, int]:
    """The value that was given, and how many rows it stands for."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{source}: {arg} is {value!r}; make it one of {', '.join(known)}")
    return value, known[value]


NAMED: dict[str, Callable[..., Parts]] = {
    "archer-code-1.5b": archer_code,
    "archer2-code-1.5b": archer2_code,
    "archer2-math": archer2_math,
    "deepscaler": deepscaler,
    "dapo-math-17k": dapo_math_17k,
    "skywork-or1-math": skywork_or1_math,
    "gsm8k": gsm8k,
    "math500": math500,
    "aime24": aime24,
    "aime25": aime25,
    "amc23": amc23,
    "minerva": minerva,
    "olympiadbench": olympiadbench,
    "livecodebench": livecodebench,
    "humaneval": humaneval,
    "humaneval+": humaneval_plus,
    "mbpp": mbpp,
    "mbpp+": mbpp_plus,
    "leetcode": leetcode,
    "code-contests": code_contests,
}
"""The data sets of the hub by name."""
