"""The messages of a transfer, and the rules for their contents; all integers are little-endian."""

from __future__ import annotations

import struct
from typing import NamedTuple

from ..errors import ProtocolError

SENDER, RECEIVER = b"virtserial/send", b"virtserial/receive"
"""The purposes of the two ends."""

ENTRY, WANT, DATA, HOLE, END, DONE, FINISH, RESULT, GOODBYE, TOTAL = range(1, 11)

FILE, FOLDER, FOLDER_END, LINK = range(1, 5)
"""Kinds of entries. A folder comes before its contents; its end, with mode and time, comes after them."""

WINDOW = 128
"""The most entries that are announced and not done."""
PIECE = 1 << 17
"""The most bytes of a file in one message; of a hole, MAX_HOLE."""
MAX_HOLE = 1 << 26
MAX_PATH = 4096
MAX_NAME = 255
MAX_DEPTH = 128
MAX_SIZE = (1 << 63) - 1
DIGEST_SIZE = 32

_ENTRY = struct.Struct("<QBHqQH")
_POSITION = struct.Struct("<QQ")
_COUNT = struct.Struct("<Q")
_END = struct.Struct("<QB")
_RESULT = struct.Struct("<QQQ")


class Entry(NamedTuple):
    """A file, folder or symbolic link of a tree.

    Attributes:
        number: its place in the sender's order, from 0.
        kind: FILE, FOLDER, FOLDER_END or LINK.
        path: relative to the tree's root, parts joined by b"/"; no part is empty, "." or "..".
        mode: permission bits, 0o777 at most.
        modified: time of the last change in ns since 1970.
        size: of a file, in bytes.
        target: of a symbolic link.
    """

    number: int
    kind: int
    path: bytes
    mode: int = 0
    modified: int = 0
    size: int = 0
    target: bytes = b""

    def pack(self) -> bytes:
        """The payload of an ENTRY."""
        head = _ENTRY.pack(self.number, self.kind, self.mode, self.modified, self.size, len(self.path))
        return head + self.path + self.target


class Result(NamedTuple):
    """The result of a transfer: files and bytes that the receiver now has, and failures."""

    files: int
    size: int
    failures: int

    def pack(self) -> bytes:
        """The payload of a RESULT."""
        return _RESULT.pack(*self)


def unpack_entry(payload: bytes) -> Entry:
    """Parse an ENTRY and check it.

    Raises:
        ProtocolError: it breaks a rule; the text says which.
    """
    if len(payload) < _ENTRY.size:
        raise ProtocolError(f"an entry of {len(payload)} bytes")
    index, kind, mode, modified, size, length = _ENTRY.unpack_from(payload)
    path = payload[_ENTRY.size : _ENTRY.size + length]
    target = payload[_ENTRY.size + length :]
    if not FILE <= kind <= LINK:
        raise ProtocolError(f"an entry of the unknown kind {kind}")
    if len(path) != length:
        raise ProtocolError("an entry's path is cut")
    check_path(path)
    if size > MAX_SIZE or (size and kind != FILE):
        raise ProtocolError(f"an entry of {size} bytes")
    if (kind == LINK) != bool(target) or len(target) > MAX_PATH or b"\0" in target:
        raise ProtocolError(f"a symbolic link with a target of {len(target)} bytes")
    return Entry(index, kind, path, mode & 0o777, modified, size, target)


def check_path(path: bytes) -> None:
    """Check that a path stays below its folder, and that a file can have it.

    Raises:
        ProtocolError: it breaks a rule; the text says which.
    """
    parts = path.split(b"/")
    if len(path) > MAX_PATH or len(parts) > MAX_DEPTH:
        raise ProtocolError(f"a path of {len(path)} bytes in {len(parts)} parts")
    for part in parts:
        if part in (b"", b".", b"..") or b"\0" in part or len(part) > MAX_NAME:
            raise ProtocolError(f"the path {path[:100]!r} has the part {part[:100]!r}")


def stays_inside(path: bytes, target: bytes) -> bool:
    """Whether a symbolic link at `path` leads to below the folder that `path` is relative to.

    `..` is allowed at the start only: after the name of another link it could lead anywhere.
    """
    depth = path.count(b"/")
    parts = target.split(b"/")
    while parts and parts[0] in (b"..", b"."):
        depth -= parts.pop(0) == b".."
    return not target.startswith(b"/") and depth >= 0 and b".." not in parts


def pack_want(index: int, offset: int, digest: bytes) -> bytes:
    """The receiver has the first `offset` bytes of a file, with the SHA-256 `digest`."""
    return _POSITION.pack(index, offset) + digest


def unpack_want(payload: bytes) -> tuple[int, int, bytes]:
    """(index, offset, digest) of a WANT.

    Raises:
        ProtocolError: the payload is malformed.
    """
    if len(payload) != _POSITION.size + DIGEST_SIZE:
        raise ProtocolError(f"a request of {len(payload)} bytes")
    index, offset = _POSITION.unpack_from(payload)
    return index, offset, payload[_POSITION.size :]


def pack_position(index: int, offset: int) -> bytes:
    """The head of a DATA; the file's bytes follow."""
    return _POSITION.pack(index, offset)


def unpack_data(payload: bytes) -> tuple[int, int, memoryview]:
    """(index, offset, bytes) of a DATA.

    Raises:
        ProtocolError: the payload is malformed.
    """
    if len(payload) < _POSITION.size:
        raise ProtocolError(f"data of {len(payload)} bytes")
    index, offset = _POSITION.unpack_from(payload)
    return index, offset, memoryview(payload)[_POSITION.size :]


def pack_hole(index: int, offset: int, length: int) -> bytes:
    """`length` zeros that take no space."""
    return _POSITION.pack(index, offset) + _COUNT.pack(length)


def unpack_hole(payload: bytes) -> tuple[int, int, int]:
    """(index, offset, length) of a HOLE.

    Raises:
        ProtocolError: the payload is malformed.
    """
    if len(payload) != _POSITION.size + _COUNT.size:
        raise ProtocolError(f"a hole of {len(payload)} bytes")
    index, offset = _POSITION.unpack_from(payload)
    (length,) = _COUNT.unpack_from(payload, _POSITION.size)
    if not 0 < length <= MAX_HOLE:
        raise ProtocolError(f"a hole of {length} zeros")
    return index, offset, length


def pack_end(index: int, digest: bytes, reason: str) -> bytes:
    """The end of a file: its SHA-256, or why it could not be read."""
    return _END.pack(index, bool(reason)) + (_text(reason) if reason else digest)


def unpack_end(payload: bytes) -> tuple[int, bytes, str]:
    """(index, digest, reason) of an END; the reason is empty where there is a digest.

    Raises:
        ProtocolError: the payload is malformed.
    """
    if len(payload) < _END.size:
        raise ProtocolError(f"an end of {len(payload)} bytes")
    index, failed = _END.unpack_from(payload)
    rest = payload[_END.size :]
    if failed:
        return index, b"", _reason(rest) or "no reason given"
    if len(rest) != DIGEST_SIZE:
        raise ProtocolError(f"a digest of {len(rest)} bytes")
    return index, rest, ""


def pack_done(index: int, reason: str) -> bytes:
    """The receiver finished an entry: successfully (no reason), or the reason for failure."""
    return _COUNT.pack(index) + _text(reason)


def unpack_done(payload: bytes) -> tuple[int, str]:
    """(index, reason) of a DONE.

    Raises:
        ProtocolError: the payload is malformed.
    """
    if len(payload) < _COUNT.size:
        raise ProtocolError(f"a completion of {len(payload)} bytes")
    return _COUNT.unpack_from(payload)[0], _reason(payload[_COUNT.size :])


def pack_total(files: int, size: int) -> bytes:
    """A remark: how many files, and bytes, all entries are."""
    return _POSITION.pack(files, size)


def unpack_total(payload: bytes) -> tuple[int, int]:
    """(files, bytes) of a TOTAL.

    Raises:
        ProtocolError: the payload is malformed.
    """
    if len(payload) != _POSITION.size:
        raise ProtocolError(f"a total of {len(payload)} bytes")
    files, size = _POSITION.unpack(payload)
    return files, size


def unpack_result(payload: bytes) -> Result:
    """Parse a RESULT.

    Raises:
        ProtocolError: the payload is malformed.
    """
    if len(payload) != _RESULT.size:
        raise ProtocolError(f"a result of {len(payload)} bytes")
    return Result(*_RESULT.unpack(payload))


def printable(text: str) -> str:
    """A peer's text or a file's name for a terminal: no control characters, no escapes, on one line."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _text(reason: str) -> bytes:
    return reason.encode("utf-8", "replace")[:400]


def _reason(data: bytes) -> str:
    return printable(data[:400].decode("utf-8", "replace"))
