"""One slot's part of a decode."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyllm._ffi import Draft
    from pyllm.engine.request import Request
    from pyllm.slots import Before, Slot


@dataclass
class Block:
    """``tokens`` that the request's memory still lacks and, where they are all of those (``final``), a ``draft`` after them.

    ``index`` is the batch index of the first row to sample from; ``before`` the partial state in front of the block, where nothing else can take
    rejected tokens back; ``verifies``: it is one step of a running generation, of whose draft ``accepted`` tokens were kept.
    """

    request: Request
    slot: Slot
    tokens: list[int]
    drafted: Draft | None = None
    index: int = -1
    before: Before | None = None
    accepted: int = 0
    begin: int = field(init=False)
    verifies: bool = field(init=False)

    def __post_init__(self) -> None:
        self.begin = len(self.slot.tokens)
        self.verifies = self.request.begun and len(self.request.pending) == 1

    @property
    def draft(self) -> list[int]:
        """Drafted tokens."""
        return self.drafted.tokens if self.drafted is not None else []

    @property
    def final(self) -> bool:
        """Whether the last of the tokens is the one to continue from."""
        return len(self.tokens) == len(self.request.pending)

    @property
    def end(self) -> int:
        """Length of the slot once the block is decoded, drafts aside."""
        return self.begin + len(self.tokens)
