"""From a recipe to what a command needs: problems, prompts, engine, verifiers.

Everything that can be wrong with a recipe, its data and its prompts is found before a weight is
loaded: names of losses and knobs first, then problems, then the tokenizer and every prompt's
length, then the shape of the model.
"""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from archer.config import Config, SourceConfig
from archer.cores import num_cores
from archer.data.problems import canonical, problems_hash
from archer.data.sources import SourceCount, SourceSpec, train_and_eval
from archer.engine.base import Engine, Generates
from archer.engine.choices import choose_advantage, choose_objective, try_loss
from archer.engine.local import LocalEngine, resolve_device
from archer.engine.vllm import MISSING
from archer.model.load import load_config, load_model, load_tokenizer
from archer.model.prompts import MessageRenderer, RenderedPrompt, Renderer
from archer.rollout import Render
from archer.types import Problem
from archer.verify.code import check_sandbox
from archer.verify.policy import Policy
from archer.verify.pool import Verifiers, WorkerPool
from archer.verify.verifiers import VERIFIERS, check_verifiers


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The problems of a run, rendered once, with counts of what was left out."""

    train: list[Problem]
    evaluate: list[Problem]
    render: Render
    prompt: dict[str, Any]
    """How prompts were rendered: part of every result."""
    counts: tuple[SourceCount, ...]
    overlong_dropped: int
    longest_prompt: int
    sandbox: str = ""
    """The level that programs run at; empty where no problem wants any."""
    suite: str = ""
    """Name of the suite that the evaluation problems are, if they are one (archer.suites)."""
    sampler: str = ""
    """What samples in place of this process: "server" or "vllm"."""
    served: str = ""
    """Name of the model on the server, if one is to answer (archer.engine.server)."""

    @property
    def hashes(self) -> dict[str, str]:
        return {
            "train": problems_hash(self.train),
            "evaluate": problems_hash(self.evaluate),
        }


def check_recipe(config: Config) -> None:
    """Finds unknown losses, advantages and knobs, values that they refuse, patterns that are none.

    ValueError with the nearest right name, or the cure.
    """
    try_loss(config)
    choose_advantage(config)
    if config.rollout.samples == 1 and config.rollout.filter != "keep":
        raise ValueError(
            "rollout.samples = 1: alone in its group an answer is no better than another, and "
            f"rollout.filter = {config.rollout.filter} leaves all such groups out; "
            "take more samples, or set rollout.filter = keep"
        )
    judging(config)
    if config.engine == "cluster" and importlib.util.find_spec("ray") is None:
        raise ValueError(
            "engine = cluster needs Ray: install archer-rl[cluster], or set engine = local"
        )
    if config.rollout.sampler == "vllm":
        if importlib.util.find_spec("vllm") is None:
            raise ValueError(f"rollout.sampler = vllm: {MISSING}")
        if config.model.name == "tiny":
            raise ValueError(
                "rollout.sampler = vllm reads a model's files, and model.name = tiny is made on "
                "the spot and has none: give another model, or set rollout.sampler = own"
            )


def load_data(config: Config, *, chat: bool = False) -> Data:
    """Loads and renders every problem, with the tokenizer alone.

    chat: a server renders the prompts. No tokenizer is loaded then, and no length is known.

    Raises ValueError for malformed data, prompts that are too long where the recipe refuses them,
    and a model whose context is too small for prompt and completion.
    """
    train, evaluate, counts = train_and_eval(
        _specs(config.data.train), _specs(config.data.evaluate), verifiers=VERIFIERS
    )
    check_verifiers([*train, *evaluate])
    sandbox = ""
    if any(problem.verifier == "code" for problem in [*train, *evaluate]):
        sandbox = check_sandbox(config.verify.sandbox)
    renderer = _renderer(config, chat=chat)
    render = cached_render(renderer)
    limit = config.data.max_prompt_tokens
    kept, dropped = [], 0
    for problems in (train, evaluate):
        short = [p for p in problems if len(render(p).token_ids) <= limit]
        dropped += len(problems) - len(short)
        kept.append(short)
    if dropped and config.data.overlong_prompts == "refuse":
        raise ValueError(
            f"{dropped} of {len(train) + len(evaluate)} prompts are longer than "
            f"data.max_prompt_tokens = {limit}: raise it, or set data.overlong_prompts = drop"
        )
    if config.data.train and not kept[0]:
        raise ValueError(
            f"every training prompt is longer than data.max_prompt_tokens = {limit}: raise it"
        )
    longest = max((len(render(p).token_ids) for problems in kept for p in problems), default=0)
    if not chat:
        _check_context(config, longest)
    return Data(
        train=kept[0],
        evaluate=kept[1],
        render=render,
        prompt=renderer.describe(),
        counts=counts,
        overlong_dropped=dropped,
        longest_prompt=longest,
        sandbox=sandbox,
    )


def _renderer(config: Config, *, chat: bool) -> Renderer | MessageRenderer:
    if chat:
        return MessageRenderer(system=config.prompt.system, suffix=config.prompt.suffix)
    return Renderer(
        load_tokenizer(config.model.name, revision=config.model.revision),
        system=config.prompt.system,
        suffix=config.prompt.suffix,
        template=config.prompt.template,
        template_args=config.prompt.template_args,
    )


def _check_context(config: Config, longest: int) -> None:
    answer, knob = longest_answer(config)
    context = load_config(config.model.name, revision=config.model.revision).max_position_embeddings
    if longest + answer > context:
        raise ValueError(
            f"prompts of up to {longest} and completions of up to {answer} tokens need a context "
            f"of {longest + answer}, {config.model.name} has {context}: lower {knob} "
            "(--max-tokens of archer eval)"
        )


def longest_answer(config: Config) -> tuple[int, str]:
    """Tokens of the longest completion that a recipe allows, and the knob that allows it."""
    return max(
        (config.eval.max_tokens or 0, "eval.max_tokens"),
        (config.rollout.max_tokens, "rollout.max_tokens"),
    )


def cached_render(renderer: Renderer | MessageRenderer) -> Render:
    """Renders each prompt once; an id says too little, two files may use it for two questions."""
    rendered: dict[str | bytes, RenderedPrompt] = {}

    def render(problem: Problem) -> RenderedPrompt:
        prompt = problem.prompt
        key = prompt if isinstance(prompt, str) else canonical([dict(each) for each in prompt])
        if key not in rendered:
            rendered[key] = renderer.render(prompt)
        return rendered[key]

    return render


def open_engine(config: Config, say: Callable[[str], None] = print) -> Engine:
    """What the recipe's `engine` names, with the weights that the run starts from.

    say: is told of processes that were lost and replaced.
    """
    if config.engine == "cluster":
        from archer.engine.cluster.engine import ClusterEngine

        return ClusterEngine(config, say)
    return open_local_engine(config)


def open_local_engine(config: Config) -> LocalEngine:
    """Loads the weights and puts learner and sampler around them, in this process."""
    torch.set_num_threads(num_threads(config))
    name, revision = config.model.name, config.model.revision
    model = load_model(
        name,
        dtype=config.model.dtype,
        device=resolve_device(config.model.device),
        revision=revision,
    )
    tokenizer = load_tokenizer(name, revision=revision)
    return LocalEngine(model, tokenizer, config, choose_objective(config))


def open_verifiers(
    config: Config, engine: Generates, say: Callable[[str], None] = lambda _: None
) -> Verifiers:
    """Verifiers on the machines where the engine is; `say` is told of one that has none.

    No process starts before the first verdict that needs one.
    """
    policy, verify = judging(config), config.verify
    if isinstance(engine, Engine) and config.engine == "cluster":
        from archer.engine.cluster.judges import open_judges

        return open_judges(
            policy, workers=verify.workers, step_seconds=verify.step_seconds, say=say
        )
    return WorkerPool(
        workers=verify.workers or num_cores(), policy=policy, step_seconds=verify.step_seconds
    )


def judging(config: Config) -> Policy:
    """How the recipe has responses judged."""
    of_the_pool = {"workers", "max_error_share", "step_seconds"}
    return Policy(**config.verify.model_dump(exclude=of_the_pool))


def num_threads(config: Config) -> int:
    """Threads that torch computes with."""
    return config.model.threads or num_cores()


def environment(config: Config, data: Data) -> dict[str, Any]:
    """Versions, machine and data: what one wants to know of a run a year later."""
    import numpy
    import transformers

    import archer

    return {
        "archer": archer.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        # Of a cluster this machine may be the one without a GPU.
        "device": config.model.device
        if config.engine == "cluster"
        else str(resolve_device(config.model.device)),
        "threads": num_threads(config),
        "data": {
            "hashes": data.hashes,
            "train": len(data.train),
            "evaluate": len(data.evaluate),
            "overlong_dropped": data.overlong_dropped,
            "sources": [
                {
                    "part": count.part,
                    "source": count.source,
                    "problems": count.problems,
                    "dropped": dict(count.dropped),
                }
                for count in data.counts
            ],
        },
        "prompt": data.prompt,
    }


def _specs(sources: Sequence[SourceConfig]) -> list[SourceSpec]:
    return [SourceSpec(**source.model_dump()) for source in sources]
