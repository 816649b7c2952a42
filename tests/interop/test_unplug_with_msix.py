"""Controllers with MSI-X that are unplugged, those of boot time too: QEMU 11.1.3 aborts if it saw the MSI-X."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
from support.guests.dropin_guest import DropinGuest, device_processes
from support.guests.endless import EndlessStreams
from support.guests.exchange import socket_port
from support.guests.guest_side import PORT_HELPERS
from support.guests.host_end import HostEnd
from support.guests.scenario import PLUGGABLE, opened_session, plug_port, transfer, unplug
from support.waiting import wait_until

from virtserial.monitor.qmp import QmpError
from virtserial.rig import Guest

Q35 = ("q35", PLUGGABLE, "rp1")
PC = ("pc", [], "pci.0")
ECHO = """
fd = open_port('boot')
until(lambda: not events(fd) & {'HUP'})
while data := os.read(fd, 64):
    os.write(fd, data)
"""
SCRIBBLE = """
import mmap, os, random, time
table = mmap.mmap(os.open('/sys/bus/pci/devices/{address}/resource1', os.O_RDWR), 4096)
words, chance, rounds = memoryview(table).cast('I'), random.Random(5), 0
end = time.monotonic() + 4
while time.monotonic() < end:
    entry = 4 * chance.randrange(2)
    low = words[entry]
    words[entry], words[entry + 1] = chance.choice([(0, 0), (0x1000, 0), (0xfef00000, 0), (low, 1), (low | 1, 0)])
    words[entry + 3] = 1
    time.sleep(chance.random() / 1000)
    words[entry + 3] = 0
    words[entry], words[entry + 1] = low, 0
    rounds += 1
print(rounds)
"""
ONE_VECTOR_EACH = 7
"""vectors= with which a controller of max_ports=2 has a vector for each of its 6 queues."""


@contextlib.contextmanager
def pluggable_machine(starter, shape, options, smp=1):
    """A machine whose controllers can be unplugged: on PCI Express by root ports, on pc by ACPI."""
    kind, more, _ = shape
    words = ["-machine", kind, "-m", "256M", "-nodefaults", "-smp", str(smp), *more, *options]
    if starter == "qemu":
        with Guest([*more, *options], smp=smp, qemu_extra=["-machine", kind]) as guest:
            yield guest
    else:
        with DropinGuest(words) as guest:
            yield guest


def boot_controller(shape, folder, **properties):
    """The options of a controller that is there from the start, with a port."""
    text = "".join(f",{name}={value}" for name, value in properties.items())
    return ["-device", f"virtio-serial-pci,id=ser0,bus={shape[2]}{text}", *socket_port(1, "boot", f"{folder}/boot")]


def plug_again(monitor, shape, **properties):
    """The same controller and port once more, on the chardev that is still there."""
    monitor("device_add", driver="virtio-serial-pci", id="ser0", bus=shape[2], **properties)
    monitor("device_add", driver="virtserialport", id="port-boot", name="boot", bus="ser0.0", chardev="chr-boot", nr=1)


def uses_msix(guest):
    return "MSI" in guest.check("grep virtio /proc/interrupts")


def interrupts_of(guest, what):
    """How often the interrupts were taken that have `what` in their line."""
    lines = [line.split() for line in guest.check("cat /proc/interrupts").splitlines() if what in line]
    return sum(int(word) for line in lines for word in line[1:] if word.isdecimal())


def kill_worker(guest):
    """The worker is the child of the keeper."""
    pids = device_processes(guest.folder)
    (worker,) = [pid for pid in pids if int(Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[1]) in pids]
    os.kill(worker, signal.SIGKILL)


def quit_with_status(guest):
    guest.monitor("quit")
    return guest.wait_for_end()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [pytest.param(Q35, id="q35"), pytest.param(PC, id="pc")])
def test_controller_from_boot_goes_and_comes_back(starter, shape, folder):
    """Three times in a machine; between them the port works, and with MSI-X."""
    with pluggable_machine(starter, shape, boot_controller(shape, folder)) as guest:
        for _ in range(3):
            transfer(guest, {"boot": f"{folder}/boot"})
            assert uses_msix(guest)
            unplug(guest.monitor, "ser0")
            plug_again(guest.monitor, shape)
        transfer(guest, {"boot": f"{folder}/boot"})
        unplug(guest.monitor, "ser0")
        assert quit_with_status(guest) == 0


def test_controller_goes_under_traffic_both_ways(starter, folder):
    """Three times: from boot, and twice one that was added; QEMU lives, and the next one's streams are whole."""
    with pluggable_machine(starter, Q35, boot_controller(Q35, folder)) as guest:
        for _ in range(3):
            streams = EndlessStreams(guest, "boot", f"{folder}/boot")
            with streams:
                streams.wait_for_progress(2_000_000)
                unplug(guest.monitor, "ser0")
                assert streams.wrong is None
                plug_again(guest.monitor, Q35)
            guest.check("for n in $(seq 1200); do [ -e /dev/virtio-ports/boot ] && exit; sleep 0.05; done; exit 1")
        transfer(guest, {"boot": f"{folder}/boot"})
        assert uses_msix(guest)
        unplug(guest.monitor, "ser0")
        assert quit_with_status(guest) == 0


@pytest.mark.slow
def test_controller_goes_while_a_port_is_open(starter, folder):
    """unplug of a controller that was there at boot, with its ports open and one of them read from."""
    options = [*boot_controller(Q35, folder), *socket_port(2, "second", f"{folder}/second")]
    with pluggable_machine(starter, Q35, options) as guest:
        session = opened_session(guest)
        session("fd = open_port('boot', os.O_RDWR | os.O_NONBLOCK); second = open_port('second')")
        unplug(guest.monitor, "ser0")
        session("until(lambda: events(fd) & {'HUP'}); os.close(fd); os.close(second)")
        session.close()
        plug_again(guest.monitor, Q35)
        transfer(guest, {"boot": f"{folder}/boot"})
        # A second controller beside it, then the first again.
        guest.monitor("device_add", driver="virtio-serial-pci", id="ser1", bus="rp2")
        plug_port(guest.monitor, "other", f"{folder}/other", "ser1.0")
        unplug(guest.monitor, "ser0")
        transfer(guest, {"other": f"{folder}/other"})
        unplug(guest.monitor, "ser1")
        assert quit_with_status(guest) == 0


@pytest.mark.slow
def test_guest_ejects_the_slot_by_itself(starter, folder):
    """Nobody asks a monitor: the slot's power file."""
    with pluggable_machine(starter, Q35, boot_controller(Q35, folder)) as guest:
        guest.check(
            "address=$(basename $(readlink -f /sys/bus/virtio/devices/virtio0/..)); "
            "slot=$(dirname $(grep -lx ${address%.*} /sys/bus/pci/slots/*/address)); echo 0 >$slot/power"
        )
        guest.monitor.wait_event("DEVICE_DELETED")
        wait_until(lambda: guest.run("ls /dev/virtio-ports/boot").status, complaint="the port is still there")
        plug_again(guest.monitor, Q35)
        transfer(guest, {"boot": f"{folder}/boot"})
        assert quit_with_status(guest) == 0


@pytest.mark.slow
def test_a_reboot_keeps_msix(starter, folder):
    with pluggable_machine(starter, Q35, boot_controller(Q35, folder)) as guest:
        guest.reboot()
        transfer(guest, {"boot": f"{folder}/boot"})
        assert uses_msix(guest)
        unplug(guest.monitor, "ser0")
        assert quit_with_status(guest) == 0


@pytest.mark.slow
def test_changes_of_affinity_in_ping_pong_lose_no_interrupt(starter, folder):
    """Linux masks the vector, writes another address and unmasks it, 1,500 times, while each answer waits for one."""
    options = boot_controller(Q35, folder, max_ports=2, vectors=ONE_VECTOR_EACH)
    with pluggable_machine(starter, Q35, options, smp=2) as guest:
        irqs = guest.check("grep virtio0 /proc/interrupts | cut -d: -f1").split()
        assert len(irqs) >= 3, "a vector for each queue"
        end, trips = HostEnd(f"{folder}/boot", timeout=30), 0
        echo = guest.start_python("import os, time\n" + PORT_HELPERS + ECHO)
        mover = guest.start(
            f"for n in $(seq 750); do for cpu in 1 2; do for irq in {' '.join(irqs)}; do "
            "echo $cpu >/proc/irq/$irq/smp_affinity; done; done; done"
        )
        while mover.status is None or trips < 200:
            end.send(trips.to_bytes(8, "little"))
            assert int.from_bytes(end.receive(8), "little") == trips, "an interrupt is lost"
            trips += 1
        assert mover.wait(60).status == 0
        assert echo.status is None
        end.close()


@pytest.mark.slow
def test_a_worker_dies_between_two_transfers_and_in_one(folder):
    """Table, pending bits and what is shown are its successor's."""
    with pluggable_machine("virtserial-qemu", Q35, boot_controller(Q35, folder)) as guest:
        with EndlessStreams(guest, "boot", f"{folder}/boot") as streams:
            for _ in range(5):
                streams.wait_for_progress()
                kill_worker(guest)
                time.sleep(0.05)
            streams.wait_for_progress()
            assert streams.wrong is None
            assert streams.finish()["wrong"] is None
        before = interrupts_of(guest, "virtio0-virtqueues")
        transfer(guest, {"boot": f"{folder}/boot"})
        assert interrupts_of(guest, "virtio0-virtqueues") > before
        unplug(guest.monitor, "ser0")
        assert quit_with_status(guest) == 0


def test_guest_scribbles_over_its_table_under_traffic_and_unplug_off_is_refused(folder):
    """Addresses that are no interrupts, masks in a loop: nothing is written there, and no interrupt is lost.

    The controller beside it has unplug=off: the monitor names the word to add, and goes on.
    """
    options = [*boot_controller(Q35, folder), "-device", "virtio-serial-pci,id=fixed,bus=rp2,unplug=off"]
    options += socket_port(1, "fixed", f"{folder}/fixed", "fixed")
    with pluggable_machine("virtserial-qemu", Q35, options) as guest:
        port = guest.check("basename $(readlink /dev/virtio-ports/boot)")
        address = guest.check(f"basename $(readlink -f /sys/class/virtio-ports/{port}/device/..)")
        with EndlessStreams(guest, "boot", f"{folder}/boot") as streams:
            streams.wait_for_progress()
            assert int(guest.python(SCRIBBLE.format(address=address))) > 100
            streams.wait_for_progress()
            assert streams.finish()["wrong"] is None
        with pytest.raises(QmpError, match="add unplug=on to its -device"):
            guest.monitor("device_del", id="fixed")
        unplug(guest.monitor, "ser0")
        transfer(guest, {"fixed": f"{folder}/fixed"})
        assert uses_msix(guest)
        assert quit_with_status(guest) == 0


@pytest.mark.slow
def test_messages_pass_an_iommu(our_device, folder):
    options = ["-device", "virtio-serial,id=ser0,unplug=on", *socket_port(1, "boot", f"{folder}/boot")]
    with our_device.attach(options) as attached, Guest(attached.arguments, iommu=True) as guest:
        transfer(guest, {"boot": f"{folder}/boot"})
        assert uses_msix(guest)

