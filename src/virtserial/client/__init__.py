"""The host's end of a port for programs: streams that connect again, blocking and asyncio, and the guest's open state.

    from virtserial.client import HostStream
    with HostStream("unix:/run/vm/agent") as port:
        port.wait_connected()
        port.write(b"ping\\n")
        print(port.readline())

The stream has the calls of the guest's library (virtserial_guest): one program may run at either end.
"""

from virtserial.client.address import parse_address
from virtserial.client.host_stream import HostStream
from virtserial.client.monitor import HostPort, Monitor
from virtserial.guest.aio import AsyncStream

__all__ = ["AsyncStream", "HostPort", "HostStream", "Monitor", "parse_address"]
