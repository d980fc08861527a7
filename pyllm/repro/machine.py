"""What a machine has, as far as scenarios ask."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from pyllm.repro.scenario import Need

_WORDS = {
    "gpu": "a GPU",
    "gpu2": "two GPUs",
    "cuda": "a CUDA device",
    "hip": "a HIP device",
    "vulkan": "a Vulkan device",
}
#: Prefixes of llama.cpp's device names.
_BACKENDS = {"cuda": "CUDA", "hip": "ROCM", "vulkan": "VULKAN"}
_DEVICE = re.compile(r"^\s{2,}([A-Za-z]+\d+): ", re.MULTILINE)


@dataclass(frozen=True)
class Machine:
    """Names of the GPUs that a program can use (``CUDA0``, ``Vulkan0``), None where they are not known."""

    gpus: tuple[str, ...] | None = ()

    def lacks(self, need: Need) -> str:
        """Why ``need`` is not met, an empty text when it is."""
        if need == "cpu":
            return ""
        if self.gpus is None:
            return f"needs {_WORDS[need]}, and the devices of a server elsewhere are not known"
        found = self.gpus if need in {"gpu", "gpu2"} else tuple(name for name in self.gpus if name.upper().startswith(_BACKENDS[need]))
        if len(found) >= (2 if need == "gpu2" else 1):
            return ""
        return f"needs {_WORDS[need]}, this build sees {', '.join(self.gpus) or 'none'}"


def engine_machine() -> Machine:
    """What the installed engine can use."""
    from pyllm._ffi import devices  # noqa: PLC0415 - loads the native library

    return Machine(tuple(device.name for device in devices() if device.kind in {"gpu", "igpu"}))


def server_machine(binary: Path) -> Machine:
    """What a llama-server says with ``--list-devices``."""
    try:
        answer = subprocess.run([binary, "--list-devices"], capture_output=True, text=True, errors="replace", timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return Machine()
    return Machine(tuple(_DEVICE.findall(answer.stdout)))
