"""Drawing, judging and selecting a step's groups, on the tiny model with real verifiers."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archer.algo.select import is_uniform, shape_overlong
from archer.config import Config, config_from
from archer.data.stream import ProblemStream
from archer.engine.base import Engine, Request, Sample, Sampling
from archer.rollout import (
    Named,
    TooManyErrors,
    check_errors,
    greedy_rewards,
    judged_groups,
    sample_step,
    select_step,
)
from archer.setup import Data, load_data, open_engine, open_verifiers
from archer.train import advantages_by_place, learning_rate
from archer.types import Completion, Group, Verdict
from archer.verify.pool import Verifiers
from tests.needs import needs_sandbox

TREE: dict[str, Any] = {
    "model": {"name": "tiny", "threads": 1},
    "data": {"train": [{"source": "arithmetic", "count": 40, "args": {"operations": "+"}}]},
    "rollout": {"problems": 4, "samples": 16, "max_tokens": 3},
    "verify": {"answer_pattern": "number", "workers": 1},
    "update": {"minibatch": 2, "learning_rate": 1e-3},
    "train": {"steps": 5},
}


@pytest.fixture(scope="module")
def config() -> Config:
    return config_from(TREE, where="test")


@pytest.fixture(scope="module")
def data(config: Config) -> Data:
    return load_data(config)


@pytest.fixture(scope="module")
def engine(config: Config) -> Engine:
    return open_engine(config)


@pytest.fixture(scope="module")
def verifiers(config: Config, engine: Engine) -> Iterator[Verifiers]:
    with open_verifiers(config, engine) as opened:
        yield opened


def drawn(
    config: Config, data: Data, engine: Engine, verifiers: Verifiers, **rollout: Any
) -> tuple[list[Group], int]:
    return sample_step(
        engine,
        verifiers,
        ProblemStream(data.train, 0),
        data.render,
        config.rollout.model_copy(update=rollout),
        seed=0,
        step=1,
        position=7,
    )


def test_two_files_may_use_one_id_for_two_questions(tmp_path: Path) -> None:
    for name, question in (("train", "1+1="), ("evaluate", "2+2=")):
        row = {"id": "1", "prompt": question, "verifier": "math", "answer": "2"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    sources = {n: [{"source": str(tmp_path / f"{n}.jsonl")}] for n in ("train", "evaluate")}
    data = load_data(config_from({**TREE, "data": sources}, where="test"))
    texts = [data.render(problem).text for problem in (*data.train, *data.evaluate)]
    assert texts == ["<user>1+1=<assistant>", "<user>2+2=<assistant>"]


def test_a_chat_is_rendered_once_too(data: Data) -> None:
    chat = replace(data.train[0], prompt=({"role": "user", "content": "3+4="},))
    assert data.render(chat).text == "<user>3+4=<assistant>"
    assert data.render(replace(chat, id="another")) is data.render(chat)


def test_problems_are_drawn_strictly_in_stream_order(
    config: Config, data: Data, engine: Engine, verifiers: Verifiers
) -> None:
    groups, position = drawn(config, data, engine, verifiers)
    expected = ProblemStream(data.train, 0).take(7, 4)
    assert [group.problem for group in groups] == expected
    assert position == 11
    assert all(len(group.rollouts) == 16 for group in groups)


def test_mistake_17_refill_draws_on_until_enough_groups_teach(
    config: Config, data: Data, engine: Engine, verifiers: Verifiers
) -> None:
    once, _ = drawn(config, data, engine, verifiers, filter="drop")
    assert 0 < sum(map(is_uniform, once)) < 4, "this seed has some uniform groups to replace"
    groups, position = drawn(config, data, engine, verifiers, filter="refill", max_rounds=20)
    teach, counts = select_step(groups, config.rollout)
    assert len(teach) == 4
    assert position == 7 + len(groups) and counts["groups/sampled"] == len(groups)
    assert counts["groups/dropped"] == len(groups) - 4
    assert [g.problem for g in groups] == ProblemStream(data.train, 0).take(7, len(groups))
    for old, new in zip(once, groups, strict=False):
        assert [r.completion.token_ids.tolist() for r in old.rollouts] == [
            r.completion.token_ids.tolist() for r in new.rollouts
        ], "the first round is what it would be without refill"


def test_refill_stops_after_its_rounds_with_what_it_has(
    config: Config, data: Data, engine: Engine, verifiers: Verifiers
) -> None:
    groups, _ = drawn(config, data, engine, verifiers, filter="refill", max_rounds=1)
    assert len(groups) == 4


def test_keep_lets_uniform_groups_count(
    config: Config, data: Data, engine: Engine, verifiers: Verifiers
) -> None:
    groups, _ = drawn(config, data, engine, verifiers)
    kept, counts = select_step(groups, config.rollout.model_copy(update={"filter": "keep"}))
    assert len(kept) == 4 and counts["groups/uniform"] > 0 and counts["groups/dropped"] == 0


def test_mistake_20_a_grader_that_fails_too_often_stops_the_run_with_the_reason() -> None:
    fine = Verdict(outcome="wrong", score=0.0)
    broken = Verdict(outcome="error", score=0.0, detail="KeyError: 'answer'")
    check_errors([fine] * 95 + [broken] * 5, 0.05)
    with pytest.raises(TooManyErrors, match=r"6 of 100 .* KeyError: 'answer' \(6x\)"):
        check_errors([fine] * 94 + [broken] * 6, 0.05)


def test_greedy_answers_have_one_reward_a_group(
    config: Config, data: Data, engine: Engine, verifiers: Verifiers
) -> None:
    groups, _ = drawn(config, data, engine, verifiers)
    rewards = greedy_rewards(engine, verifiers, groups, data.render, config.rollout)
    assert len(rewards) == 4 and set(rewards) <= {0.0, 1.0}


def test_two_places_of_the_stream_with_one_problem_are_sampled_apart(
    config: Config, data: Data, engine: Engine, verifiers: Verifiers
) -> None:
    few = replace(data, train=data.train[:2])
    groups, _ = sample_step(
        engine,
        verifiers,
        ProblemStream(few.train, 0),
        data.render,
        config.rollout,
        seed=0,
        step=1,
        position=0,
    )
    same = [group for group in groups if group.problem == groups[0].problem]
    assert len(same) == 2
    first, second = ([r.completion.logps.tolist() for r in group.rollouts] for group in same)
    assert first != second


def test_a_problem_that_stands_in_a_step_twice_keeps_two_sets_of_advantages(
    config: Config, data: Data, engine: Engine, verifiers: Verifiers
) -> None:
    groups, _ = drawn(config, data, engine, verifiers)
    same = [replace(group, problem=groups[0].problem) for group in groups]
    shaped, _ = shape_overlong(same[1:3], limit=3, buffer=3)
    found = advantages_by_place(same, shaped, [[0.5], [-0.5]])
    assert found == {1: [0.5], 2: [-0.5]}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.8535534, 0.5, 0.1464466]),
    ],
)
def test_the_learning_rate_by_hand(config: Config, schedule: str, expected: list[float]) -> None:
    update = config.update.model_copy(
        update={"learning_rate": 1.0, "warmup": 2, "schedule": schedule}
    )
    assert [learning_rate(update, step, 6) for step in range(1, 7)] == pytest.approx(expected)


# ------------------------------------------------------------------ programs


class Says:
    """An engine that answers every request with the same texts, in any order."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Sample]:
        for i, request in enumerate(requests):
            for j in reversed(range(len(request.names))):
                completion = Completion(
                    prompt_ids=request.prompt_ids,
                    token_ids=np.array([j], np.int32),
                    logps=np.zeros(1, np.float32),
                    entropies=np.zeros(1, np.float32),
                    policy_version=0,
                    stop="stop",
                    in_thought=request.in_thought,
                    text=self._texts[j],
                )
                yield Sample(request=i, number=j, completion=completion)


@needs_sandbox
def test_a_group_of_programs_is_judged_in_the_sandbox_and_equal_ones_once() -> None:
    tree = {**TREE, "data": {"train": [{"source": "functions", "count": 2}]}, "verify": {}}
    config = config_from(tree, where="test")
    data = load_data(config)
    one, other = "```python\nx = 1\n```", "~~~\nx = 1\n~~~"
    programs = [one, "no program", other, "```python\nx = (\n```", "```python\nexit()\n```"]
    with open_verifiers(config, Says(programs)) as verifiers:
        named = [Named(problem=problem, name=("t", i)) for i, problem in enumerate(data.train)]
        groups = judged_groups(
            Says(programs), verifiers, named, data.render, Sampling(max_tokens=1), 5
        )
        ledger = verifiers.ledger()
    for group in groups:
        outcomes = [rollout.verdict.outcome for rollout in group.rollouts]
        assert outcomes == ["crashed", "no_answer", "crashed", "crashed", "crashed"]
        assert [rollout.completion.token_ids[0] for rollout in group.rollouts] == [0, 1, 2, 3, 4]
    assert ledger["verify/code/crashed"] == 8 and ledger["verify/code/no_answer"] == 2
    assert ledger["verify/joined"] == 2  # two fences, one program
