"""A guest with checked streams moves from one virtserial-qemu to another, is saved and loaded."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.guests.dropin_guest import PROGRAM, QUIET, device_processes, environment
from support.guests.host_end import HostEnd
from support.guests.moved_guest import MACHINE, MovedGuest, Traffic, make_qcow2
from support.waiting import wait_until

from virtserial.migration.bus import parent_of
from virtserial.monitor.qmp import QmpError
from virtserial.rig.guest import KERNEL_OPTIONS
from virtserial.rig.image import guest_image

ROUNDS = int(os.environ.get("VIRTSERIAL_MIGRATIONS", "1"))
"""Live migrations in a row."""
UNTOUCHED = [sys.executable, str(Path(__file__).parents[1] / "support/guests/untouched_qemu.py")]
PORTS = {f"org.test.{number}": f"/dev/virtio-ports/org.test.{number}" for number in (1, 2, 3, 4)}


def devices(controller="", ports=PORTS, extra=""):
    """A controller and its ports, each with a socket of its name."""
    words = ["-device", f"virtio-serial-pci,id=ser0,max_ports=8{controller}"]
    for number, name in enumerate(ports, 1):
        words += ["-chardev", f"socket,id=chr{number},path=FOLDER/{name},server=on,wait=off"]
        words += ["-device", f"virtserialport,nr={number},chardev=chr{number},name={name},id=port{number},bus=ser0.0"]
    return [*words, *extra]


@contextmanager
def moving(words, machine=MACHINE, ports=PORTS):
    with MovedGuest(words, machine=machine) as guest:
        traffic = Traffic(guest, ports)
        traffic.check()
        yield guest, traffic
        traffic.close()


class SharedGuest:
    """One guest for several tests, which boots again after one that failed."""

    def __init__(self):
        self._booted = None
        self._stack = ExitStack()

    @contextmanager
    def use(self):
        """The guest and its streams, with QEMU's parameters as they are at first."""
        if self._booted is None:
            self._booted = self._stack.enter_context(moving(devices()))
        guest, _ = self._booted
        listed = guest.vm.qmp("query-migrate-capabilities")
        on = [{**entry, "state": False} for entry in listed if entry["state"]]
        guest.vm.qmp("migrate-set-capabilities", capabilities=on)
        guest.vm.qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 30})
        try:
            yield self._booted
        except BaseException as error:
            self._booted = None
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise

    def close(self):
        self._stack.close()


@pytest.fixture(scope="module")
def shared():
    guest = SharedGuest()
    yield guest
    guest.close()


def test_live_migration_loses_nothing(shared):
    with shared.use() as (guest, traffic):
        move_often(guest, traffic)


def move_often(guest, traffic):
    for _ in range(ROUNDS):
        guest.migrate(traffic)
        print(round(guest.blackout * 1000), "ms")
        traffic.follow()
        traffic.check()
    assert "needs reset" not in guest.vm.said()


KINDS = {
    "INTx by the legacy interface on pc, four processors": (
        devices(",vectors=0,disable-modern=on"), ("-machine", "pc", "-smp", "4", *MACHINE[2:]),
    ),
    "behind a root port": (
        ["-device", "pcie-root-port,id=rp1,slot=1,chassis=1", *devices(",bus=rp1,addr=0x0")],
        MACHINE,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_live_migration_of_other_machines_loses_nothing(kind):
    with moving(*KINDS[kind]) as (guest, traffic):
        move_often(guest, traffic)


UNREAD = """
import hashlib, os, select, threading, time
fd = os.open('/dev/virtio-ports/org.test.2', os.O_RDWR)
going_on = True
def keep_copying():
    memory = bytearray(40 << 20)
    while going_on:
        for place in range(0, len(memory), 4096):
            memory[place] ^= 1

def received(count):
    data = b''
    while len(data) < count and select.select([fd], [], [], 5)[0]:
        data += os.read(fd, count - len(data))
    return hashlib.sha1(data).hexdigest()
threading.Thread(target=keep_copying, daemon=True).start()
"""


@pytest.mark.parametrize(
    ("program", "arrives"),
    [
        pytest.param(PROGRAM, True, id="touched"),
        pytest.param(UNTOUCHED, False, id="untouched", marks=pytest.mark.slow),
    ],
)
def test_what_came_during_the_copy_and_was_not_read_arrives(program, arrives):
    """The second is the negative control: it is the marking of pages by which it arrives."""
    late = os.urandom(60000)
    with MovedGuest(devices(), program=program) as guest:
        session = guest.session()
        session(UNREAD)
        qmp = guest.vm.qmp
        target = guest.new_vm("-incoming", f"unix:{guest.folder}/m")
        qmp("migrate-set-parameters", **{"max-bandwidth": 20 << 20})
        end, new_end = HostEnd(f"{guest.vm.folder}/org.test.2"), HostEnd(f"{target.folder}/org.test.2")
        qmp("migrate", uri=f"unix:{guest.folder}/m")
        wait_until(lambda: qmp("query-migrate").get("ram", {}).get("dirty-sync-count", 0) >= 3, 60)
        end.send(late)
        end.wait_sent()
        session("going_on = False")
        qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 30})
        assert guest.vm.migration()["status"] == "completed"
        target.wait_status("running")
        guest.moved_to(target)
        assert (session("received(60000)") == hashlib.sha1(late).hexdigest()) == arrives
        end.close()
        new_end.close()


def test_a_stream_in_a_file_and_exec_and_a_descriptor_with_defer(shared):
    with shared.use() as (guest, traffic):
        path = guest.folder / "stream"
        ours, theirs = socket.socketpair()
        guest.vm.qmp.execute("getfd", {"fdname": "out"}, fd=ours.fileno())
        for out, back in (
            ("fd:out", "fd:back"),
            (f"file:{path}", f"file:{path}"),
            (f"exec:cat >{path}", f"exec:cat {path}"),
        ):
            source = guest.vm
            target = guest.new_vm("-incoming", "defer", "-S")
            assert target.status() == "inmigrate"
            traffic.meet(target)
            if out.startswith("fd:"):
                target.qmp.execute("getfd", {"fdname": "back"}, fd=theirs.fileno())
                target.qmp("migrate-incoming", uri=back)
                ours.close()
                theirs.close()
            source.qmp("migrate", uri=out)
            assert source.migration()["status"] == "completed", source.said()
            if not out.startswith("fd:"):
                target.qmp("migrate-incoming", uri=back)
            target.wait_status("paused")
            target.qmp("cont")
            assert target.status() == "running"
            guest.moved_to(target)
            traffic.follow()
            traffic.check()


CAPABILITIES = ["multifd", "mapped-ram"]
CAPABILITIES += [pytest.param(name, marks=pytest.mark.slow) for name in ("xbzrle", "return-path", "validate-uuid")]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_other_ways_to_copy_memory(capability, shared):
    on = {"capabilities": [{"capability": capability, "state": True}]}
    with shared.use() as (guest, traffic):
        target = guest.new_vm("-incoming", "defer")
        traffic.meet(target)
        for vm in (guest.vm, target):
            vm.qmp("migrate-set-capabilities", **on)
        uri = f"file:{guest.folder}/m" if capability == "mapped-ram" else f"unix:{guest.folder}/m"
        if capability != "mapped-ram":
            target.qmp("migrate-incoming", uri=uri)
        guest.vm.qmp("migrate", uri=uri)
        assert guest.vm.migration()["status"] == "completed"
        if capability == "mapped-ram":
            target.qmp("migrate-incoming", uri=uri)
        target.wait_status("running")
        guest.moved_to(target)
        traffic.follow()
        traffic.check()


def test_a_cancelled_and_a_failed_migration_leave_the_guest_as_it_was(shared):
    with shared.use() as (guest, traffic):
        qmp = guest.vm.qmp
        before = qmp("query-migrate-capabilities")
        qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 20})
        qmp("migrate", uri="exec:cat >/dev/null")
        assert qmp("query-migrate-capabilities") == before
        qmp("migrate_cancel")
        assert guest.vm.migration()["status"] == "cancelled"
        traffic.check()
        qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 30})
        for _ in range(2):
            qmp("migrate", uri="exec:head -c 1000000 >/dev/null")
            assert guest.vm.migration()["status"] == "failed"
            wait_until(lambda: guest.vm.status() == "running")
            traffic.check()
        assert qmp("query-migrate-capabilities") == before
        guest.migrate(traffic)
        traffic.follow()
        traffic.check()


def test_a_killed_worker_fails_the_migration_and_not_the_guest(shared):
    with shared.use() as (guest, traffic):
        qmp = guest.vm.qmp
        qmp("migrate-set-parameters", **{"max-bandwidth": 30 << 20})
        qmp("migrate", uri="exec:cat >/dev/null")
        os.kill(worker_of(guest.vm), signal.SIGKILL)
        assert guest.vm.migration()["status"] == "failed"
        guest.vm.wait_status("running")
        traffic.check()
        assert "it is not known which pages of guest memory were written" in guest.vm.said()
        qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 30})
        guest.migrate(traffic)
        traffic.follow()
        traffic.check()


def worker_of(vm):
    """The process that moves the bytes: the one whose parent is the other."""
    keeper, worker = sorted(device_processes(vm.folder))
    return worker if parent_of(worker) == keeper else keeper


def test_two_controllers_a_console_a_backlog_and_a_port_that_was_added():
    words = [
        *devices(),
        *("-chardev", "socket,id=kept,path=FOLDER/kept,server=on,wait=off,clients=2,backlog=64k"),
        *("-device", "virtserialport,bus=ser0.0,chardev=kept,nr=6,name=kept"),
        *("-device", "virtio-serial-pci,id=ser1,vectors=0"),
        *("-chardev", "socket,id=con,path=FOLDER/console,server=on,wait=off"),
        *("-device", "virtconsole,bus=ser1.0,chardev=con,nr=0"),
        *("-chardev", "socket,id=late,path=FOLDER/late,server=on,wait=off"),
    ]
    added = {"driver": "virtserialport", "bus": "ser1.0", "nr": 3, "name": "late", "chardev": "late", "id": "late"}
    with MovedGuest(words) as guest:
        guest.vm.qmp("device_add", **added)
        ports = {**PORTS, "console": "/dev/hvc0", "late": "/dev/virtio-ports/late"}
        # A console takes few bytes at a time.
        traffic = Traffic(guest, ports, size=100, pause=0.05)
        traffic.session("kept = os.open('/dev/virtio-ports/kept', os.O_RDWR); os.write(kept, b'said before')")
        traffic.check(at_least=300)
        target = guest.new_vm("-incoming", "defer")
        target.qmp("device_add", **added)
        traffic.meet(target)
        uri = f"unix:{guest.folder}/m"
        target.qmp("migrate-incoming", uri=uri)
        guest.vm.qmp("migrate", uri=uri)
        refused = guest.vm.qmp
        with pytest.raises(QmpError, match="device_del not allowed while migrating"):
            refused("device_del", id="late")
        assert guest.vm.migration()["status"] == "completed"
        target.wait_status("running")
        guest.moved_to(target)
        traffic.follow()
        traffic.session("os.write(kept, b' and after')")
        late = HostEnd(f"{target.folder}/kept")
        assert late.receive(21) == b"said before and after"
        late.close()
        traffic.check(at_least=300)
        traffic.close()


def test_a_destination_with_other_ports_ends_with_a_line_and_the_source_goes_on(shared):
    with shared.use() as (guest, traffic):
        before, guest.words = guest.words, [*MACHINE, *devices(ports=[*PORTS, "one.more"])]
        target = guest.new_vm("-incoming", f"unix:{guest.folder}/m")
        guest.words = before
        guest.vm.qmp("migrate", uri=f"unix:{guest.folder}/m")
        assert target.process.wait(30) == 1
        assert "port 5 is not plugged in there and a serial port named 'one.more' here" in target.said()
        guest.vm.migration()
        if guest.vm.status() != "running":
            guest.vm.qmp("cont")  # What whoever moves machines does when the destination is gone.
        traffic.check()


AGENT = """
import json, os, threading
def serve(fd):
    while True:
        for line in os.read(fd, 1000).splitlines():
            assert json.loads(line) == {"execute": "guest-ping"}
            os.write(fd, b'{"return": {}}\\n')
threading.Thread(target=serve, args=(os.open('/dev/virtio-ports/agent', os.O_RDWR),), daemon=True).start()
"""
POOL = Path(__file__).parents[2] / "examples" / "warm_guests.py"


@pytest.mark.slow
def test_ten_forks_of_one_stream_each_answer_on_their_own_port(folder):
    """The example's pool of warm guests."""
    words = devices(ports=["agent"])
    with MovedGuest(words) as guest:
        guest.session()(AGENT)
        guest.vm.qmp("stop")
        guest.vm.qmp("migrate", uri=f"file:{folder}/warm")
        assert guest.vm.migration()["status"] == "completed"
    image = guest_image()
    kernel = ["-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append", KERNEL_OPTIONS]
    machine = [*MACHINE, *QUIET, *kernel, *("-serial", "null", "-serial", "null")]
    with subprocess.Popen(
        [sys.executable, POOL, f"{folder}/warm", "10", "--", *machine, *words],
        env=environment(folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as pool:  # fmt: skip
        answers = [pool.stdout.readline() for _ in range(10)]
        print(*answers)
        assert all("answered after" in line for line in answers)
        pool.stdin.close()
        assert pool.wait(30) == 0


def test_what_a_user_sees_of_a_migration(shared):
    with shared.use() as (guest, traffic):
        qmp = guest.vm.qmp
        caps = [{"capability": name, "state": True} for name in ("events", "pause-before-switchover")]
        qmp("migrate-set-capabilities", capabilities=caps)
        target = guest.new_vm("-incoming", f"unix:{guest.folder}/m")
        qmp("migrate", uri=f"unix:{guest.folder}/m")
        wait_until(lambda: qmp("query-migrate")["status"] == "pre-switchover")
        qmp("migrate_cancel")
        assert guest.vm.migration()["status"] == "cancelled"
        wait_until(lambda: guest.vm.status() == "running")
        traffic.check()
        target.process.wait(60)


def test_snapshots_on_a_disk(folder):
    image = folder / "disk.qcow2"
    make_qcow2(image, 64 << 20)
    disk = ["-drive", f"file={image},if=none,id=disk,format=qcow2"]
    with MovedGuest([*devices(), *disk]) as guest:
        traffic = Traffic(guest, PORTS)
        traffic.check()
        assert guest.vm.hmp("savevm one") == ""
        traffic.check()
        assert "does not exist" in guest.vm.hmp("loadvm nosuch")
        print("after a failed loadvm:", guest.vm.status())
        guest.vm.qmp("cont")
        traffic.check()
        for _ in range(2):
            traffic.part()
            assert guest.vm.hmp("loadvm one") == ""
            assert guest.vm.status() == "running"
            traffic.follow_to_another_time()
            traffic.check()
        nodes = guest.vm.qmp("query-named-block-nodes")
        node = next(entry["node-name"] for entry in nodes if entry["drv"] == "qcow2")
        job = {"tag": "two", "vmstate": node, "devices": [node]}
        guest.vm.qmp("snapshot-save", **{"job-id": "save", **job})
        wait_until(lambda: guest.vm.qmp("query-jobs")[0]["status"] == "concluded")
        assert "error" not in guest.vm.qmp("query-jobs")[0]
        guest.vm.qmp("job-dismiss", id="save")
        traffic.check()
        traffic.part()
        guest.vm.qmp("snapshot-load", **{"job-id": "load", **job})
        wait_until(lambda: guest.vm.qmp("query-jobs")[0]["status"] == "concluded")
        assert "error" not in guest.vm.qmp("query-jobs")[0]
        guest.vm.wait_status("running")
        traffic.follow_to_another_time()
        traffic.check()
        traffic.part()
        guest.vm.kill()
        guest.moved_to(guest.new_vm("-loadvm", "two"))
        guest.vm.wait_status("running")
        traffic.follow_to_another_time()
        traffic.check()
        assert guest.vm.hmp("delvm two") == ""
        traffic.close()
