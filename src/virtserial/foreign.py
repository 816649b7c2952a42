"""Descriptors that VMMs pass to us: how many they may be together, and calls on them, which a VMM may turn into traps.

No call waits longer than 2 * PATIENCE.

O_NONBLOCK belongs to the open file, not to our descriptor: the VMM can clear it after we have set it, and a full
eventfd or pipe then holds whoever writes.  The kernel has no write to an eventfd that never waits, so a timer ends it.

| step | what |
|---|---|
| the call | `count` is odd while it is under way, even between calls |
| the first call for a while | starts a timer: SIGALRM every PATIENCE |
| a signal during the same call as the last one | raises CallWaits in it: it waits, because nothing else takes so long |
| a signal between calls | stops the timer, so that an idle process is not woken |

A call that does not wait is never interrupted, however busy the machine: signals are handled between two steps of the
interpreter, and a call that does not wait has but one at its end.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
from typing import TYPE_CHECKING, Final

from virtserial.errors import PeerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from virtserial.accounting import Account

PATIENCE: Final = 0.1
"""Seconds."""
_ONE: Final = (1).to_bytes(8, "little")
LEFT_FOR_OTHERS: Final = 4
"""One in so many of a process's descriptors is no VMM's: without any left no host is accepted and no worker started."""


def check_room(fds: Sequence[int]) -> None:
    """Count the descriptors of this process, when a VMM has just passed some: the next gets the lowest free number.

    Raises:
        PeerError: the part of VMMs is used up.
    """
    if not fds:
        return
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        count = os.dup(2)
        os.close(count)
    except OSError:
        count = most
    if count >= most - most // LEFT_FOR_OTHERS:
        text = f"the last quarter of this process's {most} descriptors is not for VMMs"
        raise PeerError(text, errno.EMFILE)


class CallWaits(OSError):
    """A call on a descriptor of a VMM's waits; the VMM has made it so."""


class ForeignCalls:
    """The calls of this process's main thread.

    Add 1 to `count` in a `try` before a call, and 1 behind it, also behind an error; call `watch` if not `watched`.

    Attributes:
        count: odd during a call.
        watched: whether the timer runs, or is not wanted.
    """

    __slots__ = ("_last", "count", "watched")

    def __init__(self) -> None:
        self.count = 0
        self.watched = True
        self._last = 0

    def begin(self) -> None:
        """From now on calls are watched; SIGALRM is ours."""
        signal.signal(signal.SIGALRM, self._alarm)
        self.watched = False

    def watch(self) -> None:
        """Start the timer."""
        self.watched = True
        signal.setitimer(signal.ITIMER_REAL, PATIENCE, PATIENCE)

    def _alarm(self, _number: int, _frame: FrameType | None) -> None:
        count, last = self.count, self._last
        self._last = count
        if not count & 1:
            self.watched = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        elif count == last:
            raise CallWaits


calls: Final = ForeignCalls()
"""The process's one timer serves all devices."""


class EventfdSignals:
    """Writes to the eventfds of one VMM.

    Args:
        account: gets what is written.

    Attributes:
        lost: called once when an eventfd made us wait: nothing is written any more, until `begin`.
    """

    __slots__ = ("_account", "_is_lost", "lost")

    def __init__(self, account: Account) -> None:
        self.lost: Callable[[str], None] = lambda why: None
        self._account = account
        self._is_lost = False

    def begin(self) -> None:
        """Another VMM comes."""
        self._is_lost = False

    def send(self, fd: int) -> None:
        """Add 1 to an eventfd that does not block."""
        if self._is_lost:
            return
        try:
            calls.count += 1
            if not calls.watched:
                calls.watch()
            self._account.written += os.write(fd, _ONE)
        except CallWaits:
            self._is_lost = True
            self.lost("the VMM has made an eventfd wait")
        except OSError:
            # A counter that is full has woken its reader already; anything else is no eventfd, and its giver's loss.
            pass
        calls.count += 1
