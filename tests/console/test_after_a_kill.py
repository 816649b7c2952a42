"""What a successor does with the note of the batch that its predecessor was killed over (accounting.py)."""

import pytest
from support.console_guest import FakeHost, Guest

from virtserial.accounting import READ, WRITE, Note
from virtserial.console.port import TURN_BYTES

RECEIVEQ, TRANSMITQ = 4, 5


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def killed(request):
    """A guest whose device was killed: a message of 10 bytes is in the transmitq, a buffer of 20 in the receiveq."""
    guest = Guest(packed=request.param)
    host = FakeHost()
    host.room = 0
    guest.plug(1, host)
    guest.start()
    guest.open(1)
    guest.send(TRANSMITQ, b"0123456789")
    guest.post(RECEIVEQ, 20)
    guest.succeed()
    yield guest
    guest.close()


def take_over(guest, kind, moved, exact=True, since=0):
    """Take over after a system call that moved so many bytes, `since` chains ago; the port's record and its host."""
    queue = TRANSMITQ if kind == WRITE else RECEIVEQ
    progress = guest.device.queues[queue].record.progress
    note = Note(kind, exact, 0, queue, progress - since & 0xFFFF, moved)
    host = FakeHost()
    port = guest.plug(1, host)
    guest.device.take_over(note)
    guest.run()
    return port.record, host


def test_what_was_written_is_not_written_again(killed):
    record, host = take_over(killed, WRITE, 4)
    assert host.taken == b"456789"
    assert record.doubtful == 0


def test_what_was_read_is_the_drivers(killed):
    record, _ = take_over(killed, READ, 7)
    assert [len(used.data) for used in killed.rings[RECEIVEQ].harvest()] == [7]
    assert (record.doubtful, record.dropped) == (0, 0)


@pytest.mark.parametrize(("kind", "moved", "lost"), [(WRITE, 11, 0), (READ, 21, 21)])
def test_more_than_the_queue_holds_is_doubtful(killed, kind, moved, lost):
    """Its driver has changed the ring meanwhile."""
    record, host = take_over(killed, kind, moved)
    assert host.taken == b"0123456789"
    assert (record.doubtful, record.dropped) == (moved, lost)


@pytest.mark.parametrize(("kind", "lost"), [(WRITE, 0), (READ, 5)])
def test_what_several_system_calls_have_moved_is_doubtful(killed, kind, lost):
    record, host = take_over(killed, kind, 5, exact=False)
    assert host.taken == b"0123456789"
    assert (record.doubtful, record.dropped) == (5, lost)


def test_no_more_is_doubtful_than_a_turn_can_move(killed):
    record, _ = take_over(killed, WRITE, 1 << 40)
    assert record.doubtful == TURN_BYTES


def test_a_note_of_another_position_is_of_the_past(killed):
    record, host = take_over(killed, WRITE, 4, since=1)
    assert host.taken == b"0123456789"
    assert record.doubtful == 0
