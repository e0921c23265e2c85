"""A claim has one holder; it ends with its holder, and then has one other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import archer.claims
from archer.claims import STALE, ClaimLost, Claims


@pytest.fixture(autouse=True)
def no_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life come only when a test asks for them."""
    monkeypatch.setattr(Claims, "_beat", lambda self: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "claims"


@pytest.fixture
def some(folder: Path) -> Iterator[list[Claims]]:
    opened = [Claims(folder) for _ in range(8)]
    yield opened
    for claims in opened:
        claims.close()


def age(claims: Claims, seconds: float) -> None:
    """As if no sign of life had come for so long."""
    at = claims.now() - seconds
    os.utime(claims.own / "alive", (at, at))


def test_of_many_one_has_it_and_what_is_released_can_be_had_again(some: list[Claims]) -> None:
    first, second, *_ = some
    assert first.take("a") and first.take("a")
    assert not second.take("a") and second.busy("a") and not first.busy("a")
    assert second.take("b")
    first.release("a")
    assert not second.claimed("a")
    assert second.take("a") and second.holds("a") and not first.holds("a")


def test_what_is_closed_leaves_nothing(folder: Path) -> None:
    first, second = Claims(folder), Claims(folder)
    first.take("a")
    first.close()
    assert second.claimed("a") and not second.busy("a")
    assert second.take("a")
    second.release("a")
    second.close()
    assert not folder.exists()


def test_a_holder_on_another_machine_has_ended_when_it_gave_no_sign(some: list[Claims]) -> None:
    first, second, *_ = some
    assert first.take("a")
    age(first, STALE - 30)
    assert not second.take("a")
    age(first, STALE + 30)
    assert second.take("a")
    assert not first.holds("a") and not first.take("a")


def test_it_is_the_folders_clock_that_tells_the_age(
    some: list[Claims], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = some
    assert first.take("a")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert not second.take("a")
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert not second.take("a")


HOLDER = """
import sys
from pathlib import Path
from archer.claims import Claims
claims = Claims(Path(sys.argv[1]))
print(claims.take("a"), flush=True)
sys.stdin.read()
"""


def test_a_killed_holder_on_this_machine_has_ended_at_once(folder: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "True\n"
        claims = Claims(folder)
        assert claims.busy("a") and not claims.take("a")
        child.kill()
    assert claims.take("a")
    claims.release("a")
    claims.close()
    Claims(folder).close()
    assert not folder.exists(), "what the killed one left is cleared away"


def test_a_later_process_of_the_same_number_is_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims, other = Claims(folder), Claims(folder)
    assert claims.take("a") and not other.take("a")
    who = json.loads((folder / "a.0").read_text())
    (folder / "a.0").write_text(json.dumps({**who, "start": who["start"] - 1}))
    assert other.take("a")
    there = json.dumps({**who, "start": 1, "machine": "another"})
    (folder / "a.1").write_text(there)
    monkeypatch.setattr(Claims, "_is_own", lambda self, path: False)
    assert not other.take("a"), "numbers of another machine say nothing here"
    claims.close()
    other.close()


def test_a_stale_claim_is_taken_over_by_one_of_many(some: list[Claims], folder: Path) -> None:
    for number in range(40):
        name = f"job-{number}"
        dead = Claims(folder)
        assert dead.take(name)
        dead.close()
        gate = threading.Barrier(len(some))
        took: list[Claims] = []

        def race(claims: Claims, name: str = name, gate: threading.Barrier = gate) -> None:
            gate.wait()
            if claims.take(name):
                took.append(claims)  # noqa: B023 (joined before the next round)

        threads = [threading.Thread(target=race, args=(claims,)) for claims in some]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [each for each in some if each.holds(name)] == took
        # One by one it can be had, by exactly one.
        assert len(took) <= 1
        assert sum(claims.take(name) for claims in some) == 1


@pytest.mark.parametrize("released", [False, True])
def test_what_was_seen_long_ago_takes_nothing_from_anyone(
    some: list[Claims], folder: Path, monkeypatch: pytest.MonkeyPatch, released: bool
) -> None:
    """A looks, falls asleep, B and then C take it; A wakes up and links."""
    a, b, c, *_ = some
    dead = Claims(folder)
    dead.take("a")
    dead.close()
    link = os.link

    def late(*args: Any) -> None:
        monkeypatch.setattr(os, "link", link)
        assert b.take("a")
        if released:
            b.release("a")
            assert c.take("a")
        link(*args)

    monkeypatch.setattr(os, "link", late)
    assert not a.take("a")
    assert [each for each in some if each.holds("a")] == [c if released else b]


def test_whoever_lost_its_claim_keeps_it_from_nobody(some: list[Claims]) -> None:
    first, second, third, *_ = some
    assert first.take("a")
    age(first, STALE + 30)
    assert second.take("a")
    first.now()  # it was only asleep
    assert not first.take("a")
    age(second, STALE + 30)
    assert third.take("a")
    age(third, STALE + 30)
    assert first.take("a") and first.holds("a")


def test_a_sign_of_life_is_given_again_and_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(archer.claims, "BEAT", 0.01)
    claims = Claims(folder)
    os.utime(claims.own / "alive", (1, 1))
    deadline = time.monotonic() + 60
    while (claims.own / "alive").stat().st_mtime == 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (claims.own / "alive").stat().st_mtime > 1
    claims.close()


def test_whoever_lost_its_claim_hears_of_it(
    some: list[Claims], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archer.claims, "BEAT", 0.0)
    first, second, *_ = some
    assert first.take("a")
    first.check("a")
    age(first, STALE + 30)
    assert second.take("a")
    with pytest.raises(ClaimLost):
        first.check("a")


def test_whoever_slept_so_long_that_it_was_cleared_away_begins_anew(folder: Path) -> None:
    claims = Claims(folder)
    age(claims, STALE + 30)
    other = Claims(folder)
    assert not claims.own.exists()
    assert not claims.take("a")
    assert claims.take("a")
    claims.close()
    other.close()
