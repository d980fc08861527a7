"""Tensor split: whole groups of heads, all of them, and as upstream's own function deals them out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm.routes.header import Layer
from pyllm.routes.slices import rotation, split, split_heads


def layer(n_head, n_head_kv, d_k, *, index=0, kind="global", block=1):
    return Layer(index, kind, d_k, d_k, n_head, n_head_kv, reads=index, block=block)


@pytest.mark.parametrize(
    ("heads", "turn", "ratios", "n_devices", "kv"),
    [
        # Read from `llama_meta_device_get_split_state` of the pinned upstream, for the caches of tiny models.
        ((16, 1, 512), 0, (), 2, [0, 1]),
        ((16, 1, 512), 1, (), 2, [1, 0]),
        ((16, 8, 256), 0, (), 3, [2, 3, 3]),
        ((16, 8, 256), 1, (), 3, [3, 2, 3]),
        ((16, 8, 256), 2, (), 3, [3, 3, 2]),
        ((8, 2, 64), 0, (), 4, [0, 1, 0, 1]),
        ((16, 8, 256), 0, (3, 1), 2, [6, 2]),
        ((16, 8, 256), 1, (3, 1), 2, [6, 2]),
        ((16, 2, 512), 0, (1, 9), 2, [0, 2]),
        ((16, 2, 512), 1, (1, 9), 2, [1, 1]),
        ((16, 8, 256), 0, (0.1, 0.2, 0.7), 3, [0, 2, 6]),
        ((16, 8, 256), 1, (0.1, 0.2, 0.7), 3, [1, 1, 6]),
        ((16, 8, 256), 2, (0.1, 0.2, 0.7), 3, [1, 2, 5]),
    ],
)
def test_upstreams_shares(heads, turn, ratios, n_devices, kv):
    n_head, n_head_kv, _ = heads
    gqa = n_head // n_head_kv
    assert split_heads(layer(*heads), turn, n_devices, ratios) == [(gqa * count, count) for count in kv]


@pytest.mark.parametrize(
    ("heads", "block", "n_devices", "kv"),
    [
        # The same, in a second layer, where the output projection is quantised: 80 values are no whole blocks, so heads go over by twos and sixteens.
        ((16, 16, 80), 32, 3, [6, 4, 6]),
        ((16, 16, 80), 256, 2, [16, 0]),
        ((32, 32, 80), 256, 3, [16, 0, 16]),
        ((16, 8, 80), 32, 3, [4, 2, 2]),
        ((8, 8, 64), 256, 4, [4, 0, 4, 0]),
        ((32, 8, 64), 256, 3, [3, 2, 3]),
    ],
)
def test_blocks_stay_whole(heads, block, n_devices, kv):
    assert [count for _, count in split_heads(layer(*heads, block=block), 1, n_devices)] == kv


@given(
    n_head_kv=st.integers(1, 64),
    gqa=st.sampled_from([1, 2, 3, 4, 5, 6, 8, 12, 16, 20, 32, 71]),
    d_k=st.sampled_from([40, 64, 72, 80, 96, 128, 192, 256, 320, 512, 576]),
    block=st.sampled_from([1, 32, 256]),
    turn=st.integers(0, 9),
    ratios=st.lists(st.integers(0, 9), min_size=2, max_size=8).filter(any),
    even=st.booleans(),
)
def test_every_head_is_somewhere_with_its_group(*, n_head_kv, gqa, d_k, block, turn, ratios, even):
    heads = split_heads(layer(n_head_kv * gqa, n_head_kv, d_k, block=block), turn, len(ratios), () if even else ratios)
    assert [sum(column) for column in zip(*heads, strict=True)] == [n_head_kv * gqa, n_head_kv]
    assert all(query == kv * gqa and kv >= 0 for query, kv in heads)


@given(n_head_kv=st.integers(1, 16), turn=st.integers(0, 9), ratios=st.lists(st.integers(1, 9), min_size=2, max_size=4))
def test_a_turn_moves_the_shares_of_equal_devices(n_head_kv, turn, ratios):
    one = layer(n_head_kv * 8, n_head_kv, 128)
    n_devices = len(ratios)
    first = split_heads(one, 0, n_devices)
    assert split_heads(one, turn, n_devices) == [first[(place - turn) % n_devices] for place in range(n_devices)]


def test_only_layers_of_a_kind_take_turns():
    layers = [layer(8, 2, 256, index=index, kind=kind) for index, kind in enumerate(["window", "window", "global", "recurrent", "window", "global"])]
    assert [rotation(one, layers) for one in layers] == [0, 1, 0, 0, 2, 1]
    assert split(layers[5], layers, 3) == split_heads(layers[5], 1, 3)
