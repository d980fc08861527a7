"""``pyllm routes``: which kernel runs which attention node, and why."""

from __future__ import annotations

import typer

from pyllm.cli.routes_check import check, matrix, table
from pyllm.cli.routes_explain import explain

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def _routes() -> None:
    """Attention routes: which kernel runs a node, and why."""


app.command("explain")(explain)
app.command("check")(check)
app.command("matrix")(matrix)
app.command("table")(table)
