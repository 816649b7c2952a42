"""The machines of this host as the web console's source: real devices with the embedded guest, no browser."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import sys
import termios

import pytest
from support.client_machine import running
from support.places import ENVIRONMENT
from support.waiting import wait_until
from support.web_machine import echoes

from virtserial.errors import BusyError, ConfigError
from virtserial.web.local_source import LocalSource

OTHER = """
import socket, sys
with socket.socket(socket.AF_UNIX) as other:
    other.connect(sys.argv[1])
    print("connected", flush=True)
    assert other.recv(1) == b""
    print("sent away", flush=True)
"""
"""Another client of a port."""
CONSOLES = ("alpha/sock", "alpha/term")


@pytest.fixture(scope="module")
def machine(module_folder):
    """A device with two consoles, on a socket and on a terminal, and ports; its folder."""
    folder = module_folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIRTSERIAL_REGISTRY", f"{folder}/vms")
        patch.setitem(ENVIRONMENT, "VIRTSERIAL_REGISTRY", f"{folder}/vms")
        words = ["--name", "alpha", "--allow-path", str(folder), "-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
        for number in range(2):
            words += ["-device", f"virtio-serial,id=ser{number},max_ports=8,socket={folder}/device{number}"]
        for name in ("sock", "port", "same"):
            words += ["-chardev", f"socket,id={name},path={folder}/{name}.sock,server=on,wait=off"]
        words += ["-chardev", f"pty,id=term,path={folder}/term", "-chardev", f"file,id=file,path={folder}/file"]
        words += ["-chardev", f"socket,id=many,path={folder}/many,server=on,wait=off,clients=2,watch={folder}/watch"]
        for console in ("sock", "term"):
            words += ["-device", f"virtconsole,bus=ser0.0,id={console},chardev={console}"]
        for port in ("port", "same", "many", "file"):
            words += ["-device", f"virtserialport,bus=ser0.0,name={port},chardev={port}"]
        words += ["-device", "virtserialport,bus=ser1.0,id=same"]
        guest = folder / "guest"
        devices = (f"{folder}/device0", f"{folder}/device1")
        with running("serve", *words), running("guest", "attach", *devices, "--as", "pty", "--run-dir", str(guest)):
            wait_until(lambda: (guest / "hvc1").exists() and (guest / "virtio-ports/port").exists())
            with echoes(guest / "hvc0", guest / "hvc1", guest / "virtio-ports/port"):
                yield folder


@pytest.fixture
def use(machine, run):
    """Run a test's coroutine function with a source."""

    def use_source(test):
        async def with_source():
            source = LocalSource({"alpha": f"{machine}/qmp"})
            try:
                return await test(source)
            finally:
                source.close()

        return run(with_source())

    return use_source


def size_of(terminal):
    """Rows and columns."""
    fd = os.open(terminal, os.O_RDWR | os.O_NOCTTY)
    try:
        return struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))[:2]
    finally:
        os.close(fd)


async def answer(connection, wanted):
    got = b""
    while wanted not in got:
        data = await connection.read(1 << 16)
        assert data, got
        got += data
    return got


def test_what_runs_here(use):
    async def test(source):
        [found] = await source.look()
        assert (found.name, found.error, found.pluggable) == ("alpha", "", True)
        ports = {port.name: port for port in found.ports}
        # A name that two have is no name.
        names = {"alpha/sock", "alpha/term", "alpha/port", "alpha/many", "alpha/file", "alpha/ser0.3", "alpha/ser1.1"}
        assert set(ports) == names
        assert (ports["alpha/sock"].console, ports["alpha/term"].console) == ("hvc0", "hvc1")
        assert "it takes no connections" in ports["alpha/file"].refusal
        assert ports["alpha/many"].has_watch
        assert "talks to nobody" in ports["alpha/ser1.1"].refusal

    use(test)


def test_bytes_go_both_ways_and_the_size_arrives(use, machine):
    async def test(source):
        for number, name in enumerate(CONSOLES):
            connection = await source.open(name, False, False)
            await connection.write(b"hello")
            await answer(connection, b"hello")
            await connection.resize(31, 97)
            terminal = machine / "guest" / f"hvc{number}"
            await asyncio.to_thread(wait_until, lambda place=terminal: size_of(place) == (31, 97))
            connection.close()

    use(test)


OTHER_NAMES = ("alpha/hvc0", "alpha/0", "alpha/ser0.0", "alpha", "alpha/same", "beta/port", "", "alpha/nothing")


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_only_names_that_are_listed_open_a_port(use, name):
    async def test(source):
        with pytest.raises(ConfigError):
            await source.open(name, False, False)

    use(test)


def test_a_port_that_is_taken_is_busy_until_it_is_taken_over(use, machine):
    async def test(source):
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", OTHER, f"{machine}/port.sock", stdout=-1)
        assert await other.stdout.readline() == b"connected\n"
        with pytest.raises(BusyError, match="is busy: process"):
            while True:
                (await source.open("alpha/port", False, False)).close()
        connection = await source.open("alpha/port", False, True)
        await connection.write(b"mine")
        await answer(connection, b"mine")
        assert await other.stdout.readline() == b"sent away\n"
        await other.communicate()
        connection.close()

    use(test)


def test_watchers_have_places_of_their_own(use, machine):
    async def test(source):
        full = []
        for _ in range(2):
            full.append(socket.socket(socket.AF_UNIX))
            full[-1].connect(f"{machine}/many")
        watcher = await source.open("alpha/many", True, False)
        watcher.close()
        for each in full:
            each.close()

    use(test)


def test_ports_come_and_go_and_the_device_restarts_in_place(use):
    async def test(source):
        await source.plug("alpha", "org.example.new", False)
        with pytest.raises(Exception, match="new"):
            await source.plug("alpha", "org.example.new", False)
        for name in ("../x", "", "a b", "x" * 65):
            with pytest.raises(ConfigError, match="no name for a port"):
                await source.plug("alpha", name, False)
        with pytest.raises(ConfigError, match="no monitor is known"):
            await source.plug("beta", "x", False)
        await source.restart("alpha")
        async with asyncio.timeout(60):
            while not (found := await source.look()) or not found[0].restarts or found[0].error:
                pass
        await source.unplug("alpha/org.example.new")
        async with asyncio.timeout(60):
            while "alpha/org.example.new" in {port.name for each in await source.look() for port in each.ports}:
                pass

    use(test)
