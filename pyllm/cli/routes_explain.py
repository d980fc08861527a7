"""``pyllm routes explain``: a decision with its reason, for a node in numbers, a model's header with flags, or a recorded trace."""

from __future__ import annotations

import difflib
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyllm.cli import console, options
from pyllm.errors import ConfigError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyllm.routes.decision import Decision
    from pyllm.routes.devices import Device
    from pyllm.routes.key import Node
    from pyllm.routes.plan import Plan

_NODE = "A node in numbers"
_MODEL = "A model, from its header and the flags"
_SPLIT = "Device"
_OUTPUT = "Output"

#: Options that describe a node, and their values when they are not given.
_NODE_DEFAULTS: dict[str, Any] = {
    "heads": None,
    "n_q": 1,
    "n_kv": 4096,
    "streams": 1,
    "mask": "stream",
    "alibi": False,
    "softcap": False,
    "sinks": False,
    "align": 16,
    "mask_align": 16,
    "view": False,
    "n_kv_max": 0,
}
#: The same for a model.
_MODEL_DEFAULTS: dict[str, Any] = {
    "draft": None,
    "spec": None,
    "n_max": None,
    "slots": 1,
    "ctx": 0,
    "batch": 2048,
    "ubatch": 512,
    "draft_type_k": "f16",
    "draft_type_v": "f16",
    "unified": False,
    "swa_full": False,
    "split_mode": "layer",
    "tensor_split": "",
    "out": None,
}
_TYPE_DEFAULTS: dict[str, Any] = {"type_k": "f16", "type_v": "f16"}

#: Options that are not called like their values.
_NAMES = {
    "type_k": "cache-type-k",
    "type_v": "cache-type-v",
    "draft_type_k": "spec-draft-type-k",
    "draft_type_v": "spec-draft-type-v",
    "unified": "kv-unified",
}

#: What each source has no use for, and what that is for.
_FOREIGN = {
    "--head": ((_MODEL_DEFAULTS, "a model"),),
    "-m": ((_NODE_DEFAULTS, "a node in numbers"),),
    "--trace": ((_NODE_DEFAULTS, "a node in numbers"), (_MODEL_DEFAULTS | _TYPE_DEFAULTS, "a model")),
}


def explain(  # noqa: PLR0917 - options are given by name
    head: Annotated[str | None, typer.Option(help="Head dims of K and V.", rich_help_panel=_NODE, metavar="D_K/D_V")] = None,
    heads: Annotated[str | None, typer.Option(help="Query heads and KV heads.", rich_help_panel=_NODE, metavar="N/M")] = None,
    n_q: Annotated[int, typer.Option("--n-q", help="Query rows of a stream.", rich_help_panel=_NODE, metavar="N")] = 1,
    n_kv: Annotated[int, typer.Option("--n-kv", help="KV rows.", rich_help_panel=_NODE, metavar="N")] = 4096,
    streams: Annotated[int, typer.Option(help="Slots with caches of their own that share the node.", rich_help_panel=_NODE, metavar="N")] = 1,
    mask: Annotated[str, typer.Option(help="none, stream, repeat (one for several streams) or head.", rich_help_panel=_NODE, metavar="MASK")] = "stream",
    alibi: Annotated[bool, typer.Option("--alibi", help="With ALiBi.", rich_help_panel=_NODE)] = False,
    softcap: Annotated[bool, typer.Option("--softcap", help="With a logit softcap.", rich_help_panel=_NODE)] = False,
    sinks: Annotated[bool, typer.Option("--sinks", help="With attention sinks.", rich_help_panel=_NODE)] = False,
    align: Annotated[int, typer.Option(help="Bytes that Q, K and V are aligned to.", rich_help_panel=_NODE, metavar="N")] = 16,
    mask_align: Annotated[int, typer.Option(help="Bytes that the mask is aligned to.", rich_help_panel=_NODE, metavar="N")] = 16,
    view: Annotated[bool, typer.Option("--view", help="V is a view of K.", rich_help_panel=_NODE)] = False,
    n_kv_max: Annotated[int, typer.Option("--n-kv-max", help="KV rows that one query sees at most; 0: all.", rich_help_panel=_NODE, metavar="N")] = 0,
    model: Annotated[Path | None, typer.Option("-m", "--model", help="GGUF file of the model.", rich_help_panel=_MODEL, metavar="FILE")] = None,
    draft: options.Draft = None,
    spec: options.Spec = None,
    n_max: options.Depth = None,
    slots: options.Slots = 1,
    ctx: options.Context = 0,
    batch: options.Batch = 2048,
    ubatch: options.MicroBatch = 512,
    type_k: options.KeyType = "f16",
    type_v: options.ValueType = "f16",
    draft_type_k: Annotated[
        str, typer.Option("-ctkd", "--spec-draft-type-k", help="Type of the drafter's keys.", rich_help_panel="Speculation", metavar="TYPE")
    ] = "f16",
    draft_type_v: Annotated[
        str, typer.Option("-ctvd", "--spec-draft-type-v", help="Type of the drafter's values.", rich_help_panel="Speculation", metavar="TYPE")
    ] = "f16",
    unified: Annotated[bool, typer.Option("-kvu", "--kv-unified", help="One KV cache for all slots.", rich_help_panel="Slots and sizes")] = False,
    swa_full: Annotated[bool, typer.Option("--swa-full", help="Whole caches for sliding windows.", rich_help_panel="Slots and sizes")] = False,
    trace: Annotated[Path | None, typer.Option(help="A file of nodes that were issued.", rich_help_panel="A recorded trace", metavar="FILE")] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Devices to plan for, present or not: sm_87, gfx1100, rtx3090; the present GPU without.", rich_help_panel=_SPLIT, metavar="NAME,..."),
    ] = None,
    split_mode: Annotated[
        str,
        typer.Option(
            "-sm", "--split-mode", help="none, layer, row or tensor; tensor spreads each node over the devices.", rich_help_panel=_SPLIT, metavar="MODE"
        ),
    ] = "layer",
    tensor_split: Annotated[str, typer.Option("-ts", "--tensor-split", help="Shares of the devices.", rich_help_panel=_SPLIT, metavar="N,...")] = "",
    force_route: options.ForceRoute = None,
    tuning: options.Tuning = None,
    everything: Annotated[bool, typer.Option("--all", help="Say of every other route why it was not taken.", rich_help_panel=_OUTPUT)] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Draw the plan of a model: .svg or .png.", rich_help_panel=_OUTPUT, metavar="FILE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=_OUTPUT)] = False,
) -> None:
    """Say which kernel runs an attention node, and why, without loading a model.

    The node is given in numbers (--head 512/512 --heads 8/2 --n-q 3), or is one of those that a model issues with some flags
    (-m, -md, -np, -c, -ctk ...), or was recorded (--trace). Exits 1 when a forced route cannot run it.
    """
    given = dict(locals())
    source = _source(given)
    devices = _devices(device)
    if tuning is not None:
        _tune(tuning, devices, simulated=device is not None)
    _kv_types(type_k, type_v, draft_type_k, draft_type_v)
    if source == "model":
        _explain_model(given, devices)
    else:
        nodes = [_node(given)] if source == "numbers" else _traced(given)
        _explain_nodes(nodes, devices, force_route, everything=everything, as_json=as_json)


def _tune(path: Path, devices: Sequence[Device], *, simulated: bool) -> None:
    from pyllm.routes.decision import use_table  # noqa: PLC0415 - loads the native library
    from pyllm.routes.tuning import choose  # noqa: PLC0415

    choice = choose(path, devices, simulated=simulated)
    use_table(choice.table)
    console.say(f"tuning    {choice.says}")


def _source(given: dict[str, Any]) -> str:
    """``numbers``, ``model`` or ``trace``: exactly one of them."""
    named = {"--head": given["head"], "-m": given["model"], "--trace": given["trace"]}
    chosen = [name for name, value in named.items() if value is not None]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} are given together", "explain one thing at a time: a node in numbers, a model, or a trace")
    if not chosen:
        stray = "-md" if given["draft"] else "--heads" if given["heads"] else ""
        what = f"{stray} is given without {'-m' if stray == '-md' else '--head'}" if stray else "there is nothing to explain"
        raise ConfigError(what, "give a node (--head 512/512 --heads 8/2 --n-q 3 --n-kv 4096), a model (-m FILE), or a trace (--trace FILE)")
    for defaults, what in _FOREIGN[chosen[0]]:
        for name, default in defaults.items():
            if given[name] != default:
                raise ConfigError(f"--{_NAMES.get(name, name).replace('_', '-')} is for {what}, and {chosen[0]} is given", f"leave it out, or {chosen[0]}")
    return {"--head": "numbers", "-m": "model", "--trace": "trace"}[chosen[0]]


def _devices(names: str | None) -> list[Device]:
    from pyllm.routes.devices import resolve  # noqa: PLC0415 - as below: help and mistakes need no native library
    from pyllm.routes.present import present_devices  # noqa: PLC0415

    if names is not None:
        return [resolve(name.strip()) for name in names.split(",")]
    found = present_devices()
    if not found:
        raise ConfigError("no device is named, and there is no GPU here", "name one, it need not be here: --device sm_86")
    return found


def _kv_types(*names: str) -> None:
    from pyllm._ffi import kv_type  # noqa: PLC0415 - loads the native library

    for name in names:
        kv_type(name)


def _known(kind: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        allowed = f"choose from {', '.join(names)}"
        raise ConfigError(f"{kind} `{name}` is not known", f"did you mean `{near[0]}`? {allowed}" if near else allowed)


def _pair(option: str, text: str) -> tuple[int, int]:
    first, slash, second = text.partition("/")
    try:
        return int(first), int(second if slash else first)
    except ValueError:
        raise ConfigError(
            f"{option} is `{text}`", f"give two whole numbers, such as {option} 128/128" if option == "--head" else f"such as {option} 32/8"
        ) from None


def _node(given: dict[str, Any]) -> Node:
    from pyllm.routes.axes import axis  # noqa: PLC0415 - help and mistakes need no native library
    from pyllm.routes.key import Node  # noqa: PLC0415
    from pyllm.routes.shape import block_of  # noqa: PLC0415

    if given["heads"] is None:
        raise ConfigError("--head is given without --heads", "give query heads and KV heads, such as --heads 8/2")
    _known("mask", given["mask"], axis("mask").words)
    d_k, d_v = _pair("--head", given["head"])
    n_head, n_head_kv = _pair("--heads", given["heads"])
    for name in ("align", "mask_align"):
        if given[name] not in {1, 2, 4, 8, 16}:
            raise ConfigError(f"--{name.replace('_', '-')} is {given[name]}", "give a power of two up to 16")
    for name, dim, type_kv in (("K", d_k, given["type_k"]), ("V", d_v, given["type_v"])):
        if dim % block_of(type_kv):
            raise ConfigError(f"{dim} values of {name} do not fill blocks of {block_of(type_kv)}, which {type_kv} stores together", "use f16, bf16 or f32")
    if not 0 <= given["n_kv_max"] <= given["n_kv"]:
        raise ConfigError(f"--n-kv-max is {given['n_kv_max']} of {given['n_kv']} KV rows", "give at most --n-kv, or 0 for all")
    names = ("n_q", "n_kv", "streams", "type_k", "type_v", "mask", "alibi", "softcap", "sinks", "align", "mask_align", "view", "n_kv_max")
    return Node(d_k, d_v, n_head, n_head_kv, **{name: given[name] for name in names})


def _traced(given: dict[str, Any]) -> list[Node]:
    from pyllm.routes.trace import node_of, read_trace  # noqa: PLC0415 - loads the native library

    return list(dict.fromkeys(node_of(node) for node in read_trace(given["trace"])))


def _explain_nodes(nodes: Sequence[Node], devices: Sequence[Device], force_route: str | None, *, everything: bool, as_json: bool) -> None:
    from pyllm.routes.decision import decide, force  # noqa: PLC0415 - loads the native library
    from pyllm.routes.key import Key  # noqa: PLC0415
    from pyllm.routes.report import decision_lines, skipped  # noqa: PLC0415
    from pyllm.routes.row import ROUTES  # noqa: PLC0415

    if force_route is not None:
        if "=" in force_route:
            raise ConfigError(
                f"--force-route {force_route} names a phase, and a single node has none", f"give the route alone: --force-route {force_route.split('=')[1]}"
            )
        _known("route", force_route, ROUTES)
    decisions: list[Decision] = [force(Key(one, node), force_route) if force_route else decide(Key(one, node)) for one in devices for node in nodes]
    if as_json:
        found = [decision.to_json() for decision in decisions]
        if everything:
            for plain, decision in zip(found, decisions, strict=True):
                plain["skipped"] = [{"route": one.route, "reason": one.reason} for one in skipped(decision)]
        console.print_json(found)
        return
    for number, decision in enumerate(decisions):
        print("\n" * (number > 0) + "\n".join(decision_lines(decision, everything=everything and force_route is None)))


def _explain_model(given: dict[str, Any], devices: Sequence[Device]) -> None:
    from pyllm.config import parse  # noqa: PLC0415 - pydantic loads slower than the help
    from pyllm.routes.flags import Flags  # noqa: PLC0415
    from pyllm.routes.header import read_header  # noqa: PLC0415
    from pyllm.routes.plan import plan  # noqa: PLC0415

    spec, n_max = given["spec"], given["n_max"]
    _known("split mode", given["split_mode"], ("none", "layer", "row", "tensor"))
    if n_max is not None and spec is None and given["draft"] is None:
        raise ConfigError(f"--n-max {n_max} is given without a drafter", "add -md, or --spec mtp for prediction heads inside the model")
    values = {name: given[name] for name in ("slots", "ctx", "batch", "ubatch", "unified", "swa_full", "split_mode", "force_route")} | {
        "kv_types": (given["type_k"], given["type_v"]),
        "draft_kv_types": (given["draft_type_k"], given["draft_type_v"]),
        "spec": options.speculation(spec, n_max if spec is not None else None),
        "n_max": n_max,
        "tensor_split": _shares(given["tensor_split"]),
    }
    flags: Flags = parse(Flags, values)
    model = read_header(given["model"])
    draft = read_header(given["draft"]) if given["draft"] is not None else None
    if flags.split_mode == "tensor":
        group = list(devices) * (len(flags.tensor_split) if len(devices) == 1 and flags.tensor_split else 1)
        plans = [plan(model, draft, flags, group)]
    else:
        plans = [plan(model, draft, flags, [one]) for one in devices]
    _show(plans, everything=given["everything"], out=given["out"], as_json=given["as_json"])
    if any(one.refused for one in plans):
        raise typer.Exit(1)


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(share) for share in text.replace("/", ",").split(",")) if text else ()
    except ValueError:
        raise ConfigError(f"tensor split `{text}` is no list of numbers", "give one share for each device, such as -ts 1,1 or -ts 3,1") from None


def _show(plans: Sequence[Plan], *, everything: bool, out: Path | None, as_json: bool) -> None:
    from pyllm.routes.report import plan_rows, plan_table, plan_talk  # noqa: PLC0415 - loads the native library

    if out is not None:
        from pyllm.routes.picture import draw  # noqa: PLC0415 - matplotlib is slow to load, and may be missing

        try:
            draw(plans, out)
        except OSError as failure:
            raise InvalidArgumentError(
                f"`{out}` cannot be written: {failure.strerror}", "give a path in a folder that exists and may be written to"
            ) from failure
        console.say(f"picture   {out}")
    if as_json:
        console.print_json([one.to_json() for one in plans])
        return
    for number, one in enumerate(plans):
        for line in plan_talk(one, device_only=number > 0):
            console.say(line)
        if console.out().is_terminal:
            console.out().print(plan_table(one, everything=everything))
        else:
            for row in plan_rows(one, everything=everything):
                print(*row, sep="\t")
