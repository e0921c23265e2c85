"""Scores: right by hand, alike in training and afterwards, told with all that they depend on."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archer.cli import main
from archer.config import Config, LogConfig, load_config
from archer.data.problems import problems_hash, read_problems, write_problems
from archer.data.sources import load_source
from archer.engine.base import Request, Sample, Sampling
from archer.evaluate import evaluate_data
from archer.evaluate_model import (
    describe,
    evaluate_model,
    evaluation_config,
    find_subject,
    open_sampler,
)
from archer.export import export
from archer.scores import (
    Evaluation,
    different_settings,
    read_evaluation,
    summarise,
    to_answers,
    votes,
    write_evaluation,
)
from archer.setup import load_data, open_engine, open_verifiers
from archer.terminal import Terminal
from archer.train import train
from archer.types import Completion, Group, Outcome, Problem, Rollout, Verdict
from archer.verify.policy import Policy
from archer.verify.verifiers import verify
from tests.children import child_environment

ROOT = Path(__file__).parents[1]
QUIET = Terminal(quiet=True)

RECIPE = """
[model]
name = "tiny"
threads = 1
[prompt]
system = "add"
suffix = " ="
[data]
train = [{ source = "arithmetic", count = 30, args = { operations = "+" } }]
evaluate = [{ source = "arithmetic", count = 12, seed = 1, args = { operations = "+" } }]
[rollout]
problems = 4
samples = 4
max_tokens = 6
cache_tokens = 200
filter = "keep"
[verify]
answer_pattern = "number"
workers = 1
[entropy]
coefficient = 0.01
[update]
minibatch = 2
learning_rate = 3e-3
[train]
steps = 3
seed = 5
[eval]
every = 1
samples = 3
temperature = 0.8
max_tokens = 9
[checkpoint]
every = 1
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "recipe.toml").write_text(RECIPE)
    train(load_config(folder / "recipe.toml"), folder / "run", QUIET)
    return folder / "run"


def measured(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A result and its responses, without the model's name."""
    result = asdict(read_evaluation(path))
    del result["model"]
    rows = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    return result, rows


# ------------------------------------------------------------------ one measurement


@pytest.mark.parametrize("step", [2, 3])
def test_a_checkpoint_scores_what_it_scored_in_training(
    run: Path, tmp_path: Path, step: int
) -> None:
    checkpoint = run / "checkpoints" / f"step-{step:06d}"
    evaluate_model(str(checkpoint), terminal=QUIET, out=tmp_path / "again.json")
    in_training = measured(run / "eval" / f"step-{step:06d}.json")
    assert measured(tmp_path / "again.json") == in_training
    assert len(in_training[1]) == 12 * 3


def test_an_export_scores_what_its_checkpoint_scored_in_training(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "exported", dtype="float32", terminal=QUIET)
    evaluate_model(str(tmp_path / "exported"), terminal=QUIET, out=tmp_path / "again.json")
    assert measured(tmp_path / "again.json") == measured(run / "eval" / "step-000003.json")


def test_a_run_stands_for_its_newest_checkpoint_and_other_weights_answer_otherwise(
    run: Path, tmp_path: Path
) -> None:
    evaluate_model(str(run), terminal=QUIET, out=tmp_path / "newest.json")
    _, newest = measured(tmp_path / "newest.json")
    assert newest == measured(run / "eval" / "step-000003.json")[1]
    assert newest != measured(run / "eval" / "step-000000.json")[1]


def test_its_problems_as_a_file_are_the_same_measurement(run: Path, tmp_path: Path) -> None:
    problems = load_source("arithmetic", count=12, seed=1, args={"operations": "+"})
    write_problems(tmp_path / "held_out.jsonl", problems)
    evaluate_model(
        str(run), terminal=QUIET, problems=tmp_path / "held_out.jsonl", out=tmp_path / "file.json"
    )
    assert measured(tmp_path / "file.json") == measured(run / "eval" / "step-000003.json")


# ------------------------------------------------------------------ settings


def test_what_is_asked_for_lies_over_what_it_was_trained_with(run: Path) -> None:
    subject = find_subject(str(run))
    given: dict[str, Any] = {
        "eval": {"samples": 7, "temperature": None},
        "prompt": {"suffix": None, "system": ""},
    }
    config = evaluation_config(subject, problems=None, **given)
    assert config.eval.samples == 7
    assert config.eval.temperature == 0.8
    assert config.prompt.suffix == " ="
    assert config.prompt.system == ""
    assert config.train.seed == 5
    assert config.data.train == ()


def test_a_result_holds_all_that_it_depends_on(tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    write_problems(problems, load_source("arithmetic", count=3))
    evaluate_model(
        "tiny", terminal=QUIET, problems=problems, samples=4, max_tokens=5, temperature=0.7,
        top_p=0.9, stop=["!"], ks=[2], seed=11, system="s", suffix=" =", answer_pattern="number",
        out=tmp_path / "result.json",
    )  # fmt: skip
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["model"] == "tiny"
    assert list(result["pass_at"]) == ["2"]
    settings = result["settings"]
    assert settings["sampling"] == {
        "max_tokens": 5, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "min_p": 0.0, "stop": ["!"],
    }  # fmt: skip
    assert (settings["samples"], settings["seed"]) == (4, 11)
    assert settings["problems_hash"] == problems_hash(read_problems(problems))
    assert settings["prompt"]["suffix"] == " ="
    assert settings["prompt"]["system"] == "s"
    assert settings["verify"] == json.loads(json.dumps(asdict(Policy(answer_pattern="number"))))
    other = {**settings, "seed": 12}
    assert different_settings(settings, other) == {"seed": (11, 12)}


def test_the_seed_decides_the_responses(tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    write_problems(problems, load_source("arithmetic", count=3))
    texts = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = tmp_path / f"{name}.json"
        evaluate_model("tiny", terminal=QUIET, problems=problems, seed=seed, max_tokens=8, out=out)
        texts[name] = [row["response"] for row in measured(out)[1]]
    assert texts["a"] == texts["b"] != texts["c"]


def test_a_result_is_never_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    problems = tmp_path / "sums.jsonl"
    write_problems(problems, load_source("arithmetic", count=2))
    for _ in range(2):
        evaluate_model("tiny", terminal=QUIET, problems=problems, max_tokens=8)
    names = sorted(path.name for path in (tmp_path / "evals").iterdir())
    assert names == ["tiny-sums-2.json", "tiny-sums-2.jsonl", "tiny-sums.json", "tiny-sums.jsonl"]
    out = tmp_path / "evals" / "tiny-sums.json"
    with pytest.raises(ValueError, match="is there already"):
        evaluate_model("tiny", terminal=QUIET, problems=problems, max_tokens=8, out=out)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"samples": 2, "ks": [4]}, r"pass@4 .* 2 samples a problem; give --samples 4"),
        ({"ks": [0]}, "pass@0"),
        ({"temperature": 0.0, "samples": 2}, "same answer 2 times"),
        ({"temperature": -1.0}, "eval.temperature"),
        ({"top_p": 1.5}, "eval.top_p"),
        ({"samples": 0}, "eval.samples"),
    ],
)
def test_wrong_settings_are_refused_before_the_model_is_looked_for(
    tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    problems = tmp_path / "problems.jsonl"
    write_problems(problems, load_source("arithmetic", count=2))
    with pytest.raises(ValueError, match=message):
        evaluate_model("no/such-model", terminal=QUIET, problems=problems, **asked)


def test_a_model_without_problems_of_its_own_needs_a_file() -> None:
    with pytest.raises(ValueError, match="name a file with --problems"):
        evaluate_model("tiny", terminal=QUIET)


@pytest.mark.parametrize("fails", [False, True])
def test_vllm_is_closed_when_its_evaluation_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """It is a process of its own, which holds the device's memory."""
    closed: list[bool] = []

    class InItsPlace:
        def __init__(self, config: Config) -> None:
            self.sampler = open_sampler(config, None)

        def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Sample]:
            assert not closed
            if fails:
                raise KeyboardInterrupt
            return self.sampler.generate(requests, sampling)

        def close(self) -> None:
            closed.append(True)

    monkeypatch.setattr("archer.evaluate_model.open_vllm", lambda config, *rest: InItsPlace(config))
    problems, out = tmp_path / "problems.jsonl", tmp_path / "out.json"
    write_problems(problems, load_source("arithmetic", count=2))
    with pytest.raises(KeyboardInterrupt) if fails else nullcontext():
        evaluate_model("tiny", terminal=QUIET, problems=problems, vllm=0.4, max_tokens=4, out=out)
    assert closed == [True]


# ------------------------------------------------------------------ numbers


def group(id: str, outcomes: list[Outcome], *, source: str = "", stop: str = "stop") -> Group:
    numbers = np.array([1.0], dtype=np.float32)
    completion = Completion(
        prompt_ids=np.array([1], dtype=np.int32),
        token_ids=np.array([2], dtype=np.int32),
        logps=numbers,
        entropies=numbers,
        policy_version=0,
        stop="length" if stop == "length" else "stop",
        in_thought=False,
        text="5",
    )
    return Group(
        problem=Problem(id=id, prompt="2+3?", verifier="math", answer="5", source=source),
        rollouts=tuple(
            Rollout(
                completion=completion,
                verdict=Verdict(outcome=outcome, score=float(outcome == "correct")),
                reward=0.0,
            )
            for outcome in outcomes
        ),
    )


GROUPS = [
    group("a", ["correct", "wrong", "wrong", "no_answer"], source="easy"),
    group("b", ["correct", "correct", "correct", "correct"], source="easy"),
    group("c", ["wrong", "wrong", "wrong", "limit"], source="hard", stop="length"),
]


def test_scores_by_hand() -> None:
    found = summarise_groups(GROUPS, samples=4, seed=0, settings={}, policy=Policy())
    assert found.score["mean"] == pytest.approx((1 / 4 + 1 + 0) / 3)
    assert found.score["low"] <= found.score["mean"] <= found.score["high"]
    # pass@2 of one right in four: 1 - C(3, 2) / C(4, 2) = 1/2.
    assert found.pass_at == pytest.approx({"1": 1.25 / 3, "2": 1.5 / 3, "4": 2 / 3})
    assert found.truncated == pytest.approx(1 / 3)
    assert found.by_source == {"easy": 0.625, "hard": 0.0}
    assert found.outcomes == {
        "correct": 5, "wrong": 5, "crashed": 0, "limit": 1, "no_answer": 1, "error": 0,
    }  # fmt: skip


def summarise_groups(groups: list[Group], **settings: Any) -> Evaluation:
    return summarise([to_answers(group) for group in groups], **settings)


def answered(
    id: str, answers: list[tuple[str, Outcome]], *, verifier: str = "exact", **meta: Any
) -> Group:
    """A group with texts of its own: what they vote for counts."""
    made = group(id, [outcome for _, outcome in answers])
    return replace(
        made,
        problem=replace(made.problem, verifier=verifier, meta=meta),
        rollouts=tuple(
            replace(rollout, completion=replace(rollout.completion, text=text))
            for rollout, (text, _) in zip(made.rollouts, answers, strict=True)
        ),
    )


def test_majority_by_hand_over_equal_answers() -> None:
    groups = [
        # "5" leads with two votes of four; of two drawn, it wins with 5 5, halves with 5 4, 5 3.
        answered("a", [("5", "correct"), (" 5 ", "correct"), ("4", "wrong"), ("3", "wrong")]),
        # A response without an answer has no vote: one vote is enough.
        answered("b", [("5", "correct"), ("", "no_answer"), ("", "no_answer"), ("", "no_answer")]),
    ]
    found = summarise_groups(groups, samples=4, seed=0, settings={}, policy=Policy())
    of_two = (1 + 4 * 0.5) / 6, 3 / 6
    assert found.majority_at == pytest.approx({"2": sum(of_two) / 2, "4": 1.0})
    assert found.voting == 2
    assert found.no_answer == 3 / 8
    lines = {line.split()[0]: line.split() for line in describe(found).splitlines() if line}
    assert lines["majority@4"] == ["majority@4", "1.000"]
    assert lines["no"] == ["no", "answer", "0.375"]


def test_in_mathematics_the_extracted_answer_votes() -> None:
    texts = ["so \\boxed{5}", "or is it \\boxed{5}", "\\boxed{4}", "I can't say"]
    outcomes: list[Outcome] = ["correct", "correct", "wrong", "no_answer"]
    asked = answered("a", list(zip(texts, outcomes, strict=True)), verifier="math")
    one, other, wrong, silent = votes(to_answers(asked), Policy()) or []
    assert one == other != wrong
    assert one is not None and silent is None


@pytest.mark.parametrize(
    ("verifier", "pattern"), [("code", "box"), ("mine:judge", "box"), ("math", r"= (\d+)")]
)
def test_where_equal_answers_cannot_be_told_there_is_no_majority(
    verifier: str, pattern: str
) -> None:
    two: list[tuple[str, Outcome]] = [("5", "correct"), ("4", "wrong")]
    silent = answered("a", two, verifier=verifier)
    policy = Policy(answer_pattern=pattern)
    found = summarise_groups([silent], samples=2, seed=0, settings={}, policy=policy)
    assert found.majority_at == {} and found.voting == 0
    assert "majority" not in describe(found)
    if pattern == "box":
        both = [silent, answered("b", two)]
        found = summarise_groups(both, samples=2, seed=0, settings={}, policy=policy)
        assert found.majority_at == {"2": 0.5}
        line = next(line for line in describe(found).splitlines() if "majority" in line)
        assert line.split() == ["majority@2", "0.500", "of", "1", "problems"]


def test_scores_by_difficulty_and_platform_where_problems_have_them() -> None:
    right: list[tuple[str, Outcome]] = [("5", "correct")]
    wrong: list[tuple[str, Outcome]] = [("4", "wrong")]
    groups = [
        answered("a", right, difficulty="easy", platform="atcoder"),
        answered("b", wrong, difficulty="hard", platform="atcoder"),
        answered("c", right, difficulty="hard", platform="leetcode"),
        answered("d", wrong),
        answered("e", [("", "error")], difficulty="medium"),
    ]
    found = summarise_groups(groups, samples=1, seed=0, settings={}, policy=Policy())
    assert found.by_difficulty == {"easy": 1.0, "hard": 0.5}
    assert found.by_platform == {"atcoder": 0.5, "leetcode": 1.0}
    text = describe(found)
    for name in ("easy", "hard", "atcoder", "leetcode"):
        assert f"avg on {name}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_any_k_can_be_asked_for() -> None:
    found = summarise_groups(GROUPS, samples=4, seed=0, settings={}, policy=Policy(), ks=[3])
    # pass@3 of one right in four: 1 - C(3, 3) / C(4, 3) = 3/4.
    assert found.pass_at == pytest.approx({"3": (0.75 + 1 + 0) / 3})


def test_grader_errors_are_in_no_score_and_shown() -> None:
    groups = [*GROUPS, group("d", ["error", "correct", "error", "wrong"])]
    found = summarise_groups(groups, samples=4, seed=0, settings={}, policy=Policy(), ks=[2, 3])
    assert found.score["mean"] == pytest.approx((1 / 4 + 1 + 0 + 1 / 2) / 4)
    assert found.outcomes["error"] == 2
    assert list(found.pass_at) == ["2"]
    text = describe(found, ks=[2, 3])
    assert "2 error" in text
    assert "too few verdicts" in text


def test_a_problem_with_errors_alone_is_left_out_and_nothing_but_errors_is_refused() -> None:
    broken = group("d", ["error", "error", "error", "error"])
    found = summarise_groups([*GROUPS, broken], samples=4, seed=0, settings={}, policy=Policy())
    assert found.score["mean"] == pytest.approx(1.25 / 3)
    assert found.problems == 4
    with pytest.raises(ValueError, match="every verdict of this evaluation is a grader error"):
        summarise_groups([broken], samples=4, seed=0, settings={}, policy=Policy())


def test_a_table_fits_the_terminal_and_a_written_result_is_read_back(tmp_path: Path) -> None:
    found = summarise_groups(GROUPS, samples=4, seed=0, settings={"seed": 0}, policy=Policy())
    assert max(map(len, describe(found).splitlines())) <= 80
    write_evaluation(tmp_path / "result.json", found, GROUPS)
    assert read_evaluation(tmp_path / "result.json") == found


# ------------------------------------------------------------------ mistakes of the released tools


def test_mistake_39_problems_that_are_left_out_move_no_response_to_another(tmp_path: Path) -> None:
    """Ids that hold one another, one prompt twice, and too long ones between the others."""
    questions = [
        "1+1=",
        "2+2=",
        "1+1=",
        "what is 3+4, all in digits?",
        "5+4=",
        "and what is the sum of 3 and 3?",
        "2+6=",
    ]
    answers = ["2", "4", "2", "7", "9", "6", "8"]
    asked = [
        Problem(id="1" * (i + 1), prompt=question, verifier="math", answer=answer, source="sums")
        for i, (question, answer) in enumerate(zip(questions, answers, strict=True))
    ]
    write_problems(tmp_path / "asked.jsonl", asked)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        RECIPE.replace(
            '{ source = "arithmetic", count = 12, seed = 1, args = { operations = "+" } }',
            f'{{ source = "{tmp_path / "asked.jsonl"}" }}',
        )
    )
    found = {}
    for name, limit in (("all", 100), ("short", 23)):
        config = load_config(
            recipe, [f"data.max_prompt_tokens={limit}", "data.overlong_prompts=drop"]
        )
        data = load_data(config)
        with closing(open_engine(config)) as engine, open_verifiers(config, engine) as verifiers:
            _, groups = evaluate_data(engine, verifiers, data, config, QUIET)
        found[name] = {group.problem.id: group for group in groups}
        assert [group.problem for group in groups] == data.evaluate
    assert 0 < len(found["short"]) < len(found["all"]) == 7
    texts = set()
    for id, group in found["short"].items():
        for rollout, same in zip(group.rollouts, found["all"][id].rollouts, strict=True):
            completion, verdict = rollout.completion, rollout.verdict
            assert completion.prompt_ids.tolist() == data.render(group.problem).token_ids.tolist()
            assert completion.token_ids.tolist() == same.completion.token_ids.tolist()
            again = verify(group.problem, completion.text, False, Policy(answer_pattern="number"))
            assert (verdict.outcome, verdict.score) == (again.outcome, again.score)
            texts.add(completion.text)
    assert len(texts) > 4, "responses that are alike could not tell a mix-up"


BROKEN = """
def judge(problem, reading):
    if problem.answer == "bad":
        raise KeyError("answer")
    return True
"""


def test_mistake_41_what_could_not_be_scored_is_no_zero_and_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_grader.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)

    def evaluated(name: str, *answers: str) -> Path:
        problems = [
            Problem(id=str(i), prompt="2+3?", verifier="broken_grader:judge", answer=answer)
            for i, answer in enumerate(answers)
        ]
        write_problems(tmp_path / "problems.jsonl", problems)
        out = tmp_path / f"{name}.json"
        evaluate_model(
            "tiny", terminal=QUIET, problems=tmp_path / "problems.jsonl", max_tokens=8, out=out
        )
        return out

    found = read_evaluation(evaluated("some", "bad", "good", "bad"))
    assert found.score["mean"] == 1
    assert found.outcomes["error"] == 2 and found.outcomes["wrong"] == 0
    with pytest.raises(ValueError, match=r"is a grader error, the first one .*KeyError") as refused:
        evaluated("none", "bad", "bad")
    sampled = tmp_path / "none.errors.jsonl"
    assert f"archer grade {sampled} --out" in str(refused.value)
    assert len(sampled.read_bytes().splitlines()) == 2, "what was sampled is not lost"
    assert main(["grade", str(sampled), "--out", str(tmp_path / "verdicts.jsonl"), "--quiet"]) == 0
    assert not list(tmp_path.glob("none.json*")), "or the next attempt would take it for a result"
    assert read_evaluation(evaluated("none", "good", "good")).score["mean"] == 1


def test_mistake_42_a_command_that_failed_says_so_by_its_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "archer.cli", "grade", "absent.jsonl", "--out", "out.jsonl"]
    done = subprocess.run(command, cwd=tmp_path, env=child_environment(), capture_output=True)
    assert done.returncode == 2
    assert main(["eval", "tiny", "--problems", str(tmp_path / "absent.jsonl")]) == 2
    # A fault that is nobody's input is not swallowed: Python ends with 1.
    (tmp_path / "faulty_loss.py").write_text("def loss(*tokens):\n    return 1 / 0\n")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        main(["plan", str(tmp_path / "recipe.toml"), "loss.name=faulty_loss:loss"])


def test_mistake_46_nothing_is_sent_anywhere_unless_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LogConfig().sinks == ()
    services = ("wandb", "trackio", "tensorboard", "torch.utils.tensorboard")
    for path in (ROOT / "archer").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not set(names) & set(services), path
    for service in services:
        monkeypatch.setitem(sys.modules, service, None)  # importing it is an error now
    write_problems(tmp_path / "problems.jsonl", load_source("arithmetic", count=2))
    out = tmp_path / "result.json"
    problems = tmp_path / "problems.jsonl"
    evaluate_model("tiny", terminal=QUIET, problems=problems, max_tokens=8, out=out)
    assert out.exists()
