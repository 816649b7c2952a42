"""The tree of errors, by who is at fault.

    VirtserialError
     +- ConfigError     the operator: an option, a path, a permission.  One line, exit status 1.
     +- DriverError     the guest's driver broke the virtio specification.  That device stops and asks for a reset.
     |   +- AddressError    it named memory that no DMA map covers (a map may still be on its way to us).
     +- PeerError       the VMM broke vfio-user.  Its connection is closed, or its request refused.
     +- BackendError    a host end failed (disk full, broken pipe).  That port is closed towards the guest.
     +- StateError      a call out of order: a mistake in this program or in the use of its interfaces.

A message says which rule was broken, by which value, and what the limit is.
"""

from __future__ import annotations


class VirtserialError(Exception):
    """The root: everything this package raises on purpose."""


class ConfigError(VirtserialError):
    """The operator asked for something that cannot be had; the text is what a user reads."""


class DriverError(VirtserialError):
    """The driver broke a rule of the virtio specification."""


class AddressError(DriverError):
    """The driver named an address range that is not (or not yet) mapped for this device."""


class PeerError(VirtserialError):
    """The vfio-user peer broke the protocol.

    Attributes:
        errno: the error number an error reply carries, where the request can be refused by one.
    """

    def __init__(self, message: str, errno: int = 22) -> None:
        super().__init__(message)
        self.errno = errno


class BackendError(VirtserialError):
    """A host end cannot take or give bytes any more."""


class StateError(VirtserialError):
    """A call came out of order."""


class AccessInterrupted(VirtserialError):
    """The device was reset, or lost its memory, while a memory access by message was under way: drop the turn."""
