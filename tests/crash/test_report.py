"""A process that dies leaves one whole report, and ends as it would have."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from pyllm import models
from pyllm._ffi import crash, upstream_commit
from pyllm._version import __version__
from pyllm.errors import NotFoundError
from pyllm.server.binary import find_server
from pyllm.server.client import ServerClient
from pyllm.server.process import ServerProcess
from tests.conftest import prompt_tokens
from tests.crash.report import ENABLE, Report, die, send
from tests.crash.symbol import offset

READ_NULL = "ctypes.string_at(0)"
#: Each turn takes a frame of ctypes and one of the interpreter: the stack of the main thread ends, not Python's count of frames.
OVERFLOW = """
sys.setrecursionlimit(2**30)
call = ctypes.CFUNCTYPE(None)(lambda: call())
call()
"""
#: What GGML_ASSERT calls; the library hides it.
ASSERTION = """
base = next(int(line.split("-")[0], 16) for line in open("/proc/self/maps") if line.rstrip().endswith("libpyllm.so"))
ggml_abort = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p)(base + OFFSET)
ggml_abort(b"made.cpp", 7, b"GGML_ASSERT(made) failed")
"""
UNCAUGHT = """
ctypes.CDLL("libstdc++.so.6")._ZSt20__throw_length_errorPKc(b"seven is too long")
"""
TERMINATE = """
ctypes.CDLL("libstdc++.so.6")._ZSt9terminatev()
"""
#: All of them are hit while the first is at its report.
MANY_THREADS = """
import time
threads = [threading.Thread(target=time.sleep, args=(60,)) for _ in range(16)]
for thread in threads: thread.start()
for thread in threads: signal.pthread_kill(thread.ident, signal.SIGSEGV)
for thread in threads: thread.join()
"""


@pytest.mark.parametrize(
    ("how", "number", "message"),
    [
        (READ_NULL, signal.SIGSEGV, "none"),
        (OVERFLOW, signal.SIGSEGV, "none"),
        ("os.abort()", signal.SIGABRT, "none"),
        (send(signal.SIGSEGV), signal.SIGSEGV, "none"),
        (send(signal.SIGBUS), signal.SIGBUS, "none"),
        (send(signal.SIGFPE), signal.SIGFPE, "none"),
        (send(signal.SIGILL), signal.SIGILL, "none"),
        (send(signal.SIGABRT), signal.SIGABRT, "none"),
        (UNCAUGHT, signal.SIGABRT, "uncaught exception: seven is too long"),
        (TERMINATE, signal.SIGABRT, r"std::terminate was called"),
    ],
    ids=["null", "overflow", "abort", "SEGV", "BUS", "FPE", "ILL", "ABRT", "exception", "terminate"],
)
def test_every_way_to_die(llama_path, tmp_path, how, number, message):
    death = die(llama_path, tmp_path, how)
    assert death.signal == number, death.stderr
    report = death.report
    assert re.fullmatch(message, report.head["message"])
    assert report.head["signal"].startswith(f"{number.name} ({int(number)}), code ")
    assert report.head["about"] == r"slots: 2\nmodel: llama"
    assert report.head["build"].startswith(f"pyllm {__version__}, llama.cpp {upstream_commit()}, compiler ")
    assert f"pyllm-crash-{report.head['process']}-{re.sub('[-:]', '', report.head['time'])}.txt" == death.files[0].name
    assert abs(time.time() - death.files[0].stat().st_mtime) < 600
    assert any("libpyllm" in frame or "python" in frame or "libc" in frame for frame in report.sections["backtrace"])
    last = [line for line in death.stderr.splitlines() if line][-1]
    assert last.startswith(f"hint: crash report written to {death.files[0]}: ")


def test_an_assertion_of_upstream(llama_path, tmp_path):
    maps = Path("/proc/self/maps")
    loaded = [line.split()[-1] for line in maps.read_text().splitlines() if line.endswith("/libpyllm.so")] if maps.exists() else []
    place = offset(Path(loaded[0]), "ggml_abort") if loaded else None
    if place is None:
        pytest.skip("libpyllm was stripped of its table of symbols, or is no ELF file")
    death = die(llama_path, tmp_path, ASSERTION.replace("OFFSET", str(place)))
    assert death.signal == signal.SIGABRT
    assert death.report.head["message"] == "made.cpp:7: GGML_ASSERT(made) failed"
    assert "error: this process ends by SIGABRT: made.cpp:7: GGML_ASSERT(made) failed\n" in death.stderr


def test_the_last_batch(llama_path, tmp_path):
    *_, decode, first, second = die(llama_path, tmp_path, READ_NULL).report.sections["batches"]
    assert decode.endswith("target decode of llama, done: 8 tokens")
    assert first == "    sequence 0: 5 tokens, positions 0 to 4, 1 outputs"
    assert second == "    sequence 1: 3 tokens, positions 0 to 2, 3 outputs"


def test_the_attention_nodes(llama_path, tmp_path):
    death = die(llama_path, tmp_path, READ_NULL)
    issued = json.loads(death.stdout)
    lines = death.report.sections["attention"][-len(issued) :]
    assert issued
    for line, (name, q, k, v) in zip(lines, issued, strict=True):
        assert f" CPU verify cpu `{name}`, Q f32 {q} strides [" in line
        assert f", K f16 {k} strides [" in line
        assert f", V f16 {v} strides [" in line


def test_the_rings_keep_the_last(llama_path, tmp_path):
    again = """
for pos in range(5, 105):
    with Batch(context) as batch:
        batch.add(0, pos, [300], "last")
        context.decode(batch)
ctypes.string_at(0)
"""
    report = die(llama_path, tmp_path, again).report
    positions = [line.split("positions ")[1] for line in report.sections["batches"] if "positions" in line]
    assert positions == [f"{pos} to {pos}, 1 outputs" for pos in range(101, 105)]
    assert len(report.sections["attention"]) == 32
    assert all(" CPU decode cpu " in line for line in report.sections["attention"])


def test_the_log(llama_path, tmp_path):
    """Progress dots come piece by piece, and are one line."""
    report = die(llama_path, tmp_path, READ_NULL, before=f"{ENABLE}\nmodel = Model(sys.argv[1])").report
    lines = [re.sub(r"^ +\d+\.\d{3} s before, ", "", line) for line in report.sections["log"]]
    assert 3 < len(lines) <= 32
    assert all(re.match(r"[ DIWE] \S", line) for line in lines)
    assert not any(re.fullmatch(r"[ I] \.{1,20}", line) for line in lines)


def test_no_report_after_a_normal_end(llama_path, tmp_path):
    death = die(llama_path, tmp_path, "sys.exit(3)")
    assert (death.returncode, death.stderr, death.files) == (3, "", ())


@pytest.mark.parametrize("before", ["", f"{ENABLE}\ncrash.disable_crash_report()"], ids=["never enabled", "disabled"])
def test_no_report_unless_enabled(llama_path, tmp_path, before):
    death = die(llama_path, tmp_path, READ_NULL, before=before)
    assert death.signal == signal.SIGSEGV
    assert (death.stderr, death.files) == ("", ())


@pytest.mark.parametrize("turn", range(3))
def test_threads_that_die_at_once(llama_path, tmp_path, turn):
    death = die(llama_path, tmp_path, MANY_THREADS)
    assert death.signal == signal.SIGSEGV
    assert death.report.head["signal"].startswith("SIGSEGV")
    assert death.stderr.count("error: this process ends by") == 1


def test_a_folder_that_is_gone(llama_path, tmp_path):
    folder = tmp_path / "reports"
    folder.mkdir()
    death = die(llama_path, folder, "os.rmdir(folder)\nctypes.string_at(0)")
    assert death.signal == signal.SIGSEGV
    assert f"hint: no crash report: {folder}/pyllm-crash-" in death.stderr
    assert "(no such folder)" in death.stderr


def test_a_folder_that_cannot_be(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for folder in (tmp_path / "missing", file):
        with pytest.raises(NotFoundError, match="for crash reports") as caught:
            crash.enable_crash_report(folder)
        assert caught.value.hint == "name a folder that exists and can be written"


@pytest.mark.parametrize(
    ("before", "flags"),
    [
        (ENABLE, ("-X", "faulthandler")),
        (f"{ENABLE}\nfaulthandler.enable()", ()),
        (f"{ENABLE}\nfaulthandler.enable()\ncrash.disable_crash_report()\n{ENABLE}", ()),
    ],
    ids=["before", "after", "both ways"],
)
@pytest.mark.parametrize("how", [READ_NULL, OVERFLOW, "os.abort()"], ids=["null", "overflow", "abort"])
def test_faulthandler_prints_as_well(llama_path, tmp_path, how, before, flags):
    death = die(llama_path, tmp_path, how, before=before, flags=flags)
    assert death.signal == (signal.SIGABRT if how == "os.abort()" else signal.SIGSEGV)
    assert death.report.head["signal"].startswith("SIG")
    assert death.stderr.count("Fatal Python error: ") == 1
    assert 'File "<string>"' in death.stderr


def test_a_child_of_fork_writes_its_own(llama_path, tmp_path):
    how = """
if os.fork() == 0:
    ctypes.string_at(0)
print(os.WTERMSIG(os.wait()[1]))
"""
    death = die(llama_path, tmp_path, how)
    assert death.returncode == 0
    assert death.stdout.splitlines()[-1] == str(int(signal.SIGSEGV))
    assert death.report.head["signal"].startswith("SIGSEGV")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_the_server(tmp_path, number):
    flags = ["-m", str(models.make("llama")), "-c", "512", "-np", "2", "-t", "1", "--spec-type", "ngram-map-k", "--api-key", "s3cret"]
    flags += ["--alias", "it's"]
    with ServerProcess(find_server(), flags, env={"PYLLM_CRASH_DIR": str(tmp_path)}) as server:
        answer = threading.Thread(target=_complete, args=(server.url,))
        answer.start()
        answer.join()
        os.kill(server._process.pid, number)
        assert server.wait(60) == -number
        assert f"hint: crash report written to {tmp_path}/pyllm-crash-" in server.tail(1)[0]
    (file,) = tmp_path.iterdir()
    report = Report.read(file)
    assert report.head["signal"].startswith(f"{number.name} ({int(number)}), code 0, sent by process {os.getpid()}")
    assert report.head["build"].startswith(f"pyllm-server {__version__}, llama.cpp {upstream_commit()}, compiler ")
    assert "CPU : " in report.head["build"]
    assert f"-m {flags[1]} -c 512" in report.head["about"]
    assert "--api-key *** --alias 'it'\\''s' --host" in report.head["about"]
    assert "s3cret" not in file.read_text()
    assert report.sections["batches"][-1].endswith("outputs")
    assert " CPU " in report.sections["attention"][-1]
    assert any("slot" in line for line in report.sections["log"])


def _complete(url: str) -> None:
    with ServerClient(url) as client:
        client._http.headers["Authorization"] = "Bearer s3cret"
        client.completion(prompt_tokens(0, 24), n=8)


@pytest.mark.parametrize(
    ("folder", "warning"),
    [("/nowhere/at/all", "warning: no crash report will be written: folder `/nowhere/at/all` for crash reports: No such file or directory"), ("", None)],
    ids=["missing", "switched off"],
)
def test_a_server_without_reports(folder, warning):
    with ServerProcess(find_server(), ["-m", str(models.make("llama")), "-c", "256", "-t", "1"], env={"PYLLM_CRASH_DIR": folder}) as server:
        told = [line for line in server.tail(2000) if "crash report" in line]
        assert told == ([warning] if warning else [])
        os.kill(server._process.pid, signal.SIGSEGV)
        assert server.wait(60) == -signal.SIGSEGV
        assert "this process ends by" not in "\n".join(server.tail(20))
