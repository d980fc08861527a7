"""The memory of all sequences, target and drafter moved together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyllm.checkpoints.checkpoint import State
from pyllm.errors import InternalError, PyllmError, UnsupportedError
from pyllm.slots.prefix import Reach, Source

if TYPE_CHECKING:
    from pyllm._ffi import Blob, Context, Drafter
    from pyllm.slots.slot import Slot


@dataclass(frozen=True)
class Before:
    """What cannot be cut back of one sequence, as it was; ``device``: it has not left the device."""

    data: Blob
    device: bool


class Memory:
    """Cuts, copies, shifts, saves and loads the sequences of ``context`` and what ``drafter`` keeps for them.

    ``n_swa`` is the sliding window in tokens, 0 for none; ``recurrent`` memory can only be cut back by loading a checkpoint.
    """

    def __init__(self, context: Context, drafter: Drafter | None, *, n_swa: int, recurrent: bool) -> None:
        self.context = context
        self.drafter = drafter
        self.n_swa = n_swa
        self.recurrent = recurrent
        self.unified = context.info.kv_unified
        self._on_device = True
        #: Whether checkpoints of what cannot be cut back are worth taking.
        self.takes_marks = recurrent or n_swa > 0

    def source(self, slot: Slot) -> Source:
        """What a slot offers to a prompt."""
        first = max(0, self.context.range(slot.seq)[0]) if slot.tokens and self.n_swa else 0
        return Source(slot.tokens, first, slot.marks, slot.sure)

    def reach(self, source: Source, shared: int) -> Reach:
        """How many of the ``shared`` first tokens of ``source`` can be kept, and by which checkpoint."""
        return source.reach(shared, n_swa=self.n_swa, recurrent=self.recurrent)

    def clear(self, slot: Slot) -> None:
        """Empty a slot."""
        slot.empty()
        self.context.remove(slot.seq)
        if self.drafter is not None:
            self.drafter.truncate(slot.seq, 0)

    def cut(self, slot: Slot, reach: Reach) -> None:
        """Cut a slot back to what ``reach`` says, or to nothing where that fails.

        One token less may stay than was reached: a drafter that lacks the last row before the cut has it computed again.
        """
        if reach.kept == 0:
            self.clear(slot)
            return
        try:
            if reach.mark is not None:
                self._load(slot.seq, reach.mark)
            end = reach.kept
            if end < len(slot.tokens) or reach.mark is not None:
                end = self._cut_drafter(slot, end, exact=reach.mark is not None)
                self.context.remove(slot.seq, end)
        except PyllmError:
            self.clear(slot)
            return
        slot.cut(end)

    def _cut_drafter(self, slot: Slot, end: int, *, exact: bool) -> int:
        if self.drafter is None:
            return end
        self.drafter.truncate(slot.seq, end)
        ready = self.drafter.reusable(slot.seq, end)
        if ready < end and not exact and self.reach(self.source(slot), ready) == Reach(ready, None):
            return ready
        return end

    def roll_back(self, slot: Slot, end: int) -> None:
        """Take rejected tokens out of the target again: the drafter has been told by ``accept``.

        Raises:
            UnsupportedError: the memory cannot go back that far.
        """
        self.context.remove(slot.seq, end)

    def before(self, seq: int) -> Before:
        """What cannot be cut back, for going back to it in the same step: on the device where that is possible."""
        if self._on_device:
            try:
                return Before(self.context.state(seq, partial=True, device=True), device=True)
            except UnsupportedError:
                self._on_device = False
        return Before(self.context.state(seq, partial=True), device=False)

    def go_back(self, seq: int, before: Before, end: int) -> None:
        """Back to ``before``, when the sequence held ``end`` tokens."""
        self.context.set_state(seq, before.data, partial=True, device=before.device)
        self.context.remove(seq, end)

    def copy(self, source: Slot, slot: Slot, reach: Reach) -> None:
        """Let an empty ``slot`` hold what ``reach`` says of ``source``; ``source`` keeps everything."""
        self.clear(slot)
        end = reach.kept
        # Recurrent state is that after the last token, and buffers of their own per sequence can only be copied whole.
        whole = self.recurrent or not self.unified
        try:
            if whole:
                self.context.copy(source.seq, slot.seq)
            else:
                self.context.copy(source.seq, slot.seq, 0, end)
            if self.drafter is not None:
                self.drafter.copy(source.seq, slot.seq, len(source.tokens) if whole else end)
        except PyllmError:
            self.clear(slot)
            return
        slot.tokens = list(source.tokens) if whole else source.tokens[:end]
        slot.marks = [mark for mark in source.marks if mark.n_tokens <= len(slot.tokens)]
        slot.exact = source.exact if source.exact is not None and source.exact < len(slot.tokens) else None
        self.cut(slot, reach)

    def shift(self, slot: Slot, keep: int) -> int:
        """Drop half of what follows the first ``keep`` tokens and move the rest down; returns the number of tokens dropped.

        Raises:
            UnsupportedError: the positions of this memory cannot be shifted.
        """
        discard = (len(slot.tokens) - keep) // 2
        self.context.remove(slot.seq, keep, keep + discard)
        self.context.shift(slot.seq, keep + discard, -1, -discard)
        if self.drafter is not None:
            self.drafter.shift(slot.seq, keep, discard)
        del slot.tokens[keep : keep + discard]
        slot.marks = [mark for mark in slot.marks if mark.n_tokens <= keep]
        slot.exact = min(keep, slot.sure)
        return discard

    def save(self, slot: Slot, *, partial: bool = False) -> State:
        """A slot's state as bytes."""
        # Of a sliding window upstream writes what the next token sees, even where more is held.
        first = max(0, self.context.range(slot.seq)[0], len(slot.tokens) - self.n_swa if self.n_swa else 0)
        drafter: Blob = self.drafter.state(slot.seq, partial=partial) if self.drafter is not None else b""
        return State(len(slot.tokens), self.context.state(slot.seq, partial=partial), drafter, first, partial)

    def _load(self, seq: int, state: State) -> None:
        self.context.set_state(seq, state.target, partial=state.partial)
        if self.drafter is not None:
            self.drafter.set_state(seq, state.drafter, partial=state.partial)

    def load(self, slot: Slot, state: State, tokens: list[int], marks: list[State], exact: int) -> None:
        """Let ``slot`` hold a whole state of ``tokens``.

        Raises:
            StateError: bytes that do not fit; the slot is empty then.
        """
        self.clear(slot)
        try:
            self._load(slot.seq, state)
            last = self.context.range(slot.seq)[1]
            if last != len(tokens) - 1:
                raise InternalError(f"the state of {len(tokens)} tokens ends at position {last}")
            if self.drafter is not None:
                self.drafter.begin(slot.seq, tokens)
        except PyllmError:
            self.clear(slot)
            raise
        slot.tokens = list(tokens)
        slot.marks = list(marks)
        slot.exact = exact if exact < len(tokens) else None
