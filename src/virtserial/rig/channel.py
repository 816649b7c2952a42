"""The host's end of the agent channel: commands, scripts and files over the guest's second serial line.

The protocol's frames and kinds are those of virtserial.rig.guestside.agent, which runs at the other end.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from virtserial.errors import VirtserialError
from virtserial.rig.guestside import agent

if TYPE_CHECKING:
    from collections.abc import Callable

FILE_PIECE = 32768


class GuestError(VirtserialError):
    """The guest did not do what was asked: it is gone, too slow, or a script in it failed."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a command in the guest ended.

    Attributes:
        status: its exit status; negative: the signal that ended it.
        output: its standard output and error, in the order they were written.
    """

    status: int
    output: bytes

    @property
    def text(self) -> str:
        """The output as text."""
        return self.output.decode(errors="replace")


class Job:
    """A command or script running in the guest."""

    def __init__(self, channel: AgentChannel, number: int, title: str) -> None:
        self._channel = channel
        self._number = number
        self._title = title
        self._output = bytearray()
        self._status: int | None = None
        self._lost = ""

    @property
    def output(self) -> bytes:
        """What it has written so far."""
        with self._channel.changed:
            return bytes(self._output)

    @property
    def status(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._status

    def send(self, data: bytes) -> None:
        """Gives bytes to its standard input; none at all is an end of file."""
        for start in range(0, max(len(data), 1), 4096):
            self._channel.send(self._number, agent.INPUT, data[start : start + 4096])

    def signal(self, number: int) -> None:
        """Sends a signal to it and all its children."""
        self._channel.send(self._number, agent.SIGNAL, bytes([number]))

    def wait(self, timeout: float = 60) -> Result:
        """Waits for its end.

        Raises:
            GuestError: it still runs after `timeout` seconds, or the guest is gone.
        """
        self._until(lambda: self._status is not None, timeout, "did not end")
        assert self._status is not None
        return Result(self._status, bytes(self._output))

    def expect(self, wanted: bytes, timeout: float = 60) -> bytes:
        """Waits until its output contains `wanted`; removes and returns everything up to and with it.

        Raises:
            GuestError: it ended without, or did not write it in time.
        """
        self._until(lambda: wanted in self._output or self._status is not None, timeout, f"did not write {wanted!r}")
        with self._channel.changed:
            before, found, after = bytes(self._output).partition(wanted)
            if not found:
                ended = f"{self._title}: ended ({self._status}) without writing {wanted!r}"
                raise GuestError(f"{ended}: {before[-2000:]!r}")
            self._output[:] = after
            return before + found

    def _until(self, done: Callable[[], bool], timeout: float, complaint: str) -> None:
        with self._channel.changed:
            self._channel.changed.wait_for(lambda: done() or self._lost, timeout)
            if not done():
                reason = self._lost or f"{complaint} in {timeout} s"
                raise GuestError(f"{self._title}: {reason}; {bytes(self._output[-2000:])!r}")

    def _take(self, kind: int, payload: bytes) -> None:
        if kind == agent.OUTPUT:
            self._output += payload
        elif kind == agent.EXIT:
            (self._status,) = agent.STATUS.unpack(payload)

    def _lose(self, reason: str) -> None:
        self._lost = self._lost or reason


class AgentChannel:
    """One connection to the agent; a thread of its own reads it, so that the guest never waits for the host.

    Attributes:
        changed: notified when anything arrives.
        boot_id: the kernel's id of the boot that runs, empty before the agent's first word.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.changed = threading.Condition()
        self.boot_id = ""
        self._connection = connection
        self._sending = threading.Lock()
        self._numbers = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        self._received = bytearray()
        self._in_step = False
        self._closed = ""
        self._reader = threading.Thread(target=self._read, name="agent channel", daemon=True)
        self._reader.start()

    def wait_for_boot(self, timeout: float, before: str = "") -> None:
        """Waits for the agent of a boot other than `before`.

        Raises:
            GuestError: it did not come in time, or the guest ended.
        """
        with self.changed:
            self.changed.wait_for(lambda: self.boot_id != before or self._closed, timeout)
            if self.boot_id == before:
                raise GuestError(f"the guest's agent did not come up in {timeout} s {self._closed}".rstrip())

    def start(self, kind: int, payload: bytes, title: str) -> Job:
        """Starts a job of one of the agent's kinds."""
        number = next(self._numbers)
        job = Job(self, number, title)
        with self.changed:
            if self._closed:
                raise GuestError(f"{title}: {self._closed}")
            self._jobs[number] = job
        self.send(number, kind, payload)
        return job

    def write_file(self, path: str, data: bytes, mode: int = 0o644, timeout: float = 60) -> None:
        """Writes a file in the guest, in pieces that each wait for their answer."""
        for start in range(0, max(len(data), 1), FILE_PIECE):
            head = agent.WRITE_HEADER.pack(mode, start > 0, len(path.encode())) + path.encode()
            job = self.start(agent.WRITE, head + data[start : start + FILE_PIECE], f"write {path}")
            self._file_result(job, path, timeout)

    def read_file(self, path: str, timeout: float = 60) -> bytes:
        """The content of a file in the guest."""
        return self._file_result(self.start(agent.READ, path.encode(), f"read {path}"), path, timeout)

    @staticmethod
    def _file_result(job: Job, path: str, timeout: float) -> bytes:
        result = job.wait(timeout)
        if result.status:
            raise GuestError(f"{path}: {result.text}")
        return result.output

    def send(self, job: int, kind: int, payload: bytes) -> None:
        """Sends one frame."""
        try:
            with self._sending:
                self._connection.sendall(agent.HEADER.pack(len(payload), job, kind) + payload)
        except OSError as error:
            raise GuestError(f"the guest is gone: {error.strerror}") from error

    def close(self) -> None:
        """Ends the reader."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._connection.close()

    def _read(self) -> None:
        reason = "the guest's machine ended"
        try:
            while data := self._connection.recv(1 << 18):
                with self.changed:
                    self._received += data
                    self._take_frames()
                    self.changed.notify_all()
        except OSError as error:
            reason = f"the agent channel broke: {error.strerror}"
        with self.changed:
            self._closed = reason
            self._lose_jobs(reason)
            self.changed.notify_all()

    def _take_frames(self) -> None:
        # A guest that reboots by itself cuts a frame: the mark before HELLO puts the reader back in step.
        mark = self._received.rfind(agent.SYNC)
        if mark >= 0:
            del self._received[: mark + len(agent.SYNC)]
            self._lose_jobs("the guest was rebooted")
            self._in_step = True
        while self._in_step and len(self._received) >= agent.HEADER.size:
            length, number, kind = agent.HEADER.unpack_from(self._received)
            end = agent.HEADER.size + length
            if len(self._received) < end:
                return
            payload = bytes(self._received[agent.HEADER.size : end])
            del self._received[:end]
            if kind == agent.HELLO:
                self.boot_id = payload.decode()
            elif number in self._jobs:
                self._jobs[number]._take(kind, payload)
                if kind == agent.EXIT:
                    del self._jobs[number]

    def _lose_jobs(self, reason: str) -> None:
        for job in self._jobs.values():
            job._lose(reason)
        self._jobs.clear()


SESSION_SCRIPT = """
import ast, errno, os, sys, time
scope = {'os': os, 'time': time, 'errno': errno, '__name__': '__main__'}
for line in sys.stdin:
    try:
        tree = ast.parse(ast.literal_eval(line), '<session>')
        last = ast.Expression(tree.body.pop().value) if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, '<session>', 'exec'), scope)
        answer = (True, eval(compile(last, '<session>', 'eval'), scope) if last else None)
    except BaseException as error:
        name = errno.errorcode.get(error.errno, '') if isinstance(error, OSError) else ''
        answer = (False, f'{type(error).__name__} {name}: {error}')
    os.write(1, b'\\x01' + repr(answer).encode() + b'\\n\\x02')
"""
"""What a GuestSession runs in the guest: a call is a line of a literal, its answer one between \\x01 and \\n\\x02."""


class GuestSession:
    """A Python interpreter in the guest that keeps its variables from call to call.

        session("import os; fd = os.open('/dev/virtio-ports/a', os.O_RDWR)")
        assert session("os.read(fd, 5)") == b"hello"

    A call runs statements; if the last one is an expression, its value comes back (anything that repr() writes as a
    literal).  An exception in the guest is raised here as a GuestError with its type, its errno's name and its text.
    """

    def __init__(self, channel: AgentChannel) -> None:
        self._job = channel.start(agent.PYTHON, SESSION_SCRIPT.encode(), "session")

    def __call__(self, source: str, timeout: float = 60) -> object:
        """Runs source in the guest and gives the value of its last expression.

        Raises:
            GuestError: it raised there, or did not end in time.
        """
        self.begin(source)
        return self.finish(timeout)

    def begin(self, source: str) -> None:
        """Starts a call without waiting for it; finish() gives its value."""
        self._job.send(repr(source).encode() + b"\n")

    def finish(self, timeout: float = 60) -> object:
        """Waits for the call that begin() started."""
        self._job.expect(b"\x01", timeout)
        succeeded, value = ast.literal_eval(self._job.expect(b"\n\x02", timeout)[:-2].decode())
        if not succeeded:
            raise GuestError(value)
        return value

    def close(self) -> None:
        """Ends the interpreter, which closes what it had open."""
        if self._job.status is None:
            self._job.send(b"")
            deadline = time.monotonic() + 2
            while self._job.status is None and time.monotonic() < deadline:
                time.sleep(0.005)
            if self._job.status is None:
                self._job.signal(9)
                self._job.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
