"""VMMs that come, go, come twice, and talk nonsense."""

from __future__ import annotations

import os
import random
import socket
import struct
import time

import pytest
from support.device_process import controller_options, port_options
from support.embedded_guest import EmbeddedGuest
from support.raw_vmm import GET_INFO, VERSION, RawVmm, read_config
from support.waiting import wait_until

from virtserial.vfio_user import wire
from virtserial.vfio_user.client import Client
from virtserial.vfio_user.wire import HEADER_SIZE, MAX_MESSAGE_SIZE

CONFIG_ID = (0x1AF4 | 0x1043 << 16).to_bytes(4, "little")


def header(command=wire.VFIO_USER_VERSION, size=HEADER_SIZE, flags=0):
    return struct.pack("<HHIII", 7, command, size, flags, 0)


NONSENSE = {
    "http": (b"GET /index.html HTTP/1.1\r\nHost: example.org\r\n\r\n", "message of"),
    "zeros": (bytes(64), "message of 0 bytes, allowed are 16 to"),
    "too_short": (header(size=HEADER_SIZE - 1), "message of 15 bytes, allowed are 16 to"),
    "too_long": (header(size=MAX_MESSAGE_SIZE + 1), f"message of {MAX_MESSAGE_SIZE + 1} bytes, allowed are 16 to"),
    "unknown_type": (VERSION + header(wire.VFIO_USER_DEVICE_RESET, flags=2), "message of unknown type 2"),
    "reply": (VERSION + header(wire.VFIO_USER_DMA_READ, flags=1), "which answers no request of ours"),
    "before_version": (GET_INFO, "VFIO_USER_DEVICE_GET_INFO before VFIO_USER_VERSION"),
    "random": (random.Random(1).randbytes(100_000), "message of"),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_is_closed_with_a_reason_and_the_next_is_served(device, folder, kind):
    data, reason = NONSENSE[kind]
    worker = device.worker
    with RawVmm(folder / "ser0.sock") as vmm:
        vmm.send(data)
        assert vmm.closed_by_server()
    device.wait_for_log("ser0: VMM's connection is closed: ")
    assert reason in device.log
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        guest.check_port("a", folder / "a", 10_000)
    assert device.worker == worker


def test_nonsense_over_and_over_does_not_fill_the_log(device, folder):
    started = time.monotonic()
    for _ in range(200):
        with RawVmm(folder / "ser0.sock") as vmm:
            vmm.send(bytes(16))
            assert vmm.closed_by_server()
    device.wait_for_log("more within 1 s: VMM's connection is closed")
    seconds = time.monotonic() - started
    assert device.log.count("\n") <= 2 * (seconds + 1)


def test_part_of_a_message_is_waited_for_and_given_up_when_the_vmm_leaves(device, folder):
    with RawVmm(folder / "ser0.sock") as vmm:
        vmm.send(VERSION[:-1])
        vmm.socket.settimeout(0.1)
        with pytest.raises(TimeoutError):
            vmm.socket.recv(1)
    Client(folder / "ser0.sock").close()


def test_messages_in_dribbled_bytes(device, folder):
    with RawVmm(folder / "ser0.sock") as vmm:
        for byte in VERSION + read_config(5):
            vmm.send(bytes([byte]))
        assert vmm.reply()[0].command == wire.VFIO_USER_VERSION
        answer, payload = vmm.reply()
        assert (answer.id, payload[-4:]) == (5, CONFIG_ID)


def test_messages_glued_together_and_cut_anywhere(device, folder):
    count = 500
    data = VERSION + b"".join(read_config(number) for number in range(count))
    rng = random.Random(2)
    with RawVmm(folder / "ser0.sock") as vmm:
        start = 0
        while start < len(data):
            piece = data[start : start + rng.choice((1, 7, 33, 1000, 5000))]
            vmm.send(piece)
            start += len(piece)
        assert vmm.reply()[0].command == wire.VFIO_USER_VERSION
        for number in range(count):
            answer, payload = vmm.reply()
            assert (answer.id, answer.flags, payload[-4:]) == (number, wire.VFIO_USER_REPLY, CONFIG_ID)


def test_vmm_that_never_reads_its_replies_costs_no_memory_and_nobody_else(start, folder):
    device = start(*controller_options(folder), *controller_options(folder, "ser1"))
    with RawVmm(folder / "ser0.sock") as vmm:
        vmm.send(VERSION)
        vmm.socket.setblocking(False)
        requests = b"".join(read_config(number) for number in range(1000))
        limit = time.monotonic() + 60
        with pytest.raises(BlockingIOError):
            while time.monotonic() < limit:
                vmm.socket.send(requests)
        with Client(folder / "ser1.sock") as client:
            assert client.region_read(wire.VFIO_PCI_CONFIG_REGION_INDEX, 0, 4) == CONFIG_ID
        with open(f"/proc/{device.worker}/statm") as file:
            assert int(file.read().split()[1]) * 4096 < 100 << 20


def test_ten_thousand_stray_descriptors_are_closed(device, folder):
    """Descriptors with messages that take none: one VMM's garbage must not use up the process's descriptors."""
    with RawVmm(folder / "ser0.sock") as vmm:
        vmm.send(VERSION)
        vmm.reply()
        before = device.descriptors()
        with open(os.devnull, "rb") as stray:
            for number in range(625):
                posted = wire.VFIO_USER_NO_REPLY if number % 2 else 0
                vmm.send(read_config(number, posted), [stray.fileno()] * 16)
                if not posted:
                    answer, payload = vmm.reply()
                    assert (answer.id, payload[-4:]) == (number, CONFIG_ID)
        vmm.send(read_config(999))
        assert vmm.reply()[0].id == 999
        assert device.descriptors() == before


def test_descriptors_in_the_middle_of_a_message_are_closed(device, folder):
    with RawVmm(folder / "ser0.sock") as vmm, open(os.devnull, "rb") as stray:
        vmm.send(VERSION)
        vmm.reply()
        before = device.descriptors()
        message = read_config(1)
        for cut in range(1, len(message)):
            vmm.send(message[:cut])
            vmm.send(message[cut:], [stray.fileno()])
            assert vmm.reply()[1][-4:] == CONFIG_ID
        assert device.descriptors() == before


def test_more_descriptors_than_a_message_may_have_close_the_connection(device, folder):
    before = device.descriptors_at_rest(folder / "ser0.sock")
    with RawVmm(folder / "ser0.sock") as vmm, open(os.devnull, "rb") as stray:
        vmm.send(VERSION)
        vmm.reply()
        vmm.send(read_config(1), [stray.fileno()] * 17)
        assert vmm.closed_by_server()
    device.wait_for_log("a message with more than 16 descriptors")
    wait_until(lambda: device.descriptors() == before)


class CutSocket(socket.socket):
    """Sends so many messages whole, of the next one the first `part` bytes, and is gone."""

    messages = 0
    part = 0

    def send(self, data, flags=0):
        return self.sendmsg([data], (), flags)

    def sendmsg(self, buffers, ancillary=(), flags=0):
        if self.messages:
            self.messages -= 1
            return super().sendmsg(buffers, ancillary, flags)
        data = b"".join(buffers)[: self.part]
        if data and self.fileno() >= 0:
            super().sendmsg([data], ancillary, flags)
        self.close()
        raise ConnectionResetError(104, "cut by the test")


def test_vmm_may_be_gone_at_every_step_of_a_guest_s_start(start, folder):
    """Each message of a driver's way to a working port in turn is the last one, whole or in part."""
    device = start(*controller_options(folder, more=",max_ports=2,vectors=2"), *port_options(folder, "a"))
    path = str(folder / "ser0.sock")
    before, worker = device.descriptors_at_rest(path), device.worker
    rng = random.Random(3)
    for step in range(1000):
        connection = CutSocket(socket.AF_UNIX)
        connection.connect(path)
        connection.messages, connection.part = step, rng.choice((0, 1, 8, 16, 20, 40))
        try:
            EmbeddedGuest(connection, "a").close()
            break
        except Exception:
            # Whatever the driver makes of it.
            assert connection.fileno() == -1
    assert 20 < step < 999
    wait_until(lambda: device.descriptors() == before, complaint=f"{before} became {device.descriptors()}")
    assert device.worker_maps("virtserial-dma") == 0
    assert device.worker == worker


def test_second_vmm_is_refused_while_the_first_is_connected(device, folder):
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        started = time.monotonic()
        with RawVmm(folder / "ser0.sock") as second:
            second.send(VERSION)
            # Not a reset connection, which is what a close with unread bytes would be.
            assert second.closed_by_server()
        assert time.monotonic() - started >= 0.9
        device.wait_for_log(
            f"ser0: a second VMM was refused: the first is still connected to {folder}/ser0.sock"
        )
        guest.check_port("a", folder / "a", 10_000)


def test_second_vmm_is_served_when_the_first_leaves_in_time(device, folder):
    with Client(folder / "ser0.sock") as first, RawVmm(folder / "ser0.sock") as second:
        second.send(VERSION)
        first.close()
        assert second.reply()[0].command == wire.VFIO_USER_VERSION
    assert "refused" not in device.log


def test_guest_that_comes_back_finds_a_device_as_new(device, folder):
    for _ in range(3):
        with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
            assert not guest.port("a").host_connected
            guest.check_port("a", folder / "a", 10_000)
    assert device.log == ""


def test_controllers_have_vmms_of_their_own(start, folder):
    start(*controller_options(folder), *controller_options(folder, "ser1"))
    with Client(folder / "ser0.sock") as one, Client(folder / "ser1.sock") as other:
        for client in (one, other):
            assert client.region_read(wire.VFIO_PCI_CONFIG_REGION_INDEX, 0, 4) == CONFIG_ID
