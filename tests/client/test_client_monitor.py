"""Which port a name means at a monitor: of its name, id, chardev, or place among the consoles."""

from __future__ import annotations

import pytest

from virtserial.client.monitor import HostPort, Monitor
from virtserial.errors import ConfigError


class Told(Monitor):
    """A monitor that has told of three ports; two consoles have neither a name nor an id."""

    def __init__(self):
        self.told = [
            HostPort("", "", 0, True, "c0", "unix:/c0,server=on", False, None),
            HostPort("p1", "org.example.0", 1, False, "c1", "unix:/c1,server=on", False, None),
            HostPort("", "", 2, True, "c2", "unix:/c2,server=on", False, None),
        ]

    def ports(self):
        return self.told


@pytest.mark.parametrize(
    ("name", "number"), [("org.example.0", 1), ("p1", 1), ("c1", 1), ("hvc0", 0), ("hvc1", 2), ("c2", 2)]
)
def test_a_port_has_several_names(name, number):
    assert Told().find_port(name).number == number


@pytest.mark.parametrize("name", ["", "hvc2", "c3"])
def test_others_are_told_what_there_is(name):
    with pytest.raises(ConfigError, match=r"there are: 'hvc0', 'org.example.0', 'hvc1'$"):
        Told().find_port(name)
