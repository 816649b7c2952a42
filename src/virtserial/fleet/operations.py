"""What an operator may have done to a VM over the fleet: a restart of its device, ports plugged and unplugged."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from virtserial.errors import ConfigError, PeerError
from virtserial.fleet.protocol import document

if TYPE_CHECKING:
    from virtserial.client.registry import Vm


async def operate(vm: Vm, verb: str, data: bytes) -> dict[str, Any]:
    """Do what a request asks for; return the answer.

    Raises:
        ConfigError: the VM's keeper refuses.
        PeerError: the request makes no sense, or the keeper does not answer.
    """
    request = document(data)
    if verb == "restart":
        arguments = {"keeper": True} if request.get("keeper") else {}
        await asyncio.to_thread(_execute, vm, [("x-virtserial-restart", arguments)])
        return {}
    raise PeerError(f"there is no {verb!r:.40}")


def _execute(vm: Vm, commands: list[tuple[str, dict[str, Any]]]) -> None:
    with vm.connect() as monitor:
        for command, arguments in commands:
            monitor.execute(command, arguments)


def check(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer of an agent.

    Raises:
        ConfigError: it is a refusal.
    """
    if "error" in answer:
        raise ConfigError(str(answer["error"]))
    return answer
