"""The target of received files: one folder and nothing outside it, whatever the sender says.

The target opens every folder on the way separately and follows no symbolic link.  A file grows in the folder PARTIAL
beside its place, and is renamed into place when it is complete and checked.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
from typing import Iterator

from ..errors import TransferFailed
from .messages import Entry, stays_inside

PARTIAL = b".virtserial-partial"
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
ZEROS = bytes(1 << 20)
READ_SIZE = 1 << 20


class Target:
    """The folder that is received into."""

    def __init__(self, folder: str, all_links: bool = False) -> None:
        """Open the folder; create it if it is missing.

        Args:
            folder: its path.
            all_links: also create symbolic links that lead out of it.

        Raises:
            OSError: it is impossible.
        """
        os.makedirs(folder, exist_ok=True)
        self._all_links = all_links
        self._root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._parent_path: tuple[bytes, ...] = ()
        self._parent = os.dup(self._root)
        try:
            self._partial = self._open_partial()
        except BaseException:
            self._partial = -1
            self.close()
            raise

    def _open_partial(self) -> int:
        while True:
            with contextlib.suppress(FileExistsError):
                os.mkdir(PARTIAL, 0o700, dir_fd=self._root)
            try:
                fd = os.open(PARTIAL, FOLDER_FLAGS, dir_fd=self._root)
            except FileNotFoundError:
                continue
            # Another receiver may just have removed it.
            fcntl.flock(fd, fcntl.LOCK_SH)
            if os.fstat(fd).st_nlink:
                return fd
            os.close(fd)

    def make_folder(self, entry: Entry) -> None:
        """Create a folder, or make an existing one writable until its end.

        Raises:
            OSError, TransferFailed: it is impossible.
        """
        parent, name = self._place(entry.path)
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            with self._folder(parent, name) as fd:
                mode = stat.S_IMODE(os.fstat(fd).st_mode)
                if mode & 0o700 != 0o700:
                    os.fchmod(fd, mode | 0o700)

    def finish_folder(self, entry: Entry) -> None:
        """Set a folder's mode and time, after its contents.

        Raises:
            OSError, TransferFailed: it is impossible.
        """
        parent, name = self._place(entry.path)
        with self._folder(parent, name) as fd:
            os.fchmod(fd, entry.mode)
            _set_time(fd, entry)

    def make_link(self, entry: Entry) -> None:
        """Create a symbolic link, replacing a file or link.

        Raises:
            OSError, TransferFailed: it is impossible or not allowed.
        """
        if not self._all_links and not stays_inside(entry.path, entry.target):
            raise TransferFailed("the symbolic link leads out of the folder")
        parent, name = self._place(entry.path)
        temporary = _key(entry)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=self._partial)
        os.symlink(entry.target, temporary, dir_fd=self._partial)
        try:
            os.utime(temporary, ns=(entry.modified, entry.modified), dir_fd=self._partial, follow_symlinks=False)
            os.rename(temporary, name, src_dir_fd=self._partial, dst_dir_fd=parent)
        except BaseException:
            os.unlink(temporary, dir_fd=self._partial)
            raise

    def existing(self, entry: Entry) -> bytes | None:
        """Return the digest of the existing file if it has the size and time of the announced one, else None.

        Such a file may be the same.
        """
        try:
            parent, name = self._place(entry.path, make=False)
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=parent)
        except (OSError, TransferFailed):
            return None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or (status.st_size, status.st_mtime_ns) != (entry.size, entry.modified):
                return None
            return _digest_of(fd).digest()
        finally:
            os.close(fd)

    def keep_existing(self, entry: Entry) -> None:
        """The existing file is the same: set its mode.

        Raises:
            OSError, TransferFailed: the mode cannot be set.
        """
        parent, name = self._place(entry.path)
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=parent)
        try:
            os.fchmod(fd, entry.mode)
        finally:
            os.close(fd)

    def partial_state(self, entry: Entry) -> tuple[int, bytes]:
        """Return the number of bytes of an interrupted transfer, and their digest."""
        with contextlib.suppress(OSError):
            fd = os.open(_key(entry), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._partial)
            try:
                size = os.fstat(fd).st_size
                if size <= entry.size:
                    return size, _digest_of(fd).digest()
            finally:
                os.close(fd)
        return 0, hashlib.sha256().digest()

    def begin_file(self, entry: Entry) -> PartialFile:
        """Open the part of an interrupted transfer, or an empty one.

        Raises:
            OSError: it cannot be opened.
            TransferFailed: another process receives it.
        """
        return PartialFile(self._partial, _key(entry))

    def place_file(self, partial: PartialFile, entry: Entry) -> None:
        """Rename a complete file into its place.

        Raises:
            OSError, TransferFailed: it is impossible.
        """
        parent, name = self._place(entry.path)
        os.ftruncate(partial.fd, entry.size)
        os.fchmod(partial.fd, entry.mode)
        _set_time(partial.fd, entry)
        os.rename(partial.name, name, src_dir_fd=self._partial, dst_dir_fd=parent)

    def close(self) -> None:
        """Close the folder; keep partial files for the next transfer, remove an empty PARTIAL that is nobody else's."""
        if self._partial >= 0:
            with contextlib.suppress(OSError):
                fcntl.flock(self._partial, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.rmdir(PARTIAL, dir_fd=self._root)
        for fd in (self._root, self._parent, self._partial):
            if fd >= 0:
                os.close(fd)

    def remove_partials(self) -> None:
        """All entries are done: remove old partial files, but not those that another process uses."""
        for name in os.listdir(self._partial):
            with contextlib.suppress(OSError):
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._partial)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(name, dir_fd=self._partial)
                finally:
                    os.close(fd)

    def _place(self, path: bytes, make: bool = True) -> tuple[int, bytes]:
        """Return the open folder of a path's last part, and that part; the folder stays open until the next call."""
        *folders, name = path.split(b"/")
        if (folders and folders[0] == PARTIAL) or path == PARTIAL:
            raise TransferFailed("the name is taken for files that are being received")
        if tuple(folders) != self._parent_path:
            self._enter(folders, make)
        return self._parent, name

    def _enter(self, folders: list[bytes], make: bool) -> None:
        at = os.dup(self._root)
        try:
            for each in folders:
                try:
                    inner = os.open(each, FOLDER_FLAGS, dir_fd=at)
                except FileNotFoundError:
                    if not make:
                        raise
                    os.mkdir(each, dir_fd=at)
                    inner = os.open(each, FOLDER_FLAGS, dir_fd=at)
                os.close(at)
                at = inner
        except BaseException:
            os.close(at)
            raise
        os.close(self._parent)
        self._parent, self._parent_path = at, tuple(folders)

    @staticmethod
    @contextlib.contextmanager
    def _folder(parent: int, name: bytes) -> Iterator[int]:
        try:
            fd = os.open(name, FOLDER_FLAGS, dir_fd=parent)
        except PermissionError:
            # Our own folder, left unreadable by an interrupted transfer.
            os.chmod(name, 0o700, dir_fd=parent)
            fd = os.open(name, FOLDER_FLAGS, dir_fd=parent)
        try:
            yield fd
        finally:
            os.close(fd)


class PartialFile:
    """A growing file, locked against other processes."""

    def __init__(self, folder: int, name: bytes) -> None:
        """Open an existing part, or create one.

        Raises:
            OSError: it is impossible.
            TransferFailed: another process has it.
        """
        self.name = name
        self._folder = folder
        self.fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its previous owner may have renamed it into place meanwhile: then it is not a partial file.
            if os.fstat(self.fd).st_ino != os.stat(name, dir_fd=folder, follow_symlinks=False).st_ino:
                raise BlockingIOError
            self._digest = _digest_of(self.fd)
        except (BlockingIOError, FileNotFoundError):
            os.close(self.fd)
            raise TransferFailed("another process is receiving it") from None
        except BaseException:
            os.close(self.fd)
            raise
        self.position = os.fstat(self.fd).st_size

    def digest(self) -> bytes:
        """The SHA-256 of its bytes."""
        return self._digest.digest()

    def restart(self) -> None:
        """Truncate it to 0."""
        os.ftruncate(self.fd, 0)
        self.position = 0
        self._digest = hashlib.sha256()

    def write(self, data: memoryview) -> None:
        """Append bytes.

        Raises:
            OSError: the write failed, as on a full disk.
        """
        self._digest.update(data)
        while data:
            count = os.pwrite(self.fd, data, self.position)
            self.position += count
            data = data[count:]

    def skip(self, length: int) -> None:
        """Append zeros that take no space.

        Raises:
            OSError: the file would be too long.
        """
        for start in range(0, length, len(ZEROS)):
            self._digest.update(ZEROS[: length - start])
        os.ftruncate(self.fd, self.position + length)
        self.position += length

    def discard(self) -> None:
        """Remove it."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.name, dir_fd=self._folder)
        self.close()

    def close(self) -> None:
        """Close it; it stays."""
        os.close(self.fd)


def _digest_of(fd: int) -> hashlib._Hash:
    digest = hashlib.sha256()
    position = 0
    while True:
        data = os.pread(fd, READ_SIZE, position)
        if not data:
            return digest
        digest.update(data)
        position += len(data)


def _set_time(fd: int, entry: Entry) -> None:
    try:
        os.utime(fd, ns=(entry.modified, entry.modified))
    except OverflowError:
        raise TransferFailed(f"the time {entry.modified} ns is out of range") from None


def _key(entry: Entry) -> bytes:
    identity = b"%d/%d/%s" % (entry.size, entry.modified, entry.path)
    return hashlib.sha256(identity).hexdigest()[:40].encode()
