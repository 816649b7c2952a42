"""The size of a console's window, which QEMU's own device cannot tell (it has no VIRTIO_CONSOLE_F_SIZE)."""

import subprocess
import sys

import pytest
from support.guests.host_device import VirtserialDevice
from support.places import ENVIRONMENT, REGISTRY

from virtserial.client.named_stream import NamedStream
from virtserial.client.names import find_vm_port
from virtserial.rig.guest import Guest

pytestmark = pytest.mark.qemu


def restart(vm):
    subprocess.run([sys.executable, "-m", "virtserial", "restart", vm], env=ENVIRONMENT, check=True, timeout=60)


@pytest.fixture(scope="module")
def attached(module_folder):
    """A console on a socket, two that have sizes, and one on a pseudo-terminal."""
    options = ["-device", "virtio-serial,id=ser0"]
    options += ["-chardev", f"socket,id=c0,path={module_folder}/c0,server=on,wait=off"]
    options += ["-device", "virtconsole,chardev=c0"]
    for number, size in enumerate(("cols=100,rows=30", "cols=212,rows=65"), 1):
        options += ["-chardev", f"ringbuf,id=c{number}", "-device", f"virtconsole,chardev=c{number},{size}"]
    options += ["-chardev", "pty,id=c3", "-device", "virtconsole,chardev=c3"]
    with VirtserialDevice().attach(options) as attached:
        yield attached


@pytest.fixture(scope="module")
def guest(attached):
    with Guest(attached.arguments) as guest:
        yield guest


def test_consoles_have_the_size_they_were_given(guest):
    # A guest that boots fast is up before its driver has heard of the second console.
    for console, size in ("hvc1", "30 100"), ("hvc2", "65 212"):
        wait_for_size(guest, console, size)


def wait_for_size(guest, console, size):
    guest.check(f'until [ "$(stty -F /dev/{console} size 2>/dev/null)" = "{size}" ]; do sleep 0.1; done')


def test_a_console_follows_the_terminal_of_a_person_who_uses_it(attached, guest, monkeypatch):
    """As `virtserial console` does at each SIGWINCH; again over a restart, and the size stays."""
    monkeypatch.setenv("VIRTSERIAL_REGISTRY", REGISTRY)
    port = find_vm_port(f"{attached.process.pid}/hvc0")
    with NamedStream(port) as stream:
        for size in ("41 123", "25 81"):
            stream.set_terminal_size(*map(int, size.split()))
            stream.news()
            wait_for_size(guest, "hvc0", size)
        restart(str(attached.process.pid))
        wait_for_size(guest, "hvc0", "25 81")
        stream.set_terminal_size(26, 82)
        for _ in range(2):  # The first finds that the keeper's connection has ended, the second makes another.
            stream.news()
        wait_for_size(guest, "hvc0", "26 82")


def test_a_console_on_a_pseudo_terminal_follows_it_too(attached, guest, monkeypatch):
    monkeypatch.setenv("VIRTSERIAL_REGISTRY", REGISTRY)
    with NamedStream(find_vm_port(f"{attached.process.pid}/hvc3")) as stream:
        stream.set_terminal_size(42, 124)
        stream.news()
        wait_for_size(guest, "hvc3", "42 124")
