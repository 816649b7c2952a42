"""Many migrations in a row, of every kind, with checked streams: by hand, VIRTSERIAL_MIGRATIONS=100.

That many of the plain kind, a fifth of it of each other kind.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import sys
from pathlib import Path

import pytest
from support.guests.dropin_guest import PROGRAM, device_processes
from support.guests.moved_guest import MACHINE, MovedGuest, Traffic, make_qcow2
from support.waiting import wait_until

from virtserial.migration.bus import parent_of

ROUNDS = int(os.environ.get("VIRTSERIAL_MIGRATIONS", "0"))
FEWER = ROUNDS // 5
UNSHARED = [sys.executable, str(Path(__file__).parents[1] / "support/guests/unshared_qemu.py")]
PORTS = {f"org.test.{number}": f"/dev/virtio-ports/org.test.{number}" for number in (1, 2, 3, 4)}

pytestmark = [
    pytest.mark.skipif(not ROUNDS, reason="takes minutes: VIRTSERIAL_MIGRATIONS=100"),
    pytest.mark.timeout(300 + 20 * ROUNDS),
]


def ports_of(bus, names, first=1):
    words = []
    for number, name in enumerate(names, first):
        driver = "virtconsole" if name == "console" else "virtserialport"
        named = "" if name == "console" else f",name={name}"
        words += ["-chardev", f"socket,id=chr-{name},path=FOLDER/{name},server=on,wait=off"]
        words += ["-device", f"{driver},nr={number},chardev=chr-{name}{named},id=port-{name},bus={bus}"]
    return words


def controller(properties="", names=PORTS):
    return ["-device", f"virtio-serial-pci,id=ser0,max_ports=8{properties}", *ports_of("ser0.0", names)]


CONSOLE = ["-device", "virtio-serial-pci,id=ser1,max_ports=4", *ports_of("ser1.0", ["console"], 0)]
SMP = ("-smp", "4", *MACHINE)
PC = ("-machine", "pc", *MACHINE[2:])
KINDS = {
    "plain": (controller(), MACHINE, PROGRAM),
    "four processors": (controller(), SMP, PROGRAM),
    "INTx": (controller(",vectors=0"), MACHINE, PROGRAM),
    "INTx on pc": (controller(",vectors=0"), PC, PROGRAM),
    "legacy": (controller(",disable-legacy=off,disable-modern=on"), PC, PROGRAM),
    "packed": (controller(",packed=on"), MACHINE, PROGRAM),
    "unshared": (controller(), MACHINE, UNSHARED),
    "root port": (
        ["-device", "pcie-root-port,id=rp1,slot=1,chassis=1", *controller(",bus=rp1,addr=0x0")], MACHINE, PROGRAM,
    ),
}  # fmt: skip


def go(guest, traffic, rounds, before=lambda: None):
    blackouts = []
    for _ in range(rounds):
        before()
        guest.migrate(traffic)
        blackouts.append(guest.blackout * 1000)
        traffic.follow()
        traffic.check(at_least=2000)
        print(len(blackouts), f"{blackouts[-1]:.0f} ms", flush=True)
    assert "needs reset" not in guest.vm.said()
    print(f"{rounds} migrations, blackout ms: {statistics.median(blackouts):.0f}, at most {max(blackouts):.0f}")


@pytest.mark.parametrize("kind", KINDS)
def test_live(kind):
    words, machine, program = KINDS[kind]
    with MovedGuest(words, machine=machine, program=program) as guest:
        size, pause = (300, 0.05) if kind == "unshared" else (1500, 0.006)
        traffic = Traffic(guest, PORTS, size=size, pause=pause)
        traffic.check(at_least=2000)
        go(guest, traffic, ROUNDS if kind == "plain" else FEWER)
        traffic.close()


def test_two_controllers_and_a_console():
    with MovedGuest([*controller(), *CONSOLE]) as guest:
        traffic = Traffic(guest, {**PORTS, "console": "/dev/hvc0"}, size=100, pause=0.02)
        go(guest, traffic, FEWER)
        traffic.close()


def test_a_port_that_was_added():
    late = {"driver": "virtserialport", "bus": "ser0.0", "nr": 6, "name": "late", "chardev": "late", "id": "late"}
    with MovedGuest([*controller(), "-chardev", "socket,id=late,path=FOLDER/late,server=on,wait=off"]) as guest:
        guest.vm.qmp("device_add", **late)
        traffic = Traffic(guest, {**PORTS, "late": "/dev/virtio-ports/late"})
        for _ in range(FEWER):
            target = guest.new_vm("-incoming", "defer")
            target.qmp("device_add", **late)
            traffic.meet(target)
            target.qmp("migrate-incoming", uri=f"unix:{guest.folder}/m")
            guest.vm.qmp("migrate", uri=f"unix:{guest.folder}/m")
            assert guest.vm.migration()["status"] == "completed"
            target.wait_status("running")
            guest.moved_to(target)
            traffic.follow()
            traffic.check(at_least=2000)
        traffic.close()


def keeper_of(vm):
    """After a restart only the keeper's command line tells of which machine it is."""
    found = device_processes(vm.folder)
    return next(pid for pid in found if parent_of(pid) not in found)


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("how", ["restarted", "killed"])
def test_after_a_worker_was(how):
    with MovedGuest(controller()) as guest:
        traffic = Traffic(guest, PORTS)

        def renew():
            keeper = keeper_of(guest.vm)
            [old] = children(keeper)
            if how == "restarted":
                guest.vm.qmp("x-virtserial-restart")
            else:
                os.kill(old, signal.SIGKILL)
            wait_until(lambda: (now := children(keeper)) != [old] and len(now) == 1)
            traffic.check(at_least=2000)

        go(guest, traffic, FEWER, renew)
        traffic.close()


@pytest.mark.parametrize("way", ["file", "exec", "fd"])
def test_by(way):
    with MovedGuest(controller()) as guest:
        traffic = Traffic(guest, PORTS)
        for _ in range(FEWER):
            target = guest.new_vm("-incoming", "defer")
            traffic.meet(target)
            path = guest.folder / "stream"
            if way == "fd":
                out, back = socket.socketpair()
                guest.vm.qmp.execute("getfd", {"fdname": "s"}, fd=out.fileno())
                target.qmp.execute("getfd", {"fdname": "s"}, fd=back.fileno())
                target.qmp("migrate-incoming", uri="fd:s")
                out.close()
                back.close()
            uri = {"file": f"file:{path}", "exec": f"exec:cat >{path}", "fd": "fd:s"}[way]
            guest.vm.qmp("migrate", uri=uri)
            assert guest.vm.migration()["status"] == "completed", guest.vm.said()
            if way != "fd":
                target.qmp("migrate-incoming", uri=f"exec:cat {path}" if way == "exec" else uri)
            target.wait_status("running")
            guest.moved_to(target)
            traffic.follow()
            traffic.check(at_least=2000)
        traffic.close()


def test_snapshots(folder):
    image = folder / "disk.qcow2"
    make_qcow2(image, 64 << 20)
    with MovedGuest([*controller(), "-drive", f"file={image},if=none,id=disk,format=qcow2"]) as guest:
        traffic = Traffic(guest, PORTS)
        for number in range(FEWER):
            assert guest.vm.hmp(f"savevm s{number}") == ""
            traffic.check(at_least=2000)
            traffic.part()
            assert guest.vm.hmp(f"loadvm s{number}") == ""
            assert guest.vm.status() == "running"
            traffic.follow_to_another_time()
            traffic.check(at_least=2000)
            assert guest.vm.hmp(f"delvm s{number}") == ""
        traffic.close()
