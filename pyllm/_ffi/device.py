"""Compute devices, as the backends report them."""

from __future__ import annotations

from dataclasses import dataclass

from pyllm._ffi.door import check, ffi, lib, text_of

KINDS = ("cpu", "gpu", "igpu", "accel")


@dataclass(frozen=True)
class Device:
    """One device. Memory is in bytes, 0 where the backend does not say."""

    name: str
    description: str
    backend: str
    kind: str
    memory_total: int
    memory_free: int


def devices() -> list[Device]:
    """All devices that this build can use, in the order that ``--device`` counts them."""
    found = []
    for index in range(lib.pyllm_device_count()):
        info = ffi.new("pyllm_device_info *")
        check(lib.pyllm_device_get(index, info))
        found.append(
            Device(
                name=text_of(info.name),
                description=text_of(info.description),
                backend=text_of(info.backend),
                kind=KINDS[info.type],
                memory_total=int(info.memory_total),
                memory_free=int(info.memory_free),
            )
        )
    return found
