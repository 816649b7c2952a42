"""A state that somebody has tampered with is refused in words, or makes a device that is no worse than any."""

from __future__ import annotations

import base64
import json
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.movable_guest import SERIAL, MovableGuest

from virtserial.errors import ConfigError
from virtserial.state.device_state import load, size_limit
from virtserial.state.envelope import HEADER, MAGIC, VERSION, seal
from virtserial.state.pci_state import PciState

U64 = (1 << 64) - 1
SLOW = settings(max_examples=150, suppress_health_check=list(HealthCheck))


def state_of(guest):
    """A state with everything in it."""
    guest.begin()
    guest.hosts[SERIAL].room = 3
    guest.send(2 * SERIAL + 3, b"hello")
    guest.function.interrupts.signal_vector(2)
    data = guest.save()
    guest.close()
    return data


@pytest.fixture(scope="module")
def saved():
    return state_of(MovableGuest())


@pytest.fixture(scope="module")
def content(saved):
    return json.loads(saved[HEADER.size :])


@pytest.fixture(scope="module")
def packed_content():
    return json.loads(state_of(MovableGuest(packed=True))[HEADER.size :])


@pytest.fixture(scope="module")
def target():
    """The device that is to take it over."""
    guest = MovableGuest()
    guest.plug_both(first_plug=7)
    yield guest
    guest.close()


def take(target, data):
    target.device.pause()
    load(target.device, PciState(target.function), data)


def changed(content, *path, to):
    """The state with another value at a path."""
    copy = json.loads(json.dumps(content))
    place = copy
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return seal(copy)


class TestEnvelope:
    @pytest.mark.parametrize(
        ("data", "text"),
        [
            (b"", "0 bytes, the header alone has 24"),
            (b"x" * 24, "it is not one of virtserial's"),
            (HEADER.pack(MAGIC, VERSION + 1, 0, 0), f"version {VERSION + 1}, this program reads version {VERSION}"),
            (HEADER.pack(MAGIC, VERSION, 0, 9), "0 bytes follow the header, it says 9"),
            (HEADER.pack(MAGIC, VERSION, 1, 2) + b"{}", "it is damaged, its checksum is another"),
            (HEADER.pack(MAGIC, VERSION, zlib.crc32(b"{"), 1) + b"{", "no JSON"),
            (HEADER.pack(MAGIC, VERSION, zlib.crc32(b"[]"), 2) + b"[]", "no object"),
            (seal({}), "device_type is missing"),
        ],
    )
    def test_what_is_no_state_is_refused_with_the_reason(self, target, data, text):
        with pytest.raises(ConfigError, match=f"^saved state: .*{text}"):
            take(target, data)

    def test_a_nesting_without_end_is_refused(self, target):
        body = b"[" * 3000 + b"]" * 3000
        with pytest.raises(ConfigError, match="saved state: no"):
            take(target, HEADER.pack(MAGIC, VERSION, zlib.crc32(body), len(body)) + body)

    def test_one_that_is_too_large_is_refused(self, target):
        with pytest.raises(ConfigError, match="at most"):
            take(target, seal({"x": "y" * size_limit(target.device, PciState(target.function))}))

    @SLOW
    @given(place=st.integers(0, 1 << 20), bit=st.integers(0, 7), cut=st.integers(0, 40))
    def test_every_flipped_bit_and_every_cut_is_found(self, saved, target, place, bit, cut):
        damaged = bytearray(saved)
        damaged[place % len(saved)] ^= 1 << bit
        for data in (bytes(damaged), saved[: len(saved) - 1 - cut]):
            with pytest.raises(ConfigError):
                take(target, data)
        assert not target.device.status


class TestValues:
    @pytest.mark.parametrize(
        ("path", "value", "text"),
        [
            (["device_type"], 2, "device_type is 2, this device has 3"),
            (["max_ports"], 8, "max_ports is 8, this device has 4"),
            (["vectors"], 2, "vectors is 2, this device has 9"),
            (["driver_features"], 1 << 63, "driver_features has 0x8000000000000000, which this device does not offer"),
            (["driver_features"], 1 << 64, "allowed are whole numbers from 0 to 18446744073709551615"),
            (["status"], 0x3F, "status is 0x3f, which no device has"),
            (["status"], -1, "status is -1"),
            (["queues"], {}, "queues is no list of at most 10"),
            (["queues", 0, "index"], 10, "index is 10, allowed are whole numbers from 0 to 9"),
            (["queues", 1, "index"], 0, "index is 0 a second time"),
            (["queues", 0, "size"], 0, "size is 0, a queue's size is a power of 2"),
            (["queues", 0, "size"], 12, "size is 12, a queue's size is a power of 2"),
            (["queues", 0, "size"], 256, "size is 256"),
            (["queues", 0, "vector"], 9, "vector is 9, there are 9"),
            (["queues", 0, "position"], 1 << 16, "position is 65536"),
            (["queues", 0, "offset"], (1 << 32) + 1, "offset is 4294967297"),
            (["queues", 0, "enabled"], 1, "enabled is 1, allowed are true and false"),
            (["queues", 0], None, "no object"),
            (["ports", 0, "number"], 4, "number is 4"),
            (["ports", 1, "number"], 1, "number is 1 a second time"),
            (["ports", 0, "name"], "two", "port 1 is a serial port named 'two' there and a serial port named 'one'"),
            (["ports", 0, "name"], 5, "name is no string"),
            (["ports", 0, "is_console"], True, "port 1 is a console named 'one' there and a serial port named 'one'"),
            (["ports", 0, "plugged"], False, "port 1 is not plugged in there and a serial port named 'one' here"),
            (["ports", 0, "pending"], 64, "pending is 64"),
            (["ports", 0, "backlog"], "eA==", "backlog is not empty, and the port is no console"),
            (["ports", 1, "backlog"], "x", "backlog is not at most 65536 bytes in base64"),
            (["ports", 0, "transmitted"], 1.5, "transmitted is 1.5"),
            (["pci", "configuration"], "", "PCI configuration space of 0 bytes"),
            (["pci", "config_vector"], 100, "config_vector is 100, there are 9"),
            (["pci", "isr"], 4, "isr is 4"),
            (["pci", "msix_table"], "", "msix_table has 0 bytes"),
            (["pci", "msix_pending"], [9], "msix_pending has something else than whole numbers from 0 to 8"),
            (["pci", "msix_pending"], [True], "msix_pending has something else"),
        ],
    )
    def test_a_value_that_cannot_be_is_refused_by_its_name(self, content, target, path, value, text):
        with pytest.raises(ConfigError) as refusal:
            take(target, changed(content, *path, to=value))
        assert text in str(refusal.value)
        assert not target.device.status, "the device is as after a reset"

    @pytest.mark.parametrize(
        ("name", "value", "text"),
        [
            ("position", 16, "position is 0x10 in a ring of 16 descriptors"),
            ("position", 0xFFFF, "position is 0xffff in a ring of 16 descriptors"),
            ("size", 0, "size is 0"),
            ("packed", 2, "packed is 2"),
        ],
    )
    def test_a_packed_ring_that_cannot_be_is_refused(self, packed_content, name, value, text):
        guest = MovableGuest(packed=True)
        guest.plug_both(first_plug=7)
        with pytest.raises(ConfigError, match=text):
            take(guest, changed(packed_content, "queues", 0, name, to=value))
        guest.close()

    def test_packed_rings_are_refused_by_a_device_without_them(self, packed_content, target):
        with pytest.raises(ConfigError, match="driver_features has 0x400000000, which this device does not offer"):
            take(target, seal(packed_content))

    def test_another_function_is_refused(self, content, target):
        with pytest.raises(ConfigError, match="PCI configuration: byte 0x0 is 0xff, this function's is 0xf4"):
            take(target, changed(content, "pci", "configuration", to=base64.b64encode(b"\xff" * 256).decode()))

    @SLOW
    @given(data=st.data())
    def test_any_value_anywhere_is_refused_or_makes_a_device_like_any_other(self, content, packed_content, data):
        packed = data.draw(st.booleans(), "packed")
        content = packed_content if packed else content
        guest = MovableGuest(packed=packed)
        try:
            guest.plug_both(first_plug=7)
            place, path = content, []
            while isinstance(place, dict | list) and place and (not path or data.draw(st.booleans(), "deeper")):
                keys = sorted(place) if isinstance(place, dict) else range(len(place))
                path.append(data.draw(st.sampled_from(list(keys)), "key"))
                place = place[path[-1]]
            number = st.one_of(st.integers(-1, 70000), st.sampled_from([U64, U64 + 1, 1 << 32, 1 << 63]))
            other = st.sampled_from([None, True, False, "", "x", [], {}])
            value = data.draw(st.one_of(number, other), "value")
            refusal = None
            try:
                guest.take_over(changed(content, *path, to=value))
            except ConfigError as error:
                refusal = str(error)
            assert refusal is None or (len(refusal) < 400 and not guest.device.status)
            # Whatever it has become, it serves, fails as any device does, and can be reset.
            guest.hosts[SERIAL].feed(b"x")
            guest.device.notify(2 * SERIAL + 3)
            guest.run()
            guest.device.set_status(0)
            assert guest.device.status == 0
        finally:
            guest.close()
