"""What the two devices that live in processes have in common: a folder of sockets, hosts at them, a monitor."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from virtserial.client.qmp import QmpClient
from virtserial.conformance.driver import PATIENCE, HostileError

if TYPE_CHECKING:
    import subprocess


class ProcessHouse:
    """A folder for a device's process, and the host's ends that connect to it there.

    Attributes:
        folder: where sockets and logs are; removed by `close`.
        process: set by whoever starts it.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vs-"))
        self.process: subprocess.Popen[bytes] | None = None
        self._sockets: list[socket.socket] = []
        self._hosts: list[socket.socket] = []
        self.qmp: QmpClient

    def connect(self, name: str) -> socket.socket:
        """Connect to the socket of that name once it is there."""
        deadline = time.monotonic() + PATIENCE
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(self.folder / name))
            except OSError as error:
                connection.close()
                if time.monotonic() > deadline or (self.process is not None and self.process.poll() is not None):
                    raise HostileError(f"nobody listens at {name}: {error}\n{self.log()}") from error
                time.sleep(0.01)
            else:
                self._sockets.append(connection)
                return connection

    def join(self, *ports: str) -> None:
        """Connect the monitor, and a host to each of these ports."""
        self.qmp = QmpClient(self.connect("qmp"), PATIENCE)
        for port in ports:
            host = self.connect(port)
            host.setblocking(False)
            self._hosts.append(host)

    def log(self) -> str:
        """What the process has written to standard error."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def take_heard(self) -> bytes:
        """Return what waits at the host's ends, in their order."""
        data = b""
        for host in self._hosts:
            try:
                while piece := host.recv(1 << 18):
                    data += piece
            except BlockingIOError:
                continue
        return data

    def front_ends_open(self, *chardevs: str) -> bool:
        """Whether the guest's side of one of these chardevs is open."""
        open_ends = {each["label"]: each["frontend-open"] for each in self.qmp("query-chardev")}
        return any(open_ends[name] for name in chardevs)

    def check_process(self, what: str) -> None:
        """Raise HostileError if the process has ended."""
        assert self.process is not None
        if self.process.poll() is not None:
            raise HostileError(f"{what} has ended: {self.process.returncode}\n{self.log()[-2000:]}")

    def close(self) -> None:
        """End the process and remove the folder."""
        for each in self._sockets:
            each.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                if stream is not None:
                    stream.close()
        shutil.rmtree(self.folder, ignore_errors=True)
