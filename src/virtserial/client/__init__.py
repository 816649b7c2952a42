"""The host's end of a port for programs: streams that reconnect, blocking and asyncio, and the guest's open state.

    from virtserial.client import HostStream
    with HostStream("unix:/run/vm/agent") as port:
        port.wait_connected()
        port.write(b"ping\\n")
        print(port.readline())

Streams have the same calls as the guest's library (virtserial_guest): a program can run at either end.
"""

from virtserial.client.address import parse_address
from virtserial.client.host_stream import HostStream
from virtserial.client.monitor import HostPort, Monitor
from virtserial.guest.aio import AsyncStream

__all__ = ["AsyncStream", "HostPort", "HostStream", "Monitor", "parse_address"]
