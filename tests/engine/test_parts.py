"""Samplers that are cut over processes, as the engine sees them: who is lost, whose words count.

What vLLM does in each part is tested with it (tests/engine/test_vllm.py). Here every part has a
whole model of our own and samples by itself, so that no vLLM is needed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from archer.config import Config, config_from
from archer.engine.base import Request, Sample, Sampling
from archer.engine.cluster import replica, samplers
from archer.engine.cluster.engine import ClusterEngine
from archer.engine.cluster.replica import Published, Replica
from archer.setup import open_engine
from tests.engine.test_engines import SAMPLING, requests


def recipe(**cluster: Any) -> Config:
    tree = {
        "model": {"name": "tiny", "threads": 1},
        "data": {"train": [{"source": "arithmetic", "count": 4}]},
        "rollout": {"problems": 3, "samples": 4, "max_tokens": 4, "sampler": "vllm"},
        "mismatch": {"kind": "tis"},
        "update": {"minibatch": 3, "learning_rate": 1e-4},
        "train": {"steps": 1},
        "engine": "cluster",
        "cluster": {"tensor_parallel": 2, "wait_seconds": 60.0, **cluster},
    }
    return config_from(tree, where="test")


class Whole(Replica):
    """A part that has all of the model. Where a file says so, it fails as a part would."""

    def __init__(
        self, config: Config, *, threads: int, part: Any = None, others: Sequence[Any] = ()
    ) -> None:
        torch.set_num_threads(threads)
        self.others, self.version, self.running = others, -1, None
        self.sampler = replica._own(config)

    def generate_by_step(
        self, requests: Sequence[Request], sampling: Sampling, published: Published
    ) -> Iterator[list[Sample]]:
        fault = Path(os.environ["FAULT_OF_PARTS"])
        for samples in super().generate_by_step(requests, sampling, published):
            if fault.exists():
                if said := fault.read_text():
                    os.kill(int(said), signal.SIGKILL)
                raise RuntimeError("a step of 33,000 tokens did not fit")
            yield samples


@pytest.fixture
def fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(samplers, "Replica", Whole)
    monkeypatch.setenv("FAULT_OF_PARTS", str(tmp_path / "fault"))
    return tmp_path / "fault"


def answers(engine: ClusterEngine) -> dict[tuple[int, int], list[int]]:
    return {
        (sample.request, sample.number): sample.completion.token_ids.tolist()
        for sample in engine.generate(requests(), SAMPLING)
    }


def killed(engine: ClusterEngine, part: str) -> int:
    """The process of a part, once it is known."""
    while not engine.samplers.ready():
        answers(engine)
    return engine.pulse.places[engine.samplers.processes[part]][1]


def test_two_that_sample_at_once_go_on_when_their_sampler_loses_a_part(fault: Path) -> None:
    said: list[str] = []
    with closing(open_engine(recipe(learners=1, samplers=1), said.append)) as engine:
        assert isinstance(engine, ClusterEngine)
        expected = answers(engine)
        other = killed(engine, "sampler 0 part 1")
        fault.write_text(str(other))  # the first part loses the other, and says so as an error
        with ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(answers, engine) for _ in range(2)]
            deadline = time.monotonic() + 60
            while not said and time.monotonic() < deadline:
                time.sleep(0.05)
            fault.unlink()
            assert [call.result() for call in calls] == [expected, expected]
        assert [line for line in said if f"sampler 0 part 1 died (process {other}" in line]


def test_an_error_that_comes_again_with_new_parts_is_told_as_it_is(fault: Path) -> None:
    """The parts of a model that fails end as well: that is no loss that a new one would mend."""
    said: list[str] = []
    with closing(open_engine(recipe(learners=1, samplers=1), said.append)) as engine:
        assert isinstance(engine, ClusterEngine)
        answers(engine)
        fault.write_text("")
        with pytest.raises(RuntimeError, match="a step of 33,000 tokens did not fit"):
            answers(engine)


def test_by_turns_samplers_are_told_to_make_room(fault: Path, tmp_path: Path) -> None:
    with closing(open_engine(recipe(learners=2), print)) as engine:
        assert isinstance(engine, ClusterEngine)
        assert answers(engine)
        assert engine.samplers.awake
        engine.samplers.sleep()
        assert not engine.samplers.awake
        assert answers(engine)
