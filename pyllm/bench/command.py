"""``pyllm bench``: measurements from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path  # noqa: TC003 - typer reads it at run time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pyllm.bench.attention.command import attention
from pyllm.cli import options  # noqa: TC001 - typer reads it at run time
from pyllm.config import EngineConfig, SpecConfig, parse

if TYPE_CHECKING:
    from pyllm.bench.soak import Soak

app = typer.Typer(no_args_is_help=True)


app.command()(attention)


@app.callback()
def bench() -> None:
    """Measure: both sides in one run, in turn."""


@app.command()
def decode(  # noqa: PLR0917 - typer passes options by name
    model: Annotated[str | None, typer.Option("-m", "--model", help="A GGUF file; without one a tiny-model recipe of a useful size is made.")] = None,
    draft: Annotated[str | None, typer.Option("-md", "--draft", help="Drafter for the run with speculation.")] = None,
    spec: Annotated[str | None, typer.Option(help="Drafter type for the run with speculation: mtp, dflash, ngram.")] = None,
    n_max: Annotated[list[int] | None, typer.Option("--n-max", help="Draft depth, once for each run with speculation.")] = None,
    slots: Annotated[list[int] | None, typer.Option("-np", "--slots", help="Slots, once for each measurement  [default: 1, 8].")] = None,
    ctx: Annotated[int, typer.Option("-c", "--ctx", help="KV cells of one slot.")] = 512,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 32,
    tokens: Annotated[int, typer.Option("-n", help="Tokens generated for each prompt.")] = 64,
    rounds: Annotated[int, typer.Option(help="Rounds on each side; medians are compared.")] = 5,
    decoding: Annotated[bool, typer.Option("--decoding", help="Time what comes after each request's first tokens; prompts stay the same.")] = False,
    type_k: options.KeyType = "f16",
    type_v: options.ValueType = "f16",
    width: Annotated[int, typer.Option(help="Width factor of the model that is made when none is given.")] = 16,
    server: Annotated[Path | None, typer.Option(help="Server binary to compare with.", envvar="PYLLM_SERVER")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tokens per second of the engine and of pyllm-server, with and without speculation."""
    from pyllm import models  # noqa: PLC0415 - the native library and the recipes are slow to import
    from pyllm.bench.decode import Workload, machine, measure  # noqa: PLC0415
    from pyllm.server.binary import find_server  # noqa: PLC0415

    talk = Console(stderr=True)
    if model is None:
        family = "successor"
        target = models.make("llama", family=family, width=width)
        draft = draft or str(models.make("llama-dflash", family=family, width=width, error_rate=0.1))
        spec = spec or "dflash"
        model = str(target)
    binary = find_server(server)
    results = []
    fixed = {"types": spec, "depth_control": False}
    drafting = [SpecConfig.of(fixed | {"n_max": depth}) for depth in n_max] if n_max else [SpecConfig.of(fixed)]
    for speculation in [None, *drafting] if spec else [None]:
        for count in slots or [1, 8]:
            config = parse(
                EngineConfig,
                {
                    "model": model,
                    "draft": draft if speculation is not None else None,
                    "spec": speculation,
                    "slots": count,
                    "ctx": ctx * count,
                    "kv_types": (type_k, type_v),
                    # As the server's --cache-ram 0: a conversation that ends is not put aside for later, which takes time. The checkpoints of
                    # prompts that are asked for again are kept, as the server keeps its own.
                    "cache_bytes": EngineConfig.model_fields["cache_bytes"].default if decoding else 0,
                },
            )
            work = Workload(count, prompt_tokens, tokens, rounds, decoding)
            with talk.status("starting") as status:
                results.append(measure(config, work, binary, status.update))
    if as_json:
        facts: dict[str, Any] = {
            "model": model,
            "draft": draft,
            "spec": spec,
            "prompt_tokens": prompt_tokens,
            "tokens": tokens,
            "rounds": rounds,
        }
        facts |= {"decoding": decoding, "kv_types": [type_k, type_v]}
        json.dump(machine() | facts | {"results": [result.to_json() for result in results]}, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    table = Table("speculation", "depth", "slots", "engine tok/s", "server tok/s", "engine / server", "ms per step", "accepted", "same tokens")
    for result in results:
        table.add_row(
            spec if result.speculation and spec else "none",
            str(result.depth) if result.depth else "",
            str(result.slots),
            f"{result.engine:.1f}",
            f"{result.server:.1f}",
            f"{result.ratio:.3f}",
            f"{result.step_ms:.2f}",
            f"{result.acceptance:.0%}" if result.speculation else "",
            "yes" if result.same_tokens else "NO",
        )
    Console().print(table)


@app.command()
def depth(  # noqa: PLR0917 - typer passes options by name
    model: Annotated[str | None, typer.Option("-m", "--model", help="A GGUF file; without one a tiny-model recipe of a useful size is made.")] = None,
    draft: Annotated[str | None, typer.Option("-md", "--draft", help="Its drafter.")] = None,
    spec: Annotated[str, typer.Option(help="Drafter type.")] = "dflash",
    error_rate: Annotated[float, typer.Option(help="Of the drafter that is made: the share of tokens after which it is wrong.")] = 0.0,
    slots: Annotated[list[int] | None, typer.Option("-np", "--slots", help="Requests at once, one for each measurement  [default: 1, 2, 4, 8, 16].")] = None,
    ctx: Annotated[int, typer.Option("-c", "--ctx", help="KV cells of one slot.")] = 512,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 32,
    tokens: Annotated[int, typer.Option("-n", help="Tokens generated for each prompt.")] = 192,
    rounds: Annotated[int, typer.Option(help="Rounds on each side; medians are compared.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tokens per second with depth control against no speculation, in turns of a fraction of a second, and what a wider decode costs here."""
    from pyllm import models  # noqa: PLC0415 - the native library and the recipes are slow to import
    from pyllm.bench.decode import machine  # noqa: PLC0415
    from pyllm.bench.depth import compare  # noqa: PLC0415
    from pyllm.bench.turns import TURN  # noqa: PLC0415

    if model is None:
        model = str(models.make("llama", family="successor", size="60m", tensor_type="q8_0"))
        draft = draft or str(models.make("llama-dflash", family="successor", size="60m", error_rate=error_rate))
    config = parse(EngineConfig, {"model": model, "draft": draft, "spec": spec, "ctx": ctx})
    with Console(stderr=True).status("starting") as status:
        found, costs = compare(config, slots or [1, 2, 4, 8, 16], prompt_tokens=prompt_tokens, tokens=tokens, rounds=rounds, progress=status.update)
    if as_json:
        facts: dict[str, Any] = {"model": model, "draft": draft, "spec": spec, "error_rate": error_rate, "prompt_tokens": prompt_tokens, "tokens": tokens}
        facts |= {"rounds": rounds, "turn_seconds": TURN}
        rows = [vars(cost) for cost in costs]
        json.dump(machine() | facts | {"results": [one.to_json() for one in found], "rows": rows}, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    table = Table("requests", "none tok/s", "controlled tok/s", "ratio", "range", "accepted", "depth", "probing", "same tokens")
    for one in found:
        low, high = one.ratio_range
        table.add_row(
            str(one.slots),
            f"{one.plain:.1f}",
            f"{one.controlled:.1f}",
            f"{one.ratio:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{one.accepted:.0%}",
            f"{one.depth:.2f}",
            f"{one.probing:.1%}",
            "yes" if one.same_tokens else "NO",
        )
    Console().print(table)
    Console().print("a decode of n rows over one of 1 row: " + ", ".join(f"{cost.rows}: {cost.over_one:.2f}" for cost in costs))


@app.command()
def soak(
    cycles: Annotated[int, typer.Option(help="Steps over all engines.")] = 200_000,
    seed: Annotated[int, typer.Option(help="Of the events.")] = 1,
    jobs: Annotated[int, typer.Option("-j", "--jobs", help="Engines that run at once, each in a process of its own.", min=1, max=4)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Random arrivals, cancels, shifts, evictions, saves and restores on four tiny engines, each step checked.

    Ends with an error when something is not what it has to be, or when memory grows.
    """
    from pyllm.bench.decode import machine  # noqa: PLC0415 - the native library is slow to load
    from pyllm.bench.soak import SHARES, soak_all  # noqa: PLC0415

    found = {}
    with Console(stderr=True).status(f"{len(SHARES)} engines") as status:
        for name, result in soak_all(cycles, seed, jobs):
            found[name] = result
            status.update(f"{len(found)} of {len(SHARES)} engines are done, {name} the last")
    results = {name: found[name] for name in SHARES}
    if as_json:
        facts = {"cycles": cycles, "seed": seed, "jobs": jobs}
        json.dump(machine() | facts | {"results": {name: result.to_json() for name, result in results.items()}}, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _print_soak(results)
    for result in results.values():
        result.check_memory()


def _print_soak(results: dict[str, Soak]) -> None:
    table = Table("engine", "cycles", "requests", "tokens", "accepted", "shifts", "evicted", "seconds", "engine's MiB by quarter", "last / second", "digest")
    for name, result in results.items():
        table.add_row(
            name,
            str(result.cycles),
            str(sum(result.ends.values())),
            str(result.tokens),
            f"{result.accepted / max(1, result.drafted):.0%}",
            str(result.shifts),
            str(result.evicted),
            f"{result.seconds:.0f}",
            ", ".join(f"{size / 2**20:.1f}" for size in result.engine),
            f"{1 + result.growth:.4f}",
            result.digest[:12],
        )
    Console().print(table)
