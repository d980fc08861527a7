"""One slot: a sequence of the KV cache, with the tokens that it holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


@dataclass
class Slot:
    """``tokens[i]`` stands at position ``i`` of sequence ``seq``; the cache holds exactly these, no more and no fewer."""

    seq: int
    tokens: list[int] = field(default_factory=list)
    held: bool = False
    last_used: int = 0

    @property
    def free(self) -> bool:
        """Nobody's, and empty."""
        return not self.held and not self.tokens

    @property
    def cached(self) -> bool:
        """Nobody's, with tokens that a later prompt may share."""
        return not self.held and bool(self.tokens)
