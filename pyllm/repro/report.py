"""Verdicts as a table, as plain lines, and as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Column, Table

from pyllm._version import __version__
from pyllm.repro.verdict import LEVELS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyllm.repro.verdict import Verdict

_STYLE = {"pass": "green", "fail": "bold red", "skipped": "yellow"}


def table(verdicts: Sequence[Verdict]) -> Table:
    """Scenario × level, for a terminal."""  # noqa: RUF002 - as printed
    levels = [level for level in LEVELS if any(verdict.level == level for verdict in verdicts)]
    result = Table(Column("scenario", overflow="fold"), *levels, show_lines=True)
    for name in dict.fromkeys(verdict.scenario for verdict in verdicts):
        cells = {verdict.level: _cell(verdict) for verdict in verdicts if verdict.scenario == name}
        result.add_row(escape(name), *(cells.get(level, "") for level in levels))
    return result


def _cell(verdict: Verdict) -> str:
    head = f"[{_STYLE[verdict.status]}]{verdict.status}[/]"
    return "\n".join(
        [
            f"{head} {escape(summary(verdict))}".rstrip(),
            *(f"[dim]not run: {escape(part)}[/]" for part in verdict.not_run),
        ]
    )


def lines(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """The same for a pipe: one line each, fields separated by tabs."""
    for verdict in verdicts:
        rest = [f"not run: {part}" for part in verdict.not_run]
        yield "\t".join([verdict.scenario, verdict.level, verdict.status, "; ".join([summary(verdict), *rest])])


def summary(verdict: Verdict) -> str:
    """What stands beside the status."""
    if verdict.status == "skipped":
        return f"because {verdict.reason}"
    if verdict.failure is not None:
        return f"{_where(verdict)}: {verdict.failure.what.splitlines()[0]}"
    if verdict.sentence:
        return verdict.sentence
    parts = [f"{verdict.requests} requests, {verdict.compared} equal to plain decoding" if verdict.requests else "refused as expected"]
    if verdict.drafted:
        parts.append(f"{verdict.accepted} of {verdict.drafted} drafted tokens accepted")
    return ", ".join([*parts, f"{verdict.seconds:.1f} s"])


def failures(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """A block for each failure: where, what was expected, what came, the log, and the command to paste."""
    for verdict in verdicts:
        failure = verdict.failure
        if failure is None:
            continue
        title = f"{verdict.scenario} at {verdict.level} level, {_where(verdict)}"
        block = [title, "=" * len(title), failure.what]
        block += [f"expected  {failure.expected}"] if failure.expected else []
        block += [f"got       {failure.got}"] if failure.got else []
        block += ["also" if verdict.level == "plan" else "log", *(f"  {line}" for line in failure.log)] if failure.log else []
        block += ["command", f"  {failure.command}"] if failure.command else []
        block += [f"target    {verdict.target}"] if verdict.target else []
        yield "\n".join(block)


def _where(verdict: Verdict) -> str:
    step = None if verdict.failure is None else verdict.failure.step
    if step is None:
        return "at the end"
    if verdict.level == "plan":
        return f"node {step}"
    return f"step {step}" if step else "at the start"


def nodes(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """A block for each plan: what becomes of every node, there and here, and why."""
    for verdict in verdicts:
        if not verdict.nodes:
            continue
        title = f"{verdict.scenario} at {verdict.level} level: {verdict.oracle}, and {verdict.target}"
        yield "\n".join([title, "=" * len(title), *(line for node in verdict.nodes for line in _node(node))])


def _node(node: dict[str, Any]) -> Iterator[str]:
    there, here = node["there"], node["here"]
    yield f"{node['place']}. {node['role']}, on {node['device']}"
    yield f"   node   {node['node']}" + ("" if there["kv"] in node["node"] else f", there {there['kv']}")
    yield "   there  " + there["then"] + (f" at {there['site']}" if there["site"] else "") + (f": {there['says']}" if there["says"] else "")
    if "refused" in here:
        yield f"   here   refused: {here['refused']}"
        return
    tile = f" {here['params'][0]}x{here['params'][1]}" if here["params"][0] else ""
    room = f" ({here['smem']['needs']} of {here['smem']['limit']} bytes of shared memory)" if "smem" in here else ""
    yield f"   here   {here['route']}{tile}: {here['reason']}{room}"
    for other in here["rejected"]:
        yield f"          not {other['route']}: {other['reason']}"


def counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How many passed, failed and were skipped."""
    return {status: sum(verdict.status == status for verdict in verdicts) for status in _STYLE}


def as_json(verdicts: Sequence[Verdict], against: str | None) -> str:
    """Everything, for a machine."""
    value: dict[str, Any] = {
        "pyllm": __version__,
        "against": against,
        "counts": counts(verdicts),
        "verdicts": [verdict.as_dict() for verdict in verdicts],
    }
    return json.dumps(value, indent=2, ensure_ascii=False)
