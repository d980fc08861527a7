"""Devices as upstream's attention kernels see them, so that a route can be planned for hardware that is not here.

A citation names a file below ``ggml`` of the pinned upstream, a line, and a word of that line; ``tests/routes`` looks each of them up.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pyllm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Added to the hexadecimal number of an AMD architecture: common.cuh:63 `GGML_CUDA_CC_OFFSET_AMD`.
AMD_OFFSET = 0x1000000

_KIB = 1024


@dataclass(frozen=True, slots=True)
class Device:
    """One architecture, as a build sees it that compiles for exactly this one; for other builds see ``as_compiled``.

    ``arch`` is ggml's number (860; for AMD with ``AMD_OFFSET``). ``matrix`` is ``none``, ``volta``, ``turing``, ``ampere`` (Ampere and
    later), ``mfma`` (CDNA) or ``wmma`` (RDNA 3 and 4). ``warp`` counts threads, ``smem`` the bytes of shared memory that one block may
    opt in to. ``toolkit`` is the first that compiles for it, and the last where there is one.
    """

    name: str
    vendor: str
    arch: int
    matrix: str
    warp: int
    fast_fp16: bool
    smem: int
    toolkit: str
    products: str


def _nvidia_matrix(compiled: int) -> str:
    """Matrix units by the architecture that the code running there was compiled for.

    common.cuh:368 `ampere_mma_available`, common.cuh:364 `turing_mma_available`, common.cuh:360 `volta_mma_available`: Volta's only at
    exactly 700 (common.cuh:361 `GGML_CUDA_CC_VOLTA`), so Xavier's sm_72 has none.
    """
    if compiled >= 800:
        return "ampere"
    if compiled >= 750:
        return "turing"
    return "volta" if compiled == 700 else "none"


def _nvidia_fp16(compiled: int) -> bool:
    """common.cuh:309 `GGML_CUDA_CC_PASCAL` and later, but not common.cuh:315 `610`; sm_53 has the instructions, upstream does not use them."""
    return compiled >= 600 and compiled != 610


def _nvidia(number: int, kib: int, toolkit: str, products: str) -> Device:
    arch = 10 * number  # ggml-cuda.cu:344 `prop.minor`
    return Device(f"sm_{number}", "nvidia", arch, _nvidia_matrix(arch), 32, _nvidia_fp16(arch), kib * _KIB, f"CUDA {toolkit}", products)


def _amd(name: str, toolkit: str, products: str, kib: int = 64) -> Device:
    """MFMA is CDNA: common.cuh:96 `GGML_CUDA_CC_IS_CDNA` from gfx908 to below gfx1010 without the APUs gfx909 and gfx90c.

    WMMA is RDNA 3 and later: common.cuh:357 `GGML_CUDA_CC_IS_RDNA4`. A wavefront has 64 threads on common.cuh:391 `__GFX9__` and gfx8.
    """
    number = int(name.removeprefix("gfx"), 16)
    cdna = 0x908 <= number < 0x1010 and number not in (0x909, 0x90C)
    matrix = "mfma" if cdna else "wmma" if number >= 0x1100 else "none"
    # common.cuh:314 `GGML_CUDA_CC_IS_AMD`: every AMD device counts as fast in f16.
    return Device(name, "amd", AMD_OFFSET + number, matrix, 64 if number < 0x1000 else 32, True, kib * _KIB, f"ROCm {toolkit}", products)


# Shared memory: "Technical Specifications per Compute Capability" of the CUDA programming guide (maximum per thread block; also
# max_shared_memory_per_block_optin in CCCL's cuda/__device/arch_traits.h). LDS of a work-group: 64 KiB, on gfx950 160 KiB (AMD Instinct
# CDNA4 ISA guide, 2.2.1; LLVM's FeatureAddressableLocalMemorySize163840).
# Toolkits: targets of the PTX ISA release notes; sm_50 to sm_72 and sm_101 left nvcc with CUDA 13.0, where Thor became sm_110. ROCm:
# ggml-hip/CMakeLists.txt:54 `6.1` is upstream's minimum; 6.2 is the first seen to build gfx1151, 6.3 gfx1201, 7.0 gfx950.
DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _nvidia(50, 48, "6.0 to 12.9", "GTX 750, Quadro M1000M"),
        _nvidia(52, 48, "6.5 to 12.9", "GTX 950-980, Tesla M40, M60"),
        _nvidia(53, 48, "7.0 to 12.9", "Jetson TX1, Nano"),
        _nvidia(60, 48, "8.0 to 12.9", "Tesla P100"),
        _nvidia(61, 48, "8.0 to 12.9", "GTX 1050-1080, Tesla P4, P40"),
        _nvidia(62, 48, "8.0 to 12.9", "Jetson TX2"),
        _nvidia(70, 96, "9.0 to 12.9", "Tesla V100, Titan V"),
        _nvidia(72, 96, "9.1 to 12.9", "Jetson Xavier"),
        _nvidia(75, 64, "10.0", "GTX 1650-1660, RTX 2060-2080, T4"),
        _nvidia(80, 163, "11.0", "A100, A30"),
        _nvidia(86, 99, "11.1", "RTX 3050-3090, A10, A40, RTX A6000"),
        _nvidia(87, 163, "11.4", "Jetson Orin"),
        _nvidia(88, 99, "13.0", "Tegra of the Ampere family"),
        _nvidia(89, 99, "11.8", "RTX 4050-4090, L4, L40"),
        _nvidia(90, 227, "11.8", "H100, H200, GH200"),
        _nvidia(100, 227, "12.8", "B200, GB200"),
        _nvidia(101, 227, "12.8 to 12.9", "Jetson Thor as CUDA 12 calls it"),
        _nvidia(103, 227, "12.9", "B300, GB300"),
        _nvidia(110, 227, "13.0", "Jetson Thor"),
        _nvidia(120, 99, "12.8", "RTX 5050-5090, RTX PRO 6000"),
        _nvidia(121, 99, "12.9", "DGX Spark (GB10)"),
        _amd("gfx803", "6.1", "RX 470-590, Radeon Instinct MI6, MI8"),
        _amd("gfx900", "6.1", "Vega 56, Vega 64, MI25"),
        _amd("gfx906", "6.1", "Radeon VII, MI50, MI60"),
        _amd("gfx908", "6.1", "MI100"),
        _amd("gfx90a", "6.1", "MI210, MI250"),
        _amd("gfx90c", "6.1", "Ryzen 4000G, 5000G"),
        _amd("gfx942", "6.1", "MI300, MI325"),
        _amd("gfx950", "7.0", "MI350, MI355", 160),
        _amd("gfx1010", "6.1", "RX 5500-5700"),
        _amd("gfx1030", "6.1", "RX 6400-6950"),
        _amd("gfx1100", "6.1", "RX 7600-7900, Radeon 780M"),
        _amd("gfx1150", "6.2", "Radeon 890M, Radeon 8060S (Strix Halo)"),
        _amd("gfx1200", "6.3", "RX 9060, RX 9070"),
    )
}

#: Architectures that upstream's attention code tells from the first of their family neither on the host, common.cuh:87 `GGML_CUDA_CC_IS_RDNA`
#: and the lines after it, nor by macros such as hip.h:220 `RDNA3`. gfx1011 and gfx1013 belong to none: hip.h:236 `__gfx1010__` leaves them
#: out, so that host and device take different configurations of the tile kernel.
FAMILIES: dict[str, tuple[str, ...]] = {
    "gfx1010": ("gfx1012",),
    "gfx1030": ("gfx1031", "gfx1032", "gfx1033", "gfx1034", "gfx1035", "gfx1036"),
    "gfx1100": ("gfx1101", "gfx1102", "gfx1103"),
    "gfx1150": ("gfx1151", "gfx1152", "gfx1153"),
    "gfx1200": ("gfx1201",),
}

#: Other names, in lower case without blanks, dots, dashes and underscores.
ALIASES: dict[str, str] = {member: first for first, members in FAMILIES.items() for member in members} | {
    "gfx11": "gfx1100",
    "gfx12": "gfx1200",
    "rdna1": "gfx1010",
    "rdna2": "gfx1030",
    "rdna3": "gfx1100",
    "rdna35": "gfx1150",
    "rdna4": "gfx1200",
    "cdna1": "gfx908",
    "cdna2": "gfx90a",
    "cdna3": "gfx942",
    "cdna4": "gfx950",
    "maxwell": "sm_52",
    "pascal": "sm_61",
    "volta": "sm_70",
    "turing": "sm_75",
    "ada": "sm_89",
    "hopper": "sm_90",
    "strixhalo": "gfx1150",
    "strixpoint": "gfx1150",
}

#: Product names, spelled likewise; the whole name has to match.
_PRODUCTS: tuple[tuple[str, str], ...] = (
    (r"gtx7[45]0(ti)?", "sm_50"),
    (r"gtx9[5-8]0(ti|m)?|m[46]0", "sm_52"),
    (r"(jetson)?tx1|jetsonnano", "sm_53"),
    (r"p100", "sm_60"),
    (r"gtx10[5-8]0(ti)?|p40?", "sm_61"),
    (r"(jetson)?tx2", "sm_62"),
    (r"v100|titanv", "sm_70"),
    (r"(jetson)?(agx)?xavier(nx)?", "sm_72"),
    (r"gtx16[56]0(ti|super)?|rtx20[678]0(ti|super)?|t4", "sm_75"),
    (r"a100|a30", "sm_80"),
    (r"rtx30[5-9]0(ti)?|(rtx)?a[2456]000|a10g?|a40", "sm_86"),
    (r"(jetson)?(agx)?orin(nx|nano)?", "sm_87"),
    (r"rtx40[5-9]0(ti|super|tisuper)?|rtx[456]000ada|l4|l40s?", "sm_89"),
    (r"g?h[12]00", "sm_90"),
    (r"g?b200", "sm_100"),
    (r"g?b300", "sm_103"),
    (r"(jetson)?(agx)?thor", "sm_110"),
    (r"rtx50[5-9]0(ti)?|rtxpro[456]000(blackwell)?", "sm_120"),
    (r"(dgx)?spark|gb10", "sm_121"),
    (r"rx(4[78]0|5[789]0)", "gfx803"),
    (r"(rx)?vega(56|64)|mi25", "gfx900"),
    (r"radeonvii|mi[56]0", "gfx906"),
    (r"mi100", "gfx908"),
    (r"mi2[15]0x?", "gfx90a"),
    (r"mi3(00|25)[xa]?", "gfx942"),
    (r"mi35[05]x?", "gfx950"),
    (r"rx5[567]00(xt)?", "gfx1010"),
    (r"rx6[4-9][05]0(xtx?)?", "gfx1030"),
    (r"rx7[6-9]00(xtx?|gre|s)?|(radeon)?7[48]0m", "gfx1100"),
    (r"(radeon)?8[89]0m|(radeon)?80[56]0s", "gfx1150"),
    (r"rx90[67]0(xt|gre)?", "gfx1200"),
)


def resolve(name: str) -> Device:
    """The device called ``name``: ``sm_86``, ``8.6``, ``sm86``, ``gfx1031``, ``rdna3``, ``RTX 3090``, ``h200``.

    Raises:
        ConfigError: nothing is called so; the hint has the nearest name.
    """
    plain = re.sub(r"[\s._-]", "", name.lower())
    plain = re.sub(r"^(nvidia|geforce|tesla|quadro|amd|instinct)+", "", plain)
    if plain in DEVICES:
        return DEVICES[plain]
    if plain in ALIASES:
        return DEVICES[ALIASES[plain]]
    number = re.fullmatch(r"(?:sm|cc|compute)?(\d{2,4})[af]?", plain)
    for digits in (number[1], number[1].removesuffix("0")) if number else ():
        if f"sm_{digits}" in DEVICES:
            return DEVICES[f"sm_{digits}"]
    for pattern, device in _PRODUCTS:
        if re.fullmatch(pattern, plain):
            return DEVICES[device]
    near = difflib.get_close_matches(plain, [*DEVICES, *ALIASES], 1)
    known = f"known devices: {', '.join(DEVICES)}"
    raise ConfigError(f"device `{name}` is not known", f"did you mean `{near[0]}`? {known}" if near else known)


def as_compiled(device: Device, archs: Iterable[int]) -> Device:
    """``device`` as a CUDA build for ``archs`` (ggml's numbers) sees it: code runs that was compiled for the highest of them up to its own.

    common.cuh:175 `ggml_cuda_highest_compiled_arch`. sm_72 running code for 700 has Volta's matrix units, sm_60 running code for 500 is slow in f16.

    Raises:
        ConfigError: none of ``archs`` runs there.
    """
    if device.vendor != "nvidia":
        return device
    archs = sorted(archs)
    compiled = max((arch for arch in archs if arch <= device.arch), default=0)
    if not compiled:
        raise ConfigError(f"a build for {', '.join(map(str, archs)) or 'no architecture'} has no code for {device.name}", f"compile for {device.arch // 10}")
    return replace(device, matrix=_nvidia_matrix(compiled), fast_fp16=_nvidia_fp16(compiled))
