"""What the program does: run, serve, repro."""

from __future__ import annotations

import json
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from pyllm import models
from pyllm.cli.options import speculation
from pyllm.cli.serve import command_flags, controls_depth, plan, read_header, tuned
from pyllm.config import EngineConfig
from pyllm.routes import present, tuning
from pyllm.routes.devices import DEVICES
from pyllm.routes.tablefile import load
from pyllm.routes.tuning import Measured
from pyllm.server.binary import find_server
from pyllm.server.port import free_port


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return models.make("gemma4", folder / "gemma4.gguf"), models.make("gemma4-assistant", folder / "assistant.gguf")


def test_run_streams_the_same_text_with_and_without_drafts(pyllm, pair):
    model, drafter = pair
    plain = pyllm("run", model, "Hello", "-n", "12", "--temp", "0", "-c", "256")
    assert (plain.code, plain.err) == (0, "")
    assert len(plain.out) == 13
    drafted = pyllm(
        "run",
        model,
        "-",
        "-md",
        drafter,
        "--spec",
        "mtp",
        "--n-max",
        "2",
        "-n",
        "12",
        "--temp",
        "0",
        "-c",
        "256",
        "--stats",
        stdin="Hello",
    )
    assert drafted.out == plain.out
    assert "12 generated in" in drafted.err
    assert "drafted tokens accepted" in drafted.err


def test_run_gives_json_and_chats(pyllm, pair):
    done = json.loads(pyllm("run", pair[0], "Hello", "-n", "4", "--temp", "0", "-c", "256", "--chat", "--json").out)
    assert done["object"] == "chat.completion"
    assert done["usage"]["completion_tokens"] == len(done["tokens"]) == 4


def test_ctrl_c_in_the_middle_of_a_generation(start, pair):
    with start("run", pair[0], "Hello", "-n", "100000", "-c", "8192") as running:
        assert running.stdout.read(4)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert err == "interrupted\n"


def test_serve_says_what_runs_and_forwards_ctrl_c(start, pair):
    port = free_port("127.0.0.1")
    flags = (
        "-m",
        pair[0],
        "-md",
        pair[1],
        "--spec",
        "mtp",
        "-np",
        "2",
        "-c",
        "512",
        "--port",
        port,
        "--",
        "--threads",
        "1",
        "--no-warmup",
    )
    with start("serve", *flags) as serving:
        assert serving.stdout.readline() == f"http://127.0.0.1:{port}\n"
        assert httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200
        serving.send_signal(signal.SIGINT)
        _, err = serving.communicate(timeout=30)
    assert serving.returncode == 0
    assert "drafter   draft-mtp" in err
    assert "slots     2, 256 tokens of context each" in err
    assert "a step takes up to 2 × (1 + 3) = 8 tokens" in err
    assert "pyllm-server -m" in err
    assert "--threads 1 --no-warmup --host" in err
    assert "up to 3 tokens, as many as pay" in err
    assert " --depth-control " in err


def test_serve_controls_depths_unless_told_otherwise(pair, fake_binary, capsys):
    """As the engine does; a server that is not ours is not given a flag that it does not know."""
    target, drafter = (read_header(path) for path in pair)

    def told(binary, *, control):
        spec = speculation("mtp", 3, depth_control=control)
        config = EngineConfig(model=pair[0], draft=pair[1], spec=spec)
        controlled = controls_depth(config.spec, binary)
        return "--depth-control" in command_flags(config, 3, controlled=controlled), plan(config, target, drafter, 3, controlled=controlled)[1]

    assert told(find_server(), control=True) == (True, f"drafter   draft-mtp: {drafter.name} (gemma4-assistant), {pair[1]}, up to 3 tokens, as many as pay")
    assert told(find_server(), control=False) == (False, f"drafter   draft-mtp: {drafter.name} (gemma4-assistant), {pair[1]}, up to 3 tokens")
    assert capsys.readouterr().err == ""
    assert not told(fake_binary, control=True)[0]
    assert "is not a pyllm-server, and has no depth control" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, 128 + signal.SIGKILL), (signal.SIGABRT, 128 + signal.SIGABRT)])
def test_serve_tells_when_the_server_dies(start, tmp_path, pair, number, code, fake_binary):  # noqa: PLR0917 - fixtures
    # The fake writes its process number where the test can find it, and then becomes the server.
    named = tmp_path / "named"
    named.write_text(f'#!/bin/sh\necho $$ > "{tmp_path}/pid"\nexec "{fake_binary}" "$@"\n')
    named.chmod(0o755)
    port = free_port("127.0.0.1")
    with start("serve", "-m", pair[0], "--port", port, PYLLM_SERVER=str(named)) as serving:
        assert serving.stdout.readline() == f"http://127.0.0.1:{port}\n"
        subprocess.run(["kill", f"-{int(number)}", (tmp_path / "pid").read_text().strip()], check=True)
        _, err = serving.communicate(timeout=30)
    assert serving.returncode == code
    assert f"ended while serving: signal {number.name}" in err
    assert "hint: run it by hand" in err


def test_serve_tells_when_the_server_does_not_start(pyllm, pair):
    outcome = pyllm("serve", "-m", pair[0], "-c", "256", "--port", free_port("127.0.0.1"), "--", "--bogus")
    assert (outcome.code, outcome.out) == (1, "")
    assert "ended while starting: exit code 1" in outcome.err
    assert "invalid argument: --bogus" in outcome.err


def test_sigterm_ends_serve_and_its_server(start, pair, fake_binary):
    port = free_port("127.0.0.1")
    with start("serve", "-m", pair[0], "--port", port, "--", "--start", "hang", PYLLM_SERVER=str(fake_binary)) as serving:
        # The fake never gets ready: the signal comes while starting.
        assert any(line.startswith("command") for line in serving.stderr)
        serving.send_signal(signal.SIGTERM)
        _, err = serving.communicate(timeout=30)
    assert (serving.returncode, "internal error" in err) == (128 + signal.SIGTERM, False), err
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False)


def test_repro_run_prints_a_line_for_each_level(pyllm, snapshot):
    outcome = pyllm("repro", "run", "reports/004", "--level", "plan", "--level", "engine")
    assert outcome.code == 0
    snapshot("repro-run", outcome)


def test_repro_run_prints_the_nodes_of_a_plan(pyllm, snapshot):
    outcome = pyllm("repro", "run", "reports/002", "--level", "plan", "--nodes")
    assert outcome.code == 0
    snapshot("repro-nodes", outcome)


@pytest.fixture
def lying_binary(fake_binary):
    """A server whose drafter changes the text."""
    binary = fake_binary.with_name("lying-llama-server")
    binary.write_text(f'#!/bin/sh\nexec "{fake_binary}" --answer wrong "$@"\n')
    binary.chmod(0o755)
    return binary


def test_repro_run_fails_with_what_is_needed_to_look_further(pyllm, lying_binary, tmp_path):
    outcome = pyllm("repro", "run", "reports/004", "--against", lying_binary, "--keep-logs", tmp_path / "logs")
    assert outcome.code == 1
    assert outcome.out.splitlines()[0].split("\t")[:3] == ["reports/004-vllm-37754-gqa16-mtp", "server", "fail"]
    for word in ("expected", "got", "command", "target", "--spec-type draft-mtp"):
        assert word in outcome.out
    assert (tmp_path / "logs" / "reports-004-vllm-37754-gqa16-mtp-server.log").exists()


def test_repro_run_gives_json(pyllm, lying_binary):
    outcome = pyllm("repro", "run", "reports/004", "--level", "plan", "--level", "server", "--against", lying_binary, "--json")
    report = json.loads(outcome.out)
    assert outcome.code == 1
    assert report["counts"] == {"pass": 0, "fail": 1, "skipped": 1}
    assert report["verdicts"][1]["failure"]["command"]


def test_a_server_gets_the_table_of_a_tuning(tmp_path, monkeypatch, capsys):
    here = replace(DEVICES["sm_90"], products="NVIDIA H200")
    made = tuning.made_here(here, "580.1", [Measured("128/128", "f16/f16", 1, 1, 1, 256, 1.0, 9.0, "vec")])
    path = tmp_path / "tuning.json"
    tuning.write(made, path)
    with tuned(None) as environment:
        assert environment == {}
    with tuned(path) as environment:
        assert environment == {}
    assert "is not used: there is no GPU here" in capsys.readouterr().err
    monkeypatch.setattr(present, "present_devices", lambda: [here])
    monkeypatch.setattr(tuning, "driver_version", lambda _: "580.1")
    with tuned(path) as environment:
        file = Path(environment["PYLLM_ROUTES"])
        assert load(file.read_text()) == tuning.table(made)
    assert not file.exists()
    assert "measured on NVIDIA H200" in capsys.readouterr().err


def test_run_says_what_came_of_a_tuning(pyllm, pair, tmp_path):
    path = tmp_path / "tuning.json"
    tuning.write(tuning.made_here(DEVICES["sm_90"], "", []), path)
    done = pyllm("run", pair[0], "hello", "-n", "2", "--tuning", str(path))
    assert done.code == 0
    assert "is not used: there is no GPU here; the built-in rows decide" in done.err
    done = pyllm("run", pair[0], "hello", "-n", "2", "--tuning", str(tmp_path / "none"))
    assert done.code == 1
    assert "cannot be read" in done.err
