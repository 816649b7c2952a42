"""Single messages in the lane: moved where they are told of, without a turn, and exactly as a turn would."""

import pytest
from support.console_guest import FakeHost, Guest

from virtserial.accounting import READ, WRITE, Ledger
from virtserial.console.lane import STREAM_WINDOW
from virtserial.console.stream_pace import STREAM_CHAIN

RECEIVEQ, TRANSMITQ = 4, 5


class WaitingHost(FakeHost):
    """A host end that tells when there is more, or room."""

    def wait_readable(self):
        self.readable = False
        return True


@pytest.fixture(params=[False, True], ids=["flags", "event_idx"])
def dialogue(request):
    """A guest whose port is open, with four receive buffers; a message has gone each way."""
    guest = Guest(event_idx=request.param)
    host = WaitingHost()
    guest.plug(1, host)
    guest.start()
    guest.open(1)
    guest.heard()
    guest.post(RECEIVEQ, 100, 100, 100, 100)
    guest.send(TRANSMITQ, b"hello")
    host.feed(b"hello")
    guest.run()
    for ring in (guest.rings[RECEIVEQ], guest.rings[TRANSMITQ]):
        ring.harvest()
        ring.set_used_event(ring.used_idx)
    guest.scheduler.advance(1)
    del host.taken[:]
    turns = guest.turns = []
    guest.scheduler.add_turn = turns.append
    yield guest, host
    guest.close()


def send(guest, *chains):
    for chain in chains:
        guest.rings[TRANSMITQ].add([chain])
    guest.device.notify_alone(TRANSMITQ)


def test_a_message_to_the_host_takes_no_turn(dialogue):
    guest, host = dialogue
    send(guest, b"question")
    assert host.taken == b"question"
    assert guest.turns == []
    assert [used.length for used in guest.rings[TRANSMITQ].harvest()] == [0]
    assert guest.device.slots[1].record.transmitted == len(b"helloquestion")
    guest.rings[TRANSMITQ].add([b"!"])
    assert guest.rings[TRANSMITQ].wants_bell()


def test_a_message_to_the_guest_takes_no_turn(dialogue):
    guest, host = dialogue
    guest.interrupts.queues.clear()
    host.reads = 0
    host.feed(b"answer")
    assert [used.data for used in guest.rings[RECEIVEQ].harvest()] == [b"answer"]
    assert guest.turns == []
    assert guest.interrupts.queues == [RECEIVEQ]
    assert guest.device.slots[1].record.received == len(b"helloanswer")
    assert host.reads == 1


@pytest.mark.parametrize(
    "chains", [[b"one", b"two"], [bytes(STREAM_CHAIN)]], ids=["two messages", "part of a stream"]
)
def test_anything_else_to_the_host_has_a_turn(dialogue, chains):
    guest, host = dialogue
    send(guest, *chains)
    assert host.taken == b""
    assert len(guest.turns) == 1
    guest.turns[0]()
    assert host.taken == b"".join(chains)


def test_a_chain_of_two_buffers_has_a_turn(dialogue):
    guest, host = dialogue
    guest.rings[TRANSMITQ].add([b"two ", b"buffers"])
    guest.device.notify_alone(TRANSMITQ)
    guest.turns.pop()()
    assert host.taken == b"two buffers"


def test_input_that_fills_a_buffer_opens_the_window(dialogue):
    guest, host = dialogue
    host.feed(bytes(250))
    assert len(guest.rings[RECEIVEQ].harvest()) == 1
    assert guest.device.slots[1].port._window == STREAM_WINDOW
    host.readable = True
    host.listener.host_readable()
    guest.turns.pop()()
    assert [used.length for used in guest.rings[RECEIVEQ].harvest()] == [100, 50]


@pytest.mark.parametrize("way", ["to the host", "to the guest"])
def test_who_waits_for_a_turn_comes_first(dialogue, way):
    """Control messages for one: what the guest hears of in which order is theirs to say."""
    guest, host = dialogue
    guest.device.control.schedule_all()
    if way == "to the host":
        send(guest, b"later")
        assert host.taken == b""
    else:
        host.feed(b"later")
        assert guest.rings[RECEIVEQ].harvest() == []


@pytest.mark.parametrize("way", ["to the host", "to the guest"])
def test_a_device_that_stands_still_moves_nothing(dialogue, way):
    guest, host = dialogue
    guest.device.pause()
    if way == "to the host":
        send(guest, b"later")
        assert host.taken == b""
    else:
        host.feed(b"later")
        assert guest.rings[RECEIVEQ].harvest() == []


def test_a_host_that_takes_a_part_gets_the_rest_later(dialogue):
    guest, host = dialogue
    host.room = 3
    send(guest, b"question")
    assert host.taken == b"que"
    assert guest.rings[TRANSMITQ].harvest() == []
    guest.turns.pop()()
    host.drain()
    guest.turns.pop()()
    assert host.taken == b"question"
    assert len(guest.rings[TRANSMITQ].harvest()) == 1


def test_a_host_that_fails_is_closed_towards_the_guest(dialogue):
    guest, host = dialogue
    host.failure = "disk full"
    send(guest, b"lost")
    assert guest.events.failed == [(1, "disk full")]
    host = WaitingHost()
    guest.device.slots[1].port.attach(host)
    host.failure = "no medium"
    host.feed(b"x")
    for turn in guest.turns:
        turn()
    assert guest.events.failed == [(1, "disk full"), (1, "no medium")]


def test_a_head_outside_of_the_table_fails_the_device(dialogue):
    guest, _ = dialogue
    ring = guest.rings[TRANSMITQ]
    ring.offer(99)
    guest.device.notify_alone(TRANSMITQ)
    guest.turns.pop()()
    assert "head 99" in str(guest.failures[0])


def test_a_mistake_of_ours_is_the_schedulers(dialogue):
    guest, host = dialogue

    def mistake():
        raise ZeroDivisionError

    host.inside = mistake
    send(guest, b"x")
    with pytest.raises(ZeroDivisionError):
        guest.scheduler.advance(0)


@pytest.mark.parametrize(("kind", "moved"), [(WRITE, 8), (READ, 6)])
def test_a_kill_over_a_message_is_in_the_ledger(dialogue, kind, moved):
    """The note stands while the system call runs, with what a successor needs to finish it."""
    guest, host = dialogue
    ledger, notes = guest.device.ledger, []
    ledger.account.stray = False

    def kill():
        copy = Ledger(memoryview(bytearray(ledger._words.tobytes())))
        notes.extend(copy.take_notes(ledger.account.read + moved, ledger.account.written + moved))

    host.inside = kill
    queue = TRANSMITQ if kind == WRITE else RECEIVEQ
    progress = guest.device.queues[queue].record.progress
    if kind == WRITE:
        send(guest, b"question")
    else:
        host.feed(b"answer")
    (note,) = notes
    assert (note.kind, note.exact, note.queue, note.progress, note.moved) == (kind, True, queue, progress, moved)
    assert ledger.take_notes(0, 0) == []
