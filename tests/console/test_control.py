"""The control protocol: what is said, in which order, and that nothing is ever lost."""

import logging
import tracemalloc

import pytest
from support.console_guest import (
    ADD,
    CONSOLE,
    CONTROL_RX,
    CONTROL_TX,
    F_MULTIPORT,
    F_SIZE,
    FEATURES,
    MESSAGE,
    NAME,
    OPEN,
    PORT_READY,
    READY,
    REMOVE,
    RESIZE,
    FakeHost,
    queues_of,
)
from support.ring_builder import BASE, WRITE

ALL = 0xFFFFFFFF


def answer_everything(guest, repost):
    """A driver that answers PORT_ADD with PORT_READY; returns what it heard."""
    log = []
    while messages := guest.heard(repost=False):
        for message in messages:
            log.append(message)
            repost()
            if message[1] == ADD:
                guest.tell(message[0], PORT_READY)
    return log


def test_the_order_of_a_start(guest):
    guest.plug(3, FakeHost(), name="three")
    console = guest.plug(0, FakeHost(), is_console=True, has_backend=True, name="con")
    guest.plug(1, FakeHost(connected=False))
    guest.device.set_size(console, 80, 25)
    guest.start()
    assert guest.heard() == []
    guest.tell(ALL, READY)
    assert guest.heard() == [(3, ADD, 1, b""), (0, ADD, 1, b""), (1, ADD, 1, b"")], "in plug order"
    guest.tell(3, PORT_READY)
    assert guest.heard() == [(3, NAME, 1, b"three\0"), (3, OPEN, 1, b"")]
    guest.tell(0, PORT_READY)
    assert guest.heard() == [
        (0, CONSOLE, 1, b""),
        (0, NAME, 1, b"con\0"),
        (0, OPEN, 1, b""),
        (0, RESIZE, 0, b"\x50\0\x19\0"),
    ]
    guest.tell(1, PORT_READY)
    assert guest.heard() == [], "neither name nor connection"
    assert guest.device.control.ignored == 0


def test_an_empty_name_is_a_name(guest):
    guest.plug(1, name="")
    guest.start()
    guest.tell(1, PORT_READY)
    assert guest.heard() == [(1, NAME, 1, b"\0")]


def test_a_console_is_open_if_it_has_a_back_end_and_only_then(guest):
    guest.plug(0, FakeHost(connected=False), is_console=True, has_backend=True)
    guest.plug(1, is_console=True)
    guest.start()
    guest.tell(0, PORT_READY)
    guest.tell(1, PORT_READY)
    assert guest.heard() == [(0, CONSOLE, 1, b""), (0, OPEN, 1, b""), (1, CONSOLE, 1, b"")]


@pytest.mark.parametrize("first", ["cols", "rows"])
def test_resize_in_both_orders(guest, first):
    guest.device.resize_rows_first = first == "rows"
    console = guest.plug(0, FakeHost(), is_console=True, has_backend=True)
    guest.start()
    guest.device.set_size(console, 0x0102, 0x0304)
    assert guest.heard() == [], "the driver does not know it yet"
    guest.tell(0, PORT_READY)
    size = b"\x02\x01\x04\x03" if first == "cols" else b"\x04\x03\x02\x01"
    assert guest.heard()[-1] == (0, RESIZE, 0, size)
    guest.device.set_size(console, 0x0304, 0x0102)
    guest.run()
    assert guest.heard() == [(0, RESIZE, 0, size[2:] + size[:2])]


def test_without_f_size_there_is_no_resize(guest):
    console = guest.plug(0, FakeHost(), is_console=True, has_backend=True)
    guest.device.set_size(console, 80, 25)
    guest.start(FEATURES & ~F_SIZE)
    guest.tell(0, PORT_READY)
    guest.device.set_size(console, 132, 50)
    guest.run()
    assert RESIZE not in [message[1] for message in guest.heard()]


def test_resize_is_coalesced(guest):
    console = guest.plug(1, FakeHost(), is_console=True, has_backend=True)
    guest.start(control_buffers=0)
    guest.tell(1, PORT_READY)
    for width in range(1, 500):
        guest.device.set_size(console, width, 25)
        guest.run()
    guest.post(CONTROL_RX, *[64] * 8)
    assert [message for message in guest.heard() if message[1] == RESIZE] == [(1, RESIZE, 0, b"\xf3\x01\x19\0")]


# Nothing is lost


@pytest.mark.parametrize("ports", [31, 511])
def test_no_message_is_lost_with_one_buffer_at_a_time(make_guest, ports):
    guest = make_guest(max_ports=ports)
    for number in range(1, ports):
        guest.plug(number, FakeHost(), name=f"org.example.{number}")
    guest.start(queues=(CONTROL_RX, CONTROL_TX), control_buffers=1)

    def repost():
        guest.memory._next = 0x60000
        guest.post(CONTROL_RX, 64)

    guest.tell(ALL, READY)
    log = answer_everything(guest, repost)
    numbers = list(range(1, ports))
    assert sorted(number for number, event, _, _ in log if event == ADD) == numbers
    assert sorted(number for number, event, _, _ in log if event == NAME) == numbers
    assert sorted(number for number, event, value, _ in log if event == OPEN and value) == numbers
    for number in (1, ports // 2, ports - 1):
        assert [message[1] for message in log if message[0] == number] == [ADD, NAME, OPEN]


@pytest.mark.parametrize("times", [2, 3])
def test_open_is_coalesced_and_the_last_wins(open_port, times):
    guest, host = open_port.guest, open_port.host
    guest.heard()
    ring = guest.rings[CONTROL_RX]
    while guest.heard(repost=False):
        pass
    waiting = ring.idx - ring.used_idx
    for _ in range(waiting):  # use the posted buffers up
        host.leave() if host.connected else host.come()
        guest.run()
    assert len(guest.heard(repost=False)) == waiting
    known = host.connected
    for _ in range(times):
        host.leave() if host.connected else host.come()
        guest.run()
    guest.post(CONTROL_RX, *[64] * 4)
    expected = [] if host.connected == known else [(1, OPEN, int(host.connected), b"")]
    assert guest.heard() == expected


def test_row_21_two_thousand_device_readys_are_bounded_and_answered(guest):
    for number in range(1, 4):
        guest.plug(number, FakeHost())
    guest.start(control_buffers=0)
    ring = guest.rings[CONTROL_TX]
    for turn in range(2000):
        guest.memory._next = 0x60000
        ring.add([MESSAGE.pack(ALL, READY, 1)])
        if turn % 16 == 15:
            guest.ring(CONTROL_TX)
    assert ring.used_idx == 2000
    assert len(guest.device.control._waiting) == 3
    guest.post(CONTROL_RX, *[64] * 8)
    assert guest.heard() == [(1, ADD, 1, b""), (2, ADD, 1, b""), (3, ADD, 1, b"")]


def test_plugging_without_end_before_a_driver_that_never_listens_is_bounded(guest):
    guest.start(control_buffers=0)
    for _ in range(300):
        guest.plug(1, FakeHost())
        guest.device.remove_port(1)
        guest.run()
    assert len(guest.device.control._waiting) <= 1
    guest.post(CONTROL_RX, 64)
    assert guest.heard() == []


# Plugging


def test_hot_add_and_remove(guest):
    guest.start()
    guest.tell(ALL, READY)
    assert guest.heard() == []
    host = FakeHost()
    guest.plug(2, host, name="late")
    guest.run()
    assert guest.heard() == [(2, ADD, 1, b"")]
    guest.open(2)
    assert guest.heard() == [(2, NAME, 1, b"late\0"), (2, OPEN, 1, b"")]
    guest.device.remove_port(2)
    guest.run()
    assert guest.heard() == [(2, REMOVE, 1, b"")]
    assert host.closed
    assert guest.events.opens == [(2, True), (2, False)]
    guest.tell(2, OPEN, 0)
    assert guest.device.control.ignored == 1


def test_remove_and_add_again_at_the_same_number_before_the_driver_listens(guest):
    guest.plug(2, FakeHost(), name="old")
    guest.start(control_buffers=1)
    guest.tell(ALL, READY)
    assert guest.heard(repost=False) == [(2, ADD, 1, b"")]
    guest.tell(2, PORT_READY)
    for name in ("newer", "newest"):
        guest.device.remove_port(2)
        guest.plug(2, FakeHost(connected=False), name=name)
        guest.run()
    guest.post(CONTROL_RX, *[64] * 8)
    assert guest.heard() == [(2, REMOVE, 1, b""), (2, ADD, 1, b"")]
    guest.tell(2, PORT_READY)
    assert guest.heard() == [(2, NAME, 1, b"newest\0")]


def test_a_port_that_came_and_went_unheard_is_never_mentioned(guest):
    guest.start(control_buffers=0)
    guest.plug(1, FakeHost())
    guest.device.remove_port(1)
    guest.plug(3, FakeHost())
    guest.run()
    guest.post(CONTROL_RX, *[64] * 4)
    assert guest.heard() == [(3, ADD, 1, b"")]


def test_unplug_with_data_queued_returns_every_chain_and_counts_it(open_port):
    guest, ring = open_port.guest, open_port.guest.rings[open_port.tx]
    open_port.host.room = 2
    guest.send(open_port.tx, b"abc", b"def")
    ring.add([b"not even looked at"])
    guest.device.remove_port(1)
    guest.run()
    assert ring.used_idx == 3
    assert open_port.tx in guest.interrupts.queues
    assert guest.device.slots[1].record.discarded == 6 - 2 + 18
    assert guest.heard() == [(1, REMOVE, 1, b"")]


def test_after_an_unplug_while_throttled_the_next_port_of_the_number_hears_the_doorbell(open_port):
    guest = open_port.guest
    open_port.host.room = 0
    guest.send(open_port.tx, b"stuck")
    ring = guest.rings[open_port.tx]
    ring.add([b"and more"])
    guest.device.remove_port(1)
    assert guest.device.slots[1].record.discarded == 5 + 8
    guest.plug(1, FakeHost(connected=False))
    guest.run()
    ring.wants_bell()
    guest.send(open_port.tx, b"discarded at once")
    assert ring.used_idx == 3
    assert guest.device.slots[1].port.record.discarded == 17, "it counts from zero"


def test_a_turn_that_an_unplugged_port_had_asked_for_is_not_the_next_ports(open_port):
    guest = open_port.guest
    guest.device.notify(open_port.tx)
    guest.device.remove_port(1)
    guest.plug(1, host := FakeHost())
    guest.rings[open_port.tx].add([b"for the new one"])
    guest.device.notify(open_port.tx)
    guest.run()
    assert host.taken == b"for the new one"


@pytest.mark.parametrize("alone", [False, True], ids=["with others", "alone"])
def test_a_host_hears_that_the_guest_opened_the_port_before_what_it_wrote(guest, alone):
    host = FakeHost()
    guest.plug(1, host, name="one")
    guest.start()
    guest.tell(1, PORT_READY)
    transmitq = queues_of(1)[1]
    guest.rings[CONTROL_TX].add([MESSAGE.pack(1, OPEN, 1)])
    guest.rings[transmitq].add([b"first words"])
    heard = []
    host.inside = lambda: heard.extend(host.heard)
    # The doorbell of the second overtakes that of the first.
    (guest.device.notify_alone if alone else guest.device.notify)(transmitq)
    guest.run()
    assert host.taken == b"first words"
    assert heard == ["ready", "opened"]


# Hostile drivers


def test_row_18_short_control_buffers_come_back_empty_and_the_message_waits(guest):
    guest.plug(1, FakeHost(), name="a name of some length")
    guest.start(control_buffers=0)
    guest.tell(1, PORT_READY)
    ring = guest.rings[CONTROL_RX]
    guest.post(CONTROL_RX, 4, 8, 7)
    assert [used.length for used in ring.harvest()] == [0, 0, 0]
    guest.post(CONTROL_RX, 64, 8)
    assert guest.heard() == [(1, NAME, 1, b"a name of some length\0"), (1, OPEN, 1, b"")]
    assert not guest.needs_reset


def test_row_18_endless_short_buffers_do_not_hold_a_turn(make_guest):
    guest = make_guest()
    guest.plug(1, FakeHost())
    guest.start(control_buffers=0)
    guest.tell(1, PORT_READY)
    guest.device.queues[CONTROL_RX].max_size = 256
    guest.device.reset_queue(CONTROL_RX)
    guest.enable(CONTROL_RX, size=256)
    for _ in range(256):
        guest.rings[CONTROL_RX].add(writable=[4])
    guest.device.notify(CONTROL_RX)
    guest.device.turns.turn()
    assert guest.rings[CONTROL_RX].used_idx == 64
    guest.run()
    assert guest.rings[CONTROL_RX].used_idx == 256


def test_row_17_readable_buffers_in_the_control_receiveq_come_back_empty(guest):
    guest.plug(1, FakeHost())
    guest.start(control_buffers=0)
    guest.tell(ALL, READY)
    guest.rings[CONTROL_RX].add([b"12345678"])
    guest.ring(CONTROL_RX)
    assert [used.length for used in guest.rings[CONTROL_RX].harvest()] == [0]
    guest.post(CONTROL_RX, 64)
    assert guest.heard() == [(1, ADD, 1, b"")]


def test_row_18_control_buffers_split_into_single_bytes(guest):
    guest.plug(1, FakeHost(), name="pieces")
    guest.start(control_buffers=0)
    guest.tell(1, PORT_READY)
    ring = guest.rings[CONTROL_RX]
    for _ in range(2):
        ring.add(writable=[1] * 15, table=15)
    guest.ring(CONTROL_RX)
    assert [(used.length, used.data) for used in ring.harvest()] == [
        (15, MESSAGE.pack(1, NAME, 1) + b"pieces\0"),
        (8, MESSAGE.pack(1, OPEN, 1)),
    ]


def test_row_19_control_messages_in_single_bytes(guest):
    guest.plug(1, FakeHost())
    guest.start()
    data = MESSAGE.pack(1, PORT_READY, 1)
    guest.send(CONTROL_TX, [bytes([byte]) for byte in data])
    assert guest.heard() == [(1, OPEN, 1, b"")]


@pytest.mark.parametrize("length", [1, 4, 7])
def test_row_19_short_control_messages_are_ignored_and_counted(guest, length):
    guest.start()
    guest.send(CONTROL_TX, MESSAGE.pack(1, PORT_READY, 1)[:length])
    assert guest.rings[CONTROL_TX].used_idx == 1
    assert guest.device.control.ignored == 1
    assert not guest.needs_reset


def test_row_19_a_control_message_of_a_megabyte_takes_no_memory(kind, make_guest):
    guest = make_guest(kind, size=4 << 20)
    guest.plug(1, FakeHost())
    guest.start()
    address = BASE + (2 << 20)
    guest.memory.write(address, MESSAGE.pack(1, PORT_READY, 1))
    tracemalloc.start()
    try:
        for _ in range(3):
            guest.rings[CONTROL_TX].describe(0, address, 1 << 20)
            guest.rings[CONTROL_TX].offer(0)
            guest.ring(CONTROL_TX)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert guest.heard()[0] == (1, OPEN, 1, b"")
    assert guest.rings[CONTROL_TX].used_idx == 3
    assert peak < 100_000


@pytest.mark.parametrize(
    ("port", "event", "value"),
    [(9, PORT_READY, 1), (ALL, PORT_READY, 1), (2, OPEN, 1), (1, 8, 1), (1, 0xFFFF, 1), (1, ADD, 1), (1, NAME, 1)],
)
def test_row_20_unknown_ports_and_events_are_ignored_and_counted(open_port, port, event, value):
    before = open_port.guest.device.control.ignored
    open_port.guest.tell(port, event, value)
    assert open_port.guest.device.control.ignored == before + 1
    assert open_port.guest.heard() == []
    assert not open_port.guest.needs_reset


def test_row_20_odd_values_and_doubled_opens(open_port):
    guest = open_port.guest
    guest.tell(1, OPEN, 0xFFFF)
    guest.tell(1, OPEN, 1)
    assert guest.events.opens == [(1, True)]
    guest.tell(1, OPEN, 0)
    guest.tell(1, OPEN, 0)
    assert guest.events.opens == [(1, True), (1, False)]


def test_row_20_a_driver_cannot_fill_the_log(open_port, caplog):
    guest = open_port.guest
    for _ in range(50):
        guest.tell(ALL, READY, 0)
        guest.tell(1, PORT_READY, 0)
    assert len(caplog.records) == 1
    guest.scheduler.advance(1.5)
    guest.tell(1, PORT_READY, 0)
    assert [record.getMessage() for record in caplog.records][1:] == [
        "virtio-serial: the guest's driver failed to add port 1"
    ]
    assert guest.heard() == []


def test_messages_are_traced_by_qemus_names(open_port, caplog):
    with caplog.at_level(logging.DEBUG, logger="virtserial.console"):
        open_port.guest.tell(1, PORT_READY)
    assert [record.getMessage() for record in caplog.records] == [
        "virtio_serial_handle_control_message event 3, value 1",
        "virtio_serial_send_control_event port 1, event 7, value 1",
        "virtio_serial_send_control_event port 1, event 6, value 1",
    ]


@pytest.mark.parametrize("index", [CONTROL_RX, CONTROL_TX])
def test_a_broken_control_queue_fails_the_device_and_a_reset_heals_it(guest, index):
    guest.plug(1, FakeHost())
    guest.start(control_buffers=0)
    guest.tell(ALL, READY)
    guest.rings[index].offer(99)
    guest.device.notify(index)
    guest.run()
    assert guest.needs_reset
    assert "head 99 is outside" in str(guest.failures[0])
    assert guest.interrupts.config == 1
    guest.start()
    guest.tell(ALL, READY)
    assert guest.heard() == [(1, ADD, 1, b"")]


def test_a_device_that_fails_while_it_takes_messages_stops(guest):
    host = FakeHost()
    guest.plug(1, host)
    guest.start()
    host.guest_opened = lambda: guest.device.set_status(0)
    for event in (PORT_READY, OPEN, PORT_READY):
        guest.rings[CONTROL_TX].add([MESSAGE.pack(1, event, 1)])
    guest.ring(CONTROL_TX)
    assert guest.device.status == 0
    assert guest.rings[CONTROL_TX].used_idx == 2


def test_more_messages_than_a_turn_takes(make_guest):
    guest = make_guest()
    guest.start()
    guest.device.queues[CONTROL_TX].max_size = 256
    guest.device.reset_queue(CONTROL_TX)
    guest.enable(CONTROL_TX, size=256)
    for _ in range(200):
        guest.rings[CONTROL_TX].add([MESSAGE.pack(3, OPEN, 1)])
    guest.device.notify(CONTROL_TX)
    guest.device.turns.turn()
    assert guest.rings[CONTROL_TX].used_idx == 64
    guest.run()
    assert guest.device.control.ignored == 200


def test_without_multiport_the_control_queues_are_dead(guest):
    guest.plug(1, FakeHost())
    guest.start(FEATURES & ~F_MULTIPORT)
    guest.rings[CONTROL_TX].add([MESSAGE.pack(1, PORT_READY, 1)])
    guest.rings[CONTROL_RX].describe(5, BASE, 64, WRITE)
    guest.rings[CONTROL_RX].offer(5)
    for index in (CONTROL_RX, CONTROL_TX):
        guest.device.notify(index)
    guest.run()
    assert guest.rings[CONTROL_TX].used_idx == guest.rings[CONTROL_RX].used_idx == 0
    guest.plug(2, FakeHost())
    guest.run()
    assert guest.rings[CONTROL_RX].used_idx == 0
