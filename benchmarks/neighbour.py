"""What a healthy device feels of an attack on another one in the same process.

    python3 benchmarks/neighbour.py [--rounds 7] [--seconds 0.5]

One `virtserial serve` with two controllers, an embedded guest on each.  The one guest works: round trips of a byte, and
a stream to its host.  The other attacks, from a process of its own.  Attacker and attacked need processors too, which a
small machine has to take from somebody: so each attack is made on a device of another `virtserial serve` as well.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "src"))

from contestants import serve
from embedded import PORT, TO_HOST, GuestPort, Stream, over_port
from ratios import paired_ratio, summarize
from scale import Echo
from virtserial.conformance.driver import HostileDriver
from virtserial.conformance.steps import BUFFER, MAX_PORTS, TX
from virtserial.conformance.vfio_user_vmm import Vmm
from virtserial.driver.console_driver import DriverListener
from virtserial.driver.ports import PortListener
from virtserial.driver.vfio_user_device import open_vfio_user_device
from virtserial.loop import EventLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TRIPS = 1000
CHUNK = 65536
SETTLE = 0.2
"""Seconds for an attack to be under way."""
DOORBELL = 0x3000 + 4 * TX


def options(folder: Path) -> list[str]:
    """The words of `virtserial serve`."""
    words = []
    for number, name in enumerate(("attacked", PORT)):
        words += ["-device", f"virtio-serial,id=ser{number},max_ports={MAX_PORTS},socket={folder}/ser{number}.sock"]
        words += ["-chardev", f"socket,id={name},path={folder}/{name},server=on,wait=off"]
        words += ["-device", f"virtserialport,bus=ser{number}.0,nr=1,chardev={name},name={name}"]
    return words


def storm_of_kicks(folder: Path) -> None:
    """Doorbells without work, as fast as they go."""
    with closing(Vmm(folder / "ser0.sock")) as vmm:
        HostileDriver(vmm).start()
        while True:
            vmm.store(DOORBELL, TX, 2)


def chains_of_one_byte(folder: Path) -> None:
    """A driver that follows every rule and makes as much work as it can of nothing."""
    loop = EventLoop()
    driver = open_vfio_user_device(f"{folder}/ser0.sock", loop, DriverListener())
    driver.start()
    with socket.socket(socket.AF_UNIX) as host:
        host.connect(f"{folder}/attacked")
        while not (ports := [port for port in driver.ports.values() if port.host_connected]):
            loop.run_once(1)
        port = ports[0]
        port.open(PortListener())
        while True:
            while port.write(b"x"):
                pass
            loop.run_once(0.001)
            host.recv(1 << 16)


def bad_rings(folder: Path) -> None:
    """Set up, break a rule, reset, and again."""
    with closing(Vmm(folder / "ser0.sock")) as vmm:
        driver = HostileDriver(vmm)
        while True:
            driver.start()
            driver.send(TX, BUFFER, 0)


ATTACKS: dict[str, Callable[[Path], None]] = {
    "storm of kicks": storm_of_kicks,
    "chains of one byte": chains_of_one_byte,
    "bad rings and resets": bad_rings,
}
ALONE = "alone"
ELSEWHERE = ", on another process"


@contextmanager
def beside(attack: Callable[[Path], None], folder: Path) -> Iterator[None]:
    """While an attack goes on, from a process of its own."""
    pid = os.fork()
    if not pid:
        with suppress(BaseException):
            attack(folder)
        os._exit(1)
    time.sleep(SETTLE)
    try:
        if os.waitpid(pid, os.WNOHANG)[0]:
            raise RuntimeError(f"{attack.__name__} has ended by itself")
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
        time.sleep(SETTLE)


def round_trip_us(guest: GuestPort, host: socket.socket) -> float:
    """The median round trip of one byte, host to guest and back, in microseconds."""
    echo = Echo(guest.port)
    times = []
    host.setblocking(False)
    for _ in range(TRIPS):
        started = time.perf_counter()
        host.send(b"x")
        while True:
            guest.loop.run_once(0)
            echo.port_readable()
            with suppress(BlockingIOError):
                host.recv(1)
                break
        times.append(time.perf_counter() - started)
    host.setblocking(True)
    return 1e6 * statistics.median(times)


def measure(rounds: int, seconds: float) -> dict[str, tuple[list[float], list[float]]]:
    """By condition: round trips (us) and streams (MB/s), round by round."""
    with ExitStack() as stack:
        folder, other = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="virtserial-bench-"))) for _ in range(2)
        )
        stack.enter_context(serve(options(folder)))
        stack.enter_context(serve(options(other)))
        conditions: dict[str, Callable[[], AbstractContextManager[None]]] = {ALONE: nullcontext}
        for name, attack in ATTACKS.items():
            conditions[name + ELSEWHERE] = partial(beside, attack, other)
            conditions[name] = partial(beside, attack, folder)
        found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in conditions}
        guest = stack.enter_context(closing(GuestPort(f"{folder}/ser1.sock")))
        host = stack.enter_context(socket.socket(socket.AF_UNIX))
        host.connect(str(folder / PORT))
        stream = Stream(CHUNK, 64 << 20, whole=True)
        rate = stream.total / over_port(stream, TO_HOST, guest, host)
        stream = Stream(CHUNK, max(1, int(rate * seconds) // CHUNK) * CHUNK, whole=False)
        for number in range(rounds):
            for name, condition in list(conditions.items())[:: 1 if number % 2 else -1]:
                with condition():
                    found[name][0].append(round_trip_us(guest, host))
                    found[name][1].append(stream.total / over_port(stream, TO_HOST, guest, host) / 1e6)
        over_port(Stream(CHUNK, 64 << 20, whole=True), TO_HOST, guest, host)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="about how long a stream takes")
    chosen = parser.parse_args()
    found = measure(chosen.rounds, chosen.seconds)
    print("| | round trip, us | x alone | x elsewhere | stream, MB/s | x alone | x elsewhere |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, figures in found.items():
        cells = [name]
        for kind, mine in enumerate(figures):
            cells.append(f"{summarize(mine).median:.0f}")
            for base in (ALONE, name + ELSEWHERE):
                ratio = paired_ratio(mine, found[base][kind]) if base in found and name != ALONE else None
                cells.append(f"{ratio.median:.2f} [{ratio.low:.2f}-{ratio.high:.2f}]" if ratio else "")
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
