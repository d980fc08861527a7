"""Selectors of other engines, as files under ``repro/engines``: what a reported engine does with an attention node.

A file has ``rows`` in priority order; the first whose conditions all hold decides, and the last one takes every node. ``when`` compares axes of
``pyllm.routes.axes`` with constants: a list means one of these, a mapping has ``not``, ``min``, ``max``, ``multiple_of`` and
``not_multiple_of``. ``then`` is a route of that engine or a hole, which has its ``site`` in the source and says why. ``shows`` are
nodes with what is known to come of them; ``tests/repro`` decides each of them again.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from pyllm.errors import ConfigError, NotFoundError
from pyllm.repro.document import read
from pyllm.repro.part import Part, near, refuse, translate
from pyllm.routes.axes import FLOAT_TYPES, INDEX, KV_TYPES, axis
from pyllm.routes.condition import Condition
from pyllm.routes.devices import resolve
from pyllm.routes.key import Node

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pyllm.routes.devices import Device

#: What is no route of an engine, and what becomes of a node there.
HOLES = {"abort": "the process ends", "cpu": "the node leaves the GPU", "refuse": "the node is refused"}
#: Routes that engines have; the names are their own.
ROUTES_THERE = ("vec", "tile", "mma", "wmma", "fa2-prefill", "cuda-core-decode")
#: KV cache types that other engines have and we do not. Their codes follow ours.
FOREIGN_KV_TYPES = ("turbo2", "turbo3", "turbo4", "fp8_e4m3")

_ALL_KV_TYPES = (*KV_TYPES, *FOREIGN_KV_TYPES)
_LIMITS = ("not", "min", "max", "multiple_of", "not_multiple_of")
_ALLOWED = {
    "number": "whole numbers from 0 on",
    "flag": "0 and 1",
    "head": "head dims K/V such as 512/512",
    "kv": f"types K/V such as q4_0/f16, of {', '.join(_ALL_KV_TYPES)}",
}


def encode(name: str, value: object) -> int:
    """The number that stands for ``value`` of an axis; as in ``Axis.encode``, with the other engines' KV types.

    Raises:
        ValueError: the axis has no such value; the message says which it has.
    """
    about = axis(name)
    text = str(value)
    if about.kind == "kv":
        types = text.split("/")
        if len(types) == 2 and set(types) <= set(_ALL_KV_TYPES):
            return _ALL_KV_TYPES.index(types[0]) << 8 | _ALL_KV_TYPES.index(types[1])
    elif about.kind == "word":
        if text in about.words:
            return about.encode(text)
    elif about.kind == "head":
        if re.fullmatch(r"[1-9]\d{0,3}/[1-9]\d{0,3}", text):
            return about.encode(text)
    elif type(value) is int and 0 <= value <= (1 if about.kind == "flag" else 2**31 - 1):
        return value
    raise ValueError(_ALLOWED.get(about.kind) or ", ".join(about.words))


def _code(name: str, value: object, *at: str | int) -> int:
    try:
        return encode(name, value)
    except ValueError as failure:
        raise refuse(f"axis `{name}` has no value `{value}`", f"it has {failure}", *at) from None


def _codes(name: str, values: object, *at: str) -> tuple[int, ...]:
    if not isinstance(values, list) or not values:
        raise refuse(f"axis `{name}` is compared with {values!r}", "write a list of values", *at)
    return tuple(_code(name, value, *at, place) for place, value in enumerate(values))


def _limit(name: str, word: str, value: object) -> Condition:
    if axis(name).kind != "number":
        raise refuse(f"`{word}` compares numbers, axis `{name}` has none", "write a list of values, or `not` with one", name, word)
    if word.endswith("multiple_of") and value == 0:
        raise refuse(f"{word} 0", "a divisor is at least 1", name, word)
    return Condition(name, word, (_code(name, value, name, word),))


def _conditions(when: object) -> Iterator[Condition]:
    if not isinstance(when, dict):
        raise refuse(f"`when` is {when!r}", "write a mapping of axes, {} for every node")
    for name, limits in when.items():
        if name not in INDEX:
            raise refuse(f"axis `{name}` is not known", near(str(name), list(INDEX), "axes"), str(name))
        if not isinstance(limits, dict) or not limits:
            yield Condition(name, "in", _codes(name, limits, name))
            continue
        for word, value in limits.items():
            if word not in _LIMITS:
                raise refuse(f"operator `{word}` is not known", near(str(word), list(_LIMITS), "operators"), name, str(word))
            yield Condition(name, "not_in", _codes(name, value, name, word)) if word == "not" else _limit(name, word, value)


def _known_outcome(value: str) -> str:
    known = [*HOLES, *ROUTES_THERE]
    if value not in known:
        raise refuse(f"outcome `{value}` is not known", near(value, known, "holes and routes"))
    return value


def _known_kv(value: str) -> str:
    _code("kv", value)
    return value


def _known_device(value: str) -> str:
    try:
        return resolve(value).name
    except ConfigError as failure:
        raise refuse(failure.message, failure.hint) from None


def _known_head(value: str) -> str:
    _code("head", value)
    return value


def _known_mask(value: str) -> str:
    _code("mask", value)
    return value


Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
#: ``D_k/D_v``; ``type_k/type_v`` of ours or of another engine; a word of the axis ``mask``; a device by any of its names.
HeadDims = Annotated[str, AfterValidator(_known_head)]
KvPair = Annotated[str, AfterValidator(_known_kv)]
MaskWord = Annotated[str, AfterValidator(_known_mask)]
DeviceName = Annotated[str, AfterValidator(_known_device)]


class Expected(Part):
    """What comes of a node: a route, or a hole and its site."""

    then: Annotated[str, AfterValidator(_known_outcome)]
    site: str = ""

    @model_validator(mode="after")
    def _hole_has_a_site(self) -> Expected:
        if self.hole and not self.site:
            raise refuse(f"`{self.then}` without a site", "say where in its source: `site: FILE:LINE`", "then")
        if self.site and not self.hole:
            raise refuse(f"route `{self.then}` with a site", f"a site is for a hole: {', '.join(HOLES)}", "site")
        return self

    @property
    def hole(self) -> bool:
        """Whether the engine does not run the node on the GPU."""
        return self.then in HOLES

    def __str__(self) -> str:
        return f"{self.then} at {self.site}" if self.site else self.then


class EngineRow(Expected):
    """One row: if all of ``when`` holds, ``then``."""

    when: tuple[Condition, ...]
    says: str = ""

    @field_validator("when", mode="before")
    @classmethod
    def _read(cls, value: object) -> tuple[Condition, ...]:
        return tuple(_conditions(value))

    def takes(self, codes: Sequence[int]) -> bool:
        """Whether all conditions hold."""
        return all(condition.holds(codes[INDEX[condition.axis]]) for condition in self.when)

    @model_validator(mode="after")
    def _hole_says_why(self) -> EngineRow:
        if self.hole and not self.says:
            raise refuse(f"`{self.then}` without a reason", "say why: `says: …`", "then")
        return self


class Shown(Expected):
    """A node on a device, with what is known to come of it. ``gqa`` counts query heads per KV head."""

    device: DeviceName
    head: HeadDims
    gqa: Count
    n_q: Count
    n_kv: Count
    kv: KvPair
    mask: MaskWord = "stream"

    @property
    def node(self) -> Node:
        """The node, with f16 in place of its types."""
        d_k, d_v = map(int, self.head.split("/"))
        return Node(d_k, d_v, self.gqa, 1, self.n_q, self.n_kv, mask=self.mask)


class EngineSource(Part):
    """Where the selector was read."""

    repository: str
    commit: str
    files: tuple[str, ...]
    url: str
    note: str = ""


class Engine(Part):
    """The selector of an engine."""

    engine: str
    description: str
    note: str = ""
    source: EngineSource
    rows: Annotated[tuple[EngineRow, ...], Field(min_length=1)]
    shows: tuple[Shown, ...] = ()

    @model_validator(mode="after")
    def _total(self) -> Engine:
        if self.rows[-1].when:
            raise refuse("the last row does not take every node", "end with `when: {}`", "rows", len(self.rows) - 1, "when")
        return self

    def decide(self, codes: Sequence[int]) -> tuple[int, EngineRow]:
        """What becomes of a key, whose codes ``codes_there`` makes: the number of the row that decides, from 1, and the row."""
        return next((number, row) for number, row in enumerate(self.rows, 1) if row.takes(codes))


def codes_there(device: Device, node: Node, kv: str) -> tuple[int, ...]:
    """The axes of ``node`` on ``device``, encoded, with ``kv`` in place of its types: one that only another engine has can be no type of a ``Node``."""
    codes = list(node.codes(device))
    codes[INDEX["kv"]] = encode("kv", kv)
    codes[INDEX["quantised"]] = int(not set(kv.split("/")) <= set(FLOAT_TYPES))
    return tuple(codes)


def load_engine(path: Path) -> Engine:
    """Read one engine's file.

    Raises:
        NotFoundError: there is no such file.
        ScenarioError: what is wrong, as ``FILE:LINE:COLUMN: …``.
    """
    if not path.is_file():
        raise NotFoundError(f"there is no engine file `{path}`", "selectors of reported engines are in repro/engines/")
    document = read(path)
    if not isinstance(document.value, dict):
        raise document.fault((), "an engine is a mapping", "see the other files in repro/engines/")
    try:
        return Engine.model_validate(document.value)
    except ValidationError as failure:
        raise translate(document, failure) from failure
