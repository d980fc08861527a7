"""Options that several commands share; names are llama.cpp's where it has one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pyllm.config import SpecConfig
from pyllm.errors import ConfigError

_ATTENTION = "Attention"
_SPECULATION = "Speculation"
_SIZES = "Slots and sizes"

Draft = Annotated[
    Path | None,
    typer.Option(
        "-md",
        "--draft",
        "--model-draft",
        help="GGUF file of the drafter.",
        rich_help_panel=_SPECULATION,
        metavar="FILE",
    ),
]
Spec = Annotated[
    str | None,
    typer.Option(
        "--spec",
        "--spec-type",
        help="Drafter type: mtp, dflash, ngram …; several with commas.",
        rich_help_panel=_SPECULATION,
        metavar="TYPE",
    ),
]
Depth = Annotated[
    int | None,
    typer.Option(
        "--n-max",
        "--spec-draft-n-max",
        help="Tokens to draft at most; the type's default without.",
        rich_help_panel=_SPECULATION,
        metavar="N",
    ),
]
DepthControl = Annotated[
    bool,
    typer.Option(
        "--depth-control/--no-depth-control",
        help="Draft as much as pays by what is measured, down to nothing; without, always as much as there is room for.",
        rich_help_panel=_SPECULATION,
    ),
]
Slots = Annotated[
    int,
    typer.Option("-np", "--slots", "--parallel", help="Requests that run at once.", rich_help_panel=_SIZES, metavar="N"),
]
Context = Annotated[
    int,
    typer.Option(
        "-c",
        "--ctx",
        "--ctx-size",
        help="KV cells over all slots; 0 is the model's own length.",
        rich_help_panel=_SIZES,
        metavar="N",
    ),
]
Batch = Annotated[
    int,
    typer.Option("-b", "--batch", "--batch-size", help="Tokens in one decode.", rich_help_panel=_SIZES, metavar="N"),
]
MicroBatch = Annotated[
    int,
    typer.Option(
        "-ub",
        "--ubatch",
        "--ubatch-size",
        help="Tokens in one pass over the weights.",
        rich_help_panel=_SIZES,
        metavar="N",
    ),
]
KeyType = Annotated[
    str,
    typer.Option("-ctk", "--cache-type-k", help="Type of the KV cache's keys.", rich_help_panel=_SIZES, metavar="TYPE"),
]
ValueType = Annotated[
    str,
    typer.Option("-ctv", "--cache-type-v", help="Type of the KV cache's values.", rich_help_panel=_SIZES, metavar="TYPE"),
]


def speculation(types: str | None, depth: int | None, *, depth_control: bool = True) -> SpecConfig | None:
    """The speculation that ``--spec``, ``--n-max`` and ``--no-depth-control`` ask for.

    Raises:
        ConfigError: an unknown type, or a depth or its control without one.
    """
    if types is None:
        stray = f"--n-max {depth}" if depth is not None else "" if depth_control else "--no-depth-control"
        if stray:
            raise ConfigError(f"{stray} is given without a drafter type", "add --spec, for example --spec mtp")
        return None
    return SpecConfig.of({"types": types, "depth_control": depth_control} | ({} if depth is None else {"n_max": depth}))


ForceRoute = Annotated[
    str | None,
    typer.Option(
        "--force-route",
        help="Run attention by this route only, or fail: mma, or decode=vec,verify=mma.",
        rich_help_panel=_ATTENTION,
        metavar="[PHASE=]ROUTE",
    ),
]
Tuning = Annotated[
    Path | None,
    typer.Option(
        "--tuning",
        help="What `pyllm bench attention --tune` measured; used on the device, driver and version that it was made with.",
        rich_help_panel=_ATTENTION,
        metavar="FILE",
    ),
]
AllowCpuAttention = Annotated[
    bool,
    typer.Option("--allow-cpu-attention", help="Attention of a layer on a GPU may run on the CPU; otherwise that is an error.", rich_help_panel=_ATTENTION),
]
