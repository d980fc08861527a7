"""How a request gets into a slot: with as much of its prompt as is there already, from wherever it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm._ffi import Sampler
from pyllm._ffi.sampler import RANDOM_SEED
from pyllm.checkpoints import Checkpoint, CheckpointStore
from pyllm.engine.line import overdue
from pyllm.errors import ContextFullError, InternalError, PyllmError, StateError
from pyllm.slots import Reach, Source, common_prefix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyllm.config import EngineConfig
    from pyllm.engine.core import Core
    from pyllm.engine.request import Request
    from pyllm.slots import Slot, SlotPool

#: Fewer tokens than these are computed again rather than kept when their slot is taken, copied from elsewhere, or waited for.
MIN_KEPT = 32


class Admission:
    """Starts requests in slots, and keeps what slots lose in a store under the byte budget."""

    def __init__(self, core: Core, pool: SlotPool, config: EngineConfig) -> None:
        self.core = core
        self.memory = core.memory
        self.pool = pool
        self.store = CheckpointStore(config.cache_bytes)
        self.takes_marks = core.memory.takes_marks and config.cache_bytes > 0
        self.n_copied = 0
        self.n_restored = 0
        self.n_failed = 0
        """Checkpoints that could not be taken: what they would have saved is computed again."""
        self._first: Request | None = None
        """A suspended generation that waits for room."""

    def follows(self, request: Request, running: Sequence[Request]) -> bool:
        """Whether a request does better to wait for a running one.

        That is just computing a prefix that this one can copy when it is there, or fills the shared cache in which a suspended generation needs its cells.
        """
        if self._behind(request):
            return True
        if request.resumed is not None:
            if not self._lacks_room(request, running):
                return False
            self._first = request
            return True
        if self.memory.recurrent or not request.params.cache_prompt:
            return False
        shared = 0
        for leader in running:
            if leader.begun or leader.slot is None or not leader.params.cache_prompt:
                continue
            common = min(common_prefix(leader.prompt, request.prompt), len(request.prompt) - 1)
            if common - len(leader.slot.tokens) >= MIN_KEPT:
                shared = max(shared, common)
        if not shared:
            return False
        there = max(common_prefix(slot.tokens, request.prompt) for slot in self.pool.slots)
        return shared - there >= MIN_KEPT

    def _behind(self, request: Request) -> bool:
        """Whether another request waits for room that this one would take, and is as urgent."""
        first = self._first
        if first is None or first is request:
            return False
        if first.resumed is None or first.cancelled or overdue(first):
            self._first = None
            return False
        return request.params.priority <= first.params.priority

    def _lacks_room(self, request: Request, running: Sequence[Request]) -> bool:
        """Whether running requests may come to need cells of a shared cache that a suspended generation would have to itself; alone it always fits."""
        if not self.memory.unified or not running or request.resumed is None:
            return False
        # Cells of idle slots can be had; those that running requests share are counted for each of them.
        taken = sum(self._most(leader, len(leader.slot.tokens)) for leader in running if leader.slot is not None)
        return taken + self._most(request, len(request.resumed.tokens)) > int(self.core.info.n_ctx)

    def _most(self, request: Request, held: int) -> int:
        """Cells that a request takes at its end."""
        return min(int(self.core.n_ctx_slot), held + len(request.pending) + request.params.max_tokens - len(request.tokens))

    def start(self, request: Request, slot: Slot) -> None:
        """Put a request into its slot.

        Raises:
            PyllmError: a sampler that cannot be made, or a suspended generation that cannot go on.
        """
        if self.core.drafter is not None:
            self.core.drafter.limit(slot.seq, request.params.draft_p_min)
        if request.resumed is not None:
            # The request may be kept for as long as its caller likes, and is done with this.
            checkpoint, request.resumed = request.resumed, None
            self._resume(request, slot, checkpoint)
            return
        if request.params.cache_prompt:
            self._settle(request.prompt, slot)
        else:
            self.demote(slot, 0)
            self.memory.clear(slot)
        self.fit()
        request.cached_tokens = len(slot.tokens)
        request.pending = request.prompt[len(slot.tokens) :]
        request.sampler = self._sampler(request)
        request.sampler.accept(request.prompt, generated=False)

    def _sampler(self, request: Request) -> Sampler:
        params = request.params
        return Sampler(
            self.core.model,
            seed=RANDOM_SEED if params.seed is None else params.seed,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            repeat_penalty=params.repeat_penalty,
            frequency_penalty=params.frequency_penalty,
            presence_penalty=params.presence_penalty,
            ignore_eos=params.ignore_eos,
            grammar=request.grammar,
            logit_bias=params.logit_bias,
        )

    def _settle(self, prompt: list[int], slot: Slot) -> None:
        """Let ``slot`` hold the longest prefix of ``prompt`` that can be had: another slot's or a stored one, if it is worth a copy, else its own."""
        # One token at least is decoded: its logits start the generation.
        limit = len(prompt) - 1

        def reach(source: Source) -> Reach:
            return self.memory.reach(source, min(common_prefix(source.tokens, prompt), limit))

        own = best = reach(self.memory.source(slot))
        giver: Slot | Checkpoint = slot
        for other in self.pool.slots:
            if other is not slot and other.tokens:
                found = reach(self.memory.source(other))
                if found.kept > best.kept:
                    best, giver = found, other
        for entry in self.store:
            found = reach(Source(entry.tokens, entry.first, entry.marks, entry.exact))
            if found.kept > best.kept:
                best, giver = found, entry
        if best.kept - own.kept < MIN_KEPT:
            best, giver = own, slot
        self.demote(slot, best.kept if giver is slot else 0)
        if isinstance(giver, Checkpoint):
            self.store.touch(giver)
            try:
                self.load(slot, giver)
            except PyllmError:
                return  # no room for it: the prompt is computed
            self.memory.cut(slot, best)
            self.n_restored += 1
        elif giver is not slot:
            self.memory.copy(giver, slot, best)
            self.n_copied += 1
        else:
            self.memory.cut(slot, best)

    def demote(self, slot: Slot, kept: int) -> None:
        """A slot is about to lose what follows its first ``kept`` tokens: into the store with it, where that is worth it and can be done."""
        if self.store.budget == 0 or slot.sure - kept < MIN_KEPT or self.store.holds(slot.tokens):
            return
        try:
            conversation = self.checkpoint(slot)
        except InternalError:
            raise
        except PyllmError:
            self.n_failed += 1
            return
        self.store.put(conversation, self.store.budget - self.pool.mark_bytes())

    def checkpoint(self, slot: Slot) -> Checkpoint:
        """A slot's conversation as it is."""
        return Checkpoint(list(slot.tokens), self.memory.save(slot), list(slot.marks), slot.sure)

    def mark(self, slot: Slot) -> None:
        """Take a checkpoint of what cannot be cut back, within the budget: stored conversations make room first, then older marks."""
        if any(mark.n_tokens == len(slot.tokens) for mark in slot.marks):
            return
        try:
            slot.marks.append(self.memory.save(slot, partial=True))
        except InternalError:
            raise
        except PyllmError:
            self.n_failed += 1
            return
        slot.marks.sort(key=lambda mark: mark.n_tokens)
        self.fit()

    def fit(self) -> None:
        """Checkpoints that came with a copied or loaded conversation count, too: what is over the budget goes, stored conversations first."""
        budget = self.store.budget
        self.store.shrink(max(0, budget - self.pool.mark_bytes()))
        self.pool.thin(budget)

    def _resume(self, request: Request, slot: Slot, checkpoint: Checkpoint) -> None:
        self.demote(slot, 0)
        self.load(slot, checkpoint)
        self.fit()
        request.sampler = self._sampler(request)
        request.sampler.set_state(checkpoint.sampler)
        request.cached_tokens = len(slot.tokens)

    def load(self, slot: Slot, checkpoint: Checkpoint) -> None:
        """Load a checkpoint; cached conversations make room in a shared cache, the least recently used first.

        Raises:
            ContextFullError: the cache that all slots share has no room for it; the slot is empty then.
            StateError: it does not fit; the same.
        """
        while True:
            try:
                self.memory.load(slot, checkpoint.state, checkpoint.tokens, checkpoint.marks, checkpoint.exact)
            except StateError as failure:  # noqa: PERF203 - the way it says that there is no room
                held = sum(len(other.tokens) for other in self.pool.slots)
                if not self.memory.unified or held + len(checkpoint.tokens) <= self.core.info.n_ctx:
                    raise
                oldest = self.pool.oldest()
                if oldest is None:
                    raise ContextFullError(
                        f"the KV cache of {self.core.info.n_ctx} cells holds {held} tokens and has no room for the checkpoint's {len(checkpoint.tokens)}",
                        "use a larger ctx, or wait for the requests that run",
                    ) from failure
                self.demote(oldest, 0)
                self.memory.clear(oldest)
            else:
                return

    def check_integrity(self) -> None:
        """The byte budget holds.

        Raises:
            InternalError: with the numbers.
        """
        used = self.store.used + self.pool.mark_bytes()
        if used > self.store.budget:
            raise InternalError(f"checkpoints take {used} bytes, the budget is {self.store.budget}")
