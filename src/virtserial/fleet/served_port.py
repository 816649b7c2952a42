"""A port that an agent serves: its output goes to the stream, the sessions' input to the port.

| while | output that the broker has not stored | the guest |
|---|---|---|
| nobody has a session | is kept up to MAX_UNSTORED, then the oldest is dropped and counted | never waits |
| an exclusive port has a session | is kept; the port is not read when that is full, or WINDOW is untaken | waits |
| a port for many has sessions | so too, but for PATIENCE seconds; then as with no session | waits that long |

A session that is not heard of for LEASE seconds is dead: the guest waits for nobody longer than that.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from nats.errors import Error
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError

from virtserial.client.named_stream import NamedStream, open_free
from virtserial.client.names import ports_of
from virtserial.errors import VirtserialError
from virtserial.fleet.protocol import HEARTBEAT, LEASE, PIECE, WINDOW, Place, document, write

if TYPE_CHECKING:
    from nats.js.kv import KeyValue

    from virtserial.client.names import VmPort
    from virtserial.fleet.outlet import Outlet

MAX_UNSTORED: Final = 1 << 18
MAX_SESSIONS: Final = 64
PATIENCE: Final = 2.0
OWN_TIME: Final = 4.0
"""Seconds to take an exclusive port's key; who asks for a session waits for 5, and asks again."""
OPEN_AGAIN: Final = 3
OPEN_PAUSE: Final = 0.2
MAX_ENDED: Final = 256
"""Sessions that are remembered after their end, so that none begins again."""
MAX_WHO: Final = 80


class Refused(VirtserialError):
    """A request is refused; the text is for the client.

    Attributes:
        kind: what it is counted as; "broker": it may be asked for again.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class _Session:
    """What the agent knows of a session."""

    def __init__(self, who: str) -> None:
        self.who = who
        self.heard = time.monotonic()
        self.done = 0
        self.pending: memoryview | None = None
        self.reply = ""
        self.taken = 0
        self.is_slow = False


class ServedPort:
    """
    Args:
        outlet: the way to the broker.
        place: its names in the fleet.
        port: where it is here.
        published: its output goes to the stream also while nobody has a session.
    """

    def __init__(self, outlet: Outlet, place: Place, port: VmPort, published: bool) -> None:
        self._outlet = outlet
        self.place, self.port, self.published = place, port, published
        self._stream: NamedStream | None = None
        self._opening = asyncio.Lock()
        self._buffer = bytearray()
        self._at = 0
        self._storing: asyncio.Task[None] | None = None
        self._stored: deque[int] = deque()
        self._moved = time.monotonic()
        self._sessions: dict[str, _Session] = {}
        self._writers: deque[_Session] = deque()
        self._ended: deque[str] = deque(maxlen=MAX_ENDED)
        self._revision = 0
        self._renewed = 0.0
        self.lost = 0
        self.error = ""

    @property
    def is_exclusive(self) -> bool:
        """Whether it has room for one client only."""
        return self.port.max_clients == 1

    def is_of(self, port: VmPort) -> bool:
        """Whether it is this very port, and not another of its name."""
        ours = self.port
        return (ours.vm, ours.controller, ours.number, ours.chardev, ours.max_clients) == (
            port.vm, port.controller, port.number, port.chardev, port.max_clients,
        )  # fmt: skip

    # Output

    def _ready(self) -> None:
        if self._stream is not None:
            self._stream.wait(0)
            self._pump()
            self._write()

    def _must_wait(self) -> bool:
        """Whether the guest waits for sessions, or for the broker on their behalf."""
        live = [each for each in self._sessions.values() if not each.is_slow]
        if not live:
            return False
        oldest = min(each.taken for each in live)
        while self._stored and self._stored[0] <= oldest:
            self._stored.popleft()
            self._moved = time.monotonic()
        if len(self._stored) < WINDOW and len(self._buffer) < MAX_UNSTORED:
            self._moved = time.monotonic()
            return False
        if self.is_exclusive or time.monotonic() - self._moved < PATIENCE:
            return True
        for each in live:
            each.is_slow = each.taken <= oldest
        return False

    def _pump(self) -> None:
        while self._stream is not None and not self._must_wait():
            data = self._stream.receive(PIECE)
            if not data:
                break
            self._buffer += data
            self._drop(len(self._buffer) - MAX_UNSTORED if not self._sessions or self._all_slow() else 0)
        if self._buffer and self._storing is None:
            self._storing = asyncio.create_task(self._store_all())

    def _all_slow(self) -> bool:
        return all(each.is_slow for each in self._sessions.values())

    def _drop(self, count: int) -> None:
        if count > 0:
            del self._buffer[:count]
            self._at += count
            self.lost += count
            self._outlet.count_lost(self.place, count)

    async def _store_all(self) -> None:
        """Store what is in the buffer, one message at a time, so that all of it is in order and there once."""
        try:
            while self._buffer:
                piece, at = bytes(self._buffer[:PIECE]), self._at
                del self._buffer[: len(piece)]
                self._at += len(piece)
                sequence = await self._outlet.store(self.place, piece, at)
                if self._sessions:
                    self._stored.append(sequence)
                self._moved = time.monotonic()
                self._pump()
        finally:
            self._storing = None

    # Input

    def input(self, name: str, number: int, data: bytes, reply: str) -> None:
        """Take input of a session; the answer follows when the port has taken it.

        Raises:
            Refused: no such session, too large, or out of order.
        """
        session = self._sessions.get(name)
        if session is None:
            raise Refused("no session", "no such session: it has ended, or another has taken the port")
        if len(data) > PIECE:
            raise Refused("too large", f"{len(data)} bytes: a message has at most {PIECE}")
        session.heard = time.monotonic()
        if number == session.done and number:
            self._outlet.answer(reply, {"done": number})
        elif number != session.done + 1:
            raise Refused("out of order", f"number {number} is not the next, {session.done + 1}")
        else:
            session.reply = reply
            if session.pending is None:
                session.pending = memoryview(bytes(data))
                self._writers.append(session)
            self._write()

    def _write(self) -> None:
        """Write the input of sessions, each one's whole, in the order in which it came."""
        while self._stream is not None and self._writers:
            session = self._writers[0]
            assert session.pending is not None
            while session.pending:
                taken = self._stream.send([session.pending])
                if not taken:
                    return
                session.pending = session.pending[taken:]
            self._writers.popleft()
            session.pending = None
            session.done += 1
            self._outlet.answer(session.reply, {"done": session.done})

    # Sessions

    async def control(self, name: str, data: bytes) -> dict[str, Any]:
        """Serve a request of a session; return the answer.

        Raises:
            Refused: it cannot be.
            PeerError: it makes no sense.
        """
        request = document(data)
        match request.get("do"):
            case "open":
                return await self._open(name, str(request.get("who"))[:MAX_WHO], bool(request.get("force")))
            case "keep":
                return await self._keep(name, request)
            case "close":
                await self._end(name)
                return {}
        raise Refused("garbage", f"there is no {request.get('do')!r:.40}")

    async def _open(self, name: str, who: str, force: bool) -> dict[str, Any]:
        async with self._opening:
            if name in self._ended:
                raise Refused("replayed", "this session has ended: another has a word of its own")
            if name not in self._sessions:
                if len(self._sessions) >= (1 if self.is_exclusive and not force else MAX_SESSIONS):
                    others = ", ".join(each.who for each in self._sessions.values())
                    raise Refused("busy", f"port '{self.place}' is busy: {others} has it")
                try:
                    if self.is_exclusive:
                        async with asyncio.timeout(OWN_TIME):
                            await self._own(name, who, force)
                    await self._connect(force)
                    session = _Session(who)
                    # After a pause of the publishing, so that nothing older comes into the session.
                    session.taken = await self._outlet.last_sequence()
                except (Error, TimeoutError) as error:
                    await self._let_go()
                    raise Refused("broker", f"the broker does not let us: {error}") from error
                except VirtserialError:
                    await self._let_go()
                    raise
                self._sessions[name] = session
                self._pump()
            session = self._sessions[name]
            session.heard = time.monotonic()
            return {"agent": self._outlet.agent, "from": session.taken + 1, "window": WINDOW}

    async def _keep(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        session = self._sessions.get(name)
        if session is None:
            raise Refused("no session", "no such session: it has ended, or another has taken the port")
        session.heard = time.monotonic()
        taken, size = request.get("taken"), request.get("size")
        if isinstance(taken, int) and session.taken < taken <= self._outlet.newest:
            session.taken = taken
            session.is_slow = session.is_slow and taken < self._outlet.newest
        if isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) and 0 < n < 1 << 16 for n in size):
            await self._resize(*size)
        self._pump()
        return {"guest_open": self.port.guest_open, "lost": self.lost}

    async def _resize(self, rows: int, columns: int) -> None:
        stream = self._stream
        if stream is not None:
            stream.set_terminal_size(rows, columns)
            await asyncio.to_thread(stream.news)

    async def _end(self, name: str) -> None:
        if name not in self._sessions:
            return
        self._forget(name)
        async with self._opening:
            await self._let_go()
        self._pump()

    async def _let_go(self) -> None:
        """Free the port if nobody has a session: another may have begun in the meantime."""
        if not self._sessions:
            self._stored.clear()
            await self._disown()
            if not self.published:
                self._disconnect()

    def _forget(self, name: str) -> None:
        session = self._sessions.pop(name)
        self._ended.append(name)
        if session in self._writers:
            self._writers.remove(session)

    async def tick(self) -> None:
        """Do what time brings: dead sessions, a port to connect to, a key to renew."""
        now = time.monotonic()
        for name, session in list(self._sessions.items()):
            if now - session.heard > LEASE:
                await self._end(name)
        if self.published and self._stream is None:
            try:
                async with self._opening:
                    await self._connect(False)
                self.error = ""
            except VirtserialError as error:
                self.error = str(error)
        if self._revision and now - self._renewed > HEARTBEAT:
            async with self._opening:
                is_ours = not self._revision or await self._renew()
            for name in [] if is_ours else list(self._sessions):
                await self._end(name)
        self._ready()

    async def close(self) -> None:
        """Let the port go."""
        for name in list(self._sessions):
            await self._end(name)
        self._disconnect()
        if self._storing is not None:
            self._storing.cancel()

    # The port itself

    async def _connect(self, force: bool) -> None:
        if self._stream is None or force:
            self._disconnect()
            self._stream = await self._open_port(force)
            asyncio.get_running_loop().add_reader(self._stream.fileno(), self._ready)
            self._ready()

    async def _open_port(self, force: bool) -> NamedStream:
        for _ in range(OPEN_AGAIN):
            # The keeper may not have seen yet that our last session has gone.
            with contextlib.suppress(VirtserialError):
                return await asyncio.to_thread(_open_now, self.port, force)
            await asyncio.sleep(OPEN_PAUSE)
        return await asyncio.to_thread(_open_now, self.port, force)

    def _disconnect(self) -> None:
        if self._stream is not None:
            asyncio.get_running_loop().remove_reader(self._stream.fileno())
            self._stream.close()
            self._stream = None

    # The owner of an exclusive port

    async def _own(self, name: str, who: str, force: bool) -> None:
        owners = await self._outlet.owners()
        # The session's own word stays a secret: whoever knows it may write.
        value = write({"session": hashlib.sha256(name.encode()).hexdigest()[:16], "who": who})
        try:
            self._revision = await owners.create(self.place.key, value)
        except KeyWrongLastSequenceError:
            self._revision = await self._own_again(owners, value, force)
        self._renewed = time.monotonic()
        for other in [each for each in self._sessions if each != name]:
            self._forget(other)

    async def _own_again(self, owners: KeyValue, value: bytes, force: bool) -> int:
        """Take the key of the same session before the agent's restart, or anybody's by force."""
        try:
            found = await owners.get(self.place.key)
        except KeyNotFoundError:
            return await owners.create(self.place.key, value)
        before = document(found.value or b"")
        if before.get("session") != document(value)["session"] and not force:
            raise Refused("busy", f"port '{self.place}' is busy: {str(before.get('who'))[:MAX_WHO]} has it")
        return await owners.update(self.place.key, value, found.revision)

    async def _renew(self) -> bool:
        """Renew the key; return whether it is still ours."""
        owners = await self._outlet.owners()
        self._renewed = time.monotonic()
        try:
            found = await owners.get(self.place.key)
            self._revision = await owners.update(self.place.key, found.value or b"", self._revision)
        except (KeyWrongLastSequenceError, KeyNotFoundError):
            self._revision = 0
            return False
        except (Error, TimeoutError):
            pass  # The broker is away: the key is ours as long as nobody else can take it.
        return True

    async def _disown(self) -> None:
        revision, self._revision = self._revision, 0
        if revision:
            # If the broker is away, it ends by itself.
            with contextlib.suppress(Error, TimeoutError):
                await (await self._outlet.owners()).delete(self.place.key, last=revision)


def _open_now(port: VmPort, force: bool) -> NamedStream:
    """Connect to a port by what its keeper says now: by what it said before, we might wait behind another client."""
    listed = ports_of(port.vm, port.vm.inventory())
    same = (each for each in listed if (each.controller, each.number) == (port.controller, port.number))
    return open_free(next(same, port), force)
