"""``pyllm serve``: check, say what will run, and run the server."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pyllm.cli import console, options
from pyllm.config import NGRAM_TYPES, EngineConfig, check_batch, parse
from pyllm.errors import ConfigError, NotFoundError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyllm.config import SpecConfig

app = typer.Typer(add_completion=False)

#: Upstream's default of --spec-draft-n-max.
_HEAD_DEPTH = 3


@dataclass(frozen=True)
class Header:
    """What a model's header says, as far as the flags depend on it. 0 where a key is missing."""

    name: str
    architecture: str
    n_ctx_train: int
    n_nextn: int
    block_size: int


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file, without its weights.

    Raises:
        NotFoundError: no such file.
        ModelFormatError: not a GGUF model.
    """
    from pyllm._ffi import Model  # noqa: PLC0415 - loads the native library

    with Model(path, vocab_only=True) as model:

        def text(key: str, default: str) -> str:
            try:
                return str(model.meta(key))
            except NotFoundError:
                return default

        kind = text("general.architecture", "")
        numbers = [int(text(f"{kind}.{key}", "0")) for key in ("context_length", "nextn_predict_layers", "block_size")]
        return Header(text("general.name", path.stem), kind, *numbers)


@app.command()
def serve(  # noqa: PLR0917 - options are given by name
    model: Annotated[Path, typer.Option("-m", "--model", help="GGUF file of the model.", metavar="FILE")],
    draft: options.Draft = None,
    spec: options.Spec = None,
    n_max: options.Depth = None,
    depth_control: options.DepthControl = True,
    slots: options.Slots = 1,
    ctx: options.Context = 0,
    batch: options.Batch = 2048,
    ubatch: options.MicroBatch = 512,
    type_k: options.KeyType = "f16",
    type_v: options.ValueType = "f16",
    force_route: options.ForceRoute = None,
    tuning: options.Tuning = None,
    allow_cpu_attention: options.AllowCpuAttention = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8080,
    flags: Annotated[
        list[str] | None,
        typer.Argument(help="Flags for the server itself, unchanged: see `pyllm-server --help`.", metavar="-- FLAGS..."),
    ] = None,
) -> None:
    """Check the configuration, start the server and print its URL.

    The binary is the installed pyllm-server, or the one that the environment variable PYLLM_SERVER names.

    A pyllm-server that crashes leaves a report in the folder that PYLLM_CRASH_DIR names, or the system's temporary one; an empty value: none.
    """
    from pyllm.server import ServerProcess, find_server  # noqa: PLC0415 - httpx and pydantic load slower than the help

    if flags and not flags[0].startswith("-"):
        raise ConfigError(f"argument `{flags[0]}` is not known", "the model is given with -m, flags for the server after --")
    values = {
        "model": model,
        "draft": draft,
        "spec": options.speculation(spec, n_max, depth_control=depth_control),
        "slots": slots,
        "ctx": ctx,
        "batch": batch,
        "ubatch": ubatch,
        "kv_types": (type_k, type_v),
        "force_route": force_route,
        "tuning": tuning,
        "allow_cpu_attention": allow_cpu_attention,
    }
    config: EngineConfig = parse(EngineConfig, values)
    binary = find_server()
    target = read_header(config.model)
    drafter = read_header(config.draft[0]) if config.draft else None
    depth = draft_depth(config.spec, target, drafter)
    check_batch(batch=min(config.batch, config.ctx or target.n_ctx_train or config.batch), slots=config.slots, depth=depth)
    controlled = controls_depth(config.spec, binary)
    with tuned(config.tuning) as environment:
        server = ServerProcess(
            binary,
            [*command_flags(config, depth, controlled=controlled), *(flags or [])],
            host=host,
            port=port,
            env=environment,
            echo=lambda line: print(line, file=sys.stderr),
        )
        for line in plan(config, target, drafter, depth, controlled=controlled):
            console.say(line)
        console.say(f"command   {server.command_line}")
        with server.start(), server.forward_signals() as sent:
            print(server.url, flush=True)
            code = server.wait() or 0
    if code and not sent:
        print(server.death("while serving").render(), file=sys.stderr)
    raise typer.Exit(code if code >= 0 else 128 - code)


@contextlib.contextmanager
def tuned(path: Path | None) -> Iterator[dict[str, str]]:
    """The environment that gives a server the table of a tuning, where it holds; says which."""
    if path is None:
        yield {}
        return
    from pyllm.routes.present import present_devices  # noqa: PLC0415 - loads the native library
    from pyllm.routes.tablefile import dump  # noqa: PLC0415
    from pyllm.routes.tuning import choose  # noqa: PLC0415

    choice = choose(path, present_devices())
    console.say(f"tuning    {choice.says}")
    if choice.table is None:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="pyllm-") as folder:
        file = Path(folder) / "routes"
        file.write_text(dump(choice.table), encoding="utf-8")
        yield {"PYLLM_ROUTES": str(file)}


def draft_depth(spec: SpecConfig | None, target: Header, drafter: Header | None) -> int:
    """Tokens that a slot drafts at most, 0 without speculation.

    Raises:
        UnsupportedError: the model has no prediction heads and no drafter is given, or the drafter is of another type.
    """
    if spec is None:
        return 0
    if "draft-mtp" in spec.types and drafter is None and not target.n_nextn:
        raise UnsupportedError(
            f"`draft-mtp` needs prediction heads, and `{target.name}` ({target.architecture}) has none in its file",
            "give its MTP drafter with -md, or another --spec",
        )
    if "draft-dflash" in spec.types and drafter is not None and not drafter.block_size:
        raise UnsupportedError(
            f"`draft-dflash` needs a block drafter, and `{drafter.name}` ({drafter.architecture}) is none",
            "give a DFlash GGUF with -md, or another --spec",
        )
    depths = [spec.n_max or _HEAD_DEPTH for name in spec.types if name == "draft-mtp"]
    if drafter is not None and drafter.block_size:
        depths.append(min(spec.n_max or drafter.block_size, drafter.block_size - 1))
    # N-gram drafts take what room a batch leaves.
    return max(depths, default=0)


def controls_depth(spec: SpecConfig | None, binary: Path) -> bool:
    """Whether the server is to choose its depths. One that is not ours does not know how, which is said."""
    if spec is None or not spec.depth_control:
        return False
    from pyllm.server.binary import server_version  # noqa: PLC0415 - httpx and pydantic load slower than the help

    if server_version(binary) is not None:
        return True
    console.say(f"depth     always the most: `{binary}` is not a pyllm-server, and has no depth control")
    return False


def command_flags(config: EngineConfig, depth: int, *, controlled: bool) -> list[str]:
    """The server's flags for these settings; ``controlled``: it chooses its depths."""
    flags = ["-m", str(config.model)]
    if config.draft:
        flags += ["-md", str(config.draft[0])]
    if config.spec is not None:
        flags += ["--spec-type", ",".join(config.spec.types)]
        if any(name not in NGRAM_TYPES for name in config.spec.types):
            flags += ["--spec-draft-n-max", str(depth)]
    if controlled:
        flags.append("--depth-control")
    sizes = {
        "-np": config.slots,
        "-c": config.ctx,
        "-b": config.batch,
        "-ub": config.ubatch,
        "-ctk": config.kv_types[0],
        "-ctv": config.kv_types[1],
    }
    flags += [str(word) for pair in sizes.items() for word in pair]
    if config.force_route:
        flags += ["--force-route", ",".join(f"{phase}={route}" for phase, route in config.force_route.items())]
    return [*flags, "--allow-cpu-attention"] if config.allow_cpu_attention else flags


def plan(config: EngineConfig, target: Header, drafter: Header | None, depth: int, *, controlled: bool) -> list[str]:
    """What will run, line by line."""
    slots, spec = config.slots, config.spec
    lines = [f"model     {target.name} ({target.architecture}), {config.model}"]
    if spec is not None:
        inside = "inside the model" if depth else "without a model"
        where = inside if drafter is None else f"{drafter.name} ({drafter.architecture}), {config.draft[0]}"
        lines.append(f"drafter   {','.join(spec.types)}: {where}" + (f", up to {depth} tokens" if depth else "") + (", as many as pay" if controlled else ""))
    cells = (config.ctx or target.n_ctx_train) // slots
    lines.append(f"slots     {slots}, {cells} tokens of context each, KV {'/'.join(config.kv_types)}")
    step = f"; a step takes up to {slots} × (1 + {depth}) = {slots * (1 + depth)} tokens" if depth else ""
    lines.append(f"batch     {config.batch}, ubatch {config.ubatch}{step}")
    return lines
