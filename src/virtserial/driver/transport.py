"""The seam between the console driver and its device's bus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.errors import PeerError
    from virtserial.virtio.ring.driver_ring import DriverRing


class InterruptSink(Protocol):
    """Hears of the device's interrupts; calls may be spurious."""

    def queue_interrupt(self, index: int) -> None:
        """Queue `index` may have used buffers."""
        ...

    def config_interrupt(self) -> None:
        """The configuration or the device status may have changed."""
        ...

    def device_gone(self, error: PeerError) -> None:
        """The device is unreachable."""
        ...


class DriverTransport(Protocol):
    """A virtio device's registers for its driver, and the DmaMapper of the driver's memory.

    Every call raises PeerError when the device lies or is gone.
    """

    num_queues: int

    def reset(self) -> None:
        """Reset the device and wait until the reset is complete (virtio 1.3, 2.4.2)."""
        ...

    def read_status(self) -> int: ...
    def write_status(self, status: int) -> None: ...
    def read_features(self) -> int: ...
    def write_features(self, features: int) -> None: ...
    def queue_max_size(self, index: int) -> int:
        """The largest size of a queue, 0 if the device has no such queue."""
        ...

    def connect_interrupts(self, sink: InterruptSink, queues: Sequence[int]) -> None:
        """Deliver interrupts of the configuration and of these queues; call it before the queues are enabled."""
        ...

    def enable_queue(self, index: int, queue: DriverRing[Any]) -> None: ...
    def notify(self, index: int) -> None:
        """Ring the doorbell: queue `index` has available buffers."""
        ...

    def read_config(self, offset: int, length: int) -> bytes:
        """Device-specific configuration, all of one generation (virtio 1.3, 2.5.1)."""
        ...

    def write_config(self, offset: int, data: bytes) -> None: ...
    def dma_map(self, iova: int, size: int, *, fd: int | None = None, offset: int = 0) -> None: ...
    def dma_unmap(self, iova: int, size: int) -> None: ...
    def close(self) -> None:
        """Stop interrupts and close the device."""
        ...
