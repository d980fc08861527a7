"""``pyllm bench attention``: the command line."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads it at run time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from pyllm.cli import console, options
from pyllm.errors import ConfigError, OutOfMemoryError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pyllm._ffi import Device, Rates
    from pyllm.bench.attention.measure import Measurement
    from pyllm.bench.attention.shapes import Shape
    from pyllm.bench.attention.side import Side

_NODE = "Nodes in numbers (lists with commas: their product)"
_MODEL = "A model, from its header and the flags"
_OUTPUT = "Output"

#: What is compared with ours, in the order of the columns.
SIDES = ("upstream", "flashinfer", "sdpa")
#: Bytes of K and V between two readings of the same: ten times the largest cache of the kind of device.
_COLD = {"cpu": 256, "gpu": 600}
#: What is measured where nothing is asked for; a tuning looks at more.
_DEFAULT = {"head": "128/128", "heads": "32/8", "n_q": "1,4,16", "n_kv": "32768", "streams": "1", "kv": "f16,q8_0,q4_0"}
_TUNED = _DEFAULT | {
    "head": "64/64,128/128,256/256,512/512",
    "heads": "8/8,16/8,32/8,32/4,32/2",
    "n_q": "1,2,4,8,16,64",
    "n_kv": "1024,4096,32768",
    "streams": "1,8",
}


def attention(  # noqa: PLR0917 - options are given by name
    head: Annotated[str | None, typer.Option(help="Head dims of K and V.", rich_help_panel=_NODE, metavar="D_K/D_V,...")] = None,
    heads: Annotated[str | None, typer.Option(help="Query heads and KV heads.", rich_help_panel=_NODE, metavar="N/M,...")] = None,
    n_q: Annotated[str | None, typer.Option("--n-q", help="Query rows of a stream.", rich_help_panel=_NODE, metavar="N,...")] = None,
    n_kv: Annotated[str | None, typer.Option("--n-kv", help="KV rows.", rich_help_panel=_NODE, metavar="N,...")] = None,
    streams: Annotated[str | None, typer.Option(help="Slots with caches of their own.", rich_help_panel=_NODE, metavar="N,...")] = None,
    type_k: Annotated[str | None, typer.Option("-ctk", "--cache-type-k", help="Types of the keys.", rich_help_panel=_NODE, metavar="TYPE,...")] = None,
    type_v: Annotated[
        str | None, typer.Option("-ctv", "--cache-type-v", help="Types of the values; those of the keys without.", rich_help_panel=_NODE, metavar="TYPE,...")
    ] = None,
    shapes: Annotated[
        Path | None,
        typer.Option(help="Lines of D_K D_V KV_HEADS GQA N_KV N_Q STREAMS TYPE.", rich_help_panel="A file of shapes", metavar="FILE"),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("-m", "--model", help="GGUF file of a model: its own nodes; nothing of it is loaded.", rich_help_panel=_MODEL, metavar="FILE"),
    ] = None,
    draft: options.Draft = None,
    spec: options.Spec = None,
    n_max: options.Depth = None,
    slots: options.Slots = 1,
    ctx: options.Context = 0,
    ubatch: options.MicroBatch = 512,
    device: Annotated[str | None, typer.Option(help="The device, as `pyllm doctor` names it; the first GPU without, or the CPU.", metavar="NAME")] = None,
    route: Annotated[str | None, typer.Option(help="Time this route in place of the table's.", metavar="ROUTE")] = None,
    against: Annotated[str, typer.Option(help=f"What ours is compared with: {', '.join(SIDES)}.", metavar="NAME,...")] = ",".join(SIDES),
    rounds: Annotated[int, typer.Option(help="Rounds; medians are compared.", min=1)] = 15,
    cold: Annotated[
        int | None, typer.Option(help="MiB of K and V between two readings of the same  [default: 600 on a GPU, 256 on a CPU].", min=1, metavar="MIB")
    ] = None,
    tune: Annotated[
        Path | None,
        typer.Option(help="Write where `verify` is faster than the table without it, for --tuning. An hour, unless shapes are given.", metavar="FILE"),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Draw a roofline, and time against KV and query rows: .svg or .png.", metavar="FILE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=_OUTPUT)] = False,
) -> None:
    """Time attention nodes by our routes, by upstream's kernels, FlashInfer and PyTorch, in turn, over cold caches.

    The nodes are given in numbers (--head 128/128 --heads 32/8 --n-q 1,4 --n-kv 32768 -ctk q8_0,q4_0), in a file (--shapes), or are those that a
    model issues with some flags (-m, -md, -np, -c). With --tune the result is a file that `pyllm routes explain`, `run` and `serve` take.
    """
    given = dict(locals())
    _one_source(given)
    if tune is not None:
        _only_tunes(given)
    chosen = _device(device)
    wanted = _shapes(given)
    mib = cold or _COLD["cpu" if chosen[1].kind == "cpu" else "gpu"]
    if tune is not None:
        _tune(tune, chosen[0], wanted, rounds=rounds, mib=mib)
        return
    _measure(chosen, wanted, _sides(route, against, chosen[1]), rounds=rounds, mib=mib, out=out, as_json=as_json)


def _one_source(given: dict[str, Any]) -> None:
    if given["shapes"] is not None and given["model"] is not None:
        raise ConfigError("--shapes and -m are given together", "measure one thing at a time")
    source = "--shapes" if given["shapes"] is not None else "-m" if given["model"] is not None else ""
    foreign = {"--shapes": ("head", "heads", "n_q", "n_kv", "streams", "type_k", "type_v"), "-m": ("head", "heads", "streams"), "": ()}[source]
    for name in foreign:
        if given[name] is not None:
            raise ConfigError(f"--{name.replace('_', '-')} is for nodes in numbers, and {source} is given", f"leave it out, or {source}")
    without = {"draft": None, "spec": None, "n_max": None, "ctx": 0, "slots": 1, "ubatch": 512}
    if source != "-m" and any(given[name] != value for name, value in without.items()):
        raise ConfigError("flags of a model are given without one", "add -m FILE")


def _only_tunes(given: dict[str, Any]) -> None:
    for name, default in (("as_json", False), ("route", None), ("against", ",".join(SIDES)), ("out", None)):
        if given[name] != default:
            option = {"as_json": "--json"}.get(name, f"--{name}")
            raise ConfigError(f"{option} is given with --tune", "a tuning compares `verify` with the table without it, and prints where it wrote the file")
    folder = given["tune"].absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"`{given['tune']}` cannot be written: there is no folder `{folder}`", "give a path in a folder that exists")


def _device(name: str | None) -> tuple[int, Device]:
    from pyllm._ffi import devices  # noqa: PLC0415 - help and mistakes need no native library

    found = devices()
    if name is None:
        return next(((index, one) for index, one in enumerate(found) if one.kind == "gpu"), (0, found[0]))
    for index, one in enumerate(found):
        if one.name.lower() == name.lower():
            return index, one
    raise ConfigError(f"there is no device `{name}`", f"there is {', '.join(one.name for one in found)}")


def _numbers(option: str, text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise ConfigError(f"{option} is `{text}`", f"whole numbers from 1 on, with commas: {option} 1,4,16")
    return [int(word) for word in words]


def _pairs(option: str, text: str) -> list[tuple[int, int]]:
    found = []
    for word in text.split(","):
        first, slash, second = word.partition("/")
        both = (first, second if slash else first)
        if not all(one.isascii() and one.isdigit() for one in both):
            raise ConfigError(f"{option} is `{text}`", f"pairs of whole numbers, with commas: {option} {'128/128,256/256' if option == '--head' else '32/8'}")
        found.append((int(both[0]), int(both[1])))
    return found


def _kv_types(type_k: str | None, type_v: str | None, default: str) -> list[tuple[str, str]]:
    from pyllm._ffi import kv_type  # noqa: PLC0415 - loads the native library

    keys = (type_k or type_v or default).split(",")
    for name in (*keys, *(type_v.split(",") if type_v else ())):
        kv_type(name)
    return [(one, other) for one in keys for other in (type_v.split(",") if type_v and type_k else [one])]


def _shapes(given: dict[str, Any]) -> list[Shape]:
    from pyllm.bench.attention import shapes  # noqa: PLC0415 - loads the native library

    default = _TUNED if given["tune"] is not None else _DEFAULT
    if given["shapes"] is not None:
        return shapes.from_file(given["shapes"])
    if given["model"] is not None:
        return list(_of_model(given))
    text = {name: given[name] or default[name] for name in ("head", "heads", "n_q", "n_kv", "streams")}
    return shapes.from_numbers(
        _pairs("--head", text["head"]),
        _pairs("--heads", text["heads"]),
        _kv_types(given["type_k"], given["type_v"], default["kv"]),
        n_q=_numbers("--n-q", text["n_q"]),
        n_kv=_numbers("--n-kv", text["n_kv"]),
        streams=_numbers("--streams", text["streams"]),
    )


def _of_model(given: dict[str, Any]) -> Iterator[Shape]:
    from pyllm.bench.attention.shapes import from_plan  # noqa: PLC0415 - loads the native library
    from pyllm.config import parse  # noqa: PLC0415
    from pyllm.routes.devices import resolve  # noqa: PLC0415
    from pyllm.routes.flags import Flags  # noqa: PLC0415
    from pyllm.routes.header import read_header  # noqa: PLC0415
    from pyllm.routes.plan import plan  # noqa: PLC0415

    target = read_header(given["model"])
    draft = read_header(given["draft"]) if given["draft"] is not None else None
    spec, n_max = given["spec"], given["n_max"]
    rows = {name: _numbers(f"--{name.replace('_', '-')}", given[name]) if given[name] else [] for name in ("n_q", "n_kv")}
    for pair in _kv_types(given["type_k"], given["type_v"], "f16"):
        values = {name: given[name] for name in ("slots", "ctx", "ubatch")} | {
            "kv_types": pair,
            "spec": options.speculation(spec, n_max if spec is not None else None),
            "n_max": n_max,
        }
        # Any device will do: the nodes do not depend on it.
        yield from from_plan(plan(target, draft, parse(Flags, values), [resolve("sm_90")]), **rows)


def _sides(route: str | None, against: str, device: Device) -> list[Side]:
    from pyllm.bench.attention import torch_sides  # noqa: PLC0415 - loads the native library
    from pyllm.bench.attention.side import Forced, Ours, Upstream  # noqa: PLC0415
    from pyllm.routes.row import ROUTES  # noqa: PLC0415

    if route is not None and route not in ROUTES:
        raise ConfigError(f"route `{route}` is not known", f"choose from {', '.join(ROUTES)}")

    names = against.split(",") if against else []
    for name in names:
        if name not in SIDES:
            raise ConfigError(f"`{name}` is nothing that ours is compared with", f"choose from {', '.join(SIDES)}")
    makers: dict[str, Callable[[], Side]] = {
        "upstream": Upstream,
        "flashinfer": lambda: torch_sides.FlashInfer(torch_sides.torch_device(device.name)),
        "sdpa": lambda: torch_sides.Sdpa(torch_sides.torch_device(device.name)),
    }
    return [Forced(route, 0, name="ours") if route else Ours(), *(makers[name]() for name in SIDES if name in names)]


def _tune(path: Path, index: int, shapes: Sequence[Shape], *, rounds: int, mib: int) -> None:
    import os  # noqa: PLC0415

    from pyllm.bench.attention.tune import tune  # noqa: PLC0415 - loads the native library
    from pyllm.routes import tuning  # noqa: PLC0415
    from pyllm.routes.present import driver_version, routed_device  # noqa: PLC0415

    if os.environ.get("PYLLM_ROUTES"):
        raise ConfigError(f"PYLLM_ROUTES names `{os.environ['PYLLM_ROUTES']}`, and a tuning changes the built-in table", "unset it")

    def save(measured: Sequence[tuning.Measured]) -> tuning.Tuning:
        here = routed_device(index)
        made = tuning.made_here(here, driver_version(here.vendor), measured)
        tuning.write(made, path)
        return made

    with console.bar("measuring", len(shapes)) as bar:
        done = iter(range(1, len(shapes) + 1))
        found, skipped = tune(index, shapes, rounds=rounds, cold=mib << 20, progress=lambda text: bar(next(done), text), save=save)
    for why, nodes in skipped.items():
        console.say(f"skipped   {len(nodes)} shapes, such as {nodes[0]}: {why}")
    made = save(found)
    wins = sum(one.wins for one in found)
    rows = len(tuning.table(made).rows)
    console.say(f"tuning    {path}: `verify` is faster on {wins} of {len(found)} shapes; the table has {rows} rows with it ({made.origin})")
    console.say(f"use it    pyllm serve --tuning {path}, or `pyllm routes table --tuning {path} > FILE` and PYLLM_ROUTES=FILE")


def _measure(chosen: tuple[int, Device], shapes: Sequence[Shape], sides: Sequence[Side], *, rounds: int, mib: int, out: Path | None, as_json: bool) -> None:
    from pyllm._ffi import device_rates  # noqa: PLC0415 - loads the native library
    from pyllm.bench.attention.measure import measure  # noqa: PLC0415
    from pyllm.bench.attention.picture import check_path, draw  # noqa: PLC0415

    index, device = chosen
    if out is not None:
        check_path(out)
    rates = device_rates(index, *((256 << 20, 1024) if device.kind == "cpu" else (2 << 30, 8192)))
    found: list[Measurement] = []
    with console.spinner("measuring") as progress:
        for shape in shapes:
            try:
                found.append(measure(index, shape, sides, rounds=rounds, cold=mib << 20, progress=progress))
            except OutOfMemoryError as failure:  # noqa: PERF203 - the others are measured
                console.say(f"skipped   {shape.node}: {failure.message}")
    if not found:
        raise OutOfMemoryError(f"none of {len(shapes)} shapes fits {device.name}", "measure shorter caches, fewer streams, or less cold memory")
    _print(found, rates, sides, device, rounds=rounds, mib=mib, as_json=as_json)
    if out is not None:
        draw(found, rates, device.description, out)
        console.say(f"picture   {out}")
    wrong = any(timing.wrong for one in found for timing in one.timings)
    raise typer.Exit(1 if wrong else 0)


def _print(found: Sequence[Measurement], rates: Rates, sides: Sequence[Side], device: Device, *, rounds: int, mib: int, as_json: bool) -> None:
    from pyllm.bench.decode import machine  # noqa: PLC0415 - loads the native library
    from pyllm.routes.present import driver_version  # noqa: PLC0415

    if as_json:
        driver = "" if device.kind == "cpu" else driver_version("amd" if device.name.startswith("ROCm") else "nvidia")
        facts = {"measured_on": f"{device.name}: {device.description}", "driver": driver, "rounds": rounds, "cold_bytes": mib << 20, "rates": vars(rates)}
        console.print_json(machine() | facts | {"results": [one.to_json(rates) for one in found]})
        return
    console.say(f"device    {device.name} ({device.description}): copies {rates.copied:.0f} GB/s, multiplies {rates.computed / 1000:.3g} TFLOP/s")
    others = [side.name for side in sides[1:]]
    columns, rows = ("node", "kernel", "µs", "GB/s", "of copy rate", "bound", "of bound", *others), [list(_row(one, rates, others)) for one in found]
    if console.out().is_terminal:
        table = Table(*columns)
        for row in rows:
            table.add_row(*row)
        console.out().print(table)
    else:
        print(*columns, sep="\t")
        for row in rows:
            print(*row, sep="\t")
    warm = sum(one.cold < mib << 20 for one in found)
    if warm:
        console.say(f"warm      {warm} shapes are so small that 1024 of them are less than {mib} MiB: caches may hold them")
    for side, why in dict.fromkeys((timing.side, timing.refusal) for one in found for timing in one.timings if timing.refusal):
        console.say(f"{side:9} {why}")


def _row(one: Measurement, rates: Rates, others: Sequence[str]) -> Iterator[str]:
    ours = one.of("ours")
    yield f"{one.shape.node}" + (f" ({one.shape.origin})" if one.shape.origin else "")
    if ours is None:
        yield from ["-"] * 6
    else:
        bound, share = one.limit(ours, rates)
        yield from (ours.kernel, f"{ours.us:.2f}", f"{one.rate(ours):.0f}", f"{one.rate(ours) / rates.copied:.0%}", bound, f"{share:.0%}")
    for name in others:
        timing = one.of(name)
        yield "-" if timing is None else f"{timing.us:.2f}" + (f" ({timing.us / ours.us:.2f}×)" if ours else "")
