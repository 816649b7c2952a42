"""Makes the worker's half of a connection, whatever its kind; each kind's module is imported when it is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from virtserial.host_end.base import HostEnd
    from virtserial.loop import EventLoop


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
    from virtserial.host_end.log import LogFile, LoggedHostEnd

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
        from virtserial.host_end.stream import DescriptorStream

        read, write = params.get("read"), params.get("write")
        return DescriptorStream(
            loop,
            name,
            read_fd=fds[read] if isinstance(read, int) else None,
            write_fd=fds[write] if isinstance(write, int) else None,
        )
    if flavour == "pty":
        from virtserial.host_end.pty import PtyHostEnd

        return PtyHostEnd(loop, name, fds[0], fds[1] if len(fds) > 1 else None)
    if flavour == "ringbuf":
        from virtserial.host_end.ringbuf import RingbufHostEnd

        return RingbufHostEnd(loop, name, fds[0])
    if flavour == "layered":
        from virtserial.host_end.layered import open_layered_stream

        return open_layered_stream(loop, name, fds, params)
    if flavour == "udp":
        from virtserial.host_end.udp import UdpHostEnd

        return UdpHostEnd(loop, name, fds[0])
    if flavour == "null":
        from virtserial.host_end.null import NullHostEnd

        return NullHostEnd(name)
    if flavour == "handler":
        from virtserial.host_end.handler import HandlerHostEnd, load_handler

        return HandlerHostEnd(loop, name, load_handler(name, params))
    raise StateError(f"there is no flavour of connection called {flavour!r}")
