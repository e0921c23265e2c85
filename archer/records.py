"""Judged groups as files: everything, to go on from; text, to be read; arrays, to be looked into.

`save_groups` keeps every bit of a step's groups, so that a run that was killed in the update does
not sample them again. `write_rollouts` is for people and for `archer grade`: one line a completion.
`write_arrays` keeps per-token numbers of a few groups for pages that show them by step and group.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float32

from archer.data.problems import to_problem, to_row
from archer.files import written_whole
from archer.types import Completion, Group, Rollout, Verdict

ARRAYS = ("token_ids", "logps", "entropies")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepGroups:
    """A step's judged groups, and what sampling them left behind."""

    groups: list[Group]
    position: int
    """Of the problem stream, behind the last problem drawn."""
    ledger: dict[str, float]
    """What the verifiers did for them."""


def save_groups(path: Path, step: StepGroups) -> None:
    """A step's judged groups, to the last bit."""
    groups = step.groups
    completions = [rollout.completion for group in groups for rollout in group.rollouts]
    arrays = {
        name: np.concatenate([getattr(completion, name) for completion in completions])
        for name in ARRAYS
    }
    arrays["prompt_ids"] = np.concatenate([g.rollouts[0].completion.prompt_ids for g in groups])
    described = {
        "position": step.position,
        "ledger": step.ledger,
        "groups": [_describe(group) for group in groups],
    }
    arrays["json"] = np.frombuffer(json.dumps(described).encode(), dtype=np.uint8)
    with written_whole(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_groups(path: Path) -> StepGroups:
    """What `save_groups` wrote; ValueError, with the cure, when the file is damaged."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            described = json.loads(arrays["json"].tobytes())
            packed = {name: arrays[name] for name in (*ARRAYS, "prompt_ids")}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        raise ValueError(
            f"{path}: these judged groups are damaged; delete the file to have them sampled again"
        ) from None
    groups, at, prompt_at = [], 0, 0
    for entry in described["groups"]:
        prompt_ids = packed["prompt_ids"][prompt_at : prompt_at + entry["prompt_length"]]
        prompt_at += entry["prompt_length"]
        rollouts = []
        for row in entry["rollouts"]:
            span = slice(at, at + row["length"])
            at += row["length"]
            completion = Completion(
                prompt_ids=prompt_ids,
                **{name: packed[name][span] for name in ARRAYS},
                **row["completion"],
            )
            verdict = Verdict(**row["verdict"])
            rollouts.append(Rollout(completion=completion, verdict=verdict, reward=row["reward"]))
        problem = to_problem(entry["problem"], where=str(path))
        groups.append(Group(problem=problem, rollouts=tuple(rollouts)))
    return StepGroups(groups=groups, position=described["position"], ledger=described["ledger"])


def _describe(group: Group) -> dict[str, Any]:
    return {
        "problem": to_row(group.problem),
        "prompt_length": len(group.rollouts[0].completion.prompt_ids),
        "rollouts": [
            {
                "length": len(rollout.completion.token_ids),
                "completion": {
                    "policy_version": rollout.completion.policy_version,
                    "stop": rollout.completion.stop,
                    "in_thought": rollout.completion.in_thought,
                    "text": rollout.completion.text,
                },
                "verdict": verdict_row(rollout.verdict),
                "reward": rollout.reward,
            }
            for rollout in group.rollouts
        ],
    }


def verdict_row(verdict: Verdict) -> dict[str, Any]:
    """A verdict as the keys that `archer grade` writes; "sandbox" only where a program was run."""
    row = asdict(verdict)
    return row if verdict.sandbox else {key: row[key] for key in row if key != "sandbox"}


def write_rollouts(
    path: Path, groups: Sequence[Group], advantages: Mapping[int, list[float]]
) -> None:
    """One line a completion: the problem's row, `response`, verdict, reward, advantage, scalars.

    `archer grade` reads these lines as they are. `advantages` maps a group's place among
    `groups` to its rollouts' advantages; groups that did not teach are not in it.
    """
    with written_whole(path) as file:
        for place, group in enumerate(groups):
            own = advantages.get(place)
            for sample in range(len(group.rollouts)):
                row = rollout_row(group, place, sample, None if own is None else own[sample])
                file.write(to_line(row))


def rollout_row(group: Group, place: int, sample: int, advantage: float | None) -> dict[str, Any]:
    """The keys of one line of `write_rollouts`."""
    rollout = group.rollouts[sample]
    completion = rollout.completion
    return {
        **to_row(group.problem),
        "group": place,
        "sample": sample,
        "response": completion.text,
        "in_thought": completion.in_thought,
        **verdict_row(rollout.verdict),
        "reward": rollout.reward,
        "advantage": advantage,
        "tokens": len(completion.token_ids),
        "stop": completion.stop,
        "logp": _mean(completion.logps),
        "entropy": _mean(completion.entropies),
    }


def _mean(values: Float32[np.ndarray, " T"]) -> float | None:
    """None where a server does not tell the values (NaN), for which JSON has no number."""
    return float(values.mean()) if np.isfinite(values).all() and len(values) else None


def to_line(row: Mapping[str, Any]) -> bytes:
    """A row as a line of JSONL."""
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Per-token arrays of some groups of a step, one flat array a name, with `lengths`."""
    with written_whole(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
