"""The settings of a server or an engine that shape its attention nodes, and the memories that come of them.

Sizes as upstream computes them: ``src/llama-context.cpp`` (``n_ctx_seq``, ``n_ubatch``), ``src/llama-kv-cache-iswa.cpp`` (cells of a
sliding window), and the patches under ``native/patches`` that raise a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from pyllm.config import NGRAM_TYPES, KvType, Phase, Route, Settings, SpecConfig, check_batch, forced_routes
from pyllm.errors import ConfigError
from pyllm.routes.architectures import ROLLS_BACK

if TYPE_CHECKING:
    from pyllm.config import EngineConfig
    from pyllm.routes.header import Header

#: Upstream's default depth of prediction heads; the same as in :mod:`pyllm.engine.core`, whose import loads the engine.
HEAD_DEPTH = 3
NGRAM_DEPTH = 48
RECURRENT_NGRAM_DEPTH = 8

#: KV rows of a node are a multiple of this, as are the cells of a cache.
PAD = 256


class Flags(Settings):
    """As llama-server's flags: ``-np -c -b -ub -ctk/-ctv -ctkd/-ctvd -kvu --swa-full --spec-type --spec-draft-n-max -sm -ts``.

    ``spec`` None means: what the drafter that is given is made for, ``n_max`` tokens deep, and no drafts without one.
    """

    slots: Annotated[int, Field(ge=1, le=256)] = 1
    ctx: Annotated[int, Field(ge=0, le=2**30)] = 0
    batch: Annotated[int, Field(ge=1, le=2**24)] = 2048
    ubatch: Annotated[int, Field(ge=1, le=2**24)] = 512
    kv_types: tuple[KvType, KvType] = ("f16", "f16")
    draft_kv_types: tuple[KvType, KvType] = ("f16", "f16")
    unified: bool = False
    swa_full: bool = False
    draft_swa_full: bool = False
    spec: SpecConfig | None = None
    n_max: Annotated[int, Field(ge=1, le=4096)] | None = None
    force_route: dict[Phase, Route] = Field(default_factory=dict)
    split_mode: Literal["none", "layer", "row", "tensor"] = "layer"
    tensor_split: tuple[float, ...] = ()

    @field_validator("spec", mode="before")
    @classmethod
    def _spec(cls, value: Any) -> SpecConfig | None:
        return SpecConfig.of(value)

    @field_validator("force_route", mode="before")
    @classmethod
    def _routes(cls, value: object) -> object:
        return forced_routes(value) if isinstance(value, str) else value or {}

    @field_validator("tensor_split")
    @classmethod
    def _ratios(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 <= ratio < float("inf") for ratio in value) or (value and not sum(value)):
            raise ConfigError(f"tensor split {','.join(map(str, value))} is no set of shares", "give one number for each device, such as 1,1 or 3,1")
        return value

    @classmethod
    def of(cls, config: EngineConfig) -> Flags:
        """The flags of an engine. Its drafters keep whole caches where the target keeps windows."""
        names = ("slots", "ctx", "batch", "ubatch", "kv_types", "draft_kv_types", "unified", "swa_full", "spec", "split_mode", "force_route")
        return cls(**{name: getattr(config, name) for name in names}, draft_swa_full=True)


@dataclass(frozen=True, slots=True)
class Memory:
    """The KV cache of a context. ``cells`` are those of one slot, of all with ``unified``; ``window_cells`` those of sliding-window layers.

    ``ubatch`` counts the tokens of one graph. With ``equal`` a graph has as many rows of each slot in a unified cache, too: recurrent states
    need that. The last ``tail`` rows of a slot are never split.
    """

    slots: int
    unified: bool
    cells: int
    window_cells: int
    ubatch: int
    type_k: str
    type_v: str
    equal: bool = False
    tail: int = 0

    def cells_of(self, kind: str) -> int:
        """Cells that a layer of that kind has."""
        return self.window_cells if kind == "window" else self.cells

    def load(self, rows: int, active: int) -> tuple[int, int]:
        """Query rows and streams of a node when ``active`` slots have ``rows`` tokens each; what a micro-batch cannot hold comes in the next.

        ``split_simple`` and ``split_equal`` in upstream's ``src/llama-batch.cpp``.
        """
        if self.unified and not self.equal:
            return min(rows * active, self.ubatch), 1
        # Upstream stops at one slot more than there is room for.
        active = min(active, self.ubatch + 1)
        fitting = max(1, self.ubatch // active)
        if 0 < rows - fitting < self.tail:
            # Slots go one by one until those that are left fit.
            active, fitting = max(1, self.ubatch // rows), self.ubatch
        rows = min(rows, fitting)
        return (rows * active, 1) if self.unified else (rows, active)


@dataclass(frozen=True, slots=True)
class Speculation:
    """How drafts are made: ``by`` is ``heads`` (inside a file), ``assistant``, ``block``, ``ngram`` or empty.

    The draft model drafts ``own_depth`` tokens at most; ``depth`` counts n-grams too, which are verified alike.
    """

    by: str = ""
    own_depth: int = 0
    depth: int = 0


def speculation_of(model: Header, draft: Header | None, flags: Flags) -> Speculation:
    """Who drafts, and how deep.

    Raises:
        ConfigError: a drafter that is none, or that its type does not fit; a batch that cannot hold the drafts.
    """
    n_max = flags.spec.n_max if flags.spec else flags.n_max
    found = [_drafter(name, model, draft, n_max) for name in _types(draft, flags)]
    first = max(found, key=lambda one: one.by != "ngram", default=Speculation())
    depth = max((one.own_depth for one in found), default=0)
    check_batch(batch=min(flags.batch, flags.ctx or model.n_ctx_train), slots=flags.slots, depth=depth)
    return Speculation(first.by, first.own_depth, depth)


def _types(draft: Header | None, flags: Flags) -> tuple[str, ...]:
    if flags.spec is not None:
        if draft is not None and all(name in NGRAM_TYPES for name in flags.spec.types):
            raise ConfigError(f"drafter type `{','.join(flags.spec.types)}` uses no draft model, but `{draft.path}` is given", "leave the drafter out")
        return flags.spec.types
    if draft is None:
        return ()
    if draft.drafter == "block":
        return ("draft-dflash",)
    return ("draft-mtp",)


def _drafter(name: str, model: Header, draft: Header | None, n_max: int | None) -> Speculation:
    if name in NGRAM_TYPES:
        return Speculation("ngram", n_max or (RECURRENT_NGRAM_DEPTH if model.hybrid else NGRAM_DEPTH))
    if name == "draft-dflash":
        if draft is None or draft.drafter != "block":
            what = "no drafter" if draft is None else f"`{draft.path}` (architecture `{draft.architecture}`)"
            raise ConfigError(f"`draft-dflash` needs a block drafter, and there is {what}", "give a DFlash GGUF with -md")
        return Speculation("block", max(1, min(n_max or draft.block_size, draft.block_size - 1)))
    source = draft or model
    if source.drafter == "assistant":
        return Speculation("assistant", n_max or HEAD_DEPTH)
    if not source.heads:
        hint = (
            "give its MTP drafter with -md, or another --spec"
            if draft is None
            else "give a drafter: a gemma4-assistant, a DFlash, or a model with prediction heads"
        )
        raise ConfigError(f"`{source.path}` (architecture `{source.architecture}`) has no prediction heads in its file", hint)
    depth = n_max or HEAD_DEPTH
    # Several heads are chained: draft step k runs head k and only that one.
    return Speculation("heads", min(depth, len(source.heads)) if len(source.heads) > 1 else depth)


def padded(tokens: int) -> int:
    """``tokens`` rounded up to whole pads."""
    return -(-tokens // PAD) * PAD


def target_memory(model: Header, flags: Flags, depth: int) -> Memory:
    """The target's memory when drafts are ``depth`` tokens deep."""
    n_ctx = flags.ctx or model.n_ctx_train
    batch, ubatch = flags.batch, flags.ubatch
    if model.hybrid and depth:
        # What can be taken back of recurrent state, one token more, and one, have to fit (native/draft/context_size.h).
        batch, ubatch = max(batch, depth + 2), max(ubatch, depth + 2)
    cells = padded(n_ctx) if flags.unified else padded(padded(n_ctx) // flags.slots)
    memory = _memory(model, flags, cells, min(n_ctx, batch, ubatch), flags.kv_types, swa_full=flags.swa_full)
    tail = 1 + depth if depth and model.architecture in ROLLS_BACK else 0
    return replace(memory, equal=model.hybrid, tail=tail)


def draft_memory(draft: Header, target: Memory, flags: Flags, depth: int) -> Memory:
    """The memory of a drafter that has one of its own: as many cells as its target's, and a micro-batch for the blocks of all slots."""
    ubatch = max(target.ubatch, flags.slots * (1 + depth)) if draft.drafter == "block" else target.ubatch
    return _memory(draft, flags, target.cells, ubatch, flags.draft_kv_types, swa_full=flags.swa_full or flags.draft_swa_full)


def _memory(model: Header, flags: Flags, cells: int, ubatch: int, types: tuple[str, str], *, swa_full: bool) -> Memory:
    window = cells if swa_full else padded(min(cells, model.window * (flags.slots if flags.unified else 1) + ubatch))
    return Memory(flags.slots, flags.unified, cells, window, ubatch, *types)
