"""Proxmox VE's words: what `qm start` says to QEMU about monitors, agents and memory, said to virtserial-qemu.

Proxmox itself is not run; no guest is booted.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
from support.guests.dropin_guest import PROGRAM, environment, wait_until_nothing_is_left
from support.places import ROOT
from support.waiting import wait_until

from virtserial.client.qmp import QmpClient

# Root ports and a USB controller, as Proxmox' own files describe them.
MACHINE_CONFIG = """
[device "ehci"]
  driver = "ich9-usb-ehci1"
  multifunction = "on"
  bus = "pcie.0"
  addr = "1d.7"

[device "ich9-pcie-port-1"]
  driver = "pcie-root-port"
  port = "1"
  chassis = "1"
  bus = "pcie.0"
  addr = "1c.0"
"""


NUMA = """
        -object memory-backend-ram,id=ram-node0,size=256M
        -numa node,nodeid=0,cpus=0,memdev=ram-node0"""
MACHINES = {
    "q35+pve0": ("-readconfig {folder}/pve-q35.cfg", "pcie.0"),
    "pc-q35-10.1+pve0": ("-readconfig {folder}/pve-q35.cfg", "pcie.0"),
    "pc+pve0": ("-device piix3-usb-uhci,id=uhci,bus=pci.0,addr=0x1.0x2", "pci.0"),
    "pc-i440fx-9.2+pve1": ("-device piix3-usb-uhci,id=uhci,bus=pci.0,addr=0x1.0x2", "pci.0"),
}
"""By machine: the option that brings USB, and the bus of the agent's controller."""
PVE_QEMU = """#!/bin/sh
# Proxmox VE's QEMU knows every machine also with +pveN behind; the plain QEMU does not.
for word do
    shift
    set -- "$@" "$(printf %s "$word" | sed '/^type=/s/[+]pve[0-9]*$//')"
done
exec "$REAL_QEMU" "$@"
"""


def words(folder, machine, numa):
    """The command line as `qm showcmd` prints it, an option a line; paths and memory are the test's."""
    usb, bus = MACHINES[machine]
    lines = f"""
        -name vm,debug-threads=on
        -no-shutdown
        -chardev socket,id=qmp,path={folder}/100.qmp,server=on,wait=off
        -mon chardev=qmp,mode=control
        -chardev socket,id=qmp-event,path={folder}/qmeventd.sock,reconnect-ms=200
        -mon chardev=qmp-event,mode=control
        -pidfile {folder}/100.pid
        -daemonize
        -smbios type=1,uuid=7d9a1f4e-2f5c-4cc2-8b59-0a8a9b9f6b11
        -smp 1,sockets=1,cores=1,maxcpus=1
        -nodefaults
        -vnc unix:{folder}/100.vnc,password=on
        -display none
        -cpu qemu64
        -m 256
        {numa}
        -S
        {usb.format(folder=folder)}
        -device vmgenid,guid=32b5c0d2-7d1b-4b5a-9d7c-1f4cb9a1d9f3
        -chardev socket,path={folder}/100.qga,server=on,wait=off,id=qga0
        -device virtio-serial,id=qga0,bus={bus},addr=0x8
        -device virtserialport,chardev=qga0,name=org.qemu.guest_agent.0
        -machine type={machine}
        -accel tcg
    """
    return [word for line in lines.splitlines() for word in line.split(maxsplit=1)]


@pytest.fixture
def manager():
    """A folder, and the listening socket of an event daemon in it."""
    with tempfile.TemporaryDirectory(prefix="vs-") as folder, socket.socket(socket.AF_UNIX) as listener:
        Path(folder, "pve-q35.cfg").write_text(MACHINE_CONFIG)
        listener.bind(f"{folder}/qmeventd.sock")
        listener.listen(4)
        listener.settimeout(30)
        yield folder, listener
        pid = Path(folder, "100.pid")
        if pid.exists():
            os.kill(int(pid.read_text()), 9)
        wait_until_nothing_is_left(folder)


def names_its_pidfile(pid, folder):
    return f"\0-pidfile\0{folder}/100.pid\0".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_kvm_is_put_aside_under_a_name_that_proxmox_and_qemu_know_it_by():
    """Proxmox looks for a process called *kvm at the pidfile, and QEMU prefers KVM under such a name."""
    aside = re.findall(r"--divert (\S+)|VIRTSERIAL_QEMU=(\S+)", (ROOT / "docs/proxmox.md").read_text())
    names = [name for pair in aside for name in pair if name]
    assert len(names) == 2
    assert all(name.endswith("kvm") for name in names)


MEMORIES = {"numa": (NUMA, "ram-node0"), "no-numa": ("", "pc.ram")}
CASES = [
    pytest.param(machine, *how, id=f"{machine}-{memory}", marks=[pytest.mark.slow] * ((number + place) % 2))
    for number, machine in enumerate(MACHINES)
    for place, (memory, how) in enumerate(MEMORIES.items())
]
"""Each machine with one of both memories, by turns; VIRTSERIAL_SLOW=1 runs all."""


@pytest.mark.parametrize(("machine", "numa", "memory"), CASES)
def test_a_machine_as_proxmox_starts_it(manager, machine, numa, memory):
    folder, listener = manager
    own = environment(folder)
    qemu = Path(folder, "kvm")
    qemu.write_text(PVE_QEMU)
    qemu.chmod(0o755)
    done = subprocess.run(
        [*PROGRAM, *words(folder, machine, numa)],
        env={**own, "REAL_QEMU": own["VIRTSERIAL_QEMU"], "VIRTSERIAL_QEMU": str(qemu)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "virtserial" not in done.stderr.replace("/virtserial-", ""), done.stderr
    pid = int(Path(folder, "100.pid").read_text())
    os.kill(pid, 0)
    assert names_its_pidfile(pid, folder), "Proxmox takes the machine for stopped"

    # The event daemon's connection: made by the monitor, and made again when it was lost.
    for _ in range(2):
        connection, _ = listener.accept()
        QmpClient(connection, 60).close()
    connection, _ = listener.accept()
    peer = int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), "little")
    assert names_its_pidfile(peer, folder), "qmeventd does not know which machine it is"
    events = QmpClient(connection, 60)

    client = socket.socket(socket.AF_UNIX)
    client.connect(f"{folder}/100.qmp")
    monitor = QmpClient(client, 60)
    assert monitor("query-status")["status"] == "prelaunch"
    assert {"qmp", "qmp-event", "qga0"} <= {each["label"] for each in monitor("query-chardev")}
    assert "qga0" in {each["name"] for each in monitor("qom-list", path="/machine/peripheral")}
    assert "virtserialport" in monitor("human-monitor-command", command_line="info qtree")
    (node,) = monitor("query-memdev")
    assert (node["id"], node["share"]) == (memory, True)
    with socket.socket(socket.AF_UNIX) as agent:
        agent.connect(f"{folder}/100.qga")

    monitor("quit")
    assert events.wait_event("SHUTDOWN")["data"]["reason"] == "host-qmp-quit"
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 30, "QEMU is still there")
    events.close()
    monitor.close()
