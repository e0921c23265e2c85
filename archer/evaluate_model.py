"""`archer eval`: any model on a problem file, by the function that evaluates during training.

What a run or an export was trained with is what it is evaluated with: prompts, sampling, seed,
answer pattern, and its own evaluation problems, unless something else is asked for. So the score of
a checkpoint, measured during training, afterwards, or on its export, is one measurement. The
weights are loaded last, without optimizer or gradients. What was interrupted goes on by the same
command (archer.unfinished).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch

from archer.config import Config, config_from, load_config
from archer.engine.base import Generates, Request, Sample, Sampling
from archer.engine.local import resolve_device
from archer.engine.sampler import Sampler
from archer.engine.server import Address, Server, open_server
from archer.engine.vllm import VllmSampler, sampled_dtype
from archer.evaluate import described, judged_units, score_answers, units
from archer.export import (
    RECIPE,
    Checkpoint,
    find_checkpoint,
    is_checkpoint,
    is_run,
    trained_model,
    write_trained,
)
from archer.model.adapt import adapt
from archer.model.load import (
    end_tokens,
    find_model,
    load_model,
    load_tokenizer,
    stop_token_ids,
)
from archer.run import MANIFEST, checksum
from archer.scores import Evaluation, write_result
from archer.setup import Data, load_data, longest_answer, num_threads, open_verifiers
from archer.suites import laid_over, suite_problems, unexpected
from archer.terminal import Terminal, table
from archer.types import OUTCOMES
from archer.unfinished import Keeping, Unfinished, open_unfinished

Knobs = dict[str, Any]
Job = tuple[Config, Data]

MADE_HERE = ("tiny", "smollm2")
"""Names that are no folder's, even where one of that name lies."""

MAX_TOKENS = 512
"""Longest completion of a model that brings no recipe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is to be measured: a model by name, an export, or a checkpoint.

    Example, a run whose newest checkpoint is that of step 30:
        Subject(label="quickstart-step-000030", recipe={...}, checkpoint=Checkpoint(...))
    """

    label: str
    """Short, and fit for a file name."""
    recipe: Knobs
    """The knobs it was trained with; only `model` for a model that brings none."""
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a model is to be measured by.

    Example: Asked(problems=Path("evals/suites/aime24.jsonl"), suite="aime24", ks=(1, 8),
                   settings={"samples": 64, "temperature": 0.8})
    """

    problems: Path | None
    """None: the evaluation problems of a run or an export itself."""
    suite: str = ""
    ks: Sequence[int] = ()
    """Of pass@k and majority@k."""
    settings: Mapping[str, Any]
    """As `sections` takes them."""


@dataclass(frozen=True, slots=True, eq=False)
class SamplerAlone:
    """A model that is sampled from and never trained."""

    sampler: Sampler

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Sample]:
        return self.sampler.generate(requests, sampling, policy_version=0)


def evaluate_model(
    model: str,
    *,
    terminal: Terminal,
    problems: Path | None = None,
    suite: str | None = None,
    ks: Sequence[int] = (),
    out: Path | None = None,
    server: Address | None = None,
    vllm: float | None = None,
    **asked: Any,
) -> str:
    """Measures a model, writes the result and the responses, and returns both as a text.

    `model` is a hub name, a folder, a .gguf file, an export, a run or one of its checkpoints. With
    a `server`, whose model is measured, it brings tokenizer and recipe; in chat it is the name of
    the server's model, which needs neither. `vllm` is the share of the device's memory in which
    vLLM is to sample; without either this process does.
    `asked` are settings as `sections` takes them. What is not among them is as in the suite, else
    as the model was trained, or the default where it brings no recipe. Without `problems` they are
    those of the suite; without a suite a run or an export is judged by its own evaluation problems.

    Raises ValueError, before weights load, for whatever is wrong with the model's name, the
    problems, the settings or `out`, and for a server that does not answer as it should.
    """
    subject, served = (find_subject(model), None) if server is None else _served(model, server)
    if served is not None and served.chat:
        _check_chat(asked)
    if suite is None:
        by = Asked(problems=problems, ks=ks, settings=asked)
    else:
        by = asked_by_suite(suite, asked, terminal, problems=problems, ks=ks)
    config, data = open_job(subject, by, served)
    if vllm is not None:
        data = replace(data, sampler="vllm")
    out = out or _default_out(subject, by.problems)
    _check_out(out)

    samples = "1 sample" if config.eval.samples == 1 else f"{config.eval.samples} samples"
    terminal.say(
        f"{subject.label}: {len(data.evaluate)} problems, {samples} each"
        + (f", {data.overlong_dropped} dropped as too long" if data.overlong_dropped else "")
    )
    with ExitStack() as opened:

        def engine() -> Generates:
            if vllm is None:
                return served or open_sampler(config, subject.checkpoint)
            sampler = open_vllm(config, subject.checkpoint, data.longest_prompt, vllm)
            return opened.enter_context(closing(sampler))

        evaluation = measure(
            subject,
            config,
            data,
            out,
            ks=ks,
            terminal=terminal,
            engine=engine,
        )
    notes = [suite and unexpected(suite, evaluation.problems)]
    shown = "\n\n".join(filter(None, [describe(evaluation, ks), *notes]))
    return f"{shown}\n\n{out}, and every response in {out.with_suffix('.jsonl')}"


def _served(model: str, server: Address) -> tuple[Subject, Server]:
    """Whose tokenizer and recipe are taken, labelled with what is measured: the server's model."""
    if server.chat:
        subject = Subject(label=model, recipe={"model": {"name": model}})
        opened = open_server(replace(server, model=model))
    else:
        subject = find_subject(model)
        # A run's recipe names the model that its training began with, which is another one.
        own = None if subject.checkpoint else str(subject.recipe["model"]["name"])
        opened = open_server(server, own=own)
    return replace(subject, label=Path(opened.model).name or opened.model), opened


def _check_chat(asked: Mapping[str, Any]) -> None:
    for name in ("template", "template_args"):
        if asked.get(name) is not None:
            raise ValueError(
                f"{name} = {asked[name]!r}, but in chat the server's own template renders the "
                "messages; leave it out, or leave --chat out"
            )


def asked_by_suite(
    suite: str,
    asked: Mapping[str, Any],
    terminal: Terminal,
    *,
    problems: Path | None = None,
    ks: Sequence[int] = (),
) -> Asked:
    """A suite with what was asked for laid over it, on its own problems or those of a file."""
    settings = laid_over(suite, asked)
    return Asked(
        problems=problems or suite_problems(suite, terminal), suite=suite, ks=ks, settings=settings
    )


def open_job(subject: Subject, by: Asked, server: Server | None = None) -> Job:
    """The settings and the problems of an evaluation; ValueError where something is wrong."""
    config = evaluation_config(subject, problems=by.problems, **sections(**by.settings))
    check_ks(by.ks, config.eval.samples)
    if server is None:
        return config, replace(load_data(config), suite=by.suite)
    data = load_data(config, chat=server.chat)
    return config, replace(data, suite=by.suite, sampler="server", served=server.model)


def sections(
    *,
    samples: int | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    stop: Sequence[str] | None = None,
    seed: int | None = None,
    system: str | None = None,
    suffix: str | None = None,
    template: str | None = None,
    template_args: Mapping[str, Any] | None = None,
    answer_pattern: str | None = None,
    cpu_seconds: float | None = None,
) -> dict[str, Knobs]:
    """What was asked for, by the sections of a recipe; see `evaluation_config`."""
    return {
        "rollout": {"max_tokens": max_tokens, "stop": stop},
        "eval": {
            "samples": samples,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
        },
        "train": {"seed": seed},
        "prompt": {
            "system": system,
            "suffix": suffix,
            "template": template,
            "template_args": template_args,
        },
        "verify": {"answer_pattern": answer_pattern, "cpu_seconds": cpu_seconds},
    }


def measure(
    subject: Subject,
    config: Config,
    data: Data,
    out: Path,
    *,
    ks: Sequence[int],
    terminal: Terminal,
    engine: Callable[[], Generates],
    check: Callable[[], None] | None = None,
) -> Evaluation:
    """Evaluates into `out`, or goes on with what a kill left of that.

    `engine` is called where something is left to sample, `check` with every completion; what it
    raises ends the evaluation. OtherEvaluation where what was left has other settings.
    """
    cut = units(data.evaluate, config.eval.samples)
    header = _header(subject, config, data, unit=len(cut[0]))
    with open_unfinished(part_of(out), header, cut, config.eval.samples) as unfinished:
        done = unfinished.num_units
        if done < len(cut):
            _check_unwritten(out)
            if done or unfinished.kept:
                terminal.say(
                    f"{part_of(out)}: {len(unfinished.answers)} problems are judged already"
                    + (f", and {len(unfinished.kept)} more answers came" if unfinished.kept else "")
                )
            sampler = engine()
            if data.served:
                sampler = Keeping(sampler, unfinished)
            with open_verifiers(config, sampler) as verifiers:
                for unit in judged_units(
                    sampler, verifiers, data, config, terminal, done=done, check=check
                ):
                    unfinished.add(unit)
        return _finish(unfinished, subject, config, data, out, ks)


def _finish(
    unfinished: Unfinished,
    subject: Subject,
    config: Config,
    data: Data,
    out: Path,
    ks: Sequence[int],
) -> Evaluation:
    """Writes result and responses. The part goes last: until then all of this can be repeated.

    ValueError where no verdict is left to score; the responses are in OUT.errors.jsonl then.
    """
    try:
        evaluation = score_answers(unfinished.answers, data, config, ks)
    except ValueError as error:
        # All verdicts are errors. In the part they would outlive the verifier's being mended.
        responses = out.with_suffix(".errors.jsonl")
        unfinished.write_responses(responses)
        unfinished.remove()
        raise ValueError(
            f"{error} and judge what was sampled: archer grade {responses} --out FILE"
        ) from None
    evaluation = replace(evaluation, model=subject.label)
    unfinished.write_responses(out.with_suffix(".jsonl"))
    write_result(out, evaluation)
    unfinished.remove()
    return evaluation


def _header(subject: Subject, config: Config, data: Data, unit: int) -> Knobs:
    """What must be the same for an evaluation to go on, to the last bit of a log-prob."""
    name = config.model.name
    engine: Knobs
    if data.served:
        # Without the address, which may be another one after a restart.
        files, engine = "", {"backend": data.sampler, "model": data.served}
    elif data.sampler:
        files, engine = _fingerprint(subject, name), {"backend": data.sampler}
    else:
        files = _fingerprint(subject, name)
        engine = {
            "dtype": config.model.dtype,
            "device": str(resolve_device(config.model.device)),
            "threads": num_threads(config),
            "cache_tokens": config.rollout.cache_tokens,
            "unit": unit,
        }
    revision = config.model.revision
    return {
        "model": {"label": subject.label, "name": name, "revision": revision, "files": files},
        "settings": described(data, config),
        "engine": engine,
    }


def _fingerprint(subject: Subject, name: str) -> str:
    """Changes with the weights, or with any file of a folder that has no checksums; "" for a name.

    A checkpoint's manifest is as good on another machine, or in a copy of the run.
    """
    if subject.checkpoint is not None:
        return checksum(subject.checkpoint.folder / MANIFEST)
    if name in MADE_HERE:
        return ""
    weights = Path(name).expanduser()
    found = sorted(weights.rglob("*")) if weights.is_dir() else [weights]
    facts = [
        (str(path.relative_to(weights)), path.stat().st_size, path.stat().st_mtime_ns)
        for path in found
        if path.is_file()
    ]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest() if facts else ""


def find_subject(name: str) -> Subject:
    """What a name stands for; ValueError for a run without a checkpoint, and a damaged one."""
    path = Path(name).expanduser()
    if name in MADE_HERE:
        return Subject(label=name, recipe={"model": {"name": name}})
    if is_run(path) or is_checkpoint(path):
        checkpoint = find_checkpoint(path)
        recipe = checkpoint.config.model_dump(mode="json")
        return Subject(label=checkpoint.label, recipe=recipe, checkpoint=checkpoint)
    if (path / RECIPE).is_file():
        recipe = load_config(path / RECIPE).model_dump(mode="json")
        recipe["model"].update(name=name, revision=None)
        return Subject(label=path.resolve().name, recipe=recipe)
    label = path.stem if name.endswith(".gguf") else path.name
    return Subject(label=label, recipe={"model": {"name": name}})


def evaluation_config(
    subject: Subject, *, problems: Path | None, **given: Mapping[str, Any]
) -> Config:
    """The subject's recipe with what was asked for laid over it, section by section.

    Its training problems are left out, and what only training reads stands as it is.
    """
    tree: Knobs = {
        "data": {"train": [{"source": "none"}]},
        "rollout": {"problems": 1, "samples": 1, "max_tokens": MAX_TOKENS},
        "update": {"minibatch": 1, "learning_rate": 1.0},
        "train": {"steps": 1},
        **subject.recipe,
    }
    for section, knobs in given.items():
        asked = {name: value for name, value in knobs.items() if value is not None}
        tree[section] = {**tree.get(section, {}), **asked}
    tree["rollout"]["overlong"] = {}
    if tree["model"].get("device") == "cuda":  # one may well evaluate where there is none
        tree["model"] = {**tree["model"], "device": "auto"}
    if problems is not None:
        # As long as the context holds them.
        evaluated = [{"source": str(problems)}]
        tree["data"] = {**tree["data"], "evaluate": evaluated, "max_prompt_tokens": 2**31}
    elif not tree["data"].get("evaluate"):
        raise ValueError(
            f"{subject.label} brings no evaluation problems"
            + ("" if "data" in subject.recipe else ": it is no run, checkpoint or export here")
            + "; name a file with --problems"
        )
    config = config_from(tree, where="archer eval")
    return config.model_copy(update={"data": config.data.model_copy(update={"train": ()})})


def describe(evaluation: Evaluation, ks: Sequence[int] = ()) -> str:
    """The result as a table of at most 80 columns."""
    score = evaluation.score
    rows: list[tuple[str, ...]] = [
        (
            f"avg@{evaluation.samples}",
            f"{score['mean']:.3f}",
            f"[{score['low']:.3f}, {score['high']:.3f}]",
        )
    ]
    rows += [(f"pass@{k}", f"{value:.3f}", "") for k, value in evaluation.pass_at.items()]
    rows += [(f"pass@{k}", "-", "too few verdicts") for k in ks if str(k) not in evaluation.pass_at]
    voting = f"of {evaluation.voting} problems" if evaluation.voting < evaluation.problems else ""
    rows += [(f"majority@{k}", f"{v:.3f}", voting) for k, v in evaluation.majority_at.items()]
    rows.append(("truncated", f"{evaluation.truncated:.3f}", ""))
    rows.append(("no answer", f"{evaluation.no_answer:.3f}", ""))
    if evaluation.filtered:
        rows.append(("filtered", f"{evaluation.filtered:.3f}", ""))
    rows.append(("tokens a response", f"{evaluation.mean_tokens:.1f}", ""))
    for what, parts in (
        ("source", evaluation.by_source),
        ("difficulty", evaluation.by_difficulty),
        ("platform", evaluation.by_platform),
    ):
        if len(parts) > 1:
            rows += [
                (f"avg on {name or f'no {what}'}"[:46], f"{value:.3f}", "")
                for name, value in parts.items()
            ]
    found = evaluation.outcomes
    outcomes = " · ".join(f"{found[name]} {name}" for name in OUTCOMES if found.get(name))
    header = (f"{evaluation.model}: {evaluation.problems} problems"[:46], "", "95 % interval")
    return f"{table(rows, header)}\n\nverdicts: {outcomes}"


def check_ks(ks: Sequence[int], samples: int) -> None:
    """ValueError where pass@k cannot be measured."""
    for k in ks:
        if not 1 <= k <= samples:
            raise ValueError(
                f"pass@{k} cannot be measured with {samples} samples a problem; "
                f"give --samples {max(k, 1)} or a --k from 1 to {samples}"
            )


def _default_out(subject: Subject, problems: Path | None) -> Path:
    """The first name that is free or unfinished: evals/MODEL-PROBLEMS.json, then -2, -3, ..."""
    stem = f"{subject.label}-{problems.stem}" if problems else subject.label
    names = (f"{stem}.json" if n == 1 else f"{stem}-{n}.json" for n in count(1))
    paths = (Path("evals") / name for name in names)
    return next(path for path in paths if part_of(path).exists() or not path.exists())


def part_of(out: Path) -> Path:
    """Where the responses are until all are judged."""
    return out.with_suffix(".jsonl.part")


def _check_out(out: Path) -> None:
    """Finds out before the work is done whether its result can be written."""
    if out.suffix == ".jsonl":
        raise ValueError(f"{out}: the responses go beside it as .jsonl; give --out a .json file")
    if not part_of(out).exists():
        _check_unwritten(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out.parent):
        pass


def _check_unwritten(out: Path) -> None:
    for path in (out, out.with_suffix(".jsonl")):
        if path.exists():
            raise ValueError(f"{path} is there already; give another --out")


def open_sampler(config: Config, checkpoint: Checkpoint | None) -> SamplerAlone:
    """Loads the weights, of a checkpoint or of the recipe's model."""
    torch.set_num_threads(num_threads(config))
    device, origin = resolve_device(config.model.device), config.model
    if checkpoint is not None:
        model = trained_model(checkpoint, dtype=origin.dtype, device=device)
    else:
        model = load_model(origin.name, dtype=origin.dtype, device=device, revision=origin.revision)
    tokenizer = load_tokenizer(origin.name, revision=origin.revision)
    adapt(model)
    model.eval()
    sampler = Sampler(
        model,
        tokenizer,
        stop_token_ids=stop_token_ids(tokenizer, model.generation_config),
        cache_tokens=config.rollout.cache_tokens,
    )
    return SamplerAlone(sampler)


def open_vllm(
    config: Config, checkpoint: Checkpoint | None, longest_prompt: int, memory_share: float
) -> VllmSampler:
    """vLLM with the weights of a checkpoint, which are written out for it, or the recipe's model.

    ValueError where vLLM is missing, or the model has no files.
    """
    torch.set_num_threads(num_threads(config))
    origin = config.model
    tokenizer = load_tokenizer(origin.name, revision=origin.revision)
    with tempfile.TemporaryDirectory(prefix="archer-") as folder:
        if checkpoint is None:
            place, revision = find_model(origin.name, revision=origin.revision), origin.revision
        else:
            write_trained(checkpoint, Path(folder), "float32")
            place, revision = folder, None
        return VllmSampler(
            place,
            revision=revision,
            tokenizer=tokenizer,
            stop_token_ids=end_tokens(place, tokenizer, revision=revision),
            dtype=sampled_dtype(config),
            context=longest_prompt + longest_answer(config)[0],
            memory_share=memory_share,
        )
