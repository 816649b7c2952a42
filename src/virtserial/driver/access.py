"""What the driver needs of the outside: the registers of a VFIO PCI device, DMA, and interrupts as eventfds.

`virtserial.vfio_user.client.Client` is one; the kernel's VFIO offers the same operations as ioctls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class SizedInfo(Protocol):
    """What is asked of a region: its size in bytes."""

    @property
    def size(self) -> int: ...


class CountedInfo(Protocol):
    """What is asked of an interrupt index: how many vectors it has."""

    @property
    def count(self) -> int: ...


class DeviceAccess(Protocol):
    """Register access, DMA and interrupts of one device.

    Every call raises PeerError where the other end refuses or breaks the protocol.
    """

    def region_info(self, index: int) -> SizedInfo: ...
    def irq_info(self, index: int) -> CountedInfo: ...
    def region_read(self, region: int, offset: int, length: int) -> bytes: ...
    def region_write(self, region: int, offset: int, data: bytes, posted: bool = False, more: bool = False) -> None:
        """Write registers.

        Args:
            posted: do not wait until the device has seen it (later accesses stay behind it).
            more: another access follows at once, so that a posted write may go with that.
        """
        ...

    def dma_map(
        self,
        iova: int,
        size: int,
        *,
        fd: int | None = None,
        offset: int = 0,
        readable: bool = True,
        writable: bool = True,
    ) -> None:
        """Let the device reach [iova, iova + size): bytes from `offset` of the file `fd`, or by messages."""
        ...

    def dma_unmap(self, iova: int, size: int) -> None: ...
    def set_irqs(self, index: int, start: int, eventfds: Sequence[int]) -> None:
        """Signal these eventfds for vectors start, start + 1, ... of interrupt index `index`."""
        ...

    def disable_irqs(self, index: int) -> None:
        """Signal nothing of this index any more."""
        ...

    def unmask_irqs(self, index: int) -> None:
        """Let INTx through again, which masks itself when it fires."""
        ...

    def fileno(self) -> int:
        """A descriptor that is readable when `poll` has something to do (or the other end is gone)."""
        ...

    def poll(self) -> None:
        """Serve what the other end asks of us (its memory accesses by message)."""
        ...

    def close(self) -> None: ...
