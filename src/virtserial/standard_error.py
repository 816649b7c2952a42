"""Standard error, of a process that must not wait for whoever reads it.

It may be a pipe, a FIFO (`-D`), a terminal or a socket, and its reader may stop.  A guest causes lines in the log: one
that waited for room would stop every guest.  So what there is no room for is lost, and counted.
"""

from __future__ import annotations

import logging
import os
import select
import stat
from typing import Final

PIECE: Final = select.PIPE_BUF
"""Bytes that a pipe takes at once if it says that it has room."""


def has_room() -> bool:
    """Whether it takes PIECE bytes without a wait, or fails."""
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    return bool(poll.poll(0))


def write(text: str) -> bool:
    """Write a text, cut off where there is no more room; returns whether it was written whole."""
    data = text.encode(errors="backslashreplace")
    try:
        for start in range(0, len(data), PIECE):
            if not has_room():
                return False
            os.write(2, data[start : start + PIECE])
    except OSError:
        return False  # The reader has left, the disk is full, or the other process has just taken the room.
    return True


def release() -> None:
    """Hold it and standard output no longer if they are pipes or sockets, whose readers wait until nobody does."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (1, 2):
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            os.dup2(null, fd)
    os.close(null)


class LineHandler(logging.Handler):
    """Writes records; says how many were lost before the next one that is not."""

    _lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        if self._lost and has_room():
            lost, self._lost = self._lost, 0
            notice = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING"}
            text = f"lines that were lost, because standard error took no more: {lost}"
            self.emit(logging.makeLogRecord({**notice, "msg": text}))
        try:
            written = write(self.format(record) + "\n")
        except Exception:
            self.handleError(record)
            return
        self._lost += not written
