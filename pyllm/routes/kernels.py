"""What upstream's FlashAttention kernels are compiled for, and what each needs of its inputs, read from the kernels and not from their selector.

Sizes are bytes unless said otherwise. ``dk`` and ``dv`` are the head dims of K and V, ``gqa`` the query heads of one KV head, ``ncols1`` and
``ncols2`` a tile's query rows and query heads. A citation names a file below ``ggml`` of the pinned upstream, a line, and a word of that
line; ``tests/routes`` looks each of them up, and derives every table here again from upstream's source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyllm.routes.configs import MMA_CONFIGS, TILE_CONFIGS
from pyllm.routes.devices import AMD_OFFSET

if TYPE_CHECKING:
    from pyllm.routes.configs import Heads, MmaConfig, TileConfig
    from pyllm.routes.devices import Device

Tile = tuple[int, int]

_HALF2 = 4  # bytes of two f16 values
_INT32 = 2**31
_UINT32 = 2**32
_GRID = 65535  # blocks in y and z of a grid, on every CUDA and HIP device


class Align(NamedTuple):
    """Bytes that divide the address and the strides of rows, heads and streams."""

    q: int
    k: int
    v: int
    mask: int


class Strides(NamedTuple):
    """Bytes from a row, head or stream to the next."""

    q_row: int
    q_head: int
    q_stream: int
    k_row: int
    k_head: int
    v_row: int
    v_head: int
    mask_row: int


# --- MMA: matrix units ----------------------------------------------------------------------------------------------------------------------

#: Heads of an instance by ``dk``: generate_cu_files.py:92 `HEAD_SIZES_KQ` without 40 and 72.
_MMA_NCOLS2 = dict.fromkeys((64, 80, 96, 112, 128, 256), (1, 2, 4, 8)) | {192: (8, 16), 320: (32,), 512: (2, 4, 8), 576: (4, 16, 32)}
#: Head dim of V where it is not K's: generate_cu_files.py:9 `HEAD_SIZES_V_OVERRIDE`.
_DV = {192: 128, 320: 256, 576: 512}

#: (dk, dv) -> tiles with a compiled instance: 8, 16, 32 or 64 columns (generate_cu_files.py:84 `64`).
#: Not each has code on every device (``mma_compiled_out``), and not each that has fits there (``mma_smem``).
MMA_INSTANCES: dict[Heads, frozenset[Tile]] = {
    (dk, _DV.get(dk, dk)): frozenset((ncols // ncols2, ncols2) for ncols in (8, 16, 32, 64) for ncols2 in sizes if ncols2 <= ncols)
    for dk, sizes in _MMA_NCOLS2.items()
}

#: (dk, dv) -> tiles with an instance that gathers the KV rows that the mask leaves: fattn-mma-f16.cuh:1797 `may_use_sparse`.
SPARSE_INSTANCES: dict[Heads, frozenset[Tile]] = {(256, 256): frozenset({(1, 8), (8, 8)}), (512, 512): frozenset({(1, 8)}), (576, 512): frozenset({(1, 16)})}

#: The kernel reads V from its K tile: V has to be a view of K. fattn-mma-f16.cuh:2036 `V_is_K_view`; no selector checks it.
MMA_VIEW_HEADS = frozenset({(576, 512)})

#: fattn-mma-f16.cuh:1843 `use_logit_softcap`; tests K's head dim.
MMA_SOFTCAP_DK = frozenset({128, 256, 512})

#: Which table of ``MMA_CONFIGS`` a device reads: fattn-mma-f16.cuh:231 `ggml_cuda_fattn_mma_get_config`.
MMA_FAMILY = {"ampere": "ampere", "turing": "turing", "volta": "volta", "mfma": "cdna", "wmma": "rdna"}


def mma_config(device: Device, dk: int, dv: int, ncols: int) -> MmaConfig:
    """The configuration of a tile of ``ncols`` columns.

    Raises:
        KeyError: the device has no matrix units that the kernel uses, or there is no such instance.
    """
    family = MMA_FAMILY[device.matrix]
    own = MMA_CONFIGS[family].get((dk, dv))
    return (own or MMA_CONFIGS["ampere" if family in ("turing", "volta") else family][dk, dv])[ncols]


def mma_sparse(dk: int, dv: int, ncols1: int, ncols2: int) -> bool:
    """Whether the instance also exists with a gather; only on NVIDIA from Turing on (fattn.cu:147 `turing_mma_available`), without softcap and ALiBi."""
    return (ncols1, ncols2) in SPARSE_INSTANCES.get((dk, dv), ())


def mma_stages(device: Device, dk: int, dv: int, ncols1: int, ncols2: int, *, sparse: bool = False) -> int:
    """Stages of asynchronous copies, 0 for none: fattn-mma-f16.cuh:375 `cp_async_available`; a gather has at most one (fattn-mma-f16.cuh:383 `use_sparse`)."""
    if device.matrix != "ampere" or ncols2 < 2:
        return 0
    target = mma_config(device, dk, dv, ncols1 * ncols2).nstages
    return min(target, 1) if sparse else target


def mma_swizzled(device: Device, config: MmaConfig) -> bool:
    """Whether K and V tiles go without row padding: fattn-mma-f16.cuh:335 `ggml_cuda_fattn_mma_get_swizzled`."""
    batches = (config.nbatch_k2, config.nbatch_v2)
    return device.matrix in ("turing", "ampere") and all(batch >= 32 and batch % 32 == 0 for batch in batches)


def mma_smem(device: Device, dk: int, dv: int, ncols1: int, ncols2: int) -> int:
    """Dynamic shared memory that the host asks for: fattn-mma-f16.cuh:2050 `nbytes_shared_total`, the same for a gather.

    On sm_80 the 8x8 tile of 128/128 takes 64 x (64 + 64) x 4 for two stages and 8 x (32 + 4) x 4 for the mask: 33920. More than the device
    has ends the process (fattn-mma-f16.cuh:2096 `CUDA_CHECK`): 320/256 with 64 columns on sm_70, and 64 columns over head dim 256 on CDNA 1 to 3.
    """
    ncols = ncols1 * ncols2
    config = mma_config(device, dk, dv, ncols)
    padding = 0 if mma_swizzled(device, config) else 4  # fattn-mma-f16.cuh:352 `nbatch_2`
    stride_k = config.nbatch_k2 + padding
    stride_v = stride_k if (dk, dv) in MMA_VIEW_HEADS else config.nbatch_v2 + padding  # fattn-mma-f16.cuh:2041 `V_is_K_view`
    two_stages = mma_stages(device, dk, dv, ncols1, ncols2) > 1
    kv = config.nbatch_fa * (stride_k + stride_v if two_stages else max(stride_k, stride_v))
    q = ncols * (dk // 2 + 4)
    mask = ncols1 * (config.nbatch_fa // 2 + 4)
    columns = min(ncols, 32 if device.matrix == "volta" else 16)  # fattn-mma-f16.cuh:363 `get_cols_per_warp`
    combine = config.nthreads // device.warp * columns * (config.nbatch_combine + 4)
    return max(combine, max(q, kv + mask) if config.q_in_reg else q + kv + mask) * _HALF2


def mma_compiled_out(device: Device, dk: int, ncols1: int, ncols2: int, *, softcap: bool) -> str:
    """Why this instance is a trap on ``device`` (common.cuh:413 `no_device_code` ends the process), or nothing when it has code."""
    ncols = ncols1 * ncols2
    kind = device.matrix
    traps = (
        (kind == "none", "no matrix units that the kernel uses"),  # fattn-mma-f16.cuh:2010 `NO_DEVICE_CODE`
        (softcap and dk not in MMA_SOFTCAP_DK, f"no softcap for head dim {dk}"),  # fattn-mma-f16.cuh:1843 `use_logit_softcap`
        (dk == 192 and ncols2 not in (8, 16), "head dim 192 only for 8 or 16 heads"),  # fattn-mma-f16.cuh:1847 `192`
        (kind == "volta" and ncols < 32, f"{ncols} columns, Volta has 32 and 64"),  # fattn-mma-f16.cuh:1857 `32`
        (kind == "turing" and ncols > 32, f"{ncols} columns, Turing has up to 32"),  # fattn-mma-f16.cuh:1864 `32`
        (kind == "wmma" and ncols < 16, f"{ncols} columns, RDNA has from 16 on"),  # fattn-mma-f16.cuh:1871 `16`
        (kind == "wmma" and ncols2 == 1, "RDNA has only tiles over several heads"),  # fattn-mma-f16.cuh:1871 `ncols2`
        (kind == "wmma" and dk > 256, f"head dim {dk}, RDNA has up to 256"),  # fattn-mma-f16.cuh:1871 `256`
        (kind == "mfma" and ncols < 16, f"{ncols} columns, CDNA has from 16 on"),  # fattn-mma-f16.cuh:1878 `16`
        (kind == "mfma" and dk > 256 and ncols < 32, f"{ncols} columns, CDNA has from 32 on over head dim 256"),  # fattn-mma-f16.cuh:1878 `32`
    )
    return next((reason for trapped, reason in traps if trapped), "")


# --- tile: no matrix units ------------------------------------------------------------------------------------------------------------------

#: fattn-tile.cuh:1344 `DECL_FATTN_TILE_CASE` and the lines after it.
TILE_HEADS: frozenset[Heads] = frozenset((dk, _DV.get(dk, dk)) for dk in (40, 64, 72, 80, 96, 112, 128, 192, 256, 320, 512, 576))

#: fattn-tile.cuh:827 `use_logit_softcap`; tests V's head dim, where the MMA kernel tests K's.
TILE_SOFTCAP_DV = frozenset({128, 256, 512})

#: Static shared memory that nvcc grants a block; the tile kernel asks for nothing beyond (fattn-tile.cuh:1156 `nbytes_shared`).
STATIC_SMEM = 48 * 1024


def tile_config(device: Device, dk: int, dv: int, ncols: int) -> TileConfig | None:
    """fattn-tile.cuh:315 `ggml_cuda_fattn_tile_get_config`; None where there is no instance of ``ncols`` columns."""
    nvidia = "nvidia_fp16" if device.fast_fp16 else "nvidia_fp32"
    amd = "amd_rdna" if device.arch >= AMD_OFFSET + 0x1010 else "amd"
    family = amd if device.vendor == "amd" else nvidia
    return TILE_CONFIGS[family].get((dk, dv), {}).get(ncols)


def tile_choice(device: Device, dk: int, dv: int, *, gqa: int, n_q: int, padded: bool, mask: bool, alibi: bool) -> Tile | None:
    """The tile that the kernel's own host code takes, None where it aborts; ``padded`` says that the KV rows are a multiple of 256.

    Heads: fattn-tile.cuh:1237 `launch_fattn_tile_switch_ncols2`; rows: fattn-tile.cuh:1149 `launch_fattn_tile_switch_ncols1`.
    Aborts: fattn-tile.cuh:1319 `GGML_ABORT` (512/512 and 576/512), fattn-tile.cuh:1271 `GGML_ABORT`, fattn-tile.cuh:1295 `GGML_ABORT`.
    """
    if (dk, dv) not in TILE_HEADS:
        return None  # fattn-tile.cu:57 `GGML_ABORT`
    amd = device.vendor == "amd"
    few = not amd and gqa <= 4 and dv <= 256  # fattn-tile.cuh:1252 `gqa_limit`
    grouped = mask and not alibi and padded and not (few and n_q > 16)  # fattn-tile.cuh:1253 `use_gqa_opt`
    sizes = {192: (16, 8), 320: (32 if amd else 16,), 576: (16, 4)}.get(dk, (8, 4, 2))
    ncols2 = next((size for size in sizes if grouped and gqa % size == 0), 1)
    if ncols2 == 1 and (dk in (192, 320, 576) or dv > 256):  # fattn-tile.cuh:1314 `256`
        return None
    widths = (64, 32, 16, 8, 4, 2) if amd and dk <= 128 else (32, 16, 8, 4, 2) if amd or dk <= 256 else (16, 8, 4, 2)
    narrow = next((width for width in widths if ncols2 <= width and n_q > width // 2 // ncols2), 2)
    return narrow // ncols2, ncols2


def tile_smem(device: Device, dk: int, dv: int, ncols: int) -> int:
    """Static shared memory, at most: fattn-tile.cuh:885 `Q_tmp` with fast f16, else fattn-tile.cuh:890 `Q_tmp`.

    Where several warps share a column, each of up to two variants of the loop adds fattn-tile.cuh:653 `KQ_max_new_shared`.

    Raises:
        KeyError: there is no such instance.
    """
    config = tile_config(device, dk, dv, ncols)
    if config is None:
        raise KeyError((dk, dv, ncols))
    value = 2 if device.fast_fp16 else 4
    copy = copy_bytes(device) // 4
    warps = config.nthreads // 32  # fattn-tile.cuh:844 `warp_size`, on every device
    padded_v = -(-dv // 64) * 64 - dv
    q = ncols * dk * value
    kv = (config.nbatch_fa * (config.nbatch_k * value // 4 + copy) + padded_v) * 4
    return q + kv + ncols * config.nbatch_fa * value + (2 * 4 * warps if warps > ncols else 0)


# --- vec: one or two query rows -------------------------------------------------------------------------------------------------------------

#: Head dim of K and V: fattn.cu:428 `FATTN_VEC_CASES_ALL_D`.
VEC_HEADS = frozenset({64, 128, 256})
#: fattn-vec.cuh:55 `use_logit_softcap`.
VEC_SOFTCAP = frozenset({128, 256})
#: Types with instances: cmake/common.cmake:55 `FA_TYPES`.
VEC_TYPES = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "bf16", "f16")
#: ggml/CMakeLists.txt:207 `GGML_CUDA_FA_QUANTS`.
VEC_QUANTS_DEFAULT = "q4_0-q4_0;q8_0-q8_0;f16-f16;bf16-bf16"
#: KV rows of a step, read without bounds checks: fattn-vec.cuh:254 `nthreads`, which is fattn-vec.cuh:10 `128` below its head.
VEC_KV_MULTIPLE = 128


def vec_pairs(quants: str = VEC_QUANTS_DEFAULT) -> frozenset[tuple[str, str]]:
    """K/V types with an instance in a build with ``GGML_CUDA_FA_QUANTS``: cmake/common.cmake:54 `ggml_cuda_fattn_vec_instances`."""
    if quants.strip().lower() == "all":
        return frozenset((k, v) for k in VEC_TYPES for v in VEC_TYPES)
    chosen = (pair.strip().split("-") for pair in quants.lower().replace(",", ";").split(";"))
    return frozenset({("f16", "f16"), *((k, v) for k, v in chosen)})


def vec_reads(type_k: str, type_v: str, pairs: frozenset[tuple[str, str]]) -> tuple[str, str]:
    """Types that the kernel reads after conversion: f32 as f16 (fattn.cu:421 `GGML_TYPE_F32`), both f16 without an instance (fattn.cu:510 `GGML_TYPE_F16`)."""
    pair = ("f16" if type_k == "f32" else type_k, "f16" if type_v == "f32" else type_v)
    return pair if pair in pairs else ("f16", "f16")


def vec_ncols(n_q: int) -> int:
    """Query rows of a block: fattn-vec.cuh:552 `Q`; any number of rows is taken, two at a time."""
    return 1 if n_q == 1 else 2


# --- conversions to f16, which MMA and tile kernels need of K and V -------------------------------------------------------------------------

#: Of densely allocated tensors: convert.cu:553 `ggml_get_to_fp16_cuda`. f16 itself is not converted (fattn-common.cuh:1031 `GGML_TYPE_F16`).
TO_F16_DENSE = frozenset({"f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"})
#: Of the others: convert.cu:670 `ggml_get_to_fp16_nc_cuda`; without a converter the host calls a null pointer (fattn-common.cuh:1050 `to_fp16`).
TO_F16_STRIDED = TO_F16_DENSE - {"iq4_nl"}


def converts(type_kv: str, *, dense: bool) -> bool:
    """Whether K or V of that type can be had as f16."""
    return type_kv == "f16" or type_kv in (TO_F16_DENSE if dense else TO_F16_STRIDED)


def convert_align(type_kv: str, *, dense: bool) -> int:
    """Bytes that divide the address of a tensor to convert: its block's alignment; dense q8_0 is read as whole integers (convert.cu:49 `x0`)."""
    return 4 if type_kv in ("f32", "q4_1", "q5_1") or (type_kv == "q8_0" and dense) else 2


# --- what the kernels need of their inputs --------------------------------------------------------------------------------------------------
#
# All: Q is f32 and the mask f16 (fattn-common.cuh:999 `GGML_TYPE_F32`, fattn-common.cuh:1006 `GGML_TYPE_F16`), neighbours in a row of Q, K and V are
# neighbours in memory (fattn-common.cuh:1002 `ggml_element_size`), K and V have the streams of Q (no modulo: fattn-mma-f16.cuh:1929 `nb13`), V has K's rows
# and heads (fattn-tile.cuh:858 `V`). A mask row holds every KV row, and there is one for every query row; fewer masks than streams repeat
# (fattn-tile.cuh:860 `ne33`), except in the scan below.

#: Masks of a stream: one for all heads, others would never be read (fattn-mma-f16.cuh:1931 `nb33`, and no use of ``nb32``).
MASK_PLANES = 1


def shares_heads(ncols2: int) -> bool:
    """Whether an MMA or tile tile spans several query heads: it then needs a mask, ignores ALiBi, and reads KV rows in whole batches.

    Mask: fattn-mma-f16.cuh:1930 `ncols2`, fattn-tile.cuh:639 `ncols2`. Slope 1: fattn-mma-f16.cuh:1938 `slope`, fattn-tile.cuh:866 `slope`.
    No bounds checks: fattn-mma-f16.cuh:1380 `oob_check`, fattn-tile.cuh:975 `oob_check`.
    """
    return ncols2 > 1


def mma_kv_multiple(device: Device, dk: int, dv: int, ncols1: int, ncols2: int, *, sparse: bool = False) -> int:
    """What has to divide the KV rows; a gather checks bounds (fattn-mma-f16.cuh:1359 `use_sparse`)."""
    return mma_config(device, dk, dv, ncols1 * ncols2).nbatch_fa if shares_heads(ncols2) and not sparse else 1


def tile_kv_multiple(device: Device, dk: int, dv: int, ncols1: int, ncols2: int) -> int:
    """What has to divide the KV rows."""
    config = tile_config(device, dk, dv, ncols1 * ncols2)
    return config.nbatch_fa if config and shares_heads(ncols2) else 1


def tile_takes_gqa(gqa: int, ncols2: int) -> bool:
    """The tile kernel divides the heads by its tile's (fattn-tile.cuh:853 `ncols2`); the MMA kernel leaves columns unused (fattn-mma-f16.cuh:1309 `zt_gqa`)."""
    return gqa % ncols2 == 0


def sinks_overread(gqa: int, ncols2: int) -> int:
    """Floats that the MMA kernel reads, and does not use, beyond the sinks of the last head: fattn-mma-f16.cuh:1443 `sinks_f`."""
    return -gqa % ncols2


def copy_bytes(device: Device) -> int:
    """Widest single copy: common.cuh:399 `ggml_cuda_get_max_cpy_bytes`."""
    return 8 if device.vendor == "nvidia" and device.arch < 700 else 16


def mma_align(device: Device, ncols2: int, *, sparse: bool = False) -> Align:
    """Q fattn-mma-f16.cuh:1314 `float2`; K and V as f16 fattn-mma-f16.cuh:481 `16`, fattn-mma-f16.cuh:439 `cp_async_cg_16`.

    Mask: single values fattn-mma-f16.cuh:542 `mask_h`, else pairs fattn-mma-f16.cuh:576 `half2` or fattn-mma-f16.cuh:522 `cp_async_cg_16`.
    """
    mask = 2 if ncols2 == 1 or sparse else 16 if device.matrix == "ampere" else 4
    return Align(8, 16, 16, mask)


def tile_align(device: Device, dk: int) -> Align:
    """Q fattn-tile.cuh:913 `cpy_ne_D`; K and V as f16 fattn-tile.cuh:408 `cpy_nb`, without fast f16 fattn-tile.cuh:459 `sizeof`.

    Mask: single values, fattn-tile.cuh:640 `mask`.
    """
    copy = copy_bytes(device)
    kv = copy if device.fast_fp16 else copy // 2
    return Align(4 * min(copy // 4, -(-dk // 64) * 2), kv, kv, 2)


def vec_align(device: Device, type_k: str, type_v: str) -> Align:
    """For K and V as the kernel reads them (``vec_reads``).

    Q: fattn-vec.cuh:216 `cpy_nb`; for quantised K fattn-common.cuh:338 `scale`. K: fattn-common.cuh:103 `sizeof`, blocks by pairs of bytes, as
    fattn-common.cuh:166 `2`, or whole as fattn-common.cuh:197 `sizeof`. V: fattn-common.cuh:380 `ne`, fattn-common.cuh:400 `ne`, blocks alike. Mask:
    single values, fattn-vec.cuh:281 `maskh`.
    """
    copy = copy_bytes(device)
    k, v = (copy if kind in ("f16", "bf16") else 4 if kind in ("q4_1", "q5_1") else 2 for kind in (type_k, type_v))
    return Align(copy if type_k in ("f16", "bf16") else 4, k, v, 2)


def vec_mask_gapless(n_q: int) -> bool:
    """Whether a mask row has to be exactly as long as there are KV rows: the second query row looks for its own there (fattn-vec.cuh:281 `ne11`)."""
    return vec_ncols(n_q) > 1


def kv_scan(n_q: int, n_kv: int, streams: int, *, mask: bool, sparse: bool = False) -> bool:
    """Whether the mask is scanned first for KV rows that nobody sees: fattn-common.cuh:1117 `FATTN_KQ_STRIDE`.

    The scan needs a mask for every stream (fattn-common.cuh:681 `sequence`, no modulo), 4-byte alignment (fattn-common.cuh:696 `mask`), and reads
    ``kv_scan_overread`` rows beyond the mask.
    """
    return mask and not sparse and n_kv % 256 == 0 and (n_q >= 1024 or streams > 1)


def kv_scan_overread(n_q: int, ncols1: int) -> int:
    """Mask rows beyond the last that the scan reads: fattn-common.cuh:695 `ncols1`, without a look at the number of queries."""
    return -n_q % ncols1


def too_wide(kernel: str, strides: Strides, *, n_head: int, n_head_kv: int, n_q: int, n_kv: int, streams: int, dv: int, tile: Tile = (1, 1)) -> str:
    """What ``kernel`` (``mma``, ``tile``, ``vec``) computes in 32 bits and cannot hold, or nothing. ``strides`` are those after conversion."""
    q_offset = strides.q_head * (n_head - 1) + strides.q_stream * (streams - 1)
    sums = [(f"{name} stride", value, _INT32) for name, value in strides._asdict().items()]  # fattn-common.cuh:37 `nb01`, fattn-common.cuh:42 `nb31`
    sums += [
        ("Q offset", q_offset, _INT32),  # fattn-mma-f16.cuh:1928 `nb03`, fattn-tile.cuh:856 `nb03`
        ("K head offset", strides.k_head * (n_head_kv - 1), _INT32),  # fattn-mma-f16.cuh:1929 `nb12`, fattn-tile.cuh:857 `nb12`, fattn-vec.cuh:110 `nb12`
        ("V head offset", strides.v_head * (n_head_kv - 1), _INT32),  # fattn-mma-f16.cuh:1934 `nb22`, fattn-tile.cuh:858 `nb22`, fattn-vec.cuh:111 `nb22`
    ]
    output = n_q * n_head * streams * dv
    groups = -(-n_head // n_head_kv // tile[1]) * n_head_kv * streams
    if kernel == "mma":
        # fattn-mma-f16.cuh:1908 `iter_k`, where a step has 32 KV rows or more; fattn-mma-f16.cuh:1932 `dstk`.
        sums += [("work", -(-n_kv // 32) * -(-n_q // tile[0]) * groups, _INT32), ("output pairs", output // 2, _UINT32)]
        return _first(sums)
    sums.append(("blocks over heads", groups, _GRID + 1))  # fattn-common.cuh:1212 `ntiles_z_gqa`
    if kernel == "tile":
        sums.append(("mask offset", n_q * strides.mask_row // 2, _INT32))  # fattn-tile.cuh:640 `stride_mask`
        sums.append(("output values", output, _INT32))  # fattn-tile.cuh:1110 `j_dst_unrolled`, times the parallel blocks that the host chooses
    else:
        sums.append(("Q offset", q_offset + strides.q_row * (n_q - 1), _INT32))  # fattn-vec.cuh:109 `nb01`
        sums.append(("K rows", n_kv * strides.k_row, _UINT32))  # fattn-vec.cuh:251 `nb11`
        sums.append(("V rows", n_kv * strides.v_row, _UINT32))  # fattn-vec.cuh:252 `nb21`
        sums.append(("mask rows", n_q * strides.mask_row, _INT32))  # fattn-vec.cuh:113 `nb31`
        sums.append(("output values", output, _UINT32))  # fattn-vec.cuh:501 `dst`
    return _first(sums)


def _first(sums: list[tuple[str, int, int]]) -> str:
    return next((f"{what}: {value}, needs less than {limit}" for what, value, limit in sums if value >= limit), "")
