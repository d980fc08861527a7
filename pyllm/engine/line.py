"""Requests that wait for a slot."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyllm.engine.request import Request


class Line:
    """Higher priority first, then in order of arrival."""

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def add(self, request: Request) -> None:
        """Queue behind all of its priority."""
        place = next((place for place, other in enumerate(self._requests) if other.params.priority < request.params.priority), len(self._requests))
        self._requests.insert(place, request)

    def remove(self, request: Request) -> None:
        """Take one out."""
        self._requests.remove(request)

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._requests))

    def __len__(self) -> int:
        return len(self._requests)


def overdue(request: Request) -> bool:
    """Whether a request's time is up."""
    return request.deadline is not None and time.monotonic() >= request.deadline
