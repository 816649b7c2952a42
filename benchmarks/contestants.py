"""The devices that are measured side by side: QEMU's own with some options, and ours from some source tree."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from virtserial.options.vhost_user_device import vhost_user_words
from virtserial.rig import RigUnavailable
from virtserial.rig.guest import ENDS_WITH_ITS_PARENT

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).resolve().parents[1] / "src"
READY_TIMEOUT = 20


@dataclass(frozen=True)
class Contestant:
    """A device under measurement.

    Attributes:
        name: as the tables have it.
        meaning: what it is, in a line.
        properties: more properties of the controller, as QEMU writes them (",event_idx=off").
        source: for ours the folder that holds the package virtserial; None: QEMU's own device.
        over_vhost_user: ours behind vhost-user, not vfio-user.
    """

    name: str
    meaning: str = ""
    properties: str = ""
    source: Path | None = None
    over_vhost_user: bool = False


@dataclass(frozen=True)
class Attached:
    """A contestant that is ready: QEMU's options for it, and its own processes (whose children count too)."""

    arguments: tuple[str, ...]
    processes: tuple[int, ...] = ()


QEMU = Contestant("QEMU", "QEMU's own virtio-serial-pci with its default options")
# Of ioeventfd, packed, event_idx, in_order, disable-legacy and vectors this is the one that helps: round trips, at
# the price of throughput, for which the defaults are the best.
QEMU_WITHOUT_IOEVENTFD = Contestant(
    "QEMU, ioeventfd=off",
    "the same with that option, its best for round trips; device work for a guest's write is vCPU time then",
    ",ioeventfd=off",
)
VIRTSERIAL = Contestant(
    "virtserial", "`virtserial serve` beside QEMU, attached as vfio-user-pci", source=SOURCE
)
VHOST_USER = Contestant(
    "virtserial, vhost-user",
    "`virtserial serve` beside QEMU, attached as vhost-user-test-device-pci, which has INTx only",
    source=SOURCE,
    over_vhost_user=True,
)


@contextmanager
def attach(contestant: Contestant, bus: str, ports: dict[str, str], folder: Path) -> Iterator[Attached]:
    """Makes a controller with named ports ready for a VM.

    Args:
        contestant: the device.
        bus: the controller's id, unique among all in the VM.
        ports: names of ports to paths of the sockets their host ends listen at.
        folder: where the controller's socket goes.
    """
    options = []
    for number, (name, path) in enumerate(ports.items(), 1):
        options += ["-chardev", f"socket,id={bus}-{number},path={path},server=on,wait=off"]
        options += ["-device", f"virtserialport,bus={bus}.0,nr={number},chardev={bus}-{number},name={name}"]
    max_ports = max(31, len(ports) + 1)
    controller = f"id={bus},max_ports={max_ports}{contestant.properties}"
    if contestant.source is None:
        yield Attached(("-device", f"virtio-serial-pci,{controller}", *options))
        return
    if contestant.over_vhost_user:
        socket = str(folder / f"{bus}.vhost-user")
        served = ["-device", f"vhost-user-serial,{controller},socket={socket}", *options]
        with serve(served, contestant.source) as pid:
            yield Attached(tuple(vhost_user_words(bus, socket, max_ports)), (pid,))
        return
    socket = str(folder / f"{bus}.vfio-user")
    served = ["-device", f"virtio-serial,{controller},socket={socket}", *options]
    with serve(served, contestant.source) as pid:
        vfio_user = json.dumps({"driver": "vfio-user-pci", "socket": {"path": socket, "type": "unix"}})
        yield Attached(("-device", vfio_user), (pid,))


@contextmanager
def serve(options: list[str], source: Path = SOURCE) -> Iterator[int]:
    """Runs `virtserial serve` of a source tree; gives its pid when it is ready."""
    ready, ready_at_child = os.pipe()
    with os.fdopen(ready), os.fdopen(ready_at_child) as child_end:
        process = subprocess.Popen(
            [*ENDS_WITH_ITS_PARENT, sys.executable, "-m", "virtserial", "serve", *options,
             "--ready-fd", str(ready_at_child)],
            env={**os.environ, "PYTHONPATH": str(source)}, pass_fds=[ready_at_child],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        child_end.close()
        try:
            readable, _, _ = select.select([ready], [], [], READY_TIMEOUT)
            if not readable:
                raise RigUnavailable(f"virtserial serve from {source} is not ready in {READY_TIMEOUT} s")
            # The server closes the descriptor when it is ready; if it dies, the kernel does.
            time.sleep(0.02)
            if process.poll() is not None:
                raise RigUnavailable(f"virtserial serve from {source} ended with status {process.returncode}")
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
