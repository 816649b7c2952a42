"""tp-qemu's scenarios of machines with many ports, consoles and controllers from the start (docs/tp-qemu.md)."""

from __future__ import annotations

import pytest
from support.guests.scenario import machine, transfer
from support.waiting import wait_until


def serial_ports(count, folder, bus="ser0.0"):
    options, sockets = [], {}
    for number in range(count):
        name = f"{bus.partition('.')[0]}.p{number}"
        sockets[name] = f"{folder}/{name}"
        options += ["-chardev", f"socket,id=chr-{name},path={folder}/{name},server=on,wait=off"]
        options += ["-device", f"virtserialport,bus={bus},chardev=chr-{name},name={name}"]
    return options, sockets


def consoles(count):
    options = []
    for number in range(count):
        options += ["-chardev", f"ringbuf,id=con{number}", "-device", f"virtconsole,chardev=con{number}"]
    return options


@pytest.mark.slow
def test_thirty_serial_ports(starter, folder):
    """max_ports virtserialport_test, virtio_serial_file_transfer max_ports."""
    options, sockets = serial_ports(30, folder)
    with machine(starter, ["-device", "virtio-serial-pci,id=ser0", *options]) as guest:
        transfer(guest, dict(list(sockets.items())[::5]))


@pytest.mark.slow
def test_fifteen_serial_ports_and_fifteen_consoles(starter, folder):
    """max_serials_and_consoles."""
    options, sockets = serial_ports(15, folder)
    with machine(starter, ["-device", "virtio-serial-pci,id=ser0", *consoles(15), *options]) as guest:
        wait_until(lambda: guest.check("ls -d /dev/hvc* | wc -l") >= "8", 20)
        assert guest.check("ls /sys/class/virtio-ports | wc -l") == "30"
        transfer(guest, dict(list(sockets.items())[::5]))


def test_thirty_consoles(starter):
    """max_ports virtconsole_test."""
    with machine(starter, ["-device", "virtio-serial-pci,id=ser0", *consoles(30)]) as guest:
        assert guest.check("ls /sys/class/virtio-ports | wc -l") == "30"
        guest.check("stty raw </dev/hvc0; echo the first console >/dev/hvc0")
        read = {"device": "con0", "size": 100}
        wait_until(lambda: "the first console" in guest.monitor("ringbuf-read", **read), 20)


@pytest.mark.slow
def test_many_controllers_with_a_port_each(starter, folder):
    """boot_with_multiple_virtserialports N_1."""
    options, sockets = [], {}
    for bus in range(20):
        more, of_bus = serial_ports(1, folder, f"bus{bus}.0")
        options += ["-device", f"virtio-serial-pci,id=bus{bus},max_ports=2", *more]
        sockets |= of_bus
    with machine(starter, options) as guest:
        transfer(guest, sockets)
