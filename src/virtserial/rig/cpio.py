"""A writer for the `newc` cpio format, the one a Linux kernel unpacks as its initramfs.

Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.  Several archives may follow each
other, so a prepared image is extended by appending another archive.
"""

from __future__ import annotations

import stat

MAGIC = b"070701"
ALIGNMENT = 4


class CpioArchive:
    """An archive in memory; paths are given without a leading slash, parents before children."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._folders: set[str] = set()
        self._inode = 0

    def add_file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Adds a regular file, and the folders above it that are not there yet."""
        self._add_parents(path)
        self._add(path, stat.S_IFREG | mode, data)

    def add_link(self, path: str, target: str) -> None:
        """Adds a symbolic link."""
        self._add_parents(path)
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def add_folder(self, path: str, mode: int = 0o755) -> None:
        """Adds a folder, with those above it; one that is there already is left as it is."""
        if path and path not in self._folders:
            self._add_parents(path)
            self._folders.add(path)
            self._add(path, stat.S_IFDIR | mode, b"")

    def add_character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Adds a device node."""
        self._add_parents(path)
        self._add(path, stat.S_IFCHR | mode, b"", (major, minor))

    def finish(self) -> bytes:
        """The whole archive, with its trailer."""
        return b"".join([*self._parts, _entry(0, "TRAILER!!!", 0, b"", (0, 0))])

    def _add_parents(self, path: str) -> None:
        self.add_folder(path.rpartition("/")[0])

    def _add(self, path: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        self._parts.append(_entry(self._inode, path, mode, data, device))


def _entry(inode: int, path: str, mode: int, data: bytes, device: tuple[int, int]) -> bytes:
    name = path.encode() + b"\0"
    user = group = modified = 0
    links, check = 1, 0
    fields = (inode, mode, user, group, links, modified, len(data), 0, 0, *device, len(name), check)
    header = MAGIC + b"".join(b"%08X" % field for field in fields) + name
    return header + bytes(-len(header) % ALIGNMENT) + data + bytes(-len(data) % ALIGNMENT)
