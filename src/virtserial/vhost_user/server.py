"""The back end's half of the protocol, without any socket: a request in, its reply out.

| fault | what follows |
|---|---|
| a header that cannot be | PeerError: the connection cannot be trusted any more, close it |
| a request that makes no sense, with need_reply | the reply says so (REPLY_ACK), and life goes on |
| the same without need_reply | PeerError: the front end would not learn of it otherwise |

A ring runs while it has a size, addresses and a descriptor for kicks, and is enabled.  The device runs while the rings
that it needs do.  There is no message for DRIVER_OK or for a reset by the driver: a front end stops all rings for
either a pause or a reset and starts them again.  If they then stand where the device left them, and the features are
the same, the device goes on; else it begins anew.  (The control transmitq is never at 0 once a driver has spoken.)
SET_STATUS tells no more: QEMU sets the status to 0 whenever its VM stops.  A 0 while rings run is a reset.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from virtserial.errors import PeerError
from virtserial.foreign import check_room
from virtserial.named_tuple import NamedTuple
from virtserial.vhost_user import wire
from virtserial.vhost_user.backend import CALL, ERR, KICK, Ring
from virtserial.vhost_user.records import Journal, Session, Vring
from virtserial.vhost_user.regions import Regions
from virtserial.vhost_user.wire import VringAddress, VringState, unpack, unpack_u64
from virtserial.virtio.features import VIRTIO_F_RING_PACKED
from virtserial.virtio.status import DEVICE_NEEDS_RESET

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.memory.state import StateMemory
    from virtserial.vhost_user.backend import VhostDevice
    from virtserial.vhost_user.wire import Header
    from virtserial.virtio.queue import Virtqueue

    Handler = Callable[["bytes | memoryview", list[int]], "bytes | None"]
    """Payload and descriptors in, of which it removes what it takes; the payload of its own reply out, or None."""

PROTOCOL_FEATURES: Final = (
    wire.VHOST_USER_PROTOCOL_F_MQ
    | wire.VHOST_USER_PROTOCOL_F_LOG_SHMFD
    | wire.VHOST_USER_PROTOCOL_F_REPLY_ACK
    | wire.VHOST_USER_PROTOCOL_F_BACKEND_REQ
    | wire.VHOST_USER_PROTOCOL_F_CONFIG
    | wire.VHOST_USER_PROTOCOL_F_RESET_DEVICE
    | wire.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS
    | wire.VHOST_USER_PROTOCOL_F_STATUS
    | wire.VHOST_USER_PROTOCOL_F_DEVICE_STATE
)
"""Not offered: INFLIGHT_SHMFD, which a device that uses chains in order does not need ("Inflight I/O tracking")."""

_OF_PROTOCOL: Final = wire.VHOST_USER_F_PROTOCOL_FEATURES | wire.VHOST_F_LOG_ALL


class Request(NamedTuple):
    """What a request must be like.

    Attributes:
        fds: how many descriptors come with it.
        feature: the protocol feature that allows it, 0: none is needed.
    """

    handler: Handler
    fds: range = range(1)
    feature: int = 0


class Server:
    """One front end's session with one device.

    Args:
        device: what is served.
        state: where the session lives; one that a predecessor used goes on where that was killed.
        refused: takes the reason of each request that is refused.
    """

    @staticmethod
    def state_size(num_queues: int) -> int:
        """Bytes of state memory that a server needs."""
        return Session.SIZE + Regions.SIZE + Journal.SIZE + num_queues * Vring.SIZE

    def __init__(
        self, device: VhostDevice, state: StateMemory, refused: Callable[[str], None] = lambda why: None
    ) -> None:
        self.device = device
        self.session = Session(state)
        self.regions = Regions(device, state)
        self.journal = Journal(state)
        self.vrings = [Vring(state) for _ in range(device.num_queues)]
        self._refused = refused
        one, few = range(1, 2), range(2)
        slots = wire.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS
        config, moves = wire.VHOST_USER_PROTOCOL_F_CONFIG, wire.VHOST_USER_PROTOCOL_F_DEVICE_STATE
        status = wire.VHOST_USER_PROTOCOL_F_STATUS
        self._requests: dict[int, Request] = {
            wire.VHOST_USER_GET_FEATURES: Request(self._get_features),
            wire.VHOST_USER_SET_FEATURES: Request(self._set_features),
            wire.VHOST_USER_GET_PROTOCOL_FEATURES: Request(self._get_protocol_features),
            wire.VHOST_USER_SET_PROTOCOL_FEATURES: Request(self._set_protocol_features),
            wire.VHOST_USER_SET_OWNER: Request(self._nothing),
            wire.VHOST_USER_RESET_OWNER: Request(self._nothing),
            wire.VHOST_USER_GET_QUEUE_NUM: Request(self._get_queue_num),
            wire.VHOST_USER_SET_MEM_TABLE: Request(self.regions.set_table, range(wire.MAX_FDS + 1)),
            wire.VHOST_USER_GET_MAX_MEM_SLOTS: Request(self.regions.get_most, feature=slots),
            wire.VHOST_USER_ADD_MEM_REG: Request(self.regions.add, one, slots),
            wire.VHOST_USER_REM_MEM_REG: Request(self.regions.remove, few, slots),
            wire.VHOST_USER_SET_VRING_NUM: Request(self._set_vring_num),
            wire.VHOST_USER_SET_VRING_ADDR: Request(self._set_vring_addr),
            wire.VHOST_USER_SET_VRING_BASE: Request(self._set_vring_base),
            wire.VHOST_USER_GET_VRING_BASE: Request(self._get_vring_base),
            wire.VHOST_USER_SET_VRING_KICK: Request(self._set_vring_kick, few),
            wire.VHOST_USER_SET_VRING_CALL: Request(self._set_vring_call, few),
            wire.VHOST_USER_SET_VRING_ERR: Request(self._set_vring_err, few),
            wire.VHOST_USER_SET_VRING_ENABLE: Request(self._set_vring_enable),
            wire.VHOST_USER_SET_BACKEND_REQ_FD: Request(
                self._set_backend_req_fd, one, wire.VHOST_USER_PROTOCOL_F_BACKEND_REQ
            ),
            wire.VHOST_USER_GET_CONFIG: Request(self._get_config, feature=config),
            wire.VHOST_USER_SET_CONFIG: Request(self._set_config, feature=config),
            wire.VHOST_USER_RESET_DEVICE: Request(
                self._reset_device, feature=wire.VHOST_USER_PROTOCOL_F_RESET_DEVICE
            ),
            wire.VHOST_USER_SET_LOG_BASE: Request(self._set_log_base, one, wire.VHOST_USER_PROTOCOL_F_LOG_SHMFD),
            wire.VHOST_USER_SET_LOG_FD: Request(self._nothing, few),
            wire.VHOST_USER_SET_STATUS: Request(self._set_status, feature=status),
            wire.VHOST_USER_GET_STATUS: Request(self._get_status, feature=status),
            wire.VHOST_USER_SET_DEVICE_STATE_FD: Request(self._set_device_state_fd, one, moves),
            wire.VHOST_USER_CHECK_DEVICE_STATE: Request(self._check_device_state, feature=moves),
        }

    # Messages

    @staticmethod
    def check_header(header: Header) -> None:
        """Whether a message with this header may be waited for.

        Raises:
            PeerError: its size or its version cannot be, or it is a reply.
        """
        if header.flags & wire.VERSION_MASK != wire.VERSION:
            raise PeerError(f"{header.name} of version {header.flags & wire.VERSION_MASK}, known is {wire.VERSION}")
        if header.size > wire.MAX_PAYLOAD:
            raise PeerError(f"{header.name} with {header.size} bytes of payload, allowed are {wire.MAX_PAYLOAD}")
        if header.flags & wire.REPLY:
            raise PeerError(f"{header.name} is a reply, and nobody has asked")

    def handle(self, header: Header, payload: bytes | memoryview, fds: list[int]) -> bytes:
        """Handle one request and return its whole reply, b"" if it has none.

        Args:
            payload: it is not kept.
            fds: the descriptors that came with it.  Those that the device does not take are closed.

        Raises:
            PeerError: the connection cannot be trusted any more.
        """
        try:
            self.check_header(header)
            if header.size != len(payload):
                raise PeerError(f"{header.name} of {header.size} bytes came with {len(payload)}")
            try:
                answer = self._apply(header, payload, fds)
            except PeerError as error:
                if not self._wants_ack(header):
                    raise PeerError(f"{header.name}: {error}") from error
                self._refused(f"{header.name}: {error}")
                return wire.reply(header, wire.U64.pack(1))
            if answer is not None:
                return wire.reply(header, answer)
            return wire.reply(header, wire.U64.pack(0)) if self._wants_ack(header) else b""
        finally:
            for fd in fds:
                os.close(fd)
            fds.clear()

    def _wants_ack(self, header: Header) -> bool:
        return bool(
            header.flags & wire.NEED_REPLY
            and self.session.protocol_features & wire.VHOST_USER_PROTOCOL_F_REPLY_ACK
        )

    def _apply(self, header: Header, payload: bytes | memoryview, fds: list[int]) -> bytes | None:
        request = self._requests.get(header.request)
        if request is None:
            raise PeerError("not known here")
        if request.feature & ~self.session.protocol_features:
            raise PeerError(f"its protocol feature {request.feature:#x} was not negotiated")
        if len(fds) not in request.fds:
            raise PeerError(f"{len(fds)} descriptors came with it, {request.fds.start} to {request.fds.stop - 1} do")
        check_room(fds)
        return request.handler(payload, fds)

    def fill_queues(self, queues: Sequence[Virtqueue]) -> None:
        """Put into queues that were taken from the device where they stand, to be saved with it."""
        for vring, queue in zip(self.vrings, queues, strict=True):
            if vring.kept and not queue.enabled:
                queue.set_packed_size(vring.size or queue.max_size)
                queue.record.packed = self._packed
                queue.record.progress = vring.progress

    def disconnected(self) -> None:
        """The front end is gone: nothing of what it said is valid for the next."""
        self.device.reset()
        self.regions.clear()
        self.session.clear()
        self.journal.record_consumed()
        for vring in self.vrings:
            vring.clear()

    # Features

    def _nothing(self, payload: bytes | memoryview, fds: list[int]) -> None:
        """What has no effect here."""

    def _get_features(self, payload: bytes | memoryview, fds: list[int]) -> bytes:
        return wire.U64.pack(self.device.features | _OF_PROTOCOL)

    def _set_features(self, payload: bytes | memoryview, fds: list[int]) -> None:
        features, session = unpack_u64(payload), self.session
        if unknown := features & ~(self.device.features | _OF_PROTOCOL):
            raise PeerError(f"features {unknown:#x} are not offered")
        if session.live and (features ^ session.features) & ~wire.VHOST_F_LOG_ALL:
            raise PeerError(f"features {features:#x} in the place of {session.features:#x} while queues run")
        self.device.log_writes(bool(features & wire.VHOST_F_LOG_ALL))
        session.features = features
        session.negotiated = 1

    def _get_protocol_features(self, payload: bytes | memoryview, fds: list[int]) -> bytes:
        return wire.U64.pack(PROTOCOL_FEATURES)

    def _set_protocol_features(self, payload: bytes | memoryview, fds: list[int]) -> None:
        features = unpack_u64(payload)
        if unknown := features & ~PROTOCOL_FEATURES:
            raise PeerError(f"protocol features {unknown:#x} are not offered")
        self.session.protocol_features = features

    def _get_queue_num(self, payload: bytes | memoryview, fds: list[int]) -> bytes:
        return wire.U64.pack(self.device.num_queues)

    def _set_status(self, payload: bytes | memoryview, fds: list[int]) -> None:
        status = unpack_u64(payload) & 0xFF
        if not status and self.session.live:
            self._reset_device(payload, fds)
        self.session.status = status & ~DEVICE_NEEDS_RESET

    def _get_status(self, payload: bytes | memoryview, fds: list[int]) -> bytes:
        return wire.U64.pack(self.session.status | (DEVICE_NEEDS_RESET if self.device.needs_reset else 0))

    # Queues

    @property
    def _packed(self) -> bool:
        return bool(self.session.features & VIRTIO_F_RING_PACKED)

    def _vring(self, index: int) -> Vring:
        if index >= len(self.vrings):
            raise PeerError(f"queue {index}, the device has {len(self.vrings)}")
        return self.vrings[index]

    def _set_vring_num(self, payload: bytes | memoryview, fds: list[int]) -> None:
        index, size = unpack(VringState, payload)
        vring = self._vring(index)
        # 0: libkrun describes every queue that the device has, also one that the driver has not set up.
        if size > self.device.max_queue_size or (size & (size - 1) and not self._packed):
            raise PeerError(f"queue {index}: size {size}, it is a power of 2 up to {self.device.max_queue_size}")
        if vring.running and size != vring.size:
            raise PeerError(f"queue {index}: another size while it runs")
        vring.size = size
        self._follow(index)

    def _set_vring_addr(self, payload: bytes | memoryview, fds: list[int]) -> None:
        address = unpack(VringAddress, payload)
        index = address.queue
        vring = self._vring(index)
        guest_address = self.regions.guest_address
        places = guest_address(address.descriptor), guest_address(address.used), guest_address(address.available)
        if vring.running and places != (vring.descriptor, vring.used, vring.available):
            raise PeerError(f"queue {index}: other addresses while it runs")
        vring.descriptor, vring.used, vring.available = places
        vring.addressed = 1
        self._follow(index)

    def _set_vring_base(self, payload: bytes | memoryview, fds: list[int]) -> None:
        index, base = unpack(VringState, payload)
        vring = self._vring(index)
        if vring.running:
            raise PeerError(f"queue {index}: its position is set while it runs")
        if self._packed:
            # Two positions, of what is available and of what is used: what is not used was not served.
            base >>= 16
        if base > 0xFFFF:
            raise PeerError(f"queue {index}: position {base}, it has 16 bits")
        if base != vring.progress & 0xFFFF:
            vring.progress, vring.kept = base, 0

    def _get_vring_base(self, payload: bytes | memoryview, fds: list[int]) -> bytes:
        index = unpack(VringState, payload).queue
        vring = self._vring(index)
        vring.kicked = 0
        self._follow(index)
        position = vring.progress & 0xFFFF
        return wire.pack(VringState(index, position << 16 | position if self._packed else position))

    def _set_vring_enable(self, payload: bytes | memoryview, fds: list[int]) -> None:
        index, enabled = unpack(VringState, payload)
        if enabled > 1:
            raise PeerError(f"queue {index}: enable is {enabled}, it is 0 or 1")
        self._vring(index).enabled = enabled
        self._follow(index)

    def _set_vring_kick(self, payload: bytes | memoryview, fds: list[int]) -> None:
        index, fd = self._take_descriptor(payload, fds)
        if fd < 0:
            raise PeerError(f"queue {index}: no descriptor for kicks, and the device does not poll")
        self.device.set_descriptor(KICK, index, fd)
        self.vrings[index].kicked = 1
        self._follow(index)

    def _set_vring_call(self, payload: bytes | memoryview, fds: list[int]) -> None:
        self.device.set_descriptor(CALL, *self._take_descriptor(payload, fds))

    def _set_vring_err(self, payload: bytes | memoryview, fds: list[int]) -> None:
        self.device.set_descriptor(ERR, *self._take_descriptor(payload, fds))

    def _take_descriptor(self, payload: bytes | memoryview, fds: list[int]) -> tuple[int, int]:
        number = unpack_u64(payload)
        if not fds and number & ~wire.VRING_INDEX_MASK != wire.VRING_NO_DESCRIPTOR:
            raise PeerError(f"queue {number:#x} came without a descriptor")
        index = number if fds else number & wire.VRING_INDEX_MASK
        self._vring(index)
        return index, fds.pop() if fds else -1

    def _follow(self, index: int) -> None:
        """Have a ring run, or not, as its front end wants it."""
        vring, session = self.vrings[index], self.session
        enabled = vring.enabled or not session.features & wire.VHOST_USER_F_PROTOCOL_FEATURES
        wanted = bool(vring.size and vring.addressed and vring.kicked and enabled and session.negotiated)
        if not (wanted or vring.running or vring.given):
            return
        vring.running = wanted
        if wanted and session.live:
            self._start(index)
        self._follow_device()
        if not wanted:
            self._take_back(index)

    def _follow_device(self) -> None:
        """Have the device run, or not, as its rings do."""
        session, device, vrings = self.session, self.device, self.vrings
        features = session.features & ~_OF_PROTOCOL
        running = [index for index, vring in enumerate(vrings) if vring.running]
        if not running or any(not vrings[index].running for index in device.needed_queues(features)):
            session.live = 0
            if session.started:
                device.stand_still()
            return
        if not session.live:
            rest = all(vrings[index].kept or vrings[index].given for index in running)
            fresh = not (session.started and rest and features == device.driver_features)
            if fresh:
                for index in range(len(vrings)):
                    self._take_back(index)
            device.set_up(features, fresh)
            for index in running:
                self._start(index)
            session.live = session.started = 1
        device.run()

    def _start(self, index: int) -> None:
        vring = self.vrings[index]
        if not vring.given:
            ring = Ring(vring.size, vring.descriptor, vring.available, vring.used, vring.progress)
            self.device.start_ring(index, ring)
            vring.given = 1
        vring.kept = 0

    def _take_back(self, index: int) -> None:
        """Take a ring from the device, and note where it stands."""
        vring = self.vrings[index]
        if vring.given:
            if not vring.kept:
                vring.progress = self.device.progress(index)
                # Last: a predecessor may have been killed between this and the next line.
                vring.kept = 1
            self.device.stop_ring(index)
            vring.given = 0

    def _reset_device(self, payload: bytes | memoryview, fds: list[int]) -> None:
        self.device.reset()
        self.session.live = self.session.started = self.session.status = 0
        for vring in self.vrings:
            vring.enabled = vring.running = vring.given = vring.kept = vring.progress = 0

    # Configuration, log, state

    def _set_backend_req_fd(self, payload: bytes | memoryview, fds: list[int]) -> None:
        self.device.set_backend_channel(fds.pop())

    def _get_config(self, payload: bytes | memoryview, fds: list[int]) -> bytes:
        offset, length, flags = _config_range(payload)
        return wire.CONFIG.pack(offset, length, flags) + self.device.read_config(offset, length)

    def _set_config(self, payload: bytes | memoryview, fds: list[int]) -> None:
        """The flags do not count: 1 is a driver's write for rust-vmm's front ends, a move's for QEMU."""
        offset, _, _ = _config_range(payload)
        self.device.write_config(offset, bytes(payload[wire.CONFIG.size :]))

    def _set_log_base(self, payload: bytes | memoryview, fds: list[int]) -> bytes:
        """The reply is the request's payload: QEMU takes any, rust-vmm's front ends wait for one of this size."""
        log = unpack(wire.Log, payload)
        self.device.set_log(fds.pop(), log.offset, log.size)
        return wire.pack(log)

    def _set_device_state_fd(self, payload: bytes | memoryview, fds: list[int]) -> bytes:
        """A failure is in the reply, as specified: bits 0 to 7; bit 8 says that no descriptor comes back."""
        transfer = unpack(wire.Transfer, payload)
        try:
            if transfer.direction > 1 or transfer.phase or self.session.live:
                raise PeerError(f"{transfer} of a device that {'runs' if self.session.live else 'stands still'}")
            self.device.transfer(fds.pop(), load=bool(transfer.direction))
        except PeerError as error:
            self._refused(str(error))
            return wire.U64.pack(wire.VRING_NO_DESCRIPTOR | 1)
        return wire.U64.pack(wire.VRING_NO_DESCRIPTOR)

    def _check_device_state(self, payload: bytes | memoryview, fds: list[int]) -> bytes:
        try:
            loaded = self.device.transfer_result()
        except PeerError as error:
            self._refused(str(error))
            return wire.U64.pack(1)
        for index, progress in loaded.items():
            self.vrings[index].progress, self.vrings[index].kept = progress, 1
        if loaded:
            self.session.started = 1
        return wire.U64.pack(0)


def _config_range(payload: bytes | memoryview) -> tuple[int, int, int]:
    if len(payload) < wire.CONFIG.size:
        raise PeerError(f"configuration of {len(payload)} bytes, its header has {wire.CONFIG.size}")
    offset, length, flags = wire.CONFIG.unpack_from(payload)
    # At any place: behind its end are zeros.  A VMM may end if this is refused, and its guest chooses the place.
    if len(payload) != wire.CONFIG.size + length or length > wire.MAX_CONFIG_SIZE:
        raise PeerError(f"configuration: {length} bytes at {offset}, flags {flags}, in {len(payload)} bytes")
    return offset, length, flags
