"""Where a prompt is interrupted for a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def next_mark(begin: int, length: int, *, every: int, turns: Sequence[int], before_last: bool) -> int | None:
    """The first place after ``begin`` and before ``length`` for a checkpoint of a prompt of ``length`` tokens.

    Places are the multiples of ``every``, the beginnings of ``turns``, and, where nothing at all can be cut back, the place before the last token: the
    same prompt can be asked again then.
    """
    places = [turn for turn in turns if begin < turn < length]
    multiple = (begin // every + 1) * every
    if multiple < length:
        places.append(multiple)
    if before_last and begin < length - 1:
        places.append(length - 1)
    return min(places, default=None)
