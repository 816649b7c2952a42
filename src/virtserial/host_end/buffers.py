"""Lists of buffers: take the front of one, fill one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

IOV_MAX = 1024
"""UIO_MAXIOV: how many buffers one readv or writev takes."""


def front_of(buffers: Sequence[memoryview], size: int) -> list[memoryview]:
    """The first `size` bytes of `buffers`, as buffers."""
    front = []
    for buffer in buffers:
        if size < buffer.nbytes:
            if size:
                front.append(buffer[:size])
            break
        front.append(buffer)
        size -= buffer.nbytes
    return front


def move_into(buffers: Sequence[memoryview], waiting: bytearray) -> int:
    """Move waiting bytes into buffers; return how many there was room for."""
    given = 0
    with memoryview(waiting) as rest:
        for buffer in buffers:
            piece = min(buffer.nbytes, len(rest) - given)
            buffer[:piece] = rest[given : given + piece]
            given += piece
            if given == len(rest):
                break
    del waiting[:given]
    return given
