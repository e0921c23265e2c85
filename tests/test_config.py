"""The recipe: what is refused and how, what lies over what, and that nothing is lost on disk."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import archer.config
from archer.config import (
    FREE_ON_RESUME,
    AdvantageConfig,
    Config,
    LossConfig,
    SourceConfig,
    VerifyConfig,
    changed_knobs,
    config_from,
    config_toml,
    describe_knobs,
    flat,
    load_config,
)
from archer.verify.policy import LIBERTIES

SMALLEST = """
[model]
name = "tiny"

[[data.train]]
source = "arithmetic"
count = 50

[rollout]
problems = 4
samples = 4
max_tokens = 8

[update]
minibatch = 2
learning_rate = 1e-3

[train]
steps = 3
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "smallest.toml"
    path.write_text(SMALLEST)
    return path


def refused(path: Path, *overrides: str) -> str:
    """What is said about a recipe that is wrong: always one line."""
    with pytest.raises(ValueError, match=r".") as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("override", "name", "near"),
    [
        ("rollout.temprature=0.9", "rollout.temprature", "rollout.temperature"),
        ("update.learning_rat=1", "update.learning_rat", "update.learning_rate"),
        ("rollout.overlong.bufer=4", "rollout.overlong.bufer", "rollout.overlong.buffer"),
        ("kl.knowlege=0.1", "kl.knowlege", "kl.knowledge"),
        ("trian.steps=3", "trian", "train"),
    ],
)
def test_an_unknown_knob_is_refused_with_the_nearest_right_name(
    recipe: Path, override: str, name: str, near: str
) -> None:
    message = refused(recipe, override)
    assert f"unknown knob {name};" in message
    assert f"did you mean {near}?" in message


def test_an_unknown_knob_like_no_other_is_refused_with_all_that_are_known(recipe: Path) -> None:
    message = refused(recipe, "checkpoint.xyz=1")
    assert "unknown knob checkpoint.xyz; remove it (known there: every, keep)" in message


def test_an_unknown_key_of_a_source_is_refused_with_the_nearest_right_name(recipe: Path) -> None:
    recipe.write_text(SMALLEST.replace("count = 50", "cuont = 50"))
    message = refused(recipe)
    assert "data.train.0.cuont" in message
    assert "did you mean data.train.0.count?" in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rollout.problems=many", "rollout.problems = 'many': input should be a valid integer"),
        ("rollout.problems=2.5", "rollout.problems = 2.5: input should be a valid integer"),
        ("rollout.problems=0", "rollout.problems = 0: input should be greater than or equal to 1"),
        ("update.learning_rate=0", "update.learning_rate = 0: input should be greater than 0"),
        ("update.average=mean", "update.average = 'mean': input should be 'token', 'sequence'"),
        ("rollout.filter=yes", "rollout.filter = 'yes': input should be 'keep', 'drop'"),
        ("engine=gpu", "engine = 'gpu': input should be 'local'"),
        ("kl.quantile=1", "kl.quantile = 1: input should be less than 1"),
        ("model=tiny", "model = 'tiny': input should be a valid dictionary"),
    ],
)
def test_a_wrong_value_is_named_with_what_it_should_be(
    recipe: Path, override: str, said: str
) -> None:
    assert said in refused(recipe, override)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ('name = "tiny"', "model.name"),
        ("problems = 4", "rollout.problems"),
        ("minibatch = 2", "update.minibatch"),
        ("learning_rate = 1e-3", "update.learning_rate"),
        ("[train]\nsteps = 3", "train"),
    ],
)
def test_a_missing_knob_is_named_with_the_way_to_set_it(recipe: Path, line: str, name: str) -> None:
    assert line in SMALLEST
    recipe.write_text(SMALLEST.replace(line, ""))
    assert f"{name} is missing; set it in the recipe or with {name}=..." in refused(recipe)


CUT = [
    "rollout.sampler=vllm",
    "mismatch.kind=tis",
    "engine=cluster",
    "cluster.tensor_parallel=2",
]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["rollout.top_p=0.9"], "set mismatch.kind to tis or mis"),
        (["rollout.top_k=5"], "set mismatch.kind to tis or mis"),
        (["rollout.min_p=0.1"], "set mismatch.kind to tis or mis"),
        (
            ["rollout.top_p=0.9", "mismatch.kind=tis", "update.old_logp=sampler"],
            "use update.old_logp = score",
        ),
        (["mismatch.kind=mis", "update.old_logp=sampler"], "use update.old_logp = score"),
        (["rollout.sampler=vllm"], "set mismatch.kind to tis or mis, with update.old_logp = score"),
        (
            ["rollout.sampler=vllm", "mismatch.kind=tis", "update.old_logp=sampler"],
            "use update.old_logp = score",
        ),
        (
            ["engine=cluster", "cluster.tensor_parallel=2"],
            "cluster.tensor_parallel = 2 is vLLM's, on a cluster: set rollout.sampler = vllm",
        ),
        (
            [*CUT, "cluster.learners=3"],
            "cluster.learners = 3 is no multiple of cluster.tensor_parallel = 2",
        ),
        (
            [*CUT, "cluster.learners=4", "cluster.least_learners=3"],
            "cluster.least_learners = 3 is no multiple",
        ),
        (["rollout.overlong.buffer=9"], "rollout.overlong.buffer is 9, more than"),
        (["eval.temperature=0", "eval.samples=4"], "the same answer 4 times"),
    ],
)
def test_knobs_that_contradict_each_other_are_refused_with_the_cure(
    recipe: Path, overrides: list[str], said: str
) -> None:
    assert said in refused(recipe, *overrides)


def test_truncated_sampling_is_allowed_with_mismatch_correction(recipe: Path) -> None:
    config = load_config(recipe, ["rollout.top_p=0.9", "mismatch.kind=tis"])
    assert config.rollout.top_p == 0.9


def test_a_missing_recipe_is_answered_with_the_recipes_beside_it(recipe: Path) -> None:
    message = refused(recipe.with_name("smalest.toml"))
    assert "no such recipe; recipes there: smallest.toml" in message
    assert "name a .toml file" in refused(recipe.parent / "nowhere" / "a.toml")


def test_a_folder_and_broken_toml_are_refused_by_path(recipe: Path) -> None:
    assert str(recipe.parent) in refused(recipe.parent)
    recipe.write_text("[model\n")
    assert "not valid TOML" in refused(recipe)
    recipe.write_bytes(b'name = "\xff"')
    assert "not valid TOML" in refused(recipe)


# ------------------------------------------------------------------ overrides


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("rollout.problems=8", "rollout.problems", 8),
        ("rollout.temperature=1", "rollout.temperature", 1.0),
        ("update.learning_rate=1e-6", "update.learning_rate", 1e-6),
        ("update.recompute_partition=true", "update.recompute_partition", True),
        ("model.name=smollm2", "model.name", "smollm2"),
        ("model.name=Qwen/Qwen2.5-0.5B", "model.name", "Qwen/Qwen2.5-0.5B"),
        ('model.name="smollm2"', "model.name", "smollm2"),
        ("prompt.suffix= please", "prompt.suffix", " please"),
        ("prompt.suffix=a=b", "prompt.suffix", "a=b"),
        ("prompt.suffix=", "prompt.suffix", ""),
        (r'prompt.suffix="\nAnswer:"', "prompt.suffix", "\nAnswer:"),
        ('rollout.stop=["\\n", "Q:"]', "rollout.stop", ["\n", "Q:"]),
        ("rollout.stop=[]", "rollout.stop", []),
        (
            "prompt.template_args={enable_thinking = false}",
            "prompt.template_args",
            {"enable_thinking": False},
        ),
        ("prompt.template_args.enable_thinking=true", "prompt.template_args.enable_thinking", True),
        ("update.betas=[0.9, 0.95]", "update.betas", [0.9, 0.95]),
        ("loss.dual_clip=4", "loss.dual_clip", 4),
        (" rollout.samples = 2", "rollout.samples", 2),
    ],
)
def test_an_override_is_read_as_the_value_it_looks_like(
    recipe: Path, override: str, name: str, value: Any
) -> None:
    found: Any = load_config(recipe, [override]).model_dump(mode="json")
    for part in name.split("."):
        found = found[part]
    assert found == value and type(found) is type(value)


def test_an_override_of_a_list_of_tables_replaces_it(recipe: Path) -> None:
    override = 'data.train=[{source = "a.jsonl"}, {source = "b.jsonl", count = 3}]'
    config = load_config(recipe, [override])
    assert [(s.source, s.count) for s in config.data.train] == [("a.jsonl", None), ("b.jsonl", 3)]


def test_the_last_of_two_overrides_counts(recipe: Path) -> None:
    assert load_config(recipe, ["train.seed=1", "train.seed=2"]).train.seed == 2


@pytest.mark.parametrize("override", ["rollout.problems", "=3", ".problems=3", "a..b=3", ""])
def test_what_is_no_override_is_refused(recipe: Path, override: str) -> None:
    assert f"'{override}' is no override: write section.key=value" in refused(recipe, override)


@pytest.mark.parametrize("override", ["data.train.0.count=3", "model.name.x=1"])
def test_an_override_inside_what_is_no_section_is_refused(recipe: Path, override: str) -> None:
    assert "is not a section" in refused(recipe, override)


# ------------------------------------------------------------------ to disk and back


def test_the_resolved_recipe_reads_back_the_same(recipe: Path, tmp_path: Path) -> None:
    config = load_config(
        recipe,
        [
            'rollout.stop=["\\n"]',
            "loss.quantile=0.7",
            "advantage.name=rloo",
            "prompt.template_args={enable_thinking = false}",
            'prompt.suffix="\\n\\"boxed\\" ünd {x}"',
            "entropy.target=0.3",
            'data.evaluate=[{source = "a.jsonl", count = 2, args = {digits = 1}}]',
        ],
    )
    resolved = tmp_path / "config.toml"
    resolved.write_text(config_toml(config), encoding="utf-8")
    assert load_config(resolved) == config
    assert config_toml(load_config(resolved)) == config_toml(config)


def test_the_resolved_recipe_names_every_knob_that_has_a_value(recipe: Path) -> None:
    config = load_config(recipe)
    written = config_toml(config)
    for name, value in flat(config).items():
        if value is not None:
            assert f"{name.rsplit('.', 1)[-1]} = " in written or f"{name}]" in written, name


def test_knobs_of_losses_and_advantages_are_kept_as_they_are(recipe: Path) -> None:
    config = load_config(recipe, ["loss.name=grpo", "loss.clip_high=0.28"])
    assert config.loss.model_extra == {"clip_high": 0.28}
    assert flat(config)["loss.clip_high"] == 0.28


def test_a_recipe_is_frozen(recipe: Path) -> None:
    config = load_config(recipe)
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 9


def test_a_misspelt_knob_is_named_rather_than_the_one_that_it_leaves_missing(
    recipe: Path,
) -> None:
    with pytest.raises(ValueError, match=r"did you mean data\.train\.0\.source\?"):
        load_config(recipe, ['data.train=[{sorce = "x.jsonl"}]'])


def test_a_section_that_must_be_a_list_is_shown_as_toml_writes_it(recipe: Path) -> None:
    with pytest.raises(ValueError, match=r"should be a list \(a section is written \[\[data.train"):
        load_config(recipe, ['data.train="x.jsonl"'])


# ------------------------------------------------------------------ what changed


def test_what_may_change_on_resume_is_told_from_what_may_not(recipe: Path) -> None:
    before = load_config(recipe)
    after = load_config(
        recipe,
        [
            "train.steps=9",
            "eval.every=3",
            "update.microbatch_tokens=99",
            "rollout.cache_tokens=99",
            "update.learning_rate=1",
            "loss.dual_clip=9",
            "train.seed=1",
            'data.train=[{source = "x.jsonl"}]',
        ],
    )
    free, fixed = changed_knobs(before, after)
    assert free == [
        "eval.every",
        "rollout.cache_tokens",
        "train.steps",
        "update.microbatch_tokens",
    ]
    assert fixed == ["data.train", "loss.dual_clip", "train.seed", "update.learning_rate"]


def test_nothing_changed_is_nothing_named(recipe: Path) -> None:
    assert changed_knobs(load_config(recipe), load_config(recipe)) == ([], [])


def test_whatever_may_change_on_resume_exists() -> None:
    knobs = describe_knobs()
    for name in FREE_ON_RESUME:
        assert any(knob == name or knob.startswith(name + ".") for knob in knobs), name


# ------------------------------------------------------------------ help


def test_every_knob_has_a_help_text() -> None:
    without = [name for name, (help, _) in describe_knobs().items() if not help]
    assert without == []


def test_knobs_are_described_by_their_full_name_with_their_default() -> None:
    knobs = describe_knobs()
    assert knobs["rollout.overlong.penalty"] == (
        "Reward taken from a completion that reaches the limit (DAPO Eq. 13).",
        1.0,
    )
    assert {name.split(".")[0] for name in knobs} == set(Config.model_fields)


def test_the_sections_of_losses_and_advantages_have_defaults() -> None:
    assert (LossConfig().name, AdvantageConfig().name) == ("aspo_archer", "grpo")


def test_the_place_of_a_fault_stands_first() -> None:
    with pytest.raises(ValueError, match=r"^study/a\.toml: "):
        config_from({"train": {"steps": 0}}, where="study/a.toml")


def test_mistake_30_no_knob_is_dead() -> None:
    """Each name is read as an attribute somewhere outside of the page that defines it."""
    package = Path(archer.config.__file__).parent
    read = {
        node.attr
        for path in package.rglob("*.py")
        if path != Path(archer.config.__file__)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    knobs = [*describe_knobs(), *SourceConfig.model_fields]
    assert [knob for knob in knobs if knob.split(".")[-1] not in read] == []


def test_a_recipe_may_name_every_liberty_of_the_verifiers() -> None:
    assert VerifyConfig.model_validate({"liberties": LIBERTIES}).liberties == LIBERTIES
