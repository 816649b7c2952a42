"""Data for port numbers without a port: discarded and counted, as QEMU does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from virtserial.console.wire import transmitq_index

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.console.slot import PortSlot
    from virtserial.virtio.queue import Virtqueue

DISCARDS_PER_TURN: Final = 256
"""Chains; a long chain counts for one more with every 16 of its descriptors."""


class UnownedQueues:
    """The transmitqs of numbers without a port.

    Args:
        queues: all queues of the device.
        signal: interrupts for a queue if its driver wants it.
        schedule: asks for a turn of this object.
    """

    def __init__(
        self, queues: Sequence[Virtqueue], signal: Callable[[Virtqueue], None], schedule: Callable[[], None]
    ) -> None:
        self._all = queues
        self._signal = signal
        self._schedule = schedule
        self._due = False
        self._waiting: dict[PortSlot, None] = {}

    def notify(self, slot: PortSlot) -> None:
        """The driver rang for a number that has no port."""
        self._waiting[slot] = None
        self.schedule_all()

    def forget(self) -> None:
        """The device was reset: nothing waits."""
        self._waiting.clear()

    @property
    def queues(self) -> Sequence[Virtqueue]:
        return [self._all[transmitq_index(slot.number)] for slot in self._waiting]

    def schedule_all(self) -> None:
        if not self._due:
            self._due = True
            self._schedule()

    def forget_work(self) -> None:
        self._due = False

    def turn(self) -> None:
        self._due = False
        budget = DISCARDS_PER_TURN
        while self._waiting and budget > 0:
            slot = next(iter(self._waiting))
            if slot.port is None:
                budget = self.discard(slot, budget)
            if budget > 0:
                self._waiting.pop(slot, None)
        if self._waiting:
            self.schedule_all()

    def discard(self, slot: PortSlot, budget: int = DISCARDS_PER_TURN) -> int:
        """Return what the driver has queued for a number, unread, and ask to hear of more.

        Returns what is left of the budget; what is left in the queue has its turn later.
        """
        queue = self._all[transmitq_index(slot.number)]
        ring = queue.ring
        while budget > 0:
            # With a budget of no bytes: one chain, and no view of it.
            batch = ring.readable_chains(1, 0)
            if not batch.heads:
                break
            slot.record.discarded += batch.ends[-1] - ring.offset
            ring.give_back(batch.heads)
            budget -= 1 + batch.walked // 16
        self._signal(queue)
        if queue.ring.arm():
            self.notify(slot)
            budget = 0
        return budget
