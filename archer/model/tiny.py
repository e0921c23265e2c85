"""Tiny random models made on the spot: for tests, and for the recipe that runs in a minute.

`tiny_model` makes small instances of the real transformers classes. `tiny` is the model of the
name "tiny": a Llama of 0.1 million weights with one token a character, that answers at random but
in form (one digit, then the end), so that reinforcement learning finds something to reward in its
first step. All weights come from a hash of (seed, parameter name): no global random state is read
or changed, and neither the order of the parameters nor the library's own initialisation matters.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, Literal

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

Kind = Literal["llama", "qwen2", "qwen3"]

KINDS: dict[Kind, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}

SPECIAL_TOKENS = ("<eos>", "<user>", "<assistant>", "<system>", "<unk>")
DIGITS = "0123456789"
CHARACTERS = DIGITS + "abcdefghijklmnopqrstuvwxyz" + " \n+-*/=()<>{}[]\\^.,:?!'"
TOKENS = (*SPECIAL_TOKENS, *CHARACTERS)
"""64 of them; a token's place is its id."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<' + message['role'] + '>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<eos>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def tiny(*, seed: int = 0) -> Any:
    """The model of the name "tiny": random, but it answers with one digit and then stops.

    Its first token is nearly always one of the digits 1 to 9, all about equally likely, and the
    next one nearly always `<eos>`: a question whose answer
    is a digit is answered right by chance about once in nine times.

    Returns a `LlamaForCausalLM` in float32 on the CPU, for the tokenizer of `tiny_tokenizer`.
    """
    model = tiny_model("llama", seed=seed, vocabulary=len(TOKENS))
    with torch.no_grad():
        _teach_form(model, seed)
    return model


def tiny_model(
    kind: Kind = "llama",
    *,
    tied: bool = False,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    intermediate: int = 128,
    vocabulary: int = 64,
    max_positions: int = 512,
    seed: int = 0,
) -> Any:
    """A small instance of a real class, with random weights and biases, in float32 on the CPU.

    Logits are of order one, so that a mistake in attention, positions or norms shows.
    """
    config_class, model_class = KINDS[kind]
    config = config_class(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max_positions,
        tie_word_embeddings=tied,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=TOKENS.index("<eos>"),
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):  # the constructor draws from the global state
        model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_weights(seed, name, parameter.shape))
    return model


def tiny_tokenizer() -> Any:
    """One token a character, 64 in all; capital letters are read as small ones.

    A character outside `CHARACTERS` becomes `<unk>`. There is no bos token and no pad token.
    """
    vocabulary = {token: place for place, token in enumerate(TOKENS)}
    backend: Any = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>", "<system>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _normal(seed: int, name: str, *shape: int) -> Tensor:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(shape, generator=generator)


def _weights(seed: int, name: str, shape: torch.Size) -> Tensor:
    drawn = _normal(seed, name, *shape)
    if name.endswith("norm.weight"):
        return 1.0 + 0.1 * drawn
    if name.endswith("bias"):
        return 0.1 * drawn
    if "embed_tokens" in name:
        return 0.2 * drawn
    return drawn / math.sqrt(shape[-1])


def _teach_form(model: Any, seed: int) -> None:
    """Make the last token decide the form of the next: `<assistant>` a digit, a digit `<eos>`.

    Two coordinates of the residual stream carry it. Digits are embedded on a smooth curve, near
    numbers near each other, because from unrelated vectors sums take many times as many samples
    to learn.
    """
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    asked, answered = 0, 1
    assistant, end = TOKENS.index("<assistant>"), TOKENS.index("<eos>")
    digits = [TOKENS.index(digit) for digit in DIGITS]
    zero, others = digits[0], digits[1:]

    embedding[digits] = 0.6 * _curve(seed, "embedding", embedding.shape[1])
    head[digits] = 0.04 * _curve(seed, "head", head.shape[1])
    embedding[:, [asked, answered]] = 0.0
    head[:, [asked, answered]] = 0.0
    embedding[assistant, asked] = 4.0
    embedding[digits, answered] = 4.0
    head[others, asked] = 2.0
    head[zero, asked] = 1.5
    head[end, answered] = 2.5
    for layer in model.model.layers:  # so quiet that the habit above decides at first
        layer.self_attn.o_proj.weight *= 0.5
        layer.mlp.down_proj.weight *= 0.5


def _curve(seed: int, name: str, size: int) -> Tensor:
    """Ten points of a random smooth curve: three cosines over the digits, shape 10 by `size`."""
    places = (torch.arange(10) + 0.5) / 10
    waves = torch.stack([torch.cos(math.pi * turns * places) for turns in (1, 2, 3)], dim=1)
    return torch.mm(waves, _normal(seed, f"curve of the {name}", 3, size))
