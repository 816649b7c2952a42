"""Changes while the guest runs: ports come and go, back ends come, go and take each other's place.

The model accepts or refuses first (machine/), then what needs a name or a right is opened here, in the keeper; what the
worker gets are the same messages that a new worker would get.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from virtserial.channel.codec import decode
from virtserial.channel.connections import CONNECTION, is_peer_there
from virtserial.daemon.keeper.run_directory import run_directory
from virtserial.errors import ConfigError
from virtserial.machine.build import plug
from virtserial.machine.model import Controller

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.channel.channel import Message
    from virtserial.channel.connections import Connection
    from virtserial.chardev.base import Chardev
    from virtserial.daemon.keeper.held import HeldDescriptors
    from virtserial.daemon.keeper.keeper import Keeper
    from virtserial.machine.model import Port
    from virtserial.options.device_options import DeviceOptions

    class Send(Protocol):
        def __call__(self, message: Message, fds: Sequence[int] = ()) -> None: ...


class HotPlug:
    """Changes the machine of a keeper that runs.

    Args:
        held: the keeper's descriptors.
        send: to its worker.
    """

    def __init__(self, keeper: Keeper, held: HeldDescriptors, send: Send) -> None:
        self._keeper = keeper
        self._held = held
        self._send = send

    # Devices

    def plug(self, options: DeviceOptions) -> Controller | Port:
        """Plug in a port, or a controller, which then waits for its VMM.

        Raises:
            ConfigError: it cannot be, in QEMU's words.
        """
        keeper = self._keeper
        if options.properties.get("chardev") in keeper.sinks:
            self._refuse_taken(options)
        socket = options.properties.get("socket")
        if socket is not None and keeper.path_policy is not None:
            keeper.path_policy.check([str(socket)])
        device = plug(keeper.machine, options, keeper.chardevs, run_directory())
        if isinstance(device, Controller):
            try:
                keeper.open_controller(device)
            except ConfigError:
                keeper.machine.remove_controller(device)
                raise
            keeper.send_controller(device)
        else:
            self._send(keeper.port_message(device))
            if device.chardev is not None:
                for chardev in keeper.chardevs[device.chardev].with_connections():
                    self._held.send_again(f"chardev/{chardev.id}", self._send)
        return device

    @staticmethod
    def _refuse_taken(options: DeviceOptions) -> None:
        chardev = options.properties["chardev"]
        raise ConfigError(
            f"Property '{options.driver}.chardev' can't take value '{chardev}': chardev '{chardev}' is already in use"
        )

    def unplug(self, device: Controller | Port) -> None:
        """Unplug a port, or a controller with its ports; a VMM that is still there finds its connection closed.

        Connections of chardevs stay open, for the next port that uses them.
        """
        if isinstance(device, Controller):
            self._keeper.machine.remove_controller(device)
            self._send({"type": "unplug controller", "controller": device.index})
            self._keeper.close_controller(device)
        else:
            self._keeper.machine.remove_port(device)
            self._send({"type": "unplug", "controller": device.controller.index, "number": device.number})

    def has_vmm(self, controller: Controller) -> bool:
        """Whether a VMM is connected to a controller."""
        return self._held.message(f"vmm/{controller.index}") is not None

    def port_state(self, port: Port) -> dict[str, bool]:
        """What is known here of a port's two ends: the guest's, and the host's (a connection that was handed over)."""
        connected = False
        if port.chardev is not None:
            for chardev in self._keeper.chardevs[port.chardev].with_connections():
                held = self._held.message(f"chardev/{chardev.id}")
                connected |= held is not None and is_peer_there(decode(CONNECTION, held["connection"]))
        return {"guest": port.guest_open, "host": connected}

    # Back ends

    def is_busy(self, chardev_id: str) -> bool:
        """Whether a port, a monitor or a hub uses a chardev."""
        return self._is_used(chardev_id) or self._keeper.chardevs[chardev_id].hub is not None

    def _is_used(self, chardev_id: str) -> bool:
        if chardev_id in self._keeper.sinks or self._keeper.chardevs[chardev_id].fronts:
            return True
        return self._keeper.machine.user_of(chardev_id) is not None

    def add_chardev(self, chardev: Chardev) -> None:
        """Open a back end.

        Raises:
            ConfigError: it cannot be opened; nothing is left behind.
        """
        self._check_paths(chardev)
        parts = chardev.with_connections() if chardev.kind == "hub" else ()
        for part in parts:
            if self._is_used(part.id):
                chardev.close()
                raise ConfigError(f"chardev '{part.id}' is already in use")
            self._set_hub(part, chardev.id)
        self._keeper.chardevs[chardev.id] = chardev
        try:
            chardev.open(self._keeper.loop, self._keeper)
        except BaseException:
            del self._keeper.chardevs[chardev.id]
            self._held.drop(f"chardev/{chardev.id}")
            chardev.close()
            raise

    def _check_paths(self, chardev: Chardev) -> None:
        """What a monitor's client names must be allowed; what the command line names is."""
        if self._keeper.path_policy is not None:
            try:
                self._keeper.path_policy.check(chardev.paths())
            except ConfigError:
                chardev.close()
                raise

    def _set_hub(self, part: Chardev, hub_id: str | None) -> None:
        """Say of a connection that there is already to which hub it belongs."""
        if (held := self._held.message(f"chardev/{part.id}")) is not None:
            held["hub"] = hub_id

    def change_chardev(self, chardev: Chardev) -> None:
        """Put a new back end in the place of the one of the same id, under its port if it has one.

        A port goes from one connection to the other without a loss: what the old one has not taken goes to the new one.
        If the new one has no connection yet, the guest sees the host's end closed until it has.

        Raises:
            ConfigError: the new one cannot be opened; the old one stays.
        """
        key = f"chardev/{chardev.id}"
        predecessor = self._keeper.chardevs[chardev.id]
        if predecessor.mux or predecessor.kind == "hub" or chardev.mux or chardev.kind == "hub":
            chardev.close()
            raise ConfigError("Mux device hotswap not supported yet")
        self._check_paths(chardev)
        successor = _Successor(self._keeper)
        try:
            chardev.open(self._keeper.loop, successor)
        except BaseException:
            successor.drop()
            chardev.close()
            raise
        self._keeper.chardevs[chardev.id] = chardev
        if predecessor.hub is not None:
            predecessor.hub.replace_part(predecessor, chardev)
        predecessor.close()
        self._held.drop(key)
        if not successor.take_over():
            self._send({"type": "no chardev", "chardev": chardev.id})

    def remove_chardev(self, chardev_id: str) -> None:
        """Close a back end that nobody uses."""
        chardev = self._keeper.chardevs.pop(chardev_id)
        if chardev.kind == "hub":
            for part in chardev.with_connections():
                self._set_hub(part, None)
        self._held.drop(f"chardev/{chardev_id}")
        chardev.close()


class _Successor:
    """Keeps the connections of a chardev that has not yet taken another's place (chardev.base.ConnectionSink)."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._early: tuple[Chardev, Connection, tuple[int, ...]] | None = None
        self._in_place = False

    def connection_opened(self, chardev: Chardev, connection: Connection, fds: tuple[int, ...]) -> None:
        if self._in_place:
            self._keeper.connection_opened(chardev, connection, fds)
        else:
            self._early = chardev, connection, fds

    def take_over(self) -> bool:
        """From now on connections are the keeper's; whether there was one."""
        self._in_place = True
        early, self._early = self._early, None
        if early is not None:
            self._keeper.connection_opened(*early)
        return early is not None

    def drop(self) -> None:
        if self._early is not None:
            for fd in self._early[2]:
                os.close(fd)
