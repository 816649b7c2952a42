"""Scale: start-up, many devices and ports in one worker, idle cost, and what one blocked port takes.

    python3 benchmarks/scale.py [--devices 1000] [--ports 4] [--vectors 2] [--rounds 7] [--json FILE]

Everything is real: `virtserial serve`, the embedded driver on every device, a connection to every port.  Devices have
room for 31 ports, so 64 queues that the driver sets up, and two interrupt vectors, QEMU's default: ours, 32, would take
32,000 descriptors of each of three processes, more than some machines allow.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "src"))

from virtserial.driver.console_driver import DriverListener
from virtserial.driver.port_queues import BufferPlan
from virtserial.driver.ports import PortListener
from virtserial.driver.vfio_user_device import open_vfio_user_device
from virtserial.loop import EventLoop
from virtserial.vfio_user.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
PLAN = BufferPlan(8, 4096, 8, 4096)
"""Small buffers: the driver's memory is not what is measured."""
IDLE_SECONDS = 5
TRIPS = 2000
BLOCKED_BYTES = 64 << 20


class Figure(NamedTuple):
    """One figure of a table."""

    name: str
    value: float
    unit: str


class Served:
    """A `virtserial serve` with controllers dev0, dev1, ... whose ports p0, p1, ... have sockets in a folder."""

    def __init__(self, folder: Path, devices: int, ports: int, vectors: int = 2) -> None:
        self.folder = folder
        words = []
        for device in range(devices):
            words += ["-device", f"virtio-serial,id=dev{device},socket={folder}/dev{device}.sock,vectors={vectors}"]
            for port in range(ports):
                name = f"d{device}p{port}"
                words += ["-chardev", f"socket,id={name},path={folder}/{name},server=on,wait=off"]
                words += ["-device", f"virtserialport,bus=dev{device}.0,chardev={name},name={name}"]
        ready, theirs = os.pipe()
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "virtserial", "serve", *words, "--ready-fd", str(theirs)],
            env=ENVIRONMENT, pass_fds=[theirs], stdout=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs)
        select.select([ready], [], [])
        self.start_seconds = time.perf_counter() - started
        os.close(ready)

    @property
    def worker(self) -> int:
        """The worker's pid."""
        pid = self.process.pid
        while not (children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            time.sleep(0.01)
        return int(children[0])

    def connect(self, name: str) -> socket.socket:
        """A host's connection to a port."""
        connection = socket.socket(socket.AF_UNIX)
        while True:
            with contextlib.suppress(BlockingIOError):
                connection.connect(f"{self.folder}/{name}")
                return connection

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


class Guests:
    """Drivers on devices, on one loop, with every port open and connected."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        self.drivers = []
        self.hosts: dict[str, socket.socket] = {}

    def attach(self, served: Served, device: int, ports: int) -> None:
        """Start a driver on a device, connect its ports' hosts and open its ports."""
        driver = open_vfio_user_device(f"{served.folder}/dev{device}.sock", self.loop, DriverListener(), plan=PLAN)
        self.drivers.append(driver)
        driver.start()
        names = {f"d{device}p{port}" for port in range(ports)}
        self.hosts |= {name: served.connect(name) for name in names}
        while {port.name for port in driver.ports.values() if port.host_connected} != names:
            self.loop.run_once(1)
        for port in driver.ports.values():
            port.open(PortListener())

    def settle(self, seconds: float = 0.5) -> None:
        """Let everything that is under way arrive."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.loop.run_once(left)


def status(pid: int, field: str) -> int:
    """A number of /proc/PID/status."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split(f"\n{field}:")[1].split()[0])


def switches(pid: int) -> int:
    """How often a process has gone to sleep and was woken."""
    return status(pid, "voluntary_ctxt_switches")


def import_milliseconds(rounds: int) -> float:
    """What `import virtserial` takes, without the interpreter's own start."""
    program = "import time; t = time.perf_counter(); import virtserial; print(time.perf_counter() - t)"
    runs = [
        float(subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, check=True).stdout)
        for _ in range(rounds)
    ]
    return 1000 * statistics.median(runs)


def start_milliseconds(rounds: int) -> float:
    """From exec to a ready socket, one controller with one port."""
    runs = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="vs-") as folder:
            served = Served(Path(folder), 1, 1)
            runs.append(served.start_seconds)
            served.stop()
    return 1000 * statistics.median(runs)


def answer_milliseconds(rounds: int) -> float:
    """From exec to the first answer to a VMM, one controller with one port."""
    runs = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="vs-") as folder:
            started = time.perf_counter()
            served = Served(Path(folder), 1, 1)
            Client(f"{folder}/dev0.sock").close()
            runs.append(time.perf_counter() - started)
            served.stop()
    return 1000 * statistics.median(runs)


def round_trip_microseconds(path: str, name: str) -> float:
    """The median round trip of one byte between a port's host and its guest, by a driver in a process of its own."""
    run = subprocess.run(
        [sys.executable, __file__, "--round-trip", path, name],
        env=ENVIRONMENT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(run.stdout)


class Echo(PortListener):
    """Sends back what comes."""

    def __init__(self, port) -> None:
        self.port = port

    def port_readable(self) -> None:
        while data := self.port.read(4096):
            self.port.write(data)


def round_trips(path: str, name: str) -> None:
    """Be the guest and the host of `round_trip_microseconds`; prints microseconds."""
    guests = Guests()
    driver = open_vfio_user_device(path, guests.loop, DriverListener(), plan=PLAN)
    driver.start()
    host = socket.socket(socket.AF_UNIX)
    host.connect(str(Path(path).parent / name))
    while not (port := next((p for p in driver.ports.values() if p.name == name and p.host_connected), None)):
        guests.loop.run_once(1)
    port.open(Echo(port))
    host.setblocking(False)
    runs = []
    for _ in range(TRIPS):
        started = time.perf_counter()
        host.send(b"x")
        while True:
            guests.loop.run_once(0)
            with contextlib.suppress(BlockingIOError):
                host.recv(1)
                break
        runs.append(time.perf_counter() - started)
    print(1e6 * statistics.median(runs))


def blocked_growth_kib(folder: Path) -> float:
    """RssAnon growth of the worker while a guest that never reads has its port open, and the host writes."""
    served = Served(folder, 1, 1)
    guests = Guests()
    try:
        guests.attach(served, 0, 1)
        guests.settle()
        before = status(served.worker, "RssAnon")
        host = next(iter(guests.hosts.values()))
        host.setblocking(False)
        end = time.monotonic() + 3
        written = 0
        block = bytes(65536)
        while written < BLOCKED_BYTES and time.monotonic() < end:
            try:
                written += host.send(block)
            except BlockingIOError:
                time.sleep(0.01)
        return status(served.worker, "RssAnon") - before
    finally:
        served.stop()


def allow_descriptors() -> int:
    """As many as this process may have, which are returned: each device takes some of every process."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def measure(devices: int, ports: int, vectors: int, rounds: int) -> Iterator[Figure]:
    """All figures, one after the other."""
    yield Figure("`import virtserial`", import_milliseconds(rounds), "ms")
    yield Figure("`virtserial serve` to socket ready", start_milliseconds(rounds), "ms")
    yield Figure("`virtserial serve` to a VMM's first answer", answer_milliseconds(rounds), "ms")
    with tempfile.TemporaryDirectory(prefix="vs-") as name:
        yield Figure("RssAnon growth, one port blocked, its host writing", blocked_growth_kib(Path(name)), "KiB")
    with tempfile.TemporaryDirectory(prefix="vs-") as name:
        alone = Served(Path(name), 1, 0)
        Client(f"{name}/dev0.sock").close()  # It has read all its code when a VMM has been served.
        base = status(alone.worker, "RssAnon")
        yield Figure("RssAnon of a worker with one controller, no ports", base, "KiB")
        alone.stop()
    with tempfile.TemporaryDirectory(prefix="vs-") as name:
        alone = Served(Path(name), 1, 1)
        trip_alone = round_trip_microseconds(f"{name}/dev0.sock", "d0p0")
        yield Figure("round trip of one byte, alone", trip_alone, "us")
        alone.stop()
    with tempfile.TemporaryDirectory(prefix="vs-") as name:
        served = Served(Path(name), devices + 1, ports, vectors)
        yield Figure(f"start with {devices} devices of {ports} ports", served.start_seconds, "s")
        guests = Guests()
        worker, keeper = served.worker, served.process.pid
        guests.settle()
        grown = (status(worker, "RssAnon") - base) / devices / ports
        yield Figure("RssAnon for each port, before any VMM", grown, "KiB")
        started = time.perf_counter()
        for device in range(devices):
            guests.attach(served, device, ports)
        took = time.perf_counter() - started
        yield Figure(f"{devices} devices attached, every port connected and open", took, "s")
        guests.settle(2)
        yield Figure("RssAnon for each connected port", (status(worker, "RssAnon") - base) / devices / ports, "KiB")
        before = switches(worker) + switches(keeper)
        time.sleep(IDLE_SECONDS)
        yield Figure("wake-ups when idle", (switches(worker) + switches(keeper) - before) / IDLE_SECONDS, "1/s")
        trip = round_trip_microseconds(f"{name}/dev{devices}.sock", f"d{devices}p0")
        yield Figure(f"round trip of one byte beside {devices * ports} idle ports", trip, "us")
        yield Figure("the same, against alone", trip / trip_alone, "x")
        served.stop()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--ports", type=int, default=4)
    parser.add_argument("--vectors", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="runs of what is short")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--round-trip", nargs=2, metavar=("SOCKET", "PORT"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.round_trip:
        round_trips(*chosen.round_trip)
        return
    allow_descriptors()
    figures = []
    for figure in measure(chosen.devices, chosen.ports, chosen.vectors, chosen.rounds):
        figures.append(figure)
        print(f"{figure.name:58} {figure.value:12.1f} {figure.unit}", flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps({figure.name: figure.value for figure in figures}, indent=1))


if __name__ == "__main__":
    main()
