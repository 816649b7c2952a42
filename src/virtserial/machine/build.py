"""From options to a machine: `-device` becomes controllers and ports."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from virtserial.errors import ConfigError
from virtserial.machine.model import DEFAULT_MAX_PORTS, Controller, Port
from virtserial.options import keyval
from virtserial.options.device_options import VHOST_USER
from virtserial.options.interfaces import interfaces_of
from virtserial.options.values import Values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from virtserial.chardev.base import Chardev
    from virtserial.machine.model import Machine
    from virtserial.options.device_options import DeviceOptions

MAX_CONSOLE_SIZE = 0xFFFF
"""The configuration and RESIZE have 16 bits for each."""


def plug(
    machine: Machine, options: DeviceOptions, chardevs: Mapping[str, Chardev], run_directory: str
) -> Controller | Port:
    """Plug in the device that the options describe.

    Args:
        chardevs: the existing ones, by id.
        run_directory: folder for the socket of a controller that names none.

    Raises:
        ConfigError: in QEMU's words.
    """
    if options.is_controller:
        return machine.add_controller(_controller(machine, options, run_directory))
    properties = Values(options.properties)
    chardev = properties.text("chardev")
    machine.bus(options.bus, options.driver)
    if chardev is not None and chardev not in chardevs:
        raise ConfigError(
            f"Property '{options.driver}.chardev' can't find value '{chardev}'",
            keyval.did_you_mean(chardev, chardevs) or f"it needs a -chardev KIND,id={chardev},...",
        )
    cols, rows = properties.number("cols") or 0, properties.number("rows") or 0
    if max(cols, rows) > MAX_CONSOLE_SIZE:
        raise ConfigError(f"console of {cols} columns and {rows} rows, at most {MAX_CONSOLE_SIZE} each")
    return machine.add_port(
        options.driver,
        options.id,
        options.bus,
        properties.number("nr"),
        properties.text("name"),
        chardev,
        cols,
        rows,
        _users(chardevs[chardev]) if chardev is not None else 1,
        chardevs[chardev].fronts if chardev is not None else 0,
    )


def _users(chardev: Chardev) -> int:
    """How many users a chardev may have: none if it is part of a hub."""
    return 0 if chardev.hub is not None else chardev.max_users


def _controller(machine: Machine, options: DeviceOptions, run_directory: str) -> Controller:
    properties = Values(options.properties)
    interfaces = interfaces_of(options)
    name = options.id or machine.name_controller()
    max_ports, vectors = properties.number("max_ports"), properties.number("vectors")
    max_ports = DEFAULT_MAX_PORTS if max_ports is None else max_ports
    socket = properties.text("socket") or os.path.join(run_directory, f"{name}.sock")
    if any(controller.socket == socket for controller in machine.controllers):
        raise ConfigError(f"socket {socket}: another controller listens there", "give each a socket= of its own")
    return Controller(
        id=options.id,
        bus=machine.name_bus(options.id),
        name=name,
        socket=socket,
        max_ports=max_ports,
        # The Fedora page's default: a vector for each port and one more.  QEMU now has 2.
        vectors=max_ports + 1 if vectors is None else vectors,
        iommu_platform=interfaces.iommu_platform,
        event_idx=properties.flag("event_idx"),
        indirect_desc=properties.flag("indirect_desc"),
        packed=properties.flag("packed"),
        in_order=properties.flag("in_order"),
        queue_reset=properties.flag("queue_reset"),
        emergency_write=properties.flag("emergency-write"),
        resize_rows_first=properties.text("resize-order") == "rows-cols",
        # "auto" is decided by who knows the VMM; nobody does here.
        unplug=properties.text("unplug") == "on",
        legacy=interfaces.legacy,
        modern=interfaces.modern,
        page_per_vq=properties.flag("page-per-vq"),
        vhost_user=options.driver == VHOST_USER,
    )
