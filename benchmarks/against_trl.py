"""A whole step, archer against TRL's GRPOTrainer: 4 prompts x 8 completions x 64 tokens.

    pip install 'trl==1.16.*' && python benchmarks/against_trl.py

The same model, prompts, tokens and threads; one optimizer step on fresh samples, no KL. Rewards are
drawn by a hash of the response, so that no group is uniform and nothing is skipped; stop tokens are
off on both sides, so both make exactly the same number of tokens. TRL is run at the micro-batch
sizes below, of which its best counts.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sides import compare
from work import TOKENS, model_and_tokenizer, questions

PROMPTS, SAMPLES = 4, 8
TRL_BATCHES = (8, 32)


def reward(response: str) -> float:
    """A number in [0, 1] that the response alone decides."""
    return hashlib.blake2b(response.encode(), digest_size=1).digest()[0] / 255


def ours() -> Callable[[], int]:
    """Steps of archer's own loop, rollout files and judged groups on disk included."""
    from archer.config import config_from
    from archer.data.problems import write_problems
    from archer.run import State, open_run
    from archer.setup import load_data, open_engine
    from archer.terminal import Terminal
    from archer.train import Loop, ProblemStream, Stop
    from archer.types import Problem

    folder = Path(tempfile.mkdtemp())
    problems = [
        Problem(id=str(i), prompt=question, verifier="exact", answer="-")
        for i, question in enumerate(questions(64))
    ]
    write_problems(folder / "problems.jsonl", problems)
    tree = {
        "model": {"name": "smollm2", "dtype": "float32"},
        "data": {"train": [{"source": str(folder / "problems.jsonl")}]},
        "rollout": {"problems": PROMPTS, "samples": SAMPLES, "max_tokens": TOKENS},
        "loss": {"name": "grpo"},
        "update": {"minibatch": PROMPTS, "learning_rate": 1e-6, "microbatch_tokens": 768},
        "train": {"steps": 10_000},
    }
    config = config_from(tree, where="benchmark")
    terminal = Terminal(quiet=True)
    data = load_data(config)
    run, state = open_run(folder / "run", config, say=terminal.say)
    engine = open_engine(config)
    engine.sampler.stop_token_ids = frozenset()
    loop = Loop(run, config, data, engine, _Hashed(), terminal, [], Stop())
    stream = ProblemStream(data.train, 0)
    states: list[State] = [state]

    def play() -> int:
        states.append(loop._step(states[-1], stream))
        return PROMPTS * SAMPLES * TOKENS

    return play


class _Hashed:
    """Verifiers that draw rewards by hash, on the spot."""

    def submit(self, problem: Any, response: str, in_thought: bool) -> Any:
        from concurrent.futures import Future

        from archer.types import Verdict

        future: Future[Verdict] = Future()
        future.set_result(Verdict(outcome="wrong", score=reward(response)))
        return future

    def ledger(self) -> dict[str, float]:
        return {}

    def close(self) -> None: ...

    def __enter__(self) -> _Hashed:
        return self

    def __exit__(self, *exception: object) -> None: ...


def trl(batch: int) -> Callable[[], int]:
    """TRL drives its own loop in a thread; it waits at the beginning of every step."""
    import datasets
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    begin, ended = threading.Semaphore(0), threading.Semaphore(0)

    class Turns(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            begin.acquire()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ended.release()

    model, tokenizer = model_and_tokenizer()
    prompts = [{"prompt": [{"role": "user", "content": q}]} for q in questions(64)]
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [reward(c[0]["content"]) for c in completions],
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=PROMPTS * SAMPLES // batch,
            num_generations=SAMPLES,
            max_completion_length=TOKENS,
            generation_kwargs={"min_new_tokens": TOKENS},
            beta=0.0,
            learning_rate=1e-6,
            max_steps=10_000,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_num_workers=0,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(prompts),
        processing_class=tokenizer,
        callbacks=[Turns()],
    )
    threading.Thread(target=trainer.train, daemon=True).start()

    def play() -> int:
        begin.release()
        ended.acquire()
        return PROMPTS * SAMPLES * TOKENS

    return play


if __name__ == "__main__":
    sides: dict[str, Callable[[], Callable[[], int]]] = {"archer": ours}
    sides |= {f"trl-{batch}": partial(trl, batch) for batch in TRL_BATCHES}
    compare(str(Path(__file__).resolve()), sides, rounds=3)
