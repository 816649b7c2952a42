"""A keeper's entry in the list of what runs here, by which `virtserial ls` and names like VM/PORT find it.

| file of the folder | what |
|---|---|
| PID.json | the process, when it started, the name of its VM; written once all is open, removed at the end |
| PID.qmp | a QMP socket, 0600, for any number of clients: it answers questions, and runs what `ALLOWED` names |

The entry names no path, so it cannot lead anywhere else; who reads it (client/registry.py) believes nothing in it that
the kernel does not confirm.  A process without an entry serves as well: what goes wrong here is only logged.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from typing import TYPE_CHECKING

from virtserial.daemon.keeper.acceptor import Acceptor
from virtserial.daemon.keeper.run_directory import registry_directory

if TYPE_CHECKING:
    from virtserial.daemon.keeper.keeper import Keeper
    from virtserial.monitor.registry_client import RegistryClients

log = logging.getLogger("virtserial.keeper")

BACKLOG = 16
VERSION = 1


class Registration:
    """
    Args:
        keeper: what the socket's clients ask about.
        name: the VM's; "" to be called after the process.
    """

    def __init__(self, keeper: Keeper, name: str) -> None:
        self._keeper = keeper
        self._name = name or str(os.getpid())
        self._listener: socket.socket | None = None
        self._acceptor: Acceptor | None = None
        self._clients: RegistryClients | None = None
        self._folder = -1

    def begin(self) -> None:
        """Listen, and write the entry; does nothing without a folder that is ours to write in."""
        self._keeper.workers.read_ahead.append(self._make_clients)
        pid = os.getpid()
        try:
            path = registry_directory()
            os.makedirs(path, mode=0o700, exist_ok=True)
            self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._listen(f"{pid}.qmp")
            self._write(f"{pid}.json", {"version": VERSION, "pid": pid, "start": start_time(pid), "name": self._name})
        except OSError as error:
            log.info("`virtserial ls` will not show this process: %s", error)
            self.end()

    def _listen(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._folder)  # a predecessor's, of this process or of one that was killed
        listener = socket.socket(socket.AF_UNIX)
        try:
            path = f"/proc/self/fd/{self._folder}/{name}"
            listener.bind(path)
            os.chmod(path, 0o600)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        self._listener = listener
        self._acceptor = Acceptor(self._keeper.loop, listener, "registry", self._client_came)

    def _write(self, name: str, entry: dict[str, object]) -> None:
        new = f"{name}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new, dir_fd=self._folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(new, flags, 0o600, dir_fd=self._folder)
        try:
            os.write(fd, json.dumps(entry).encode() + b"\n")
        finally:
            os.close(fd)
        os.rename(new, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def _client_came(self, client: socket.socket) -> None:
        client.setblocking(False)
        self._make_clients().add(client)

    def _make_clients(self) -> RegistryClients:
        """Return what serves the clients.  Its import is late: a start need not wait for it, nor programs that only
        read entries."""
        if self._clients is None:
            from virtserial.monitor.registry_client import RegistryClients

            self._clients = RegistryClients(self._keeper)
        return self._clients

    def end(self) -> None:
        """Remove the entry, and let the clients go."""
        if self._clients is not None:
            self._clients.close()
        if self._acceptor is not None:
            self._acceptor.unwatch()
            self._acceptor = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._folder >= 0:
            for ending in ("json", "json.new", "qmp"):
                with contextlib.suppress(OSError):
                    os.unlink(f"{os.getpid()}.{ending}", dir_fd=self._folder)
            os.close(self._folder)
            self._folder = -1


def start_time(pid: int) -> int:
    """When a process started, in the kernel's ticks since boot: a later one of the same number has another.

    Raises:
        OSError: there is no such process.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])
