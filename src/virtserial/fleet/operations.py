"""What an operator may have done to a VM over the fleet: a restart of its device, ports plugged and unplugged."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from virtserial.client.names import ports_of
from virtserial.client.plugging import plug, unplug
from virtserial.errors import ConfigError, PeerError
from virtserial.fleet.protocol import document

if TYPE_CHECKING:
    from virtserial.client.registry import Vm

VERBS: Final = ("restart", "plug", "unplug")


async def operate(vm: Vm, monitor: str | None, verb: str, data: bytes) -> dict[str, Any]:
    """Do what a request asks for; return the answer.

    Args:
        monitor: the VM's QMP socket, for ports; None if the agent knows none.

    Raises:
        ConfigError: it is refused.
        PeerError: the request makes no sense, or the VM does not answer.
    """
    request = document(data)
    match verb:
        case "restart":
            await asyncio.to_thread(vm.restart, with_keeper=bool(request.get("keeper")))
        case "plug" | "unplug" if monitor is None:
            hint = "`virtserial fleet join --monitor VM=SOCKET`"
            raise ConfigError(f"the agent knows no monitor of VM '{vm.name}'", hint)
        case "plug":
            clients = request.get("clients", 1)
            if not isinstance(clients, int):
                raise PeerError(f"clients is no number: {clients!r:.40}")
            port = str(request.get("port"))
            await asyncio.to_thread(plug, monitor or "", port, bool(request.get("console")), clients)
        case "unplug":
            await asyncio.to_thread(_unplug, vm, monitor or "", str(request.get("port")))
        case _:
            raise PeerError(f"there is no {verb!r:.40}")
    return {}


def _unplug(vm: Vm, monitor: str, name: str) -> None:
    found = [port for port in ports_of(vm, vm.inventory()) if name in port.names]
    if len(found) != 1 or not found[0].id:
        raise ConfigError(f"'{vm.name}' has no port '{name}' that can be unplugged: it needs an id")
    unplug(monitor, found[0].id)


def check(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer of an agent.

    Raises:
        ConfigError: it is a refusal.
    """
    if "error" in answer:
        raise ConfigError(str(answer["error"]))
    return answer
