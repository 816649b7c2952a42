"""The device a vfio-user server serves: what the protocol asks of it, in terms of VFIO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence


@runtime_checkable
class VfioDevice(Protocol):
    """A PCI device as VFIO shows it.  The server has checked every argument against the sizes and counts given here.

    A method refuses what it cannot do by PeerError; its errno goes into the reply.  No method may wait for the client
    (no DMA_READ or DMA_WRITE): the client may be waiting for this method's answer.
    """

    num_regions: int
    num_irqs: int
    doorbell_region: int
    """The region with the doorbells; a posted 2-byte write to one of their offsets is a `ring_doorbell`."""
    doorbell_offsets: dict[int, int]
    """Offset in that region -> the doorbell's number."""

    def client_negotiated(self, *, deletes_only_without_msix: bool) -> None:
        """A client has agreed on the version; nothing of the device is known to it yet.

        Args:
            deletes_only_without_msix: it aborts when it deletes a device that it saw MSI-X on.
        """
        ...

    def ring_doorbell(self, number: int) -> None:
        """Note that there is work; called for every doorbell, so it must be short and must not raise."""
        ...

    def ring_lone_doorbell(self, number: int) -> None:
        """The same, of a doorbell with which nothing else came: the work may be done now if it is short."""
        ...

    def region_size(self, index: int) -> int:
        """Bytes of region `index`, 0 where the device has no such region."""
        ...

    def region_flags(self, index: int) -> int:
        """VFIO_REGION_INFO_FLAG_*."""
        ...

    def irq_count(self, index: int) -> int:
        """Interrupts of type `index`."""
        ...

    def irq_flags(self, index: int) -> int:
        """VFIO_IRQ_INFO_*."""
        ...

    def region_read(self, index: int, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes."""
        ...

    def region_write(self, index: int, offset: int, data: bytes | memoryview) -> None:
        """Take a write; `data` must not be kept."""
        ...

    def set_irq_eventfds(self, index: int, start: int, fds: Sequence[int]) -> None:
        """Signal interrupts start, start + 1, ... of type `index` by these eventfds from now on.

        Takes ownership of the descriptors.  -1 takes an interrupt's eventfd away; no descriptors at all disables the
        whole type.
        """
        ...

    def trigger_irqs(self, index: int, start: int, count: int) -> None:
        """Signal interrupts as if the device had."""
        ...

    def mask_irqs(self, index: int, start: int, count: int) -> None: ...
    def unmask_irqs(self, index: int, start: int, count: int) -> None: ...

    def reset(self) -> None:
        """Return to the state after power-on; DMA maps and eventfds stay."""
        ...

    def dma_map(self, iova: int, size: int, prot: int, fd: int | None, offset: int) -> None:
        """Let the device use [iova, iova + size) of the client's memory.

        Args:
            prot: VFIO_DMA_MAP_FLAG_READ and _WRITE, from the device's point of view.
            fd: the file it lies in, from `offset` on; the device owns it, also if it raises.  None: only messages
                reach it.
        """
        ...

    def dma_unmap(self, iova: int, size: int) -> None:
        """Take a range away: when this returns, the device has let go of it."""
        ...

    def dma_unmap_all(self) -> None: ...
