"""What is in the fleet: hosts, their VMs and ports, from the records that agents keep; and names looked up there."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from nats.errors import Error
from nats.errors import TimeoutError as NatsTimeout
from nats.js.errors import NotFoundError, ServiceUnavailableError

from virtserial.client.registry import suggestion
from virtserial.errors import ConfigError, PeerError, VirtserialError
from virtserial.fleet.protocol import (
    HOSTS,
    LIFETIME,
    MAKE_ONE,
    PORTS,
    HostRecord,
    Place,
    PortRecord,
    VmRecord,
    name_of,
    read_host,
    read_vm,
    token,
)  # fmt: skip
from virtserial.fleet.reader import Reader, Stored
from virtserial.tasks import end_tasks

if TYPE_CHECKING:
    from nats.aio.client import Client

ANSWER_TIME = 10.0
LOOK = 0.5
MAX_UNREAD = 1000
"""Records that make no sense are counted up to here."""
MAX_VMS = 1024
"""Of one host; more are left out."""
log = logging.getLogger("virtserial.fleet")


class Directory:
    """
    Args:
        client: a connection.
        host: only this one; None for all.
    """

    def __init__(self, client: Client, host: str | None = None) -> None:
        key = ">" if host is None else token(host)
        self._readers = (
            Reader(client, f"KV_{HOSTS}", f"$KV.{HOSTS}.{key}"),
            Reader(client, f"KV_{PORTS}", f"$KV.{PORTS}.{key}" + (".*" if host is not None else "")),
        )
        self._hosts: dict[str, tuple[HostRecord, float]] = {}
        self._vms: dict[str, dict[str, VmRecord]] = {}
        self._crowded: set[str] = set()
        self.unread = 0

    async def load(self) -> None:
        """Read all there is by now.

        Raises:
            ConfigError: there is no fleet, or no right to see it.
            PeerError: the broker does not answer in time.
        """
        try:
            async with asyncio.timeout(ANSWER_TIME):
                for reader in self._readers:
                    await self._start(reader)
                    while reader.pending:
                        self._take(await reader.next(LOOK))
        except TimeoutError as error:
            raise PeerError(f"the broker does not show the fleet in {ANSWER_TIME:g} s") from error
        except NotFoundError as error:
            raise ConfigError("there is no fleet at the broker", MAKE_ONE) from error
        except Error as error:
            hint = "`virtserial fleet role watch` prints the rights that this needs"
            raise ConfigError(f"the broker does not show the fleet: {error}", hint) from error

    async def _start(self, reader: Reader) -> None:
        while True:
            try:
                await reader.start()
            except (ServiceUnavailableError, NatsTimeout):
                # A cluster that has just lost or got a server chooses who leads, and may forget a request over that.
                await asyncio.sleep(0.5)
            else:
                return

    async def change(self, seconds: float | None = None) -> bool:
        """Wait for a change of any record; False if there is none in so many seconds."""
        waiting = [asyncio.create_task(reader.next(seconds)) for reader in self._readers]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_tasks(*waiting)
        # The other one may have got a message in the meantime: it is not thrown away.
        found = [task.result() for task in waiting if not task.cancelled()]
        for message in found:
            self._take(message)
        return any(found)

    async def stop(self) -> None:
        """Look no more."""
        for reader in self._readers:
            await reader.stop()

    def _take(self, message: Stored | None) -> None:
        if message is None:
            return
        gone = message.headers.get("KV-Operation") is not None
        try:
            _, bucket, *names = message.subject.split(".")
            host, *vm = map(name_of, names)
            if bucket == HOSTS:
                if gone:
                    self._hosts.pop(host, None)
                else:
                    self._hosts[host] = read_host(message.data), time.monotonic()
            elif gone:
                self._vms.get(host, {}).pop(vm[0], None)
            else:
                self._keep(host, vm[0], read_vm(message.data))
        except (VirtserialError, ValueError, IndexError, TypeError):
            self.unread = min(self.unread + 1, MAX_UNREAD)

    def _keep(self, host: str, vm: str, record: VmRecord) -> None:
        known = self._vms.setdefault(host, {})
        if vm not in known and len(known) >= MAX_VMS:
            # What an earlier agent said is void: it takes nobody's place.
            agent = self._hosts[host][0].agent if host in self._hosts else record.agent
            known = self._vms[host] = {name: each for name, each in known.items() if each.agent == agent}
            if len(known) >= MAX_VMS:
                if host not in self._crowded:
                    self._crowded.add(host)
                    log.warning("host '%s' announces more than %d VMs: the others are left out", host, MAX_VMS)
                return
        known[vm] = record

    def hosts(self) -> dict[str, HostRecord]:
        """The hosts whose agents live, by name."""
        oldest = time.monotonic() - LIFETIME
        return {name: record for name, (record, heard) in sorted(self._hosts.items()) if heard > oldest}

    def vms(self) -> dict[tuple[str, str], VmRecord]:
        """The VMs of these hosts, by HOST and VM."""
        hosts = self.hosts()
        return {
            (host, vm): record
            for host in sorted(hosts.keys() & self._vms.keys())
            for vm, record in sorted(self._vms[host].items())
            if record.agent == hosts[host].agent
        }

    def find(self, text: str, default: str | None = None) -> tuple[Place, PortRecord]:
        """Return the port that HOST/VM/PORT names, or HOST/VM.

        Args:
            default: the name of PORT where it is left out; None: the console, or the only port.

        Raises:
            ConfigError: there is none; near names are in the hint.
        """
        host, _, rest = text.partition("/")
        if host not in self.hosts():
            if self._vms.get(host):
                raise ConfigError(f"host '{host}' is away: its agent has not been heard of for {LIFETIME:g} s")
            raise ConfigError(f"no host called '{host}' is in the fleet", suggestion(host, list(self.hosts())))
        vms = {vm: record for (owner, vm), record in self.vms().items() if owner == host}
        # A VM's name may have a slash, as a port's may.
        vm = max((name for name in vms if rest == name or rest.startswith(f"{name}/")), key=len, default=None)
        if vm is None:
            wanted = rest.partition("/")[0]
            raise ConfigError(f"host '{host}' has no VM '{wanted}'", suggestion(wanted, list(vms)))
        ports, port_name = vms[vm].ports, rest[len(vm) + 1 :] or default
        if port_name is None:
            found = [port for port in ports if port.console] or (ports if len(ports) == 1 else [])
        else:
            found = [port for port in ports if port.name == port_name] or [p for p in ports if port_name in p.aliases]
        if not found:
            known = suggestion(port_name or "", [port.name for port in ports])
            what = f"has no port '{port_name}'" if port_name else f"has no console: say which of its {len(ports)} ports"
            raise ConfigError(f"'{host}/{vm}' {what}", known)
        return Place(host, vm, found[0].name), found[0]

    def may_return(self, text: str) -> bool:
        """Whether the VM of HOST/VM/PORT, or HOST/VM, is known by an agent that left without a word.

        So it is after an outage of the broker, until the agent's next heartbeat, and after an agent was killed."""
        host, _, rest = text.partition("/")
        living = self.vms()
        return any(
            (rest == vm or rest.startswith(f"{vm}/")) and (host, vm) not in living for vm in self._vms.get(host, ())
        )

    def all_vms(self) -> list[str]:
        """The VMs of every record, also of agents that are gone."""
        return [vm for vms in self._vms.values() for vm in vms]
