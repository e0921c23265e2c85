"""Which groups teach, overlong shaping, and the way from groups to advantages and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archer.algo.advantage import ADVANTAGES
from archer.algo.batch import to_batch
from archer.algo.select import (
    Filter,
    group_advantages,
    is_uniform,
    judged,
    judged_rewards,
    overlong_penalty,
    shape_overlong,
    teaching,
)
from archer.types import Completion, Group, Outcome, Problem, Rollout, StopReason, Verdict


def rollout(
    score: float,
    *,
    outcome: Outcome | None = None,
    reward: float | None = None,
    length: int = 3,
    stop: StopReason = "stop",
) -> Rollout:
    return Rollout(
        completion=Completion(
            prompt_ids=np.array([1, 2], dtype=np.int32),
            token_ids=np.arange(length, dtype=np.int32),
            logps=np.full(length, -0.5, dtype=np.float32),
            entropies=np.full(length, 0.3, dtype=np.float32),
            policy_version=0,
            stop=stop,
            in_thought=False,
            text="",
        ),
        verdict=Verdict(outcome=outcome or ("correct" if score >= 1 else "wrong"), score=score),
        reward=score if reward is None else reward,
    )


ERROR = rollout(0.0, outcome="error")


def group(*rollouts: Rollout | float) -> Group:
    return Group(
        problem=Problem(id="p", prompt="2+3?", verifier="math", answer="5"),
        rollouts=tuple(r if isinstance(r, Rollout) else rollout(r) for r in rollouts),
    )


# ------------------------------------------------------------------ uniform groups


@pytest.mark.parametrize(
    ("members", "uniform"),
    [
        ((1.0, 0.0), False),
        ((1.0, 1.0), True),
        ((0.0, 0.0, 0.0), True),
        ((0.5, 0.5), True),
        ((0.5, 1.0), False),
        ((1.0, 1.0, ERROR), True),
        ((1.0, ERROR), True),
        ((ERROR, ERROR), True),
        ((1.0,), True),
    ],
)
def test_uniform_groups_are_those_without_two_different_scores(
    members: Sequence[Rollout | float], uniform: bool
) -> None:
    assert is_uniform(group(*members)) == uniform


def test_everything_that_is_found_and_dropped_is_counted() -> None:
    groups = [
        group(1.0, 0.0),
        group(1.0, 1.0),
        group(0.0, 0.0, ERROR),
        group(0.5, 0.5),
        group(1.0, ERROR),
        group(ERROR, ERROR),
    ]
    kept, counts = teaching(groups, filter="drop")
    assert kept == groups[:1]
    assert counts == {
        "groups/uniform": 3,
        "groups/all_right": 1,
        "groups/all_wrong": 1,
        "groups/too_few_judged": 2,
        "groups/dropped": 5,
        "rollouts/error": 4,
    }
    kept, counts = teaching(groups, filter="keep")
    assert kept == groups[:4]
    assert counts["groups/uniform"] == 3
    assert counts["groups/dropped"] == 2


@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, None]), min_size=1, max_size=5), max_size=8),
    st.sampled_from(["keep", "drop"]),
)
def test_teaching_groups_keep_their_order_and_none_is_lost_uncounted(
    scores: list[list[float | None]], filter: Filter
) -> None:
    groups = [group(*(ERROR if s is None else s for s in one)) for one in scores]
    kept, counts = teaching(groups, filter=filter)
    assert len(kept) + counts["groups/dropped"] == len(groups)
    assert [id(one) for one in groups if any(one is other for other in kept)] == [
        id(one) for one in kept
    ]
    assert all(judged(one) for one in kept)
    if filter == "drop":
        assert not any(is_uniform(one) for one in kept)


def test_single_samples_teach_when_uniform_groups_are_kept() -> None:
    """One sample a problem is a setting (reinforce_pp, remax), not the remains of a group."""
    kept, counts = teaching([group(1.0), group(0.0)], filter="keep")
    assert len(kept) == 2
    assert counts["groups/too_few_judged"] == 0
    assert teaching([group(ERROR)], filter="keep")[0] == []


def test_no_groups_at_all_is_no_error() -> None:
    kept, counts = teaching([], filter="drop")
    assert kept == []
    assert set(counts.values()) == {0}


# ------------------------------------------------------------------ overlong answers


def test_overlong_penalty_falls_in_a_line_over_the_buffer() -> None:
    lengths = {75: 0, 80: 0, 85: -0.25, 90: -0.5, 100: -1, 120: -1}
    for length, penalty in lengths.items():
        assert overlong_penalty(length, limit=100, buffer=20) == penalty
    assert overlong_penalty(90, limit=100, buffer=20, factor=0.4) == -0.2


@pytest.mark.parametrize("buffer", [0, -1, 101])
def test_overlong_buffer_must_fit_under_the_limit(buffer: int) -> None:
    with pytest.raises(ValueError, match=f"buffer is {buffer}"):
        overlong_penalty(5, limit=100, buffer=buffer)


def test_shaping_changes_rewards_and_never_scores() -> None:
    groups = [group(rollout(1.0, length=10), rollout(0.0, length=2), ERROR)]
    shaped, counts = shape_overlong(groups, limit=10, buffer=4)
    assert [r.reward for r in shaped[0].rollouts] == [0.0, 0.0, 0.0]
    assert [r.verdict.score for r in shaped[0].rollouts] == [1.0, 0.0, 0.0]
    assert counts == {"rollouts/penalised": 1}
    assert shape_overlong(shaped, limit=10, buffer=4)[0] == shaped


# ------------------------------------------------------------------ to advantages and back


def test_judged_rewards_leave_errors_out() -> None:
    data = judged_rewards([group(rollout(1.0, length=2), ERROR), group(0.0, 1.0)])
    assert data.rewards.tolist() == [1, 0, 1]
    assert data.group_ids.tolist() == [0, 1, 1]
    assert data.lengths.tolist() == [2, 3, 3]


def test_group_advantages_come_back_in_the_groups_shape() -> None:
    groups = [group(1.0, ERROR, 0.0), group(0.0, 0.0), group(1.0, 0.0)]
    found = group_advantages(groups, ADVANTAGES["dr_grpo"])
    assert found == [[0.5, 0.0, -0.5], [0.0, 0.0], [0.5, -0.5]]
    batch = to_batch(groups, found)
    assert batch.advantages[::3].tolist() == [0.5, -0.5, 0.0, 0.0, 0.5, -0.5]


def test_group_advantages_give_remax_the_greedy_answers_reward() -> None:
    groups = [group(1.0, 0.0), group(ERROR, 1.0)]
    found = group_advantages(groups, ADVANTAGES["remax"], greedy_rewards=[1.0, 0.0])
    assert found == [[0.0, -1.0], [0.0, 1.0]]


# ------------------------------------------------------------------ mistakes of the released code


def test_mistake_18_a_length_penalty_does_not_make_a_wrong_group_teach() -> None:
    groups, _ = shape_overlong(
        [group(0.0, rollout(0.0, length=16, stop="length"))], limit=16, buffer=4
    )
    assert [r.reward for r in groups[0].rollouts] == [0.0, -1.0]
    kept, counts = teaching(groups, filter="drop")
    assert kept == []
    assert counts["groups/all_wrong"] == 1


def test_mistake_19_a_failing_grader_teaches_nothing() -> None:
    """Every verdict an error, one answer truncated: no group may be left on the penalty alone."""
    failed = rollout(0.0, outcome="error", length=16, stop="length")
    groups, counts = shape_overlong([group(ERROR, failed)], limit=16, buffer=4)
    assert counts["rollouts/penalised"] == 0
    assert teaching(groups, filter="keep")[0] == []
    assert teaching(groups, filter="drop")[0] == []


def test_mistake_21_an_empty_selection_is_an_empty_list() -> None:
    kept, _ = teaching([group(1.0, 1.0)], filter="drop")
    assert kept == []


def test_mistake_22_what_errors_leave_alone_does_not_train_on_its_raw_reward() -> None:
    kept, counts = teaching([group(1.0, ERROR, ERROR)], filter="keep")
    assert kept == []
    assert counts["groups/too_few_judged"] == 1


def test_mistake_23_masked_answers_stay_in_their_groups_baseline() -> None:
    members = group(1.0, 0.0, rollout(0.0, length=5, stop="length"))
    found = group_advantages([members], ADVANTAGES["dr_grpo"])
    assert found[0] == pytest.approx([2 / 3, -1 / 3, -1 / 3])
    assert to_batch([members], found, mask_truncated=True).counted.tolist() == [True, True, False]


def test_mistake_23_an_answer_that_ends_exactly_at_the_limit_is_not_truncated() -> None:
    members = group(rollout(1.0, length=5, stop="stop"), rollout(0.0, length=5, stop="length"))
    batch = to_batch([members], [[1.0, -1.0]], mask_truncated=True)
    assert batch.counted.tolist() == [True, False]


def test_mistake_28_one_failed_verdict_changes_no_other_reward() -> None:
    whole = judged_rewards([group(1.0, 0.0), group(1.0, 0.0)])
    failed = judged_rewards([group(1.0, 0.0), group(ERROR, 0.0)])
    assert failed.rewards[:2].tolist() == whole.rewards[:2].tolist()
    assert failed.rewards.tolist() == [1, 0, 0]
