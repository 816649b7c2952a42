"""What the worker has to read before it is confined: a handler's code, TLS credentials.

A confined worker opens nothing, neither modules nor certificates.  The keeper knows which chardevs there are, and sends
what they need ahead; for one that is added later it puts another worker in the place of the one that runs.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from virtserial.chardev.tls_credentials import TlsCredentials

    class Send(Protocol):
        def __call__(self, message: dict[str, object], fds: Sequence[int] = ()) -> None: ...


log = logging.getLogger("virtserial.worker")


class Preparation(NamedTuple):
    """One thing to read.

    Attributes:
        key: equal for what need not be read twice.
        params: for `prepare`.
        credentials: whose files go with it, or None.
    """

    key: str
    params: dict[str, object]
    credentials: TlsCredentials | None = None

    def send(self, send: Send) -> None:
        """Say it to a worker."""
        message: dict[str, object] = {"type": "prepare", **self.params}
        if self.credentials is None:
            send(message)
            return
        files, fds = self.credentials.duplicate(0)
        try:
            send(message | files, fds)
        finally:
            for fd in fds:
                os.close(fd)


def import_host_ends() -> None:
    """Import all that `open_host_end` does late, but ssl: that takes 20 ms and 3 MB."""
    import virtserial.chardev.null
    import virtserial.chardev.ringbuf
    import virtserial.host_end.factory
    import virtserial.host_end.handler
    import virtserial.host_end.layered
    import virtserial.host_end.log
    import virtserial.host_end.pty
    import virtserial.host_end.stream
    import virtserial.host_end.telnet
    import virtserial.host_end.udp
    import virtserial.host_end.websocket  # noqa: F401


def prepare(message: Mapping[str, object], fds: Sequence[int]) -> None:
    """Read what a Preparation names; what cannot be read is told when it is used.  `fds` are closed."""
    try:
        if "context" in message:
            from virtserial.host_end.tls import prepare_contexts

            prepare_contexts(message, fds)
        else:
            from virtserial.host_end.handler import load_module

            load_module(str(message["module"]), str(message["path"]))
    except Exception as error:
        log.error("%s: %r", cast(str, message["name"]), error)
    finally:
        for fd in fds:
            os.close(fd)
