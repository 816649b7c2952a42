"""QEMU's own virtio-serial-pci, driven register by register over the qtest protocol: what does it do with a case?"""

from __future__ import annotations

import os
import select
import subprocess
import time
from typing import Final

from virtserial.conformance.driver import PATIENCE, HostileError
from virtserial.conformance.processes import ProcessHouse
from virtserial.conformance.steps import BAR, MAX_PORTS, MEMORY_SIZE, STATUS
from virtserial.pci.layout import PCI_BASE_ADDRESS_0, PCI_COMMAND, REGISTER_BAR
from virtserial.rig.guest import ENDS_WITH_ITS_PARENT
from virtserial.rig.qemu import find_qemu

SLOT: Final = 4
_CONFIG_ADDRESS, _CONFIG_DATA = 0xCF8, 0xCFC
_SUFFIX: Final = {1: "b", 2: "w", 4: "l", 8: "q"}
LOOKS: Final = 6
"""Commands that are answered one by one: between two of them QEMU's main loop does what waits."""
_PIECE: Final = 1024


class QemuMachine:
    """A QEMU without a processor, with one controller as the cases expect it.

    Raises:
        RigUnavailable: there is no QEMU, and none can be fetched.
    """

    name = "QEMU"

    def __init__(self) -> None:
        program = find_qemu()
        self._house = ProcessHouse()
        self._received = b""
        folder = self._house.folder
        options = ["-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
        options += ["-device", f"virtio-serial-pci,id=vs,addr={SLOT}.0,disable-legacy=on,max_ports={MAX_PORTS}"]
        options[-1] += ",packed=on"
        for name, kind in (("c0", "virtconsole,nr=0"), ("c1", "virtserialport,nr=1,name=org.test.1")):
            options += ["-chardev", f"socket,id={name},path={folder}/{name},server=on,wait=off"]
            options += ["-device", f"{kind},bus=vs.0,chardev={name}"]
        try:
            with (folder / "log").open("wb") as log:
                self._house.process = subprocess.Popen(
                    [
                        *ENDS_WITH_ITS_PARENT, *program.command, "-accel", "qtest", "-machine", "q35",
                        "-m", f"{MEMORY_SIZE >> 20}", "-nodefaults", "-no-user-config", "-display", "none", *options,
                        "-qtest", "stdio", "-qtest-log", "/dev/null",
                    ],
                    env={**os.environ, **program.environment},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                )  # fmt: skip
            self._house.join("c0", "c1")
            self._configure(PCI_BASE_ADDRESS_0 + 4 * REGISTER_BAR, BAR)
            self._configure(PCI_BASE_ADDRESS_0 + 4 * REGISTER_BAR + 4, 0)
            self._configure(PCI_COMMAND, 6)
        except BaseException:
            self._house.close()
            raise

    def _command(self, text: str) -> str:
        """Send a command of qtest and return what stands behind its OK."""
        process = self._house.process
        assert process is not None
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

    def _configure(self, offset: int, value: int) -> None:
        self._command(f"outl {_CONFIG_ADDRESS:#x} {1 << 31 | SLOT << 11 | offset:#x}")
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

    def heard(self) -> bytes:
        data = b""
        while piece := self._house.take_heard():
            data += piece
            self.settle()
        return data

    def told(self) -> bool | None:
        """QEMU's device leaves its chardevs as they are when it stops; that is one difference, not one of each case."""
        return None

    def check(self) -> None:
        self._house.check_process("QEMU")

    def close(self) -> None:
        self._house.close()
