"""The driver's seam to the outside: the registers of a VFIO PCI device, DMA, and interrupts as eventfds.

`virtserial.vfio_user.client.Client` implements it over vfio-user, `VfioFunction` over the kernel's VFIO.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class SizedInfo(Protocol):
    """A region's size in bytes."""

    @property
    def size(self) -> int: ...


class CountedInfo(Protocol):
    """An interrupt index's number of vectors."""

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
            posted: do not wait until the device has handled the write; later accesses stay in order.
            more: another access follows at once, so a posted write may wait and travel with it.
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
        """Let the device use [iova, iova + size): from `offset` of the file `fd`, or by messages without one."""
        ...

    def dma_unmap(self, iova: int, size: int) -> None: ...
    def set_irqs(self, index: int, start: int, eventfds: Sequence[int]) -> None:
        """Signal these eventfds for vectors start, start + 1, ... of interrupt index `index`."""
        ...

    def disable_irqs(self, index: int) -> None:
        """Stop signalling this index."""
        ...

    def unmask_irqs(self, index: int) -> None:
        """Unmask INTx, which masks itself when it fires."""
        ...

    def fileno(self) -> int:
        """A descriptor that is readable when `poll` has work, or when the other end is gone."""
        ...

    def poll(self) -> None:
        """Serve the other end's requests (memory accesses by message)."""
        ...

    def close(self) -> None: ...
