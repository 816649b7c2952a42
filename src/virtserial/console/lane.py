"""The lane: the short way of one small message between a queue and a host end, without a place in the turns.

A dialogue is single messages, and what each costs is waking up and the calls of Python from the event to the one system
call that moves it.  So a message that is alone is moved where the event is told of, chain by chain without lists; for
everything else the lane asks for a turn (port.py), which does the same in general:

| the lane is open while | because |
|---|---|
| the loop has this one event, and nothing else waits (`Turns.at_once`) | turns are for those who share time |
| one doorbell came, and one chain waits (`DeviceRing.lone_message`) | with more, one `writev` for all is cheaper |
| the message is shorter than STREAM_CHAIN | a longer one may be a part of a stream, which has a pace (stream_pace.py) |
| the last input did not fill a buffer (`_window`) | where more comes, one `readv` fills many |
| the guest has the port open | what it wrote before waits for that message (`_listens_first`) |
| the chain is one mapped buffer | anything else needs a walk, or messages to the VMM |

What a kill leaves is as it is of a turn: the ledger has a note before the system call, the chain goes back behind it,
and `record.progress` is the commit point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from virtserial.console.moderation import DIALOGUE_QUIET
from virtserial.console.stream_pace import LOOK_AGAIN, STREAM_CHAIN
from virtserial.errors import BackendError

if TYPE_CHECKING:
    from virtserial.console.moderation import Moderation
    from virtserial.console.records import PortRecord
    from virtserial.console.seams import HostEnd, PortOwner
    from virtserial.console.stream_pace import TransmitPace
    from virtserial.virtio.queue import Virtqueue

# Work a port is scheduled for.
TRANSMIT: Final = 1
RECEIVE: Final = 2

STREAM_WINDOW: Final = 32
"""Receive buffers to look at once input has filled one: there is probably more."""


class Lane:
    """The part of a port that serves single messages, and asks for turns; `port.Port` documents the attributes."""

    _owner: PortOwner
    _moderation: Moderation
    _transmit_pace: TransmitPace
    _receive_key: int
    _transmit_key: int
    _open_at: int
    _transmitted_at: int
    _received_at: int
    _window: int
    record: PortRecord
    queues: tuple[Virtqueue, Virtqueue]
    receiveq: Virtqueue
    transmitq: Virtqueue
    host: HostEnd | None
    work: int
    is_console: bool
    plugged: bool
    throttled: bool
    backlog: bytearray
    _listened = False

    def schedule(self, work: int) -> None:
        """Ask for a turn that looks at TRANSMIT, RECEIVE or both, unless the port is unplugged."""
        if not self.plugged:
            return
        if not self.work:
            self._owner.schedule(self)
        self.work |= work

    def schedule_all(self) -> None:
        self.schedule(TRANSMIT | RECEIVE)

    def _look(self) -> None:
        self.schedule(TRANSMIT)

    def _look_for_input(self) -> None:
        self.schedule(RECEIVE)

    def forget_work(self) -> None:
        self.work = 0

    def turn(self) -> None:
        """Do a bounded amount of what there is to do."""
        raise NotImplementedError

    def _write_console(self, host: HostEnd, views: tuple[memoryview]) -> int:
        """Give what a console prints to the host end, or keep it."""
        raise NotImplementedError

    def _host_failed(self, error: BackendError) -> None:
        """The host end has failed."""
        raise NotImplementedError

    def _listens_first(self) -> bool:
        """Chains wait: whether they wait for one turn of the control queues, because the guest has the port closed.

        A driver opens a port before it writes there, but on another queue: we may see the chain first.
        """
        self._listened = not self.record.guest_open and not self._listened
        if self._listened:
            self._owner.listen_first()
        return self._listened

    def message_sent(self) -> None:
        """The driver has rung for the transmitq, and for nothing else."""
        if self.work or not self._owner.at_once(self, self._transmit_message):
            self.schedule(TRANSMIT)

    def host_readable(self) -> None:
        """The host end has bytes."""
        if self.work or not self._owner.at_once(self, self._receive_message):
            self.schedule(RECEIVE)

    def _transmit_message(self) -> None:
        host, ring, registers = self.host, self.transmitq.ring, self.record.state
        is_open = registers.u16[self._open_at]
        if not is_open or self.throttled or self.backlog or host is None or not host.connected:
            self.schedule(TRANSMIT)
            return
        message = ring.lone_message(STREAM_CHAIN - 1)
        if message is None:
            self.schedule(TRANSMIT)
            return
        ledger = self._owner.ledger
        ledger.begin_write(self._transmit_key, ring.position, host.exact)
        try:
            views = (message,)
            taken = self._write_console(host, views) if self.is_console else host.writev(views)
            if taken == message.nbytes:
                self.transmitq.ring.give_back_one(0)
            elif taken:
                self.transmitq.ring.give_back((), None, taken)
            registers.u64[self._transmitted_at] += taken
        except BackendError as error:
            self._host_failed(error)
            taken = 0
        finally:
            ledger.end()
        if taken < message.nbytes:
            # A turn finds out what is to be done: the host end has no room, or was closed.
            self.throttled = False
            self.schedule(TRANSMIT)
            return
        self._transmit_pace.pause = LOOK_AGAIN
        if ring.arm():
            self._moderation.chains_returned(self.transmitq)
            self.schedule(TRANSMIT)
        else:
            self._moderation.chains_returned(self.transmitq, True, DIALOGUE_QUIET)

    def _receive_message(self) -> None:
        host, ring, registers = self.host, self.receiveq.ring, self.record.state
        is_open = registers.u16[self._open_at]
        if self._window > 1 or host is None or not host.connected or not is_open or self._owner.told_at:
            self.schedule(RECEIVE)
            return
        buffer = ring.next_buffer()
        if buffer is None:
            self.schedule(RECEIVE)
            return
        ledger = self._owner.ledger
        ledger.begin_read(self._receive_key, ring.position, host.exact)
        try:
            count = host.readv((buffer,))
            if count:
                self.receiveq.ring.give_back_one(count)
                registers.u64[self._received_at] += count
        except BackendError as error:
            self._host_failed(error)
            return
        finally:
            ledger.end()
        if not count:
            host.report_end()
            return
        self._owner.signal(self.receiveq)
        if count == buffer.nbytes:
            self._window = STREAM_WINDOW
        if not host.wait_readable():
            host.report_end()
            self.schedule(RECEIVE)
