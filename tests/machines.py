"""Two node daemons on this machine that stand for two with GPUs, of which there are none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def two_machines(gpus: int) -> Iterator[Any]:
    """A cluster of two, each with so many GPUs as Ray counts."""
    import archer.engine.cluster  # before ray, which reads its settings

    assert archer.engine.cluster
    from ray.cluster_utils import Cluster

    small: dict[str, Any] = {"num_cpus": 2, "num_gpus": gpus, "object_store_memory": 100 << 20}
    cluster: Any = Cluster(
        initialize_head=True, head_node_args={**small, "include_dashboard": False}
    )
    cluster.add_node(**small)
    yield cluster
    cluster.shutdown()
