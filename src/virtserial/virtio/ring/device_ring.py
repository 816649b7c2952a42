"""The device's side of an attached ring, as a device type uses it: the same for every ring format.

A format is a sibling folder (`split/`, `packed/`) whose class implements `DeviceRing` over guest memory and a
`QueueRecord`.  What the interface rests on holds for both:

* The device uses chains in the order in which they were made available, and nothing is in flight between two turns.
  So one position and one offset describe the whole queue: for a split ring the free-running index, for a packed ring
  the index and its wrap counter, which are then the same for available and for used descriptors.
* A position is opaque: it is compared, saved and noted in the ledger, never computed with.
* Event suppression is the ring's business: EVENT_IDX and flags for a split ring, the event suppression structures of a
  packed one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from virtserial.errors import AccessInterrupted
from virtserial.virtio.ring.chains import ChainBatch

if TYPE_CHECKING:
    from collections.abc import Sequence


class DeviceRing(Protocol):
    """Chains in, chains out, and who wants to be told.

    Attributes:
        attached: there is a ring behind it.
        mapped: it is reached without system calls.
        position: where the queue stands, opaque; differs after every `give_back`.
        offset: bytes of the next chain that were served already.
    """

    attached: bool
    mapped: bool
    position: int
    offset: int

    def waiting(self) -> int:
        """How many chains wait (of a packed ring: descriptors, or 1 if a chain waits; compare with the queue's size).

        Raises:
            DriverError: the ring makes no sense.
        """
        ...

    def readable_chains(self, max_chains: int, max_bytes: int) -> ChainBatch:
        """Return waiting chains with views of their device-readable part, less the `offset` bytes served already.

        Nothing is taken: `give_back` does that.  The batch ends with the chain that reaches `max_bytes`.

        Raises:
            DriverError: a chain breaks a rule.
            AddressError: a buffer is not mapped for DMA.
        """
        ...

    def writable_chains(self, max_chains: int, max_bytes: int) -> ChainBatch:
        """Return waiting chains with views of their device-writable part.

        Raises:
            DriverError: a chain breaks a rule.
            AddressError: a buffer is not mapped for DMA, or only to be read.
        """
        ...

    def lone_message(self, limit: int) -> memoryview | None:
        """Return a view of the only chain that waits, if it is one mapped buffer to be read, of at most `limit` bytes
        of which none was served; None: ask `readable_chains`.  `give_back_one` returns it."""
        ...

    def next_buffer(self) -> memoryview | None:
        """Return a view of the next chain, if it is one mapped buffer to be written; None: ask `writable_chains`.
        `give_back_one` returns it."""
        ...

    def give_back_one(self, written: int) -> None:
        """Return the chain of the last `lone_message` or `next_buffer` to the driver, with so many bytes written."""
        ...

    def store(self, batch: ChainBatch, written: int) -> None:
        """Store the first `written` bytes of the batch's views in guest memory, where they are not there already."""
        ...

    def give_back(self, heads: Sequence[int], lengths: Sequence[int] | None = None, offset: int = 0) -> None:
        """Return chains to the driver, in order of availability, at once.

        Args:
            heads: the first chains of the last batch; none is allowed.
            lengths: bytes written into each (None: none).
            offset: bytes of the chain behind them that were served already.
        """
        ...

    def take_signal(self) -> bool:
        """Whether the driver wants an interrupt for the chains returned since the last call (2.7.7.2, 2.8.7)."""
        ...

    def signal_is_urgent(self) -> bool:
        """Whether the interrupt for returned chains should not be held back: most of the ring was returned without one,
        or the driver has named one of the last chains as the one to hear of."""
        ...

    def unseen(self) -> int:
        """Returned chains the driver has not looked at yet; 0 where that is not known without a system call."""
        ...

    def arm(self, ahead: int = 0) -> bool:
        """Ask for a doorbell when the driver makes a chain available, with EVENT_IDX `ahead` chains later.

        Returns whether chains came in meanwhile, for which no doorbell may ring.
        """
        ...

    def disarm(self, ahead: int = 0) -> None:
        """Tell the driver that no doorbell is needed, with EVENT_IDX before `ahead` chains are available (0: never).

        The device looks by itself; such a doorbell may be missed.
        """
        ...

    def reopen(self) -> None:
        """Find the ring in guest memory anew: the memory table has begun or ceased to log."""
        ...

    def lies_in(self, start: int, end: int) -> bool:
        """Whether the ring has a part in the guest addresses [start, end)."""
        ...

    def forget_buffers(self) -> None:
        """Let go of views of buffers: memory was unmapped."""
        ...


class DetachedRing:
    """The ring of a queue that has none: nothing waits and nobody is told.

    Whoever gives chains back to it looked at a ring that a reset has taken away since: AccessInterrupted.
    """

    attached = False
    mapped = False
    position = 0
    offset = 0

    def waiting(self) -> int:
        return 0

    def readable_chains(self, max_chains: int, max_bytes: int) -> ChainBatch:
        return ChainBatch()

    def writable_chains(self, max_chains: int, max_bytes: int) -> ChainBatch:
        return ChainBatch()

    def lone_message(self, limit: int) -> memoryview | None:
        return None

    def next_buffer(self) -> memoryview | None:
        return None

    def give_back_one(self, written: int) -> None:
        raise AccessInterrupted("the ring is gone")

    def store(self, batch: ChainBatch, written: int) -> None:
        raise AccessInterrupted("the ring is gone")

    def give_back(self, heads: Sequence[int], lengths: Sequence[int] | None = None, offset: int = 0) -> None:
        raise AccessInterrupted("the ring is gone")

    def take_signal(self) -> bool:
        return False

    def signal_is_urgent(self) -> bool:
        return False

    def unseen(self) -> int:
        return 0

    def arm(self, ahead: int = 0) -> bool:
        return False

    def disarm(self, ahead: int = 0) -> None: ...

    def reopen(self) -> None: ...

    def lies_in(self, start: int, end: int) -> bool:
        return False

    def forget_buffers(self) -> None: ...


DETACHED: Final = DetachedRing()

UNOPENED: Final = DetachedRing()
"""The ring of an enabled queue that nobody uses: it was found, and let go of again, for each takes a kilobyte."""
