"""The devices of this machine, from what the native library says of them."""

from __future__ import annotations

import pytest

from pyllm._ffi import devices
from pyllm.routes.axes import AXES, DEVICE_AXES
from pyllm.routes.devices import AMD_OFFSET, DEVICES
from pyllm.routes.present import device_of, present_devices


def codes(device, **changed):
    values = {name: getattr(device, name) for name in DEVICE_AXES} | changed
    return tuple(axis.encode(values[axis.name]) for axis in AXES[: len(DEVICE_AXES)])


@pytest.mark.parametrize("name", DEVICES)
def test_a_known_device_is_found_by_its_number(name):
    found = device_of(codes(DEVICES[name]), "Some GPU")
    assert (found.name, found.products) == (name, "Some GPU")
    assert codes(found) == codes(DEVICES[name])
    assert found.warp == DEVICES[name].warp


def test_what_the_build_sees_counts():
    """Code for sm_60 that runs on sm_70 uses no matrix units."""
    assert device_of(codes(DEVICES["sm_70"], matrix="none"), "V100").matrix == "none"


def test_a_member_of_a_family_keeps_its_name():
    found = device_of(codes(DEVICES["gfx1030"], arch=AMD_OFFSET + 0x1031), "RX 6700")
    assert (found.name, found.arch, found.toolkit) == ("gfx1031", AMD_OFFSET + 0x1031, "ROCm 6.1")


def test_a_device_of_tomorrow_is_planned_by_its_facts():
    found = device_of(codes(DEVICES["sm_120"], arch=1990), "RTX 9090")
    assert (found.name, found.matrix, found.smem) == ("sm_199", "ampere", DEVICES["sm_120"].smem)


def test_those_of_this_machine():
    assert len(present_devices()) <= sum(device.kind != "cpu" for device in devices())
