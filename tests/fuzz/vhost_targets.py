"""What a vhost-user front end can send to our server, and a back end to our front end."""

from __future__ import annotations

import fcntl
import gc
import os
import socket
import sys

from fuzz.any_bytes import AnyBytes
from support.vhost_device import NotingDevice

from virtserial.accounting import nowhere
from virtserial.channel.messages import Controller, VmmGone
from virtserial.daemon.worker.guest_device import GuestDevice
from virtserial.daemon.worker.vhost_user_front import VhostUserFront, state_size
from virtserial.errors import PeerError
from virtserial.loop import EventLoop
from virtserial.memory.state import HEADER_SIZE, StateMemory
from virtserial.vhost_user import wire
from virtserial.vhost_user.client import FrontEnd
from virtserial.vhost_user.server import PROTOCOL_FEATURES, Server
from virtserial.vhost_user.wire import MAX_REPLY, MAX_SLOTS, Header, MemoryRegion

FEATURES = NotingDevice.features | wire.VHOST_USER_F_PROTOCOL_FEATURES
REGION = MemoryRegion(0x1000, 0x10000, 0x5000, 0)
REQUESTS = sorted(wire.REQUEST_NAMES)


def vhost_requests(data):
    """Whole messages with right headers, behind a front end that has agreed on all: payloads are the fuzzer's."""
    source = AnyBytes(data)
    device = NotingDevice()
    server = Server(device, StateMemory(bytearray(HEADER_SIZE + Server.state_size(device.num_queues))))
    before = len(os.listdir("/proc/self/fd"))
    for request, payload, fds in (
        (wire.VHOST_USER_SET_PROTOCOL_FEATURES, wire.U64.pack(PROTOCOL_FEATURES), []),
        (wire.VHOST_USER_SET_FEATURES, wire.U64.pack(FEATURES), []),
        (wire.VHOST_USER_SET_MEM_TABLE, wire.TABLE.pack(1, 0) + wire.pack(REGION), [os.dup(0)]),
    ):
        server.handle(Header(request, wire.VERSION, len(payload)), payload, fds)
    try:
        for _ in range(64):
            if not source.left():
                break
            which, how = source.u8(), source.u8()
            request = REQUESTS[which % len(REQUESTS)] if which < 240 else which
            payload = source.take(source.u8())
            fds = [os.dup(0) for _ in range(how >> 5)]
            flags = wire.VERSION | (0 if how & 1 else wire.NEED_REPLY)
            answer = server.handle(Header(request, flags, len(payload)), payload, fds)
            assert fds == []
            _check_answer(request, answer)
            _check_device(server, device)
    except PeerError:
        pass
    server.disconnected()
    assert not device.places
    assert not device.memory
    device.close()
    assert len(os.listdir("/proc/self/fd")) <= before, "descriptors stay open"


def _check_answer(request, answer):
    assert len(answer) <= MAX_REPLY
    if answer:
        header = wire.unpack_header(answer)
        assert header == (request, wire.VERSION | wire.REPLY, len(answer) - wire.HEADER_SIZE)


def _check_device(server, device):
    assert len(server.regions) == len(device.memory) <= MAX_SLOTS
    assert {index for index, vring in enumerate(server.vrings) if vring.given} == set(device.places)
    if server.session.live:
        for index in device.places:
            assert server.vrings[index].running
            assert 0 < server.vrings[index].size <= device.max_queue_size


def vhost_client(data):
    """A back end's answers to our front end."""
    source = AnyBytes(data)
    ours, theirs = socket.socketpair()
    try:
        for request in (wire.VHOST_USER_GET_FEATURES, wire.VHOST_USER_GET_PROTOCOL_FEATURES):
            number = (1 << 64) - 1 if source.u8() & 3 else source.u64()
            theirs.sendall(wire.message(request, wire.U64.pack(number), wire.REPLY))
        for request in (wire.VHOST_USER_GET_CONFIG, wire.VHOST_USER_GET_VRING_BASE, wire.VHOST_USER_SET_CONFIG):
            theirs.sendall(wire.message(request, source.take(source.u8() % 64), wire.REPLY))
        theirs.sendall(source.rest())
        theirs.shutdown(socket.SHUT_WR)
        with_front_end = FrontEnd(ours, timeout=0.5)
        assert len(with_front_end.get_config(0, 12)) == 12
        assert with_front_end.stop_vring(1) < 1 << 32
        with_front_end.set_config(8, b"x")
    except PeerError:
        return
    finally:
        ours.close()
        theirs.close()


def vhost_front(data):
    """The whole front with its device: messages with descriptors, kicks, and a guest's memory, all the fuzzer's."""
    source = AnyBytes(data)
    loop = EventLoop()
    before = len(os.listdir("/proc/self/fd"))
    state = os.memfd_create("state")
    os.ftruncate(state, state_size(2))
    config = Controller(
        controller=0, name="ser0", max_ports=2, vectors=0, unplug=False, legacy=False, modern=True,
        page_per_vq=False, vhost_user=True, iommu_platform=False, event_idx=True, indirect_desc=True, packed=False,
        in_order=False, queue_reset=False, emergency_write=True, resize_rows_first=False, trust_vmm=False,
    )  # fmt: skip
    gone = []
    device = GuestDevice(config, state, loop, lambda said, fds=(): gone.append(said), nowhere(), VhostUserFront)
    device.broken = _not_broken
    device.console.add_port(1, "one", has_backend=True)
    device.take_over()
    memory = os.memfd_create("guest", os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, REGION.size)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, 2)
    kick = os.eventfd(0, os.EFD_NONBLOCK)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    device.connect(ours.detach())
    try:
        for request, payload, fds in (
            (wire.VHOST_USER_SET_PROTOCOL_FEATURES, wire.U64.pack(PROTOCOL_FEATURES), []),
            (wire.VHOST_USER_SET_FEATURES, wire.U64.pack(FEATURES), []),
            (wire.VHOST_USER_SET_MEM_TABLE, wire.TABLE.pack(1, 0) + wire.pack(REGION), [memory]),
        ):
            socket.send_fds(theirs, [wire.message(request, payload)], fds)
        for _ in range(64):
            if not source.left():
                break
            which, how = source.u8(), source.u8()
            if which >= 248:
                os.pwrite(memory, source.take(source.u8()), source.u16() % REGION.size)
                os.eventfd_write(kick, 1)
            else:
                payload = source.take(source.u8())
                flags = 0 if how & 1 else wire.NEED_REPLY
                fds = [memory if how & 2 else kick] * (how >> 5)
                socket.send_fds(theirs, [wire.message(REQUESTS[which % len(REQUESTS)], payload, flags)], fds)
            loop.run_once(0)
    except OSError:
        pass  # It has closed the connection.
    for _ in range(8):
        loop.run_once(0)
    theirs.close()
    for _ in range(8):
        loop.run_once(0)
    assert any(isinstance(said, VmmGone) for said in gone)
    assert len(device.console.memory) == 0
    for fd in (memory, kick):
        os.close(fd)
    device.remove()
    del device
    gc.collect()  # mappings have descriptors of their own, and device and front know each other
    assert len(os.listdir("/proc/self/fd")) <= before, "descriptors stay open"
    loop.close()


def _not_broken():
    """In the place of GuestDevice.broken, inside an except block."""
    raise AssertionError("internal error") from sys.exc_info()[1]
