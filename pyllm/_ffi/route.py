"""The native route evaluator: the table in force, decisions, forcing, counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyllm._ffi.door import check, ffi, lib, text_of

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Axes of a key that its device decides: the first ones.
DEVICE_AXES: int = lib.PYLLM_ROUTE_HEAD

ROUTES = ("vec", "tile", "mma", "sparse", "verify", "reference")
PHASES = ("prefill", "decode", "verify", "draft")


@dataclass(frozen=True)
class RouteCount:
    """Attention nodes issued on ``device`` in ``phase`` by ``route`` (``cpu`` for those that no route of ours decides)."""

    device: str
    route: str
    phase: str
    nodes: int


def _key(codes: Sequence[int]) -> Any:
    key = ffi.new("pyllm_route_key *")
    key.axis = list(codes)
    return key


def set_route_table(text: str | None) -> None:
    """Put a table in force for the process; None: the built-in one.

    Raises:
        InvalidArgumentError: another version, a line that is not understood, a row that can never decide; nothing is changed then.
    """
    data = (text or "").encode()
    check(lib.pyllm_route_table_set(data, len(data)))


def default_route_table() -> str:
    """Text of the built-in table."""
    length = ffi.new("size_t *")
    check(lib.pyllm_route_table_get_default(ffi.NULL, 0, length))
    text = ffi.new("char[]", length[0] + 1)
    check(lib.pyllm_route_table_get_default(text, length[0] + 1, length))
    return text_of(text)


def check_route_table() -> None:
    """Read the table that ``PYLLM_ROUTES`` names, if it does and that has not happened yet.

    Raises:
        InvalidArgumentError: there is no such file, or it is refused.
    """
    check(lib.pyllm_route_table_count(ffi.new("int32_t *")))


def decide_route(codes: Sequence[int]) -> tuple[int, str, int, int]:
    """Row, route and tile (query rows, query heads) for a key by the table in force."""
    decision = ffi.new("pyllm_route_decision *")
    check(lib.pyllm_route_decide(_key(codes), decision, ffi.NULL, 0))
    return int(decision.row), ROUTES[decision.route], int(decision.ncols1), int(decision.ncols2)


def failing_conditions(codes: Sequence[int]) -> list[int]:
    """For each row of the table in force the index of its first condition that does not hold, -1 where all do."""
    count = ffi.new("int32_t *")
    check(lib.pyllm_route_table_count(count))
    failed = ffi.new("int32_t[]", count[0])
    check(lib.pyllm_route_decide(_key(codes), ffi.new("pyllm_route_decision *"), failed, count[0]))
    return [int(index) for index in failed]


def force_route_on(codes: Sequence[int], route: str) -> tuple[int, str, int, int]:
    """How ``route`` would run the key if it were forced; rows past the table's are executors.

    Raises:
        UnsupportedError: it cannot, with the reason.
    """
    decision = ffi.new("pyllm_route_decision *")
    check(lib.pyllm_route_force_key(_key(codes), ROUTES.index(route), decision))
    return int(decision.row), ROUTES[decision.route], int(decision.ncols1), int(decision.ncols2)


def force_route(route: str | None, phase: str | None = None) -> None:
    """Run every node of a phase (None: all) by ``route``; None lets the table choose again. A node that cannot fails its graph."""
    check(lib.pyllm_route_force(-1 if phase is None else PHASES.index(phase), -1 if route is None else ROUTES.index(route)))


def allow_cpu_attention(*, allow: bool) -> None:
    """Whether attention of a layer on a GPU may run on the CPU; otherwise creating the context fails."""
    lib.pyllm_route_allow_cpu(allow)


def block_route(arch: int, row: int) -> None:
    """Take a row out for an architecture; row -1 puts all back."""
    check(lib.pyllm_route_block(arch, row))


def benchmark_routes(keys: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Nanoseconds for a decision on a key that was seen before, and on one that was not."""
    array = ffi.new("pyllm_route_key[]", len(keys))
    for slot, codes in zip(array, keys, strict=True):
        slot.axis = list(codes)
    seen, fresh = ffi.new("double *"), ffi.new("double *")
    check(lib.pyllm_route_benchmark(array, len(keys), seen, fresh))
    return float(seen[0]), float(fresh[0])


def route_counts() -> list[RouteCount]:
    """Attention nodes issued by this process since the library was loaded."""
    size = ffi.new("size_t *")
    check(lib.pyllm_route_counts(ffi.NULL, 0, size))
    array = ffi.new("pyllm_route_count[]", max(1, size[0]))
    check(lib.pyllm_route_counts(array, size[0], size))
    return [
        RouteCount(text_of(one.device), "cpu" if one.route < 0 else ROUTES[one.route], PHASES[one.phase], int(one.n_nodes))
        for one in (array[place] for place in range(size[0]))
    ]


def device_axes(index: int) -> tuple[int, ...]:
    """The device's axes of a key for device ``index`` of ``devices()``.

    Raises:
        UnsupportedError: it is no CUDA or HIP device.
    """
    key = ffi.new("pyllm_route_key *")
    check(lib.pyllm_route_device(index, key))
    return tuple(int(key.axis[place]) for place in range(DEVICE_AXES))
