"""Inverse-CDF sampling: right frequencies, right log-probs, and never an impossible token."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from archer.model.draw import draw


def uniforms(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_draw(logits: Tensor, uniform: float) -> int:
    """The definition: walk along the probabilities until their sum passes the number."""
    probs = torch.softmax(logits.double(), -1).tolist()
    passed = 0.0
    for token, prob in enumerate(probs):
        passed += prob
        if passed > uniform:
            return token
    return max(token for token, prob in enumerate(probs) if prob > 0)


def test_a_hand_computed_draw() -> None:
    logits = torch.tensor([[math.log(0.2), math.log(0.5), math.log(0.3)]] * 4)
    drawn = draw(logits, torch.tensor([0.0, 0.19, 0.21, 0.71], dtype=torch.float64))
    assert drawn.tokens.tolist() == [0, 0, 1, 2]
    assert torch.allclose(drawn.logp.exp(), torch.tensor([0.2, 0.2, 0.5, 0.3]))
    assert torch.allclose(drawn.entropy, torch.full((4,), 1.0296531))


@pytest.mark.parametrize("vocabulary", [1, 2, 255, 256, 257, 1000])
def test_it_equals_the_plain_walk_along_the_probabilities(vocabulary: int) -> None:
    logits = 3 * torch.randn(50, vocabulary, generator=torch.Generator().manual_seed(1))
    numbers = uniforms(50)
    expected = [slow_draw(row, u) for row, u in zip(logits, numbers.tolist(), strict=True)]
    assert draw(logits, numbers).tokens.tolist() == expected


@given(st.integers(0, 2**53 - 1), st.integers(1, 600), st.integers(0, 10))
def test_no_token_of_probability_zero_is_ever_drawn(word: int, vocabulary: int, seed: int) -> None:
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(seed)) * 200
    logits[0, seed % vocabulary :: 3] = -torch.inf
    logits[0, 0] = 0.0
    drawn = draw(logits, torch.tensor([word * 2.0**-53], dtype=torch.float64))
    assert torch.softmax(logits, -1)[0, drawn.tokens[0]] > 0
    assert torch.isfinite(drawn.logp).all() and torch.isfinite(drawn.entropy).all()


def test_log_probs_and_entropy_are_those_of_the_tempered_distribution() -> None:
    logits = torch.randn(20, 300, generator=torch.Generator().manual_seed(2))
    for temperature in (0.6, 1.0, 1.3):
        drawn = draw(logits, uniforms(20), temperature=temperature)
        logps = torch.log_softmax(logits.double() / temperature, -1)
        expected = logps.gather(1, drawn.tokens[:, None]).flatten()
        assert torch.allclose(drawn.logp.double(), expected, atol=1e-5)
        assert torch.allclose(drawn.entropy.double(), -(logps.exp() * logps).sum(-1), atol=1e-5)


def test_temperature_zero_is_greedy() -> None:
    logits = torch.randn(20, 300, generator=torch.Generator().manual_seed(3))
    drawn = draw(logits, uniforms(20), temperature=0.0)
    assert drawn.tokens.tolist() == logits.argmax(-1).tolist()


def test_frequencies_follow_the_probabilities() -> None:
    probs = torch.tensor([0.05, 0.6, 0.05, 0.3])
    drawn = draw(probs.log().expand(20_000, 4), uniforms(20_000))
    shares = torch.bincount(drawn.tokens, minlength=4) / 20_000
    assert torch.allclose(shares, probs, atol=0.015)  # more than 4 standard deviations


@pytest.mark.parametrize(
    ("knobs", "kept"),
    [
        ({"top_k": 2}, [1, 3]),
        ({"top_p": 0.6}, [1, 3]),
        ({"top_p": 0.45}, [1]),
        ({"min_p": 0.5}, [1, 3]),
        ({"top_k": 3, "top_p": 0.9}, [0, 1, 3]),
        ({"top_p": 1e-9}, [1]),
    ],
)
def test_truncation_keeps_the_likeliest_and_renormalises(
    knobs: dict[str, float], kept: list[int]
) -> None:
    probs = torch.tensor([0.15, 0.5, 0.05, 0.3])
    drawn = draw(probs.log().expand(2000, 4), uniforms(2000), **knobs)  # type: ignore[arg-type]
    assert sorted(set(drawn.tokens.tolist())) == kept
    expected = (probs / probs[kept].sum())[drawn.tokens].log()
    assert torch.allclose(drawn.logp, expected, atol=1e-5)


def test_a_draw_does_not_depend_on_who_else_is_in_the_batch() -> None:
    logits = torch.randn(8, 500, generator=torch.Generator().manual_seed(4))
    numbers = uniforms(8)
    together = draw(logits, numbers).tokens.tolist()
    assert together == [int(draw(logits[i : i + 1], numbers[i : i + 1]).tokens) for i in range(8)]
