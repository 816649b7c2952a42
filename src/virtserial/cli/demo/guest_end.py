"""The guest's end of the demonstration, without a VM: the embedded driver on both devices, a shell on each console.

Files go from disk into DMA memory and from DMA memory to disk by the kernel's hand (readv, writev).
"""

from __future__ import annotations

import os
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from virtserial.cli.demo.end import make_files, report, report_digests, wait_for_go
from virtserial.cli.demo.plan import Plan, incoming, outgoing
from virtserial.driver.bridge import PortBridge
from virtserial.driver.console_driver import DriverListener
from virtserial.driver.pty_ports import PtyPort
from virtserial.driver.run_directory import RunDirectory
from virtserial.driver.vfio_user_device import open_vfio_user_device
from virtserial.errors import BackendError, ConfigError, PeerError, VirtserialError
from virtserial.host_end.base import HostEnd
from virtserial.loop import EPOLLIN, EventLoop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.driver.ports import Port

REPORT_SECONDS = 0.1


class FilesEnd(HostEnd):
    """An application's end that sends one file and receives another.

    Attributes:
        sent, received: bytes so far.
        seconds: from the beginning to the last byte received of `size`.
    """

    def __init__(self, name: str, source: str, sink: str, size: int) -> None:
        super().__init__(name)
        self.sent = self.received = 0
        self.seconds = 0.0
        self._size = size
        self._started = time.monotonic()
        self._source_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        self._sink_fd = os.open(sink, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)

    def start(self) -> None:
        self.connected = True
        self.listener.host_opened()

    def readv(self, buffers: Sequence[memoryview]) -> int:
        count = os.readv(self._source_fd, buffers)
        self.sent += count
        return count

    def writev(self, buffers: Sequence[memoryview]) -> int:
        try:
            count = os.writev(self._sink_fd, buffers)
        except OSError as error:
            raise BackendError(f"{self.name}: {error.strerror}") from error
        self.received += count
        if self.received >= self._size:
            self.seconds = time.monotonic() - self._started
        return count

    def close(self) -> None:
        if self.connected:
            self.connected = False
            os.close(self._source_fd)
            os.close(self._sink_fd)


class ShellConsole:
    """A console port as a terminal, with a shell on it."""

    def __init__(self, loop: EventLoop, directory: RunDirectory, port: Port, node: str) -> None:
        self._pty = PtyPort(loop, directory, port, node)
        self._pty.open()
        self._pty.update()
        terminal = str(directory.path / node)
        self._terminal_fd = os.open(terminal, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        set_cooked(self._terminal_fd)
        # A session leader without a terminal gets the first one it opens as its controlling terminal.
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", 'exec /bin/sh -i <"$0" >"$0" 2>&1', os.path.realpath(terminal)],
            start_new_session=True,
            cwd=directory.path,
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "TERM": "dumb", "PS1": "guest$ "},
        )

    def close(self) -> None:
        """End the shell."""
        self._shell.kill()
        self._shell.wait()
        os.close(self._terminal_fd)
        self._pty.close()


def set_cooked(fd: int) -> None:
    """Give a terminal the line editing, echo and signals that a shell's user expects."""
    settings = termios.tcgetattr(fd)
    settings[0] |= termios.ICRNL | termios.IXON
    settings[1] |= termios.OPOST | termios.ONLCR
    settings[3] |= termios.ISIG | termios.ICANON | termios.IEXTEN
    settings[3] |= termios.ECHO | termios.ECHOE | termios.ECHOK
    termios.tcsetattr(fd, termios.TCSANOW, settings)


class Controller(DriverListener):
    """Waits for one device's ports, and takes them into use as they show themselves."""

    def __init__(self, loop: EventLoop, plan: Plan, number: int, directory: RunDirectory) -> None:
        self.ports: dict[str, Port] = {}
        self.consoles: dict[int, ShellConsole] = {}
        self.error: PeerError | None = None
        self._loop = loop
        self._plan = plan
        self._number = number
        self._directory = directory
        self.driver = open_vfio_user_device(plan.device_socket(number), loop, self)
        self.driver.start()

    def port_changed(self, port: Port) -> None:
        """Its name or kind came."""
        if port.is_console:
            if port.number not in self.consoles:
                node = f"vport{self._number}p{port.number}"
                self.consoles[port.number] = ShellConsole(self._loop, self._directory, port, node)
        elif port.name:
            self.ports[port.name] = port

    def device_failed(self, error: PeerError) -> None:
        """It is over."""
        self.error = error

    @property
    def complete(self) -> bool:
        """Whether all that the plan has of this controller is there."""
        if self.error is not None:
            raise self.error
        names = {port.name for port in self._plan.ports if port.controller == self._number}
        return names <= set(self.ports) and bool(self.consoles)

    def close(self) -> None:
        """End everything."""
        for console in self.consoles.values():
            console.close()
        self.driver.close()


def move_files(loop: EventLoop, plan: Plan, ports: dict[str, Port], controllers: list[Controller]) -> None:
    """Move every port's two files, all at once, and report on it."""
    ends: dict[str, FilesEnd] = {}
    bridges: dict[str, PortBridge] = {}
    failures: list[BackendError] = []

    def ended(error: BackendError | None) -> None:
        failures.append(error or BackendError("a port was closed before its time"))

    for planned in plan.ports:
        name, folder = planned.name, plan.guest_folder
        ends[name] = FilesEnd(name, outgoing(folder, planned), incoming(folder, planned), plan.size)
        bridges[name] = PortBridge(loop, ports[name], ends[name], ended)
        bridges[name].start()
    next_report = 0.0
    while True:
        done = all(end.received >= plan.size <= end.sent for end in ends.values())
        done = done and all(ports[name].flushed() for name in ends)
        if done or time.monotonic() >= next_report:
            next_report = time.monotonic() + REPORT_SECONDS
            report("progress", received={name: end.received for name, end in ends.items()})
        if done:
            break
        if failures:
            raise failures[0]
        for controller in controllers:
            if controller.error is not None:
                raise controller.error
        loop.run_once(timeout=REPORT_SECONDS)
    report("moved", seconds={name: end.seconds for name, end in ends.items()})


def main() -> int:
    """Run one demonstration's guest end; the plan is the only argument."""
    plan = Plan.from_json(sys.argv[1])
    make_files(plan, plan.guest_folder)
    loop = EventLoop()
    directory = RunDirectory(Path(plan.guest_folder))
    controllers: list[Controller] = []
    try:
        for number in plan.controllers:
            controllers.append(Controller(loop, plan, number, directory))  # noqa: PERF401 - closed below if one fails
        while not all(controller.complete for controller in controllers):
            loop.run_once(timeout=5)
        wait_for_go()
        ports = {name: port for controller in controllers for name, port in controller.ports.items()}
        move_files(loop, plan, ports, controllers)
        # The consoles stay in use until the conductor has heard of everything.
        digests = threading.Thread(target=report_digests, args=(plan, plan.guest_folder))
        digests.start()
        loop.watch(sys.stdin.fileno(), EPOLLIN, lambda _events: loop.stop())
        loop.run()
        digests.join()
    except (VirtserialError, OSError) as error:
        hint = f"; {error.hint}" if isinstance(error, ConfigError) and error.hint else ""
        report("failed", reason=f"{error}{hint}")
        return 1
    finally:
        for controller in controllers:
            controller.close()
        loop.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
