"""All slots of a context: acquired by longest common prefix, evicted least recently used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.errors import InternalError
from pyllm.slots.slot import Slot, common_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: A shorter shared part than this of the prompt is not worth taking somebody's cached conversation for: every prompt shares BOS.
MIN_SHARED = 0.1


class SlotPool:
    """Slots 0 to ``count - 1``, one for each sequence."""

    def __init__(self, count: int) -> None:
        self.slots = [Slot(seq) for seq in range(count)]
        self._clock = 0

    def acquire(self, prompt: Sequence[int]) -> Slot | None:
        """The idle slot that shares the longest prefix with ``prompt``, else an empty one, else the least recently used; None when all are held."""
        idle = [slot for slot in self.slots if not slot.held]
        if not idle:
            return None
        shared = {slot.seq: common_prefix(slot.tokens, prompt) for slot in idle}
        best = max(idle, key=lambda slot: (shared[slot.seq], -slot.last_used))
        if shared[best.seq] <= MIN_SHARED * len(prompt):
            best = min(idle, key=lambda slot: (bool(slot.tokens), slot.last_used))
        best.held = True
        self._touch(best)
        return best

    def release(self, slot: Slot) -> None:
        """Give a slot back; its tokens stay cached."""
        slot.held = False
        self._touch(slot)

    def evict(self) -> Slot | None:
        """Forget the least recently used cached slot and return it, for its cells to be removed; None when nothing is cached."""
        cached = [slot for slot in self.slots if slot.cached]
        if not cached:
            return None
        oldest = min(cached, key=lambda slot: slot.last_used)
        oldest.tokens.clear()
        return oldest

    def _touch(self, slot: Slot) -> None:
        self._clock += 1
        slot.last_used = self._clock

    def counts(self) -> dict[str, int]:
        """Slots that are free, held and cached, and all."""
        return {
            "free": sum(slot.free for slot in self.slots),
            "held": sum(slot.held for slot in self.slots),
            "cached": sum(slot.cached for slot in self.slots),
            "total": len(self.slots),
        }

    def check_integrity(self, memory_range: Callable[[int], tuple[int, int]]) -> None:
        """Check that free + held + cached == total, and that the memory of each slot ends where its tokens end.

        ``memory_range`` gives a sequence's smallest and largest position, (-1, -1) when empty.

        Raises:
            InternalError: with the numbers.
        """
        counts = self.counts()
        if counts["free"] + counts["held"] + counts["cached"] != counts["total"]:
            raise InternalError(f"slots do not add up: free {counts['free']} + held {counts['held']} + cached {counts['cached']} != total {counts['total']}")
        for slot in self.slots:
            _, last = memory_range(slot.seq)
            if last != len(slot.tokens) - 1:
                raise InternalError(f"slot {slot.seq} books {len(slot.tokens)} tokens, its memory ends at position {last}")
