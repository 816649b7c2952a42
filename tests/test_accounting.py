"""What a killed process was about, told by the kernel's counts: with real processes that are killed."""

from __future__ import annotations

import mmap
import os
import select
import signal

import pytest

from virtserial.accounting import (
    CONSUME,
    LEDGER_SIZE,
    READ,
    REPLY,
    WRITE,
    Ledger,
    Note,
    open_counts,
    read_counts,
)
from virtserial.errors import StateError

KEY = Ledger.key(3, 5)


@pytest.fixture
def memory():
    with mmap.mmap(-1, LEDGER_SIZE) as memory, memoryview(memory) as view:
        yield view


def notes_of(memory, act):
    """Run `act(ledger, read_fd, write_fd)` in a process that is killed then; return its notes."""
    read_fd, write_fd = os.pipe()
    start, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.read(start, 1)
            act(Ledger(memory, open_counts(os.getpid())), read_fd, write_fd)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    counts, pidfd = open_counts(pid), os.pidfd_open(pid)
    os.write(go, b"x")
    try:
        assert select.select([pidfd], [], [], 20)[0]
        read, written, _ = read_counts(counts)
        ledger = Ledger(memory)
        found = ledger.take_notes(read, written)
        assert ledger.take_notes(read, written) == []
        ledger.close()
        return found
    finally:
        os.waitpid(pid, 0)
        for fd in (read_fd, write_fd, start, go, counts, pidfd):
            os.close(fd)


def test_nothing_was_under_way(memory):
    def act(ledger, _, write_fd):
        ledger.begin_write(KEY, 7, True)
        os.write(write_fd, b"abc")
        ledger.end()

    assert notes_of(memory, act) == []


def test_killed_before_the_system_call(memory):
    def act(ledger, _, write_fd):
        os.write(write_fd, b"something before")
        ledger.begin_write(KEY, 7, True)

    assert notes_of(memory, act) == [Note(WRITE, True, 3, 5, 7, 0)]


@pytest.mark.parametrize("size", [1, 1234, 65536])
def test_killed_behind_a_write(memory, size):
    def act(ledger, _, write_fd):
        ledger.begin_write(KEY, 7, True)
        os.writev(write_fd, [bytes(size - 1), b"x"])

    assert notes_of(memory, act) == [Note(WRITE, True, 3, 5, 7, size)]


def test_killed_behind_a_write_of_which_a_part_was_taken(memory):
    def act(ledger, _, write_fd):
        os.set_blocking(write_fd, False)
        ledger.begin_write(KEY, 7, False)
        os.write(write_fd, bytes(1 << 20))

    (note,) = notes_of(memory, act)
    assert (note.exact, note.moved) == (False, 65536)


def test_killed_behind_a_read(memory):
    def act(ledger, read_fd, write_fd):
        os.write(write_fd, bytes(500))
        ledger.begin_read(KEY, 1 << 40, True)
        os.readv(read_fd, [bytearray(400), bytearray(400)])

    assert notes_of(memory, act) == [Note(READ, True, 3, 5, 1 << 40, 500)]


def test_a_message_within_a_batch_has_a_note_of_its_own(memory):
    def act(ledger, read_fd, write_fd):
        ledger.begin_write(KEY, 7, False)
        ledger.begin_message(REPLY, 3, 0)
        ledger.account.written += os.write(write_fd, bytes(40))
        ledger.end_message()
        ledger.begin_message(CONSUME, 3, 40)
        os.read(read_fd, 30)

    batch, message = notes_of(memory, act)
    assert (batch.kind, batch.moved) == (WRITE, 40)
    assert message == Note(CONSUME, True, 3, 0, 40, 30)


def test_what_others_moved_before_is_asked_of_the_kernel_if_they_say_so(memory):
    def act(ledger, _, write_fd):
        ledger.begin_write(KEY, 7, True)
        ledger.end()
        os.write(write_fd, bytes(99))
        ledger.account.stray = True
        ledger.begin_write(KEY, 8, True)
        os.write(write_fd, bytes(5))

    assert notes_of(memory, act) == [Note(WRITE, True, 3, 5, 8, 5)]


def test_bytes_in_nobodys_account_are_told(memory, caplog):
    counts = open_counts(os.getpid())
    read_fd, write_fd = os.pipe()
    try:
        ledger = Ledger(memory, counts)
        ledger.audit()
        assert not caplog.records
        os.write(write_fd, bytes(12))
        ledger.audit()
        assert "0 bytes read and 12 written are in nobody's account" in caplog.text
        ledger.close()
    finally:
        for fd in (counts, read_fd, write_fd):
            os.close(fd)


def test_ledger_that_makes_no_sense_is_refused(memory):
    memory[:8] = (7).to_bytes(8, "little")
    ledger = Ledger(memory)
    with pytest.raises(StateError, match="token 0x7"):
        ledger.take_notes(0, 0)
    ledger.close()
