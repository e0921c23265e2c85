"""A replica samples with the weights that it is asked for, or not at all."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch

from archer.config import config_from
from archer.engine.base import Request, Sampling
from archer.engine.cluster.replica import Published, Replica, as_array, checksum
from archer.engine.sampler import Sampler
from archer.model.tiny import tiny

ASKED = [
    Request(
        prompt_ids=np.array([7, 8, 9], dtype=np.int32), in_thought=False, names=(("a", 0), ("a", 1))
    )
]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Replica:
    """In this process: what is put into Ray's store is the object itself."""
    monkeypatch.setattr("ray.get", lambda bucket: bucket)
    tree = {
        "model": {"name": "tiny", "threads": 1},
        "data": {"train": [{"source": "arithmetic", "count": 4}]},
        "rollout": {"problems": 1, "samples": 2, "max_tokens": 3},
        "update": {"minibatch": 1, "learning_rate": 1e-3},
        "train": {"steps": 1},
    }
    return Replica(config_from(tree, where="test"), threads=1)


def published(version: int, seed: int, dtype: torch.dtype, wrong: int = 0) -> Published:
    """The weights of a tiny model in two pieces."""
    pairs = [(n, p.detach().to(dtype)) for n, p in tiny(seed=seed).named_parameters()]
    arrays = [(name, as_array(tensor)) for name, tensor in pairs]
    return Published(
        version=version, checksum=checksum(pairs) ^ wrong, buckets=(arrays[:3], arrays[3:])
    )


def logps(own: Replica, of: Published) -> list[list[float]]:
    steps = list(own.generate_by_step(ASKED, Sampling(max_tokens=3), of))
    samples = list(chain(*steps))
    assert len(steps) < len(samples)  # a message each, and not one for every answer
    assert {sample.completion.policy_version for sample in samples} == {of.version}
    return [sample.completion.logps.tolist() for sample in samples]


def test_weights_with_another_checksum_are_not_sampled_with(own: Replica) -> None:
    first = logps(own, published(0, seed=0, dtype=torch.float32))
    with pytest.raises(RuntimeError, match="version 1 arrived with the checksum"):
        logps(own, published(1, seed=1, dtype=torch.float32, wrong=1))
    assert own.version == -1
    assert logps(own, published(0, seed=0, dtype=torch.float32)) == first
    assert logps(own, published(1, seed=1, dtype=torch.float32)) != first


def test_weights_of_sixteen_bits_arrive_as_they_were(own: Replica) -> None:
    logps(own, published(2, seed=1, dtype=torch.bfloat16))
    expected = dict(tiny(seed=1).named_parameters())
    assert isinstance(own.sampler, Sampler)
    for name, weight in own.sampler.model.named_parameters():
        assert torch.equal(weight, expected[name].to(torch.bfloat16).float())
