"""The clients of a keeper's registry socket: as much QMP as their programs need, without a monitor's code.

A monitor is a tenth of a second of imports.  Most processes have none, and where a hundred run, `virtserial ls` asks
all of them at once, while they serve guests: so this is small.
"""

from __future__ import annotations

import json
import logging
import socket
from typing import TYPE_CHECKING, Any, Final

from virtserial.errors import ConfigError
from virtserial.loop import EPOLLIN, EPOLLOUT
from virtserial.monitor.inventory import inventory, processes
from virtserial.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from virtserial.daemon.keeper.keeper import Keeper

log = logging.getLogger("virtserial.keeper")

MAX_CLIENTS: Final = 32
"""At once: more are turned away."""
MAX_REQUEST: Final = 4096
"""Bytes of a line."""
MAX_UNSENT: Final = 4 << 20
"""Bytes of answers that a client leaves unread."""
GREETING: Final = {
    "QMP": {
        "version": {"qemu": {"major": 0, "minor": 0, "micro": 0}, "package": f"virtserial {__version__}"},
        "capabilities": [],
    }
}


class RegistryClients:
    """
    Args:
        keeper: what they ask about.
    """

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._clients: set[_Client] = set()

    def add(self, connection: socket.socket) -> None:
        """Serve a client; its socket, non-blocking, is owned."""
        if len(self._clients) >= MAX_CLIENTS:
            connection.close()
            return
        self._clients.add(_Client(self._keeper, connection, self._clients.discard))

    def close(self) -> None:
        """Let all go."""
        for client in list(self._clients):
            client.close()


class _Client:
    def __init__(self, keeper: Keeper, connection: socket.socket, left: Callable[[_Client], None]) -> None:
        self._keeper = keeper
        self._connection = connection
        self._left = left
        self._received = bytearray()
        self._unsent = bytearray()
        keeper.loop.watch(connection.fileno(), EPOLLIN, self._ready)
        self._send(GREETING)

    def _ready(self, events: int) -> None:
        if events & EPOLLOUT:
            self._flush()
        if self._unsent or self._connection.fileno() < 0:
            return  # It reads its answers first.
        try:
            data = self._connection.recv(MAX_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._received += data
        *lines, rest = bytes(self._received).split(b"\n")
        self._received = bytearray(rest)
        if not data or len(rest) > MAX_REQUEST:
            self.close()
            return
        for line in lines:
            if line.strip():
                self._send(self._answer(line))

    def _answer(self, line: bytes) -> dict[str, object]:
        request: Any = None
        try:
            request = json.loads(line)
            command, arguments = COMMANDS[request["execute"]], request.get("arguments", {})
            result: object = command(self._keeper, arguments)
        except ConfigError as error:
            return _error("GenericError", str(error), request)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            name = request.get("execute") if isinstance(request, dict) else None
            text = f"The command {name} has not been found, or not with these arguments"
            return _error("CommandNotFound", text, request)
        except Exception:
            log.exception("internal error in the registry's %r", line[:100])
            return _error("GenericError", "internal error of virtserial; see its log", request)
        return {"return": {} if result is None else result, "id": request.get("id")}

    def _send(self, message: Mapping[str, object]) -> None:
        self._unsent += json.dumps(message).encode() + b"\r\n"
        self._flush()

    def _flush(self) -> None:
        if self._connection.fileno() < 0:
            return
        had = bool(self._unsent)
        try:
            while self._unsent:
                del self._unsent[: self._connection.send(self._unsent, socket.MSG_NOSIGNAL)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if len(self._unsent) > MAX_UNSENT:
            self.close()
        elif had:
            self._keeper.loop.rewatch(self._connection.fileno(), EPOLLIN | EPOLLOUT if self._unsent else EPOLLIN)

    def close(self) -> None:
        """Let it go."""
        if self._connection.fileno() >= 0:
            self._keeper.loop.unwatch(self._connection.fileno())
            self._connection.close()
            self._left(self)


def _error(kind: str, text: str, request: object) -> dict[str, object]:
    return {"error": {"class": kind, "desc": text}, "id": request.get("id") if isinstance(request, dict) else None}


def _restart(keeper: Keeper, arguments: Mapping[str, Any]) -> None:
    keeper.restart(with_keeper=bool(arguments.get("keeper")))


def _disconnect(keeper: Keeper, arguments: Mapping[str, Any]) -> None:
    if not keeper.back_ends.shut_down(str(arguments["id"])):
        raise ConfigError(f"Chardev '{arguments['id']}' has no client that can be sent away")


def _resize(keeper: Keeper, arguments: Mapping[str, Any]) -> None:
    keeper.hotplug.resize(str(arguments["id"]), int(arguments["cols"]), int(arguments["rows"]))


COMMANDS: Final[Mapping[str, Callable[[Keeper, Mapping[str, Any]], object]]] = {
    "qmp_capabilities": lambda *_: None,
    "x-virtserial-query": lambda keeper, _: processes(keeper),
    "x-virtserial-query-clients": lambda keeper, _: keeper.back_ends.clients(),
    "x-virtserial-inventory": lambda keeper, arguments: inventory(keeper, arguments.get("ping") is True),
    "x-virtserial-restart": _restart,
    "x-virtserial-disconnect": _disconnect,
    "x-virtserial-resize": _resize,
}
"""Nothing that changes which devices there are: under virtserial-qemu, QEMU has to know of that."""
