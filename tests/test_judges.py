"""Verdicts from all machines of a cluster, and none lost with one of them.

Two node daemons on this machine stand for two machines.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from archer.engine.cluster import judges
from archer.engine.cluster.judges import open_judges
from archer.types import Problem
from archer.verify.policy import Policy


@pytest.fixture
def two() -> Iterator[Any]:
    import ray  # after archer's, whose settings it reads
    from ray.cluster_utils import Cluster

    small: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 100 << 20}
    cluster: Any = Cluster(
        initialize_head=True, head_node_args={**small, "include_dashboard": False}
    )
    cluster.add_node(**small)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address=cluster.address, **options)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def problem(number: int) -> Problem:
    return Problem(
        id=str(number),
        prompt="?",
        verifier="tests.verify.graders:sleeps_or_is_right",
        answer=number,
        source="test",
    )


def verifiers_of_this_machine() -> set[int]:
    """Worker processes that this process has started itself."""
    children = psutil.Process().children()
    return {p.pid for p in children if "archer.verify.worker" in p.cmdline()}


def test_both_machines_judge_and_one_that_is_lost_takes_no_verdict_with_it(two: Any) -> None:
    with open_judges(Policy(cpu_seconds=5.0), workers=2, step_seconds=120.0) as pool:
        tickets = [pool.submit(problem(i), str(i), False) for i in range(12)]
        assert [v.outcome for v in pool.collect(tickets)] == ["correct"] * 12
        assert len(verifiers_of_this_machine()) == 2
        everywhere = [p for p in psutil.process_iter() if _is_worker(p)]
        assert len(everywhere) >= 4
        pool.ledger()
        tickets = [pool.submit(problem(i), str(i), False) for i in range(24)]
        time.sleep(0.3)
        two.remove_node(two.worker_nodes.copy().pop(), allow_graceful=False)
        assert [v.outcome for v in pool.collect(tickets)] == ["correct"] * 24
        assert pool.ledger()["verify/workers_lost"] >= 1


@pytest.mark.full
def test_a_machine_that_is_lost_before_it_judges_is_done_without(two: Any) -> None:
    """It is cut off, and Ray takes it for alive for another minute."""
    (node,) = two.worker_nodes
    (daemon,) = (info for info in node.all_processes["raylet"])
    psutil.Process(daemon.process.pid).suspend()
    said: list[str] = []
    with open_judges(
        Policy(cpu_seconds=5.0), workers=2, step_seconds=120.0, say=said.append
    ) as pool:
        tickets = [pool.submit(problem(i), str(i), False) for i in range(4)]
        assert [v.outcome for v in pool.collect(tickets)] == ["correct"] * 4
        assert len(verifiers_of_this_machine()) == 2
    assert len(said) == 1 and said[0].endswith("nothing is judged there")


def test_a_judge_that_hangs_is_done_without(two: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped, while its machine lives: Ray would wait for it without end."""
    monkeypatch.setattr(judges, "SILENT_SECONDS", 3.0, raising=False)
    with open_judges(Policy(cpu_seconds=5.0), workers=2, step_seconds=60.0) as pool:
        tickets = [pool.submit(problem(i), str(i), False) for i in range(4)]
        assert [v.outcome for v in pool.collect(tickets)] == ["correct"] * 4
        (judge,) = (p for p in psutil.process_iter() if p.name().startswith("ray::Judge"))
        judge.suspend()
        tickets = [pool.submit(problem(i), f"{i} ", False) for i in range(8)]
        try:
            assert [v.outcome for v in pool.collect(tickets)] == ["correct"] * 8
        finally:
            judge.kill()


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "archer.verify.worker" in process.cmdline()
    except psutil.Error:
        return False
