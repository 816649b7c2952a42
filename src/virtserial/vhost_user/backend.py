"""What a server asks of the device behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from virtserial.named_tuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from virtserial.vhost_user.wire import MemoryRegion

KICK, CALL, ERR = 1, 2, 3
"""Kinds of a queue's descriptors."""


class Ring(NamedTuple):
    """Where a queue is to run; the addresses are the guest's, `progress` is QueueRecord's."""

    size: int
    descriptor: int
    available: int
    used: int
    progress: int


class VhostDevice(Protocol):
    """A device as its front end sees it.  Descriptors that it is given are its own from then on.

    Attributes:
        num_queues: MAX_VRINGS at most.
        max_queue_size: the largest size of a queue.
        features: the feature bits that are offered, without those of the protocol.
        needs_reset: it has stopped over a driver's error.
    """

    num_queues: int
    max_queue_size: int

    @property
    def needs_reset(self) -> bool: ...

    @property
    def features(self) -> int: ...
    @property
    def driver_features(self) -> int:
        """What the driver has accepted; 0 after a reset."""
        ...

    def needed_queues(self, features: int) -> Sequence[int]:
        """The queues without which a driver with these features cannot be served; one of any is needed."""
        ...

    # Memory and descriptors

    def map_region(self, region: MemoryRegion, fd: int) -> None:
        """Map guest memory.

        Raises:
            PeerError: it cannot be.
        """
        ...

    def unmap_region(self, region: MemoryRegion) -> None: ...
    def unmap_all(self) -> None: ...

    def set_descriptor(self, kind: int, index: int, fd: int) -> None:
        """Give a queue its descriptor for KICK, CALL or ERR in the place of the last one; -1: it has none.

        Raises:
            PeerError: it cannot be used.
        """
        ...

    def set_backend_channel(self, fd: int) -> None:
        """Take the socket for requests of ours.

        Raises:
            PeerError: it cannot be used.
        """
        ...

    # Life: set_up, start_ring for each, run; later stand_still, then the same again.  Every call may come twice.

    def set_up(self, features: int, fresh: bool) -> None:
        """A driver with these features has set up its queues.

        Args:
            fresh: it begins anew; else it goes on where `stand_still` stopped it.
        """
        ...

    def run(self) -> None:
        """Use the queues, from the next turn on."""
        ...

    def stand_still(self) -> None:
        """Touch no queue, and keep what the driver has said."""
        ...

    def reset(self) -> None:
        """Return to the state after power-on; memory and descriptors stay."""
        ...

    def start_ring(self, index: int, ring: Ring) -> None:
        """Give the device a queue.

        Raises:
            PeerError: it cannot be there.
        """
        ...

    def progress(self, index: int) -> int:
        """Where a queue stands."""
        ...

    def stop_ring(self, index: int) -> None:
        """Take a queue away."""
        ...

    # Configuration, log, state

    def read_config(self, offset: int, length: int) -> bytes: ...
    def write_config(self, offset: int, data: bytes) -> None: ...

    def set_log(self, fd: int, offset: int, size: int) -> None:
        """Take the file of the log of written pages.

        Raises:
            PeerError: it cannot be used.
        """
        ...

    def log_writes(self, on: bool) -> None:
        """Note in the log, once there is one, what is written into guest memory, or no more."""
        ...

    def transfer(self, fd: int, load: bool) -> None:
        """Write the state of the device, which stands still, to `fd`, or read one from there, while others have turns.

        Raises:
            PeerError: it cannot be.
        """
        ...

    def transfer_result(self) -> Mapping[int, int]:
        """End the last transfer; the progress of each queue of the state that was loaded, empty if one was saved.

        Raises:
            PeerError: it was not complete.
        """
        ...
