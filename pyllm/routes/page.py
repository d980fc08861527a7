"""``ROUTES.md``: the table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.routes.axes import AXES, axis
from pyllm.routes.check import check
from pyllm.routes.executors import ACCEPTS
from pyllm.routes.row import ABOUT, ROUTES
from pyllm.routes.table import ROWS
from pyllm.routes.tablefile import Table

if TYPE_CHECKING:
    from pyllm.routes.condition import Condition
    from pyllm.routes.row import Row

_SIGNS = {"min": "≥", "max": "≤", "in": "is", "not_in": "is not", "multiple_of": "multiple of", "not_multiple_of": "no multiple of"}


def _text(condition: Condition) -> str:
    about = axis(condition.axis)
    if about.kind == "flag" and condition.operator == "in":
        return condition.axis if condition.values == (1,) else f"no {condition.axis}"
    return f"{condition.axis} {_SIGNS[condition.operator]} {condition.limit}"


def _block(rows: list[tuple[int, Row]]) -> list[str]:
    """Rows with one reason: what all share, then a line per row."""
    shared = [condition for condition in rows[0][1].conditions if all(condition in row.conditions for _, row in rows)]
    lines = [f"### {rows[0][1].because}", ""]
    if shared:
        lines += [f"All: {'; '.join(_text(condition) for condition in shared)}.", ""]
    for number, row in rows:
        own = "; ".join(_text(condition) for condition in row.conditions if condition not in shared)
        lines.append(f"- {number} **{row.title}**" + (f": {own}" if own else ""))
    return [*lines, ""]


def page() -> str:
    """The page as Markdown."""
    report = check(Table(ROWS, ACCEPTS))
    lines = [
        "# Attention routes",
        "",
        "Made by `ci/generate` from `pyllm/routes`; not edited by hand.",
        "",
        (
            "The first row whose conditions all hold runs the node. `pyllm routes check` proves over all"
            f" {report.keys:,} keys that each gets a route ({len(ROWS)} rows), that no route gets a key which its kernel does not accept"
            f" ({len(ACCEPTS)} executors), and that nothing goes to `reference` which another kernel accepts."
        ),
        "",
        "| route | what it is |",
        "|---|---|",
        *(f"| `{route}` | {ABOUT[route]} |" for route in ROUTES),
        "",
        "| axis | meaning | classes |",
        "|---|---|---|",
    ]
    classes = report.classes
    lines += [f"| `{item.name}` | {item.phrase} | {classes.get(item.name, 'of the device, or of `kv`')} |" for item in AXES]
    lines += [f"| `device` | the devices of `pyllm/routes/devices.py` | {classes['device']} |", "", "## Rows", ""]
    begin = 0
    for place in range(1, len(ROWS) + 1):
        if place == len(ROWS) or ROWS[place].because != ROWS[begin].because:
            lines += _block([(number, ROWS[number]) for number in range(begin, place)])
            begin = place
    return "\n".join(lines).rstrip() + "\n"
