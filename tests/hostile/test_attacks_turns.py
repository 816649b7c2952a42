"""Attacks by work: whatever is asked for in one message or in one turn, others get theirs."""

from __future__ import annotations

import contextlib
import os
import socket
import time

import pytest
from support.device_process import DeviceProcess, connect, controller_options, port_options
from support.raw_vmm import VERSION, RawVmm
from support.rounds import rounds

from virtserial.conformance.driver import HostileDriver
from virtserial.conformance.steps import BUFFER, NOTIFY, STATUS, TX
from virtserial.conformance.vfio_user_vmm import Vmm
from virtserial.errors import PeerError
from virtserial.pci.layout import REGISTER_BAR
from virtserial.vfio_user import wire
from virtserial.vfio_user.client import Client

SECONDS = rounds(3, 4)
"""More than a neighbour may wait."""
CROWD = 511


@pytest.fixture
def device(folder):
    """`ser0` with 31 ports, the first of them on a multiplexed socket `m`; `ser1` with the neighbour's port `c`."""
    multiplexed = ["-chardev", f"socket,id=m,path={folder}/m,server=on,wait=off,mux=on"]
    process = DeviceProcess(
        folder,
        *controller_options(folder, more=f",max_ports={CROWD}"),
        *multiplexed, "-device", "virtserialport,bus=ser0.0,nr=1,chardev=m,name=m1",
        "-device", "virtserialport,bus=ser0.0,nr=2,chardev=m,name=m2",
        *(word for number in range(3, 32) for word in port_options(folder, f"p{number}", number)),
        *controller_options(folder, "ser1"), *port_options(folder, "c", 1, "ser1"),
    )  # fmt: skip
    yield process
    if process.process.poll() is None:
        process.kill()


def until_the_end(seconds=SECONDS):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield


def test_a_multiplexer_s_client_that_sends_escapes_without_end(folder, attack):
    with attack(), connect(folder / "m") as client:
        for _ in until_the_end():
            with contextlib.suppress(TimeoutError):
                client.settimeout(0.2)
                client.sendall(b"\x01c\x01h\x01s\x01b" * 4096)


def test_doorbells_of_many_ports_that_are_posted(folder, attack):
    """Each edge of a readable socket once queued another turn."""
    with attack(), contextlib.closing(Vmm(folder / "ser0.sock")) as vmm, contextlib.suppress(PeerError, OSError):
        HostileDriver(vmm).start()
        for _ in until_the_end(rounds(5, 10)):
            for queue in range(2, 1024):
                vmm.store(NOTIFY + 4 * queue, queue, 2)


def test_resets_in_one_message(folder, attack):
    on, off = (wire.ONE_WRITE.pack(STATUS, REGISTER_BAR, 1, bytes([value, *bytes(7)])) for value in (1, 0))
    message = wire.request(wire.VFIO_USER_REGION_WRITE_MULTI, 7, wire.WRITE_COUNT.pack(200) + 100 * (on + off))
    with attack(), RawVmm(folder / "ser0.sock") as vmm, contextlib.suppress(AssertionError, OSError):
        vmm.send(VERSION)
        vmm.reply()
        vmm.socket.settimeout(0.5)
        for _ in until_the_end():
            with contextlib.suppress(TimeoutError):
                vmm.send(message)


def test_bad_rings_and_resets(folder, attack):
    with attack(), contextlib.closing(Vmm(folder / "ser0.sock")) as vmm, contextlib.suppress(PeerError, OSError):
        driver = HostileDriver(vmm)
        for _ in until_the_end():
            driver.start()
            driver.send(TX, BUFFER, 0)


def test_hosts_that_come_and_go_and_write_all_the_time(folder, attack):
    with attack():
        for _ in until_the_end():
            for number in range(3, 20):
                with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as host:
                    host.setblocking(False)
                    host.connect(f"{folder}/p{number}")
                    host.send(bytes(65536))


def test_an_eventfd_that_blocks_costs_its_vmm_the_connection(device, folder, attack):
    """O_NONBLOCK is the open file's, so the VMM can clear it after the device has set it; a full counter blocks."""
    full = os.eventfd(0)
    os.eventfd_write(full, (1 << 64) - 2)
    msix = wire.VFIO_PCI_MSIX_IRQ_INDEX
    with attack(), Client(folder / "ser0.sock", timeout=30) as vmm:
        vmm.set_irqs(msix, 0, [full])
        os.set_blocking(full, True)
        with pytest.raises(PeerError):
            for _ in range(100):
                vmm.trigger_irqs(msix, 0, 1)
    os.close(full)
    assert "eventfd wait" in device.log
