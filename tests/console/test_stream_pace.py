"""Streams from the host: when the device leaves the host's end alone, and when it looks for returned buffers itself."""

import pytest
from support.console_guest import CONTROL_RX, CONTROL_TX, FEATURES, LIVE, FakeHost, Guest

from virtserial.console.port import TURN_BYTES
from virtserial.console.stream_pace import HOLD_MOST, LOOK_AGAIN, STARVED_LOOKS

RECEIVEQ, TRANSMITQ = 4, 5
BUFFER = 4096


class HoldingHost(FakeHost):
    """A host end that can keep still."""

    held = False

    def report_end(self):
        pass

    def hold_input(self):
        self.held = True
        return True

    def wait_readable(self):
        self.held = False
        return False

    def fill(self, count):
        """More input of which nobody is told."""
        self.input += bytes(count)


@pytest.fixture
def streaming():
    """A guest with EVENT_IDX and 64 receive buffers, whose port is open; the host has filled 40 of them."""
    guest = Guest(event_idx=True, size=8 << 20)
    host = HoldingHost()
    guest.plug(1, host)
    guest.negotiate(FEATURES)
    guest.enable(CONTROL_RX, CONTROL_TX, TRANSMITQ)
    guest.enable(RECEIVEQ, size=64)
    guest.device.set_status(LIVE)
    guest.post(RECEIVEQ, *[BUFFER] * 64)
    guest.open(1)
    guest.pause = 0
    host.feed(bytes(40 * BUFFER))
    guest.run()
    yield guest, host
    guest.close()


def test_a_streaming_host_is_left_alone_while_the_driver_has_most_of_the_ring_to_look_at(streaming):
    guest, host = streaming
    assert not host.held
    host.feed(bytes(10 * BUFFER))
    guest.run()
    assert not host.held, "half of the ring is not most of it"
    host.feed(bytes(5 * BUFFER))
    guest.run()
    assert host.held
    host.fill(BUFFER)
    guest.scheduler.advance(HOLD_MOST)
    assert guest.rings[RECEIVEQ].used_idx == 56, "the device looks again by itself"


def test_a_driver_that_has_seen_its_buffers_is_not_kept_waiting(streaming):
    guest, host = streaming
    host.feed(bytes(15 * BUFFER))
    guest.run()
    host.feed(bytes(4 * BUFFER))
    guest.run()
    assert host.held
    guest.received(RECEIVEQ)
    guest.rings[RECEIVEQ].set_used_event(guest.rings[RECEIVEQ].used_idx)
    guest.post(RECEIVEQ, *[BUFFER] * 59)
    host.feed(bytes(5 * BUFFER))
    guest.run()
    assert not host.held


def test_a_small_message_is_never_held(streaming):
    guest, host = streaming
    host.feed(bytes(16 * BUFFER))
    guest.run()
    host.feed(b"small")
    guest.run()
    assert not host.held


def test_returned_buffers_of_a_stream_are_found_without_a_doorbell(streaming):
    guest, host = streaming
    ring = guest.rings[RECEIVEQ]
    host.feed(bytes(60 * BUFFER))
    guest.run()
    assert ring.used_idx == 64
    for _ in range(10):
        ring.add(writable=[BUFFER])
    assert not ring.wants_bell()
    guest.scheduler.advance(STARVED_LOOKS[0])
    assert ring.used_idx == 74


def test_a_driver_that_returns_nothing_for_a_while_is_asked_for_a_doorbell(streaming):
    guest, host = streaming
    ring = guest.rings[RECEIVEQ]
    host.feed(bytes(60 * BUFFER))
    guest.run()
    guest.scheduler.advance(sum(STARVED_LOOKS) + 0.001)
    asked = []
    for _ in range(17):
        ring.add(writable=[BUFFER])
        asked.append(ring.wants_bell())
    assert asked == [False] * 16 + [True], "half of its largest batch"
    guest.device.notify(RECEIVEQ)
    guest.run()
    assert ring.used_idx == 81


def test_a_driver_that_waits_for_a_batch_of_its_own_is_interrupted_at_once(streaming):
    guest, _ = streaming
    ring = guest.rings[TRANSMITQ]
    guest.send(TRANSMITQ, *[bytes(64)] * 4)
    guest.interrupts.queues.clear()
    ring.set_used_event(ring.used_idx + 3)
    guest.send(TRANSMITQ, *[bytes(64)] * 3)
    guest.scheduler.advance(LOOK_AGAIN)
    assert guest.interrupts.queues == []
    for _ in range(5):
        ring.add([bytes(64)])
    ring.set_used_event(ring.used_idx + 3)
    guest.scheduler.advance(LOOK_AGAIN)
    assert guest.interrupts.queues == [TRANSMITQ]


def test_a_driver_that_wants_to_hear_of_every_chain_of_a_stream_is_not(streaming):
    guest, _ = streaming
    ring = guest.rings[TRANSMITQ]
    guest.send(TRANSMITQ, *[bytes(64)] * 4)
    guest.interrupts.queues.clear()
    ring.set_used_event(ring.used_idx)
    for _ in range(5):
        ring.add([bytes(64)])
    guest.scheduler.advance(LOOK_AGAIN)
    assert ring.used_idx == 9
    assert guest.interrupts.queues == []


def test_a_turn_that_used_up_its_bytes_goes_on_at_once(streaming):
    guest, host = streaming
    size = TURN_BYTES // 4
    for _ in range(6):
        guest.rings[TRANSMITQ].add([bytes(1)])
    table = guest.rings[TRANSMITQ]
    for index in range(6):
        table.describe(index, guest.memory.buffer(b"x"), size)
    guest.device.notify(TRANSMITQ)
    guest.run()
    assert len(host.taken) == 6 * size


def test_a_late_look_for_returned_buffers_is_overtaken_by_a_doorbell(streaming):
    """On a busy machine a moment takes long; half of a batch is worth a doorbell."""
    guest, host = streaming
    ring = guest.rings[RECEIVEQ]
    host.feed(bytes(60 * BUFFER))
    guest.run()
    asked = []
    for _ in range(17):
        ring.add(writable=[BUFFER])
        asked.append(ring.wants_bell())
    assert asked == [False] * 16 + [True]


def send_alone(guest, size):
    """Send one message and wait until it is used: seconds."""
    ring, started = guest.rings[TRANSMITQ], guest.scheduler.now()
    used = ring.used_idx
    ring.add([bytes(size)])
    if ring.wants_bell():
        guest.device.notify_alone(TRANSMITQ)
        guest.scheduler.run()
    while ring.used_idx == used:
        guest.scheduler.advance(0.00001)
    return guest.scheduler.now() - started


@pytest.mark.parametrize("size", [100, 4096])
def test_a_sender_that_waits_for_each_chain_seldom_waits_for_a_timer(streaming, size):
    guest, _ = streaming
    waited = [send_alone(guest, size) for _ in range(400)]
    assert sum(wait > 0 for wait in waited) <= 12
    assert sum(waited[200:]) / 200 < 0.00001


def test_a_stream_is_found_behind_messages_that_were_waited_for(streaming):
    guest, _ = streaming
    ring = guest.rings[TRANSMITQ]
    for _ in range(200):
        send_alone(guest, 4096)
    bells = 0
    for _ in range(400):
        ring.add([bytes(4096)])
        if ring.wants_bell():
            bells += 1
            guest.device.notify_alone(TRANSMITQ)
        guest.scheduler.advance(0.00003)
    assert bells < 100


def test_a_driver_that_waits_for_the_interrupt_of_each_long_message_soon_has_it_at_once(streaming):
    guest, _ = streaming
    ring = guest.rings[TRANSMITQ]
    waited = []
    for _ in range(200):
        guest.interrupts.queues.clear()
        ring.set_used_event(ring.used_idx)
        ring.add([bytes(4096)])
        started = guest.scheduler.now()
        if ring.wants_bell():
            guest.device.notify_alone(TRANSMITQ)
            guest.scheduler.run()
        while TRANSMITQ not in guest.interrupts.queues:
            guest.scheduler.advance(0.00001)
        waited.append(guest.scheduler.now() - started)
    assert sum(waited[100:]) / 100 < 0.00003
