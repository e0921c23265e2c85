"""Whether the live weights, the sampler and an exported folder give the same log-probs.

With each checkpoint goes a file of 64 responses (`record`), sampled from the very weights that are
saved: each token's log-prob as the sampler saw it, and as the live learner scores it. An export is
loaded in a fresh process by transformers alone, without packed attention and fused head, and scores
the same tokens (`reload`); `compare` says how far the three are apart.

Only the first 64 tokens of a response are looked at: enough to find wrong weights, a wrong head,
wrong positions or a wrong temperature, and cheap enough for each checkpoint.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

import archer
from archer.algo.batch import to_batch
from archer.engine.base import Engine, Request, Sampling
from archer.randomness import permutation
from archer.rollout import Render
from archer.types import Group, Problem, Rollout, Verdict

PARITY = "parity.npz"
RESPONSES, PROMPTS, TOKENS = 64, 16, 64

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Absolute differences of log-probs, token by token, in nats."""

    max: float
    mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How far apart the log-probs of one set of tokens are, by who computed them.

    Example, 64 responses of 9 tokens each:
        Parity(responses=64, tokens=576, temperature=1.0, dtype="float32",
               live_exported=Difference(max=2.1e-6, mean=1.3e-7), live_sampler=...,
               sampler_exported=...)
    """

    responses: int
    tokens: int
    temperature: float
    dtype: str
    """Of the exported weights, in which the fresh process computed."""
    live_exported: Difference
    live_sampler: Difference
    sampler_exported: Difference


def record(
    engine: Engine,
    problems: Sequence[Problem],
    render: Render,
    *,
    temperature: float,
    max_tokens: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Responses to some of the problems from the present weights, with two log-probs a token.

    The draws depend on the seed and the prompts alone, and nothing else depends on them.
    """
    chosen = permutation(len(problems), "parity", seed)[:PROMPTS].tolist()
    requests = []
    for place, i in enumerate(chosen):
        prompt = render(problems[i])
        samples = RESPONSES // len(chosen) + (place < RESPONSES % len(chosen))
        names = tuple(("parity", seed, place, sample) for sample in range(samples))
        requests.append(
            Request(prompt_ids=prompt.token_ids, in_thought=prompt.in_thought, names=names)
        )
    sampling = Sampling(max_tokens=min(max_tokens, TOKENS), temperature=temperature)
    sampled = {(s.request, s.number): s.completion for s in engine.generate(requests, sampling)}
    unjudged = Verdict(outcome="no_answer", score=0.0)
    groups = [
        Group(
            problem=problems[i],
            rollouts=tuple(
                Rollout(completion=sampled[place, sample], verdict=unjudged, reward=0.0)
                for sample in range(len(requests[place].names))
            ),
        )
        for place, i in enumerate(chosen)
    ]
    batch = to_batch(groups, [[0.0] * len(group.rollouts) for group in groups])
    live = engine.score(batch, old=True, reference=False).old_logp
    arrays = {
        "prompt_tokens": batch.prompt_tokens,
        "prompt_lengths": batch.prompt_lengths,
        "prompt_index": batch.prompt_index,
        "token_ids": batch.tokens,
        "lengths": batch.lengths,
        "sampler_logp": batch.sampler_logp,
        "live_logp": live,
        "temperature": temperature,
    }
    return {name: np.asarray(value) for name, value in arrays.items()}


def reload(folder: Path, responses: Path) -> Float32[np.ndarray, "T"]:
    """Log-probs of stored responses from a Hugging Face folder, computed in a fresh process."""
    package = str(Path(archer.__file__).parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "logp.npy"
        done = subprocess.run(
            [sys.executable, "-m", "archer.parity", str(folder), str(responses), str(out)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            said = " ".join(done.stderr.strip().splitlines()[-1:])
            raise RuntimeError(
                f"{folder} could not be loaded again in a fresh process "
                f"(exit code {done.returncode}): {said}"
            )
        return np.load(out)  # type: ignore[no-any-return]


def compare(responses: Arrays, exported: Float32[np.ndarray, "T"], *, dtype: str) -> Parity:
    """The differences between what was stored with a checkpoint and what its export gives."""
    live, sampler = responses["live_logp"], responses["sampler_logp"]
    return Parity(
        responses=len(responses["lengths"]),
        tokens=len(exported),
        temperature=float(responses["temperature"]),
        dtype=dtype,
        live_exported=_difference(live, exported),
        live_sampler=_difference(live, sampler),
        sampler_exported=_difference(sampler, exported),
    )


def read_responses(path: Path) -> dict[str, np.ndarray]:
    """What `record` gave, from a checkpoint's file."""
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _difference(first: np.ndarray, second: np.ndarray) -> Difference:
    apart = np.abs(first.astype(np.float64) - second.astype(np.float64))
    return Difference(max=float(apart.max()), mean=float(apart.mean()))


# ------------------------------------------------------------------ in the fresh process


def plain_log_probs(model: Any, responses: Arrays) -> Float32[np.ndarray, "T"]:
    """Log-prob of each token, one sequence at a time, from the full logits of a plain model."""
    import torch

    prompts = np.split(responses["prompt_tokens"], np.cumsum(responses["prompt_lengths"])[:-1])
    answers = np.split(responses["token_ids"], np.cumsum(responses["lengths"])[:-1])
    found = []
    for prompt, answer in zip(responses["prompt_index"], answers, strict=True):
        tokens = torch.from_numpy(np.concatenate([prompts[prompt], answer])).to(model.device)
        with torch.inference_mode():
            logits = model(input_ids=tokens[None], logits_to_keep=len(answer) + 1).logits[0, :-1]
        scaled = logits.float() / float(responses["temperature"])
        logp = scaled.log_softmax(-1).gather(1, tokens[-len(answer) :, None])
        found.append(logp[:, 0].cpu().numpy())
    return np.concatenate(found)


def _main(folder: str, responses: str, out: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    np.save(out, plain_log_probs(model, read_responses(Path(responses))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
