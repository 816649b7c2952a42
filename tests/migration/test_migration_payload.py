"""What rides in QEMU's stream: as it was, or a clear refusal."""

from __future__ import annotations

import random

import pytest

from virtserial.errors import ConfigError
from virtserial.migration.payload import MovedController, Payload, check_buses, pack, unpack
from virtserial.state.envelope import seal

SPACE = bytes(range(256))


def payload(buses=("a.0", "b.0"), state=b"state", table=bytes(32)):
    return Payload(True, tuple(MovedController(bus, SPACE, table, state) for bus in buses))


def test_it_comes_back_as_it_was():
    assert unpack(pack(payload())) == payload()


def test_more_than_qemu_takes_is_refused():
    with pytest.raises(ConfigError, match="QEMU takes 1048576"):
        pack(payload(state=bytes(1 << 20)))


def test_damage_is_found_wherever_it_is():
    whole = pack(payload())
    randomly = random.Random(3)
    for at in randomly.sample(range(len(whole)), 300):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << randomly.randrange(8)
        with pytest.raises(ConfigError):
            unpack(bytes(damaged))
        with pytest.raises(ConfigError):
            unpack(whole[:at])


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"running": 1, "controllers": []},
        {"running": True, "controllers": {}},
        {"running": True, "controllers": [{}]},
        {"running": True, "controllers": [{"bus": None, "configuration": "", "msix_table": "", "state": ""}]},
        {"running": True, "controllers": [{}] * 300},
    ],
)
def test_what_has_a_checksum_and_no_sense_is_refused(content):
    with pytest.raises(ConfigError):
        unpack(seal(content))


def test_other_controllers_are_refused():
    check_buses(payload(), ["b.0", "a.0"])
    with pytest.raises(ConfigError, match=r"a\.0, b\.0, here are c\.0"):
        check_buses(payload(), ["c.0"])
