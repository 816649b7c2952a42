"""Host ends that fail: their port is closed, with the reason in the log, and nobody else notices."""

from __future__ import annotations

import ctypes
import errno
import os

import pytest
from support.device_process import connect, controller_options, port_options
from support.embedded_guest import EmbeddedGuest


def file_port(path, number=3):
    return [
        *("-chardev", f"file,id=full,path={path}"),
        *("-device", f"virtserialport,bus=ser0.0,nr={number},chardev=full,name=full"),
    ]


def write_until_it_closes(guest, data=b"x" * 50_000):
    """Returns how many bytes the port took."""
    received = guest.open("full")
    guest.run_until(lambda: received.port.host_connected)
    count = 0

    def closed():
        nonlocal count
        count += received.port.write(data)
        return not received.port.host_connected

    guest.run_until(closed)
    return count


def test_full_disk_closes_that_port_and_no_other(start, folder):
    device = start(
        *controller_options(folder), *port_options(folder, "a"), *port_options(folder, "b", 2), *file_port("/dev/full")
    )
    worker = device.worker
    with EmbeddedGuest(folder / "ser0.sock", "a", "b", "full") as guest:
        assert write_until_it_closes(guest)
        device.wait_for_log("ser0: port 3: chardev 'full' (file '/dev/full')")
        line = device.log.splitlines()[0]
        assert os.strerror(errno.ENOSPC) in line
        assert line.endswith("; the port is closed")
        for name in ("a", "b"):
            guest.check_port(name, folder / name)
    assert device.worker == worker


@pytest.fixture
def small_disk(folder):
    """A file system of 64 KiB."""
    path = folder / "disk"
    path.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, b"size=65536") != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {os.strerror(ctypes.get_errno())}")
    yield path
    libc.umount2(os.fsencode(path), 2)


def test_disk_that_fills_has_every_byte_that_fitted(start, folder, small_disk):
    device = start(*controller_options(folder), *port_options(folder, "a"), *file_port(small_disk / "log"))
    with EmbeddedGuest(folder / "ser0.sock", "a", "full") as guest:
        data = os.urandom(50_000)
        write_until_it_closes(guest, data)
        device.wait_for_log(os.strerror(errno.ENOSPC))
        written = (small_disk / "log").read_bytes()
        assert written == (data * 2)[:65536]
        guest.check_port("a", folder / "a")


def test_host_that_vanishes_in_the_middle_of_a_write_is_no_failure(start, folder):
    device = start(*controller_options(folder), *port_options(folder, "a"))
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        received = guest.open("a")
        for _ in range(2):
            with connect(folder / "a") as host:
                guest.run_until(lambda: received.port.host_connected)
                guest.run_until(lambda: not received.port.write(bytes(65536)))
                assert host.recv(10) == bytes(10)
            guest.run_until(lambda: not received.port.host_connected)
        received.port.close()
        guest.check_port("a", folder / "a")
    assert device.log == ""
