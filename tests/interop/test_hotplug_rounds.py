"""Hundreds of ports come and go while another one moves data: nothing of it is lost, and nothing stays behind.

VIRTSERIAL_ROUNDS says how many (the release's: 1000).
"""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest
from support.guests.exchange import exchange, socket_port
from support.guests.guest_side import PORT_HELPERS
from support.guests.host_end import HostEnd
from support.waiting import wait_until

from virtserial.client.qmp import QmpClient
from virtserial.rig import Guest

STAY = "org.test.stay"
WARM_UP, ROUNDS = 60, int(os.environ.get("VIRTSERIAL_ROUNDS", "200"))
TURN = 20
"""Every so many rounds the port is used, so that the guest has really had it."""
GROWTH_KIB = 384
"""What anonymous memory may differ by: one more of Python's arenas (256 KiB), and what malloc keeps."""


class Transfers(threading.Thread):
    """Checked transfers over a port, one after the other, until the end."""

    def __init__(self, guest, path):
        super().__init__()
        self._guest, self._path = guest, path
        self._ending = threading.Event()
        self.done = 0
        self.error = None

    def run(self):
        try:
            while not self._ending.is_set():
                exchange(self._guest, {STAY: self._path}, mib=8)
                self.done += 1
        except BaseException as error:  # whatever it is, the test has to hear of it
            self.error = error

    def finish(self):
        self._ending.set()
        self.join()
        if self.error is not None:
            raise self.error


@pytest.fixture
def monitor(our_device, folder):
    options = ["-device", "virtio-serial,id=ser0", *socket_port(1, STAY, f"{folder}/stay")]
    options += ["-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
    with our_device.attach(options) as attached, Guest(attached.arguments) as guest:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(f"{folder}/qmp")
        monitor = QmpClient(connection, 60)
        monitor.guest, monitor.attached = guest, attached
        yield monitor
        monitor.close()


def resources(attached):
    """(open descriptors, KiB of anonymous memory) of keeper and worker."""
    found = []
    for pid in (attached.process.pid, attached.worker_pid):
        status = Path(f"/proc/{pid}/status").read_text()
        anonymous = next(line for line in status.splitlines() if line.startswith("RssAnon"))
        found.append((len(os.listdir(f"/proc/{pid}/fd")), int(anonymous.split()[1])))
    return found


def plug_and_unplug(monitor, session, folder, turn):
    name, path = f"org.test.round{turn}", f"{folder}/round"
    server = {"addr": {"type": "unix", "data": {"path": path}}, "server": True, "wait": False}
    monitor("chardev-add", id=f"chr{turn}", backend={"type": "socket", "data": server})
    monitor("device_add", driver="virtserialport", id=f"port{turn}", name=name, nr=2 + turn % 5, chardev=f"chr{turn}")
    if turn % TURN == 0:
        end = HostEnd(path)
        session(f"fd = open_port('{name}'); until(lambda: 'OUT' in events(fd)); os.write(fd, b'{name}')")
        assert end.receive(len(name)) == name.encode()
        session("os.close(fd)")
        end.close()
    monitor("device_del", id=f"port{turn}")
    monitor.wait_event("DEVICE_DELETED")
    monitor("chardev-remove", id=f"chr{turn}")


@pytest.mark.slow
@pytest.mark.timeout(300 + ROUNDS)
def test_many_rounds_leave_data_descriptors_and_memory_as_they_were(monitor, folder):
    session = monitor.guest.session()
    session(PORT_HELPERS)
    transfers = Transfers(monitor.guest, f"{folder}/stay")
    transfers.start()
    try:
        for turn in range(WARM_UP):
            plug_and_unplug(monitor, session, folder, turn)
        worker = monitor.attached.worker_pid
        before = resources(monitor.attached)
        for turn in range(WARM_UP, WARM_UP + ROUNDS):
            plug_and_unplug(monitor, session, folder, turn)
            assert transfers.error is None
    finally:
        transfers.finish()
    assert transfers.done >= 1
    wait_until(
        lambda: not monitor.guest.run("ls /sys/class/virtio-ports | grep -v p1$").text,
        complaint="ports were left over",
    )
    assert monitor.attached.worker_pid == worker, monitor.attached.log
    exchange(monitor.guest, {STAY: f"{folder}/stay"}, mib=4)
    after = resources(monitor.attached)
    print(f"before {before}, after {after}, {transfers.done} transfers of 8 MiB each way")
    for (descriptors, anonymous), (later_descriptors, later_anonymous) in zip(before, after, strict=True):
        assert later_descriptors <= descriptors
        assert later_anonymous <= anonymous + GROWTH_KIB
