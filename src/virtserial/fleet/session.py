"""A client's session with a port of the fleet, between the broker and a local socket."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import secrets
import time
from typing import TYPE_CHECKING, Any, Final

from nats.errors import Error

from virtserial.errors import PeerError
from virtserial.fleet.operations import check
from virtserial.fleet.protocol import AT, KEEP, LEASE, NUMBER, PIECE, SESSION, STREAM, Place, document, write
from virtserial.fleet.reader import Reader, Stored
from virtserial.tasks import end_tasks

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from nats.aio.client import Client

ANSWER_TIME: Final = 5.0
"""Seconds for the answer to a request that a person waits for."""
BEGIN_TIME: Final = 30.0
"""Seconds for a broker whose servers start, or choose a leader."""
AGAIN: Final = 2.0
"""Seconds after which input that is not answered is sent again."""
RETRY: Final = 0.5
HISTORY: Final = 1 << 18
TAKEN_EVERY: Final = 16
"""Messages after which the agent is told that they are taken."""


class SessionEnded(PeerError):
    """The agent knows the session no more, or output is lost in it."""


class Session:
    """
    Args:
        client: a connection.
        place: the port.
        said: takes lines for people.
        only_watch: look at the output in the stream; the agent is asked for nothing.
        history: begin with the last HISTORY bytes that the stream keeps of the port.
    """

    def __init__(
        self, client: Client, place: Place, said: Callable[[str], None], only_watch: bool = False, history: bool = False
    ) -> None:
        self._client = client
        self._place = place
        self._said = said
        self._only_watch, self._history = only_watch, history
        self._name = secrets.token_hex(16)
        self._start = 1
        self._taken = 0
        self._told_taken = 0
        self._number = 0
        self._position: tuple[str, int] | None = None
        self._lost = 0
        self._guest_open: bool | None = None
        self.size: tuple[int, int] | None = None

    async def open(self, force: bool = False) -> None:
        """Begin it.

        Raises:
            ConfigError: the agent refuses: the port is busy, or gone; or the broker does not let it for BEGIN_TIME.
            PeerError: no agent answers.
        """
        if self._only_watch:
            return
        request = {"do": "open", "who": f"{getpass.getuser()}@{os.uname().nodename}", "force": force}
        deadline = time.monotonic() + BEGIN_TIME
        while True:
            answer = await self._ask(request, ANSWER_TIME)
            if answer.get("again") is not True or time.monotonic() > deadline:
                break
            await asyncio.sleep(RETRY)
        check(answer)
        try:
            self._start = int(answer["from"])
        except (KeyError, ValueError, TypeError) as error:
            raise PeerError(f"'{self._place}': the agent's answer makes no sense") from error
        self._taken = self._told_taken = self._start - 1
        if self._history:
            self._start = 1

    async def run(self, end: socket.socket) -> None:
        """Move bytes between the port and a socket, until either ends.

        Raises:
            SessionEnded: the agent ended it, or is gone; with what is doubtful.
        """
        tasks = [asyncio.create_task(self._output(end))]
        tasks.append(asyncio.create_task(self._hear(end) if self._only_watch else self._input(end)))
        if not self._only_watch:
            tasks.append(asyncio.create_task(self._keep()))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await end_tasks(*tasks)
            if not self._only_watch and not self._client.is_closed:
                with contextlib.suppress(Error):
                    await self._publish("ctl", write({"do": "close"}))

    # Output

    async def _output(self, end: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        newest = await self._newest() if self._history else ("", 0)
        reader = Reader(self._client, STREAM, self._place.subject("out"), self._start)
        try:
            while True:
                message = await reader.next()
                assert message is not None
                if _is_older(message, *newest):
                    continue
                if self._is_new(message.headers.get(AT, ""), len(message.data)):
                    try:
                        await loop.sock_sendall(end, message.data)
                    except OSError:
                        return
                self._taken = max(self._taken, message.sequence)
                if not self._only_watch and self._taken - self._told_taken >= TAKEN_EVERY:
                    self._told_taken = self._taken
                    await self._publish("ctl", write({"do": "keep", "taken": self._taken}))
        finally:
            await reader.stop()

    async def _newest(self) -> tuple[str, int]:
        """The agent that has stored the newest output, and where that ends; "" if there is none."""
        reader = Reader(self._client, STREAM, self._place.subject("out"))
        try:
            await reader.start()
            message = await reader.next(ANSWER_TIME) if reader.pending else None
        except Error:
            message = None
        finally:
            await reader.stop()
        return _end_of(message) if message is not None else ("", 0)

    def _is_new(self, at: str, size: int) -> bool:
        """Say what is missing before a message, by the positions that the agent counts; whether it was not here before.

        A broker that lost its servers while it stored a message may store it twice.
        """
        agent, _, offset = at.partition(" ")
        if not (offset.isascii() and offset.isdigit() and len(offset) < 20):
            return True
        start = int(offset)
        if self._position is not None:
            before, expected = self._position
            if before != agent:
                self._said("the host's agent has started again: what the guest said in between is not here")
            elif start > expected:
                self._lost += start - expected
                self._said(f"{start - expected} bytes of output are lost")
            elif start + size <= expected:
                return False
        self._position = agent, start + size
        return True

    # Input

    async def _hear(self, end: socket.socket) -> None:
        """Wait for the end of a socket whose input goes nowhere."""
        while await asyncio.get_running_loop().sock_recv(end, PIECE):
            pass

    async def _input(self, end: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await loop.sock_recv(end, PIECE)
            except OSError:
                return
            if not data:
                return
            self._number += 1
            await self._deliver(data)

    async def _deliver(self, data: bytes) -> None:
        """Send input until it is answered; the agent writes it once."""
        subject = self._place.subject("in")
        while True:
            headers = {SESSION: self._name, NUMBER: str(self._number)}
            try:
                message = await self._client.request(subject, data, timeout=AGAIN, headers=headers)
            except (Error, OSError, TimeoutError):
                if self._client.is_closed:
                    raise SessionEnded("the connection to the broker is closed") from None
                await asyncio.sleep(0.1)
                continue
            answer = document(message.data)
            if "error" in answer:
                raise SessionEnded(f"{answer['error']}; of the last {len(data)} bytes of input nobody knows")
            return

    # The session

    async def _keep(self) -> None:
        heard = time.monotonic()
        size = None
        while True:
            request: dict[str, Any] = {"do": "keep", "taken": self._taken}
            if self.size != size and self.size is not None:
                request["size"] = list(self.size)
            self._told_taken = self._taken
            try:
                answer = await self._ask(request, KEEP)
                size = self.size if "size" in request else size
                heard = time.monotonic()
            except PeerError:
                if time.monotonic() - heard > 2 * LEASE:
                    raise SessionEnded("the host's agent does not answer any more") from None
                continue
            if "error" in answer:
                raise SessionEnded(str(answer["error"]))
            self._tell(answer)
            await self._until_resized(size)

    async def _until_resized(self, size: tuple[int, int] | None) -> None:
        for _ in range(int(KEEP / 0.1)):
            if self.size != size or self._taken - self._told_taken >= TAKEN_EVERY:
                return
            await asyncio.sleep(0.1)

    def _tell(self, answer: dict[str, Any]) -> None:
        is_open = answer.get("guest_open")
        if isinstance(is_open, bool):
            if self._guest_open is not None and is_open != self._guest_open:
                self._said("the guest has opened the port" if is_open else "the guest has closed the port")
            self._guest_open = is_open

    async def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        return await ask(self._client, self._place.subject("ctl"), request, seconds, {SESSION: self._name})

    async def _publish(self, verb: str, data: bytes) -> None:
        await self._client.publish(self._place.subject(verb), data, headers={SESSION: self._name})


def _end_of(message: Stored) -> tuple[str, int]:
    """Which agent has stored a message, and where its bytes end."""
    agent, _, offset = message.headers.get(AT, "").partition(" ")
    return agent, (int(offset) if offset.isascii() and offset.isdigit() and len(offset) < 20 else 0) + len(message.data)


def _is_older(message: Stored, agent: str, end: int) -> bool:
    """Whether a message ends more than HISTORY bytes before the newest one's end."""
    its_agent, its_end = _end_of(message)
    return (its_end if its_agent == agent else 0) < end - HISTORY


async def ask(
    client: Client, subject: str, request: dict[str, Any], seconds: float, headers: dict[str, str] | None = None
) -> dict[str, Any]:
    """Ask an agent; return its answer.

    Raises:
        PeerError: none answers in so many seconds, or we have no right to ask.
    """
    try:
        message = await client.request(subject, write(request), timeout=seconds, headers=headers)
    except (Error, OSError, TimeoutError) as error:
        what = str(error).removeprefix("nats: ") or "no answer"
        await asyncio.sleep(RETRY)
        raise PeerError(f"the host's agent does not answer ({what}): it is away, or we may not do this") from error
    return document(message.data)
