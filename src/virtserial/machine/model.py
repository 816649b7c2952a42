"""The machine: controllers and ports by id, with QEMU's rules for buses, numbers and names.

This is only a model: the keeper acts once it has accepted a change.  Error texts are QEMU's
(hw/char/virtio-serial-bus.c, system/qdev-monitor.c): scripts match on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.console.wire import MAX_PORTS
from virtserial.errors import ConfigError
from virtserial.options.keyval import did_you_mean, there_is

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

DEFAULT_MAX_PORTS = 31
MAX_VECTORS = 2048
"""PCI_MSIX_FLAGS_QSIZE + 1: as many as an MSI-X table can have."""

MORE_PORTS = "a second -device virtio-serial has room for more ports"
"""vhost-user names the queue of an eventfd by 8 bits: 256 queues, two for each port and two for control."""


class Controller:
    """A virtio-serial device.

    Attributes:
        id: the user's id, or None.
        bus: the name ports refer to.
        name: its name in messages.
        socket: the path of its socket for a VMM; "" if its one VMM came by a descriptor.
        vectors: MSI-X vectors, 0 for INTx.
        unplug: QEMU can delete it though it has MSI-X: the device sends the messages itself (pci/msix.py).
        legacy, modern: which PCI interfaces it has (options/interfaces.py).
        page_per_vq: every queue has a page for its doorbell.
        vhost_user: its VMM speaks vhost-user, and has the PCI function.
        index: number of controllers plugged in before it; its name between keeper and worker.
    """

    def __init__(
        self,
        id: str | None,  # noqa: A002 - QEMU's name of it
        bus: str,
        name: str,
        socket: str,
        max_ports: int = DEFAULT_MAX_PORTS,
        vectors: int = DEFAULT_MAX_PORTS + 1,
        iommu_platform: bool = True,
        event_idx: bool = True,
        indirect_desc: bool = True,
        packed: bool = False,
        in_order: bool = False,
        queue_reset: bool = True,
        emergency_write: bool = True,
        resize_rows_first: bool = False,
        unplug: bool = False,
        legacy: bool = False,
        modern: bool = True,
        page_per_vq: bool = False,
        vhost_user: bool = False,
    ) -> None:
        self.id = id
        self.bus = bus
        self.name = name
        self.socket = socket
        self.max_ports = max_ports
        self.vectors = vectors
        self.iommu_platform = iommu_platform
        self.event_idx = event_idx
        self.indirect_desc = indirect_desc
        self.packed = packed
        self.in_order = in_order
        self.queue_reset = queue_reset
        self.emergency_write = emergency_write
        self.resize_rows_first = resize_rows_first
        self.unplug = unplug
        self.legacy = legacy
        self.modern = modern
        self.page_per_vq = page_per_vq
        self.vhost_user = vhost_user
        self.index = -1
        self.ports: dict[int, Port] = {}


class Port:
    """A port plugged into a controller.

    Attributes:
        number: its number on the controller.
        chardev: the id of its back end, or None.
        serial: number of ports plugged in so far, so that no two are confused.
        guest_open: the guest has it open, as far as the keeper knows.
    """

    __slots__ = (
        "chardev", "cols", "controller", "guest_open", "id", "is_console", "name", "number", "rows", "serial",
    )  # fmt: skip

    def __init__(
        self,
        id: str | None,  # noqa: A002 - QEMU's name of it
        controller: Controller,
        number: int,
        name: str | None,
        is_console: bool,
        chardev: str | None,
        cols: int = 0,
        rows: int = 0,
        serial: int = 0,
    ) -> None:
        self.id = id
        self.controller = controller
        self.number = number
        self.name = name
        self.is_console = is_console
        self.chardev = chardev
        self.cols, self.rows = cols, rows
        self.serial = serial
        self.guest_open = False

    @property
    def driver(self) -> str:
        """QEMU's name for its kind."""
        return "virtconsole" if self.is_console else "virtserialport"


class Machine:
    """All controllers and ports, and which chardevs they use."""

    def __init__(self) -> None:
        self.controllers: list[Controller] = []
        self._ids: dict[str, Controller | Port] = {}
        self._buses: dict[str, Controller] = {}
        self._names: set[str] = set()
        self._users: dict[str, list[Port]] = {}
        self._unnamed_buses = 0
        self._plugged_controllers = 0
        self._plugged_ports = 0

    def describe(self) -> dict[str, object]:
        """Return everything in JSON's types, for `from_description`."""
        return {
            "counts": [self._unnamed_buses, self._plugged_controllers, self._plugged_ports],
            "controllers": [{**vars(controller), "ports": None} for controller in self.controllers],
            "ports": [
                {name: getattr(port, name) for name in Port.__slots__} | {"controller": port.controller.index}
                for port in self.ports()
            ],
        }

    @classmethod
    def from_description(cls, described: Mapping[str, Any]) -> Machine:
        """Return a copy of the described machine, counters included."""
        machine = cls()
        by_index: dict[int, Controller] = {}
        for attributes in described["controllers"]:
            words = {name: value for name, value in attributes.items() if name not in ("index", "ports")}
            controller = by_index[attributes["index"]] = Controller(**words)
            machine._plugged_controllers = attributes["index"]
            machine.add_controller(controller)
        for attributes in described["ports"]:
            words = {name: value for name, value in attributes.items() if name != "guest_open"}
            port = Port(**words | {"controller": by_index[attributes["controller"]]})
            port.guest_open = attributes["guest_open"]
            machine._insert(port)
        machine._unnamed_buses, machine._plugged_controllers, machine._plugged_ports = described["counts"]
        return machine

    def ports(self) -> Iterator[Port]:
        """All ports, by controller in plug order."""
        for controller in self.controllers:
            yield from controller.ports.values()

    def find(self, device_id: str) -> Controller | Port:
        """Return the device of that id.

        Raises:
            ConfigError: there is none.
        """
        device = self._ids.get(device_id)
        if device is None:
            raise ConfigError(f"Device '{device_id}' not found")
        return device

    def users_of(self, chardev_id: str) -> list[Port]:
        """Return the ports that use a chardev; only a multiplexed one has several."""
        return list(self._users.get(chardev_id, ()))

    def user_of(self, chardev_id: str) -> Port | None:
        """Return the port, or the first, that uses a chardev."""
        return next(iter(self.users_of(chardev_id)), None)

    # Controllers

    def name_bus(self, device_id: str | None) -> str:
        """Return the name of a new controller's bus: from its id, else numbered, as qbus_init does."""
        if device_id is not None:
            return f"{device_id}.0"
        self._unnamed_buses += 1
        return f"virtio-serial-bus.{self._unnamed_buses - 1}"

    def name_controller(self) -> str:
        """Return the name in messages of a new controller without an id."""
        return f"virtio-serial{self._plugged_controllers}"

    def add_controller(self, controller: Controller) -> Controller:
        """Plug a controller in.

        Raises:
            ConfigError: its id is taken, or a number is out of range.
        """
        self._claim_id(controller.id)
        if controller.max_ports == 0:
            raise ConfigError("Maximum number of serial ports not specified", f"max_ports= is 1 to {MAX_PORTS}")
        if controller.max_ports > MAX_PORTS:
            raise ConfigError(f"maximum ports supported: {MAX_PORTS}", MORE_PORTS)
        if controller.vectors > MAX_VECTORS:
            raise ConfigError(
                f"{controller.name}: vectors={controller.vectors}, MSI-X has at most {MAX_VECTORS}",
                "without vectors= there are enough",
            )
        controller.index = self._plugged_controllers
        self._plugged_controllers += 1
        self.controllers.append(controller)
        self._buses.setdefault(controller.bus, controller)
        if controller.id is not None:
            self._ids[controller.id] = controller
        return controller

    def remove_controller(self, controller: Controller) -> None:
        """Unplug a controller with its ports."""
        for port in list(controller.ports.values()):
            self.remove_port(port)
        self.controllers.remove(controller)
        self._buses = {other.bus: other for other in reversed(self.controllers)}
        if controller.id is not None:
            del self._ids[controller.id]

    def bus(self, name: str | None, driver: str) -> Controller:
        """Return the controller of a bus; without a name the one added last, as QEMU does.

        Raises:
            ConfigError: there is none.
        """
        if name is None:
            if not self.controllers:
                raise ConfigError(
                    f"No 'virtio-serial-bus' bus found for device '{driver}'",
                    "a controller comes first: -device virtio-serial",
                )
            return self.controllers[-1]
        if name not in self._buses:
            hint = did_you_mean(name, self._buses) or there_is("bus", self._buses)
            raise ConfigError(f"Bus '{name}' not found", hint)
        return self._buses[name]

    # Ports

    def add_port(
        self,
        driver: str,
        device_id: str | None = None,
        bus: str | None = None,
        number: int | None = None,
        name: str | None = None,
        chardev: str | None = None,
        cols: int = 0,
        rows: int = 0,
        chardev_users: int = 1,
        chardev_fronts: int = 0,
    ) -> Port:
        """Plug a port in; without a number it gets the lowest free one, the first console 0.

        Args:
            chardev_users: how many users the chardev may have.
            chardev_fronts: how many it has that are not ports.

        Raises:
            ConfigError: the id, number, name or chardev is taken, or the bus is full.
        """
        is_console = driver == "virtconsole"
        controller = self.bus(bus, driver)
        self._claim_id(device_id)
        if chardev is not None and len(self.users_of(chardev)) + chardev_fronts >= chardev_users:
            why = f"chardev '{chardev}' is already in use"
            hint = "give each port a -chardev of its own, or share this one with mux=on"
            if chardev_users > 1:
                why = f"too many uses of multiplexed chardev '{chardev}' (maximum is {chardev_users})"
                hint = "give it another -chardev"
            raise ConfigError(f"Property '{driver}.chardev' can't take value '{chardev}': {why}", hint)
        takes_zero = is_console and 0 not in controller.ports
        if number is None and takes_zero:
            number = 0
        if number is not None and number in controller.ports:
            hint = "give it another nr=, or none: then it gets the next free number"
            raise ConfigError(f"virtio-serial-bus: A port already exists at id {number}", hint)
        if name in self._names:
            raise ConfigError(f"virtio-serial-bus: A port already exists by name {name}", "give it another name=")
        if number is None:
            number = self._free_number(controller)
        if number >= controller.max_ports:
            raise ConfigError(
                f"virtio-serial-bus: Out-of-range port id specified, max. allowed: {controller.max_ports - 1}",
                f"give controller {controller.name} a larger max_ports=, up to {MAX_PORTS}",
            )
        if number == 0 and not is_console:
            raise ConfigError(
                "Port number 0 on virtio-serial devices reserved for virtconsole devices for backward compatibility.",
                f"nr= is 1 to {controller.max_ports - 1} for a virtserialport",
            )
        self._plugged_ports += 1
        port = Port(device_id, controller, number, name, is_console, chardev, cols, rows, self._plugged_ports)
        self._insert(port)
        return port

    def _insert(self, port: Port) -> None:
        port.controller.ports[port.number] = port
        if port.name is not None:
            self._names.add(port.name)
        if port.chardev is not None:
            self._users.setdefault(port.chardev, []).append(port)
        if port.id is not None:
            self._ids[port.id] = port

    def remove_port(self, port: Port) -> None:
        """Unplug a port; its number, name, id and chardev become free."""
        del port.controller.ports[port.number]
        if port.name is not None:
            self._names.discard(port.name)
        if port.chardev is not None:
            self._users[port.chardev].remove(port)
            if not self._users[port.chardev]:
                del self._users[port.chardev]
        if port.id is not None:
            del self._ids[port.id]

    @staticmethod
    def _free_number(controller: Controller) -> int:
        """The lowest free number from 1 on.  QEMU searches whole words of a bitmap, which shows in its error text."""
        limit = (controller.max_ports + 31) // 32 * 32
        for number in range(1, limit):
            if number not in controller.ports:
                return number
        raise ConfigError(
            "virtio-serial-bus: Maximum port limit for this device reached",
            f"give controller {controller.name} a larger max_ports=, up to {MAX_PORTS}",
        )

    def _claim_id(self, device_id: str | None) -> None:
        if device_id is not None and device_id in self._ids:
            raise ConfigError(f"Duplicate device ID '{device_id}'", "give each device an id= of its own, or none")
