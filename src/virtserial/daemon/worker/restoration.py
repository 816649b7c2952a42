"""Restoration: devices get what their dead predecessors had from their VMMs, and no VMM can make that fail for others.

| what goes wrong | for example | what follows |
|---|---|---|
| an exception | the VMM has cut the file of its memory; there is no room to map it | its connection is closed |
| the end of this process | SIGBUS where huge pages are gone | the ledger says whose restoration it was: after two such ends in a row the keeper closes that connection (keeper/blame.py) |
| no end at all | memory by messages, and the VMM does not answer | the keeper ends this process as hung; then as above |
"""  # noqa: E501  # rows of a table

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.accounting import Ledger
    from virtserial.channel.messages import DmaMap, Irq
    from virtserial.daemon.worker.guest_device import GuestDevice

log = logging.getLogger("virtserial.worker")


class Restoration:
    """
    Args:
        ledger: gets the controller that is being restored.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._failed: set[int] = set()

    def begin(self, controller: int) -> None:
        """Whatever comes next is about this controller."""
        self._ledger.restoring = controller

    def end(self) -> None:
        """All are restored."""
        self._ledger.restoring = None
        self._failed.clear()

    def give(self, device: GuestDevice, message: DmaMap | Irq, fds: Sequence[int]) -> None:
        """Give a device what its VMM had handed over."""
        if device.index in self._failed:
            for fd in fds:
                os.close(fd)
            return
        self._try(device, lambda: device.restore(message, fds))

    def connect(self, device: GuestDevice, fd: int) -> None:
        """Give a device its VMM's connection; one whose restoration has failed closes it."""
        self._try(device, lambda: device.connect(fd))
        if device.index in self._failed:
            device.front.close()

    def take_over(self, device: GuestDevice) -> None:
        """Let a device find out what is to be done."""
        self._try(device, device.take_over)

    def _try(self, device: GuestDevice, step: Callable[[], None]) -> None:
        self.begin(device.index)
        try:
            step()
        except Exception as error:
            self._failed.add(device.index)
            log.error("%s: what its VMM had cannot be restored, its connection is closed: %s", device.name, error)
