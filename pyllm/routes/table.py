"""The route table: rows in priority order, the first whose conditions all hold decides. The last row takes every well-formed node.

What upstream serves is sent where upstream sends it (fattn.cu of the pin), except where its kernels cannot take it or ours measured faster; what
it declines or aborts on goes to an instance that can take it after all, and else to ``reference``. ``executors.py`` says what the kernels accept,
``check.py`` proves that no row sends them anything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.routes.axes import FLOAT_TYPES
from pyllm.routes.condition import at_least, at_most, multiple_of, not_multiple_of, one_of
from pyllm.routes.executors import VERIFY_NEEDS, verify_pairs
from pyllm.routes.row import Row
from pyllm.routes.verify import HEADS as VERIFY_HEADS
from pyllm.routes.verify import least_shared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyllm.routes.condition import Condition

#: Head dims that matrix and tile kernels share, K and V alike.
SQUARE = ("64/64", "80/80", "96/96", "112/112", "128/128", "256/256")
#: Head dims of the vector kernel.
VECTOR = ("64/64", "128/128", "256/256")
#: Head dims that only the tile kernel has.
TILE_ONLY = ("40/40", "72/72")
#: Kernels with a logit softcap are compiled for these only; elsewhere the instance traps.
CAPPED = ("128/128", "256/256", "512/512")

_TENSOR = (one_of("matrix", "turing", "ampere"),)
_ALIGNED = at_least("align", 16, "kernels load 16 bytes at a time")
#: What every kernel of upstream needs.
_BASE = (
    one_of("mask", "none", "stream", why="upstream's kernels read one mask per stream"),
    _ALIGNED,
    one_of("convertible", 1),
    one_of("rows", 1),
    at_most("wide", 1, "offsets of heads in 32 bits"),
)
_NARROW = at_most("wide", 0, "offsets of KV rows in 32 bits")
#: What kernels need that share a K/V tile between query heads: they check no bounds and apply no slope.
_GROUPED = (
    one_of("mask", "stream", why="tiles over several heads read the mask unconditionally"),
    one_of("alibi", 0, why="no slope per head inside a tile"),
    multiple_of("n_kv", 256, why="no bounds checks inside a tile"),
    _ALIGNED,
    at_least("mask_align", 16, "asynchronous copies of 16 bytes"),
    one_of("convertible", 1),
    one_of("rows", 1),
    at_most("wide", 1, "offsets of heads in 32 bits"),
)
_PADDED = multiple_of("n_kv", 256, why="the vector kernel checks no bounds")


def _capped(heads: tuple[str, ...]) -> Iterator[tuple[Condition, ...]]:
    """Heads without softcap, then those that have an instance with one."""
    yield one_of("head", *heads), one_of("softcap", 0)
    with_cap = tuple(head for head in heads if head in CAPPED)
    if with_cap:
        yield one_of("head", *with_cap), one_of("softcap", 1)


def _vec(because: str, *conditions: Condition, heads: tuple[str, ...] = VECTOR) -> list[Row]:
    return [Row("vec", 0, 0, because, (*conditions, *cap, _PADDED, _NARROW, *_BASE)) for cap in _capped(heads)]


def _widths(ncols2: int, *, smallest: int = 8, turing: bool = True) -> Iterator[tuple[int, tuple[Condition, ...]]]:
    """Tile heights for ``ncols2`` heads, smallest first: as few rows as hold all queries, at most 64 columns (32 on Turing)."""
    heights = [ncols // ncols2 for ncols in (8, 16, 32, 64) if ncols >= smallest and ncols >= ncols2]
    for place, height in enumerate(heights):
        if place + 1 < len(heights):
            yield height, (at_most("n_q", height),)
        if turing and height * ncols2 == 32:
            yield height, (one_of("matrix", "turing", why="wider tiles are not compiled for Turing"),)
    yield heights[-1], ()


def _mma(because: str, ncols2: int, *conditions: Condition, heads: tuple[str, ...], smallest: int = 8, turing: bool = True) -> list[Row]:
    shared = _GROUPED if ncols2 > 1 else _BASE
    return [
        Row("mma", height, ncols2, because, (*_TENSOR, *conditions, *cap, *width, *shared))
        for cap in _capped(heads)
        for height, width in _widths(ncols2, smallest=smallest, turing=turing)
    ]


def _sparse(ncols1: int, ncols2: int, head: str, ratio: int, *conditions: Condition) -> Row:
    return Row(
        "sparse",
        ncols1,
        ncols2,
        "a query sees few of the KV rows: only those are read",
        (
            one_of("matrix", "ampere") if ncols1 * ncols2 == 64 else _TENSOR[0],
            one_of("head", head),
            one_of("softcap", 0),
            at_least("n_kv", 4096),
            at_least("sparsity", ratio, "gathering has to beat a dense pass"),
            *conditions,
            *_GROUPED,
        ),
    )


def _sparse_rows() -> Iterator[Row]:
    """Gathering pays from twice the rows gathered on; a single-query tile gathers for each of up to 64 / ncols2 queries."""
    grouped = at_least("gqa", 5)
    for n_q in range(1, 5):
        yield _sparse(1, 8, "256/256", 2 * n_q, grouped, at_most("n_q", n_q))
    yield _sparse(8, 8, "256/256", 16, grouped, at_least("n_q", 5))
    for n_q in range(1, 8):
        yield _sparse(1, 8, "512/512", 2 * n_q, grouped, at_most("n_q", n_q))
    yield _sparse(1, 8, "512/512", 16, grouped)
    view = one_of("view", 1)
    for n_q in range(1, 4):
        yield _sparse(1, 16, "576/512", 2 * n_q, multiple_of("gqa", 16), view, at_most("n_q", n_q))
    yield _sparse(1, 16, "576/512", 8, multiple_of("gqa", 16), view)


def _latent(because: str, ncols2: int, *conditions: Condition, turing: bool = True) -> list[Row]:
    """576/512: the kernel reads V from its K tile."""
    view = one_of("view", 1, why="the kernel reads V from its K tile")
    smallest = 16 if ncols2 > 4 else 8
    return _mma(because, ncols2, view, *conditions, heads=("576/512",), smallest=smallest, turing=turing)


def _power(ncols: int, largest: int) -> tuple[Condition, ...]:
    """``ncols`` is the largest power of two, up to ``largest``, that divides the query heads of a KV head."""
    divides = (multiple_of("gqa", ncols),) if ncols > 1 else ()
    return divides if ncols == largest else (*divides, not_multiple_of("gqa", 2 * ncols))


_ALL_TILE = (*TILE_ONLY, *SQUARE, "192/128", "320/256", "512/512", "576/512")


#: Head dims for which the tile kernel has only tiles over several heads, the ratio that they need, and on whose devices.
_TILE_GROUPED = (("512/512", 2, ""), ("576/512", 4, ""), ("192/128", 8, ""), ("320/256", 16, "nvidia"), ("320/256", 32, "amd"))


def _tile_rows(because: str, *conditions: Condition, heads: tuple[str, ...] = _ALL_TILE) -> Iterator[Row]:
    """The tile kernel chooses its tile itself; these are the shapes for which it finds one (fattn-tile.cuh, launch_fattn_tile_switch_ncols2)."""
    free = tuple(head for head in heads if head in (*TILE_ONLY, *SQUARE))
    if free:
        for cap in _capped(free):
            yield Row("tile", 0, 0, because, (*conditions, *cap, _NARROW, *_BASE))
    # Softcap instances depend on V's head dim here, and 128, 256 and 512 have one.
    for head, divisor, vendor in _TILE_GROUPED:
        if head in heads and (vendor != "amd" or not conditions):
            where = (one_of("vendor", vendor),) if vendor and not conditions else ()
            yield Row("tile", 0, 0, because, (*conditions, *where, one_of("head", head), multiple_of("gqa", divisor), _NARROW, *_GROUPED))


def _volta_rows() -> Iterator[Row]:
    """Volta's matrix units pay from 16 columns on, and only tiles of 32 and 64 columns are compiled for it."""
    volta = one_of("matrix", "volta")
    for ncols in (2, 1):
        yield from _vec("few columns: no tile is filled", volta, *_power(ncols, 8), at_most("n_q", 2 // ncols))
    few = "few columns: Volta's matrix units do not pay yet"
    for alike, powers in ((SQUARE, (8, 4, 2, 1)), (("512/512",), (8, 4, 2)), (("192/128",), (16, 8)), (("576/512",), (16, 8, 4)), (("320/256",), (16,))):
        largest = 32 if alike == ("320/256",) else powers[0]
        for ncols in powers:
            yield from _tile_rows(few, volta, *_power(ncols, largest), at_most("n_q", 16 // ncols), heads=alike)
    view = one_of("view", 1, why="the kernel reads V from its K tile")
    for ncols2, heads, condition in (
        *((divisor, SQUARE, (multiple_of("gqa", divisor),)) for divisor in (8, 4, 2)),
        *((divisor, ("512/512",), (multiple_of("gqa", divisor),)) for divisor in (8, 4)),
        (2, ("512/512",), ()),
        (16, ("192/128",), (multiple_of("gqa", 16),)),
        (8, ("192/128",), ()),
        (32, ("320/256",), ()),
        (16, ("576/512",), (multiple_of("gqa", 16), view)),
        (4, ("576/512",), (view,)),
        (1, SQUARE, ()),
    ):
        # 64 columns over 320/256 do not fit Volta's shared memory.
        heights = (1,) if ncols2 == 32 else (32 // ncols2, 64 // ncols2)
        yield from _heights("Volta's matrix units", ncols2, volta, *condition, heads=heads, heights=heights)


def _heights(because: str, ncols2: int, *conditions: Condition, heads: tuple[str, ...], heights: tuple[int, ...], above: int = 0) -> Iterator[Row]:
    """One row for each tile height; ``above`` is a number of query rows that the conditions exceed already."""
    shared = _GROUPED if ncols2 > 1 else _BASE
    heights = tuple(height for height in heights[:-1] if height > above) + heights[-1:]
    for cap in _capped(heads):
        for place, height in enumerate(heights):
            width = (at_most("n_q", height),) if place + 1 < len(heights) else ()
            yield Row("mma", height, ncols2, because, (*conditions, *cap, *width, *shared))


def _mfma_rows() -> Iterator[Row]:
    """CDNA: matrix units need a certain number of columns, more of them for larger head dims. Over 256 only tiles of 32 columns fit."""
    because = "enough columns for the matrix units"
    groups = ((8, (8, 4, 2, 1), (at_least("gqa", 5),)), (4, (4, 1), (at_least("gqa", 3), at_most("gqa", 4))), (2, (2,), (one_of("gqa", 2),)))
    mfma = one_of("matrix", "mfma")
    for heads, columns in ((("64/64",), 8), (("80/80", "96/96", "112/112", "128/128"), 16), (("256/256",), 64), (("512/512",), 128)):
        large = heads == ("512/512",)
        for ncols2, powers, group in groups:
            for ncols in powers:
                above = columns // ncols
                enough = (mfma, *_power(ncols, 8), at_least("n_q", above + 1), *group)
                heights = (32 // ncols2,) if large else (16 // ncols2, 32 // ncols2, 64 // ncols2)
                yield from _heights(because, ncols2, *enough, heads=heads, heights=heights, above=above)
        for ncols in () if large else (8, 4, 2, 1):
            above = columns // ncols
            yield from _heights(because, 1, mfma, *_power(ncols, 8), at_least("n_q", above + 1), heads=heads, heights=(16, 32, 64), above=above)


def _wmma_rows() -> Iterator[Row]:
    """RDNA 3 and 4: only tiles over several heads are compiled."""
    because = "wide tiles over the heads of one KV head"
    small = tuple(head for head in SQUARE if head != "256/256")
    for heads, columns in ((small, 8), (("256/256",), 16)):
        for ncols, ncols2, group in ((8, 8, ()), (4, 4, ()), (2, 2, ()), (1, 8, (at_least("gqa", 5),)), (1, 4, (at_least("gqa", 3),))):
            above = columns // ncols
            enough = (one_of("matrix", "wmma"), *_power(ncols, 8), at_least("n_q", above + 1), *group)
            yield from _heights(because, ncols2, *enough, heads=heads, heights=(16 // ncols2, 32 // ncols2, 64 // ncols2), above=above)


def _spare_rows() -> Iterator[Row]:
    """AMD's matrix units, for what neither the vector nor the tile kernel takes: tiles with unused columns beat the reference."""
    because = "neither the vector nor the tile kernel takes it"
    mfma, wmma = one_of("matrix", "mfma"), one_of("matrix", "wmma")
    view = one_of("view", 1, why="the kernel reads V from its K tile")
    yield from _heights(because, 1, mfma, heads=SQUARE, heights=(16,))
    yield from _heights(because, 2, mfma, heads=("512/512",), heights=(16,))
    yield from _heights(because, 8, mfma, heads=("192/128",), heights=(4,))
    yield from _heights(because, 32, mfma, heads=("320/256",), heights=(1,))
    yield from _heights(because, 4, mfma, view, heads=("576/512",), heights=(8,))
    yield from _heights(because, 2, wmma, heads=SQUARE, heights=(8,))
    yield from _heights(because, 8, wmma, heads=("192/128",), heights=(2,))


def _plain_vec_rows() -> Iterator[Row]:
    """Devices whose matrix units, if any, are not worth it: the vector kernel for one row, or two rows of quantised K/V."""
    plain = (one_of("matrix", "none", "mfma", "wmma"), one_of("quantised", 0), one_of("n_q", 1))
    yield from _vec("one query row and no heads to share a tile", *plain, one_of("gqa", 1))
    yield from _vec("one query row, ALiBi", *plain, one_of("alibi", 1))
    yield from _vec("one query row, no mask", *plain, one_of("mask", "none"))
    yield from _vec("up to two query rows over quantised K/V", one_of("matrix", "none", "mfma", "wmma"), one_of("quantised", 1), at_most("n_q", 2))


#: Devices with asynchronous copies have at least 99 KB for a block; the largest tile that the verify route cannot do without takes this much.
_VERIFY_SMEM = max(least_shared(head, *pair.split("/")) for head in VERIFY_HEADS for pair in verify_pairs(head))

_VERIFY_NAMES = tuple(f"{d_k}/{d_v}" for d_k, d_v in VERIFY_HEADS)


def verify_rows(
    because: str,
    *conditions: Condition,
    heads: tuple[str, ...] = _VERIFY_NAMES,
    pairs: Callable[[str], bool] = lambda _: True,
) -> Iterator[Row]:
    """Our verify kernel over ``heads`` and those K/V types of them that ``pairs`` picks."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for head in heads:
        d_k, d_v = map(int, head.split("/"))
        alike.setdefault(tuple(filter(pairs, verify_pairs((d_k, d_v)))), []).append(head)
    for types, names in alike.items():
        memory = at_least("smem", _VERIFY_SMEM, "its smallest tile")
        yield Row("verify", 0, 0, because, (*conditions, one_of("head", *names), one_of("kv", *types), memory, *VERIFY_NEEDS))


def _between(axis: str, low: int, high: int) -> tuple[Condition, Condition]:
    return at_least(axis, low), at_most(axis, high)


def _hopper_rows() -> Iterator[Row]:
    """Where the verify kernel was measured to be faster, on an H200 (repro/results/attention-h200.json): nothing else goes to it that upstream takes.

    Over quantised K/V upstream converts the whole cache first, or reads it with its vector kernel at a tenth of the memory's rate. Over f16 its matrix
    kernel is as fast where several streams fill the device, and with many columns.
    """
    hopper = (one_of("arch", 900), at_most("sparsity", 1, "few KV rows are gathered"))

    def quantised(pair: str) -> bool:
        return not set(pair.split("/")) <= set(FLOAT_TYPES)

    def half(pair: str) -> bool:
        return pair == "f16/f16"

    because = "quantised K/V, read once as they are stored"
    for gqa, n_q in ((4, 64), (8, 32), (16, 16), (32, 8)):
        few = (*hopper, at_least("n_kv", 1024), at_most("gqa", gqa), at_most("n_q", n_q))
        # Up to two rows over a short cache the vector kernel is one launch where ours are two; over long heads it reads too slowly even so.
        yield from verify_rows(because, *few, at_least("n_kv", 4096), heads=("64/64", "128/128", "192/128"), pairs=quantised)
        yield from verify_rows(because, *few, at_least("n_q", 3), heads=("64/64", "128/128", "192/128"), pairs=quantised)
        yield from verify_rows(because, *few, heads=("256/256", "512/512"), pairs=quantised)
    latent = (*hopper, at_least("n_kv", 4096), at_most("gqa", 16))
    yield from verify_rows(because, *latent, at_most("n_q", 2), heads=("576/512",), pairs=quantised)

    because = "a long cache read once for all query rows"
    wide = (*hopper, at_least("n_kv", 1024))
    # Where both kernels read the cache at nine tenths of the copy rate, upstream's is ahead: from 131,072 rows on with 8 KV heads of 128.
    short, shorter = at_most("n_kv", 131072), at_most("n_kv", 65536)
    long = (*hopper, at_least("n_kv", 4096))
    alone = one_of("streams", 1)
    yield from verify_rows(because, *latent, at_most("n_q", 4), alone, heads=("576/512",), pairs=half)
    yield from verify_rows(because, *wide, at_most("gqa", 2), at_most("n_q", 1), short, heads=("512/512",), pairs=half)
    yield from verify_rows(because, *wide, *_between("gqa", 3, 8), at_most("n_q", 1), short, alone, heads=("512/512",), pairs=half)
    yield from verify_rows(because, *wide, *_between("gqa", 3, 8), *_between("n_q", 2, 16), heads=("512/512",), pairs=half)
    yield from verify_rows(because, *wide, *_between("gqa", 5, 8), at_most("n_q", 8), short, alone, heads=("256/256",), pairs=half)
    yield from verify_rows(because, *wide, *_between("gqa", 5, 6), *_between("n_q", 3, 8), shorter, heads=("256/256",), pairs=half)
    yield from verify_rows(because, *long, *_between("gqa", 5, 8), *_between("n_q", 9, 16), shorter, alone, heads=("256/256",), pairs=half)
    yield from verify_rows(because, *wide, *_between("gqa", 3, 4), *_between("n_q", 3, 16), shorter, alone, heads=("128/128", "256/256"), pairs=half)
    yield from verify_rows(because, *long, *_between("gqa", 9, 16), at_most("n_q", 16), short, alone, heads=("128/128",), pairs=half)
    yield from verify_rows(because, *long, *_between("gqa", 9, 16), *_between("n_q", 3, 4), shorter, heads=("128/128",), pairs=half)
    yield from verify_rows(because, *long, *_between("gqa", 5, 8), *_between("n_q", 2, 8), shorter, alone, heads=("128/128",), pairs=half)
    yield from verify_rows(because, *long, *_between("gqa", 3, 4), one_of("n_q", 1), short, alone, heads=("64/64", "80/80", "96/96", "128/128"), pairs=half)
    narrow = ("64/64", "80/80", "96/96", "112/112")
    yield from verify_rows(because, *long, *_between("gqa", 3, 4), *_between("n_q", 3, 4), shorter, alone, heads=narrow, pairs=half)
    yield from verify_rows(because, *long, one_of("gqa", 1), *_between("n_q", 3, 16), alone, heads=("128/128",), pairs=half)
    yield from verify_rows(because, *long, one_of("gqa", 8), at_most("n_q", 4), shorter, alone, heads=("192/128",), pairs=half)


ROWS: tuple[Row, ...] = (
    *_hopper_rows(),
    # --- NVIDIA with tensor cores that the kernels use: Turing and later -------------------------------------------------------------
    *_vec("up to two query rows over quantised K/V", *_TENSOR, at_least("arch", 890), one_of("quantised", 1), at_most("n_q", 2)),
    *_vec("one query row over quantised K/V", *_TENSOR, one_of("quantised", 1), one_of("n_q", 1)),
    *_sparse_rows(),
    *_vec(
        "one query row, few heads to share a tile",
        *_TENSOR,
        at_least("arch", 890),
        one_of("quantised", 0),
        one_of("n_q", 1),
        one_of("streams", 1),
        at_most("gqa", 4),
    ),
    *_vec(
        "one query row over a short cache",
        *_TENSOR,
        at_least("arch", 890),
        one_of("quantised", 0),
        one_of("n_q", 1),
        one_of("streams", 1),
        at_most("n_kv", 8191),
        heads=("64/64", "128/128"),
    ),
    *_vec("one query row and no heads to share a tile", *_TENSOR, one_of("n_q", 1), one_of("gqa", 1)),
    *_vec("one query row, ALiBi", *_TENSOR, one_of("n_q", 1), one_of("alibi", 1)),
    *_vec("one query row, no mask", *_TENSOR, one_of("n_q", 1), one_of("mask", "none")),
    *_vec("one query row, a mask that is not aligned", *_TENSOR, one_of("n_q", 1), at_most("mask_align", 8)),
    *_mma("five or more query heads share each K/V tile", 8, at_least("gqa", 5), heads=(*SQUARE, "512/512")),
    *_mma("three or four query heads share each K/V tile", 4, at_least("gqa", 3), heads=(*SQUARE, "512/512")),
    *_mma("two query heads share each K/V tile", 2, at_least("gqa", 2), heads=(*SQUARE, "512/512")),
    *_mma("no heads share a tile: bounds are checked, any mask", 1, heads=SQUARE),
    # Upstream declines these ratios: a tile with unused columns beats the CPU and our reference.
    *_mma("one query head per KV head in a tile of two", 2, heads=("512/512",)),
    *_mma("16 query heads share each K/V tile", 16, multiple_of("gqa", 16), heads=("192/128",), smallest=16),
    *_mma("up to eight query heads share each K/V tile", 8, heads=("192/128",)),
    *_mma("up to 32 query heads share each K/V tile", 32, heads=("320/256",), smallest=32),
    *_latent("20 query heads, few rows: tiles of 16 heads", 16, one_of("gqa", 20), at_least("arch", 1210), at_most("n_q", 8), turing=False),
    *_latent(
        "20 query heads, few rows, long cache: tiles of 16 heads",
        16,
        one_of("gqa", 20),
        at_least("arch", 1200),
        at_most("arch", 1209),
        at_most("n_q", 4),
        at_least("n_kv", 65536),
        turing=False,
    ),
    *_latent(
        "20 query heads, few rows: tiles of 16 heads", 16, one_of("gqa", 20), at_least("arch", 890), at_most("arch", 1199), at_most("n_q", 4), turing=False
    ),
    *_latent("20 query heads, few rows: tiles of 16 heads", 16, one_of("gqa", 20), at_most("arch", 889), at_most("n_q", 4), at_most("n_kv", 16384)),
    *_latent("20 query heads, few rows, long cache: tiles of 32 heads", 32, one_of("gqa", 20), at_most("arch", 889), at_most("n_q", 4)),
    *_latent("16 query heads share each K/V tile", 16, multiple_of("gqa", 16)),
    *_latent("four query heads share each K/V tile", 4),
    # --- other devices ----------------------------------------------------------------------------------------------------------------
    *_volta_rows(),
    *_mfma_rows(),
    *_wmma_rows(),
    *_plain_vec_rows(),
    # --- everywhere -------------------------------------------------------------------------------------------------------------------
    *_tile_rows("no matrix-unit instance takes it"),
    *_spare_rows(),
    *verify_rows("no kernel of upstream takes it"),
    Row("reference", 0, 0, "no kernel of upstream takes it"),
)
