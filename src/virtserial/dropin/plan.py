"""A plan: what of a virtual machine is ours, and QEMU's command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from virtserial.errors import ConfigError
from virtserial.machine.model import Machine
from virtserial.migration.start import StartOfMachine

if TYPE_CHECKING:
    from virtserial.chardev.base import Chardev
    from virtserial.chardev.tls_credentials import TlsCredentials
    from virtserial.dropin.chardevs import SetMember
    from virtserial.options.monitor_options import MonitorOptions


@dataclass
class Plan:
    """What becomes of a command line.

    Attributes:
        words: QEMU's command line, without the program.
        untouched: why nothing is ours and QEMU gets its command line unchanged; else None.
        machine: our controllers and ports.
        chardevs: ours, by id.
        chardev_texts: their -chardev arguments, by id.
        objects: the objects that our chardevs use.
        monitors: ours; the N-th has the stream "monitor/N".
        descriptor_sets: the content of -add-fd.
        descriptors: inherited descriptors that our chardevs use (fd=); QEMU must not have them.
        newest_is_qemus: the last controller is QEMU's: ports without `bus=` go there.
        remarks: lines for the operator.
        decisions: what is whose, one line each.
        start: whether the guest boots or arrives.
        name: QEMU's -name, "" for none.
    """

    words: list[str]
    untouched: str | None = None
    machine: Machine = field(default_factory=Machine)
    chardevs: dict[str, Chardev] = field(default_factory=dict)
    chardev_texts: dict[str, str] = field(default_factory=dict)
    objects: dict[str, TlsCredentials] = field(default_factory=dict)
    monitors: list[MonitorOptions] = field(default_factory=list)
    descriptor_sets: list[SetMember] = field(default_factory=list)
    descriptors: set[int] = field(default_factory=set)
    newest_is_qemus: bool = False
    daemonize: bool = False
    remarks: list[str] = field(default_factory=list)
    decisions: list[str] = field(default_factory=list)
    start: StartOfMachine = field(default_factory=StartOfMachine)
    name: str = ""

    def take_hosts_from(self, run_directory: str) -> None:
        """Take the host ends over from another virtserial-qemu.

        Raises:
            ConfigError: no guest arrives here.
        """
        if not self.start.by_stream:
            raise ConfigError("--take-hosts-from is for a guest that arrives by -incoming")
        self.start = self.start._replace(take_hosts_from=run_directory)
