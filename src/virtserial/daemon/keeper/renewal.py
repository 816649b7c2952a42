"""A renewal: the keeper executes the program that is installed now in its own place.

The process stays the same, with its number, its children and its descriptors; what it knows goes along as a Handover.

| step | by | if it fails |
|---|---|---|
| `begin`: write a document, start a process of the new code that checks it | keeper | refused; the old code serves on |
| check: read all code, and what it would take over | new code | the same, with what it said on standard error |
| Supervisor.retire: stop, so that what is handed over stands still | worker | it is killed after STOP_TIMEOUT |
| `pack`: finish what closes; put document and descriptors into one descriptor | keeper | a worker starts again |
| `execute`: signals wait until the new code can take them | keeper | the same |
| succession.take_over, then Supervisor.start | new code | every VMM's connection is closed in order |
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from virtserial.channel.codec import encode
from virtserial.daemon.keeper.handover import Handover, write_document
from virtserial.daemon.keeper.package_root import package_root
from virtserial.errors import ConfigError
from virtserial.loop import EPOLLIN

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from typing import NoReturn

    from virtserial.chardev.base import Put
    from virtserial.daemon.keeper.document import Document
    from virtserial.daemon.keeper.farewell import Farewell
    from virtserial.daemon.keeper.signals import Signals
    from virtserial.daemon.keeper.supervisor import Supervisor
    from virtserial.loop import EventLoop, Timer

log = logging.getLogger("virtserial.keeper")

ENVIRONMENT = "VIRTSERIAL_HANDOVER"
"""The variable that says which descriptor holds a Handover."""
CHECK_TIMEOUT = 20.0
"""Seconds for the new code to be read, and to read what it would take over."""
MAX_COMPLAINT = 64 << 10
"""Bytes of what the new code says for itself: as many as a pipe takes."""


class Renewal:
    """
    Args:
        workers: of the keeper that is renewed.
        farewell: its own; is finished first.
        describe: returns the whole document of the renewal of that number; `put` takes the descriptors it speaks of.
        signals: are passed on.

    Attributes:
        count: how often it was done.
    """

    def __init__(
        self,
        loop: EventLoop,
        workers: Supervisor,
        farewell: Farewell,
        describe: Callable[[Put, int], Document],
        signals: Signals,
        count: int = 0,
    ) -> None:
        self._loop = loop
        self._workers = workers
        self._farewell = farewell
        self._describe = describe
        self._signals = signals
        self.count = count
        self._check: subprocess.Popen[bytes] | None = None
        self._check_fd = -1
        self._timer: Timer | None = None
        self._executing = False

    @property
    def changing(self) -> bool:
        """Whether one is under way."""
        return self._check is not None or self._executing

    def begin(self) -> None:
        """Have the new code checked, then put it in this program's place; returns at once.

        Raises:
            ConfigError: one is under way already, or the new code cannot be started.
        """
        if self.changing or self._workers.changing:
            raise ConfigError("a process is being replaced already")
        self._workers.refusal = None
        try:
            self._start_check()
        except OSError as error:
            raise ConfigError(f"the new code cannot be looked at: {error.strerror}") from error

    def _start_check(self) -> None:
        import subprocess  # 10 ms that a start does not need

        document = write_document(encode(self._describe(Handover().put, self.count + 1)))
        program = (
            f"import sys; sys.path.append({package_root()!r}); "
            f"from virtserial.cli.serve import check; check({document})"
        )
        try:
            check = subprocess.Popen(
                [sys.executable, "-P", "-c", program],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(document,),
                process_group=0,
            )
        finally:
            os.close(document)
        try:
            self._check_fd = os.pidfd_open(check.pid)
        except OSError:
            # No descriptor is left; else it would count as under way for ever.
            check.kill()
            check.communicate()
            raise
        self._check = check
        self._loop.watch(self._check_fd, EPOLLIN, self._checked)
        self._timer = self._loop.call_later(CHECK_TIMEOUT, check.kill)

    def _checked(self, _: int) -> None:
        status, complaint = self._end_check()
        if status:
            last = complaint.splitlines()[-1] if complaint else f"it ended with status {status}"
            self._refuse(f"it could not take over: {last}")
            return
        self._executing = True
        self._workers.retire(lambda: self._loop.add_turn(self._execute))

    def _end_check(self) -> tuple[int, str]:
        """Wait for the other process, which has ended; return its status and what it has said."""
        check, self._check = self._check, None
        assert check is not None
        assert check.stderr is not None
        if self._timer is not None:
            self._timer.cancel()
        self._loop.unwatch(self._check_fd)
        os.close(self._check_fd)
        with check.stderr as pipe:
            os.set_blocking(pipe.fileno(), False)
            complaint = (pipe.read(MAX_COMPLAINT) or b"").decode(errors="replace").strip()
        return check.wait(), complaint

    def _refuse(self, why: str) -> None:
        self._workers.refusal = f"the new code was not taken: {why}"
        log.error("%s", self._workers.refusal)

    def pack(self) -> int:
        """Return a descriptor that holds all there is; the worker has retired.

        Raises:
            OSError: the kernel does not let so much be under way.
        """
        self._farewell.finish()
        handover = Handover()
        handover.document = encode(self._describe(handover.put, self.count + 1))
        return handover.pack()

    def _execute(self) -> None:
        try:
            packed = self.pack()
            self._signals.pass_on()
            execute(packed)
        except OSError as error:
            self._signals.let_come()
            self._executing = False
            self._refuse(f"{sys.executable} cannot be executed: {error.strerror}")
            self._workers.start_or_try_again()

    def close(self) -> None:
        """Begin nothing more."""
        if self._check is not None:
            self._check.kill()
            self._end_check()


def execute(packed: int) -> NoReturn:
    """Execute this program as it was started, from the code that is installed now, with a Handover.

    Raises:
        OSError: it cannot be executed; `packed` is closed.
    """
    try:
        os.set_inheritable(packed, True)
        environment = {**os.environ, ENVIRONMENT: str(packed)}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    except OSError:
        os.close(packed)
        raise


def left_by_predecessor() -> int | None:
    """Return the descriptor that `execute` has passed to this program, the caller's; a second call finds none."""
    text = os.environ.pop(ENVIRONMENT, "")
    if not text.isdigit():
        return None
    fd = int(text)
    try:
        os.set_inheritable(fd, False)
    except OSError:
        return None
    return fd
