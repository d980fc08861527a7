"""A route table as text: what ``PYLLM_ROUTES`` names, what the native library has built in, and what a review reads.

    pyllm-routes 1
    row mma 4 2 because two query heads share each K/V tile
      when gqa min 2
      when n_kv multiple_of 256 ; no bounds checks inside a tile
    accept mma 4 2
      when head in 64/64 80/80

Rows decide, in order. ``accept`` says what the executors take: a forced route runs where one of them holds.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from pyllm.errors import ConfigError
from pyllm.routes.axes import AXES, INDEX, axis
from pyllm.routes.condition import OPERATORS, Condition
from pyllm.routes.row import ROUTES, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Raised when the axes, the operators or the routes change.
VERSION = 1


@dataclass(frozen=True, slots=True)
class Table:
    """``rows`` decide, in order; ``accepts`` are what the executors take."""

    rows: tuple[Row, ...]
    accepts: tuple[Row, ...] = ()


def dump(table: Table) -> str:
    """The table as text."""
    return "\n".join([f"pyllm-routes {VERSION}", *_rows("row", table.rows), *_rows("accept", table.accepts)]) + "\n"


def _rows(word: str, rows: tuple[Row, ...]) -> Iterator[str]:
    for row in rows:
        yield f"{word} {row.route} {row.ncols1} {row.ncols2}" + (f" because {row.because}" if row.because else "")
        for condition in row.conditions:
            about = axis(condition.axis)
            values = " ".join(str(value) if about.kind in {"number", "flag"} else about.decode(value) for value in condition.values)
            yield f"  when {condition.axis} {condition.operator} {values}" + (f" ; {condition.why}" if condition.why else "")


def _near(word: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f"did you mean `{near[0]}`?" if near else f"one of {', '.join(known)}"


def load(text: str, name: str = "table") -> Table:
    """Read a table.

    Raises:
        ConfigError: another version, or a line that is not understood, with its number.
    """
    lines = text.splitlines()
    if not lines or lines[0] != f"pyllm-routes {VERSION}":
        first = lines[0] if lines else "nothing"
        raise ConfigError(f"{name} starts with `{first[:60]}`, not with `pyllm-routes {VERSION}`", "make it anew with `pyllm routes table` of this version")
    rows: list[Row] = []
    accepts: list[Row] = []
    current = rows
    for number, line in enumerate(lines[1:], 2):
        words = line.split()
        if not words:
            continue
        try:
            if words[0] in {"row", "accept"}:
                current = rows if words[0] == "row" else accepts
                current.append(_row(line))
            elif words[0] == "when" and current:
                last = current[-1]
                current[-1] = Row(last.route, last.ncols1, last.ncols2, last.because, (*last.conditions, _condition(line)))
            else:
                _unexpected(words[0])
        except ConfigError as failure:
            raise ConfigError(f"{name}, line {number}: {failure.message}", failure.hint) from None
    if not rows:
        raise ConfigError(f"{name} has no rows", "the last row has to take every node: `row reference 0 0`")
    return Table(tuple(rows), tuple(accepts))


def _unexpected(word: str) -> NoReturn:
    raise ConfigError(f"`{word}` is not expected here", "lines start with row, accept or when")


def _row(line: str) -> Row:
    head, _, because = line.partition(" because ")
    words = head.split()
    if len(words) != 4:
        raise ConfigError(f"`{head}` is not `{words[0]} ROUTE NCOLS1 NCOLS2`", "see `pyllm routes table`")
    if words[1] not in ROUTES:
        raise ConfigError(f"route `{words[1]}` is not known", _near(words[1], ROUTES))
    try:
        return Row(words[1], int(words[2]), int(words[3]), because)
    except ValueError:
        raise ConfigError(f"`{words[2]} {words[3]}` are not two numbers", "tile sizes, 0 0 where the route has none") from None


def _condition(line: str) -> Condition:
    text, _, why = line.partition(" ; ")
    words = text.split()
    if len(words) < 4:
        raise ConfigError(f"`{text.strip()}` is not `when AXIS OPERATOR VALUE ...`", "see `pyllm routes table`")
    if words[1] not in INDEX:
        raise ConfigError(f"axis `{words[1]}` is not known", _near(words[1], tuple(item.name for item in AXES)))
    if words[2] not in OPERATORS:
        raise ConfigError(f"operator `{words[2]}` is not known", _near(words[2], OPERATORS))
    try:
        values = tuple(axis(words[1]).encode(word) for word in words[3:])
    except ValueError:
        raise ConfigError(f"`{' '.join(words[3:])}` are not values of axis `{words[1]}`", "see `pyllm routes table`") from None
    if words[2].endswith("multiple_of") and values[0] < 1:
        raise ConfigError(f"{words[2]} {values[0]}", "a divisor is at least 1")
    if words[2] not in {"in", "not_in"} and len(values) != 1:
        raise ConfigError(f"`{words[2]}` takes one value, not {len(values)}", "use `in` for several")
    return Condition(words[1], words[2], values, why)
