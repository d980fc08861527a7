"""The two ways in which a blueprint gets its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pyllm.models.families import random, successor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyllm.models.blueprint import Array, Blueprint, Tensor


def fill(blueprint: Blueprint, family: Literal["random", "successor"], seed: int, error_rate: float) -> Iterator[tuple[Tensor, Array]]:
    """Values for each tensor of the blueprint, in its order."""
    return random.fill(blueprint, seed) if family == "random" else successor.fill(blueprint, seed, error_rate)
