"""Grammars: GBNF checked before it is used, and made from JSON schemas."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pyllm._ffi.door import check, ffi, lib
from pyllm.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyllm._ffi.model import Model


def text_pointer(text: str, what: str) -> Any:
    """``text`` as a C string.

    Raises:
        InvalidArgumentError: a zero character, at which C would end it, or a lone surrogate.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError as cause:
        raise InvalidArgumentError(f"the {what} holds a lone surrogate at character {cause.start}", "write the whole character") from cause
    if b"\0" in data:
        raise InvalidArgumentError(f"the {what} holds a zero character at byte {data.index(0)}", "write it as \\x00")
    return ffi.new("char[]", data)


def check_grammar(text: str, model: Model | None = None) -> None:
    """Parse GBNF. ``model`` is needed only by grammars that name tokens by their text, such as ``<think>``.

    Raises:
        InvalidArgumentError: with line and column; also for left recursion and for rules that are too large once written out.
        LimitError: so ambiguous that its first step costs too much.
    """
    pointer = ffi.NULL if model is None else model._pointer  # noqa: SLF001 - handles of one module
    check(lib.pyllm_grammar_check(pointer, text_pointer(text, "grammar")))


def grammar_from_json_schema(schema: Mapping[str, Any] | str) -> str:
    """GBNF that allows exactly the JSON texts that the schema describes, with single spaces or none between their parts.

    Raises:
        InvalidArgumentError: with the place and the reason: no JSON, no schema, nothing can meet it, or a grammar cannot enforce it.
    """
    if not isinstance(schema, str):
        try:
            schema = json.dumps(schema, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as cause:
            raise InvalidArgumentError(f"the JSON schema is not JSON: {cause}", "use dict, list, str, int, float, bool and None") from cause
    pointer = text_pointer(schema, "JSON schema")
    length = ffi.new("size_t *")
    capacity = 1 << 16
    while True:
        text = ffi.new("char[]", capacity)
        check(lib.pyllm_grammar_from_json_schema(pointer, text, capacity, length))
        if length[0] < capacity:
            return bytes(ffi.string(text)).decode()
        capacity = int(length[0]) + 1
