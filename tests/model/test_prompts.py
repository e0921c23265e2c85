"""Prompts: rendered once, tokenised once, and whether they leave the model inside a thought."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from archer.model.prompts import FIXED_DATE, Renderer
from archer.model.tiny import TOKENS, tiny_tokenizer

# Templates of our own with the behaviour of three that matter; the vendors' text is longer.

R1_DISTILL = """\
{%- set state = namespace(system='') -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}{%- set state.system = message.content -%}{%- endif -%}
{%- endfor -%}
{{ bos_token }}{{ state.system }}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ '<|User|>' + message.content }}{%- endif -%}
{%- if message.role == 'assistant' -%}
{{ '<|Assistant|>' + message.content.split('</think>')[-1] + '<|end|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|Assistant|><think>\\n' }}{%- endif -%}
"""

QWEN3 = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{ '<think>\\n\\n</think>\\n\\n' }}
{%- endif -%}
{%- endif -%}
"""

SMOLLM2 = """\
{%- if messages[0].role != 'system' -%}
{{ '<|im_start|>system\\nYou are helpful<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

DATED = """\
{%- if date_string is not defined -%}{%- set date_string = strftime_now('%d %b %Y') -%}{%- endif -%}
{{ 'Today ' + date_string + '. ' + messages[-1].content }}
"""


def tokenizer_with(template: str | None, *, adds_bos: bool = False) -> Any:
    """The tiny tokenizer with another template; `<user>` serves as its bos token."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tokenizer.bos_token = "<user>"
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<user> $A <eos>", special_tokens=[("<user>", 1), ("<eos>", 0)]
        )
    return tokenizer


def test_a_string_is_one_user_message_with_the_suffix_behind_it() -> None:
    renderer = Renderer(tiny_tokenizer(), suffix=" answer:")
    rendered = renderer.render("2+3=")
    assert rendered.text == "<user>2+3= answer:<assistant>"
    assert rendered.token_ids.dtype == np.int32
    assert [TOKENS[token] for token in rendered.token_ids] == [
        "<user>", *"2+3= answer:", "<assistant>",
    ]  # fmt: skip
    assert not rendered.in_thought


def test_a_chat_is_used_as_it_is() -> None:
    chat = (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "3"},
    )
    renderer = Renderer(tiny_tokenizer(), system="not this one", suffix="!")
    text = renderer.render(chat).text
    assert text == "<system>be brief<user>1<assistant>2<eos><user>3!<assistant>"
    assert chat[-1]["content"] == "3"  # the caller's messages stay as they were


def test_the_system_knob_goes_in_front_where_there_is_none() -> None:
    assert Renderer(tiny_tokenizer(), system="s").render("q").text == "<system>s<user>q<assistant>"


def test_smollm2_writes_its_own_system_message_unless_one_is_given() -> None:
    tokenizer = tokenizer_with(SMOLLM2)
    own = Renderer(tokenizer).render("q")
    assert own.text == (
        "<|im_start|>system\nYou are helpful<|im_end|>\n"
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not own.in_thought
    empty = Renderer(tokenizer, system="").render("q").text
    assert empty.startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user")


def test_r1_distill_starts_inside_a_thought_with_one_bos() -> None:
    for adds_bos in (False, True):
        rendered = Renderer(tokenizer_with(R1_DISTILL, adds_bos=adds_bos)).render("q")
        assert rendered.text == "<user><|User|>q<|Assistant|><think>\n"
        assert rendered.in_thought
        assert list(rendered.token_ids).count(TOKENS.index("<user>")) == 1
        assert TOKENS.index("<eos>") not in rendered.token_ids


def test_qwen3_is_not_in_a_thought_whether_it_may_think_or_not() -> None:
    tokenizer = tokenizer_with(QWEN3)
    thinking = Renderer(tokenizer).render("q")
    assert thinking.text.endswith("<|im_start|>assistant\n") and not thinking.in_thought
    silent = Renderer(tokenizer, template_args={"enable_thinking": False}).render("q")
    assert silent.text.endswith("<think>\n\n</think>\n\n") and not silent.in_thought


@pytest.mark.parametrize("template", [R1_DISTILL, QWEN3, SMOLLM2])
@pytest.mark.parametrize("question", ["write <think> first", "close with </think>"])
def test_a_question_that_speaks_of_thoughts_opens_and_closes_none(
    template: str, question: str
) -> None:
    tokenizer = tokenizer_with(template)
    assert Renderer(tokenizer).render(question).in_thought == (template == R1_DISTILL)


def test_a_file_template_that_ignores_the_generation_prompt_is_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("{{ messages[0].content }} <think>\n\n")  # Jinja drops one newline at the end
    rendered = Renderer(tokenizer_with(None), template=str(file)).render("q")
    assert rendered.text == "q <think>\n"
    assert rendered.in_thought


def test_raw_is_system_prompt_and_suffix_and_nothing_else() -> None:
    tokenizer = tokenizer_with(None)
    rendered = Renderer(tokenizer, template="raw", system="s: ", suffix=" a:").render("q")
    assert rendered.text == "s: q a:"
    assert tokenizer.decode(rendered.token_ids) == "s: q a:"
    chat = [{"role": "system", "content": "x "}, {"role": "user", "content": "q"}]
    assert Renderer(tokenizer, template="raw", system="s: ").render(chat).text == "x q"


def test_raw_can_open_a_thought_for_a_base_model() -> None:
    renderer = Renderer(tokenizer_with(None), template="raw", suffix="\nassistant: <think>")
    assert renderer.render("think in <think> and </think>.").in_thought
    assert not Renderer(tokenizer_with(None), template="raw").render("q").in_thought


@pytest.mark.parametrize("text", ["q", "<user>q"])
def test_raw_gets_exactly_one_bos_and_no_eos(text: str) -> None:
    tokenizer = tokenizer_with(None, adds_bos=True)
    tokens = Renderer(tokenizer, template="raw").render(text).token_ids
    assert tokens.tolist() == [TOKENS.index("<user>"), TOKENS.index("q")]


def test_a_template_that_asks_for_the_date_gets_the_same_one_every_day() -> None:
    tokenizer = tokenizer_with(DATED)
    assert Renderer(tokenizer).render("q").text == f"Today {FIXED_DATE}. q"
    dated = Renderer(tokenizer, template_args={"date_string": "1 May 2025"})
    assert dated.render("q").text == "Today 1 May 2025. q"


def test_no_token_is_added_to_the_tokenizer() -> None:
    tokenizer = tiny_tokenizer()
    Renderer(tokenizer).render("q")
    assert len(tokenizer) == len(TOKENS) and tokenizer.pad_token is None


def test_the_description_changes_with_each_knob_and_is_json(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(QWEN3)
    tokenizer = tokenizer_with(QWEN3)
    described = [
        Renderer(tokenizer, **knobs).describe()
        for knobs in (
            {},
            {"system": ""},
            {"suffix": " "},
            {"template": "raw"},
            {"template_args": {"enable_thinking": False}},
        )
    ]
    assert all(a != b for i, a in enumerate(described) for b in described[:i])
    from_file = Renderer(tokenizer, template=str(file)).describe()
    assert from_file["template_hash"] == described[0]["template_hash"]
    assert str(tmp_path) not in str(from_file)


@pytest.mark.parametrize(
    ("template", "knobs", "prompt", "message"),
    [
        (None, {}, "q", "no chat template: set prompt.template"),
        (
            QWEN3,
            {"template": "missing.jinja"},
            "q",
            "cannot read the chat template 'missing.jinja'",
        ),
        ("{% if %}", {}, "q", "cannot render"),
        (QWEN3, {"template_args": {"enable_thinkin": 1}}, "q", "no variable 'enable_thinkin'"),
        (QWEN3, {"template_args": {"tokenize": 1}}, "q", "may not set 'tokenize'"),
        (QWEN3, {"template_args": {"messages": []}}, "q", "may not set 'messages'"),
        (QWEN3, {"template": "raw", "template_args": {"a": 1}}, "q", "does nothing"),
        (QWEN3, {"suffix": "!"}, [{"role": "system", "content": "s"}], "no user message"),
        ("{{ raise_exception('only users') }}", {}, "q", "only users"),
        ("{{ 1 / messages[0].content.find('2') }}", {}, "2", "division by zero"),
        (None, {"template": "raw"}, "", "renders to no token"),
        (None, {"template": "raw"}, [{"role": "assistant", "content": "s"}], "no raw form"),
    ],
)
def test_bad_input_gets_one_line_with_the_cure(
    template: str | None, knobs: dict[str, Any], prompt: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Renderer(tokenizer_with(template), **knobs).render(prompt)
    assert "\n" not in str(caught.value)
