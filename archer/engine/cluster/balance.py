"""Which rank takes which sequences of a batch: a share of the work each, decided by arithmetic.

All ranks wait for the slowest one in every step. What a sequence costs grows with its length, and
with attention by the square of it, so equal numbers of tokens are not equal work.
"""

from __future__ import annotations

from collections.abc import Iterable

from archer.algo.batch import TokenBatch
from archer.model.shapes import ModelShape, body_flops_per_token, head_flops_per_token


def balanced(
    batch: TokenBatch, rows: Iterable[int], ranks: int, shape: ModelShape
) -> list[list[int]]:
    """The rows of each rank, ascending; a rank may get none.

    The costliest sequence first, each to the rank that has the least to do when it has it too (LPT,
    Graham 1969: no rank has more than 4/3 of the best possible). A prompt is computed once on each
    rank that has an answer to it, which draws the answers to one prompt together. Equal cases go by
    the row's and the rank's number, so the cut is the same wherever and whenever it is made.
    """
    lengths, prompts = batch.lengths.tolist(), batch.prompt_lengths.tolist()
    index = batch.prompt_index.tolist()
    answers = {row: answer_cost(shape, prompts[index[row]], lengths[row]) for row in rows}
    of_prompts = [answer_cost(shape, 0, length, scored=False) for length in prompts]
    work, known = [0.0] * ranks, [set[int]() for _ in range(ranks)]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for row in sorted(answers, key=lambda row: (-answers[row], row)):
        prompt = index[row]
        after = [
            work[rank] + answers[row] + (0.0 if prompt in known[rank] else of_prompts[prompt])
            for rank in range(ranks)
        ]
        rank = min(range(ranks), key=after.__getitem__)
        work[rank] = after[rank]
        known[rank].add(prompt)
        shares[rank].append(row)
    return [sorted(share) for share in shares]


def answer_cost(shape: ModelShape, before: int, length: int, *, scored: bool = True) -> float:
    """Operations of a forward pass over `length` tokens that stand behind `before` others.

    a·L + b·L² with the model's own a and b: its matrices, and attention to what stands before each
    token, which is `before` + L/2 tokens on average.
    """
    context = before + length // 2
    head = head_flops_per_token(shape) if scored else 0
    return float(length * (body_flops_per_token(shape, context=context) + head))
