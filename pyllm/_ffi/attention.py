"""Attention nodes made to be timed, and what a device reaches at best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyllm._ffi.door import Handle, check, ffi, lib

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Graphs of an :class:`Attention` with results of their own.
LANES = 8
_INPUTS = {"q": -3, "k": -2, "v": -1}


@dataclass(frozen=True)
class Rates:
    """``copied``: GB/s of a copy, read and written bytes both counted; ``computed``: GFLOP/s of a product of matrices, f16 by f32."""

    copied: float
    computed: float


def device_rates(device: int, size: int, columns: int, threads: int = 0) -> Rates:
    """What device ``device`` of ``devices()`` reaches with a copy of ``size`` bytes and with square matrices of ``columns``.

    Raises:
        OutOfMemoryError: they do not fit.
        InvalidArgumentError: too little to measure.
    """
    copied, computed = ffi.new("double *"), ffi.new("double *")
    check(lib.pyllm_device_rates(device, size, columns, threads, copied, computed))
    return Rates(float(copied[0]), float(computed[0]))


class Attention(Handle):
    """Nodes of one shape over K and V of their own. ``shape`` has the fields of ``pyllm_attention_shape``.

    Raises:
        InvalidArgumentError: numbers that contradict each other.
        OutOfMemoryError: they do not fit the device.
    """

    kind = "attention"
    free = "pyllm_attention_free"

    def __init__(self, device: int, shape: dict[str, int], *, cold: int, seed: int = 0, threads: int = 0) -> None:
        out = ffi.new("pyllm_attention **")
        check(lib.pyllm_attention_create(device, ffi.new("pyllm_attention_shape *", shape), cold, seed, threads, out))
        super().__init__(out[0])
        count, size, key = ffi.new("int32_t *"), ffi.new("uint64_t *"), ffi.new("pyllm_route_key *")
        check(lib.pyllm_attention_get(self._pointer, count, size, key))
        #: Nodes, and bytes of K and V of one as they are stored.
        self.nodes, self.bytes = int(count[0]), int(size[0])
        #: The node's axes, encoded; those of a device that has no routes are 0.
        self.codes = tuple(int(key.axis[place]) for place in range(lib.PYLLM_ROUTE_AXIS_COUNT))

    def time(self, lane: int, repeats: int = 1) -> float:
        """Microseconds of one node of ``lane``, over ``repeats`` computations of all of them after one that does not count.

        Raises:
            UnsupportedError: the device declines the node.
            DecodeError: it failed, with the reason.
        """
        us = ffi.new("double *")
        check(lib.pyllm_attention_time(self._pointer, lane, repeats, us))
        return float(us[0])

    def result(self, lane: int) -> NDArray[np.float32]:
        """The first node's result: ``[streams * n_q * n_head * d_v]``, fastest axis last; NaN before the lane ran."""
        return self._read(lane, 0)

    def input(self, name: str, number: int = 0) -> NDArray[np.float32]:
        """``q``, ``k`` or ``v`` of node ``number``, decoded: ``[streams * heads * rows * d]``, fastest axis last."""
        return self._read(_INPUTS[name], number)

    def _read(self, what: int, number: int) -> NDArray[np.float32]:
        import numpy as np  # noqa: PLC0415 - an engine starts without

        count = ffi.new("size_t *")
        check(lib.pyllm_attention_read(self._pointer, what, number, ffi.NULL, 0, count))
        values = np.empty(int(count[0]), np.float32)
        check(lib.pyllm_attention_read(self._pointer, what, number, ffi.cast("float *", values.ctypes.data), values.size, count))
        return values
