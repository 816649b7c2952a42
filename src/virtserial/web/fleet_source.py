"""The machines and ports of a fleet (docs/fleet.md), for the web console: browsers hold no credentials of it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from typing import TYPE_CHECKING

from virtserial.errors import BusyError, ConfigError, PeerError
from virtserial.fleet.broker import Settings, connect
from virtserial.fleet.directory import Directory
from virtserial.fleet.operations import check
from virtserial.fleet.protocol import SESSION, Place, PortRecord, VmRecord, token
from virtserial.fleet.session import Session, ask
from virtserial.guest.errors import PeerAway
from virtserial.web.source import ShownMachine, ShownPort

if TYPE_CHECKING:
    from collections.abc import Callable

    from nats.aio.client import Client

OPERATION_TIME = 10.0


class FleetSource:
    """The fleet, as a Source.

    Args:
        settings: where the broker is.
        said: takes lines about the broker.
    """

    def __init__(self, settings: Settings, said: Callable[[str], None]) -> None:
        self._settings, self._said = settings, said
        self._client: Client | None = None
        self._directory: Directory | None = None
        self._following: asyncio.Task[None] | None = None
        self._ending: asyncio.Future[None] | None = None
        self._beginning = asyncio.Lock()

    async def _fleet(self) -> tuple[Client, Directory]:
        """The connection, and the directory, which follows all changes."""
        async with self._beginning:
            if self._client is None or self._directory is None or self._client.is_closed:
                client = await connect(self._settings, "virtserial web", self._said)
                directory = Directory(client)
                try:
                    await directory.load()
                except BaseException:
                    await client.close()
                    raise
                self._client, self._directory = client, directory
                self._following = asyncio.create_task(self._follow(directory))
            return self._client, self._directory

    async def _follow(self, directory: Directory) -> None:
        with contextlib.suppress(PeerError):
            while True:
                await directory.change()

    async def look(self) -> list[ShownMachine]:
        """See Source.look."""
        try:
            _, directory = await self._fleet()
        except (ConfigError, PeerError) as error:
            return [ShownMachine("fleet", str(error), 0, False, ())]
        return [_machine(f"{host}/{vm}", record) for (host, vm), record in directory.vms().items()]

    async def open(self, name: str, only_watch: bool, force: bool) -> FleetConnection:
        """See Source.open."""
        client, directory = await self._fleet()
        place, record = directory.find(name)
        if str(place) != name:
            # Rights go by the name that is shown: another name of the same port will not do.
            raise ConfigError(f"no port is listed as '{name}'")
        connection = FleetConnection(client, place, only_watch and record.published, record.published)
        try:
            await connection.begin(force)
        except ConfigError as error:
            connection.close()
            raise BusyError(str(error)) if " is busy" in str(error) else error from None
        except BaseException:
            connection.close()
            raise
        return connection

    async def restart(self, machine: str) -> None:
        """See Source.restart."""
        await self._operate(machine, "restart", {"keeper": True})

    async def plug(self, machine: str, port: str, is_console: bool) -> None:
        """See Source.plug."""
        await self._operate(machine, "plug", {"port": port, "console": is_console})

    async def unplug(self, name: str) -> None:
        """See Source.unplug."""
        _, directory = await self._fleet()
        place, _ = directory.find(name)
        await self._operate(f"{place.host}/{place.vm}", "unplug", {"port": place.port})

    async def _operate(self, machine: str, verb: str, request: dict[str, object]) -> None:
        client, _ = await self._fleet()
        host, _, vm = machine.partition("/")
        subject = f"vs.{token(host)}.{token(vm)}.{verb}"
        check(await ask(client, subject, request, OPERATION_TIME, {SESSION: secrets.token_hex(8)}))

    def close(self) -> None:
        """See Source.close."""
        self._ending = asyncio.ensure_future(self.end())

    async def end(self) -> None:
        """End the connection to the broker, with all sessions."""
        if self._following is not None:
            self._following.cancel()
        if self._client is not None:
            await self._client.close()


class FleetConnection:
    """A session with a port, as a Connection; what it has to say about lost bytes comes between the output."""

    def __init__(self, client: Client, place: Place, only_watch: bool, history: bool) -> None:
        self._session = Session(client, place, self._say, only_watch, history)
        self._ours, self._theirs = socket.socketpair()
        for end in (self._ours, self._theirs):
            end.setblocking(False)
        self._lines: list[str] = []
        self._running: asyncio.Task[None] | None = None

    def _say(self, line: str) -> None:
        self._lines = [*self._lines[-9:], line]

    async def begin(self, force: bool) -> None:
        """Begin the session.

        Raises:
            ConfigError, PeerError: see Session.open.
        """
        await self._session.open(force)
        self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        with self._theirs:
            try:
                await self._session.run(self._theirs)
            except (PeerError, OSError) as error:
                self._say(str(error))

    async def read(self, limit: int) -> bytes:
        """See Connection.read."""
        try:
            data = await asyncio.get_running_loop().sock_recv(self._ours, limit)
        except OSError:
            data = b""
        lines, self._lines = self._lines, []
        return b"".join(f"\r\n[virtserial: {line}]\r\n".encode() for line in lines if data) + data

    async def write(self, data: bytes) -> None:
        """See Connection.write."""
        try:
            await asyncio.get_running_loop().sock_sendall(self._ours, data)
        except OSError as error:
            raise PeerAway("the session is over", 0) from error

    async def resize(self, rows: int, columns: int) -> None:
        """See Connection.resize."""
        self._session.size = rows, columns

    def close(self) -> None:
        """See Connection.close."""
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)
        self._ours.close()
        if self._running is None:
            self._theirs.close()


def _machine(name: str, record: VmRecord) -> ShownMachine:
    return ShownMachine(name, "", 0, True, [_port(f"{name}/{port.name}", port) for port in record.ports])


def _port(name: str, port: PortRecord) -> ShownPort:
    # Bytes are counted at the host: `virtserial exporter` has them.
    return ShownPort(
        name=name, console=port.console, refusal=port.error, has_watch=port.published, busy_with="",
        clients=port.clients, max_clients=port.max_clients, guest_open=port.guest_open,
        to_host=0, to_guest=0, discarded=0, dropped=0,
    )  # fmt: skip
