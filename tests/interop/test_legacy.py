"""Linux by the legacy interface on machine pc, started by virtserial-qemu, which offers it there as QEMU does.

One virtual machine; the guest's kernel loads virtio_pci with force_legacy or without, and reboots in between.
VIRTSERIAL_LEGACY_MIB, VIRTSERIAL_RESTARTS and VIRTSERIAL_KILLS make it more than an ordinary run's.
"""

from __future__ import annotations

import os
import shlex
import signal
from contextlib import closing, suppress
from pathlib import Path

import pytest
from support.folders import short_folder
from support.guests.dropin_guest import DropinGuest, device_processes
from support.guests.endless import EndlessStreams
from support.guests.exchange import exchange, socket_port
from support.guests.host_end import HostEnd
from support.guests.plugging import unix_server
from support.waiting import wait_until

from virtserial.rig.image import ROOT_PASSWORD

MIB = int(os.environ.get("VIRTSERIAL_LEGACY_MIB", "4"))
KILLS = int(os.environ.get("VIRTSERIAL_KILLS", "2"))
LEGACY, MODERN = "force_legacy=1", ""
VERSION_1 = 32


@pytest.fixture(scope="module")
def place():
    with short_folder() as path:
        yield path


@pytest.fixture(scope="module")
def guest(place):
    words = shlex.split(
        f"-machine pc -m 256 -device virtio-serial,id=ser0 -device virtio-serial,id=ser1,vectors=0,page-per-vq=on "
        f"-chardev socket,id=con0,path={place}/con0,server=on,wait=off -device virtconsole,chardev=con0,bus=ser0.0 "
        f"-chardev socket,id=con1,path={place}/con1,server=on,wait=off -device virtconsole,chardev=con1,bus=ser0.0"
    )
    ports = [*socket_port(5, "msix", f"{place}/msix", "ser0"), *socket_port(5, "intx", f"{place}/intx", "ser1")]
    with DropinGuest([*words, *ports], append="rig.modules=") as guest:
        load(guest, LEGACY)
        yield guest


def load(guest, options):
    """Loads the guest's driver and waits for its ports."""
    guest.check(f"modprobe virtio_pci {options}; modprobe virtio_console")
    guest.check("for n in $(seq 300); do [ -e /dev/virtio-ports/msix -a -e /dev/virtio-ports/intx ] && exit; "
                "sleep 0.1; done; exit 1")  # fmt: skip


def features(guest):
    """The features that were negotiated, of each device."""
    return [text.rstrip("0") for text in guest.check("cat /sys/bus/virtio/devices/*/features").split()]


def is_legacy(guest):
    """Whether both devices are driven by their legacy interface."""
    count = guest.run("grep -c virtio-pci-legacy /proc/ioports").text.strip()
    assert count in ("0", "2")
    agreed = [len(bits) > VERSION_1 for bits in features(guest)]
    assert agreed == [count == "0"] * 2
    return count == "2"


def worker_of(place):
    """The pid of the device process that moves bytes: a child of the other one."""
    pids = device_processes(place)
    for pid in pids:
        with suppress(OSError):
            if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) in pids:
                return pid
    return None


def log_in(path, name):
    """Logs in on a console; `tty` says its name."""
    with closing(HostEnd(path)) as end:
        for prompt, answer in ((b"", b""), (b"login: ", b"root"), (b"assword: ", ROOT_PASSWORD.encode())):
            end.receive_until(prompt, 60) if prompt else None
            end.send(answer + b"\n")
        end.receive_until(b"# ", 60)
        end.send(b"tty\n")
        end.receive_until(f"/dev/{name}".encode(), 60)


def test_a_guest_that_wants_it_uses_the_legacy_interface_with_msix_and_intx(guest, place):
    assert is_legacy(guest)
    interrupts = guest.check("cat /proc/interrupts")
    assert interrupts.count("virtio0-") == 2
    assert "IO-APIC" in next(line for line in interrupts.splitlines() if line.endswith("virtio1"))
    exchange(guest, {"msix": f"{place}/msix", "intx": f"{place}/intx"}, mib=MIB, timeout=60 + 4 * MIB)


def test_logins_on_two_consoles(guest, place):
    for name in ("hvc0", "hvc1"):
        guest.check(f"setsid agetty {name} 9600 vt100")
    for number in (0, 1):
        log_in(f"{place}/con{number}", f"hvc{number}")


def test_a_port_and_a_controller_come_and_go(guest, place):
    guest.qmp("device_add", driver="virtio-serial-pci", id="ser2", bus="pci.0")
    guest.qmp("chardev-add", id="new", backend=unix_server(f"{place}/new"))
    guest.qmp("device_add", driver="virtserialport", id="new", name="new", chardev="new", bus="ser2.0")
    wait_until(lambda: guest.run("test -e /dev/virtio-ports/new").status == 0, 30, complaint="no new port")
    assert guest.check("grep -c virtio-pci-legacy /proc/ioports") == "3"
    exchange(guest, {"new": f"{place}/new"}, mib=1)
    for device in ("new", "ser2"):
        guest.qmp("device_del", id=device)
        guest.monitor.wait_event("DEVICE_DELETED")
    wait_until(
        lambda: guest.run("grep -c virtio-pci-legacy /proc/ioports").text.strip() == "2", 30, complaint="it stays"
    )


@pytest.mark.parametrize("port", ["msix", "intx"])
def test_kills_of_the_worker_cost_no_byte(guest, place, port):
    guest.check("rm -f /tmp/stop")
    with EndlessStreams(guest, port, f"{place}/{port}") as streams:
        streams.wait_for_progress()
        for _ in range(KILLS):
            killed = wait_until(lambda: worker_of(place), complaint="there is no worker")
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda killed=killed: worker_of(place) not in (None, killed), complaint="no new worker")
            streams.wait_for_progress()
        assert streams.finish()["hangups"] == 0
    assert guest.qmp("x-virtserial-query")["doubtful-bytes"] == 0


@pytest.mark.slow
def test_a_guest_that_reboots_may_use_the_other_interface(guest, place):
    for options in (MODERN, LEGACY):
        guest.reboot()
        load(guest, options)
        assert is_legacy(guest) == (options == LEGACY)
        exchange(guest, {"msix": f"{place}/msix", "intx": f"{place}/intx"}, mib=1)
