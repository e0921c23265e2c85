"""Run as a program: checkpoints of a tiny Qwen2 as real processes write them, by FSDP2 over gloo.

    python ranks.py OUT SIZE ...

For each number of ranks it writes OUT/released-SIZE (a file a rank, as verl does it),
OUT/half-SIZE (the same in bfloat16), OUT/ours-SIZE (torch.distributed.checkpoint), OUT/nested-SIZE
(the same beside other things) and, for 2 or more, OUT/replicas-SIZE (a mesh of copies and shards)
and OUT/meshless-SIZE (ShardedTensors, as FSDP's first version writes them without a mesh).
Keys have fewer rows than there are ranks.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    ShardedStateDictConfig,
    StateDictType,
    fully_shard,
)
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.multiprocessing.spawn import start_processes

from archer.model.tiny import tiny_model

VOCABULARY = 67
"""Odd, so that no number of ranks divides the embedding's rows."""


def model(*, tied: bool = True) -> Any:
    return tiny_model(
        "qwen2", tied=tied, vocabulary=VOCABULARY, layers=1, heads=2, kv_heads=1, head_dim=2
    )


def write(rank: int, size: int, out: Path) -> None:
    meeting = f"file://{out.resolve() / f'meeting-{size}'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("fsdp",))
    for name, number_type in (("released", torch.float32), ("half", torch.bfloat16)):
        state = sharded(model().to(number_type), mesh)
        save(state, out / f"{name}-{size}", rank, size)
    state = sharded(model(), mesh)
    save_distributed(dict(state), checkpoint_id=out / f"ours-{size}")
    nested = {"model": state, "optimizer": {"norm": state["model.norm.weight"]}, "step": 3}
    save_distributed(nested, checkpoint_id=out / f"nested-{size}")
    if size > 1:
        mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("ddp", "fsdp"))
        state = {
            name: distribute_tensor(tensor.detach(), mesh, [Replicate(), Shard(0)])
            for name, tensor in model().state_dict().items()
        }
        save(state, out / f"replicas-{size}", rank, size)
        save(meshless(model()), out / f"meshless-{size}", rank, size)
    dist.destroy_process_group()


def sharded(whole: Any, mesh: Any) -> dict[str, Any]:
    for layer in whole.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(whole, mesh=mesh)
    found: dict[str, Any] = whole.state_dict()
    return found


def meshless(whole: Any) -> dict[str, Any]:
    warnings.simplefilter("ignore")  # all of this is deprecated
    whole = FullyShardedDataParallel(whole, device_id=torch.device("cpu"))
    kind, how = StateDictType.SHARDED_STATE_DICT, ShardedStateDictConfig(offload_to_cpu=True)
    with FullyShardedDataParallel.state_dict_type(whole, kind, how):
        found: dict[str, Any] = whole.state_dict()
    return found


def save(state: dict[str, Any], folder: Path, rank: int, size: int) -> None:
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / f"model_world_size_{size}_rank_{rank}.pt")


if __name__ == "__main__":
    for ranks in map(int, sys.argv[2:]):
        start_processes(write, (ranks, Path(sys.argv[1])), nprocs=ranks, start_method="fork")
