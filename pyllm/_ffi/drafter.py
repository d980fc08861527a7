"""Drafters: a chain of prediction heads (MTP), DFlash blocks, draft models and n-gram lookup, for all slots at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyllm._ffi.blob import blob_of
from pyllm._ffi.door import Handle, check, ffi, kv_type, lib, text_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyllm._ffi.batch import Batch
    from pyllm._ffi.blob import Blob
    from pyllm._ffi.context import Context
    from pyllm._ffi.model import Model

#: Entries of a drafted token's distribution.
CANDIDATES: int = lib.PYLLM_DRAFT_CANDIDATES


@dataclass(frozen=True)
class DrafterInfo:
    """A chain as a whole: ``n_max`` is the largest depth of its links; with ``needs_rows`` every decode has to be processed."""

    n_max: int
    n_seq: int
    n_links: int
    needs_rows: bool
    can_shift: bool


@dataclass(frozen=True)
class DrafterStats:
    """Counts over all sequences since creation.

    ``n_drafts`` drafts had at least one token; ``n_failures`` times a sequence went on without a draft because drafting failed. ``n_decodes`` are
    those of the draft context; ``n_inject_decodes`` of them brought ``n_injected`` rows of the target into its memory.
    """

    n_drafts: int = 0
    n_drafted: int = 0
    n_accepted: int = 0
    n_failures: int = 0
    n_decodes: int = 0
    n_inject_decodes: int = 0
    n_injected: int = 0


@dataclass(frozen=True)
class LinkInfo:
    """One drafter of a chain. ``n_max`` is its depth after the limits of block size and chained heads, ``n_ctx`` the cells of its context, 0 without one."""

    type: str
    n_max: int
    n_ctx: int
    n_ubatch: int
    block_size: int
    has_context: bool
    shares_memory: bool
    chained_heads: bool
    can_shift: bool
    stats: DrafterStats


@dataclass(frozen=True)
class DraftRequest:
    """Wish for at most ``n_max`` tokens after ``last``, which stands at position ``pos`` and is not in the memory yet.

    With a ``temperature`` above 0 the tokens are drawn, by ``seed`` and position alone, and the draft says from what; else they are the most likely.
    """

    seq: int
    last: int
    pos: int
    n_max: int
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Draft:
    """``tokens`` by link number ``link`` (-1 for none), and ``q``, what they were drawn from, where they were drawn.

    ``q`` is a pair of buffers, ``int32_t[n][10]`` ids and ``float[n][10]`` probabilities, that hold until the sequence's next draft.
    """

    tokens: list[int]
    link: int
    q: tuple[Any, Any] | None = None


_STATS = tuple(DrafterStats.__dataclass_fields__)
_LINK = tuple(name for name in LinkInfo.__dataclass_fields__ if name not in {"type", "stats"})


class Drafter(Handle):
    """A chain of drafters for the sequences of ``target`` (``pyllm_drafter``), empty at first.

    Each sequence gets the draft of the first link that has one.

    Raises:
        UnsupportedError: rejected tokens cannot be taken out of the target's memory.
    """

    kind = "drafter"
    free = "pyllm_drafter_free"

    def __init__(self, target: Context) -> None:
        out = ffi.new("pyllm_drafter **")
        check(lib.pyllm_drafter_create(target._pointer, out))  # noqa: SLF001 - handles of one module
        super().__init__(out[0])
        self._n_seq = self.info.n_seq
        self._n_max = self._n_links = 0
        self._p_min = [-1.0] * self._n_seq
        self.resting = False
        self._link = ffi.new("pyllm_drafter_link_info *")
        self._requests = ffi.new("pyllm_draft_request[]", self._n_seq)
        self._tokens: list[Any] = []
        self._q: list[tuple[Any, Any]] = []
        self._out = ffi.new("int32_t *")
        self._size = ffi.new("size_t *")

    def add(
        self,
        type: str,  # noqa: A002 - the option's name everywhere
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
        n_ctx: int = 0,
        n_threads: int = 0,
        stash_bytes: int = 0,
        device_sampling: bool | None = None,
    ) -> None:
        """Append a link of upstream's ``type`` name. ``model`` is the draft model; leave it out for heads inside the target's file and for n-grams.

        ``n_ctx`` are the cells of the link's own context over all sequences, 0 for as many as the target has; ``stash_bytes`` the rows of the target
        that may wait for a draft, 0 for 64 MiB. With ``device_sampling`` the draft model's backend looks for the best tokens, without it the host; None
        leaves it to the GPU, where there is one. A link that is refused leaves the chain as it was.

        Raises:
            UnsupportedError: the model has no such heads, or its architecture cannot hand out what the drafter reads.
            IncompatibleError: a drafter of another vocabulary, width or architecture.
            InvalidArgumentError: an unknown type, one given twice, a size out of range.
        """
        params = ffi.new("pyllm_drafter_params *", lib.pyllm_drafter_params_default())
        params.n_max = n_max
        params.n_min = n_min
        params.p_min = p_min
        params.ngram_size_n = ngram_size_n
        params.ngram_size_m = ngram_size_m
        params.ngram_min_hits = ngram_min_hits
        params.type_k = kv_type(type_k)
        params.type_v = kv_type(type_v)
        params.n_ctx = n_ctx
        params.n_threads = n_threads
        params.stash_bytes = stash_bytes
        params.device_sampling = -1 if device_sampling is None else int(device_sampling)
        draft_model = model._pointer if model is not None else ffi.NULL  # noqa: SLF001 - handles of one module
        check(lib.pyllm_drafter_add(self._pointer, type.encode(), draft_model, params))
        info = self.info
        self._n_max, self._n_links = info.n_max, info.n_links
        room = max(1, self._n_max)
        self._tokens = [ffi.new("int32_t[]", room) for _ in range(self._n_seq)]
        self._q = [(ffi.new("int32_t[]", room * CANDIDATES), ffi.new("float[]", room * CANDIDATES)) for _ in range(self._n_seq)]

    @property
    def info(self) -> DrafterInfo:
        """The chain as a whole."""
        info = ffi.new("pyllm_drafter_info *")
        check(lib.pyllm_drafter_get_info(self._pointer, info))
        return DrafterInfo(**{name: getattr(info, name) for name in DrafterInfo.__dataclass_fields__})

    @property
    def links(self) -> list[LinkInfo]:
        """The drafters in order, with their counts."""
        info = ffi.new("pyllm_drafter_link_info *")
        links = []
        for index in range(self.info.n_links):
            check(lib.pyllm_drafter_get_link(self._pointer, index, info))
            stats = DrafterStats(**{name: int(getattr(info, name)) for name in _STATS})
            links.append(LinkInfo(type=text_of(info.type), stats=stats, **{name: getattr(info, name) for name in _LINK}))
        return links

    @property
    def stats(self) -> DrafterStats:
        """Counts of all links together."""
        links = self.links
        return DrafterStats(**{name: sum(getattr(link.stats, name) for link in links) for name in _STATS})

    @property
    def n_injected(self) -> int:
        """That count alone, which every step asks for."""
        total = 0
        for index in range(self._n_links):
            check(lib.pyllm_drafter_get_link(self._pointer, index, self._link))
            total += self._link.n_injected
        return total

    def process(self, batch: Batch) -> None:
        """Take over what the target's last decode, of this batch, has computed. Call it after every decode, prefill too."""
        check(lib.pyllm_drafter_process(self._pointer, batch._pointer))  # noqa: SLF001 - handles of one module

    def rest(self, *, rest: bool) -> None:
        """With ``rest`` decodes hand out no rows for the drafters, and ``process`` takes over tokens alone; a sequence that decodes meanwhile starts over.

        What was decoded without a draft while ``resting`` needs no :meth:`accept`.
        """
        if rest != self.resting:
            check(lib.pyllm_drafter_rest(self._pointer, rest))
            self.resting = rest

    def begin(self, seq: int, tokens: Sequence[int]) -> None:
        """A sequence starts to generate; ``tokens`` are those that its target memory holds. A drafter that had failed for it tries again."""
        check(lib.pyllm_drafter_begin(self._pointer, seq, ffi.new("int32_t[]", list(tokens)), len(tokens)))

    def limit(self, seq: int, p_min: float | None) -> None:
        """From now on a sequence's drafts end before a token that is less certain than ``p_min``; None: as each link was made."""
        self._p_min[seq] = -1.0 if p_min is None else p_min

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        """Draft for all requests in one go. A failing drafter gives an empty draft, counts it in ``stats``, and :meth:`why` tells the reason."""
        count = len(requests)
        rows = self._requests if count <= self._n_seq else ffi.new("pyllm_draft_request[]", count)
        for row, request in zip(rows, requests, strict=False):
            row.seq = seq = request.seq
            row.last = request.last
            row.pos = request.pos
            row.n_max = min(request.n_max, self._n_max)
            row.temperature = request.temperature
            row.seed = request.seed & 0xFFFFFFFFFFFFFFFF
            known = 0 <= seq < len(self._tokens)
            row.p_min = self._p_min[seq] if known else -1.0
            row.tokens = self._tokens[seq] if known else ffi.NULL
            row.q_ids, row.q_probs = self._q[seq] if known and request.temperature > 0 else (ffi.NULL, ffi.NULL)
        check(lib.pyllm_drafter_draft(self._pointer, rows, count))
        drafts = []
        for row, request in zip(rows, requests, strict=False):
            tokens = ffi.unpack(row.tokens, row.n_tokens) if row.n_tokens else []
            drafts.append(Draft(tokens, row.link, self._q[row.seq] if tokens and request.temperature > 0 else None))
        return drafts

    def accept(self, seq: int, n_accepted: int, tokens: Sequence[int]) -> None:
        """After verification: how many drafted tokens were accepted, and the ``tokens`` of the last decode that the target's memory keeps."""
        check(lib.pyllm_drafter_accept(self._pointer, seq, n_accepted, ffi.new("int32_t[]", list(tokens)), len(tokens)))

    def truncate(self, seq: int, end: int) -> None:
        """Cut a sequence back to positions ``[0, end)``; 0 forgets all of it."""
        check(lib.pyllm_drafter_truncate(self._pointer, seq, end))

    def reusable(self, seq: int, end: int) -> int:
        """After ``truncate(seq, end)``: how many tokens the target may keep so that drafts are what they would be if nothing had been cut.

        ``end``, or one less where the hidden row before ``end`` is gone and the target has to compute that token again.
        """
        check(lib.pyllm_drafter_reusable(self._pointer, seq, end, self._out))
        return int(self._out[0])

    def shift(self, seq: int, n_keep: int, n_discard: int) -> None:
        """The target has discarded ``n_discard`` tokens after the first ``n_keep`` and moved the rest down."""
        check(lib.pyllm_drafter_shift(self._pointer, seq, n_keep, n_discard))

    def copy(self, from_seq: int, to_seq: int, end: int) -> None:
        """``to_seq`` holds the first ``end`` tokens of ``from_seq`` too, and nothing else."""
        check(lib.pyllm_drafter_copy(self._pointer, from_seq, to_seq, end))

    def state(self, seq: int, *, partial: bool = False) -> Blob:
        """One sequence of all links. ``partial``: of the draft memories only what cannot be cut back.

        Raises:
            OutOfMemoryError: there is no room for the bytes.
        """
        flags = lib.PYLLM_STATE_PARTIAL if partial else lib.PYLLM_STATE_WHOLE
        check(lib.pyllm_drafter_state_size(self._pointer, seq, flags, self._size))
        need = int(self._size[0])
        return blob_of(need, lambda data: check(lib.pyllm_drafter_state_get(self._pointer, seq, flags, data, need, self._size)))

    def set_state(self, seq: int, data: Blob, *, partial: bool = False) -> None:
        """Load what :meth:`state` gave, of any sequence of a chain with the same drafters.

        Raises:
            StateError: it is damaged or that of other drafters; the sequence is empty then.
        """
        flags = lib.PYLLM_STATE_PARTIAL if partial else lib.PYLLM_STATE_WHOLE
        check(lib.pyllm_drafter_state_set(self._pointer, seq, flags, ffi.from_buffer("uint8_t[]", data), len(data)))

    def fail(self, n: int) -> None:
        """Let the next ``n`` decodes of draft contexts fail, to test what then happens."""
        check(lib.pyllm_drafter_fail(self._pointer, n))

    def why(self, seq: int) -> str:
        """Reason of the last failure of a sequence, by link; empty if there was none since it was emptied."""
        check(lib.pyllm_drafter_why(self._pointer, seq, ffi.NULL, 0, self._size))
        length = self._size[0]
        text = ffi.new("char[]", length + 1)
        check(lib.pyllm_drafter_why(self._pointer, seq, text, length + 1, self._size))
        return text_of(text)
