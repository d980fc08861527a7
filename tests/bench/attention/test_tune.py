"""What a tuning measures, on a device that is simulated: its times are scripted, its routes are the evaluator's."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from pyllm.bench.attention import tune as module
from pyllm.bench.attention.measure import Measurement, Timing
from pyllm.bench.attention.shapes import Shape, from_numbers
from pyllm.errors import OutOfMemoryError, UnsupportedError
from pyllm.routes.devices import DEVICES
from pyllm.routes.key import Key

SHAPES = from_numbers([(128, 128), (40, 40)], [(32, 8)], [("q8_0", "q8_0"), ("f16", "f16")], n_q=[1, 4], n_kv=[4096], streams=[1])


@pytest.fixture
def simulated(monkeypatch):
    """A device on which nothing is computed: a side that its route accepts takes 10 µs, or 20 if it is not `verify`."""

    def set_up(name):
        device = DEVICES[name]

        def measure(_index, shape, sides, **_):
            timings = []
            for side in sides:
                try:
                    kernel = side.prepare(SimpleNamespace(codes=Key(device, shape.node).codes), shape.node)
                    timings.append(Timing(side.name, kernel, 10.0 if side.name == "verify" else 20.0))
                except UnsupportedError as failure:  # noqa: PERF203 - as the real one does
                    timings.append(Timing(side.name, refusal=failure.message))
            return Measurement(shape, 1, 1, 2, 2, tuple(timings))

        monkeypatch.setattr(module, "measure", measure)
        monkeypatch.setattr(module, "routed_device", lambda _: device)

    return set_up


def test_each_shape_that_both_run_is_measured(simulated):
    simulated("sm_90")
    saved = []
    found, skipped = module.tune(0, SHAPES, rounds=1, cold=1, save=lambda measured: saved.append(len(measured)))
    assert saved == [1, 2, 3, 4]
    assert {(one.head, one.kv, one.gqa, one.n_q) for one in found} == {("128/128", kv, 4, n_q) for kv in ("q8_0/q8_0", "f16/f16") for n_q in (1, 4)}
    assert {one.other for one in found} == {"vec", "mma 4x4"}
    assert all(one.wins for one in found)
    ((why, nodes),) = skipped.items()
    assert "head dims K/V: 40/40" in why
    assert len(nodes) == 2


def test_shapes_outside_what_is_compiled_say_so(simulated):
    simulated("sm_90")
    with pytest.raises(UnsupportedError, match=r"none of 2 shapes: .*head dims K/V: 40/40"):
        module.tune(0, [one for one in SHAPES if one.node.d_k == 40], rounds=1, cold=1)


@pytest.mark.parametrize("name", ["sm_75", "gfx1100"])
def test_a_device_without_asynchronous_copies_is_refused(simulated, name):
    simulated(name)
    with pytest.raises(UnsupportedError, match=f"needs asynchronous copies, which {name}"):
        module.tune(0, SHAPES, rounds=1, cold=1)


def test_a_shape_that_does_not_fit_is_left_out(simulated, monkeypatch):
    simulated("sm_90")
    measure = module.measure

    def small(index, shape, sides, **rest):
        if shape.node.n_q == 4:
            raise OutOfMemoryError("no room")
        return measure(index, shape, sides, **rest)

    monkeypatch.setattr(module, "measure", small)
    found, skipped = module.tune(0, SHAPES, rounds=1, cold=1)
    assert {one.n_q for one in found} == {1}
    assert len(skipped["no room"]) == 3


def test_windows_are_left_out(simulated):
    simulated("sm_90")
    window = Shape(replace(SHAPES[0].node, n_kv_max=512))
    found, skipped = module.tune(0, [SHAPES[0], window], rounds=1, cold=1)
    assert len(found) == 1
    assert list(skipped.values()) == [[window.node]]
