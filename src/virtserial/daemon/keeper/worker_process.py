"""A worker as its keeper sees it: a process, the channel to it, what it was told of, what it leaves when it dies."""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import signal
import sys
from typing import TYPE_CHECKING, Protocol

from virtserial.accounting import LEDGER_SIZE, Ledger, open_counts, read_counts
from virtserial.channel.channel import channel_pair
from virtserial.channel.messages import AddFront, Connect, Controller, Listen, Port
from virtserial.daemon.keeper.package_root import package_root
from virtserial.errors import StateError
from virtserial.named_tuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from virtserial.accounting import Note
    from virtserial.channel.channel import KeeperEnd, WorkerEnd
    from virtserial.channel.messages import FromKeeper, FromWorker

log = logging.getLogger("virtserial.keeper")

SEND_TIMEOUT = 3
"""Seconds the keeper waits for a worker that does not read its channel; then it counts as hung and is replaced."""


class WorkerCode(Protocol):
    """What a worker runs; the keeper knows nothing of it."""

    spawned: str
    """`module:function`, called in a new interpreter with the channel's descriptor, the level and format of the log."""

    def run_forked(self, parent: object, channel: WorkerEnd) -> NoReturn:
        """Be the worker, in a process that was just forked; `parent` is what it must not finalize."""

    def read_ahead(self) -> None:
        """Import here what a worker imports, so that the next one, a copy of this process, is there at once."""


class Remains(NamedTuple):
    """What is left of a worker.

    Attributes:
        status: its wait status.
        notes: what it was about if it was killed.
        restoring: the controller that it was restoring, or None.
    """

    status: int
    notes: list[Note]
    restoring: int | None


class WorkerProcess:
    """A process that was started, with our end of its channel.

    Args:
        pid: our child.
        channel: to it.

    Attributes:
        pidfd: readable when it has ended.
        ledger_fd: its ledger (accounting.py), to be passed to it.
        has_started: it has said Started.
        fault: what it has done that it must not, a few words; None: nothing.
        silent: nothing more is read from it: it has closed its end, or lied.

    Raises:
        OSError: no descriptors are left; the process was ended.
    """

    def __init__(self, pid: int, channel: KeeperEnd) -> None:
        self.pid = pid
        self.channel = channel
        self.has_started = False
        self.fault: str | None = None
        self.silent = False
        self._told_controllers: set[int] = set()
        self._told_ports: set[tuple[int, int]] = set()
        self._told_chardevs: set[str] = set()
        self._counts_fd = -1
        try:
            self.pidfd = os.pidfd_open(pid)
            self.ledger_fd = os.memfd_create("virtserial ledger", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.ledger_fd, LEDGER_SIZE)
            # The keeper maps it: a worker that somebody has taken over must not shrink it.
            fcntl.fcntl(self.ledger_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
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
    def fork(cls, parent: object, code: WorkerCode) -> WorkerProcess:
        """Start a worker as a copy of this process: at once, with the code that runs already.

        Raises:
            OSError: no process can be started.
        """
        ours, theirs = channel_pair()
        pid = os.fork()
        if pid == 0:
            try:
                code.run_forked(parent, theirs)  # does not return
            except BaseException:
                log.exception("no worker can be started")
            finally:
                os._exit(1)  # To clean up is the keeper's matter.
        theirs.close()
        return cls(pid, ours)

    @classmethod
    def spawn(cls, code: WorkerCode) -> WorkerProcess:
        """Start a worker from the code that is installed now; it sends Ready when it has read that.

        Raises:
            OSError: no process can be started.
        """
        ours, theirs = channel_pair()
        fd = theirs.fileno()
        module, _, function = code.spawned.partition(":")
        program = (
            f"import sys; sys.path.append({package_root()!r}); from {module} import {function}; "
            f"{function}({fd}, {logging.root.level}, {_format()!r})"
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

    # What is said

    def send(self, message: FromKeeper, fds: Sequence[int] = ()) -> None:
        """Send a message; the descriptors stay the caller's too.

        Raises:
            OSError: it has ended; BlockingIOError: it has not read for SEND_TIMEOUT.
        """
        match message:
            case Controller(controller):
                self._told_controllers.add(controller)
            case Port(controller, number):
                self._told_ports.add((controller, number))
            case AddFront(chardev) | Connect(chardev) | Listen(Connect(chardev)):
                self._told_chardevs.add(chardev)
        self.channel.send(message, fds)

    def receive(self) -> tuple[FromWorker, list[int]] | None:
        """Return its next message and the descriptors, the caller's now; None if there is none yet.

        Raises:
            EOFError: it has closed its end, and everything that it sent has been received.
            StateError: the message makes no sense, or names what it was never told of.
        """
        received = self.channel.receive()
        if received is not None and not self._knows(received[0]):
            for fd in received[1]:
                os.close(fd)
            raise StateError(f"{received[0]!r:.120} is of something that it was never told of")
        return received

    def _knows(self, message: FromWorker) -> bool:
        controller, number, chardev = (getattr(message, name, None) for name in ("controller", "number", "chardev"))
        if chardev is not None:
            return chardev in self._told_chardevs
        if controller is None:
            return True
        is_of_port = hasattr(message, "serial")
        return (controller, number) in self._told_ports if is_of_port else controller in self._told_controllers

    # Its end

    def kill(self) -> None:
        """End it by force; `pidfd` tells when it has."""
        os.kill(self.pid, signal.SIGKILL)

    def reap(self) -> Remains:
        """The process has ended: let go of it."""
        notes: list[Note] = []
        restoring = None
        try:
            with mmap.mmap(self.ledger_fd, LEDGER_SIZE) as memory, memoryview(memory) as view:
                ledger = Ledger(view)
                restoring = ledger.restoring
                notes = self._notes(ledger)
        except (OSError, StateError) as error:
            log.error("worker %d: what it was about is not known: %s", self.pid, error)
        _, status = os.waitpid(self.pid, 0)
        for fd in (self.pidfd, self.ledger_fd, self._counts_fd):
            if fd >= 0:
                os.close(fd)
        self.channel.close()
        return Remains(status, notes, restoring)

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
