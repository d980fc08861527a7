"""The native side of an engine: models, contexts and drafter, sized so that they fit each other."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from pyllm._ffi import Batch, Context, Drafter, Model, allow_cpu_attention, check_route_table, force_route
from pyllm.config import NGRAM_TYPES, EngineConfig, check_batch
from pyllm.errors import ConfigError, PyllmError

if TYPE_CHECKING:
    from pyllm.config import SpecConfig

#: Upstream's defaults of --spec-draft-n-max and of the n-gram values' length.
HEAD_DEPTH = 3
NGRAM_DEPTH = 48

#: Recurrent models keep one snapshot of their state for each token that may be rolled back, so n-gram drafts stay short there.
RECURRENT_NGRAM_DEPTH = 8


def planned_depth(spec: SpecConfig, model: Model, draft: Model | None) -> int:
    """Tokens that one slot drafts at most, as it can be told before a drafter exists."""
    depths = []
    for name in spec.types:
        if name in NGRAM_TYPES:
            longest = spec.ngram_size_m or NGRAM_DEPTH
            if model.info.recurrent or model.info.hybrid:
                longest = min(longest, RECURRENT_NGRAM_DEPTH)
            depths.append(spec.n_max or longest)
        elif name == "draft-dflash" and draft is not None and draft.info.block_size > 1:
            depths.append(min(spec.n_max or draft.info.block_size, draft.info.block_size - 1))
        else:
            depths.append(spec.n_max or HEAD_DEPTH)
    return max(depths)


class Core:
    """Everything native that one engine owns. ``depth`` is the number of tokens that a slot drafts at most, 0 without speculation.

    Raises:
        ConfigError: sizes that cannot work together, with the numbers.
        PyllmError: what loading a model or creating a context raises.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._stack = ExitStack()
        try:
            self._open(config)
        except BaseException:
            self.close()
            raise

    def _open(self, config: EngineConfig) -> None:
        spec = config.spec
        check_route_table()
        allow_cpu_attention(allow=config.allow_cpu_attention)
        force_route(None)
        for phase, route in config.force_route.items():
            force_route(route, phase)
        own_heads = spec is not None and "draft-mtp" in spec.types and config.draft is None
        self.model: Model = self._stack.enter_context(
            Model(
                config.model,
                gpu_layers=config.gpu_layers,
                split_mode=config.split_mode,
                mmap=config.mmap,
                load_mtp=own_heads,
                devices=config.devices,
            )
        )
        draft: Model | None = None
        if config.draft is not None:
            draft = self._stack.enter_context(Model(config.draft, gpu_layers=config.gpu_layers, mmap=config.mmap, devices=config.devices))
        if not self.model.info.has_decoder:
            raise ConfigError(f"`{config.model}` (architecture `{self.model.info.architecture}`) generates no text", "give a decoder model")

        self.depth = planned_depth(spec, self.model, draft) if spec is not None else 0
        n_ctx = config.ctx or self.model.info.n_ctx_train
        check_batch(batch=min(config.batch, n_ctx), slots=config.slots, depth=self.depth)
        recurrent = self.model.info.recurrent or self.model.info.hybrid
        self.context: Context = self._stack.enter_context(
            Context(
                self.model,
                n_ctx=config.ctx,
                n_batch=config.batch,
                n_ubatch=config.ubatch,
                n_seq_max=config.slots,
                n_rs_seq=self.depth if recurrent else 0,
                n_outputs_max=config.slots * (1 + self.depth),
                n_threads=config.threads,
                type_k=config.kv_types[0],
                type_v=config.kv_types[1],
                flash_attn=config.flash_attn,
                kv_unified=config.unified,
                swa_full=config.swa_full,
                trace=config.trace,
            )
        )
        self.info = self.context.info
        self.drafter: Drafter | None = None
        if spec is not None:
            self.drafter = self._stack.enter_context(
                Drafter(
                    self.context,
                    spec.types,
                    draft,
                    n_max=spec.n_max or 0,
                    n_min=spec.n_min,
                    p_min=spec.p_min,
                    ngram_size_n=spec.ngram_size_n or 0,
                    ngram_size_m=spec.ngram_size_m or 0,
                    ngram_min_hits=spec.ngram_min_hits or 0,
                    type_k=config.draft_kv_types[0],
                    type_v=config.draft_kv_types[1],
                    n_threads=config.threads,
                )
            )
            self.depth = min(self.depth, self.drafter.info.n_max)
        self.batch: Batch = self._stack.enter_context(Batch(self.context))
        self.n_swa = 0 if config.swa_full else self.model.info.n_swa
        self.recurrent = recurrent
        #: Positions of one slot.
        self.n_ctx_slot = min(self.info.n_ctx_seq, self.info.n_ctx)

    def reusable(self, seq: int, shared: int, held: int) -> int:
        """How many of ``shared`` common tokens can stay in a sequence that holds ``held``.

        Recurrent state and slid-out windows cannot go back: then all or nothing.
        """
        if shared in {0, held}:
            return shared
        if self.recurrent:
            return 0
        first, _ = self.context.range(seq)
        # After the cut the window of the next token has to be there still: positions shared - n_swa and later.
        return shared if first <= max(0, shared - self.n_swa) else 0

    def cut(self, seq: int, end: int) -> int:
        """Cut a sequence back to ``[0, end)``, in the drafter too; returns what it really holds then: ``end``, or 0 where that is impossible."""
        try:
            self.context.remove(seq, end)
        except PyllmError:
            end = 0
            self.context.remove(seq)
        if self.drafter is not None:
            self.drafter.truncate(seq, end)
        return end

    def close(self) -> None:
        """Free drafter, contexts and models, in that order."""
        self._stack.close()
