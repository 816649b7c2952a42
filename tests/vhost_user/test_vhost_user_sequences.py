"""What front ends of four VMMs say, from their start to their stop, to our process; memory and rings are real."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from support.device_process import DeviceProcess, connect, port_options
from support.played_front_end import LIMIT, SEQUENCES, PlayedFrontEnd, load

from virtserial.console.wire import (
    CONTROL,
    CONTROL_RECEIVEQ,
    CONTROL_TRANSMITQ,
    VIRTIO_CONSOLE_BAD_ID,
    VIRTIO_CONSOLE_CONSOLE_PORT,
    VIRTIO_CONSOLE_DEVICE_READY,
    VIRTIO_CONSOLE_F_MULTIPORT,
    VIRTIO_CONSOLE_PORT_ADD,
    VIRTIO_CONSOLE_PORT_NAME,
    VIRTIO_CONSOLE_PORT_OPEN,
    VIRTIO_CONSOLE_PORT_READY,
    receiveq_index,
    transmitq_index,
)

pytestmark = pytest.mark.process


class Driver:
    """Linux's driver on the rings of a front end; `hosts` are at the other ends of ports 0, 1 ..."""

    def __init__(self, front_end, hosts):
        self._front_end = front_end
        self._hosts = hosts
        self._heard = set()

    def start(self):
        """Post buffers, and open every port that the device has."""
        if self._front_end.features & VIRTIO_CONSOLE_F_MULTIPORT:
            for _ in range(16):
                self._front_end.add(CONTROL_RECEIVEQ, writable=[256])
            ports = range(len(self._hosts))
            self._tell(VIRTIO_CONSOLE_BAD_ID, VIRTIO_CONSOLE_DEVICE_READY)
            self._hear({(port, VIRTIO_CONSOLE_PORT_ADD, b"") for port in ports})
            for port in ports:
                self._tell(port, VIRTIO_CONSOLE_PORT_READY)
            self._hear({(0, VIRTIO_CONSOLE_CONSOLE_PORT, b"")})
            self._hear({(port, VIRTIO_CONSOLE_PORT_OPEN, b"") for port in ports})
            self._hear({(port, VIRTIO_CONSOLE_PORT_NAME, b"a\0") for port in ports[1:]})
            for port in ports:
                self._tell(port, VIRTIO_CONSOLE_PORT_OPEN)
        for port in range(len(self._hosts)):
            self._front_end.add(receiveq_index(port), writable=[1024])

    def _tell(self, port, event):
        self._front_end.add(CONTROL_TRANSMITQ, readable=[CONTROL.pack(port, event, 1)])
        self._front_end.wait(CONTROL_TRANSMITQ)

    def _hear(self, expected):
        """Wait until the device has said all this: port, event, and what comes with it."""
        while not expected <= self._heard:
            for used in self._front_end.wait(CONTROL_RECEIVEQ):
                port, event, value = CONTROL.unpack_from(used.data)
                assert value in (0, 1)
                self._heard.add((port, event, used.data[CONTROL.size :]))
                self._front_end.add(CONTROL_RECEIVEQ, writable=[256])

    def receive(self, port):
        """What the host has sent to a port, whose buffer was posted before."""
        queue = receiveq_index(port)
        (used,) = self._front_end.wait(queue)
        self._front_end.add(queue, writable=[1024])
        return used.data

    def send(self, port, data):
        queue = transmitq_index(port)
        self._front_end.add(queue, readable=[data])
        self._front_end.wait(queue)

    def exchange(self, what):
        """A message each way through each port."""
        for port, host in enumerate(self._hosts):
            host.sendall(b"to the guest " + what)
            assert self.receive(port) == b"to the guest " + what
            self.send(port, b"to the host " + what)
            assert host.recv(1024) == b"to the host " + what


@pytest.fixture
def play(folder):
    """Start a device for a sequence, its hosts, and its front end."""
    with ExitStack() as stack:

        def start(sequence):
            console = ["-chardev", f"socket,id=con,path={folder}/con,server=on,wait=off"]
            console += ["-device", "virtconsole,bus=ser0.0,nr=0,chardev=con"]
            ports, names = sequence["max_ports"], ["con"]
            options = ["-device", f"vhost-user-serial,id=ser0,socket={folder}/ser0.sock,max_ports={ports}", *console]
            if ports > 1:
                options += port_options(folder, "a", 1)
                names += ["a"]
            device = DeviceProcess(folder, *options)
            stack.callback(device.kill)
            hosts = [stack.enter_context(connect(folder / name)) for name in names]
            for host in hosts:
                host.settimeout(LIMIT)
            front_end = stack.enter_context(PlayedFrontEnd(folder / "ser0.sock", sequence))
            return device, front_end, hosts

        yield start


@pytest.mark.timeout(2 * LIMIT)
@pytest.mark.parametrize("name", sorted(path.stem for path in SEQUENCES.glob("*.toml")))
def test_a_front_end_is_served_from_its_start_to_its_stop_and_again(play, name):
    sequence = load(name)
    device, front_end, hosts = play(sequence)
    front_end.say("connect")
    for boot, part in enumerate(sequence["boots"]):
        front_end.set_up(boot)
        front_end.say(part)
        driver = Driver(front_end, hosts)
        driver.start()
        driver.exchange(b"at boot %d" % boot)
        for pause in sequence["pauses"]:
            for part in pause:
                front_end.say(part)
            # The buffers that the driver had posted are still the device's, its ports are open.
            driver.exchange(b"after a pause")
        front_end.say("stop")
    assert "refused" not in device.log
    assert "lost" not in device.log
