"""What a cluster costs beside computing: calls, messages, collectives, weights on their way.

Measured by `benchmarks/cluster_costs.py` on two cores (torch 2.13.0, Ray 2.60; docs/scale.md): two
learners with a thread each; medians of six runs. Both plans of a cluster use them, for CPUs and
for GPUs, because this part is Python and TCP on either.
"""

from __future__ import annotations

from archer.model.shapes import ModelShape

MESSAGE_SECONDS = 170e-6
"""What one step of a sampler has finished, on its way to the loop through Ray's stream ..."""

ANSWER_SECONDS = 65e-6
"""... and each answer in it: 21 us to be taken in, and 44 us for its verdict and its lines on disk.
Those are what a step of the tiny recipe takes beside its parts, over its 512 answers."""

GENERATE_SECONDS = 5e-3
"""A call that samples, beside its answers."""

CALL_SECONDS = 150e-6
"""A call to one process that is told something, and its answer."""

DEALING_SECONDS = 100e-9
"""Of a sequence and a rank, where sequences are dealt to ranks by their work."""

SCORE_SECONDS = 9.5e-3
"""A scoring pass on ranks beside its layers: its parts out and back, and one thing told to all."""

UPDATE_SECONDS = 13e-3
"""An optimizer step on ranks beside its layers: the same, two things told, the norm of all."""

LAYER_SECONDS = {"score": 1.55e-3, "update": 4.7e-3}
"""A layer of a pass of a sharded model: its hooks, its gathers, and its reduction (gloo)."""

TENSOR_SECONDS = 730e-6
"""A tensor that is made whole on all ranks."""

PUBLISH_SECONDS = 5e-3
"""A version of the weights beside its tensors and bytes."""

GATHER_RATE = 1.05e9
"""Bytes a second of the whole tensor, where ranks on one machine gather it or reduce it (gloo)."""

CHECKSUM_RATE = 7e9
"""Bytes a second of CRC-32."""

FETCH_RATE = 1.1e9
"""Bytes a second that one machine gets from another one's object store."""

TELL_SECONDS = 700e-6
"""What every rank tells all others, for each of the others (gloo)."""

PUT_RATE = 2.8e9
"""Bytes a second into Ray's object store."""


def dealing_seconds(rows: float, ranks: int) -> float:
    """Seconds of the loop to deal sequences to ranks and call each.

    From the code: `archer.engine.cluster.balance.balanced` looks at each rank for each sequence,
    and `ClusterEngine` calls each rank.
    """
    return DEALING_SECONDS * rows * ranks + CALL_SECONDS * ranks


def collecting_seconds(answers: float, *, places: int, longest: int) -> float:
    """Seconds of the loop to take in all answers.

    From the code: a place that samples sends at most one message for each of its steps, of which
    there are as many as the longest answer has tokens.
    """
    messages = min(answers, places * longest)
    return GENERATE_SECONDS + MESSAGE_SECONDS * messages + ANSWER_SECONDS * answers


def told_seconds(ranks: int) -> float:
    """What all ranks tell all others once: around a ring, in as many hops as there are others."""
    return TELL_SECONDS * (ranks - 1)


def tensor_count(shape: ModelShape) -> int:
    """Tensors of a model's parameters: four projections, three of the MLP and two norms a layer,
    biases and norms of heads where it has them; embedding, head and last norm."""
    layer = 9 + 3 * shape.query_bias + shape.output_bias + 3 * shape.mlp_bias
    layer += 2 * shape.head_norms
    return shape.layers * layer + (2 if shape.tied else 3)
