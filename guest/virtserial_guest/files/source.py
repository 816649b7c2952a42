"""The source of a transfer: a walk over files and folders, and a reader of a file with its holes and digest."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import deque
from typing import Callable, Iterator, NamedTuple

from ..errors import ProtocolError, TransferFailed
from .messages import FILE, FOLDER, FOLDER_END, LINK, MAX_HOLE, PIECE, Entry, check_path

CHECKPOINTS = 128
"""States of the digest kept while a file is read: a new session resumes at one of the last 16 MiB."""
ZEROS = bytes(1 << 20)


class Item(NamedTuple):
    """An entry and its path here."""

    entry: Entry
    path: bytes


class Total(NamedTuple):
    """The totals of a transfer, counted before it."""

    files: int
    size: int


def walk(paths: list[str], complain: Callable[[str], None]) -> Iterator[Item]:
    """Everything to send, in order: a folder before its contents, its end after them.

    Args:
        paths: files and folders. As with rsync, `folder/` means the folder's contents, `folder` the folder too.
        complain: takes a text about each path that cannot be sent.
    """
    index = 0

    def item(kind: int, name: bytes, path: bytes, status: os.stat_result, target: bytes = b"") -> Item | None:
        nonlocal index
        size = status.st_size if kind == FILE else 0
        mode = stat.S_IMODE(status.st_mode) & 0o777
        try:
            check_path(name)
        except ProtocolError as error:
            complain(f"{os.fsdecode(path)}: {error}")
            return None
        index += 1
        return Item(Entry(index - 1, kind, name, mode, status.st_mtime_ns, size, target), path)

    def visit(name: bytes, path: bytes) -> Iterator[Item]:
        try:
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            if kind == stat.S_IFREG:
                found = item(FILE, name, path, status)
            elif kind == stat.S_IFLNK:
                found = item(LINK, name, path, status, os.readlink(path))
            elif kind == stat.S_IFDIR:
                names = sorted(os.listdir(path))
                found = item(FOLDER, name, path, status)
                if found:
                    yield found
                    yield from inside(name + b"/", path, names)
                    found = item(FOLDER_END, name, path, status)
            else:
                complain(f"{os.fsdecode(path)}: is no file, folder or symbolic link")
                return
        except OSError as error:
            complain(f"{os.fsdecode(path)}: {error.strerror}")
            return
        if found:
            yield found

    def inside(prefix: bytes, path: bytes, names: list[bytes]) -> Iterator[Item]:
        for each in names:
            yield from visit(prefix + each, os.path.join(path, each))

    for given in paths:
        path = os.fsencode(given)
        if given.endswith(("/", "/.")) or given in (".", ".."):
            try:
                yield from inside(b"", path, sorted(os.listdir(path)))
            except OSError as error:
                complain(f"{given}: {error.strerror}")
        else:
            yield from visit(os.path.basename(path), path)


def count(paths: list[str]) -> Total:
    """Count a walk's items, for progress; the walk itself reports errors."""
    files = size = 0
    for item in walk(paths, lambda _: None):
        if item.entry.kind == FILE:
            files += 1
            size += item.entry.size
    return Total(files, size)


class FileReader:
    """A file that is being sent; `position` counts the bytes read.

    It must stay the file of its entry: the end of the file checks that.
    """

    def __init__(self, item: Item) -> None:
        """Open the file.

        Raises:
            OSError: it cannot be opened.
            TransferFailed: the file no longer matches its entry.
        """
        self.item = item
        self.position = 0
        self._digest = hashlib.sha256()
        self._checkpoints: deque[tuple[int, hashlib._Hash]] = deque(maxlen=CHECKPOINTS)
        self._fd = os.open(item.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._sparse = self._check().st_blocks * 512 < item.entry.size
        except BaseException:
            self.close()
            raise

    def seek(self, offset: int, digest: bytes) -> None:
        """Resume after the first `offset` bytes if `digest` is theirs, else at the start.

        Raises:
            OSError: it cannot be read.
        """
        while self._checkpoints and self._checkpoints[-1][0] > offset:
            self._checkpoints.pop()
        if self._checkpoints:
            self.position, kept = self._checkpoints[-1]
            self._digest = kept.copy()
        else:
            self._begin()
        if offset <= self.item.entry.size:
            while self.read(offset) is not None:
                pass
        if self.position != offset or self._digest.digest() != digest:
            self._begin()

    def read(self, end: int | None = None) -> tuple[bytes, int] | None:
        """Return the next bytes as (bytes, 0), or the next hole as (b"", its length); None at the end, or at `end`.

        Raises:
            OSError: it cannot be read.
        """
        left = (self.item.entry.size if end is None else end) - self.position
        if left <= 0:
            return None
        hole = min(self._hole(), left, MAX_HOLE) if self._sparse else 0
        if hole:
            for start in range(0, hole, len(ZEROS)):
                self._digest.update(ZEROS[: hole - start])
            self._advance(hole)
            return b"", hole
        data = os.pread(self._fd, min(left, PIECE), self.position)
        if not data:
            return None
        self._digest.update(data)
        self._advance(len(data))
        return data, 0

    def finish(self) -> bytes:
        """Return the digest of the whole file.

        Raises:
            OSError: fstat failed.
            TransferFailed: it has changed since its entry was sent.
        """
        if self.position != self.item.entry.size:
            raise TransferFailed("the file became shorter while it was sent")
        self._check()
        return self._digest.digest()

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    def _begin(self) -> None:
        self.position = 0
        self._digest = hashlib.sha256()
        self._checkpoints.clear()

    def _advance(self, length: int) -> None:
        self.position += length
        self._checkpoints.append((self.position, self._digest.copy()))

    def _hole(self) -> int:
        """Return the length of the hole at this position, 0 for none."""
        try:
            return os.lseek(self._fd, self.position, os.SEEK_DATA) - self.position
        except OSError as error:
            # ENXIO: only a hole up to the end; else the file system has no holes.
            return self.item.entry.size - self.position if error.errno == errno.ENXIO else 0

    def _check(self) -> os.stat_result:
        status = os.fstat(self._fd)
        entry = self.item.entry
        if not stat.S_ISREG(status.st_mode) or (status.st_size, status.st_mtime_ns) != (entry.size, entry.modified):
            raise TransferFailed("the file changed while it was sent")
        return status
