"""A machine: the controllers and ports of one device process, for programs that block."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any, Final

from virtserial.client.host_stream import HostStream
from virtserial.client.monitor import Monitor
from virtserial.embed.guest import EmbeddedGuest
from virtserial.embed.process import READY_TIME, ServeProcess
from virtserial.errors import ConfigError, StateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

CONTROLLER: Final = "ser0"
"""The id of the first controller."""


class Machine:
    """What `with serve(...)` gives.  Its methods serve one thread.

    Attributes:
        folder: where the process has its sockets; it goes with the machine.
        socket: the first controller's socket.
    """

    def __init__(self) -> None:
        self._process = ServeProcess()
        self._numbers = itertools.count()
        self._ids: dict[str, str] = {}
        self._guests: list[EmbeddedGuest] = []
        self._streams: list[HostStream] = []
        self._vhost_user = False
        self.folder: Path = self._process.folder
        self.socket = self.folder / f"{CONTROLLER}.sock"
        self._monitor: Monitor | None = None

    def start(
        self,
        ports: Iterable[str],
        consoles: Iterable[str],
        options: Sequence[str],
        vhost_user: bool,
        properties: dict[str, object],
    ) -> None:
        """Start the process; see `serve`."""
        self._vhost_user = vhost_user
        driver = "vhost-user-serial" if vhost_user else "virtio-serial"
        controller = {"driver": driver, "id": CONTROLLER, "socket": str(self.socket), **properties}
        words = ["-device", json.dumps(controller)]
        for is_console, names in ((True, consoles), (False, ports)):
            for name in names:
                chardev, device = self._described(name, is_console)
                path = str(self.folder / chardev["id"]).replace(",", ",,")
                words += ["-chardev", f"socket,id={chardev['id']},path={path},server=on,wait=off"]
                words += ["-device", json.dumps(device)]
        qmp = f"unix:{str(self.folder / 'qmp').replace(',', ',,')},server=on,wait=off"
        self._process.start([*words, "--allow-path", str(self.folder), "-qmp", qmp, *options])
        self._monitor = Monitor(f"unix:{self.folder / 'qmp'}", READY_TIME)

    def _described(self, name: str, is_console: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """A chardev's arguments of chardev-add, and a port's of device_add."""
        number = next(self._numbers)
        self._ids[name] = f"port{number}"
        chardev = f"chardev{number}"
        address = {"type": "unix", "data": {"path": str(self.folder / chardev)}}
        data = {"addr": address, "server": True, "wait": False}
        device = {"driver": "virtconsole" if is_console else "virtserialport", "id": f"port{number}"}
        device |= {"bus": f"{CONTROLLER}.0", "chardev": chardev, "name": name}
        return {"id": chardev, "backend": {"type": "socket", "data": data}}, device

    @property
    def monitor(self) -> Monitor:
        """A QMP client, for all that is not here: virtserial.client.Monitor.

        Raises:
            StateError: the machine has stopped; so do all calls that ask the device process.
        """
        if self._monitor is None:
            raise StateError("the machine has stopped")
        return self._monitor

    @property
    def pid(self) -> int:
        """The id of the device process."""
        return self._process.pid

    @property
    def log(self) -> str:
        """What the device process has logged."""
        return self._process.log

    @property
    def qemu_arguments(self) -> list[str]:
        """Words for QEMU's command line, a -device for each controller; QEMU needs shared memory beside them."""
        return list(self._process.qemu_arguments)

    def port(self, name: str) -> HostStream:
        """Return the host's end of a port, connected or about to be; the machine closes it at the end.

        Raises:
            ConfigError: there is no such port, or its chardev is none to connect to.
            PeerError: the device process does not answer.
        """
        port = self.monitor.find_port(name)
        if not port.host_end.startswith(("unix:", "tcp:", "pty:")):
            reader = f"machine.monitor('ringbuf-read', device={port.chardev!r}, size=...) reads it"
            instead = reader if port.host_end == "ringbuf" else "use a chardev socket or pty"
            kind = port.host_end.partition(":")[0] or "none"
            raise ConfigError(f"port {name!r}: its chardev ({kind}) has no socket to connect to: {instead}")
        stream = HostStream(port.host_end)
        self._streams.append(stream)
        return stream

    def plug(self, name: str, *, console: bool = False) -> None:
        """Plug a port, or a console, into the first controller.

        Raises:
            QmpError: it is refused, in QEMU's words.
            PeerError: the device process does not answer.
        """
        chardev, device = self._described(name, console)
        self.monitor.execute("chardev-add", chardev)
        try:
            self.monitor.execute("device_add", device)
        except BaseException:
            self.monitor.execute("chardev-remove", {"id": chardev["id"]})
            raise

    def unplug(self, name: str) -> None:
        """Unplug a port, by its name or id; its host's end is closed.

        Raises:
            ConfigError: there is no such port.
            QmpError: it is refused, in QEMU's words.
            PeerError: the device process does not answer.
        """
        port = self.monitor.find_port(name)
        self.monitor.execute("device_del", {"id": port.id})
        if port.chardev:
            self.monitor.execute("chardev-remove", {"id": port.chardev})

    def wait_guest(self, name: str, is_open: bool = True, timeout: float | None = None) -> bool:
        """Wait until the guest has a port open (or closed); False after `timeout` seconds.

        Raises:
            ConfigError: there is no such port.
            PeerError: the device process does not answer.
        """
        return self.monitor.wait_guest(name, is_open, timeout)

    def attach(self) -> EmbeddedGuest:
        """Attach our guest driver to the first controller: a guest without a VM.  The machine closes it at the end.

        Raises:
            PeerError: another VMM is connected, or the device process is gone.
        """
        if self._monitor is None:
            raise StateError("the machine has stopped")
        guest = EmbeddedGuest(self.socket, vhost_user=self._vhost_user)
        self._guests.append(guest)
        return guest

    def close(self) -> None:
        """End the device process and everything of the machine; a second call does nothing."""
        for guest in self._guests:
            guest.close()
        for stream in self._streams:
            stream.close()
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        self._process.close()
