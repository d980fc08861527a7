"""Attention nodes made to be timed."""

from __future__ import annotations

import numpy as np
import pytest

from pyllm._ffi import LANES, Attention, device_rates
from pyllm.errors import ClosedError, InvalidArgumentError, OutOfMemoryError

SHAPE = {"d_k": 64, "d_v": 64, "n_head": 8, "n_head_kv": 2, "n_q": 3, "n_kv": 256, "streams": 2, "type_k": 3, "type_v": 7, "mask": 1}


def test_results_are_no_numbers_before_they_are_computed():
    with Attention(0, SHAPE, cold=1) as attention:
        assert attention.nodes == 2
        assert np.isnan(attention.result(0)).all()
        assert attention.time(0) > 0
        assert np.isfinite(attention.result(0)).all()
        assert np.isnan(attention.result(1)).all()


def test_each_node_has_keys_of_its_own():
    with Attention(0, SHAPE, cold=1 << 20) as attention:
        keys = [attention.input("k", number) for number in range(attention.nodes)]
        assert len({row.tobytes() for row in keys}) == attention.nodes > 2
        assert keys[0].size == 2 * 2 * 256 * 64
        assert abs(keys[0].std() - 1) < 0.05


def test_cold_bytes_decide_how_many_nodes_there_are():
    with Attention(0, SHAPE, cold=1) as few:
        # q8_0 takes 34 bytes for 32 values, q4_0 18.
        assert few.bytes == 2 * 2 * 256 * (64 * 34 + 64 * 18) // 32
        for times in (3, 7):
            with Attention(0, SHAPE, cold=times * few.bytes - 1) as many:
                assert many.nodes == times
    with Attention(0, SHAPE | {"n_kv": 1, "streams": 1}, cold=1 << 40) as most:
        assert most.nodes == 1024
        assert most.time(0) > 0


def test_the_same_seed_gives_the_same_values():
    def values(seed):
        with Attention(0, SHAPE, cold=1, seed=seed) as attention:
            return [attention.input(name).tobytes() for name in "qkv"]

    assert values(5) == values(5)
    assert all(one != other for one, other in zip(values(5), values(6), strict=True))


def test_v_may_be_a_view_of_k():
    with Attention(0, SHAPE | {"d_v": 32, "type_v": 3, "view": 1}, cold=1) as attention:
        k = attention.input("k").reshape(-1, 64)
        assert (attention.input("v").reshape(-1, 32) == k[:, :32]).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"d_k": 0}, "d_k is 0"),
        ({"n_kv": -1}, "n_kv is -1"),
        ({"n_head": 7}, "do not divide"),
        ({"type_k": 99}, "no code of a KV cache type"),
        ({"d_k": 80, "type_k": 3}, "do not fill blocks of 32"),
        ({"mask": 9}, "mask is 9"),
        ({"mask": 0, "alibi": 1}, "ALiBi without a mask"),
        ({"n_kv_max": 300}, "n_kv_max is 300"),
        ({"view": 1}, "cannot be a view"),
    ],
)
def test_what_cannot_be_is_refused(change, says):
    with pytest.raises(InvalidArgumentError, match=says):
        Attention(0, SHAPE | change, cold=1)


@pytest.mark.parametrize(
    "huge",
    [
        {"n_kv": 1 << 30, "n_head": 64, "n_head_kv": 64, "streams": 1 << 12},
        # More bytes than 64 bits count.
        {"n_kv": 1 << 30, "n_head": 1 << 16, "n_head_kv": 1 << 16, "streams": 1 << 16},
        {"n_q": 1 << 20, "n_head": 1 << 19, "n_head_kv": 1},
        {"n_q": 1 << 20, "n_kv": 1 << 24},
    ],
)
def test_what_does_not_fit_is_refused(huge):
    with pytest.raises(OutOfMemoryError, match="MiB do not fit CPU"):
        Attention(0, SHAPE | huge, cold=1)


def test_rows_at_a_power_of_two_from_each_other_differ():
    with Attention(0, SHAPE | {"n_kv": 1 << 14, "streams": 1}, cold=1) as attention:
        rows = attention.input("k").reshape(2, 1 << 14, 64)
        assert all((rows[0, 0] != rows[0, 1 << bit]).any() for bit in range(14))


def test_lanes_and_devices_have_limits():
    with pytest.raises(InvalidArgumentError, match="device index 99"):
        Attention(99, SHAPE, cold=1)
    with Attention(0, SHAPE, cold=1) as attention:
        with pytest.raises(InvalidArgumentError, match="lane"):
            attention.time(LANES)
        with pytest.raises(InvalidArgumentError, match="repeats"):
            attention.time(0, 0)
        with pytest.raises(InvalidArgumentError, match="node 2 is not in"):
            attention.input("k", 2)
    with pytest.raises(ClosedError):
        attention.time(0)


def test_rates_are_measured():
    rates = device_rates(0, 1 << 20, 64)
    assert rates.copied > 0.1
    assert rates.computed > 0.1
    with pytest.raises(InvalidArgumentError, match="too little"):
        device_rates(0, 1 << 20, 33)
