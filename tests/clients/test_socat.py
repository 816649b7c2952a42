"""The real socat on a port's host end: unix socket, tcp, pty, and an abstract socket."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess

import pytest
from support.fetched import fetch_or_skip
from support.waiting import wait_until

from virtserial.rig import Guest
from virtserial.rig.programs import programs

KINDS = ("unix", "abstract", "tcp", "pty")


@pytest.fixture(scope="module")
def socat():
    return fetch_or_skip(programs, "socat").command("socat")


@pytest.fixture(scope="module")
def tcp_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def machine(our_device, module_folder, tcp_port):
    chardevs = {
        "unix": f"socket,path={module_folder}/port,server=on,wait=off",
        "abstract": f"socket,path={str(module_folder)[1:]}/port,abstract=on,tight=on,server=on,wait=off",
        "tcp": f"socket,host=127.0.0.1,port={tcp_port},server=on,wait=off",
        "pty": f"pty,path={module_folder}/pty",
    }
    options = ["-device", "virtio-serial"]
    for kind, chardev in chardevs.items():
        backend, _, rest = chardev.partition(",")
        options += ["-chardev", f"{backend},id={kind},{rest}", "-device", f"virtserialport,chardev={kind},name={kind}"]
    with our_device.attach(options) as attached, Guest(attached.arguments) as guest:
        yield guest


@pytest.fixture
def address(module_folder, tcp_port):
    return {
        "unix": f"UNIX-CONNECT:{module_folder}/port",
        "abstract": f"ABSTRACT-CONNECT:{str(module_folder)[1:]}/port",
        "tcp": f"TCP:127.0.0.1:{tcp_port}",
        "pty": f"{module_folder}/pty,raw,echo=0",
    }


def until(command):
    """Repeat a command of the guest's shell: a read ends at once while the host is not connected."""
    return f"until {command}; do sleep 0.05; done"


@pytest.mark.parametrize("kind", KINDS)
def test_a_line_each_way(machine, socat, address, kind):
    """The transcript of the Fedora page."""
    receive = until("head -n 1 <&3 | grep .")
    job = machine.start(f"exec 3<>/dev/virtio-ports/{kind}; {receive}; echo hello, host >&3; sleep 60")
    with subprocess.Popen([*socat, "-", address[kind]], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(b"hello, guest\n")
        process.stdin.flush()
        job.expect(b"hello, guest\n", 20)
        assert process.stdout.readline() == b"hello, host\n"
        process.kill()
    job.signal(9)
    job.wait()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_each_way(machine, socat, address, module_folder, kind):
    """A file up, its checksum and the file itself back: socat ends by itself when the guest has closed its side."""
    size = 1 << 20
    content = os.urandom(size)
    receive = until(f"head -c {size} <&3 >/tmp/{kind}; [ -s /tmp/{kind} ]")
    job = machine.start(f"exec 3<>/dev/virtio-ports/{kind}; {receive}; exec 3>&-; sha1sum </tmp/{kind}")
    sender = subprocess.run([*socat, "-u", "STDIN", address[kind]], input=content, timeout=60, capture_output=True)
    assert sender.returncode == 0, sender.stderr
    assert re.match(hashlib.sha1(content).hexdigest(), job.wait(60).text)
    with open(f"{module_folder}/{kind}.back", "wb") as back:
        command = [*socat, "-u", address[kind], "STDOUT"]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=back) as receiver:
            machine.check(f"cat /tmp/{kind} >/dev/virtio-ports/{kind}")
            wait_until(lambda: os.path.getsize(back.name) == size, 60, "the file did not come back whole")
            receiver.kill()
    with open(back.name, "rb") as came:
        assert came.read() == content
