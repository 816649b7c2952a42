"""Ports by name: VM/PORT is a port of a virtual machine that runs here, VM alone its console or its only port."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from virtserial.client.registry import Vm, find_vm, running_vms, suggestion
from virtserial.client.survey import look
from virtserial.errors import ConfigError, PeerError, VirtserialError

if TYPE_CHECKING:
    from collections.abc import Mapping

REACHABLE = ("unix:", "tcp:", "pty:")
"""Host ends that a program can connect to."""
FORMS = "write VM/PORT as `virtserial ports` lists it, unix:PATH, tcp:HOST:PORT, pty:PATH or a path"
"""What a port may be called, for a hint."""

TEXTS = frozenset(("controller", "id", "name", "console", "chardev", "kind", "speaks", "host_end", "watch", "folder"))


class VmPort(NamedTuple):
    """A port of a VM, as its keeper tells of it (monitor/inventory.py).

    Attributes:
        controller: the name of its controller.
        number: its number there.
        id, name: "" for none.
        console: hvcN for a console, as the guest most probably calls it, else "".
        chardev, kind, host_end: its back end; "" for none.
        speaks: telnet, websocket or tls, which clients have to speak there; "" for nothing.
        clients: how many are connected; None if only they know.
        max_clients: how many may be at once.
        watch: the path where others may look on; "" for none.
        client_pid: the process of one of them, 0 if there is no telling.
        guest_open: whether the guest has it open.
        to_host, to_guest, discarded, dropped, doubtful: bytes since it was plugged in.
        folder: where the keeper's relative paths begin.
    """

    vm: Vm
    controller: str
    number: int
    id: str
    name: str
    console: str
    chardev: str
    kind: str
    speaks: str
    host_end: str
    clients: int | None
    max_clients: int
    watch: str
    client_pid: int
    guest_open: bool
    to_host: int
    to_guest: int
    discarded: int
    dropped: int
    doubtful: int
    folder: str

    @property
    def full_name(self) -> str:
        """VM/PORT."""
        return f"{self.vm.name}/{self.own_name}"

    @property
    def own_name(self) -> str:
        """The name in the VM: the first of name, id, console and number that it has."""
        return self.name or self.id or self.console or str(self.number)

    @property
    def names(self) -> tuple[str, ...]:
        """All that it can be called."""
        given = (self.name, self.id, self.console, self.chardev, str(self.number), f"{self.controller}.{self.number}")
        return tuple(name for name in given if name)

    @property
    def address(self) -> str:
        """Where to connect to it, for virtserial.client.HostStream.

        Raises:
            ConfigError: nobody can, or another user's programs listen there.
        """
        if not self.host_end:
            raise ConfigError(
                f"port '{self.full_name}' has no host end: its guest talks to nobody",
                "give it one: -chardev socket,id=ID,path=PATH,server=on,wait=off and chardev=ID",
            )
        if self.speaks:
            raise ConfigError(
                f"the host end of port '{self.full_name}' speaks {self.speaks}: {self.host_end}",
                f"use a {self.speaks} client, or a -chardev socket without {self.speaks}",
            )
        if not self.host_end.startswith(REACHABLE):
            raise ConfigError(
                f"the host end of port '{self.full_name}' is {self.host_end}: it takes no connections",
                "programs can use a -chardev socket with server=on, and a pty",
            )
        if self.kind == "socket" and ",server=on" not in self.host_end:
            raise ConfigError(
                f"the host end of port '{self.full_name}' is {self.host_end}: it connects there itself",
                "with server=on it listens there for programs",
            )
        if self.vm.owner != os.geteuid():
            raise ConfigError(
                f"VM '{self.vm.name}' belongs to {self.vm.user}, who says where its ports are",
                f"be {self.vm.user} for this: runuser -u {self.vm.user} -- virtserial ...",
            )
        return self._absolute(self.host_end)

    @property
    def watch_address(self) -> str:
        """Where to look on, without a place among the clients; "" for nowhere.

        Raises:
            ConfigError: as `address`.
        """
        return self._absolute(f"unix:{self.watch}") if self.watch and self.address else ""

    def _absolute(self, address: str) -> str:
        kind, _, path = address.partition(":")
        return f"{kind}:{os.path.join(self.folder, path)}" if kind == "unix" and path[:1] not in "/@" else address


def ports_of(vm: Vm, inventory: Mapping[str, Any]) -> list[VmPort]:
    """Return the ports in an inventory.

    Raises:
        PeerError: it is none.
    """
    told = [{**port, "folder": inventory.get("folder")} for port in inventory["ports"]]
    return [VmPort(vm, *(_checked(vm, port, field) for field in VmPort._fields[1:])) for port in told]


def _checked(vm: Vm, port: Mapping[str, Any], field: str) -> Any:  # noqa: ANN401  # a JSON value
    value = port.get(field.replace("_", "-"), "" if field == "speaks" else None)
    kind = str if field in TEXTS else int | None if field == "clients" else int
    if not isinstance(value, kind):
        raise PeerError(f"VM '{vm.name}': a port has {value!r} for its {field}")
    return value


def find_vm_port(text: str) -> VmPort:
    """Return the port that VM/PORT, or VM, names.

    Raises:
        ConfigError: there is no such VM or port, or more than one; near names are in the hint.
        PeerError: its keeper does not answer.
    """
    vms = running_vms()
    # A VM's name may have a slash, as a port's may.
    names = [vm.name for vm in vms if text == vm.name or text.startswith(f"{vm.name}/")]
    if not names and text not in ("", *(str(vm.pid) for vm in vms)) and "/" not in text:
        raise ConfigError(f"no VM called '{text}' runs here", _meant(text, vms))
    whole = max(names, key=len, default=text.partition("/")[0])
    vm, wanted = find_vm(whole), text[len(whole) + 1 :]
    ports = ports_of(vm, vm.inventory())
    if not wanted:
        return _only_one(vm, ports)
    # A number may be another port's name: names come first.
    named = [port for port in ports if wanted in (port.name, port.id)]
    best = named or [port for port in ports if wanted in port.names]
    if not best:
        raise ConfigError(
            f"VM '{vm.name}' has no port '{wanted}'", suggestion(wanted, [port.own_name for port in ports])
        )
    if len(best) > 1:
        exact = ", ".join(f"'{vm.name}/{port.controller}.{port.number}'" for port in best)
        raise ConfigError(f"{len(best)} ports of VM '{vm.name}' are called '{wanted}': {exact}")
    return best[0]


def _meant(text: str, vms: list[Vm]) -> str:
    """A hint for a word without a VM: ports and VMs that are called so or nearly so, or what can be written."""
    import difflib

    names = {vm.name: [vm.name] for vm in vms}
    for seen in look(vms):
        with contextlib.suppress(VirtserialError, KeyError):
            for port in ports_of(seen.vm, seen.inventory):
                for name in port.names:
                    names.setdefault(name, []).append(f"{seen.vm.name}/{name}")
    near = [text] if text in names else difflib.get_close_matches(text, names, 3)
    found = [f"'{name}'" for each in near for name in names[each]]
    if not found:
        return FORMS
    return f"did you mean {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}?"


def _only_one(vm: Vm, ports: list[VmPort]) -> VmPort:
    consoles = [port for port in ports if port.console]
    if consoles or len(ports) == 1:
        return (consoles or ports)[0]
    raise ConfigError(
        f"VM '{vm.name}' has no console: say which of its {len(ports)} ports",
        suggestion("", [port.full_name for port in ports]) if ports else "",
    )
