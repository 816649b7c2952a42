"""VFIO_USER_VERSION: the capabilities both sides announce, as JSON with a terminating NUL.

A server's reply must name a subset of the client's capabilities, and QEMU reads it into the buffer of its own request,
so it must not be longer than that.
"""

from __future__ import annotations

from typing import Final

from virtserial.errors import PeerError
from virtserial.memory.table import MAX_REGIONS
from virtserial.vfio_user.wire import MAX_DATA_XFER_SIZE, MAX_MESSAGE_FDS, PAGE_SIZE

MAX_VERSION_DATA: Final = 4096
"""Bytes of JSON taken from a peer; QEMU sends about 200."""

DEFAULT_MAX_MSG_FDS: Final = 1
DEFAULT_MAX_DATA_XFER_SIZE: Final = 1048576

SERVER_LIMITS: Final[dict[str, int | bool]] = {
    # In the order in which they are left out, the last one first, where the client's request was too short for all.
    "max_data_xfer_size": MAX_DATA_XFER_SIZE,
    "max_msg_fds": MAX_MESSAGE_FDS,
    "write_multiple": True,
    "pgsizes": PAGE_SIZE,
    "max_dma_maps": MAX_REGIONS,
}


class Capabilities:
    """What a peer has said about itself.

    Attributes:
        max_msg_fds: the most descriptors it takes in one message.
        max_data_xfer_size: the most bytes it takes or gives in one read or write.
        write_multiple: whether it knows VFIO_USER_REGION_WRITE_MULTI.
        names: every capability it named.
    """

    def __init__(self, max_msg_fds: int, max_data_xfer_size: int, write_multiple: bool, names: set[str]) -> None:
        self.max_msg_fds = max_msg_fds
        self.max_data_xfer_size = max_data_xfer_size
        self.write_multiple = write_multiple
        self.names = names

    @classmethod
    def parse(cls, data: bytes) -> Capabilities:
        """Read the JSON of a VERSION message; none at all stands for the defaults.

        Raises:
            PeerError: no NUL at its end, too long, not JSON, or of the wrong shape.
        """
        capabilities = _capabilities_object(data) if data else {}
        return cls(
            _positive(capabilities, "max_msg_fds", DEFAULT_MAX_MSG_FDS),
            _positive(capabilities, "max_data_xfer_size", DEFAULT_MAX_DATA_XFER_SIZE),
            capabilities.get("write_multiple") is True,
            set(capabilities),
        )


def _capabilities_object(data: bytes) -> dict[str, object]:
    # Once per connection: json is not worth its import time before that.
    import json

    if data[-1] != 0:
        raise PeerError("VFIO_USER_VERSION: the version data does not end in NUL")
    if len(data) > MAX_VERSION_DATA:
        raise PeerError(f"VFIO_USER_VERSION: {len(data)} bytes of version data, at most {MAX_VERSION_DATA} are taken")
    try:
        parsed = json.loads(data[:-1])
    except (ValueError, RecursionError) as error:
        raise PeerError(f"VFIO_USER_VERSION: the version data is no JSON: {str(error)[:80]}") from None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("capabilities", {}), dict):
        raise PeerError("VFIO_USER_VERSION: the version data is no object with an object `capabilities`")
    capabilities: dict[str, object] = parsed.get("capabilities", {})
    return capabilities


def _positive(capabilities: dict[str, object], name: str, default: int) -> int:
    value = capabilities.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PeerError(f"VFIO_USER_VERSION: capability {name} is {str(value)[:40]}, not a positive number")
    return value


def encode(capabilities: dict[str, int | bool]) -> bytes:
    """The version data of a VERSION message."""
    import json

    return json.dumps({"capabilities": capabilities}, separators=(",", ":")).encode() + b"\0"


def server_version_data(client: Capabilities, room: int) -> bytes:
    """The version data of the server's reply.

    Args:
        client: what the client announced; only what it named is answered.
        room: the most bytes the reply may have.
    """
    answer = {name: value for name, value in SERVER_LIMITS.items() if name in client.names}
    while answer:
        data = encode(answer)
        if len(data) <= room:
            return data
        answer.popitem()
    data = encode(answer)
    return data if len(data) <= room else b""
