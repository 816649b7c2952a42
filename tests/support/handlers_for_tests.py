"""Handlers that the tests load by path and by module name."""

import os
import signal
import time

from virtserial.chardev.handler import PortHandler


class Recorder(PortHandler):
    """Tells the guest, line by line, what it hears."""

    def started(self):
        self.heard = ["started"]

    def guest_open(self):
        self.heard.append("guest_open")

    def guest_close(self):
        self.heard.append("guest_close")

    def guest_ready(self):
        self.heard.append("guest_ready")

    def guest_writable(self):
        self.heard.append("guest_writable")

    def stopped(self):
        self.heard.append("stopped")

    def have_data(self, buffer):
        self.heard.append(bytes(buffer))
        return len(buffer)


class Closed(Recorder):
    open_at_start = False


class Slow(Recorder):
    """Takes three bytes, then throttles."""

    def have_data(self, buffer):
        self.heard.append(bytes(buffer[:3]))
        return min(3, len(buffer))


class Faulty(PortHandler):
    def have_data(self, buffer):
        raise ZeroDivisionError("have_data")

    def guest_open(self):
        raise ZeroDivisionError("guest_open")


class FaultyStart(PortHandler):
    def started(self):
        raise ZeroDivisionError("started")


class Stuck(PortHandler):
    """Does not return, as a write to a file does not whose file system does not answer."""

    def have_data(self, buffer):
        time.sleep(1000)


class Liar(PortHandler):
    def have_data(self, buffer):
        return len(buffer) + 1


class NoHandler:
    pass


async def upper(reader, writer):
    while data := await reader.read(65536):
        writer.write(data.upper())
        await writer.drain()


async def once(reader, writer):
    """Answers one line, then ends."""
    writer.write(b"answer to " + await reader.readline())


async def crash(reader, writer):
    await reader.readexactly(1)
    os._exit(3)


async def stubborn(reader, writer):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    writer.write(b"here")
    await writer.drain()
    while True:
        signal.pause()


async def stays(reader, writer):
    """Closes its connection, and goes on."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    writer.write(b"here")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    while True:
        signal.pause()
