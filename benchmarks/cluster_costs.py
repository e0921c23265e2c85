"""What each thing costs that a cluster does beside computing: the constants of `archer.plan`.

    python benchmarks/cluster_costs.py

Two learners on a Ray cluster of this machine, a thread each, and models so small that what is left
is the cost of the cluster itself: times of two depths and two sizes are compared with those of one
process, and the differences divided. Medians of `--repeat` calls; nothing of it needs a GPU.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed
from torch.multiprocessing.spawn import start_processes

from archer.algo.batch import TokenBatch, minibatches, to_batch
from archer.config import config_from
from archer.engine.base import Engine, Request, Sampling
from archer.engine.cluster.balance import balanced
from archer.engine.cluster.judges import Judge
from archer.engine.cluster.rank import LearnerRank
from archer.model.shapes import SHAPES
from archer.model.tiny import tiny_model, tiny_tokenizer
from archer.plan.estimate import small_calls
from archer.setup import open_engine
from archer.types import Group, Problem, Rollout, Verdict

PROMPTS, SAMPLES, TOKENS = 8, 8, 4
SHALLOW, DEEP = 2, 10
TENSORS = 9
"""Of a layer of the tiny model."""


def median(work: Callable[[], object], repeat: int) -> float:
    """Seconds of a call."""
    work()
    taken = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


# ------------------------------------------------------------------ the verbs


@contextmanager
def opened(model: Path, learners: int) -> Iterator[Engine]:
    """An engine with a model of a folder: in this process, or of so many learners."""
    tree: dict[str, Any] = {
        "model": {"name": str(model), "threads": 1},
        "data": {"train": [{"source": "arithmetic", "count": 4}]},
        "rollout": {"problems": PROMPTS, "samples": SAMPLES, "max_tokens": TOKENS},
        "update": {"minibatch": PROMPTS, "learning_rate": 1e-6},
        "train": {"steps": 1},
    }
    if learners:
        tree |= {"engine": "cluster", "cluster": {"learners": learners}}
    torch.set_num_threads(1)
    with closing(open_engine(config_from(tree, where="costs"))) as engine:
        yield engine


def requests(count: int) -> list[Request]:
    """So many completions of eight prompts."""
    return [
        Request(
            prompt_ids=np.array([7, 8, 9 + i], dtype=np.int32),
            in_thought=False,
            names=tuple(("costs", i, j) for j in range(count // PROMPTS)),
        )
        for i in range(PROMPTS)
    ]


def a_batch(engine: Engine) -> TokenBatch:
    """What it samples, half of it with an advantage of 1 and half of -1."""
    asked = requests(PROMPTS * SAMPLES)
    found = {
        (s.request, s.number): s.completion
        for s in engine.generate(asked, Sampling(max_tokens=TOKENS))
    }
    problem = Problem(id="1", prompt="1+1=", verifier="exact", answer="2", source="costs")
    verdict = Verdict(outcome="wrong", score=0.0)
    groups = [
        Group(
            problem=problem,
            rollouts=tuple(
                Rollout(completion=found[i, j], verdict=verdict, reward=0.0) for j in range(SAMPLES)
            ),
        )
        for i in range(PROMPTS)
    ]
    batch = to_batch(groups, [[1.0, -1.0] * (SAMPLES // 2)] * PROMPTS)
    batch = engine.score(batch, old=True, reference=False)
    (whole,) = minibatches(batch, problems=PROMPTS, average="token", constant=8.0)
    return whole


def verbs(model: Path, learners: int, repeat: int) -> dict[str, float]:
    """Seconds of each verb."""
    with opened(model, learners) as engine:
        batch = a_batch(engine)
        few, many = requests(64), requests(512)
        one = Sampling(max_tokens=1)
        found = {
            "score": median(lambda: engine.score(batch, old=True, reference=False), repeat),
            "update": median(lambda: engine.update(batch, lr=1e-6), repeat),
            "publish": median(engine.publish, repeat),
            "few": median(lambda: list(engine.generate(few, one)), repeat),
            "many": median(lambda: list(engine.generate(many, one)), repeat),
        }
        if learners:
            found |= ray_costs(engine, repeat)
        return found


def message_seconds(model: Path, repeat: int) -> float:
    """Seconds of a message to the loop: of answers that are sent one by one, less those that come
    together."""
    import archer.engine.cluster.engine as cluster_engine

    class OneByOne(LearnerRank):
        def generate_by_step(self, *arguments: Any) -> Iterator[Any]:
            for finished in super().generate_by_step(*arguments):
                for sample in finished:
                    yield [sample]

    def taken() -> float:
        with opened(model, 2) as engine:
            asked = requests(512)
            return median(lambda: list(engine.generate(asked, Sampling(max_tokens=1))), repeat)

    together = taken()
    with patch.object(cluster_engine, "LearnerRank", OneByOne):
        return (taken() - together) / 512


def of_the_verbs(repeat: int) -> dict[str, float]:
    """Costs of a cluster beside those of one process."""
    sides: dict[tuple[int, int], dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for layers in (SHALLOW, DEEP):
            path = Path(folder) / str(layers)
            tiny_model("llama", layers=layers).save_pretrained(path)
            tiny_tokenizer().save_pretrained(path)
            for learners in (0, 2):
                sides[layers, learners] = verbs(path, learners, repeat)

        message = message_seconds(Path(folder) / str(SHALLOW), repeat)

    def beside(verb: str, layers: int) -> float:
        return sides[layers, 2][verb] - sides[layers, 0][verb]

    def per_layer(verb: str) -> float:
        return (beside(verb, DEEP) - beside(verb, SHALLOW)) / (DEEP - SHALLOW)

    # Each of two learners samples half of what one process has to sample alone.
    few, many = ({n: sides[SHALLOW, n][call] for n in (0, 2)} for call in ("few", "many"))
    completion = ((many[2] - few[2]) - (many[0] - few[0]) / 2) / (512 - 64)
    ours = sides[SHALLOW, 2]
    return {
        "a layer of a forward pass": per_layer("score"),
        "a layer of both passes": per_layer("update"),
        "a tensor that is published": per_layer("publish") / TENSORS,
        "score beside that": beside("score", SHALLOW) - (SHALLOW + 1) * per_layer("score"),
        "update beside that": beside("update", SHALLOW) - (SHALLOW + 1) * per_layer("update"),
        "publish beside that": beside("publish", SHALLOW) - SHALLOW * per_layer("publish"),
        "a message with completions": message,
        "a completion": completion,
        "a generate": few[2] - few[0] / 2 - 64 * completion,
        **{name: seconds for name, seconds in ours.items() if name.startswith("ray: ")},
    }


# ------------------------------------------------------------------ Ray


def ray_costs(engine: Any, repeat: int) -> dict[str, float]:
    """Of calls, of a verdict by a worker elsewhere, and of bytes in the object store."""
    import ray  # archer's own settings of it must come first

    rank = engine.learners["learner 0"]
    actor: Any = ray.remote(Judge)
    judge = actor.options(num_cpus=0, max_concurrency=8).remote()
    block = np.zeros(64 << 20, dtype=np.uint8)

    def calls() -> None:
        ray.get([rank.ping.remote() for _ in range(100)])

    def others() -> None:
        ray.get([judge.end.remote(n) for n in range(100)])

    def put() -> None:
        ray.put(block)

    return {
        "ray: a call": median(calls, repeat) / 100,
        "ray: a call in another thread": median(others, repeat) / 100,
        "ray: put, GB/s": block.nbytes / median(put, repeat) / 1e9,
    }


def fetch_rate(repeat: int) -> float:
    """Bytes a second from one daemon's object store to another's, both on this machine."""
    import ray
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 1 << 30, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=store)
    cluster.add_node(object_store_memory=1 << 30, resources={"far": 1})
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    block = np.zeros(64 << 20, dtype=np.uint8)

    @ray.remote(num_cpus=0, resources={"far": 1})
    def fetched(refs: list[Any]) -> float:
        start = time.perf_counter()
        ray.get(refs[0])
        return time.perf_counter() - start

    try:
        taken = [ray.get(fetched.remote([ray.put(block)])) for _ in range(repeat)]
        return block.nbytes / statistics.median(taken)
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


# ------------------------------------------------------------------ what needs no cluster


def checksum_rate(repeat: int) -> float:
    """Bytes a second of CRC-32."""
    block = np.random.default_rng(0).bytes(64 << 20)
    return len(block) / median(lambda: zlib.crc32(block), repeat)


def balance_seconds(rows: int, ranks: int) -> float:
    """Seconds a row and rank of dealing sequences to ranks."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1000, 32000, (rows,), generator=generator)
    prompts = rows // 16
    # What is dealt is read off lengths alone.
    batch: Any = type("Lengths", (), {})()
    batch.lengths = lengths
    batch.prompt_lengths = torch.full((prompts,), 200)
    batch.prompt_index = torch.arange(rows) // 16
    shape = SHAPES["qwen2.5-1.5b"]
    work = median(lambda: balanced(batch, range(rows), ranks, shape), 3)
    return work / rows / ranks


def gloo(rank: int, meeting: str, answer: str, repeat: int) -> None:
    """One of two ranks on this machine: seconds of small collectives, bytes a second of large."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # newer names that older versions lack
    dist: Any = torch.distributed
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    small, large = torch.zeros(16), torch.zeros(16 << 20)
    whole_small, whole_large = torch.zeros(32), torch.zeros(32 << 20)

    def gather(whole: torch.Tensor, part: torch.Tensor) -> float:
        return median(lambda: dist.all_gather_into_tensor(whole, part), repeat)

    def reduce(part: torch.Tensor, whole: torch.Tensor) -> float:
        return median(lambda: dist.reduce_scatter_tensor(part, whole), repeat)

    def told() -> None:
        dist.all_gather_object([None, None], [{"loss": (1.0, 1.0)}] * 4)

    found = [
        gather(whole_small, small),
        whole_large.nbytes / gather(whole_large, large) / 1e9,
        reduce(small, whole_small),
        whole_large.nbytes / reduce(large, whole_large) / 1e9,
        median(told, repeat),
    ]
    if rank == 0:
        Path(answer).write_text(" ".join(map(str, found)))
    dist.destroy_process_group()


def of_gloo(repeat: int) -> dict[str, float]:
    """Collectives of two processes on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        answer = f"{folder}/answer"
        start_processes(gloo, (f"file://{folder}/meeting", answer, repeat), nprocs=2)
        numbers = [float(word) for word in Path(answer).read_text().split()]
    names = [
        "gloo: a small gather",
        "gloo: gather, GB/s of the whole",
        "gloo: a small reduce and scatter",
        "gloo: reduce and scatter, GB/s of the whole",
        "gloo: what every rank tells",
    ]
    return dict(zip(names, numbers, strict=True))


def main() -> None:
    """Prints a cost a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=15)
    repeat = parser.parse_args().repeat
    torch.set_num_threads(1)
    show({"small calls": median(small_calls, 1000 * repeat)})
    show(of_gloo(repeat))
    show({"checksum, GB/s": checksum_rate(repeat) / 1e9})
    for rows, ranks in ((512, 8), (1024, 64), (1024, 1024)):
        name = f"dealing {rows:,} rows to {ranks:,} ranks, a row and rank"
        show({name: balance_seconds(rows, ranks)})
    show(of_the_verbs(repeat))
    show({"ray: fetched from another daemon, GB/s": fetch_rate(repeat) / 1e9})


def show(costs: dict[str, float]) -> None:
    """A cost a line: microseconds, or the rate that its name says."""
    for name, cost in costs.items():
        if "GB/s" in name:
            print(f"{name:<56} {cost:10.2f}", flush=True)
        else:
            print(f"{name:<56} {cost * 1e6:10.2f} us", flush=True)


if __name__ == "__main__":
    main()
