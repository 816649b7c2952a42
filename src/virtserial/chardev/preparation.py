"""What the worker has to read for a chardev before it is confined: a handler's code, TLS credentials.

The keeper knows which chardevs there are, and sends what they need ahead; for one that is added later it puts another
worker in the place of the one that runs.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.chardev.tls_credentials import TlsCredentials

    class Send(Protocol):
        def __call__(self, message: dict[str, object], fds: Sequence[int] = ()) -> None: ...


class Preparation(NamedTuple):
    """One thing to read.

    Attributes:
        key: equal for what need not be read twice.
        params: for host_end.preparation.prepare.
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
