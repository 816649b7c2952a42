"""Bytes between a port's queues and its host end: in order, counted, on every kind of memory."""

import os
from random import Random

import pytest
from support.console_guest import CONTROL_RX, LIVE, MESSAGE, OPEN, PORT_READY, FakeHost, queues_of
from support.ring_builder import unsignalled

from virtserial.console.control import HEARING_PAUSE, HEARING_TIME
from virtserial.console.device import SHARED_SHORT_CHAINS
from virtserial.console.port import CONSOLE_BUFFER, MESSAGE_BYTES, TURN_CHAINS

LOTS = Random(3).randbytes(3000)


def test_guest_to_host(open_port):
    open_port.guest.send(open_port.tx, b"hello, ", [b"wor", b"ld"], LOTS)
    assert open_port.host.taken == b"hello, world" + LOTS
    assert open_port.port.record.transmitted == 12 + len(LOTS)
    assert [used.length for used in open_port.guest.rings[open_port.tx].harvest()] == [0, 0, 0]
    assert open_port.host.writes == 1, "one call for all of them"


def test_host_to_guest_fills_buffers_one_behind_the_other(open_port):
    open_port.guest.post(open_port.rx, 100, 1, 2000, 4000)
    open_port.host.feed(LOTS)
    open_port.guest.run()
    used = open_port.guest.rings[open_port.rx].harvest()
    assert [each.length for each in used] == [100, 1, 2000, 899]
    assert b"".join(each.data for each in used) == LOTS
    assert open_port.port.record.received == len(LOTS)


def test_host_to_guest_waits_for_buffers_and_goes_on_when_they_come(open_port):
    open_port.host.feed(LOTS)
    open_port.guest.run()
    got = b""
    for _ in range(100):
        assert open_port.guest.received(open_port.rx) == b""
        open_port.guest.post(open_port.rx, 10, 20)
        part = open_port.guest.received(open_port.rx)
        assert len(part) == 30
        got += part
    assert got == LOTS


@pytest.mark.parametrize("buffers", [1, 2, 5, 16])
def test_a_driver_with_few_buffers_that_posts_each_back_at_once_never_starves_for_ever(open_port, buffers):
    data = LOTS * 4
    guest, ring = open_port.guest, open_port.guest.rings[open_port.rx]
    guest.post(open_port.rx, *[64] * buffers)
    open_port.host.feed(data)
    guest.run()
    got = b""
    for _ in range(1000):
        used = ring.harvest()
        got += b"".join(each.data for each in used)
        # Each buffer by itself, with a doorbell only where the device has asked for one.
        for _each in used:
            guest.post(open_port.rx, 64)
        if len(got) == len(data):
            break
    assert got == data


def test_a_burst_through_a_fast_driver_leaves_no_doorbell_out_of_reach(open_port):
    """The driver posts back while the device works; then the ring runs dry, and the driver has its 4 buffers only."""
    guest, ring = open_port.guest, open_port.guest.rings[open_port.rx]
    read = open_port.host.readv
    posted = [4]

    def reposting_read(views):
        count = read(views)
        if count and posted[0] < 200:
            ring.add(writable=[16])
            posted[0] += 1
        return count

    open_port.host.readv = reposting_read
    guest.post(open_port.rx, 16, 16, 16, 16)
    open_port.host.feed(bytes(10_000))
    guest.run()
    for _ in range(50):
        before = len(ring.harvest())
        for _each in range(min(before, 4)):
            guest.post(open_port.rx, 16)
    assert len(ring.harvest()) or len(open_port.host.input) < 10_000 - 205 * 16


def test_nothing_is_read_while_the_guest_has_the_port_closed(guest):
    host = FakeHost()
    guest.plug(1, host)
    guest.start()
    guest.post(queues_of(1)[0], 100)
    guest.tell(1, PORT_READY)
    guest.heard()
    host.feed(b"early")
    guest.run()
    assert (host.reads, host.wants_input) == (0, False)
    guest.tell(1, OPEN)
    assert guest.received(queues_of(1)[0]) == b"early"
    assert host.wants_input is True
    guest.tell(1, OPEN, 0)
    host.feed(b"late")
    guest.run()
    assert host.input == b"late"
    assert host.heard == ["ready", "opened", "closed"]
    assert guest.events.opens == [(1, True), (1, False)]


@pytest.fixture
def two_hosts(guest):
    """Ports 1 and 2 are open, with buffers at port 1; its host has sent something just after port 2's has come."""
    first, second = FakeHost(), FakeHost(connected=False)
    guest.plug(1, first)
    guest.plug(2, second)
    guest.start()
    guest.open(1)
    guest.open(2)
    guest.heard()
    guest.post(queues_of(1)[0], 100, 100)
    second.come()
    first.feed(b"read the other port")
    return guest


def test_what_a_host_sends_waits_until_the_driver_has_seen_which_hosts_came_before(two_hosts):
    guest, (receiveq, _) = two_hosts, queues_of(1)
    guest.scheduler.run()
    sees = guest.rings[receiveq].event_idx and guest.memory.kind == "mapped"
    assert guest.received(receiveq) == (b"" if sees else b"read the other port")
    assert guest.heard() == [(2, OPEN, 1, b"")]
    guest.scheduler.advance(2 * HEARING_PAUSE)
    assert guest.received(receiveq) == (b"read the other port" if sees else b"")


def test_a_driver_that_does_not_look_holds_input_up_for_a_moment_only(two_hosts):
    two_hosts.scheduler.advance(HEARING_TIME + HEARING_PAUSE)
    assert two_hosts.received(queues_of(1)[0]) == b"read the other port"


def test_data_queued_before_the_guest_closed_is_still_delivered(open_port):
    open_port.guest.rings[open_port.tx].add([b"last words"])
    open_port.guest.device.notify(open_port.tx)
    open_port.guest.tell(1, OPEN, 0)
    assert open_port.host.taken == b"last words"


# A host end that blocks


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 100])
def test_a_blocked_host_end_throttles_and_no_byte_is_lost_or_doubled(open_port, step):
    chains = [b"abc", [b"de", b"fgh"], b"i", b"jklmnopq"]
    open_port.host.room = 0
    open_port.guest.send(open_port.tx, *chains)
    ring = open_port.guest.rings[open_port.tx]
    assert open_port.port.throttled
    assert ring.used_idx == 0
    for done in range(step, 18, step):
        open_port.host.drain(step)
        open_port.guest.run()
        taken = min(done, 17)
        assert open_port.host.taken == b"abcdefghijklmnopq"[:taken]
        assert ring.used_idx == sum(taken >= end for end in (3, 8, 9, 17))
        assert open_port.port.record.transmitted == taken
    open_port.host.drain()
    open_port.guest.run()
    assert open_port.host.taken == b"abcdefghijklmnopq"
    assert ring.used_idx == 4
    open_port.guest.send(open_port.tx, b"!")
    assert open_port.host.taken.endswith(b"q!")


def test_a_host_end_that_takes_little_per_call_is_called_again(open_port):
    open_port.host.at_most = 7
    open_port.guest.send(open_port.tx, LOTS[:500], LOTS[500:])
    assert open_port.host.taken == LOTS
    assert not open_port.port.throttled


def test_while_throttled_doorbells_do_nothing(open_port):
    open_port.host.room = 0
    open_port.guest.send(open_port.tx, b"x")
    writes = open_port.host.writes
    for _ in range(100):
        open_port.guest.device.notify(open_port.tx)
        open_port.guest.run()
    assert open_port.host.writes == writes


@pytest.mark.parametrize("room", [0, 2, 4])
def test_host_leaves_while_throttled_and_every_chain_comes_back(open_port, room):
    guest, ring = open_port.guest, open_port.guest.rings[open_port.tx]
    open_port.host.room = room
    guest.send(open_port.tx, b"abc", b"def", b"ghi")
    open_port.host.leave()
    guest.run()
    assert ring.used_idx == 3
    assert open_port.port.record.discarded == 9 - room
    assert (1, OPEN, 0, b"") in guest.heard()
    open_port.host.room = None
    open_port.host.come()
    guest.send(open_port.tx, b"again")
    assert open_port.host.taken == b"abcdefghi"[:room] + b"again"


def test_open_and_close_many_times_under_load(open_port):
    guest, ring, host = open_port.guest, open_port.guest.rings[open_port.tx], open_port.host
    sent = 0
    for turn in range(1000 if guest.memory.kind == "mapped" else 70):
        host.room = turn % 7
        ring.add([b"1234567"[: turn % 7 + 1]])
        sent += turn % 7 + 1
        guest.ring(open_port.tx)
        host.leave()
        host.room = None
        host.come()
        guest.run()
        assert ring.used_idx == turn + 1 & 0xFFFF
        guest.memory._next = 0x60000
    record = open_port.port.record
    assert record.transmitted + record.discarded == sent
    assert len(host.taken) == record.transmitted


def test_data_for_a_disconnected_host_end_is_discarded(open_port):
    open_port.host.leave()
    open_port.guest.send(open_port.tx, b"abc", b"de")
    assert open_port.guest.rings[open_port.tx].used_idx == 2
    assert open_port.port.record.discarded == 5
    assert open_port.host.taken == b""


def test_data_for_a_port_without_a_host_end_is_discarded(guest):
    port = guest.plug(1)
    guest.start()
    guest.send(queues_of(1)[1], b"abc")
    assert guest.rings[queues_of(1)[1]].used_idx == 1
    assert port.record.discarded == 3


# A host end that fails or ends


@pytest.mark.parametrize("console", [False, True])
def test_a_failing_write_closes_the_port_and_returns_the_chains(guest, request, console):
    house = request.getfixturevalue("open_console" if console else "open_port")
    house.host.failure = "disk full"
    guest.send(house.tx, b"abc", b"de")
    assert guest.events.failed == [(1, "disk full")]
    assert guest.events.closed == [1]
    assert house.host.closed
    assert house.port.host is None
    assert guest.rings[house.tx].used_idx == 2
    assert house.port.record.discarded == 5
    assert ((1, OPEN, 0, b"") in guest.heard()) is not console
    assert not guest.needs_reset


def test_a_failing_read_closes_the_port(open_port):
    open_port.guest.post(open_port.rx, 10)
    open_port.host.failure = "read error"
    open_port.host.listener.host_readable()
    open_port.guest.run()
    assert open_port.guest.events.failed == [(1, "read error")]
    assert open_port.host.closed
    assert open_port.guest.rings[open_port.rx].used_idx == 0


@pytest.mark.parametrize("for_ever", [False, True])
@pytest.mark.parametrize("console", [False, True])
def test_closing_inside_a_write(guest, request, for_ever, console):
    house = request.getfixturevalue("open_console" if console else "open_port")
    house.host.inside = lambda: house.host.leave(for_ever)
    guest.send(house.tx, b"abc", b"de")
    assert guest.rings[house.tx].used_idx == 2
    record = house.port.record
    assert record.discarded + record.dropped == 5
    assert house.host.taken == b""
    assert house.host.closed is for_ever
    assert not guest.needs_reset


def test_closing_inside_a_read(open_port):
    open_port.guest.post(open_port.rx, 10)
    open_port.host.inside = lambda: open_port.host.leave(True)
    open_port.host.feed(b"abc")
    open_port.guest.run()
    assert open_port.guest.rings[open_port.rx].used_idx == 0
    assert open_port.port.host is None
    assert open_port.guest.events.closed == [1]


def test_an_ended_host_end_is_replaced_by_the_next(open_port):
    open_port.host.leave(True)
    open_port.guest.run()
    assert open_port.guest.events.closed == [1]
    successor = FakeHost()
    open_port.port.attach(successor)
    open_port.guest.send(open_port.tx, b"for the next")
    assert successor.taken == b"for the next"
    assert successor.heard == ["ready", "opened"]
    assert successor.wants_input is True
    assert [message[2] for message in open_port.guest.heard() if message[1] == OPEN] in ([0, 1], [])


def test_detaching_tells_the_driver_and_closes_nothing(open_port):
    open_port.port.detach()
    open_port.guest.run()
    assert not open_port.host.closed
    assert open_port.guest.heard() == [(1, OPEN, 0, b"")]
    open_port.port.detach()
    open_port.host.listener.host_closed()
    open_port.guest.run()
    assert open_port.guest.heard() == []


def test_bytes_a_host_end_took_for_nobody_are_counted_once(open_port):
    open_port.host.output_discarded = 7
    open_port.host.leave()
    open_port.host.come()
    open_port.host.leave()
    assert open_port.port.record.discarded == 7


# Consoles


def test_a_console_never_makes_the_guest_wait(open_console):
    host, guest = open_console.host, open_console.guest
    host.room = 4
    guest.send(open_console.tx, b"kernel: ", b"panic")
    assert guest.rings[open_console.tx].used_idx == 2
    assert not open_console.port.throttled
    assert host.taken == b"kern"
    host.drain(5)
    guest.run()
    assert host.taken == b"kernel: p"
    host.drain()
    guest.run()
    assert host.taken == b"kernel: panic"
    assert open_console.port.record.dropped == 0


def test_what_a_console_cannot_keep_is_dropped_and_counted(open_console):
    host, guest = open_console.host, open_console.guest
    host.room = 10
    sent = b""
    for turn in range(30):
        data = Random(turn).randbytes(3001)
        sent += data
        guest.memory._next = 0x60000
        guest.send(open_console.tx, [data[:1000], data[1000:]])
    assert guest.rings[open_console.tx].used_idx == 30
    assert open_console.port.record.dropped == len(sent) - CONSOLE_BUFFER - 10
    host.drain()
    guest.run()
    assert host.taken == sent[: CONSOLE_BUFFER + 10]


def test_a_console_end_that_takes_little_per_call_gets_all_without_another_write(open_console):
    open_console.host.at_most = 5
    open_console.guest.send(open_console.tx, b"a line of output that is longer")
    assert open_console.host.taken == b"a line of output that is longer"


def test_what_a_console_kept_for_a_host_that_left_is_dropped_and_counted(open_console):
    open_console.host.room = 0
    open_console.guest.send(open_console.tx, b"nobody reads this")
    open_console.host.leave()
    open_console.host.room = None
    open_console.host.come()
    open_console.guest.run()
    assert open_console.host.taken == b""
    assert open_console.port.record.dropped == 17


# Turns


def test_row_38_a_busy_port_takes_turns_with_the_others(make_guest):
    guest = make_guest(max_ports=8)
    hosts = {number: FakeHost() for number in range(1, 8)}
    for number, host in hosts.items():
        guest.plug(number, host)
    guest.start()
    guest.open(1)
    guest.open(7)
    busy, quiet = queues_of(1)[1], queues_of(7)[1]
    endless = hosts[1].writev

    def never_done(views):
        guest.rings[busy].add([b"again"])
        guest.memory._next = 0x60000
        return endless(views)

    hosts[1].writev = never_done
    guest.rings[busy].add([b"x"])
    guest.device.notify(busy)
    guest.rings[quiet].add([b"the quiet one"])
    guest.device.notify(quiet)
    for _ in range(3):
        turns, guest.scheduler._turns = guest.scheduler._turns, []
        for turn in turns:
            turn()
    assert hosts[7].taken == b"the quiet one"
    assert len(hosts[1].taken) > 5, "the busy one is not stopped either"


def test_row_38_a_turn_has_a_budget_of_chains(make_guest):
    guest = make_guest(size=1 << 21)
    host = FakeHost()
    guest.plug(1, host)
    guest.start()
    guest.open(1)
    guest.device.queues[5].max_size = 1024
    guest.device.reset_queue(5)
    guest.enable(5, size=1024)
    for _ in range(1024):
        guest.rings[5].add([b"x"])
    guest.device.notify(5)
    guest.device.turns.turn()
    assert len(host.taken) == TURN_CHAINS
    guest.run()
    assert len(host.taken) == 1024


def test_a_turn_is_short_while_other_devices_have_work(make_guest):
    guest = make_guest(size=1 << 21)
    host = FakeHost()
    guest.plug(1, host)
    guest.start()
    guest.open(1)
    guest.scheduler.is_shared = True
    guest.device.queues[5].max_size = 128
    guest.device.reset_queue(5)
    guest.enable(5, size=128)
    for _ in range(SHARED_SHORT_CHAINS + 1):
        guest.rings[5].add([b"x"])
    guest.device.notify(5)
    guest.device.turns.turn()
    assert len(host.taken) == SHARED_SHORT_CHAINS
    guest.run()
    assert len(host.taken) == SHARED_SHORT_CHAINS + 1


def test_memory_by_messages_has_a_budget_of_its_own(make_guest):
    guest = make_guest("message", size=1 << 21)
    host = FakeHost()
    guest.plug(1, host)
    guest.start()
    guest.open(1)
    guest.device.slots[1].port._window = TURN_CHAINS
    guest.post(4, *[32 << 10] * 8)
    host.feed(bytes(256 << 10))
    guest.device.turns.turn()
    assert len(host.input) == (256 << 10) - MESSAGE_BYTES
    guest.run()
    assert not host.input


def test_row_39_doorbells_without_data_cost_one_turn_and_no_call(open_port):
    writes, reads = open_port.host.writes, open_port.host.reads
    for _ in range(1000):
        open_port.guest.device.notify(open_port.tx)
        open_port.guest.device.notify(open_port.rx)
    assert len(open_port.guest.scheduler._turns) == 1
    open_port.guest.run()
    assert (open_port.host.writes, open_port.host.reads) == (writes, reads)


def test_transmit_interrupts_are_held_back_but_never_lost(guest):
    host = FakeHost()
    guest.plug(1, host)
    guest.plug(2, FakeHost())
    guest.start()
    first, second = queues_of(1)[1], queues_of(2)[1]
    guest.rings[first].set_used_event(0)
    guest.scheduler.advance(1)
    guest.pause = 0
    guest.interrupts.queues.clear()
    guest.send(first, b"a")
    assert guest.interrupts.queues == [first]
    guest.rings[first].set_used_event(1)
    guest.send(first, b"b")
    guest.send(second, b"b")
    guest.scheduler.advance(0.0001)
    guest.rings[second].set_used_event(1)
    guest.send(second, b"b")
    assert guest.interrupts.queues == [first, second]
    guest.scheduler.advance(0.005)
    assert guest.interrupts.queues == [first, second, first, second]
    guest.rings[first].set_used_event(13)
    guest.send(first, *[b"c"] * 12)
    guest.run()
    assert guest.interrupts.queues.count(first) == 3
    guest.rings[first].set_used_event(26)
    guest.send(first, *[b"c"] * 13)
    guest.scheduler.advance(0.0002)
    assert guest.interrupts.queues.count(first) == 4, "most of the ring waits to be reclaimed: at once"


def test_a_stream_interrupts_now_and_then_and_at_its_end(make_guest):
    guest = make_guest()
    guest.plug(1, FakeHost())
    guest.start()
    guest.device.reset_queue(5)
    guest.enable(5, size=128)
    guest.scheduler.advance(1)
    guest.interrupts.queues.clear()
    guest.pause = 0.0001
    for _ in range(90):
        guest.send(5, b"x" * 2048)
    assert 2 <= guest.interrupts.queues.count(5) <= 6, "9 ms with an interrupt in 3 at the latest"
    guest.scheduler.advance(0.01)
    assert unsignalled(guest.device.queues[5]) == 0


@pytest.fixture
def talking(make_guest):
    """A guest that sends single messages, with a ring of 128 and no pause of its own."""
    guest = make_guest()
    guest.plug(1, FakeHost())
    guest.start()
    guest.device.reset_queue(5)
    guest.enable(5, size=128)
    guest.scheduler.advance(1)
    guest.pause = 0
    guest.send(5, b"first")
    guest.interrupts.queues.clear()
    return guest


def test_a_dialogue_is_not_interrupted_for_each_message(talking):
    for _ in range(60):
        talking.send(5, b"next")
        talking.scheduler.advance(0.0005)
    assert 1 <= talking.interrupts.queues.count(5) <= 4, "30 ms with an interrupt in 12 at the latest"
    talking.scheduler.advance(0.01)
    assert unsignalled(talking.device.queues[5]) == 0


def test_a_message_after_a_pause_is_signalled_at_once(talking):
    for _ in range(10):
        talking.scheduler.advance(0.006)
        talking.interrupts.queues.clear()
        talking.send(5, b"lone")
        assert talking.interrupts.queues == [5]


def test_a_driver_that_waits_for_each_interrupt_soon_has_it_early(talking):
    waited = []
    for _ in range(12):
        talking.interrupts.queues.clear()
        talking.send(5, b"next")
        started = talking.scheduler.now()
        while not talking.interrupts.queues:
            talking.scheduler.advance(0.0001)
        waited.append(talking.scheduler.now() - started)
    assert 0.001 < max(waited[:3]) < 0.005
    assert max(waited[4:]) < 0.0005


def test_a_stream_behind_a_lone_message_does_not_wait_as_long_as_that(talking):
    talking.send(5, b"lone")
    talking.send(5, b"x" * 2048, b"y" * 2048)
    assert not talking.interrupts.queues
    talking.scheduler.advance(0.0005)
    assert talking.interrupts.queues == [5]


def test_a_stream_is_looked_at_again_without_a_doorbell(guest):
    host = FakeHost()
    guest.plug(1, host)
    guest.start()
    guest.pause = 0
    guest.send(5, b"many ", b"chains ")
    guest.rings[5].add([b"and "])
    guest.run()
    assert host.taken == b"many chains "
    guest.scheduler.advance(0.0002)
    assert host.taken == b"many chains and "
    guest.scheduler.advance(0.01)
    guest.rings[5].add([b"more"])
    assert guest.rings[5].wants_bell(), "after a pause it asks for one again"


def test_a_look_that_an_unplugged_port_had_asked_for_is_not_the_next_ports(guest):
    guest.plug(1, FakeHost())
    guest.start()
    guest.pause = 0
    guest.send(5, b"many ", b"chains ")
    guest.device.remove_port(1)
    guest.plug(1, host := FakeHost())
    guest.run()
    guest.rings[5].add([b"for the new one"])
    guest.scheduler.advance(0.01)
    guest.ring(5)
    assert host.taken == b"for the new one"


def test_an_interrupt_that_fails_the_device_ends_the_others(make_guest):
    guest = make_guest("file")
    for number in (1, 2):
        guest.plug(number, FakeHost())
    guest.start()
    guest.pause = 0
    guest.scheduler.advance(1)
    for _ in range(2):
        for index in (5, 7):
            guest.send(index, b"x")
    os.ftruncate(guest.memory.fd, 0)
    guest.scheduler.advance(0.01)
    assert guest.needs_reset
    assert len(guest.failures) == 1


def test_a_held_interrupt_of_a_device_that_was_reset_is_gone(make_guest):
    guest = make_guest()
    guest.plug(1, FakeHost())
    guest.start()
    guest.scheduler.advance(1)
    guest.send(5, b"a")
    guest.send(5, b"b")
    guest.device.set_status(0)
    guest.interrupts.queues.clear()
    guest.scheduler.advance(1)
    assert guest.interrupts.queues == []


# Buffers of the wrong kind


def test_row_16_writable_buffers_in_a_transmitq_come_back_unread(open_port):
    guest, ring = open_port.guest, open_port.guest.rings[open_port.tx]
    ring.add(writable=[100])
    ring.add([b"data"], [8])
    ring.add(writable=[3])
    guest.ring(open_port.tx)
    assert [used.length for used in ring.harvest()] == [0, 0, 0]
    assert open_port.host.taken == b"data"
    assert open_port.port.misdirected == 3
    assert not guest.needs_reset


def test_row_16_readable_buffers_in_a_receiveq_come_back_empty(open_port):
    guest, ring = open_port.guest, open_port.guest.rings[open_port.rx]
    ring.add([b"wrong"])
    ring.add(writable=[4])
    ring.add([b"wrong"])
    ring.add(writable=[4])
    open_port.host.feed(b"abcdef")
    guest.ring(open_port.rx)
    assert [used.length for used in ring.harvest()] == [0, 4, 0, 2]
    ring.add([b"wrong"])
    guest.device.notify(open_port.rx)
    guest.run()
    assert [used.length for used in ring.harvest()] == [0], "though there is nothing to put into any buffer"
    assert open_port.port.misdirected >= 2


def test_row_22_data_before_port_ready_is_delivered_to_whom_is_there(guest):
    host = FakeHost()
    guest.plug(1, host)
    guest.start()
    guest.send(queues_of(1)[1], b"hasty")
    assert host.taken == b"hasty"


def test_row_22_data_for_a_port_that_does_not_exist_is_discarded_and_counted(guest):
    guest.start()
    tx = queues_of(2)[1]
    for turn in range(1, 30):
        guest.send(tx, b"abcd")
        assert guest.rings[tx].used_idx == turn
    assert guest.device.slots[2].record.discarded == 29 * 4
    assert tx in guest.interrupts.queues


def test_row_29_nothing_is_taken_before_driver_ok(guest):
    host = FakeHost()
    guest.plug(1, host)
    guest.negotiate()
    guest.enable(*range(10))
    tx = queues_of(1)[1]
    guest.rings[tx].add([b"early"])
    guest.rings[CONTROL_RX].add(writable=[64])
    guest.rings[3].add([MESSAGE.pack(0xFFFFFFFF, 0, 1)])
    for index in (tx, CONTROL_RX, 3):
        guest.device.notify(index)
    guest.run()
    assert host.taken == b""
    assert guest.rings[tx].used_idx == guest.rings[3].used_idx == 0
    guest.device.remove_port(1)
    assert guest.rings[tx].used_idx == 0
    guest.plug(1, host := FakeHost())
    guest.device.set_status(LIVE)
    guest.run()
    assert host.taken == b"early", "without another doorbell"
    assert guest.rings[3].used_idx == 1
