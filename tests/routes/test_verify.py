"""The verify route's sizes: the same in Python and in the native header, and enough on every device with asynchronous copies."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pyllm.routes import verify
from pyllm.routes.check import check
from pyllm.routes.condition import at_least, at_most
from pyllm.routes.devices import DEVICES
from pyllm.routes.executors import ACCEPTS, verify_pairs
from pyllm.routes.row import Row
from pyllm.routes.table import ROWS
from pyllm.routes.tablefile import Table

NATIVE = Path(__file__).parents[2] / "native"
KERNELS = NATIVE / "fattn/verify"
COPYING = [device for device in DEVICES.values() if device.matrix == "ampere"]
ROW_COUNTS = (1, 2, 8, 9, 15, 16, 17, 24, 25, 33, 48, 49, 64, 65, 88, 96, 97, 512)

PROGRAM = r"""
#include "fattn/verify/geometry.h"
#include <cstdio>
using namespace pyllm::verify;
int main() {
    for (const Instance & one : INSTANCES) {
        for (int k = F16; k < ANY; ++k) {
            for (int v = F16; v < ANY; ++v) {
                std::printf("bytes %d %d %d\n", k, v, shared_bytes(one, k, v));
            }
        }
    }
    int d_k, d_v, k, v, smem, beside;
    long rows;
    while (std::scanf("%d %d %d %d %ld %d %d", &d_k, &d_v, &k, &v, &rows, &smem, &beside) == 7) {
        std::printf("choice %d\n", choose(d_k, d_v, k, v, rows, smem, beside));
    }
    for (int tiles : { 1, 2, 63, 512, 8192, 100000 }) {
        for (long blocks : { 1L, 2L, 8L, 64L, 1000L }) {
            for (int resident : { 1, 2, 4 }) {
                const int parts = split(tiles, blocks, 132, resident);
                std::printf("parts %d %ld %d %d", tiles, blocks, resident, parts);
                for (int part = 0; part <= parts; ++part) {
                    std::printf(" %d", first_tile(part, tiles/parts, tiles % parts));
                }
                std::printf("\n");
            }
        }
    }
}
"""


def cases():
    for head, smem in itertools.product(verify.HEADS, sorted({device.smem for device in COPYING})):
        for pair in verify_pairs(head):
            for rows, beside in itertools.product(ROW_COUNTS, (1, 2, 3)):
                yield head, *pair.split("/"), rows, smem, beside


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """Lines of the program, by their first word."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    assert compiler, "the package itself is built with a C++ compiler"
    folder = tmp_path_factory.mktemp("geometry")
    (folder / "main.cpp").write_text(PROGRAM)
    subprocess.run([compiler, "-std=c++17", "-O1", f"-I{NATIVE}", "main.cpp", "-o", "geometry"], cwd=folder, check=True)
    numbers = {name: place for place, name in enumerate(verify.TYPES)}
    asked = "\n".join(f"{d_k} {d_v} {numbers[k]} {numbers[v]} {rows} {smem} {beside}" for (d_k, d_v), k, v, rows, smem, beside in cases())
    done = subprocess.run([str(folder / "geometry")], input=asked, capture_output=True, text=True, check=True)
    found: dict[str, list[tuple[int, ...]]] = {}
    for line in done.stdout.splitlines():
        name, *values = line.split()
        found.setdefault(name, []).append(tuple(map(int, values)))
    return found


def test_shared_bytes_are_the_kernels(native):
    pairs = itertools.product(verify.INSTANCES, enumerate(verify.TYPES[:-1]), enumerate(verify.TYPES[:-1]))
    assert native["bytes"] == [(k, v, verify.shared_bytes(one, type_k, type_v)) for one, (k, type_k), (v, type_v) in pairs]


def test_the_choice_is_the_kernels(native):
    expected = [(verify.INSTANCES.index(one),) if (one := verify.choose(*case, beside=beside)) else (-1,) for *case, beside in cases()]
    assert native["choice"] == expected


def test_every_device_with_asynchronous_copies_has_an_instance():
    for head, type_k, type_v, rows, smem, beside in cases():
        one = verify.choose(head, type_k, type_v, rows, smem, beside=beside)
        assert one, (head, type_k, type_v, rows, smem)
        assert verify.shared_bytes(one, type_k, type_v) + verify.STATIC_BYTES <= smem


def test_a_smaller_block_has_a_shorter_tile():
    large, small = DEVICES["sm_90"].smem, DEVICES["sm_86"].smem
    assert verify.choose((512, 512), "f16", "f16", 16, large).n > verify.choose((512, 512), "f16", "f16", 16, small).n
    assert verify.choose((512, 512), "f16", "f16", 16, 80_000) is None


def test_neighbours_are_read_together_where_they_lie_side_by_side():
    smem = DEVICES["sm_90"].smem
    for kind, rows in (("q8_0", 4), ("q4_0", 4), ("q4_0", 16)):
        pair, odd = (verify.choose((128, 128), kind, kind, rows, smem, beside=beside) for beside in (8, 3))
        assert (pair.heads, odd.heads) == (2, 1)
        assert verify.row_bytes(kind, 128) % 128 != 0, "or each head has lines of memory of its own"


def test_rows_are_read_in_as_few_passes_as_there_can_be():
    for head, type_k, type_v, rows, smem, beside in cases():
        one = verify.choose(head, type_k, type_v, rows, smem, beside=beside)
        able = [
            other.m
            for other in verify.INSTANCES
            if (other.d_k, other.d_v) == head
            and other.type_k in (type_k, "any")
            and other.heads == 1
            and verify.shared_bytes(other, type_k, type_v) + verify.STATIC_BYTES <= smem
        ]
        assert -(-rows // one.m) == min(-(-rows // m) for m in able)


def test_few_rows_of_quants_are_not_padded_to_sixteen():
    smem = DEVICES["sm_90"].smem
    for head, kind, rows, m in (
        ((128, 128), "q8_0", 4, 8),
        ((128, 128), "q4_0", 8, 8),
        ((256, 256), "q4_0", 6, 8),
        ((256, 256), "q4_0", 24, 24),
        ((512, 512), "q4_0", 8, 8),
    ):
        assert verify.choose(head, kind, kind, rows, smem, beside=4).m == m
        assert verify.choose(head, "f16", "f16", rows, smem, beside=4).m % 16 == 0


def test_parts_cover_the_cache(native):
    for tiles, blocks, resident, count, *begins in native["parts"]:
        assert begins[0] == 0
        assert begins[-1] == tiles
        sizes = [end - begin for begin, end in itertools.pairwise(begins)]
        assert sizes[-1] == min(sizes), "the last has the mask that is not plain"
        assert 1 <= min(sizes) <= max(sizes) <= min(min(sizes) + 1, 1024)
        if count > -(-tiles // 1024):
            # At most three waves.
            assert count * blocks <= 3 * 132 * resident


def test_a_wave_is_filled_and_more_are_for_blocks_that_divide_badly(native):
    found = {tuple(numbers[:3]): numbers[3] for numbers in native["parts"]}
    assert found[512, 8, 4] == 132 * 4 // 8
    assert found[8192, 1, 2] == 264
    # 1000 blocks of one part: 8 for the busiest of 132 that could take 7.6; parts of a cache of 63 tiles are not worth their price.
    assert found[63, 1000, 4] == 1


def test_fragments_are_whole():
    """The kernel's own assertions, so that a wrong instance is seen without a CUDA compiler."""
    for one in verify.INSTANCES:
        if one.m % 16 != 0:
            of_head = one.warps // one.teams // one.heads
            width = one.d_v // of_head
            assert one.warps == one.teams * one.heads * of_head
            assert one.m % 8 == one.n % (16 * of_head) == one.d_k % 64 == width % 32 == 0
            assert width <= 512, "a row of a fragment for each block"
            assert one.type_k == one.type_v
            assert one.type_k in ("q8_0", "q4_0")
            assert one.teams < 16, "each team has a barrier of the sixteen"
            continue
        if one.teams > 0:
            mates = one.warps // one.teams
            assert one.warps % one.teams == mates % one.heads == one.m % (16 * mates // one.heads) == one.n % 16 == one.d_v % 32 == 0
            assert mates == 1 or one.teams < 16, "each team has a barrier of the sixteen"
            continue
        groups = one.n // one.rows
        assert one.m % 16 == one.n % 16 == one.rows % 8 == one.n % one.rows == one.warps % groups == 0
        # Warps that have the same columns of V divide the tile's rows.
        width = max(one.d_v // one.warps, 32 if one.type_v in verify.QUANTISED else 0)
        assert one.d_v % width == one.warps % (one.d_v // width) == one.n % (16 * one.warps * width // one.d_v) == 0
        assert width % (32 if one.type_v in verify.QUANTISED or (one.type_v == "any" and one.d_v % 32 == 0) else 16) == 0
        assert one.rows >= 16 or one.d_k % 32 == 0


def _raw_error(kind, lift, case, seed):
    """Normalised squared error of raw.cuh's O = sum (P d) u - OFFSET sum P d for one peak above `rows` others, `gap` nats lower."""
    deviation, gap, rows, mean, flat = case
    random = np.random.default_rng(seed)
    v = (random.normal(size=(rows, 32)) + mean) * deviation
    if kind == "q8_0":
        d, offset = (np.abs(v).max(1) / 127).astype(np.float16), 128
        u = np.round(v / d[:, None].astype(np.float64)) + offset
    else:
        d, offset = (v[np.arange(rows), np.abs(v).argmax(1)] / -8).astype(np.float16), 8
        u = np.clip(np.floor(v / d[:, None].astype(np.float64) + 8.5), 0, 15)
    scores = np.full(rows, -gap) + (0 if flat else random.normal(size=rows) / 2)
    scores[rows // 3] = 0
    p32 = np.exp2(scores / np.log(2) + lift).astype(np.float32)
    p = p32.astype(np.float16)
    less = offset * np.float32((p.astype(np.float32) * d.astype(np.float32)).sum())
    o = ((p * d).astype(np.float32) @ u.astype(np.float32) - less) / p32.sum()
    weights = np.exp(scores)
    exact = weights @ (d[:, None].astype(np.float64) * (u - offset)) / weights.sum()
    return ((o - exact) ** 2).sum() / (exact**2).sum()


def _raw_constant(name, kind):
    """Of raw.cuh: the one of nibbles, or of bytes."""
    text = re.search(rf"\b{name} = (?:NIBBLES \? (\S+?)f? : )?(\S+?)f?[,;]", (KERNELS / "raw.cuh").read_text())
    return float(text[1] if kind == "q4_0" and text[1] else text[2])


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_raw_quants_lose_nothing_where_much_is_far_below_a_peak(kind):
    lift = _raw_constant("LIFT", kind)
    for case in itertools.product((1, 0.1, 0.01), (7, 9, 11), (256, 4096), (0, 1), (False, True)):
        assert max(_raw_error(kind, lift, case, seed) for seed in range(3)) < 1e-5, case


@pytest.mark.parametrize(("kind", "most"), [("q8_0", 127), ("q4_0", 8)])
def test_raw_quants_do_not_exceed_f16_where_v_does_not(kind, most):
    highest = 2 ** (_raw_constant("LIFT", kind) + _raw_constant("RAISE", kind))
    assert highest * 65504 / most < 65504


def test_each_head_is_compiled():
    text = "".join(path.read_text() for path in KERNELS.glob("*.cu"))
    compiled = {(int(d_k), int(d_v)) for d_k, d_v in re.findall(r"template kernel_t kernel_of<(\d+), (\d+)>", text)}
    assert compiled == set(verify.HEADS)


def test_a_table_that_sends_it_too_much_is_found():
    verify_row = next(row for row in ROWS if row.route == "verify")
    for axis in ("smem", "mask", "rows", "wide", "n_kv", "kv"):
        loose = Row("verify", 0, 0, "a test", tuple(condition for condition in verify_row.conditions if condition.axis != axis))
        # A device of this family with less memory than any has: the condition is what keeps the row off it.
        accepts = tuple(row if row.route != "verify" or axis != "smem" else _needs(row, 200_000) for row in ACCEPTS)
        report = check(Table((loose, *ROWS), accepts))
        assert any(finding.kind == "sound" and "verify" in finding.text for finding in report.findings), axis


def _needs(row, smem):
    return Row(row.route, row.ncols1, row.ncols2, row.because, (*(one for one in row.conditions if one.axis != "smem"), at_least("smem", smem)))


def test_a_lost_executor_is_found():
    report = check(Table(ROWS, tuple(row for row in ACCEPTS if row.route != "verify")))
    assert any(finding.kind == "sound" and "there is no such kernel instance" in finding.text for finding in report.findings)


def test_what_verify_takes_does_not_go_to_the_reference():
    rows = tuple(row for row in ROWS if row.route != "verify")
    report = check(Table(rows, ACCEPTS))
    assert any(finding.kind == "frugal" and "verify" in finding.text for finding in report.findings)
    few = (*rows[:-1], Row("verify", 0, 0, "a test", (*ROWS[-2].conditions, at_most("n_q", 64))), rows[-1])
    assert any(finding.kind == "frugal" for finding in check(Table(few, ACCEPTS)).findings)
