"""What is compared: each side computes the same nodes its own way, and its result can be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pyllm._ffi import decide_route, force_route, force_route_on
from pyllm.errors import UnsupportedError
from pyllm.routes.decision import first_match, table_in_force

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pyllm._ffi import Attention
    from pyllm.routes.key import Node


class Side(Protocol):
    """One way to compute the nodes of an ``Attention``."""

    name: str

    def prepare(self, attention: Attention, node: Node) -> str:
        """Get ready, and say what runs the node.

        Raises:
            PyllmError: nothing does, and why.
        """

    def time(self, repeats: int) -> float:
        """Microseconds of one node, over ``repeats`` passes over all of them after one that does not count."""

    def result(self) -> NDArray[np.float32]:
        """The first node's result, ``[streams, n_q, n_head, d_v]`` without its axes, after it was timed."""

    def close(self) -> None:
        """Give memory back."""


class Ours:
    """The table in force; on a device without routes, ggml's kernel."""

    name = "ours"
    lane = 0

    def prepare(self, attention: Attention, node: Node) -> str:  # noqa: ARG002 - the attention has it
        """See :class:`Side`."""
        self.attention = attention
        if not has_routes(attention):
            return "ggml"
        _, route, *tile = decide_route(attention.codes)
        return _title(route, tile)

    def time(self, repeats: int) -> float:
        """See :class:`Side`."""
        return self.attention.time(self.lane, repeats)

    def result(self) -> NDArray[np.float32]:
        """See :class:`Side`."""
        return self.attention.result(self.lane)

    def close(self) -> None:
        """See :class:`Side`."""


class Forced(Ours):
    """One route, whatever the table says."""

    def __init__(self, route: str, lane: int, name: str = "") -> None:
        self.name, self.route, self.lane = name or route, route, lane

    def prepare(self, attention: Attention, node: Node) -> str:
        """See :class:`Side`."""
        super().prepare(attention, node)
        if not has_routes(attention):
            raise UnsupportedError("this device has no routes", "name a GPU")
        _, _, *tile = force_route_on(attention.codes, self.route)
        return _title(self.route, tile)

    def time(self, repeats: int) -> float:
        """See :class:`Side`."""
        force_route(self.route)
        try:
            return super().time(repeats)
        finally:
            force_route(None)


class Upstream(Forced):
    """The route that the table has without ``verify``: the kernel that upstream's dispatcher sends the node to or, of what it declines, the nearest."""

    def __init__(self) -> None:
        super().__init__("reference", 1, name="upstream")

    def prepare(self, attention: Attention, node: Node) -> str:
        """See :class:`Side`."""
        if has_routes(attention):
            self.route = route_without_verify(attention.codes)
            if self.route == "reference":
                raise UnsupportedError("no kernel of upstream takes it", "it runs on the CPU there")
        return super().prepare(attention, node)


def has_routes(attention: Attention) -> bool:
    """Whether the device is a GPU whose attention our dispatcher runs."""
    return attention.codes[1] != 0


def route_without_verify(codes: Sequence[int]) -> str:
    """The route of the first row that holds, were there none of ``verify``."""
    rows = [row for row in table_in_force().rows if row.route != "verify"]
    return rows[first_match(rows, codes)].route


def _title(route: str, tile: Sequence[int]) -> str:
    return f"{route} {tile[0]}x{tile[1]}" if tile[0] else route
