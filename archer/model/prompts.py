"""From a problem's prompt to the tokens that the model is asked with.

A prompt is rendered to text once and that text is tokenised once. Whatever special tokens a chat
template needs it writes itself, so nothing is added to its text; raw text gets the tokenizer's bos
token in front, if the tokenizer has such a habit and the text does not begin with it already.

Special tokens spelled out inside a problem's text are read as such; cutting over-long prompts and
deciding what to do about them is the caller's business.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32
from jinja2 import TemplateError

from archer.types import Message

FIXED_DATE = "26 Jul 2024"
"""What a chat template gets when it asks for today: the same run must ask the same every day."""

BAD_EXPRESSION = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What an expression in a template raises by itself."""

_DATE_MACRO = "{% macro strftime_now(format) %}" + FIXED_DATE + "{% endmacro %}\n"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RenderedPrompt:
    """A prompt as the model reads it.

    Example, "2+3=" for the tiny model:
        RenderedPrompt(token_ids=[1, 7, 43, 8, 47, 2], text="<user>2+3=<assistant>",
                       in_thought=False)
    """

    token_ids: Int32[np.ndarray, " prompt"]
    text: str
    """What was tokenised, without a bos token that the tokenizer put in front."""
    in_thought: bool
    """Whether the text has opened a `<think>` for the answer and not closed it."""
    messages: tuple[Message, ...] = ()
    """The chat itself, where a server renders it (`MessageRenderer`); there are no tokens then."""


class Renderer:
    """Renders prompts for one tokenizer and one setting of the prompt knobs.

    Args:
        tokenizer: a Hugging Face tokenizer.
        system: the system message; put in front where the prompt has none. None adds nothing (a
            chat template may then write one of its own), "" is an empty system message.
        suffix: appended as it is to the (last) user message.
        template: "model" for the tokenizer's own chat template; "raw" for no chat at all, which is
            system, prompt and suffix one behind the other with nothing between; or the path of a
            Jinja file.
        template_args: further variables of the template, `{"enable_thinking": False}`.

    Raises:
        ValueError: no chat template, no such file, Jinja that does not parse, an argument that the
            template does not read.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        system: str | None = None,
        suffix: str = "",
        template: str = "model",
        template_args: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._system = system
        self._suffix = suffix
        self._arguments = dict(template_args or {})
        self._origin = template if template in ("model", "raw") else "file"
        self._source = _template_source(tokenizer, template)
        _check_arguments(tokenizer, self._source, self._arguments)
        self.render("2+3=")  # a template that cannot render at all is found out here

    def render(self, prompt: str | Sequence[Message]) -> RenderedPrompt:
        """Render a string (one user message) or a chat (used as it is).

        Raises:
            ValueError: the chat does not fit the template, has no user message for the suffix, or
                nothing is left to ask.
        """
        messages = _messages(prompt, self._system, self._suffix)
        if self._source is None:
            text = _plain_text(messages)
            token_ids = self._raw_tokens(text)
            answer_start = text
        else:
            text = self._apply(messages, answering=True)
            token_ids = self._tokens(text)
            # Only what the template adds for the answer counts: a question may speak of <think>.
            asked = self._apply(messages, answering=False)
            answer_start = text.removeprefix(asked) or text
        if not token_ids:
            raise ValueError(f"the prompt {prompt!r} renders to no token: give it some text")
        return RenderedPrompt(
            token_ids=np.asarray(token_ids, dtype=np.int32),
            text=text,
            in_thought=answer_start.rfind("<think>") > answer_start.rfind("</think>"),
        )

    def describe(self) -> dict[str, Any]:
        """What decides the rendering, tokenizer aside, as JSON values for hashes and results."""
        source = (self._source or "").encode()
        return {
            "template": self._origin,
            "template_hash": hashlib.blake2b(source, digest_size=16).hexdigest(),
            "template_args": dict(self._arguments),
            "system": self._system,
            "suffix": self._suffix,
        }

    def _apply(self, messages: list[dict[str, str]], *, answering: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                chat_template=self._source,
                add_generation_prompt=answering,
                tokenize=False,
                **self._arguments,
            )
        except (TemplateError, *BAD_EXPRESSION) as error:
            raise ValueError(
                f"the chat template cannot render {messages!r} ({_one_line(error)}): "
                "change the prompt, prompt.system or prompt.template"
            ) from error
        return str(text)

    def _tokens(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def _raw_tokens(self, text: str) -> list[int]:
        tokens = self._tokens(text)
        bos = self._tokenizer.bos_token_id
        # An empty text shows what the tokenizer adds; an eos behind the prompt is never wanted.
        adds_bos = bos is not None and self._tokenizer.encode("")[:1] == [bos]
        return [bos, *tokens] if adds_bos and tokens[:1] != [bos] else tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageRenderer:
    """Stands in for a `Renderer` where a server's own template renders the chat.

    Example: MessageRenderer(system="Think.", suffix="") makes of "2+3=" the messages
    {"role": "system", "content": "Think."} and {"role": "user", "content": "2+3="}.
    """

    system: str | None = None
    suffix: str = ""

    def render(self, prompt: str | Sequence[Message]) -> RenderedPrompt:
        """The messages; ValueError for a chat without a user message for the suffix."""
        return RenderedPrompt(
            token_ids=np.zeros(0, dtype=np.int32),
            text="",
            in_thought=False,
            messages=tuple(_messages(prompt, self.system, self.suffix)),
        )

    def describe(self) -> dict[str, Any]:
        """What `Renderer.describe` says, as far as it is known."""
        return {
            "template": "server",
            "template_hash": "",
            "template_args": {},
            "system": self.system,
            "suffix": self.suffix,
        }


def _messages(
    prompt: str | Sequence[Message], system: str | None, suffix: str
) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        messages = [{"role": "user", "content": prompt}]
    else:
        messages = [dict(message) for message in prompt]
    if suffix:
        asked = [message for message in messages if message["role"] == "user"]
        if not asked:
            raise ValueError(
                f"the chat {prompt!r} has no user message to append prompt.suffix to: "
                'add one, or set prompt.suffix = ""'
            )
        asked[-1]["content"] += suffix
    if system is not None and all(m["role"] != "system" for m in messages):
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _template_source(tokenizer: Any, template: str) -> str | None:
    """The Jinja text to render with; None for "raw"."""
    if template == "raw":
        return None
    if template == "model":
        if not tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template: set "
                'prompt.template to a Jinja file, or to "raw" for a base model'
            )
        source = str(tokenizer.get_chat_template())
    else:
        try:
            source = Path(template).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"cannot read the chat template {template!r} ({_one_line(error)}): set "
                'prompt.template to "model", "raw" or the path of a Jinja file'
            ) from error
    return _DATE_MACRO + source if "strftime_now" in source else source


def _check_arguments(tokenizer: Any, source: str | None, arguments: Mapping[str, Any]) -> None:
    if source is None and arguments:
        raise ValueError(
            f'prompt.template_args = {dict(arguments)!r} does nothing with prompt.template = "raw":'
            " take it out, or name a template"
        )
    taken = set(inspect.signature(tokenizer.apply_chat_template).parameters) | {"messages"}
    for name in arguments:
        if name in taken - {"tools", "documents"}:
            raise ValueError(f"prompt.template_args may not set {name!r}: take it out")
        if not re.search(rf"\b{re.escape(name)}\b", source or ""):
            raise ValueError(
                f"the chat template reads no variable {name!r}: correct prompt.template_args"
            )


def _plain_text(messages: list[dict[str, str]]) -> str:
    roles = [message["role"] for message in messages]
    if roles not in (["user"], ["system", "user"]):
        raise ValueError(
            f"a chat with the roles {roles} has no raw form: set prompt.template to "
            '"model" or to a Jinja file'
        )
    return "".join(message["content"] for message in messages)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
