"""A virtio console of a QEMU without a processor, driven register by register over the qtest protocol."""

from __future__ import annotations

import os
import select
import subprocess
import time
from typing import TYPE_CHECKING, Final

from virtserial.conformance.driver import PATIENCE, HostileError
from virtserial.conformance.host_ends import HostEnds
from virtserial.conformance.processes import ProcessHouse
from virtserial.conformance.steps import BAR, MAX_PORTS, MEMORY_SIZE, STATUS
from virtserial.console.wire import VIRTIO_ID_CONSOLE
from virtserial.pci.layout import (
    PCI_BASE_ADDRESS_0,
    PCI_COMMAND,
    PCI_VENDOR_ID_REDHAT_QUMRANET,
    REGISTER_BAR,
    TRANSITIONAL_DEVICE_IDS,
    VIRTIO_PCI_DEVICE_ID_BASE,
)
from virtserial.rig.guest import ENDS_WITH_ITS_PARENT
from virtserial.rig.qemu import find_qemu

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_CONSOLES: Final = (VIRTIO_PCI_DEVICE_ID_BASE + VIRTIO_ID_CONSOLE, TRANSITIONAL_DEVICE_IDS[VIRTIO_ID_CONSOLE])
_CONFIG_ADDRESS, _CONFIG_DATA = 0xCF8, 0xCFC
_SUFFIX: Final = {1: "b", 2: "w", 4: "l", 8: "q"}
LOOKS: Final = 6
"""Commands that are answered one by one: between two of them QEMU's main loop does what waits."""
_PIECE: Final = 1024


class QemuMachine:
    """A QEMU with a controller: its own device as the cases expect it, or what somebody's command line says.

    Args:
        options: QEMU's, with a virtio console on the first PCI bus; None: its own device, a console 0 and a port 1.
        addresses: the host's ends of these options' ports.
        program: QEMU; None: the rig's.
        ports: more than one gives its own device so many ports, whose hosts are connected from the start.

    Raises:
        RigUnavailable: there is no QEMU, and none can be fetched.
        HostileError: it does not start, or has no virtio console.
    """

    name = "QEMU"

    def __init__(
        self,
        options: Sequence[str] | None = None,
        addresses: Mapping[int, str] | None = None,
        *,
        program: str | None = None,
        ports: int = 1,
    ) -> None:
        command, environment = ((program,), {}) if program else (find_qemu().command, find_qemu().environment)
        self._house = ProcessHouse()
        self._received = b""
        folder = self._house.folder
        if options is None and ports > 1:
            options, addresses = _many_ports(ports), {}
        elif options is None:
            options = _console_and_port(folder)
            addresses = {number: f"unix:{folder}/c{number}" for number in (0, 1)}
        self.hosts = HostEnds(addresses or {}, lambda: self._process.poll() is None)
        try:
            with (folder / "log").open("wb") as log:
                self._process = self._house.process = subprocess.Popen(
                    [
                        *ENDS_WITH_ITS_PARENT, *command, "-accel", "qtest", "-machine", "q35",
                        "-m", f"{MEMORY_SIZE >> 20}", "-nodefaults", "-no-user-config", "-display", "none", *options,
                        "-qtest", "stdio", "-qtest-log", "/dev/null",
                    ],
                    env={**os.environ, **environment},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                )  # fmt: skip
            self.hosts.connect_all()
            self._slot = self._find()
            self._configure(PCI_BASE_ADDRESS_0 + 4 * REGISTER_BAR, BAR)
            self._configure(PCI_BASE_ADDRESS_0 + 4 * REGISTER_BAR + 4, 0)
            self._configure(PCI_COMMAND, 6)
        except BaseException:
            self._house.close()
            raise

    def _command(self, text: str) -> str:
        """Send a command of qtest and return what stands behind its OK."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = time.monotonic() + PATIENCE
        try:
            process.stdin.write(text.encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise HostileError(f"QEMU has ended\n{self._house.log()[-2000:]}") from None
        while True:
            while b"\n" not in self._received:
                remaining = max(0.0, deadline - time.monotonic())
                if not select.select([process.stdout], [], [], remaining)[0]:
                    raise HostileError(f"QEMU does not answer: {text[:60]}")
                data = os.read(process.stdout.fileno(), 1 << 16)
                if not data:
                    raise HostileError(f"QEMU has ended\n{self._house.log()[-2000:]}")
                self._received += data
            line, _, self._received = self._received.partition(b"\n")
            word, _, answer = line.decode().strip().partition(" ")
            if word == "OK":
                return answer
            if word != "IRQ":
                raise HostileError(f"qtest: {text[:60]}: {line!r}")

    def _find(self) -> int:
        """Return the slot of the first virtio console."""
        for slot in range(32):
            self._command(f"outl {_CONFIG_ADDRESS:#x} {1 << 31 | slot << 11:#x}")
            identity = int(self._command(f"inl {_CONFIG_DATA:#x}"), 0)
            if identity & 0xFFFF == PCI_VENDOR_ID_REDHAT_QUMRANET and identity >> 16 in _CONSOLES:
                return slot
        raise HostileError("this QEMU has no virtio console on its first PCI bus")

    def _configure(self, offset: int, value: int) -> None:
        self._command(f"outl {_CONFIG_ADDRESS:#x} {1 << 31 | self._slot << 11 | offset:#x}")
        self._command(f"outl {_CONFIG_DATA:#x} {value:#x}")

    def load(self, offset: int, width: int) -> int:
        return int(self._command(f"read{_SUFFIX[width]} {BAR + offset:#x}"), 0)

    def store(self, offset: int, value: int, width: int) -> None:
        self._command(f"write{_SUFFIX[width]} {BAR + offset:#x} {value:#x}")

    def read(self, address: int, length: int) -> bytes:
        return bytes.fromhex(self._command(f"read {address:#x} {length:#x}")[2:]) if length else b""

    def write(self, address: int, data: bytes) -> None:
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            self._command(f"write {address + start:#x} {len(piece):#x} 0x{piece.hex()}")

    def step(self) -> None:
        self.load(STATUS, 1)

    def settle(self) -> None:
        for _ in range(LOOKS):
            self.step()

    def heard(self) -> bytes | None:
        if 1 not in self.hosts:
            return None
        data = b""
        while piece := self.hosts.take():
            data += piece
            self.settle()
        return data

    def told(self) -> bool | None:
        """QEMU's device leaves its chardevs as they are when it stops; that is one difference, not one of each case."""
        return None

    def check(self) -> None:
        self._house.check_process("QEMU")

    def close(self) -> None:
        self.hosts.close()
        self._house.close()


def _console_and_port(folder: Path) -> list[str]:
    options = ["-device", f"virtio-serial-pci,id=vs,disable-legacy=on,max_ports={MAX_PORTS},packed=on"]
    for name, kind in (("c0", "virtconsole,nr=0"), ("c1", "virtserialport,nr=1,name=org.test.1")):
        options += ["-chardev", f"socket,id={name},path={folder}/{name},server=on,wait=off"]
        options += ["-device", f"{kind},bus=vs.0,chardev={name}"]
    return options


def _many_ports(count: int) -> list[str]:
    options = ["-device", f"virtio-serial-pci,id=vs,disable-legacy=on,max_ports={count + 1},packed=on"]
    for number in range(1, count + 1):
        options += ["-chardev", f"ringbuf,id=c{number},size=4096"]
        options += ["-device", f"virtserialport,nr={number},name=org.test.{number},bus=vs.0,chardev=c{number}"]
    return options
