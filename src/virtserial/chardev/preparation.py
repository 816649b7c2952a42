"""What the worker reads for a chardev before it is confined: a handler's code, TLS credentials.

The keeper sends ahead what its chardevs need.  For a chardev that is added later it replaces the worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.named_tuple import NamedTuple

if TYPE_CHECKING:
    from virtserial.channel.connections import Readable
    from virtserial.chardev.tls_credentials import TlsCredentials


class Preparation(NamedTuple):
    """One thing to read.

    Attributes:
        name: for messages.
        what: two that are equal are read once.
        credentials: whose files go with it, or None.
    """

    name: str
    what: Readable
    credentials: TlsCredentials | None = None

    def open_files(self) -> list[int]:
        """Return descriptors for the worker; the caller closes them."""
        return self.credentials.open_files() if self.credentials is not None else []
