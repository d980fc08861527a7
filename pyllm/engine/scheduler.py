"""Continuous batching: prefill chunks and verify blocks of all slots in one decode."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyllm._ffi import DraftRequest, Sampler
from pyllm._ffi.sampler import RANDOM_SEED
from pyllm.errors import CancelledError, ContextFullError, InternalError, PyllmError
from pyllm.slots import SlotPool, common_prefix

if TYPE_CHECKING:
    from pyllm.engine.core import Core
    from pyllm.engine.request import Request
    from pyllm.engine.result import FinishReason
    from pyllm.slots import Slot


@dataclass
class Block:
    """One slot's part of a decode: prompt tokens, or replayed tokens + the last sampled one + its draft. ``index`` is that of the first row to verify."""

    request: Request
    slot: Slot
    tokens: list[int]
    draft: list[int]
    index: int = -1
    checkpoint: bytes = b""

    @property
    def verifies(self) -> bool:
        """Whether this block ends in rows to sample from."""
        return self.request.last >= 0 or len(self.slot.tokens) + len(self.tokens) == len(self.request.prompt)


class Scheduler:
    """Owns the slots and steps all requests. Not thread-safe: one thread calls it.

    A step admits waiting requests, drafts for all generating slots, decodes once, verifies, and hands tokens out. A request's
    failure ends that request only; its slot is emptied and works on.
    """

    def __init__(self, core: Core) -> None:
        self.core = core
        self.pool = SlotPool(core.info.n_seq_max)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.n_steps = 0
        self.n_prompt_tokens = 0
        self.n_generated_tokens = 0
        self.n_drafted = 0
        self.n_accepted = 0

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queue a request."""
        self.waiting.append(request)

    def step(self) -> None:
        """Admit, draft, decode, verify: at most one successful decode."""
        self._drop_cancelled()
        self._admit()
        if not self.running:
            return
        blocks = self._compose(self._draft())
        while blocks:
            try:
                self._decode(blocks)
            except ContextFullError as full:
                blocks = self._make_room(blocks, full)
                continue
            except CancelledError:
                self._undo(blocks)
                return
            except PyllmError as failure:
                # What of the batch reached the memory is unknown: none of its slots can go on.
                for block in blocks:
                    self.fail(block.request, failure)
                return
            self._verify(blocks)
            return

    # Admission and release

    def _admit(self) -> None:
        while self.waiting:
            slot = self.pool.acquire(self.waiting[0].prompt)
            if slot is None:
                return
            request = self.waiting.popleft()
            request.slot = slot
            request.started = time.perf_counter()
            self.running.append(request)
            try:
                self._start(request, slot)
            except PyllmError as failure:
                self.fail(request, failure)

    def _start(self, request: Request, slot: Slot) -> None:
        shared = common_prefix(slot.tokens, request.prompt) if request.params.cache_prompt else 0
        # One token at least is decoded: its logits start the generation.
        keep = self.core.reusable(slot.seq, min(shared, len(request.prompt) - 1), len(slot.tokens))
        if keep < len(slot.tokens):
            keep = self.core.cut(slot.seq, keep)
            del slot.tokens[keep:]
        request.cached_tokens = keep
        params = request.params
        request.sampler = Sampler(
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
        )
        request.sampler.accept(request.prompt, generated=False)

    def _drop_cancelled(self) -> None:
        for request in [request for request in self.running if request.cancelled]:
            self._finish(request, "cancelled")
        for request in [request for request in self.waiting if request.cancelled]:
            self.waiting.remove(request)
            request.emit([], "cancelled")

    def _finish(self, request: Request, reason: FinishReason, tokens: list[int] | None = None) -> None:
        request.emit(tokens or [], reason)
        self._leave(request)

    def fail(self, request: Request, failure: PyllmError) -> None:
        """End one request with an error and empty its slot."""
        slot = request.slot
        if slot is not None:
            self._empty(slot)
        request.fail(failure)
        self._leave(request)

    def _leave(self, request: Request) -> None:
        if request.slot is not None:
            self.pool.release(request.slot)
        if request.sampler is not None:
            request.sampler.close()
        self.running.remove(request)

    def _empty(self, slot: Slot) -> None:
        slot.tokens.clear()
        self.core.cut(slot.seq, 0)

    # One decode

    def _draft(self) -> dict[int, list[int]]:
        """Drafts by sequence, for every generating slot that wants one."""
        drafter = self.core.drafter
        if drafter is None:
            return {}
        wishes = []
        for request in self.running:
            slot = request.slot
            if request.last < 0 or slot is None or not request.params.speculate or request.replay:
                continue
            # The last sampled token needs a cell, and so does the one that verification adds.
            room = self.core.n_ctx_slot - len(slot.tokens) - 2
            depth = min(self.core.depth, room, request.params.max_tokens - len(request.tokens) - 1)
            if depth > 0:
                wishes.append(DraftRequest(slot.seq, request.last, len(slot.tokens), depth))
        if not wishes:
            return {}
        drafts = drafter.draft(wishes)
        return {wish.seq: draft for wish, draft in zip(wishes, drafts, strict=True)}

    def _compose(self, drafts: dict[int, list[int]]) -> list[Block]:
        """Whole verify blocks first, then as much of the waiting prompts as ``n_batch`` still holds."""
        blocks = []
        free = self.core.info.n_batch
        for request in self.running:
            slot = request.slot
            if slot is not None and request.last >= 0:
                draft = drafts.get(slot.seq, [])
                blocks.append(Block(request, slot, [*request.replay, request.last], draft))
                free -= len(request.replay) + 1 + len(draft)
        for request in self.running:
            slot = request.slot
            if slot is not None and request.last < 0 and free > 0:
                begin = len(slot.tokens)
                chunk = request.prompt[begin : begin + free]
                blocks.append(Block(request, slot, chunk, []))
                free -= len(chunk)
        return blocks

    def _decode(self, blocks: list[Block]) -> None:
        core = self.core
        core.batch.clear()
        for block in blocks:
            pos = len(block.slot.tokens)
            if block.draft and core.info.rollback == "checkpoint":
                block.checkpoint = core.context.state(block.slot.seq, partial=True)
            if not block.verifies:
                core.batch.add(block.slot.seq, pos, block.tokens)
                continue
            if len(block.tokens) > 1:
                core.batch.add(block.slot.seq, pos, block.tokens[:-1])
            block.index = core.batch.add(block.slot.seq, pos + len(block.tokens) - 1, [block.tokens[-1], *block.draft], "all")
        core.context.decode(core.batch)
        self.n_steps += 1
        if core.drafter is not None:
            core.drafter.process(core.batch)

    def _make_room(self, blocks: list[Block], full: ContextFullError) -> list[Block]:
        """The cache had no cells for ``blocks``: what to try instead, until nothing is left to give up."""
        evicted = self.pool.evict()
        if evicted is not None:
            self.core.cut(evicted.seq, 0)
            return blocks
        if any(block.draft for block in blocks):
            for block in blocks:
                block.draft = []
            return blocks
        generating = [block for block in blocks if block.request.last >= 0]
        if generating and len(generating) < len(blocks):
            return generating
        largest = max(blocks, key=lambda block: len(block.slot.tokens) + len(block.tokens))
        if len(blocks) == 1 and len(largest.tokens) > 1 and largest.request.last < 0:
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

    def _undo(self, blocks: list[Block]) -> None:
        """A cancelled decode may have written a part of the batch: back to what the slots book."""
        for block in blocks:
            if self.core.cut(block.slot.seq, len(block.slot.tokens)) != len(block.slot.tokens):
                self.fail(block.request, CancelledError("the decode was cancelled, and this model's memory cannot go back", "send the request again"))

    # After the decode

    def _verify(self, blocks: list[Block]) -> None:
        for block in blocks:
            request, slot = block.request, block.slot
            if request.last < 0:
                slot.tokens += block.tokens
                self.n_prompt_tokens += len(block.tokens)
                if len(slot.tokens) < len(request.prompt):
                    continue
            try:
                self._take(block)
            except PyllmError as failure:
                self.fail(request, failure)

    def _take(self, block: Block) -> None:
        """Sample, keep what was accepted, cut the rest out of the memory, hand the tokens out."""
        request, slot, drafter = block.request, block.slot, self.core.drafter
        if request.sampler is None:
            raise InternalError("a running request has no sampler")
        generating = request.last >= 0
        ids = request.sampler.verify(self.core.context, block.index, block.draft)
        if generating:
            gained = [*block.tokens, *ids[:-1]]
            request.replay = []
            rejected = len(block.draft) - (len(ids) - 1)
            slot.tokens += gained
            if drafter is not None:
                drafter.accept(slot.seq, len(ids) - 1, gained)
                drafter.truncate(slot.seq, len(slot.tokens))
            if rejected:
                self._roll_back(block, ids)
        elif drafter is not None:
            drafter.begin(slot.seq, slot.tokens)
        if block.draft:
            request.drafted += len(block.draft)
            request.accepted += len(ids) - 1
            request.steps += 1
            self.n_drafted += len(block.draft)
            self.n_accepted += len(ids) - 1
        request.last = ids[-1]
        self._hand_out(request, slot, ids)

    def _roll_back(self, block: Block, ids: list[int]) -> None:
        """Take the rejected tokens out of the target's memory."""
        request, slot = block.request, block.slot
        if self.core.info.rollback != "checkpoint":
            self.core.context.remove(slot.seq, len(slot.tokens))
            return
        # The state before the block, and what of the block stays is decoded again in front of the next token.
        begin = len(slot.tokens) - len(block.tokens) - (len(ids) - 1)
        self.core.context.set_state(slot.seq, block.checkpoint, partial=True)
        self.core.context.remove(slot.seq, begin)
        request.replay = slot.tokens[begin:]
        del slot.tokens[begin:]
        if self.core.drafter is not None:
            self.core.drafter.truncate(slot.seq, begin)

    def _hand_out(self, request: Request, slot: Slot, ids: list[int]) -> None:
        model = self.core.model
        new: list[int] = []
        reason: FinishReason | None = None
        for token in ids:
            request.tokens.append(token)
            new.append(token)
            if model.is_eog(token):
                reason = "stop"
            else:
                request.text.push(model.piece(token))
                if request.text.stopped:
                    reason = "stop"
                elif len(request.tokens) >= request.params.max_tokens:
                    reason = "length"
            if reason is not None:
                break
        if reason is None and len(slot.tokens) + len(request.replay) + 1 >= self.core.n_ctx_slot:
            reason = "length"
        self.n_generated_tokens += len(new)
        if reason is None:
            request.emit(new, None)
        else:
            self._finish(request, reason, new)

    def check_integrity(self) -> None:
        """Slots add up, and each slot's memory is what it books.

        Raises:
            InternalError: with the numbers.
        """
        self.pool.check_integrity(self.core.context.range)
        held = {slot.seq for slot in self.pool.slots if slot.held}
        running = {request.slot.seq for request in self.running if request.slot is not None}
        if held != running:
            raise InternalError(f"slots {sorted(held)} are held, requests run in {sorted(running)}")
