"""The shapes a device and a machine can have: processors, controllers, vectors, max_ports, rings, memory, vIOMMU."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from support.guests.exchange import exchange, socket_port

from virtserial.rig import Guest


@dataclass(frozen=True)
class Controller:
    """A controller: its own options, and the numbers of its ports."""

    options: str
    ports: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Configuration:
    """A machine to boot once."""

    name: str
    controllers: tuple[Controller, ...]
    machine: dict[str, object] = field(default_factory=dict)
    mib: int = 4
    """How much goes each way over each port: less where the device asks QEMU for each byte or each address."""


BOTH_RINGS = (Controller("max_ports=4,packed=on"), Controller("max_ports=4"))
# Values share a boot: each costs five seconds.
CONFIGURATIONS = [
    Configuration(
        "4-cpus-vectors-0-2-3-and-64",
        (
            Controller("vectors=0,max_ports=2", (1,)),
            Controller("vectors=2,max_ports=31,packed=on", (1, 30)),
            Controller("vectors=3,max_ports=511", (1, 510)),
            Controller("vectors=64,max_ports=31", (7, 30)),
        ),
        {"smp": 4, "memory_mib": 512},
        mib=2,
    ),
    Configuration("memory-without-seals", BOTH_RINGS, {"shared_memory": "file"}, mib=2),
    Configuration("memory-not-shared", BOTH_RINGS, {"shared_memory": False}, mib=1),
    Configuration(
        "behind-an-iommu",
        (Controller("iommu_platform=on"), Controller("iommu_platform=on,vectors=2,packed=on,in_order=on")),
        {"iommu": True},
        mib=1,
    ),
    Configuration(
        "2-cpus-behind-an-iommu-without-seals",
        (Controller("iommu_platform=on,max_ports=64", (1, 63)),),
        {"iommu": True, "smp": 2, "shared_memory": "file"},
        mib=1,
    ),
]


CASES = [("qemu", each) for each in CONFIGURATIONS if "shared_memory" not in each.machine]
"""How memory is shared is nothing to QEMU's own device."""
CASES += [
    pytest.param("virtserial", each, marks=[pytest.mark.slow] * (each.machine.get("shared_memory") == "file"))
    for each in CONFIGURATIONS
]


@pytest.mark.parametrize(
    ("host_device", "configuration"),
    CASES,
    indirect=["host_device"],
    scope="module",
    ids=lambda value: getattr(value, "name", value),
)
def test_ports_carry_checked_data(host_device, device_folder, configuration):
    options, sockets = [], {}
    for number, controller in enumerate(configuration.controllers):
        options += ["-device", f"virtio-serial,id=ser{number},{controller.options}"]
        for port in controller.ports:
            name = f"port-{number}-{port}"
            sockets[name] = f"{device_folder}/{configuration.name[:20]}-{number}-{port}"
            options += socket_port(port, name, sockets[name], f"ser{number}")
    with host_device.attach(options) as attached, Guest(attached.arguments, **configuration.machine) as guest:
        if "iommu" in configuration.machine:
            assert guest.check("ls /sys/kernel/iommu_groups")
        exchange(guest, sockets, mib=configuration.mib)


def test_one_port_is_the_console_alone(host_device, device_folder):
    """max_ports=1: port 0 and nothing else, still multiport."""
    options = ["-device", "virtio-serial,id=ser0,max_ports=1"]
    options += ["-chardev", f"file,id=con0,path={device_folder}/console", "-device", "virtconsole,chardev=con0"]
    with host_device.attach(options) as attached, Guest(attached.arguments) as guest:
        assert guest.check("ls /sys/class/virtio-ports | wc -l") == "1"
        guest.check("stty raw </dev/hvc0; echo hello from the console >/dev/hvc0")
        with open(f"{device_folder}/console") as console:
            assert console.read() == "hello from the console\n"
