"""Tokens of one decode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm._ffi.door import Handle, check, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyllm._ffi.context import Context

LOGITS = {"none": 0, "last": 1, "all": 2}


class Batch(Handle):
    """Tokens of several sequences for one decode of ``context`` (``pyllm_batch``); holds at most its ``n_batch``."""

    kind = "batch"
    free = "pyllm_batch_free"

    def __init__(self, context: Context) -> None:
        out = ffi.new("pyllm_batch **")
        check(lib.pyllm_batch_create(context._pointer, out))  # noqa: SLF001 - handles of one module
        super().__init__(out[0])
        self._first = ffi.new("int32_t *")

    def add(self, seq: int, pos: int, tokens: Sequence[int], logits: str = "none") -> int:
        """Append tokens of a sequence at positions ``pos``, ``pos + 1``, …; returns the batch index of the first.

        ``logits`` is ``none``, ``last`` or ``all``. Nothing is added when anything is wrong.

        Raises:
            InvalidArgumentError: an unknown token or sequence, a negative position, no tokens.
            LimitError: the batch would pass ``n_batch``.
        """
        check(lib.pyllm_batch_add(self._pointer, seq, pos, ffi.new("int32_t[]", list(tokens)), len(tokens), LOGITS[logits], self._first))
        return int(self._first[0])

    def clear(self) -> None:
        """Take all tokens out."""
        lib.pyllm_batch_clear(self._pointer)

    def __len__(self) -> int:
        return int(lib.pyllm_batch_size(self._pointer))
