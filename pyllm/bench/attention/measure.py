"""Time the sides of one node in turn, round by round, over caches that are cold."""

from __future__ import annotations

import dataclasses
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyllm._ffi import Attention
from pyllm.bench.attention.reference import Reference
from pyllm.errors import PyllmError
from pyllm.routes.axes import KV_TYPES, axis

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyllm._ffi import Rates
    from pyllm.bench.attention.shapes import Shape
    from pyllm.bench.attention.side import Side
    from pyllm.routes.key import Node

#: A result is wrong from this error on. Upstream's test of its kernels asks for 5e-4, over short caches; ggml's CPU kernel sums in f16, and is at 1e-3
#: over 32768 rows.
WRONG = 5e-3
#: Microseconds that one timing takes at least.
_SPAN = 4000.0


@dataclass(frozen=True)
class Timing:
    """Microseconds of one node by one side: median, least and most of the rounds. ``error`` is against float64, None where it was not looked at.

    ``kernel`` says what ran it; ``refusal`` why it was not timed, ``wrong`` among the reasons: a result that is not what it should be.
    """

    side: str
    kernel: str = ""
    us: float = 0.0
    least: float = 0.0
    most: float = 0.0
    error: float | None = None
    refusal: str = ""
    wrong: bool = False


@dataclass(frozen=True)
class Measurement:
    """One node: ``bytes`` of K and V as they are stored, of those rows that a query may see, and floating point operations over them.

    ``nodes`` like it are computed in turn, over ``cold`` bytes of K and V together.
    """

    shape: Shape
    bytes: int
    operations: int
    nodes: int
    cold: int
    timings: tuple[Timing, ...]

    def of(self, side: str) -> Timing | None:
        """The timing of a side that ran it."""
        return next((one for one in self.timings if one.side == side and not one.refusal), None)

    def rate(self, timing: Timing) -> float:
        """GB/s of K and V."""
        return self.bytes / timing.us / 1e3

    def limit(self, timing: Timing, rates: Rates) -> tuple[str, float]:
        """What bounds the node on this device, memory or its arithmetic, and the share of that bound that the timing reaches."""
        memory, arithmetic = self.bytes / rates.copied / 1e3, self.operations / rates.computed / 1e3
        return ("memory", memory / timing.us) if memory >= arithmetic else ("arithmetic", arithmetic / timing.us)

    def to_json(self, rates: Rates) -> dict[str, Any]:
        """Plain data, with the ratios of ours to the others."""
        ours = self.of("ours")
        plain = []
        for one in self.timings:
            entry = dataclasses.asdict(one)
            if not one.refusal:
                bound, share = self.limit(one, rates)
                entry |= {"gb_s": self.rate(one), "of_copy_rate": self.rate(one) / rates.copied, "bound": bound, "of_bound": share}
                entry |= {"over_ours": one.us / ours.us} if ours else {}
            plain.append(entry)
        numbers = {name: getattr(self, name) for name in ("bytes", "operations", "nodes", "cold")}
        return {"node": dataclasses.asdict(self.shape.node), "origin": self.shape.origin} | numbers | {"timings": plain}


def native_shape(node: Node) -> dict[str, int]:
    """The fields of ``pyllm_attention_shape``."""
    numbers = {name: int(getattr(node, name)) for name in ("d_k", "d_v", "n_head", "n_head_kv", "n_q", "n_kv", "streams")}
    numbers |= {name: int(getattr(node, name)) for name in ("alibi", "softcap", "sinks", "view", "n_kv_max")}
    return numbers | {"type_k": KV_TYPES.index(node.type_k), "type_v": KV_TYPES.index(node.type_v), "mask": axis("mask").encode(node.mask)}


def measure(
    device: int,
    shape: Shape,
    sides: Sequence[Side],
    *,
    rounds: int,
    cold: int,
    progress: Callable[[str], None] = lambda _: None,
) -> Measurement:
    """Time ``shape`` by each of ``sides``, the first of them first in one round and last in the next; a side that cannot says why.

    ``cold`` bytes of K and V are read between two readings of the same, or as many as 1024 nodes have.

    Raises:
        OutOfMemoryError: K and V do not fit the device.
    """
    node = shape.node
    with Attention(device, native_shape(node), cold=cold) as attention:
        reference = Reference(attention, node) if Reference.covers(node) else None
        done: dict[str, Timing] = {}
        ready: list[tuple[Side, int]] = []
        taken: dict[str, list[float]] = {}
        try:
            for side in sides:
                try:
                    kernel = side.prepare(attention, node)
                    once = side.time(1)
                except PyllmError as failure:
                    done[side.name] = Timing(side.name, refusal=failure.message)
                    continue
                error = reference.error(side.result()) if reference else None
                if error is not None and not error <= WRONG:
                    done[side.name] = Timing(side.name, kernel, error=error, refusal=f"a wrong result: error {error:.2g} of {WRONG:g} on {node}", wrong=True)
                    continue
                done[side.name] = Timing(side.name, kernel, error=error)
                ready.append((side, max(1, math.ceil(_SPAN / (once * attention.nodes)))))
                taken[side.name] = []
            for number in range(rounds):
                progress(f"{node}: round {number + 1} of {rounds}")
                for side, repeats in ready if number % 2 == 0 else reversed(ready):
                    taken[side.name].append(side.time(repeats))
        finally:
            for side in sides:
                side.close()
        timings = tuple(
            dataclasses.replace(one, us=statistics.median(taken[name]), least=min(taken[name]), most=max(taken[name])) if name in taken else one
            for name, one in done.items()
        )
        size = attention.bytes * _seen(node) // node.n_kv
        return Measurement(shape, size, _operations(node), attention.nodes, attention.nodes * attention.bytes, timings)


def _seen(node: Node) -> int:
    """KV rows that some query row may see."""
    return min(node.n_kv, node.n_kv_max + node.n_q - 1) if node.n_kv_max else node.n_kv


def _operations(node: Node) -> int:
    """Of the pairs of rows that the mask leaves, which is causal over the last rows."""
    last = [max(1, node.n_kv - node.n_q + row + 1) if node.mask != "none" else node.n_kv for row in range(node.n_q)]
    pairs = sum(min(one, node.n_kv_max) if node.n_kv_max else one for one in last)
    return 2 * node.n_head * node.streams * pairs * (node.d_k + node.d_v)
