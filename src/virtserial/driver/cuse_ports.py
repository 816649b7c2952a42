"""Ports as character devices by CUSE.

The kernel keeps a device's name while its /dev/cuse is open.  That must stay open until the last user of an unplugged
port has closed it, and answers ENODEV until then.  If the port returns meanwhile, it gets a device of another name
(`vport0p1.2`), and the node's name is a link to that.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from virtserial.driver.cuse_channel import CLASS, CuseChannel
from virtserial.driver.cuse_node import CuseNode
from virtserial.driver.port_nodes import PortNode
from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from virtserial.driver.ports import Port
    from virtserial.driver.run_directory import RunDirectory
    from virtserial.loop import EventLoop

KERNEL_PORTS: Final = Path("/sys/class/virtio-ports")


class NodeRights(NamedTuple):
    """Permissions and owner of the nodes; -1 keeps an owner."""

    mode: int = 0o600
    user: int = -1
    group: int = -1


class CuseDevices:
    """The character devices of this process, including those of unplugged ports that are still open."""

    def __init__(self, loop: EventLoop, directory: RunDirectory, rights: NodeRights) -> None:
        self.loop = loop
        self.directory = directory
        self.rights = rights
        self.channels: dict[str, CuseChannel] = {}

    def free_name(self, node: str) -> str:
        """Return `node`, or a name derived from it if an unplugged port still holds that device."""
        names = (node if number == 1 else f"{node}.{number}" for number in count(1))
        return next(name for name in names if name not in self.channels)

    def remove(self, name: str) -> None:
        """Remove a device."""
        channel = self.channels.pop(name, None)
        if channel is not None:
            channel.close()

    def close(self) -> None:
        """Remove every device; programs that have one open get errors."""
        for name in list(self.channels):
            self.remove(name)


def first_free_device() -> int:
    """Return the lowest D without a vportDpN of the kernel's driver or of another process."""
    taken = set()
    for folder in (KERNEL_PORTS, CLASS):
        with contextlib.suppress(OSError):
            taken |= {int(match[1]) for name in os.listdir(folder) if (match := re.match(r"vport(\d+)p\d", name))}
    return next(number for number in count() if number not in taken)


class CusePort(PortNode):
    """One port as /dev/vportDpN."""

    def __init__(self, devices: CuseDevices, port: Port, node: str) -> None:
        super().__init__(devices.directory, port, node)
        self._devices = devices
        self._device_name = devices.free_name(node)
        self._cuse_node: CuseNode | None = None
        self._made_node = False

    def open(self) -> None:
        """Make the device, its node and the node's rights.

        Raises:
            ConfigError: CUSE is missing or not accessible, or another process has a device of that name.
        """
        devices, name = self._devices, self._device_name
        channel = CuseChannel(devices.loop, name)
        devices.channels[name] = channel
        try:
            self._place(channel)
        except OSError as error:
            devices.remove(name)
            raise ConfigError(f"{error.filename}: {error.strerror}") from error
        self._cuse_node = CuseNode(self._port, channel, lambda: devices.remove(name))
        channel.serve(self._cuse_node)

    def _place(self, channel: CuseChannel) -> None:
        path = self._path
        if not path.exists():  # /dev may not be a devtmpfs, as in a container.
            os.mknod(path, stat.S_IFCHR | 0o600, channel.device)
            self._made_node = True
        mode, user, group = self._devices.rights
        os.chown(path, user, group)
        os.chmod(path, mode)
        if self._device_name == self._node:
            self._directory.own(self._node)
        else:
            self._directory.link(self._node, self._device_name)

    @property
    def _path(self) -> Path:
        return self._directory.path / self._device_name

    def close(self) -> None:
        """Remove links and node now, and the device after its last close."""
        super().close()
        self._directory.unlink(self._node)
        node = self._cuse_node
        if node is None:
            return
        node.unplug()
        if node.in_use or self._made_node:
            with contextlib.suppress(OSError):
                self._path.unlink()
        if not node.in_use:
            self._devices.remove(self._device_name)
