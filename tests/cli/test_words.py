"""What the program says: help pages, and one clear error for each mistake."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from pyllm import models

REPRO = Path(__file__).parents[2] / "repro"


@pytest.mark.parametrize(
    "command",
    ["", "run", "serve", "repro", "repro run", "repro list", "models", "models list", "models make", "doctor"],
    ids=lambda command: command.replace(" ", "-") or "pyllm",
)
def test_help(pyllm, snapshot, command):
    outcome = pyllm(*command.split(), "--help")
    assert (outcome.code, outcome.err) == (0, "")
    snapshot(f"help-{command.replace(' ', '-') or 'pyllm'}", outcome)


@pytest.mark.parametrize(
    ("name", "args", "code"),
    [
        ("unknown-command", ["rnu"], 2),
        ("unknown-subcommand", ["models", "mkae"], 2),
        ("unknown-option", ["repro", "run", "--aginst", "x"], 2),
        ("missing-option", ["serve", "--spec", "mtp"], 2),
        ("not-a-number", ["run", "m.gguf", "x", "-n", "many"], 2),
        ("no-prompt", ["run", "m.gguf"], 1),
        ("unknown-spec", ["run", "m.gguf", "x", "--spec", "mpt"], 1),
        ("depth-without-spec", ["run", "m.gguf", "x", "--n-max", "2"], 1),
        ("missing-model", ["run", "m.gguf", "x"], 1),
        ("unknown-recipe", ["models", "make", "gema4"], 1),
        ("unwritable-model", ["models", "make", "llama", "-o", "/proc/none/x.gguf"], 1),
        ("unknown-scenario", ["repro", "run", "reports/003-beelama-24-dflash-slots"], 1),
        ("unknown-level", ["repro", "run", "--level", "servr"], 1),
        ("unknown-target", ["repro", "run", "reports/000", "--against", "/nowhere/llama-server"], 1),
        ("nobody-there", ["repro", "run", "reports/000", "--against", "http://127.0.0.1:9"], 1),
        ("serve-missing-model", ["serve", "-m", "m.gguf"], 1),
        ("serve-stray", ["serve", "-m", "m.gguf", "n.gguf"], 1),
        ("serve-control-without-spec", ["serve", "-m", "m.gguf", "--no-depth-control"], 1),
    ],
)
def test_mistakes(pyllm, snapshot, name, args, code):
    outcome = pyllm(*args)
    assert outcome.code == code
    assert outcome.out == ""
    snapshot(f"error-{name}", outcome)


def test_files_that_are_no_models(pyllm, snapshot, tmp_path):
    (tmp_path / "text.gguf").write_text("not a model")
    (tmp_path / "cut.gguf").write_bytes(models.make("llama").read_bytes()[:5000])
    snapshot("error-not-gguf", pyllm("run", "text.gguf", "x"))
    cut = pyllm("run", "cut.gguf", "x")
    assert cut.code == 1
    assert cut.err.startswith("error: ")
    assert "hint: " in cut.err


def test_serve_checks_before_it_starts(pyllm, snapshot, tmp_path):
    llama, drafter = (
        models.make("llama", tmp_path / "llama.gguf"),
        models.make("llama-dflash", tmp_path / "drafter.gguf"),
    )
    snapshot("error-serve-no-heads", pyllm("serve", "-m", llama, "--spec", "mtp"))
    snapshot("error-serve-no-block-drafter", pyllm("serve", "-m", llama, "-md", llama, "--spec", "dflash"))
    snapshot("error-serve-batch", pyllm("serve", "-m", llama, "-md", drafter, "--spec", "dflash", "-np", "8", "-b", "32"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        snapshot("error-serve-port", pyllm("serve", "-m", llama, "--port", taken.getsockname()[1]))


def test_a_defect_is_told_in_short(pyllm, tmp_path):
    # A module of that name in front of the real one stands for any defect.
    (tmp_path / "sitecustomize.py").write_text("import pyllm.config\npyllm.config.SpecConfig.of = None\n")
    outcome = pyllm("run", "m.gguf", "x", "--spec", "mtp", PYTHONPATH=str(tmp_path))
    assert outcome.code == 70
    assert outcome.err.startswith("error: internal error: TypeError: ")
    assert "Traceback" not in outcome.err
    assert "Traceback" in pyllm("run", "m.gguf", "x", "--spec", "mtp", PYTHONPATH=str(tmp_path), PYLLM_TRACEBACK="1").err


def test_version(pyllm):
    from pyllm import __version__  # noqa: PLC0415 - the native library is part of what is tested

    assert pyllm("--version").out == f"pyllm {__version__}\n"


def test_lists(pyllm, snapshot):
    reports = pyllm("repro", "list", PYLLM_REPRO=str(REPRO / "reports"))
    snapshot("repro-list", reports)
    listed = json.loads(pyllm("repro", "list", "--json").out)
    assert {line.split("\t")[0] for line in reports.out.splitlines()} <= {scenario["name"] for scenario in listed}
    assert [line.split("\t")[0] for line in pyllm("models", "list").out.splitlines()] == [recipe.name for recipe in models.recipes()]
    assert [recipe["name"] for recipe in json.loads(pyllm("models", "list", "--json").out)] == [recipe.name for recipe in models.recipes()]


def test_models_make(pyllm, tmp_path):
    made = pyllm("models", "make", "llama", "-o", "a.gguf")
    assert (made.code, made.out, made.err) == (0, "a.gguf\n", "")
    assert (tmp_path / "a.gguf").read_bytes()[:4] == b"GGUF"
    described = json.loads(pyllm("models", "make", "llama", "--json").out)
    assert described["bytes"] == (tmp_path / "a.gguf").stat().st_size


def test_doctor(pyllm):
    good = pyllm("doctor")
    assert (good.code, good.err) == (0, "")
    names = [line.split("  ")[0] for line in good.out.splitlines()]
    assert names[:5] == ["pyllm", "native library", "build", "threads", "KV types"]
    assert {"device", "server", "cache"} <= set(names)
    report = json.loads(pyllm("doctor", "--json").out)
    assert report["ok"]
    assert report["server"]["version"] == report["version"]


def test_doctor_finds_a_foreign_or_missing_server(pyllm, fake_binary):
    foreign = pyllm("doctor", PYLLM_SERVER=str(fake_binary))
    assert foreign.code == 1
    assert "is not a pyllm-server" in foreign.err
    assert "hint: unset PYLLM_SERVER" in foreign.err
    missing = json.loads(pyllm("doctor", "--json", PYLLM_SERVER="/nowhere").out)
    assert not missing["ok"]
    assert missing["problems"][0]["what"] == "server"
