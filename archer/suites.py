"""Test suites by name: which problems, and the settings that a paper or an official runner scores
them with.

    settings("aime24")          # {"samples": 64, "temperature": 0.8, "top_p": 1.0, ...}
    problems("aime24", ...)     # evals/suites/aime24.jsonl, prepared from the hub the first time

`SUITES` is the table; `archer eval MODEL --suite NAME` lays what is given beside it over its
settings, and the result holds all of them. Scores can only be compared where settings are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archer.data.problems import nearest
from archer.files import one_at_a_time
from archer.prepare import prepare
from archer.prepare.named import find_parts
from archer.terminal import Terminal, table

FOLDER = Path("evals/suites")
"""Where problems are prepared, below the folder that the command runs in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Problems and settings.

    Example:
        Suite(data="aime24", settings={"samples": 64, "temperature": 0.8}, origin=PAPER)
    """

    data: str
    """A name of `archer.prepare.named.NAMED`."""
    settings: Mapping[str, Any]
    """As `archer.evaluate_model.sections` takes them."""
    origin: str
    """Whose settings these are."""
    args: Mapping[str, str] = field(default_factory=dict)
    """Of the data."""

    @property
    def expected(self) -> int | None:
        """How many problems others count."""
        known = [part.expected for part in find_parts(self.data, self.args)]
        return None if None in known else sum(count for count in known if count is not None)


PAPER = "Archer, ASPO"
"""arXiv 2507.15778 and 2510.06062, which score alike."""
SCRIPTS = "Archer's scripts"
"""What was released with them: another top-p, and half the samples of AIME."""
RUNNER = "LiveCodeBench"
"""What its runner takes by default for a model that vLLM samples from (arXiv 2403.07974); to hosted
services it sends no stop string."""
EVALPLUS = "EvalPlus"
"""What it takes by default (arXiv 2305.01210): one greedy answer."""
GREEDY = "GSM8K's paper"
"""arXiv 2110.14168: one greedy answer, whose last number counts."""

_PAPER = {"temperature": 0.8, "top_p": 1.0, "max_tokens": 32768}
_SCRIPTS = {**_PAPER, "top_p": 0.95}
_EVALPLUS = {"samples": 1, "temperature": 0.0, "max_tokens": 768}
_V5 = {"release": "v6", "start": "2024-08-01", "end": "2025-02-01"}
_V6 = {"release": "v6", "start": "2025-02-01", "end": "2025-05-01"}


def _math(data: str, samples: int) -> Suite:
    return Suite(data=data, settings={"samples": samples, **_PAPER}, origin=PAPER)


def _released(data: str) -> Suite:
    return Suite(data=data, settings={"samples": 32, **_SCRIPTS}, origin=SCRIPTS)


def _contests(
    window: Mapping[str, str], samples: int, sampling: Mapping[str, Any], origin: str
) -> Suite:
    """LiveCodeBench: its rows bring its prompt and its 6 seconds a test."""
    settings = {"samples": samples, **sampling}
    return Suite(data="livecodebench", args=window, settings=settings, origin=origin)


SUITES: dict[str, Suite] = {
    "aime24": _math("aime24", 64),
    "aime25": _math("aime25", 64),
    "amc23": _math("amc23", 64),
    "minerva": _math("minerva", 8),
    "math500": _math("math500", 4),
    "olympiadbench": _math("olympiadbench", 4),
    "livecodebench-v5": _contests(_V5, 8, _PAPER, PAPER),
    "livecodebench-v6": _contests(_V6, 16, _PAPER, PAPER),
    "aime24-released": _released("aime24"),
    "aime25-released": _released("aime25"),
    "livecodebench-v5-released": _contests(_V5, 8, _SCRIPTS, SCRIPTS),
    "livecodebench-v6-released": _contests(_V6, 16, _SCRIPTS, SCRIPTS),
    "livecodebench-official": _contests(
        {"release": "v6"},
        10,
        {"temperature": 0.2, "top_p": 0.95, "max_tokens": 2000, "stop": ("###",)},
        RUNNER,
    ),
    "humaneval": Suite(data="humaneval", settings=_EVALPLUS, origin=EVALPLUS),
    "humaneval+": Suite(data="humaneval+", settings=_EVALPLUS, origin=EVALPLUS),
    "mbpp+": Suite(data="mbpp+", settings=_EVALPLUS, origin=EVALPLUS),
    "gsm8k": Suite(
        data="gsm8k",
        settings={
            "samples": 1,
            "temperature": 0.0,
            "max_tokens": 512,
            "answer_pattern": "number",
        },
        origin=GREEDY,
    ),
}
"""The suites by name. What the papers and scripts call v5 and v6 of LiveCodeBench are windows of
its contests' dates; 2025-02-01 is in both."""


def find_suite(name: str) -> Suite:
    """The suite of a name; ValueError with the nearest right one."""
    if name not in SUITES:
        raise ValueError(f"no suite is called {name!r}; {nearest(name, list(SUITES))}")
    return SUITES[name]


def listed() -> str:
    """The table of suites."""
    rows: list[tuple[str, ...]] = [
        (
            name,
            str(suite.expected or "-"),
            str(suite.settings["samples"]),
            f"{suite.settings['temperature']:g}",
            f"{suite.settings.get('top_p', 1.0):g}",
            str(suite.settings["max_tokens"]),
            suite.origin,
        )
        for name, suite in SUITES.items()
    ]
    return table(rows, ("suite", "problems", "K", "T", "top-p", "tokens", "settings of"))


def laid_over(name: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a suite, and over them what was asked for; None is not asked for."""
    given = {key: value for key, value in asked.items() if value is not None}
    return {**asked, **find_suite(name).settings, **given}


def suite_problems(name: str, terminal: Terminal) -> Path:
    """The file of a suite's problems, prepared where it is not there yet, by one process alone."""
    suite, path = find_suite(name), FOLDER / f"{name}.jsonl"
    if path.exists():
        return path

    def tell() -> None:
        terminal.say(f"{name}: another process prepares its problems; waiting for it")

    with one_at_a_time(FOLDER / f".{name}.lock", tell):
        if not path.exists():
            terminal.say(f"{name}: its problems are prepared into {path}")
            prepare(suite.data, path, args=suite.args, terminal=terminal)
    return path


def unexpected(name: str, problems: int) -> str:
    """What is to be said where a suite has not as many problems as others count; else ""."""
    expected = find_suite(name).expected
    if expected is None or problems == expected:
        return ""
    return f"{name}: {problems} problems are scored, and others count {expected}"
