"""The loop: sample, judge, weigh, learn, publish; evaluate and checkpoint when due.

Here stands what happens in a step and in which order. How tensors are held, how prompts are sampled
and how files become complete stand in `engine`, `rollout` and `run`.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from archer import parity
from archer.algo.batch import TokenBatch, minibatches, take, to_batch
from archer.algo.objective import (
    Tallies,
    adapt_entropy_coefficient,
    add_tallies,
    correction_weights,
    pick_tokens,
    sampler_kl,
    summarise,
)
from archer.algo.select import group_advantages
from archer.algo.textstats import text_tallies
from archer.config import Config, UpdateConfig
from archer.data.stream import ProblemStream
from archer.engine.base import Engine, EngineLost
from archer.engine.choices import choose_advantage, choose_pick, needs_greedy
from archer.evaluate import evaluate_data
from archer.files import written_whole
from archer.pipeline import Interrupted, Rollouts
from archer.randomness import permutation, uniforms
from archer.records import write_arrays, write_rollouts
from archer.rollout import (
    check_errors,
    greedy_rewards,
    select_step,
    shape_rewards,
    verdicts_of,
)
from archer.run import Run, State, open_run
from archer.scores import write_evaluation
from archer.setup import Data, check_recipe, environment, load_data, open_engine, open_verifiers
from archer.sinks import Sink, check_sinks, open_sinks
from archer.terminal import Terminal
from archer.types import OUTCOMES, Group
from archer.verify.code import below_full
from archer.verify.pool import Verifiers


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """How a call of `train` ended."""

    folder: Path
    state: State
    stopped_by: int
    """Number of the signal that ended it before its last step, 0 if none did."""


@dataclass(slots=True)
class Clock:
    """Seconds of a step by part."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


@dataclass(slots=True)
class Stop:
    """Whether the run was asked to stop, and by which signal."""

    signal: int = 0
    waits: bool = False
    """Whether there are steps to save: until there are, a signal ends the run at once."""


def train(config: Config, folder: Path, terminal: Terminal, *, fork: Path | None = None) -> Trained:
    """Trains until `train.steps`, from the newest checkpoint in `folder` if there is one.

    Where a part of a cluster is lost that nothing stands in for, the run goes on as it would after
    a kill, `cluster.restarts` times; then EngineLost is raised.
    """
    check_recipe(config)
    check_sinks(config.log.sinks)
    data = load_data(config)
    if config.rollout.sampler == "vllm":
        data = replace(data, sampler="vllm")
    restarts = config.cluster.restarts
    with _stop_requests() as stop:
        for restart in range(restarts + 1):
            try:
                return _train(config, folder, data, terminal, stop, fork=fork)
            except EngineLost as lost:
                if stop.signal:
                    terminal.say(f"{lost}: not begun again, as the run was to stop")
                    raise KeyboardInterrupt(stop.signal) from None
                if restart == restarts:
                    raise EngineLost(
                        f"{lost}; the run was begun again {restarts} times (cluster.restarts): "
                        "the same command goes on from the last checkpoint"
                    ) from None
                terminal.say(
                    f"{lost}: going on from the last checkpoint, restart {restart + 1} of at most "
                    f"{restarts}"
                )
    raise AssertionError("the last restart returns or raises")


def _train(
    config: Config,
    folder: Path,
    data: Data,
    terminal: Terminal,
    stop: Stop,
    *,
    fork: Path | None,
) -> Trained:
    stop.waits = False
    run, state = open_run(folder, config, say=terminal.say, fork=fork)
    with closing(run):
        with written_whole(run.folder / "environment.json") as file:
            file.write((json.dumps(environment(config, data), indent=1) + "\n").encode())
        terminal.say(
            f"{len(data.train)} problems to learn from, {len(data.evaluate)} to be judged by"
            + (f", {data.overlong_dropped} dropped as too long" if data.overlong_dropped else "")
        )
        if said := below_full(data.sandbox):
            terminal.say(said)
        recipe = config.model_dump(mode="json")
        with (
            closing(open_engine(config, terminal.say)) as engine,
            open_verifiers(config, engine, terminal.say) as verifiers,
            # What samples beside the loop keeps its own counts.
            open_verifiers(config, engine, terminal.say)
            if engine.samples_apart
            else verifiers as of_rollouts,
        ):
            if state.step:
                engine.load(run.path("checkpoints", state.step))
            sinks = open_sinks(config.log.sinks, run.folder, config.log.project, state.step, recipe)
            rollouts = Rollouts(
                run,
                config,
                engine,
                of_rollouts,
                ProblemStream(data.train, config.train.seed),
                data.render,
                terminal,
                lambda: bool(stop.signal),
                state,
            )
            loop = Loop(run, config, data, engine, verifiers, rollouts, terminal, sinks, stop)
            try:
                stop.waits = True
                state = loop.until_done(state)
            finally:
                rollouts.close()
                for sink in sinks:
                    sink.close()
    stopped_by = stop.signal if state.step < config.train.steps else 0
    return Trained(folder=run.folder, state=state, stopped_by=stopped_by)


@dataclass(slots=True)
class Loop:
    """What the steps of one run share."""

    run: Run
    config: Config
    data: Data
    engine: Engine
    verifiers: Verifiers
    rollouts: Rollouts
    terminal: Terminal
    sinks: Sequence[Sink]
    stop: Stop

    def until_done(self, state: State) -> State:
        config, saved = self.config, state.step
        if state.step == 0 and self.data.evaluate:
            try:
                state = self._evaluate(state, {})
            except Interrupted:
                return state
        while state.step < config.train.steps and not self.stop.signal:
            try:
                state = self._step(state)
            except Interrupted:
                break
            due = state.step % config.checkpoint.every == 0 or state.step == config.train.steps
            due = due or state.step == state.best_step  # the best is kept, so it must be there
            if due or self.stop.signal:
                self._checkpoint(state)
                saved = state.step
            self.run.finish_checkpoint(wait=False)
        if state.step > saved:
            self._checkpoint(state)
        self.run.finish_checkpoint()
        return state

    def _checkpoint(self, state: State) -> None:
        def save(folder: Path) -> Callable[[], None]:
            written = self.engine.save(folder)
            responses = parity.record(
                self.engine,
                self.data.evaluate or self.data.train,
                self.data.render,
                temperature=self.config.rollout.temperature,
                max_tokens=self.config.rollout.max_tokens,
                seed=self.config.train.seed,
            )
            write_arrays(folder / parity.PARITY, responses)
            self.rollouts.keep_ahead(state, folder)
            return written

        self.run.checkpoint(state, save)

    def _step(self, before: State) -> State:
        config, step, clock = self.config, before.step + 1, Clock()
        with clock.time("step"):
            with clock.time("rollout"):
                sampled = self.rollouts.next(step)
            groups, penalised = shape_rewards(sampled.groups, config.rollout)
            check_errors(verdicts_of(groups), config.verify.max_error_share)
            teach, counts = select_step(groups, config.rollout)
            tallies: Tallies = {}
            advantages: dict[int, list[float]] = {}
            lr = learning_rate(config.update, step, config.train.steps)
            if teach:
                tallies, advantages = self._learn(step, before, groups, teach, lr, clock)
            with clock.time("publish"):
                self.rollouts.published(self.engine.publish())
            write_rollouts(self.run.path("rollouts", step, ".jsonl"), groups, advantages)
        state = replace(before, step=step, position=sampled.position)
        metrics = {
            "kl": None,
            "grad_norm": None,
            "entropy": None,
            "seconds/score": 0.0,
            "seconds/update": 0.0,
            **summarise(tallies),
            **step_metrics(groups),
            "staleness": staleness(groups, step),
            **counts,
            **penalised,
            "updates": int(tallies.get("updates/skipped", (0, 0))[1]),
            "updates/skipped": int(tallies.get("updates/skipped", (0, 0))[0]),
            "tokens/trained": int(tallies.get("tokens/trained", (0, 0))[0]),
            "lr": lr,
            "position": sampled.position,
            "entropy_coefficient": before.entropy_coefficient,
            **{f"seconds/{part}": seconds for part, seconds in clock.seconds.items()},
            **sampled.ledger,
            "seconds/idle_sampler": self.rollouts.idle_seconds(),
            **memory_metrics(self.engine.memory()),
        }
        if config.entropy.target is not None and metrics["entropy"] is not None:
            state = replace(
                state,
                entropy_coefficient=adapt_entropy_coefficient(
                    before.entropy_coefficient,
                    metrics["entropy"],
                    target=config.entropy.target,
                    delta=config.entropy.delta,
                ),
            )
        due = config.eval.every and step % config.eval.every == 0
        if self.data.evaluate and (due or step == config.train.steps):
            state = self._evaluate(state, metrics)
        else:
            self._log(step, metrics)
        return state

    def _learn(
        self,
        step: int,
        state: State,
        groups: Sequence[Group],
        teach: Sequence[Group],
        lr: float,
        clock: Clock,
    ) -> tuple[Tallies, dict[int, list[float]]]:
        """All optimizer steps of a step; returns their tallies and the advantages by group."""
        config, advantage = self.config, choose_advantage(self.config)
        greedy, errors = None, 0
        if needs_greedy(advantage):
            with clock.time("rollout"):
                rewards = greedy_rewards(
                    self.engine, self.verifiers, teach, self.data.render, config.rollout
                )
            teach = [group for group, r in zip(teach, rewards, strict=True) if r is not None]
            greedy = [reward for reward in rewards if reward is not None]
            errors = len(rewards) - len(greedy)
        own: Tallies = {"groups/greedy_error": (float(errors), 1.0)} if greedy is not None else {}
        if not teach:
            return own, {}
        advantages = group_advantages(teach, advantage, greedy_rewards=greedy)
        batch = to_batch(teach, advantages, mask_truncated=config.rollout.overlong.mask)
        with clock.time("score"):
            batch = self._score(batch)
        own |= sampler_kl(batch)
        with clock.time("update"):
            tallies = [
                self.engine.update(part, lr=lr, entropy_coefficient=state.entropy_coefficient)
                for part in self._minibatches(batch, step)
            ]
        if config.log.arrays_every and step % config.log.arrays_every == 0:
            self._keep_arrays(batch, step)
        return add_tallies([*tallies, own]), advantages_by_place(groups, teach, advantages)

    def _score(self, batch: TokenBatch) -> TokenBatch:
        """Old and reference log-probs, where something will read them."""
        config = self.config
        cuts = math.ceil(len(batch.prompt_lengths) / config.update.minibatch)
        several = cuts * config.update.passes > 1
        mismatched = config.mismatch.kind != "none"
        old = config.update.old_logp == "score" and (several or mismatched)
        if config.update.old_logp == "score" and not several:
            # In bfloat16 the sampler's log-probs are further off than a narrow clip from 1.
            batch = replace(batch, on_policy=True)
        if old or config.kl.used:
            batch = self.engine.score(batch, old=old, reference=config.kl.used)
        if mismatched:
            weights = correction_weights(
                batch.old_logp,
                batch.sampler_logp,
                batch.sequence_ids,
                kind=config.mismatch.kind,
                level=config.mismatch.level,
                low=config.mismatch.low,
                high=config.mismatch.high,
            )
            batch = replace(batch, correction=weights)
        return batch

    def _minibatches(self, batch: TokenBatch, step: int) -> Iterator[TokenBatch]:
        """The optimizer steps' data, pass by pass, each pass in an order of its own."""
        config, seed = self.config, self.config.train.seed
        pick = choose_pick(config)
        for number in range(config.update.passes):
            order = permutation(len(batch.prompt_lengths), "pass", seed, step, number).tolist()
            parts = minibatches(
                batch,
                problems=config.update.minibatch,
                average=config.update.average,
                constant=config.update.constant or config.rollout.max_tokens,
                order=order,
            )
            for place, part in enumerate(parts):
                if pick is not None:
                    drawn = uniforms(len(part.tokens), "pick", seed, step, number, place)
                    part = pick_tokens(part, pick, torch.from_numpy(drawn).float())
                yield part

    def _keep_arrays(self, batch: TokenBatch, step: int) -> None:
        """Per-token numbers of the first groups, with log-probs from before and after the step."""
        chosen = torch.nonzero(batch.prompt_index < self.config.log.arrays_groups).flatten()
        part = take(batch, chosen)
        after = self.engine.score(part, old=True, reference=False)
        arrays = {
            "prompt_tokens": part.prompt_tokens,
            "prompt_lengths": part.prompt_lengths,
            "prompt_index": part.prompt_index,
            "token_ids": part.tokens,
            "lengths": part.lengths,
            "advantages": part.advantages,
            "sampler_logp": part.sampler_logp,
            "old_logp": part.old_logp,
            "old_entropy": part.old_entropy,
            "new_logp": after.old_logp,
            "new_entropy": after.old_entropy,
        }
        if part.ref_logp is not None:
            arrays["ref_logp"] = part.ref_logp
        path = self.run.path("rollouts", step, ".npz")
        write_arrays(path, {name: np.asarray(value) for name, value in arrays.items()})

    def _evaluate(self, state: State, metrics: dict[str, Any]) -> State:
        start = time.perf_counter()

        def may_go_on() -> None:
            # Before the first step nothing is lost; later, the step is finished and checkpointed.
            if self.stop.signal and state.step == 0:
                raise Interrupted

        evaluation, groups = evaluate_data(
            self.engine, self.verifiers, self.data, self.config, self.terminal, check=may_go_on
        )
        write_evaluation(self.run.path("eval", state.step, ".json"), evaluation, groups)
        # What few verdicts are left would make a score, perhaps the best one, but no measurement.
        check_errors(verdicts_of(groups), self.config.verify.max_error_share)
        best = state.best_score is None or evaluation.score["mean"] > state.best_score
        if best:
            state = replace(state, best_score=evaluation.score["mean"], best_step=state.step)
        scores = {f"eval/{name}": value for name, value in evaluation.score.items()}
        scores["eval/truncated"] = evaluation.truncated
        seconds = {"seconds/eval": time.perf_counter() - start}
        self._log(state.step, {**metrics, **scores, **seconds})
        return state

    def _log(self, step: int, metrics: dict[str, Any]) -> None:
        metrics = {name: _json_number(value) for name, value in metrics.items()}
        self.run.log(step, metrics)
        numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
        for sink in self.sinks:
            sink.log(step, numbers)
        self.terminal.say(step_line(step, self.config.train.steps, metrics))


def learning_rate(update: UpdateConfig, step: int, steps: int) -> float:
    """Rises over `warmup` training steps, then stays, or falls to 0 at the end of the run."""
    if step <= update.warmup:
        return update.learning_rate * step / update.warmup
    done = (step - 1 - update.warmup) / max(1, steps - update.warmup)
    if update.schedule == "cosine":
        return update.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    if update.schedule == "linear":
        return update.learning_rate * (1 - done)
    return update.learning_rate


def advantages_by_place(
    groups: Sequence[Group], teach: Sequence[Group], advantages: Sequence[list[float]]
) -> dict[int, list[float]]:
    """The advantages of the groups that teach, under their places among all.

    Groups are told apart by their completions: one problem can stand in a step twice, and shaping
    makes new groups of the same completions.
    """
    first = [id(group.rollouts[0].completion) for group in groups]
    places = [first.index(id(group.rollouts[0].completion)) for group in teach]
    return dict(zip(places, advantages, strict=True))


def step_metrics(groups: Sequence[Group]) -> dict[str, Any]:
    """What was sampled and how it was judged; errors are in no mean, and counted.

    Where the sampler does not know its entropies (NaN), their mean is left out: the learner's
    stands for it.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    judged = [rollout for rollout in rollouts if rollout.verdict.outcome != "error"]
    lengths = [len(rollout.completion.token_ids) for rollout in rollouts]
    outcomes = [rollout.verdict.outcome for rollout in rollouts]
    entropies = np.concatenate([rollout.completion.entropies for rollout in rollouts])
    entropy = float(entropies.mean(dtype=np.float64))
    text = summarise(text_tallies([rollout.completion.text for rollout in rollouts]))
    return {
        "reward/mean": _mean([rollout.reward for rollout in judged]),
        "accuracy": _mean([rollout.verdict.score for rollout in judged]),
        **({} if math.isnan(entropy) else {"entropy": entropy}),
        "response_length/mean": _mean(lengths),
        "response_length/max": max(lengths),
        "truncated": _mean([rollout.completion.stop == "length" for rollout in rollouts]),
        **text,
        **{f"verdicts/{name}": outcomes.count(name) for name in OUTCOMES},
        "tokens/generated": sum(lengths),
    }


def step_line(step: int, steps: int, metrics: dict[str, Any]) -> str:
    """A step in one line of at most 80 characters; the interval of a score only where it fits."""
    parts = [f"step {step:>{len(str(steps))}}/{steps}"]
    if "accuracy" in metrics:
        accuracy, entropy = (
            math.nan if metrics[name] is None else metrics[name] for name in ("accuracy", "entropy")
        )
        parts += [
            f"accuracy {accuracy:.3f}",
            f"entropy {entropy:.2f}",
            f"length {metrics['response_length/mean']:.1f}",
            f"{metrics['seconds/step']:.1f} s",
        ]
    if "eval/mean" in metrics:
        low, high = metrics["eval/low"], metrics["eval/high"]
        parts.append(f"eval {metrics['eval/mean']:.3f}")
        interval = f" [{low:.3f}, {high:.3f}]"
        if len("  ".join(parts)) + len(interval) <= 80:
            parts[-1] += interval
    return "  ".join(parts)


def memory_metrics(held: Mapping[str, int]) -> dict[str, float]:
    """Peaks of an engine's processes in GB (10^9 bytes): the largest one, and all together.

    Together they are more than was ever held at once: peaks come at different times, and what
    processes share (libraries, weights on their way) is counted in each.
    """
    return {"memory/peak_gb": max(held.values()) / 1e9, "memory/all_gb": sum(held.values()) / 1e9}


def _json_number(value: Any) -> Any:
    """JSON knows neither NaN nor infinity; a metric that is no number is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def staleness(groups: Sequence[Group], step: int) -> float | None:
    """Mean number of steps by which completions are older than the weights that learn from them."""
    versions = [r.completion.policy_version for group in groups for r in group.rollouts]
    return _mean([step - 1 - version for version in versions])


def _mean(values: Sequence[float]) -> float | None:
    return float(sum(values)) / len(values) if values else None


@contextmanager
def _stop_requests() -> Iterator[Stop]:
    """SIGTERM and Ctrl-C are noted in what is yielded; a second one stops at once."""
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        at_once = stop.signal or not stop.waits
        stop.signal = number
        if at_once:
            raise KeyboardInterrupt(number)
        print(
            "\nstopping at the next safe point, with a checkpoint; again to stop at once",
            file=sys.stderr,
            flush=True,
        )

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
