"""What a server's log says about its end."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_TELLING = re.compile(
    r"GGML_ASSERT|GGML_ABORT|fatal|\berror\b|\bfail|abort|terminate called|what\(\)|exception|invalid|cannot|unable"
    r"|could not|not enough|out of memory| E ",
    re.IGNORECASE,
)
#: Frames of a backtrace, the debugger's talk after the line that matters, and complaints that upstream calls normal.
_NOISE = re.compile(
    r"^\s*#\d+ |^\S+\.so[.\d]*\(|^\S+\([+_].*\) ?\[0x|\[New LWP|Thread debugging|^warning: |ptrace|No stack\."
    r"|The program is not being run|^\[Inferior|^\d+\t|No such file or directory\.$"
    r"|this warning is normal|fitting without it"
)


def telling_lines(lines: Sequence[str], limit: int = 6) -> list[str]:
    """The last lines that tell why a server ended; its last lines of any kind when none does."""
    spoken = [line.rstrip() for line in lines if line.strip() and not _NOISE.search(line)]
    telling = [line for line in spoken if _TELLING.search(line)]
    return (telling or spoken)[-limit:]


def exit_reason(returncode: int) -> str:
    """``exit code 3``, or the signal's name for a negative return code."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return f"signal {signal.Signals(-returncode).name}"
    except ValueError:
        return f"signal {-returncode}"
