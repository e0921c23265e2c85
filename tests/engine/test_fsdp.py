"""A model is cut a layer at a time: rank 0 alone reads it, and what is tied stays tied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing.spawn import start_processes

from archer.engine.cluster.fsdp import shard, whole_tensors
from archer.model.adapt import adapt
from archer.model.tiny import tiny_model

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
    shard(model, init_device_mesh("cpu", (RANKS,)), torch.device("cpu"), half=False)
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
