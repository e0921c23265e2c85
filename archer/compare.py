"""`archer eval --compare`: two results, problem by problem.

What makes a problem hard for both models cancels in the difference, so the paired interval is
narrower than the two intervals of the results let one think. Nothing is sampled or judged here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archer.algo.passk import average_at_k, paired_interval
from archer.data.problems import shown
from archer.scores import Evaluation, different_settings, problem_scores, read_evaluation
from archer.terminal import table

WIDTH = 80
VALUE_WIDTH = 23
"""Characters of a setting's value that are shown."""
SEED = 0
"""Of the bootstrap: the same two files always give the same interval."""


def compare(first: Path, second: Path) -> str:
    """The difference of two results, `second` minus `first`, as a text of at most 80 columns.

    Both are files of `archer eval`, with their responses beside them. ValueError for anything else,
    for results on different problems, and for two that have no judged problem in common.
    """
    before, after = read_evaluation(first), read_evaluation(second)
    differ = different_settings(before.settings, after.settings)
    if "problems_hash" in differ:
        one, other = differ["problems_hash"]
        raise ValueError(
            f"{first} and {second} were measured on different problems (problems_hash {one} and "
            f"{other}); evaluate both models on the same file"
        )
    scores, others = problem_scores(first), problem_scores(second)
    common = [id for id in scores if id in others]
    if not common:
        raise ValueError(
            f"{first} and {second} have no judged problem in common; evaluate both models on the "
            "same file, with a verifier that can judge it"
        )
    text = [
        _shortened(f"A  {_named(first, before)}"),
        _shortened(f"B  {_named(second, after)}"),
        "",
        _difference([scores[id] for id in common], [others[id] for id in common]),
    ]
    if len(common) < max(before.problems, after.problems, len(scores), len(others)):
        alone = (len(scores) - len(common), len(others) - len(common))
        nowhere = before.problems - len(common) - sum(alone)
        text.append(
            f"left out: {alone[0]} problems judged in A alone, {alone[1]} in B alone, "
            f"{nowhere} in neither"
        )
    return "\n".join([*text, "", _settings(differ)])


def _difference(first: list[float], second: list[float]) -> str:
    found = paired_interval(first, second, seed=SEED)
    row = (
        "mean score",
        f"{average_at_k(first):.3f}",
        f"{average_at_k(second):.3f}",
        f"{found.mean:+.3f}",
        f"[{found.low:+.3f}, {found.high:+.3f}]",
    )
    header = (
        f"{len(first)} problem{'s' * (len(first) > 1)} in both",
        "A",
        "B",
        "B - A",
        "95 % interval",
    )
    better = sum(b > a for a, b in zip(first, second, strict=True))
    worse = sum(b < a for a, b in zip(first, second, strict=True))
    return (
        f"{table([row], header)}\n\n"
        f"problems: {better} better in B · {worse} worse · {len(first) - better - worse} the same"
    )


def _settings(differ: Mapping[str, tuple[Any, Any]]) -> str:
    if not differ:
        return "settings: the same"
    rows: list[tuple[str, ...]] = [
        (
            _shortened(name, WIDTH - 2 * VALUE_WIDTH - 4),
            shown(one, VALUE_WIDTH),
            shown(other, VALUE_WIDTH),
        )
        for name, (one, other) in differ.items()
    ]
    return table(rows, ("settings that differ", "A", "B"))


def _named(path: Path, evaluation: Evaluation) -> str:
    return f"{path} ({evaluation.model})" if evaluation.model else str(path)


def _shortened(text: str, width: int = WIDTH) -> str:
    return (
        text if len(text) <= width else f"{text[: width // 4]}...{text[width // 4 + 3 - width :]}"
    )
