"""The file that a dying process leaves."""

from __future__ import annotations

import os

from pyllm._ffi.door import check, lib


def enable_crash_report(folder: str | os.PathLike[str], about: str = "") -> None:
    """Leave a report when this process dies below Python.

    That is: by an assertion of upstream, a C++ exception that nobody catches, SIGSEGV, SIGBUS, SIGFPE, SIGILL or SIGABRT. The file
    ``pyllm-crash-<pid>-<UTC time>.txt`` in ``folder`` then holds versions, ``about`` (what runs: settings, as text), the signal, the last
    batches, attention nodes with their routes, log lines and a backtrace; its path is the last thing on stderr. The process ends as it
    would have: core dumps, and a ``faulthandler`` enabled before or after, still do their work.

    A second call changes folder and text. Nothing is written, and no signal is touched, without this call.

    Raises:
        NotFoundError: the folder does not exist or cannot be written.
    """
    check(lib.pyllm_crash_report_enable(os.fsencode(folder), about.encode()))


def disable_crash_report() -> None:
    """Give the signals back to those who handled them before. Silent when no report was enabled."""
    lib.pyllm_crash_report_disable()
