"""What runs a node, why, and why not something else. The native evaluator decides; the reasons are read from the same table."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyllm._ffi import decide_route, force_route_on, set_route_table
from pyllm.errors import NotFoundError, UnsupportedError
from pyllm.routes.axes import DEVICE_AXES, INDEX
from pyllm.routes.executors import ACCEPTS
from pyllm.routes.row import ROUTES
from pyllm.routes.table import ROWS
from pyllm.routes.tablefile import Table, dump, load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyllm.routes.key import Key
    from pyllm.routes.row import Row

#: The built-in table.
TABLE = Table(ROWS, ACCEPTS)


@dataclass(frozen=True, slots=True)
class Rejection:
    """A route that does not run the node, and the reason of the row that came nearest."""

    route: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What runs ``key``: ``route``, its tile (query rows, query heads; 0 where it chooses its own), the row, and why."""

    key: Key
    route: str
    params: tuple[int, int]
    row: int
    reason: str
    rejected: tuple[Rejection, ...]

    @property
    def title(self) -> str:
        """Route and tile."""
        return f"{self.route} {self.params[0]}x{self.params[1]}" if self.params[0] else self.route

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "device": self.key.device.name,
            "node": str(self.key.node),
            "route": self.route,
            "params": list(self.params),
            "row": self.row,
            "reason": self.reason,
            "rejected": [{"route": one.route, "reason": one.reason} for one in self.rejected],
        }


class _InForce:
    """The table that :func:`use_table` has put in force, if one; ``changes`` counts how often that happened."""

    table: Table | None = None
    changes = 0


def table_in_force() -> Table:
    """The table that :func:`use_table` has put in force, else the one that ``PYLLM_ROUTES`` names, or the built-in one.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: it is not understood.
    """
    return _InForce.table or _first_table()


@functools.cache
def _first_table() -> Table:
    path = os.environ.get("PYLLM_ROUTES")
    if not path:
        return TABLE
    try:
        return load(Path(path).read_text(encoding="utf-8"), path)
    except OSError as failure:
        raise NotFoundError(f"PYLLM_ROUTES names `{path}`: {failure.strerror}", "unset it for the built-in table") from None


def use_table(table: Table | None) -> None:
    """Put ``table`` in force for the process, natively and for the reasons given here; None goes back to the first one.

    Raises:
        InvalidArgumentError: it is refused: a row that can never decide, a last row that does not take every node.
    """
    if table is None and _InForce.table is None:
        return
    wanted = table or _first_table()
    set_route_table(None if wanted is TABLE else dump(wanted))
    _InForce.table = table
    _InForce.changes += 1


def limits(name: str) -> tuple[int, ...]:
    """Constants that the table in force compares an axis with, divisors apart."""
    return _limits(name, _InForce.changes)


@functools.lru_cache(maxsize=32)
def _limits(name: str, _changes: int) -> tuple[int, ...]:
    conditions = [condition for row in table_in_force().rows for condition in row.conditions if condition.axis == name and "multiple" not in condition.operator]
    return tuple(sorted({value for condition in conditions for value in condition.values}))


def first_match(rows: Sequence[Row], codes: Sequence[int]) -> int:
    """Index of the first row whose conditions all hold, -1 for none. The same as the native evaluator, for tables that it does not know."""
    return next((number for number, row in enumerate(rows) if row.first_failing(codes, INDEX) is None), -1)


def decide(key: Key) -> Decision:
    """Decide ``key`` by the table in force."""
    codes = key.codes
    number, route, *tile = decide_route(codes)
    table = table_in_force()
    return Decision(key, route, (tile[0], tile[1]), number, table.rows[number].because, rejections(table, codes, number))


def force(key: Key, route: str) -> Decision:
    """How ``route`` runs ``key`` when it is forced.

    Raises:
        UnsupportedError: it cannot, with the reason.
    """
    try:
        number, _, *tile = force_route_on(key.codes, route)
    except UnsupportedError as failure:
        raise UnsupportedError(f"{key}: {failure.message}", failure.hint) from None
    return Decision(key, route, (tile[0], tile[1]), number, "forced", ())


def rejections(table: Table, codes: Sequence[int], row: int) -> tuple[Rejection, ...]:
    """Why not the other routes: what their executors do not accept, or else what the nearest of their rows before ``row`` asks for."""
    chosen = table.rows[row].route
    found = []
    for route in ROUTES:
        executors = [one for one in table.accepts if one.route == route]
        if route in {chosen, "reference"}:
            continue
        if executors and all(one.first_failing(codes, INDEX) is not None for one in executors):
            found.append(Rejection(route, _nearest(executors, codes)))
        elif before := [one for one in table.rows[:row] if one.route == route]:
            found.append(Rejection(route, _nearest(before, codes)))
    return tuple(found)


def _nearest(rows: Sequence[Row], codes: Sequence[int]) -> str:
    """The first failing condition of the row that comes nearest: one for this device before others, then the one with the fewest that fail."""
    failing = [[condition for condition in row.conditions if not condition.holds(codes[INDEX[condition.axis]])] for row in rows]
    least = min((one for one in failing if one), key=lambda one: (sum(condition.axis in DEVICE_AXES for condition in one), len(one)))[0]
    return least.sentence(codes[INDEX[least.axis]])
