"""A VMM that is killed, one that is stopped, and a guest's driver that breaks rules as fast as it can."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import struct
import subprocess
import sys
import time

import pytest
from support.device_process import connect, controller_options, port_options
from support.embedded_guest import EmbeddedGuest
from support.lingering import lingering_socket
from support.places import ENVIRONMENT
from support.raw_vmm import VERSION, RawVmm
from support.waiting import wait_until

from virtserial.errors import PeerError
from virtserial.memory.table import MAX_REGIONS
from virtserial.vfio_user import wire
from virtserial.vfio_user.client import Client
from virtserial.virtio.status import (
    ACKNOWLEDGE,
    DEVICE_NEEDS_RESET,
    DRIVER,
    DRIVER_OK,
    FEATURES_OK,
)

COMMON_BAR, NOTIFY = 4, 0x3000


class GuestProcess:
    """The embedded guest in a process of its own: a VMM that can be killed."""

    def __init__(self, folder, controller="ser0"):
        self.ports = folder / f"ports-{controller}-{time.monotonic_ns()}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "virtserial", "guest", "attach", str(folder / f"{controller}.sock"),
             "--as", "pty", "--run-dir", str(self.ports)],
            env=ENVIRONMENT, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def open(self, name):
        path = self.ports / "virtio-ports" / name
        wait_until(path.exists, complaint="the guest has no such port")
        return os.open(path, os.O_RDWR | os.O_NOCTTY)


@contextlib.contextmanager
def endless_writer(fd):
    """A process that writes as much as goes."""
    process = subprocess.Popen(["cat", "/dev/zero"], stdout=fd, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_vmm_s_memory_and_descriptors_are_given_back_when_it_ends(device, folder, number):
    before, worker = device.descriptors_at_rest(folder / "ser0.sock"), device.worker
    for _ in range(2):
        with GuestProcess(folder) as guest, connect(folder / "a") as host:
            fd = guest.open("a")
            os.write(fd, b"hello")
            assert host.recv(5) == b"hello"
            assert device.worker_maps("virtserial-dma") >= 1
            # The keeper takes what the worker has handed to it in its own time.
            wait_until(lambda: device.descriptors()[0] > before[0] + 2, complaint="the keeper holds nothing")
            assert device.descriptors()[1] > before[1]
            guest.process.send_signal(number)
            guest.process.wait()
            os.close(fd)
            wait_until(lambda: device.worker_maps("virtserial-dma") == 0, complaint="the memory is still mapped")
        wait_until(lambda: device.descriptors() == before, complaint=f"{before} became {device.descriptors()}")
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        guest.check_port("a", folder / "a")
    assert device.worker == worker


def test_vmm_that_is_killed_under_load_leaves_nothing(device, folder):
    before = device.descriptors_at_rest(folder / "ser0.sock")
    for _ in range(3):
        with GuestProcess(folder) as guest, connect(folder / "a") as host:
            fd = guest.open("a")
            with endless_writer(fd):
                count = 0
                while count < 1_000_000:
                    count += len(host.recv(1 << 18))
                guest.process.kill()
                guest.process.wait()
            os.close(fd)
        wait_until(lambda: device.descriptors() == before, complaint=f"{before} became {device.descriptors()}")
        assert device.worker_maps("virtserial-dma") == 0


def test_stopped_vmm_does_not_disturb_another_controller(start, folder):
    device = start(
        *controller_options(folder), *port_options(folder, "a"),
        *controller_options(folder, "ser1"), *port_options(folder, "b", 1, "ser1"),
    )  # fmt: skip
    with GuestProcess(folder) as stopped, EmbeddedGuest(folder / "ser1.sock", "b") as guest:
        fd = stopped.open("a")
        with connect(folder / "a") as host, endless_writer(fd):
            assert host.recv(1000)
            stopped.process.send_signal(signal.SIGSTOP)
            try:
                for _ in range(5):
                    guest.check_port("b", folder / "b")
                # It fills whatever there is room for, and its host's end is read no more.
                host.setblocking(False)
                for _ in range(5):
                    guest.check_port("b", folder / "b")
            finally:
                stopped.process.send_signal(signal.SIGCONT)
            host.settimeout(60)
            for _ in range(100):
                assert host.recv(1 << 16)
        os.close(fd)
    assert device.log == ""


class RuleBreaker:
    """A driver on a raw client: its available ring runs ahead of what a queue can hold."""

    def __init__(self, path):
        self.client = Client(path)
        self.memory = os.memfd_create("rule breaker", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.memory, 4096)
        # avail.idx, far beyond the 32 entries of a control queue.
        os.pwrite(self.memory, (1000).to_bytes(2, "little"), 1024 + 2)
        self.client.dma_map(0x10000, 4096, fd=self.memory)
        self.client.region_write(wire.VFIO_PCI_CONFIG_REGION_INDEX, 4, (6).to_bytes(2, "little"))

    def _write(self, offset, value, width):
        self.client.region_write(COMMON_BAR, offset, value.to_bytes(width, "little"))

    def status(self):
        return self.client.region_read(COMMON_BAR, 0x14, 1)[0]

    def break_a_rule(self):
        """Reset, set up, break; returns when the device asks for a reset."""
        self._write(0x14, 0, 1)
        self._write(0x14, ACKNOWLEDGE | DRIVER, 1)
        for select, features in ((0, 2), (1, 1)):
            self._write(0x08, select, 4)
            self._write(0x0C, features, 4)
        self._write(0x14, ACKNOWLEDGE | DRIVER | FEATURES_OK, 1)
        self._write(0x16, 3, 2)
        for offset, address in ((0x20, 0x10000), (0x28, 0x10400), (0x30, 0x10800)):
            self._write(offset, address, 8)
        self._write(0x1C, 1, 2)
        self._write(0x14, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK, 1)
        self.client.region_write(COMMON_BAR, NOTIFY + 4 * 3, (3).to_bytes(2, "little"))
        wait_until(lambda: self.status() & DEVICE_NEEDS_RESET, complaint="the device has not stopped")

    def close(self):
        self.client.close()
        os.close(self.memory)


def test_rules_broken_in_a_loop_are_logged_once_a_second_and_counted(device, folder):
    worker = device.worker
    guest = RuleBreaker(folder / "ser0.sock")
    try:
        guest.break_a_rule()
        device.wait_for_log("ser0: the guest's driver broke a rule, the device needs a reset: ")
        started, loops = time.monotonic(), 1
        while time.monotonic() < started + 1.5 or loops <= 50:
            guest.break_a_rule()
            loops += 1
        device.wait_for_log("more within 1 s: the guest's driver broke a rule")
        lines = device.log.splitlines()
        assert len(lines) <= 2 + (time.monotonic() - started)
        told = sum(int(line.split("ser0: ")[1].split()[0]) for line in lines if "more within" in line)
        assert told + len(lines) > loops / 2
    finally:
        guest.close()
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as driver:
        driver.check_port("a", folder / "a", 10_000)
    assert device.worker == worker


def cut(guest):
    """Take all that is in a guest's memory files away."""
    for region in guest.driver._memory.regions:
        os.ftruncate(region.fd, 0)


def two_controllers(start, folder, *more):
    return start(
        *more,
        *controller_options(folder), *port_options(folder, "a"),
        *controller_options(folder, "ser1"), *port_options(folder, "b", 1, "ser1"),
    )  # fmt: skip


def test_restoration_that_fails_costs_only_its_vmm_the_connection(start, folder):
    device = two_controllers(start, folder)
    with (
        EmbeddedGuest(folder / "ser0.sock", "a", sealed=False) as attacker,
        EmbeddedGuest(folder / "ser1.sock", "b") as neighbour,
    ):
        neighbour.check_port("b", folder / "b", 10_000)
        cut(attacker)
        device.wait_for_new_worker(device.kill_worker())
        neighbour.check_port("b", folder / "b", 10_000)
        device.wait_for_log("ser0: what its VMM had cannot be restored, its connection is closed: ")
        assert device.log.count("a new one takes over") == 1
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        guest.check_port("a", folder / "a", 10_000)


def test_many_maps_do_not_make_a_neighbour_wait_for_a_restart(start, folder):
    device = two_controllers(start, folder)
    client = Client(folder / "ser0.sock")
    try:
        for number in range(MAX_REGIONS):
            client.dma_map(number << 13, 4096)
        with EmbeddedGuest(folder / "ser1.sock", "b") as neighbour, connect(folder / "b") as host:
            received = neighbour.open("b")
            neighbour.run_until(lambda: received.port.host_connected)
            waits = []
            for count in range(1, 4):
                device.kill_worker()
                killed = time.monotonic()
                host.sendall(b"x")
                neighbour.run_until(lambda wanted=count: len(received.data) == wanted)
                waits.append(time.monotonic() - killed)
                if waits[-1] < 1:
                    break
                time.sleep(2.5)
        assert waits[-1] < 1, waits
    finally:
        client.close()


def test_map_beyond_the_limit_is_refused_with_one_line(device, folder):
    client = Client(folder / "ser0.sock")
    try:
        for number in range(MAX_REGIONS):
            client.dma_map(number << 13, 4096)
        for _ in range(3):
            with pytest.raises(PeerError) as refused:
                client.dma_map(1 << 40, 4096)
            assert refused.value.errno == errno.ENOSPC
        assert device.log.count("\n") == 1, device.log
        client.dma_unmap(0, 4096)
        client.dma_map(1 << 40, 4096)
    finally:
        client.close()


MAP = wire.request(wire.VFIO_USER_DMA_MAP, 5, wire.DmaMap(wire.DmaMap.FORMAT.size, 3, 0, 1 << 40, 4096).pack())
SET_IRQS = wire.request(wire.VFIO_USER_DEVICE_SET_IRQS, 6, struct.pack("<IIIII", 20, 1 << 2 | 1 << 5, 2, 0, 1))


@pytest.mark.parametrize("message", [MAP, SET_IRQS], ids=["map", "irqs"])
def test_socket_that_a_vmm_passes_holds_nobody(start, folder, message):
    """Its last close would wait for a minute, and the keeper or the worker with it."""
    device = start(*controller_options(folder), *controller_options(folder, "ser1"))
    worker = device.worker
    with lingering_socket() as lingering:
        with RawVmm(folder / "ser0.sock") as vmm:
            vmm.send(VERSION)
            vmm.reply()
            vmm.send(message, [lingering.fileno()])
            vmm.reply()
            # One more that nobody reads before the end.
            vmm.send(b"\0" * 16, [lingering.fileno()])
            lingering.close()
        for controller in ("ser1", "ser0"):
            Client(folder / f"{controller}.sock").close()
    assert device.worker == worker
