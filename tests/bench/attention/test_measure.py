"""Timing in turn, and results that are looked at."""

from __future__ import annotations

import numpy as np
import pytest

from pyllm._ffi import Attention, Rates
from pyllm.bench.attention.measure import Measurement, Timing, measure, native_shape
from pyllm.bench.attention.reference import Reference
from pyllm.bench.attention.shapes import Shape
from pyllm.bench.attention.side import Ours, Upstream
from pyllm.errors import UnsupportedError
from pyllm.routes.key import Node

NODE = Node(64, 64, 8, 2, 3, 300)


class Scripted(Ours):
    """A side that notes when it is asked, and may lie."""

    def __init__(self, name, log, factor=1.0):
        self.name, self.log, self.factor = name, log, factor
        self.closed = False

    def time(self, _repeats):
        self.log.append(self.name)
        return super().time(1)

    def result(self):
        return super().result() * self.factor

    def close(self):
        self.closed = True


@pytest.mark.parametrize(
    "node",
    [
        NODE,
        Node(64, 64, 8, 8, 1, 256, 2, "q8_0", "q4_0"),
        Node(128, 64, 4, 2, 5, 77, mask="none"),
        Node(64, 64, 8, 2, 2, 256, softcap=True),
        Node(96, 32, 4, 1, 2, 256, view=True),
        Node(64, 64, 2, 1, 4, 512, n_kv_max=40),
    ],
    ids=str,
)
def test_the_reference_agrees_with_the_kernel_and_sees_a_mistake(node):
    with Attention(0, native_shape(node), cold=1) as attention:
        reference = Reference(attention, node)
        attention.time(0)
        result = attention.result(0)
        assert reference.error(result) < 5e-4
        assert reference.error(result * 1.1) > 5e-3
        wrong = result.copy()
        wrong[-1] = np.nan
        assert np.isnan(reference.error(wrong))


def test_sides_take_turns_and_are_closed():
    log: list[str] = []
    sides = [Scripted("ours", log), Scripted("other", log)]
    sides[1].lane = 1
    found = measure(0, Shape(NODE), sides, rounds=4, cold=1)
    assert log == ["ours", "other"] + ["ours", "other", "other", "ours"] * 2
    assert all(side.closed for side in sides)
    assert [one.side for one in found.timings] == ["ours", "other"]
    for one in found.timings:
        assert 0 < one.least <= one.us <= one.most
        assert one.error < 5e-4


@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_a_wrong_result_is_told_and_not_timed(factor):
    sides = [Scripted("ours", []), Scripted("other", [], factor)]
    found = measure(0, Shape(NODE), sides, rounds=1, cold=1)
    assert found.of("ours").us > 0
    assert found.of("other") is None
    assert [one.wrong for one in found.timings] == [False, True]
    assert "a wrong result" in found.timings[1].refusal
    assert all(side.closed for side in sides)


def test_only_pairs_of_rows_that_the_mask_leaves_count():
    def of(node):
        found = measure(0, Shape(node), [Ours()], rounds=1, cold=1)
        return found.operations, found.bytes

    # Two products of 64 values for each of 8 heads.
    assert of(Node(64, 64, 8, 2, 1, 256)) == (4 * 64 * 8 * 256, 2 * 2 * 256 * 64 * 2)
    assert of(Node(64, 64, 8, 2, 4, 4))[0] == 4 * 64 * 8 * (1 + 2 + 3 + 4)
    assert of(Node(64, 64, 8, 2, 4, 4, mask="none"))[0] == 4 * 64 * 8 * 16
    assert of(Node(64, 64, 8, 2, 2, 256, n_kv_max=16)) == (4 * 64 * 8 * 2 * 16, 2 * 2 * 17 * 64 * 2)


def test_a_side_that_cannot_says_why():
    class Unable(Scripted):
        def prepare(self, _attention, _node):
            raise UnsupportedError("not today")

    found = measure(0, Shape(NODE), [Ours(), Unable("other", []), Upstream()], rounds=1, cold=1)
    assert [one.refusal for one in found.timings] == ["", "not today", "this device has no routes"]
    assert found.of("other") is None
    assert found.of("ours").kernel == "ggml"


def test_numbers_follow_from_the_times():
    measurement = Measurement(
        Shape(NODE), 10**6, 10**9, 2, 2 * 10**6, (Timing("ours", "verify", 10.0), Timing("upstream", "vec", 40.0), Timing("sdpa", refusal="no"))
    )
    ours, upstream, sdpa = measurement.to_json(Rates(200.0, 1e6))["timings"]
    assert ours["gb_s"] == pytest.approx(100)
    assert ours["of_copy_rate"] == pytest.approx(0.5)
    assert (ours["bound"], ours["of_bound"]) == ("memory", pytest.approx(0.5))
    assert upstream["over_ours"] == pytest.approx(4)
    assert sdpa == {"side": "sdpa", "kernel": "", "us": 0.0, "least": 0.0, "most": 0.0, "error": None, "refusal": "no", "wrong": False}
    assert measurement.to_json(Rates(200.0, 1e5))["timings"][0]["bound"] == "arithmetic"
