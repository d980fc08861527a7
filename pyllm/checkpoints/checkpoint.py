"""What a sequence has computed, as bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyllm._ffi import Blob


@dataclass(frozen=True)
class State:
    """Memory of one sequence over its first ``n_tokens`` tokens: the target's, and the drafters' with their rows.

    ``partial``: only what cannot be cut back (sliding windows, recurrent state); it can be loaded where the rest still is.
    ``first`` is the smallest position held, more than 0 where a window has slid.
    """

    n_tokens: int
    target: Blob
    drafter: Blob
    first: int = 0
    partial: bool = False

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.target) + len(self.drafter)


@dataclass
class Checkpoint:
    """A conversation that can go on elsewhere: its tokens, its whole state, and the partial states (``marks``) that let it be cut back.

    Only the first ``exact`` tokens are what a fresh computation gives; the rest came about by a context shift. ``generation`` is that of a
    request which was suspended. ``facts`` say what it belongs to (``archive.BINDING``); what an engine keeps for itself has none.
    """

    tokens: list[int]
    state: State
    marks: list[State] = field(default_factory=list)
    exact: int = 0
    generation: bytes = b""
    sampler: bytes = b""
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.state.size + sum(mark.size for mark in self.marks)

    @property
    def first(self) -> int:
        """Smallest position that the state holds."""
        return self.state.first
