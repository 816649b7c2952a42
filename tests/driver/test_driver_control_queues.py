"""Control messages on a device that drops those for which it finds no buffer, as QEMU's does."""

from __future__ import annotations

import pytest
from support.driver_devices import LyingDevice

from virtserial.console.wire import (
    CONTROL,
    VIRTIO_CONSOLE_DEVICE_READY,
    VIRTIO_CONSOLE_PORT_ADD,
    VIRTIO_CONSOLE_PORT_NAME,
    VIRTIO_CONSOLE_PORT_OPEN,
    VIRTIO_CONSOLE_PORT_READY,
)
from virtserial.driver.console_driver import ConsoleDriver
from virtserial.driver.ports import PortListener


class DroppingDevice(LyingDevice):
    """Answers in its own thread's time: `serve` takes what the driver has sent, and interrupts afterwards.

    Attributes:
        dropped: answers that found no buffer.
    """

    def __init__(self, ports):
        super().__init__(max_ports=31)
        self.plugged = range(1, ports + 1)
        self.dropped = 0

    def serve(self):
        """Returns whether there was anything to do."""
        served = False
        while (chain := self.next_chain(3)) is not None:
            head, address, length = chain
            number, event, _ = message = CONTROL.unpack(self.memory.read(address, length)[:8])
            self.sent.append(message)
            if event == VIRTIO_CONSOLE_DEVICE_READY:
                for port in self.plugged:
                    self.answer(port, VIRTIO_CONSOLE_PORT_ADD)
            elif event == VIRTIO_CONSOLE_PORT_READY:
                self.answer(number, VIRTIO_CONSOLE_PORT_NAME, b"port%d" % number)
                self.answer(number, VIRTIO_CONSOLE_PORT_OPEN)
            self.use(3, head, 0)
            served = True
        for queue in (2, 3):
            self.sink.queue_interrupt(queue)
        return served

    def answer(self, port, event, payload=b""):
        chain = self.next_chain(2)
        if chain is None:
            self.dropped += 1
            return
        data = CONTROL.pack(port, event, 1) + payload
        self.memory.write(chain[1], data)
        self.use(2, chain[0], len(data))


@pytest.mark.parametrize("count", [1, 8, 15, 16, 30])
def test_every_port_s_name_and_host_are_heard_of_however_many_are_connected_at_start(count):
    device = DroppingDevice(count)
    driver = ConsoleDriver(device, memory=device.memory)
    driver.start()
    while device.serve():
        pass
    assert device.dropped == 0
    assert {port.number: (port.name, port.host_connected) for port in driver.ports.values()} == {
        number: (f"port{number}", True) for number in range(1, count + 1)
    }


def test_messages_without_answers_do_not_stop_those_behind_them():
    device = DroppingDevice(30)
    driver = ConsoleDriver(device, memory=device.memory)
    driver.start()
    while device.serve():
        pass
    device.sent.clear()
    for port in driver.ports.values():
        port.open(PortListener())
    while device.serve():
        pass
    assert sorted(device.sent) == [(number, VIRTIO_CONSOLE_PORT_OPEN, 1) for number in range(1, 31)]
    assert device.dropped == 0
