"""The host's end of the demonstration: a client of the ports' sockets, and someone who types on both consoles."""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

from virtserial.cli.demo.end import make_files, report, report_digests, wait_for_go
from virtserial.cli.demo.plan import Plan, incoming, outgoing

if TYPE_CHECKING:
    from virtserial.cli.demo.plan import ConsolePlan, PortPlan

REPORT_SECONDS = 0.1
REPLY_SECONDS = 30.0
LEAST_COMMANDS = 5
PAUSE_SECONDS = 0.2
BUFFER = 1 << 18
PROMPT = re.compile(r"^(guest[$#] )+")


def connect(path: str) -> socket.socket:
    """Return a connection to a unix socket."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection


class Transfer:
    """One port's two files, moved by two threads.

    Attributes:
        sent, received: bytes so far.
        seconds: from the beginning to the last byte received.
    """

    def __init__(self, plan: Plan, port: PortPlan) -> None:
        self.port = port
        self.sent = self.received = 0
        self.seconds = 0.0
        self._plan = plan
        self._connection = connect(port.host_socket)
        self.threads = [threading.Thread(target=target, daemon=True) for target in (self._send, self._receive)]

    def _send(self) -> None:
        with open(outgoing(self._plan.host_folder, self.port), "rb") as file:
            while count := os.sendfile(self._connection.fileno(), file.fileno(), self.sent, BUFFER):
                self.sent += count

    def _receive(self) -> None:
        buffer = memoryview(bytearray(BUFFER))
        started = time.monotonic()
        with open(incoming(self._plan.host_folder, self.port), "wb", buffering=0) as file:
            while self.received < self._plan.size:
                count = self._connection.recv_into(buffer[: self._plan.size - self.received])
                if not count:
                    return
                file.write(buffer[:count])
                self.received += count
        self.seconds = time.monotonic() - started


class Typist:
    """Types commands on a console and checks what the guest's shell answers, as long as files are moving."""

    def __init__(self, plan: Plan, console: ConsolePlan) -> None:
        self._plan = plan
        self._console = console
        self._connection = connect(console.host_socket)
        self._connection.settimeout(REPLY_SECONDS)
        self.finish = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _commands(self, count: int) -> tuple[str, str]:
        """A command, and what its answer must match."""
        port = self._plan.ports[count % len(self._plan.ports)]
        choice = (
            (f"echo $(({1000 + count} * 7))", str((1000 + count) * 7)),
            (f"wc -c < {incoming(self._plan.guest_folder, port)}", r"\d+"),
            ("uname -s", "Linux"),
            ("tty", "/dev/.+"),
        )
        return choice[count % len(choice)]

    def _run(self) -> None:
        count = 0
        while count < LEAST_COMMANDS or not self.finish.is_set():
            command, expected = self._commands(count)
            asked = time.monotonic()
            try:
                answer = self._ask(command, count)
            except OSError as error:
                answer = f"no answer: {error}"
            seconds = time.monotonic() - asked
            matches = re.fullmatch(expected, answer) is not None
            report(
                "console", console=self._console.name, command=command, answer=answer, seconds=seconds, ok=matches
            )
            if not matches:
                return
            count += 1
            self.finish.wait(PAUSE_SECONDS)

    def _ask(self, command: str, count: int) -> str:
        """Type a command and return the last line of what it prints."""
        # The terminal echoes what is typed; `end-$((...))` comes out as `end-N` only when the shell has run it.
        self._connection.sendall(f"{command}; echo end-$(({count} + 0))\n".encode())
        seen = b""
        while True:
            match = re.search(rb"([^\r\n]*)[\r\n]+end-%d\r?\n" % count, seen)
            if match:
                # The prompt stands before the answer where the command was typed before the shell had shown it.
                return PROMPT.sub("", match[1].decode(errors="replace")).strip()
            data = self._connection.recv(65536)
            if not data:
                raise OSError("the console was closed")
            seen += data


def main() -> int:
    """Run one demonstration's host end; the plan is the only argument."""
    plan = Plan.from_json(sys.argv[1])
    make_files(plan, plan.host_folder)
    transfers = [Transfer(plan, port) for port in plan.ports]
    typists = [Typist(plan, console) for console in plan.consoles]
    wait_for_go()
    for thread in [typist.thread for typist in typists] + [t for transfer in transfers for t in transfer.threads]:
        thread.start()
    while True:
        moving = any(thread.is_alive() for transfer in transfers for thread in transfer.threads)
        report("progress", received={transfer.port.name: transfer.received for transfer in transfers})
        if not moving:
            break
        time.sleep(REPORT_SECONDS)
    report("moved", seconds={transfer.port.name: transfer.seconds for transfer in transfers})
    # The other end says when it has everything too; the consoles are in use until then.
    sys.stdin.readline()
    for typist in typists:
        typist.finish.set()
    for typist in typists:
        typist.thread.join()
    report_digests(plan, plan.host_folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
