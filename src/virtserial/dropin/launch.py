"""Start a planned virtual machine: fork the device process, then exec QEMU.

QEMU keeps what its starter relies on: pid, parent, signals, exit status, control group, terminal.  So the device
process is not its child: it is forked twice, and init adopts it.  It ends when its "control" stream to QEMU closes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, NoReturn

from virtserial.dropin.run_folder import make_run_folder
from virtserial.errors import ConfigError, VirtserialError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.dropin.plan import Plan

NAME = "virtserial-qemu"
FIRST_DESCRIPTOR = 64
"""The lowest descriptor for streams to QEMU; the starter may pass descriptors below, by number."""
READY = b"ready"
IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Terminals and service managers send them to whole groups.  The device process ignores them: it ends with QEMU."""


class Streams:
    """The streams between QEMU and the device process.

    Attributes:
        ours: by name, our ends.
    """

    def __init__(self) -> None:
        self.ours: dict[str, socket.socket] = {}
        self._qemus: list[int] = []

    def connect(self, name: str) -> int:
        """Create a stream; return the number of QEMU's end."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            fd = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, FIRST_DESCRIPTOR)
            self.ours[name] = socket.socket(fileno=fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, FIRST_DESCRIPTOR))
        self._qemus.append(fd)
        return fd

    def close_ours(self) -> None:
        """Close our ends here; the device process has them."""
        for stream in self.ours.values():
            stream.close()

    def hand_over(self) -> None:
        """Let exec keep QEMU's ends."""
        for fd in self._qemus:
            os.set_inheritable(fd, True)


def start(plan: Plan, streams: Streams, run_directory: str) -> None:
    """Start the device process and wait until every socket is ready.

    Raises:
        ConfigError: it failed; nothing of it is left.
    """
    held = make_run_folder(run_directory)
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _fork_again(plan, streams, run_directory, writer)
    os.close(writer)
    streams.close_ours()
    os.waitpid(child, 0)
    answer = b""
    # Not until the pipe's end: the worker, just forked, holds it a little longer.
    while answer != READY and (piece := os.read(reader, 4096)):
        answer += piece
    os.close(reader)
    os.close(held)
    if answer != READY:
        text, _, hint = answer.decode(errors="replace").partition("\0")
        raise ConfigError(text or "the device process has ended; see its log", hint)


def exec_qemu(program: str, plan: Plan, streams: Streams) -> NoReturn:
    """Exec QEMU.

    Raises:
        ConfigError: it cannot be executed.
    """
    streams.hand_over()
    for fd in plan.descriptors:
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, False)
    execute(program, plan.words)


def execute(program: str, words: Sequence[str]) -> NoReturn:
    """Exec a program.

    Raises:
        ConfigError: it cannot be executed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    # Python ignores these two, and exec would pass that on.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execv(program, [program, *words])
    except OSError as error:
        raise ConfigError(f"{program}: {error.strerror}") from None


# The device process


def _fork_again(plan: Plan, streams: Streams, run_directory: str, status: int) -> NoReturn:
    try:
        if os.fork() == 0:
            _serve(plan, streams, run_directory, status)
    finally:
        os._exit(0)


def _serve(plan: Plan, streams: Streams, run_directory: str, status: int) -> NoReturn:
    try:
        for number in IGNORED_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
            file.write("virtserial")
        _close_what_is_not_ours(plan, streams, status)
        _detach_output(plan)
        from virtserial.dropin.device_process import DeviceProcess

        try:
            with DeviceProcess(plan, streams.ours, run_directory) as process:
                process.start()
                os.write(status, READY)
                os.close(status)
                status = -1
                if plan.daemonize:
                    _to_null(sys.stdout.fileno(), sys.stderr.fileno())
                process.run()
        except VirtserialError as error:
            hint = f"\0{error.hint}" if isinstance(error, ConfigError) and error.hint else ""
            _report(status, f"{error}{hint}")
    except BaseException:
        import traceback

        _report(status, "internal error of virtserial:\n" + traceback.format_exc().rstrip())
    finally:
        os._exit(0)


def _report(status: int, text: str) -> None:
    """Report an error to the starter while it waits, later on standard error."""
    if status >= 0:
        os.write(status, text.encode()[:4000])
    else:
        print(f"{NAME}: {text}".replace("\0", f"\n{NAME}: "), file=sys.stderr, flush=True)


def _close_what_is_not_ours(plan: Plan, streams: Streams, status: int) -> None:
    """Close the descriptors that are QEMU's: a stream closes only when nobody else holds its end."""
    own = {status, *plan.descriptors, *(member.fd for member in plan.descriptor_sets)}
    own |= {stream.fileno() for stream in streams.ours.values()}
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # One of the three was closed: keep its number from being reused.
    previous = 2
    for fd in sorted(fd for fd in own if fd > 2):
        os.closerange(previous + 1, fd)
        previous = fd
    os.closerange(previous + 1, os.sysconf("SC_OPEN_MAX"))


def _detach_output(plan: Plan) -> None:
    """With -daemonize, release standard input, output and error, so that nobody waits for their end.

    Messages still get through until everything is ready.
    """
    if not plan.daemonize:
        return
    os.setsid()
    os.umask(0o027)  # as QEMU does then (os_daemonize)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(fd), "w", buffering=1) for fd in (1, 2))
    _to_null(0, 1, 2)


def _to_null(*fds: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in fds:
        os.dup2(null, fd)
    os.close(null)
