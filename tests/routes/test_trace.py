"""Traces: nodes that an engine issued, written and read again, and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyllm
from pyllm import models
from pyllm._ffi import AttentionNode
from pyllm.errors import ConfigError, NotFoundError, PyllmError, UnsupportedError
from pyllm.routes.key import Node
from pyllm.routes.shape import Tensor, width
from pyllm.routes.trace import node_of, read_trace, write_trace
from tests.conftest import prompt_tokens

NODE = AttentionNode(
    name="node_7",
    device="CPU",
    op="FLASH_ATTN_EXT",
    types=("f32", "q8_0", "f16"),
    q=(128, 3, 32, 2),
    k=(128, 512, 2, 2),
    v=(128, 512, 2, 2),
    mask=(512, 3, 1, 2),
    q_strides=(4, 16384, 512, 49152),
    k_strides=(34, 272, 136, 139264),
    v_strides=(2, 512, 256, 262144),
    mask_strides=(2, 1024, 3072, 3072),
    scale=0.0883,
    max_bias=0.0,
    softcap=0.0,
    sinks=False,
    view=False,
    dense=True,
    align=16,
    mask_align=16,
    n_kv_max=0,
    n_calls=9,
)


def changed(**fields):
    return dataclasses.replace(NODE, **fields)


@pytest.fixture(scope="module")
def issued():
    with pyllm.LLM(models.make("gemma4"), ctx=256, flash_attn="on", threads=1, trace=True) as llm:
        llm.generate(prompt_tokens(0, 20), max_tokens=3, temperature=0)
        return llm.attention_nodes()


def test_what_was_issued_is_read_again(issued, tmp_path):
    write_trace(tmp_path / "trace.json", issued)
    assert read_trace(tmp_path / "trace.json") == issued
    written = json.loads((tmp_path / "trace.json").read_text())
    assert (written["format"], written["version"]) == ("pyllm-trace", 1)
    assert len(written["nodes"]) == len(issued)


@given(
    st.builds(
        changed,
        n_calls=st.integers(1, 2**62),
        scale=st.floats(allow_nan=False),
        sinks=st.booleans(),
        name=st.text(max_size=20),
        align=st.sampled_from([1, 2, 4, 8, 16]),
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_node_survives_a_file(tmp_path, node):
    write_trace(tmp_path / "trace.json", [node])
    assert read_trace(tmp_path / "trace.json") == [node]


def test_a_node():
    assert node_of(NODE) == Node(128, 128, 32, 2, 3, 512, streams=2, type_k="q8_0", type_v="f16")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"mask": (0, 0, 0, 0), "mask_strides": (0, 0, 0, 0)}, {"mask": "none"}),
        ({"mask": (512, 3, 1, 1)}, {"mask": "repeat"}),
        ({"mask": (512, 3, 32, 2)}, {"mask": "head"}),
        ({"max_bias": 8.0}, {"alibi": True}),
        ({"softcap": 50.0}, {"softcap": True}),
        ({"sinks": True}, {"sinks": True}),
        ({"dense": False, "align": 4, "mask_align": 2, "n_kv_max": 256}, {"dense": False, "align": 4, "mask_align": 2, "n_kv_max": 256}),
        ({"v_strides": (512, 2, 256, 262144)}, {"rows": False}),
        ({"k_strides": (34, 2**24, 136, 2**34)}, {"wide": 1}),
        ({"q_strides": (4, 2**30, 512, 2**34)}, {"wide": 2}),
    ],
)
def test_each_field_of_a_node(fields, expected):
    assert node_of(changed(**fields)) == dataclasses.replace(node_of(NODE), **expected)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"q": (64, 3, 32, 2)}, "head dims of Q and K are 64 and 128"),
        ({"v": (128, 256, 2, 2)}, "rows of K and V are 512 and 256"),
        ({"v": (128, 512, 4, 2)}, "heads of K and V are 2 and 4"),
        ({"v": (128, 512, 2, 1)}, "streams of Q, K and V are 2, 2 and 1"),
        ({"mask": (256, 3, 1, 2)}, "256 columns for 512 rows of K"),
        ({"mask": (512, 1, 1, 2)}, "1 rows for 3 of Q"),
        ({"q": (128, 3, 33, 2)}, "33 query heads do not divide over 2 KV heads"),
    ],
)
def test_a_corrupted_node_is_refused(fields, says):
    with pytest.raises(ConfigError, match=says):
        node_of(changed(**fields))


def test_attention_in_pieces_is_refused():
    with pytest.raises(UnsupportedError, match="without flash attention has no route"):
        node_of(changed(op="SOFT_MAX"))


def document(**fields):
    return {"format": "pyllm-trace", "version": 1, "upstream": "x", "nodes": [dataclasses.asdict(NODE)]} | fields


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "is no trace of attention nodes"),
        (document(format="other"), "is no trace of attention nodes"),
        (document(version=2), "is a trace of version 2; this pyllm reads 1"),
        (document(nodes=[]), "has no nodes"),
        (document(nodes=[{}]), "node 0: `name` is missing"),
        (document(nodes=[dataclasses.asdict(NODE) | {"colour": 1}]), "node 0: `colour` is not known"),
        (document(nodes=[dataclasses.asdict(NODE), dataclasses.asdict(NODE) | {"q": [1, 2]}]), r"node 1: q is \[1, 2\]"),
        (document(nodes=[dataclasses.asdict(NODE) | {"sinks": 1}]), "node 0: sinks is 1"),
        (document(nodes=[dataclasses.asdict(NODE) | {"n_calls": 1.5}]), "node 0: n_calls is 1.5"),
        (document(nodes=[dataclasses.asdict(NODE) | {"types": ["f32", "q9_0", "f16"]}]), "`q9_0` is no KV cache type"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(content, says, tmp_path):
    (tmp_path / "trace.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError, match=says) as caught:
        read_trace(tmp_path / "trace.json")
    assert caught.value.hint


def test_a_missing_file(tmp_path):
    with pytest.raises(NotFoundError, match="No such file"):
        read_trace(tmp_path / "none.json")


@given(
    place=st.sampled_from([*dataclasses.asdict(NODE)]),
    value=st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.lists(st.integers(-1, 3), max_size=5)
    | st.dictionaries(st.text(), st.none(), max_size=1),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_malformed_field_is_an_error_of_ours(tmp_path, place, value):
    (tmp_path / "trace.json").write_text(json.dumps(document(nodes=[dataclasses.asdict(NODE) | {place: value}])))
    # Whatever else it raised would be a defect.
    with contextlib.suppress(PyllmError):
        for node in read_trace(tmp_path / "trace.json"):
            node_of(node)


@pytest.mark.parametrize(("n_q", "n_kv", "expected"), [(1, 2**20, 0), (1, 2**22, 1), (2**15, 2**20, 1), (2**18, 256, 2)])
def test_width(n_q, n_kv, expected):
    """Limits of 32 bits: 2**22 rows of 512 bytes of K, 2**15 mask rows of 2**21 bytes, 2**18 rows of Q of 16 KiB."""
    q = Tensor((128, n_q, 32, 1), (4, 16384, 512, 16384 * n_q))
    k = Tensor((128, n_kv, 2, 1), (2, 512, 256, 512 * n_kv))
    mask = Tensor((n_kv, n_q, 1, 1), (2, 2 * n_kv, 2 * n_kv * n_q, 2 * n_kv * n_q))
    assert width(q, k, k, mask) == expected
