"""Facts about upstream's attention kernels: derived again from its source, and consistent in themselves."""

from __future__ import annotations

import inspect
import itertools
import re

import pytest

from pyllm.routes import configs, devices, kernels
from pyllm.routes.axes import KV_TYPES
from pyllm.routes.devices import DEVICES
from pyllm.routes.kernels import MMA_INSTANCES, TILE_HEADS, Strides

CITATION = re.compile(r"([\w./-]+\.(?:cuh|cu|cmake|txt|h|py)):(\d+)(?: `([^`]+)`)?")
GQA = (*range(1, 13), 16, 20, 24, 32, 40, 64)


def rows(text, macro):
    """Arguments of each use of a macro, as numbers; booleans are 0 and 1."""
    for arguments in re.findall(rf"^ *{macro}\( *(\d[^)]*)\)", text, re.MULTILINE):
        yield tuple({"true": 1, "false": 0}.get(word.strip()) if not word.strip().isdigit() else int(word) for word in arguments.split(","))


@pytest.mark.parametrize("module", [configs, devices, kernels], ids=lambda module: module.__name__.rpartition(".")[2])
def test_citations(module, upstream):
    cited = CITATION.findall(inspect.getsource(module))
    assert cited
    for name, number, word in cited:
        assert word, f"{name}:{number} cites no word"
        found = [path for path in upstream.parent.rglob(name.rpartition("/")[2]) if str(path).endswith(f"/{name}") and "tests" not in path.parts]
        found = [path for path in found if "ggml" in path.parts[len(upstream.parent.parts) :]]
        assert len(found) == 1, f"{name}: {found}"
        lines = found[0].read_text().splitlines()
        assert int(number) <= len(lines), f"{name}:{number} is past its end"
        assert re.search(rf"(?<![A-Za-z0-9]){re.escape(word)}", lines[int(number) - 1]), f"{name}:{number} has no `{word}`: {lines[int(number) - 1].strip()}"


def test_mma_instances(cuda):
    found: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for file in cuda.glob("template-instances/fattn-mma-*.cu"):
        for dk, dv, ncols1, ncols2 in rows(file.read_text(), "DECL_FATTN_MMA_F16_CASE"):
            found.setdefault((dk, dv), set()).add((ncols1, ncols2))
    assert found == MMA_INSTANCES


def test_tile_instances(cuda):
    found = {pair for file in cuda.glob("template-instances/fattn-tile-*.cu") for pair in rows(file.read_text(), "DECL_FATTN_TILE_CASE")}
    assert found == TILE_HEADS


def test_vec_instances(cuda, upstream):
    found = set()
    for file in cuda.glob("template-instances/fattn-vec-*.cu"):
        found |= set(re.findall(r"DECL_FATTN_VEC_CASE\( *(\d+), GGML_TYPE_(\w+), GGML_TYPE_(\w+)\)", file.read_text()))
    assert found == {(str(head), k.upper(), v.upper()) for head in kernels.VEC_HEADS for k, v in kernels.vec_pairs("all")}
    cmake = (upstream / "CMakeLists.txt").read_text()
    assert re.search(r'GGML_CUDA_FA_QUANTS "([^"]+)"', cmake)[1] == kernels.VEC_QUANTS_DEFAULT
    types = re.search(r"set\(FA_TYPES ([^)]+)\)", (upstream / "cmake" / "common.cmake").read_text())[1]
    assert tuple(types.split()) == kernels.VEC_TYPES


@pytest.mark.parametrize(
    ("file", "macro", "prefix", "table"),
    [
        ("fattn-mma-f16.cuh", "GGML_CUDA_FATTN_MMA_CONFIG_CASE", "ggml_cuda_fattn_mma_get_config_", configs.MMA_CONFIGS),
        ("fattn-tile.cuh", "GGML_CUDA_FATTN_TILE_CONFIG_CASE", "ggml_cuda_fattn_tile_get_config_", configs.TILE_CONFIGS),
    ],
    ids=["mma", "tile"],
)
def test_configs(cuda, body, *, file, macro, prefix, table):
    text = (cuda / file).read_text()
    assert set(re.findall(rf"{prefix}(\w+)\(const int DKQ", text)) == set(table)
    for family, heads in table.items():
        stated = {(*head, columns, *config) for head, by_columns in heads.items() for columns, config in by_columns.items()}
        assert stated == set(rows(body(text, f"{prefix}{family}("), macro))


def test_mma_fallback(cuda, body):
    text = (cuda / "fattn-mma-f16.cuh").read_text()
    falling = {name for name in configs.MMA_CONFIGS if "return ggml_cuda_fattn_mma_get_config_ampere" in body(text, f"get_config_{name}(")}
    assert falling == {"turing", "volta"}


def test_sparse_instances(cuda, body):
    text = body((cuda / "fattn-mma-f16.cuh").read_text().replace("(\n", "("), "may_use_sparse(")
    found = {tuple(map(int, numbers)) for numbers in re.findall(r"DKQ == (\d+) && DV == (\d+) && ncols1 == (\d+) && ncols2 == (\d+)", text)}
    assert found == {(*head, *tile) for head, tiles in kernels.SPARSE_INSTANCES.items() for tile in tiles}
    assert all(kernels.mma_sparse(*case) for case in found)
    assert not kernels.mma_sparse(128, 128, 8, 8)
    assert all(tile in MMA_INSTANCES[head] for head, tiles in kernels.SPARSE_INSTANCES.items() for tile in tiles)


@pytest.mark.parametrize(("function", "stated"), [("to_fp16_cuda", kernels.TO_F16_DENSE), ("to_fp16_nc_cuda", kernels.TO_F16_STRIDED)])
def test_conversions(cuda, body, function, stated):
    text = body((cuda / "convert.cu").read_text(), f"ggml_get_{function}(")
    assert {name.lower() for name in re.findall(r"case GGML_TYPE_(\w+):", text)} & set(KV_TYPES) == stated


def test_conversions_of_a_type():
    assert kernels.converts("f16", dense=False)
    assert kernels.converts("iq4_nl", dense=True)
    assert not kernels.converts("iq4_nl", dense=False)
    assert kernels.convert_align("q8_0", dense=True) == 4
    assert kernels.convert_align("q8_0", dense=False) == 2


def mma_cases():
    """Every instance with code on every device."""
    for device, (head, tiles) in itertools.product(DEVICES.values(), MMA_INSTANCES.items()):
        for tile in tiles:
            if not kernels.mma_compiled_out(device, head[0], *tile, softcap=False):
                yield device, head, tile


def test_mma_instances_that_do_not_fit():
    """Upstream sends the first kind there and aborts; the second it never reaches, its host stops at 32 columns on AMD."""
    found = {(device.name, head, tile) for device, head, tile in mma_cases() if kernels.mma_smem(device, *head, *tile) > device.smem}
    wide = {(head, tile) for head in ((512, 512), (576, 512)) for tile in MMA_INSTANCES[head] if tile[0] * tile[1] == 64}
    assert found == {("sm_70", (320, 256), (2, 32))} | {(name, *case) for name in ("gfx908", "gfx90a", "gfx942") for case in wide}


@pytest.mark.parametrize(
    ("name", "head", "tile", "smem"),
    [
        ("sm_80", (128, 128), (8, 8), 33920),  # two stages: 64 x (64 + 64) x 4 for K and V, 8 x (32 + 4) x 4 for the mask
        ("sm_80", (128, 128), (64, 1), 25600),  # no stage, one tile: 64 x 64 x 4 for K or V, 64 x (32 + 4) x 4 for the mask
        ("sm_80", (80, 80), (8, 8), 23680),  # rows of 40 pairs are padded to 44: 64 x (44 + 44) x 4, and the mask
        ("sm_86", (512, 512), (1, 8), 41232),  # Q stays in shared memory: 8 x 260 x 4 + 64 x 128 x 4 + 1 x 36 x 4
        ("sm_86", (576, 512), (4, 16), 95552),  # 64 x 292 x 4 + 32 x 160 x 4 + 4 x 20 x 4
        ("sm_75", (512, 512), (2, 8), 29088),  # 16 x 260 x 4 + 32 x 96 x 4 + 2 x 20 x 4
        ("sm_70", (512, 512), (8, 8), 84096),  # padded: 64 x 260 x 4 + 32 x 132 x 4 + 8 x 20 x 4
        ("gfx942", (256, 256), (2, 8), 34080),  # 64 x 132 x 4 + 2 x 36 x 4; combining takes 4 x 16 x 132 x 4
        ("gfx1100", (128, 128), (2, 8), 8864),  # 32 x 68 x 4 + 2 x 20 x 4; combining takes 2 x 16 x 68 x 4
    ],
)
def test_mma_smem(name, head, tile, smem):
    assert kernels.mma_smem(DEVICES[name], *head, *tile) == smem


def test_compiled_out():
    cases = [
        ("sm_61", 128, 8, 8, False, "no matrix units"),
        ("sm_72", 128, 8, 8, False, "no matrix units"),
        ("sm_86", 64, 8, 8, True, "no softcap for head dim 64"),
        ("sm_86", 576, 4, 16, True, "no softcap for head dim 576"),
        ("sm_86", 256, 8, 8, True, ""),
        ("sm_70", 256, 2, 8, False, "16 columns"),
        ("sm_70", 256, 4, 8, False, ""),
        ("sm_75", 256, 8, 8, False, "64 columns"),
        ("sm_75", 256, 4, 8, False, ""),
        ("sm_80", 256, 8, 8, False, ""),
        ("gfx1100", 128, 16, 1, False, "only tiles over several heads"),
        ("gfx1100", 512, 4, 8, False, "RDNA has up to 256"),
        ("gfx1200", 128, 1, 8, False, "8 columns"),
        ("gfx942", 128, 8, 1, False, "8 columns"),
        ("gfx942", 512, 2, 8, False, "16 columns"),
        ("gfx942", 512, 4, 8, False, ""),
    ]
    for name, dk, ncols1, ncols2, softcap, reason in cases:
        found = kernels.mma_compiled_out(DEVICES[name], dk, ncols1, ncols2, softcap=softcap)
        assert reason in found
        assert bool(found) == bool(reason)


def test_compiled_out_matches_the_kernel(cuda):
    """The guards at the kernel's head, evaluated for every instance, family by family."""
    text = (cuda / "fattn-mma-f16.cuh").read_text()
    head = text[text.index("static __global__ void flash_attn_ext_f16(") :]
    head = head[head.index("// Skip unused") : head.index("constexpr int warp_size")]
    guards = [
        (family, re.sub(r"!ggml_cuda\w+\(.*?\)", "True", condition).replace("&&", "and").replace("||", "or").replace("!(", "not ("))
        for family, condition in re.findall(r"(?:#if\w* (.*)\n    )?if \((.*)\) \{\n +NO_DEVICE_CODE", head)
    ]
    assert len(guards) == 7
    units = {"VOLTA_MMA": "volta", "CC_TURING": "turing", "AMD_WMMA": "wmma", "AMD_MFMA": "mfma"}
    for name, softcap in itertools.product(("sm_70", "sm_75", "sm_80", "gfx942", "gfx1100"), (False, True)):
        device = DEVICES[name]
        for (dk, dv), tiles in MMA_INSTANCES.items():
            for ncols1, ncols2 in tiles:
                names = {"DKQ": dk, "DV": dv, "ncols1": ncols1, "ncols2": ncols2, "use_logit_softcap": softcap, "use_sparse": False}
                trapped = False
                for family, condition in guards:
                    applies = not family or any(unit in family and device.matrix == kind for unit, kind in units.items())
                    trapped |= applies and bool(eval(condition, {}, names))  # noqa: S307 - the hash-pinned source, reduced to comparisons
                assert bool(kernels.mma_compiled_out(device, dk, ncols1, ncols2, softcap=softcap)) == trapped, (name, dk, ncols1, ncols2, softcap)


def test_the_tile_kernel_has_what_it_chooses():
    for device, (dk, dv), gqa, n_q in itertools.product(DEVICES.values(), TILE_HEADS, GQA, (1, 2, 3, 5, 9, 16, 17, 33, 65)):
        for padded, mask, alibi in itertools.product((False, True), repeat=3):
            tile = kernels.tile_choice(device, dk, dv, gqa=gqa, n_q=n_q, padded=padded, mask=mask, alibi=alibi)
            if tile is None:
                assert dk in (192, 320, 512, 576)
                continue
            ncols = tile[0] * tile[1]
            assert kernels.tile_config(device, dk, dv, ncols), (device.name, dk, dv, tile)
            assert kernels.tile_takes_gqa(gqa, tile[1])
            assert kernels.tile_smem(device, dk, dv, ncols) <= (kernels.STATIC_SMEM if device.vendor == "nvidia" else device.smem)
            assert not kernels.shares_heads(tile[1]) or (mask and not alibi and padded)
            assert 256 % kernels.tile_kv_multiple(device, dk, dv, *tile) == 0


@pytest.mark.parametrize(
    ("name", "head", "gqa", "n_q", "tile"),
    [
        ("sm_61", (256, 256), 4, 1, (1, 4)),
        ("sm_61", (256, 256), 4, 17, (32, 1)),  # the limit for small ratios on NVIDIA
        ("sm_61", (256, 256), 8, 17, (4, 8)),
        ("sm_61", (512, 512), 2, 1, (1, 2)),
        ("sm_61", (512, 512), 2, 100, (8, 2)),  # 16 columns at most over head dim 256
        ("sm_61", (512, 512), 3, 1, None),
        ("sm_61", (512, 512), 1, 1, None),
        ("gfx1030", (512, 512), 5, 4, None),
        ("gfx1030", (512, 512), 8, 100, (4, 8)),
        ("gfx1030", (128, 128), 8, 100, (8, 8)),
        ("gfx1030", (40, 40), 1, 33, (64, 1)),
        ("sm_70", (576, 512), 6, 1, None),
        ("sm_70", (576, 512), 20, 1, (1, 4)),
        ("sm_70", (576, 512), 16, 1, (1, 16)),
        ("gfx942", (320, 256), 32, 1, (1, 32)),
        ("gfx942", (320, 256), 16, 1, None),
        ("sm_61", (320, 256), 16, 1, (1, 16)),
        ("sm_61", (192, 128), 5, 1, None),
        ("sm_61", (128, 64), 1, 1, None),
    ],
)
def test_tile_choice(name, head, gqa, n_q, tile):
    assert kernels.tile_choice(DEVICES[name], *head, gqa=gqa, n_q=n_q, padded=True, mask=True, alibi=False) == tile


def test_tile_smem():
    # 16 x 576 x 4 for Q, 32 x (64 + 2) x 4 for K or V, 16 x 32 x 4 for the products: just below what nvcc grants.
    assert kernels.tile_smem(DEVICES["sm_61"], 576, 512, 16) == 47360
    # 32 x 576 x 2, 128 x (32 + 4) x 4, 32 x 128 x 2.
    assert kernels.tile_smem(DEVICES["gfx1100"], 576, 512, 32) == 63488
    with pytest.raises(KeyError):
        kernels.tile_smem(DEVICES["sm_61"], 576, 512, 32)


def test_tile_switches_match(cuda, body):
    """The numbers of the host's two switches."""
    text = (cuda / "fattn-tile.cuh").read_text()
    columns = body(text, "launch_fattn_tile_switch_ncols1(")
    assert re.findall(r"Q->ne\[1\] > (\d+)/ncols2", columns) == ["32", "16", "8", "4", "2"]
    assert re.findall(r"cols_per_block = (\d+);", columns) == ["64", "32", "16", "8", "4", "2"]
    assert re.findall(r"if constexpr \((.*)\)", columns) == ["DKQ <= 128", "DKQ <= 256", "ncols2 <= 16", "ncols2 <= 8", "ncols2 <= 4", "ncols2 <= 2"]
    heads = body(text, "launch_fattn_tile_switch_ncols2(")
    assert re.findall(r"gqa_ratio % (\d+)", heads) == ["32", "16", "16", "4", "16", "8", "8", "4", "2"]
    assert re.findall(r"switch_ncols1<DKQ, DV, +(\d+)", heads) == ["32", "16", "16", "4", "16", "8", "8", "4", "2", "1"]


def test_vec():
    default = kernels.vec_pairs()
    assert default == {("q4_0", "q4_0"), ("q8_0", "q8_0"), ("f16", "f16"), ("bf16", "bf16")}
    assert len(kernels.vec_pairs("all")) == 49
    assert kernels.vec_pairs("Q8_0-q4_0, bf16-f16") == {("q8_0", "q4_0"), ("bf16", "f16"), ("f16", "f16")}
    assert kernels.vec_reads("f32", "f16", default) == ("f16", "f16")
    assert kernels.vec_reads("q8_0", "q8_0", default) == ("q8_0", "q8_0")
    assert kernels.vec_reads("q8_0", "q4_0", default) == ("f16", "f16")
    assert kernels.vec_reads("iq4_nl", "iq4_nl", kernels.vec_pairs("all")) == ("f16", "f16")
    assert [kernels.vec_ncols(n_q) for n_q in (1, 2, 3)] == [1, 2, 2]
    assert [kernels.vec_mask_gapless(n_q) for n_q in (1, 2, 3)] == [False, True, True]


def test_alignment():
    old, fast, turing, ampere = (DEVICES[name] for name in ("sm_61", "sm_60", "sm_75", "sm_86"))
    assert kernels.tile_align(old, 128) == (8, 4, 4, 2)
    assert kernels.tile_align(fast, 128) == (8, 8, 8, 2)
    assert kernels.tile_align(DEVICES["gfx1030"], 40) == (8, 16, 16, 2)
    assert kernels.tile_align(DEVICES["gfx1030"], 72) == (16, 16, 16, 2)
    assert kernels.mma_align(turing, 8) == (8, 16, 16, 4)
    assert kernels.mma_align(ampere, 8) == (8, 16, 16, 16)
    assert kernels.mma_align(ampere, 8, sparse=True) == kernels.mma_align(ampere, 1) == (8, 16, 16, 2)
    assert kernels.vec_align(ampere, "f16", "bf16") == (16, 16, 16, 2)
    assert kernels.vec_align(ampere, "q8_0", "q4_1") == (4, 2, 4, 2)
    assert kernels.vec_align(old, "f16", "f16") == (8, 8, 8, 2)


def test_kv_rows():
    ampere = DEVICES["sm_86"]
    assert kernels.mma_kv_multiple(ampere, 128, 128, 1, 8) == 128
    assert kernels.mma_kv_multiple(ampere, 576, 512, 1, 16) == 32
    assert kernels.mma_kv_multiple(ampere, 576, 512, 1, 16, sparse=True) == 1
    assert kernels.mma_kv_multiple(ampere, 128, 128, 8, 1) == 1
    assert all(256 % kernels.mma_kv_multiple(device, *head, *tile) == 0 for device, head, tile in mma_cases())


def test_scan():
    assert kernels.kv_scan(1024, 256, 1, mask=True)
    assert kernels.kv_scan(1, 256, 2, mask=True)
    assert not kernels.kv_scan(1, 256, 1, mask=True)
    assert not kernels.kv_scan(1024, 257, 1, mask=True)
    assert not kernels.kv_scan(1024, 256, 4, mask=True, sparse=True)
    assert kernels.kv_scan_overread(1025, 8) == 7
    assert kernels.kv_scan_overread(1024, 64) == 0
    assert kernels.sinks_overread(20, 16) == 12
    assert kernels.sinks_overread(8, 8) == 0


def test_too_wide():
    usual = Strides(q_row=16384, q_head=512, q_stream=2**20, k_row=2048, k_head=256, v_row=2048, v_head=256, mask_row=2**18)
    shape = {"n_head": 32, "n_head_kv": 8, "n_q": 512, "n_kv": 2**17, "streams": 1, "dv": 128}
    assert not any(kernels.too_wide(kernel, usual, **shape) for kernel in ("mma", "tile", "vec"))
    assert "k_row stride" in kernels.too_wide("mma", usual._replace(k_row=2**31), **shape)
    assert "K head offset" in kernels.too_wide("mma", usual._replace(k_head=2**29), **shape)
    long = shape | {"n_kv": 2**21, "n_q": 2048}
    assert "mask offset" in kernels.too_wide("tile", usual._replace(mask_row=2**22), **long)
    assert not kernels.too_wide("mma", usual._replace(mask_row=2**22), **long, tile=(16, 4))
    assert "K rows" in kernels.too_wide("vec", usual._replace(mask_row=2), **long)
    assert "blocks over heads" in kernels.too_wide("vec", usual, **(shape | {"streams": 2048, "n_q": 1}))
