"""The decode benchmark: both sides, same tokens, a ratio."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from pyllm import models
from pyllm.bench.command import app
from pyllm.bench.decode import Workload, measure, prompts
from pyllm.config import EngineConfig
from pyllm.errors import ConfigError
from pyllm.server.binary import find_server


def test_prompts_share_no_prefix() -> None:
    rows = [tuple(row) for salt in range(3) for row in prompts(Workload(8, 16, 4, 1), 512, salt)]
    assert len({row[0] for row in rows}) > 20
    assert len(set(rows)) == 24
    assert all(259 <= token < 512 for row in rows for token in row)


def test_only_decoding_is_timed() -> None:
    model, work = models.make("llama", family="successor"), Workload(2, 200, 16, 2, decoding=True)
    config = EngineConfig(model=model, slots=2, ctx=1024, kv_types="q8_0")
    result = measure(config, work, find_server(), lambda _: None)
    assert result.same_tokens
    assert 0 < result.engine_range[0] <= result.engine
    # Over a prompt of 200 tokens, 16 generated ones take the smaller part of the time: left out, the rate is much higher.
    whole = measure(config, Workload(2, 200, 16, 2), find_server(), lambda _: None)
    assert result.engine > whole.engine
    assert result.server > whole.server


def test_both_sides_write_the_same() -> None:
    arguments = ["decode", "-m", str(models.make("llama", family="successor")), "-md", str(models.make("llama-dflash", family="successor"))]
    done = CliRunner().invoke(app, [*arguments, "--spec", "dflash", "-np", "2", "--rounds", "2", "-n", "12", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert [result["speculation"] for result in report["results"]] == [False, True]
    for result in report["results"]:
        assert result["same_tokens"]
        low, high = result["ratio_range"]
        assert low <= result["ratio"] <= high
        assert low <= result["engine"] / result["server"] <= high or result["rounds"] != 1
        assert result["engine_range"][0] <= result["engine"] <= result["engine_range"][1]
    assert report["results"][1]["acceptance"] > 0.9
    assert report["upstream"] == "0c1e57098"


def test_a_workload_that_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="do not fit a slot of 256"):
        measure(EngineConfig(model=models.make("llama"), ctx=256), Workload(1, 200, 100, 1), find_server(), lambda _: None)
