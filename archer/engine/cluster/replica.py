"""A model that samples: in a process of its own, or beside a shard of the learner.

Weights come with a version and a checksum. What a request is to be sampled with is said with it, so
a replica that missed a version, or was started after it, fetches it before its next token.
"""

from __future__ import annotations

import os
import traceback
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import ray
import torch
from torch import Tensor

from archer.config import Config
from archer.engine.base import Request, Sample, Sampling
from archer.engine.local import peak_bytes, resolve_device
from archer.engine.sampler import Sampler
from archer.engine.vllm import Part, VllmSampler, open_vllm
from archer.model.adapt import adapt
from archer.model.load import load_model, load_tokenizer, stop_token_ids

BUCKET_BYTES = 256 << 20
"""Weights that travel together: large enough to be fast, small enough to be held twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The weights of one version, as whoever is to sample with them gets at them.

    Example, a model of two buckets, after the third step:
        Published(version=3, checksum=2863311530, buckets=(ref, ref))
    """

    version: int
    checksum: int
    """CRC-32 over the bytes of all tensors in the model's order."""
    buckets: tuple[Any, ...] = ()
    """Ray objects, a list of (name, array) each. None where ranks sample: they have them."""


class Replica:
    """A whole model in this process, or a part of one, with the version of its weights."""

    def __init__(
        self,
        config: Config,
        *,
        threads: int,
        part: Part | None = None,
        others: Sequence[Any] = (),
    ) -> None:
        """part: of a model that is cut over processes; others: those, told by the first one."""
        torch.set_num_threads(threads)
        if part is not None:
            choose_interface()
        self.others = others
        self.sampler: Sampler | VllmSampler
        if config.rollout.sampler == "vllm":
            cuda = resolve_device(config.model.device).type == "cuda"
            by_turns = not config.cluster.samplers
            self.sampler = open_vllm(config, sleeps=by_turns and cuda, part=part)
        else:
            self.sampler = _own(config)
        self.version = -1
        self.running: Generator[list[Sample], None, None] | None = None

    def generate_by_step(
        self, requests: Sequence[Request], sampling: Sampling, published: Published
    ) -> Iterator[list[Sample]]:
        """Samples with the weights of that version, fetched first where they are not here.

        What a step has finished goes to the loop together: a message costs more than an answer.
        """
        self.leave()
        self.fetch(published)
        for other in self.others:
            other.follow.remote(requests, sampling, published.version)
        version = published.version
        self.running = self.sampler.generate_by_step(requests, sampling, policy_version=version)
        yield from self.running

    def leave(self) -> None:
        """Ends what is sampled for nobody any more, for all parts.

        Ray forgets a call that was cancelled without closing it, and the others wait for a word.
        """
        if self.running is not None:
            self.running.close()
            self.running = None

    def follow(self, requests: Sequence[Request], sampling: Sampling, version: int) -> None:
        """Takes part in what the first part samples.

        Where this fails the others would wait for it, so its process ends, which is seen.
        """
        ended = False
        try:
            if self.version != version:
                raise RuntimeError(f"this part has version {self.version}, not {version}")
            for _ in self.sampler.generate_by_step(requests, sampling, policy_version=version):
                pass
            ended = True
        finally:
            if not ended:
                traceback.print_exc()
                os._exit(1)

    def fetch(self, published: Published) -> None:
        """Takes the weights of a version, all parts of a model at once, where they are not here."""
        if self.version != published.version:
            fetched = [other.fetch.remote(published) for other in self.others]
            self.take(_fetched(published), published.version)
            self.version = -1  # until the others have it too
            ray.get(fetched)
            self.version = published.version

    def take(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes over all parameters; while that goes on, this replica has no version."""
        self.version = -1
        self.sampler.take(tensors)
        self.version = version

    def sleep(self) -> None:
        """Gives a GPU's memory back to the learner that is there too, weights and all."""
        self.leave()
        slept = [other.sleep.remote() for other in self.others]
        if isinstance(self.sampler, VllmSampler) and self.sampler.sleep():
            self.version = -1
        ray.get(slept)

    def peak(self) -> int:
        """Most bytes that this process has held."""
        return peak_bytes()

    def ping(self) -> tuple[str, int]:
        """Says where it is, whatever it works on."""
        return here()


def _own(config: Config) -> Sampler:
    name, revision = config.model.name, config.model.revision
    device = resolve_device(config.model.device)
    model = load_model(name, dtype=config.model.dtype, device=device, revision=revision)
    adapt(model)
    tokenizer = load_tokenizer(name, revision=revision)
    return Sampler(
        model.requires_grad_(False).eval(),
        tokenizer,
        stop_token_ids=stop_token_ids(tokenizer, model.generation_config),
        cache_tokens=config.rollout.cache_tokens,
    )


def _fetched(published: Published) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a version; RuntimeError behind the last one where they are not those."""
    found = 0
    for bucket in published.buckets:
        for name, array in ray.get(bucket):
            tensor = torch.from_numpy(array)
            found = checksum([(name, tensor)], found)
            yield name, tensor.view(torch.bfloat16) if tensor.dtype == torch.int16 else tensor
    if found != published.checksum:
        raise RuntimeError(
            f"the weights of version {published.version} arrived with the checksum {found:08x} "
            f"instead of {published.checksum:08x}"
        )


def here() -> tuple[str, int]:
    """Address of this machine, and this process's number on it."""
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return address, os.getpid()


def choose_interface() -> None:
    """Has gloo meet others at the address that Ray knows this machine by.

    It would take the network interface that the machine's name stands for, which often is loopback:
    then processes on other machines are not found.
    """
    address, _ = here()
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in entries):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def put(bucket: Any) -> Any:
    """Makes an object to be fetched from any machine, as long as this process lives."""
    return ray.put(bucket)


def as_array(tensor: Tensor) -> Any:
    """A tensor's numbers as numpy holds them: bfloat16, which it does not know, as 16-bit words."""
    tensor = tensor.detach().cpu().contiguous()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def checksum(tensors: Iterable[tuple[str, Tensor]], found: int = 0) -> int:
    """CRC-32 over the bytes of all tensors, one behind the other."""
    for _, tensor in tensors:
        found = zlib.crc32(as_array(tensor), found)
    return found
