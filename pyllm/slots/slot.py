"""One slot: a sequence of the KV cache, with the tokens that it holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyllm.checkpoints.checkpoint import State


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    length = min(len(left), len(right))
    if left[:length] == right[:length]:
        return length
    return next(place for place in range(length) if left[place] != right[place])


@dataclass
class Slot:
    """``tokens[i]`` stands at position ``i`` of sequence ``seq``; the cache holds exactly these, no more and no fewer.

    ``marks`` are checkpoints of what cannot be cut back, by length. After a context shift only the first ``exact`` tokens are what a fresh
    computation gives; None: all.
    """

    seq: int
    tokens: list[int] = field(default_factory=list)
    held: bool = False
    last_used: int = 0
    marks: list[State] = field(default_factory=list)
    exact: int | None = None

    @property
    def free(self) -> bool:
        """Nobody's, and empty."""
        return not self.held and not self.tokens

    @property
    def cached(self) -> bool:
        """Nobody's, with tokens that a later prompt may share."""
        return not self.held and bool(self.tokens)

    @property
    def sure(self) -> int:
        """Tokens at the front that are what a fresh computation gives."""
        return len(self.tokens) if self.exact is None else self.exact

    def empty(self) -> None:
        """It holds nothing now."""
        self.tokens = []
        self.marks = []
        self.exact = None

    def cut(self, end: int) -> None:
        """It holds its first ``end`` tokens now."""
        del self.tokens[end:]
        self.marks = [mark for mark in self.marks if mark.n_tokens <= end]
        if self.exact is not None and self.exact >= end:
            self.exact = None


@dataclass(frozen=True)
class SlotInfo:
    """A slot as the outside sees it: sequence, number of tokens held, ``free``, ``held`` or ``cached``, and its checkpoints' lengths."""

    seq: int
    n_tokens: int
    state: str
    marks: tuple[int, ...] = ()
