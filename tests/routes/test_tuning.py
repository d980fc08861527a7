"""Tunings: files, whom they are for, and the tables that follow from them."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace

import pytest

from pyllm._ffi import set_route_table
from pyllm.errors import ConfigError, InvalidArgumentError, NotFoundError
from pyllm.routes import tuning
from pyllm.routes.check import check
from pyllm.routes.decision import TABLE, decide, use_table
from pyllm.routes.devices import DEVICES
from pyllm.routes.key import Key, Node
from pyllm.routes.tablefile import Table, dump
from pyllm.routes.tuning import Measured

HERE = replace(DEVICES["sm_90"], products="NVIDIA H200")
WITHOUT = Table(tuple(row for row in TABLE.rows if row.route != "verify"), TABLE.accepts)
N_Q, N_KV, STREAMS = (1, 2, 4, 16, 64), (1024, 4096, 32768), (1, 8)


@pytest.fixture(autouse=True)
def built_in():
    yield
    use_table(None)
    set_route_table(None)


def node_of(one, **changes):
    d_k, d_v = map(int, one.head.split("/"))
    numbers = {"n_q": one.n_q, "n_kv": one.n_kv, "streams": one.streams} | changes
    return Node(d_k, d_v, 4 * one.gqa, 4, type_k=one.kv.split("/")[0], type_v=one.kv.split("/")[1], **numbers)


def grid(source, classes):
    """Random winners: who wins for a number of rows wins from some number of KV rows on, most of the time."""
    found = []
    for head, kv, gqa in classes:
        for streams, n_q in itertools.product(STREAMS, N_Q):
            start = source.choice((0, 4096, 32768, 10**9))
            found += [Measured(head, kv, gqa, streams, n_q, n_kv, 10.0, 20.0 if (n_kv >= start) != (source.random() < 0.1) else 9.0, "mma") for n_kv in N_KV]
    return found


def routes(nodes, table):
    use_table(table)
    return [decide(Key(HERE, node)).route for node in nodes]


@pytest.mark.parametrize("seed", range(3))
def test_nodes_go_where_they_were_faster(seed):
    source = random.Random(seed)
    heads, pairs = ("64/64", "128/128", "256/256", "512/512"), ("f16/f16", "q8_0/q8_0", "q4_0/q4_0", "q8_0/q4_0", "bf16/q5_1")
    classes = {(source.choice(heads), source.choice(pairs), source.choice((1, 2, 4, 8, 16))) for _ in range(6)}
    measured = grid(source, sorted(classes))
    tuned = tuning.table(tuning.made_here(HERE, "580.1", measured))
    nodes = [node_of(one) for one in measured]
    wins = {(one.head, one.kv, one.gqa, one.streams, one.n_q, one.n_kv): one.wins for one in measured}
    for one, after, before in zip(measured, routes(nodes, tuned), routes(nodes, WITHOUT), strict=True):
        longer = [wins[one.head, one.kv, one.gqa, one.streams, one.n_q, n_kv] for n_kv in N_KV if n_kv >= one.n_kv]
        assert after == ("verify" if all(longer) else before), one


@pytest.mark.parametrize("seed", range(3))
def test_streams_count_between_and_not_beyond(seed):
    measured = grid(random.Random(seed), [("128/128", "q8_0/q8_0", 4)])
    tuned = tuning.table(tuning.made_here(HERE, "", measured))
    points = [one for one in measured if one.streams == 1]
    ends = [routes([node_of(one, streams=count) for one in points], tuned) for count in STREAMS]
    for here, low, high in zip(routes([node_of(one, streams=4) for one in points], tuned), *ends, strict=True):
        assert (here == "verify") == (low == high == "verify")
    beyond = [node_of(one, streams=9) for one in points]
    assert routes(beyond, tuned) == routes(beyond, None)


def test_one_point_changes_no_other():
    one = Measured("128/128", "q4_0/q4_0", 4, 1, 4, 32768, 10.0, 9.0, "mma 4x4")
    tuned = tuning.table(tuning.made_here(HERE, "", [one]))
    nodes = [node_of(one, n_q=n_q, n_kv=n_kv, streams=streams) for n_q in (1, 3, 4, 5, 64) for n_kv in (1024, 16384, 32768, 65536) for streams in (1, 2)]
    for node, after, before in zip(nodes, routes(nodes, tuned), routes(nodes, None), strict=True):
        inside = node.n_q == 4 and node.streams == 1 and node.n_kv >= 32768
        assert after == ("mma" if inside else before), node
        assert before == "verify" or node.n_q < 3


@pytest.mark.parametrize("seed", range(3))
def test_between_two_measured_numbers_both_have_to_win(seed):
    measured = grid(random.Random(seed), [("128/128", "q8_0/q8_0", 4)])
    tuned = tuning.table(tuning.made_here(HERE, "", measured))
    between = [node_of(one, n_q=one.n_q + 1) for one in measured if one.n_q in {4, 16}]
    low = [node_of(one) for one in measured if one.n_q in {4, 16}]
    high = [node_of(one, n_q=4 * one.n_q) for one in measured if one.n_q in {4, 16}]
    for here, *ends in zip(routes(between, tuned), routes(low, tuned), routes(high, tuned), strict=True):
        assert (here == "verify") == (ends == ["verify"] * 2)


def test_nodes_that_were_not_measured_stay_where_they_are():
    measured = grid(random.Random(1), [("128/128", "q8_0/q8_0", 4), ("256/256", "f16/f16", 2)])
    tuned = tuning.table(tuning.made_here(HERE, "", [replace(one, other_us=1.0) for one in measured]))
    nodes = [
        Node(d, d, 4 * gqa, 4, n_q, n_kv, type_k=kind, type_v=kind)
        for d in (64, 128, 256, 512)
        for gqa in (1, 2, 4, 8)
        for n_q in (1, 4, 33)
        for n_kv in (512, 1024, 8192)
        for kind in ("f16", "q8_0", "q4_0")
    ]
    taken = {("128/128", "q8_0", 4), ("256/256", "f16", 2)}
    # Below the fewest KV rows that were measured the built-in rows stay, for these classes too.
    for node, after, before, without in zip(nodes, routes(nodes, tuned), routes(nodes, None), routes(nodes, WITHOUT), strict=True):
        mine = (f"{node.d_k}/{node.d_v}", node.type_k, node.n_head // node.n_head_kv) in taken and node.n_kv >= N_KV[0]
        assert after == (without if mine else before), node
    # Other architectures have no measured rows to lose.
    for name in ("sm_86", "gfx1100"):
        found = []
        for table in (tuned, None):
            use_table(table)
            found.append([decide(Key(DEVICES[name], node)).route for node in nodes])
        assert found[0] == found[1], name


def test_the_table_of_a_tuning_is_proven():
    measured = grid(random.Random(4), [("128/128", "q8_0/q8_0", 4), ("512/512", "q4_0/q4_0", 8)])
    report = check(tuning.table(tuning.made_here(HERE, "", measured)))
    assert [finding for finding in report.findings if finding.kind in {"total", "sound", "frugal"}] == []


def test_heads_that_are_not_compiled_are_left_out():
    for head, kv in (("40/40", "f16/f16"), ("80/80", "q8_0/q8_0"), ("128/128", "f32/f32")):
        one = Measured(head, kv, 4, 1, 1, 4096, 1.0, 9.0, "tile")
        assert dump(tuning.table(tuning.made_here(HERE, "", [one]))) == dump(TABLE)


def test_a_file_comes_back(tmp_path):
    made = tuning.made_here(HERE, "580.159.04", grid(random.Random(0), [("64/64", "f16/f16", 1)]))
    tuning.write(made, tmp_path / "t.json")
    assert tuning.read(tmp_path / "t.json") == made
    with pytest.raises(InvalidArgumentError, match="cannot be written"):
        tuning.write(made, tmp_path / "none" / "t.json")
    with pytest.raises(NotFoundError, match="cannot be read"):
        tuning.read(tmp_path / "none")


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "t.json"
    tuning.write(tuning.made_here(HERE, "", grid(random.Random(0), [("64/64", "f16/f16", 1)])[:2]), path)
    text = path.read_text()
    for length in range(len(text.rstrip()) - 1):
        path.write_text(text[:length])
        with pytest.raises(ConfigError, match="is no JSON"):
            tuning.read(path)
    plain = json.loads(text)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError):
        tuning.read(path)
    path.write_text("[]")
    with pytest.raises(ConfigError, match="of format `list`"):
        tuning.read(path)
    for change, says in (
        ({"format": "pyllm-tuning 2"}, "is of format `pyllm-tuning 2`, not `pyllm-tuning 1`"),
        ({"measured": [plain["measured"][0] | {"n_q": 0}]}, "n_q 0"),
        ({"measured": [plain["measured"][0] | {"gqa": 1.5}]}, "gqa 1.5"),
        ({"measured": [plain["measured"][0] | {"kv": "q9/q9"}]}, "K/V types `q9/q9`"),
        ({"measured": [plain["measured"][0] | {"head": "x"}]}, "is damaged"),
        ({"measured": [plain["measured"][0] | {"verify_us": 0.0}]}, "times of 0.0"),
        ({"measured": [plain["measured"][0] | {"more": 1}]}, "is damaged"),
        ({"measured": 7}, "is damaged"),
        ({"measured": [plain["measured"][0] | {"kv": 5}]}, "K/V types `5`"),
        ({"arch": "x"}, "is damaged"),
    ):
        path.write_text(json.dumps(plain | change))
        with pytest.raises(ConfigError, match=says):
            tuning.read(path)
    for name in ("device", "arch", "driver", "version", "upstream", "kernels", "table", "measured"):
        path.write_text(json.dumps({key: value for key, value in plain.items() if key != name}))
        with pytest.raises(ConfigError, match="is damaged"):
            tuning.read(path)


def file(tmp_path, **changes):
    path = tmp_path / "t.json"
    made = tuning.made_here(HERE, "580.1", grid(random.Random(0), [("128/128", "q8_0/q8_0", 4)]))
    tuning.write(replace(made, **changes), path)
    return path


@pytest.mark.parametrize(
    ("changes", "driver", "devices", "says"),
    [
        ({}, "580.1", [HERE], ""),
        ({}, "580.1", [DEVICES["gfx1100"], HERE], ""),
        ({}, "580.2", [HERE], "measured with driver 580.1, and here is 580.2"),
        ({}, "", [HERE], "and here is an unknown one"),
        ({"version": "0.0.9"}, "580.1", [HERE], "measured with pyllm 0.0.9"),
        ({"upstream": "abc"}, "580.1", [HERE], "measured with upstream abc"),
        ({"table": "abc"}, "580.1", [HERE], "measured with route table abc"),
        ({"kernels": "abc"}, "580.1", [HERE], "measured with kernels abc"),
        ({"kernels": "abc"}, "580.2", [HERE], "and here is 580.2, it was measured with kernels abc"),
        ({"arch": 860}, "580.1", [HERE], "measured on NVIDIA H200, and this is NVIDIA H200"),
        ({}, "580.1", [replace(HERE, products="NVIDIA H100 PCIe")], "measured on NVIDIA H200, and this is NVIDIA H100 PCIe"),
        ({}, "580.1", [HERE, replace(HERE, products="NVIDIA H100 PCIe")], "measured on NVIDIA H200, and this is NVIDIA H100 PCIe"),
        ({}, "580.1", [DEVICES["gfx1100"]], "and this is"),
        ({}, "580.1", [], "there is no GPU here"),
    ],
)
def test_whom_a_tuning_is_for(*, tmp_path, monkeypatch, changes, driver, devices, says):
    monkeypatch.setattr(tuning, "driver_version", lambda _: driver)
    choice = tuning.choose(file(tmp_path, **changes), devices)
    assert (choice.table is None) == bool(says)
    assert says in choice.says
    assert ("is not used" in choice.says) == bool(says)


def test_a_device_that_is_not_here_is_known_by_its_architecture(tmp_path):
    assert tuning.choose(file(tmp_path), [DEVICES["sm_90"]], simulated=True).table is not None
    choice = tuning.choose(file(tmp_path), [DEVICES["sm_86"]], simulated=True)
    assert choice.table is None
    assert "this is sm_86" in choice.says


def test_two_tables_are_too_many(tmp_path, monkeypatch):
    monkeypatch.setenv("PYLLM_ROUTES", "x")
    with pytest.raises(ConfigError, match="are given together"):
        tuning.choose(file(tmp_path), [HERE])
