"""Shapes from numbers, files and models."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyllm import models
from pyllm.bench.attention.shapes import from_file, from_numbers, from_plan
from pyllm.errors import ConfigError, NotFoundError
from pyllm.routes.devices import resolve
from pyllm.routes.flags import Flags
from pyllm.routes.header import read_header
from pyllm.routes.key import Node
from pyllm.routes.plan import plan


def test_numbers_make_a_product():
    found = from_numbers([(128, 128), (64, 64)], [(8, 2)], [("f16", "f16"), ("q8_0", "q4_0")], n_q=[1, 4], n_kv=[256, 512, 1024], streams=[1, 2])
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 3 * 2
    assert found[0].node == Node(128, 128, 8, 2, 1, 256)


def test_types_that_do_not_fill_a_head_are_left_out():
    found = from_numbers([(80, 80), (64, 64)], [(8, 2)], [("q8_0", "q8_0")], n_q=[1], n_kv=[256], streams=[1])
    assert [one.node.d_k for one in found] == [64]
    with pytest.raises(ConfigError, match="no shape is left"):
        from_numbers([(80, 80)], [(8, 2)], [("q8_0", "q8_0")], n_q=[1], n_kv=[256], streams=[1])


def test_a_file_has_a_node_in_each_line(tmp_path):
    path = tmp_path / "shapes"
    path.write_text("# a comment\n\n128 128 8 4 4096 3 2 q8_0/q4_0 softcap sinks\n576 512 1 16 256 1 1 f16  # MLA\n")
    first, second = (one.node for one in from_file(path))
    assert first == Node(128, 128, 32, 8, 3, 4096, 2, "q8_0", "q4_0", softcap=True, sinks=True)
    assert second == Node(576, 512, 16, 1, 1, 256, view=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("128 128 8", "line 1: `128 128 8` is not"),
        ("\n128 128 8 4 x 1 1 f16", "line 2"),
        ("128 128 8 4 4096 1 1 q9", "q9"),
        ("128 128 8 4 4096 1 1 f16 fast", "flag `fast` is not known"),
        ("0 128 8 4 4096 1 1 f16", "d_k is 0"),
        ("# nothing", "has no shapes"),
    ],
)
def test_a_file_that_is_not_understood(tmp_path, text, says):
    path = tmp_path / "shapes"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        from_file(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(NotFoundError, match="cannot be read"):
        from_file(tmp_path / "none")


def test_the_shapes_of_the_kernel_check_are_read():
    assert len(from_file(Path("native/tests/shapes.txt"))) > 40


def test_a_model_gives_its_own_nodes():
    header = read_header(models.make("gemma4-31b"))
    planned = plan(header, None, Flags(slots=2, ctx=2048), [resolve("sm_90")])
    found = from_plan(planned)
    assert {one.node for one in found} == {entry.node for entry in planned.entries}
    assert {one.origin for one in found} >= {"target global, decode", "target window, prefill"}
    stepped = from_plan(planned, n_q=[1, 7], n_kv=[256])
    assert {one.node.n_q for one in stepped if "decode" in one.origin} == {1, 7}
    assert {one.node.n_kv for one in stepped if "decode" in one.origin} == {256}
