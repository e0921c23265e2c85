import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archer.randomness import key, permutation, uniforms

parts = st.lists(st.one_of(st.text(max_size=4), st.integers(-20, 20)), max_size=4)


def test_known_keys_stay_as_they_are() -> None:
    assert key() == 0x7076A68E75884D4E40BDEFD94169E6CA
    assert key("sampling", 7) == 0x08C79CD39B7F01067D2CDBC053C3733B


def test_known_uniforms_stay_as_they_are() -> None:
    assert uniforms(3, "sampling", 7, 1).tolist() == [
        0.215918133985031,
        0.5809530885287724,
        0.7597560888770071,
    ]


def test_known_permutations_stay_as_they_are() -> None:
    assert permutation(10, "stream", 0, 0).tolist() == [0, 1, 8, 6, 5, 4, 2, 3, 9, 7]


def philox(counter: int, key: int) -> list[int]:
    """Philox4x64-10 as its paper gives it (Salmon et al. 2011, section 4.2), on whole numbers."""
    mask = 2**64 - 1
    c = [counter >> (64 * i) & mask for i in range(4)]
    k = [key & mask, key >> 64]
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(b >> 64) ^ c[1] ^ k[0], b & mask, (a >> 64) ^ c[3] ^ k[1], a & mask]
        k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
    return c


def test_uniforms_are_the_top_53_bits_of_philox() -> None:
    words = [word for counter in (1, 2, 3) for word in philox(counter, key("twin", 3))]
    assert uniforms(12, "twin", 3).tolist() == [(word >> 11) / 2**53 for word in words]


def test_permutation_sorts_the_words_of_philox() -> None:
    words = [word for counter in (1, 2, 3) for word in philox(counter, key("twin", 3))]
    assert permutation(11, "twin", 3).tolist() == sorted(range(11), key=lambda i: words[i])


@given(parts, parts)
def test_other_parts_give_another_key(one: list[str | int], other: list[str | int]) -> None:
    assert (key(*one) == key(*other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab",), ("a", "b")),
        (("1",), (1,)),
        (("",), ()),
        ((1, 23), (12, 3)),
        (("a", ""), ("", "a")),
    ],
)
def test_parts_do_not_run_into_each_other(
    one: tuple[str | int, ...], other: tuple[str | int, ...]
) -> None:
    assert key(*one) != key(*other)


@given(st.integers(0, 9), st.integers(0, 9))
def test_more_numbers_only_append(n: int, extra: int) -> None:
    assert uniforms(n, "prefix", 1).tolist() == uniforms(n + extra, "prefix", 1)[:n].tolist()


def test_uniforms_lie_evenly_in_the_unit_interval() -> None:
    u = uniforms(40_000, "even")
    assert u.dtype == np.float64
    assert u.min() >= 0 and u.max() < 1
    counts = np.histogram(u, bins=20, range=(0, 1))[0]
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(2000)


@given(st.integers(0, 50), st.integers(0, 5))
def test_a_permutation_holds_each_number_once(n: int, seed: int) -> None:
    assert sorted(permutation(n, "each", seed).tolist()) == list(range(n))


def test_every_order_of_three_comes_equally_often() -> None:
    orders = [tuple(permutation(3, "order", i).tolist()) for i in range(3000)]
    assert all(abs(orders.count(order) - 500) < 120 for order in set(orders))
    assert len(set(orders)) == 6
