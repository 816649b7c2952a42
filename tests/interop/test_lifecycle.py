"""The guest's driver comes and goes: reboots, unbinding under load.

In the gate test_scenarios_ports.py resets a machine under load, and test_vhost_user.py reboots one.
"""

from __future__ import annotations

import time

import pytest
from support.guests.exchange import exchange, socket_port
from support.guests.load import Drain, start_load

from virtserial.rig import Guest

NAMES = ("org.test.a", "org.test.b")


@pytest.fixture(scope="module")
def guest(host_device, device_folder):
    options = ["-device", "virtio-serial,id=ser0"]
    for number, name in enumerate(NAMES, 1):
        options += socket_port(number, name, f"{device_folder}/{name}")
    with host_device.attach(options) as attached, Guest(attached.arguments) as guest:
        yield guest


@pytest.fixture
def sockets(device_folder):
    return {name: f"{device_folder}/{name}" for name in NAMES}


@pytest.mark.slow
def test_driver_is_unbound_and_bound_ten_times_under_load(guest, sockets):
    device = guest.check("basename $(dirname $(readlink -f /sys/bus/virtio/drivers/virtio_console/virtio*))")
    with Drain(sockets[NAMES[0]]) as drain, Drain(sockets[NAMES[1]]):
        for _ in range(10):
            before = drain.received
            jobs = start_load(guest, NAMES)
            deadline = time.monotonic() + 20
            while drain.received < before + 1_000_000:
                assert time.monotonic() < deadline, "the guest's data does not come"
                time.sleep(0.01)
            guest.check(f"echo {device} >/sys/bus/pci/drivers/virtio-pci/unbind")
            for job in jobs:
                job.wait(60)
            guest.check(f"echo {device} >/sys/bus/pci/drivers/virtio-pci/bind")
    exchange(guest, sockets, mib=4)


@pytest.mark.slow
def test_device_works_after_each_of_three_reboots(guest, sockets):
    for _ in range(3):
        guest.reboot()
        exchange(guest, sockets, mib=2)


@pytest.mark.slow
def test_reboot_under_load(guest, sockets):
    with Drain(sockets[NAMES[0]]), Drain(sockets[NAMES[1]]):
        start_load(guest, NAMES)
        time.sleep(0.3)
        guest.reboot()
    exchange(guest, sockets, mib=2)
