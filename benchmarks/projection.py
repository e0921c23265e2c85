"""What the cost model of `archer plan` says of 8 to 1,024 GPUs: Markdown for docs/scale.md.

    python benchmarks/projection.py [--recipe recipes/archer2_math_1.5b.toml]

Nothing is measured here: it is the arithmetic of `archer.plan.cluster`, for three sizes of model,
with the recipe's batch and with one that grows with the GPUs. What does not fit is named by its
numbers and then passed over, so that the other parts can be seen.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from archer.config import Config, load_config
from archer.model.shapes import known_shape
from archer.plan import expected_lengths
from archer.plan.cluster import (
    GPUS,
    Placement,
    gathered_seconds,
    gpu_job,
    learner_load,
    reading_bytes,
    sampler_load,
    step_times,
    too_large,
)
from archer.plan.costs import collecting_seconds, dealing_seconds
from archer.plan.estimate import Job, learned_groups, score_passes, scored_groups

RECIPE = Path(__file__).parents[1] / "recipes/archer2_math_1.5b.toml"
COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024)


class Case(NamedTuple):
    """A model, the GPUs it is projected on, and what of the recipe is changed for it."""

    model: str
    gpu: str
    overrides: tuple[str, ...]
    apart: bool
    """Half of the GPUs sample, a step ahead; else all sample and learn by turns."""


CASES = (
    Case("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "h100", (), apart=False),
    Case(
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        "h100",
        ("rollout.cache_tokens=524288",),
        apart=False,
    ),
    Case(
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
        "h100",
        (
            "rollout.cache_tokens=786432",
            "rollout.ahead=1",
            "rollout.sampler=vllm",
            "mismatch.kind=tis",
            "engine=cluster",
            "cluster.samplers=1",  # its number is that of the GPUs
            "cluster.tensor_parallel=4",
        ),
        apart=True,
    ),
)


def place_of(config: Config, case: Case, gpus: int) -> Placement:
    """Who is where on so many GPUs."""
    parts, sampling = config.cluster.tensor_parallel, gpus // 2 if case.apart else 0
    learners, samplers = gpus - sampling, sampling // parts
    return Placement(gpu=case.gpu, learners=learners, samplers=samplers, parts=parts)


def job_for(config: Config, case: Case, grown: int) -> Job:
    """The recipe with its batch and its mini-batches so many times as large."""
    rollout = config.rollout.model_copy(update={"problems": grown * config.rollout.problems})
    update = config.update.model_copy(update={"minibatch": grown * config.update.minibatch})
    config = config.model_copy(update={"rollout": rollout, "update": update})
    shape = known_shape(case.model)
    assert shape is not None, "a well-known model"
    return gpu_job(config, shape, expected_lengths(config, None))


def loop_seconds(job: Job, place: Placement) -> float:
    """Of the one process that runs the loop, in a step: answers taken in, sequences dealt out."""
    rollout, update, groups = job.config.rollout, job.config.update, learned_groups(job)
    steps = math.ceil(groups / update.minibatch)
    scored = dealing_seconds(scored_groups(job) * rollout.samples, place.learners)
    learned = dealing_seconds(groups / steps * rollout.samples, place.learners)
    deals = score_passes(job.config) * scored + update.passes * steps * learned
    answers, longest = rollout.problems * rollout.samples, job.lengths.longest_answer
    return collecting_seconds(answers, places=place.sampling, longest=longest) + deals


def row(job: Job, case: Case, gpus: int, first: float) -> tuple[list[str], float]:
    """Cells of a number of GPUs, and answers a second and GPU (`first`: those of the fewest)."""
    place = place_of(job.config, case, gpus)
    times, load = step_times(job, place), learner_load(job, place)
    answers = job.config.rollout.problems * job.config.rollout.samples
    rate = answers / times.step / gpus
    return [
        f"{gpus:,}",
        f"{answers:,}",
        f"{load.peak / 1e9:.0f} GB" + " (too much)" * bool(too_large(load, place.gpu)),
        seconds(times.sampling),
        seconds(times.score + times.update),
        seconds(sum(gathered_seconds(job.shape, place.learners, place.gpu))),
        seconds(times.weights),
        seconds(loop_seconds(job, place)),
        seconds(times.step),
        f"{rate / (first or rate):.0%}",
    ], rate


HEADER = (
    "GPUs",
    "answers a step",
    "a learner's GPU",
    "sampling",
    "learning",
    "messages of a pass",
    "weights",
    "the loop",
    "a step",
    "a GPU's rate",
)


def seconds(number: float) -> str:
    """With about two digits."""
    if number < 0.0995:
        return f"{number * 1000:.0f} ms"
    return f"{number:,.{2 if number < 0.995 else 1 if number < 9.95 else 0}f} s"


def markdown(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """A table whose columns are set to the right."""
    lines = [header, ["--:"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def projected(config: Config, case: Case, counts: Sequence[int], *, grows: bool) -> str:
    """The table of a case, with the recipe's batch or with one that grows with the GPUs."""
    rows: list[list[str]] = []
    first = 0.0
    for gpus in counts:
        cells, rate = row(
            job_for(config, case, gpus // COUNTS[0] if grows else 1), case, gpus, first
        )
        rows.append(cells)
        first = first or rate
    return markdown(rows, HEADER)


def refusals(config: Config, case: Case) -> list[str]:
    """Samplers that fit no GPU of a kind however many there are: as the case has them, and whole,
    with room for one answer in flight."""
    one = config.model_copy(
        update={"rollout": config.rollout.model_copy(update={"cache_tokens": 1})}
    )
    cut, found = config.cluster.tensor_parallel, []
    for settings, parts in {cut: (config, cut), 1: (one, 1)}.values():
        most = Placement(gpu=case.gpu, learners=512, samplers=512 // parts, parts=parts)
        load = sampler_load(job_for(settings, case, 1), most)
        over = f" over {parts} GPUs" * (parts > 1)
        faults = {gpu: too_large(load, gpu) for gpu in GPUS if gpu == case.gpu or parts == 1}
        found += [f"- a sampler{over} on {gpu}: {fault}" for gpu, fault in faults.items() if fault]
    return found


def main() -> None:
    """Prints for each model what does not fit, and two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    recipe = parser.parse_args().recipe
    for case in CASES:
        config = load_config(recipe, [f'model.name="{case.model}"', *case.overrides])
        reading = reading_bytes(job_for(config, case, 1))
        changed = f", {' '.join(case.overrides)}" if case.overrides else ""
        print(f"{case.model} on {case.gpu}, {'half' if case.apart else 'all'} sample{changed}")
        print(f"{reading / 1e9:,.0f} GB of one machine's memory while it is read")
        print("\n".join([*refusals(config, case), ""]))
        print(projected(config, case, COUNTS, grows=False), end="\n\n")
        print(projected(config, case, COUNTS[::3] + COUNTS[-1:], grows=True), end="\n\n")


if __name__ == "__main__":
    main()
