"""Requests of the server's own, and who gets their replies."""

import pytest

from virtserial.errors import PeerError
from virtserial.memory.state import StateMemory
from virtserial.vfio_user import asked, wire
from virtserial.vfio_user.asked import MAX_ASKED, AskedRequests
from virtserial.vfio_user.server import SessionRecord


@pytest.fixture
def session():
    return SessionRecord(StateMemory(bytearray(64 + SessionRecord.SIZE)))


def ignore(header, body):
    pass


def reply_to(request_id, command=wire.VFIO_USER_DMA_READ):
    return wire.Header(request_id, command, 16, wire.VFIO_USER_REPLY, 0)


def test_a_reply_finds_who_asked_once(session):
    requests = AskedRequests(session)
    request_id = requests.add(wire.VFIO_USER_DMA_READ, ignore)
    assert requests.take(reply_to(request_id, wire.VFIO_USER_DMA_WRITE)) is None
    assert requests.take(reply_to(request_id)) is ignore
    assert requests.take(reply_to(request_id)) is None


def test_requests_without_an_answer_are_limited(session):
    requests = AskedRequests(session)
    for _ in range(MAX_ASKED):
        requests.add(wire.VFIO_USER_DMA_READ, ignore)
    with pytest.raises(PeerError, match="are not answered"):
        requests.add(wire.VFIO_USER_DMA_READ, ignore)


def test_a_successor_knows_the_replies_to_all_that_its_predecessor_may_have_asked(session):
    session.last_request_id = 100
    requests = AskedRequests(session)
    assert requests.answers_a_predecessor(reply_to(100))
    assert requests.answers_a_predecessor(reply_to((101 - MAX_ASKED) & 0xFFFF))
    assert not requests.answers_a_predecessor(reply_to(101))
    assert requests.add(wire.VFIO_USER_DMA_READ, ignore) == 101


def test_an_answer_that_does_not_come_in_time_is_an_error(session, monkeypatch):
    requests = AskedRequests(session)
    requests.check()
    requests.add(wire.VFIO_USER_DMA_READ, ignore)
    requests.check()
    monkeypatch.setattr(asked, "REQUEST_TIMEOUT", 0.0)
    with pytest.raises(PeerError, match="VFIO_USER_DMA_READ: no reply in time"):
        requests.check()
