"""Chat messages to a prompt, with the model's own jinja template."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pyllm.errors import InvalidArgumentError
from pyllm.slots import common_prefix

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
    """Tokens of ``messages`` (dicts with ``role`` and ``content``) followed by the opening of the assistant's turn; ``variables`` go to the template.

    Raises:
        NotFoundError: the model carries no chat template.
        InvalidArgumentError: malformed messages, or the template refuses them.
    """
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidArgumentError(f"message {place} is not a dict with a `role`", "write {'role': 'user', 'content': '…'}")
    if not messages:
        raise InvalidArgumentError("there are no messages", "give at least one {'role': 'user', 'content': '…'}")
    text = _text(model, messages, **variables)
    vocab = model.vocab
    bos = model.piece(vocab.bos, special=True).decode() if vocab.bos is not None else ""
    # A template that writes BOS itself would otherwise have it twice.
    if vocab.add_bos and bos and text.startswith(bos):
        text = text[len(bos) :]
    return model.tokenize(text, add_special=True, parse_special=True)


def last_turn(model: Model, messages: Sequence[dict[str, Any]], tokens: Sequence[int]) -> int:
    """Position in ``tokens``, the rendered ``messages``, where the last message begins; 0 where that cannot be told.

    A template that refuses the conversation without its last message tells nothing.
    """
    try:
        before = render(model, messages[:-1], add_generation_prompt=False) if len(messages) > 1 else []
    except InvalidArgumentError:
        return 0
    return common_prefix(before, tokens[: len(before)])


def _text(model: Model, messages: Sequence[dict[str, Any]], **variables: Any) -> str:
    vocab = model.vocab
    bos = model.piece(vocab.bos, special=True).decode() if vocab.bos is not None else ""
    eos = model.piece(vocab.eos, special=True).decode() if vocab.eos is not None else ""
    names: dict[str, Any] = {"add_generation_prompt": True, "bos_token": bos, "eos_token": eos} | variables
    try:
        text: str = _environment().from_string(model.chat_template()).render(messages=list(messages), **names)
    except jinja2.TemplateError as failure:
        raise InvalidArgumentError(f"the model's chat template failed: {failure}", "check the messages' fields") from failure
    return text
