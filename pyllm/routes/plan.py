"""What a model's attention will be and by which route it runs, from its header and the flags, before anything is loaded.

Each entry stands for one node: every slot busy, the whole context read. Where nodes of fewer rows, slots or cells take another route, it says so.
A drafter's nodes are planned apart from its target's, and with ``-sm tensor`` each device's heads apart from the others'.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pyllm._ffi import decide_route
from pyllm.errors import ConfigError, UnsupportedError
from pyllm.routes import architectures, shape
from pyllm.routes.decision import Decision, decide, force, limits, table_in_force
from pyllm.routes.flags import PAD, draft_memory, speculation_of, target_memory
from pyllm.routes.key import Key
from pyllm.routes.slices import split

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pyllm.routes.devices import Device
    from pyllm.routes.flags import Flags, Memory, Speculation
    from pyllm.routes.header import Header, Layer
    from pyllm.routes.key import Node
    from pyllm.routes.slices import Heads

PHASES = ("prefill", "decode", "verify", "draft")


@dataclass(frozen=True, slots=True)
class Load:
    """A graph: ``rows`` query rows of each of ``active`` slots, or as few as ``least`` of one.

    ``step`` tells a drafter's graphs apart: ``prompt`` and ``verified`` follow its target, ``token`` and ``head N`` draft one token, ``block`` all.
    """

    phase: str
    rows: int
    active: int
    least: int = 1
    step: str = ""


@dataclass(frozen=True, slots=True)
class Other:
    """Another route that nodes of fewer rows, slots or cells take, and one such node."""

    route: str
    reason: str
    node: Node


@dataclass(frozen=True, slots=True)
class Entry:
    """``layers`` of the ``target`` or the ``draft`` issue ``node`` in ``phase``, on the device of number ``place``.

    ``decision`` is None where a forced route cannot run it, with the reason in ``refusal``.
    """

    part: str
    kind: str
    layers: tuple[int, ...]
    phase: str
    step: str
    place: int
    device: str
    node: Node
    decision: Decision | None
    refusal: str = ""
    others: tuple[Other, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        plain = {name: getattr(self, name) for name in ("part", "kind", "phase", "step", "place", "device", "refusal")}
        return plain | {
            "layers": list(self.layers),
            "node": dataclasses.asdict(self.node),
            "decision": self.decision.to_json() if self.decision else None,
            "others": [{"route": one.route, "reason": one.reason, "node": dataclasses.asdict(one.node)} for one in self.others],
        }


@dataclass(frozen=True)
class Plan:
    """Every attention node of a model, and of its drafter, on some devices."""

    model: Header
    draft: Header | None
    flags: Flags
    devices: tuple[Device, ...]
    speculation: Speculation
    entries: tuple[Entry, ...]

    @property
    def refused(self) -> bool:
        """Whether a forced route cannot run a node."""
        return any(entry.decision is None for entry in self.entries)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "model": {"path": str(self.model.path), "name": self.model.name, "architecture": self.model.architecture},
            "draft": self.draft and {"path": str(self.draft.path), "name": self.draft.name, "architecture": self.draft.architecture},
            "flags": self.flags.model_dump(mode="json"),
            "devices": [device.name for device in self.devices],
            "speculation": {"by": self.speculation.by, "depth": self.speculation.depth},
            "entries": [entry.to_json() for entry in self.entries],
        }


@dataclass(frozen=True, slots=True)
class _Part:
    """Layers of one file with the graphs that they are in, and the ``memory`` that they read, which is that of the file ``cache``."""

    name: str
    header: Header
    memory: Memory
    work: tuple[tuple[Layer, tuple[Load, ...]], ...]
    cache: Header


def plan(model: Header, draft: Header | None, flags: Flags, devices: Sequence[Device]) -> Plan:
    """Plan ``model``, with ``draft``, for one device, or for several with ``-sm tensor``.

    Raises:
        ConfigError: flags that contradict each other, the model, or the number of devices.
        UnsupportedError: what upstream refuses: a KV type that does not fit the heads, a split that the architecture cannot have.
    """
    speculation = speculation_of(model, draft, flags)
    _check_devices(model, flags, devices)
    parts = list(_parts(model, draft, flags, speculation))
    for part in parts:
        for layer, _ in part.work:
            _check_types(part, layer)
    planner = _Planner(flags, tuple(devices))
    entries = tuple(entry for part in parts for entry in planner.entries(part))
    return Plan(model, draft, flags, tuple(devices), speculation, entries)


def _parts(model: Header, draft: Header | None, flags: Flags, speculation: Speculation) -> Iterator[_Part]:
    depth, slots = speculation.depth, flags.slots
    memory = target_memory(model, flags, depth)
    loads = [Load("prefill", memory.ubatch, 1, least=min(2, memory.ubatch)), Load("decode", 1, slots)]
    if depth:
        loads.append(Load("verify", 1 + depth, slots, least=2))
    yield _Part("target", model, memory, tuple((layer, tuple(loads)) for layer in model.trunk if layer.has_attention), model)
    source = draft or model
    if speculation.by == "assistant":
        yield _Part("draft", source, memory, tuple((layer, (Load("draft", 1, slots, step="token"),)) for layer in source.trunk), model)
    elif speculation.by == "block":
        rows = 1 + speculation.own_depth
        block = Load("draft", rows, slots, least=rows, step="block")
        yield _Part("draft", source, draft_memory(source, memory, flags, speculation.own_depth), tuple((layer, (block,)) for layer in source.trunk), source)
    elif speculation.by == "heads":
        own = draft_memory(source, memory, flags, depth)
        follow = (Load("draft", own.ubatch, 1, least=min(2, own.ubatch), step="prompt"), Load("draft", 1 + depth, slots, least=2, step="verified"))
        yield _Part("draft", source, own, tuple(_heads(source.heads, follow, slots, speculation.own_depth)), source)


def _heads(heads: tuple[Layer, ...], follow: tuple[Load, ...], slots: int, depth: int) -> Iterator[tuple[Layer, tuple[Load, ...]]]:
    """Prediction heads. Of several, the N-th drafts the N-th token, and reads the rows of those before again."""
    for number, layer in enumerate(heads, 1):
        if len(heads) == 1:
            yield layer, (*follow, Load("draft", 1, slots, step="token"))
        elif number <= depth:
            yield layer, (*follow, Load("draft", number, slots, least=number, step=f"head {number}"))
        else:
            yield layer, follow


def _check_devices(model: Header, flags: Flags, devices: Sequence[Device]) -> None:
    if flags.split_mode != "tensor":
        if len(devices) != 1:
            raise ConfigError(f"{len(devices)} devices for one plan", "plan each on its own; only split mode `tensor` spreads a node over devices")
        return
    if len(devices) < 2:
        raise ConfigError(f"split mode `tensor` over {len(devices)} device", "name all devices: --device gfx1100,gfx1100")
    if flags.tensor_split and len(flags.tensor_split) != len(devices):
        raise ConfigError(f"tensor split has {len(flags.tensor_split)} shares for {len(devices)} devices", "give one share for each device")
    if model.architecture in architectures.NO_TENSOR_SPLIT:
        raise UnsupportedError(f"upstream refuses split mode `tensor` for architecture `{model.architecture}`", "use split mode layer")


def _check_types(part: _Part, layer: Layer) -> None:
    type_k, type_v = part.memory.type_k, part.memory.type_v
    if layer.kind == "latent" and type_k != type_v:
        raise UnsupportedError(f"`{part.header.path}` keeps K and V in one latent cache, which cannot be {type_k} and {type_v}", f"use {type_k} for both")
    for name, type_kv, dim in (("K", type_k, layer.d_k), ("V", type_v, layer.d_v)):
        if dim % shape.block_of(type_kv):
            raise UnsupportedError(
                f"layer {layer.index} of `{part.header.path}` has {name} heads of {dim} values, which {type_kv} stores in blocks of {shape.block_of(type_kv)}",
                "use f16, bf16 or f32",
            )


class _Issued(NamedTuple):
    """A layer and its heads on a device."""

    layer: Layer
    heads: Heads


class _Planner:
    def __init__(self, flags: Flags, devices: tuple[Device, ...]) -> None:
        self.flags = flags
        self.devices = devices
        self.forced: dict[str, str] = {str(phase): str(route) for phase, route in flags.force_route.items()}
        self.decided: dict[tuple[Node, Device, str], tuple[Decision | None, str]] = {}

    def entries(self, part: _Part) -> list[Entry]:
        """One for each kind of node, in the order of layers, phases and devices."""
        found: dict[tuple[str, Load, int, Node], list[_Issued]] = {}
        for layer, loads in part.work:
            for place, heads in enumerate(self.slices(part, layer)):
                if not heads[0]:
                    continue
                for load in loads:
                    node = _largest(part, layer, load, heads)
                    found.setdefault((layer.kind, load, place, node), []).append(_Issued(layer, heads))
        entries = [self.entry(part, load, place, node, issued) for (_, load, place, node), issued in found.items()]
        return sorted(entries, key=lambda entry: (entry.layers[0], PHASES.index(entry.phase)))

    def slices(self, part: _Part, layer: Layer) -> list[Heads]:
        """The heads on each device."""
        if self.flags.split_mode != "tensor":
            return [(layer.n_head, layer.n_head_kv)]
        ratios = self.flags.tensor_split
        heads = split(layer, part.header.layers, len(self.devices), ratios)
        owner = _owner(part, layer)
        cached = [kv for _, kv in split(owner, part.cache.layers, len(self.devices), ratios)]
        if [kv for _, kv in heads] != cached:
            raise UnsupportedError(
                f"layer {layer.index} of `{part.header.path}` has its KV heads split {_words(kv for _, kv in heads)}, but it reads the cache of layer "
                f"{owner.index} of `{part.cache.path}`, split {_words(cached)}: upstream's split mode `tensor` ends the process",
                f"use a tensor split that is even over the {layer.n_head_kv} KV heads, or split mode layer",
            )
        return heads

    def entry(self, part: _Part, load: Load, place: int, node: Node, issued: Sequence[_Issued]) -> Entry:
        device, (layer, heads) = self.devices[place], issued[0]
        decision, refusal = self.decide(node, device, load.phase)
        others = () if decision is None or load.phase in self.forced else _others(device, decision, _smaller(part, layer, load, heads))
        return Entry(
            part=part.name,
            kind=layer.kind,
            layers=tuple(one.layer.index for one in issued),
            phase=load.phase,
            step=load.step,
            place=place,
            device=device.name,
            node=node,
            decision=decision,
            refusal=refusal,
            others=others,
        )

    def decide(self, node: Node, device: Device, phase: str) -> tuple[Decision | None, str]:
        if (node, device, phase) not in self.decided:
            key = Key(device, node)
            try:
                self.decided[node, device, phase] = (force(key, self.forced[phase]) if phase in self.forced else decide(key)), ""
            except UnsupportedError as failure:
                # The node is in the entry.
                self.decided[node, device, phase] = None, failure.message.removeprefix(f"{key}: ")
        return self.decided[node, device, phase]


def _words(counts: Iterable[int]) -> str:
    return "/".join(map(str, counts))


def _owner(part: _Part, layer: Layer) -> Layer:
    """The layer whose cache ``layer`` reads: of an assistant, the last of its kind in the target (``create_memory``, ``share``)."""
    layers = part.cache.layers
    if part.cache is part.header:
        return layers[layer.reads]
    trunk = part.cache.trunk
    return layers[trunk[-2 if layer.kind == "window" else -1].reads]


def _largest(part: _Part, layer: Layer, load: Load, heads: Heads) -> Node:
    n_q, streams = part.memory.load(load.rows, load.active)
    return shape.node(part.header, layer, part.memory, n_q=n_q, streams=streams, n_kv=part.memory.cells_of(layer.kind), heads=heads)


def _smaller(part: _Part, layer: Layer, load: Load, heads: Heads) -> Iterator[Node]:
    """Nodes of fewer rows, slots and cells, on both sides of every limit that the table in force has."""
    memory, cells = part.memory, part.memory.cells_of(layer.kind)
    wide = [2**31 // shape.row_bytes(one, dim * heads[1]) for one, dim in ((memory.type_k, layer.d_k), (memory.type_v, layer.d_v))]
    sparse = [limit * layer.top_k for limit in limits("sparsity")] if layer.top_k else []
    for n_q, streams in sorted(set(_loads(memory, load)), key=lambda pair: (pair[1], pair[0])):
        for n_kv in _steps((*limits("n_kv"), *wide, *sparse, 2**31 // (2 * n_q)), PAD, cells, PAD):
            yield shape.node(part.header, layer, memory, n_q=n_q, streams=streams, n_kv=n_kv, heads=heads)


def _loads(memory: Memory, load: Load) -> Iterator[tuple[int, int]]:
    """Query rows and streams."""
    if memory.unified and not memory.equal:
        most, _ = memory.load(load.rows, memory.slots)
        yield from ((n_q, 1) for n_q in _steps(limits("n_q"), min(load.least, most), most))
        return
    for active in _steps(limits("streams"), 1, memory.slots):
        for rows in _steps(limits("n_q"), min(load.least, load.rows), load.rows):
            yield memory.load(rows, active)


def _steps(limits: Iterable[int], low: int, high: int, step: int = 1) -> list[int]:
    """``low``, ``high``, and what lies next to each limit between them."""
    near = {limit // step * step + offset for limit in limits for offset in (-step, 0, step)}
    return sorted({low, high, *(value for value in near if low < value < high)})


def _others(device: Device, decision: Decision, nodes: Iterable[Node]) -> tuple[Other, ...]:
    """The routes of ``nodes`` that are not the decision's."""
    rows = table_in_force().rows
    found: dict[str, Other] = {}
    for node in nodes:
        number, route, *_ = decide_route(node.codes(device))
        # The last is the largest.
        if route != decision.route:
            found[route] = Other(route, rows[number].because, node)
    return tuple(found.values())
