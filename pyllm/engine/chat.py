"""Chat messages to a prompt, with the model's own jinja template."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pyllm.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyllm._ffi import Model


def _refuse(message: str) -> NoReturn:
    raise InvalidArgumentError(f"the chat template refuses these messages: {message}")


def _environment() -> jinja2.Environment:
    # The options and names that templates are written against: those of transformers.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: dt.datetime.now().astimezone().strftime(form)
    return environment


def render(model: Model, messages: Sequence[dict[str, Any]], **variables: Any) -> list[int]:
    """Tokens of ``messages`` (dicts with ``role`` and ``content``) followed by the opening of the assistant's turn.

    Raises:
        NotFoundError: the model carries no chat template.
        InvalidArgumentError: malformed messages, or the template refuses them.
    """
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidArgumentError(f"message {place} is not a dict with a `role`", "write {'role': 'user', 'content': '…'}")
    if not messages:
        raise InvalidArgumentError("there are no messages", "give at least one {'role': 'user', 'content': '…'}")
    vocab = model.vocab
    bos = model.piece(vocab.bos, special=True).decode() if vocab.bos is not None else ""
    eos = model.piece(vocab.eos, special=True).decode() if vocab.eos is not None else ""
    try:
        text = (
            _environment()
            .from_string(model.chat_template())
            .render(messages=list(messages), add_generation_prompt=True, bos_token=bos, eos_token=eos, **variables)
        )
    except jinja2.TemplateError as failure:
        raise InvalidArgumentError(f"the model's chat template failed: {failure}", "check the messages' fields") from failure
    # A template that writes BOS itself would otherwise have it twice.
    if vocab.add_bos and bos and text.startswith(bos):
        text = text[len(bos) :]
    return model.tokenize(text, add_special=True, parse_special=True)
