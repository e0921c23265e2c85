"""What the loop may rely on, of every engine: one process, and processes on a Ray cluster."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from archer.algo.batch import TokenBatch, minibatches, to_batch
from archer.config import Config, config_from
from archer.engine.base import Engine, EngineLost, Request, Sample, Sampling
from archer.engine.cluster.engine import ClusterEngine
from archer.setup import open_engine
from archer.types import Group, Problem, Rollout, Verdict

RECIPE: dict[str, Any] = {
    "model": {"name": "tiny", "threads": 1},
    "data": {"train": [{"source": "arithmetic", "count": 4}]},
    "rollout": {"problems": 3, "samples": 4, "max_tokens": 4, "temperature": 1.2},
    "loss": {"name": "grpo"},
    "kl": {"knowledge": 0.01, "reasoning": 0.01},
    "update": {"minibatch": 3, "learning_rate": 1e-4, "microbatch_tokens": 40},
    "train": {"steps": 1},
}

KINDS: dict[str, dict[str, Any]] = {
    "local": {},
    "one rank": {"engine": "cluster"},
    "two ranks": {"engine": "cluster", "cluster": {"learners": 2}},
    "two ranks, two samplers": {"engine": "cluster", "cluster": {"learners": 2, "samplers": 2}},
}

PROMPTS = ["2+3=", "7-4=", "1+1="]


def recipe(kind: str) -> Config:
    return config_from({**RECIPE, **KINDS[kind]}, where="test")


@pytest.fixture(
    scope="module",
    params=[k if k != "one rank" else pytest.param(k, marks=pytest.mark.full) for k in KINDS],
)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with closing(open_engine(recipe(request.param))) as opened:
        yield opened


@pytest.fixture(scope="module")
def local() -> Iterator[Engine]:
    with closing(open_engine(recipe("local"))) as opened:
        yield opened


def requests(samples: int = 4) -> list[Request]:
    return [
        Request(
            prompt_ids=np.array([ord(c) % 64 for c in prompt], dtype=np.int32),
            in_thought=False,
            names=tuple(("train", 0, 1, prompt, j) for j in range(samples)),
        )
        for prompt in PROMPTS
    ]


SAMPLING = Sampling(max_tokens=4, temperature=1.2)


def by_place(samples: Iterator[Sample]) -> dict[tuple[int, int], Any]:
    found = list(samples)
    places = {(s.request, s.number): s.completion for s in found}
    assert len(places) == len(found), "no completion comes twice"
    return places


def a_batch(engine: Engine) -> TokenBatch:
    """What the engine samples, with advantages of both signs and one sequence of none."""
    found = by_place(engine.generate(requests(), SAMPLING))
    groups = [
        Group(
            problem=Problem(id=prompt, prompt=prompt, verifier="exact", answer="5", source="test"),
            rollouts=tuple(
                Rollout(
                    completion=found[i, j], verdict=Verdict(outcome="wrong", score=0.0), reward=0.0
                )
                for j in range(4)
            ),
        )
        for i, prompt in enumerate(PROMPTS)
    ]
    batch = to_batch(groups, [[1.0, -1.0, 0.5, 0.0], [0.3, 1.0, -2.0, 0.7], [1.0, 0.1, -1.0, 2.0]])
    batch = engine.score(batch, old=True, reference=True)
    (whole,) = minibatches(batch, problems=3, average="token", constant=8.0)
    return whole


def test_all_asked_for_comes_once_and_the_same_again(engine: Engine) -> None:
    first = by_place(engine.generate(requests(), SAMPLING))
    assert set(first) == {(i, j) for i in range(3) for j in range(4)}
    again = by_place(engine.generate(requests(), SAMPLING))
    for place, completion in first.items():
        assert completion.token_ids.tolist() == again[place].token_ids.tolist()
        assert completion.logps.tolist() == again[place].logps.tolist()


def test_the_same_tokens_as_in_one_process(engine: Engine, local: Engine) -> None:
    here, there = (by_place(e.generate(requests(), SAMPLING)) for e in (local, engine))
    for place, completion in here.items():
        assert completion.token_ids.tolist() == there[place].token_ids.tolist()
        assert completion.logps == pytest.approx(there[place].logps, abs=1e-5)


def test_fewer_completions_than_processes_and_none_at_all(engine: Engine) -> None:
    one = [requests(samples=1)[0]]
    assert set(by_place(engine.generate(one, SAMPLING))) == {(0, 0)}
    assert list(engine.generate([], SAMPLING)) == []


def test_sampler_and_learner_agree_at_the_temperature(engine: Engine) -> None:
    batch = a_batch(engine)
    assert torch.allclose(batch.old_logp, batch.sampler_logp, atol=1e-4)
    assert batch.ref_logp is not None
    assert torch.isfinite(batch.old_entropy).all()


def test_a_step_gives_tallies_of_the_whole_and_what_is_published_is_served(
    engine: Engine, tmp_path: Path
) -> None:
    written = engine.save(tmp_path)
    before = by_place(engine.generate(requests(), SAMPLING))
    batch = a_batch(engine)
    tallies = engine.update(batch, lr=1e-2)
    written()  # what is learned meanwhile is not in it
    # The sequence without an advantage still has a KL.
    assert tallies["tokens/trained"] == (len(batch.tokens), 1)
    assert tallies["loss"][1] == pytest.approx(1.0)
    assert tallies["updates/skipped"] == (0, 1)
    assert tallies["grad_norm"][0] > 0
    version = engine.publish()
    after = by_place(engine.at(version).generate(requests(), SAMPLING))
    assert {c.policy_version for c in after.values()} == {version}
    assert any(c.logps.tolist() != after[place].logps.tolist() for place, c in before.items())
    scored = engine.score(a_batch(engine), old=True, reference=False)
    assert torch.allclose(scored.old_logp, scored.sampler_logp, atol=1e-4)
    engine.load(tmp_path)
    again = by_place(engine.generate(requests(), SAMPLING))
    assert all(c.logps.tolist() == again[place].logps.tolist() for place, c in before.items())


def test_the_peak_of_every_process_is_told_and_stays(engine: Engine) -> None:
    """Here it rises with what is held for a moment; elsewhere nothing happens meanwhile."""
    others = set[str]()
    if isinstance(engine, ClusterEngine):
        cluster = engine.config.cluster
        others |= {f"learner {n}" for n in range(cluster.learners)}
        others |= {f"sampler {n}" for n in range(cluster.samplers)}
        while len(engine.samplers.ready()) < cluster.samplers:  # others are not asked
            engine.samplers.replace_lost()
            time.sleep(0.1)
    before = engine.memory()
    assert before.keys() == {"loop", *others}
    assert min(before.values()) > 100e6  # Python and torch
    more = before["loop"] - psutil.Process().memory_info().rss + 64_000_000
    held = np.ones(more // 8)
    del held
    after = engine.memory()
    assert after["loop"] - before["loop"] == pytest.approx(64e6, rel=0.25)
    assert all(after[name] == pytest.approx(before[name], rel=0.1) for name in others)


def test_a_step_equals_that_of_one_process(engine: Engine, local: Engine, tmp_path: Path) -> None:
    """Two steps, from the same tokens: gradient norm, loss and what the weights say afterwards."""
    batch = a_batch(local)
    for own in (engine, local):
        (tmp_path / type(own).__name__).mkdir(exist_ok=True)
        own.save(tmp_path / type(own).__name__)()
    found = []
    for own in (engine, local):
        tallies = [own.update(batch, lr=1e-4) for _ in range(2)]
        found.append((tallies, own.score(batch, old=True, reference=False).old_logp))
        own.load(tmp_path / type(own).__name__)
    for there, here in zip(*(tallies for tallies, _ in found), strict=True):
        assert there.keys() == here.keys()
        for name, pair in here.items():
            assert there[name] == pytest.approx(pair, rel=1e-4, abs=1e-6), name
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)


def test_without_a_gradient_there_is_no_step(engine: Engine) -> None:
    """A single sequence that is masked out: one rank has it, others nothing, and all say so."""
    batch = a_batch(engine)
    batch.counted[:] = False
    tallies = engine.update(batch, lr=1e-2)
    assert tallies["updates/skipped"] == (0, 0)
    assert tallies["tokens/trained"][0] == 0
    scored = engine.score(batch, old=True, reference=False)
    assert torch.equal(scored.old_logp, batch.old_logp)


def test_a_loss_that_is_not_finite_on_one_rank_is_a_step_of_none(engine: Engine) -> None:
    batch = a_batch(engine)
    before = batch.old_logp.clone()
    batch.advantages[0] = math.nan
    assert engine.update(batch, lr=1e-2)["updates/skipped"] == (1, 1)
    batch.advantages[0] = 1.0
    assert torch.equal(engine.score(batch, old=True, reference=False).old_logp, before)
    assert engine.update(batch, lr=0.0)["updates/skipped"] == (0, 1)


@pytest.mark.parametrize("kind", ["local", "two ranks"])
def test_the_other_engine_takes_over_a_checkpoint(
    engine: Engine, local: Engine, kind: str, tmp_path: Path
) -> None:
    """Weights and moments: the next step is the same one, from either's checkpoint."""
    source, target = (engine, local) if kind == "local" else (local, engine)
    batch = a_batch(local)
    for name, own in (("source", source), ("target", target)):
        (tmp_path / name).mkdir()
        own.save(tmp_path / name)()
    source.update(batch, lr=1e-3)
    (tmp_path / "moved").mkdir()
    source.save(tmp_path / "moved")()
    target.load(tmp_path / "moved")
    logps = []
    for own in (source, target):
        own.update(batch, lr=1e-3)
        logps.append(own.score(batch, old=True, reference=False).old_logp)
    assert torch.allclose(logps[0], logps[1], atol=1e-5)
    source.load(tmp_path / "source")
    target.load(tmp_path / "target")


@pytest.mark.parametrize("engine", ["two ranks"], indirect=True)
def test_a_folder_that_ranks_do_not_see_gets_no_checkpoint(engine: Engine, tmp_path: Path) -> None:
    """As on a machine with a disk of its own: its shards would be missing from what looks whole."""
    with pytest.raises(ValueError, match="must be on a disk that all machines see"):
        engine.save(tmp_path / "elsewhere")


def test_a_call_of_a_sampler_that_is_still_starting_is_not_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray was seen to forget all calls behind it, so that the run waited for ever."""
    import ray

    from archer.engine.cluster import samplers
    from archer.engine.cluster.replica import Replica

    first = tmp_path / "first"

    class Late(Replica):
        def __init__(self, *arguments: Any, **knobs: Any) -> None:
            try:
                first.touch(exist_ok=False)
            except FileExistsError:
                time.sleep(5.0)
            super().__init__(*arguments, **knobs)

    cancelled: list[Any] = []
    monkeypatch.setattr(samplers, "Replica", Late)
    monkeypatch.setattr(ray, "cancel", lambda call, **_: cancelled.append(call))
    with closing(open_engine(recipe("two ranks, two samplers"))) as engine:
        assert isinstance(engine, ClusterEngine)
        assert len(list(engine.generate(requests(), SAMPLING))) == 12
        (there,) = engine.samplers.ready()  # which took over what was the other one's
        assert not cancelled
        assert engine._able() == [there, there]  # no more is asked of the other one
        while len(engine.samplers.ready()) < 2:
            assert len(list(engine.generate(requests(), SAMPLING))) == 12


def test_a_sampler_that_lives_and_says_nothing_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from archer.engine.cluster import samplers
    from archer.engine.cluster.replica import Replica

    class Mute(Replica):
        def generate_by_step(self, *arguments: Any) -> Iterator[list[Sample]]:
            time.sleep(60.0)
            yield from ()

    monkeypatch.setattr(samplers, "Replica", Mute)
    with closing(open_engine(recipe("two ranks, two samplers"))) as engine:
        assert isinstance(engine, ClusterEngine)
        while len(engine.samplers.ready()) < 2:
            engine.samplers.replace_lost()  # which looks who is there
            time.sleep(0.1)
        patient = engine.config.cluster.model_copy(update={"wait_seconds": 2.0})
        engine.config = engine.config.model_copy(update={"cluster": patient})
        with pytest.raises(
            EngineLost, match=r"waited 2 s \(cluster.wait_seconds\) for an answer of sampler [01]"
        ):
            list(engine.generate(requests(), SAMPLING))


@pytest.mark.full
def test_a_call_behind_a_long_one_is_patient_while_the_sampler_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As an evaluation is, behind what is sampled for a later step."""
    from archer.engine.cluster import samplers
    from archer.engine.cluster.replica import Replica

    class Slow(Replica):
        def generate_by_step(self, *arguments: Any) -> Iterator[list[Sample]]:
            for finished in super().generate_by_step(*arguments):
                for sample in finished:
                    time.sleep(0.5)
                    yield [sample]

    monkeypatch.setattr(samplers, "Replica", Slow)
    with closing(open_engine(recipe("two ranks, two samplers"))) as engine:
        assert isinstance(engine, ClusterEngine)
        assert len(list(engine.generate(requests(), SAMPLING))) == 12
        patient = engine.config.cluster.model_copy(update={"wait_seconds": 2.0})
        engine.config = engine.config.model_copy(update={"cluster": patient})
        ahead = engine.generate(requests(), SAMPLING)
        found = [next(ahead)]
        thread = threading.Thread(target=lambda: found.extend(ahead))
        thread.start()
        assert len(list(engine.generate(requests(), SAMPLING))) == 12
        thread.join()
        assert len(found) == 12


def test_a_sampler_that_does_not_start_again_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another one is ready it is its machine's fault, most likely, which may pass."""
    from archer.engine.cluster import samplers
    from archer.engine.cluster.replica import Replica

    full = tmp_path / "full"

    class Shaky(Replica):
        def __init__(self, *arguments: Any, **knobs: Any) -> None:
            if full.exists():
                raise ValueError("no memory left on this machine")
            super().__init__(*arguments, **knobs)

    monkeypatch.setattr(samplers, "Replica", Shaky)
    said: list[str] = []

    def answers() -> list[list[int]]:
        found = sorted(engine.generate(requests(), SAMPLING), key=lambda s: (s.request, s.number))
        return [sample.completion.token_ids.tolist() for sample in found]

    def until(what: str, times: int) -> None:
        deadline = time.monotonic() + 120
        while sum(what in line for line in said) < times:
            assert answers() == expected
            assert time.monotonic() < deadline, said

    with closing(open_engine(recipe("two ranks, two samplers"), said.append)) as engine:
        assert isinstance(engine, ClusterEngine)
        expected = answers()
        while len(engine.samplers.ready()) < 2:
            assert answers() == expected
        full.touch()
        psutil.Process(engine.pulse.places[engine.samplers.first["sampler 1"]][1]).kill()
        until("sampler 1 died", 1)
        until("sampler 1 ended before it was ready: ValueError: no memory left", 1)
        full.unlink()
        while len(engine.samplers.ready()) < 2:
            assert answers() == expected
        assert not any("sampler 0" in line for line in said)


def test_processes_that_cannot_start_are_no_loss_to_be_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sampler that raises while it starts would do so again: what it says ends the run."""
    from archer.engine.cluster import samplers
    from archer.engine.cluster.replica import Replica

    class Broken(Replica):
        def __init__(self, *arguments: Any, **knobs: Any) -> None:
            raise ValueError("the weights of this machine are damaged: copy them again")

    monkeypatch.setattr(samplers, "Replica", Broken)
    config = recipe("two ranks, two samplers")
    config = config.model_copy(
        update={"cluster": config.cluster.model_copy(update={"learners": 1, "samplers": 1})}
    )
    with (
        closing(open_engine(config)) as engine,
        pytest.raises(EngineLost, match=r"sampler 0 ended before it was ready: .*copy them again"),
    ):
        list(engine.generate(requests(), SAMPLING))
