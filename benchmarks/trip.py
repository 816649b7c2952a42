"""What a round trip costs in the worker, without a guest: its calls and its CPU time.

    python3 benchmarks/trip.py [--size 1] [--trips 400] [--front vhost-user]

One process holds both sides: the device behind its vfio-user socket with the worker's event loop, and our guest driver
with a pair of sockets as the host.  A trip is a message of the guest that the host answers.  Only the device's loop is
counted: what happens between two of its looks at the descriptors.

The calls are the same on every machine.

| figure | what is counted |
|---|---|
| system | calls of Python's that go into the kernel |
| python | Python functions that are entered |
| c | functions written in C that are called, those of the first line included |
| us | CPU time of the device's thread, measured in trips in which nothing is counted |
"""

from __future__ import annotations

import argparse
import gc
import os
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "src"))

from virtserial.accounting import nowhere
from virtserial.channel.messages import Controller
from virtserial.channel.record import replace
from virtserial.daemon.worker.guest_device import GuestDevice
from virtserial.daemon.worker.vfio_user_front import VfioUserFront, state_size
from virtserial.daemon.worker.vhost_user_front import VhostUserFront
from virtserial.driver.ports import PortListener
from virtserial.driver.vfio_user_device import open_vfio_user_device
from virtserial.driver.vhost_user_device import open_vhost_user_device
from virtserial.host_end.stream import DescriptorStream
from virtserial.loop import EventLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PORTS, PORT = 2, 1
WARM_UP = 20
ON = ("modern", "iommu_platform", "event_idx", "indirect_desc", "queue_reset", "emergency_write")
CONFIG = Controller(**{
    **{field: field in ON for field in Controller.__annotations__},
    "controller": 0, "name": "ser0", "max_ports": PORTS, "vectors": 2 * PORTS + 3,
})  # fmt: skip
"""What is not named is off."""


@dataclass(frozen=True)
class Calls:
    """Calls of one trip."""

    system: int
    python: int
    c: int


class Counting:
    """Counts what a piece of code calls, by sys.setprofile.

    Attributes:
        names: how often each function was called, in all pieces.
    """

    def __init__(self) -> None:
        self.names: Counter[str] = Counter()
        self._python = self._c = self._system = 0

    def run(self, piece: Callable[[], None]) -> None:
        """Run a piece of code and count its calls; its own is not among them."""
        sys.setprofile(self._note)
        try:
            piece()
        finally:
            sys.setprofile(None)
        self._python -= 1
        self._c -= 1

    def take(self) -> Calls:
        """Return what was counted since the last call."""
        calls = Calls(self._system, self._python, self._c)
        self._python = self._c = self._system = 0
        return calls

    def _note(self, frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            self._python += 1
            code = frame.f_code
            self.names[f"{os.path.basename(code.co_filename)}: {code.co_qualname}"] += 1
        elif event == "c_call":
            self._c += 1
            is_system = argument.__module__ == "posix" or (
                type(argument.__self__).__name__ in ("epoll", "socket") and argument.__name__ != "fileno"
            )
            self._system += is_system
            self.names[f"{'system' if is_system else 'c'}: {argument.__qualname__}"] += 1


class TripMachine:
    """A device with one open port, its driver, and its host."""

    def __init__(self, front: str = "vfio-user") -> None:
        self.loop = EventLoop()
        fd = os.memfd_create("state", os.MFD_CLOEXEC)
        os.ftruncate(fd, state_size(PORTS))
        ledger = nowhere()
        # The other two sides read and write in this process as well: the kernel's counts are of no use here.
        ledger.account.stray = False
        over_vhost = front == "vhost-user"
        config = replace(CONFIG, vhost_user=over_vhost, iommu_platform=not over_vhost)
        make_front = VhostUserFront if over_vhost else VfioUserFront
        self._device = GuestDevice(config, fd, self.loop, lambda message, fds=(): None, ledger, make_front)
        port = self._device.console.add_port(PORT, "trip", has_backend=True)
        ours, self.host = socket.socketpair()
        ours.setblocking(False)
        fd = ours.detach()
        port.attach(DescriptorStream(self.loop, "trip", fd, fd, self._device.ledger.account))
        theirs, vmm = socket.socketpair()
        self._device.connect(theirs.detach())
        self._device.take_over()
        self._driver_loop = EventLoop()
        with self._device_beside():
            self._driver = (open_vhost_user_device if over_vhost else open_vfio_user_device)(vmm, self._driver_loop)
            self._driver.start()
            while PORT not in self._driver.ports or not self._driver.ports[PORT].host_connected:
                self._driver_loop.run_once(1)
            self._port = self._driver.ports[PORT]
            self._port.open(PortListener())
            while not self._port.open_is_known:
                self._driver_loop.run_once(0.01)

    @contextmanager
    def _device_beside(self) -> Iterator[None]:
        """The device runs in a thread of its own: the driver waits for answers when it starts and when it ends."""
        beside = True

        def run() -> None:
            while beside:
                self.loop.run_once(0.01)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            beside = False
            thread.join()

    def run_device(self) -> None:
        """Let the device wait for what comes next, and do it."""
        self.loop.run_once(1)
        while self.loop._turns:
            self.loop.run_once(1)

    def trip(self, data: bytes, run: Callable[[Callable[[], None]], None]) -> None:
        """One round trip; `run` runs the device."""
        self._port.write(data)
        received = 0
        while received < len(data):
            run(self.run_device)
            received += len(self.host.recv(len(data), socket.MSG_DONTWAIT))
        self.host.sendall(data)
        received = 0
        while received < len(data):
            run(self.run_device)
            self._driver_loop.run_once(0)
            # Until nothing is left: then the driver asks for the next interrupt.
            while more := self._port.read(len(data)):
                received += len(more)

    def close(self) -> None:
        """Let go of all."""
        with self._device_beside():
            self._driver.close()
        self._device.remove()
        self.host.close()
        self.loop.close()
        self._driver_loop.close()


def count(size: int, trips: int, front: str = "vfio-user") -> tuple[Calls, Counter[str]]:
    """Return the calls of the shortest trip, in which no timer was due, and those of all by their names."""
    with closing(TripMachine(front)) as machine:
        data = bytes(size)
        for _ in range(WARM_UP):
            machine.trip(data, lambda piece: piece())
        counting, seen = Counting(), []
        for _ in range(trips):
            machine.trip(data, counting.run)
            seen.append(counting.take())
        return min(seen, key=lambda calls: (calls.python, calls.c)), counting.names


def cpu_time(size: int, trips: int, front: str = "vfio-user") -> float:
    """Return the median CPU time of the device in a trip, in microseconds."""
    with closing(TripMachine(front)) as machine:
        data, spent = bytes(size), []
        for _ in range(WARM_UP + trips):
            used = 0.0

            def timed(piece: Callable[[], None]) -> None:
                nonlocal used
                started = time.thread_time()
                piece()
                used += time.thread_time() - started

            machine.trip(data, timed)
            spent.append(1e6 * used)
        return statistics.median(spent[WARM_UP:])


def main() -> None:
    """Count, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--size", type=int, default=1, help="bytes of a message")
    parser.add_argument("--trips", type=int, default=400)
    parser.add_argument("--names", action="store_true", help="also each function that is called, with its calls a trip")
    parser.add_argument("--front", choices=("vfio-user", "vhost-user"), default="vfio-user")
    chosen = parser.parse_args()
    gc.disable()
    calls, names = count(chosen.size, chosen.trips, chosen.front)
    if chosen.names:
        for name, number in names.most_common():
            print(f"{number / chosen.trips:6.2f}  {name}")
    print("| system | python | c | us |")
    print("| --- | --- | --- | --- |")
    print(f"| {calls.system} | {calls.python} | {calls.c} | {cpu_time(chosen.size, chosen.trips, chosen.front):.1f} |")


if __name__ == "__main__":
    main()
