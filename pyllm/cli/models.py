"""``pyllm models``: tiny models."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import Annotated, Literal

import typer
from rich.table import Table

from pyllm.cli import console

app = typer.Typer(help="Tiny GGUF models for tests and replays.", no_args_is_help=True, add_completion=False)


@app.command("list")
def list_recipes(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the recipes."""
    from pyllm import models  # noqa: PLC0415 - numpy and gguf are slow to load

    recipes = models.recipes()
    if as_json:
        names = ("name", "description", "architecture", "kind", "families", "spec", "targets", "drafters", "depth", "sizes")
        console.print_json([{name: getattr(recipe, name) for name in names} for recipe in recipes])
        return
    if not console.out().is_terminal:
        for recipe in recipes:
            print(recipe.name, recipe.architecture, recipe.kind, recipe.description, sep="\t")
        return
    table = Table("recipe", "architecture", "drafted by", "description")
    for recipe in recipes:
        drafters = ", ".join(f"{spec}: {name or 'built in'}" for spec, name in recipe.drafters)
        table.add_row(
            recipe.name,
            recipe.architecture,
            drafters or (f"[dim]drafts for {', '.join(recipe.targets)}[/]" if recipe.targets else ""),
            recipe.description,
        )
    console.out().print(table)


@app.command("make")
def make(  # noqa: PLR0917 - options are given by name
    recipe: Annotated[str, typer.Argument(help="A recipe, see `pyllm models list`.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The file to write; without it, one in the cache.")] = None,
    family: Annotated[str, typer.Option(help="Weights: random, or successor (the next token is a known function of the last).")] = "random",
    seed: Annotated[int, typer.Option(help="Seed of the weights. A target and its drafter need the same.")] = 0,
    error_rate: Annotated[
        str,
        typer.Option(help="Share of tokens after which a successor drafter is wrong; several, with commas, for the places of a draft."),
    ] = "0",
    nan_after: Annotated[str | None, typer.Option(help="`always`, or the token after which a drafter's logits are NaN.")] = None,
    width: Annotated[int, typer.Option(help="Multiplies the widths.")] = 1,
    layers: Annotated[int | None, typer.Option(help="Blocks, instead of the recipe's own number.")] = None,
    size: Annotated[str, typer.Option(help="tiny; 60m or 8b weights, or slice (a real model with fewer layers), which some recipes come in.")] = "tiny",
    n_vocab: Annotated[int | None, typer.Option("--vocab", help="Tokens, those beyond the recipe's own unused.")] = None,
    tensor_type: Annotated[str, typer.Option("--type", help="Of the larger sizes' layers: f16, q8_0 or q4_0.")] = "f16",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write one model and print where it is."""
    from pyllm import models  # noqa: PLC0415 - numpy and gguf are slow to load
    from pyllm.errors import InvalidArgumentError  # noqa: PLC0415 - not needed by the help

    try:
        path = models.make(
            recipe,
            out,
            family=family,
            seed=seed,
            error_rate=_error_rate(error_rate),
            nan_after=_nan_after(nan_after),
            width=width,
            layers=layers,
            size=size,
            n_vocab=n_vocab,
            tensor_type=tensor_type,
        )
    except OSError as failure:
        if failure.errno is None:
            raise
        raise InvalidArgumentError(
            f"`{out}` cannot be written: {failure.strerror}",
            "give a path in a folder that exists and may be written to",
        ) from failure
    if as_json:
        console.print_json({"recipe": recipe, "family": family, "seed": seed, "path": str(path), "bytes": path.stat().st_size})
    else:
        print(path)


def _error_rate(text: str) -> list[float]:
    from pyllm.errors import InvalidArgumentError  # noqa: PLC0415 - not needed by the help

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as failure:
        raise InvalidArgumentError(f"--error-rate `{text}` is not a number or several with commas", "for example 0.25 or 0.1,0.3,0.5") from failure


def _nan_after(text: str | None) -> int | Literal["always"] | None:
    from pyllm.errors import InvalidArgumentError  # noqa: PLC0415 - not needed by the help

    if text is None or text == "always":
        return text  # type: ignore[return-value] # mypy does not narrow a str to a literal
    try:
        return int(text)
    except ValueError as failure:
        raise InvalidArgumentError(f"--nan-after `{text}` is neither `always` nor a token's number", "the token of `a` is 337") from failure
