"""The ``plan`` section of a scenario: attention nodes of the reported run, what the reported engine made of them, and what is made of them here."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from pyllm.errors import ConfigError
from pyllm.repro.engines import Count, DeviceName, Expected, HeadDims, KvPair, MaskWord
from pyllm.repro.part import Part, near, refuse
from pyllm.repro.shapes import Shapes
from pyllm.routes.axes import KV_TYPES
from pyllm.routes.key import Node
from pyllm.routes.row import ROUTES

#: What ``ours`` says of a node that contradicts itself.
REFUSED = "refused"


def _known_route(value: str) -> str:
    known = [*ROUTES, REFUSED]
    if value not in known:
        raise refuse(f"route `{value}` is not known", near(value, known, "routes"))
    return value


def _ours(kv: str) -> bool:
    return set(kv.split("/")) <= set(KV_TYPES)


Dims = tuple[Count, Count, Count, Count]


class Found(Part):
    """Tensors that the selector found with other shapes than the node's own: ggml's ``ne``, and on the device that ran it."""

    q: Dims | None = None
    k: Dims | None = None
    v: Dims | None = None
    mask: Dims | None = None


class PlannedNode(Part):
    """One attention node, and what came of it there and has to come of it here.

    ``role`` says which node of the run it is. ``heads`` are query heads/KV heads before a split, ``kv`` the types K/V of the report, ``kv_here`` what
    stands for types that we do not have; ``on`` names the devices, without it all of the plan's. ``expect`` is the reported engine's
    decision; ``ours`` is the route here, without it any, or ``refused``, and ``says`` is in its reason.
    """

    role: str
    head: HeadDims
    heads: Annotated[str, Field(pattern=r"^[1-9]\d{0,4}/[1-9]\d{0,4}$")]
    n_q: Count
    n_kv: Count
    kv: KvPair
    kv_here: KvPair | None = None
    mask: MaskWord = "stream"
    streams: Count = 1
    alibi: bool = False
    softcap: bool = False
    sinks: bool = False
    align: Annotated[int, Field(ge=1, le=16)] = 16
    mask_align: Annotated[int, Field(ge=1, le=16)] = 16
    view: bool = False
    n_kv_max: Annotated[int, Field(ge=0)] = 0
    found: Found = Found()
    on: tuple[DeviceName, ...] = ()
    expect: Expected
    ours: Annotated[str, AfterValidator(_known_route)] | None = None
    says: str = ""

    @model_validator(mode="after")
    def _types_stand_for_each_other(self) -> PlannedNode:
        if self.kv_here is None and not _ours(self.kv):
            raise refuse(f"`{self.kv}` are not types of ours", "say with `kv_here` what stands for them", "kv")
        if self.kv_here is not None and (_ours(self.kv) or not _ours(self.kv_here)):
            hint = f"`kv_here` has types of ours ({', '.join(KV_TYPES)}) for types that we do not have"
            raise refuse(f"`{self.kv_here}` cannot stand for `{self.kv}`", hint, "kv_here")
        return self

    def shapes(self, split: int) -> Shapes:
        """The tensors as one of ``split`` devices finds them."""
        d_k, d_v = map(int, self.head.split("/"))
        n_head, n_head_kv = (int(count) // split for count in self.heads.split("/"))
        masks = {
            "none": None,
            "stream": (self.n_kv, self.n_q, 1, self.streams),
            "repeat": (self.n_kv, self.n_q, 1, 1),
            "head": (self.n_kv, self.n_q, n_head, self.streams),
        }
        return Shapes(
            self.found.q or (d_k, self.n_q, n_head, self.streams),
            self.found.k or (d_k, self.n_kv, n_head_kv, self.streams),
            self.found.v or (d_v, self.n_kv, n_head_kv, self.streams),
            self.found.mask or masks[self.mask],
        )

    def here(self, split: int) -> Node:
        """The node as it is planned here.

        Raises:
            ConfigError: it contradicts itself.
        """
        shapes = self.shapes(split)
        shapes.check()
        type_k, type_v = (self.kv_here or self.kv).split("/")
        return self._node(shapes, (shapes.q[2], shapes.k[2]), type_k, type_v)

    def there(self, split: int) -> Node:
        """What a selector reads off the tensors, which may contradict each other: head dims and rows of K and V, the ratio of the heads; with types in f16.

        Raises:
            ConfigError: no selector can be asked about it.
        """
        shapes = self.shapes(split)
        return self._node(shapes, (max(1, shapes.q[2] // shapes.k[2]), 1), "f16", "f16")

    def _node(self, shapes: Shapes, heads: tuple[int, int], type_k: str, type_v: str) -> Node:
        return Node(
            shapes.k[0],
            shapes.v[0],
            *heads,
            shapes.q[1],
            shapes.k[1],
            shapes.q[3],
            type_k,
            type_v,
            mask=self.mask if self.found.mask is None else shapes.mask_kind,
            alibi=self.alibi,
            softcap=self.softcap,
            sinks=self.sinks,
            align=self.align,
            mask_align=self.mask_align,
            view=self.view,
            n_kv_max=self.n_kv_max,
        )


class Plan(Part):
    """``nodes`` of the reported run on each of ``devices``; ``engine`` is a file of ``repro/engines``.

    ``split`` is the number of devices that the heads of each node are divided over, as ``-sm tensor`` does.
    """

    engine: str
    devices: Annotated[tuple[DeviceName, ...], Field(min_length=1)]
    split: Annotated[int, Field(ge=1, le=64)] = 1
    nodes: Annotated[tuple[PlannedNode, ...], Field(min_length=1)]

    @field_validator("nodes")
    @classmethod
    def _fit(cls, nodes: tuple[PlannedNode, ...], info: ValidationInfo) -> tuple[PlannedNode, ...]:
        devices, split = info.data.get("devices", ()), info.data.get("split", 1)
        for place, node in enumerate(nodes):
            for at, device in enumerate(node.on):
                if devices and device not in devices:
                    raise refuse(f"`{device}` is no device of the plan", near(device, list(devices), "devices"), place, "on", at)
            if any(int(count) % split for count in node.heads.split("/")):
                raise refuse(f"heads {node.heads} do not divide over {split} devices", "a device has whole heads", place, "heads")
            try:
                node.there(split)
            except ConfigError as failure:
                raise refuse(f"no selector can be asked: {failure.message}", failure.hint, place) from failure
        return nodes
