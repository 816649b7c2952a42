"""Where a virtio function has its registers: the cases name them where QEMU's virtio-pci has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from virtserial.conformance.steps import DEVICE_CONFIG, ISR, NOTIFY, NUM_QUEUES, QUEUE_SELECT
from virtserial.pci.layout import DOORBELL_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.driver.pci_capabilities import Capabilities

QUEUE_NOTIFY_OFF: Final = 0x1E


class RegisterMap:
    """
    Args:
        capabilities: of the function.
        read, write: access to its BARs: (bar, offset, width), (bar, offset, value, width).
    """

    def __init__(
        self,
        capabilities: Capabilities,
        read: Callable[[int, int, int], int],
        write: Callable[[int, int, int, int], None],
    ) -> None:
        self._capabilities = capabilities
        common = capabilities.common
        self._notify_off: list[int] = []
        for queue in range(read(common.bar, common.offset + NUM_QUEUES, 2)):
            write(common.bar, common.offset + QUEUE_SELECT, queue, 2)
            self._notify_off.append(read(common.bar, common.offset + QUEUE_NOTIFY_OFF, 2))

    def place(self, offset: int) -> tuple[int, int]:
        """Return the BAR and the offset in it of a register of the cases (4.1.4.3 to 4.1.4.6)."""
        found = self._capabilities
        if offset >= NOTIFY:
            queue, rest = divmod(offset - NOTIFY, DOORBELL_SIZE)
            off = self._notify_off[queue] if queue < len(self._notify_off) else queue
            return found.notify.bar, found.notify.offset + off * found.notify_multiplier + rest
        if offset >= DEVICE_CONFIG:
            return found.device.bar, found.device.offset + offset - DEVICE_CONFIG
        if offset >= ISR:
            return found.isr.bar, found.isr.offset + offset - ISR
        return found.common.bar, found.common.offset + offset
