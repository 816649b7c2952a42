"""A worker as its keeper sees it: a process, the channel to it, and what it leaves behind when it dies."""

from __future__ import annotations

import logging
import mmap
import os
import signal
import sys
from typing import TYPE_CHECKING

import virtserial
from virtserial.accounting import LEDGER_SIZE, Ledger, open_counts, read_counts
from virtserial.channel.channel import Channel
from virtserial.errors import StateError

if TYPE_CHECKING:
    from virtserial.accounting import Note

log = logging.getLogger("virtserial.keeper")

SEND_TIMEOUT = 3
"""Seconds the keeper waits for a worker that does not read its channel; then it counts as hung and is replaced."""


class WorkerProcess:
    """A process that was started, with our end of its channel.

    Args:
        pid: our child.
        channel: to it.

    Attributes:
        pidfd: readable when it has ended.
        ledger_fd: its ledger (accounting.py), to be passed to it.

    Raises:
        OSError: no descriptors are left; the process was ended.
    """

    def __init__(self, pid: int, channel: Channel) -> None:
        self.pid = pid
        self.channel = channel
        self._counts_fd = -1
        try:
            self.pidfd = os.pidfd_open(pid)
            self.ledger_fd = os.memfd_create("virtserial ledger", os.MFD_CLOEXEC)
            os.ftruncate(self.ledger_fd, LEDGER_SIZE)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            channel.close()
            raise
        try:
            self._counts_fd = open_counts(pid)
        except OSError:
            log.info("this kernel counts no bytes (CONFIG_TASK_IO_ACCOUNTING): a kill may double or lose a batch")
        channel.set_send_timeout(SEND_TIMEOUT)

    @classmethod
    def fork(cls, keeper: object) -> WorkerProcess:
        """Start a worker as a copy of this process: at once, with the code that runs already.

        Raises:
            OSError: no process can be started.
        """
        ours, theirs = Channel.pair()
        pid = os.fork()
        if pid == 0:
            from virtserial.daemon.worker.worker import run_forked

            run_forked(keeper, theirs)  # does not return
        theirs.close()
        return cls(pid, ours)

    @classmethod
    def spawn(cls) -> WorkerProcess:
        """Start a worker from the code that is installed now; it says "ready" when it has read that.

        Raises:
            OSError: no process can be started.
        """
        ours, theirs = Channel.pair()
        fd = theirs.fileno()
        root = os.path.dirname(virtserial.__path__[0])
        program = (
            f"import sys; sys.path.append({root!r}); "
            f"from virtserial.daemon.worker.worker import run_spawned; "
            f"run_spawned({fd}, {logging.root.level}, {_format()!r})"
        )
        os.set_inheritable(fd, True)
        try:
            pid = os.posix_spawn(sys.executable, [sys.executable, "-P", "-c", program], os.environ)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(pid, ours)

    def kill(self) -> None:
        """End it by force; `pidfd` tells when it has."""
        os.kill(self.pid, signal.SIGKILL)

    def bury(self) -> tuple[int, list[Note]]:
        """The process has ended: return its wait status, and what it was about if it was killed."""
        notes: list[Note] = []
        try:
            with mmap.mmap(self.ledger_fd, LEDGER_SIZE) as memory, memoryview(memory) as view:
                notes = self._notes(Ledger(view))
        except (OSError, StateError) as error:
            log.error("worker %d: what it was about is not known: %s", self.pid, error)
        _, status = os.waitpid(self.pid, 0)
        for fd in (self.pidfd, self.ledger_fd, self._counts_fd):
            if fd >= 0:
                os.close(fd)
        self.channel.close()
        return status, notes

    def _notes(self, ledger: Ledger) -> list[Note]:
        try:
            if self._counts_fd < 0:
                return []
            # Of a process that has ended, until it is waited for.
            read, written, _ = read_counts(self._counts_fd)
            return ledger.take_notes(read, written)
        finally:
            ledger.close()


def _format() -> str:
    """How this process writes its log, for a successor to do likewise."""
    for handler in logging.root.handlers:
        if handler.formatter is not None and handler.formatter._fmt:
            return handler.formatter._fmt
    return "virtserial: %(message)s"
