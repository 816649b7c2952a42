"""The output of a chardev that several clients share: a memory file of keeper and workers.

| where | what |
|---|---|
| the first HEADER_SIZE bytes | words of 64 bits: counters, and a record for each client |
| after them | the output, each byte at its own place for ever; old ones are given back to the system (a hole) |
| the file position of the log's descriptor | the end of the output: writev moves it with the bytes |
| the file position of a client's descriptor, an open file of its own | what that client was sent: sendfile moves it |

The kernel moves bytes and position in the same system call, and the keeper holds the descriptors.  So a worker that is
killed leaves every position exact, and needs no notes.  sendfile does not copy: a socket may hold on to a page, but
nothing is written to the same place twice.
"""

from __future__ import annotations

import fcntl
import mmap
import os

HEADER_SIZE = mmap.PAGESIZE
FILE_SIZE = 1 << 60
"""Most of it a hole."""
MAX_CLIENTS = 64
MAX_WATCHERS = 16
"""Places MAX_CLIENTS to MAX_CLIENTS + MAX_WATCHERS - 1 are theirs."""

# Words of the header.
_GIVEN_BACK, _DISCONNECTED, _DROPPED = range(3)
_PLACES = 8
# Words of a client's record.
_STATE, _ITS_DROPPED, _NEXT_DROPPED, _NEXT_POSITION = range(4)
_RECORD = 4

JOINED = 1
"""The client's position is set."""
LAGGING = 2
"""It has not read for too long: nobody waits for it until it has caught up."""


class OutputLog:
    """One process's view of a log.  Takes ownership of `fd`.

    Attributes:
        end: the file position behind the last byte.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._map = mmap.mmap(fd, HEADER_SIZE)
        self._words = memoryview(self._map).cast("Q")
        self.end = os.lseek(fd, 0, os.SEEK_CUR)

    @classmethod
    def create(cls) -> OutputLog:
        """A new log.

        Raises:
            OSError: there is no memory for it, or no /proc to open it again by.
        """
        fd = os.memfd_create("virtserial output", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, FILE_SIZE)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            os.close(open_again(fd))
            os.lseek(fd, HEADER_SIZE, os.SEEK_SET)
            log = cls(fd)
        except BaseException:
            os.close(fd)
            raise
        log._words[_GIVEN_BACK] = HEADER_SIZE
        return log

    def fileno(self) -> int:
        return self._fd

    def written(self) -> int:
        """How many bytes the guest has written, whichever process has moved them."""
        return os.lseek(self._fd, 0, os.SEEK_CUR) - HEADER_SIZE

    @property
    def first(self) -> int:
        """The position of the oldest byte that is kept."""
        return self._words[_GIVEN_BACK]

    def give_back(self, position: int) -> None:
        """Free the memory of all bytes before a position, a multiple of the page size."""
        start = self._words[_GIVEN_BACK]
        with mmap.mmap(self._fd, position - start, offset=start) as old:
            old.madvise(mmap.MADV_REMOVE)
        self._words[_GIVEN_BACK] = position

    # Clients

    def state(self, place: int) -> int:
        """JOINED and LAGGING of a client."""
        return self._words[_PLACES + _RECORD * place + _STATE]

    def set_state(self, place: int, state: int) -> None:
        self._words[_PLACES + _RECORD * place + _STATE] = state

    def skip(self, place: int, cursor_fd: int, position: int, to: int) -> None:
        """Move a client's position ahead; it does not get the bytes between, which are counted.

        A death in between leaves what `finish_skip` needs.
        """
        words, base = self._words, _PLACES + _RECORD * place
        words[base + _NEXT_DROPPED] = words[base + _ITS_DROPPED] + to - position
        words[base + _NEXT_POSITION] = to
        self.finish_skip(place, cursor_fd)

    def finish_skip(self, place: int, cursor_fd: int) -> None:
        """Complete a `skip` that a killed process has begun, if there is one."""
        words, base = self._words, _PLACES + _RECORD * place
        if to := words[base + _NEXT_POSITION]:
            os.lseek(cursor_fd, to, os.SEEK_SET)
            words[base + _ITS_DROPPED] = words[base + _NEXT_DROPPED]
            words[base + _NEXT_POSITION] = 0

    def count_disconnected(self) -> None:
        """A client was disconnected because it did not read."""
        self._words[_DISCONNECTED] += 1

    def forget(self, place: int) -> None:
        """A client is gone: its place is free, what was dropped for it stays counted."""
        words, base = self._words, _PLACES + _RECORD * place
        # A worker can write anything there.
        words[_DROPPED] = (words[_DROPPED] + words[base + _ITS_DROPPED]) % (1 << 64)
        for word in range(_RECORD):
            words[base + word] = 0

    # Counters

    @property
    def disconnected(self) -> int:
        """Clients that were disconnected because they did not read."""
        return self._words[_DISCONNECTED]

    @property
    def dropped_before(self) -> int:
        """Bytes dropped for clients that are gone."""
        return self._words[_DROPPED]

    def dropped(self, place: int) -> int:
        """Bytes dropped for a client."""
        return self._words[_PLACES + _RECORD * place + _ITS_DROPPED]

    def behind(self, place: int, cursor_fd: int) -> int:
        """How many bytes a client has not got yet."""
        if not self.state(place) & JOINED:
            return 0
        return max(0, os.lseek(self._fd, 0, os.SEEK_CUR) - os.lseek(cursor_fd, 0, os.SEEK_CUR))

    def close(self) -> None:
        self._words.release()
        self._map.close()
        os.close(self._fd)


def open_again(fd: int) -> int:
    """Return a descriptor of the same file with a position of its own, for reading.

    Raises:
        OSError: there is no /proc, or no descriptor is left.
    """
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
