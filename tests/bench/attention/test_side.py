"""Which kernel each side runs, on devices that are not here."""

from __future__ import annotations

import builtins
import random
from types import SimpleNamespace

import pytest

from pyllm._ffi import set_route_table
from pyllm.bench.attention.side import Forced, Ours, Upstream, route_without_verify
from pyllm.bench.attention.torch_sides import FlashInfer, Sdpa, torch_device
from pyllm.errors import UnsupportedError
from pyllm.routes.decision import TABLE, decide, use_table
from pyllm.routes.devices import DEVICES
from pyllm.routes.key import Key, Node
from pyllm.routes.tablefile import Table


def attention(node, device="sm_90"):
    return SimpleNamespace(codes=Key(DEVICES[device], node).codes)


def test_upstream_is_the_table_without_verify():
    source = random.Random(3)
    without = Table(tuple(row for row in TABLE.rows if row.route != "verify"), TABLE.accepts)
    nodes = [
        Node(
            d,
            d,
            8 * source.choice((1, 2, 4, 5)),
            8,
            source.choice((1, 3, 8, 40)),
            source.choice((256, 1000, 8192)),
            1,
            *[source.choice(("f16", "q8_0", "q4_1"))] * 2,
        )
        for d in (64, 96, 128, 256, 512)
        for _ in range(20)
    ]
    keys = [Key(DEVICES[name], node) for node in nodes for name in ("sm_90", "sm_86", "gfx1100")]
    found = [route_without_verify(key.codes) for key in keys]
    try:
        use_table(without)
        assert found == [decide(key).route for key in keys]
    finally:
        use_table(None)
    assert len(set(found)) >= 4


def test_kernels_have_their_tiles():
    node = Node(128, 128, 32, 8, 4, 32768, type_k="q8_0", type_v="q8_0")
    assert Ours().prepare(attention(node), node) == "verify"
    assert Upstream().prepare(attention(node), node) == "mma 4x4"
    assert Forced("tile", 2).prepare(attention(node), node) == "tile"


def test_what_upstream_declines_is_refused():
    node = Node(512, 512, 8, 8, 4, 4000)
    with pytest.raises(UnsupportedError, match="no kernel of upstream"):
        Upstream().prepare(attention(node), node)


def test_a_route_that_cannot_is_refused_with_its_reason():
    node = Node(40, 40, 8, 8, 4, 4096)
    with pytest.raises(UnsupportedError, match="head dims K/V: 40/40"):
        Forced("verify", 2).prepare(attention(node), node)


def test_forcing_ends_with_the_timing():
    class Lane:
        codes = attention(Node(128, 128, 32, 8, 1, 4096)).codes

        def time(self, _lane, _repeats):
            raise UnsupportedError("stopped")

    side = Forced("tile", 2)
    side.prepare(Lane(), None)
    with pytest.raises(UnsupportedError, match="stopped"):
        side.time(1)
    node = Node(128, 128, 32, 8, 1, 4096)
    assert decide(Key(DEVICES["sm_90"], node)).route != "tile"
    set_route_table(None)


def test_torch_names_devices_its_own_way():
    assert [torch_device(name) for name in ("CPU", "CUDA0", "ROCm3")] == ["cpu", "cuda:0", "cuda:3"]
    with pytest.raises(UnsupportedError, match="Vulkan0"):
        torch_device("Vulkan0")


@pytest.mark.parametrize(("side", "module"), [(Sdpa("cpu"), "torch"), (FlashInfer("cuda:0"), "torch")])
def test_what_is_not_installed_says_so(monkeypatch, side, module):
    real = builtins.__import__
    import importlib  # noqa: PLC0415

    def refuse(name, *rest):
        if name == module:
            raise ImportError(f"No module named '{name}'")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", refuse)
    node = Node(64, 64, 8, 2, 1, 256)
    with pytest.raises(UnsupportedError, match=f"{module} cannot be imported") as failure:
        side.prepare(attention(node), node)
    side.close()
    assert failure.value.hint == f"install {module} to compare with it"


def test_pytorch_computes_the_same():
    torch = pytest.importorskip("torch", reason="PyTorch is not among the packages that the tests need")
    from pyllm.bench.attention.measure import measure  # noqa: PLC0415
    from pyllm.bench.attention.shapes import Shape  # noqa: PLC0415

    for node in (Node(64, 64, 8, 2, 3, 256, 2), Node(128, 128, 4, 4, 1, 300)):
        found = measure(0, Shape(node), [Ours(), Sdpa("cpu")], rounds=1, cold=1)
        assert found.of("sdpa").kernel == f"torch {torch.__version__}"
        assert found.of("sdpa").error < 1e-9
    node = Node(64, 64, 8, 2, 3, 256, softcap=True)
    assert "softcap" in measure(0, Shape(node), [Sdpa("cpu")], rounds=1, cold=1).timings[0].refusal
