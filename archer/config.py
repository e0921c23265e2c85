"""Every knob, on one page. The text under a knob is its help.

A recipe is a TOML file with these sections; `section.key=value` on the command line comes on top.
Unknown keys are refused with the nearest right one. Losses and advantages bring knobs of their own
(their keyword arguments), checked where their functions are known: `archer.engine.choices`.

Batch sizes have one vocabulary. `rollout.problems` x `rollout.samples` completions are sampled a
step; `update.minibatch` problems make one optimizer step; `update.passes` says how often the step's
data is gone through; `update.microbatch_tokens` saves memory and changes nothing.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from archer.verdict import MAX_CPU_SECONDS, MAX_MEMORY_MB

Knob = bool | int | float | str
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Frozen, and closed: a key that is not a knob is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelConfig(Section):
    """The weights that training starts from."""

    name: str
    """Hub name, local folder or .gguf file; `smollm2`: a small real model, `tiny`: a random one."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward pass; masters are always float32. auto: bfloat16 on CUDA, else float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a GPU."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of torch in each process; 0 divides the cores among those of a machine. The same
    run needs the same number."""
    checkpoint_activations: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""


class PromptConfig(Section):
    """How a problem becomes the tokens that the model reads."""

    system: str | None = None
    """System message put in front of every prompt that has none."""
    suffix: str = ""
    """Text appended to the last user message."""
    template: str = "model"
    """`model`: the tokenizer's chat template; `raw`: no chat at all; else a Jinja file."""
    template_args: dict[str, Knob] = {}
    """Arguments for the template, such as enable_thinking = false."""


class SourceConfig(Section):
    """Where problems come from."""

    source: str
    """A problem file (.jsonl), `arithmetic`, `reasoning_gym:TASK`, or another source by name."""
    count: int | None = Field(default=None, ge=1)
    """How many problems to take; generated tasks need it."""
    seed: int = 0
    """Of generated tasks, and of the draw from a file that has a count."""
    args: dict[str, Any] = {}
    """Arguments of a generated task."""
    prompt: str | None = None
    """Text around each question, with {question} in it."""


class DataConfig(Section):
    """Problems to learn from and problems to be judged by; no prompt is in both."""

    train: tuple[SourceConfig, ...] = Field(min_length=1)
    """Problems trained on."""
    evaluate: tuple[SourceConfig, ...] = ()
    """Problems evaluated on; their prompts are left out of training, and counted."""
    max_prompt_tokens: int = Field(default=1024, ge=1)
    """Longest prompt, in tokens."""
    overlong_prompts: Literal["refuse", "drop"] = "refuse"
    """What to do with longer ones; dropped ones are counted."""


class OverlongConfig(Section):
    """Completions that reach, or come near, the token limit."""

    buffer: int = Field(default=0, ge=0)
    """Width in tokens of the band before the limit in which the penalty grows; 0: no penalty."""
    penalty: float = Field(default=1.0, ge=0)
    """Reward taken from a completion that reaches the limit (DAPO Eq. 13)."""
    mask: bool = False
    """Completions cut off by the limit do not count in the loss (DAPO's overlong filtering)."""


class RolloutConfig(Section):
    """Sampling: how many completions, how, and which groups teach."""

    problems: int = Field(ge=1)
    """Problems per step."""
    samples: int = Field(ge=1)
    """Completions per problem."""
    sampler: Literal["own", "vllm"] = "own"
    """What samples: `own`, the model's own modules; `vllm`, vLLM; needs mismatch correction."""
    max_tokens: int = Field(ge=1)
    """Longest completion, in tokens."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling, and of the policy that is trained: every log-prob is taken at it."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the likeliest tokens that hold this probability; needs mismatch correction."""
    top_k: int = Field(default=0, ge=0)
    """Sample from so many likeliest tokens (0: all); needs mismatch correction."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Sample from tokens at least this likely beside the likeliest; needs mismatch correction."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion, beside the model's own stop tokens."""
    filter: Literal["keep", "drop", "refill"] = "drop"
    """Groups whose answers all score alike: keep them, drop them, or drop and draw others."""
    max_rounds: int = Field(default=10, ge=1)
    """With refill: draws per step before it goes on with what it has."""
    ahead: int = Field(default=0, ge=0)
    """Steps whose sampling may begin before the ones before them are learned from."""
    cache_tokens: int = Field(default=65536, ge=1)
    """Tokens in flight in the sampler at most, counted at full length: the size of its cache."""
    overlong: OverlongConfig = OverlongConfig()


class VerifyConfig(Section):
    """Judging responses."""

    workers: int = Field(default=0, ge=0)
    """Worker processes, on each machine of a cluster; 0 takes one per core."""
    cpu_seconds: float = Field(default=5.0, gt=0, le=MAX_CPU_SECONDS)
    """CPU time that one verdict may take."""
    answer_pattern: str = "box"
    """`box`: the last complete \\boxed{}; `number`: the last number; else a regex, one group."""
    memory_mb: int = Field(default=1024, ge=1, le=MAX_MEMORY_MB)
    """Memory that one verdict, or one run of a program, may take."""
    max_tests: int = Field(default=0, ge=0)
    """Tests of a program that are run, the same ones for all its samples; 0: all."""
    partial: bool = False
    """Run a program on all its tests and score the share it passes; else the first failure ends."""
    sandbox: Literal["auto", "full", "restricted", "weak"] = "auto"
    """Level for programs; auto is the best of full and restricted. See docs/sandbox.md."""
    step_seconds: float = Field(default=1800.0, gt=0)
    """Verdicts that are not there so long after the last completion end as grader errors."""
    liberties: tuple[Literal["percent", "order", "units"], ...] = ()
    """What mathematical answers may differ in: 50% for 0.5, {1, 2} for (1, 2), 15 for 15 cm."""
    max_error_share: float = Field(default=0.05, ge=0, le=1)
    """The run stops when more of a step's verdicts than this are grader errors."""


class LossConfig(BaseModel):
    """The policy loss; its other keys are the knobs of that loss."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)
    name: str = "aspo_archer"
    """Name of a loss, or `module:function` for one of your own."""


class AdvantageConfig(BaseModel):
    """The advantage; its other keys are the knobs of that function."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)
    name: str = "grpo"
    """Name of an advantage, or `module:function` for one of your own."""


class KLConfig(Section):
    """Divergence from the reference policy, the weights that training began with."""

    knowledge: float = Field(default=0.0, ge=0)
    """Weight on tokens of low entropy (the Archer paper's beta_k)."""
    reasoning: float = Field(default=0.0, ge=0)
    """Weight on tokens of high entropy (beta_r); set both alike for a uniform KL."""
    estimator: Literal["k1", "k2", "k3", "ratio_k3"] = "k3"
    """How it is estimated; `ratio_k3` is unbiased in its gradient (DeepSeek-V3.2)."""
    quantile: float = Field(default=0.8, gt=0, lt=1)
    """Entropy quantile of a response that parts the two kinds of tokens."""

    @property
    def used(self) -> bool:
        return self.knowledge > 0 or self.reasoning > 0


class EntropyConfig(Section):
    """Entropy bonus."""

    coefficient: float = Field(default=0.0, ge=0)
    """Weight of the mean entropy that is added to the objective."""
    target: float | None = None
    """With a target, in nats, the coefficient moves by `delta` a step towards holding it."""
    delta: float = Field(default=0.005, gt=0)
    """Step of the adaptive coefficient (arXiv 2505.22312, Skywork-OR1)."""


class MismatchConfig(Section):
    """Correction for a sampler whose log-probs are not the learner's."""

    kind: Literal["none", "tis", "mis"] = "none"
    """tis: truncate the importance ratio to [low, high]; mis: drop what lies outside."""
    level: Literal["token", "sequence"] = "token"
    """Whose ratio it is: each token's own, or the product over its sequence."""
    low: float = Field(default=0.0, ge=0)
    """Lower bound of the ratio."""
    high: float = Field(default=2.0, gt=0)
    """Upper bound of the ratio."""


class UpdateConfig(Section):
    """Optimizer steps on the judged groups."""

    minibatch: int = Field(ge=1)
    """Problems per optimizer step; what is left over forms a smaller last mini-batch."""
    passes: int = Field(default=1, ge=1)
    """How often each step's data is gone through (PPO epochs), in seeded order."""
    average: Literal["token", "sequence", "constant"] = "token"
    """Whose mean the loss is: of tokens, of sequences' own means, or a sum over a constant."""
    constant: float | None = Field(default=None, gt=0)
    """Divisor of a sequence's sum with average = constant; the token limit if not given."""
    old_logp: Literal["score", "sampler"] = "score"
    """Old log-probs from a pass of the learner, or the sampler's as they are (not vLLM's)."""
    recompute_partition: bool = False
    """Part tokens by the present entropy at every update, as the released code does."""
    learning_rate: float = Field(gt=0)
    """Of AdamW, after warm-up."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Of the learning rate after warm-up, over train.steps."""
    warmup: int = Field(default=0, ge=0)
    """Training steps over which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of AdamW, on all weights."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    microbatch_tokens: int = Field(default=4096, ge=1)
    """Tokens in one forward pass at most; memory only, no effect on the gradient."""
    max_skipped: int = Field(default=3, ge=1)
    """The run stops after so many optimizer steps in a row with a non-finite gradient."""


class TrainConfig(Section):
    """Length and seed of the run."""

    steps: int = Field(ge=1)
    """Training steps in all."""
    seed: int = 0
    """Names every random draw of the run."""


class EvalConfig(Section):
    """Evaluation during training, and by `archer eval`."""

    every: int = Field(default=0, ge=0)
    """Steps between evaluations; 0: before the first and after the last step only."""
    samples: int = Field(default=1, ge=1)
    """Completions per problem."""
    temperature: float = Field(default=1.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the likeliest tokens that hold this probability."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest completion; that of training if not given."""


class CheckpointConfig(Section):
    """Checkpoints."""

    every: int = Field(default=10, ge=1)
    """Steps between checkpoints; the last step and the best evaluated one always have one."""
    keep: int = Field(default=2, ge=1)
    """So many of the newest are kept, and the best besides."""


class LogConfig(Section):
    """What is kept of the run beside its metrics."""

    arrays_every: int = Field(default=0, ge=0)
    """Steps between dumps of per-token arrays (entropy, log-probs, ratio, advantage); 0: none."""
    arrays_groups: int = Field(default=4, ge=1)
    """Groups of such a step whose arrays are kept."""
    sinks: tuple[Literal["wandb", "tensorboard", "trackio"], ...] = ()
    """Services that get every step's metrics too."""
    project: str = "archer"
    """Project name in those services."""


class ClusterConfig(Section):
    """Processes of `engine = "cluster"`, on all machines of a Ray cluster."""

    learners: int = Field(default=1, ge=1)
    """Processes that hold a shard of the learner each, with a GPU each where there are GPUs."""
    samplers: int = Field(default=0, ge=0)
    """Models that sample apart from the learners; 0: on the learners' places, taking turns."""
    tensor_parallel: int = Field(default=1, ge=1)
    """Processes, with a GPU each where there are GPUs, over which vLLM cuts each such model."""
    offload: bool = False
    """Masters, moments, gradients and the reference lie in the CPU's memory, where the optimizer
    steps, too; GPUs hold what they compute with. Without GPUs it changes nothing."""
    least_learners: int = Field(default=0, ge=0)
    """Where machines are lost the run goes on with so few, and one sampler; 0: with all or not."""
    restarts: int = Field(default=3, ge=0)
    """How often the run goes on from its last checkpoint by itself when what cannot be replaced is
    lost; and how often a sampler that ends before it is ready is begun again."""
    silent_seconds: float = Field(default=60.0, gt=0)
    """A process that has not answered for so long is taken for dead. A run that may go on with
    fewer learners waits as long for room for all."""
    wait_seconds: float = Field(default=1800.0, gt=0)
    """Longest wait for one thing: a process's place, a model to load, an optimizer step, an answer
    to a problem."""


class Config(Section):
    """A whole run."""

    engine: Literal["local", "cluster"] = "local"
    """Where the tensors live: in this process, or in processes on a Ray cluster."""
    model: ModelConfig
    prompt: PromptConfig = PromptConfig()
    data: DataConfig
    rollout: RolloutConfig
    verify: VerifyConfig = VerifyConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    loss: LossConfig = LossConfig()
    kl: KLConfig = KLConfig()
    entropy: EntropyConfig = EntropyConfig()
    mismatch: MismatchConfig = MismatchConfig()
    update: UpdateConfig
    train: TrainConfig
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def learners_sample(self) -> bool:
        """Whether learners of a cluster sample themselves; vLLM has processes of its own."""
        return not self.cluster.samplers and self.rollout.sampler != "vllm"

    @model_validator(mode="after")
    def _knobs_agree(self) -> Config:
        rollout, update = self.rollout, self.update
        truncated = rollout.top_p < 1 or rollout.top_k > 0 or rollout.min_p > 0
        if truncated and self.mismatch.kind == "none":
            raise ValueError(
                "rollout.top_p, top_k or min_p truncate the distribution that is sampled from, but "
                "the whole one is trained: set mismatch.kind to tis or mis, or leave them off"
            )
        if truncated and update.old_logp == "sampler":
            raise ValueError(
                "update.old_logp = sampler takes log-probs of a truncated distribution for those "
                "of the policy: use update.old_logp = score"
            )
        if self.mismatch.kind != "none" and update.old_logp == "sampler":
            raise ValueError(
                "mismatch.kind needs the learner's own old log-probs: use update.old_logp = score"
            )
        if rollout.sampler == "vllm" and self.mismatch.kind == "none":
            raise ValueError(
                "rollout.sampler = vllm: its log-probs differ from the learner's by rounding, and "
                "it tells no entropies: set mismatch.kind to tis or mis, with update.old_logp = "
                "score"
            )
        cluster, parts = self.cluster, self.cluster.tensor_parallel
        if parts > 1 and (rollout.sampler != "vllm" or self.engine != "cluster"):
            raise ValueError(
                f"cluster.tensor_parallel = {parts} is vLLM's, on a cluster: set rollout.sampler = "
                "vllm and engine = cluster, or leave it at 1"
            )
        if parts > 1 and not cluster.samplers:
            for name in ("learners", "least_learners"):
                if (number := getattr(cluster, name)) % parts:
                    raise ValueError(
                        f"cluster.{name} = {number} is no multiple of cluster.tensor_parallel = "
                        f"{parts}: models that sample by turns are cut over the learners' places"
                    )
        if rollout.ahead and self.mismatch.kind == "none" and update.old_logp == "score":
            raise ValueError(
                f"rollout.ahead = {rollout.ahead} samples with older weights than those that "
                "learn: set mismatch.kind to tis or mis, or update.old_logp = sampler"
            )
        if self.mismatch.low >= self.mismatch.high:
            raise ValueError(
                f"mismatch.low is {self.mismatch.low:g} and mismatch.high {self.mismatch.high:g}: "
                "make the first the smaller one"
            )
        if rollout.overlong.buffer > rollout.max_tokens:
            raise ValueError(
                f"rollout.overlong.buffer is {rollout.overlong.buffer}, more than "
                f"rollout.max_tokens = {rollout.max_tokens}: make it smaller"
            )
        if self.cluster.least_learners > self.cluster.learners:
            raise ValueError(
                f"cluster.least_learners is {self.cluster.least_learners}, more than "
                f"cluster.learners = {self.cluster.learners}: make it smaller"
            )
        if self.eval.temperature == 0 and self.eval.samples > 1:
            raise ValueError(
                f"eval.temperature = 0 gives the same answer {self.eval.samples} times: "
                "set eval.samples = 1 or a temperature"
            )
        return self


FREE_ON_RESUME = (
    "engine",
    "cluster",
    "model.checkpoint_activations",
    "train.steps",
    "rollout.cache_tokens",
    "verify.workers",
    "verify.step_seconds",
    "update.microbatch_tokens",
    "eval",
    "checkpoint",
    "log",
)
"""Knobs, or whole sections, that may change when a run goes on; changes are logged."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a recipe and lays `section.key=value` over it.

    Raises ValueError, one line with the cure, for whatever is wrong with either.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        hint = f"recipes there: {', '.join(near)}" if near else "name a .toml file"
        raise ValueError(f"{path}: no such recipe; {hint}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid TOML: {error}; mend the file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}; name a .toml file") from None
    for override in overrides:
        _override(tree, override)
    return config_from(tree, where=str(path))


def config_from(tree: Mapping[str, Any], *, where: str) -> Config:
    """Validates a tree of knobs; ValueError with the first fault and its cure."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"{where}: {_explain(error)}") from None


def config_toml(config: Config) -> str:
    """The resolved configuration as TOML, every knob written out."""
    return tomli_w.dumps(_without_none(config.model_dump(mode="json")))


def flat(config: Config) -> dict[str, Any]:
    """`{"rollout.problems": 8, ...}`; lists and tables of free keys are single values."""
    return _flatten(config.model_dump(mode="json"), "")


def changed_knobs(before: Config, after: Config) -> tuple[list[str], list[str]]:
    """Names of knobs that differ: those that may change on resume, and those that may not."""
    old, new = flat(before), flat(after)
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    free = [
        name for name in names if any(name == f or name.startswith(f + ".") for f in FREE_ON_RESUME)
    ]
    return free, [name for name in names if name not in free]


def _flatten(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and key not in ("template_args", "args"):
            found.update(_flatten(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value


def _override(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise ValueError(f"'{override}' is no override: write section.key=value")
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    node: Any = tree
    for key in keys[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ValueError(f"'{override}': {key} is not a section; write section.key=value")
    node[keys[-1]] = value


def _explain(error: ValidationError) -> str:
    """One fault in one line, with the nearest right name for an unknown key."""
    faults = error.errors(include_url=False)
    # A misspelt name first: it is why the right one seems to be missing.
    fault = next((each for each in faults if each["type"] == "extra_forbidden"), faults[0])
    path = [str(part) for part in fault["loc"]]
    name = ".".join(path)
    if fault["type"] == "extra_forbidden":
        known = _known_keys(path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*path[:-1], near[0]])}?" if near else "remove it"
        return f"unknown knob {name}; {hint} (known there: {', '.join(known)})"
    if fault["type"] == "missing":
        by_override = "" if any(part.isdigit() for part in path) else f" or with {name}=..."
        return f"{name} is missing; set it in the recipe{by_override}"
    if fault["type"] == "tuple_type":
        tables = " (a section is written [[" + name + "]])" if path[0] == "data" else ""
        return f"{name} = {fault['input']!r}: should be a list{tables}"
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    message = fault["msg"][0].lower() + fault["msg"][1:]
    return f"{name} = {fault['input']!r}: {message}"


def _known_keys(path: Sequence[str]) -> list[str]:
    """Keys of the section at `path`; positions in lists of tables are passed over."""
    section: type[BaseModel] = Config
    for part in path:
        if part.isdigit():
            continue
        annotation = section.model_fields[part].annotation
        nested = [annotation, *getattr(annotation, "__args__", ())]
        section = next(t for t in nested if isinstance(t, type) and issubclass(t, BaseModel))
    return sorted(section.model_fields)


def describe_knobs() -> dict[str, tuple[str, Any]]:
    """Name -> (help, default) of every knob, for the documentation."""
    found: dict[str, tuple[str, Any]] = {}

    def walk(section: type[BaseModel], prefix: str) -> None:
        for key, knob in section.model_fields.items():
            annotation = knob.annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                walk(annotation, f"{prefix}{key}.")
            else:
                found[prefix + key] = (knob.description or "", knob.default)

    walk(Config, "")
    return found
