"""The log of written pages: what is marked is set, once for all."""

import os

import pytest

from virtserial.daemon.worker.shared_log import SharedLog
from virtserial.errors import PeerError

SIZE = 4096


@pytest.fixture
def file():
    fd = os.memfd_create("log", os.MFD_CLOEXEC)
    os.ftruncate(fd, 2 * SIZE)
    yield fd
    os.close(fd)


def pages(file, offset=0):
    bits = int.from_bytes(os.pread(file, SIZE, offset), "little")
    return [page for page in range(8 * SIZE) if bits >> page & 1]


def test_pages_are_marked_however_often(file):
    log = SharedLog(os.dup(file), SIZE, SIZE)
    for _ in range(5):
        log.mark(3 * 4096 + 17, 1)
        log.mark(31 * 4096 + 4095, 2)
        log.mark(1000 * 4096, 3 * 4096)
    assert pages(file, SIZE) == [3, 31, 32, 1000, 1001, 1002]
    assert pages(file) == []
    log.close()


def test_what_others_have_set_stays(file):
    os.pwrite(file, b"\x81", 0)
    log = SharedLog(os.dup(file), 0, SIZE)
    log.mark(4096, 4096)
    log.mark(0, 1)
    assert pages(file) == [0, 1, 7]
    log.close()


def test_a_page_without_a_bit_is_left_out_and_a_file_that_was_cut_harms_nobody(file):
    log = SharedLog(os.dup(file), 0, SIZE)
    log.mark((8 * SIZE - 1) * 4096, 10 * 4096)
    log.mark(1 << 60, 1)
    assert pages(file) == [8 * SIZE - 1]
    os.ftruncate(file, 0)
    log.mark(0, 4096)
    log.mark_everything()
    assert not log.mark_on()
    log.close()


def test_everything_is_every_page(file):
    log = SharedLog(os.dup(file), 0, SIZE)
    assert not log.mark_on()
    assert pages(file) == []
    log.mark_everything()
    assert not log.mark_on()
    assert len(pages(file)) == 8 * SIZE
    assert pages(file, SIZE) == []
    log.close()


def test_others_have_their_turns_while_everything_is_marked(file):
    os.ftruncate(file, 10 << 20)
    log = SharedLog(os.dup(file), 0, 10 << 20)
    log.mark_everything()
    for turn in range(1, 11):
        assert log.mark_on() == (turn < 10)
        assert os.pread(file, 10 << 20, 0).count(b"\xff") == turn << 20
    log.close()


@pytest.mark.parametrize(("offset", "size"), [(0, 0), (1, SIZE), (0, (1 << 30) + 4096), (1 << 62, SIZE), (0, 3 * SIZE)])
def test_a_log_that_cannot_be_is_refused(file, offset, size):
    with pytest.raises(PeerError):
        SharedLog(os.dup(file), offset, size)
