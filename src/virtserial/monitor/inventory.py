"""What a process serves, for people: controllers, and ports with their state and counters (x-virtserial-inventory)."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import TYPE_CHECKING

from virtserial.channel.connections import SharedConnection, unlogged
from virtserial.channel.messages import Connect
from virtserial.daemon.keeper.counters import read_counters
from virtserial.daemon.keeper.hang_watch import LATENCY_BOUNDS
from virtserial.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from virtserial.daemon.keeper.hang_watch import HangWatch
    from virtserial.daemon.keeper.keeper import Keeper
    from virtserial.machine.model import Controller, Port

_CREDENTIALS = struct.Struct("3i")


def inventory(keeper: Keeper, ping: bool = False) -> dict[str, object]:
    """Return what x-virtserial-inventory answers.

    Args:
        ping: ask the worker for a sign of life; a later answer has the result.
    """
    if ping:
        keeper.workers.hang_watch.measure()
    machine = keeper.machine
    consoles = [port for port in machine.ports() if port.is_console]
    return {
        "controllers": [_controller(keeper, controller) for controller in machine.controllers],
        "ports": [_port(keeper, port, consoles) for port in machine.ports()],
        "folder": os.getcwd(),
        **processes(keeper),
    }


def _controller(keeper: Keeper, controller: Controller) -> dict[str, object]:
    return {
        "name": controller.name,
        "bus": controller.bus,
        "socket": controller.socket,
        "max-ports": controller.max_ports,
        "vmm": keeper.vmms.is_there(controller.index),
    }


def _port(keeper: Keeper, port: Port, consoles: list[Port]) -> dict[str, object]:
    controller = port.controller
    counters = read_counters(keeper.vmms.states[controller.index], controller.max_ports, port.number)
    chardev = keeper.chardevs[port.chardev] if port.chardev is not None else None
    clients: int | None = 0 if chardev is None else keeper.back_ends.count_clients(chardev)
    if chardev is not None and chardev.kind == "pty":
        clients = None  # It is there all the time; only the worker sees who opens it.
    sharing: Mapping[str, object] = {}
    if chardev is not None and chardev.is_shared:
        sharing = chardev.recipe[1]
    return {
        "controller": controller.name,
        "number": port.number,
        "id": port.id or "",
        "name": port.name or "",
        # As Linux counts the consoles of a guest that boots.
        "console": f"hvc{consoles.index(port)}" if port.is_console else "",
        "chardev": port.chardev or "",
        "kind": chardev.kind if chardev is not None else "",
        "speaks": _protocol(chardev.recipe[1]) if chardev is not None else "",
        "host-end": chardev.backend.host_end if chardev is not None else "",
        "clients": clients,
        "max-clients": sharing.get("clients") or 1,
        "watch": sharing.get("watch") or "",
        "client-pid": client_pid(keeper, chardev.id) if chardev is not None and clients else 0,
        "guest-open": port.guest_open,
        "to-host": counters.transmitted,
        "to-guest": counters.received,
        "discarded": counters.discarded,
        "dropped": counters.dropped,
        "doubtful": counters.doubtful,
        "throttled-ns": counters.throttled,
        "messages-to-host": counters.sent,
        "messages-to-guest": counters.filled,
    }


def _protocol(values: Mapping[str, object]) -> str:
    """What a socket's clients have to speak; "" for nothing but the port's bytes."""
    named = (name for name in ("telnet", "websocket") if values.get(name))
    return next(named, "tls" if values.get("tls-creds") else "")


def processes(keeper: Keeper) -> dict[str, object]:
    """Return what x-virtserial-query answers: the two processes, and how often they were replaced."""
    workers, renewal = keeper.workers, keeper.renewal
    return {
        "keeper-pid": os.getpid(),
        "keeper-version": __version__,
        "keeper-can-restart": renewal is not None,
        "keeper-restarts": renewal.count if renewal is not None else 0,
        "worker-pid": workers.worker.pid if workers.worker is not None else 0,
        "changing": workers.changing or (renewal is not None and renewal.changing),
        "refusal": workers.refusal or "",
        "restarts": workers.restarts,
        "upgrades": workers.upgrades,
        "doubtful-bytes": workers.doubtful,
        "worker-latency": _latency(workers.hang_watch),
    }


def _latency(watch: HangWatch) -> dict[str, object]:
    latency = watch.latency
    return {
        "bounds": LATENCY_BOUNDS,
        "counts": latency.counts,
        "seconds": latency.seconds,
        "unanswered": watch.unanswered,
    }


def client_pid(keeper: Keeper, chardev_id: str) -> int:
    """Return the process at the other end of a chardev's UNIX socket, 0 if there is no telling."""
    for held, fds in keeper.held.all(Connect, chardev_id):
        if not fds:
            continue  # A handler's class is in the worker.
        if isinstance(held, Connect) and isinstance(unlogged(held.connection), SharedConnection):
            continue  # Of several clients it is the oldest.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fds[0])) as client:
            if client.family == socket.AF_UNIX:
                credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                return int(_CREDENTIALS.unpack(credentials)[0])
    return 0
