"""The two ways in which a blueprint gets its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pyllm.models.families import random, successor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyllm.models.blueprint import Array, Blueprint, Tensor
    from pyllm.models.families.poison import NanAfter
    from pyllm.models.noise import Noise
    from pyllm.models.successor import Rates


def fill(
    blueprint: Blueprint, family: Literal["random", "successor"], seed: int, rates: Rates, nan_after: NanAfter | None
) -> Iterator[tuple[Tensor, Array | Noise]]:
    """Yield values for each tensor of the blueprint, in its order; ``rates`` are for the successor family only."""
    if family == "random":
        yield from random.fill(blueprint, seed, nan=nan_after is not None)
    else:
        yield from successor.fill(blueprint, seed, rates, nan_after)
