"""The driver as a process of its own: every port of its devices is a pseudo-terminal in a run directory.

    python3 -m virtserial.driver.process --socket /run/virtserial/ser0.sock --run-dir /run/ports

A device that is lost is looked for again once a second; its ports are there again when it is.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from virtserial.driver.pty_ports import PtyPorts, RunDirectory
from virtserial.driver.vfio_user_device import open_vfio_user_device
from virtserial.errors import PeerError
from virtserial.loop import EPOLLIN, EventLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from virtserial.driver.console_driver import ConsoleDriver
    from virtserial.driver.ports import Port
    from virtserial.loop import Timer

RETRY_SECONDS = 1.0


class DeviceSession:
    """One device, kept in use: opened, and opened again after it was lost.

    Args:
        report: takes a line whenever something happens that a person may want to know.
    """

    def __init__(
        self, loop: EventLoop, path: str, directory: RunDirectory, number: int, report: Callable[[str], None]
    ) -> None:
        self._loop = loop
        self._path = path
        self._report = report
        self._driver: ConsoleDriver | None = None
        self._retry: Timer | None = None
        self._ports = PtyPorts(
            loop, directory, number, announce=self._announce, report=report, failed=self._device_failed
        )

    def open(self) -> None:
        """Connect and start the driver.

        Raises:
            PeerError: it cannot be used now.
        """
        driver = open_vfio_user_device(self._path, self._loop, self._ports)
        try:
            driver.start()
        except BaseException:
            driver.close()
            raise
        self._driver = driver

    def close(self) -> None:
        """Reset the device and let go of it."""
        if self._retry is not None:
            self._retry.cancel()
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def _announce(self, link: str, port: Port) -> None:
        self._report(f"{link}: port {port.number} of {self._path}")

    def _device_failed(self, error: PeerError) -> None:
        self._report(f"{self._path}: {error}")
        self._retry = self._loop.call_later(RETRY_SECONDS, self._open_again)

    def _open_again(self) -> None:
        if self._driver is not None:
            self._driver.close()
            self._driver = None
        try:
            self.open()
        except PeerError:
            self._retry = self._loop.call_later(RETRY_SECONDS, self._open_again)
        else:
            self._report(f"{self._path}: in use again")


@contextmanager
def stopped_by_signals(loop: EventLoop) -> Iterator[None]:
    """SIGTERM and SIGINT end `loop.run`."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    old_wakeup_fd = signal.set_wakeup_fd(write_fd)
    old = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    loop.watch(read_fd, EPOLLIN, lambda _events: loop.stop())
    try:
        yield
    finally:
        loop.unwatch(read_fd)
        signal.set_wakeup_fd(old_wakeup_fd)
        for number, handler in old.items():
            signal.signal(number, handler)
        os.close(read_fd)
        os.close(write_fd)


def run(sockets: Sequence[str], run_directory: Path, ready_fd: int | None = None) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        sockets: vfio-user sockets, one for each device.
        run_directory: where the links go; it is made if it is not there.
        ready_fd: closed when all devices are in use.

    Returns:
        The exit status: 1 where a device cannot be used to begin with.
    """
    loop = EventLoop()
    directory = RunDirectory(run_directory)
    sessions: list[DeviceSession] = []

    def report(line: str) -> None:
        print(line, flush=True)

    try:
        run_directory.mkdir(parents=True, exist_ok=True)
        with stopped_by_signals(loop):
            for number, path in enumerate(sockets):
                sessions.append(DeviceSession(loop, path, directory, number, report))
                sessions[-1].open()
            if ready_fd is not None:
                os.close(ready_fd)
            loop.run()
    except (PeerError, OSError) as error:
        print(f"virtserial driver: {error}", file=sys.stderr)
        return 1
    finally:
        for session in sessions:
            session.close()
        loop.close()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; see the module."""
    from argparse import ArgumentParser

    parser = ArgumentParser(prog="virtserial.driver.process", description="Ports as pseudo-terminals.")
    parser.add_argument("--socket", action="append", required=True, help="vfio-user socket of a device; repeatable")
    parser.add_argument("--run-dir", type=Path, required=True, help="directory for links by name")
    parser.add_argument("--ready-fd", type=int, help="descriptor to close when the devices are in use")
    options = parser.parse_args(arguments)
    return run(options.socket, options.run_dir, options.ready_fd)


if __name__ == "__main__":
    sys.exit(main())
