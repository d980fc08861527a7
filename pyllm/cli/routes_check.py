"""``pyllm routes check | matrix | table``: the proof of a route table, what runs where, and the table as text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pyllm.cli import console, options
from pyllm.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from pyllm.routes.check import Report
    from pyllm.routes.tablefile import Table

_FILE = Annotated[Path | None, typer.Argument(help="A table file; the built-in table without.", metavar="FILE")]
_JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _load(file: Path | None) -> Table:
    from pyllm.routes.decision import TABLE  # noqa: PLC0415 - loads the native library
    from pyllm.routes.tablefile import Table, load  # noqa: PLC0415

    if file is None:
        return TABLE
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as failure:
        raise NotFoundError(f"table `{file}` cannot be read: {failure.strerror}", "`pyllm routes table` writes one") from None
    table = load(text, str(file))
    return table if table.accepts else Table(table.rows, TABLE.accepts)


def check(file: _FILE = None, *, as_json: _JSON = False) -> None:
    """Prove that each key gets a route, and no route a key that its kernel does not accept; exit code 1 with counterexamples."""
    from pyllm.routes.check import SHOWN  # noqa: PLC0415
    from pyllm.routes.check import check as prove  # noqa: PLC0415

    table = _load(file)
    report = prove(table)
    if as_json:
        console.print_json(_plain(report))
        raise typer.Exit(0 if report.ok else 1)
    classes = ", ".join(f"{name} {count}" for name, count in report.classes.items())
    print(f"{report.keys:,} keys = {classes.replace(', ', ' × ')}")
    print(f"{len(table.rows)} rows, {len(table.accepts)} executors, {report.seconds:.1f} s")
    if report.ok:
        print("total, sound and frugal; every row decides some key")
        return
    for kind in ("total", "sound", "frugal", "unreachable"):
        found = [finding for finding in report.findings if finding.kind == kind]
        for finding in found[:SHOWN]:
            print(f"not {kind}: {finding.text}" if kind != "unreachable" else finding.text)
            if finding.key:
                print(f"  for example: {finding.key}\n  and {finding.keys - 1:,} more keys")
        if len(found) > SHOWN:
            print(f"  … and {len(found) - SHOWN} more like it")
    raise typer.Exit(1)


def _plain(report: Report) -> dict[str, object]:
    return {
        "ok": report.ok,
        "keys": report.keys,
        "classes": report.classes,
        "seconds": report.seconds,
        "keys_per_row": report.won,
        "findings": [{"kind": one.kind, "text": one.text, "key": one.key, "keys": one.keys} for one in report.findings],
    }


def matrix() -> None:
    """Print what runs where: head dims, K/V types, ratios and query rows of real models, on every device."""
    from pyllm.routes.matrix import matrix as text  # noqa: PLC0415

    print(text(), end="")


def table(file: _FILE = None, *, tuning: options.Tuning = None) -> None:
    """Print a table as text, as PYLLM_ROUTES reads it: the built-in one, a file's, or the built-in one with what was measured on a device."""
    from pyllm.routes.tablefile import dump  # noqa: PLC0415

    if tuning is None:
        print(dump(_load(file)), end="")
        return
    from pyllm.routes import tuning as tunings  # noqa: PLC0415 - loads the native library

    if file is not None:
        raise ConfigError(f"a table `{file}` and a tuning `{tuning}` are given together", "a tuning changes the built-in table: leave FILE out")
    read = tunings.read(tuning)
    if why := tunings.outdated(read):
        raise ConfigError(f"tuning `{tuning}` is not of this version: {why}", "make it anew on its device: `pyllm bench attention --tune FILE`")
    print(dump(tunings.table(read)), end="")
