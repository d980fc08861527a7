"""Measure where ``verify`` is faster than what the table has without it, on this device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.bench.attention.measure import measure
from pyllm.bench.attention.side import Forced, route_without_verify
from pyllm.errors import PyllmError, UnsupportedError
from pyllm.routes.decision import use_table
from pyllm.routes.key import Key
from pyllm.routes.present import routed_device
from pyllm.routes.tuning import Measured

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyllm.bench.attention.shapes import Shape
    from pyllm.routes.devices import Device
    from pyllm.routes.key import Node

#: Lanes of the two.
_VERIFY, _OTHER = 2, 3


def tune(
    device: int,
    shapes: Sequence[Shape],
    *,
    rounds: int,
    cold: int,
    progress: Callable[[str], None] = lambda _: None,
    save: Callable[[Sequence[Measured]], object] = lambda _: None,
) -> tuple[list[Measured], dict[str, list[Node]]]:
    """One measurement for each of ``shapes`` that both can run, and the nodes of the others by the reason. ``save`` gets all so far after each.

    Raises:
        UnsupportedError: a device without routes or without asynchronous copies; or no shape is left, with the reason of one.
    """
    try:
        here = routed_device(device)
    except UnsupportedError as failure:
        raise UnsupportedError(failure.message, "tune on the GPU that the file is for: --device CUDA0") from None
    if here.matrix != "ampere":
        raise UnsupportedError(f"`verify` needs asynchronous copies, which {here.name} ({here.products}) has not", "NVIDIA sm_80 and later have them")
    use_table(None)
    found: list[Measured] = []
    skipped: dict[str, list[Node]] = {}
    for shape in dict.fromkeys(shapes):
        progress(str(shape.node))
        try:
            found.append(_one(device, here, shape, rounds=rounds, cold=cold))
            save(found)
        except PyllmError as failure:
            skipped.setdefault(failure.message, []).append(shape.node)
    if not found:
        raise UnsupportedError(f"`verify` can be tuned for none of {len(shapes)} shapes: {next(iter(skipped), 'there are none')}", "give other shapes")
    return found, skipped


def _one(device: int, here: Device, shape: Shape, *, rounds: int, cold: int) -> Measured:
    node = shape.node
    if node.n_kv_max:
        raise UnsupportedError("few of the KV rows are gathered there, which is not what `verify` is for", "leave the shape out")
    other = route_without_verify(Key(here, node).codes)
    result = measure(device, shape, [Forced("verify", _VERIFY), Forced(other, _OTHER)], rounds=rounds, cold=cold)
    ours, theirs = result.timings
    if ours.refusal or theirs.refusal:
        raise UnsupportedError(ours.refusal or theirs.refusal, "leave the shape out")
    return Measured(
        head=f"{node.d_k}/{node.d_v}",
        kv=f"{node.type_k}/{node.type_v}",
        gqa=node.n_head // node.n_head_kv,
        streams=node.streams,
        n_q=node.n_q,
        n_kv=node.n_kv,
        verify_us=ours.us,
        other_us=theirs.us,
        other=theirs.kernel,
    )
