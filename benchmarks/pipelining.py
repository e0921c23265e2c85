"""How long learner and sampler wait for each other, where both take equally long.

    python benchmarks/pipelining.py [--seconds 3] [--steps 12]

One learner and one sampler on a Ray cluster of this machine, the tiny model, and delays that make
sampling a step and learning from it take the same time: what is left to wait for is what the
pipeline itself costs. With `rollout.ahead = 0` each side idles half of the time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import archer.engine.cluster.engine as cluster_engine
import archer.engine.cluster.samplers as cluster_samplers
from archer.config import load_config
from archer.engine.cluster.rank import LearnerRank
from archer.engine.cluster.replica import Replica
from archer.terminal import Terminal
from archer.train import train

TINY = Path(__file__).parents[1] / "recipes/tiny.toml"


def slowed(seconds: float) -> tuple[type, type]:
    """A replica and a rank whose work on a step takes so many seconds in all, their own included.

    By value, for Ray to send along.
    """

    class SlowReplica(Replica):
        def generate_by_step(self, *arguments: Any) -> Iterator[Any]:
            start = time.perf_counter()
            steps = list(super().generate_by_step(*arguments))
            time.sleep(max(0.0, seconds - (time.perf_counter() - start)))
            yield from (samples for samples in steps)  # Ray wants a generator's own iterator

    class SlowRank(LearnerRank):
        def update(self, *arguments: Any, **knobs: Any) -> Any:
            start = time.perf_counter()
            found = super().update(*arguments, **knobs)
            time.sleep(max(0.0, seconds - (time.perf_counter() - start)))
            return found

    return SlowReplica, SlowRank


def idle_shares(steps: int, ahead: int) -> tuple[float, float, float]:
    """Shares of the time that learner and sampler waited, and seconds a step; the middle steps."""
    overrides = [
        'engine="cluster"',
        "cluster.samplers=1",
        f"rollout.ahead={ahead}",
        'mismatch.kind="tis"',
        "rollout.problems=8",
        "update.minibatch=8",
        f"train.steps={steps}",
        f"checkpoint.every={steps}",
        "eval.every=0",
        "data.evaluate=[]",
    ]
    with tempfile.TemporaryDirectory() as folder:
        train(load_config(TINY, overrides), Path(folder) / "run", Terminal(quiet=True))
        lines = (Path(folder) / "run/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines][2 + ahead : -1 - ahead]
    whole = sum(row["seconds/step"] for row in rows)
    learner = sum(row["seconds/rollout"] for row in rows)
    sampler = sum(row["seconds/idle_sampler"] for row in rows)
    return learner / whole, sampler / whole, whole / len(rows)


def main() -> None:
    """Prints the shares without and with a step ahead."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    replica, rank = slowed(options.seconds)
    print(f"sampling {options.seconds:g} s, learning {options.seconds:g} s a step")
    print("ahead   learner waits   sampler waits   a step")
    with (
        patch.object(cluster_samplers, "Replica", replica),  # which fails where that is not used
        patch.object(cluster_engine, "LearnerRank", rank),
    ):
        for ahead in (0, 1):
            learner, sampler, seconds = idle_shares(options.steps, ahead)
            waits = f"{sampler:.1%}" if ahead else "-"
            print(f"{ahead:5}   {learner:13.1%}   {waits:>13}   {seconds:.2f} s", flush=True)


if __name__ == "__main__":
    main()
