"""Drafters whose logits become NaN, always or after one token, and whose targets stay sound.

The last unit of the feed-forward layer in front of the drafter's head overflows. Its gate is either a large positive
number, or so large a negative one that the activation is exactly zero; the product with a large number is infinity or
zero. Infinity times the output projection is infinity, or NaN where that has a zero, and the norm in front of the head
makes NaN of both. What the drafter writes into its KV cache comes before that layer, so that a later draft can be
sound again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from pyllm.models.blueprint import Part, Role
from pyllm.models.families import offset

if TYPE_CHECKING:
    from pyllm.models.blueprint import Array, Blueprint, Tensor

NanAfter: TypeAlias = int | Literal["always"]
"""The token after which a drafter's logits are NaN."""

_LARGE = 1e30  # overflows F32 as soon as two are multiplied
_ROLES = {Role.GATE, Role.UP}


class Poison:
    """Where one model's unit goes.

    Args:
        blueprint: the model's.
        always: whether it fires for every token.

    """

    def __init__(self, blueprint: Blueprint, *, always: bool) -> None:
        self.always = always
        self.gated = {tensor.layer for tensor in blueprint.tensors if tensor.role is Role.GATE}
        drafting = [tensor for tensor in blueprint.tensors if tensor.part is not Part.TARGET and tensor.role in _ROLES]
        last = max((tensor.layer for tensor in drafting), default=-1)
        # each head of a chain drafts by itself
        self.names = {tensor.name for tensor in drafting if tensor.layer == last or tensor.part is Part.NEXTN}

    def mark(self, blueprint: Blueprint) -> None:
        """Ask for F32 where the numbers are too large for anything else."""
        for i, tensor in enumerate(blueprint.tensors):
            if tensor.name in self.names:
                blueprint.tensors[i] = replace(tensor, single=True)

    def applied(self, tensor: Tensor, weight: Array, trigger: int) -> Array:
        """Return a tensor's values with the unit in them, or as they are where the unit is elsewhere.

        Args:
            tensor: any tensor of the model.
            weight: its values.
            trigger: dimension of the stream that is about as large as the constant when the unit is to fire, and zero
                otherwise. Not read when it always fires.

        """
        if tensor.name not in self.names:
            return weight
        weight = weight.copy()
        weight[-1] = 0.0
        decides = tensor.role is Role.GATE or tensor.layer not in self.gated
        if decides and not self.always:
            weight[-1, trigger] = _LARGE
            weight[-1, offset.CONSTANT] = -_LARGE / 2
        else:
            weight[-1, offset.CONSTANT] = _LARGE
        return weight
