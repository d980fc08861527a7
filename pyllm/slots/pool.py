"""All slots of a context: acquired by longest common prefix, evicted least recently used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.errors import InternalError
from pyllm.slots.slot import Slot, SlotInfo, common_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: A shorter shared part than this of the prompt is not worth cutting somebody's cached conversation for: every prompt shares BOS.
MIN_SHARED = 0.1

#: Fewer tokens than these are cut off without looking for another slot.
MIN_LOST = 32


class SlotPool:
    """Slots 0 to ``count - 1``, one for each sequence.

    With ``neighbours`` a decode of slots that do not follow each other is cut into parts, each as long as a whole one on a GPU: a prompt that nobody has
    begun goes beside the running ones, and what is cached there goes to the store.
    """

    def __init__(self, count: int, *, neighbours: bool = False) -> None:
        self.slots = [Slot(seq) for seq in range(count)]
        self._neighbours = neighbours
        self._clock = 0

    def acquire(self, prompt: Sequence[int], seq: int | None = None) -> Slot | None:
        """An idle slot for ``prompt``, held from now on; None when all are held, or ``seq``, if one is asked for, is.

        The slot whose conversation the prompt continues; else an empty one (with ``neighbours``, one beside those that run); else, of the one that
        shares most and the least recently used, the one that loses fewer tokens.
        """
        idle = [slot for slot in self.slots if not slot.held and seq in {None, slot.seq}]
        if not idle:
            return None
        shared = {slot.seq: common_prefix(slot.tokens, prompt) for slot in idle}
        best = max(idle, key=lambda slot: (shared[slot.seq], -slot.last_used))
        if not 0 < shared[best.seq] == len(best.tokens):
            oldest = min(idle, key=lambda slot: (self._gaps(slot), bool(slot.tokens), slot.last_used))
            lost = len(best.tokens) - shared[best.seq]
            if shared[best.seq] <= MIN_SHARED * len(prompt) or (lost > MIN_LOST and lost > len(oldest.tokens)):
                best = oldest
        self.hold(best)
        return best

    def _gaps(self, slot: Slot) -> int:
        """Runs of held slots, with this one."""
        if not self._neighbours:
            return 0
        held = [other.held or other is slot for other in self.slots]
        return sum(here and not before for before, here in zip([False, *held], held, strict=False))

    def hold(self, slot: Slot) -> None:
        """Hold this slot."""
        slot.held = True
        self._touch(slot)

    def release(self, slot: Slot) -> None:
        """Give a slot back; its tokens stay cached."""
        slot.held = False
        self._touch(slot)

    def oldest(self) -> Slot | None:
        """The least recently used cached slot; None when nothing is cached."""
        return min((slot for slot in self.slots if slot.cached), key=lambda slot: slot.last_used, default=None)

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

    def infos(self) -> list[SlotInfo]:
        """All slots as the outside sees them."""
        return [
            SlotInfo(slot.seq, len(slot.tokens), "held" if slot.held else "cached" if slot.tokens else "free", tuple(mark.n_tokens for mark in slot.marks))
            for slot in self.slots
        ]

    def mark_bytes(self) -> int:
        """Bytes of all slots' checkpoints."""
        return sum(mark.size for slot in self.slots for mark in slot.marks)

    def thin(self, room: int) -> None:
        """Drop checkpoints until at most ``room`` bytes are left: the least recently used slot's, the one closest to its neighbour first."""
        slots = sorted((slot for slot in self.slots if slot.marks), key=lambda slot: (slot.held, slot.last_used))
        left = self.mark_bytes()
        for slot in slots:
            while slot.marks and left > room:
                ends = [0, *(mark.n_tokens for mark in slot.marks)]
                gaps = [ends[place + 1] - ends[place] for place in range(len(slot.marks))]
                place = min(range(len(gaps)), key=gaps.__getitem__)
                left -= slot.marks[place].size
                del slot.marks[place]

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
            ends = [mark.n_tokens for mark in slot.marks]
            if ends != sorted(set(ends)) or (ends and ends[-1] > len(slot.tokens)):
                raise InternalError(f"slot {slot.seq} of {len(slot.tokens)} tokens books checkpoints at {ends}")
