"""The worker's half of a host back end: the end that moves bytes and never blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from virtserial.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from virtserial.loop import EventLoop


class HostListener(Protocol):
    """Who is told about a host end: the port.  All calls come from the event loop, never from inside readv or writev,
    except that `start` may call `host_opened`."""

    def host_opened(self) -> None:
        """The host side is connected."""

    def host_closed(self) -> None:
        """The host side is gone; all it had sent and the port wanted has been read.  See `HostEnd.ended`."""

    def host_readable(self) -> None:
        """`readv` may have bytes again."""

    def host_writable(self) -> None:
        """`writev` takes bytes again, after it had returned 0."""


class NoListener:
    """Hears nothing: stands in until a port has set itself."""

    def host_opened(self) -> None:
        pass

    def host_closed(self) -> None:
        pass

    def host_readable(self) -> None:
        pass

    def host_writable(self) -> None:
        pass


class HostEnd:
    """One connected (or connectable) host side of a port.

    Attributes:
        connected: somebody is on the other side.
        ended: it will never be connected again: close it and tell the keeper (`Chardev.connection_ended`).
            A pty, for one, closes and opens many times without ending.
        readable: `readv` is worth a try.
        listener: the port; set it before `start`.
        input_discarded: bytes the host had sent and nobody will read (it left while the guest had the port closed),
            since `host_opened`.
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
        """The port will read: the guest has it open.  While it is off, a host that hangs up is gone at once."""
        return self._wants_input

    @wants_input.setter
    def wants_input(self, wanted: bool) -> None:
        self._wants_input = wanted

    def start(self) -> None:
        """Begin to watch; calls `listener.host_opened` at once if somebody is there."""
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

    def wait_readable(self) -> bool:
        """The last read was short: whether `listener.host_readable` will tell of more.  False: another try will."""
        return False

    def hold_input(self) -> bool:
        """More is sure to come, and the port will try `readv` by itself in a moment: whether `host_readable` keeps
        still until `readv` has returned 0 or `wait_readable` was called.  False: it does not, or need not."""
        return False

    def wait_writable(self) -> bool:
        """The last write was short: whether `listener.host_writable` will come.  False: another try will tell."""
        return False

    def unheard(self, buffers: Sequence[memoryview]) -> None:
        """The guest has written this to a console, and nobody is connected; `buffers` are discarded after it."""

    def guest_opened(self) -> None:
        """The guest has opened the port."""

    def guest_closed(self) -> None:
        """The guest has closed the port."""

    def guest_ready(self) -> None:
        """The guest's driver is ready for the port (VIRTIO_CONSOLE_PORT_READY)."""

    def close(self) -> None:
        """Stop watching and close this process's descriptors; the listener hears nothing more.  Twice is harmless."""
        raise NotImplementedError


def open_host_end(
    flavour: str, fds: Sequence[int], params: Mapping[str, object], loop: EventLoop
) -> HostEnd:
    """Make the moving half of a Connection; it owns `fds` from here on.

    Raises:
        StateError: no such flavour.
        BackendError: a handler's class cannot be loaded or made, TLS credentials are none; `fds` are closed.
    """
    log = params.get("log")
    if not isinstance(log, int):
        return _open_backend(flavour, fds, params, loop)
    from virtserial.chardev.log_end import LogFile, LoggedHostEnd

    log_file = LogFile(str(params["name"]), fds[log])
    try:
        return LoggedHostEnd(_open_backend(flavour, fds[:log], params, loop), log_file)
    except BaseException:
        log_file.close()
        raise


def _open_backend(
    flavour: str, fds: Sequence[int], params: Mapping[str, object], loop: EventLoop
) -> HostEnd:
    name = str(params["name"])
    if flavour in ("stream", "file", "pipe", "stdio"):
        from virtserial.chardev.descriptor_stream import DescriptorStream

        read, write = params.get("read"), params.get("write")
        return DescriptorStream(
            loop,
            name,
            read_fd=fds[read] if isinstance(read, int) else None,
            write_fd=fds[write] if isinstance(write, int) else None,
        )
    if flavour == "pty":
        from virtserial.chardev.pty_end import PtyHostEnd

        return PtyHostEnd(loop, name, fds[0], fds[1] if len(fds) > 1 else None)
    if flavour == "ringbuf":
        from virtserial.chardev.ringbuf import RingbufHostEnd

        return RingbufHostEnd(loop, name, fds[0])
    if flavour == "layered":
        from virtserial.chardev.layered_stream import open_layered_stream

        return open_layered_stream(loop, name, fds, params)
    if flavour == "udp":
        from virtserial.chardev.udp_end import UdpHostEnd

        return UdpHostEnd(loop, name, fds[0])
    if flavour == "null":
        from virtserial.chardev.null import NullHostEnd

        return NullHostEnd(name)
    if flavour == "log":
        from virtserial.chardev.log_end import LogOnlyHostEnd

        return LogOnlyHostEnd(name)
    if flavour == "handler":
        from virtserial.chardev.handler_end import HandlerHostEnd, load_handler

        return HandlerHostEnd(loop, name, load_handler(name, params))
    raise StateError(f"there is no flavour of connection called {flavour!r}")
