"""Each checkpoint is evaluated once, by whichever watcher, however often it is killed."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import archer.claims
import archer.evaluate
import archer.watch
from archer.claims import STALE, Claims
from archer.cli import main
from archer.config import load_config
from archer.data.problems import write_problems
from archer.data.sources import load_source
from archer.engine.base import Request, Sample, Sampling
from archer.engine.local import WEIGHTS
from archer.evaluate_model import SamplerAlone, evaluate_model
from archer.export import export
from archer.model.tiny import tiny_model, tiny_tokenizer
from archer.run import checkpoint_steps
from archer.sinks import SINKS, Sink
from archer.terminal import Terminal
from archer.train import train
from tests.killed import UNIT, Killed, killing, moments

QUIET = Terminal(quiet=True)
STEPS, SAMPLES = 3, 3
PROBLEMS = {"sums": 5, "others": 2}
"""Files and their problems: three units of at most two problems, and one."""

RECIPE = f"""
model = {{ name = "tiny", threads = 1 }}
verify = {{ answer_pattern = "number", workers = 1 }}
update = {{ minibatch = 2, learning_rate = 3e-3 }}
train = {{ steps = {STEPS} }}
checkpoint = {{ every = 1, keep = 9 }}
data = {{ train = [{{ source = "arithmetic", count = 9 }}] }}
[rollout]
problems = 2
samples = 2
max_tokens = 6
cache_tokens = 200
filter = "keep"
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and files of problems beside it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "recipe.toml").write_text(RECIPE)
    train(load_config(folder / "recipe.toml"), folder / "run", QUIET)
    for seed, (name, count) in enumerate(PROBLEMS.items()):
        problems = load_source("arithmetic", count=count, seed=seed)
        write_problems(folder / f"{name}.jsonl", problems)
    return folder


@pytest.fixture(scope="module")
def whole(trained: Path) -> Path:
    """What an unbroken watcher of this run leaves."""
    patch = pytest.MonkeyPatch()
    patch.setattr(archer.evaluate, "UNIT", UNIT)
    assert main(command(trained, trained / "run", "--out", str(trained / "whole"))) == 0
    patch.undo()
    return trained / "whole"


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archer.evaluate, "UNIT", UNIT)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


def command(
    files: Path, run: Path, *more: str, names: Sequence[str] = tuple(PROBLEMS)
) -> list[str]:
    named = [word for name in names for word in ("--problems", str(files / f"{name}.jsonl"))]
    return ["watch", str(run), *named, "--samples", str(SAMPLES), "--once", "--poll", "0.1", *more]


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


class Sampled:
    """Counts the completions that were sampled; may do something before a call of the sampler."""

    def __init__(self) -> None:
        self.count = 0
        self.calls = 0
        self.before: dict[int, Any] = {}


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> Sampled:
    seen, generate = Sampled(), SamplerAlone.generate

    def counted(
        self: SamplerAlone, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[Sample]:
        seen.calls += 1
        seen.before.pop(seen.calls, lambda: None)()
        seen.count += sum(len(request.names) for request in requests)
        return generate(self, requests, sampling)

    monkeypatch.setattr(SamplerAlone, "generate", counted)
    return seen


EVERY = STEPS * SAMPLES * sum(PROBLEMS.values())

# ------------------------------------------------------------------ what it leaves


def test_results_are_those_of_archer_eval_and_the_table_holds_them(
    trained: Path, whole: Path, run: Path, tmp_path: Path
) -> None:
    names = {f"step-{step:06d}-{name}" for step in range(1, STEPS + 1) for name in PROBLEMS}
    expected = {f"{name}{suffix}" for name in names for suffix in (".json", ".jsonl")}
    expected |= {f"settings-{name}.json" for name in PROBLEMS} | {"scores.md", "metrics.jsonl"}
    assert contents(whole).keys() == expected and not list(whole.glob(".*"))
    evaluate_model(
        str(checkpoint(run, 2)),
        terminal=QUIET,
        problems=trained / "sums.jsonl",
        samples=SAMPLES,
        out=tmp_path / "again.json",
    )
    for suffix in (".json", ".jsonl"):
        again = (tmp_path / "again.json").with_suffix(suffix)
        assert again.read_bytes() == (whole / f"step-000002-sums{suffix}").read_bytes()
    lines = (whole / "scores.md").read_text().splitlines()
    assert lines.count("## sums") == lines.count("## others") == 1
    assert "5 problems, 3 samples each" in lines
    assert "| step | score | 95 % interval | pass@3 | truncated | tokens |  |" in lines
    assert sum(line.endswith("| best |") for line in lines) == len(PROBLEMS)
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    result = json.loads((whole / "step-000002-sums.json").read_text())
    assert rows[1]["watch/sums/score"] == result["score"]["mean"]
    assert rows[1]["watch/sums/pass@3"] == result["pass_at"]["3"]


def test_each_is_evaluated_once_and_a_second_command_does_nothing(
    trained: Path, whole: Path, run: Path, sampled: Sampled, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(trained, run)) == 0
    assert sampled.count == EVERY
    said = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("step ") and "[" in line for line in said) == 2 * STEPS
    assert said[-1] == str(run / "watch" / "scores.md")
    assert max(map(len, said[:-1])) <= 80
    before = contents(run / "watch")
    assert before == contents(whole)
    assert main(command(trained, run)) == 0
    assert sampled.count == EVERY
    assert contents(run / "watch") == before


def test_the_table_is_the_same_bytes_in_whatever_order_checkpoints_came(
    trained: Path, whole: Path, run: Path, tmp_path: Path
) -> None:
    aside = tmp_path / "aside"
    shutil.move(run / "checkpoints", aside)
    (run / "checkpoints").mkdir()
    for step, names in ((3, ["others"]), (1, ["sums"]), (2, ["others", "sums"]), (3, ["sums"])):
        shutil.copytree(
            checkpoint(trained / "run", step), checkpoint(run, step), dirs_exist_ok=True
        )
        assert main(command(trained, run, "--quiet", names=names)) == 0
    assert main(command(trained, run)) == 0
    assert contents(run / "watch") == contents(whole)


def test_without_once_it_ends_with_the_last_step(
    trained: Path, whole: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = [shutil.move(checkpoint(run, step), tmp_path / str(step)) for step in (2, 3)]
    waits: list[int] = []

    def sleep(seconds: float) -> None:
        waits.append(len(list((run / "watch").glob("step-*.json"))))
        step = len(waits) + 1
        shutil.move(hidden.pop(0), checkpoint(run, step))

    monkeypatch.setattr(archer.watch, "sleep", sleep)
    asked = [word for word in command(trained, run) if word != "--once"]
    assert main(asked) == 0
    assert waits == [2, 4]
    assert contents(run / "watch") == contents(whole)


def test_a_checkpoint_that_is_being_written_is_not_taken(
    trained: Path, whole: Path, run: Path
) -> None:
    shutil.copytree(checkpoint(run, 3), run / "checkpoints" / ".step-000004.partial")
    shutil.copytree(checkpoint(run, 3), checkpoint(run, 5))
    (checkpoint(run, 5) / "manifest.json").unlink()  # copied here by hand, and not yet all of it
    assert main(command(trained, run)) == 0
    assert contents(run / "watch") == contents(whole)


# ------------------------------------------------------------------ what goes wrong


def test_a_checkpoint_that_was_removed_before_its_turn_is_gone(
    trained: Path, run: Path, sampled: Sampled, capsys: pytest.CaptureFixture[str]
) -> None:
    sampled.before[1] = lambda: shutil.rmtree(checkpoint(run, 2))
    assert main(command(trained, run)) == 0
    assert sampled.count == EVERY * 2 // 3
    assert "step 2: gone" in capsys.readouterr().out.splitlines()
    lines = (run / "watch" / "scores.md").read_text().splitlines()
    assert lines.count("| 2 | - | - | - | - | - | gone |") == len(PROBLEMS)
    before = contents(run / "watch")
    assert main(command(trained, run)) == 0
    assert contents(run / "watch") == before and sampled.count == EVERY * 2 // 3


def test_a_checkpoint_that_is_removed_under_way_is_evaluated_to_its_end(
    trained: Path, whole: Path, run: Path, sampled: Sampled
) -> None:
    def stop() -> None:
        shutil.rmtree(checkpoint(run, 1))
        raise KeyboardInterrupt

    sampled.before[2] = stop
    assert main(command(trained, run)) == 130
    assert (run / "watch" / "held-step-000001").is_dir()
    assert main(command(trained, run)) == 0
    assert sampled.count == EVERY, "the unit that was judged was not sampled again"
    assert contents(run / "watch") == contents(whole)


def test_where_no_links_can_be_made_a_checkpoint_is_read_in_its_place(
    trained: Path, whole: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(source: Path, target: Path) -> None:
        raise OSError(archer.watch.NO_LINKS[0], "cross-device link")

    monkeypatch.setattr(archer.watch, "_link_files", refused)
    assert main(command(trained, run)) == 0
    assert contents(run / "watch") == contents(whole)


def test_a_damaged_checkpoint_is_told_once_tried_again_given_up_and_listed(
    trained: Path,
    whole: Path,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sampled: Sampled,
) -> None:
    monkeypatch.setattr(archer.watch, "BACK_OFF", (0.01, 0.02))
    weights = checkpoint(run, 2) / WEIGHTS
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    for _ in range(2):
        assert main(command(trained, run)) == 1
        said = capsys.readouterr().out
        assert said.count("trying again") == said.count("step 2: given up") == 1
        assert said.count("does not match its checksum: the checkpoint is damaged") == 3
        table = (run / "watch" / "scores.md").read_text()
        assert table.count("| 2 | - | - | - | - | - | failed |") == len(PROBLEMS)
        assert f"- step 2: step-000002/{WEIGHTS} does not match its checksum" in table
        assert sampled.count == EVERY * 2 // 3
    weights.write_bytes(good)
    assert main(command(trained, run)) == 0
    assert sampled.count == EVERY
    assert contents(run / "watch") == contents(whole)


def test_what_fails_once_goes_on_where_it_was(
    trained: Path,
    whole: Path,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    sampled: Sampled,
) -> None:
    monkeypatch.setattr(archer.watch, "BACK_OFF", (0.01,))

    def fail() -> None:
        raise RuntimeError("out of memory")

    sampled.before[2] = fail
    assert main(command(trained, run)) == 0
    assert sampled.count == EVERY
    assert contents(run / "watch") == contents(whole)


def test_what_another_kind_of_machine_began_is_sampled_anew(
    trained: Path, whole: Path, run: Path, sampled: Sampled, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    sampled.before[2] = stop
    assert main(command(trained, run)) == 130
    part = run / "watch" / "step-000001-sums.jsonl.part"
    part.write_bytes(part.read_bytes().replace(b'"threads": 1', b'"threads": 64'))
    assert main(command(trained, run)) == 0
    assert "begun on another kind of machine" in capsys.readouterr().out
    assert sampled.count == EVERY + UNIT
    assert contents(run / "watch") == contents(whole)


# ------------------------------------------------------------------ several


def test_what_a_live_one_has_claimed_is_left_to_it_and_a_stale_claim_is_taken_over(
    trained: Path, whole: Path, run: Path, monkeypatch: pytest.MonkeyPatch, sampled: Sampled
) -> None:
    monkeypatch.setattr(Claims, "_beat", lambda self: None)
    other = Claims(run / "watch" / ".claims")
    assert other.take("step-000001") and other.take("step-000003")
    waits: list[int] = []

    def sleep(seconds: float) -> None:
        waits.append(sampled.count)
        at = other.now() - STALE - 30
        os.utime(other.own / "alive", (at, at))

    monkeypatch.setattr(archer.watch, "sleep", sleep)
    assert main(command(trained, run)) == 0
    assert waits == [EVERY // 3]
    assert sampled.count == EVERY
    other.close()
    assert contents(run / "watch") == contents(whole)


def test_whoever_is_taken_over_lets_go(
    trained: Path,
    whole: Path,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    sampled: Sampled,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(archer.claims, "BEAT", 0.0)
    monkeypatch.setattr(Claims, "_beat", lambda self: None)
    (run / "watch").mkdir()
    other = Claims(run / "watch" / ".claims")

    def steal() -> None:
        (claim,) = (run / "watch" / ".claims").glob("step-000001.*")
        os.utime(claim, (1, 1))
        assert other.take("step-000001")

    sampled.before[2] = steal
    monkeypatch.setattr(archer.watch, "sleep", lambda _: other.close())
    assert main(command(trained, run)) == 0
    assert "step 1: taken over by another watcher" in capsys.readouterr().out
    assert contents(run / "watch") == contents(whole)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killed]:
    with killing("sampling", tmp_path_factory.mktemp("killed")) as killed:
        yield killed


def asked_for(killed: Killed) -> tuple[list[tuple[int, str, str]], int]:
    """(process, result, completion) of what was sampled since the last time, and how many responses
    the verifiers were asked for."""
    rows = killed.noted()
    sampled = [(row["pid"], row["out"], name) for row in rows for name in row.get("sampled", ())]
    return sampled, sum("judged" in row for row in rows)


def test_two_watchers_share_the_work_and_leave_what_one_leaves(
    trained: Path, whole: Path, run: Path, killed: Killed
) -> None:
    asked = command(trained, run)
    codes, _ = killed(asked, asked)
    assert codes == [0, 0], killed.said.read_text()
    seen, num_judged = asked_for(killed)
    assert len(seen) == len({(out, name) for _, out, name in seen}) == num_judged == EVERY
    by_step = {(out.rsplit("-", 1)[0], pid) for pid, out, _ in seen}
    assert len(by_step) == STEPS, "one watcher a step"
    assert len({pid for _, pid in by_step}) == 2
    assert contents(run / "watch") == contents(whole)


def test_what_a_killed_watcher_leaves_is_gone_on_with_by_another(
    trained: Path, whole: Path, run: Path, killed: Killed
) -> None:
    asked = command(trained, run)
    codes, _ = killed(asked, asked, kill_at=[30])
    assert codes == [-9, 0], killed.said.read_text()
    seen, _ = asked_for(killed)
    assert len(seen) - len({(out, name) for _, out, name in seen}) <= UNIT
    assert contents(run / "watch") == contents(whole)
    assert not list((run / "watch").glob(".*"))


def judged(folder: Path) -> set[tuple[str, int]]:
    """Responses that are on disk in whole units: (result, number of the line)."""
    found = set()
    for path in [*folder.glob("step-*.jsonl"), *folder.glob("step-*.jsonl.part")]:
        part = path.suffix == ".part"
        name = path.name.split(".")[0]
        lines = path.read_bytes().splitlines(True)[part:]
        count = SAMPLES * PROBLEMS[name.rsplit("-", 1)[1]]
        whole_lines = sum(line.endswith(b"\n") for line in lines)
        kept = count if whole_lines >= count else whole_lines // UNIT * UNIT
        found |= {(name, number) for number in range(kept)}
    return found


def check_kill(killed: Killed, trained: Path, whole: Path, run: Path, at: int) -> None:
    """A watcher is killed, and the same command leaves what an unbroken one does."""
    command_line = command(trained, run)
    codes, _ = killed(command_line, kill_at=[at])
    assert codes == [-9], killed.said.read_text()
    order: dict[str, list[str]] = {}
    kept = judged(run / "watch")
    before, _ = asked_for(killed)
    codes, _ = killed(command_line)
    assert codes == [0], killed.said.read_text()
    after, num_judged = asked_for(killed)
    for _, out, name in [*before, *after]:
        if name not in order.setdefault(out, []):
            order[out].append(name)
    again = {(out, order[out].index(name)) for _, out, name in after}
    assert not again & kept, "nothing that is on disk is sampled a second time"
    assert len(after) == num_judged == EVERY - len(kept), "nor judged"
    assert len(before) - len(kept) <= UNIT, "a kill costs one unit"
    assert contents(run / "watch") == contents(whole), at
    assert not list((run / "watch").glob(".*")), at
    shutil.rmtree(run / "watch")


@pytest.mark.parametrize("number", [3, pytest.param(20, marks=pytest.mark.full)])
def test_wherever_it_is_killed_the_same_command_leaves_what_an_unbroken_one_does(
    trained: Path, whole: Path, run: Path, killed: Killed, number: int
) -> None:
    codes, events = killed(command(trained, run))
    assert codes == [0] and events > 200, killed.said.read_text()
    assert contents(run / "watch") == contents(whole)
    shutil.rmtree(run / "watch")
    killed.noted()
    for at in moments(events, number):
        check_kill(killed, trained, whole, run, at)


def test_a_suite_scores_by_its_own_settings_beside_problem_files(
    trained: Path,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evals" / "suites").mkdir(parents=True)
    shutil.copy(trained / "others.jsonl", tmp_path / "evals" / "suites" / "gsm8k.jsonl")
    asked = ["watch", str(run), "--suite", "gsm8k", "--problems", str(trained / "sums.jsonl")]
    assert main([*asked, "--once", "--poll", "0.1", "--max-tokens", "5"]) == 0
    found = sorted(path.name for path in (run / "watch").glob("step-000003-*.json"))
    assert found == ["step-000003-gsm8k.json", "step-000003-sums.json"]
    suite, own = (json.loads((run / "watch" / name).read_text())["settings"] for name in found)
    assert (suite["suite"], suite["sampling"]["temperature"]) == ("gsm8k", 0.0)
    assert ("suite" in own, own["sampling"]["temperature"]) == (False, 1.0)
    said = capsys.readouterr().out
    assert said.count("gsm8k: 2 problems are scored, and others count 1319") == 1
    export(checkpoint(run, 1), tmp_path / "exports" / "mine-1", dtype="float32", terminal=QUIET)
    rest_a_minute(tmp_path / "exports" / "mine-1")
    asked = ["watch", "exports", "--suite", "gsm8k", "--once", "--poll", "0.1"]
    assert main([*asked, "--max-tokens", "5"]) == 0
    assert "gsm8k: 2 problems are scored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([], "nothing to score checkpoints by; give --problems or --suite"),
        (["--suite", "gsm9k"], "no suite is called 'gsm9k'; near to it: gsm8k"),
    ],
)
def test_something_to_score_by_is_needed(
    run: Path, capsys: pytest.CaptureFixture[str], asked: list[str], said: str
) -> None:
    assert main(["watch", str(run), *asked, "--once"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


# ------------------------------------------------------------------ other folders


def rest_a_minute(folder: Path) -> None:
    """As if nothing in it had changed for a while."""
    at = time.time() - archer.watch.QUIET - 5
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (at, at))


def test_an_export_that_is_being_copied_here_is_not_taken(
    trained: Path,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export(checkpoint(run, 1), tmp_path / "mine-1", dtype="float32", terminal=QUIET)
    folder, whole = tmp_path / "exports", tmp_path / "mine-1"
    (folder / "mine-1").mkdir(parents=True)
    for name in ("archer.toml", "config.json"):
        shutil.copy(whole / name, folder / "mine-1")
    left = [path for path in whole.iterdir() if not (folder / "mine-1" / path.name).exists()]

    def sleep(seconds: float) -> None:
        assert not list((folder / "watch").glob("step-*")), "it is not yet whole"
        if left:
            shutil.copy(left.pop(0), folder / "mine-1")
        else:
            rest_a_minute(folder / "mine-1")

    monkeypatch.setattr(archer.watch, "sleep", sleep)
    assert main(command(trained, folder, names=["others"])) == 0
    assert not left and (folder / "watch" / "step-000001-others.json").exists()
    assert "trying again" not in capsys.readouterr().out


def test_a_folder_of_exports_is_watched_by_the_numbers_in_their_names(
    trained: Path, run: Path, tmp_path: Path, sampled: Sampled
) -> None:
    folder = tmp_path / "exports"
    export(checkpoint(run, 1), folder / "mine-1", dtype="float32", terminal=QUIET)
    shutil.copytree(folder / "mine-1", folder / "mine-3")
    rest_a_minute(folder)
    asked = command(trained, folder, names=["others"])
    assert main(asked) == 0
    found = sorted(path.name for path in (folder / "watch").glob("step-*.json"))
    assert found == ["step-000001-others.json", "step-000003-others.json"]
    evaluate_model(
        str(folder / "mine-3"),
        terminal=QUIET,
        problems=trained / "others.jsonl",
        samples=SAMPLES,
        out=tmp_path / "again.json",
    )
    again = (tmp_path / "again.jsonl").read_bytes()
    assert again == (folder / "watch" / "step-000003-others.jsonl").read_bytes()
    done = sampled.count
    assert main(asked) == 0 and sampled.count == done


def test_an_export_of_links_is_held_as_the_files_that_they_lead_to(
    trained: Path, run: Path, tmp_path: Path, sampled: Sampled
) -> None:
    """As the hub's cache has them: relative ones, which lead elsewhere from another folder."""
    export(checkpoint(run, 1), tmp_path / "blobs", dtype="float32", terminal=QUIET)
    (tmp_path / "blobs" / "sub").mkdir()
    (tmp_path / "blobs" / "sub" / "note").write_text("own")
    linked = tmp_path / "exports" / "mine-1"
    linked.mkdir(parents=True)
    for path in (tmp_path / "blobs").iterdir():
        (linked / path.name).symlink_to(f"../../blobs/{path.name}")
    rest_a_minute(linked)

    def stop() -> None:
        raise KeyboardInterrupt

    sampled.before[1] = stop
    asked = command(trained, tmp_path / "exports", names=["others"])
    assert main(asked) == 130
    held = tmp_path / "exports" / "watch" / "held-step-000001"
    assert contents(held) == contents(tmp_path / "blobs")
    assert not any(path.is_symlink() for path in held.rglob("*"))
    assert main(asked) == 0
    assert (tmp_path / "exports" / "watch" / "step-000001-others.json").exists()


def test_what_many_ranks_wrote_is_exported_first_and_taken_when_it_is_quiet(
    trained: Path, tmp_path: Path, sampled: Sampled, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = tiny_model(), tmp_path / "checkpoints"
    actor = folder / "global_step_20" / "actor"
    actor.mkdir(parents=True)
    model.config.save_pretrained(actor / "huggingface")
    tiny_tokenizer().save_pretrained(actor / "huggingface")
    torch.save(model.state_dict(), actor / "model_world_size_1_rank_0.pt")
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        assert not list((folder / "watch").glob("step-*")), "it was written a moment ago"
        waits.append(seconds)
        rest_a_minute(folder / "global_step_20")

    monkeypatch.setattr(archer.watch, "sleep", sleep)

    def stop() -> None:
        raise KeyboardInterrupt

    sampled.before[2] = stop
    asked = command(trained, folder, "--max-tokens", "6", names=["sums"])
    assert main(asked) == 130
    assert len(waits) == 1
    assert main(asked) == 0
    assert sampled.count == SAMPLES * PROBLEMS["sums"], "the export was kept, and so the unit"
    assert sorted(path.name for path in (folder / "watch").iterdir()) == [
        "metrics.jsonl",
        "scores.md",
        "settings-sums.json",
        "step-000020-sums.json",
        "step-000020-sums.jsonl",
    ]


# ------------------------------------------------------------------ services, refusals, signals


def test_services_of_the_recipe_hear_of_each_score_once(
    trained: Path, run: Path, monkeypatch: pytest.MonkeyPatch, sampled: Sampled
) -> None:
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("sinks = []", 'sinks = ["tensorboard"]'))
    heard: list[tuple[int, str]] = []
    opened: list[tuple[str, int]] = []

    def open_sink(module: Any, folder: Path, project: str, step: int, recipe: Any) -> Sink:
        assert folder.is_dir()
        opened.append((folder.name, step))

        def log(step: int, metrics: Any) -> None:
            heard.extend((step, name) for name in metrics if name.endswith("/score"))

        return Sink(log, lambda: None)

    monkeypatch.setitem(SINKS, "tensorboard", ("json", open_sink))

    def stop() -> None:
        raise KeyboardInterrupt

    sampled.before[5] = stop
    assert main(command(trained, run)) == 130
    assert main(command(trained, run)) == 0
    assert main(command(trained, run)) == 0
    scores = [f"watch/{name}/score" for name in PROBLEMS]
    assert heard == [(step, name) for step in (1, 2, 3) for name in scores]
    assert opened == [("run-watch", 1), ("run-watch", 2)]


def test_ctrl_c_ends_at_once_and_the_same_command_goes_on(
    trained: Path,
    whole: Path,
    run: Path,
    sampled: Sampled,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    sampled.before[6] = stop
    assert main(command(trained, run)) == 130
    assert "go on by the same command" in capsys.readouterr().err
    assert main(command(trained, run)) == 0
    assert sampled.count == EVERY
    assert contents(run / "watch") == contents(whole)


def test_what_cannot_be_watched_is_refused(
    trained: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(trained / "sums.jsonl", tmp_path / "elsewhere" / "sums.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"id": 1}\n')
    twice = ["--problems", str(tmp_path / "elsewhere" / "sums.jsonl")]
    refusals = [
        (command(trained, tmp_path), "is no run (it has no config.toml)"),
        (command(trained, tmp_path / "absent"), "is no run (it has no config.toml)"),
        (command(trained, checkpoint(run, 1)), "is one checkpoint or export"),
        (command(trained, run, *twice), "results are named after 'sums' for both"),
        (command(trained, run, "--poll", "0"), "--poll 0: must be above 0"),
        (command(trained, run, "--k", "4"), "pass@4 cannot be measured with 3 samples"),
        (command(trained, run, "--base", "tiny"), "is a run and knows its model"),
        (command(tmp_path, run, names=["bad"]), "bad.jsonl:1"),
        (command(tmp_path, run, names=["absent"]), "absent.jsonl"),
    ]
    for asked, words in refusals:
        assert main(asked) == 2, asked
        assert words in capsys.readouterr().err
        assert not (run / "watch").exists()


def test_other_settings_are_refused_for_a_folder_in_use(
    trained: Path, run: Path, capsys: pytest.CaptureFixture[str], sampled: Sampled
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    sampled.before[1] = stop
    assert main(command(trained, run, names=["others"])) == 130
    before = contents(run / "watch")
    for more, words in (
        (["--seed", "1"], "settings for others: seed (0 there, 1 here)"),
        (["--temperature", "0.5"], "sampling.temperature (1.0 there, 0.5 here)"),
        (["--k", "2"], "k ([] there, [2] here)"),
    ):
        assert main(command(trained, run, *more, names=["others"])) == 2
        assert words in capsys.readouterr().err
        assert contents(run / "watch") == before
    write_problems(run / "others.jsonl", load_source("arithmetic", count=2, seed=9))
    assert main(command(run, run, names=["others"])) == 2
    assert "problems_hash" in capsys.readouterr().err
    elsewhere = ["--seed", "1", "--out", str(run / "elsewhere")]
    assert main(command(trained, run, *elsewhere, names=["others"])) == 0


def test_a_run_that_removes_a_checkpoint_never_shows_half_of_it(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rmtree, seen = shutil.rmtree, []

    def looked(path: Path, **rest: Any) -> None:
        folder = tmp_path / "run"
        seen.append((Path(path).name, checkpoint_steps(folder)))
        rmtree(path, **rest)

    monkeypatch.setattr("archer.run.shutil.rmtree", looked)
    config = load_config(trained / "recipe.toml", ["checkpoint.keep=1"])
    train(config, tmp_path / "run", QUIET)
    assert (".step-000001.partial", [2]) in seen
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step-000003"]
