"""Interrupts of the function: eventfds by which the VMM wants to hear of them, and the rules of INTx and MSI-X.

INTx is a level that VFIO turns into edges: when it is signalled it masks itself, and when the VMM unmasks it - the
guest has serviced it - it is signalled again if the level is still high.  An MSI-X message whose vector has no eventfd
(QEMU takes it away while the guest masks the vector) is remembered and sent when it gets one, as the pending bit
array of a real function does.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from virtserial.accounting import Account
from virtserial.errors import PeerError
from virtserial.foreign import EventfdSignals

if TYPE_CHECKING:
    from collections.abc import Sequence


class Interrupts:
    """The eventfds of one function.

    Args:
        vectors: how many MSI-X vectors there are.
        account: gets what is written; None: nobody counts.

    Attributes:
        pending: MSI-X vectors that wait for an eventfd.
        uses_msix: whether some vector has an eventfd, by which VFIO enables MSI-X.
        signals: writes the eventfds.
    """

    def __init__(self, vectors: int, account: Account | None = None) -> None:
        self.vectors = vectors
        self.signals = EventfdSignals(account or Account())
        self.pending: set[int] = set()
        self.uses_msix = False
        self._vector_fds = [-1] * vectors
        self._intx_fd = -1
        self._intx_level = False
        self._intx_masked = False

    # From the device

    def signal_vector(self, vector: int) -> None:
        """Send the message of an MSI-X vector; one that does not exist has none."""
        if vector < self.vectors:
            fd = self._vector_fds[vector]
            if fd < 0:
                self.pending.add(vector)
            else:
                self.signals.send(fd)

    def set_intx(self, level: bool) -> None:
        """Drive the interrupt pin."""
        self._intx_level = level
        self._signal_intx()

    def _signal_intx(self) -> None:
        if self._intx_level and not self._intx_masked and self._intx_fd >= 0:
            self._intx_masked = True
            self.signals.send(self._intx_fd)

    # From the VMM

    def set_vector_eventfds(self, start: int, fds: Sequence[int]) -> None:
        """Give vectors start, start + 1, ... these eventfds (-1: none).  Takes ownership.

        Raises:
            PeerError: one of them is no descriptor that can be written without waiting; then all are closed.
        """
        _make_non_blocking(fds)
        for vector, fd in enumerate(fds, start):
            if self._vector_fds[vector] >= 0:
                os.close(self._vector_fds[vector])
            self._vector_fds[vector] = fd
            if fd >= 0 and vector in self.pending:
                self.pending.discard(vector)
                self.signals.send(fd)
        self.uses_msix = any(fd >= 0 for fd in self._vector_fds)

    def set_intx_eventfd(self, fd: int) -> None:
        """Give INTx this eventfd (-1: none), unmasked.  Takes ownership.

        Raises:
            PeerError: it cannot be written without waiting; then it is closed.
        """
        _make_non_blocking([fd])
        if self._intx_fd >= 0:
            os.close(self._intx_fd)
        self._intx_fd = fd
        self._intx_masked = False
        self._signal_intx()

    def mask_intx(self) -> None:
        """Hold INTx back until it is unmasked."""
        self._intx_masked = True

    def unmask_intx(self) -> None:
        """The guest has serviced INTx; signal it again if the level is still high."""
        self._intx_masked = False
        self._signal_intx()

    def trigger_intx(self) -> None:
        """Signal INTx whatever its level."""
        if self._intx_fd >= 0:
            self.signals.send(self._intx_fd)

    def disable_msix(self) -> None:
        """Close every vector's eventfd."""
        self.set_vector_eventfds(0, [-1] * self.vectors)

    def reset(self) -> None:
        """The function was reset: the level is low and nothing is pending; eventfds stay."""
        self._intx_level = False
        self.pending.clear()

    def close(self) -> None:
        """Close every eventfd."""
        self.disable_msix()
        self.set_intx_eventfd(-1)


def _make_non_blocking(fds: Sequence[int]) -> None:
    # A hostile VMM may give a full pipe or a saturated eventfd: writing to it must never wait.
    try:
        for fd in fds:
            if fd >= 0:
                os.set_blocking(fd, False)
    except OSError as error:
        for fd in fds:
            if fd >= 0:
                os.close(fd)
        raise PeerError(f"an interrupt's descriptor cannot be used: {error.strerror}") from error
