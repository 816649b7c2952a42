"""A device for one's own program: served by a process beside it, used by streams, driven by our guest driver.

| file | subject |
|---|---|
| process.py | the process of `virtserial serve` |
| machine.py | `serve`, and the machine for programs that block |
| aio.py | the same machine for asyncio |
| guest.py | our driver, attached to a controller: the guest's ends of ports, as streams |
| streams.py | the streams of both ends, and their errors |
"""

from virtserial.embed.aio import AsyncMachine, Serving, serve
from virtserial.embed.guest import AsyncEmbeddedGuest, EmbeddedGuest
from virtserial.embed.machine import Machine

__all__ = ["AsyncEmbeddedGuest", "AsyncMachine", "EmbeddedGuest", "Machine", "Serving", "serve"]
