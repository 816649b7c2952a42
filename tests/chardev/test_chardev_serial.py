"""chardev serial, on a pseudo-terminal: its master is the other end of the line."""

import os
import termios

import pytest

from virtserial.chardev.serial import LineSettings, SerialChardev
from virtserial.errors import ConfigError


@pytest.fixture
def line():
    """(the far end, the path of the near end)"""
    far, near = os.openpty()
    path = os.ttyname(near)
    os.close(near)
    os.set_blocking(far, False)
    open_ends = [far]

    class Line:
        def __init__(self):
            self.far, self.path = far, path

        def unplug(self):
            os.close(open_ends.pop())

    yield Line()
    for fd in open_ends:
        os.close(fd)


def test_bytes_go_both_ways_unchanged(house, line):
    chardev = house.open(SerialChardev("s", line.path))
    port = house.port()
    assert (chardev.filename, port.events) == ("serial", ["opened"])
    every_byte = bytes(range(256))
    assert port.write(every_byte) == 256
    house.settle(0.02)
    assert os.read(line.far, 1000) == every_byte
    os.write(line.far, every_byte)
    house.until(lambda: port.received == every_byte)


@pytest.mark.parametrize(
    ("settings", "speed", "flags"),
    [
        (LineSettings(), termios.B115200, termios.CS8),
        # A pseudo-terminal has 8 bits without parity whatever it is told; speed and stop bits it keeps.
        (LineSettings(9600, 8, "none", 2), termios.B9600, termios.CS8 | termios.CSTOPB),
    ],
)
def test_line_settings(house, line, settings, speed, flags):
    near = os.open(line.path, os.O_RDWR | os.O_NOCTTY)
    house.open(SerialChardev("s", line.path, settings))
    found = termios.tcgetattr(near)
    os.close(near)
    mask = termios.CSIZE | termios.CSTOPB | termios.PARENB | termios.CRTSCTS
    assert (found[4], found[5], found[2] & mask) == (speed, speed, flags)
    assert not found[3] & (termios.ECHO | termios.ICANON | termios.ISIG)


def test_unplugged_line_is_a_host_that_hung_up(house, line):
    house.open(SerialChardev("s", line.path))
    port = house.port()
    line.unplug()
    house.until(lambda: "closed" in port.events)
    assert port.end.ended


def test_no_terminal_is_taken_as_it_is(house):
    house.open(SerialChardev("s", "/dev/null"))
    assert house.port().write(b"gone") == 4


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (LineSettings(speed=12345), "serial: a speed of 12345 baud is not one that a terminal has"),
        (LineSettings(speed=0), "serial: a speed of 0 baud is not one that a terminal has"),
        (LineSettings(data_bits=9), "serial: data-bits=9 is not one of 5, 6, 7, 8"),
        (LineSettings(parity="mark"), "serial: parity=mark is not one of none, odd, even"),
        (LineSettings(stop_bits=3), "serial: stop-bits=3 is not one of 1, 2"),
    ],
)
def test_settings_that_are_none(house, line, settings, text):
    with pytest.raises(ConfigError) as caught:
        house.open(SerialChardev("s", line.path, settings))
    assert str(caught.value) == text


def test_no_such_line(house):
    with pytest.raises(ConfigError) as caught:
        house.open(SerialChardev("s", "/nope"))
    assert str(caught.value) == "Could not open '/nope': No such file or directory"
