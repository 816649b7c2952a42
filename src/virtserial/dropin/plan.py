"""A plan: what is ours of a virtual machine, and the words that QEMU gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from virtserial.machine.model import Machine

if TYPE_CHECKING:
    from virtserial.chardev.base import Chardev
    from virtserial.chardev.tls_credentials import TlsCredentials
    from virtserial.dropin.chardevs import SetMember
    from virtserial.options.monitor_options import MonitorOptions


@dataclass
class Plan:
    """What is to be done.

    Attributes:
        words: QEMU's command line, without the program.
        untouched: why nothing is ours, and QEMU gets its words as they were given; else None.
        machine: our controllers and ports.
        chardevs: ours, by id.
        chardev_texts: their -chardev arguments, by id.
        objects: what our chardevs use of -object.
        monitors: ours; the N-th has the stream "monitor/N".
        descriptor_sets: what -add-fd says.
        descriptors: inherited descriptors that our chardevs use (fd=); QEMU must not have them.
        newest_is_qemus: the controller that a port without `bus=` goes to is QEMU's.
        remarks: what the operator should know.
        decisions: what is whose, a line each.
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
