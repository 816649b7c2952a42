"""What ports keep for clients who come late goes along with the device, as far as there is room."""

import json
import random

import pytest
from support.movable_guest import CONSOLE, SERIAL

from virtserial.errors import ConfigError
from virtserial.state.backlogs import MAX_BACKLOGS
from virtserial.state.device_state import save, size_limit
from virtserial.state.envelope import HEADER, seal
from virtserial.state.pci_state import PciState

RX, TX = 2 * SERIAL + 2, 2 * SERIAL + 3


def keep(guest, **backlogs):
    for name, backlog in backlogs.items():
        guest.hosts[{"console": CONSOLE, "serial": SERIAL}[name]].backlog = backlog


def kept(guest):
    return guest.hosts[CONSOLE].backlog, guest.hosts[SERIAL].backlog


def move(guest, data, **there):
    guest.replace()
    keep(guest, **there)
    guest.take_over(data)


def members(data):
    return [sorted(port.keys() & {"host_backlog"}) for port in json.loads(data[HEADER.size :])["ports"]]


def test_they_are_there_for_the_next_client(guest):
    keep(guest, console=b"boot log", serial=b"\x00\xff")
    data = guest.save()
    move(guest, data, console=b"", serial=b"")
    assert kept(guest) == (b"boot log", b"\x00\xff")


def test_a_host_end_without_one_or_with_output_of_its_own_takes_none(guest):
    keep(guest, console=b"boot log", serial=b"more")
    data = guest.save()
    move(guest, data, console=b"own")
    assert kept(guest) == (b"own", None)


def test_a_state_without_any_is_as_before(guest):
    data = guest.save()
    assert members(data) == [[], []]
    move(guest, data, console=b"", serial=b"")
    assert kept(guest) == (b"", b"")


def test_short_ones_go_whole_and_the_rest_is_for_the_newest_of_the_long(guest):
    long, short = random.randbytes(2 * MAX_BACKLOGS), b"short"
    keep(guest, console=long, serial=short)
    data = guest.save()
    assert len(data) <= size_limit(guest.device, PciState(guest.function))
    move(guest, data, console=b"", serial=b"")
    assert kept(guest) == (long[-(MAX_BACKLOGS - len(short)) :], short)


def test_two_long_ones_get_the_same(guest):
    long = random.randbytes(2 * MAX_BACKLOGS)
    keep(guest, console=long, serial=long)
    data = guest.save()
    move(guest, data, console=b"", serial=b"")
    assert kept(guest) == (long[-MAX_BACKLOGS // 2 :],) * 2


@pytest.mark.parametrize(("room", "there"), [(0, (b"", b"")), (5, (b"log", b"re")), (100, (b"boot log", b"more"))])
def test_who_saves_says_how_much(guest, room, there):
    keep(guest, console=b"boot log", serial=b"more")
    guest.device.pause()
    data = save(guest.device, PciState(guest.function), room)
    move(guest, data, console=b"", serial=b"")
    assert kept(guest) == there


def test_a_host_end_that_comes_after_the_state_gets_it(guest):
    keep(guest, serial=b"boot log")
    data = guest.save()
    guest.replace()
    keep(guest, serial=b"")
    port, host = guest.device.slots[SERIAL].port, guest.hosts[SERIAL]
    port.detach()
    guest.take_over(data)
    assert host.backlog == b""
    port.attach(host)
    assert host.backlog == b"boot log"
    host.backlog = b""
    port.detach()
    port.attach(host)
    assert host.backlog == b""


@pytest.mark.parametrize("value", ["x", 5, None, [], "A" * 4 * MAX_BACKLOGS])
def test_what_is_no_backlog_is_refused_and_changes_nothing(guest, value):
    keep(guest, console=b"boot log")
    content = json.loads(guest.save()[HEADER.size :])
    content["ports"][0]["host_backlog"] = value
    guest.replace()
    keep(guest, console=b"", serial=b"")
    with pytest.raises(ConfigError, match=r"host_backlog is not at most|bytes, a device like this has at most"):
        guest.take_over(seal(content))
    assert not guest.device.status
    assert kept(guest) == (b"", b"")


def test_a_state_that_is_refused_for_another_reason_leaves_none(guest):
    keep(guest, console=b"boot log")
    content = json.loads(guest.save()[HEADER.size :])
    content["pci"]["msix_pending"] = [999]
    guest.replace()
    keep(guest, console=b"", serial=b"")
    with pytest.raises(ConfigError):
        guest.take_over(seal(content))
    assert kept(guest) == (b"", b"")
