"""Our device as it is used: a `virtserial serve` with its VMM, its hosts, and a second device beside it."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import virtserial
from virtserial.errors import PeerError
from virtserial.pci.layout import NOTIFY_AREA, PCI_BASE_ADDRESS_0, PCI_COMMAND, REGISTER_BAR
from virtserial.rig.guest import ENDS_WITH_ITS_PARENT
from virtserial.testing.hostile.driver import PATIENCE, HostileDriver, HostileError
from virtserial.testing.hostile.served_processes import ProcessHouse
from virtserial.testing.hostile.steps import BAR, MAX_PORTS, MEMORY_SIZE, STATUS
from virtserial.vfio_user.client import Client
from virtserial.vfio_user.wire import VFIO_PCI_CONFIG_REGION_INDEX

if TYPE_CHECKING:
    from collections.abc import Callable

QUIET: Final = 0.05
"""Seconds: longer than a device waits for a map that may be on its way (daemon.worker.guest_device.FAULT_GRACE)."""
LOOKS: Final = 8
"""Round trips after that: each is at least one turn of the worker's loop, and no case has work for more turns."""


class _MemoryByMessages:
    """Serves DMA_READ and DMA_WRITE (vfio_user.client.DmaHandler).

    Attributes:
        asked: how often the device has asked.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self.asked = 0

    def read(self, iova: int, length: int) -> bytes:
        return self._memory[self._range(iova, length)]

    def write(self, iova: int, data: bytes) -> None:
        self._memory[self._range(iova, len(data))] = data

    def _range(self, iova: int, length: int) -> slice:
        self.asked += 1
        if iova + length > MEMORY_SIZE:
            raise PeerError(f"{length} bytes at {iova:#x}: there is no memory")
        return slice(iova, iova + length)


class ServedVmm(Protocol):
    """The VMM of an attacked controller: what of a `Machine` is the guest's."""

    def load(self, offset: int, width: int) -> int: ...
    def store(self, offset: int, value: int, width: int) -> None: ...
    def read(self, address: int, length: int) -> bytes: ...
    def write(self, address: int, data: bytes) -> None: ...
    def step(self) -> None: ...
    def settle(self) -> None: ...
    def close(self) -> None: ...


class Vmm:
    """A VMM on a controller's socket, with memory for its driver.

    Args:
        shared: the device gets the memory's file; else it asks for every byte by messages.
    """

    def __init__(self, path: Path, *, shared: bool = True) -> None:
        self._fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._fd, MEMORY_SIZE)
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self._memory = mmap.mmap(self._fd, MEMORY_SIZE)
        self._by_messages = _MemoryByMessages(self._memory)
        self._client = Client(path, timeout=PATIENCE, dma_handler=self._by_messages)
        self._client.dma_map(0, MEMORY_SIZE, fd=self._fd if shared else None)
        for offset, value in (
            (PCI_BASE_ADDRESS_0 + 4 * REGISTER_BAR, BAR.to_bytes(8, "little")),
            (PCI_COMMAND, (6).to_bytes(2, "little")),
        ):
            self._client.region_write(VFIO_PCI_CONFIG_REGION_INDEX, offset, value)

    def read(self, address: int, length: int) -> bytes:
        return self._memory[address : address + length]

    def write(self, address: int, data: bytes) -> None:
        self._memory[address : address + len(data)] = data

    def load(self, offset: int, width: int) -> int:
        return int.from_bytes(self._client.region_read(REGISTER_BAR, offset, width), "little")

    def store(self, offset: int, value: int, width: int) -> None:
        # QEMU posts writes to doorbells and waits for the others.
        posted = offset >= NOTIFY_AREA
        self._client.region_write(REGISTER_BAR, offset, value.to_bytes(width, "little"), posted)

    def step(self) -> None:
        self.load(STATUS, 1)

    def settle(self) -> None:
        asked = -1
        while asked != self._by_messages.asked:
            # While it asks for memory, a look may be answered in the middle of a turn.
            asked = self._by_messages.asked
            end = time.monotonic() + QUIET
            while (left := end - time.monotonic()) > 0:
                select.select([self._client], [], [], left)
                self._client.poll()
            for _ in range(LOOKS):
                self.step()

    def told(self) -> bool | None:
        return None

    def check(self) -> None: ...

    def close(self) -> None:
        self._client.close()
        self._memory.close()
        os.close(self._fd)


class _Witness(Vmm):
    """The VMM of the second device: nothing that is done to the first may be noticed here."""

    name = "the device beside it"

    def __init__(self, house: ProcessHouse) -> None:
        self._host = house.connect("witness")
        super().__init__(house.folder / "ser1.sock")

    def settle(self) -> None:
        """Wait for what the host is sent, as long as it may take on a loaded machine."""
        select.select([self._host], [], [], PATIENCE)

    def heard(self) -> bytes:
        try:
            return self._host.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""


class ServedMachine:
    """A `virtserial serve` with two controllers; the first is the one that is attacked.

    Args:
        name: of the machine, for messages.
        driver: of the attacked controller, for -device.
        connect: makes its VMM, at the path of its socket.
    """

    def __init__(self, name: str, driver: str, connect: Callable[[Path], ServedVmm]) -> None:
        self.name = name
        self._house = ProcessHouse()
        try:
            self._serve(driver)
            self._house.join("c0", "c1")
            self._vmm = connect(self._house.folder / "ser0.sock")
            self._witness = _Witness(self._house)
            self._witness_driver = HostileDriver(self._witness)
            self._witness_driver.start()
            self._worker = self._children()
        except BaseException:
            self._house.close()
            raise
        self.read, self.write = self._vmm.read, self._vmm.write
        self.load, self.store = self._vmm.load, self._vmm.store
        self.step, self.settle = self._vmm.step, self._vmm.settle

    def _serve(self, driver: str) -> None:
        folder = self._house.folder
        options = ["-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
        for controller, kind, ports in (("ser0", driver, ("c0", "c1")), ("ser1", "virtio-serial", ("witness",))):
            options += ["-device", f"{kind},id={controller},socket={folder}/{controller}.sock"]
            options[-1] += f",max_ports={MAX_PORTS}"
            for name in ports:
                port = "virtconsole,nr=0" if name == "c0" else f"virtserialport,nr=1,name=org.test.{name}"
                options += ["-chardev", f"socket,id={name},path={folder}/{name},server=on,wait=off"]
                options += ["-device", f"{port},bus={controller}.0,chardev={name}"]
        source = str(Path(virtserial.__file__).parents[1])
        path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
        with (folder / "log").open("wb") as log:
            self._house.process = subprocess.Popen(
                [*ENDS_WITH_ITS_PARENT, sys.executable, "-m", "virtserial", "serve", *options],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def _children(self) -> str:
        """The pids of the keeper's children: its worker."""
        assert self._house.process is not None
        pid = self._house.process.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text()

    def heard(self) -> bytes:
        return self._house.take_heard()

    def told(self) -> bool | None:
        return not self._house.front_ends_open("c1")

    def check(self) -> None:
        self._house.check_process("virtserial serve")
        if self._children() != self._worker or "internal error" in self._house.log():
            raise HostileError(f"the worker has failed\n{self._house.log()[-4000:]}")
        if not self._witness_driver.good_message_arrives():
            raise HostileError("the device beside it does not work any more")

    def close(self) -> None:
        self._witness.close()
        self._vmm.close()
        self._house.close()


class VfioUserMachine(ServedMachine):
    """The attacked controller has a vfio-user front.

    Args:
        shared: see `Vmm`.
    """

    def __init__(self, *, shared: bool = True) -> None:
        name = "vfio-user" if shared else "vfio-user, messages"
        super().__init__(name, "virtio-serial,packed=on", lambda path: Vmm(path, shared=shared))
