"""The proof of a route table, over all keys.

Total: each key gets a route. Sound: no route gets a key that its executor does not accept. Frugal: nothing goes to the reference route that
another executor accepts. And each row decides something.

The proof is exact over the whole product of classes (``classes.py``), without visiting each key: a walk fixes one dimension after the
other and follows the set of rows that can still hold; keys for which this set is the same share the rest of the walk.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from pyllm.routes.axes import AXES, axis
from pyllm.routes.classes import Dimension, dimensions

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pyllm.routes.row import Row
    from pyllm.routes.tablefile import Table

#: Findings of one kind that a report lists.
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """A counterexample: ``kind`` is ``total``, ``sound``, ``frugal`` or ``unreachable``; ``key`` names a key, ``keys`` how many share it."""

    kind: str
    text: str
    key: str = ""
    keys: int = 0


@dataclass(slots=True)
class Report:
    """What a check found. ``keys`` is the size of the product, ``classes`` the number per dimension, ``won`` the keys that each row decides."""

    keys: int
    classes: dict[str, int]
    won: list[int]
    seconds: float
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Nothing was found."""
        return not self.findings


class _Walk:
    """Bits of a set: first the table's rows in their order, then the executors."""

    def __init__(self, table: Table, product: Sequence[Dimension]) -> None:
        self.table = table
        self.items: tuple[Row, ...] = (*table.rows, *table.accepts)
        self.product = product
        self.row_bits = (1 << len(table.rows)) - 1
        self.executors = [self._executors(row) for row in table.rows]
        self.reference_rows = _bits(number for number, row in enumerate(table.rows) if row.route == "reference")
        self.others = _bits(len(table.rows) + place for place, row in enumerate(table.accepts) if row.route != "reference")
        self.fallback_executors = _bits(len(table.rows) + place for place, row in enumerate(table.accepts) if row.route == "reference")
        self.steps = [self._step(dimension) for dimension in product]
        # Rows that no dimension from here on can rule out: they hold for all that is left.
        self.settled: list[int] = []
        open_axes: set[str] = set()
        for dimension in reversed(product):
            open_axes |= set(dimension.axes)
            self.settled.append(_bits(n for n, item in enumerate(self.items) if not any(c.axis in open_axes for c in item.conditions)))
        self.settled.reverse()
        self.memo: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {}
        self.examples: dict[tuple[int, int], tuple[int, ...]] = {}

    def _executors(self, row: Row) -> int:
        return _bits(
            len(self.table.rows) + place
            for place, accept in enumerate(self.table.accepts)
            if (accept.route, accept.ncols1, accept.ncols2) == (row.route, row.ncols1, row.ncols2)
        )

    def _step(self, dimension: Dimension) -> list[tuple[int, int, int]]:
        """For each set of items that a class allows: the set, how many classes have it, and one of them."""
        concerned = {name: place for place, name in enumerate(dimension.axes)}
        allowed: dict[int, list[int]] = {}
        for number, codes in enumerate(dimension.classes):
            bits = 0
            for place, item in enumerate(self.items):
                if all(c.axis not in concerned or c.holds(codes[concerned[c.axis]]) for c in item.conditions):
                    bits |= 1 << place
            allowed.setdefault(bits, []).append(number)
        return [(bits, len(numbers), numbers[0]) for bits, numbers in allowed.items()]

    def reduce(self, depth: int, alive: int) -> int:
        """Without what can no longer matter: rows after one that is sure to hold, and executors of rows that cannot win."""
        sure = alive & self.settled[depth] & self.row_bits if depth < len(self.settled) else alive & self.row_bits
        if sure:
            first = sure & -sure
            alive &= ~self.row_bits | (first << 1) - 1
        rows = alive & self.row_bits
        keep = rows
        left = rows
        while left:
            bit = left & -left
            keep |= self.executors[bit.bit_length() - 1]
            left ^= bit
        if rows & self.reference_rows or not rows:
            keep |= self.others
        return alive & keep

    def run(self, depth: int, alive: int) -> tuple[tuple[int, int], ...]:
        """Outcomes of all keys below: (winning row, fault) packed into one number, with their counts."""
        alive = self.reduce(depth, alive)
        memo = self.memo.get((depth, alive))
        if memo is not None:
            return memo
        if depth == len(self.product):
            result: tuple[tuple[int, int], ...] = ((self.outcome(alive), 1),)
        else:
            sums: dict[int, int] = {}
            for bits, times, _ in self.steps[depth]:
                for outcome, count in self.run(depth + 1, alive & bits):
                    sums[outcome] = sums.get(outcome, 0) + times * count
            result = tuple(sums.items())
        self.memo[depth, alive] = result
        return result

    def outcome(self, alive: int) -> int:
        """Row times four, plus 1 for a row that its executor does not accept, 2 for a key that another executor would; -1 without a row."""
        rows = alive & self.row_bits
        if not rows:
            return -1
        row = (rows & -rows).bit_length() - 1
        if not alive & self.executors[row]:
            return 4 * row + 1
        if 1 << row & self.reference_rows and alive & self.others:
            return 4 * row + 2
        return 4 * row

    def example(self, outcome: int) -> tuple[int, ...]:
        """Class numbers of a key with that outcome."""
        chosen: list[int] = []
        alive = (1 << len(self.items)) - 1
        for depth in range(len(self.product)):
            alive = self.reduce(depth, alive)
            for bits, _, number in self.steps[depth]:
                below = self.run(depth + 1, alive & bits)
                if any(one == outcome for one, _ in below):
                    chosen.append(number)
                    alive &= bits
                    break
        return tuple(chosen)


def _bits(numbers: Iterable[int]) -> int:
    bits = 0
    for number in numbers:
        bits |= 1 << number
    return bits


def check(table: Table) -> Report:
    """Prove ``table`` over the whole product, or find counterexamples."""
    begin = time.perf_counter()
    product = dimensions((*table.rows, *table.accepts))
    walk = _Walk(table, product)
    outcomes = walk.run(0, (1 << len(walk.items)) - 1)
    won = [0] * len(table.rows)
    faults: list[tuple[int, int]] = []
    for outcome, count in outcomes:
        if outcome >= 0:
            won[outcome // 4] += count
        if outcome < 0 or outcome % 4:
            faults.append((outcome, count))
    report = Report(
        keys=prod(len(dimension.classes) for dimension in product),
        classes={dimension.name: len(dimension.classes) for dimension in product},
        won=won,
        seconds=0.0,
    )
    for outcome, count in faults:
        report.findings.append(_finding(walk, outcome, count))
    report.findings += [
        Finding("unreachable", f"row {number} ({table.rows[number].title}: {table.rows[number].because}) never decides: earlier rows take all its keys")
        for number, count in enumerate(won)
        if count == 0
    ]
    report.seconds = time.perf_counter() - begin
    return report


def _finding(walk: _Walk, outcome: int, count: int) -> Finding:
    codes = [0] * len(AXES)
    names = {item.name: place for place, item in enumerate(AXES)}
    labels = []
    for dimension, number in zip(walk.product, walk.example(outcome), strict=True):
        labels.append(f"{dimension.name} {dimension.labels[number]}")
        for name, code in zip(dimension.axes, dimension.classes[number], strict=True):
            codes[names[name]] = code
    key = ", ".join(labels)
    if outcome < 0:
        return Finding("total", "no row takes the key", key, count)
    row = walk.table.rows[outcome // 4]
    if outcome % 4 == 1:
        return Finding("sound", f"row {outcome // 4} sends it to `{row.title}`, which does not accept it: {_reason(walk.table, row, codes, names)}", key, count)
    able = sorted({accept.title for accept in walk.table.accepts if accept.route != "reference" and accept.first_failing(codes, names) is None})
    return Finding("frugal", f"it goes to `{row.route}`, although {', '.join(able[:4])} would take it", key, count)


def _reason(table: Table, row: Row, codes: Sequence[int], names: dict[str, int]) -> str:
    """The nearest miss among the executors of the row's route and tile."""
    best: tuple[int, str] = (-1, "there is no such kernel instance")
    for accept in table.accepts:
        if (accept.route, accept.ncols1, accept.ncols2) != (row.route, row.ncols1, row.ncols2):
            continue
        held = [condition.holds(codes[names[condition.axis]]) for condition in accept.conditions]
        if sum(held) > best[0] and False in held:
            failing = accept.conditions[held.index(False)]
            best = (sum(held), failing.sentence(codes[names[axis(failing.axis).name]]))
    return best[1]
