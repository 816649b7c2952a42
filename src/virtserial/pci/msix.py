"""MSI-X messages that the function sends itself: the table and the pending bits, in state memory.

A VMM that sees the MSI-X capability keeps the table and gives every vector an eventfd (interrupts.py).  QEMU aborts
when it deletes such a vfio-user device, so a function that can be unplugged hides the capability from QEMU
(VirtioPciFunction.client_negotiated) and does by itself what the table says: a message is a write of 4 bytes into the
guest's address space.

A vector's message is sent at once if all of this holds, else its pending bit is set and it is sent when all of it does:

| who | what |
|---|---|
| driver | MSI-X Enable is 1, Function Mask is 0, Bus Master Enable is 1, the vector's Mask bit is 0 |
| this file | the address is one that only interrupts have: the guest must not make us write anywhere else |
| VMM | it is connected and its socket has room |

A vector has one pending bit however often it is signalled, so a driver that never unmasks costs nothing, and one that
unmasks in a loop gets no more messages than the device has signalled.  Messages that have waited are sent in a turn of
their own: many changes of the table in one message of the VMM cost one look at the pending bits.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from virtserial.memory.state import StateMemory
    from virtserial.pci.layout import MsixLayout

_ENTRY: Final = struct.Struct("<QII")
"""One entry of the table: message address, message data, vector control."""
_MASKED: Final = 1
_NOT_OF_ADDRESS: Final = ~0xFFFFC
INTERRUPTS: Final = 0xFEE00000
"""On x86 the megabyte from here on is no memory: a write there is an interrupt.  Messages are 4 bytes, aligned."""


class MessageWriter(Protocol):
    """How messages reach the guest."""

    def write_message(self, address: int, data: int) -> bool:
        """Store 32 bits at a guest address; False if that cannot be now, and `send_pending` is called later."""
        ...

    def ask_for_retry(self) -> None:
        """Have `MsixMessages.send_pending` called soon, once for any number of asks."""
        ...


class MsixMessages:
    """Table and pending bits of one function.

    Args:
        state: where they live, `state_size` bytes.
        msix: how large they are.
        writer: sends the messages.

    Attributes:
        table: the MSI-X BAR as the driver wrote it, without the pending bits.
        refused: how many messages had an address that is no interrupt's.
    """

    def __init__(self, state: StateMemory, msix: MsixLayout, writer: MessageWriter) -> None:
        self.table = state.bytes_at(msix.bar_size)
        self.refused = 0
        self._vectors = msix.vectors
        self._pending = state.bytes_at(msix.pba_size)
        self._write_message = writer.write_message
        self._ask_for_retry = writer.ask_for_retry
        self._enabled = False
        # Messages that may be sent, as the table has them.
        self._messages: dict[int, tuple[int, int]] = {}
        self._after_reset = (bytes(12) + _MASKED.to_bytes(4, "little")) * msix.vectors
        if not state.restored:
            self.reset()

    @staticmethod
    def state_size(msix: MsixLayout) -> int:
        """Bytes of state memory."""
        return msix.bar_size + msix.pba_size

    @property
    def pending(self) -> set[int]:
        """Vectors whose message is still to be sent."""
        bits = int.from_bytes(self._pending, "little")
        return {vector for vector in range(self._vectors) if bits >> vector & 1}

    @property
    def has_pending(self) -> bool:
        """Whether some vector's message is still to be sent."""
        return any(self._pending)

    def signal_vector(self, vector: int) -> None:
        """Send the message of a vector; one that does not exist has none."""
        if vector < self._vectors:
            message = self._messages.get(vector) or self._sendable(vector)
            if message is None or not self._write_message(*message):
                self._pending[vector >> 3] |= 1 << (vector & 7)

    def send_pending(self) -> None:
        """Send what has waited, as far as it can be sent."""
        bits = int.from_bytes(self._pending, "little") if self._enabled else 0
        while bits:
            vector = (bits & -bits).bit_length() - 1
            bits &= bits - 1
            message = self._messages.get(vector) or self._sendable(vector)
            if message is not None:
                if not self._write_message(*message):
                    return
                self._pending[vector >> 3] &= ~(1 << (vector & 7))

    def _sendable(self, vector: int) -> tuple[int, int] | None:
        """The address and data of a vector's message, None if it must not be sent."""
        if not self._enabled:
            return None
        address, data, control = _ENTRY.unpack_from(self.table, _ENTRY.size * vector)
        if control & _MASKED:
            return None
        if address & _NOT_OF_ADDRESS != INTERRUPTS:
            self.refused += 1
            return None
        message = self._messages[vector] = address, data
        return message

    def _retry(self) -> None:
        if self._enabled and self.has_pending:
            self._ask_for_retry()

    # What the driver changes

    def enable(self, enabled: bool) -> None:
        """Whether messages may be sent at all: MSI-X Enable, Function Mask and Bus Master Enable together."""
        if enabled != self._enabled:
            self._enabled = enabled
            self._messages.clear()
            self._retry()

    def write_table(self, offset: int, data: bytes | memoryview) -> None:
        """Change the table."""
        self.table[offset : offset + len(data)] = data
        self._messages.clear()
        self._retry()

    def clear_pending(self) -> None:
        """The device was reset: no message is left from before."""
        self._pending[:] = bytes(len(self._pending))

    def reset(self) -> None:
        """The function was reset: every vector is masked."""
        self.table[: len(self._after_reset)] = self._after_reset
        self.table[len(self._after_reset) :] = bytes(len(self.table) - len(self._after_reset))
        self._messages.clear()
        self.clear_pending()
