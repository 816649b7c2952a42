"""What is refused before a PCI function changes its driver; the change itself is tested in a real guest."""

from __future__ import annotations

import pytest

from virtserial.driver.pci_binding import PciBinding, full_address
from virtserial.driver.vfio_function import VfioFunction, group_of
from virtserial.errors import ConfigError

ADDRESS = "0000:00:05.0"


@pytest.fixture
def bus(tmp_path):
    """A bus in a folder, with a function that virtio-pci has; nothing acts on what is written."""
    function = tmp_path / "devices" / ADDRESS
    for folder in (function, tmp_path / "drivers/vfio-pci", tmp_path / "drivers/virtio-pci", tmp_path / "groups/7"):
        folder.mkdir(parents=True)
    (function / "driver").symlink_to("../../drivers/virtio-pci")
    (function / "iommu_group").symlink_to("../../groups/7")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0000:00:05.0", "0000:00:05.0"),
        ("00:1F.7", "0000:00:1f.7"),
        ("10ab:c0:1f.3", "10ab:c0:1f.3"),
        ("00:20.0", None),
        ("00:05.8", None),
        ("5.0", None),
        ("0000:00:05.0/../../x", None),
        ("/run/virtserial/ser0.sock", None),
        ("", None),
    ],
)
def test_addresses_as_the_system_writes_them(text, address):
    assert full_address(text) == address


def test_a_function_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"^0000:00:05.0: there is no such PCI function$"):
        PciBinding(ADDRESS, tmp_path)
    with pytest.raises(ConfigError, match=r"^0000:00:05.0: there is no such PCI function$"):
        group_of(ADDRESS, tmp_path)
    with pytest.raises(ConfigError, match=r"^ffff:ff:1f.7: there is no such PCI function$"):
        VfioFunction("ffff:ff:1f.7")


def test_binding_is_refused_without_an_iommu(bus):
    (bus / "devices" / ADDRESS / "iommu_group").unlink()
    with pytest.raises(ConfigError, match="there is no IOMMU that keeps its DMA to one process's memory"):
        PciBinding(ADDRESS, bus).bind()


def test_a_bus_that_does_not_give_the_function_to_vfio_pci_gets_its_override_back(bus):
    with pytest.raises(ConfigError, match=r"^0000:00:05.0: vfio-pci does not take it"):
        PciBinding(ADDRESS, bus).bind()
    assert (bus / "devices" / ADDRESS / "driver_override").read_text() == "\n"
    assert (bus / "drivers/virtio-pci/unbind").read_text() == ADDRESS
    assert (bus / "drivers_probe").read_text() == ADDRESS


def test_a_function_of_vfio_pci_s_stays_as_it_is(bus):
    link = bus / "devices" / ADDRESS / "driver"
    link.unlink()
    link.symlink_to("../../drivers/vfio-pci")
    assert PciBinding(ADDRESS, bus).bind() is None
    assert not (bus / "drivers_probe").exists()
    assert group_of(ADDRESS, bus / "devices") == 7


def test_a_function_of_another_driver_s_is_not_taken_from_it_by_unbind(bus):
    with pytest.raises(ConfigError, match=r"^0000:00:05.0: virtio-pci has it, not vfio-pci$"):
        PciBinding(ADDRESS, bus).unbind()


def test_attaching_to_a_function_of_another_driver_s_says_what_to_do(bus):
    with pytest.raises(ConfigError, match=r"virtio-pci has it, not vfio-pci: `virtserial guest bind 0000:00:05.0`"):
        group_of(ADDRESS, bus / "devices")


def test_a_missing_right_is_one_line_with_the_file(bus):
    (bus / "devices" / ADDRESS / "driver_override").mkdir()
    with pytest.raises(ConfigError, match=r"^0000:00:05.0: .*driver_override: Is a directory$"):
        PciBinding(ADDRESS, bus).bind()
