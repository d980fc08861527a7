"""Attention on a GPU, by the program that `PYLLM_GPU_TESTS` builds; `PYLLM_ATTENTION_CHECK` names it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from pyllm import models
from pyllm.errors import ServerError
from pyllm.server.binary import find_server
from pyllm.server.client import ServerClient
from pyllm.server.process import ServerProcess

pytestmark = pytest.mark.gpu

SHAPES = Path(__file__).parents[2] / "native/tests/shapes.txt"
#: Slower than upstream by more than this, beyond what two runs of upstream differ, is a defect.
SLOWER = 1.03


@pytest.fixture(scope="module")
def program():
    path = os.environ.get("PYLLM_ATTENTION_CHECK")
    if not path:
        pytest.skip("PYLLM_ATTENTION_CHECK does not name attention-check: build with -DGGML_CUDA=ON -DPYLLM_GPU_TESTS=ON")
    return path


def run(program, *arguments, stdin=None, **environment):
    return subprocess.run([program, *map(str, arguments)], input=stdin, capture_output=True, text=True, check=False, timeout=600, env=os.environ | environment)


@pytest.mark.parametrize("seed", [1, 2])
def test_sweep(program, tmp_path, seed):
    done = run(program, "sweep", seed, 0, 20000, tmp_path / "sweep.json")
    assert done.returncode == 0, done.stdout[-4000:]
    report = json.loads((tmp_path / "sweep.json").read_text())
    assert report["keys"] == 20000
    assert {"vec", "tile", "mma", "sparse", "verify", "reference"} <= {name.removeprefix("forced ") for name in report["routes"]}


def test_verify_without_the_copy_engine(program, tmp_path):
    done = run(program, "sweep", 3, 0, 4000, tmp_path / "sweep.json", "verify", PYLLM_TEST_PIECES="1")
    assert done.returncode == 0, done.stdout[-4000:]
    assert json.loads((tmp_path / "sweep.json").read_text())["routes"]["forced verify"]["keys"] > 500


def faults(program, **environment):
    done = run(program, "faults", **environment)
    lines = done.stdout.splitlines()
    assert lines, done.stderr
    return done.returncode, lines


def test_contradictory_nodes_fail_their_graph(program):
    code, lines = faults(program)
    assert code == 0, "\n".join(lines)
    assert sum("and the next graph runs" in line for line in lines) == 11


def test_fully_masked_rows(program):
    _, lines = faults(program)
    masked = [line for line in lines if "rows that see nothing" in line]
    assert len(masked) == 36
    assert all(line.startswith("ok") for line in masked)


def test_rows_that_the_mask_excludes_are_not_read(program):
    _, lines = faults(program)
    other = [line for line in lines if "rows of other sequences" in line]
    assert len(other) == 8
    assert all(line.startswith("ok") for line in other)


@pytest.mark.parametrize("route", ["mma", "vec", "tile", "verify"])
def test_no_room_means_the_next_route(program, route):
    code, lines = faults(program, PYLLM_TEST_NO_ROOM=route)
    assert any("a kernel without room hands the node on" in line for line in lines)
    assert all(line.startswith("ok") for line in lines if "hands the node on" in line or "next route gives" in line), lines
    assert code in {0, 1}  # forced routes without room fail, which is right


def test_nothing_that_upstream_serves_gets_slower(program, tmp_path):
    done = run(program, "speed", tmp_path / "speed.json", stdin=SHAPES.read_text())
    assert done.returncode == 0, done.stderr
    for one in json.loads((tmp_path / "speed.json").read_text()):
        if one["upstream_us"]:
            slowest = max(one["upstream_us"], one["upstream_again_us"])
            assert one["ours_us"] <= SLOWER * slowest, one


def serve(*flags):
    return ServerProcess(find_server(), ["-m", str(models.make("gemma4")), "-c", "1024", "-ngl", "99", "-fa", "on", "--metrics", *flags])


def test_a_server_runs_attention_on_the_gpu():
    with serve() as process, ServerClient(process.url) as client:
        client.completion([1, 300, 301, 302], n=8)
        counts = {name: count for name, count in client.metrics().items() if "attention_nodes_total" in name}
    assert any('device="CUDA0"' in name for name in counts)
    assert not any('route="cpu"' in name for name in counts)


def test_attention_on_the_cpu_is_an_error(monkeypatch):
    monkeypatch.setenv("PYLLM_TEST_DECLINE_ATTENTION", "1")
    with pytest.raises(ServerError) as caught, serve():
        pass
    assert "would run on the CPU" in f"{caught.value.message}\n{caught.value.hint}"


def test_attention_on_the_cpu_can_be_allowed(monkeypatch):
    monkeypatch.setenv("PYLLM_TEST_DECLINE_ATTENTION", "1")
    with serve("--allow-cpu-attention") as process, ServerClient(process.url) as client:
        client.completion([1, 300, 301, 302], n=8)
        assert any('route="cpu"' in name for name in client.metrics())
