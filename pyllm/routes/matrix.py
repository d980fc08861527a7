"""The golden matrix: what runs where, for the shapes of real models on all devices. Kept in git and reviewed like code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.routes.axes import DEVICE_AXES, INDEX
from pyllm.routes.devices import DEVICES
from pyllm.routes.key import Node
from pyllm.routes.table import ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyllm.routes.devices import Device
    from pyllm.routes.row import Row

#: D_k, D_v, V is a view of K.
SHAPES = (
    (40, 40, False),
    (64, 64, False),
    (72, 72, False),
    (80, 80, False),
    (96, 96, False),
    (112, 112, False),
    (128, 128, False),
    (160, 160, False),
    (192, 128, False),
    (256, 256, False),
    (320, 256, False),
    (512, 512, False),
    (576, 512, True),
)
RATIOS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 32)
N_Q = (1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 32, 33, 64, 65, 512)
TYPES = ("f16", "q8_0")
#: Rows of K: padded caches, short and long, and one that is not padded.
N_KV = (4096, 16384, 1000)


def _rows_for(codes: tuple[int, ...], rows: tuple[Row, ...], axes: tuple[str, ...]) -> tuple[Row, ...]:
    """The rows whose conditions on ``axes`` hold."""
    return tuple(row for row in rows if all(c.axis not in axes or c.holds(codes[INDEX[c.axis]]) for c in row.conditions))


def _title(codes: tuple[int, ...], rows: tuple[Row, ...]) -> str:
    return next(row.title for row in rows if row.first_failing(codes, INDEX) is None)


def _ranges(titles: list[str]) -> Iterator[str]:
    """Query rows with the same route, as ranges of ``N_Q``."""
    begin = 0
    for place in range(1, len(titles) + 1):
        if place == len(titles) or titles[place] != titles[begin]:
            span = f"{N_Q[begin]}" if place - 1 == begin else f"{N_Q[begin]}-{N_Q[place - 1]}"
            yield f"{span}: {titles[begin]}"
            begin = place


def _device_lines(device: Device) -> Iterator[str]:
    gqa, n_q_axis = INDEX["gqa"], INDEX["n_q"]
    here = _rows_for(Node(64, 64, 1, 1, 1, 1).codes(device), ROWS, DEVICE_AXES)
    for d_k, d_v, view in SHAPES:
        for n_kv in N_KV:
            for kind in TYPES:
                codes = list(Node(d_k, d_v, 1, 1, 1, n_kv, type_k=kind, type_v=kind, view=view).codes(device))
                rows = _rows_for(tuple(codes), here, tuple(name for name in INDEX if name not in {"gqa", "n_q"}))
                lines: dict[str, list[int]] = {}
                for ratio in RATIOS:
                    titles = []
                    for n_q in N_Q:
                        codes[gqa], codes[n_q_axis] = ratio, n_q
                        titles.append(_title(tuple(codes), rows))
                    lines.setdefault("; ".join(_ranges(titles)), []).append(ratio)
                for text, ratios in lines.items():
                    yield f"{d_k}/{d_v} {kind} n_kv {n_kv} gqa {','.join(map(str, ratios))} | {text}"


def matrix() -> str:
    """The matrix as text: devices with equal lines share a block, query rows stand as ranges."""
    blocks: dict[str, list[str]] = {}
    for device in DEVICES.values():
        blocks.setdefault("\n".join(_device_lines(device)), []).append(device.name)
    return "\n\n".join(f"# {', '.join(names)}\n{text}" for text, names in blocks.items()) + "\n"
