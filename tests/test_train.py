"""What a step of the loop does and says; mistakes of the released trainer that it cannot make."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import archer.train
from archer.cli import main
from archer.config import load_config
from archer.data.problems import read_problems
from archer.model.load import load_model
from archer.rollout import TooManyErrors, greedy_rewards
from archer.run import checkpoint_steps
from archer.setup import load_data, open_engine, open_verifiers
from archer.terminal import Terminal
from archer.train import train
from archer.types import Group

RECIPE = """
[model]
name = "tiny"
threads = 1
[data]
train = [{ source = "arithmetic", count = 20, args = { operations = "+" }, prompt = "{question}" }]
evaluate = [{ source = "arithmetic", count = 5, seed = 1, args = { operations = "+" } }]
[rollout]
problems = 4
samples = 4
max_tokens = 4
filter = "keep"
[verify]
answer_pattern = "number"
workers = 1
[loss]
name = "grpo"
[update]
minibatch = 2
learning_rate = 1e-3
[train]
steps = 1
"""


def write_recipe(folder: Path) -> Path:
    (folder / "recipe.toml").write_text(RECIPE)
    return folder / "recipe.toml"


def trained(folder: Path, *overrides: str) -> list[dict[str, Any]]:
    """Trains in `folder`/run and returns the lines of metrics.jsonl."""
    train(load_config(write_recipe(folder), overrides), folder / "run", Terminal(quiet=True))
    return lines(folder / "run" / "metrics.jsonl")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ------------------------------------------------------------------ rewards


def test_metrics_and_rollouts_hold_the_rewards_that_are_trained_on(tmp_path: Path) -> None:
    """Overlong shaping by hand: over a buffer of all four tokens, each costs 2/4."""
    row = trained(tmp_path, "rollout.overlong.buffer=4", "rollout.overlong.penalty=2.0")[-1]
    answers = lines(tmp_path / "run/rollouts/step-000001.jsonl")
    expected = [answer["score"] - 2.0 * answer["tokens"] / 4 for answer in answers]
    assert [answer["reward"] for answer in answers] == pytest.approx(expected)
    assert row["reward/mean"] == pytest.approx(sum(expected) / 16)
    assert row["accuracy"] == pytest.approx(sum(answer["score"] for answer in answers) / 16)
    assert row["rollouts/penalised"] == 16


def test_mistake_26_training_evaluates_by_itself_and_without_the_length_penalty(
    tmp_path: Path,
) -> None:
    rows = trained(tmp_path, "rollout.overlong.buffer=4")
    for step, row in ((0, rows[0]), (1, rows[-1])):
        answers = lines(tmp_path / f"run/eval/step-{step:06d}.jsonl")
        assert len(answers) == 5
        assert row["eval/mean"] == sum(answer["outcome"] == "correct" for answer in answers) / 5
        assert all(answer["reward"] == answer["score"] for answer in answers)


# ------------------------------------------------------------------ steps


def test_mistakes_21_and_25_a_step_in_which_nothing_teaches_is_a_step_all_the_same(
    tmp_path: Path,
) -> None:
    """The tiny model never writes a box, so all groups are uniform, and all are dropped."""
    rows = trained(tmp_path, "verify.answer_pattern=box", "rollout.filter=drop", "train.steps=3")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert [row["position"] for row in rows[1:]] == [4, 8, 12]
    assert [row["groups/dropped"] for row in rows[1:]] == [4, 4, 4]
    assert [row["updates"] for row in rows[1:]] == [0, 0, 0]
    assert "eval/mean" in rows[-1]
    assert checkpoint_steps(tmp_path / "run") == [3]
    weights = load_file(tmp_path / "run/checkpoints/step-000003/weights.safetensors")
    untouched = dict(load_model("tiny").named_parameters())
    assert all(torch.equal(weight, untouched[name]) for name, weight in weights.items())


RECORDING = """
CALLS = []

def loss(logp, old_logp, advantages, entropy, sequence_ids):
    CALLS.append(sorted(old_logp.tolist()))
    return -advantages * (logp - old_logp).exp()
"""


def test_mistake_15_passes_take_the_same_problems_in_orders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recording_loss.py").write_text(RECORDING)
    monkeypatch.syspath_prepend(tmp_path)
    trained(
        tmp_path, "loss.name=recording_loss:loss", "update.passes=4", "entropy.coefficient=0.01"
    )
    # The first call is the one that tries the loss.
    calls: Sequence[list[float]] = sys.modules["recording_loss"].CALLS[1:]
    assert len(calls) == 4 * 2
    passes = [calls[i : i + 2] for i in range(0, 8, 2)]
    assert all(sorted(one[0] + one[1]) == sorted(calls[0] + calls[1]) for one in passes)
    assert len({tuple(one[0]) for one in passes}) > 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_only_update_of_a_step_is_on_policy_to_the_last_bit(tmp_path: Path, dtype: str) -> None:
    """In bfloat16 a sampler is further from its learner than gspo's clips are from 1."""
    row = trained(
        tmp_path,
        f"model.dtype={dtype}",
        "loss.name=gspo",
        "update.minibatch=4",
        "rollout.samples=16",
    )[-1]
    assert row["updates"] == 1
    assert row["ratio/positive"] == row["ratio/negative"] == 1
    assert row["clip_fraction/positive"] == row["clip_fraction/negative"] == 0
    assert row["kl/old_policy"] == 0
    assert row["weighted_unlike_grpo"] == 0


def test_a_group_whose_greedy_answer_was_not_judged_does_not_teach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_the_first(*arguments: Any) -> list[float | None]:
        return [None, *greedy_rewards(*arguments)[1:]]

    monkeypatch.setattr(archer.train, "greedy_rewards", without_the_first)
    row = trained(tmp_path, "advantage.name=remax")[-1]
    answers = lines(tmp_path / "run/rollouts/step-000001.jsonl")
    assert row["groups/greedy_error"] == 1
    assert {answer["group"] for answer in answers if answer["advantage"] is None} == {0}


# ------------------------------------------------------------------ forks


def test_a_fork_learns_with_the_entropy_coefficient_that_it_was_given(tmp_path: Path) -> None:
    run, forked = tmp_path / "run", tmp_path / "forked"
    trained(tmp_path, "entropy.coefficient=0.01")
    changed = ["entropy.coefficient=0.25", "train.steps=2", "--run", str(run)]
    recipe = str(tmp_path / "recipe.toml")
    assert main(["train", recipe, *changed, "--fork", str(forked), "--quiet"]) == 0
    found = [row.get("entropy_coefficient") for row in lines(forked / "metrics.jsonl")]
    assert found == [None, 0.01, 0.25]


def test_a_fork_that_is_given_a_target_starts_at_the_coefficient_beside_it(tmp_path: Path) -> None:
    """Where the target stays as it was, the coefficient has moved, and goes on from there."""
    trained(tmp_path, "entropy.coefficient=0.01")
    recipe = str(tmp_path / "recipe.toml")
    held = ["entropy.coefficient=0.25", "entropy.target=99", "entropy.delta=0.005"]
    for source, fork, steps in (("run", "one", 2), ("one", "two", 3)):
        knobs = [*held, f"train.steps={steps}", f"update.passes={steps}", "--quiet"]
        folders = ["--run", str(tmp_path / source), "--fork", str(tmp_path / fork)]
        assert main(["train", recipe, *knobs, *folders]) == 0
    found = [row.get("entropy_coefficient") for row in lines(tmp_path / "two/metrics.jsonl")]
    assert found == [None, 0.01, 0.25, 0.255]


# ------------------------------------------------------------------ functions of the user's own


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file beside the command with a verifier and a loss, both broken."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_parts.py").write_text(
        "def judge(problem, reading):\n    raise KeyError('a fault of the grader')\n"
        "def loss(logp, *others):\n"
        "    return logp * (1.0 if len(logp) == 2 else float('nan'))\n"  # 2: as it is tried first
    )
    problem = {"id": "1", "prompt": "1+1=", "verifier": "broken_parts:judge", "answer": "2"}
    (tmp_path / "broken.jsonl").write_text(json.dumps(problem) + "\n")
    yield tmp_path
    sys.modules.pop("broken_parts", None)


def test_an_evaluation_of_too_many_grader_errors_is_no_score(own_module: Path) -> None:
    sources = '{ source = "broken.jsonl" }, { source = "arithmetic", count = 5, seed = 1 }'
    with pytest.raises(TooManyErrors, match="1 of 6 verdicts are grader errors, more than"):
        trained(own_module, f"data.evaluate=[{sources}]")
    assert not (own_module / "run/metrics.jsonl").exists()


def test_a_verifier_worker_that_dies_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed once, on the way: another one judges what it had."""
    problem = {
        "id": "1",
        "prompt": "1+1=",
        "verifier": "tests.verify.graders:dies_the_first_time",
        "answer": str(tmp_path / "seen"),
    }
    (tmp_path / "fatal.jsonl").write_text(json.dumps(problem) + "\n")
    source = f"{{ source = '{tmp_path / 'fatal.jsonl'}' }}"
    overrides = [f"data.train=[{source}]", "data.evaluate=[]", "train.steps=2"]
    train(load_config(write_recipe(tmp_path), overrides), tmp_path / "run", Terminal())
    said = capsys.readouterr().out
    assert "step 1: verifier workers that died and were replaced: 1" in said
    assert "step 2: verifier" not in said
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    assert [row["verify/workers_lost"] for row in rows] == [1, 0]
    assert all(row["accuracy"] == 1.0 for row in rows)


def test_a_step_whose_loss_is_no_number_is_skipped_and_its_metrics_are_json(
    own_module: Path,
) -> None:
    trained(own_module, "loss.name=broken_parts:loss", "data.evaluate=[]", "update.max_skipped=9")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (own_module / "run/metrics.jsonl").read_text()
    (row,) = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    assert row["loss"] is None
    assert row["updates"] == row["updates/skipped"] > 0


def test_a_greedy_answer_that_was_not_judged_has_no_reward(own_module: Path) -> None:
    config = load_config(write_recipe(own_module), ["advantage.name=remax", "train.steps=1"])
    data = load_data(config)
    (broken,) = read_problems(own_module / "broken.jsonl")
    one, other = data.train[:2]
    with closing(open_engine(config)) as engine, open_verifiers(config, engine) as verifiers:
        groups = [Group(problem=problem, rollouts=()) for problem in (one, broken, other)]
        found = greedy_rewards(engine, verifiers, groups, data.render, config.rollout)
    assert found[1] is None
    assert found[0] is not None and found[2] is not None


def test_a_sandbox_below_full_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("archer.setup.check_sandbox", lambda asked: "restricted")
    answer = {"kind": "stdin", "tests": [{"input": "", "output": "1"}]}
    row = {"id": "a", "prompt": "Print 1.", "verifier": "code", "answer": answer}
    (tmp_path / "code.jsonl").write_text(json.dumps(row) + "\n")
    evaluate = f'data.evaluate=[{{ source = "{tmp_path}/code.jsonl" }}]'
    overrides = [evaluate, "eval.max_tokens=2"]
    train(load_config(write_recipe(tmp_path), overrides), tmp_path / "run", Terminal())
    said = capsys.readouterr().out
    assert said.count("programs run at sandbox level restricted: see docs/sandbox.md\n") == 1
