"""``pyllm routes explain``: the reported shapes on the reported devices, in text, JSON and pictures, and one clear error for each mistake."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import pyllm as package
from pyllm import models
from pyllm._ffi import devices, kernels
from pyllm.routes import tuning
from pyllm.routes.devices import DEVICES
from pyllm.routes.trace import write_trace
from pyllm.routes.tuning import Measured
from tests.conftest import prompt_tokens

NODE = ["routes", "explain", "--head", "512/512", "--heads", "8/2", "--n-q", "3", "--n-kv", "4096"]


def test_help(pyllm, snapshot):
    outcome = pyllm("routes", "explain", "--help")
    assert (outcome.code, outcome.err) == (0, "")
    snapshot("help-routes-explain", outcome)


@pytest.mark.parametrize(
    ("name", "model", "draft", "flags"),
    [
        # The flags as reported; what they do not say about attention is left out.
        (
            "000",
            "gemma4",
            "gemma4-assistant",
            (
                "--device sm_87 --spec-type draft-mtp --spec-draft-n-max 2 --ctx-size 16384 --parallel 1 --batch-size 128 --ubatch-size 128 "
                "--cache-type-k q4_0 --swa-full"
            ),
        ),
        ("001", "gemma4", "gemma4-assistant", "--device sm_120,sm_86 --spec-type mtp --spec-draft-n-max 6 -c 4096"),
        (
            "002",
            "gemma4-31b",
            "gemma4-31b-assistant",
            "--device gfx1100,gfx1100 --spec-type draft-mtp --spec-draft-n-max 10 --ctx-size 32768 -np 1 -sm tensor -ts 1,1 -ctk f16 -ctv f16 -b 2048 -ub 512",
        ),
        ("004", "nemotron-h-moe", None, "--device sm_121 --spec-type draft-mtp --spec-draft-n-max 2 -ctk q8_0 -ctv q8_0 -c 4096"),
    ],
)
def test_reports(*, pyllm, snapshot, name, model, draft, flags):
    files = ["-m", models.make(model), *(["-md", models.make(draft)] if draft else [])]
    outcome = pyllm("routes", "explain", *files, *flags.split())
    assert outcome.code == 0
    # The reports are about shapes that had no kernel: here each has one of upstream's.
    assert {line.split("\t")[7].split(" ")[0] for line in outcome.out.splitlines()} <= {"vec", "tile", "mma", "or"}
    snapshot(f"routes-explain-{name}", outcome)


def test_a_node_in_numbers(pyllm, snapshot):
    snapshot("routes-explain-node", pyllm(*NODE, "-ctk", "q8_0", "--device", "rtx3090, gfx11", "--all"))


def test_json(pyllm):
    found = json.loads(pyllm(*NODE, "--device", "sm_87,gfx1100", "--all", "--json").out)
    assert [decision["device"] for decision in found] == ["sm_87", "gfx1100"]
    assert all(
        {decision["route"], *(one["route"] for one in decision["skipped"])} == {"vec", "tile", "mma", "sparse", "verify", "reference"} for decision in found
    )
    flags = ["--device", "sm_61,sm_86", "--spec", "mtp", "--n-max", "2", "-np", "3", "-c", "6144"]
    plans = json.loads(pyllm("routes", "explain", "-m", models.make("qwen35"), *flags, "--json").out)
    assert [plan["devices"] for plan in plans] == [["sm_61"], ["sm_86"]]
    assert plans[0]["speculation"] == {"by": "heads", "depth": 2}
    verify = next(entry for entry in plans[1]["entries"] if entry["phase"] == "verify")
    assert (verify["layers"], verify["node"]["n_q"], verify["node"]["streams"], verify["node"]["n_kv"]) == ([3], 3, 3, 2048)
    assert verify["decision"]["route"] == "mma"


def test_a_recorded_trace(pyllm, tmp_path):
    with package.LLM(models.make("nemotron-h"), ctx=256, flash_attn="on", threads=1, trace=True) as llm:
        llm.generate(prompt_tokens(0, 20), max_tokens=3, temperature=0)
        write_trace(tmp_path / "trace.json", llm.attention_nodes())
    outcome = pyllm("routes", "explain", "--trace", "trace.json", "--device", "sm_121")
    assert outcome.code == 0
    assert [line.split()[1:] for line in outcome.out.splitlines() if line.startswith("node")] == [
        # A recurrent model's prompt is interrupted before its last token, for a checkpoint.
        ["128/128", "heads", "32/2", "n_q", "19", "n_kv", "256", "f16/f16"],
        ["128/128", "heads", "32/2", "n_q", "1", "n_kv", "256", "f16/f16"],
    ]


def test_a_forced_route_says_what_it_cannot_run(pyllm, snapshot):
    forced = pyllm("routes", "explain", "-m", models.make("gemma4"), "-c", "4096", "--device", "sm_87", "--force-route", "decode=vec")
    assert forced.code == 1
    snapshot("routes-explain-forced", forced)
    assert "because   forced" in pyllm(*NODE, "--device", "sm_87", "--force-route", "tile").out


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_picture(pyllm, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    outcome = pyllm("routes", "explain", "-m", models.make("gemma4"), "--device", "sm_87", "-o", f"plan.{suffix}")
    assert outcome.code == 0
    assert f"picture   plan.{suffix}" in outcome.err
    assert outcome.out.startswith("sm_87\ttarget\t0-2,4\twindow\tprefill\t")
    assert (tmp_path / f"plan.{suffix}").stat().st_size > 5000


MODEL = ["routes", "explain", "-m", "MODEL", "--device", "sm_86"]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("nothing", ["routes", "explain"]),
        ("no-heads", ["routes", "explain", "--head", "128", "--device", "sm_86"]),
        ("stray-draft", ["routes", "explain", "-md", "d.gguf"]),
        ("two-sources", [*NODE, "-m", "m.gguf"]),
        ("model-flag", [*NODE, "--device", "sm_86", "-np", "4"]),
        ("node-flag", [*MODEL, "--n-q", "4"]),
        ("unknown-device", [*NODE, "--device", "sm_68"]),
        ("unknown-type", [*NODE, "--device", "sm_86", "-ctk", "q8_1"]),
        ("unknown-route", [*NODE, "--device", "sm_86", "--force-route", "mmaa"]),
        ("unknown-phase", [*MODEL, "--force-route", "decod=mma"]),
        ("unknown-mask", [*NODE, "--device", "sm_86", "--mask", "steam"]),
        ("phase-of-a-node", [*NODE, "--device", "sm_86", "--force-route", "decode=mma"]),
        ("route-cannot", [*NODE, "--device", "sm_86", "--force-route", "vec"]),
        ("not-a-pair", ["routes", "explain", "--head", "128x128", "--heads", "8/2", "--device", "sm_86"]),
        ("heads-do-not-divide", ["routes", "explain", "--head", "128", "--heads", "8/3", "--device", "sm_86"]),
        ("no-rows", [*NODE, "--n-kv", "0", "--device", "sm_86"]),
        ("too-many-seen", [*NODE, "--n-kv-max", "5000", "--device", "sm_86"]),
        ("view-of-another-type", [*NODE, "--view", "-ctk", "q8_0", "--device", "sm_86"]),
        ("part-of-a-block", ["routes", "explain", "--head", "80", "--heads", "8", "-ctk", "q4_0", "--device", "sm_86"]),
        ("odd-alignment", [*NODE, "--align", "3", "--device", "sm_86"]),
        ("alibi-without-mask", [*NODE, "--alibi", "--mask", "none", "--device", "sm_86"]),
        ("depth-without-drafter", [*MODEL, "--n-max", "2"]),
        ("no-prediction-heads", [*MODEL, "--spec", "mtp"]),
        ("one-device", [*MODEL, "-sm", "tensor"]),
        ("not-shares", [*MODEL, "-sm", "tensor", "-ts", "one,two"]),
        ("unknown-split", [*MODEL, "-sm", "tensr"]),
        ("picture-format", [*MODEL, "-o", "plan.pdf"]),
        ("picture-folder", [*MODEL, "-o", "none/plan.svg"]),
        ("picture-of-a-node", [*NODE, "--device", "sm_86", "-o", "plan.svg"]),
        ("missing-trace", ["routes", "explain", "--trace", "none.json", "--device", "sm_86"]),
        ("missing-model", ["routes", "explain", "-m", "none.gguf", "--device", "sm_86"]),
    ],
)
def test_mistakes(pyllm, snapshot, name, args):
    outcome = pyllm(*(models.make("llama") if arg == "MODEL" else arg for arg in args))
    assert (outcome.code, outcome.out) == (1, "")
    snapshot(f"error-explain-{name}", outcome)


def test_no_device(pyllm, snapshot):
    if any(device.kind == "gpu" for device in devices()):
        pytest.skip("there is a GPU here")
    snapshot("error-explain-no-device", pyllm(*NODE))


@pytest.fixture
def tuning_file(tmp_path):
    """A tuning that says: on an H200, `verify` is faster from 4096 KV rows on."""
    here = replace(DEVICES["sm_90"], products="NVIDIA H200")
    measured = [Measured("128/128", "q8_0/q8_0", 4, 1, 1, n_kv, 10.0, 9.0 if n_kv < 4096 else 50.0, "vec") for n_kv in (1024, 4096)]
    path = tmp_path / "tuning.json"
    tuning.write(tuning.made_here(here, "580.1", measured), path)
    return path


@pytest.mark.parametrize(
    ("device", "n_kv", "route", "says"),
    [
        ("sm_90", 4096, "verify", "measured on NVIDIA H200, driver 580.1, pyllm"),
        ("sm_90", 1024, "vec", "taken to be that device"),
        ("sm_86", 4096, "vec", "is not used: it was measured on NVIDIA H200, and this is sm_86; the built-in rows decide"),
    ],
)
def test_a_tuning(*, pyllm, tuning_file, device, n_kv, route, says):
    node = ["--head", "128/128", "--heads", "32/8", "-ctk", "q8_0", "-ctv", "q8_0", "--n-kv", str(n_kv)]
    done = pyllm("routes", "explain", *node, "--device", device, "--tuning", str(tuning_file), "--json")
    assert done.code == 0
    assert says in done.err
    assert json.loads(done.out)[0]["route"] == route


def test_the_table_of_a_tuning(pyllm, tuning_file):
    done = pyllm("routes", "table", "--tuning", str(tuning_file))
    assert done.code == 0
    assert done.out.splitlines()[1] == "row verify 0 0 because measured faster on NVIDIA H200"
    old = tuning_file.with_name("old.json")
    old.write_text(tuning_file.read_text().replace(f'"kernels": "{kernels()}"', '"kernels": "abc"'))
    done = pyllm("routes", "table", "--tuning", str(old))
    assert done.code == 1
    assert "is not of this version: it was measured with kernels abc" in done.err
    done = pyllm("routes", "table", "a-table", "--tuning", str(tuning_file))
    assert done.code == 1
    assert "are given together" in done.err


@pytest.mark.parametrize(("text", "says"), [("{", "is no JSON"), ("{}", "is of format `None`, not `pyllm-tuning 1`")])
def test_a_tuning_that_is_none(pyllm, tmp_path, text, says):
    path = tmp_path / "tuning.json"
    path.write_text(text)
    done = pyllm("routes", "explain", "--head", "64/64", "--heads", "8/8", "--device", "sm_90", "--tuning", str(path))
    assert done.code == 1
    assert says in done.err
    assert "hint: make it anew on this device: `pyllm bench attention --tune FILE`" in done.err
