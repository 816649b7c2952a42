"""The moving half of a pty: connected while somebody has the terminal open.

The master reports the last close (EPOLLHUP) but no open, so QEMU polls once a second.  Here inotify on the terminal's
node reports opens; if the system has no inotify instance left (fs.inotify.max_user_instances is 128 by default), this
polls, too.
"""

from __future__ import annotations

import contextlib
import os
import select
from typing import TYPE_CHECKING

from virtserial.host_end.stream import DescriptorStream
from virtserial.loop import EPOLLIN

if TYPE_CHECKING:
    from virtserial.accounting import Account
    from virtserial.loop import EventLoop, Timer

POLL_SECONDS = 1.0
"""QEMU's interval (chardev/char-pty.c), without inotify."""


class PtyHostEnd(DescriptorStream):
    """Opens and closes with the terminal.  What is typed while the guest has the port closed stays in the terminal."""

    def __init__(
        self, loop: EventLoop, name: str, master_fd: int, open_watch_fd: int | None, account: Account | None = None
    ) -> None:
        super().__init__(loop, name, master_fd, master_fd, account)
        # The master of a terminal that nobody has open has hung up.
        self._by_edges = True
        self._master_fd = master_fd
        self._open_watch_fd = open_watch_fd
        self._poll_timer: Timer | None = None

    def start(self) -> None:
        self._watch_descriptors()
        if self._open_watch_fd is None:
            self._poll_timer = self._loop.call_later(POLL_SECONDS, self._poll_again)
        else:
            self._watch(self._open_watch_fd, EPOLLIN, self._terminal_opened)
        self._check_terminal()

    def close(self) -> None:
        if not self._closed:
            if self._poll_timer is not None:
                self._poll_timer.cancel()
            super().close()
            if self._open_watch_fd is not None:
                os.close(self._open_watch_fd)

    def _terminal_opened(self, _events: int) -> None:
        if self._open_watch_fd is not None:
            self._account.stray = True
            # One read: a process that opens it in a loop keeps the queue from becoming empty.
            with contextlib.suppress(BlockingIOError):
                os.read(self._open_watch_fd, 4096)
        self._check_terminal()

    def _poll_again(self) -> None:
        self._check_terminal()
        if not self._closed:
            self._poll_timer = self._loop.call_later(POLL_SECONDS, self._poll_again)

    def _check_terminal(self) -> None:
        """Find out whether the terminal is open; `echo text >/dev/pts/N` may already be over."""
        if self._closed or self._finishing:
            return
        poll = select.poll()
        poll.register(self._master_fd, select.POLLIN)
        events = dict(poll.poll(0)).get(self._master_fd, 0)
        gone = bool(events & select.POLLHUP)
        left_something = bool(events & select.POLLIN) and self._wants_input
        if gone and not left_something:
            return
        self._hung_up = gone
        if not self.connected:
            self.connected = True
            self.output_discarded = 0
            self.listener.host_opened()
        if events & select.POLLIN and not self._closed:
            self.readable = True
            self.listener.host_readable()

    def _hang_up(self) -> None:
        if self.connected:
            super()._hang_up()

    def _input_event(self, events: int) -> None:
        if self.connected:
            super()._input_event(events)

    def _input_wanted(self) -> None:
        if not self.connected:
            self._loop.add_turn(self._check_terminal)

    def _deliver_closed(self) -> None:
        if self._closed:
            return
        self.connected = False
        self._hung_up = False
        self._finishing = False
        if self._blocked or self._held:
            self._blocked = self._held = False
            self._rewatch_input()
        self.listener.host_closed()
        self._check_terminal()
