"""A Linux guest that a command reaches: its driver is checked, by an application there and at the host's end."""

from __future__ import annotations

import ast
import os
import select
import shlex
import subprocess
import time
from functools import partial
from typing import TYPE_CHECKING, Self

from virtserial.client.host_stream import HostStream
from virtserial.conformance.check import Check, Violation
from virtserial.conformance.driver import PATIENCE
from virtserial.conformance.driver_contract import DRIVER_CONTRACT, PORT_HELPERS, DriverCase
from virtserial.rig.channel import SESSION_SCRIPT, GuestError

if TYPE_CHECKING:
    from collections.abc import Sequence

START_TIME = 60.0
"""Seconds until the guest's Python must answer."""


class ShellSession:
    """A Python interpreter in the guest; see driver_contract.App.

    Args:
        command: runs a line of shell, its last argument, in the guest: `ssh root@vm`, `virtserial ssh VM`.

    Raises:
        GuestError: it does not answer.
    """

    def __init__(self, command: Sequence[str]) -> None:
        line = f"exec python3 -u -c {shlex.quote(SESSION_SCRIPT)}"
        try:
            self._process = subprocess.Popen([*command, line], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise GuestError(f"{command[0]}: {error.strerror}") from error
        self._received = b""
        try:
            self(PORT_HELPERS, START_TIME)
        except BaseException:
            self.close()
            raise

    def __call__(self, source: str, timeout: float = 60) -> object:
        self.begin(source)
        return self.finish(timeout)

    def begin(self, source: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(repr(source).encode() + b"\n")
        except BrokenPipeError:
            raise GuestError("the command to the guest has ended") from None

    def finish(self, timeout: float = 60) -> object:
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n\x02" not in self._received:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise GuestError(f"the guest did not write an answer in {timeout:g} s")
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            if not data:
                raise GuestError("the command to the guest has ended")
            self._received += data
        answer, _, self._received = self._received.partition(b"\n\x02")
        succeeded, value = ast.literal_eval(answer.rpartition(b"\x01")[2].decode())
        if not succeeded:
            raise GuestError(value)
        return value

    def close(self) -> None:
        """End the interpreter, which closes what it had open."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _End:
    """A connection to the host's end of the port (driver_contract.End)."""

    def __init__(self, address: str) -> None:
        self._stream = HostStream(address, reconnect=False)
        if not self._stream.wait_connected(PATIENCE):
            self.close()
            raise Violation(f"{address}: nobody listens at the host's end")

    def send(self, data: bytes) -> None:
        self._stream.write(data, PATIENCE)

    def receive(self, count: int) -> bytes:
        return self._stream.readexactly(count, PATIENCE)

    def close(self) -> None:
        self._stream.close()


class HostPort:
    """The port under test (driver_contract.DriverPort)."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self._address = address
        self._ends: list[_End] = []

    def connect(self) -> _End:
        end = _End(self._address)
        self._ends.append(end)
        return end

    def close(self) -> None:
        """Leave the host's end."""
        for end in self._ends:
            end.close()
        self._ends.clear()


class GuestBench:
    """A guest, and the port that is used.

    Args:
        command: see ShellSession.
        name: of the port in the guest.
        address: of its host's end.
    """

    def __init__(self, command: Sequence[str], name: str, address: str) -> None:
        self._command = command
        self._name = name
        self._address = address
        ShellSession(command).close()

    def play(self, case: DriverCase) -> None:
        """Run a case in an interpreter of its own.

        Raises:
            Violation, GuestError: what came was something else.
        """
        port = HostPort(self._name, self._address)
        try:
            with ShellSession(self._command) as app:
                case.act(app, port)
        finally:
            port.close()

    def renew(self) -> None:
        """Each case begins anew anyway."""

    def close(self) -> None:
        """Nothing stays open between two cases."""


def driver_checks() -> list[Check[GuestBench]]:
    """The driver's contract."""
    return [
        Check(f"g{number:02}", case.name.replace("_", " "), case.section, partial(_play, case))
        for number, case in enumerate(DRIVER_CONTRACT, 1)
    ]


def _play(case: DriverCase, bench: GuestBench) -> None:
    bench.play(case)
