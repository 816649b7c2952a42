"""The driver's side of a ring, as the console driver uses it: the same for every ring format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    Segment = tuple[int, int]
    """A range of DMA memory: (address, length in bytes)."""

Token = TypeVar("Token")


class DriverRing(Protocol[Token]):
    """Makes chains available and takes them back.

    Attributes:
        size: descriptors.
        desc_address, avail_address, used_address: the device's addresses of its areas.
        in_flight: chains that are made available and not yet harvested.
    """

    size: int
    desc_address: int
    avail_address: int
    used_address: int
    in_flight: int

    @property
    def free(self) -> int:
        """Descriptors that can still be used by `add`."""
        ...

    def add(self, readable: Sequence[Segment], writable: Sequence[Segment], token: Token) -> int:
        """Add one chain; the device sees it at the next `publish`.

        Args:
            readable: what the device reads, in order.
            writable: what the device writes.
            token: returned by `harvest` with the chain.

        Raises:
            StateError: no segment, more segments than free descriptors, or more than 2**32 bytes.
        """
        ...

    def publish(self) -> bool:
        """Show the device every chain added since the last call; return whether it wants a doorbell for them."""
        ...

    def harvest(self) -> list[tuple[Token, int]]:
        """Take back what the device has used: (token, bytes written to the chain), in the device's order.

        Raises:
            PeerError: the device lies.  The queue must not be used until a reset.
        """
        ...

    def request_interrupt(self, after: int = 1) -> bool:
        """Ask for an interrupt when `after` more chains than harvested are used; return whether they are already."""
        ...

    def suppress_interrupts(self) -> None:
        """Ask for no interrupts; the device may send some all the same."""
        ...
