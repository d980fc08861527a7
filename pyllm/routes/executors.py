"""What each route's executor accepts, from the facts about its kernels: the other half of the proof, and what a forced route may run.

A row here has the tile that its executor is called with; ``check.py`` compares the rows of ``table.py`` with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.routes.condition import at_least, at_most, multiple_of, one_of
from pyllm.routes.devices import DEVICES
from pyllm.routes.kernels import (
    MMA_INSTANCES,
    MMA_VIEW_HEADS,
    STATIC_SMEM,
    TILE_HEADS,
    TILE_SOFTCAP_DV,
    VEC_HEADS,
    VEC_SOFTCAP,
    mma_compiled_out,
    mma_smem,
    mma_sparse,
    tile_choice,
    tile_config,
    tile_smem,
)
from pyllm.routes.row import Row
from pyllm.routes.verify import HEADS, TYPES, least_shared, takes_types

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyllm.routes.condition import Condition
    from pyllm.routes.configs import Heads
    from pyllm.routes.devices import Device

_MATRICES = ("volta", "turing", "ampere", "mfma", "wmma")

#: Every kernel copies up to 16 bytes of a row at once, reads one mask per stream, and rows whose elements are neighbours.
_ANY_MASK = (
    one_of("mask", "none", "stream"),
    at_least("align", 16),
    one_of("convertible", 1),
    one_of("rows", 1),
)
#: Tiles over several heads check no bounds, read the mask without asking for it, and have no slope per head.
_GROUPED = (
    one_of("mask", "stream"),
    one_of("alibi", 0),
    multiple_of("n_kv", 256),
    at_least("align", 16),
    at_least("mask_align", 16),
    one_of("convertible", 1),
    one_of("rows", 1),
)


def _name(head: Heads) -> str:
    return f"{head[0]}/{head[1]}"


def _mma_takes(device: Device, head: Heads, tile: tuple[int, int], *, softcap: bool) -> bool:
    return not mma_compiled_out(device, head[0], *tile, softcap=softcap) and mma_smem(device, *head, *tile) <= device.smem


def _mma() -> Iterator[Row]:
    tiles = sorted({tile for tiles in MMA_INSTANCES.values() for tile in tiles}, key=lambda tile: (tile[1], tile[0]))
    for tile in tiles:
        heads = [head for head, instances in MMA_INSTANCES.items() if tile in instances]
        shared = (*(_GROUPED if tile[1] > 1 else _ANY_MASK), at_most("wide", 1))
        for matrix in _MATRICES:
            devices = [device for device in DEVICES.values() if device.matrix == matrix]
            for softcap in (False, True):
                # What a head needs of shared memory decides on which devices of the family it runs.
                needs: dict[tuple[int, bool], list[Heads]] = {}
                for head in heads:
                    takes = [device for device in devices if _mma_takes(device, head, tile, softcap=softcap)]
                    if takes:
                        least = mma_smem(takes[0], *head, *tile)
                        everywhere = len(takes) == len(devices)
                        needs.setdefault((0 if everywhere else least, head in MMA_VIEW_HEADS), []).append(head)
                for (least, view), able in needs.items():
                    conditions: tuple[Condition, ...] = (one_of("matrix", matrix), one_of("head", *map(_name, able)), one_of("softcap", int(softcap)))
                    if least:
                        conditions += (at_least("smem", least),)
                    if view:
                        conditions += (one_of("view", 1),)
                    yield Row("mma", *tile, "", (*conditions, *shared))
                    gathers = [head for head in able if mma_sparse(*head, *tile)]
                    if gathers and not softcap and matrix in {"turing", "ampere"}:
                        sparse = (conditions[0], one_of("head", *map(_name, gathers)), *conditions[2:], at_least("sparsity", 1), at_least("n_kv", 1))
                        yield Row("sparse", *tile, "", (*sparse, *shared))


def _tile() -> Iterator[Row]:
    narrow = at_most("wide", 0)
    for vendor in ("nvidia", "amd"):
        for fast in (True, False):
            devices = [device for device in DEVICES.values() if device.vendor == vendor and device.fast_fp16 is fast]
            if not devices:
                continue
            where = (one_of("vendor", vendor), one_of("fast_fp16", int(fast)))
            for free in (True, False):
                for softcap in (False, True):
                    heads = [head for head in sorted(TILE_HEADS) if (not softcap or head[1] in TILE_SOFTCAP_DV) and _free(devices, head) is free]
                    fits = [head for head in heads if _tile_fits(devices, head)]
                    cap = one_of("softcap", int(softcap))
                    if free:
                        yield Row("tile", 0, 0, "", (*where, one_of("head", *map(_name, fits)), cap, *_ANY_MASK, narrow))
                        continue
                    for head in fits:
                        divisor = _divisor(devices[0], head)
                        yield Row("tile", 0, 0, "", (*where, one_of("head", _name(head)), cap, multiple_of("gqa", divisor), *_GROUPED, narrow))


def _choice(device: Device, head: Heads, gqa: int, *, grouped: bool) -> tuple[int, int] | None:
    return tile_choice(device, *head, gqa=gqa, n_q=1, padded=grouped, mask=grouped, alibi=False)


def _free(devices: list[Device], head: Heads) -> bool:
    """Whether the kernel has a tile of one head for it, which takes any ratio, mask and number of KV rows."""
    return all(_choice(device, head, 1, grouped=False) is not None for device in devices)


def _divisor(device: Device, head: Heads) -> int:
    """The smallest ratio whose multiples all find a tile."""
    return next(ratio for ratio in (1, 2, 4, 8, 16, 32) if all(_choice(device, head, ratio * times, grouped=True) for times in range(1, 65)))


def _tile_fits(devices: list[Device], head: Heads) -> bool:
    """Every tile that the kernel may choose is compiled and within the static shared memory of a block."""
    for device in devices:
        for gqa in (1, 2, 4, 8, 16, 32):
            for n_q in (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65):
                for grouped in (True, False):
                    tile = tile_choice(device, *head, gqa=gqa, n_q=n_q, padded=grouped, mask=grouped, alibi=False)
                    if tile is None:
                        continue
                    ncols = tile[0] * tile[1]
                    if tile_config(device, *head, ncols) is None or tile_smem(device, *head, ncols) > max(
                        STATIC_SMEM, 0 if device.vendor == "nvidia" else device.smem
                    ):
                        return False
    return True


def _vec() -> Iterator[Row]:
    for softcap in (0, 1):
        heads = sorted(VEC_SOFTCAP if softcap else VEC_HEADS)
        yield Row(
            "vec",
            0,
            0,
            "",
            (
                one_of("head", *(f"{dim}/{dim}" for dim in heads)),
                one_of("softcap", softcap),
                multiple_of("n_kv", 256),
                *_ANY_MASK,
                at_most("wide", 0),
            ),
        )


def verify_pairs(head: Heads) -> tuple[str, ...]:
    """K/V types that the verify route reads with these head dims."""
    return tuple(f"{k}/{v}" for k in TYPES for v in TYPES if takes_types(head[0], k) and takes_types(head[1], v))


#: What the verify route needs besides head dims, types and memory: asynchronous copies, one mask for all heads, 32-bit columns and pieces of rows.
VERIFY_NEEDS = (
    one_of("matrix", "ampere"),
    one_of("mask", "none", "stream", "repeat", why="tiles over several heads read one mask"),
    one_of("rows", 1),
    at_most("wide", 1),
    at_most("n_kv", 2**29),
)


def _verify() -> Iterator[Row]:
    alike: dict[tuple[str, ...], list[Heads]] = {}
    for head in HEADS:
        alike.setdefault(verify_pairs(head), []).append(head)
    for pairs, heads in alike.items():
        # Each device with asynchronous copies has this much; one that has less is not sent there.
        least = max(least_shared(head, *pair.split("/")) for head in heads for pair in pairs)
        yield Row("verify", 0, 0, "", (*VERIFY_NEEDS, one_of("head", *map(_name, heads)), one_of("kv", *pairs), at_least("smem", least)))


ACCEPTS: tuple[Row, ...] = (*_vec(), *_tile(), *_mma(), *_verify(), Row("reference", 0, 0, ""))
