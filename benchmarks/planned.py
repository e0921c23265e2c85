"""What `archer plan` says of a cluster on this machine's CPUs, beside what the run then takes.

    python benchmarks/planned.py [--rounds 3] [--recipe recipes/tiny.toml] [--steps 30]

Two learners that sample by turns, and two learners beside two samplers. In each round each of them
is run and planned, one right after the other, for a plan measures the machine's speed. Memory is
`memory/peak_gb` and `memory/all_gb` at the run's end, time the median step. "as it ran" is the
planned step with the share of groups that taught and the length of answers in the run, which a plan
cannot know.

Ends with 1 where the plan's own median ratio is off by more than 20 % (memory) or 40 % (time).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from archer.config import Config, load_config
from archer.cores import num_cores
from archer.plan import expected_lengths, job_of
from archer.plan.estimate import measure_speed
from archer.plan.missing import find_shape
from archer.plan.processes import process_loads, process_times, processes_of, together
from archer.setup import load_data

TINY = Path(__file__).parents[1] / "recipes/tiny.toml"
BOUNDS = {"largest process": 0.2, "all processes": 0.2, "a step": 0.4}
KINDS = {"2 learners by turns": (2, 0), "2 learners, 2 samplers": (2, 2)}


def planned(config: Config, taught: float, answer: float) -> dict[str, float]:
    """GB and seconds by the plan; its step also with the share that taught and the length."""
    shape = find_shape(config)
    assert shape is not None, "the recipe's model is here"
    job = job_of(config, shape, expected_lengths(config, load_data(config)))
    processes = processes_of(config, num_cores())
    loads, speed = process_loads(job, processes), measure_speed(job, threads=processes.threads)
    as_it_ran = replace(job, teaching=taught, lengths=replace(job.lengths, answer=answer))
    return {
        "largest process": max(load.peak for load in loads.values()) / 1e9,
        "all processes": together(loads, processes) / 1e9,
        "a step": process_times(job, speed, processes).step,
        "as it ran": process_times(as_it_ran, speed, processes).step,
    }


def measured(recipe: Path, overrides: list[str]) -> tuple[dict[str, float], float, float]:
    """GB and seconds of a run, the share of its groups that taught, and its answers' length."""
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        command = [sys.executable, "-m", "archer.cli", "train", str(recipe), "--run", run]
        subprocess.run([*command, *overrides], check=True, stdout=subprocess.DEVNULL)
        lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    step = statistics.median(row["seconds/step"] for row in rows[len(rows) // 10 :])
    found = {
        "largest process": rows[-1]["memory/peak_gb"],
        "all processes": rows[-1]["memory/all_gb"],
        "a step": step,
        "as it ran": step,
    }
    taught = statistics.mean(row["groups/teaching"] / row["groups/sampled"] for row in rows)
    length = statistics.mean(row["response_length/mean"] for row in rows)
    return found, taught, length


def compare(recipe: Path, steps: int, rounds: int) -> bool:
    """Prints medians and ratios; whether all are within their bounds."""
    ratios: dict[tuple[str, str], list[float]] = {}
    values: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for kind, (learners, samplers) in KINDS.items():
            overrides = [
                'engine="cluster"',
                f"cluster.learners={learners}",
                f"cluster.samplers={samplers}",
                f"train.steps={steps}",
                f"checkpoint.every={steps}",
                "data.evaluate=[]",
                "eval.every=0",
            ]
            config = load_config(recipe, overrides)
            was, taught, length = measured(recipe, overrides)
            for what, value in planned(config, taught, length).items():
                ratios.setdefault((kind, what), []).append(value / was[what])
                values.setdefault((kind, what), []).append((value, was[what]))
    within = True
    for (kind, what), found in ratios.items():
        ratio = statistics.median(found)
        within = within and abs(ratio - 1) <= BOUNDS.get(what, 1.0)
        unit = "GB" if "process" in what else "s"
        plan, run = (statistics.median(column) for column in zip(*values[kind, what], strict=True))
        print(
            f"{kind:<24} {what:<16} planned {plan:6.3f} {unit:<2}  measured {run:6.3f} {unit:<2}  "
            f"ratio {ratio:.2f} ({min(found):.2f} to {max(found):.2f})"
        )
    return within


def main() -> int:
    """Compares, and says by the exit code whether the plan was near enough."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recipe", type=Path, default=TINY)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    return int(not compare(options.recipe, options.steps, options.rounds))


if __name__ == "__main__":
    sys.exit(main())
