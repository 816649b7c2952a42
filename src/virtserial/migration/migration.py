"""All that a machine with controllers of ours does to move: what the monitors' commands and QEMU's events go to."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from virtserial.migration.destination import Arrival
from virtserial.migration.hosts import HostsGiver, take_hosts
from virtserial.migration.snapshot import Snapshots
from virtserial.migration.source import Departures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from virtserial.daemon.keeper.host_hand_over import HostHandOver
    from virtserial.migration.machine import MovingMachine
    from virtserial.migration.start import StartOfMachine
    from virtserial.monitor.steps import Steps, T


class Migration:
    """
    Args:
        start: what QEMU's command line says.
        hand_over: of the machine's host ends.
        run_directory: where other processes ask for them.

    Attributes:
        departures, snapshots: see there.
        arrival: see there; None: QEMU has not been started for one.
    """

    def __init__(
        self, machine: MovingMachine, start: StartOfMachine, hand_over: HostHandOver, run_directory: str
    ) -> None:
        self._machine = machine
        self.departures = Departures(machine)
        self._giver = HostsGiver(machine, self.departures, hand_over, run_directory)
        self.departures.on_begin = self._giver.listen
        self.snapshots = Snapshots(machine)
        self.arrival: Arrival | None = None
        if start.is_incoming:
            other = start.take_hosts_from
            take = (lambda: None) if other is None else partial(take_hosts, hand_over, other)
            self.arrival = Arrival(machine, take, autostart=start.autostart)

    def open(self) -> None:
        """QEMU is about to start, with our object.

        Raises:
            ConfigError: it cannot be had.
        """
        self._machine.open_bus(object_is_there=True)

    def begin(self) -> None:
        """QEMU answers."""
        if self.arrival is not None:
            self.arrival.begin()

    def event(self, event: Mapping[str, object]) -> None:
        """QEMU tells of something, on the connection that no client uses."""
        self._machine.event(event)
        self.departures.event(event)
        self.snapshots.event(event)

    # Commands that are ours only while a machine arrives

    def cont(self, forwarded: Steps[T]) -> Steps[T | None]:
        """`cont`; None: it is for later."""
        return (yield from (forwarded if self.arrival is None else self.arrival.cont(forwarded)))

    def stop(self, forwarded: Steps[T]) -> Steps[T]:
        """`stop`."""
        return (yield from (forwarded if self.arrival is None else self.arrival.stop(forwarded)))

    def incoming(self, command: str, forwarded: Steps[T]) -> Steps[T]:
        """`migrate-incoming`."""
        return (yield from (forwarded if self.arrival is None else self.arrival.incoming(command, forwarded)))

    def users_run_state(self, status: dict[str, Any]) -> dict[str, Any]:
        """What query-status returns."""
        return status if self.arrival is None else self.arrival.users_status(status)

    def close(self) -> None:
        """Close the sockets."""
        self._giver.close()
        self._machine.close()
