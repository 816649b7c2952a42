"""The agent of a host: announces its VMs and their ports in the fleet, and serves them (protocol.py has the table)."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import logging
import os
import socket
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from nats.errors import Error
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError, NotFoundError

from virtserial import __version__
from virtserial.client.names import ports_of
from virtserial.client.registry import running_vms
from virtserial.errors import ConfigError, PeerError, VirtserialError
from virtserial.fleet.operations import VERBS, operate
from virtserial.fleet.outlet import Outlet
from virtserial.fleet.protocol import (
    HEARTBEAT,
    HOSTS,
    INBOX,
    LIFETIME,
    MAKE_ONE,
    MAX_CONTROL,
    MAX_RECORD,
    NUMBER,
    PORTS,
    SESSION,
    HostRecord,
    Place,
    PortRecord,
    VmRecord,
    is_inbox,
    name_of,
    read_host,
    token,
    write,
)  # fmt: skip
from virtserial.fleet.served_port import Refused, ServedPort

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.js.kv import KeyValue

    from virtserial.client.names import VmPort
    from virtserial.client.registry import Vm

log = logging.getLogger("virtserial.fleet")

FAREWELL: Final = 3.0
"""Seconds to take leave of the broker."""
LOOK: Final = 0.5
"""Seconds between two looks at the VMs that run here."""
MAX_WAITING: Final = 16 << 20
"""Bytes of requests that wait to be served; what comes beyond is dropped, and counted."""
MAX_REQUESTS: Final = 64
"""Requests of sessions and operators that are served at once."""
MAX_SPENT: Final = 1024
"""Words of operators' requests that are remembered, so that none is served twice."""


class Agent:
    """
    Args:
        client: a connection.
        host: the name of this host in the fleet.
        vms: patterns of the VMs that belong to this fleet.
        publish: patterns of VM/PORT whose output goes to the stream all the time.
        monitors: QMP sockets of VMs, by name: ports are plugged through these.
    """

    def __init__(
        self, client: Client, host: str, vms: Sequence[str] = ("*",), publish: Sequence[str] = (),
        monitors: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.host = host
        self._key = token(host)
        self._client = client
        self._outlet = Outlet(client)
        self._patterns, self._publish = tuple(vms), tuple(publish)
        self._monitors = monitors or {}
        self._since = time.time()
        self._revision = 0
        self._ports: dict[tuple[str, str], ServedPort] = {}
        self._vms: dict[str, Vm] = {}
        self._told: dict[str, bytes] = {}
        self._requests: set[asyncio.Task[None]] = set()
        self._warned: set[str] = set()
        self._spent: deque[str] = deque(maxlen=MAX_SPENT)
        self._lookers = ThreadPoolExecutor(8, "look")
        self.refused: Counter[str] = Counter()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set.

        Raises:
            ConfigError: there is no fleet at the broker, or another host has the name.
        """
        jetstream = self._client.jetstream()
        try:
            hosts, ports = await jetstream.key_value(HOSTS), await jetstream.key_value(PORTS)
            await self._outlet.owners()
            await self._outlet.last_sequence()
        except NotFoundError as error:
            raise ConfigError("there is no fleet at the broker", MAKE_ONE) from error
        except (Error, TimeoutError) as error:
            raise ConfigError(f"there is no fleet at the broker ({error})", MAKE_ONE) from error
        await self._claim(hosts, stop)
        subscriptions = [
            await self._client.subscribe(f"vs.{self._key}.{rest}", cb=take, pending_bytes_limit=MAX_WAITING)
            for rest, take in (("*.*.in", self._input), ("*.*.ctl", self._control), ("*.*", self._operation))
        ]
        log.info("host '%s' is in the fleet", self.host)
        try:
            await asyncio.gather(self._beat(hosts, stop), self._serve(ports, stop))
        finally:
            # If the broker is away, the host's record ends by itself.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL):
                    for subscription in subscriptions:
                        await _quietly(subscription.unsubscribe())
                    await _quietly(hosts.delete(self._key, last=self._revision))
                    for port in self._ports.values():
                        await port.close()
                    for vm in self._told:
                        await _quietly(ports.delete(f"{self._key}.{token(vm)}"))
            self._lookers.shutdown(wait=False)

    # The host's name

    def _record(self) -> bytes:
        lost = self._outlet.lost
        return write(
            HostRecord(self._outlet.agent, socket.gethostname(), self._since, __version__, lost, dict(self.refused))
        )

    async def _claim(self, hosts: KeyValue, stop: asyncio.Event) -> None:
        """Take the name; wait for the end of a record that no agent renews any more.

        Raises:
            ConfigError: another agent has it.
        """
        seen = 0
        deadline = time.monotonic() + 2 * LIFETIME
        while not stop.is_set():
            try:
                self._revision = await hosts.create(self._key, self._record())
                return
            except KeyWrongLastSequenceError:
                pass
            except (Error, TimeoutError) as error:
                log.warning("the broker does not take the host's record: %s", error or "no answer")
                await asyncio.sleep(1)
                continue
            try:
                found = await hosts.get(self._key)
            except (KeyNotFoundError, TimeoutError):
                continue
            try:
                other = read_host(found.value or b"")
            except PeerError:
                other = HostRecord("", "nobody knows who", 0.0, "", 0, {})
            if other.agent == self._outlet.agent:
                # Our own word, whose answer was lost.
                self._revision = found.revision or 0
                return
            if (seen and found.revision != seen) or time.monotonic() > deadline:
                since = time.strftime("%Y-%m-%d %H:%M", time.localtime(other.since))
                raise ConfigError(
                    f"a host called '{self.host}' is in the fleet already: {other.machine}, since {since}",
                    "say --host NAME",
                )
            if not seen:
                log.warning("an agent holds the name '%s'; waiting up to %g s to see if it lives", self.host, LIFETIME)
            seen = found.revision or 0
            await asyncio.sleep(0.5)

    async def _beat(self, hosts: KeyValue, stop: asyncio.Event) -> None:
        while not await _within(stop, HEARTBEAT):
            if self._client.is_closed:
                raise PeerError("the broker has ended the connection for good: are the credentials still valid?")
            try:
                self._revision = await hosts.update(self._key, self._record(), self._revision)
            except KeyWrongLastSequenceError:
                # Our record is gone because the broker was away for long, or another has the name.
                await self._claim(hosts, stop)
                self._told.clear()
            except (Error, OSError, TimeoutError) as error:
                log.debug("no heartbeat: %s", error)

    # The VMs

    async def _serve(self, ports: KeyValue, stop: asyncio.Event) -> None:
        await self._forget_earlier(ports)
        while True:
            found = await asyncio.get_running_loop().run_in_executor(self._lookers, self._look)
            await self._take(found)
            for port in list(self._ports.values()):
                await port.tick()
            await self._tell(ports)
            if await _within(stop, LOOK):
                return

    def _look(self) -> dict[str, tuple[Vm, list[VmPort] | None]]:
        """Ask every VM; None for one that does not answer."""
        found: dict[str, tuple[Vm, list[VmPort] | None]] = {}
        for vm in running_vms():
            if any(fnmatch.fnmatchcase(vm.name, pattern) for pattern in self._patterns):
                try:
                    listed = ports_of(vm, vm.inventory())
                except VirtserialError:
                    listed = None
                found[vm.name if vm.name not in found else str(vm.pid)] = vm, listed
        return found

    async def _take(self, found: dict[str, tuple[Vm, list[VmPort] | None]]) -> None:
        self._vms = {name: vm for name, (vm, _) in found.items()}
        present: dict[tuple[str, str], VmPort] = {}
        for vm, (_, ports) in found.items():
            if ports is None:
                # It does not answer now: what is known of it stays.
                present |= {key: served.port for key, served in self._ports.items() if key[0] == vm}
                continue
            for port in ports:
                exact = f"{port.controller}.{port.number}"
                present[vm, port.own_name if (vm, port.own_name) not in present else exact] = port
        for key, served in list(self._ports.items()):
            now = present.get(key)
            if now is None or not served.is_of(now):
                await self._ports.pop(key).close()
            else:
                served.port = now
        for key, port in present.items():
            if key not in self._ports:
                try:
                    for name in key:
                        token(name)
                except ConfigError as error:
                    self._warn(str(error))
                    continue
                names = [f"{key[0]}/{name}" for name in (key[1], *port.names)]
                published = any(fnmatch.filter(names, pattern) for pattern in self._publish)
                self._ports[key] = ServedPort(self._outlet, Place(self.host, *key), port, published)

    async def _forget_earlier(self, ports: KeyValue) -> None:
        """Remove what an earlier agent of this host said of VMs that are gone."""
        from virtserial.fleet.directory import Directory

        directory = Directory(self._client, self.host)
        try:
            await directory.load()
        except VirtserialError as error:
            log.warning("%s", error)
        finally:
            await directory.stop()
        for vm in directory.all_vms():
            if vm not in self._told:
                await _quietly(ports.delete(f"{self._key}.{token(vm)}"))

    async def _tell(self, ports: KeyValue) -> None:
        records = {vm: VmRecord(self._outlet.agent, known.user, []) for vm, known in self._vms.items()}
        for (vm, name), served in sorted(self._ports.items()):
            if vm in records:
                records[vm].ports.append(_record_of(name, served))
        for vm in [vm for vm in self._told if vm not in records]:
            if await _quietly(ports.delete(f"{self._key}.{token(vm)}")):
                del self._told[vm]
        for vm, record in records.items():
            value = write(record)
            if len(value) > MAX_RECORD:
                self._warn(f"VM '{vm}' has {len(record.ports)} ports: too many to announce")
            elif self._told.get(vm) != value and await _quietly(ports.put(f"{self._key}.{token(vm)}", value)):
                self._told[vm] = value

    def _warn(self, text: str) -> None:
        if text not in self._warned and len(self._warned) < 1000:
            self._warned.add(text)
            log.warning("%s", text)

    # Requests

    def _refuse(self, message: Msg, kind: str, text: str) -> None:
        self.refused[kind] += 1
        self._outlet.answer(message.reply, {"error": text, "again": kind == "broker"})

    def _names(self, message: Msg, count: int, *verbs: str) -> list[str]:
        """The `count` names in a request's subject (VM, perhaps PORT), then its verb.

        Raises:
            Refused: it is no request to this host.  A message that the broker has stored keeps its own subject when a
                consumer delivers it to ours.
            PeerError: a name is none.
        """
        words = message.subject.split(".")
        if words[:2] != ["vs", self._key] or len(words) != count + 3 or words[-1] not in verbs:
            raise Refused("garbage", f"this is no request to '{self.host}'")
        if message.reply and not is_inbox(message.reply):
            raise Refused("garbage", f"an answer goes to a subject that begins with {INBOX}")
        return [*map(name_of, words[2:-1]), words[-1]]

    def _port(self, message: Msg, verb: str) -> ServedPort:
        vm, port, _ = self._names(message, 2, verb)
        served = self._ports.get((vm, port))
        if served is None:
            raise Refused("no such port", f"there is no port '{self.host}/{vm}/{port}'")
        return served

    async def _input(self, message: Msg) -> None:
        try:
            headers = message.headers or {}
            number = headers.get(NUMBER, "")
            if not (number.isascii() and number.isdigit() and len(number) < 16):
                raise Refused("garbage", f"{NUMBER} is no number: {number!r:.40}")
            self._port(message, "in").input(headers.get(SESSION, ""), int(number), message.data, message.reply)
        except Refused as error:
            self._refuse(message, error.kind, str(error))
        except VirtserialError as error:
            self._refuse(message, "garbage", str(error))

    async def _control(self, message: Msg) -> None:
        try:
            name = (message.headers or {}).get(SESSION, "")
            if not 8 <= len(name) <= 64:
                raise Refused("garbage", f"{SESSION} has 8 to 64 characters")
            port = self._port(message, "ctl")
        except VirtserialError as error:
            self._refuse(message, error.kind if isinstance(error, Refused) else "garbage", str(error))
            return
        self._begin(message, port.control(name, message.data))

    async def _operation(self, message: Msg) -> None:
        try:
            word = (message.headers or {}).get(SESSION, "")
            if not 8 <= len(word) <= 64:
                raise Refused("garbage", f"{SESSION} has 8 to 64 characters")
            name, verb = self._names(message, 1, *VERBS)
            vm = self._vms.get(name)
            if vm is None:
                raise Refused("no such port", f"there is no VM '{self.host}/{name}'")
            if word in self._spent:
                raise Refused("replayed", f"this request was made before: each has a {SESSION} of its own")
        except VirtserialError as error:
            self._refuse(message, error.kind if isinstance(error, Refused) else "garbage", str(error))
            return
        self._spent.append(word)
        log.info("%s of VM '%s' is asked for", verb, vm.name)
        self._begin(message, operate(vm, self._monitors.get(vm.name), verb, message.data))

    def _begin(self, message: Msg, serving: Any) -> None:  # noqa: ANN401  # a coroutine
        if len(message.data) > MAX_CONTROL or len(self._requests) >= MAX_REQUESTS:
            serving.close()
            self._refuse(message, "too large" if len(message.data) > MAX_CONTROL else "too many", "too much at once")
            return
        task = asyncio.create_task(self._answer(message, serving))
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)

    async def _answer(self, message: Msg, serving: Any) -> None:  # noqa: ANN401
        try:
            self._outlet.answer(message.reply, await serving)
        except Refused as error:
            self._refuse(message, error.kind, str(error))
        except PeerError as error:
            self._refuse(message, "garbage", str(error))
        except VirtserialError as error:
            hint = f"; {error.hint}" if isinstance(error, ConfigError) and error.hint else ""
            self._refuse(message, "impossible", f"{error}{hint}")
        except (Error, TimeoutError) as error:
            self._refuse(message, "broker", f"the broker does not answer the agent: {error}")


def _record_of(name: str, served: ServedPort) -> PortRecord:
    port = served.port
    aliases = [each for each in port.names if each != name]
    return PortRecord(
        name, port.console, aliases, port.guest_open, port.clients, port.max_clients, served.published, served.error
    )


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Whether an event comes in time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def _quietly(request: Any) -> bool:  # noqa: ANN401  # an awaitable
    """Whether a request to the broker succeeds; it is made again at the next turn, or its record ends by itself."""
    try:
        await request
    except (Error, OSError, TimeoutError):
        return False
    return True


def host_name() -> str:
    """The name of this host, if no other is given."""
    return os.uname().nodename.partition(".")[0]
