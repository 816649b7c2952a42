"""VFIO_USER_DEVICE_FEATURE and migration data, byte by byte, without a socket."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.served_device import ServedDevice, message, state_block, version

from virtserial.errors import ConfigError, PeerError
from virtserial.memory.state import StateMemory
from virtserial.vfio_user import migration as m
from virtserial.vfio_user import migration_client, wire
from virtserial.vfio_user.migration_client import CHUNK, MigrationClient
from virtserial.vfio_user.server import Server
from virtserial.vfio_user.wire import HEADER_SIZE, Header

GET, SET, PROBE = m.VFIO_DEVICE_FEATURE_GET, m.VFIO_DEVICE_FEATURE_SET, m.VFIO_DEVICE_FEATURE_PROBE
ERROR, STOP, RUNNING, STOP_COPY, RESUMING = range(5)
STATE = bytes(range(256)) * 400


class Migratable(ServedDevice):
    """Does nothing but note what it is told."""

    max_state_size = len(STATE)

    def __init__(self, state):
        super().__init__(state)
        self.told = []
        self.log = None

    def pause(self):
        self.told.append("pause")

    def resume(self):
        self.told.append("go on")

    def save_state(self):
        self.told.append("save")
        return STATE

    def load_state(self, data):
        self.told.append("load")
        if data != STATE:
            raise ConfigError("saved state: another one")

    def log_writes(self, log):
        self.log = log


class Session:
    """A server with an agreed version.

    Attributes:
        reply: takes a command and its payload; returns (errno, payload).
    """

    def __init__(self, block=None):
        self.block = block or state_block()
        state = StateMemory(self.block)
        self.device = Migratable(state)
        self.server = Server(self.device, state, migratable=self.device)
        if not self.server.negotiated:
            self.handle(version())

    def handle(self, data):
        header = Header.unpack_from(data)
        return self.server.handle(header, data[HEADER_SIZE:], [])

    def reply(self, command, payload):
        answer = self.handle(message(command, payload, message_id=9))
        self.server.journal.record_consumed()
        header = Header.unpack_from(answer)
        return header.error, answer[HEADER_SIZE:]

    def feature(self, flags, data=b"", argsz=None):
        size = m.FEATURE.size + len(data) if argsz is None else argsz
        return self.reply(wire.VFIO_USER_DEVICE_FEATURE, m.FEATURE.pack(size, flags) + data)

    def move_to(self, state):
        return self.feature(m.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE | SET, m.DEVICE_STATE.pack(state, 0))[0]

    @property
    def state(self):
        error, body = self.feature(m.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE | GET, argsz=16)
        assert error == 0
        return m.DEVICE_STATE.unpack(body[8:])[0]

    def read(self, size):
        error, body = self.reply(wire.VFIO_USER_MIG_DATA_READ, m.MIG_DATA.pack(8 + size, size))
        return error or body[8:]

    def write(self, data):
        return self.reply(wire.VFIO_USER_MIG_DATA_WRITE, m.MIG_DATA.pack(8, len(data)) + data)


@pytest.fixture
def session():
    return Session()


class TestFeatures:
    def test_migration_is_stop_copy(self, session):
        assert session.feature(m.VFIO_DEVICE_FEATURE_MIGRATION | GET, argsz=16) == (
            0, struct.pack("<IIQ", 16, m.VFIO_DEVICE_FEATURE_MIGRATION | GET, 1),
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("flags", "error"),
        [
            (1 | GET, 0), (2 | GET | SET, 0), (2, 0), (6 | SET, 0), (7 | SET, 0), (8 | GET, 0),
            (1 | SET, errno.EINVAL), (6 | GET, errno.EINVAL), (8 | SET, errno.EINVAL), (3 | GET, errno.ENOTTY),
        ],
    )  # fmt: skip
    def test_probing_tells_what_can_be_got_and_set(self, session, flags, error):
        assert session.feature(flags | PROBE) == (error, b"" if error else struct.pack("<II", 8, flags | PROBE))

    @pytest.mark.parametrize(
        ("flags", "data", "argsz"),
        [
            (2, b"", None), (2 | GET | SET, bytes(8), None), (2 | GET | 1 << 19, b"", 16), (1 | GET, b"", 15),
            (1 | GET, b"", 7), (2 | SET, bytes(7), None), (2 | SET, bytes(9), None), (6 | SET, bytes(15), None),
            (6 | SET, m.LOGGING_CONTROL.pack(4096, 1, 0), None), (6 | SET, m.LOGGING_CONTROL.pack(5000, 0, 0), None),
            (6 | SET, m.LOGGING_CONTROL.pack(4096, 1, 0) + m.LOGGING_RANGE.pack(2, (1 << 64) - 1), None),
            (8 | GET, bytes(24), 100),
        ],
    )  # fmt: skip
    def test_what_makes_no_sense_is_refused(self, session, flags, data, argsz):
        assert session.feature(flags, data, argsz) == (errno.EINVAL, b"")

    def test_a_payload_without_flags_is_refused(self, session):
        assert session.reply(wire.VFIO_USER_DEVICE_FEATURE, b"1234")[0] == errno.EINVAL

    def test_a_device_that_cannot_be_moved_says_so(self):
        state = StateMemory(state_block())
        server = Server(ServedDevice(state), state)
        server.handle(Header.unpack_from(version()), version()[HEADER_SIZE:], [])
        for command in (
            wire.VFIO_USER_DEVICE_FEATURE, wire.VFIO_USER_MIG_DATA_READ, wire.VFIO_USER_MIG_DATA_WRITE,
        ):  # fmt: skip
            request = message(command, bytes(8))
            answer = server.handle(Header.unpack_from(request), request[HEADER_SIZE:], [])
            assert Header.unpack_from(answer).error == errno.ENOTSUP


class TestStates:
    def test_a_device_runs_at_first(self, session):
        assert session.state == RUNNING

    def test_the_source_goes_over_stop_to_stop_copy_and_back(self, session):
        assert session.move_to(STOP_COPY) == 0
        assert session.device.told == ["pause", "save"]
        assert session.state == STOP_COPY
        assert session.move_to(RUNNING) == 0
        assert session.device.told == ["pause", "save", "go on"]

    def test_the_target_loads_when_it_leaves_resuming(self, session):
        assert session.move_to(RESUMING) == 0
        assert session.write(STATE[:60_000]) == (0, b"")
        assert session.write(STATE[60_000:]) == (0, b"")
        assert session.device.told == ["pause"]
        assert session.move_to(RUNNING) == 0
        assert session.device.told == ["pause", "load", "go on"]

    def test_a_state_that_is_refused_leads_to_error_which_a_reset_ends(self, session):
        session.move_to(RESUMING)
        session.write(b"something")
        assert session.move_to(STOP) == errno.EINVAL
        assert session.server.last_refusal == "saved state: another one"
        assert session.state == ERROR
        assert session.move_to(RUNNING) == errno.EINVAL
        assert session.reply(wire.VFIO_USER_DEVICE_RESET, b"")[0] == 0
        assert session.state == RUNNING

    @pytest.mark.parametrize("state", [ERROR, 5, 6, 7, 1 << 31])
    def test_a_state_that_cannot_be_asked_for_changes_nothing(self, session, state):
        assert session.move_to(state) == errno.EINVAL
        assert session.state == RUNNING
        assert session.device.told == []

    def test_a_client_that_leaves_takes_its_migration_with_it(self, session):
        session.move_to(STOP_COPY)
        session.server.disconnected()
        session.handle(version())
        assert session.state == RUNNING

    @given(states=st.lists(st.sampled_from([STOP, RUNNING, STOP_COPY]), max_size=12))
    def test_whatever_the_way_a_device_runs_only_in_running(self, states):
        session = Session()
        for state in states:
            assert session.move_to(state) == 0
            assert session.state == state
            runs = [word for word in session.device.told if word != "save"]
            assert (runs[-1] if runs else "go on") == ("go on" if state == RUNNING else "pause")


class TestData:
    def test_it_is_read_as_a_stream_whose_end_is_a_short_read(self, session):
        session.move_to(STOP_COPY)
        assert session.read(65536) == STATE[:65536]
        assert session.read(65536) == STATE[65536:]
        assert session.read(10) == b""

    @pytest.mark.parametrize("state", [STOP, RUNNING, RESUMING])
    def test_it_is_read_in_stop_copy_only(self, session, state):
        session.move_to(state)
        assert session.read(8) == errno.EINVAL

    @pytest.mark.parametrize("state", [STOP, RUNNING, STOP_COPY])
    def test_it_is_written_in_resuming_only(self, session, state):
        session.move_to(state)
        assert session.write(b"x")[0] == errno.EINVAL

    @pytest.mark.parametrize("body", [b"", bytes(7), m.MIG_DATA.pack(8, 65537), m.MIG_DATA.pack(8, 5) + b"four"])
    def test_sizes_that_cannot_be_are_refused(self, session, body):
        session.move_to(RESUMING)
        assert session.reply(wire.VFIO_USER_MIG_DATA_WRITE, body)[0] == errno.EINVAL

    def test_more_than_a_state_can_have_is_refused(self, session):
        session.move_to(RESUMING)
        session.write(STATE[:65536])
        assert session.write(STATE[65535:]) == (errno.EFBIG, b"")


class TestSuccessor:
    """Of a process that was killed: what is in state memory it knows, the data was lost."""

    def test_the_state_is_known_and_data_is_refused(self, session):
        session.move_to(STOP_COPY)
        heir = Session(session.block)
        assert heir.state == STOP_COPY
        assert heir.read(8) == errno.EINVAL
        assert heir.move_to(RUNNING) == 0

    def test_a_target_whose_data_was_lost_is_in_error(self, session):
        session.move_to(RESUMING)
        session.write(STATE[:65536])
        heir = Session(session.block)
        assert heir.write(STATE[65536:])[0] == errno.EINVAL
        assert heir.move_to(STOP) == errno.EINVAL
        assert heir.state == ERROR

    def test_dirty_pages_are_logged_on(self, session):
        session.feature(6 | SET, m.LOGGING_CONTROL.pack(4096, 0, 0))
        assert Session(session.block).device.log is not None


class TestDirtyPages:
    def start(self, session, page_size=4096):
        return session.feature(6 | SET, m.LOGGING_CONTROL.pack(page_size, 0, 0))

    def report(self, session, iova, length, page_size=4096, room=8):
        data = m.LOGGING_REPORT.pack(iova, length, page_size)
        error, body = session.feature(8 | GET, data, argsz=8 + 24 + room)
        return error or body[32:]

    def test_the_page_size_that_is_kept_is_told(self, session):
        error, body = self.start(session, page_size=1 << 16)
        assert error == 0
        assert m.LOGGING_CONTROL.unpack(body[8:]) == (4096, 0, 0)

    def test_written_pages_are_told_once(self, session):
        self.start(session)
        session.device.log.mark(0x3FFF, 2)
        assert self.report(session, 0, 0x10000) == (0b11000).to_bytes(8, "little")
        assert self.report(session, 0, 0x10000) == bytes(8)

    def test_beginning_twice_forgets_nothing(self, session):
        self.start(session)
        session.device.log.mark(0, 1)
        self.start(session)
        assert self.report(session, 0, 4096) == (1).to_bytes(8, "little")

    def test_nothing_is_told_before_it_begins_and_after_it_has_ended(self, session):
        assert self.report(session, 0, 4096) == errno.EINVAL
        self.start(session)
        assert session.feature(7 | SET)[0] == 0
        assert session.device.log is None
        assert self.report(session, 0, 4096) == errno.EINVAL

    @pytest.mark.parametrize(
        ("iova", "length", "page_size"),
        [(0, 0, 4096), (4096, 1 << 64, 4096), (1, 4096, 4096), (0, 4096, 2048), (0, 4096, 4097), (0, 1 << 40, 4096)],
    )
    def test_ranges_that_cannot_be_reported_are_refused(self, session, iova, length, page_size):
        self.start(session)
        data = m.LOGGING_REPORT.pack(iova, length & (1 << 64) - 1, page_size)
        assert session.feature(8 | GET, data, argsz=1 << 31) == (errno.EINVAL, b"")

    def test_the_largest_report_fits_into_a_message(self, session):
        self.start(session)
        pages = 8 * m.MAX_BITMAP
        session.device.log.mark((pages - 1) * 4096, 1)
        assert self.report(session, 0, pages * 4096, room=m.MAX_BITMAP) == bytes(m.MAX_BITMAP - 1) + b"\x80"


class TestWhatMakesNoSense:
    """Each is refused for what it is, not for what would come of it."""

    @pytest.mark.parametrize(
        ("flags", "data", "argsz", "complaint"),
        [
            (m.VFIO_DEVICE_FEATURE_MIGRATION | GET | PROBE, b"", 4, "argsz is 4"),
            (m.VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT | GET, b"short", 1000, "5 bytes of data"),
        ],
    )
    def test_a_feature_s_sizes(self, session, flags, data, argsz, complaint):
        assert session.feature(flags, data, argsz) == (errno.EINVAL, b"")
        assert complaint in session.server.last_refusal

    def test_a_device_in_error_stays_there_until_a_reset(self, session):
        session.move_to(RESUMING)
        session.write(b"no state at all")
        assert session.move_to(STOP) == errno.EINVAL
        assert session.state == ERROR
        session.device.told.clear()
        for state in (STOP, RUNNING):
            assert session.move_to(state) == errno.EINVAL
            assert "which only a reset ends" in session.server.last_refusal
        assert session.device.told == []

    def test_more_migration_data_at_a_time_than_a_message_has(self, session):
        session.move_to(STOP_COPY)
        assert session.read(wire.MAX_DATA_XFER_SIZE + 1) == errno.EINVAL
        assert "at a time" in session.server.last_refusal


class LyingServer:
    """A client of a server that answers everything with the same bytes."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = 0

    def request(self, command, payload):
        self.asked += 1
        return self.answer


class TestClientOfALiar:
    def test_logging_that_begins_without_a_page_size(self):
        client = MigrationClient(LyingServer(m.FEATURE.pack(m.FEATURE.size, 6 | SET) + b"no"))
        with pytest.raises(PeerError, match="DMA_LOGGING_START: 2 bytes of data"):
            client.start_logging()

    def test_a_state_that_never_ends(self, monkeypatch):
        monkeypatch.setattr(migration_client, "MAX_STATE_SIZE", 10 * CHUNK)
        server = LyingServer(m.MIG_DATA.pack(m.MIG_DATA.size + CHUNK, CHUNK) + bytes(CHUNK))
        with pytest.raises(PeerError, match="bytes of migration data"):
            MigrationClient(server).read_data()
        assert server.asked == 11

    @pytest.mark.parametrize(
        "answer", [b"", m.MIG_DATA.pack(8, 4) + b"ab", m.MIG_DATA.pack(8, CHUNK + 1) + bytes(CHUNK + 1)]
    )
    def test_data_of_another_size_than_it_says_or_was_asked_for(self, answer):
        with pytest.raises(PeerError, match="MIG_DATA_READ: a reply of"):
            MigrationClient(LyingServer(answer)).read_data()

    def test_the_answer_to_another_question(self):
        answer = m.FEATURE.pack(16, m.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE | GET) + m.MIGRATION.pack(1)
        with pytest.raises(PeerError, match="VFIO_USER_DEVICE_FEATURE 1: a reply of 16 bytes"):
            MigrationClient(LyingServer(answer)).flags()
