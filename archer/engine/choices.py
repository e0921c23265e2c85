"""Names in a recipe become functions here, and the knobs beside a name are checked against it.

A choice is a name from a table that a reader can see (`LOSSES`, `ADVANTAGES`, `PICKS`), or
`module:function` for one of the user's own. A function's keyword-only arguments are its knobs.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from archer.algo.advantage import ADVANTAGES, Advantage
from archer.algo.losses import LOSSES, PICKS, Pick
from archer.algo.objective import Objective
from archer.config import AdvantageConfig, Config, LossConfig
from archer.own import own_function

GIVEN = ("pick", "greedy_rewards")
"""Keyword arguments that the loop fills in; they are no knobs."""


def choose_objective(config: Config) -> Objective:
    """The objective of a recipe. ValueError for an unknown loss or knob, with the nearest one."""
    loss = find(config.loss.name, LOSSES, "loss.name")
    pick = PICKS.get(config.loss.name)
    knobs = extra_knobs(config.loss)
    known = knob_names(loss) + (knob_names(pick) if pick else [])
    check_knobs(knobs, known, f"loss {config.loss.name}", "loss")
    return Objective(
        loss=loss,
        knobs={name: value for name, value in knobs.items() if name in knob_names(loss)},
        kl=config.kl.estimator,
        kl_knowledge=config.kl.knowledge,
        kl_reasoning=config.kl.reasoning,
        quantile=config.kl.quantile,
        entropy_coefficient=config.entropy.coefficient,
        recompute_partition=config.update.recompute_partition,
    )


def choose_pick(config: Config) -> Callable[..., Any] | None:
    """The function that picks tokens for the recipe's loss, knobs filled in; None for most."""
    pick: Pick | None = PICKS.get(config.loss.name)
    if pick is None:
        return None
    known = knob_names(pick)
    return partial(pick, **{k: v for k, v in extra_knobs(config.loss).items() if k in known})


def try_loss(config: Config) -> None:
    """Calls the recipe's loss and its pick on two tokens, as the loop will.

    ValueError for a function that is no loss, and for a knob's value that the loss refuses: here,
    and not after the first step's sampling.
    """
    objective, pick = choose_objective(config), choose_pick(config)
    logp, ids = torch.tensor([-1.0, -2.0]), torch.zeros(2, dtype=torch.int64)
    tokens = (logp, logp, logp, -logp, ids)
    picked = {} if pick is None else {"pick": pick(logp, logp, -logp, ids, -logp / 4)}
    try:
        inspect.signature(objective.loss).bind(*tokens, **picked, **objective.knobs)
    except TypeError as error:
        raise ValueError(
            f"loss.name = '{config.loss.name}' cannot be called as a loss: {error}; "
            "see archer.algo.losses for what one takes"
        ) from None
    loss = objective.loss(*tokens, **picked, **objective.knobs)
    if not bool(torch.isfinite(loss).all()):
        raise ValueError(
            f"loss.name = '{config.loss.name}' is no number on tokens whose policy has not moved, "
            f"with the knobs {dict(objective.knobs)}; correct them"
        )


def choose_advantage(config: Config) -> Advantage:
    """The advantage of a recipe, its knobs filled in."""
    advantage = find(config.advantage.name, ADVANTAGES, "advantage.name")
    knobs = extra_knobs(config.advantage)
    check_knobs(knobs, knob_names(advantage), f"advantage {config.advantage.name}", "advantage")
    return partial(advantage, **knobs) if knobs else advantage


def needs_greedy(advantage: Callable[..., Any]) -> bool:
    """Whether an advantage compares with the reward of the greedy answer (remax)."""
    return "greedy_rewards" in inspect.signature(advantage).parameters


def find(name: str, table: Mapping[str, Callable[..., Any]], knob: str) -> Callable[..., Any]:
    """The function of that name in the table, or the user's own by `module:function`."""
    if name in table:
        return table[name]
    if ":" not in name:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"did you mean {near[0]}?" if near else "or module:function for one of your own"
        raise ValueError(f"{knob} = '{name}' is unknown; {hint} (known: {', '.join(table)})")
    try:
        return own_function(name)
    except ValueError as error:
        raise ValueError(f"{knob} = '{name}': {error}") from None


def extra_knobs(section: LossConfig | AdvantageConfig) -> dict[str, Any]:
    """The knobs beside the name; whole numbers as floats, which is what the functions take."""
    extra = section.model_extra or {}
    return {k: float(v) if isinstance(v, int) else v for k, v in extra.items()}


def knob_names(function: Callable[..., Any]) -> list[str]:
    """The keyword-only arguments of a function, without those that the loop fills in."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in GIVEN]


def check_knobs(knobs: Mapping[str, Any], known: list[str], what: str, section: str) -> None:
    """ValueError for a knob that is not known, with the nearest one, or that is no number."""
    for name, value in knobs.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {section}.{near[0]}?" if near else "remove it"
            listed = ", ".join(known) or "none"
            raise ValueError(f"{what} has no knob '{name}'; {hint} (its knobs: {listed})")
        not_a_number = isinstance(value, float) and math.isnan(value)
        if isinstance(value, str | list | dict) or not_a_number:
            raise ValueError(f"{section}.{name} = {value!r} is not a number; give one")
