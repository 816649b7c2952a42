"""Our device as it is used: a `virtserial serve` with its VMM, its hosts, and a second device beside it."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import virtserial
from virtserial.conformance.driver import PATIENCE, HostileDriver, HostileError
from virtserial.conformance.processes import ProcessHouse
from virtserial.conformance.steps import MAX_PORTS
from virtserial.conformance.vfio_user_vmm import Vmm
from virtserial.rig.guest import ENDS_WITH_ITS_PARENT

if TYPE_CHECKING:
    from collections.abc import Callable


class ServedVmm(Protocol):
    """The VMM of an attacked controller: what of a `Machine` is the guest's."""

    def load(self, offset: int, width: int) -> int: ...
    def store(self, offset: int, value: int, width: int) -> None: ...
    def read(self, address: int, length: int) -> bytes: ...
    def write(self, address: int, data: bytes) -> None: ...
    def step(self) -> None: ...
    def settle(self) -> None: ...
    def close(self) -> None: ...


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
