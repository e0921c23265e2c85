"""A process that holds one shard of the learner, and where no others sample a replica as well.

All ranks are told the same things in the same order, because most of what they do is done together.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from archer.algo.batch import TokenBatch
from archer.algo.objective import Tallies
from archer.config import Config
from archer.engine.base import Request, Sample, Sampling
from archer.engine.choices import choose_objective
from archer.engine.cluster import fsdp
from archer.engine.cluster.replica import (
    BUCKET_BYTES,
    Published,
    Replica,
    as_array,
    checksum,
    choose_interface,
    here,
    put,
)
from archer.engine.learner import score
from archer.engine.local import learner_of, peak_bytes, resolve_device
from archer.model.adapt import adapt
from archer.model.load import load_model, unfilled_model

dist: Any = torch.distributed  # much of which has no types


class LearnerRank:
    """Rank `rank` of `world`; of no use before `join`."""

    def __init__(self, config: Config, *, rank: int, world: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self.config, self.rank, self.world, self.threads = config, rank, world, threads
        self.device = resolve_device(config.model.device)
        self.store: Any = None

    def address(self) -> tuple[str, int]:
        """Opens the place where all ranks meet. Of rank 0 alone."""
        host, seconds = here()[0], timedelta(seconds=self.config.cluster.wait_seconds)
        self.store = dist.TCPStore(
            host, 0, self.world, is_master=True, wait_for_workers=False, timeout=seconds
        )
        return host, self.store.port

    def join(self, host: str, port: int) -> None:
        """Meets the other ranks, loads the model and keeps this rank's shard of it."""
        config = self.config
        seconds = timedelta(seconds=config.cluster.wait_seconds)
        if self.store is None:
            self.store = dist.TCPStore(host, port, self.world, is_master=False, timeout=seconds)
        choose_interface()
        cuda = self.device.type == "cuda"
        dist.init_process_group(
            backend(self.device.type, offload=config.cluster.offload),
            store=self.store,
            rank=self.rank,
            world_size=self.world,
            timeout=seconds,
        )
        self.told = dist.new_group(backend="gloo", timeout=seconds) if cuda else None
        # Ranks agree on a checkpoint in a thread, while they learn together in another.
        self.saving = dist.new_group(backend="gloo", timeout=seconds)
        mesh = init_device_mesh(self.device.type, (self.world,))
        name, revision = config.model.name, config.model.revision
        # Sharded float32 parameters are their own masters, whatever the forward pass computes in.
        model = (
            unfilled_model(name, revision=revision)
            if self.rank
            else load_model(name, revision=revision, dtype="float32")
        )
        offload = config.cluster.offload
        half = config.model.dtype == "bfloat16" or (config.model.dtype == "auto" and cuda)
        self.sampled_dtype = torch.bfloat16 if half else torch.float32
        adapt(model)
        objective = choose_objective(config)
        self.reference: Any = None
        if objective.uses_reference:
            self.reference = copy.deepcopy(model).requires_grad_(False).eval()
            fsdp.shard(self.reference, mesh, self.device, half=half, offload=offload)
        fsdp.shard(model, mesh, self.device, half=half, offload=offload)
        self.learner = learner_of(model, config, objective, self.everyone)
        self.replica = None
        if config.learners_sample:
            self.replica = Replica(config, threads=self.threads)

    def everyone(self, own: Any) -> list[Any]:
        """What every rank gives here (`archer.engine.learner.Everyone`)."""
        told: list[Any] = [None] * self.world
        dist.all_gather_object(told, own, group=self.told)
        return told

    def score(self, part: TokenBatch | None, *, reference: bool) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of this rank's part, from the learner or the reference."""
        learner = self.learner
        model = self.reference if reference else learner.model
        tokens = learner.microbatch_tokens
        found = score(model, part, learner.temperature, tokens, everyone=self.everyone)
        model.reshard()  # no backward pass follows that would, and what is gathered would grow old
        self._make_room()
        return found

    def update(
        self, part: TokenBatch | None, *, lr: float, entropy_coefficient: float | None
    ) -> Tallies:
        """One optimizer step on all ranks' parts; the tallies of all."""
        return self.learner.update(part, lr=lr, entropy_coefficient=entropy_coefficient)

    def publish(self, version: int) -> Published | None:
        """Gives the weights to this rank's replica, or from rank 0 to whoever fetches them."""
        tensors = fsdp.whole_tensors(self.learner.model, self.sampled_dtype)
        if self.replica is not None:
            self.replica.take(tensors, version)
            return Published(version=version, checksum=0)
        buckets: list[Any] = []
        bucket: list[tuple[str, Any]] = []
        found = size = 0
        for name, tensor in tensors:
            if self.rank == 0:
                array = as_array(tensor)
                bucket.append((name, array))
                found = checksum([(name, torch.from_numpy(array))], found)
                size += array.nbytes
            if size >= BUCKET_BYTES:
                buckets.append(put(bucket))
                bucket, size = [], 0
            del tensor  # the last one would stay on the GPU
        self._make_room()
        if self.rank:
            return None
        buckets.append(put(bucket))
        return Published(version=version, checksum=found, buckets=tuple(buckets))

    def _make_room(self) -> None:
        """Gives back what torch has kept of a GPU's memory, where another process samples next."""
        if self.device.type == "cuda" and not self.config.cluster.samplers and self.replica is None:
            torch.cuda.empty_cache()

    def generate_by_step(
        self, requests: Sequence[Request], sampling: Sampling, published: Published
    ) -> Iterator[list[Sample]]:
        """Samples beside the learner, which has to wait."""
        assert self.replica is not None, "others sample"
        yield from self.replica.generate_by_step(requests, sampling, published)

    def save(self, folder: str) -> dict[str, int]:
        """Copies this rank's part of a checkpoint and begins to write it; the learner's counters.

        Learning may go on, and `written` comes back when it is there.
        """
        self.writing = fsdp.save(self.learner, Path(folder), self.saving)
        return self.learner.state()[2]

    def written(self) -> None:
        """Waits for what `save` began; in a thread of its own."""
        self.writing.result()

    def load(self, folder: str, counters: dict[str, int]) -> None:
        """Takes back a checkpoint."""
        fsdp.load(self.learner, Path(folder), counters)

    def peak(self) -> int:
        """Most bytes that this process has held."""
        return peak_bytes()

    def ping(self) -> tuple[str, int]:
        """Says where it is, whatever it works on."""
        return here()


def backend(device: str, *, offload: bool) -> str:
    """What carries messages between ranks; of shards in the CPU's memory, too, for their norm."""
    if device != "cuda":
        return "gloo"
    return "cpu:gloo,cuda:nccl" if offload else "nccl"
