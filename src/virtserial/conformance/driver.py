"""Plays a case on a device, whichever it is."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Final, Protocol

from virtserial.conformance.steps import (
    AVAIL_OFFSET,
    BUFFER,
    CONTROL_BUFFERS,
    CONTROL_RX,
    CONTROL_TX,
    DRIVER_FEATURE,
    DRIVER_FEATURE_SELECT,
    ISR,
    NOTIFY,
    QUEUE_DESC,
    QUEUE_DEVICE,
    QUEUE_DRIVER,
    QUEUE_ENABLE,
    QUEUE_SELECT,
    QUEUE_SIZE,
    QUEUES,
    RING_SIZE,
    RING_STRIDE,
    RINGS,
    STATUS,
    TX,
    USED_OFFSET,
    WRITE,
    Area,
    AvailField,
    AvailIndex,
    Describe,
    Listen,
    Load,
    Offer,
    Outcome,
    Put,
    Ring,
    Say,
    Start,
    Step,
    Store,
    Used,
)
from virtserial.errors import VirtserialError
from virtserial.virtio.features import VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1
from virtserial.virtio.status import ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FEATURES_OK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.conformance.steps import Case

USUAL_FEATURES: Final = VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | 2
"""What "open" accepts beside VIRTIO_CONSOLE_F_MULTIPORT: what every device here offers."""
PATIENCE: Final = 20.0
"""Seconds for what must come; a loaded machine is slow."""
_POINTS: Final = ("acknowledged", "features", "queues", "live", "open")
_GOOD: Final = b"<good>"
_GOOD_INDEX: Final = RING_SIZE - 1


class HostileError(VirtserialError):
    """A device did what no case allows: it died, it does not heal, or it has harmed another."""


class Machine(Protocol):
    """A device as its guest and its host see it."""

    name: str

    def load(self, offset: int, width: int) -> int:
        """Read a register of the BAR."""
        ...

    def store(self, offset: int, value: int, width: int) -> None:
        """Write a register of the BAR."""
        ...

    def read(self, address: int, length: int) -> bytes:
        """Read guest memory."""
        ...

    def write(self, address: int, data: bytes) -> None:
        """Write guest memory."""
        ...

    def step(self) -> None:
        """Let the device do a little of what it has to do."""
        ...

    def settle(self) -> None:
        """Let the device do all it has to do."""
        ...

    def heard(self) -> bytes | None:
        """Return what has come out at the host's ends since the last call (None: it cannot be known)."""
        ...

    def told(self) -> bool | None:
        """Whether the host's ends know that no guest is there (None: it cannot be known)."""
        ...

    def check(self) -> None:
        """Raise HostileError if the process is gone, or another device of it is harmed."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class HostileDriver:
    """A driver on a machine.

    Args:
        machine: what it drives; it stays the caller's.
        features: what it accepts beside MULTIPORT, where a case does not say.
        ring_sizes: of the queues, where the driver cannot choose them.
    """

    def __init__(
        self,
        machine: Machine,
        features: int = USUAL_FEATURES,
        ring_sizes: Sequence[int] = (RING_SIZE,) * QUEUES,
    ) -> None:
        self.machine = machine
        self._sizes = ring_sizes
        self._features = features
        self._avail = [0] * QUEUES
        self._seen: list[object] = []

    def play(self, case: Case) -> Outcome:
        """Do what a case says and return what came of it.

        Raises:
            HostileError: the device does not live, or does not heal.
        """
        machine = self.machine
        self._begin()
        for step in case.steps:
            self._do(step)
        machine.settle()
        heard = machine.heard()
        status = machine.load(STATUS, 1)
        stopped = bool(status & DEVICE_NEEDS_RESET)
        if case.queue is not None:
            self._seen += self._used_elements(case.queue)
        outcome = Outcome(
            stopped,
            interrupt=bool(machine.load(ISR, 1) & 2),
            works=bool(status & DRIVER_OK) and self.good_message_arrives(),
            seen=tuple(self._seen),
            heard=heard,
            told=machine.told() if stopped else None,
        )
        machine.check()
        self._begin()
        self.start()
        if not self.good_message_arrives():
            raise HostileError(f"{case.name}: {machine.name} does not work again after a reset")
        return outcome

    def start(self) -> None:
        """Bring the device up as a driver should, port 1 open."""
        self._do(Start("open"))

    def send(self, queue: int, address: int, length: int, flags: int = 0) -> None:
        """Make a chain of one descriptor available, and ring."""
        index = self._avail[queue] % RING_SIZE
        self._write_descriptor(RINGS + queue * RING_STRIDE, index, address, length, flags, 0)
        self._offer(queue, index)
        self._ring(queue)

    def bring_up(self, start: Start) -> None:
        """Reset the device and bring it up to a point."""
        self._do(start)

    def reset_control(self, queues: tuple[int, ...]) -> None:
        """Bring the device up with these queues alone, and tell it nothing yet."""
        self._begin()
        self._do(Start("live", queues=queues))

    def used_elements(self, queue: int, since: int) -> list[tuple[int, int]]:
        """Return (head, length) of the chains that came back, from number `since` on, as far as the ring has them."""
        count = self.used_index(queue)
        ring = self._used_elements(queue)
        size = self._sizes[queue]
        return [ring[number % size] for number in range(max(since, count - size), count)]

    def offered(self, queue: int) -> int:
        """How many chains of a queue were made available since it was set up, modulo 65536."""
        return self._avail[queue]

    def _begin(self) -> None:
        self.machine.store(STATUS, 0, 1)
        self.machine.settle()
        self.machine.heard()
        self._seen = []

    def _do(self, step: Step) -> None:
        machine = self.machine
        match step:
            case Describe(queue, index, address, length, flags, following, table):
                base = RINGS + queue * RING_STRIDE if table is None else table
                self._write_descriptor(base, index, address, length, flags, following)
            case Put(address, data):
                machine.write(address, data)
            case Offer(queue, heads, quietly):
                for head in heads:
                    self._offer(queue, head)
                if not quietly:
                    self._ring(queue)
            case AvailIndex(queue, value):
                self._avail[queue] = value
                self._write_avail(queue, 1, value)
                self._ring(queue)
            case AvailField(queue, word, value):
                self._write_avail(queue, word, value)
            case Ring(queue, times):
                for _ in range(times):
                    self._ring(queue)
            case Store(offset, value, width):
                machine.store(offset, value, width)
            case Load(offset, width):
                machine.settle()
                self._seen.append(machine.load(offset, width))
            case Say(port, event, value, times):
                for number in range(times):
                    self._say(number % 8, port, event, value)
            case Listen(count, length):
                self._listen(count, length)
                machine.settle()
                self._seen.append(self.used_index(CONTROL_RX))
            case Used(queue):
                machine.settle()
                self._seen.append(self.used_index(queue))
            case Area(queue, desc, avail, used):
                self._set_up_queue(queue, desc, avail, used)
            case Start(point, features, queues):
                self._start(point, self._features if features is None else features, queues)

    # Bringing the device up

    def _start(self, point: str, features: int, queues: tuple[int, ...]) -> None:
        machine = self.machine
        last = _POINTS.index(point)
        machine.store(STATUS, 0, 1)
        machine.store(STATUS, ACKNOWLEDGE | DRIVER, 1)
        if last < 1:
            return
        for half in (0, 1):
            machine.store(DRIVER_FEATURE_SELECT, half, 4)
            machine.store(DRIVER_FEATURE, features >> 32 * half & 0xFFFFFFFF, 4)
        machine.store(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK, 1)
        self._avail = [0] * QUEUES
        for queue in range(QUEUES):
            base = RINGS + queue * RING_STRIDE
            machine.write(base + AVAIL_OFFSET, bytes(6 + 2 * RING_SIZE))
            machine.write(base + USED_OFFSET, bytes(6 + 8 * RING_SIZE))
        if last < 2:
            return
        for queue in queues:
            base = RINGS + queue * RING_STRIDE
            self._set_up_queue(queue, base, base + AVAIL_OFFSET, base + USED_OFFSET)
        if last < 3:
            return
        machine.store(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK, 1)
        if last < 4:
            return
        self._listen(8, 256)
        self._say(0, 0xFFFFFFFF, 0, 1)
        self._say(1, 1, 3, 1)
        self._say(2, 1, 6, 1)

    def _set_up_queue(self, queue: int, desc: int, avail: int, used: int) -> None:
        machine = self.machine
        machine.store(QUEUE_SELECT, queue, 2)
        machine.store(QUEUE_SIZE, RING_SIZE, 2)
        for offset, address in ((QUEUE_DESC, desc), (QUEUE_DRIVER, avail), (QUEUE_DEVICE, used)):
            machine.store(offset, address & 0xFFFFFFFF, 4)
            machine.store(offset + 4, address >> 32, 4)
        machine.store(QUEUE_ENABLE, 1, 2)

    # Rings

    def _write_descriptor(self, base: int, index: int, address: int, length: int, flags: int, following: int) -> None:
        data = struct.pack("<QIHH", address & (1 << 64) - 1, length, flags, following)
        self.machine.write(base + 16 * index, data)

    def _write_avail(self, queue: int, word: int, value: int) -> None:
        self.machine.write(RINGS + queue * RING_STRIDE + AVAIL_OFFSET + 2 * word, struct.pack("<H", value))

    def _offer(self, queue: int, head: int) -> None:
        self._write_avail(queue, 2 + self._avail[queue] % self._sizes[queue], head)
        self._avail[queue] = (self._avail[queue] + 1) & 0xFFFF
        self._write_avail(queue, 1, self._avail[queue])

    def _ring(self, queue: int) -> None:
        self.machine.store(NOTIFY + 4 * queue, queue, 2)

    def used_index(self, queue: int) -> int:
        """The used index of a queue: how many chains have come back, modulo 65536."""
        return int.from_bytes(self.machine.read(RINGS + queue * RING_STRIDE + USED_OFFSET + 2, 2), "little")

    def _used_elements(self, queue: int) -> list[tuple[int, int]]:
        count = min(self.used_index(queue), self._sizes[queue])
        data = self.machine.read(RINGS + queue * RING_STRIDE + USED_OFFSET + 4, 8 * count)
        return list(struct.iter_unpack("<II", data))

    def _wait(self, queue: int, complaint: str) -> None:
        """Wait until the device has used all that was offered on a queue, or has stopped."""
        deadline = time.monotonic() + PATIENCE
        while self.used_index(queue) != self._avail[queue]:
            if self.machine.load(STATUS, 1) & DEVICE_NEEDS_RESET:
                return
            if time.monotonic() > deadline:
                raise HostileError(f"{self.machine.name}: {complaint}")
            self.machine.step()

    def _say(self, index: int, port: int, event: int, value: int) -> None:
        self.machine.write(BUFFER + 64 * index, struct.pack("<IHH", port, event, value))
        self._write_descriptor(RINGS + CONTROL_TX * RING_STRIDE, index, BUFFER + 64 * index, 8, 0, 0)
        self._offer(CONTROL_TX, index)
        self._ring(CONTROL_TX)
        self._wait(CONTROL_TX, "control messages are not taken")

    def _listen(self, count: int, length: int) -> None:
        for index in range(count):
            self._write_descriptor(
                RINGS + CONTROL_RX * RING_STRIDE, index, CONTROL_BUFFERS + 256 * index, length, WRITE, 0
            )
            self._offer(CONTROL_RX, index)
        self._ring(CONTROL_RX)

    def good_message_arrives(self) -> bool:
        """Send a message on port 1; return whether it, and nothing else, comes out at the host's end."""
        machine = self.machine
        address = BUFFER + 0x8000
        machine.write(address, _GOOD)
        self._write_descriptor(RINGS + TX * RING_STRIDE, _GOOD_INDEX, address, len(_GOOD), 0, 0)
        self._offer(TX, _GOOD_INDEX)
        self._ring(TX)
        machine.settle()
        heard = machine.heard()
        return heard == _GOOD if heard is not None else self.used_index(TX) == self._avail[TX]
