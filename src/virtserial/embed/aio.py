"""`serve`, and the machine for asyncio.

A monitor answers in less than a millisecond, but may have to wait: its calls run in one thread, one after the other, so
that a call that was cancelled is finished before the next begins.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from virtserial.embed.guest import AsyncEmbeddedGuest
from virtserial.embed.machine import Machine
from virtserial.errors import StateError
from virtserial.guest.aio import AsyncStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from pathlib import Path

P = ParamSpec("P")
T = TypeVar("T")
SLICE = 0.2
"""Seconds that a wait holds up other calls to the monitor."""


class AsyncMachine:
    """What `async with serve(...)` gives; the calls of Machine as coroutines.

    Attributes:
        machine: the one that blocks.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._thread = ThreadPoolExecutor(1, "virtserial")
        self._tasks = asyncio.TaskGroup()
        self._handlers: list[asyncio.Task[None]] = []
        self._guests: list[AsyncEmbeddedGuest] = []
        self._streams: list[AsyncStream] = []

    async def _call(self, function: Callable[P, T], *arguments: P.args, **words: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        try:
            result = loop.run_in_executor(self._thread, lambda: function(*arguments, **words))
        except RuntimeError:
            raise StateError("the machine has stopped") from None
        return await result

    @property
    def folder(self) -> Path:
        """Where the process has its sockets."""
        return self.machine.folder

    @property
    def socket(self) -> Path:
        """The first controller's socket."""
        return self.machine.socket

    @property
    def pid(self) -> int:
        """The id of the device process."""
        return self.machine.pid

    @property
    def log(self) -> str:
        """What the device process has logged."""
        return self.machine.log

    @property
    def qemu_arguments(self) -> list[str]:
        """As Machine.qemu_arguments."""
        return self.machine.qemu_arguments

    async def port(self, name: str) -> AsyncStream:
        """As Machine.port."""
        stream = AsyncStream(await self._call(self.machine.port, name))
        self._streams.append(stream)
        return stream

    async def handle(self, name: str, handler: Callable[[AsyncStream], Awaitable[None]]) -> None:
        """Run a coroutine function on the host's end of a port, beside everything else, until the machine ends.

        An exception of it ends the `async with`, as asyncio.TaskGroup says.

        Raises:
            ConfigError: there is no such port.
        """
        stream = await self.port(name)

        async def run() -> None:
            await handler(stream)

        self._handlers.append(self._tasks.create_task(run()))

    async def plug(self, name: str, *, console: bool = False) -> None:
        """As Machine.plug."""
        await self._call(self.machine.plug, name, console=console)

    async def unplug(self, name: str) -> None:
        """As Machine.unplug."""
        await self._call(self.machine.unplug, name)

    async def wait_guest(self, name: str, is_open: bool = True) -> None:
        """As Machine.wait_guest; asyncio.timeout limits it."""
        while not await self._call(self.machine.wait_guest, name, is_open, SLICE):
            pass

    async def attach(self) -> AsyncEmbeddedGuest:
        """As Machine.attach."""
        guest = AsyncEmbeddedGuest(await self._call(self.machine.attach))
        self._guests.append(guest)
        return guest

    async def open(self) -> None:
        """Begin; `close` it."""
        await self._tasks.__aenter__()

    async def close(self, error: BaseException | None) -> None:
        """End handlers, streams, guests and the device process."""
        try:
            for task in self._handlers:
                task.cancel()
            await self._tasks.__aexit__(type(error) if error is not None else None, error, None)
        finally:
            for stream in self._streams:
                stream.close()
            for guest in self._guests:
                guest.close()
            await asyncio.shield(self._call(self.machine.close))
            self._thread.shutdown(wait=False)


class Serving:
    """A machine to be started by `with`, or for asyncio by `async with`; each may be entered once."""

    def __init__(self, start: Callable[[Machine], None]) -> None:
        self._start = start
        self._machine: Machine | None = None
        self._async: AsyncMachine | None = None

    def __enter__(self) -> Machine:
        if self._machine is not None:
            raise StateError("this machine was started already: call virtserial.serve once more for another")
        self._machine = machine = Machine()
        try:
            self._start(machine)
        except BaseException:
            machine.close()
            raise
        return machine

    def __exit__(self, *_: object) -> None:
        if self._machine is not None:
            self._machine.close()

    async def __aenter__(self) -> AsyncMachine:
        machine = await asyncio.to_thread(self.__enter__)
        self._async = AsyncMachine(machine)
        await self._async.open()
        return self._async

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._async is not None:
            await self._async.close(error)


def serve(
    ports: Iterable[str] = (),
    *,
    consoles: Iterable[str] = (),
    options: Sequence[str] = (),
    vhost_user: bool = False,
    **properties: object,
) -> Serving:
    """Serve a device to one VMM, or to our driver, from a process beside this program; it ends with the program.

        with virtserial.serve(["org.example.agent"]) as machine: ...
        async with virtserial.serve(["org.example.agent"], max_ports=64, packed=True) as machine: ...

    Args:
        ports: names of ports; the host's end of each is a stream.
        consoles: names of consoles; likewise.
        options: further words of `virtserial serve`, with QEMU's syntax: other controllers (this one is `ser0`),
            chardevs, ports of other kinds.
        vhost_user: the controller speaks vhost-user, not vfio-user.
        properties: of the controller, as in -device: max_ports, packed, vectors, ...

    Raises:
        TypeError: a single string in the place of a list.
        ConfigError: (by `with`) an option is wrong; in the device process's words.
    """
    for what, given in (("ports", ports), ("consoles", consoles), ("options", options)):
        if isinstance(given, (str, bytes)):
            raise TypeError(f"virtserial.serve: {what} is a list of strings: write [{given!r}], not {given!r}")
    names, console_names, words = tuple(ports), tuple(consoles), tuple(options)
    return Serving(lambda machine: machine.start(names, console_names, words, vhost_user, properties))
