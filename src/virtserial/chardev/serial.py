"""chardev serial: a serial line of the host, or any terminal, with its line settings (QEMU's chardev/char-serial.c)."""

from __future__ import annotations

import os
import termios
from typing import TYPE_CHECKING

from virtserial.channel.connections import StreamConnection
from virtserial.chardev.base import Chardev, could_not_open
from virtserial.chardev.raw_mode import cfmakeraw
from virtserial.errors import ConfigError
from virtserial.named_tuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.chardev.base import ConnectionSink
    from virtserial.loop import EventLoop

PARITIES = {"none": 0, "odd": termios.PARENB | termios.PARODD, "even": termios.PARENB}
DATA_BITS = {5: termios.CS5, 6: termios.CS6, 7: termios.CS7, 8: termios.CS8}
STOP_BITS = {1: 0, 2: termios.CSTOPB}


class LineSettings(NamedTuple):
    """115200 8N1 as QEMU sets; other values are ours (QEMU's virtio-serial cannot change them)."""

    speed: int = 115200
    data_bits: int = 8
    parity: str = "none"
    stop_bits: int = 1

    def apply(self, fd: int) -> None:
        """Set a terminal to these and raw: no echo, no signals, no flow control by characters or lines.

        Raises:
            ConfigError: the kernel has no such speed, or a value is not valid.
        """
        speed = getattr(termios, f"B{self.speed}", None)
        if speed is None or not self.speed:
            raise ConfigError(f"serial: a speed of {self.speed} baud is not one that a terminal has")
        for name, value, known in (
            ("data-bits", self.data_bits, DATA_BITS),
            ("parity", self.parity, PARITIES),
            ("stop-bits", self.stop_bits, STOP_BITS),
        ):
            if value not in known:
                raise ConfigError(f"serial: {name}={value} is not one of {', '.join(map(str, known))}")
        settings = termios.tcgetattr(fd)
        cfmakeraw(settings)
        settings[2] &= ~(termios.CSIZE | termios.PARENB | termios.PARODD | termios.CRTSCTS | termios.CSTOPB)
        settings[2] |= DATA_BITS[self.data_bits] | PARITIES[self.parity] | STOP_BITS[self.stop_bits]
        settings[2] |= termios.CREAD | termios.CLOCAL
        settings[4] = settings[5] = speed
        termios.tcsetattr(fd, termios.TCSANOW, settings)


class SerialChardev(Chardev):
    """Connected from the start, whatever the state of the modem lines; unplugging it (USB) is a hang-up."""

    kind = "serial"

    def __init__(self, chardev_id: str, path: str, settings: LineSettings | None = None) -> None:
        super().__init__(chardev_id)
        self.path = path
        self.settings = settings or LineSettings()

    def paths(self) -> Sequence[str]:
        return [self.path]

    def open(self, loop: EventLoop, sink: ConnectionSink) -> None:
        try:
            fd = self.reach.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(could_not_open(self.path, error)) from error
        try:
            if os.isatty(fd):
                self.settings.apply(fd)
        except (ConfigError, termios.error) as error:
            os.close(fd)
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"Could not set up '{self.path}': {error.args[-1]}") from error
        sink.connection_opened(self, StreamConnection(f"chardev '{self.id}' (serial '{self.path}')", 0, 0), (fd,))
