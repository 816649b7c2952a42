"""Messages of a stream, in order and each once, over lost connections and lost consumers."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from nats.errors import Error
from nats.errors import TimeoutError as NatsTimeout
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from virtserial.errors import PeerError

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

HEARTBEAT: Final = 2.0
"""Seconds after which the broker says that there is nothing new."""
SILENCE: Final = 3 * HEARTBEAT
"""Seconds without a word after which another consumer is made."""
RETRY: Final = 0.5
MAX_WAITING: Final = 8 << 20
"""Bytes that wait here; what comes beyond is read from the stream again."""


class Stored(NamedTuple):
    """A message of a stream.

    Attributes:
        sequence: in the stream.
        pending: how many more there are now.
    """

    subject: str
    headers: dict[str, str]
    data: bytes
    sequence: int
    pending: int


class Reader:
    """
    Args:
        client: a connection.
        stream: the stream's name.
        subject: which subjects are read.
        start: the first sequence; None: the last message of each subject, then what comes.
    """

    def __init__(self, client: Client, stream: str, subject: str, start: int | None = None) -> None:
        self._client = client
        self._stream, self._subject = stream, subject
        self._next = start
        self._subscription: Subscription | None = None
        self._delivered = 0
        self._heard = 0.0
        self.pending = 0

    async def start(self) -> None:
        """Begin to read; `pending` is how many messages there are by now.

        Raises:
            nats.errors.Error: there is no such stream, or no right to it.
        """
        await self.stop()
        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(inbox, pending_bytes_limit=MAX_WAITING, pending_msgs_limit=1 << 17)
        self._subscription = subscription
        config = ConsumerConfig(
            name=f"vs-{secrets.token_hex(8)}", deliver_subject=inbox, filter_subject=self._subject,
            deliver_policy=DeliverPolicy.LAST_PER_SUBJECT if self._next is None else DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self._next, ack_policy=AckPolicy.NONE, max_deliver=1, flow_control=True,
            idle_heartbeat=HEARTBEAT, inactive_threshold=30.0, num_replicas=1, mem_storage=True,
        )  # fmt: skip
        try:
            info = await self._client.jetstream().add_consumer(self._stream, config)
        except BaseException:
            await self.stop()
            raise
        self.pending = info.num_pending or 0
        self._delivered = 0
        self._heard = time.monotonic()

    async def stop(self) -> None:
        """End it; the broker forgets the consumer as nobody listens to it."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None and not self._client.is_closed:
            with contextlib.suppress(Error):
                await subscription.unsubscribe()

    async def next(self, seconds: float | None = None) -> Stored | None:
        """Return the next message, None if none comes in so many seconds.

        Raises:
            PeerError: the connection is closed for good.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            left = HEARTBEAT if deadline is None else min(deadline - time.monotonic(), HEARTBEAT)
            if left <= 0:
                return None
            if self._client.is_closed:
                raise PeerError("the connection to the broker is closed")
            if self._subscription is None:
                try:
                    await self.start()
                except (Error, OSError, TimeoutError):
                    await asyncio.sleep(min(RETRY, left))
                    continue
            assert self._subscription is not None
            try:
                message = await self._subscription.next_msg(left)
            except NatsTimeout:
                if time.monotonic() - self._heard > SILENCE:
                    await self.stop()
                continue
            except Error:
                await self.stop()
                await asyncio.sleep(min(RETRY, left))
                continue
            self._heard = time.monotonic()
            found = await self._take(message)
            if found is not None:
                return found

    async def _take(self, message: Msg) -> Stored | None:
        headers = message.headers or {}
        if headers.get("Status"):
            # Flow control wants an answer; a heartbeat says what we should have by now.
            reply = message.reply or headers.get("Nats-Consumer-Stalled")
            if reply:
                await self._client.publish(reply)
            elif int(headers.get("Nats-Last-Consumer", self._delivered)) != self._delivered:
                await self.stop()
            else:
                # The broker's count is too high when a message is replaced before it is delivered.
                self.pending = 0
            return None
        told = message.metadata
        if told.sequence.consumer != self._delivered + 1:
            await self.stop()
            return None
        self._delivered += 1
        self._next = told.sequence.stream + 1
        self.pending = told.num_pending
        return Stored(message.subject, headers, message.data, told.sequence.stream, told.num_pending)
