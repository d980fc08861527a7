"""Tensors that contradict each other: the rules of ``native/route/node.cpp``."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from pyllm.errors import ConfigError
from pyllm.repro.shapes import Shapes

NATIVE = Path(__file__).parents[2] / "native" / "route" / "node.cpp"
GOOD = Shapes((256, 3, 16, 2), (256, 1024, 8, 2), (128, 1024, 8, 2), (1024, 64, 1, 2))

BAD = [
    (replace(GOOD, q=(512, 3, 16, 2)), "head dims of Q and K differ: 512 and 256"),
    (replace(GOOD, v=(256, 512, 8, 2)), "rows of K and V differ: 1024 and 512"),
    (replace(GOOD, v=(256, 1024, 4, 2)), "heads of K and V differ: 8 and 4"),
    (replace(GOOD, q=(256, 3, 12, 2)), "query heads do not divide over KV heads: 12 and 8"),
    (replace(GOOD, q=(256, 3, 16, 1)), "streams of Q, K and V differ: 1, 2, 2"),
    (replace(GOOD, mask=(256, 64, 1, 2)), "columns of the mask and rows of K differ: 256 and 1024"),
    (replace(GOOD, mask=(1024, 2, 1, 2)), "the mask has fewer rows than Q: 2 and 3"),
    (replace(GOOD, mask=(1024, 64, 5, 2)), "query heads do not divide over the mask's: 16 and 5"),
    (replace(GOOD, mask=(1024, 64, 1, 3)), "streams do not divide over the mask's: 2 and 3"),
]


@pytest.mark.parametrize(("shapes", "says"), BAD)
def test_each_contradiction_is_refused_in_the_words_of_the_native_library(shapes, says):
    assert shapes.contradictions()[0] == says
    with pytest.raises(ConfigError, match="^" + re.escape(says) + "$") as caught:
        shapes.check()
    assert "no route may run it" in caught.value.hint
    assert says.split(":")[0] in NATIVE.read_text()


def test_what_agrees_passes_and_every_mask_has_its_kind():
    masks = {"stream": (1024, 64, 1, 2), "repeat": (1024, 64, 1, 1), "head": (1024, 64, 16, 2), "none": None}
    for kind, mask in masks.items():
        shapes = replace(GOOD, mask=mask)
        shapes.check()
        assert shapes.mask_kind == kind
    assert str(GOOD) == "Q [256, 3, 16, 2] K [256, 1024, 8, 2] V [128, 1024, 8, 2] mask [1024, 64, 1, 2]"
