"""Every error of the package, by who is at fault.

VirtserialError
+- ConfigError            the operator: an option, a path, a permission.  One line, exit status 1.
|   +- UsageError         a command line that cannot be understood.  Exit status 2.
|   +- BusyError          a port has no free place for a client.
+- DriverError            the guest's driver broke the virtio specification.  Its device asks for a reset.
|   +- AddressError       it named memory that no DMA map covers (the map may still be on its way).
+- PeerError              a VMM broke vfio-user, a monitor QMP.  The connection closes, or the request is refused.
|   +- AddressSpaceFull   its maps use up their part of our address space; we access its memory by system calls.
|   +- RequestRefused     it answered a request of ours with an error; the connection stays.
|   +- SessionEnded       a fleet's agent knows a session no more.
+- Refused                a request over the fleet is refused; the text is for the client.
+- BackendError           a host end failed (disk full, broken pipe).  Its port closes towards the guest.
+- StateError             a call out of order: a mistake in this program or in the use of its interfaces.
+- AccessInterrupted      the device was reset during a memory access by message; the turn is dropped.
|   +- AccessPending      the VMM's answer is still to come: the turn is dropped and repeated then.
+- QmpError               a QMP command is refused.
|   +- MonitorGoneError   the monitor closed the connection before it answered.
+- HmpError               an HMP line cannot run.
+- JsonError              bytes that are not JSON, or too much of it.
+- RigUnavailable         this machine has no QEMU or guest for real-guest tests.
+- GuestError             a guest of the rig is gone, too slow, or its script failed.
+- DemoFailed             the demonstration did not show what it should.
+- HostileError           a device did what no hostile case allows.
+- Violation              a device that is checked broke a rule of the specification.
+- Difference             it did otherwise than the safest where a driver broke a rule.
+- NotHere                a check needs what the device does not have.

The errors that several rooms know are defined here, the others in the one room that raises them.  A message says which
rule was broken, by which value, and what the limit is.  The guest's library has a tree of its own (guest/errors.py).
"""

from __future__ import annotations


class VirtserialError(Exception):
    """The root of all errors that this package raises on purpose."""


class ConfigError(VirtserialError):
    """The operator asked for something impossible; the text is what a user reads.

    Attributes:
        hint: what to try instead, for people; empty for none.
    """

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.hint = hint


class UsageError(ConfigError):
    """A command line that cannot be understood; the text is what a user reads."""


class BusyError(ConfigError):
    """A port has no free place for a client."""


class DriverError(VirtserialError):
    """The driver broke a rule of the virtio specification."""


class AddressError(DriverError):
    """The driver named an address range that is not (or not yet) mapped for this device."""


class PeerError(VirtserialError):
    """The peer of vfio-user or QMP broke the protocol.

    Attributes:
        errno: the error number for an error reply, if the request gets one.
    """

    def __init__(self, message: str, errno: int = 22) -> None:
        super().__init__(message)
        self.errno = errno


class AddressSpaceFull(PeerError):
    """A VMM's maps have used up their part of this process's address space."""


class BackendError(VirtserialError):
    """A host end can no longer take or give bytes."""


class StateError(VirtserialError):
    """A call came out of order."""


class AccessInterrupted(VirtserialError):
    """The device was reset, or lost its VMM, during a memory access by message: drop the turn."""


class AccessPending(AccessInterrupted):
    """The answer to a memory access by message is still to come: drop the turn, and repeat it when it is there."""
