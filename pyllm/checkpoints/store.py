"""Conversations that lost their slot, kept in memory under a byte budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyllm.checkpoints.checkpoint import Checkpoint


class CheckpointStore:
    """Least recently used first out. ``used`` bytes are never over ``budget`` after a call."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.n_evicted = 0
        self._entries: list[Checkpoint] = []

    @property
    def used(self) -> int:
        """Bytes of all checkpoints."""
        return sum(entry.size for entry in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Checkpoint]:
        """Most recently used first."""
        return reversed(self._entries)

    def put(self, checkpoint: Checkpoint, room: int) -> bool:
        """Keep a checkpoint where ``room`` bytes of the budget are left for the store; one that continues an older one replaces it.

        False when it does not fit at all.
        """
        if checkpoint.size > room:
            return False
        tokens = checkpoint.tokens
        self._entries = [entry for entry in self._entries if entry.tokens != tokens[: len(entry.tokens)]]
        self._entries.append(checkpoint)
        self.shrink(room)
        return True

    def touch(self, checkpoint: Checkpoint) -> None:
        """It was used, if it is still there."""
        if checkpoint in self._entries:
            self._entries.remove(checkpoint)
            self._entries.append(checkpoint)

    def shrink(self, room: int) -> None:
        """Drop the least recently used until at most ``room`` bytes are used."""
        while self._entries and self.used > room:
            del self._entries[0]
            self.n_evicted += 1

    def holds(self, tokens: list[int]) -> bool:
        """Whether a checkpoint begins with all of ``tokens``."""
        return any(entry.tokens[: len(tokens)] == tokens for entry in self._entries)
