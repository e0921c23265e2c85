"""Bad input ends in one line on standard error and exit code 2; what was written before is kept."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from archer.cli import main
from archer.config import config_toml, load_config
from archer.model.tiny import tiny_model, tiny_tokenizer
from archer.sinks import SINKS, Sink
from tests.refusals import Refusals, files_of_at_most

COMMANDS = ("train", "plan", "prepare", "grade", "convert", "eval", "watch", "export", "doctor")

RECIPE = """
[model]
name = "tiny"
threads = 1
[data]
train = [{ source = "arithmetic", count = 20, args = { operations = "+" } }]
evaluate = [{ source = "arithmetic", count = 4, seed = 1, args = { operations = "+" } }]
[rollout]
problems = 2
samples = 2
max_tokens = 4
filter = "keep"
[verify]
answer_pattern = "number"
workers = 1
[loss]
name = "grpo"
[entropy]
coefficient = 0.01
[update]
minibatch = 2
learning_rate = 1e-3
[train]
steps = 2
[checkpoint]
every = 1
"""

GOOD = {"id": "sum-1", "prompt": "2+3?", "verifier": "math", "answer": "5"}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.toml").write_text(RECIPE)
    assert main(["train", str(folder / "small.toml"), "--run", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refusals:
    return Refusals(capsys)


# ------------------------------------------------------------------ help


def test_help_of_every_command_is_there_at_once() -> None:
    """It imports nothing that takes time."""
    code = f"""
import contextlib, io, sys
from archer.cli import main
for arguments in ([], *([name] for name in {COMMANDS!r})):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            main([*arguments, "--help"])
        except SystemExit as ended:
            assert ended.code == 0, arguments
    assert "usage: archer" in said.getvalue(), arguments
heavy = {{"torch", "transformers", "numpy", "rich", "pydantic"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("archer 0.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "invalid choice: 'trian'"),
        (["eval", "tiny", "--samples", "many"], "invalid int value: 'many'"),
        (["eval", "tiny", "--sample-size", "3"], "unrecognized arguments"),
        (["grade", "a.jsonl"], "the following arguments are required: --out"),
        (["export", "runs/a", "out", "--dtype", "int4"], "invalid choice: 'int4'"),
        (["train", "small.toml", "--steps", "3"], "unrecognized arguments: --steps"),
    ],
)
def test_a_wrong_argument_is_one_line(refused: Refusals, arguments: list[str], words: str) -> None:
    said = refused(*arguments)
    assert words in said
    assert "--help" in said


# ------------------------------------------------------------------ the recipe


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rollout.temprature=0.9", "did you mean rollout.temperature?"),
        ("trian.steps=3", "did you mean train?"),
        ("rollout.samples=many", "rollout.samples = 'many'"),
        ("train.steps=0", "train.steps = 0"),
        ("loss.name=gripo", "did you mean grpo?"),
        ("loss.clip_hihg=0.2", "did you mean loss.clip_high?"),
        ("loss.clip_high=wide", "loss.clip_high = 'wide' is not a number"),
        ("loss.clip_high=nan", "loss.clip_high = nan is not a number"),
        ("loss.dual_clip=0.5", "dual_clip is 0.5: give a ratio above 1"),
        ("loss.name=archer.algo.losses:clip_cov", "cannot be called as a loss: missing"),
        ("mismatch.low=3", "mismatch.low is 3 and mismatch.high 2"),
        ("rollout={ problems = 2, samples = 1, max_tokens = 4 }", "set rollout.filter = keep"),
        ("advantage.name=rlo", "did you mean rloo?"),
        ("rollout.top_p=0.9", "set mismatch.kind"),
        ("data.train=[]", "data.train"),
        ("model.device=tpu", "model.device"),
        ("steps", "write section.key=value"),
        ("update.betas=[0.9, 1.0]", "update.betas.1 = 1.0: input should be less than 1"),
        ("loss={ name = 'no_is', clip_low = 1.5 }", "loss.name = 'no_is' is no number"),
        ("loss={ name = 'grpo', nam = 1 }", "has no knob 'nam'; remove it (its knobs: "),
    ],
)
def test_a_wrong_knob_is_refused_before_a_run_folder_is_made(
    refused: Refusals, recipe: Path, tmp_path: Path, override: str, words: str
) -> None:
    assert words in refused("train", recipe, override, "--run", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_recipe_is_refused_with_those_that_are_there(
    refused: Refusals, recipe: Path
) -> None:
    assert "recipes there: small.toml" in refused("train", recipe.with_name("smal.toml"))


def test_a_recipe_that_is_no_toml_is_refused(refused: Refusals, recipe: Path) -> None:
    recipe.write_text("[model\n")
    assert "not valid TOML" in refused("train", recipe)


# ------------------------------------------------------------------ data and prompts


def rows(*more: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in (GOOD, *more))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "p.jsonl: No such file or directory; give the path"),
        ("", "p.jsonl: the file is empty"),
        (rows() + '{"id": \n', "p.jsonl:2: malformed JSON"),
        (rows({"id": "b", "prompt": "?"}), 'p.jsonl:2: the key "verifier" is missing'),
        (rows({**GOOD, "prompt": "3+4?"}), "p.jsonl:2: the id 'sum-1' stands in line 1 already"),
        (rows({**GOOD, "id": "b", "verifier": "maths"}), 'p.jsonl:2: unknown verifier "maths"'),
        (rows({**GOOD, "id": "b", "answer": 5}), 'p.jsonl:2: "answer" holds the number 5'),
        (rows({**GOOD, "id": "b", "prompt": "1+" * 300}), "need a context of"),
        (
            rows({**GOOD, "id": "b", "prompt": "?", "verifier": "nomod:f"}),
            "problem 'b': nomod:f cannot be imported",
        ),
        (
            rows(
                {
                    "id": "b",
                    "prompt": "?",
                    "verifier": "json_schema",
                    "answer": {"schema": {"type": "objekt"}},
                }
            ),
            "problem 'b': its JSON schema is none ('objekt' is not valid",
        ),
    ],
)
def test_wrong_data_is_refused_by_train_and_by_eval(
    refused: Refusals, recipe: Path, tmp_path: Path, text: str | None, words: str
) -> None:
    file = tmp_path / "p.jsonl"
    if text is not None:
        file.write_text(text)
    source = f'data.train=[{{source="{file}"}}]'
    said = refused("train", recipe, source, "--run", tmp_path / "run")
    assert words in said
    assert words in refused("eval", "tiny", "--problems", file, "--max-tokens", "8")
    assert not (tmp_path / "run").exists()


def test_overlong_prompts_are_refused_with_their_number(
    refused: Refusals, recipe: Path, tmp_path: Path
) -> None:
    said = refused(
        "train", recipe, "data.max_prompt_tokens=5", "data.overlong_prompts=refuse",
        "--run", tmp_path / "run",
    )  # fmt: skip
    assert "24 of 24 prompts are longer than data.max_prompt_tokens = 5" in said


def test_a_model_without_a_chat_template_is_refused(refused: Refusals, tmp_path: Path) -> None:
    base, problems = tmp_path / "base", tmp_path / "p.jsonl"
    problems.write_text(rows())
    tiny_model().save_pretrained(base)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(base)
    said = refused("eval", base, "--problems", problems)
    assert "has no chat template" in said
    assert "raw" in said


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./nowhere", "there is no folder './nowhere'"),
        ("nowhere.gguf", "there is no file 'nowhere.gguf'"),
        ("nobody/nothing", "'nobody/nothing'"),
    ],
)
def test_a_model_that_is_not_there_is_refused(
    refused: Refusals, tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "p.jsonl").write_text(rows())
    assert words in refused("eval", name, "--problems", tmp_path / "p.jsonl")


def test_more_k_than_samples_is_refused_before_the_model_is_looked_for(
    refused: Refusals, tmp_path: Path
) -> None:
    (tmp_path / "p.jsonl").write_text(rows())
    said = refused(
        "eval", "nobody/nothing", "--problems", tmp_path / "p.jsonl", "--samples", "4", "--k", "8"
    )
    assert "pass@8 cannot be measured with 4 samples" in said


@pytest.mark.parametrize("pattern", ["[", "no group"])
def test_a_wrong_answer_pattern_is_refused(
    refused: Refusals, recipe: Path, tmp_path: Path, pattern: str
) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({**GOOD, "response": "5"}) + "\n")
    out = tmp_path / "out.jsonl"
    assert pattern in refused("grade", file, "--out", out, "--answer-pattern", pattern)
    assert not out.exists()
    run = tmp_path / "run"
    assert pattern in refused("train", recipe, f"verify.answer_pattern={pattern}", "--run", run)
    assert not run.exists()


def test_liberties_are_given_one_by_one_and_a_wrong_one_is_refused(
    refused: Refusals, recipe: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "p.jsonl", tmp_path / "out.jsonl"
    rows = [
        {**GOOD, "id": id, "answer": answer, "response": rf"\boxed{{{response}}}"}
        for id, answer, response in (("a", "1/2", "50%"), ("b", "5", "5 cm"), ("c", "(1,2)", "1,2"))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = refused("grade", file, "--out", out, "--liberty", "unit")
    assert said == "archer: there is no liberty 'unit': take some of percent, order, units\n"
    assert not out.exists()
    chosen = ["--liberty", "units", "--liberty", "percent"]
    assert main(["grade", str(file), "--out", str(out), *chosen, "--quiet"]) == 0
    outcomes = [json.loads(line)["outcome"] for line in out.read_text().splitlines()]
    assert outcomes == ["correct", "correct", "wrong"]
    said = refused("plan", recipe, "verify.liberties=['unit']")
    assert "verify.liberties.0 = 'unit': input should be 'percent', 'order' or 'units'" in said


# ------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("fault", ["truncated", "flipped", "missing", "no manifest"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_is_used_by_the_cure(
    refused: Refusals, run: Path, tmp_path: Path, fault: str
) -> None:
    newest = run / "checkpoints" / "step-000002"
    weights = newest / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    if fault == "truncated":
        weights.write_bytes(data[:-1])
    elif fault == "flipped":
        data[len(data) // 2] ^= 1
        weights.write_bytes(data)
    elif fault == "missing":
        weights.unlink()
    else:
        (newest / "manifest.json").unlink()
    recipe, before = run.parent / "small.toml", contents(run)
    recipe.write_text(RECIPE)
    commands: list[list[str | Path]] = [
        ["train", recipe, "--run", run],
        ["export", run, tmp_path / "out"],
        ["eval", run, "--out", tmp_path / "out.json"],
    ]
    for command in commands:
        said = refused(*command)
        assert str(newest) in said
        assert "to use the one before it" in said
        assert contents(run) == before
    assert not (tmp_path / "out").exists()
    shutil.rmtree(newest)
    assert main(["train", str(recipe), "--run", str(run), "--quiet"]) == 0
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2


def test_a_checkpoint_of_another_recipe_is_refused_by_the_names_of_its_knobs(
    refused: Refusals, run: Path, recipe: Path
) -> None:
    before = contents(run)
    said = refused("train", recipe, "rollout.samples=3", "loss.name=aspo", "--run", run)
    assert "loss.name = 'grpo' -> 'aspo'" in said
    assert "rollout.samples = 2 -> 3" in said
    assert "--fork NEWDIR" in said
    assert contents(run) == before


def test_a_run_that_a_mistake_ended_before_its_first_step_takes_the_corrected_recipe(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    wrong = load_config(recipe, ["update.learning_rate=7.0"])
    (run / "config.toml").write_text(config_toml(wrong))
    assert main(["train", str(recipe), "--run", str(run)]) == 0
    assert "begun anew" in capsys.readouterr().out
    assert load_config(run / "config.toml").update.learning_rate == 1e-3


def test_a_fork_into_itself_is_refused(refused: Refusals, run: Path, recipe: Path) -> None:
    said = refused("train", recipe, "--run", run, "--fork", run)
    assert "is the run itself; give a new folder" in said


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
def test_a_folder_that_takes_no_file_is_one_line(refused: Refusals, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({**GOOD, "response": "5"}) + "\n")
    for command in (
        ("grade", tmp_path / "rows.jsonl", "--out", "/proc/x.jsonl"),
        ("prepare", tmp_path / "rows.jsonl", "--out", "/proc/x.jsonl"),
    ):
        assert "No such file or directory; give another" in refused(*command)


def test_damaged_judged_groups_are_refused_and_sampled_again_by_the_cure(
    refused: Refusals, run: Path, recipe: Path
) -> None:
    before, pending = contents(run), run / "pending" / "step-000003.npz"
    for damaged in (b"", b"no zip", before["checkpoints/step-000002/parity.npz"][:-30]):
        pending.write_bytes(damaged)
        said = refused("train", recipe, "train.steps=3", "--run", run)
        assert f"{pending}: these judged groups are damaged; delete the file" in said
    pending.unlink()
    assert main(["train", str(recipe), "train.steps=3", "--run", str(run), "--quiet"]) == 0


def test_a_run_without_its_recipe_is_not_taken_for_one_of_another(
    refused: Refusals, run: Path, recipe: Path
) -> None:
    (run / "config.toml").unlink()
    before = contents(run)
    assert "put its config.toml back" in refused("train", recipe, "--run", run)
    assert contents(run) == before


def test_a_checkpoint_of_another_model_is_refused(
    refused: Refusals, tmp_path: Path, recipe: Path
) -> None:
    model, run = tmp_path / "model", tmp_path / "run"
    tiny_tokenizer().save_pretrained(model)
    named = f'model.name="{model}"'
    for layers, code in ((2, 0), (1, 2)):
        tiny_model(layers=layers).save_pretrained(model)
        if code:
            said = refused("train", recipe, named, "train.steps=3", "--run", run)
            assert "the checkpoint is of another model: model.layers.1." in said
        else:
            assert main(["train", str(recipe), named, "--run", str(run), "--quiet"]) == 0


# ------------------------------------------------------------------ places


def test_what_a_person_put_beside_a_run_stays(refused: Refusals, run: Path, recipe: Path) -> None:
    theirs = [
        "eval/step-1.txt",
        "rollouts/step-000009.jsonl.bak",
        "checkpoints/step-000002-good/manifest.json",
        "checkpoints/step-000001.bak/manifest.json",
        "other/.download.partial",
    ]
    for name in theirs:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    assert main(["train", str(recipe), "train.steps=5", "--run", str(run), "--quiet"]) == 0
    assert [name for name in theirs if (run / name).read_text() != "mine"] == []


def test_metrics_of_something_else_are_not_overwritten(
    refused: Refusals, tmp_path: Path, recipe: Path
) -> None:
    (tmp_path / "metrics.jsonl").write_text("mine")
    assert "give another --run folder" in refused("train", recipe, "--run", tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_refused(
    refused: Refusals, recipe: Path, trained: Path, tmp_path: Path
) -> None:
    """A file stands where a folder should be: not even root can write there."""
    blocked = tmp_path / "file"
    blocked.write_text("mine")
    answered = tmp_path / "rows.jsonl"
    answered.write_text(json.dumps({**GOOD, "response": "5"}) + "\n")
    commands: list[list[str | Path]] = [
        ["train", recipe, "--run", blocked],
        ["train", recipe, "--run", blocked / "run"],
        ["export", trained, blocked],
        ["export", trained, blocked / "out"],
        ["eval", trained, "--out", blocked / "out.json"],
        ["grade", answered, "--out", blocked / "out.jsonl"],
        ["prepare", "arithmetic", "--limit", "3", "--out", blocked / "out.jsonl"],
    ]
    for command in commands:
        assert str(blocked) in refused(*command)
    assert blocked.read_text() == "mine"


def test_a_full_disk_ends_a_run_with_all_that_was_written_intact(
    refused: Refusals, run: Path, recipe: Path
) -> None:
    before = contents(run / "checkpoints")
    with files_of_at_most(100_000):
        said = refused("train", recipe, "train.steps=4", "--run", run)
    assert "free some space" in said
    assert contents(run / "checkpoints") == before, "nothing half-written fills the disk"
    assert main(["train", str(recipe), "train.steps=4", "--run", str(run), "--quiet"]) == 0
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 3, 4]


def test_a_full_disk_ends_a_grading_that_then_goes_on(refused: Refusals, tmp_path: Path) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    answered = [{**GOOD, "id": str(i), "response": r"\boxed{5}"} for i in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in answered))
    with files_of_at_most(2000):
        assert "free some space" in refused("grade", file, "--out", out)
    begun = out.read_bytes()
    whole = begun[: begun.rindex(b"\n") + 1]
    assert 0 < whole.count(b"\n") < 60
    assert main(["grade", str(file), "--out", str(out), "--quiet"]) == 0
    assert out.read_bytes().startswith(whole)
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == [
        str(i) for i in range(60)
    ]


def test_a_full_disk_ends_an_export_without_a_trace(
    refused: Refusals, trained: Path, tmp_path: Path
) -> None:
    with files_of_at_most(100_000):
        assert "free some space" in refused("export", trained, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_service_that_refuses_is_one_line(
    refused: Refusals, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_a_key(*arguments: object) -> Sink:
        raise RuntimeError("No API key configured.")

    monkeypatch.setitem(SINKS, "wandb", ("json", without_a_key))
    said = refused("train", recipe, 'log.sinks=["wandb"]', "--run", tmp_path / "run")
    assert "wandb cannot be opened: No API key configured.; mend that, or leave it out" in said


def test_a_sigterm_ends_an_export_without_a_trace(trained: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "archer.cli", "export", str(trained), str(tmp_path / "out")]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        lines = [child.stdout.readline(), child.stdout.readline()]
        assert "in a fresh process" in lines[1]
        child.send_signal(signal.SIGTERM)
        said = child.stderr.read()
    assert child.returncode == 128 + signal.SIGTERM
    assert said.startswith("archer: stopped at once; train, prepare, ") and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_doctor_says_what_is_here_and_the_cure_for_what_is_not(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHER_CACHE", str(tmp_path))
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for word in ("Python", "device", "CPU cores", "memory", "disk", "torch", str(tmp_path)):
        assert word in said
    assert "not there yet" in said


def test_doctor_knows_every_extra_of_the_package() -> None:
    import tomllib

    from archer.doctor import EXTRAS, version

    declared = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    del declared["dev"]
    names = {
        extra: tuple(requirement.split(">")[0] for requirement in requirements)
        for extra, requirements in declared.items()
    }
    assert {extra: packages for extra, (packages, _) in EXTRAS.items()} == names
    assert version("torch") is not None
    assert version("archer-of-no-kind") is None
