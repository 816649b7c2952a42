"""What is left when somebody is killed at a step of a migration: by hand, VIRTSERIAL_MIGRATIONS=1 prints the table."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager

import pytest
from support.guests.dropin_guest import device_processes
from support.guests.moved_guest import MovedGuest, Traffic
from support.waiting import wait_until

from virtserial.errors import VirtserialError
from virtserial.migration.bus import parent_of

pytestmark = pytest.mark.slow

PORTS = {"org.test.1": "/dev/virtio-ports/org.test.1"}
WORDS = [
    *("-device", "virtio-serial-pci,id=ser0,max_ports=4"),
    *("-chardev", "socket,id=chr1,path=FOLDER/org.test.1,server=on,wait=off"),
    *("-device", "virtserialport,nr=1,chardev=chr1,name=org.test.1,bus=ser0.0"),
]
STEPS = ("copy", "pre-switchover", "completed")


def pids(vm):
    """The process ids of one side."""
    keeper, worker = sorted(device_processes(vm.folder))
    if parent_of(worker) != keeper:
        keeper, worker = worker, keeper
    return {"QEMU": vm.process.pid, "keeper": keeper, "worker": worker}


@contextmanager
def at(step):
    """A migration that has come to a step; the source, its traffic, and the destination."""
    with MovedGuest(WORDS) as guest:
        traffic = Traffic(guest, PORTS)
        traffic.check(at_least=1000)
        source = guest.vm
        target = guest.new_vm("-incoming", f"unix:{guest.folder}/m", *(["-S"] if step == "completed" else []))
        traffic.meet(target)
        caps = [{"capability": "pause-before-switchover", "state": step == "pre-switchover"}]
        source.qmp("migrate-set-capabilities", capabilities=caps)
        if step == "copy":
            source.qmp("migrate-set-parameters", **{"max-bandwidth": 4 << 20})
        source.qmp("migrate", uri=f"unix:{guest.folder}/m")
        if step == "copy":
            time.sleep(0.5)
        else:
            wait_until(lambda: source.qmp("query-migrate")["status"] == step)
        if step == "completed":
            target.wait_status("paused")
        try:
            yield guest, source, target, traffic
        finally:
            for stream in traffic.streams:
                stream.drop()


def state_of(vm):
    """What a side has come to."""
    end = vm.process.poll()
    if end is not None:
        return f"ended ({end})"
    try:
        return vm.status()
    except (OSError, VirtserialError):
        return "no monitor"


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("who", ["QEMU", "keeper", "worker"])
@pytest.mark.parametrize("side", ["source", "destination"])
def test_killed(side, who, step):
    with at(step) as (guest, source, target, traffic):
        os.kill(pids(source if side == "source" else target)[who], signal.SIGKILL)
        time.sleep(1)
        if step == "pre-switchover" and source.process.poll() is None and (side, who) != ("source", "keeper"):
            source.qmp("migrate-continue", state="pre-switchover")
        time.sleep(4)
        print(f"| {side}'s {who} | {step} | {state_of(source)} | {state_of(target)} |")
        if side == "destination" or who == "worker":
            # The guest is still somebody's: where it was, if it has not been let run on the other side.
            if state_of(source) != "running":
                source.qmp("cont")
            traffic.check(at_least=1000)
        elif step == "completed":
            target.qmp("cont")
            guest.moved_to(target)
            traffic.follow()
            traffic.check(at_least=1000)
