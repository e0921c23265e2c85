"""A model sharded over ranks with FSDP2: how it is cut, gathered, saved and loaded.

Each layer is a group of its own, gathered when it is needed; embedding, last norm and head form the
root's. A head that is tied to the embedding is one parameter in one group, and the fused head works
inside the root's forward, so both find it whole. The root stays gathered from the forward to the
backward pass, which follows at once.

Gradients are sums: every token carries its share of the mini-batch's mean (`archer.algo.batch`), so
nothing is left to divide by, and FSDP's own division by the number of ranks is turned off.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as read
from torch.distributed.checkpoint.state_dict_saver import async_save as write_aside
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from archer.engine.learner import Learner, compute_device
from archer.engine.local import MOMENTS, WEIGHTS
from archer.model.sharded import METADATA


def shard(model: Any, mesh: DeviceMesh, device: torch.device, *, half: bool, offload: bool) -> None:
    """Shards an adapted Hugging Face model in place, on a device.

    Rank 0 has its weights, in memory of the CPU; the others have it on the meta device and are sent
    them, a layer at a time. So no GPU, and no other rank, ever holds more than its shard and a
    layer.

    half: forward and backward passes in bfloat16. The parameters stay float32, so they are their
    own masters, and gradients are summed over ranks and micro-batches in float32.

    offload: shards and their gradients lie in the CPU's memory, pinned where there is a GPU to copy
    from and to it. A layer is sent and cut on the device all the same; its shard then leaves.
    """
    policy = MixedPrecisionPolicy()
    if half:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    where = CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy()
    for layer in model.model.layers:
        _spread(layer, device)
        fully_shard(layer, mesh=mesh, mp_policy=policy, offload_policy=where)
    _spread(model, device)
    fully_shard(
        model, mesh=mesh, mp_policy=policy, offload_policy=where, reshard_after_forward=False
    )
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _spread(module: Any, device: torch.device) -> None:
    """Puts what of a module is not sharded yet on every rank's device; what is tied stays tied."""
    there: dict[Tensor, Tensor] = {}  # by identity
    for part in module.modules():
        for own in (part._parameters, part._buffers):
            for name, tensor in own.items():
                if tensor is None or isinstance(tensor, DTensor):
                    continue
                if tensor not in there:
                    whole = (
                        torch.empty_like(tensor, device=device, requires_grad=False)
                        if tensor.is_meta
                        else tensor.detach().to(device)
                    )
                    dist.broadcast(whole, src=0)
                    there[tensor] = (
                        nn.Parameter(whole, requires_grad=tensor.requires_grad)
                        if isinstance(tensor, nn.Parameter)
                        else whole
                    )
                own[name] = there[tensor]


def whole_tensors(model: Any, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Name and whole value of each parameter, one at a time; all ranks go through it together.

    Where shards lie in the CPU's memory they are gathered on the GPUs, whose links are faster.
    """
    device = compute_device(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            part = parameter.to(device)
            whole = part.full_tensor() if isinstance(part, DTensor) else part
            yield name, whole.detach().to(dtype)


# ------------------------------------------------------------------ checkpoints


def save(learner: Learner, folder: Path, group: Any) -> Future[Any]:
    """Copies this rank's part of weights and moments to the CPU's memory and begins to write it.

    group: a process group that nothing else uses, with a backend for the CPU.
    """
    _check_seen(folder)
    weights, moments, _ = learner.state()
    found = write_aside(
        {"model": weights, "optimizer": moments}, checkpoint_id=folder, process_group=group
    )
    assert isinstance(found, Future)
    return found


def load(learner: Learner, folder: Path, counters: Mapping[str, int]) -> None:
    """Takes back a checkpoint of any number of ranks, or of the local engine.

    ValueError when it is one of another model.
    """
    _check_seen(folder)
    if (folder / METADATA).is_file():
        weights, moments = _read_distributed(learner, folder)
    else:
        weights = dict(_read_whole(learner, folder / WEIGHTS))
        moments = dict(_read_whole(learner, folder / MOMENTS, of_moments=True))
    learner.load_state(weights, moments, counters)


def _check_seen(folder: Path) -> None:
    """ValueError on a machine that does not see what the loop has made: what is written there would
    be missing from a checkpoint that looks whole."""
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is not there on {socket.gethostname()}: the run folder must be on a disk "
            "that all machines see; give another one with --run"
        )


def _read_distributed(
    learner: Learner, folder: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Each rank reads the rows that it holds, whoever wrote them."""
    found: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
    for key, entry in FileSystemReader(folder).read_metadata().state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            kind, _, name = key.partition(".")
            like = _like(learner, name, of_moments=kind == "optimizer")
            if like is None or like.shape != entry.size:
                # A moment's step counter; else another model's, which `load_state` tells.
                like = torch.empty(entry.size)
            found[kind][name] = torch.zeros_like(like)
    read(found, checkpoint_id=folder)
    return found["model"], found["optimizer"]


def _read_whole(
    learner: Learner, path: Path, *, of_moments: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of the local engine's file, cut as the learner's own is."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no dict
            tensor, like = file.get_tensor(name), _like(learner, name, of_moments=of_moments)
            if like is not None and like.shape == tensor.shape:
                # Every rank reads the same file: nothing is sent. Cut on the mesh's device, a shard
                # goes back at once to where it is kept.
                tensor = distribute_tensor(
                    tensor, like.device_mesh, like.placements, src_data_rank=None
                ).to(like.device)
            yield name, tensor


def _like(learner: Learner, name: str, *, of_moments: bool) -> Any:
    """The weight that a stored tensor, or a moment such as `NAME.exp_avg`, belongs to."""
    return learner.masters.get(name.rpartition(".")[0] if of_moments else name)
