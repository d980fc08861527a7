"""Weights that only have to be there: made once, and repeated over every tensor that needs some.

A model of a real one's size has billions of weights that decide nothing but how long a step takes. Drawing and
converting each of them would take minutes; these are copies of a short pool, already in the file's own type.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import quants

_BLOCKS = 32771
"""Blocks of 32 weights in the pool: a prime, so that rows of no width repeat each other."""

Kind = gguf.GGMLQuantizationType


@dataclass(frozen=True)
class Noise:
    """Gaussian weights of one tensor.

    Attributes:
        std: their standard deviation.
        start: block of the pool that the tensor begins with.

    """

    std: float
    start: int

    def data(self, shape: tuple[int, ...], kind: Kind) -> npt.NDArray[Any]:
        """Return the tensor as it stands in the file: bytes of blocks for quantised types, numbers for the others."""
        pool = _pool(kind, self.std)
        rows, width = int(np.prod(shape[:-1])), shape[-1] // 32
        start = self.start % _BLOCKS
        blocks = np.resize(np.concatenate([pool[start:], pool[:start]]), (rows * width, pool.shape[1]))
        return blocks.reshape(*shape[:-1], -1)


@lru_cache(maxsize=16)
def _pool(kind: Kind, std: float) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = np.random.default_rng(0).standard_normal((_BLOCKS, 32), np.float32) * np.float32(std)
    if kind == Kind.F32:
        return values
    packed: npt.NDArray[Any] = quants.quantize(values, kind)
    return packed
