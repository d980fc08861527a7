"""The instances of the ``verify`` route, and what each needs: the numbers of ``native/fattn/verify/geometry.h``; ``tests/routes/test_verify.py`` compares.

A block has ``m`` rows of Q that share a KV head and reads tiles of ``n`` KV rows, K and V as they are stored. The executor chooses its instance by the
rows, the types and the device's shared memory; where there is little of it, the tile is shorter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pyllm.routes.configs import Heads

#: K and V types in the order of their numbers in ``geometry.h``; ``any`` asks for the type while it runs.
TYPES = ("f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "any")
QUANTISED = TYPES[2:-1]
#: Types that have instances of their own: what people's caches are made of.
COMMON = ("f16", "q8_0", "q4_0")

_BLOCK = {"q8_0": 34, "q5_1": 24, "q5_0": 22, "q4_1": 20, "q4_0": 18, "iq4_nl": 18}  # bytes of 32 elements
#: ``STAGES`` and ``MAX_TILES`` of geometry.h.
_STAGES = 2
_MAX_TILES = 1024
#: ``STATIC_BYTES`` of geometry.h: what a kernel has of its own, at most.
STATIC_BYTES = 256


class Instance(NamedTuple):
    """A compiled kernel.

    Without teams all ``warps`` work on a tile: they divide V's columns, and each takes ``rows`` KV rows for the scores. With ``teams``, of
    ``warps // teams`` each, a team works on a tile of its own, which has ``heads`` neighbouring KV heads. ``blocks`` bounds a kernel's registers. Where
    ``m`` is no multiple of 16 the products are transposed.
    """

    d_k: int
    d_v: int
    m: int
    n: int
    warps: int
    rows: int
    teams: int
    heads: int
    type_k: str
    type_v: str
    blocks: int


class _Shape(NamedTuple):
    n: int
    warps: int
    rows: int
    teams: int = 0
    heads: int = 1


#: For each pair of head dims the tile where shared memory is plenty, and where a block has 99 KB.
_SHAPES: dict[Heads, tuple[_Shape, _Shape]] = {
    (64, 64): (_Shape(64, 2, 32), _Shape(64, 2, 32)),
    (80, 80): (_Shape(80, 5, 16), _Shape(32, 5, 32)),
    (96, 96): (_Shape(48, 3, 16), _Shape(48, 3, 16)),
    (112, 112): (_Shape(112, 7, 16), _Shape(32, 7, 32)),
    (128, 128): (_Shape(64, 4, 16), _Shape(32, 4, 8)),
    (192, 128): (_Shape(64, 4, 16), _Shape(32, 4, 8)),
    (256, 256): (_Shape(64, 8, 8), _Shape(16, 8, 8)),
    (512, 512): (_Shape(32, 8, 8), _Shape(16, 8, 8)),
    (576, 512): (_Shape(32, 8, 8), _Shape(16, 8, 8)),
}


class _Tuned(NamedTuple):
    shape: _Shape
    blocks: int


#: Tiles that measured better (repro/results/attention-h200.json) for head dims, type and rows of Q: long ones, whose warps take 16 or 32 KV rows each and
#: read Q less often; more warps for f16, which has nothing to decode twice; teams; and transposed products, whose rows of Q come by eights.
_TUNED: dict[tuple[Heads, str, int], _Tuned] = {
    ((128, 128), "q8_0", 8): _Tuned(_Shape(32, 8, 0, teams=4, heads=2), 1),
    ((128, 128), "q4_0", 8): _Tuned(_Shape(64, 8, 0, teams=4, heads=2), 1),
    ((256, 256), "q4_0", 8): _Tuned(_Shape(128, 8, 0, teams=2), 1),
    ((256, 256), "q4_0", 24): _Tuned(_Shape(128, 8, 0, teams=2), 1),
    ((512, 512), "q4_0", 8): _Tuned(_Shape(64, 8, 0, teams=2), 1),
    ((128, 128), "f16", 32): _Tuned(_Shape(32, 8, 0, teams=4), 1),
    ((128, 128), "f16", 48): _Tuned(_Shape(32, 12, 0, teams=4), 1),
    ((128, 128), "f16", 64): _Tuned(_Shape(64, 8, 0, teams=2), 1),
    ((128, 128), "q8_0", 32): _Tuned(_Shape(128, 4, 32), 2),
    ((128, 128), "q8_0", 48): _Tuned(_Shape(128, 4, 32), 1),
    ((128, 128), "q4_0", 16): _Tuned(_Shape(128, 4, 32), 3),
    ((128, 128), "q4_0", 32): _Tuned(_Shape(128, 4, 32), 2),
    ((128, 128), "q4_0", 48): _Tuned(_Shape(128, 4, 32), 2),
    ((128, 128), "q4_0", 64): _Tuned(_Shape(128, 4, 32), 1),
    ((256, 256), "f16", 32): _Tuned(_Shape(64, 8, 16), 1),
    ((256, 256), "f16", 48): _Tuned(_Shape(64, 8, 16), 1),
    ((256, 256), "f16", 64): _Tuned(_Shape(64, 8, 16), 1),
    ((256, 256), "q8_0", 16): _Tuned(_Shape(128, 8, 16), 1),
    ((256, 256), "q8_0", 32): _Tuned(_Shape(128, 8, 16), 1),
    ((256, 256), "q8_0", 48): _Tuned(_Shape(128, 8, 16), 1),
    ((256, 256), "q8_0", 64): _Tuned(_Shape(64, 8, 16), 1),
    ((256, 256), "q4_0", 16): _Tuned(_Shape(128, 8, 16), 2),
    ((256, 256), "q4_0", 32): _Tuned(_Shape(256, 8, 32), 1),
    ((256, 256), "q4_0", 48): _Tuned(_Shape(128, 8, 16), 1),
    ((256, 256), "q4_0", 64): _Tuned(_Shape(128, 8, 16), 1),
    ((512, 512), "q8_0", 16): _Tuned(_Shape(64, 8, 8), 2),
    ((512, 512), "q8_0", 32): _Tuned(_Shape(64, 8, 16), 1),
    ((512, 512), "q4_0", 16): _Tuned(_Shape(128, 8, 16), 1),
    ((512, 512), "q4_0", 32): _Tuned(_Shape(128, 8, 16), 1),
    ((512, 512), "q4_0", 48): _Tuned(_Shape(64, 16, 16), 1),
    ((512, 512), "q4_0", 64): _Tuned(_Shape(64, 16, 16), 1),
}
#: A second one beside these, where there is room for it and KV heads lie as it needs: longer tiles, whose warps share V's columns; and teams that read two
#: neighbouring KV heads at once, whose rows of 72 bytes alone are parts of the lines that memory is read in.
_BESIDE: dict[tuple[Heads, str, int], _Tuned] = {
    ((128, 128), "q8_0", 16): _Tuned(_Shape(256, 8, 32), 1),
    ((128, 128), "q8_0", 48): _Tuned(_Shape(256, 8, 32), 1),
    ((128, 128), "q4_0", 16): _Tuned(_Shape(64, 8, 0, teams=4, heads=2), 1),
    ((128, 128), "q4_0", 32): _Tuned(_Shape(256, 8, 32), 1),
}
HEADS = tuple(_SHAPES)


def row_bytes(kind: str, dim: int) -> int:
    """Bytes of ``dim`` elements."""
    return dim // 32 * _BLOCK[kind] if kind in _BLOCK else 2 * dim


def tile_stride(kind: str, dim: int) -> int:
    """Bytes from row to row of a tile in shared memory: an odd number of pieces of 16 that hold a row wherever it begins in the first."""
    size = row_bytes(kind, dim)
    aligned = size & -size
    pieces = (size + max(0, 16 - aligned) + 15) // 16
    return 16 * (pieces | 1)


def _head_bytes(rows: int, sets: int) -> int:
    """What lies before Q where there are teams: maxima and sums of each set of rows, the rows of Q, the list of tiles."""
    return ((sets + 1) * rows * 8 + 12 * rows + 3 * _MAX_TILES + 127) // 128 * 128


def shared_bytes(one: Instance, type_k: str, type_v: str) -> int:
    """Bytes of shared memory that ``one`` asks for: Q, two tiles of P, two of K and V each, maxima and sums, the list of tiles.

    Teams have no P there, and in the end their O in place of Q and K and V. Transposed products have where they begin, and a tile of P where several warps
    share a head.
    """
    rows = one.heads * one.m
    queries = rows * (2 * one.d_k + 16)
    ring = _STAGES * one.n * (tile_stride(type_k, one.heads * one.d_k) + tile_stride(type_v, one.heads * one.d_v))
    if one.m % 16 != 0:
        of_head = one.warps // one.teams // one.heads
        tiles = queries + (one.teams * rows * (2 * one.n + 16) if of_head > 1 else 0) + one.teams * ring
        return _head_bytes(rows, one.teams * of_head) + rows * one.d_k // 4 + max(tiles, one.teams * rows * 4 * (one.d_v + 4))
    if one.teams > 0:
        return _head_bytes(rows, one.teams) + max(queries + one.teams * ring, one.teams * rows * 4 * (one.d_v + 8))
    return queries + 2 * rows * (2 * one.n + 16) + ring + (one.n // one.rows + 5) * rows * 4 + 3 * _MAX_TILES


#: Rows of Q of the instances. What is no multiple of 16 is for products that are transposed, of which there are those in ``_TUNED``.
_ROWS = (8, 16, 24, 32, 48, 64)


def _blocks(d_v: int, shape: _Shape, m: int) -> int:
    """Four blocks of four warps with 16 rows of Q; with more rows registers last for two, with eight warps for one or two."""
    if shape.warps <= 5:
        return 4 if m == 16 else 2
    return 2 if m <= (16 if d_v == 512 else 32) else 1


def _instances() -> tuple[Instance, ...]:
    found = []
    for (d_k, d_v), (large, small) in _SHAPES.items():
        head = (d_k, d_v)
        for m in _ROWS:
            # 48 where it was measured; over head dim 512, 64 rows leave many unused.
            everywhere = m % 16 == 0 and (m != 48 or head == (512, 512))
            kinds = [kind for kind in COMMON if d_k in (64, 128, 192, 256, 512) and (everywhere or (head, kind, m) in _TUNED)]
            for kind in kinds:
                shape, blocks = _TUNED.get((head, kind, m), _Tuned(large, _blocks(d_v, large, m)))
                found.append(Instance(d_k, d_v, m, *shape, kind, kind, blocks))
                if (head, kind, m) in _BESIDE:
                    shape, blocks = _BESIDE[head, kind, m]
                    found.append(Instance(d_k, d_v, m, *shape, kind, kind, blocks))
            if everywhere:
                found += [Instance(d_k, d_v, m, *shape, "any", "any", _blocks(d_v, shape, m)) for shape in dict.fromkeys((large, small))]
    return tuple(found)


INSTANCES = _instances()


def takes_types(dim: int, kind: str) -> bool:
    """Whether rows of ``dim`` elements can be of that type and the route reads it."""
    return kind in TYPES[:-1] and (kind not in QUANTISED or dim % 32 == 0)


def choose(head: Heads, type_k: str, type_v: str, rows: int, smem: int, *, beside: int = 1) -> Instance | None:
    """The instance for ``rows`` rows of Q that share a KV head, on a device with ``smem`` bytes for a block: geometry.h, `choose`.

    ``beside``: so many KV heads lie side by side in the cache.
    """
    able = [
        one
        for one in INSTANCES
        if (one.d_k, one.d_v) == head
        and (one.type_k, one.type_v) in ((type_k, type_v), ("any", "any"))
        and beside % one.heads == 0
        and shared_bytes(one, type_k, type_v) + STATIC_BYTES <= smem
    ]
    return max(able, key=lambda one: (-rows // one.m, one.type_k != "any", -one.m, one.heads, one.n), default=None)


def least_shared(head: Heads, type_k: str, type_v: str) -> int:
    """Bytes of shared memory without which no instance takes these head dims and types."""
    return min(shared_bytes(one, type_k, type_v) for one in INSTANCES if (one.d_k, one.d_v) == head and one.heads == 1 and one.type_k in (type_k, "any"))
