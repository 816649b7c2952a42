"""What runs the guest's processors, and whether controllers can be unplugged by default."""

from __future__ import annotations

import shlex

import pytest

from virtserial.dropin.accelerator import choose_unplug, is_emulated
from virtserial.dropin.command_line import split
from virtserial.errors import ConfigError
from virtserial.options.device_options import parse_device

EMULATED = {
    "": True,
    "-accel tcg,thread=multi": True,
    "-machine accel=tcg": True,
    "-machine q35,accel=tcg:kvm": True,
    "-accel kvm": False,
    "-enable-kvm": False,
    "-accel kvm -accel tcg": False,
    "-machine q35,accel=kvm:tcg": False,
    "-accel xen": False,
}


@pytest.mark.parametrize("line", EMULATED)
def test_the_first_accelerator_counts(line):
    assert is_emulated(split(shlex.split(line))) == EMULATED[line]


@pytest.mark.parametrize(
    ("asked", "line", "architecture", "chosen"),
    [
        ("auto", "", "x86_64", "on"),
        ("auto", "", "i386", "on"),
        ("auto", "-accel kvm", "x86_64", "off"),
        ("auto", "", "aarch64", "off"),
        ("on", "-accel kvm", "x86_64", "on"),
        ("off", "", "x86_64", "off"),
        ("off", "", "aarch64", "off"),
    ],
)
def test_auto_is_on_where_it_costs_little(asked, line, architecture, chosen):
    device = parse_device(f"virtio-serial,unplug={asked}")
    choose_unplug(device, split(shlex.split(line)), architecture)
    assert device.properties["unplug"] == chosen


def test_on_is_refused_where_it_does_not_work():
    with pytest.raises(ConfigError, match="unplug=on works on x86_64 and i386 only, not on aarch64"):
        choose_unplug(parse_device("virtio-serial,unplug=on"), [], "aarch64")
