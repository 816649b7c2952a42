"""Which interfaces a controller has, by QEMU's words."""

from __future__ import annotations

import pytest

from virtserial.errors import ConfigError
from virtserial.options.device_options import parse_device
from virtserial.options.interfaces import Interfaces, choose_legacy, interfaces_of


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("virtio-serial", Interfaces(False, True, True)),
        ("virtio-serial,iommu_platform=off", Interfaces(False, True, False)),
        ("virtio-serial,disable-legacy=off", Interfaces(True, True, True)),
        ("virtio-serial,disable-legacy=off,iommu_platform=off", Interfaces(True, True, False)),
        ("virtio-serial,disable-modern=on", Interfaces(True, False, False)),
        ("virtio-serial-pci-transitional", Interfaces(True, True, True)),
        ("virtio-serial-pci-non-transitional,iommu_platform=on", Interfaces(False, True, True)),
    ],
)
def test_where_nobody_knows_the_bus(device, expected):
    assert interfaces_of(parse_device(device)) == expected


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ("virtio-serial,disable-legacy=on,disable-modern=on", "device cannot work as neither modern nor legacy"),
        ("virtio-serial,disable-modern=on,iommu_platform=on", "VIRTIO_F_IOMMU_PLATFORM was supported by neither"),
        ("virtio-serial,disable-modern=on,packed=on", "packed=on needs the modern interface"),
        ("virtio-serial,disable-modern=on,in_order=on", "in_order=on needs the modern interface"),
        ("virtio-serial-pci-transitional,iommu_platform=on", "VIRTIO_F_IOMMU_PLATFORM was supported by neither"),
    ],
)
def test_what_no_function_can_have_is_refused(device, text):
    with pytest.raises(ConfigError, match=text):
        interfaces_of(parse_device(device))


@pytest.mark.parametrize("driver", ["virtio-serial-pci-transitional", "virtio-serial-pci-non-transitional"])
@pytest.mark.parametrize("name", ["disable-legacy", "disable-modern"])
def test_a_driver_that_says_it_has_no_property_for_it(driver, name):
    with pytest.raises(ConfigError, match=f"Property '{driver}.{name}' not found"):
        parse_device(f"{driver},{name}=on")


@pytest.mark.parametrize(
    ("device", "on_express_port", "architecture", "chosen"),
    [
        ("virtio-serial", False, "x86_64", "off"),
        ("virtio-serial", True, "x86_64", "on"),
        ("virtio-serial,iommu_platform=on", False, "x86_64", "on"),
        ("virtio-serial", False, "ppc64", "on"),
        ("virtio-serial,disable-modern=on", False, "x86_64", "off"),
        ("virtio-serial,disable-modern=on", True, "x86_64", "on"),
        ("virtio-serial,disable-legacy=off", True, "x86_64", "off"),
        ("virtio-serial-pci-transitional", True, "aarch64", "off"),
    ],
)
def test_the_place_decides_what_is_left_to_it(device, on_express_port, architecture, chosen):
    options = parse_device(device)
    choose_legacy(options, on_express_port=on_express_port, architecture=architecture)
    assert options.properties["disable-legacy"] == chosen


def test_big_endian_guests_have_no_legacy_interface():
    with pytest.raises(ConfigError, match="little-endian guests only, not on ppc64"):
        choose_legacy(parse_device("virtio-serial,disable-modern=on"), on_express_port=False, architecture="ppc64")
