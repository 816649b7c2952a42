"""How many bytes the worker has moved: a successor learns how far the last system call of a killed worker came.

Linux counts the bytes that a thread reads and writes (/proc/PID/task/TID/io: rchar, wchar), and keeps the counts of a
killed process until its parent reaps it.  It counts `read`, `write` and their kin, not `send` and `recv`.

| step | who | what |
|---|---|---|
| 1 | worker | notes in the ledger whose batch comes, its progress, and the count before it |
| 2 | worker | moves the batch by one system call, and adds the bytes to its Account |
| 3 | worker | updates the queue's registers, and clears the note |
| - | keeper | reads the counts of a dead worker, reaps it, and subtracts: none, a part, or all of the batch was moved |

The ledger is memory that keeper and worker share.  Asking the kernel for the count before each batch would be one more
system call, so the Account follows it: whoever reads or writes adds what it moved, or sets `stray` if it cannot tell;
then `begin_*` asks the kernel (`audit`).
"""

from __future__ import annotations

import logging
import os

from virtserial.errors import StateError
from virtserial.named_tuple import NamedTuple

log = logging.getLogger("virtserial.accounting")

LEDGER_SIZE = 64
"""Bytes of shared memory a ledger needs."""

# Kinds of notes.
WRITE = 1
"""Bytes of a transmitq, to a host end."""
READ = 2
"""Bytes of a host end, to a receiveq."""
REPLY = 3
"""A reply to the VMM."""
CONSUME = 4
"""A message of the VMM, taken off its socket."""

_EXACT = 8
_WRITE_EXACT = WRITE | _EXACT
_READ_EXACT = READ | _EXACT


class Account:
    """What the main thread of this process has read and written, in bytes, as the kernel counts it.

    Attributes:
        read: bytes read.
        written: bytes written.
        stray: bytes were read or written that are not added to these.
    """

    __slots__ = ("read", "stray", "written")

    def __init__(self) -> None:
        self.read = 0
        self.written = 0
        self.stray = True



class Note(NamedTuple):
    """What a killed worker was doing.

    Attributes:
        kind: WRITE, READ, REPLY or CONSUME.
        exact: the system call moves the bytes of the batch and no others.
        controller: whose.
        queue: the queue's index; 0 for messages.
        progress: where the queue, or the message, stood before.
        moved: bytes that the system call has moved.
    """

    kind: int
    exact: bool
    controller: int
    queue: int
    progress: int
    moved: int


class Ledger:
    """Notes of the batch and of the message that are under way, at most one of each.

    Args:
        memory: LEDGER_SIZE bytes that outlive the process.
        counts_fd: from `open_counts`, for this process; -1: there are no counts.

    Attributes:
        account: what this process has moved, for those who read and write.
    """

    def __init__(self, memory: memoryview, counts_fd: int = -1, account: Account | None = None) -> None:
        self._words = memory.cast("B").cast("Q")
        self._counts_fd = counts_fd
        self.account = account or Account()

    @staticmethod
    def key(controller: int, queue: int) -> int:
        """What `begin` takes for a queue."""
        return controller << 24 | queue << 8

    def begin_write(self, key: int, progress: int, exact: bool) -> None:
        """The next system call writes a batch of this queue, which stands at `progress`."""
        account = self.account
        if account.stray:
            self.audit()
        words = self._words
        words[1] = account.written
        words[2] = progress
        words[0] = key | (_WRITE_EXACT if exact else WRITE)

    def begin_read(self, key: int, progress: int, exact: bool) -> None:
        """The next system call reads a batch for this queue, which stands at `progress`."""
        account = self.account
        if account.stray:
            self.audit()
        words = self._words
        words[1] = account.read
        words[2] = progress
        words[0] = key | (_READ_EXACT if exact else READ)

    def end(self) -> None:
        """The batch is done, and the queue's own registers say so."""
        self._words[0] = 0

    def begin_message(self, kind: int, controller: int, progress: int) -> None:
        """The next system call sends a reply (REPLY), or takes a message off the socket (CONSUME)."""
        account = self.account
        if account.stray:
            self.audit()
        words = self._words
        words[5] = account.written if kind == REPLY else account.read
        words[6] = progress
        words[4] = self.key(controller, 0) | kind | _EXACT

    def end_message(self) -> None:
        """The message is done, and the journal says so."""
        self._words[4] = 0

    @property
    def restoring(self) -> int | None:
        """The controller that is being restored after a predecessor's death, or None."""
        return self._words[7] - 1 if self._words[7] else None

    @restoring.setter
    def restoring(self, controller: int | None) -> None:
        self._words[7] = 0 if controller is None else controller + 1

    def audit(self) -> None:
        """Ask the kernel what the counts are.

        Logs a count that differs although nobody set `stray`: an internal error.
        """
        if self._counts_fd < 0:
            return
        account = self.account
        read, written, own = read_counts(self._counts_fd)
        nobodys = read - account.read, written - account.written
        # The kernel adds this read afterwards.
        account.read, account.written = read + own, written
        was_stray, account.stray = account.stray, False
        if any(nobodys) and not was_stray:
            log.error("internal error: %d bytes read and %d written are in nobody's account", *nobodys)
            account.stray = True

    def close(self) -> None:
        """Release the memory."""
        self._words.release()

    def take_notes(self, read: int, written: int) -> list[Note]:
        """Return and clear what its writer was doing when it was killed.

        Args:
            read, written: the kernel's last counts of that process.

        Raises:
            StateError: the ledger is not valid.
        """
        notes = []
        for base in (0, 4):
            token, before, progress = self._words[base : base + 3]
            self._words[base] = 0
            if not token:
                continue
            kind = token & 7
            if kind not in (WRITE, READ, REPLY, CONSUME):
                raise StateError(f"ledger: token {token:#x}")
            moved = (written if kind in (WRITE, REPLY) else read) - before
            notes.append(Note(kind, bool(token & _EXACT), token >> 24, token >> 8 & 0xFFFF, progress, moved))
        return notes


def nowhere() -> Ledger:
    """A ledger for devices whose process has no successor."""
    return Ledger(memoryview(bytearray(LEDGER_SIZE)))


def open_counts(pid: int) -> int:
    """Return a descriptor from which `read_counts` reads, of a process that lives.

    Open it while the process runs: the files of a zombie belong to root.

    Raises:
        OSError: the kernel has no such counts (CONFIG_TASK_IO_ACCOUNTING).
    """
    return os.open(f"/proc/{pid}/task/{pid}/io", os.O_RDONLY | os.O_CLOEXEC)


def read_counts(fd: int) -> tuple[int, int, int]:
    """Return the bytes read and written by the main thread of a process, and how many bytes were read for that.

    Raises:
        OSError: the process is gone.
    """
    text = os.pread(fd, 256, 0)
    words = text.split()
    return int(words[1]), int(words[3]), len(text)
