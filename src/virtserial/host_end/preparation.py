"""What the worker reads before it is confined: its own modules, a handler's code, TLS credentials.

A confined worker opens nothing, neither modules nor certificates.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log = logging.getLogger("virtserial.worker")


def import_host_ends() -> None:
    """Import all that `open_host_end` does late, but ssl: that takes 20 ms and 3 MB."""
    import virtserial.host_end.factory
    import virtserial.host_end.handler
    import virtserial.host_end.layered
    import virtserial.host_end.log
    import virtserial.host_end.null
    import virtserial.host_end.pty
    import virtserial.host_end.ringbuf
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
