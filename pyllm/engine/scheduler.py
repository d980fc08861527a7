"""Continuous batching: prompt chunks and verify blocks of all slots in one decode."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pyllm._ffi import Cut
from pyllm.engine.admission import Admission
from pyllm.engine.block import Block
from pyllm.engine.drafting import Drafting
from pyllm.engine.failures import DrafterFailures
from pyllm.engine.line import Line, overdue
from pyllm.errors import CancelledError, ContextFullError, InternalError, PyllmError
from pyllm.slots import SlotPool, next_mark

if TYPE_CHECKING:
    from pyllm._ffi import Draft
    from pyllm.config import EngineConfig
    from pyllm.engine.core import Core
    from pyllm.engine.request import Request
    from pyllm.engine.result import FinishReason
    from pyllm.slots import Slot

#: Steps without a new token after which a generation is given up. It goes on without drafts long before (``drafting.PLAIN_AFTER``).
GIVE_UP_AFTER = 64


class Scheduler:
    """Owns the slots and steps all requests. Not thread-safe: one thread calls it.

    A step admits waiting requests, drafts for all generating slots, decodes once, verifies, and hands tokens out. A request's
    failure ends that request only; its slot is emptied and works on.
    """

    def __init__(self, core: Core, config: EngineConfig) -> None:
        self.core = core
        self.config = config
        self.memory = core.memory
        self.pool = SlotPool(core.info.n_seq_max, neighbours=core.cut is Cut.NEIGHBOURS)
        self.admission = Admission(core, self.pool, config)
        self.drafting = Drafting(core, config)
        self.failures = DrafterFailures(core, self.drafting)
        self.waiting = Line()
        self.running: list[Request] = []
        self.n_steps = 0
        self.n_prompt_tokens = 0
        self.n_generated_tokens = 0
        self.n_shifts = 0
        self._pieces: dict[int, tuple[bytes, bool]] = {}
        """Bytes of the tokens that were generated so far, and whether they end a text."""

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(len(self.waiting) or self.running)

    def add(self, request: Request) -> None:
        """Queue a request."""
        self.waiting.add(request)

    def step(self) -> None:
        """Admit, draft, decode, verify: at most one successful decode of all slots."""
        self._drop_ended()
        self._admit()
        if not self.running:
            return
        self._make_way()
        self._watch()
        started = time.perf_counter()
        drafts = self.failures.draft(self.running)
        drafted = time.perf_counter()
        blocks = self._compose(drafts)
        while blocks:
            try:
                self._decode(blocks)
            except ContextFullError as full:
                blocks = self._make_room(blocks, full)
                continue
            except CancelledError as cancelled:
                self._undo(blocks, cancelled)
                return
            except PyllmError as failure:
                self._undo(blocks, failure)
                self._one_by_one(blocks, failure)
                return
            self._verify(blocks)
            self.failures.settle(blocks)
            self.drafting.record(blocks, drafted - started, time.perf_counter() - drafted)
            return

    # Admission and release

    def _admit(self) -> None:
        for request in self.waiting:
            if self.admission.follows(request, self.running):
                continue
            slot = self.pool.acquire(request.prompt, request.params.slot)
            if slot is None:
                if request.params.slot is None:
                    return
                continue
            self.waiting.remove(request)
            request.slot = slot
            request.started = time.perf_counter()
            self.running.append(request)
            try:
                self.admission.start(request, slot)
            except PyllmError as failure:
                self.fail(request, failure)
                continue
            self.drafting.begin(slot.seq)

    def _drop_ended(self) -> None:
        for request in list(self.running):
            if request.cancelled:
                self._finish(request, "cancelled")
            elif overdue(request):
                self._finish(request, "timeout")
        for request in self.waiting:
            if request.cancelled or overdue(request):
                self.waiting.remove(request)
                request.emit([], "cancelled" if request.cancelled else "timeout")

    def _finish(self, request: Request, reason: FinishReason, tokens: list[int] | None = None) -> None:
        request.emit(tokens or [], reason)
        self.leave(request)

    def fail(self, request: Request, failure: PyllmError) -> None:
        """End one request with an error and empty its slot."""
        if request.slot is not None:
            self.memory.clear(request.slot)
        request.fail(failure)
        self.leave(request)

    def leave(self, request: Request) -> None:
        """A request no longer runs: its slot is idle, its sampler freed."""
        if request.slot is not None:
            self.pool.release(request.slot)
        if request.sampler is not None:
            request.sampler.close()
        self.running.remove(request)

    # One decode

    def _make_way(self) -> None:
        """Full slots are shifted, or their requests end."""
        for request in list(self.running):
            slot = request.slot
            if slot is None or not request.begun or len(slot.tokens) + len(request.pending) < self.core.n_ctx_slot:
                continue
            keep = min(request.params.keep, len(slot.tokens) - 2)
            if not self.config.context_shift or len(slot.tokens) - keep < 2:
                self._finish(request, "length")
                continue
            try:
                self.memory.shift(slot, keep)
                self.n_shifts += 1
            except PyllmError as failure:
                self.fail(request, failure)

    def _compose(self, drafts: dict[int, Draft]) -> list[Block]:
        """Whole verify blocks first, then as much of the waiting prompts as ``n_batch`` still holds."""
        blocks = []
        free = self.core.info.n_batch
        # In the order of their sequences: upstream computes rows of several buffers in one graph only where those follow each other.
        running = sorted(self.running, key=lambda request: request.slot.seq if request.slot is not None else -1)
        for request in running:
            slot = request.slot
            if slot is not None and request.begun and len(request.pending) == 1:
                block = Block(request, slot, list(request.pending), drafts.get(slot.seq))
                blocks.append(block)
                free -= 1 + len(block.draft)
        for request in running:
            slot = request.slot
            if slot is None or (request.begun and len(request.pending) == 1) or free <= 0:
                continue
            length = min(free, len(request.pending))
            stop = self._mark_place(request, slot)
            if stop is not None:
                length = min(length, stop - len(slot.tokens))
            blocks.append(Block(request, slot, request.pending[:length]))
            free -= length
        return blocks

    def _mark_place(self, request: Request, slot: Slot) -> int | None:
        if request.begun or not self.admission.takes_marks:
            return None
        return next_mark(
            len(slot.tokens), len(request.prompt), every=self.config.checkpoint_every, turns=request.params.turns, before_last=self.memory.recurrent
        )

    def _decode(self, blocks: list[Block]) -> None:
        core = self.core
        core.batch.clear()
        for block in blocks:
            seq = block.slot.seq
            if block.draft and core.info.rollback == "checkpoint":
                block.before = self.memory.before(seq)
            if not block.final:
                core.batch.add(seq, block.begin, block.tokens)
                continue
            if len(block.tokens) > 1:
                core.batch.add(seq, block.begin, block.tokens[:-1])
            block.index = core.batch.add(seq, block.end - 1, [block.tokens[-1], *block.draft], "all")
        self.drafting.listen(blocks)
        core.context.decode(core.batch)
        self.n_steps += 1
        self.failures.process(blocks)

    def _make_room(self, blocks: list[Block], full: ContextFullError) -> list[Block]:
        """The cache had no cells for ``blocks``: what to try instead, until nothing is left to give up."""
        oldest = self.pool.oldest()
        if oldest is not None:
            self.admission.demote(oldest, 0)
            self.memory.clear(oldest)
            return blocks
        if any(block.draft for block in blocks):
            for block in blocks:
                block.drafted = None
            return blocks
        generating = [block for block in blocks if block.request.begun and len(block.request.pending) == 1]
        if generating and len(generating) < len(blocks):
            return generating
        largest = max(blocks, key=lambda block: block.end)
        if len(blocks) == 1 and len(largest.tokens) > 1:
            largest.tokens = largest.tokens[: len(largest.tokens) // 2]
            return blocks
        held = sum(len(slot.tokens) for slot in self.pool.slots)
        self.fail(
            largest.request,
            ContextFullError(
                f"the KV cache of {self.core.info.n_ctx} cells holds {held} tokens and has no room for the next of slot {largest.slot.seq}",
                full.hint,
            ),
        )
        return [block for block in blocks if block is not largest]

    def _undo(self, blocks: list[Block], failure: PyllmError) -> None:
        """A failed decode may have written a part of the batch: back to what the slots book, or everything again where that is impossible."""
        for block in blocks:
            slot, request = block.slot, block.request
            try:
                self.memory.context.remove(slot.seq, block.begin)
                whole = self.memory.context.range(slot.seq)[1] == block.begin - 1
            except PyllmError:
                whole = False
            if whole:
                if self.core.drafter is not None:
                    self.core.drafter.truncate(slot.seq, block.begin)
                continue
            request.pending = [*slot.tokens, *request.pending]
            self.memory.clear(slot)
            if len(request.pending) >= self.core.n_ctx_slot:
                self.fail(request, failure)

    def _one_by_one(self, blocks: list[Block], failure: PyllmError) -> None:
        """After a failed decode of several slots: each alone, so that only the one to blame ends."""
        for block in blocks:
            if block.request not in self.running:
                continue
            alone = Block(block.request, block.slot, block.request.pending[: self.core.info.n_batch])
            if len(blocks) == 1 and not block.draft:
                self.fail(block.request, failure)
                continue
            try:
                self._decode([alone])
            except PyllmError as again:
                self.fail(block.request, again)
                continue
            self._verify([alone])
            self.failures.settle([alone])

    # After the decode

    def _verify(self, blocks: list[Block]) -> None:
        for block in blocks:
            request = block.request
            try:
                if not block.final:
                    self._advance(block)
                else:
                    self._take(block)
            except PyllmError as failure:
                self.fail(request, failure)
                continue

    def _advance(self, block: Block) -> None:
        """A part of the pending tokens is in the memory now."""
        request, slot = block.request, block.slot
        marks = self._mark_place(request, slot) == block.end
        slot.tokens += block.tokens
        del request.pending[: len(block.tokens)]
        request.idle_steps = 0
        if not request.begun:
            self.n_prompt_tokens += len(block.tokens)
            if marks:
                self.admission.mark(slot)

    def _take(self, block: Block) -> None:
        """Sample, keep what was accepted, cut the rest out of the memory, hand the tokens out."""
        request, slot, drafter = block.request, block.slot, self.core.drafter
        if request.sampler is None:
            raise InternalError("a running request has no sampler")
        ids = request.sampler.verify(self.core.context, block.index, block.draft, block.drafted.q if block.drafted is not None else None)
        if request.params.logprobs is not None:
            request.note_logprobs(self.core.context, block.index, ids)
        gained = [*block.tokens, *ids[:-1]]
        slot.tokens += gained
        if not request.begun:
            self.n_prompt_tokens += len(block.tokens)
            request.begun = True
            if drafter is not None:
                drafter.begin(slot.seq, slot.tokens)
        elif drafter is not None and (block.draft or not drafter.resting):
            drafter.accept(slot.seq, len(ids) - 1, gained)
        block.accepted = len(ids) - 1
        self.drafting.count(request, block.draft, block.accepted)
        request.pending = [ids[-1]]
        request.idle_steps = 0
        if block.accepted < len(block.draft):
            self._roll_back(block)
        self._hand_out(request, ids)

    def _roll_back(self, block: Block) -> None:
        """Take the rejected tokens out of the target's memory."""
        request, slot = block.request, block.slot
        if block.before is None:
            self.memory.roll_back(slot, len(slot.tokens))
            return
        # The state in front of the block comes back; what of the block stays is decoded again before the next token.
        self.memory.go_back(slot.seq, block.before, block.begin)
        request.pending = [*slot.tokens[block.begin :], *request.pending]
        del slot.tokens[block.begin :]
        if self.core.drafter is not None:
            self.core.drafter.truncate(slot.seq, block.begin)

    def _watch(self) -> None:
        """Busy but no token: such a request goes on without drafts, and in the end with an error."""
        for request in list(self.running):
            if not request.begun:
                continue
            request.idle_steps += 1
            if request.idle_steps > GIVE_UP_AFTER:
                self.fail(request, InternalError(f"a request made no progress in {GIVE_UP_AFTER} steps", "please report the request and the settings"))

    def _piece(self, token: int) -> tuple[bytes, bool]:
        found = self._pieces.get(token)
        if found is None:
            model = self.core.model
            found = self._pieces[token] = (model.piece(token), model.is_eog(token))
        return found

    def _hand_out(self, request: Request, ids: list[int]) -> None:
        new: list[int] = []
        reason: FinishReason | None = None
        for token in ids:
            request.tokens.append(token)
            new.append(token)
            piece, ends = self._piece(token)
            if ends:
                reason = "stop"
            else:
                request.text.push(piece)
                if request.text.stopped:
                    reason = "stop"
                elif len(request.tokens) >= request.params.max_tokens:
                    reason = "length"
            if reason is not None:
                break
        self.n_generated_tokens += len(new)
        if reason is None:
            request.emit(new, None)
        else:
            self._finish(request, reason, new)

    def check_integrity(self) -> None:
        """Slots add up, each slot's memory is what it books, and the budget holds.

        Raises:
            InternalError: with the numbers.
        """
        self.pool.check_integrity(self.core.context.range)
        held = {slot.seq for slot in self.pool.slots if slot.held}
        running = {request.slot.seq for request in self.running if request.slot is not None}
        if held != running:
            raise InternalError(f"slots {sorted(held)} are held, requests run in {sorted(running)}")
        self.admission.check_integrity()
