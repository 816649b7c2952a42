"""What the worker reads before it is confined: its own modules, a handler's code, TLS credentials.

A confined worker opens nothing, neither modules nor certificates.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from virtserial.channel.connections import TlsFiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.channel.connections import Readable

log = logging.getLogger("virtserial.worker")


def import_host_ends() -> None:
    """Import what `open_host_end` imports late, except ssl, which takes 20 ms and 3 MB."""
    import virtserial.host_end.client_ends
    import virtserial.host_end.clients
    import virtserial.host_end.factory
    import virtserial.host_end.handler
    import virtserial.host_end.layers
    import virtserial.host_end.linger
    import virtserial.host_end.log
    import virtserial.host_end.null
    import virtserial.host_end.pty
    import virtserial.host_end.ringbuf
    import virtserial.host_end.stream
    import virtserial.host_end.telnet
    import virtserial.host_end.udp
    import virtserial.host_end.websocket  # noqa: F401


def prepare(name: str, what: Readable, fds: Sequence[int]) -> None:
    """Read something; what cannot be read is reported when it is used.

    Args:
        name: for messages.
        fds: the files of TLS credentials; closed.
    """
    try:
        if isinstance(what, TlsFiles):
            from virtserial.host_end.tls import prepare_contexts

            prepare_contexts(what, fds)
        else:
            from virtserial.host_end.handler import load_module

            load_module(what)
    except Exception as error:
        log.error("%s: %r", name, error)
    finally:
        for fd in fds:
            os.close(fd)
