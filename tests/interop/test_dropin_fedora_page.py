"""The command lines of Fedora's VirtioSerial page, as printed but for paths, by virtserial-qemu."""

from __future__ import annotations

import os
import shlex
import subprocess
from contextlib import closing

import pytest
from support.guests.dropin_guest import DropinGuest
from support.guests.host_end import HostEnd
from support.waiting import wait_until

from virtserial.rig import RigUnavailable
from virtserial.rig.image import ROOT_PASSWORD
from virtserial.rig.programs import programs

MACHINES = {"pc": "-machine pc -m 256", "q35": "-machine q35 -m 256"}


@pytest.fixture(params=[pytest.param("pc", marks=pytest.mark.slow), "q35"])
def machine(request):
    return shlex.split(MACHINES[request.param])


def on_machine(name):
    """One machine suffices for what has nothing to do with the kind of machine."""
    return pytest.mark.parametrize("machine", [name], indirect=True)


@pytest.fixture(scope="module")
def socat():
    """The words that start the real socat."""
    try:
        return programs("socat").command("socat")
    except RigUnavailable as reason:
        if os.environ.get("CI") == "true":
            pytest.fail(str(reason))
        pytest.skip(str(reason))


def test_one_port_with_socat_on_the_host(machine, folder, socat):
    words = shlex.split(
        f"-device virtio-serial -chardev socket,path={folder}/foo,server,nowait,id=foo "
        "-device virtserialport,chardev=foo,name=org.fedoraproject.port.0"
    )
    with DropinGuest([*machine, *words]) as guest:
        assert guest.check("cat /sys/class/virtio-ports/vport0p1/name") == "org.fedoraproject.port.0"
        assert guest.check("readlink /dev/virtio-ports/org.fedoraproject.port.0").endswith("vport0p1")
        # A read ends at once while the host is not connected.
        receive = "until head -n 1 <&3 | grep .; do sleep 0.05; done"
        job = guest.start(f"exec 3<>/dev/vport0p1; {receive}; echo from the guest >&3; cat <&3 > /dev/null")
        with subprocess.Popen(
            [*socat, "-", f"UNIX-CONNECT:{folder}/foo"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as client:
            client.stdin.write(b"from the host\n")
            client.stdin.flush()
            assert client.stdout.readline() == b"from the guest\n"
            client.stdin.close()
            client.wait(60)
        result = job.wait(60)
        assert result.text == "from the host\n"
        assert "slower path" not in guest.stderr


def log_in(path, name):
    """Log in on a console as an operator would; return what a command prints there."""
    with closing(HostEnd(path)) as end:
        end.send(b"\n")
        end.receive_until(b"login: ", 60)
        end.send(b"root\n")
        end.receive_until(b"assword: ", 60)
        end.send(ROOT_PASSWORD.encode() + b"\n")
        end.receive_until(b"# ", 60)
        end.send(f"echo this is {name[:2]}'{name[2:]}'; tty\n".encode())
        return end.receive_until(f"/dev/{name}".encode(), 60).decode()


@on_machine("q35")
def test_two_consoles_with_logins(machine, folder):
    words = shlex.split(
        f"-device virtio-serial -chardev socket,path={folder}/foo,server,nowait,id=foo "
        f"-chardev socket,path={folder}/bar,server,nowait,id=bar "
        "-device virtioconsole,chardev=foo,name=org.fedoraproject.console.foo "
        "-device virtioconsole,chardev=bar,name=org.fedoraproject.console.bar"
    )
    with DropinGuest([*machine, *words]) as guest:
        for console in ("hvc0", "hvc1"):
            # Not /dev/hvc0, as the page has it: today's agetty puts /dev/ before its argument.
            guest.check(f"setsid agetty {console} 9600 vt100")
        for name, console in (("foo", "hvc0"), ("bar", "hvc1")):
            shown = log_in(f"{folder}/{name}", console)
            assert f"this is {console}" in shown
            assert f"/dev/{console}" in shown


@on_machine("pc")
def test_two_controllers_with_few_ports_and_vectors(machine, folder):
    words = shlex.split(
        f"-chardev socket,path={folder}/p,server,nowait,id=portchar0 "
        f"-chardev socket,path={folder}/c,server,nowait,id=conschar0 "
        "-device virtio-serial,id=ser0,max_ports=2,vectors=4 -device virtio-serial-pci,id=ser1,max_ports=3,vectors=4 "
        "-device virtserialport,bus=ser0.0,chardev=portchar0,id=port0,name=org.fedoraproject.port.0 "
        "-device virtioconsole,bus=ser1.0,chardev=conschar0,id=cons0,name=org.fedoraproject.console.0"
    )
    with DropinGuest([*machine, *words]) as guest:
        limits = guest.check("for f in /sys/bus/virtio/drivers/virtio_console/virtio*; do ls -d $f; done")
        assert len(limits.split()) == 2
        names = guest.check("cat /sys/class/virtio-ports/*/name").split()
        assert sorted(names) == ["org.fedoraproject.console.0", "org.fedoraproject.port.0"]
        vectors = guest.check("cat /proc/interrupts | grep -c virtio")
        assert int(vectors) >= 4
        with closing(HostEnd(f"{folder}/p")) as end:
            guest.check("echo to port0 > /dev/virtio-ports/org.fedoraproject.port.0")
            assert end.receive_until(b"\n") == b"to port0\n"
        with closing(HostEnd(f"{folder}/c")) as end:
            guest.check("echo to cons0 > /dev/hvc0")
            assert b"to cons0" in end.receive_until(b"\n")


@on_machine("q35")
def test_hot_plug_and_unplug_at_the_monitor_s_prompt(machine, folder):
    words = ["-device", "virtio-serial", "-monitor", f"unix:{folder}/monitor,server,nowait"]
    with DropinGuest([*machine, *words]) as guest, closing(HostEnd(f"{folder}/monitor")) as monitor:
        monitor.receive_until(b"(qemu) ")
        monitor.send(b"device_add virtserialport,name=org.fedoraproject.port.0,id=port0\n")
        monitor.receive_until(b"\n(qemu) ")
        port = "/dev/virtio-ports/org.fedoraproject.port.0"
        wait_until(lambda: guest.run(f"test -c {port}").status == 0, complaint="the port did not appear")
        monitor.send(b"info qtree\n")
        assert b'dev: virtserialport, id "port0"' in monitor.receive_until(b"\n(qemu) ")
        monitor.send(b"device_del port0\n")
        monitor.receive_until(b"\n(qemu) ")
        wait_until(lambda: guest.run(f"test -e {port}").status != 0, complaint="the port did not go")
