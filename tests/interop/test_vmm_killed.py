"""QEMU is killed at its n-th vfio-user message, n over a guest's whole life: the device serves the next VMM each time.

One guest's life is recorded: boot, data both ways, a port and a controller plugged and unplugged.  Then a VMM that says
the same is cut off within every message of the start and many of the rest; and a real QEMU is killed at some.
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
from support.device_process import DeviceProcess, connect, controller_options, port_options
from support.embedded_guest import EmbeddedGuest
from support.guests.guest_side import PORT_HELPERS
from support.vfio_tap import Tap, close_all, replay
from support.waiting import wait_until

from virtserial.client.qmp import QmpClient
from virtserial.errors import VirtserialError
from virtserial.rig import Guest
from virtserial.rig.__main__ import vfio_user_argument

EVERY = 400
"""Within every message up to this one the VMM is cut off, then within MORE others."""
MORE = 60
KILLS = int(os.environ.get("VIRTSERIAL_VMM_KILLS", "3"))
"""Lives of a real QEMU that end at a message of its first device (the release's: 8)."""
ROOT_PORT = ("-device", "pcie-root-port,id=rp1,slot=1,chassis=1")


@pytest.fixture
def device(folder):
    """Two controllers: the first with a port and a monitor, the second for hot-plug (INTx, so that it can go)."""
    device = DeviceProcess(
        folder, *controller_options(folder), *port_options(folder, "a"),
        *controller_options(folder, "ser1", ",vectors=0"), *port_options(folder, "b", bus="ser1"),
        "-qmp", f"unix:{folder}/qmp,server=on,wait=off",
    )  # fmt: skip
    yield device
    device.kill()


def live(folder, first, second):
    """A guest's life, on the taps `first` and `second` (which is plugged in)."""
    with Guest(["-device", vfio_user_argument(first), *ROOT_PORT]) as guest:
        session = guest.session()
        session(PORT_HELPERS)
        with connect(folder / "a") as host:
            session("fd = open_port('a'); os.write(fd, b'x' * 5000)")
            received = b""
            while len(received) < 5000:
                received += host.recv(65536)
            host.sendall(b"y" * 5000)
            assert session("len(read_exactly(fd, 5000))") == 5000
            with QmpClient(f"{folder}/qmp", 30) as monitor:
                monitor("device_add", driver="virtserialport", id="p2", name="p2", bus="ser0.0", nr=2)
                session("os.close(open_port('p2'))")
                monitor("device_del", id="p2")
        socket = {"type": "unix", "path": str(second)}
        guest.qmp("device_add", driver="vfio-user-pci", id="hot", bus="rp1", socket=socket)
        session("os.close(open_port('b'))")
        guest.qmp("device_del", id="hot")
        guest.monitor.wait_event("DEVICE_DELETED")


def serves(device, folder):
    """Both controllers take a VMM and move data."""
    for controller, port in (("ser0", "a"), ("ser1", "b")):
        with EmbeddedGuest(folder / f"{controller}.sock", port) as guest:
            guest.check_port(port, folder / port, 10_000)


@pytest.fixture
def recorded(device, folder):
    taps = [Tap(f"{folder}/tap{number}", f"{folder}/ser{number}.sock") for number in (0, 1)]
    live(folder, f"{folder}/tap0", f"{folder}/tap1")
    for tap in taps:
        tap.join(60)
    yield [tap.messages for tap in taps]
    for tap in taps:
        for message in tap.messages:
            close_all(message.fds)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_vmm_is_gone_within_every_message(device, folder, recorded):
    rng = random.Random(7)
    before = device.descriptors_at_rest(f"{folder}/ser0.sock")
    worker = device.worker
    for number, messages in enumerate(recorded):
        ends = {*range(1, min(EVERY, len(messages)) + 1), len(messages)}
        ends.update(rng.sample(range(1, len(messages) + 1), min(MORE, len(messages))))
        for end in sorted(ends):
            part = rng.choice((0, 1, 8, 15, 16, 17, len(messages[end - 1].data) - 1, len(messages[end - 1].data)))
            try:
                replay(f"{folder}/ser{number}.sock", messages[:end], part)
            except (AssertionError, OSError) as error:
                raise AssertionError(f"cut off at {end} of {len(messages)}: {error}\n{device.log}") from error
    serves(device, folder)
    assert (device.worker, device.process.poll()) == (worker, None)
    wait_until(lambda: device.descriptors() == before, complaint=f"{before} became {device.descriptors()}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_real_qemu_is_killed_at_messages_of_its_life(device, folder, recorded):
    boot, plugged = map(len, recorded)
    rng = random.Random(int.from_bytes(os.urandom(4), "little"))
    ends = [(0, rng.randrange(1, boot)) for _ in range(KILLS)]
    ends += [(1, rng.randrange(1, plugged)) for _ in range(KILLS // 3)]
    worker = device.worker
    for turn, (number, end) in enumerate(ends):
        taps = [
            Tap(
                f"{folder}/turn{turn}.{each}", f"{folder}/ser{each}.sock",
                end if each == number else None, rng.choice((0, 8, 16, 30)), kill_qemu,
            )
            for each in (0, 1)
        ]  # fmt: skip
        try:
            live(folder, f"{folder}/turn{turn}.0", f"{folder}/turn{turn}.1")
        except (VirtserialError, OSError, AssertionError):
            assert taps[number].count >= end
        for tap in taps:
            tap.close()
            for message in tap.messages:
                close_all(message.fds)
        serves(device, folder)
        assert (device.worker, device.process.poll()) == (worker, None), (number, end, device.log)


def kill_qemu():
    """The QEMU that this process has started."""
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        if b"vfio-user-pci" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGKILL)
