"""An agent's way to the broker: output stored once and in order, answers, the bucket of owners, what was lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from typing import TYPE_CHECKING, Any, Final

from nats.errors import Error

from virtserial.fleet.protocol import AT, OWNERS, STREAM, is_inbox, write

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js.kv import KeyValue

    from virtserial.fleet.protocol import Place

log = logging.getLogger("virtserial.fleet")

STORE_TIME: Final = 3.0
"""Seconds after which a message that is not stored is sent again."""
RETRY: Final = 0.25


class Outlet:
    """
    Args:
        client: a connection.

    Attributes:
        agent: a word that is another each time an agent starts.
        newest: the highest sequence that is known to be stored.
        lost: bytes that the broker did not take in time.
    """

    def __init__(self, client: Client) -> None:
        self.agent = secrets.token_hex(6)
        self.newest = 0
        self.lost = 0
        self._client = client
        self._jetstream = client.jetstream(timeout=STORE_TIME)
        self._owners: KeyValue | None = None
        self._answers: set[asyncio.Task[None]] = set()
        self._losing: set[Place] = set()

    async def store(self, place: Place, piece: bytes, at: int) -> int:
        """Store output; try until it is stored, under one id; return its sequence."""
        headers = {AT: f"{self.agent} {at}", "Nats-Msg-Id": f"{self.agent}.{hash(place):x}.{at}"}
        subject = place.subject("out")
        while True:
            try:
                stored = await self._jetstream.publish(subject, piece, headers=dict(headers))
            except (Error, OSError, TimeoutError):
                await asyncio.sleep(RETRY)
                continue
            self.newest = max(self.newest, stored.seq)
            if place in self._losing:
                self._losing.discard(place)
                log.warning("the broker stores the output of '%s' again; %d bytes are lost in all", place, self.lost)
            return stored.seq

    async def last_sequence(self) -> int:
        """The newest sequence of the stream.

        Raises:
            nats.errors.Error: the broker does not say.
        """
        self.newest = (await self._jetstream.stream_info(STREAM)).state.last_seq
        return self.newest

    async def owners(self) -> KeyValue:
        """The bucket of owners.

        Raises:
            nats.errors.Error: it is not there.
        """
        self._owners = self._owners or await self._jetstream.key_value(OWNERS)
        return self._owners

    def answer(self, reply: str, value: dict[str, Any]) -> None:
        """Answer a request, at an inbox: elsewhere the agent's rights would serve whoever asks."""
        if is_inbox(reply):
            task = asyncio.create_task(self._answer(reply, value))
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)

    async def _answer(self, reply: str, value: dict[str, Any]) -> None:
        # If it is away, the client asks again; and a reply may be no subject.
        with contextlib.suppress(Error, ValueError):
            await self._client.publish(reply, write(value))

    def count_lost(self, place: Place, count: int) -> None:
        """Count bytes of output that nobody will get."""
        self.lost += count
        if place not in self._losing:
            self._losing.add(place)
            log.warning("the broker does not take the output of '%s' in time: bytes are lost, and counted", place)
