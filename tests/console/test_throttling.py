"""How long a port is throttled: the time in which its host end takes nothing, over kills and unplugs."""

import pytest
from support.console_guest import FakeHost


def throttle(open_port):
    open_port.host.room = 0
    open_port.guest.send(open_port.tx, b"x")
    assert open_port.port.throttled
    return open_port.port.record


def test_the_time_is_counted_until_the_host_takes_bytes_again(open_port):
    record = throttle(open_port)
    begun = record.throttled_since
    assert begun
    open_port.guest.scheduler.advance(2.5)
    open_port.guest.device.notify(open_port.tx)
    open_port.guest.run()
    assert record.throttled_since == begun
    open_port.host.drain()
    open_port.guest.run()
    assert 2.5e9 <= record.throttled < 2.6e9
    assert record.throttled_since == 0
    open_port.guest.scheduler.advance(5)
    open_port.guest.send(open_port.tx, b"y")
    assert record.throttled < 2.6e9, "nobody waits"
    throttle(open_port)
    open_port.guest.scheduler.advance(1)
    open_port.host.drain()
    assert 3.5e9 <= record.throttled < 3.7e9


@pytest.mark.parametrize("end", ["leave", "reset", "unplug", "detach"])
def test_it_ends_with_whatever_ends_the_waiting(open_port, end):
    record, guest = throttle(open_port), open_port.guest
    guest.scheduler.advance(1)
    match end:
        case "leave":
            open_port.host.leave()
        case "reset":
            guest.device.set_status(0)
        case "unplug":
            guest.device.remove_port(open_port.port.number)
        case "detach":
            open_port.port.detach()
    assert record.throttled_since == 0
    assert 1e9 <= record.throttled < 1.1e9


def test_a_successor_of_a_killed_worker_begins_anew(make_guest):
    guest = make_guest()
    record = guest.device.slots[1].record
    record.throttled_since = 1
    guest.succeed()
    port = guest.device.add_port(1, "org.test", has_backend=True)
    port.attach(FakeHost())
    assert port.record.throttled_since == 0


def test_a_single_message_leaves_no_trace(open_port):
    open_port.guest.send(open_port.tx, b"x")
    assert (open_port.port.record.throttled, open_port.port.record.throttled_since) == (0, 0)
