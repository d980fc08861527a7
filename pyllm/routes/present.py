"""The GPUs of this machine, as the build that runs here sees them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from pyllm._ffi import device_axes, devices
from pyllm.errors import ConfigError, UnsupportedError
from pyllm.routes.axes import DEVICE_AXES, axis
from pyllm.routes.devices import AMD_OFFSET, Device, resolve


def present_devices() -> list[Device]:
    """One for each CUDA or HIP device, in the order of the native library's."""
    found = []
    for index, device in enumerate(devices()):
        try:
            codes = device_axes(index)
        except UnsupportedError:
            continue
        found.append(device_of(codes, device.description))
    return found


def routed_device(index: int) -> Device:
    """The device of number ``index`` among the native library's.

    Raises:
        UnsupportedError: it is no CUDA or HIP device.
    """
    return device_of(device_axes(index), devices()[index].description)


def device_of(codes: tuple[int, ...], description: str) -> Device:
    """The device whose axes are ``codes``; what only the product's data sheet says stays empty for architectures that are not known."""
    facts = dict(zip(DEVICE_AXES, codes, strict=True))
    vendor, matrix = (axis(name).decode(facts[name]) for name in ("vendor", "matrix"))
    arch = facts["arch"]
    name = f"gfx{arch - AMD_OFFSET:x}" if vendor == "amd" else f"sm_{arch // 10}"
    try:
        known = resolve(name)
    except ConfigError:
        known = Device(name, vendor, arch, matrix, 32, False, 0, "", "")
    return replace(known, name=name, arch=arch, matrix=matrix, fast_fp16=bool(facts["fast_fp16"]), smem=facts["smem"], products=description)


#: What kernel modules say about themselves, the first number of which is the driver's.
_DRIVERS = {"nvidia": ("/proc/driver/nvidia/version", "/sys/module/nvidia/version"), "amd": ("/sys/module/amdgpu/version",)}


def driver_version(vendor: str) -> str:
    """The version of the loaded driver, such as 580.159.04; empty where the system does not say."""
    for path in _DRIVERS[vendor]:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError:
            continue
        if found := re.search(r"\d+\.\d+(\.\d+)?", text):
            return found[0]
    return ""
