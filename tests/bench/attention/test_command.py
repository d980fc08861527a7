"""``pyllm bench attention`` as it is typed."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from pyllm import models
from pyllm.bench.command import app
from pyllm.errors import ConfigError, UnsupportedError


def run(*args):
    return CliRunner().invoke(app, ["attention", "--rounds", "1", "--cold", "1", *map(str, args)])


def test_a_table_for_machines(tmp_path):
    picture = tmp_path / "a.svg"
    done = run("--head", "64/64", "--heads", "8/2", "--n-q", "1,2", "--n-kv", "256,512", "-ctk", "f16,q8_0", "-o", picture)
    assert done.exit_code == 0, done.output
    columns, *rows = (line.split("\t") for line in done.stdout.splitlines())
    assert columns[:4] == ["node", "kernel", "µs", "GB/s"]
    assert len(rows) == 2 * 2 * 2
    assert all(len(row) == len(columns) and float(row[2]) > 0 for row in rows)
    assert "upstream  this device has no routes" in done.stderr
    drawn = picture.read_text()
    # A roofline, and a panel for each number that has several values.
    assert 'id="axes_3"' in drawn
    assert 'id="axes_4"' not in drawn


def test_json(tmp_path):
    shapes = tmp_path / "shapes"
    shapes.write_text("64 64 2 4 256 1 1 q8_0\n")
    done = run("--shapes", shapes, "--against", "upstream", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["measured_on"].startswith("CPU: ")
    assert report["rates"]["copied"] > 0
    (result,) = report["results"]
    assert (result["node"]["type_k"], result["bytes"]) == ("q8_0", 2 * 256 * 2 * 64 * 34 // 32)
    ours, upstream = result["timings"]
    assert ours["error"] < 5e-4
    assert upstream["refusal"]


def test_a_route_may_be_named():
    done = run("--head", "64/64", "--n-kv", "256", "--route", "verify", "--against", "", "--json")
    assert [one["refusal"] for result in json.loads(done.stdout)["results"] for one in result["timings"]] == ["this device has no routes"] * 9


def test_the_nodes_of_a_model():
    done = run("-m", models.make("llama"), "-c", 512, "-ub", 64, "--against", "", "-ctk", "f16,q8_0")
    assert done.exit_code == 0, done.output
    rows = done.stdout.splitlines()[1:]
    assert len(rows) == 4
    assert "(target global, decode)" in done.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--head", "1/2/3"], "--head is `1/2/3`"),
        (["--n-q", "0"], "--n-q is `0`"),
        (["--n-kv", "1,,2"], "--n-kv is `1,,2`"),
        (["--device", "CUDA99"], "there is no device `CUDA99`"),
        (["--against", "vllm"], "`vllm` is nothing"),
        (["--route", "fast"], "route `fast` is not known"),
        (["-c", "512"], "flags of a model"),
        (["-np", "2"], "flags of a model"),
        (["--tune", "t.json", "--json"], "--json is given with --tune"),
        (["--tune", "t.json", "-o", "a.svg"], "--out is given with --tune"),
        (["--tune", "none/t.json"], "there is no folder"),
        (["-o", "none/a.svg"], "there is no folder"),
        (["-m", "a.gguf", "--shapes", "b"], "together"),
        (["-m", "a.gguf", "--heads", "8/2"], "--heads is for nodes in numbers"),
        (["--heads", "7/2"], "do not divide"),
    ],
)
def test_mistakes(args, says):
    done = run(*args)
    assert isinstance(done.exception, ConfigError)
    assert says in done.exception.message


def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("pyllm.bench.attention.measure.measure", lambda *_args, **_flags: pytest.fail("it was measured"))
    done = run("-o", tmp_path / "a.pdf")
    assert isinstance(done.exception, ConfigError)
    assert ".png or .svg" in done.exception.message


def test_nothing_to_draw(tmp_path):
    done = run("--head", "64/64", "--n-kv", "256", "--route", "verify", "--against", "", "-o", tmp_path / "a.svg")
    assert isinstance(done.exception, UnsupportedError)
    assert "nothing to draw" in done.exception.message


def test_shapes_that_do_not_fit_are_left_out(tmp_path):
    shapes = tmp_path / "shapes"
    shapes.write_text("64 64 2 4 256 1 1 f16\n64 64 64 1 1073741824 1 4096 f16\n")
    done = run("--shapes", shapes, "--against", "")
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == 2
    assert "skipped   64/64 heads 64/64 n_q 1 n_kv 1073741824 f16/f16 4096 streams" in done.stderr


def test_a_wrong_result_is_an_error(monkeypatch):
    monkeypatch.setattr("pyllm.bench.attention.measure.WRONG", 0.0)
    done = run("--head", "64/64", "--heads", "8/2", "--n-kv", "256", "-ctk", "q4_0", "--against", "")
    assert done.exit_code == 1
    assert "a wrong result" in done.stderr


def test_tuning_needs_a_gpu(tmp_path, monkeypatch):
    done = run("--tune", tmp_path / "t.json", "--head", "64/64")
    assert isinstance(done.exception, UnsupportedError)
    assert "CPU is no CUDA or HIP device" in done.exception.message
    assert not (tmp_path / "t.json").exists()
    monkeypatch.setenv("PYLLM_ROUTES", "another.txt")
    done = run("--tune", tmp_path / "t.json")
    assert isinstance(done.exception, ConfigError)
    assert "PYLLM_ROUTES names `another.txt`" in done.exception.message
