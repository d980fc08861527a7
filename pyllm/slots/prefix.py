"""How much of a prompt is there already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyllm.checkpoints.checkpoint import State


@dataclass(frozen=True)
class Reach:
    """``kept`` first tokens can stay, after loading ``mark`` where there is one."""

    kept: int
    mark: State | None = None


@dataclass(frozen=True)
class Source:
    """What a slot or a saved conversation offers: its ``tokens``, the smallest position held, its ``marks`` by length, and how many tokens are ``sure``."""

    tokens: Sequence[int]
    first: int
    marks: Sequence[State]
    sure: int

    def reach(self, shared: int, *, n_swa: int, recurrent: bool) -> Reach:
        """How many of ``shared`` first tokens can be kept.

        All of them where the memory can be cut there: at its end, or anywhere in plain KV whose window has not slid past the cut. Otherwise as many as
        the longest mark before.
        """
        shared = min(shared, self.sure)
        if shared == len(self.tokens):
            return Reach(shared)
        # The token after the cut sees itself and the n_swa - 1 positions before.
        if not recurrent and self.first <= max(0, shared - n_swa + 1):
            return Reach(shared)
        best = max((mark for mark in self.marks if mark.n_tokens <= shared), key=lambda mark: mark.n_tokens, default=None)
        return Reach(best.n_tokens, best) if best is not None else Reach(0)
