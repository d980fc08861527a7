"""Decisions and plans as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from pyllm.errors import UnsupportedError
from pyllm.routes.decision import Rejection, force
from pyllm.routes.row import ROUTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyllm.routes.decision import Decision
    from pyllm.routes.plan import Entry, Plan

COLUMNS = ("device", "part", "layers", "kind", "phase", "step", "node", "route", "because")


def skipped(decision: Decision) -> list[Rejection]:
    """Every other route, and why it does not run the node: it cannot, its condition does not hold, or it comes later in the table."""
    reasons = {one.route: one.reason for one in decision.rejected}
    found = []
    for route in ROUTES:
        if route == decision.route:
            continue
        if route not in reasons:
            try:
                found.append(Rejection(route, f"could run it{_tile(force(decision.key, route))}; `{decision.title}` comes first"))
            except UnsupportedError as failure:
                # The key stands in front of the reason, and is in front of the reader.
                found.append(Rejection(route, failure.message.removeprefix(f"{decision.key}: ").partition(": ")[2]))
        else:
            found.append(Rejection(route, reasons[route]))
    return found


def _tile(decision: Decision) -> str:
    return f" as {decision.title}" if decision.params[0] else ""


def decision_lines(decision: Decision, *, everything: bool) -> Iterator[str]:
    """One decision, a line for each thing said; with ``everything`` also what was skipped."""
    yield f"device    {decision.key.device.name} ({decision.key.device.products})"
    yield f"node      {decision.key.node}"
    yield f"route     {decision.title}"
    yield f"because   {decision.reason}"
    if everything:
        word = "skipped"
        for one in skipped(decision):
            yield f"{word:9} {one.route:9} {one.reason}"
            word = ""


def layers_text(layers: Sequence[int]) -> str:
    """``0-4,6``."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def plan_talk(plan: Plan, *, device_only: bool = False) -> Iterator[str]:
    """What is planned: files and devices."""
    if not device_only:
        yield f"model     {plan.model.name} ({plan.model.architecture}), {plan.model.path}"
    if plan.speculation.depth and not device_only:
        draft = plan.draft
        who = f"{draft.name} ({draft.architecture}), {draft.path}" if draft else "n-grams" if plan.speculation.by == "ngram" else "inside the model"
        yield f"drafter   {who}, {plan.speculation.depth} tokens deep"
    split = f" with split mode {plan.flags.split_mode}" if len(plan.devices) > 1 else ""
    yield f"device    {', '.join(f'{device.name} ({device.products})' for device in dict.fromkeys(plan.devices))}{split}"


def plan_rows(plan: Plan, *, everything: bool) -> Iterator[tuple[str, ...]]:
    """One row for each entry, under the names of ``COLUMNS``; below it other routes of smaller nodes and, with ``everything``, what was skipped."""
    for entry in plan.entries:
        place = f"{entry.place}:{entry.device}" if len(plan.devices) > 1 else entry.device
        head = (place, entry.part, layers_text(entry.layers), entry.kind, entry.phase, entry.step)
        yield (*head, str(entry.node), entry.decision.title if entry.decision else "refused", entry.decision.reason if entry.decision else entry.refusal)
        for other in entry.others:
            yield (*head, str(other.node), f"or {other.route}", other.reason)
        if everything and entry.decision:
            for one in skipped(entry.decision):
                yield (*head, "", f"not {one.route}", one.reason)


def plan_table(plan: Plan, *, everything: bool) -> Table:
    """The rows for a terminal, where what repeats is left out."""
    table = Table(*COLUMNS)
    before: tuple[str, ...] = ()
    for row in plan_rows(plan, everything=everything):
        same = row[:6] == before[:6] and _continues(row)
        table.add_row(*(("",) * 6 if same else row[:6]), *row[6:])
        before = row
    return table


def _continues(row: tuple[str, ...]) -> bool:
    return row[7].startswith(("or ", "not "))


def refusals(plan: Plan) -> list[Entry]:
    """Entries that a forced route cannot run."""
    return [entry for entry in plan.entries if entry.decision is None]
