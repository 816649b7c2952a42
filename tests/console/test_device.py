"""The device as a whole: features, status, configuration, single-port mode, memory that goes, a successor."""

import pytest
from support.console_guest import (
    ADD,
    CONTROL_RX,
    F_MULTIPORT,
    F_SIZE,
    FEATURES,
    LIVE,
    MESSAGE,
    NAME,
    NEGOTIATED,
    OPEN,
    PORT_READY,
    READY,
    REMOVE,
    RESIZE,
    FakeHost,
    Guest,
    queues_of,
)
from support.ring_builder import BASE, KINDS, PAGE, WRITE

from virtserial.console.device import ConsoleDevice
from virtserial.console.port import Port
from virtserial.console.wire import CONFIG
from virtserial.errors import AccessInterrupted, AddressError, StateError
from virtserial.memory.region import MappedRegion, MessageRegion
from virtserial.memory.state import StateMemory
from virtserial.virtio import features, status
from virtserial.virtio.queue import Virtqueue
from virtserial.virtio.ring.device_ring import DETACHED, UNOPENED

ALL = 0xFFFFFFFF


# Features and status


def test_offered_features_follow_the_configuration(make_guest):
    assert make_guest(max_ports=31).device.device_features == features.TRANSPORT_FEATURES | 7
    assert make_guest(max_ports=1).device.device_features == features.TRANSPORT_FEATURES | 5
    assert make_guest(emergency_write=False).device.device_features == features.TRANSPORT_FEATURES | 3


@pytest.mark.parametrize(
    "accepted", [FEATURES | 1 << 63, FEATURES | 1 << 3, FEATURES & ~features.VIRTIO_F_VERSION_1, 0]
)
def test_row_31_features_never_offered_or_too_few_are_refused(make_guest, accepted):
    device = make_guest().device
    device.set_status(3)
    device.driver_features = accepted
    device.set_status(NEGOTIATED)
    assert device.status == 3
    device.driver_features = FEATURES
    device.set_status(NEGOTIATED)
    assert device.status == NEGOTIATED
    device.driver_features = 0
    assert device.driver_features == FEATURES, "fixed now"


def test_row_30_driver_ok_without_features_ok_reads_back_and_is_not_live(guest):
    host = FakeHost()
    guest.plug(1, host)
    guest.device.set_status(status.ACKNOWLEDGE | status.DRIVER)
    guest.device.driver_features = FEATURES
    guest.enable(*range(10))
    guest.device.set_status(7)
    assert guest.device.status == 7
    assert not guest.device.live
    guest.send(queues_of(1)[1], b"too early")
    assert host.taken == b""
    guest.device.set_status(15)
    guest.run()
    assert host.taken == b"too early"


def test_row_30_a_queue_enabled_without_addresses_fails_the_device(guest):
    guest.negotiate()
    guest.device.enable_queue(0)
    assert guest.needs_reset
    assert isinstance(guest.failures[0], AddressError)
    assert guest.interrupts.config == 0, "nobody listens before DRIVER_OK"
    guest.device.fail(AddressError("again"))
    assert len(guest.failures) == 1


def test_row_26_rings_outside_memory_fail_the_device_when_enabled(guest):
    guest.start(queues=(2, 3))
    queue = guest.device.queues[4]
    queue.desc_address = queue.avail_address = queue.used_address = BASE + guest.memory.size - 64
    guest.device.enable_queue(4)
    assert guest.needs_reset
    assert guest.interrupts.config == 1


def test_row_26_rings_that_overlap_are_survived(guest):
    guest.plug(1, FakeHost())
    guest.start(queues=(2, 3, 4))
    ring = guest.memory.ring_address()
    queue = guest.device.queues[5]
    queue.size = 16
    queue.desc_address = queue.avail_address = queue.used_address = ring
    guest.device.enable_queue(5)
    for index in range(200):
        guest.memory.write(ring + 2, (index & 0xFFFF).to_bytes(2, "little"))
        guest.device.notify(5)
        guest.run()
    guest.device.set_status(0)
    assert guest.device.status == 0


def test_row_32_clearing_status_bits_changes_nothing(guest):
    guest.start()
    for written in (1, 3, 11, 7, 64):
        guest.device.set_status(written)
        assert guest.device.status == LIVE
    guest.device.set_status(LIVE | status.FAILED | status.DEVICE_NEEDS_RESET)
    assert guest.device.status == LIVE | status.FAILED


def test_row_35_a_reset_with_chains_in_flight_and_again_and_use_while_broken(open_port):
    guest, ring = open_port.guest, open_port.guest.rings[open_port.tx]
    open_port.host.room = 1
    guest.send(open_port.tx, b"half of it")
    guest.device.set_status(0)
    guest.device.set_status(0)
    open_port.host.drain()
    guest.device.notify(open_port.tx)
    guest.run()
    assert ring.used_idx == 0, "no access after the reset"
    assert open_port.host.taken == b"h"
    assert guest.events.opens == [(1, True), (1, False)]
    assert open_port.host.wants_input is False
    guest.start()
    guest.tell(ALL, READY)
    guest.open(1)
    guest.send(open_port.tx, b"a new life")
    assert open_port.host.taken == b"ha new life"
    guest.rings[open_port.tx].offer(77)
    guest.device.notify(open_port.tx)
    guest.run()
    assert guest.needs_reset
    assert guest.interrupts.config == 1
    assert guest.events.opens[-1] == (1, False), "closed towards the back end"
    used = guest.rings[open_port.tx].used_idx
    guest.send(open_port.tx, b"while broken")
    guest.device.notify(200)
    guest.device.remove_port(1)
    guest.run()
    assert guest.rings[open_port.tx].used_idx == used
    assert len(guest.failures) == 1
    assert guest.device.record.failures == 1
    guest.device.set_status(0)
    assert guest.device.record.failures == 1, "a count is not the driver's to clear"


def test_row_28_notifications_of_queues_that_do_not_exist_are_ignored(guest):
    guest.start()
    for index in (10, 11, 200, 65535):
        guest.device.notify(index)
    guest.run()
    assert not guest.needs_reset


def test_a_queue_is_reset_alone(open_port):
    guest = open_port.guest
    guest.device.queues[open_port.tx].vector = 9
    open_port.host.room = 2
    guest.send(open_port.tx, b"abc")
    guest.device.reset_queue(open_port.tx)
    assert not guest.device.queues[open_port.tx].enabled
    assert guest.device.queues[open_port.tx].vector == 9
    open_port.host.drain()
    guest.run()
    guest.enable(open_port.tx)
    guest.device.enable_queue(open_port.tx)
    guest.send(open_port.tx, b"whole")
    assert open_port.host.taken == b"abwhole"
    assert guest.device.live


def test_base_class_has_no_configuration():
    from virtserial.virtio.device import VirtioDevice

    device = VirtioDevice(StateMemory(bytearray(4096)), 3, [16], features.TRANSPORT_FEATURES)
    assert (device.num_queues, device.config_size, device.read_config(4, 3)) == (1, 0, bytes(3))
    device.write_config(0, b"x")
    device.notify(0)
    device.driver_ready()
    device.stopped()
    device.config_changed()
    assert device.config_generation == 1
    device.record.config_generation = 255
    device.config_changed()
    assert device.config_generation == 0
    device.fail(AddressError("goes nowhere"))
    assert device.status == status.DEVICE_NEEDS_RESET


# Ports


def test_numbers_are_checked(make_guest):
    guest = make_guest()
    guest.plug(3)
    for number in (3, 4, -1):
        with pytest.raises(StateError, match="is taken or not below 4"):
            guest.plug(number)
    for number in (2, 4, -1):
        with pytest.raises(StateError, match="there is no port"):
            guest.device.remove_port(number)


def test_removing_a_port_whose_ring_is_broken_fails_the_device(open_port):
    open_port.guest.rings[open_port.tx].offer(99)
    open_port.guest.device.remove_port(1)
    assert open_port.guest.needs_reset
    assert open_port.guest.device.slots[1].port is None


# Configuration


def test_row_34_configuration_reads_of_any_width_and_place(make_guest):
    guest = make_guest(max_ports=31)
    console = guest.plug(0, is_console=True)
    generation = guest.device.config_generation
    guest.device.set_size(console, 80, 25)
    assert guest.device.config_generation == generation + 1
    whole = CONFIG.pack(80, 25, 31, 0)
    assert guest.device.config_size == len(whole)
    for offset in range(40):
        for length in (0, 1, 2, 3, 4, 7, 8, 64):
            assert guest.device.read_config(offset, length) == whole[offset : offset + length].ljust(length, b"\0")


def test_a_size_of_another_console_is_not_in_the_configuration(guest):
    console = guest.plug(2, FakeHost(), is_console=True, has_backend=True)
    guest.start()
    guest.device.set_size(console, 80, 25)
    assert guest.device.read_config(0, 4) == bytes(4)
    assert guest.interrupts.config == 0
    first = guest.plug(0, FakeHost(), is_console=True, has_backend=True)
    guest.device.set_size(first, 80, 25)
    assert guest.interrupts.config == 1


def test_row_33_emergency_write_works_in_any_state(make_guest):
    guest = make_guest()
    serial, deaf, console = FakeHost(), FakeHost(connected=False), FakeHost()
    guest.device.write_config(8, b"!\0\0\0")
    guest.plug(0, deaf, is_console=True, has_backend=True)
    guest.plug(1, serial)
    guest.plug(3, console, is_console=True, has_backend=True)
    guest.device.write_config(8, b"a\0\0\0")
    guest.device.set_status(3)
    guest.device.write_config(8, b"b")
    guest.start()
    guest.device.write_config(0, bytes(8) + b"c\xff\xff\xff")
    guest.device.fail(AddressError("broken"))
    guest.device.write_config(8, b"d\0")
    for offset, data in ((9, b"x"), (0, b"12345678"), (100, b"x"), (8, b"")):
        guest.device.write_config(offset, data)
    assert console.taken == b"abcd"
    assert (serial.taken, deaf.taken) == (b"", b"")
    assert guest.device.read_config(8, 4) == bytes(4)
    console.failure = "gone"
    guest.device.write_config(8, b"e")
    assert guest.events.failed == [(3, "gone")]
    guest.run()


# Single-port mode


@pytest.mark.parametrize(("max_ports", "accepted"), [(1, FEATURES & ~F_MULTIPORT), (4, FEATURES & ~F_MULTIPORT)])
def test_without_multiport_port_0_is_open_and_there_is_no_control(kind, make_guest, max_ports, accepted):
    guest = make_guest(kind, max_ports=max_ports)
    host = FakeHost()
    console = guest.plug(0, host, is_console=True, has_backend=True)
    guest.start(accepted, queues=(0, 1))
    assert host.heard == ["opened"]
    assert console.guest_open
    guest.send(1, b"login: ")
    assert host.taken == b"login: "
    host.feed(b"root\n")
    guest.post(0, 16)
    assert guest.received(0) == b"root\n"
    guest.device.set_size(console, 100, 40)
    assert guest.interrupts.config == 1
    assert guest.device.read_config(0, 4) == b"\x64\0\x28\0"
    guest.device.set_status(0)
    assert host.heard == ["opened", "closed"]


def test_without_multiport_a_port_plugged_later_is_open_and_data_before_is_discarded(guest):
    guest.start(FEATURES & ~F_MULTIPORT, queues=(0, 1))
    guest.send(1, b"nobody")
    assert guest.rings[1].used_idx == 1, "a driver that waits for its buffer must not wait for ever"
    host = FakeHost()
    guest.plug(0, host, is_console=True, has_backend=True)
    guest.plug(1, FakeHost())
    guest.send(1, b"somebody")
    assert host.taken == b"somebody"
    assert guest.events.opens == [(0, True)]


# Memory that comes and goes


def test_row_7_memory_outside_fails_at_once_without_a_second_try(open_port):
    open_port.guest.rings[open_port.tx].describe(0, 0x1000, 4)
    open_port.guest.rings[open_port.tx].offer(0)
    open_port.guest.ring(open_port.tx)
    assert open_port.guest.needs_reset


def map_page(guest, address):
    guest.device.memory.map(MappedRegion(address, PAGE, guest.memory.fd, 0))
    guest.device.memory_mapped()


@pytest.mark.parametrize("comes", [True, False])
def test_a_map_that_is_still_on_its_way_gets_a_second_try(make_guest, comes):
    guest = make_guest()
    asked = []
    guest.device.on_address_fault = lambda: asked.append(1)
    host = FakeHost()
    guest.plug(1, host)
    guest.start()
    guest.rings[5].describe(0, 0x1000, 4)
    guest.rings[5].offer(0)
    guest.ring(5)
    assert asked == [1]
    for _ in range(5):
        # Turns for other reasons meanwhile are no second try.
        guest.device.notify(5)
        host.listener.host_readable()
        guest.run()
    assert not guest.needs_reset
    assert asked == [1]
    if comes:
        guest.memory.write(BASE, b"data")
        map_page(guest, 0x1000)
    guest.device.turns.retry()
    guest.run()
    assert guest.needs_reset is not comes
    assert host.taken == (b"data" if comes else b"")
    if comes:
        guest.rings[5].describe(1, 0x9000, 4)
        guest.rings[5].offer(1)
        guest.ring(5)
        assert asked == [1, 1], "a later fault has its own second try"


def test_the_control_queues_have_a_second_try_too(make_guest):
    guest = make_guest()
    asked = []
    guest.device.on_address_fault = lambda: asked.append(1)
    guest.plug(1, FakeHost())
    guest.start()
    guest.memory.write(BASE, MESSAGE.pack(ALL, READY, 1))
    for turn in range(2):
        address = 0x1000 + turn * 0x10000
        guest.rings[3].describe(0, address, 8)
        guest.rings[3].offer(0)
        guest.ring(3)
        guest.device.notify(3)
        guest.run()
        map_page(guest, address)
        guest.device.turns.retry()
        guest.run()
        assert guest.heard() == [(1, ADD, 1, b"")]
    assert asked == [1, 1]
    guest.rings[3].describe(0, 0x99990000, 8)
    guest.rings[3].offer(0)
    guest.ring(3)
    guest.device.turns.retry()
    guest.run()
    assert guest.needs_reset


def test_an_unplugged_port_is_not_retried(make_guest):
    guest = make_guest()
    guest.device.on_address_fault = lambda: None
    guest.plug(1, FakeHost())
    guest.start()
    guest.post(4, 16)
    guest.open(1)
    guest.device.slots[1].port.host.feed(b"x" * 17)
    guest.rings[4].describe(0, 0x1000, 4, WRITE)
    guest.rings[4].offer(0)
    guest.ring(4)
    assert guest.device.turns._faulted
    guest.device.remove_port(1)
    guest.device.turns.retry()
    guest.run()
    assert not guest.device.turns._faulted
    assert not guest.needs_reset


def test_a_ring_whose_memory_goes_rests_until_it_is_back(kind, make_guest):
    guest = make_guest(kind)
    host = FakeHost()
    guest.plug(1, host)
    guest.start()
    guest.send(5, b"before ")
    epoch = guest.device.epoch
    guest.device.memory_unmapped(0, BASE)
    assert guest.device.epoch == epoch, "nothing of the queues is there"
    guest.device.memory_unmapped(BASE, guest.memory.size)
    guest.device.memory.clear()
    assert guest.device.epoch > epoch
    assert guest.device.queues[5].ring is DETACHED
    guest.rings[5].add([b"meanwhile "])
    guest.device.notify(5)
    guest.run()
    map_page(guest, 0x1000)
    assert guest.device.queues[5].ring is DETACHED
    guest.device.memory.clear()
    guest.memory.map_into(guest.device.memory)
    guest.interrupts.queues.clear()
    guest.device.memory_mapped()
    guest.run()
    assert host.taken == b"before meanwhile "
    assert 5 in guest.interrupts.queues
    assert not guest.device._resting
    assert not guest.needs_reset


def test_an_interrupt_that_is_due_while_the_ring_is_away_comes_when_it_is_back(make_guest):
    guest = make_guest()
    guest.plug(1, FakeHost())
    guest.start()
    guest.pause = 0
    guest.scheduler.advance(1)
    guest.send(5, b"x")
    guest.send(5, b"held")
    guest.device.memory_unmapped(BASE, guest.memory.size)
    guest.interrupts.queues.clear()
    guest.scheduler.advance(1)
    assert guest.interrupts.queues == []
    guest.device.memory_mapped()
    assert 5 in guest.interrupts.queues


def test_a_ring_that_comes_back_before_the_driver_is_ready_waits_for_it(make_guest):
    guest = make_guest()
    guest.negotiate()
    guest.enable(0, 1)
    guest.device.memory_unmapped(BASE, guest.memory.size)
    guest.device.memory_mapped()
    assert guest.interrupts.queues == []
    assert guest.device.queues[1].ring.attached


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_receiveq_without_a_port_has_no_open_ring_until_a_port_comes(kind, packed, make_guest):
    guest = make_guest(kind, packed=packed)
    guest.start()
    assert [queue.index for queue in guest.device.queues if queue.ring is UNOPENED] == [0, 4, 6, 8]
    guest.post(4, 64)
    host = FakeHost()
    guest.plug(1, host)
    guest.open(1)
    host.feed(b"hello")
    guest.run()
    assert guest.received(4) == b"hello"
    guest.device.remove_port(1)
    again = FakeHost()
    guest.plug(1, again)
    guest.open(1)
    guest.post(4, 64)
    again.feed(b"again")
    guest.run()
    assert guest.received(4) == b"again"
    guest.device.reset()
    assert all(queue.ring is DETACHED for queue in guest.device.queues)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_port_whose_ring_went_meanwhile_waits_for_its_memory(kind, packed, make_guest):
    guest = make_guest(kind, packed=packed)
    guest.start()
    guest.post(4, 64)
    guest.device.memory_unmapped(BASE, guest.memory.size)
    guest.device.memory.clear()
    host = FakeHost()
    guest.plug(1, host)
    assert guest.device.queues[4].ring is DETACHED
    guest.memory.map_into(guest.device.memory)
    guest.device.memory_mapped()
    guest.open(1)
    host.feed(b"hello")
    guest.run()
    assert guest.received(4) == b"hello"
    assert not guest.needs_reset


class Interrupted(MessageRegion):
    """Memory by messages; during the access number `when` the VMM does something else: `meanwhile`."""

    when = -1

    def read(self, offset, length):
        data = super().read(offset, length)
        self._count()
        return data

    def write(self, offset, data):
        super().write(offset, data)
        self._count()

    def meanwhile(self):
        pass

    def _count(self):
        self.when -= 1
        if self.when == 0:
            self.meanwhile()
            raise AccessInterrupted("the VMM was busy with something else")


@pytest.mark.parametrize("meanwhile", ["unmapped", "another queue is reset"])
@pytest.mark.parametrize("when", range(1, 30))
def test_an_interrupted_access_drops_the_turn_and_the_work_is_done_later(make_guest, when, meanwhile):
    guest = make_guest("message")
    region = Interrupted(BASE, guest.memory.size, guest.memory)
    guest.device.memory.clear()
    guest.device.memory.map(region)
    host = FakeHost()
    guest.plug(1, host)
    guest.start()
    guest.tell(ALL, READY)
    guest.open(1)
    assert guest.heard()[0] == (1, ADD, 1, b"")
    guest.scheduler.advance(1)
    region.when = when
    if meanwhile == "unmapped":
        region.meanwhile = lambda: guest.device.memory_unmapped(BASE, guest.memory.size)
    else:
        region.meanwhile = lambda: guest.device.reset_queue(9)
    guest.interrupts.queues.clear()
    guest.send(5, b"hello")
    guest.scheduler.advance(1)
    region.when = -1
    if meanwhile == "unmapped":
        guest.device.memory_mapped()
        guest.scheduler.advance(1)
    assert guest.rings[5].used_idx == 1
    assert 5 in guest.interrupts.queues
    # What was written before its chain could be returned is written again, never left out.
    assert host.taken in (b"hello", b"hellohello")
    assert not guest.needs_reset


def test_bytes_read_for_a_ring_that_is_gone_are_counted(make_guest):
    guest = make_guest("message")
    region = Interrupted(BASE, guest.memory.size, guest.memory)
    guest.device.memory.clear()
    guest.device.memory.map(region)
    host = FakeHost()
    port = guest.plug(1, host)
    guest.start()
    guest.open(1)
    guest.post(4, 16)

    def lost(views):
        region.when = 1
        guest.device.set_status(0)
        return 5

    host.readv = lost
    host.listener.host_readable()
    guest.run()
    assert port.record.dropped == 5
    assert port.record.received == 0


def test_an_interrupted_unplug_is_an_unplug(make_guest):
    guest = make_guest("message")
    region = Interrupted(BASE, guest.memory.size, guest.memory)
    guest.device.memory.clear()
    guest.device.memory.map(region)
    guest.plug(1, FakeHost())
    guest.start()
    region.when = 1
    guest.device.remove_port(1)
    assert guest.device.slots[1].port is None
    assert not guest.needs_reset


# A successor of a killed process


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("event_idx", [False, True])
def test_a_successor_goes_on_where_its_predecessor_was_killed(kind, event_idx, make_guest):
    guest = make_guest(kind, event_idx=event_idx)
    host = FakeHost()
    guest.plug(1, host, name="one")
    guest.plug(2, FakeHost(), name="two")
    guest.start(control_buffers=1)
    guest.tell(ALL, READY)
    assert guest.heard(repost=False) == [(1, ADD, 1, b"")]
    guest.open(1)
    host.room = 4
    guest.send(5, b"abcdef", b"ghi")
    assert host.taken == b"abcd"
    guest.rings[5].add([b"jkl"])

    guest.succeed()
    host = FakeHost()
    guest.plug(1, name="one").attach(host)
    guest.plug(2, FakeHost(), name="two")
    guest.device.take_over()
    assert host.heard == ["ready", "opened"]
    assert host.wants_input is True
    guest.run()
    assert host.taken == b"efghijkl"
    assert guest.rings[5].used_idx == 3
    assert {2, 3, 4, 5} <= set(guest.interrupts.queues), "interrupts that may have been lost"
    guest.post(CONTROL_RX, *[64] * 8)
    assert guest.heard() == [(1, NAME, 1, b"one\0"), (1, OPEN, 1, b""), (2, ADD, 1, b"")]
    host.feed(b"still open")
    guest.post(4, 32)
    assert guest.received(4) == b"still open"


def test_a_successor_tells_of_what_changed_while_nobody_was_there(make_guest):
    guest = make_guest()
    for number in (1, 2):
        guest.plug(number, FakeHost(), name=f"port {number}")
    guest.start()
    guest.tell(ALL, READY)
    guest.tell(1, PORT_READY)
    guest.tell(2, PORT_READY)
    guest.heard()
    guest.succeed()
    guest.plug(1, FakeHost(connected=False), name="port 1")
    guest.plug(3, FakeHost(), name="port 3")
    guest.device.take_over()
    guest.run()
    assert sorted(guest.heard()) == [(1, OPEN, 0, b""), (2, REMOVE, 1, b""), (3, ADD, 1, b"")]


def test_a_successor_of_a_device_without_a_driver_does_nothing(make_guest):
    guest = make_guest()
    guest.plug(1, FakeHost())
    guest.succeed()
    guest.plug(1, FakeHost())
    guest.device.take_over()
    guest.run()
    assert guest.device.status == 0
    assert guest.interrupts.queues == []


@pytest.mark.parametrize("misaligned", [False, True])
def test_a_successor_without_the_rings_memory(make_guest, misaligned):
    guest = make_guest()
    guest.plug(1, FakeHost())
    guest.start()
    guest.succeed()
    guest.device.memory.clear()
    guest.plug(1, host := FakeHost())
    if misaligned:
        guest.device.queues[5].record.desc_address += 1
    guest.device.take_over()
    guest.run()
    assert guest.needs_reset is misaligned
    if not misaligned:
        guest.memory.map_into(guest.device.memory)
        guest.device.memory_mapped()
        guest.send(5, b"back")
        assert host.taken == b"back"


@pytest.mark.parametrize("max_ports", [1, 2, 31, 511])
def test_state_memory_has_exactly_the_room_a_device_needs(max_ports):
    guest = Guest(max_ports=max_ports)
    guest.close()
    assert guest.state._end == ConsoleDevice.state_size(max_ports)
    with pytest.raises(StateError, match="too small"):
        Guest(max_ports=max_ports, state=StateMemory(bytearray(ConsoleDevice.state_size(max_ports) - 8)))


def test_without_f_size_and_with_it_resize_follows_negotiation(make_guest):
    guest = make_guest()
    console = guest.plug(0, FakeHost(), is_console=True, has_backend=True)
    guest.start(FEATURES & ~F_SIZE)
    guest.tell(0, PORT_READY)
    guest.heard()
    guest.device.set_size(console, 9, 9)
    guest.run()
    assert guest.heard() == []
    guest.start(FEATURES)
    guest.tell(0, PORT_READY)
    assert guest.heard()[-1] == (0, RESIZE, 0, b"\x09\0\x09\0")


# What a reset costs


@pytest.fixture
def resets(monkeypatch):
    """The queues and ports that resets have looked at."""
    looked_at = []
    for kind in (Virtqueue, Port):
        name = "reset" if kind is Virtqueue else "stop"
        plain = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda self, plain=plain: (looked_at.append(self), plain(self)))
    return looked_at


def test_a_reset_of_an_unused_device_looks_at_no_queue(make_guest, resets):
    """A message of a VMM has room for 200 of them, a device for 1,024 queues."""
    guest = make_guest(max_ports=31)
    for number in range(31):
        guest.plug(number)
    resets.clear()
    for _ in range(200):
        guest.device.set_status(0)
    assert resets == []


def test_a_reset_looks_at_what_was_used_since_the_last(make_guest, resets):
    guest = make_guest(max_ports=31)
    for number in range(31):
        guest.plug(number, FakeHost())
    guest.start(queues=(2, 3, 10, 11))
    guest.open(4)
    guest.tell(7, OPEN)
    assert guest.device.slots[7].record.guest_open
    resets.clear()
    guest.device.set_status(0)
    assert {each.index for each in resets if isinstance(each, Virtqueue)} == {2, 3, 10, 11}
    assert {each.number for each in resets if isinstance(each, Port)} <= {0, 4, 7}
    assert not any(slot.record.guest_open or slot.record.ready or slot.record.known for slot in guest.device.slots)
    resets.clear()
    guest.device.set_status(0)
    assert resets == []


def test_a_successor_resets_what_its_predecessor_used(make_guest):
    guest = make_guest(max_ports=31)
    guest.plug(4, FakeHost())
    guest.start(queues=(2, 3, 10, 11))
    guest.open(4)
    guest.succeed()
    guest.plug(4, FakeHost())
    guest.device.set_status(0)
    assert not any(queue.enabled or queue.desc_address for queue in guest.device.queues)
    assert not any(slot.record.guest_open or slot.record.ready for slot in guest.device.slots)
