"""A model is cut a layer at a time: rank 0 alone reads it, and what is tied stays tied.

Offloaded shards learn what others learn. Here both lie in the CPU's memory, for want of a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import FileStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.multiprocessing.spawn import start_processes

from archer.algo.batch import TokenBatch, take
from archer.config import config_from
from archer.engine.cluster.fsdp import shard, whole_tensors
from archer.engine.cluster.rank import LearnerRank, backend
from archer.engine.learner import compute_device
from archer.model.adapt import adapt
from archer.model.tiny import tiny_model
from tests.engine.test_learner import a_batch

RANKS = 2


def whole(*, tied: bool) -> Any:
    """67 tokens, so that the embedding's rows can not be dealt evenly."""
    return tiny_model("qwen2", tied=tied, vocabulary=67, layers=2, heads=2, kv_heads=1, head_dim=4)


def on_rank(rank: int, meeting: Path, tied: bool) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS)
    model, expected = whole(tied=tied), whole(tied=tied)
    if rank:
        model = model.to("meta")
        model.tie_weights()
    adapt(model)
    mesh = init_device_mesh("cpu", (RANKS,))
    shard(model, mesh, torch.device("cpu"), half=False, offload=False)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    found = dict(whole_tensors(model, torch.float32))
    assert found.keys() == dict(expected.named_parameters()).keys()
    for name, tensor in expected.named_parameters():
        assert torch.equal(found[name], tensor), name
    for name, tensor in expected.named_buffers():
        assert torch.equal(dict(model.named_buffers())[name], tensor), name
    held = sum(parameter.to_local().numel() for parameter in model.parameters())
    assert held < 0.6 * sum(parameter.numel() for parameter in expected.parameters())
    dist.destroy_process_group()


@pytest.mark.parametrize("tied", [True, False])
def test_ranks_are_sent_their_shards_of_what_rank_0_read(tmp_path: Path, tied: bool) -> None:
    start_processes(on_rank, (tmp_path / "meeting", tied), nprocs=RANKS, start_method="spawn")


# ------------------------------------------------------------------ in the CPU's memory


def a_rank(number: int, meeting: Path, *, offload: bool) -> LearnerRank:
    tree = {
        "engine": "cluster",
        "model": {"name": "tiny"},
        "data": {"train": [{"source": "arithmetic", "count": 4}]},
        "rollout": {"problems": 3, "samples": 3, "max_tokens": 7},
        "loss": {"name": "aspo_archer"},
        "kl": {"knowledge": 0.01},
        "update": {"minibatch": 3, "learning_rate": 1e-3, "microbatch_tokens": 15},
        "train": {"steps": 3},
        "cluster": {"learners": RANKS, "samplers": 1, "offload": offload},
    }
    rank = LearnerRank(config_from(tree, where="test"), rank=number, world=RANKS, threads=1)
    rank.store = FileStore(str(meeting), RANKS)
    rank.join("", 0)
    for model in (rank.reference, rank.learner.model):
        for module in (model, *model.model.layers):
            policy = module._get_fsdp_state()._fsdp_param_group.offload_policy
            assert isinstance(policy, CPUOffloadPolicy) is offload
            assert not getattr(policy, "pin_memory", False), "there is no GPU to pin it for"
    return rank


def learned(rank: LearnerRank, part: TokenBatch | None, steps: int = 1) -> list[Any]:
    """All that can be seen of some steps: tallies, scores and weights."""
    seen: list[Any] = []
    for _ in range(steps):
        seen.append(rank.update(part, lr=1e-3, entropy_coefficient=None))
        assert seen[-1]["grad_norm"][0] > 0
        seen += [rank.score(part, reference=which) for which in (False, True)]
    return [*seen, dict(whole_tensors(rank.learner.model, torch.float32))]


def written(rank: LearnerRank, folder: Path) -> dict[str, int]:
    folder.mkdir(exist_ok=True)  # by whichever rank is first; in a run the loop makes it
    counters = rank.save(str(folder))
    rank.written()
    return counters


def rank_that_offloads(number: int, folder: Path) -> None:
    # Micro-batches of unlike number: rank 0 makes passes for which rank 1 has no sequence.
    part = take(a_batch(reference=True), [0, 1, 2, 3, 4, 5, 6] if number == 0 else [7, 8])
    plain = a_rank(number, folder / "first", offload=False)
    before = learned(plain, part, steps=2)
    counters = written(plain, folder / "plain")
    after = learned(plain, part)
    dist.destroy_process_group()

    offloaded = a_rank(number, folder / "second", offload=True)
    assert same(learned(offloaded, part, steps=2), before)
    assert written(offloaded, folder / "offloaded") == counters
    assert same(learned(offloaded, part), after)
    assert not same(after, before[-len(after) :])
    offloaded.load(str(folder / "plain"), counters)
    assert same(learned(offloaded, part), after)
    dist.destroy_process_group()

    again = a_rank(number, folder / "third", offload=False)
    again.load(str(folder / "offloaded"), counters)
    assert same(learned(again, part), after)
    dist.destroy_process_group()


def same(found: Any, expected: Any) -> bool:
    """To the last bit, in lists, tuples and dicts as well."""
    if isinstance(expected, Tensor):
        return torch.equal(found, expected)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[k], expected[k]) for k in found)
    if isinstance(expected, list | tuple):
        return all(map(same, found, expected)) and len(found) == len(expected)
    return bool(found == expected)


def test_offloaded_ranks_learn_the_same_and_take_each_others_checkpoints(tmp_path: Path) -> None:
    start_processes(rank_that_offloads, (tmp_path,), nprocs=RANKS, start_method="spawn")


def test_a_shard_in_the_cpus_memory_is_computed_with_on_its_meshs_device() -> None:
    mesh = DeviceMesh("cuda", torch.arange(1), _init_backend=False, _rank=0)
    whole = torch.zeros(4, 2)
    meta = TensorMeta(whole.shape, whole.stride(), whole.dtype)
    kept = DTensor(whole, DTensorSpec(mesh, (Shard(0),), tensor_meta=meta), requires_grad=False)
    model = nn.Linear(2, 4, bias=False)
    assert compute_device(model) == torch.device("cpu")
    model.weight = nn.Parameter(kept)
    assert model.weight.device == torch.device("cpu")
    assert compute_device(model) == torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "offload", "speaks"),
    [
        ("cpu", False, {"cpu": "gloo"}),
        ("cpu", True, {"cpu": "gloo"}),
        ("cuda", False, {"cuda": "nccl"}),
        ("cuda", True, {"cpu": "gloo", "cuda": "nccl"}),
    ],
)
def test_ranks_can_speak_of_tensors_wherever_their_shards_are(
    device: str, offload: bool, speaks: dict[str, str]
) -> None:
    chosen = dist.BackendConfig(dist.Backend(backend(device, offload=offload)))
    found = chosen.get_device_backend_map()
    assert {kind: found[kind] for kind in speaks} == speaks
    assert ("cpu" in found) is ("cpu" in speaks)
