"""Tiny models: the same every time, and able to learn."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from archer.model.tiny import KINDS, TOKENS, tiny, tiny_model, tiny_tokenizer

SUMS = [(a, b) for a in range(10) for b in range(10) if 1 <= a + b <= 9]


def questions() -> tuple[Tensor, Tensor]:
    """All one-digit sums as prompts, and the token of each answer."""
    tokenizer = tiny_tokenizer()
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": f"{a}+{b}="}],
            add_generation_prompt=True,
            return_dict=False,
        )
        for a, b in SUMS
    ]
    return torch.tensor(prompts), torch.tensor([TOKENS.index(str(a + b)) for a, b in SUMS])


@torch.no_grad()
def accuracy(model: Any) -> float:
    """Probability of the right digit and then the end, averaged over all sums."""
    prompts, answers = questions()
    digit = model(prompts).logits[:, -1].softmax(-1).gather(1, answers[:, None])[:, 0]
    answered = torch.cat([prompts, answers[:, None]], dim=1)
    end = model(answered).logits[:, -1].softmax(-1)[:, TOKENS.index("<eos>")]
    return float((digit * end).mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_weights_depend_on_the_seed_alone(kind: Any, tied: bool) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = tiny_model(kind, tied=tied)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    second, other = tiny_model(kind, tied=tied), tiny_model(kind, tied=tied, seed=1)
    for name, weight in first.named_parameters():
        assert torch.equal(weight, second.get_parameter(name))
        assert not torch.equal(weight, other.get_parameter(name))
    assert (first.lm_head.weight is first.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_of_order_one_and_depend_on_every_earlier_token(kind: Any) -> None:
    model = tiny_model(kind)
    tokens = torch.arange(10, 22)[None]
    with torch.no_grad():
        logits = model(tokens).logits[0, -1]
        assert 0.3 < logits.std() < 3
        for place in range(tokens.shape[1]):
            changed = tokens.clone()
            changed[0, place] = 40
            assert (model(changed).logits[0, -1] - logits).abs().max() > 1e-3


def test_the_tokenizer_reads_one_token_a_character_and_back() -> None:
    tokenizer = tiny_tokenizer()
    assert len(tokenizer) == len(set(TOKENS)) == 64
    text = "12+(3*4) = \\boxed{24},\nok? [yes]"
    tokens = tokenizer.encode(text)
    assert [TOKENS[token] for token in tokens] == list(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.decode(tokenizer.encode("<user>HI<assistant>"), skip_special_tokens=True) == (
        "hi"
    )
    assert tokenizer.encode("§") == [TOKENS.index("<unk>")]
    assert tokenizer.eos_token_id == TOKENS.index("<eos>")
    assert tokenizer.bos_token is None and tokenizer.pad_token is None


def test_chance_answers_in_form() -> None:
    assert 0.10 <= accuracy(tiny()) <= 0.14


@pytest.mark.full
def test_weights_are_the_same_in_another_process() -> None:
    program = (
        "from archer.model.tiny import tiny\n"
        "print(sum(p.double().sum().item() for p in tiny().parameters()).hex())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    expected = sum(parameter.double().sum().item() for parameter in tiny().parameters())
    assert float.fromhex(done.stdout.strip()) == expected


def test_a_few_policy_gradient_steps_teach_one_digit_sums() -> None:
    model, generator = tiny(), torch.Generator().manual_seed(0)
    prompts, answers = questions()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    before = accuracy(model)
    for _ in range(60):
        drawn = torch.randint(len(SUMS), (16,), generator=generator).repeat_interleave(8)
        logits = model(prompts[drawn]).logits[:, -1]
        with torch.no_grad():
            said = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
            reward = (said == answers[drawn]).float().view(16, 8)
            centred = reward - reward.mean(dim=1, keepdim=True)
            advantage = (centred / (reward.std(dim=1, keepdim=True) + 1e-6)).flatten()
        logp = logits.log_softmax(-1).gather(1, said[:, None])[:, 0]
        optimizer.zero_grad()
        (-(advantage * logp).mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert accuracy(model) > 2.5 * before
