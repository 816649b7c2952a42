"""One port of the device: the way of a byte between its two queues and its host end.

Guest to host: as many waiting chains as the budget allows become one list of views and one write; what was taken is
returned to the driver.  A chain that was taken in part stays first, with an offset.  Host to guest: as many posted
buffers as the budget allows are filled by one read.  Back-pressure is the absence of reading, on both ways.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

from virtserial.accounting import Ledger
from virtserial.console.lane import RECEIVE, STREAM_WINDOW, TRANSMIT, Lane
from virtserial.console.moderation import DIALOGUE_QUIET, SIGNAL_QUIET
from virtserial.console.records import GUEST_OPEN, RECEIVED, TRANSMITTED
from virtserial.console.stream_pace import STREAM_CHAIN, ReceivePace, TransmitPace
from virtserial.console.throttling import throttling_began, throttling_ended
from virtserial.errors import BackendError, StateError, VirtserialError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.console.moderation import Moderation
    from virtserial.console.records import PortRecord
    from virtserial.console.seams import HostEnd, PortOwner
    from virtserial.virtio.queue import Virtqueue
    from virtserial.virtio.ring.chains import ChainBatch
    from virtserial.virtio.ring.device_ring import DeviceRing

TURN_CHAINS = 256
"""Chains a port may use in one turn and direction."""
TURN_BYTES = 1 << 20
"""Bytes a port may move in one turn and direction: larger batches are no faster and keep others waiting."""
MESSAGE_BYTES = 64 << 10
"""Bytes a port may give the guest in one turn by messages: as much as the VMM's socket has room for."""
CONSOLE_BUFFER = 64 << 10
"""Bytes of console output kept while its host end cannot take them; the rest is dropped and counted."""


class Port(Lane):
    """A port that is plugged in.

    Args:
        owner: the device.
        number: its number there.
        record: the number's place in state memory.
        queues: receiveq and transmitq.
        moderation: holds interrupts and looks of all ports of the device.
        name: what the guest sees in sysfs; None for no name.
        is_console: a console (hvc) port; it never makes the guest wait.
        has_backend: a chardev belongs to it, whether connected or not.

    Attributes:
        plugged: False once it is unplugged: the next port of its number has the queues then.
        host: its host end, None without one.
        work: TRANSMIT and RECEIVE, what its next turn looks at; 0: it has asked for none.
        throttled: the host end takes nothing more at the moment.
        backlog: console output that the host end could not take yet.
        misdirected: chains with descriptors of the wrong direction; what those hold is neither read nor written.
    """

    def __init__(
        self,
        owner: PortOwner,
        number: int,
        record: PortRecord,
        queues: tuple[Virtqueue, Virtqueue],
        moderation: Moderation,
        *,
        name: str | None = None,
        is_console: bool = False,
        has_backend: bool = False,
    ) -> None:
        self._owner = owner
        self.number = number
        self.record = record
        self.queues = self.receiveq, self.transmitq = queues
        self._moderation = moderation
        self.name = name
        self.is_console = is_console
        self.has_backend = has_backend
        self.chardev: str | None = None
        self.cols = self.rows = 0
        self.plugged = True
        self.host: HostEnd | None = None
        self.work = 0
        self.throttled = False
        self.backlog = bytearray()
        self.misdirected = 0
        self._window = 1  # Looking at a buffer costs time: look at as many as were last needed.
        self._transmit_pace = TransmitPace()
        self._receive_pace = ReceivePace()
        self._receive_key = Ledger.key(owner.controller, self.receiveq.index)
        self._transmit_key = Ledger.key(owner.controller, self.transmitq.index)
        self._open_at = (record.base + GUEST_OPEN) >> 1
        self._transmitted_at = (record.base + TRANSMITTED) >> 3
        self._received_at = (record.base + RECEIVED) >> 3

    restored_backlog = b""
    """A saved state's, while there is no host end to keep it."""

    # State

    @property
    def guest_open(self) -> bool:
        """Whether the guest has the port open."""
        return bool(self.record.guest_open)

    @property
    def host_open(self) -> bool:
        """Whether the driver is to believe that the host's end is open.  A console's is, if it has a back end."""
        return self.has_backend if self.is_console else self.host is not None and self.host.connected

    def set_guest_open(self, is_open: bool) -> None:
        """The driver opened or closed its side."""
        if bool(self.record.guest_open) == is_open:
            return
        self.record.guest_open = is_open
        host = self.host
        if is_open:
            self._owner.guest_opened(self.number)
            self.schedule(RECEIVE)
        if host is not None:
            host.wants_input = is_open
            if is_open:
                host.guest_opened()
            else:
                host.guest_closed()
        self._owner.port_events.guest_open_changed(self.number, is_open)

    def stop(self) -> None:
        """The device was reset or failed: what the driver said is void, what it queued is not ours any more."""
        self._flows()
        self._receive_pace.reset()
        self.work = 0
        self.set_guest_open(False)

    # The host's end

    def attach(self, host: HostEnd) -> None:
        """Join a host end."""
        self._flows()  # A predecessor may have been killed while it was throttled.
        self.host = host
        host.listener = self
        host.wants_input = self.guest_open
        if self.restored_backlog:
            self.restore_backlog(self.restored_backlog)
        host.start()
        if self.record.ready:
            host.guest_ready()
        if self.guest_open:
            host.guest_opened()

    def restore_backlog(self, backlog: bytes) -> None:
        """Give the host end, or the next one, what another device of this guest has kept for late clients."""
        self.restored_backlog = b"" if self.host is not None else backlog
        if self.host is not None:
            self.host.restore_backlog(backlog)

    def detach(self) -> None:
        """Let go of the host end without closing it; the driver is told that nobody is there."""
        if self.host is not None:
            was_open = self.host.connected
            self.host = None
            if was_open:
                self._host_gone()

    def host_opened(self) -> None:
        """The host's end was opened: tell the driver, move what waits."""
        if not self.is_console:
            self._owner.host_open_changed(self.number)
        self.schedule(TRANSMIT | RECEIVE)

    def host_closed(self) -> None:
        """The host's end was closed (by the other side, or because it failed)."""
        host = self.host
        if host is None:
            return
        self.record.discarded += host.output_discarded
        self.record.dropped += host.input_discarded
        host.output_discarded = host.input_discarded = 0
        if host.ended:
            self.host = None
            host.close()
        self._host_gone()
        if host.ended:
            self._owner.port_events.host_end_closed(self.number)

    def _host_failed(self, error: BackendError) -> None:
        self._owner.port_events.host_end_failed(self.number, error)
        self.host_closed()

    def _host_gone(self) -> None:
        self._flows()
        self.record.dropped += len(self.backlog)
        self.backlog.clear()
        if not self.is_console:
            self._owner.host_open_changed(self.number)
        # What was half sent and what the transmitq holds has no reader any more; every chain goes back to the driver.
        self.schedule(TRANSMIT)

    def host_writable(self) -> None:
        """The host end takes bytes again."""
        self._flows()
        self.schedule(TRANSMIT)

    def _flows(self) -> None:
        self.throttled = False
        throttling_ended(self.record, self._owner.now())

    # Work

    def driver_ready(self) -> None:
        """The driver has said PORT_READY."""
        self.record.ready = 1
        # It knows nothing yet of the host's end of this port.
        self.record.told_open = 0
        if self.host is not None:
            self.host.guest_ready()

    def turn(self) -> None:
        """Do a bounded amount of what there is to do; what remains is scheduled again.

        Raises:
            DriverError: the driver broke a rule of the virtqueue.
        """
        work, self.work = self.work, 0
        if work & TRANSMIT and self._transmit():
            self.schedule(TRANSMIT)
        if work & RECEIVE and (self._owner.input_waits or self._receive()):
            self.schedule(RECEIVE)

    def _transmit(self) -> bool:
        """Guest to host.  Returns whether there is more to do now."""
        if self.throttled:
            return False
        queue, moderation = self.transmitq, self._moderation
        ring, pace = queue.ring, self._transmit_pace
        batch = ring.readable_chains(self._owner.turn_chains(pace.are_short), TURN_BYTES)
        heads, ends = batch.heads, batch.ends
        if not heads:
            if self.backlog:
                self._write(())
            return ring.arm()
        if self._listens_first():
            return True
        offset = ring.offset
        pace.are_short = ends[-1] - offset < len(heads) * STREAM_CHAIN
        host = self.host
        if host is None or not host.connected:
            done = ends[-1]
            self.record.discarded += done - offset
            if host is not None and self.is_console:
                host.log_unconnected(batch.views)
            count, partial_bytes = len(heads), 0
            ring.give_back(heads)
        else:
            ledger = self._owner.ledger
            exact = host.exact and ring.mapped and not self.backlog
            ledger.begin_write(self._transmit_key, ring.position, exact)
            try:
                taken = self._write(batch.views)
                count, partial_bytes = self._return_sent(batch, offset, taken)
            finally:
                ledger.end()
            done = offset + taken
            if taken and done < ends[-1] and host.connected:
                self.throttled = host.wait_writable()
        self.misdirected += batch.odd
        ring = queue.ring  # A reset in the middle has taken it away.
        size = queue.size
        if self.throttled or done >= TURN_BYTES or partial_bytes or (waiting := ring.waiting()) >= size >> 2:
            moderation.chains_returned(queue)
            if self.throttled:
                queue.ring.disarm()
                throttling_began(self.record, self._owner.now())
            return not self.throttled
        if not pace.is_stream(count, done, self.record.state.u64[self._received_at], waiting):
            quiet = DIALOGUE_QUIET if done < STREAM_CHAIN and not waiting else SIGNAL_QUIET
            moderation.chains_returned(queue, lone=not waiting, quiet=quiet)
            return queue.ring.arm()
        pause = pace.looked(count, done, size)
        moderation.chains_returned(queue, quiet=pause + SIGNAL_QUIET)
        queue.ring.disarm()
        moderation.look_again(self._look, pause)
        return False

    def _return_sent(self, batch: ChainBatch, offset: int, taken: int) -> tuple[int, int]:
        """The host end took `taken` bytes: return chains to the driver, and (how many, bytes of the next one)."""
        heads, ends = batch.heads, batch.ends
        done = offset + taken
        if done >= ends[-1]:
            count, partial_bytes = len(heads), 0
        else:
            count = bisect_right(ends, done)
            partial_bytes = done - ends[count - 1] if count else done
            heads = heads[:count]
        self.transmitq.ring.give_back(heads, None, partial_bytes)
        self.record.state.u64[self._transmitted_at] += taken
        return count, partial_bytes

    def _write(self, views: Sequence[memoryview]) -> int:
        """Give bytes to the host end; return how many are off the guest's hands."""
        host = self.host
        assert host is not None
        try:
            if self.is_console:
                return self._write_console(host, views)
            if not views:
                return 0
            taken = host.writev(views)
        except BackendError as error:
            self._host_failed(error)
            return 0
        self.throttled = not taken and host.connected
        return taken

    def _write_console(self, host: HostEnd, views: Sequence[memoryview]) -> int:
        """A console takes everything at once: a guest kernel that prints must not hang."""
        backlog = self.backlog
        self._flush(host)
        size = sum(map(len, views))
        taken = 0 if backlog or not size else host.writev(views)
        if taken < size:
            kept = len(backlog)
            for view, end in zip(views, accumulate(map(len, views)), strict=True):
                if host.connected and end > taken and len(backlog) < CONSOLE_BUFFER:
                    start = max(0, len(view) - (end - taken))
                    backlog += view[start : start + CONSOLE_BUFFER - len(backlog)]
            self.record.dropped += size - taken - (len(backlog) - kept)
            if taken:
                self._flush(host)
        return size

    def _flush(self, host: HostEnd) -> None:
        """Give the host end what was kept until it has said that it would block."""
        backlog = self.backlog
        while backlog:
            with memoryview(bytes(backlog)) as waiting:
                taken = host.writev([waiting])
            if not taken:
                return
            del backlog[:taken]

    def write_emergency(self, byte: bytes) -> None:
        """Give one byte of an emergency write to the host end, at once or not at all."""
        self._write((memoryview(byte),))

    def _receive(self) -> bool:
        """Host to guest.  Returns whether there is more to do now."""
        host = self.host
        queue, owner = self.receiveq, self._owner
        is_open = self.record.state.u16[self._open_at]
        if host is None or not host.connected or not is_open:
            return False
        if owner.told_at and not owner.hosts_are_heard(self._look_for_input):
            return False
        ring = queue.ring
        batch = ring.writable_chains(self._window, TURN_BYTES if ring.mapped else MESSAGE_BYTES)
        heads, ends = batch.heads, batch.ends
        if not heads:
            return self._wait_for_buffers(ring)
        size = ends[-1]
        unseen = ring.unseen()
        exact = host.exact and ring.mapped and not batch.bounces
        owner.ledger.begin_read(self._receive_key, ring.position, exact)
        try:
            count = host.readv(batch.views) if size else 0
            used = self._return_filled(batch, count) if count else 0
        except BackendError as error:
            self._host_failed(error)
            return False
        finally:
            owner.ledger.end()
        if not count:
            if not ends[0]:
                # No room in it at all: not a receive buffer; it goes back as it came.
                ring.give_back(heads[:1], [0])
                self.misdirected += 1
                owner.signal(queue)
                return True
            host.report_end()
            return False
        self._receive_pace.filled(used)
        self.misdirected += batch.odd
        owner.signal(queue)
        if count == size:
            self._window = min(max(self._window * 4, STREAM_WINDOW), owner.turn_chains(False))
            return host.readable
        self._window = 1 if count < ends[0] else max(used + (used >> 3) + 2, 8)
        moment = self._receive_pace.moment(count, unseen, queue.size)
        if moment and host.hold_input():
            self._moderation.look_again(self._look_for_input, moment)
            return False
        if host.wait_readable():
            return False
        host.report_end()
        return True

    def _wait_for_buffers(self, ring: DeviceRing) -> bool:
        """The receiveq is empty: look again soon, or ask for a doorbell."""
        pace = self._receive_pace
        pause = pace.starved()
        if not pause:
            return ring.arm(pace.take_batch())
        # A doorbell at half of them: the look may come late, on a busy machine.
        ring.disarm(pace.batch)
        self._moderation.look_again(self._look_for_input, pause)
        return False

    def _return_filled(self, batch: ChainBatch, count: int) -> int:
        """Buffers hold `count` bytes of the host end: return them to the driver, and how many they are."""
        ring, lengths = self.receiveq.ring, batch.lengths(count)
        used = len(lengths)
        try:
            if batch.bounces:
                ring.store(batch, count)
            ring.give_back(batch.heads[:used], lengths)
        except VirtserialError:
            self.record.dropped += count
            raise
        self.record.state.u64[self._received_at] += count
        return used

    # After a predecessor that was killed

    def finish_transmit(self, moved: int) -> None:
        """A predecessor had given the host end `moved` bytes of the next batch when it was killed.

        Raises:
            StateError: there are not so many bytes in the queue.
        """
        ring = self.transmitq.ring
        batch, offset = ring.readable_chains(TURN_CHAINS, TURN_BYTES), ring.offset
        if not batch.heads or moved > batch.ends[-1] - offset:
            raise StateError(f"{moved} bytes were sent to the host, the queue has less")
        self._return_sent(batch, offset, moved)

    def finish_receive(self, moved: int) -> None:
        """A predecessor had filled buffers with `moved` bytes of the host end when it was killed.

        Raises:
            StateError: the buffers that are posted do not hold so many.
        """
        batch = self.receiveq.ring.writable_chains(TURN_CHAINS, TURN_BYTES)
        if not batch.heads or moved > batch.ends[-1]:
            raise StateError(f"{moved} bytes were received from the host, the buffers of the queue hold less")
        self._return_filled(batch, moved)
