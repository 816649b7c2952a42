"""A driver in the same process as its device: no socket, no PCI, no eventfd, no clock but the one a test turns.

`MemoryTransport` joins `driver.ConsoleDriver` to a `VirtioDevice`; `MemoryDriver` runs both until nothing is left to
do; `QueueDriver` sets up bare virtqueues for tests that want to say every descriptor themselves.
"""

from __future__ import annotations

import heapq
import os
from typing import TYPE_CHECKING, Any

from virtserial.driver.console_driver import DRIVER_FEATURES, ConsoleDriver
from virtserial.driver.dma import DmaBuffer, DmaMemory
from virtserial.errors import PeerError, StateError
from virtserial.loop import Timer
from virtserial.memory.region import FileRegion, MappedRegion, keeps_its_pages
from virtserial.virtio.features import VIRTIO_F_EVENT_IDX
from virtserial.virtio.ring.split.driver import DriverQueue, QueueLayout
from virtserial.virtio.status import ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.driver.console_driver import DriverListener
    from virtserial.driver.port_queues import BufferPlan
    from virtserial.driver.ports import Port
    from virtserial.driver.transport import InterruptSink
    from virtserial.state.fields import Fields
    from virtserial.virtio.device import VirtioDevice
    from virtserial.virtio.ring.driver_ring import DriverRing

MOMENT = 0.01
"""Seconds: longer than a device waits before it looks again or sends an interrupt that it held back."""


class StepScheduler:
    """Turns and timers under a test's control; it stands where a device asks for an event loop.

    Attributes:
        time: what `now` returns, in seconds; `advance` moves it.
    """

    def __init__(self) -> None:
        self.time = 0.0
        self._turns: list[Callable[[], None]] = []
        self._in_turn = False
        self._timers: list[Timer] = []

    def now(self) -> float:
        """The time."""
        return self.time

    def add_turn(self, callback: Callable[[], None]) -> None:
        """Call back in the next step."""
        self._turns.append(callback)

    input_waits = is_shared = False

    @property
    def look(self) -> StepScheduler:
        """Itself: the loop's looks are its steps."""
        return self

    @property
    def at_leisure(self) -> bool:
        """Whether no turn waits or runs."""
        return not self._turns and not self._in_turn

    def call_at(self, due: float, callback: Callable[[], None]) -> Timer:
        """Call back when the time has come to `due`."""
        timer = Timer(due, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def run(self, limit: int = 100_000) -> None:
        """Give turns until nobody asks for one.

        Raises:
            StateError: that took more than `limit` turns.
        """
        self._in_turn = True
        try:
            while self._turns:
                turns, self._turns = self._turns, []
                for turn in turns:
                    limit -= 1
                    if limit < 0:
                        raise StateError("turns are asked for without end")
                    turn()
        finally:
            self._in_turn = False

    def advance(self, seconds: float) -> None:
        """Move the time, running timers in their order, and turns after each."""
        end = self.time + seconds
        self.run()
        while self._timers and self._timers[0].due <= end:
            timer = heapq.heappop(self._timers)
            self.time = max(self.time, timer.due)
            if timer.callback is not None:
                timer.callback()
            self.run()
        self.time = end


class MemoryTransport:
    """Both ends of a bus that is no bus: the device's front (Transport, FrontState) and the driver's DriverTransport.

    It has no registers of its own, so it adds nothing to a saved state.  Interrupts are delivered in a turn of their
    own, once however often they were raised before it.

    Attributes:
        interrupts: how many queue interrupts the device raised, by queue; "config" counts the others.
    """

    def __init__(self, device: VirtioDevice, scheduler: StepScheduler) -> None:
        self.device = device
        self.num_queues = device.num_queues
        self.interrupts: dict[int | str, int] = {}
        self._scheduler = scheduler
        self._sink: InterruptSink | None = None
        self._raised: dict[int | str, None] = {}
        device.transport = self

    # The device's side

    def queue_interrupt(self, index: int) -> None:
        """The device has used buffers of a queue."""
        self._raise(index)

    def config_interrupt(self) -> None:
        """The device has changed its configuration or status."""
        self._raise("config")

    def _raise(self, what: int | str) -> None:
        self.interrupts[what] = self.interrupts.get(what, 0) + 1
        if not self._raised:
            self._scheduler.add_turn(self._deliver)
        self._raised[what] = None

    def _deliver(self) -> None:
        raised, self._raised = self._raised, {}
        sink = self._sink
        if sink is None:
            return
        for what in raised:
            if isinstance(what, int):
                sink.queue_interrupt(what)
            else:
                sink.config_interrupt()

    size_limit = 0

    def save(self) -> dict[str, object]:
        """Nothing (FrontState)."""
        return {}

    def check(self, state: Fields) -> None:
        """Any state will do (FrontState)."""

    def load(self, state: Fields) -> None:
        """Nothing (FrontState)."""

    # The driver's side

    def reset(self) -> None:
        """Reset the device."""
        self.device.set_status(0)

    def read_status(self) -> int:
        """The device status."""
        return self.device.status

    def write_status(self, status: int) -> None:
        """Set the device status."""
        self.device.set_status(status)

    def read_features(self) -> int:
        """What the device offers."""
        return self.device.device_features

    def write_features(self, features: int) -> None:
        """What the driver accepts."""
        self.device.driver_features = features

    def queue_max_size(self, index: int) -> int:
        """The largest size of a queue."""
        return self.device.queues[index].max_size if index < self.num_queues else 0

    def connect_interrupts(self, sink: InterruptSink, queues: Sequence[int]) -> None:
        """Deliver interrupts to `sink`."""
        self._sink = sink

    def enable_queue(self, index: int, queue: DriverRing[Any]) -> None:
        """Give the device a queue's rings."""
        registers = self.device.queues[index]
        registers.size = queue.size
        registers.desc_address = queue.desc_address
        registers.avail_address = queue.avail_address
        registers.used_address = queue.used_address
        self.device.enable_queue(index)

    def notify(self, index: int) -> None:
        """Ring."""
        self.device.notify_alone(index)

    def read_config(self, offset: int, length: int) -> bytes:
        """Device-specific configuration."""
        return self.device.read_config(offset, length)

    def write_config(self, offset: int, data: bytes) -> None:
        """Write to it."""
        self.device.write_config(offset, data)

    def dma_map(self, iova: int, size: int, *, fd: int | None = None, offset: int = 0) -> None:
        """Map a file into the device's memory table, as a server does it.

        Raises:
            PeerError: no file: here is nobody who could be asked by messages.
        """
        if fd is None:
            raise PeerError("memory without a file cannot be reached in here")
        fd = os.dup(fd)
        if keeps_its_pages(fd):
            try:
                self.device.memory.map(MappedRegion(iova, size, fd, offset))
            finally:
                os.close(fd)
        else:
            self.device.memory.map(FileRegion(iova, size, fd, offset))
        self.device.memory_mapped()

    def dma_unmap(self, iova: int, size: int) -> None:
        """Unmap it."""
        self.device.memory_unmapped(iova, size)
        self.device.memory.unmap(iova, size)

    def close(self) -> None:
        """Deliver nothing any more."""
        self._sink = None


class MemoryDriver:
    """The embedded driver on a console device, run step by step.

    Args:
        scheduler: the one the device was made with.
        sealed: whether the device may map our memory; else it reads and writes it by system calls.

    Attributes:
        driver: the ConsoleDriver, started by `start`.
    """

    def __init__(
        self,
        device: VirtioDevice,
        scheduler: StepScheduler,
        listener: DriverListener | None = None,
        *,
        sealed: bool = True,
        plan: BufferPlan | None = None,
        features: int = DRIVER_FEATURES,
    ) -> None:
        self.scheduler = scheduler
        self.transport = MemoryTransport(device, scheduler)
        self.memory = DmaMemory(self.transport, sealed=sealed)
        self.driver = ConsoleDriver(self.transport, listener, memory=self.memory, plan=plan, features=features)

    def start(self) -> None:
        """Initialize the device and run until the ports are known."""
        self.driver.start()
        self.run()

    def run(self) -> None:
        """Run device and driver until both are idle, interrupts that were held back for a moment included."""
        self.scheduler.advance(MOMENT)

    def port(self, name: str) -> Port:
        """Return the port of that name.

        Raises:
            KeyError: there is none.
        """
        for port in self.driver.ports.values():
            if port.name == name:
                return port
        raise KeyError(name)

    def close(self) -> None:
        """Reset the device and give its memory back."""
        self.driver.stop()
        self.memory.release()
        self.driver.close()


class QueueDriver:
    """Bare virtqueues on a device: a test adds the chains, rings, and looks at what came back.

    Args:
        queues: which to set up; the others stay disabled.
        features: what to accept.
        size: entries of each queue, at most the device's.

    Attributes:
        queues: by index.
        memory: for buffers.
    """

    def __init__(
        self,
        device: VirtioDevice,
        scheduler: StepScheduler,
        queues: Sequence[int],
        features: int,
        *,
        size: int = 16,
        sealed: bool = True,
    ) -> None:
        self.device = device
        self.scheduler = scheduler
        self.transport = MemoryTransport(device, scheduler)
        self.memory = DmaMemory(self.transport, sealed=sealed, region_size=1 << 20)
        self.queues: dict[int, DriverQueue[DmaBuffer]] = {}
        self.rings: dict[int, DmaBuffer] = {}
        self._event_idx = bool(features & VIRTIO_F_EVENT_IDX)
        self._size = size
        device.set_status(0)
        device.set_status(ACKNOWLEDGE | DRIVER)
        device.driver_features = features
        device.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK)
        for index in queues:
            self.enable(index)
        device.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)

    def enable(self, index: int) -> DriverQueue[DmaBuffer]:
        """Set a queue up; again after a queue reset."""
        size = min(self._size, self.device.queues[index].max_size)
        ring = self.rings[index] = self.memory.allocate(QueueLayout.of(size).length)
        queue: DriverQueue[DmaBuffer] = DriverQueue(ring.view, ring.address, size, event_idx=self._event_idx)
        self.queues[index] = queue
        self.transport.enable_queue(index, queue)
        return queue

    def send(self, index: int, data: bytes) -> None:
        """Make one chain with a copy of `data` available and ring."""
        buffer = self.memory.allocate(len(data), alignment=8)
        buffer.view[:] = data
        self.queues[index].add(((buffer.address, len(data)),), (), buffer)
        self.ring(index)

    def post(self, index: int, length: int, count: int = 1) -> None:
        """Make `count` buffers of `length` bytes available for the device to fill, and ring."""
        for _ in range(count):
            buffer = self.memory.allocate(length, alignment=8)
            self.queues[index].add((), ((buffer.address, length),), buffer)
        self.ring(index)

    def ring(self, index: int) -> None:
        """Publish what was added, notify the device if it wants that, run it for a moment."""
        if self.queues[index].publish():
            self.device.notify(index)
        self.scheduler.advance(MOMENT)

    def harvest(self, index: int) -> list[bytes]:
        """Return copies of what the device wrote, chain by chain, b"" for chains it only read."""
        return [bytes(buffer.view[:length]) for buffer, length in self.queues[index].harvest()]

    def close(self) -> None:
        """Reset the device and give its memory back."""
        self.device.set_status(0)
        self.memory.release()
