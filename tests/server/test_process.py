"""A server as a child: started, watched, ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyllm.errors import InvalidArgumentError, ServerError
from pyllm.server import ServerProcess


def _gone(pid):
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        # A container's first process may leave the dead unburied.
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_start_and_stop(fake_binary, tmp_path):
    waits, heard = [], []
    server = ServerProcess(fake_binary, ["--start", "slow"], log=tmp_path / "log", env={"WORD": "1"}, echo=heard.append)
    with server.start(progress=waits.append):
        assert server.alive
        assert server.returncode is None
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert server.command_line.startswith("WORD=1 ")
    assert not server.alive
    assert server.returncode == 0
    assert waits
    assert waits == sorted(waits)
    assert heard[0] == "listening"
    assert heard[-1] == "got SIGTERM"
    assert (tmp_path / "log").read_text().splitlines() == heard
    assert server.stop() == 0


def test_a_port_in_use_is_named(fake_binary):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"port {port} on 127.0.0.1 is in use") as caught:
            ServerProcess(fake_binary, [], port=port)
        assert "--port" in caught.value.hint


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_number_that_is_no_port(fake_binary, port):
    with pytest.raises(InvalidArgumentError, match="is not in"):
        ServerProcess(fake_binary, [], port=port)


def test_an_address_of_another_machine(fake_binary):
    with pytest.raises(ServerError, match="cannot be listened on"):
        ServerProcess(fake_binary, [], host="192.0.2.1")


def test_a_binary_that_exits_at_once(fake_binary):
    with pytest.raises(ServerError) as caught:
        ServerProcess(fake_binary, ["--start", "exit"]).start()
    assert "exit code 3" in caught.value.message
    assert "error: no such model" in caught.value.message
    assert "loading" not in caught.value.message
    assert "run it by hand" in caught.value.hint


def test_a_binary_that_cannot_be_started(tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("\x7fELF nonsense")
    broken.chmod(0o755)
    with pytest.raises(ServerError, match="cannot be started"):
        ServerProcess(broken, []).start()


def test_a_server_that_does_not_get_ready_is_ended(fake_binary):
    server = ServerProcess(fake_binary, ["--start", "hang"])
    with pytest.raises(ServerError, match=r"was not ready after 0\.3 s"):
        server.start(limit=0.3)
    assert not server.alive
    assert server.returncode == -signal.SIGKILL


def test_a_death_in_service_tells_the_signal_and_the_line(fake_binary):
    with ServerProcess(fake_binary, []) as server:
        server.send_signal(signal.SIGKILL)
        assert server.wait(5) == -signal.SIGKILL
        assert "signal SIGKILL" in server.death("while serving").message


def test_signals_are_forwarded(fake_binary):
    with ServerProcess(fake_binary, []) as server, server.forward_signals() as sent:
        os.kill(os.getpid(), signal.SIGINT)
        assert server.wait(5) == 0
        assert sent == [signal.SIGINT]
    assert server.tail(1) == ["got SIGINT"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_no_orphan_when_the_parent_is_killed(fake_binary):
    code = f"""
import os, signal
from pyllm.server import ServerProcess
server = ServerProcess({str(fake_binary)!r}, []).start()
print(server._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    parent = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    assert parent.returncode == -signal.SIGKILL
    assert _gone(int(parent.stdout))
