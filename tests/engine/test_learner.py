"""The learner's gradient depends on the mini-batch alone: not on packing, order or memory knobs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from archer.algo.batch import TokenBatch, minibatches, take
from archer.algo.losses import LOSSES, PICKS
from archer.algo.objective import Objective, pick_tokens, token_gradients
from archer.engine.base import Request, Sampling
from archer.engine.learner import Learner, NonFiniteGradients
from archer.engine.sampler import Sampler
from archer.model.adapt import adapt
from archer.model.tiny import Kind, tiny_model, tiny_tokenizer

LENGTHS = [4, 1, 7, 3, 2, 6, 5, 3, 1]
PROMPTS = [5, 2, 3]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def a_batch(average: Any = "token", *, reference: bool = False) -> TokenBatch:
    """Nine sequences of three prompts; ratios leave 1, both signs of advantage, one masked out."""
    num_tokens = sum(LENGTHS)
    lengths = torch.tensor(LENGTHS)
    ids = torch.randint(
        1, 64, (sum(PROMPTS) + num_tokens,), generator=torch.Generator().manual_seed(7)
    )
    advantages = torch.repeat_interleave(
        torch.tensor([1.0, -1, 0.5, -0.7, 1.3, 0.0, -2, 0.4, 1]), lengths
    )
    # Old log-probs of a tiny random model lie around -log(64); ratios come out between 0.2 and 5.
    old_logp = -4.2 + 0.7 * random(num_tokens, seed=1)
    batch = TokenBatch(
        prompt_tokens=ids[: sum(PROMPTS)],
        prompt_lengths=torch.tensor(PROMPTS),
        prompt_index=torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2]),
        tokens=ids[sum(PROMPTS) :],
        lengths=lengths,
        counted=torch.tensor([True] * 4 + [False] + [True] * 4),
        advantages=advantages,
        weights=torch.zeros(num_tokens),
        sampler_logp=old_logp.clone(),
        old_logp=old_logp,
        old_entropy=random(num_tokens, seed=2).abs(),
        ref_logp=old_logp + 0.1 * random(num_tokens, seed=3) if reference else None,
    )
    (whole,) = minibatches(batch, problems=3, average=average, constant=8.0)
    return whole


def a_learner(objective: Objective, *, microbatch_tokens: int = 10_000, **knobs: Any) -> Learner:
    model = knobs.pop("model", None) or tiny_model("llama", tied=True)
    adapt(model)
    return Learner(model, objective, temperature=1.0, microbatch_tokens=microbatch_tokens, **knobs)


def gradient(learner: Learner, parts: list[TokenBatch]) -> Tensor:
    """Gradient of all weights, accumulated over the given parts, as one vector."""
    learner.optimizer.zero_grad(set_to_none=True)
    for part in parts:
        learner._backward(part, learner.objective)
    grads = [p.grad for p in learner.masters.values()]
    return torch.cat([torch.zeros(0), *(g.flatten() for g in grads if g is not None)])


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def an_objective(name: str) -> tuple[Objective, TokenBatch]:
    objective = Objective(
        loss=LOSSES[name], kl_knowledge=0.1, kl_reasoning=0.02, entropy_coefficient=0.01
    )
    batch = a_batch(reference=True)
    if name in PICKS:
        uniforms = torch.rand(len(batch.tokens), generator=torch.Generator().manual_seed(4))
        batch = pick_tokens(batch, PICKS[name], uniforms)
    return objective, batch


SOME = ["grpo", "aspo_archer", "gspo", "pos_resp_mean"]


@pytest.mark.parametrize(
    "name", [n if n in SOME else pytest.param(n, marks=pytest.mark.full) for n in LOSSES]
)
@pytest.mark.parametrize("average", ["token", "sequence", "constant"])
def test_micro_batches_packing_and_order_change_no_gradient(name: str, average: Any) -> None:
    objective, batch = an_objective(name)
    weights = a_batch(average).weights
    batch = replace(batch, weights=weights)
    learner = a_learner(objective)
    whole = gradient(learner, [batch])
    assert whole.norm() > 0
    rows = list(range(len(LENGTHS)))
    shuffled = [5, 0, 8, 3, 1, 7, 2, 6, 4]
    for order in (rows, shuffled):
        for size in (1, 2, 3, 8):
            cut = [take(batch, order[i : i + size]) for i in range(0, len(order), size)]
            assert relative(gradient(learner, cut), whole) < 1e-5, (size, order)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_the_packed_gradient_is_that_of_plain_full_logits_one_by_one(kind: Kind) -> None:
    """Everything archer's own, against transformers' own attention and a plain log_softmax."""
    objective, batch = an_objective("aspo_archer")
    found = gradient(a_learner(objective, model=tiny_model(kind, tied=True)), [batch])
    plain = tiny_model(kind, tied=True)
    prompts = batch.prompt_tokens.split(batch.prompt_lengths.tolist())
    for row in range(len(LENGTHS)):
        part = take(batch, [row])
        prompt = prompts[int(batch.prompt_index[row])]
        ids = torch.cat([prompt, part.tokens])[None]
        logits = plain(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        logps = torch.log_softmax(logits, -1)
        logp = logps.gather(1, part.tokens[:, None]).flatten()
        entropy = -(logps.exp() * logps).sum(-1)
        given = token_gradients(objective, logp.detach(), entropy.detach(), part)
        assert given.d_entropy is not None
        torch.autograd.backward([logp, entropy], [given.d_logp, given.d_entropy])
    expected = torch.cat([p.grad.flatten() for p in plain.parameters()])
    assert relative(found, expected) < 1e-5


def test_the_token_budget_changes_no_step() -> None:
    objective, batch = an_objective("archer")
    weights = []
    for tokens in (1, 12, 10_000):
        learner = a_learner(objective, microbatch_tokens=tokens)
        for _ in range(3):
            learner.update(batch, lr=1e-3)
        weights.append(torch.cat([p.detach().flatten() for p in learner.masters.values()]))
    assert relative(weights[0], weights[2]) < 1e-5
    assert relative(weights[1], weights[2]) < 1e-5


def test_score_gives_the_log_probs_of_update_in_the_batch_order() -> None:
    objective, batch = an_objective("grpo")
    learner = a_learner(objective, microbatch_tokens=12)
    logp, entropy = learner.score(batch)
    expected_logp, expected_entropy = learner.log_probs(batch)
    assert torch.allclose(logp, expected_logp.detach(), atol=1e-5)
    assert torch.allclose(entropy, expected_entropy.detach(), atol=1e-5)


def test_sequences_without_a_gradient_are_not_computed_and_still_count() -> None:
    batch = a_batch()
    idle = batch.advantages == 0
    assert idle.any()
    learner = a_learner(Objective(loss=LOSSES["grpo"]))
    found = learner.update(batch, lr=0.0)
    trained = found["tokens/trained"][0]
    counted = torch.repeat_interleave(batch.counted, batch.lengths)
    assert trained == int((counted & ~idle).sum())
    assert torch.isclose(batch.weights.sum(), torch.tensor(1.0))
    assert (batch.weights[idle & counted] > 0).all()


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.3])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_sampler_log_probs_are_the_learners(kind: Kind, temperature: float) -> None:
    model = tiny_model(kind)
    adapt(model)
    learner = Learner(
        model, Objective(loss=LOSSES["grpo"]), temperature=temperature, microbatch_tokens=64
    )
    sampler = Sampler(model, tiny_tokenizer(), stop_token_ids=(0,), cache_tokens=120)
    prompts = [np.array(p, dtype=np.int32) for p in ([7, 8, 9, 10, 11], [3], [20, 21])]
    requests = [
        Request(prompt_ids=p, in_thought=False, names=tuple((i, j) for j in range(4)))
        for i, p in enumerate(prompts)
    ]
    sampling = Sampling(max_tokens=20, temperature=temperature)
    samples = list(sampler.generate(requests, sampling, policy_version=0))
    completions = [completion for *_, completion in samples]
    lengths = torch.tensor([len(c.token_ids) for c in completions])
    tokens = torch.from_numpy(np.concatenate([c.token_ids for c in completions])).long()
    zeros = torch.zeros(len(tokens))
    batch = TokenBatch(
        prompt_tokens=torch.from_numpy(np.concatenate(prompts)).long(),
        prompt_lengths=torch.tensor([len(p) for p in prompts]),
        prompt_index=torch.tensor([request for request, *_ in samples]),
        tokens=tokens,
        lengths=lengths,
        counted=torch.ones(len(lengths), dtype=torch.bool),
        advantages=zeros,
        weights=zeros,
        sampler_logp=zeros,
        old_logp=zeros,
        old_entropy=zeros,
    )
    logp, entropy = learner.score(batch)
    sampled = torch.from_numpy(np.concatenate([c.logps for c in completions]))
    entropies = torch.from_numpy(np.concatenate([c.entropies for c in completions]))
    assert (logp - sampled).abs().max() <= 1e-4
    assert (entropy - entropies).abs().max() <= 1e-4


def test_a_gradient_that_is_not_finite_changes_nothing_and_stops_the_run_in_the_end() -> None:
    objective, batch = an_objective("grpo")
    learner = a_learner(objective, max_skipped=2)
    before = {name: p.detach().clone() for name, p in learner.masters.items()}
    broken = replace(batch, weights=batch.weights * torch.nan)
    assert learner.update(broken, lr=1.0)["updates/skipped"] == (1.0, 1.0)
    assert all(torch.equal(before[name], p) for name, p in learner.masters.items())
    learner.update(batch, lr=1e-3)
    learner.update(broken, lr=1.0)
    with pytest.raises(NonFiniteGradients, match="2 times in a row"):
        learner.update(broken, lr=1.0)


def test_a_loss_that_is_not_finite_is_no_step_though_its_gradient_is() -> None:
    """A clipped ratio that is not a number moves nothing, which is no reason to go on."""
    batch = a_batch()
    learner = a_learner(Objective(loss=LOSSES["grpo"]), max_skipped=2)
    broken = replace(batch, old_logp=batch.old_logp.index_fill(0, torch.tensor([0]), torch.nan))
    found = learner.update(broken, lr=1e-3)
    assert found["updates/skipped"] == (1.0, 1.0)
    assert learner.optimizer.state == {}
    unknown = replace(batch, advantages=batch.advantages * torch.nan)
    with pytest.raises(NonFiniteGradients):
        learner.update(unknown, lr=1e-3)


def test_an_update_without_a_step_does_not_forgive_the_skipped_ones() -> None:
    batch = a_batch()
    learner = a_learner(Objective(loss=LOSSES["grpo"]), max_skipped=2)
    broken = replace(batch, weights=batch.weights * torch.nan)
    learner.update(broken, lr=1e-3)
    idle = learner.update(replace(batch, advantages=batch.advantages * 0), lr=1e-3)
    assert idle["updates/skipped"] == (0.0, 0.0)
    with pytest.raises(NonFiniteGradients, match="2 times in a row"):
        learner.update(broken, lr=1e-3)


def test_state_goes_out_and_in_to_the_last_bit() -> None:
    objective, batch = an_objective("grpo")
    first, second = a_learner(objective), a_learner(objective)
    first.update(batch, lr=1e-2)
    second.load_state(*first.state())
    for learner in (first, second):
        learner.update(batch, lr=1e-2)
    for name, master in first.masters.items():
        assert torch.equal(master, second.masters[name])


def test_moments_come_back_to_where_the_weights_are() -> None:
    """As the optimizer's own `load_state_dict` puts them: the fused AdamW wants its step there."""
    objective, batch = an_objective("grpo")
    first, model = a_learner(objective), tiny_model("llama", tied=True).to("meta")
    model.tie_weights()
    elsewhere = a_learner(objective, model=model)
    first.update(batch, lr=1e-3)
    elsewhere.load_state(*first.state())
    _, moments, _ = elsewhere.state()
    assert moments.keys() == first.state()[1].keys()
    assert {moment.device.type for moment in moments.values()} == {"meta"}


def test_bfloat16_weights_follow_float32_masters() -> None:
    objective, batch = an_objective("grpo")
    learner = a_learner(objective, model=tiny_model("llama", tied=True).to(torch.bfloat16))
    before = {name: p.detach().clone() for name, p in learner.masters.items()}
    for _ in range(3):
        learner.update(batch, lr=1e-5)  # far below what bfloat16 can add to a weight near 1
    moved = [(p.detach() - before[name]).abs().max() for name, p in learner.masters.items()]
    assert all(p.dtype == torch.float32 for p in learner.masters.values())
    assert all(p.dtype == torch.bfloat16 for p in learner.weights.values())
    assert 2e-5 < float(max(moved)) < 4e-5
    for name, weight in learner.weights.items():
        assert torch.equal(weight, learner.masters[name].to(torch.bfloat16))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_bfloat16_scores_are_those_that_gradients_are_taken_of(kind: Kind) -> None:
    """Else ratios would not be 1 at a first update, nor KL 0 at a first step."""
    objective, batch = an_objective("grpo")
    learner = a_learner(objective, model=tiny_model(kind, tied=True).to(torch.bfloat16))
    for scored, learned in zip(learner.score(batch), learner.log_probs(batch), strict=True):
        assert torch.equal(scored, learned)


def test_checkpointing_activations_changes_no_gradient() -> None:
    objective, batch = an_objective("archer")
    plain = gradient(a_learner(objective), [batch])
    recomputed = gradient(a_learner(objective, checkpoint_activations=True), [batch])
    assert relative(recomputed, plain) < 1e-6


def test_clipping_scales_the_whole_gradient() -> None:
    objective, batch = an_objective("grpo")
    steps = []
    for limit in (1e9, 1e-9):
        learner = a_learner(objective, max_grad_norm=limit, betas=(0.0, 0.0))
        norm = learner.update(batch, lr=0.0)["grad_norm"][0]
        moments = learner.state()[1]
        steps.append(
            (norm, torch.cat([v.flatten() for k, v in moments.items() if k.endswith("exp_avg")]))
        )
    assert steps[0][0] == steps[1][0]
    assert torch.isclose(steps[1][1].norm(), torch.tensor(1e-9), rtol=1e-3)


def test_with_two_threads_the_gradient_is_the_same_to_the_last_bit() -> None:
    """64 answers to one prompt: gradients of all their first tokens meet in one row."""
    learner = a_learner(Objective(loss=LOSSES["grpo"]), model=tiny_model("llama", hidden=512))
    answers, length = 64, 24
    tokens = torch.arange(answers * length) % 60
    batch = TokenBatch(
        prompt_tokens=torch.arange(9),
        prompt_lengths=torch.tensor([9]),
        prompt_index=torch.zeros(answers, dtype=torch.int64),
        tokens=tokens,
        lengths=torch.full((answers,), length),
        counted=torch.ones(answers, dtype=torch.bool),
        advantages=random(answers, seed=0).repeat_interleave(length),
        weights=torch.zeros(len(tokens)),
        sampler_logp=torch.full((len(tokens),), -4.0),
        old_logp=torch.full((len(tokens),), -4.0),
        old_entropy=torch.ones(len(tokens)),
    )
    (whole,) = minibatches(batch, problems=1, average="token")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, *others = [gradient(learner, [whole]) for _ in range(12)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(other, first) for other in others)
