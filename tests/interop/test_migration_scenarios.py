"""What a user sees of a migration beside QEMU's own device, and tp-qemu's scenarios around it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from support.guests.dropin_guest import PROGRAM, qemu_script
from support.guests.host_end import HostEnd
from support.guests.moved_guest import MovedGuest
from support.waiting import wait_until

ROOT_PORT = ["-device", "pcie-root-port,id=rp1,slot=1,chassis=1"]
NAME = "org.test.1"
WORDS = [
    *ROOT_PORT,
    *("-device", "virtio-serial-pci,id=ser0,max_ports=4"),
    *("-chardev", f"socket,id=chr1,path=FOLDER/{NAME},server=on,wait=off"),
    *("-device", f"virtserialport,nr=1,chardev=chr1,name={NAME},bus=ser0.0,id=port1"),
]
ECHO = """
import os, threading
def echo(name):
    fd = os.open('/dev/virtio-ports/' + name, os.O_RDWR)
    while True:
        data = os.read(fd, 100)
        if data:
            os.write(fd, data)
def start(name):
    threading.Thread(target=echo, args=(name,), daemon=True).start()
"""


def answers(vm, name, said):
    end = HostEnd(f"{vm.folder}/{name}")
    end.send(said)
    assert end.receive_until(said)
    end.close()


@pytest.fixture(scope="module")
def programs(module_folder):
    return {"QEMU's": ["/bin/sh", qemu_script(module_folder)], "ours": PROGRAM}


def seen(vm, first):
    """The events since a number of them, each with its status."""
    wait_until(lambda: vm.qmp("query-migrate").get("status") in ("completed", "failed", "cancelled"))
    vm.qmp("query-status")
    return [(event["event"], event.get("data", {}).get("status")) for event in list(vm.qmp.events)[first:]]


def shown(program):
    """All that a user sees of four migrations: with and without events, with a pause, and one that fails.

    But for query-migrate's `vfio`, which QEMU shows as soon as there is a device of VFIO's kind.
    """
    found = []
    with MovedGuest(WORDS, program=program) as guest:
        qmp = guest.vm.qmp
        for on in ([], ["events"], ["events", "pause-before-switchover"]):
            caps = {name: name in on for name in ("events", "pause-before-switchover")}
            qmp("migrate-set-capabilities", capabilities=[{"capability": n, "state": s} for n, s in caps.items()])
            first = len(qmp.events)
            qmp("migrate", uri=f"file:{guest.folder}/stream")
            if "pause-before-switchover" in on:
                wait_until(lambda: qmp("query-migrate")["status"] == "pre-switchover")
                found.append(qmp("query-status"))
                qmp("migrate-continue", state="pre-switchover")
            found += [on, seen(guest.vm, first), qmp("query-status"), sorted({*qmp("query-migrate")} - {"vfio"})]
            listed = qmp("query-migrate-capabilities")
            found.append([entry["state"] for entry in listed if entry["capability"] in caps])
            qmp("cont")
            wait_until(lambda: guest.vm.status() == "running")
        first = len(qmp.events)
        qmp("migrate", uri="exec:head -c 1000000 >/dev/null")
        found.append(seen(guest.vm, first)[-2:])
        wait_until(lambda: guest.vm.status() == "running")
    return found


def test_events_and_states_are_those_of_qemu(programs):
    with ThreadPoolExecutor() as both:
        qemus, ours = both.map(shown, (programs["QEMU's"], programs["ours"]))
    for theirs, mine in zip(qemus, ours, strict=True):
        print(mine)
        assert mine == theirs


@pytest.mark.slow
def test_live_migration_after_unplug():
    """virtio_port_hotplug's hotplug_port_pci with_live_migration_after_unplug, and online with what stays."""
    with MovedGuest(WORDS) as guest:
        session = guest.session()
        session(ECHO)
        session(f"start({NAME!r})")
        qmp = guest.vm.qmp
        place = guest.vm.folder / "late"
        address = {"type": "unix", "data": {"path": str(place)}}
        qmp("device_add", driver="virtio-serial-pci", id="ser1", bus="rp1", max_ports=4)
        qmp("chardev-add", id="late", backend={"type": "socket", "data": {"addr": address, "wait": False}})
        qmp("device_add", driver="virtserialport", id="late", bus="ser1.0", name="late", chardev="late")
        wait_until(lambda: session("__import__('os').path.exists('/dev/virtio-ports/late')"))
        end = HostEnd(str(place))
        session("f = open('/dev/virtio-ports/late', 'wb', 0)")
        session("f.write(b'here')")
        assert end.receive(4) == b"here"
        session("f.close()")
        end.close()
        qmp("device_del", id="late")
        wait_until(lambda: not session("__import__('os').path.exists('/dev/virtio-ports/late')"))
        qmp("chardev-remove", id="late")
        qmp("device_del", id="ser1")
        qmp.wait_event("DEVICE_DELETED")
        wait_until(lambda: "ser1" not in str(qmp("query-pci")))
        guest.migrate()
        answers(guest.vm, NAME, b"after the migration")
        assert "needs reset" not in guest.vm.said()
