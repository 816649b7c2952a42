"""testing.memory_driver: bare queues on a device, and the scheduler."""

from __future__ import annotations

import pytest
from support.driver_devices import BufferEnd, console_device

from virtserial.console.wire import (
    CONTROL_RECEIVEQ,
    CONTROL_TRANSMITQ,
    VIRTIO_CONSOLE_BAD_ID,
    VIRTIO_CONSOLE_DEVICE_READY,
    VIRTIO_CONSOLE_F_MULTIPORT,
    VIRTIO_CONSOLE_PORT_ADD,
    VIRTIO_CONSOLE_PORT_OPEN,
    VIRTIO_CONSOLE_PORT_READY,
    pack_control,
    receiveq_index,
    transmitq_index,
)
from virtserial.errors import StateError
from virtserial.testing.memory_driver import QueueDriver, StepScheduler
from virtserial.virtio.features import VIRTIO_F_EVENT_IDX, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1

FEATURES = VIRTIO_F_VERSION_1 | VIRTIO_CONSOLE_F_MULTIPORT | VIRTIO_F_RING_RESET
QUEUES = (CONTROL_RECEIVEQ, CONTROL_TRANSMITQ, receiveq_index(1), transmitq_index(1))


@pytest.mark.parametrize("extra", [0, VIRTIO_F_EVENT_IDX], ids=["flags", "event_idx"])
@pytest.mark.parametrize("sealed", [True, False], ids=["mapped", "unsealed"])
def test_a_test_can_say_every_chain_itself(extra, sealed):
    device, scheduler = console_device()
    host = BufferEnd()
    device.add_port(1, None, False, True).attach(host)
    driver = QueueDriver(device, scheduler, QUEUES, FEATURES | extra, sealed=sealed)
    driver.post(CONTROL_RECEIVEQ, 64, count=8)
    driver.send(CONTROL_TRANSMITQ, pack_control(VIRTIO_CONSOLE_BAD_ID, VIRTIO_CONSOLE_DEVICE_READY, 1))
    assert driver.harvest(CONTROL_RECEIVEQ) == [pack_control(1, VIRTIO_CONSOLE_PORT_ADD, 1)]
    driver.send(CONTROL_TRANSMITQ, pack_control(1, VIRTIO_CONSOLE_PORT_READY, 1))
    assert driver.harvest(CONTROL_RECEIVEQ) == [pack_control(1, VIRTIO_CONSOLE_PORT_OPEN, 1)]
    driver.send(CONTROL_TRANSMITQ, pack_control(1, VIRTIO_CONSOLE_PORT_OPEN, 1))
    driver.send(transmitq_index(1), b"hello")
    assert host.taken == b"hello"
    assert driver.harvest(transmitq_index(1)) == [b""]
    driver.post(receiveq_index(1), 4, count=2)
    host.give(b"abcdef")
    scheduler.run()
    assert driver.harvest(receiveq_index(1)) == [b"abcd", b"ef"]
    driver.close()
    assert len(device.memory) == 0


def test_a_queue_that_was_reset_is_set_up_again():
    device, scheduler = console_device()
    host = BufferEnd()
    device.add_port(1, None, False, True).attach(host)
    driver = QueueDriver(device, scheduler, QUEUES, FEATURES)
    driver.send(transmitq_index(1), b"before")
    device.reset_queue(transmitq_index(1))
    driver.enable(transmitq_index(1))
    driver.send(transmitq_index(1), b" after")
    assert host.taken == b"before after"
    driver.close()


def test_turns_without_end_are_found_out():
    scheduler = StepScheduler()

    def again():
        scheduler.add_turn(again)

    again()
    with pytest.raises(StateError, match="without end"):
        scheduler.run(limit=100)


def test_timers_run_in_their_order_when_time_is_moved():
    scheduler, ran = StepScheduler(), []
    scheduler.call_at(2.0, lambda: ran.append(("second", scheduler.now())))
    scheduler.call_at(1.0, lambda: ran.append(("first", scheduler.now())))
    scheduler.call_at(1.5, lambda: ran.append(("never", 0))).cancel()
    scheduler.advance(1.75)
    assert ran == [("first", 1.0)]
    scheduler.advance(1.0)
    assert ran == [("first", 1.0), ("second", 2.0)]
    assert scheduler.now() == 2.75
