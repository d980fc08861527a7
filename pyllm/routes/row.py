"""A row of a route table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyllm.routes.condition import Condition

#: Names of the routes, in the order of their codes in ``native/include/pyllm.h``.
ROUTES = ("vec", "tile", "mma", "sparse", "verify", "reference")

#: What each route is, in a sentence.
ABOUT = {
    "vec": "upstream's vector kernel: one or two query rows, reads compiled K/V types as stored",
    "tile": "upstream's tile kernel: no matrix units",
    "mma": "upstream's matrix-unit kernel: converts K and V to f16 first",
    "sparse": "upstream's matrix-unit kernel over the KV rows that the mask leaves",
    "verify": "ours: a few query rows over K and V as stored, each read once, on matrix units",
    "reference": "ours: any shape, type, mask and alignment",
}


@dataclass(frozen=True, slots=True)
class Row:
    """``route`` with tile sizes ``ncols1`` (query rows) x ``ncols2`` (query heads of one KV head; 0 where the route has none), if all hold.

    ``because`` is the reason that a decision gives.
    """

    route: str
    ncols1: int
    ncols2: int
    because: str
    conditions: tuple[Condition, ...] = ()

    @property
    def params(self) -> str:
        """The tile, as ``8x4``; empty for routes that choose their own."""
        return f"{self.ncols1}x{self.ncols2}" if self.ncols1 else ""

    @property
    def title(self) -> str:
        """Route and tile."""
        return f"{self.route} {self.params}".strip()

    def shadows(self, later: Row) -> bool:
        """Whether ``later`` can never decide behind this row: each of the conditions here follows from one there."""
        return all(any(narrow.implies(wide) for narrow in later.conditions) for wide in self.conditions)

    def first_failing(self, codes: Sequence[int], index: dict[str, int]) -> Condition | None:
        """The first condition that ``codes`` does not fulfil."""
        return next((condition for condition in self.conditions if not condition.holds(codes[index[condition.axis]])), None)
