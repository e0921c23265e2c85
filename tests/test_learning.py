"""The tiny recipe learns with every loss, and each loss does something that grpo would not."""

import json
from pathlib import Path

import pytest

from archer.config import load_config
from archer.terminal import Terminal
from archer.train import train

RECIPE = Path(__file__).parents[1] / "recipes" / "tiny.toml"
LOSSES = ("grpo", "dapo", "archer", "aspo", "aspo_archer")
IN_SHORT = {("aspo_archer", 0), ("dapo", 1)}


@pytest.mark.parametrize(
    ("loss", "seed"),
    [
        pytest.param(loss, seed, marks=() if (loss, seed) in IN_SHORT else pytest.mark.full)
        for loss in LOSSES
        for seed in range(3)
    ],
)
def test_the_tiny_recipe_learns(loss: str, seed: int, tmp_path: Path) -> None:
    overrides = [f"loss.name={loss}", f"train.seed={seed}", "model.threads=1"]
    config = load_config(RECIPE, overrides)
    train(config, tmp_path / "run", Terminal(quiet=True))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    first, last = rows[0], rows[-1]
    assert first["step"] == 0 and last["step"] == config.train.steps
    assert last["eval/low"] > first["eval/high"], (first["eval/mean"], last["eval/mean"])
    unlike = {}
    for other in ("grpo", "one"):
        shares = [row[f"weighted_unlike_{other}"] for row in rows if row.get("updates")]
        unlike[other] = sum(shares) / len(shares)
    print(
        f"{loss} seed {seed}: {first['eval/mean']:.3f} [{first['eval/low']:.3f}, "
        f"{first['eval/high']:.3f}] -> {last['eval/mean']:.3f} [{last['eval/low']:.3f}, "
        f"{last['eval/high']:.3f}], {unlike['grpo']:.4f} of tokens weighted otherwise than by "
        f"grpo, {unlike['one']:.4f} otherwise than by 1"
    )
    # grpo is what the first share is measured against: for it, that ratios leave 1 must do.
    assert unlike["one"] > 0.1
    assert unlike["grpo"] == 0 if loss == "grpo" else unlike["grpo"] > 0
