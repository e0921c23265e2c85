"""Every recipe loads and fits the code; the published ones hold the published values.

`PUBLISHED` lists them value by value. Each value stands beside its source: a place in the papers
(arXiv 2507.15778 for Archer, 2510.06062 for ASPO), "code" for what the released scripts alone say,
or "ran" for what those scripts really computed where that is neither. They are the facts of the
reference notes: tables 1.2 and 2.3, sections 5.1 (mistakes of the released loss), 5.6 and 6.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from archer.config import Config, config_toml, flat, load_config
from archer.data.problems import read_problems
from archer.data.sources import SourceSpec, train_and_eval
from archer.engine.choices import choose_advantage, choose_objective, choose_pick
from archer.model.load import load_tokenizer
from archer.model.prompts import Renderer

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))

Sourced = tuple[Any, str]

BOTH: dict[str, Sourced] = {
    "model.name": ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "Archer 5.1, ASPO 7.1"),
    "data.max_prompt_tokens": (2048, "code"),
    "rollout.problems": (64, "Archer 5.1, ASPO 7.1"),
    "rollout.samples": (16, "Archer 5.1, ASPO 7.1"),
    "rollout.max_tokens": (32768, "Archer 5.1, ASPO 7.1"),
    "rollout.temperature": (1.0, "Archer 5.1, ASPO 7.1"),
    "rollout.top_p": (1.0, "code"),
    "rollout.top_k": (0, "code (-1)"),
    "rollout.filter": ("drop", "code: all right or all wrong are dropped, none refilled"),
    "rollout.overlong.mask": (False, "code"),
    "advantage.name": ("grpo", "Archer 4, ASPO 6"),
    "entropy.coefficient": (0.0, "Archer 5.1"),
    "mismatch.kind": ("none", "code: the sampler's log-probs are unused"),
    "update.passes": (3, "code: ppo_epochs"),
    "update.old_logp": ("score", "code"),
    "update.learning_rate": (1e-6, "Archer 5.1, ASPO 7.1"),
    "update.schedule": ("constant", "code"),
    "update.warmup": (10, "code"),
    "update.weight_decay": (0.1, "code"),
    "update.betas": ([0.9, 0.999], "code"),
    "update.max_grad_norm": (1.0, "code"),
}

NO_OVERLONG: dict[str, Sourced] = {"rollout.overlong.buffer": (0, "in neither paper; off in C1")}

ARCHER: dict[str, Sourced] = {
    **BOTH,
    **NO_OVERLONG,
    "update.minibatch": (32, "Archer 5.1"),
    "loss.name": ("archer", "Archer Eqs. 2 to 5"),
    "loss.quantile": (0.8, "Archer 5.1: rho"),
    "loss.clip_knowledge": (0.2, "Archer 5.1: eps_k"),
    "loss.clip_reasoning": (0.5, "Archer 5.1: eps_r"),
    "loss.dual_clip": (10.0, "code: hard"),
    "kl.knowledge": (0.001, "Archer 5.1: beta_k"),
    "kl.reasoning": (0.0, "Archer 5.1: beta_r"),
    "kl.quantile": (0.8, "Archer 5.1: rho"),
    "kl.estimator": ("k3", "code: low_var_kl"),
    "update.average": ("token", "Archer Eq. 5"),
    "update.recompute_partition": (False, "Archer Algorithm 1"),
}

ARCHER_RELEASED: dict[str, Sourced] = {
    **ARCHER,
    "kl.knowledge": (0.00125, "ran: mean over low-entropy tokens alone, 0.001 / 0.8"),
    "update.average": ("sequence", "ran: token mean at micro-batch 1"),
    "update.recompute_partition": (True, "ran: from the present entropy at every update"),
}

ASPO: dict[str, Sourced] = {
    **BOTH,
    **NO_OVERLONG,
    "update.minibatch": (16, "ASPO 7.1"),
    "loss.name": ("aspo", "ASPO 6"),
    "loss.clip_low": (0.2, "ASPO 7.1: eps"),
    "loss.clip_high": (0.2, "ASPO 7.1: eps"),
    "loss.dual_clip": (3.0, "ASPO Fig. 4, code"),
    "kl.knowledge": (0.001, "ASPO 7.1: beta"),
    "kl.reasoning": (0.001, "ASPO 7.1: beta"),
    "kl.estimator": ("k3", "ASPO 7.1"),
    "update.average": ("sequence", "ASPO 6: 1/G sum 1/|o_i|"),
}

ASPO_RELEASED: dict[str, Sourced] = {
    **{name: value for name, value in ASPO.items() if not name.startswith("loss.clip")},
    "loss.name": ("aspo_archer", "ran: flip and two clip ranges"),
    "loss.quantile": (0.8, "ran: the default, the script's is not passed"),
    "loss.clip_knowledge": (0.2, "ran: literal"),
    "loss.clip_reasoning": (0.4, "ran: literal"),
    "loss.dual_clip": (3.0, "ran: literal, soft on both signs"),
    "update.recompute_partition": (True, "ran: from the present entropy at every update"),
    "rollout.overlong.buffer": (16, "code"),
    "rollout.overlong.penalty": (1.0, "code"),
}

GRPO: dict[str, Sourced] = {
    **{name: value for name, value in ARCHER.items() if name.split(".")[0] not in ("loss", "kl")},
    "loss.name": ("grpo", "Archer 5.1"),
    "loss.clip_low": (0.2, "Archer 5.1"),
    "loss.clip_high": (0.28, "Archer 5.1"),
    "loss.dual_clip": (10.0, "code"),
    "kl.knowledge": (0.0, "Archer 5.1: no KL"),
    "kl.reasoning": (0.0, "Archer 5.1: no KL"),
}


def steps(number: int, source: str) -> dict[str, Sourced]:
    return {"train.steps": (number, source)}


PUBLISHED: dict[str, dict[str, Sourced]] = {
    "archer_code_1.5b": {**ARCHER, **steps(320, "Archer Table 6")},
    "archer_code_1.5b_released": {**ARCHER_RELEASED, **steps(320, "Archer Table 6")},
    "archer_math_1.5b": {**ARCHER, **steps(520, "Archer Table 6")},
    "archer_math_1.5b_released": {**ARCHER_RELEASED, **steps(520, "Archer Table 6")},
    "archer2_code_1.5b": {**ASPO, **steps(720, "figure in the code's README")},
    "archer2_code_1.5b_released": {**ASPO_RELEASED, **steps(720, "figure in the code's README")},
    "archer2_math_1.5b": {**ASPO, **steps(520, "ours: nowhere said")},
    "archer2_math_1.5b_released": {**ASPO_RELEASED, **steps(520, "ours: nowhere said")},
    "grpo_math_1.5b": {**GRPO, **steps(520, "Archer Table 6, for its own method")},
}


SMALL = ("tiny", "quickstart", "quickstart_code")
"""Those that run on a CPU."""


def recipe(name: str) -> Config:
    return load_config(ROOT / "recipes" / f"{name}.toml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_names_losses_and_knobs_that_exist(path: Path) -> None:
    config = load_config(path)
    choose_objective(config)
    choose_pick(config)
    choose_advantage(config)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_reads_back_from_its_resolved_form(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    (tmp_path / "config.toml").write_text(config_toml(config), encoding="utf-8")
    assert load_config(tmp_path / "config.toml") == config


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_what_it_is_and_fits_the_page(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert max(map(len, lines)) <= 100


def test_the_published_recipes_are_all_there() -> None:
    assert {path.stem for path in RECIPES} == {*PUBLISHED, *SMALL}


@pytest.mark.parametrize(
    ("name", "knob"), [(name, knob) for name, values in PUBLISHED.items() for knob in values]
)
def test_a_published_value_is_the_one_its_source_gives(name: str, knob: str) -> None:
    value, source = PUBLISHED[name][knob]
    assert flat(recipe(name))[knob] == value, source


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_sets_no_other_knob_of_the_algorithm(name: str) -> None:
    """Whatever else it sets is named below: where data lie, and what saves memory."""
    ours = {
        "model.checkpoint_activations",
        "data.train",
        "data.overlong_prompts",
        "rollout.cache_tokens",
        "update.microbatch_tokens",
        "checkpoint.every",
        "verify.answer_pattern",
        "kl.quantile",
        "update.recompute_partition",
    }
    plain = Config.model_validate(
        {
            "model": {"name": "tiny"},
            "data": {"train": [{"source": "x.jsonl"}]},
            "rollout": {"problems": 1, "samples": 1, "max_tokens": 99},
            "update": {"minibatch": 1, "learning_rate": 1.0},
            "train": {"steps": 1},
        }
    )
    default = flat(plain)
    changed = {k for k, v in flat(recipe(name)).items() if k not in default or default[k] != v}
    assert changed - ours <= set(PUBLISHED[name])


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_value_of_a_published_recipe_says_where_it_comes_from(name: str) -> None:
    for line in (ROOT / "recipes" / f"{name}.toml").read_text(encoding="utf-8").splitlines():
        if " = " in line and not line.startswith(("#", "source = ")):
            assert any(f"  # {mark}" in line for mark in ("paper", "code", "ran", "ours")), line


@pytest.mark.parametrize("name", [name for name in PUBLISHED if f"{name}_released" in PUBLISHED])
def test_a_paper_recipe_and_its_released_twin_share_data_model_and_length(name: str) -> None:
    paper, released = flat(recipe(name)), flat(recipe(f"{name}_released"))
    differ = {k for k in paper.keys() | released.keys() if paper.get(k) != released.get(k)}
    assert differ <= {
        "loss.name",
        "loss.clip_low",
        "loss.clip_high",
        "loss.quantile",
        "loss.clip_knowledge",
        "loss.clip_reasoning",
        "kl.knowledge",
        "update.average",
        "update.recompute_partition",
        "rollout.overlong.buffer",
    }


def test_a_longest_prompt_and_answer_of_the_published_recipes_fit_one_micro_batch() -> None:
    for name in PUBLISHED:
        config = recipe(name)
        longest = config.data.max_prompt_tokens + config.rollout.max_tokens
        assert config.update.microbatch_tokens >= longest
        assert config.rollout.cache_tokens >= longest


# ------------------------------------------------------------------ those that run here


@pytest.mark.parametrize("name", SMALL)
def test_a_step_of_the_small_recipes_is_at_least_four_optimizer_steps(name: str) -> None:
    config = recipe(name)
    assert config.loss.name == "aspo_archer"
    assert -(-config.rollout.problems // config.update.minibatch) * config.update.passes >= 4


@pytest.mark.parametrize("name", SMALL)
def test_another_loss_can_be_laid_over_the_small_recipes(name: str) -> None:
    config = load_config(ROOT / "recipes" / f"{name}.toml", ["loss.name=grpo"])
    choose_objective(config)


def test_the_tiny_recipe_has_the_dual_kl_on() -> None:
    assert recipe("tiny").kl.knowledge > 0


def test_the_tiny_questions_are_short_right_and_answered_by_chance_in_one_of_nine() -> None:
    problems = list(read_problems(ROOT / "recipes" / "tiny.jsonl"))
    assert len(problems) == 99
    assert all(len(str(problem.prompt)) == 4 for problem in problems)
    for problem in problems:
        a, sign, b, _ = list(str(problem.prompt))
        assert problem.answer == str(int(a) + int(b) if sign == "+" else int(a) - int(b))
    answers = [problem.answer for problem in problems]
    assert {digit: answers.count(digit) for digit in set(answers)} == dict.fromkeys("123456789", 11)


def test_the_quickstart_learns_from_two_thousand_problems_and_is_judged_by_others() -> None:
    pytest.importorskip("reasoning_gym", reason="the quickstart's tasks need archer-rl[tasks]")
    config = recipe("quickstart")
    train, evaluate, counts = train_and_eval(
        *([SourceSpec(**s.model_dump()) for s in part] for part in _parts(config))
    )
    assert len({str(problem.prompt) for problem in train}) >= 2000
    assert 100 <= len(evaluate) <= 200
    assert not {str(p.prompt) for p in train} & {str(p.prompt) for p in evaluate}
    assert len({count.source for count in counts if count.part == "train"}) >= 5
    for problems in (train, evaluate):
        kinds = [problem.source for problem in problems]
        assert len(set(kinds)) == 7


def test_the_quickstart_of_code_learns_from_functions_that_it_is_not_judged_by() -> None:
    config = recipe("quickstart_code")
    train, evaluate = (
        [SourceSpec(source=s.source, count=s.count, seed=s.seed, args=s.args) for s in part]
        for part in _parts(config)
    )
    learned, judged, _ = train_and_eval(train, evaluate)
    assert len(learned) >= 500
    assert 100 <= len(judged) <= 200
    names = [{problem.answer["name"] for problem in part} for part in (learned, judged)]
    assert not names[0] & names[1]
    assert all(problem.verifier == "code" for problem in (*learned, *judged))
    assert {p.source for p in learned} == {p.source for p in judged}
    # The prompt, with the chat around it, leaves the time to the answers.
    renderer = Renderer(load_tokenizer(config.model.name), system=config.prompt.system)
    assert max(len(renderer.render(p.prompt).token_ids) for p in (*learned, *judged)) < 60


def _parts(config: Config) -> tuple[Any, Any]:
    return config.data.train, config.data.evaluate


def test_the_tiny_prompts_are_read_without_an_unknown_token() -> None:
    tokenizer = load_tokenizer("tiny")
    renderer = Renderer(tokenizer)
    for problem in read_problems(ROOT / "recipes" / "tiny.jsonl"):
        rendered = renderer.render(problem.prompt)
        assert tokenizer.unk_token_id not in rendered.token_ids.tolist()
        assert len(rendered.token_ids) == 6


# ------------------------------------------------------------------ mistakes of the released tools

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_mistake_44_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = {match for match in re.findall(r"\]\(([^)#]+)", text) if "://" not in match}
    paths = set(re.findall(r"\b(?:archer|benchmarks|docs|recipes|tests)/[\w/.]*\w", text))
    assert [link for link in sorted(links) if not (page.parent / link).exists()] == []
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_mistake_44_a_recipe_has_its_data_or_says_how_to_make_them(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    config = load_config(path)
    for part in (*config.data.train, *config.data.evaluate):
        if part.source.endswith(".jsonl") and not (ROOT / part.source).is_file():
            assert re.search(rf"# +archer prepare .*--out {re.escape(part.source)}", text)


def test_mistake_45_no_path_of_somebodys_home_is_written_anywhere() -> None:
    folders = ("archer", "benchmarks", "recipes", "docs", ".github", ".ci")
    files = [ROOT / "Makefile", *(f for name in folders for f in (ROOT / name).rglob("*"))]
    pages = [f for f in files if f.suffix in (".py", ".toml", ".md", ".yml", "") and f.is_file()]
    assert len(pages) > 60
    home = re.compile(r"/(?:home|root|Users|mnt|data\d*)/\w")
    assert [str(page) for page in pages if home.search(page.read_text(encoding="utf-8"))] == []
