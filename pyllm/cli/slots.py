"""``pyllm slots``: files of saved slots."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated

import typer

from pyllm.cli import console
from pyllm.errors import PyllmError

if TYPE_CHECKING:
    from pyllm.checkpoints.inspect import Report

app = typer.Typer(help="Files of saved slots (checkpoints).", no_args_is_help=True, add_completion=False)

_JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _printable(text: str) -> str:
    """A text of a file, without what would move a terminal's cursor."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _inspect(path: Path) -> Report:
    from pyllm.checkpoints.inspect import inspect as read  # noqa: PLC0415 - loads the native library

    with console.spinner(f"checking {path}"):
        return read(path)


def _problems(path: Path, fingerprint: str | None) -> list[str]:
    try:
        return _inspect(path).problems(fingerprint)
    except PyllmError as failure:
        return [failure.message]


@app.command("inspect")
def inspect(file: Annotated[Path, typer.Argument(help="The file of a saved slot.", metavar="FILE")], *, as_json: _JSON = False) -> None:
    """Print who wrote a file, with which model, and its sections; exits 1 when it is damaged."""
    report = _inspect(file)
    if as_json:
        sections = [
            {
                "name": section.name,
                "offset": section.offset,
                "bytes": section.size,
                "checksum": f"{section.checksum:016x}",
                "whole": section.name not in report.damaged,
            }
            for section in report.sections
        ]
        about = {"path": str(file), "bytes": report.size, "format": report.version, "whole": report.whole}
        console.print_json(about | {"facts": report.facts, "sections": sections})
    else:
        rows = [("file", str(file)), ("format", str(report.version)), ("bytes", f"{report.size:,}"), *report.facts.items()]
        width = max(len(_printable(name)) for name, _ in rows)
        for name, value in rows:
            print(f"{_printable(name):{width}}  {_printable(value)}".rstrip())
        width = max((len(section.name) for section in report.sections), default=0)
        for section in report.sections:
            print(f"section {section.name:{width}}  {section.size:>15,} bytes  {'DAMAGED' if section.name in report.damaged else 'whole'}")
    if not report.whole:
        raise typer.Exit(1)


@app.command("verify")
def verify(
    files: Annotated[list[Path], typer.Argument(help="Files of saved slots.", metavar="FILE")],
    *,
    model: Annotated[Path | None, typer.Option("-m", "--model", help="The GGUF file that they have to have been saved with.", metavar="MODEL")] = None,
    as_json: _JSON = False,
) -> None:
    """Check every byte of files; exits 1 when one is damaged, or not of the model."""
    from pyllm._ffi import Model, model_fingerprint  # noqa: PLC0415 - loads the native library

    fingerprint = None
    if model is not None:
        with Model(model, vocab_only=True) as loaded:
            fingerprint = model_fingerprint(loaded)
    results = [(file, _problems(file, fingerprint)) for file in files]
    if as_json:
        console.print_json([{"path": str(file), "ok": not problems, "problems": problems} for file, problems in results])
    else:
        for file, problems in results:
            print(file, "refused" if problems else "whole", *([_printable("; ".join(problems))] if problems else []), sep="\t")
    if any(problems for _, problems in results):
        raise typer.Exit(1)
