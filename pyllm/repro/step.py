"""One step of a scenario: a verb, and what has to come of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pyllm import errors
from pyllm.repro.content import Piece  # noqa: TC001 - pydantic reads annotations at run time
from pyllm.repro.part import Part, near, refuse

Count = Annotated[int, Field(ge=1, le=100_000)]
SlotNumber = Annotated[int, Field(ge=0, le=255)]

VERBS = ("prompt", "save", "restore", "fork", "cancel", "restart", "corrupt", "wait")


class Prompt(Part):
    """A request. The prompt is ``text``, ``tokens``, ``random``, a count of tokens drawn by the scenario's seed, or ``content``, texts and images.

    ``continues`` puts the slot's conversation in front, without its last ``cut`` tokens: a chat that grows, or is
    edited. ``count`` sends as many requests at once, with other random tokens each. ``slot`` is the one that has to take it.
    ``depth`` bounds what is drafted at once for this request, 0 switches drafting off.
    """

    text: str | None = None
    tokens: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    random: Count | None = None
    content: Annotated[tuple[Piece, ...], Field(min_length=1)] | None = None
    continues: bool = False
    cut: Annotated[int, Field(ge=0)] = 0
    count: Annotated[int, Field(ge=1, le=256)] = 1
    n: Count
    temperature: Annotated[float, Field(ge=0)] = 0.0
    stop: tuple[str, ...] = ()
    stream: bool = False
    slot: SlotNumber | None = None
    depth: Annotated[int, Field(ge=0, le=4096)] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Prompt:
        given = [name for name in ("text", "tokens", "random", "content") if getattr(self, name) is not None]
        if len(given) != 1:
            raise refuse(f"a prompt has {' and '.join(given) or 'no content'}", "give one of text, tokens, random, content")
        if self.content is not None and self.continues:
            raise refuse("content continues nothing: a conversation is put in front as tokens, and an image has none", "write the conversation as content")
        if self.cut and not self.continues:
            raise refuse(f"cut {self.cut} cuts nothing", "it shortens the conversation that `continues: true` puts in front")
        if self.count > 1 and (self.random is None or self.continues):
            raise refuse(
                f"count {self.count} would send the same prompt {self.count} times",
                "use it with random, and without continues",
            )
        return self


class Cancel(Prompt):
    """A request that is left after ``after`` tokens."""

    after: Count

    @model_validator(mode="after")
    def _alone(self) -> Cancel:
        if self.count > 1:
            raise refuse(f"count {self.count}: one request is cancelled at a time", "leave count out")
        if self.after >= self.n:
            raise refuse(f"after {self.after} tokens a request for n {self.n} is complete", "use a larger n")
        return self


class Save(Part):
    """Write a slot's state to a file."""

    slot: SlotNumber
    to: str


class Restore(Part):
    """Read a slot's state from a file."""

    slot: SlotNumber
    source: str = Field(alias="from")


class Fork(Part):
    """Copy a slot's state to another slot."""

    slot: SlotNumber
    to: SlotNumber


class Corrupt(Part):
    """Damage a saved file: one field of its header gets another value."""

    file: str
    field: str
    value: int | str


class Restart(Part):
    """End the subject in an orderly way and start it again."""


class Wait(Part):
    """Do nothing for a while."""

    seconds: Annotated[float, Field(gt=0, le=60)]


class Outcome(Part):
    """What has to come of a step. Without ``error`` every request must be answered in full.

    ``error`` is a class of :mod:`pyllm.errors`; over HTTP it is any answer by which a server declines. ``says`` has to be in its text, at the
    engine level, where the text is ours. ``at_most`` lets so many of the step's requests end with the error and asks a
    full answer of the others; without it all of them have to. A crash or an internal error never is the expected one.

    ``drafts_as`` is the number of an earlier step: the drafters proposed as many tokens as there, and as many were kept. ``drafted`` is that
    number itself. ``cached`` tokens of each prompt, or more, were found and not computed again.
    """

    error: str | None = None
    at_most: Annotated[int, Field(ge=1, le=256)] | None = None
    says: str | None = None
    finish: Literal["stop", "length"] | None = None
    drafts_as: Annotated[int, Field(ge=1)] | None = None
    drafted: Annotated[int, Field(ge=0)] | None = None
    cached: Annotated[int, Field(ge=1)] | None = None

    @field_validator("error")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        known = [name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.PyllmError)]
        if value is not None and value not in known:
            raise refuse(f"error `{value}` is not known", near(value, known, "errors"))
        if value in {"InternalError", "PyllmError"}:
            raise refuse(
                f"error `{value}` may not be expected",
                "it is a defect, or could be one: name the error that the user has to see",
            )
        return value


class Step(Part):
    """Exactly one verb, and optionally ``expect``."""

    prompt: tuple[Prompt, ...] | None = None
    save: Save | None = None
    restore: Restore | None = None
    fork: Fork | None = None
    cancel: Cancel | None = None
    restart: Restart | None = None
    corrupt: Corrupt | None = None
    wait: Wait | None = None
    expect: Outcome = Outcome()

    @model_validator(mode="before")
    @classmethod
    def _written(cls, value: Any) -> Any:
        """``- restart`` stands for ``- restart: {}``, and a lone request for a list of one."""
        if isinstance(value, str):
            return {value: {}}
        if isinstance(value, dict) and "restart" in value and value["restart"] is None:
            value = value | {"restart": {}}
        if isinstance(value, dict) and isinstance(value.get("prompt"), dict):
            value = value | {"prompt": [value["prompt"]]}
        return value

    @model_validator(mode="after")
    def _one_verb(self) -> Step:
        given = [name for name in VERBS if getattr(self, name) is not None]
        if len(given) != 1:
            raise refuse(
                f"a step has {' and '.join(f'`{name}`' for name in given) or 'no verb'}",
                f"give one of {', '.join(VERBS)}",
            )
        return self

    @property
    def verb(self) -> str:
        """The verb's name."""
        return next(name for name in VERBS if getattr(self, name) is not None)
