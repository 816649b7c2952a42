"""The streams of both ends of a port, under one roof."""

from virtserial.client.host_stream import HostStream
from virtserial.guest.aio import AsyncStream
from virtserial.guest.errors import PeerAway, PortRemoved
from virtserial.guest.stream import PortStream

__all__ = ["AsyncStream", "HostStream", "PeerAway", "PortRemoved", "PortStream"]
