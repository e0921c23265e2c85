"""Who shares a GPU with whom, on two machines that pretend to have two each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from archer.config import Config, config_from
from archer.engine.cluster.session import Session, open_session
from tests.machines import two_machines


def recipe(sampler: str, **cluster: Any) -> Config:
    tree = {
        "model": {"name": "tiny", "threads": 1},
        "data": {"train": [{"source": "arithmetic", "count": 4}]},
        "rollout": {"problems": 2, "samples": 2, "max_tokens": 4, "sampler": sampler},
        "mismatch": {"kind": "tis"},
        "update": {"minibatch": 2, "learning_rate": 1e-4},
        "train": {"steps": 1},
        "engine": "cluster",
        "cluster": {**cluster, "silent_seconds": 5.0, "wait_seconds": 60.0},
    }
    return config_from(tree, where="test")


class Somewhere:
    """A process that says which machine it is on, and which of its GPUs it may use."""

    def __init__(self, *, threads: int) -> None:
        self.threads = threads

    def where(self) -> tuple[str, int]:
        import ray

        context: Any = ray.get_runtime_context()
        (gpu,) = ray.get_gpu_ids()
        return context.get_node_id(), int(gpu)


@pytest.fixture(scope="module")
def machines() -> Iterator[Any]:
    with two_machines(gpus=2) as cluster:
        yield cluster


@pytest.fixture
def placed(machines: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Where learners and the parts of samplers of a recipe are."""
    import ray

    monkeypatch.setenv("RAY_ADDRESS", machines.address)
    opened: list[Session] = []

    def found(config: Config) -> tuple[list[Any], list[list[Any]]]:
        session = open_session(config, 0, print)
        opened.append(session)
        numbers = session.numbers
        learners = [session.start(Somewhere, place) for place in range(numbers.learners)]
        samplers = [
            [session.start(Somewhere, numbers.place(s, part)) for part in range(numbers.parts)]
            for s in range(numbers.samplers)
        ]
        where: list[Any] = ray.get([process.where.remote() for process in learners])
        return where, [ray.get([part.where.remote() for part in own]) for own in samplers]

    yield found
    for session in opened:
        session.close()


def test_samplers_apart_have_gpus_of_their_own(placed: Any) -> None:
    learners, samplers = placed(recipe("own", learners=2, samplers=2))
    assert len({*learners, *(part for own in samplers for part in own)}) == 4


def test_a_sampler_that_is_cut_is_on_one_machine(placed: Any) -> None:
    """However the learners lie: two GPUs of four are one machine's."""
    learners, ((one, other),) = placed(recipe("vllm", learners=2, samplers=1, tensor_parallel=2))
    assert one[0] == other[0] and one != other
    assert len({*learners, one, other}) == 4


def test_by_turns_each_learner_shares_its_gpu_with_a_sampler(placed: Any) -> None:
    learners, samplers = placed(recipe("vllm", learners=4))
    assert len(set(learners)) == 4
    assert [part for own in samplers for part in own] == learners


def test_by_turns_a_sampler_is_cut_over_learners_of_one_machine(placed: Any) -> None:
    learners, samplers = placed(recipe("vllm", learners=4, tensor_parallel=2))
    assert len(set(learners)) == 4
    assert [part for own in samplers for part in own] == learners
    assert all(one[0] == other[0] for one, other in samplers)


def test_a_sampler_that_is_cut_finds_no_place_where_no_machine_has_room(placed: Any) -> None:
    """Three GPUs on one machine there are not, though four in all; nor two, beside a learner."""
    with pytest.raises(ValueError, match="GPUs on one machine, and the largest has 2: lower it"):
        placed(recipe("vllm", learners=1, samplers=1, tensor_parallel=3))
    config = recipe("vllm", learners=3, samplers=1, tensor_parallel=2)
    config = config.model_copy(
        update={"cluster": config.cluster.model_copy(update={"wait_seconds": 2.0})}
    )
    with pytest.raises(ValueError, match="3 learners and 1 sampler of 2 processes on 2 machines"):
        placed(config)
