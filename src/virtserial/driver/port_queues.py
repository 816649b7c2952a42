"""The two queues of a port, with their buffers: bytes between DMA memory and the holder of a view.

This file copies no byte.  It lends received bytes as views of the buffers that the device filled, and a buffer returns
to the device when all of it is consumed.  A producer writes bytes to transmit into lent views (os.readv, recv_into)
and commits them.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from virtserial.driver.dma import DmaBuffer
from virtserial.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.driver.dma import DmaMemory
    from virtserial.virtio.ring.driver_ring import DriverRing

MAX_VIEWS = 1024
"""The most buffers of one readv or writev (IOV_MAX)."""


class BufferPlan(NamedTuple):
    """How many buffers a port has, and their size in bytes.

    The device fills large receive buffers with one system call; the kernel allocates no page that nobody fills.
    """

    receive_count: int = 32
    receive_size: int = 65536
    transmit_count: int = 32
    transmit_size: int = 65536


def allocate_buffers(memory: DmaMemory, count: int, size: int) -> list[DmaBuffer]:
    """Return `count` adjacent buffers of `size` bytes."""
    address, view = memory.allocate(count * size)
    return [DmaBuffer(address + start, view[start : start + size]) for start in range(0, count * size, size)]


class ReceiveQueue:
    """A receiveq: its buffers are posted, filled by the device, read here, and posted again.

    Attributes:
        waiting: bytes received and not consumed, at the last look at the ring.
    """

    def __init__(self, queue: DriverRing[DmaBuffer], notify: Callable[[], None]) -> None:
        self._queue = queue
        self._notify = notify
        self._filled: deque[tuple[DmaBuffer, int]] = deque()
        self._offset = 0
        self._posted = False
        self.waiting = 0

    def post(self, memory: DmaMemory, plan: BufferPlan) -> None:
        """Allocate the buffers and give them to the device; a second call changes nothing."""
        if self._posted:
            return
        self._posted = True
        count = min(plan.receive_count, self._queue.size)
        self._give(allocate_buffers(memory, count, plan.receive_size))

    def views(self) -> list[memoryview]:
        """Return the received bytes, in order.  Empty: an interrupt will announce the next.

        Raises:
            PeerError: the device lies about its used ring.
        """
        self._harvest()
        while not self._filled and self._queue.request_interrupt():
            self._harvest()
        views = [buffer.view[:length] for buffer, length in islice(self._filled, MAX_VIEWS)]
        if self._offset:
            views[0] = views[0][self._offset :]
        return views

    def consume(self, count: int) -> None:
        """Drop the first `count` bytes of what `views` returned; emptied buffers go back to the device."""
        if not 0 <= count <= self.waiting:
            raise StateError(f"{count} bytes consumed, {self.waiting} are there")
        self.waiting -= count
        count += self._offset
        emptied: list[DmaBuffer] = []
        while self._filled and count >= self._filled[0][1]:
            buffer, length = self._filled.popleft()
            count -= length
            emptied.append(buffer)
        self._offset = count
        self._give(emptied)

    def discard(self) -> int:
        """Drop everything received so far; return how many bytes that were."""
        total = 0
        while views := self.views():
            count = sum(map(len, views))
            self.consume(count)
            total += count
        return total

    def _harvest(self) -> None:
        empty: list[DmaBuffer] = []
        for buffer, length in self._queue.harvest():
            if length:
                self._filled.append((buffer, length))
                self.waiting += length
            else:
                empty.append(buffer)
        self._give(empty)

    def _give(self, buffers: list[DmaBuffer]) -> None:
        for buffer in buffers:
            self._queue.add((), ((buffer.address, len(buffer.view)),), buffer)
        if buffers and self._queue.publish():
            self._notify()


class TransmitQueue:
    """A transmitq: lends free buffers, and makes filled ones available to the device."""

    def __init__(self, queue: DriverRing[DmaBuffer], notify: Callable[[], None]) -> None:
        self._queue = queue
        self._notify = notify
        self._free: list[DmaBuffer] = []
        self._allocated = False
        self._interrupts_wanted = True

    def allocate(self, memory: DmaMemory, plan: BufferPlan) -> None:
        """Allocate the buffers; a second call changes nothing."""
        if not self._allocated:
            self._allocated = True
            self._free = allocate_buffers(memory, min(plan.transmit_count, self._queue.size), plan.transmit_size)

    def views(self, limit: int) -> list[memoryview]:
        """Return views to fill, at most `limit` bytes.  Empty: an interrupt will come when many buffers are free.

        Raises:
            PeerError: the device lies about its used ring.
        """
        free = self._free
        if len(free) * 2 <= self._queue.in_flight:
            self._harvest()
            # A wake-up of the producer for every buffer costs more than it gains.
            while not free and self._request_interrupt((self._queue.in_flight + 1) // 2):
                self._harvest()
        if free and self._interrupts_wanted:
            self._interrupts_wanted = False
            self._queue.suppress_interrupts()
        views: list[memoryview] = []
        for buffer in reversed(free):
            if limit <= 0 or len(views) == MAX_VIEWS:
                break
            views.append(buffer.view[:limit])
            limit -= len(buffer.view)
        return views

    def commit(self, count: int) -> None:
        """Transmit the first `count` bytes of the views that `views` returned last."""
        if not count:
            return
        free, queue = self._free, self._queue
        while count > 0:
            if not free:
                raise StateError(f"{count} bytes more were committed than views were lent")
            buffer = free.pop()
            length = min(count, len(buffer.view))
            queue.add(((buffer.address, length),), (), buffer)
            count -= length
        if queue.publish():
            self._notify()

    def flushed(self) -> bool:
        """Whether the device has taken all bytes.  If not, an interrupt will come when it has.

        Raises:
            PeerError: the device lies about its used ring.
        """
        self._harvest()
        while self._queue.in_flight and self._request_interrupt(self._queue.in_flight):
            self._harvest()
        return not self._queue.in_flight

    def _request_interrupt(self, after: int) -> bool:
        self._interrupts_wanted = True
        return self._queue.request_interrupt(after)

    def _harvest(self) -> None:
        self._free += [buffer for buffer, _ in self._queue.harvest()]
