"""The process of a handler coroutine: `python -m virtserial.host_end.handler_process FD MODULE PATH ATTRIBUTE`.

Runs `ATTRIBUTE(reader, writer)` on the connected socket FD and ends with it; SIGTERM cancels it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from typing import TYPE_CHECKING

from virtserial.channel.connections import HandlerCode
from virtserial.host_end.handler import load_module

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]]


async def serve_connection(connection: socket.socket, serve: Serve) -> None:
    """Run `serve` on a connected stream socket; then close it, after what was written has gone out.

    A peer that is gone ends it quietly, as a task that is cancelled does.
    """
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    reader, writer = await asyncio.open_connection(sock=connection)
    try:
        with contextlib.suppress(ConnectionError):
            await serve(reader, writer)
            await writer.drain()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def main(arguments: list[str]) -> int:
    descriptor, module, path, attribute = arguments
    connection = socket.socket(fileno=int(descriptor))
    connection.set_inheritable(False)
    serve: Serve = getattr(load_module(HandlerCode(module, path)), attribute)
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(serve_connection(connection, serve))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
