"""The row of a mask that is made from positions alone, compiled and compared with what each cell says by itself."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

NATIVE = Path(__file__).parents[2] / "native"
SOURCE = """
#include "draft/mask_row.h"
#include <cstddef>
extern "C" int64_t row_of(const int32_t * positions, int64_t n, int32_t last, int32_t from, uint16_t * row, uint32_t * near) {
    std::vector<uint32_t> found;
    pyllm::mask_row<uint16_t>(positions, n, last, from, 0, 0xFC00, row, found);
    for (size_t i = 0; i < found.size(); ++i) {
        near[i] = found[i];
    }
    return (int64_t) found.size();
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("row")
    (folder / "row.cpp").write_text(SOURCE)
    subprocess.run([compiler, "-std=c++17", "-O3", "-shared", "-fPIC", f"-I{NATIVE}", str(folder / "row.cpp"), "-o", str(folder / "row.so")], check=True)
    loaded = ctypes.CDLL(str(folder / "row.so"))
    loaded.row_of.restype = ctypes.c_int64
    return loaded


@pytest.mark.parametrize("seed", range(12))
def test_each_cell_is_judged_by_its_position(library: ctypes.CDLL, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 3000))
    positions = rng.permutation(n).astype(np.int32)
    positions[rng.random(n) < rng.choice([0.0, 0.3, 1.0])] = -1
    last, first = int(rng.integers(0, n)), int(rng.integers(-40, n))
    row, near = np.full(n, 7, np.uint16), np.zeros(n, np.uint32)
    found = library.row_of(
        positions.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(n),
        last,
        first,
        row.ctypes.data_as(ctypes.c_void_p),
        near.ctypes.data_as(ctypes.c_void_p),
    )
    held = positions >= 0
    assert row.tolist() == np.where(held & (positions <= last), 0, 0xFC00).tolist()
    assert near[:found].tolist() == np.flatnonzero(held & (positions >= first)).tolist()
