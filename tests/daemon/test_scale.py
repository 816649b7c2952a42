"""Many devices and ports in one worker: what they take, and that they take nothing when nothing happens.

Times are measured by benchmarks/scale.py; here are counts, which do not depend on the load of the machine.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from mmap import PAGESIZE
from pathlib import Path

import pytest
from support.device_process import DeviceProcess, connect, controller_options, port_options
from support.embedded_guest import LIMIT, EmbeddedGuest
from support.places import ENVIRONMENT
from support.waiting import wait_until

from virtserial.daemon.keeper.vmms import state_room
from virtserial.daemon.worker.vfio_user_front import state_size
from virtserial.vfio_user.client import Client

DEVICES, PORTS = 20, 4
PER_PORT = 48
"""KiB of anonymous memory."""
pytestmark = pytest.mark.timeout(180)


def status(pid, field):
    """A number of /proc/PID/status."""
    return int(Path(f"/proc/{pid}/status").read_text().split(f"\n{field}:")[1].split()[0])


@pytest.fixture(scope="module")
def crowd(module_folder):
    """A process with many controllers, a guest on each, a host at every port, every port open."""
    folder, options, guests, hosts = module_folder, [], [], []
    for index in range(DEVICES):
        options += controller_options(folder, f"c{index}")
        for number in range(1, PORTS + 1):
            options += port_options(folder, f"c{index}p{number}", number, f"c{index}")
    alone = DeviceProcess(folder, *controller_options(folder, "alone"))
    # It has found all that it needs when a VMM has been served.
    Client(folder / "alone.sock", timeout=LIMIT).close()
    base = status(alone.worker, "RssAnon")
    alone.kill()
    device = DeviceProcess(folder, *options)
    try:
        for index in range(DEVICES):
            names = [f"c{index}p{number}" for number in range(1, PORTS + 1)]
            guest = EmbeddedGuest(folder / f"c{index}.sock", *names)
            guests.append(guest)
            hosts += [connect(folder / name) for name in names]
            ports = [guest.open(name).port for name in names]
            guest.run_until(lambda ports=ports: all(port.host_connected for port in ports))
        yield device, base, guests, hosts
    finally:
        for each in (*guests, *hosts):
            each.close()
        device.kill()


def test_connected_ports_take_little_memory_and_idle_ones_wake_nobody(crowd):
    device, base, _, _ = crowd
    growth = status(device.worker, "RssAnon") - base
    assert growth <= PER_PORT * DEVICES * PORTS, f"{growth / DEVICES / PORTS:.1f} KiB for each port"

    def wake_ups():
        return sum(status(pid, "voluntary_ctxt_switches") for pid in (device.pid, device.worker))

    def still():
        before = wake_ups()
        subprocess.run(["sleep", "2"], check=True)
        return wake_ups() == before

    wait_until(still, 60, "it is not idle for two seconds")


def test_every_port_of_a_crowd_carries_bytes(crowd):
    _, _, guests, hosts = crowd
    for index, guest in enumerate(guests):
        for number, host in enumerate(hosts[PORTS * index : PORTS * (index + 1)], 1):
            message = f"{index} {number}".encode()
            port = guest.port(f"c{index}p{number}")
            port.write(message)
            host.setblocking(False)
            assert guest.run_until(lambda host=host: receive(host)) == message


def receive(host):
    with suppress(BlockingIOError):
        return host.recv(100)
    return b""


def test_a_host_that_writes_without_end_to_a_guest_that_does_not_read_takes_no_memory(device, folder):
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest, connect(folder / "a") as host:
        guest.open("a")
        guest.run_until(lambda: guest.port("a").host_connected)
        before = status(device.worker, "RssAnon")
        host.setblocking(False)
        blocked = written = 0
        while blocked < 50 and written < 256 << 20:
            try:
                written += host.send(bytes(1 << 16))
                blocked = 0
            except BlockingIOError:
                blocked += 1
                subprocess.run(["sleep", "0.01"], check=True)
        assert blocked == 50, "it takes bytes without end"
        assert status(device.worker, "RssAnon") - before <= 1024


@pytest.mark.parametrize("max_ports", [1, 31, 511])
def test_there_is_room_for_the_state_of_every_controller(max_ports):
    assert state_size(max_ports) <= state_room(max_ports)
    assert state_room(max_ports) % PAGESIZE == 0


SLOW_IMPORTS = {"asyncio", "argparse", "ctypes", "dataclasses", "inspect", "platform", "ssl", "subprocess"}


def test_the_programs_import_nothing_slow_at_start():
    program = (
        "import sys, virtserial\n"
        "assert len([name for name in sys.modules if name.startswith('virtserial')]) == 1\n"
        "import virtserial.cli.serve, virtserial.machine.build, virtserial.daemon.keeper.keeper\n"
        "import virtserial.options.device_options, virtserial.options.chardev_options\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True, timeout=60
    )
    # What the worker is made of, the keeper reads when all its sockets listen.
    assert not (SLOW_IMPORTS | {"virtserial.daemon.worker.guest_device"}) & set(done.stdout.split())
