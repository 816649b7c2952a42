"""Buses, numbers, names and ids: QEMU's rules, in QEMU's words (the table of error texts)."""

import pytest

from virtserial.chardev.hub import HubChardev
from virtserial.chardev.null import NullChardev
from virtserial.errors import ConfigError
from virtserial.machine.build import plug
from virtserial.machine.model import Controller, Machine
from virtserial.options.device_options import parse_device

CHARDEVS = {name: NullChardev(name) for name in ("c0", "c1", "z", "part", "mux")}
CHARDEVS["mux"].mux = True
CHARDEVS["hub"] = HubChardev("hub", [CHARDEVS["part"]])


def machine_of(*devices):
    machine = Machine()
    for text in devices:
        plug(machine, parse_device(text), CHARDEVS, "/run/vs")
    return machine


def refused(*devices):
    """The text with which the last device is refused; those before it stay as they are."""
    machine = machine_of(*devices[:-1])
    before = [(controller.name, sorted(controller.ports)) for controller in machine.controllers]
    with pytest.raises(ConfigError) as caught:
        plug(machine, parse_device(devices[-1]), CHARDEVS, "/run/vs")
    assert [(controller.name, sorted(controller.ports)) for controller in machine.controllers] == before
    return str(caught.value)


RESERVED = "Port number 0 on virtio-serial devices reserved for virtconsole devices for backward compatibility."


@pytest.mark.parametrize(
    ("devices", "text"),
    [
        (["virtio-serial,max_ports=0"], "Maximum number of serial ports not specified"),
        (["virtio-serial,max_ports=512"], "maximum ports supported: 511"),
        (
            ["virtio-serial,max_ports=4", "virtserialport,nr=4"],
            "virtio-serial-bus: Out-of-range port id specified, max. allowed: 3",
        ),
        (
            ["virtio-serial,max_ports=2", "virtserialport", "virtserialport"],
            "virtio-serial-bus: Out-of-range port id specified, max. allowed: 1",
        ),
        (
            ["virtio-serial,max_ports=1", "virtserialport"],
            "virtio-serial-bus: Out-of-range port id specified, max. allowed: 0",
        ),
        (
            ["virtio-serial,max_ports=32", *["virtserialport"] * 32],
            "virtio-serial-bus: Maximum port limit for this device reached",
        ),
        (
            ["virtio-serial", *["virtserialport"] * 31],
            "virtio-serial-bus: Out-of-range port id specified, max. allowed: 30",
        ),
        (
            ["virtio-serial,max_ports=64", "virtconsole", *["virtserialport"] * 63, "virtconsole"],
            "virtio-serial-bus: Maximum port limit for this device reached",
        ),
        (
            ["virtio-serial", "virtserialport,nr=3", "virtconsole,nr=3"],
            "virtio-serial-bus: A port already exists at id 3",
        ),
        (
            ["virtio-serial", "virtconsole", "virtserialport,nr=0"],
            "virtio-serial-bus: A port already exists at id 0",
        ),
        (
            ["virtio-serial", "virtserialport,name=X", "virtio-serial", "virtserialport,name=X"],
            "virtio-serial-bus: A port already exists by name X",
        ),
        (
            ["virtio-serial", "virtserialport,name=", "virtserialport,name="],
            "virtio-serial-bus: A port already exists by name ",
        ),
        (["virtio-serial", "virtserialport,nr=0"], RESERVED),
        (["virtserialport"], "No 'virtio-serial-bus' bus found for device 'virtserialport'"),
        (["virtconsole"], "No 'virtio-serial-bus' bus found for device 'virtconsole'"),
        (["virtio-serial", "virtserialport,bus=foo.0"], "Bus 'foo.0' not found"),
        (["virtserialport,bus=foo.0"], "Bus 'foo.0' not found"),
        (
            ["virtio-serial", "virtserialport,chardev=zz"],
            "Property 'virtserialport.chardev' can't find value 'zz'",
        ),
        (["virtio-serial", "virtioconsole,chardev=zz"], "Property 'virtconsole.chardev' can't find value 'zz'"),
        (
            ["virtio-serial", "virtconsole,chardev=z", "virtserialport,chardev=z"],
            "Property 'virtserialport.chardev' can't take value 'z': chardev 'z' is already in use",
        ),
        (
            ["virtio-serial", "virtserialport,chardev=part"],
            "Property 'virtserialport.chardev' can't take value 'part': chardev 'part' is already in use",
        ),
        (
            ["virtio-serial", "virtserialport,chardev=hub", "virtconsole,chardev=hub"],
            "Property 'virtconsole.chardev' can't take value 'hub': chardev 'hub' is already in use",
        ),
        (
            ["virtio-serial", "virtconsole,chardev=mux", *["virtserialport,chardev=mux"] * 4],
            "Property 'virtserialport.chardev' can't take value 'mux': "
            "too many uses of multiplexed chardev 'mux' (maximum is 4)",
        ),
        (["virtio-serial", "virtserialport,id=p1", "virtserialport,id=p1"], "Duplicate device ID 'p1'"),
        (["virtio-serial,id=p1", "virtserialport,id=p1"], "Duplicate device ID 'p1'"),
        (["virtio-serial,id=p1", "virtio-serial,id=p1,socket=/x"], "Duplicate device ID 'p1'"),
        (["virtio-serial,vectors=2049"], "virtio-serial0: vectors=2049, MSI-X has at most 2048"),
        (
            ["virtio-serial,socket=/tmp/a", "virtio-serial,socket=/tmp/a"],
            "socket /tmp/a: another controller listens there",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_qemus_words(devices, text):
    assert refused(*devices) == text


def test_device_del_of_an_unknown_device():
    with pytest.raises(ConfigError, match=r"^Device 'nope' not found$"):
        Machine().find("nope")


def test_numbers_are_given_out_as_qemu_does():
    machine = machine_of(
        "virtio-serial",
        "virtserialport,name=a",
        "virtconsole",
        "virtserialport,nr=3",
        "virtconsole",
        "virtserialport",
        "virtserialport,nr=30",
    )
    assert [(port.number, port.driver) for port in machine.ports()] == [
        (1, "virtserialport"),
        (0, "virtconsole"),
        (3, "virtserialport"),
        (2, "virtconsole"),
        (4, "virtserialport"),
        (30, "virtserialport"),
    ]


def test_a_console_with_a_number_leaves_zero_to_the_next():
    machine = machine_of("virtio-serial", "virtconsole,nr=2", "virtconsole")
    assert [port.number for port in machine.ports()] == [2, 0]


def test_buses_are_named_as_qemu_names_them_and_the_last_one_is_the_default():
    machine = machine_of(
        "virtio-serial",
        "virtio-serial,id=vs",
        "virtserialport,name=default",
        "virtio-serial",
        "virtserialport,name=last",
        "virtserialport,bus=vs.0,name=by-id",
        "virtserialport,bus=virtio-serial-bus.0,name=first",
        "virtserialport,bus=virtio-serial-bus.1,name=second",
    )
    assert [controller.bus for controller in machine.controllers] == [
        "virtio-serial-bus.0",
        "vs.0",
        "virtio-serial-bus.1",
    ]
    names = [[port.name for port in controller.ports.values()] for controller in machine.controllers]
    assert names == [["first"], ["default", "by-id"], ["last", "second"]]


def test_a_controllers_properties():
    machine = machine_of(
        "virtio-serial,id=a,max_ports=5,vectors=0,iommu_platform=off,event_idx=off,indirect_desc=off,"
        "queue_reset=off,emergency-write=off,resize-order=rows-cols,socket=/tmp/vs,,1,unplug=on,packed=on",
        "virtio-serial,max_ports=7",
    )
    first, second = machine.controllers
    assert first.socket == "/tmp/vs,1"
    assert (first.name, first.max_ports, first.vectors, first.resize_rows_first) == ("a", 5, 0, True)
    switches = ("iommu_platform", "event_idx", "indirect_desc", "queue_reset", "emergency_write")
    assert not any(getattr(first, name) for name in switches)
    assert all(getattr(second, name) for name in switches)
    assert (second.name, second.socket, second.resize_rows_first) == (
        "virtio-serial1",
        "/run/vs/virtio-serial1.sock",
        False,
    )
    assert second.vectors == 8, "one for each port and one more"
    assert (first.unplug, second.unplug) == (True, False), "auto is off where nobody knows the VMM"
    assert [(each.packed, each.in_order) for each in (first, second)] == [(True, False), (False, False)]
    assert [each.unplug for each in Machine.from_description(machine.describe()).controllers] == [True, False]


def test_where_nobody_knows_the_bus_a_controller_has_the_legacy_interface_only_if_it_is_asked_for():
    machine = machine_of(
        "virtio-serial,page-per-vq=on", "virtio-serial,disable-legacy=off", "virtio-serial,disable-modern=on",
    )  # fmt: skip
    words = [(each.legacy, each.modern, each.iommu_platform, each.page_per_vq) for each in machine.controllers]
    assert words == [(False, True, True, True), (True, True, True, False), (True, False, False, False)]
    copies = Machine.from_description(machine.describe()).controllers
    assert [(each.legacy, each.modern, each.page_per_vq) for each in copies] == [
        (False, True, True), (True, True, False), (True, False, False),
    ]  # fmt: skip


def test_ports_and_chardevs_are_found():
    machine = machine_of("virtio-serial,id=vs", "virtserialport,id=p,chardev=c0,name=n", "virtconsole,chardev=c1")
    port = machine.find("p")
    assert machine.user_of("c0") is port
    assert machine.user_of("z") is None
    assert machine.find("vs") is port.controller
    assert (port.is_console, port.name, port.chardev) == (False, "n", "c0")


def test_what_is_unplugged_is_free_again():
    machine = machine_of("virtio-serial,id=vs", "virtserialport,id=p,nr=1,chardev=c0,name=n", "virtconsole")
    machine.remove_port(machine.find("p"))
    assert machine.user_of("c0") is None
    plug(machine, parse_device("virtserialport,id=p,nr=1,chardev=c0,name=n"), CHARDEVS, "/run")
    machine.remove_controller(machine.find("vs"))
    assert list(machine.ports()) == []
    with pytest.raises(ConfigError, match="Device 'p' not found"):
        machine.find("p")
    unnamed = machine.add_controller(Controller(None, machine.name_bus(None), "x", "/x"))
    assert unnamed.bus == "virtio-serial-bus.0"
    machine.remove_controller(unnamed)
    assert machine.controllers == []
