"""Drafters: prediction heads (MTP), DFlash blocks and n-gram lookup, for all slots at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyllm._ffi.door import Handle, check, ffi, kv_type, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyllm._ffi.batch import Batch
    from pyllm._ffi.context import Context
    from pyllm._ffi.model import Model


@dataclass(frozen=True)
class DrafterInfo:
    """What a drafter turned out to be. ``n_max`` is the depth after the limits of block size and chained heads."""

    n_max: int
    n_seq: int
    n_ubatch: int
    has_context: bool
    shares_memory: bool
    chained_heads: bool
    can_shift: bool


@dataclass(frozen=True)
class DrafterStats:
    """Counts over all sequences since creation."""

    n_drafts: int
    n_drafted: int
    n_accepted: int
    n_failures: int


@dataclass(frozen=True)
class DraftRequest:
    """Wish for at most ``n_max`` tokens after ``last``, which stands at position ``pos`` and is not in the memory yet."""

    seq: int
    last: int
    pos: int
    n_max: int


class Drafter(Handle):
    """Drafts for the sequences of ``target`` (``pyllm_drafter``).

    ``types`` are upstream's names in order of priority. ``model`` is the draft model; leave it out for heads inside the
    target's file and for n-gram types.

    Raises:
        UnsupportedError: the model has no such heads, or its architecture cannot hand out what the drafter reads.
        IncompatibleError: a drafter of another vocabulary, width or architecture.
        InvalidArgumentError: an unknown type, a size out of range.
    """

    kind = "drafter"
    free = "pyllm_drafter_free"

    def __init__(
        self,
        target: Context,
        types: Sequence[str],
        model: Model | None = None,
        *,
        n_max: int = 0,
        n_min: int = 0,
        p_min: float = 0.0,
        ngram_size_n: int = 0,
        ngram_size_m: int = 0,
        ngram_min_hits: int = 0,
        type_k: str = "f16",
        type_v: str = "f16",
        n_threads: int = 0,
    ) -> None:
        params = ffi.new("pyllm_drafter_params *", lib.pyllm_drafter_params_default())
        names = ffi.new("char[]", ",".join(types).encode())
        params.types = names
        params.n_max = n_max
        params.n_min = n_min
        params.p_min = p_min
        params.ngram_size_n = ngram_size_n
        params.ngram_size_m = ngram_size_m
        params.ngram_min_hits = ngram_min_hits
        params.type_k = kv_type(type_k)
        params.type_v = kv_type(type_v)
        params.n_threads = n_threads
        out = ffi.new("pyllm_drafter **")
        draft_model = model._pointer if model is not None else ffi.NULL  # noqa: SLF001 - handles of one module
        check(lib.pyllm_drafter_create(target._pointer, draft_model, params, out))  # noqa: SLF001
        super().__init__(out[0])
        info = self.info
        self._rows = [ffi.new("int32_t[]", max(1, info.n_max)) for _ in range(info.n_seq)]
        self._requests = ffi.new("pyllm_draft_request[]", info.n_seq)
        self._n_max = info.n_max

    @property
    def info(self) -> DrafterInfo:
        """What the drafter turned out to be."""
        info = ffi.new("pyllm_drafter_info *")
        check(lib.pyllm_drafter_get_info(self._pointer, info))
        return DrafterInfo(**{name: getattr(info, name) for name in DrafterInfo.__dataclass_fields__})

    @property
    def stats(self) -> DrafterStats:
        """Counts since creation."""
        stats = ffi.new("pyllm_drafter_stats *")
        check(lib.pyllm_drafter_get_stats(self._pointer, stats))
        return DrafterStats(**{name: int(getattr(stats, name)) for name in DrafterStats.__dataclass_fields__})

    def process(self, batch: Batch) -> None:
        """Take over what the target's last decode, of this batch, has computed. Call it after every decode, prefill too."""
        check(lib.pyllm_drafter_process(self._pointer, batch._pointer))  # noqa: SLF001 - handles of one module

    def begin(self, seq: int, tokens: Sequence[int]) -> None:
        """A sequence starts to generate; ``tokens`` are those that its target memory holds."""
        check(lib.pyllm_drafter_begin(self._pointer, seq, ffi.new("int32_t[]", list(tokens)), len(tokens)))

    def draft(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        """Draft for all requests in one go. A failing drafter gives an empty draft and counts it in ``stats``."""
        count = len(requests)
        rows = self._requests if count <= len(self._rows) else ffi.new("pyllm_draft_request[]", count)
        for row, request in zip(rows, requests, strict=False):
            row.seq = request.seq
            row.last = request.last
            row.pos = request.pos
            row.n_max = min(request.n_max, self._n_max)
            row.tokens = self._rows[request.seq] if 0 <= request.seq < len(self._rows) else ffi.NULL
        check(lib.pyllm_drafter_draft(self._pointer, rows, count))
        return [list(ffi.unpack(rows[i].tokens, rows[i].n_tokens)) if rows[i].n_tokens else [] for i in range(count)]

    def accept(self, seq: int, n_accepted: int, tokens: Sequence[int]) -> None:
        """After verification: how many drafted tokens were accepted, and the ``tokens`` that the target's memory has gained."""
        check(lib.pyllm_drafter_accept(self._pointer, seq, n_accepted, ffi.new("int32_t[]", list(tokens)), len(tokens)))

    def truncate(self, seq: int, end: int) -> None:
        """Cut a sequence back to positions ``[0, end)``."""
        check(lib.pyllm_drafter_truncate(self._pointer, seq, end))

    def shift(self, seq: int, n_keep: int, n_discard: int) -> None:
        """The target has discarded ``n_discard`` tokens after the first ``n_keep`` and moved the rest down."""
        check(lib.pyllm_drafter_shift(self._pointer, seq, n_keep, n_discard))
