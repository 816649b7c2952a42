"""A machine of two halves, QEMU's and ours, as its monitors see it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from virtserial.errors import ConfigError
from virtserial.monitor.joined_chardevs import JoinedChardevs
from virtserial.monitor.joined_devices import JoinedDevices
from virtserial.monitor.qmp import QmpError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from virtserial.migration.migration import Migration
    from virtserial.monitor.operations import Operations

log = logging.getLogger("virtserial.monitor")


class JoinedMachine:
    """Both halves (arguments as of JoinedMonitors).

    Args:
        operations: our half.

    Attributes:
        make_migration: makes `migration`; set before anybody asks.
    """

    make_migration: Callable[[], Migration]

    def __init__(
        self,
        operations: Operations,
        chardev_texts: Mapping[str, str],
        share_object: Callable[[Mapping[str, object]], Mapping[str, object]],
        run_directory: str,
        *,
        newest_is_qemus: bool,
    ) -> None:
        self._migration: Migration | None = None
        self.operations = operations
        self.share_object = share_object
        self.chardevs = JoinedChardevs(operations, chardev_texts)
        self.devices = JoinedDevices(operations, run_directory, newest_is_qemus=newest_is_qemus)

    @property
    def migration(self) -> Migration:
        """How the machine moves.  Most machines never do, so it is made when somebody asks."""
        if self._migration is None:
            self._migration = self.make_migration()
        return self._migration

    def control_event(self, event: Mapping[str, object]) -> None:
        """QEMU tells of something, on the connection that no client uses."""
        self.qemu_event(event)
        if self._migration is not None:
            self._migration.event(event)

    def shows(self, event: Mapping[str, object]) -> bool:
        """Whether clients get an event of QEMU's."""
        return self._migration is None or self._migration.departures.shows(event)

    def refuse_to_leave(self, command: str) -> None:
        """Check that the machine may be saved or migrated.

        Raises:
            QmpError: it has a controller of ours: QEMU would report success and lose its state.
        """
        controllers = self.operations.keeper.machine.controllers
        if controllers:
            names = ", ".join(controller.name for controller in controllers)
            raise QmpError(
                f"{command} is not supported by virtserial: the state of the virtio-serial controllers ({names}) "
                "cannot be saved"
            )

    def close(self) -> None:
        """Close what a migration has opened."""
        if self._migration is not None:
            self._migration.close()

    def qemu_event(self, event: Mapping[str, object]) -> None:
        """Act on an event of QEMU's; each of its connections brings the same one."""
        data = event.get("data")
        if event["event"] == "DEVICE_DELETED" and isinstance(data, dict):
            self.devices.qemu_has_deleted(data.get("device"))

    def object_was_added(self, properties: Mapping[str, object]) -> None:
        """QEMU has added an object: load TLS credentials for our chardevs too."""
        if properties.get("qom-type") != "tls-creds-x509":
            return
        from virtserial.options.object_options import make_tls_credentials

        object_id = str(properties.get("id"))
        values = {name: value for name, value in properties.items() if name not in ("qom-type", "id")}
        try:
            self.operations.keeper.objects[object_id] = make_tls_credentials(object_id, values)
        except ConfigError as error:
            log.warning("object %s is only in QEMU: %s", object_id, error)
