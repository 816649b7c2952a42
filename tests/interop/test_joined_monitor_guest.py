"""What monitors do to a running guest: the same words to QEMU alone, and to a QEMU whose virtio-serial is ours."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time

import pytest
from support.guests.exchange import exchange, socket_port
from support.guests.guest_side import PORT_HELPERS, TRANSFER
from support.guests.host_end import HostEnd, HostTransfer
from support.guests.joined_qemu import keeper
from support.rounds import rounds
from support.serving import QmpClient
from support.waiting import wait_until

from virtserial.rig import Guest

STAY = "org.test.stay"
MIB = 1 << 20
STAYS_AWAKE = "no_console_suspend"
"""The serial lines work again after a sleep, and with them the rig's agent."""
ROOT_PORTS = [
    *("-device", "pcie-root-port,id=rp1,slot=1,chassis=1"),
    *("-device", "pcie-root-port,id=rp2,slot=2,chassis=2"),
]


class Machine:
    """A guest, its monitor, and a folder for the sockets of its ports."""

    def __init__(self, guest, qmp, folder, device):
        self.guest, self.qmp, self.folder, self.device = guest, qmp, folder, device
        self.stay = f"{folder}/stay"


@contextlib.contextmanager
def qemu_alone(folder):
    options = ["-device", "virtio-serial-pci,id=ser0", *socket_port(1, STAY, f"{folder}/stay")]
    monitor = ["-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
    with Guest([*ROOT_PORTS, *options], qemu_extra=monitor, append=STAYS_AWAKE) as guest:
        yield guest


@contextlib.contextmanager
def joined(folder):
    options = ["-device", "virtio-serial-pci,id=ser0", *socket_port(1, STAY, f"{folder}/stay")]
    monitor = ["-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
    with keeper([*options, *monitor]) as pair:
        words = [*ROOT_PORTS, *pair.qemu_words]
        with Guest(words, pass_fds=pair.pass_fds, append=STAYS_AWAKE) as guest:
            pair.handed_over()
            yield guest


KINDS = {"qemu": qemu_alone, "virtserial": joined}


@pytest.fixture(scope="module", params=list(KINDS))
def machine(request):
    with tempfile.TemporaryDirectory(prefix="vs-") as folder, KINDS[request.param](folder) as guest:
        client = QmpClient(f"{folder}/qmp")
        client.socket.settimeout(60)
        yield Machine(guest, client, folder, request.param)
        client.close()


@contextlib.contextmanager
def transfer_both_ways(machine, mib):
    """A checked transfer over the port that stays, going on meanwhile; it is whole at the end. Gives the job."""
    block = os.urandom(MIB)
    end = HostEnd(machine.stay, 120)
    transfer = HostTransfer(end, block, mib, mib * MIB)
    job = machine.guest.start(
        TRANSFER.format(
            port=f"/dev/virtio-ports/{STAY}", name="stay", block_bytes=MIB, repeat=mib, expected_blocks=mib << 4
        )
    )
    try:
        yield job
        result = job.wait(120)
        assert result.status == 0, result.text
        sent, received = result.text.split()
        transfer.join()
        assert (transfer.received_sha1, transfer.sent_sha1) == (sent, received)
    finally:
        end.shut()
        transfer.join()
        end.close()


def unix_server(path):
    return {"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": path}}, "server": True, "wait": False}}


def is_there(machine, name):
    return machine.guest.run(f"test -e /dev/virtio-ports/{name}").status == 0


def test_a_stopped_machine_goes_on_where_it_was(machine):
    with transfer_both_ways(machine, rounds(24, 48)) as transfer:
        stops = 0
        while transfer.status is None:
            machine.qmp("stop")
            assert machine.qmp("query-status")["running"] is False
            machine.qmp("cont")
            machine.qmp.event("RESUME")
            stops += transfer.status is None
            time.sleep(0.1)  # Something has to happen in between.
        assert stops >= 3


def test_a_controller_is_added_used_and_deleted_while_another_moves_data(machine):
    qmp = machine.qmp
    with transfer_both_ways(machine, 24):
        for turn in range(rounds(1, 2)):
            name, path = f"org.test.new{turn}", f"{machine.folder}/new{turn}"
            qmp("device_add", driver="virtio-serial-pci", id="ser1", bus="rp1", max_ports=4)
            qmp("chardev-add", id="new", backend=unix_server(path))
            qmp("device_add", driver="virtserialport", id="new-port", bus="ser1.0", nr=2, name=name, chardev="new")
            wait_until(lambda name=name: is_there(machine, name), 60, "the port did not appear")
            exchange(machine.guest, {name: path}, mib=1)
            session = machine.guest.session()
            session(PORT_HELPERS)
            session(f"fd = open_port('{name}')")
            assert qmp.event("VSERPORT_CHANGE")["data"]
            qmp("device_del", id="ser1")
            gone = qmp.event("DEVICE_DELETED")["data"]
            while gone.get("device") != "ser1":
                gone = qmp.event("DEVICE_DELETED")["data"]
            session(f"until(lambda: not os.path.exists('/dev/virtio-ports/{name}'))")
            session("os.close(fd)")
            assert qmp.error("device_add", driver="virtserialport", bus="ser1.0")[1] == "Bus 'ser1.0' not found"
            qmp("chardev-remove", id="new")
            qmp.events.clear()


def test_ports_are_deleted_with_their_controller_each_with_its_event(machine):
    qmp = machine.qmp
    qmp.events.clear()
    qmp("device_add", driver="virtio-serial-pci", id="ser1", bus="rp1")
    for number in (1, 2):
        qmp("device_add", driver="virtserialport", id=f"new{number}", bus="ser1.0", name=f"org.test.with{number}")
    wait_until(lambda: is_there(machine, "org.test.with2"), 60)
    qmp("device_del", id="ser1")
    deleted = set()
    while "ser1" not in deleted:
        deleted.add(qmp.event("DEVICE_DELETED")["data"].get("device"))
    assert deleted >= {"new1", "new2", "ser1"}
    names = {entry["name"] for entry in qmp("qom-list", path="/machine/peripheral")}
    assert names & {"new1", "new2", "ser1"} == set()


def test_the_machine_outlives_what_would_abort_it(machine):
    qmp = machine.qmp
    off = {} if machine.device == "qemu" else {"unplug": "off"}
    qmp("device_add", driver="virtio-serial-pci", id="msix", bus="rp2", vectors=2, **off)
    qmp("device_add", driver="virtserialport", id="on-msix", bus="msix.0", name="org.test.msix")
    wait_until(lambda: is_there(machine, "org.test.msix"), 60)
    if (answer := qmp.ask({"execute": "device_del", "arguments": {"id": "msix"}})) == {"return": {}}:
        qmp.event("DEVICE_DELETED")  # QEMU's own can be deleted.
    else:
        assert "has MSI-X (vectors=2), and QEMU aborts" in answer["error"]["desc"]
        machine.guest.check("test -e /dev/virtio-ports/org.test.msix")
    assert machine.guest.alive
    exchange(machine.guest, {STAY: machine.stay}, mib=1)


@pytest.mark.slow
def test_a_reset_of_the_machine(machine):
    before = machine.guest.channel.boot_id
    machine.qmp("system_reset")
    machine.qmp.event("RESET")
    machine.guest.channel.wait_for_boot(180, before)
    exchange(machine.guest, {STAY: machine.stay}, mib=4)


def test_a_machine_that_has_slept(machine):
    machine.guest.check("grep -qw mem /sys/power/state")
    machine.guest.start("sleep 0.2; echo mem >/sys/power/state")
    machine.qmp.event("SUSPEND")
    assert machine.qmp("query-status")["status"] == "suspended"
    machine.qmp("system_wakeup")
    machine.qmp.event("WAKEUP")
    # Before that the serial line of the rig's agent loses what it is sent.
    wait_until(lambda: "PM: suspend exit" in machine.guest.kernel_log(), 60)
    exchange(machine.guest, {STAY: machine.stay}, mib=4)
