"""Which heads of a layer each device gets with ``-sm tensor``: ``llama_meta_device_get_split_state`` in ``src/llama-model.cpp``.

Heads go over in groups: the query heads of one KV head, or of as many as it takes to keep the blocks of a quantised output projection whole.
A device may get none of a layer: the one KV head of a multi-query layer lies on a single device, and rounding rotates over the devices from
layer to layer. Example: 16 query heads over one KV head, two devices: 0 and 16 heads in one layer, 16 and 0 in the next of its kind.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyllm.routes.header import Layer

#: Query heads and KV heads.
Heads = tuple[int, int]

#: Values that upstream prefers to keep together where every device still gets some.
_PREFERRED = 128


def rotation(layer: Layer, layers: Sequence[Layer]) -> int:
    """How many layers of the same kind come before it."""
    return sum(_kind(other) == _kind(layer) for other in layers if other.index < layer.index)


def _kind(layer: Layer) -> tuple[bool, bool]:
    return layer.kind == "recurrent", layer.kind == "window"


def split(layer: Layer, layers: Sequence[Layer], n_devices: int, ratios: Sequence[float] = ()) -> list[Heads]:
    """The heads of ``layer``, one of ``layers``, on each device; ``ratios`` are the shares of the devices, by default equal."""
    return split_heads(layer, rotation(layer, layers), n_devices, ratios)


def split_heads(layer: Layer, turn: int, n_devices: int, ratios: Sequence[float] = ()) -> list[Heads]:
    """The same for a layer that ``turn`` others of its kind precede."""
    gqa = layer.n_head // layer.n_head_kv
    group = gqa * layer.d_k
    together = layer.block
    while together < _PREFERRED and together * n_devices < group:
        together *= 2
    unit = math.lcm(group, together)
    values = layer.n_head * layer.d_k
    # Upstream computes shares in single precision.
    turned = [np.float32(ratios[(place + turn) % n_devices]) if any(ratios) else np.float32(1) for place in range(n_devices)]
    ends = np.cumsum(np.array(turned, np.float32), dtype=np.float32)
    heads: list[Heads] = [(0, 0)] * n_devices
    low = 0
    for place in range(n_devices):
        high = values
        if place < n_devices - 1:
            high = int(np.float32(values) * ends[place] / ends[-1]) if any(ratios) else values * (place + 1) // n_devices
            high -= high % unit
        kv = (high - low) // group
        heads[(place + turn) % n_devices] = (kv * gqa, kv)
        low = high
    return heads
