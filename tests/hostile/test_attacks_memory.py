"""Attacks by the memory that a VMM maps: none ends the process, holds others up, or outlives its VMM."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time

import pytest
from support.raw_vmm import VERSION, RawVmm

from virtserial.conformance.driver import HostileDriver
from virtserial.conformance.steps import BUFFER, TX
from virtserial.conformance.vfio_user_vmm import Vmm
from virtserial.errors import PeerError
from virtserial.vfio_user import wire
from virtserial.vfio_user.client import Client

READ, WRITE = 1, 2
MIB = 1 << 20
HUGE = 0x0004
"""MFD_HUGETLB."""


def memory_file(size, seals=0):
    fd = os.memfd_create("attack", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def restart(device):
    """Kill the worker and wait for one that serves."""
    device.wait_for_new_worker(device.kill_worker())


def test_a_file_that_is_cut_off_before_a_restart_costs_its_vmm_alone(device, folder, attack):
    """The trap: a map that cannot be made again by the worker's successor."""
    fd = memory_file(MIB)
    with attack(deaths=2), Client(folder / "ser0.sock") as vmm:
        vmm.dma_map(0, MIB, fd=fd)
        os.ftruncate(fd, 0)
        restart(device)
        time.sleep(1)
        restart(device)
        time.sleep(1)
    os.close(fd)
    Client(folder / "ser0.sock").close()


def test_a_vmm_that_answers_late_again_and_again_loses_its_connection_alone(device, folder, attack, monkeypatch):
    """A connection has a budget of waiting, not each of its requests: these are answered just before they are late."""

    def read_late(iova, length):
        time.sleep(2.3)
        return bytes(length)

    with (
        attack(),
        contextlib.closing(Vmm(folder / "ser0.sock", shared=False)) as vmm,
        contextlib.suppress(PeerError, OSError),
    ):
        driver = HostileDriver(vmm)
        driver.start()
        monkeypatch.setattr(vmm._by_messages, "read", read_late)
        end = time.monotonic() + 12
        while time.monotonic() < end:
            driver.send(TX, BUFFER, 64)


def map_without_a_file(path, count):
    """Map `count` pages that are asked for by messages; return how many the device took, and the VMM."""
    vmm = RawVmm(path)
    vmm.send(VERSION)
    vmm.reply()
    taken = 0
    for first in range(0, count, 256):
        requests = [
            wire.request(wire.VFIO_USER_DMA_MAP, (page % 65535) + 1,
                         wire.DmaMap(32, READ | WRITE, 0, page << 12, 4096).pack())
            for page in range(first, min(first + 256, count))
        ]  # fmt: skip
        vmm.send(b"".join(requests))
        for _ in requests:
            taken += vmm.reply()[0].error == 0
    return vmm, taken


@pytest.mark.timeout(300)
def test_maps_without_a_file_are_counted_for_each_vmm_and_a_restart_with_them_holds_nobody_up(device, folder, attack):
    with attack(deaths=1):
        vmm, taken = map_without_a_file(folder / "ser0.sock", 65_536)
        with vmm:
            assert taken < 65_536, "there is no limit"
            restart(device)
            time.sleep(2)
    assert len(device.log) < 20_000


def test_sparse_files_leave_address_space_to_others(device, folder, attack):
    with attack(deaths=1), Client(folder / "ser0.sock") as vmm:
        for number in range(80):
            fd = memory_file(1 << 41, fcntl.F_SEAL_SHRINK)
            vmm.dma_map(number << 20, 4096, fd=fd)
            os.close(fd)
        restart(device)
        fd = memory_file(64 * MIB, fcntl.F_SEAL_SHRINK)
        vmm.dma_map(1 << 40, 64 * MIB, fd=fd)
        os.close(fd)
        time.sleep(1)


def test_a_read_only_descriptor_stays_read_only(device, folder):
    """Another VMM's mapping of the same file gives nobody the right to write."""
    owner = memory_file(MIB, fcntl.F_SEAL_SHRINK)
    reader = os.open(f"/proc/self/fd/{owner}", os.O_RDONLY)
    with Client(folder / "ser1.sock") as a, Client(folder / "ser0.sock") as b:
        a.dma_map(0, MIB, fd=owner)
        with pytest.raises(PeerError):
            b.dma_map(0, MIB, fd=reader)
    os.close(owner)
    os.close(reader)


def test_huge_pages_of_a_vmm_are_not_mapped(device, folder, attack):
    """A hole can be punched into a sealed file of huge pages: at the next touch the process gets SIGBUS."""
    try:
        fd = os.memfd_create("huge", HUGE | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, 2 * MIB)
    except OSError as error:
        pytest.skip(f"huge pages: {error.strerror}")
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    with attack(deaths=1), Client(folder / "ser0.sock") as vmm:
        with contextlib.suppress(PeerError):
            vmm.dma_map(0, 2 * MIB, fd=fd)
        assert device.worker_maps("huge") == 0
        restart(device)
        assert device.worker_maps("huge") == 0
    os.close(fd)
