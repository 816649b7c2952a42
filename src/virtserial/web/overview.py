"""What is known of all machines and ports, asked once a second while anybody looks, however many do."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, NamedTuple

from virtserial.tasks import end_tasks
from virtserial.web.people import Role

if TYPE_CHECKING:
    from virtserial.web.people import User
    from virtserial.web.source import ShownMachine, ShownPort, Source

INTERVAL = 1.0
STALE = 1.5
"""Seconds after which what is known is asked again before it is used."""
log = logging.getLogger("virtserial.web")


class Snapshot(NamedTuple):
    """Everything at one moment.

    Attributes:
        at: seconds, of a clock that only differences are made of.
    """

    at: float
    machines: dict[str, ShownMachine]
    ports: dict[str, ShownPort]


class Overview:
    """
    Args:
        source: who knows.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._snapshot = Snapshot(float("-inf"), {}, {})
        self._lock = asyncio.Lock()
        self._lookers = 0
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()

    async def now(self) -> Snapshot:
        """What is known, at most STALE seconds old."""
        async with self._lock:
            if time.monotonic() - self._snapshot.at > STALE:
                await self._look()
        return self._snapshot

    async def next(self, before: Snapshot | None) -> Snapshot:
        """Wait for what is newer than `before`."""
        if before is None:
            return await self.now()
        self._lookers += 1
        try:
            if self._task is None:
                self._task = asyncio.create_task(self._run())
            async with self._changed:
                await self._changed.wait_for(lambda: self._snapshot.at > before.at)
            return self._snapshot
        finally:
            self._lookers -= 1

    async def _run(self) -> None:
        idle = 0
        while idle < 2:
            await asyncio.sleep(INTERVAL)
            idle = 0 if self._lookers else idle + 1
            async with self._lock:
                await self._look()
        self._task = None

    async def _look(self) -> None:
        try:
            machines = await self._source.look()
        except Exception:
            log.exception("machines cannot be looked at")
            machines = []
        by_name = {machine.name: machine for machine in machines}
        ports = {port.name: port for machine in machines for port in machine.ports}
        self._snapshot = Snapshot(time.monotonic(), by_name, ports)
        async with self._changed:
            self._changed.notify_all()

    async def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            await end_tasks(self._task)


def shown_to(user: User, snapshot: Snapshot) -> dict[str, dict[str, object]]:
    """What a user may see: machines and ports by name, each as a JSON object."""
    machines: dict[str, object] = {}
    ports: dict[str, object] = {}
    for name, machine in snapshot.machines.items():
        seen = [port for port in machine.ports if user.may(Role.WATCH, port.name)]
        whole = user.may(Role.WATCH, f"{name}/*")
        if not seen and not whole:
            continue
        machines[name] = {
            "error": machine.error,
            "restarts": machine.restarts,
            "restart": user.may(Role.PLUG, f"{name}/*"),
            "plug": machine.pluggable and user.may(Role.PLUG, f"{name}/*"),
        }
        for port in seen:
            ports[port.name] = {**port._asdict(), "machine": name, "types": user.may(Role.TYPE, port.name)}
    return {"machines": machines, "ports": ports}
