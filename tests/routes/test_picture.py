"""Pictures: a cell for each layer, phase and device, in its route's colour."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from itertools import combinations

import pytest

from pyllm import models
from pyllm.errors import ConfigError, UnsupportedError
from pyllm.routes.devices import DEVICES
from pyllm.routes.flags import Flags
from pyllm.routes.header import read_header
from pyllm.routes.picture import COLOURS, draw, panels_of
from pyllm.routes.plan import plan
from pyllm.routes.row import ROUTES

pytest.importorskip("matplotlib")


def planned(model, draft, *devices, **settings):
    return plan(read_header(models.make(model)), draft and read_header(models.make(draft)), Flags(ctx=4096, **settings), [DEVICES[name] for name in devices])


@pytest.fixture(scope="module")
def gemma():
    return planned("gemma4", "gemma4-assistant", "sm_87", kv_types=("q4_0", "f16"))


def test_every_node_is_a_cell(gemma):
    target, draft = panels_of(gemma)
    assert target.kinds == ("window", "window", "window", "global", "window", "global")
    assert [row.label for row in target.rows] == ["prefill", "decode", "verify"]
    assert [row.label for row in draft.rows] == ["draft: token"]
    assert len(target.cells) == 3 * 6
    for (row, layer), entry in (target.cells | draft.cells).items():
        assert layer in entry.layers
        assert entry.phase == row.phase


def test_each_device_has_its_rows():
    target, _ = panels_of(planned("gemma4-31b", "gemma4-31b-assistant", "gfx1100", "sm_86", split_mode="tensor"))
    assert [row.label for row in target.rows][:2] == ["prefill, device 0", "prefill, device 1"]
    assert {entry.device for (row, _), entry in target.cells.items() if row.place == 1} == {"sm_86"}


def test_prediction_heads_keep_their_numbers():
    target, heads = panels_of(planned("nemotron-h-moe", None, "sm_121", spec="mtp"))
    assert (target.first, len(target.kinds), heads.first, heads.kinds) == (0, 6, 6, ("global",))
    # Recurrent and feed-forward layers have no cell.
    assert {layer for _, layer in target.cells} == {1, 4}
    assert [row.label for row in heads.rows] == ["draft: prompt", "draft: verified", "draft: token"]


def test_an_svg_shows_them(gemma, tmp_path):
    draw([gemma], tmp_path / "plan.svg")
    text = (tmp_path / "plan.svg").read_text()
    root = ET.fromstring(text)  # noqa: S314 - written a line above
    words = {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"prefill", "decode", "verify", "draft: token", "window", "global", "layer", "vec", "mma"} <= words
    assert any(word.startswith("model: gemma4") and word.endswith("on sm_87") for word in words)
    drawn = re.findall(r"fill: (#[0-9a-f]{6}); stroke: #ffffff", text)
    cells = [entry.decision.route for panel in panels_of(gemma) for entry in panel.cells.values()]
    for route in set(cells):
        # And one in the legend.
        assert drawn.count(COLOURS[route].lower()) == cells.count(route) + 1


def test_the_same_plan_is_the_same_file(gemma, tmp_path):
    draw([gemma], tmp_path / "a.svg")
    draw([gemma], tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize("layers", [4, 60])
def test_a_png_of_any_size(layers, tmp_path):
    model = read_header(models.make("gemma4-31b", layers=layers))
    plans = [plan(model, None, Flags(ctx=4096, force_route="decode=vec"), [DEVICES[name]]) for name in ("sm_61", "gfx942")]
    draw(plans, tmp_path / "plan.PNG")
    head = (tmp_path / "plan.PNG").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    assert 800 <= width <= 2600
    assert 400 <= height <= 2600


def test_colours_are_told_apart_by_everyone():
    """Also by their lightness, and as seen without one kind of cone (Viénot, Brettel and Mollon 1999)."""
    assert set(COLOURS) == {*ROUTES, "refused"}
    linear = {name: [((int(code[place : place + 2], 16) / 255 + 0.055) / 1.055) ** 2.4 for place in (1, 3, 5)] for name, code in COLOURS.items()}
    sights = {
        "everyone": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
        "without L cones": ((0.11238, 0.88762, 0), (0.11238, 0.88762, 0), (0.00401, -0.00401, 1)),
        "without M cones": ((0.29275, 0.70725, 0), (0.29275, 0.70725, 0), (-0.02234, 0.02234, 1)),
    }
    for sight, matrix in sights.items():
        seen = {name: [sum(weight * value for weight, value in zip(row, colour, strict=True)) for row in matrix] for name, colour in linear.items()}
        for one, other in combinations(seen, 2):
            distance = sum((abs(a) ** 0.5 - abs(b) ** 0.5) ** 2 for a, b in zip(seen[one], seen[other], strict=True)) ** 0.5
            assert distance > 0.12, (sight, one, other, distance)


def test_what_cannot_be_drawn(gemma, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"ends in neither .png nor .svg"):
        draw([gemma], tmp_path / "plan.pdf")
    with pytest.raises(FileNotFoundError):
        draw([gemma], tmp_path / "none" / "plan.svg")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnsupportedError, match="matplotlib, which is not installed") as caught:
        draw([gemma], tmp_path / "plan.svg")
    assert "pyllm[plots]" in caught.value.hint
