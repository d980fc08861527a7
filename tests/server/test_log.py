"""The lines of a log that tell why a server ended."""

from pyllm.server.log import exit_reason, telling_lines

ABORT = """\
0.00.1 I srv load_model: loading model 'a.gguf'
0.00.2 E llama_init_from_model: failed: dflash requires ctx_other (this warning is normal during memory fitting)
src/llama-context.cpp:1787: GGML_ASSERT(n_ubatch >= n_tokens) failed
warning: File "python-gdb.py" auto-loading has been declined
[Thread debugging using libthread_db enabled]
#0  0x00007f in __GI___wait4 (pid=1) at wait4.c:30
#1  0x00007f in ggml_print_backtrace () from libggml-base.so
[Inferior 1 (process 5) detached]
"""


def test_the_assertion_is_found_among_frames():
    assert telling_lines(ABORT.splitlines()) == ["src/llama-context.cpp:1787: GGML_ASSERT(n_ubatch >= n_tokens) failed"]


def test_without_a_telling_line_the_last_ones_are_shown():
    assert telling_lines(["a", "", "b", "c"], 2) == ["b", "c"]
    assert telling_lines([]) == []


def test_how_a_process_ended():
    assert exit_reason(3) == "exit code 3"
    assert exit_reason(-6) == "signal SIGABRT"
    assert exit_reason(-63) == "signal 63"
