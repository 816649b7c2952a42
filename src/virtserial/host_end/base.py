"""The worker's half of a host back end: the end that moves bytes and never blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.console.seams import HostListener


class NoListener:
    """Does nothing: the listener until a port sets itself."""

    def host_opened(self) -> None:
        pass

    def host_closed(self) -> None:
        pass

    def host_readable(self) -> None:
        pass

    def host_writable(self) -> None:
        pass


class HostEnd:
    """One connected (or connectable) host side of a port: the base of those that implement console.seams.HostEnd.

    Attributes:
        connected: a host is on the other side.
        ended: it will never be connected again: close it and tell the keeper (`Chardev.connection_ended`).
            A pty, for one, closes and opens many times without ending.
        readable: `readv` is worth a try.
        listener: the port; set it before `start`.
        input_discarded: bytes that the host sent and nobody will read, since `host_opened`.
        output_discarded: bytes taken from the guest after the host had left, since `host_opened`.
    """

    exact = False
    """`readv` and `writev` are each one system call, which moves the bytes they return and no others."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.connected = False
        self.ended = False
        self.readable = False
        self.input_discarded = 0
        self.output_discarded = 0
        self.listener: HostListener = NoListener()
        self._wants_input = False

    @property
    def wants_input(self) -> bool:
        """The port will read: the guest has it open.  While it is off, `host_closed` follows a hang-up at once."""
        return self._wants_input

    @wants_input.setter
    def wants_input(self, wanted: bool) -> None:
        self._wants_input = wanted
        self._wants_input_changed()

    def _wants_input_changed(self) -> None:
        """`wants_input` was set."""

    def start(self) -> None:
        """Begin to watch; calls `listener.host_opened` at once if a host is connected."""
        raise NotImplementedError

    def writev(self, buffers: Sequence[memoryview]) -> int:
        """Give bytes to the host; returns how many were taken, from the first buffer on.

        Fewer than given: call again with the rest.  0: it would block, `listener.host_writable` will come; or the
        buffers were empty.

        Raises:
            BackendError: it failed (disk full, ...).  The host end has ended; `host_closed` does not come as well.
        """
        raise NotImplementedError

    def readv(self, buffers: Sequence[memoryview]) -> int:
        """Take bytes from the host into `buffers`; returns how many.

        0: nothing now, `listener.host_readable` will come, or `listener.host_closed` at the end of the stream.

        Raises:
            BackendError: it failed.  The host end has ended.
        """
        raise NotImplementedError

    def report_end(self) -> None:
        """The last read was short: call `listener.host_closed` now if that was the end of the stream.

        Otherwise it comes in a turn of the loop, when others may have moved what their hosts did later.
        """

    def wait_readable(self) -> bool:
        """The last read was short: return whether `listener.host_readable` reports more.  False: try again."""
        return False

    def hold_input(self) -> bool:
        """The port will call `readv` by itself in a moment: return whether `host_readable` is suppressed until `readv`
        has returned 0 or `wait_readable` was called."""
        return False

    def wait_writable(self) -> bool:
        """The last write was short: return whether `listener.host_writable` will come.  False: try again."""
        return False

    def log_unconnected(self, buffers: Sequence[memoryview]) -> None:
        """The guest has written this to a console, and nobody is connected; `buffers` are discarded after it."""

    @property
    def backlog_size(self) -> int:
        """Bytes of output that a client who comes late gets first."""
        return 0

    def read_backlog(self, most: int) -> bytes:
        """The newest `most` of them."""
        return b""

    def restore_backlog(self, backlog: bytes) -> None:
        """Keep what another host end of this port had; nothing is done if this one has had output already."""

    def guest_opened(self) -> None:
        """The guest has opened the port."""

    def guest_closed(self) -> None:
        """The guest has closed the port."""

    def guest_ready(self) -> None:
        """The guest's driver is ready for the port (VIRTIO_CONSOLE_PORT_READY)."""

    def close(self) -> None:
        """Stop watching and close this process's descriptors; no call to the listener follows.  Twice is harmless."""
        raise NotImplementedError
