"""How long a guest stands still while it migrates: with QEMU's own virtio-serial, and with ours."""

from __future__ import annotations

import statistics
import tempfile
from contextlib import ExitStack
from typing import TYPE_CHECKING

from support.guests.dropin_guest import PROGRAM, qemu_script
from support.guests.moved_guest import MovedGuest, Traffic

if TYPE_CHECKING:
    from collections.abc import Iterator

PORTS = 30
LOADED = 4


def _words() -> list[str]:
    words = ["-device", "virtio-serial-pci,id=ser0,max_ports=31"]
    for number in range(1, PORTS + 1):
        words += ["-chardev", f"socket,id=chr{number},path=FOLDER/p{number},server=on,wait=off"]
        words += ["-device", f"virtserialport,nr={number},chardev=chr{number},name=p{number},bus=ser0.0"]
    return words


def measure(rounds: int) -> Iterator[tuple[str, str, float]]:
    """Migrate both guests, one after the other, as often.

    Yields:
        (whose device, "idle" or "loaded", blackout in ms) of each migration.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        programs = {"QEMU": ["/bin/sh", qemu_script(folder)], "virtserial": PROGRAM}
        guests = {
            name: stack.enter_context(MovedGuest(_words(), program=program)) for name, program in programs.items()
        }
        for load in ("idle", "loaded"):
            traffic = {}
            if load == "loaded":
                ports = {f"p{number}": f"/dev/virtio-ports/p{number}" for number in range(1, LOADED + 1)}
                traffic = {name: Traffic(guest, ports, pause=0.001) for name, guest in guests.items()}
            for _ in range(rounds):
                for name, guest in guests.items():
                    guest.migrate(traffic.get(name))
                    yield name, load, guest.blackout * 1000
                    if name in traffic:
                        traffic[name].follow()
                        traffic[name].check()


def table(rounds: int) -> str:
    """Measure, and return the table."""
    taken: dict[tuple[str, str], list[float]] = {}
    for name, load, blackout in measure(rounds):
        taken.setdefault((name, load), []).append(blackout)
    lines = ["| device | guest | blackout, ms: median [range] |", "|---|---|---|"]
    for (name, load), times in sorted(taken.items(), key=lambda entry: entry[0][::-1]):
        lines.append(f"| {name} | {load} | {statistics.median(times):.0f} [{min(times):.0f}-{max(times):.0f}] |")
    return "\n".join(lines)
