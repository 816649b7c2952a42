"""A device in one's own program: both ends of its ports, plugging, the guest's state, its end."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys

import pytest
from support.places import ENVIRONMENT
from support.waiting import wait_until

import virtserial
from virtserial.monitor.qmp import QmpError

BLOCK = bytes(range(256)) * 20_000


@pytest.fixture(params=[False, True], ids=["vfio-user", "vhost-user"])
def machine(request):
    with virtserial.serve(["org.a"], consoles=["con"], vhost_user=request.param) as machine:
        yield machine


def is_gone(pid):
    return not os.path.exists(f"/proc/{pid}")


def test_both_ends_of_a_port_and_a_console_carry_lines(machine):
    guest = machine.attach()
    for name in ("org.a", "con"):
        assert not machine.wait_guest(name, timeout=0)
        host, port = machine.port(name), guest.open(name)
        assert machine.wait_guest(name, timeout=60)
        host.write(b"to the guest\n")
        assert port.readline(20) == b"to the guest\n"
        port.write(b"to the host\n")
        assert host.readline(20) == b"to the host\n"
        port.close()
        assert machine.wait_guest(name, False, timeout=60)


def test_a_second_guest_is_told_that_the_device_has_a_vmm(machine):
    machine.attach()
    with pytest.raises(virtserial.PeerError, match="is another VMM connected"):
        machine.attach()


def test_a_stream_of_the_guest_knows_when_the_host_comes_and_goes(machine):
    port = machine.attach().open("org.a")
    assert not port.connected
    assert port.read() == b""
    with pytest.raises(virtserial.PeerAway):
        port.write(b"x")
    host = machine.port("org.a")
    assert port.wait_connected(60)
    with pytest.raises(TimeoutError):
        port.read(timeout=0.05)
    host.close()
    assert port.wait_disconnected(20)


def test_a_read_knows_of_a_host_that_came_since_the_last_call(machine):
    guest = machine.attach()
    port = guest.open("org.a")
    assert machine.wait_guest("org.a", timeout=60)
    guest.ports()  # what the device has said so far
    host = machine.port("org.a")
    assert select.select([guest.loop.fileno()], [], [], 60)[0]  # it says that the host is there
    host.write(b"hello\n")
    assert port.readline(60) == b"hello\n"


def test_ports_are_plugged_and_unplugged(machine):
    guest = machine.attach()
    machine.plug("org.b")
    port, host = guest.open("org.b"), machine.port("org.b")
    port.wait_connected(60)
    host.write(b"fresh\n")
    assert port.readline(20) == b"fresh\n"
    with pytest.raises(virtserial.StateError, match="open already"):
        guest.open("org.b")
    machine.unplug("org.b")
    with pytest.raises(virtserial.PortRemoved):
        port.readline(20)
    assert "org.b" not in guest.ports()
    with pytest.raises(virtserial.ConfigError, match=r"no port is named 'org\.b'"):
        machine.port("org.b")
    machine.plug("org.b")
    assert guest.open("org.b").connected in (False, True)


def test_what_is_refused_is_told_in_the_devices_words_and_nothing_stays():
    with pytest.raises(virtserial.ConfigError, match="maximum ports supported"), virtserial.serve(max_ports=9999):
        pass
    with virtserial.serve(["a"], max_ports=2) as machine:
        folder = machine.folder
        with pytest.raises(QmpError):
            machine.plug("b")
        machine.unplug("a")
        machine.plug("a")
        with pytest.raises(virtserial.ConfigError, match=r"named 'c' after 0\.1 s; there are: "):
            machine.attach().open("c", timeout=0.1)
    assert is_gone(machine.pid)
    assert not folder.exists()


@pytest.mark.parametrize("arguments", [{"ports": "org.a"}, {"consoles": "con"}, {"options": "-v"}])
def test_a_string_is_no_list(arguments):
    with pytest.raises(TypeError, match="is a list of strings: write "):
        virtserial.serve(**arguments)


def test_qemus_words_are_those_of_every_controller(folder):
    more = ["-device", f"virtio-serial,id=ser1,socket={folder}/ser1"]
    with virtserial.serve(["a"], options=more) as machine:
        words = machine.qemu_arguments
        assert words[::2] == ["-device", "-device"]
        assert str(machine.socket) in words[1]
        assert f"{folder}/ser1" in words[3]
        virtserial.EmbeddedGuest(f"{folder}/ser1").close()


def test_a_machine_is_started_once_and_says_when_it_has_stopped():
    serving = virtserial.serve(["a"])
    with serving as machine:
        guest = machine.attach()
        with pytest.raises(virtserial.StateError, match="started already"), serving:
            pass
    for call in (machine.port, machine.plug, machine.unplug, machine.wait_guest, lambda _: machine.attach()):
        with pytest.raises(virtserial.StateError, match="the machine has stopped"):
            call("a")
    for call in (guest.ports, lambda: guest.open("a")):
        with pytest.raises(virtserial.StateError, match="the guest is closed"):
            call()


def test_a_machine_that_has_stopped_says_so_to_asyncio():
    async def run():
        async with asyncio.timeout(50):
            async with virtserial.serve(["a"]) as machine:
                guest = await machine.attach()
            for call, said in ((machine.port, "the machine has stopped"), (guest.open, "the guest is closed")):
                with pytest.raises(virtserial.StateError, match=said):
                    await call("a")

    asyncio.run(run())


def test_a_port_with_a_ringbuf_has_no_host_end_to_connect_to():
    options = ["-chardev", "ringbuf,id=rb", "-device", "virtserialport,chardev=rb,name=r"]
    options += ["-device", "virtserialport,name=none"]
    with virtserial.serve(options=options) as machine:
        with pytest.raises(virtserial.ConfigError, match=r"no socket to connect to: machine\.monitor\('ringbuf-read'"):
            machine.port("r")
        with pytest.raises(virtserial.ConfigError, match=r"\(none\) has no socket to connect to: use a chardev"):
            machine.port("none")
        assert machine.monitor("ringbuf-read", device="rb", size=10) == ""


def test_a_guest_that_cannot_connect_names_the_socket(machine):
    with pytest.raises(virtserial.PeerError, match=f"^{machine.folder}/qmp: "):
        virtserial.EmbeddedGuest(machine.folder / "qmp")


def test_it_ends_with_a_program_that_is_killed():
    program = "import virtserial, time\nwith virtserial.serve() as m: print(m.pid, m.folder, flush=True); time.sleep(9)"
    with subprocess.Popen(
        [sys.executable, "-c", program], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    ) as process:
        pid, _, folder = process.stdout.readline().strip().partition(" ")
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_until(lambda: is_gone(pid), 20)
    with virtserial.serve() as machine:
        # By this one, or by another that somebody has started meanwhile.
        assert not os.path.exists(folder)
        assert machine.folder.is_dir()


def test_asyncio_carries_much_both_ways_while_it_plugs_and_waits():
    async def run():
        async with asyncio.timeout(50), virtserial.serve(["org.a"], packed=True) as machine:
            guest = await machine.attach()
            waiting = asyncio.create_task(machine.wait_guest("org.b"))
            with pytest.raises(virtserial.ConfigError):
                await waiting
            await machine.plug("org.b")
            waiting = asyncio.create_task(machine.wait_guest("org.b"))
            host, port = await machine.port("org.b"), await guest.open("org.b")
            await waiting
            await port.wait_connected()
            async with asyncio.TaskGroup() as group:
                group.create_task(port.write(BLOCK))
                group.create_task(host.write(BLOCK))
                at_host = group.create_task(host.readexactly(len(BLOCK)))
                at_guest = group.create_task(port.readexactly(len(BLOCK)))
            assert at_host.result() == at_guest.result() == BLOCK
            await machine.unplug("org.b")
            with pytest.raises(virtserial.PortRemoved):
                await port.read()
            return machine

    machine = asyncio.run(run())
    assert is_gone(machine.pid)
    assert not machine.folder.exists()


def test_a_handler_serves_a_port_and_its_error_ends_the_machine():
    async def upper(port):
        while line := await port.readline():
            if line == b"fail\n":
                raise ValueError("as asked")
            await port.write(line.upper())

    async def run():
        async with asyncio.timeout(50), virtserial.serve(["org.a"]) as machine:
            await machine.handle("org.a", upper)
            port = await (await machine.attach()).open("org.a")
            await port.wait_connected()
            await port.write(b"hello\n")
            assert await port.readline() == b"HELLO\n"
            await port.write(b"fail\n")
            await asyncio.sleep(40)

    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(run())
    assert [str(error) for error in raised.value.exceptions] == ["as asked"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_lost_device_is_told(machine, number):
    guest = machine.attach()
    port = guest.open("org.a")
    os.kill(machine.pid, number)
    with pytest.raises(virtserial.PortRemoved):
        port.wait_connected(60)
    assert isinstance(guest.failure, virtserial.PeerError)
    assert "closed the connection" in str(guest.failure)


def test_a_guest_that_is_closed_takes_its_streams_out_of_the_loop():
    """asyncio would call them back, and hold their numbers for watched."""

    async def run():
        async with virtserial.serve(["org.a"]) as machine:
            guest = await machine.attach()
            watched = (await guest.open("org.a"))._stream.fileno()
            guest.close()  # the machine closes it once more
            assert not asyncio.get_running_loop().remove_reader(watched)

    asyncio.run(run())
