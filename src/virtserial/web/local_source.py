"""The machines of this host, from their registry entries (client/registry.py)."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from virtserial.client.named_stream import QUICK, open_free
from virtserial.client.names import find_vm_port, ports_of
from virtserial.client.plugging import plug, unplug
from virtserial.client.registry import find_vm, running_vms
from virtserial.errors import ConfigError, PeerError, VirtserialError
from virtserial.guest.aio import AsyncStream
from virtserial.web.source import ShownMachine, ShownPort

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from virtserial.client.named_stream import NamedStream
    from virtserial.client.names import VmPort
    from virtserial.client.registry import Vm

T = TypeVar("T")
THREADS = 16
LOOK_TIME = 3.5
"""Seconds for all answers of one look; each keeper has its 3."""
CONNECT_TIME = 3.0


class LocalSource:
    """
    Args:
        monitors: QMP sockets of machines, by name: ports are plugged through these.
    """

    def __init__(self, monitors: Mapping[str, str]) -> None:
        self._monitors = dict(monitors)
        self._threads = ThreadPoolExecutor(THREADS, "virtserial-web")
        self._asked: dict[Vm, asyncio.Future[ShownMachine]] = {}

    async def look(self) -> list[ShownMachine]:
        """See Source.look."""
        me = os.geteuid()
        vms = [vm for vm in await self._run(running_vms) if vm.owner == me]
        # A keeper that hangs is asked once, however often we look.
        asked = {vm: self._asked.get(vm) or asyncio.ensure_future(self._run(partial(self._ask, vm))) for vm in vms}
        if asked:
            await asyncio.wait(asked.values(), timeout=LOOK_TIME)
        self._asked = {vm: future for vm, future in asked.items() if not future.done()}
        return [
            future.result() if future.done() else ShownMachine(vm.name, "no answer", 0, False, ())
            for vm, future in asked.items()
        ]

    def _ask(self, vm: Vm) -> ShownMachine:
        pluggable = vm.name in self._monitors
        try:
            inventory = vm.inventory()
            ports = ports_of(vm, inventory)
            restarts = sum(int(inventory[count]) for count in ("restarts", "upgrades", "keeper-restarts"))
        except (VirtserialError, KeyError, TypeError, ValueError) as error:
            return ShownMachine(vm.name, str(error) or "no answer", 0, pluggable, ())
        shared = Counter(port.own_name for port in ports)
        return ShownMachine(vm.name, "", restarts, pluggable, [_shown(port, shared) for port in ports])

    async def open(self, name: str, only_watch: bool, force: bool) -> LocalConnection:
        """See Source.open."""
        port, stream = await self._run(lambda: _open(name, only_watch, force))
        connection = LocalConnection(port, stream, self._run)
        try:
            await connection.wait_connected()
        except BaseException:
            connection.close()
            raise
        return connection

    async def restart(self, machine: str) -> None:
        """See Source.restart."""
        await self._run(lambda: find_vm(machine).restart())

    async def plug(self, machine: str, port: str, is_console: bool) -> None:
        """See Source.plug."""
        await self._run(lambda: plug(self._monitor(machine), port, is_console))

    async def unplug(self, name: str) -> None:
        """See Source.unplug."""
        await self._run(lambda: self._unplug(name))

    def _unplug(self, name: str) -> None:
        port = _find(name)
        if not port.id:
            raise ConfigError(f"port '{name}' has no id: it cannot be unplugged")
        unplug(self._monitor(port.vm.name), port.id)

    def _monitor(self, machine: str) -> str:
        if machine not in self._monitors:
            raise ConfigError(f"VM '{machine}': no monitor is known", "`virtserial web --monitor VM=SOCKET`")
        return self._monitors[machine]

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def close(self) -> None:
        """See Source.close."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class LocalConnection(AsyncStream):
    """A connection to a port of this host (Connection)."""

    def __init__(self, port: VmPort, stream: NamedStream, run: Callable[[Callable[[], None]], object]) -> None:
        super().__init__(stream)
        self._port = port
        self._run = run

    async def wait_connected(self) -> None:
        """Return when it is connected.

        Raises:
            PeerError: nobody answers.
        """
        try:
            async with asyncio.timeout(CONNECT_TIME):
                await super().wait_connected()
        except TimeoutError:
            raise PeerError(f"port '{self._port.full_name}' takes no connection") from None

    async def resize(self, rows: int, columns: int) -> None:
        """See Connection.resize."""
        # A terminal's own size is for others who have it open; the guest hears of it from the keeper.
        self._stream.set_terminal_size(rows, columns)
        if self._port.console:
            await asyncio.to_thread(self._resize_console, rows, columns)

    def _resize_console(self, rows: int, columns: int) -> None:
        with self._port.vm.connect(QUICK) as monitor:
            monitor.execute("x-virtserial-resize", {"id": self._port.chardev, "cols": columns, "rows": rows})


def _open(name: str, only_watch: bool, force: bool) -> tuple[VmPort, NamedStream]:
    port = _find(name)
    return port, open_free(port, force, only_watch)


def _find(name: str) -> VmPort:
    """The port that is shown by this name: rights go by it, so another name of the same port will not do."""
    port = find_vm_port(name)
    shared = Counter(each.own_name for each in ports_of(port.vm, port.vm.inventory()))
    if _name(port, shared) != name:
        raise ConfigError(f"no port is listed as '{name}'")
    return port


def _name(port: VmPort, shared: Counter[str]) -> str:
    # A name that two ports have is no name.
    return port.full_name if shared[port.own_name] == 1 else f"{port.vm.name}/{port.controller}.{port.number}"


def _shown(port: VmPort, shared: Counter[str]) -> ShownPort:
    refusal = ""
    try:
        port.address  # noqa: B018  # it raises
    except ConfigError as error:
        refusal = str(error)
    is_taken = port.max_clients == 1 and port.client_pid not in (0, os.getpid())
    return ShownPort(
        name=_name(port, shared),
        console=port.console,
        refusal=refusal,
        has_watch=bool(port.watch),
        busy_with=f"process {port.client_pid}" if is_taken else "",
        clients=port.clients,
        max_clients=port.max_clients,
        guest_open=port.guest_open,
        to_host=port.to_host,
        to_guest=port.to_guest,
        discarded=port.discarded,
        dropped=port.dropped,
    )
