"""Sessions of `virtserial pipe --session` with what `virtserial_guest sshd` starts, over a device without a VM."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from support.client_machine import running
from support.places import ENVIRONMENT
from support.waiting import wait_until

from virtserial.cli.ssh_session import VERSION, disconnect
from virtserial.client.names import find_vm_port
from virtserial.client.registry import find_vm

NAME = "org.virtserial.ssh.0"
WAIT = 60
SERVER = """
import sys
from virtserial.client import HostStream
from virtserial.guest import programs
from virtserial.guest.sshd import sshd
add = lambda parser: parser.add_argument("port")
sys.exit(programs.run("sshd", lambda: sshd("sshd", sys.argv[1:], add, lambda options: HostStream(options.port))))
"""


@pytest.fixture
def machine(folder, monkeypatch):
    """A device with a port for ssh, and the user-space driver that shows its guest's end as a socket."""
    monkeypatch.setitem(ENVIRONMENT, "VIRTSERIAL_REGISTRY", f"{folder}/vms")
    monkeypatch.setenv("VIRTSERIAL_REGISTRY", f"{folder}/vms")
    options = ("--name", "alpha", "-device", f"virtio-serial,id=ser0,socket={folder}/device")
    port = (
        *("-chardev", f"socket,id=c0,path={folder}/host,server=on,wait=off"),
        *("-device", f"virtserialport,chardev=c0,name={NAME}"),
    )
    with (
        running("serve", *options, *port),
        running("guest", "attach", f"{folder}/device", "--as", "socket", "--run-dir", f"{folder}/run"),
    ):
        wait_until(lambda: (folder / f"run/virtio-ports/{NAME}").exists())
        yield SimpleNamespace(guest=f"unix:{folder}/run/virtio-ports/{NAME}", folder=folder)


@pytest.fixture
def serve(machine):
    """Start what serves sessions in the guest."""
    started = []

    def start(*command):
        words = [sys.executable, "-c", SERVER, machine.guest, "--exec", *command]
        started.append(subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.DEVNULL))

    yield start
    for process in started:
        process.kill()
        process.wait()


def session(*words, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "virtserial", "pipe", "--session", *(words or ("alpha.vm",))], env=ENVIRONMENT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more,
    )  # fmt: skip


def told(text):
    """What ssh is told, and shows."""
    return VERSION + disconnect(text)


def finish(process, data=b""):
    output, errors = process.communicate(data, timeout=WAIT)
    return process.returncode, output, errors.decode()


def test_each_connection_has_a_program_and_both_ends_of_the_stream(machine, serve):
    serve("sh", "-c", "echo from $$; cat; echo the end")
    pids = set()
    for word in (b"one\n", b"two\n", b"three\n"):
        status, output, errors = finish(session(), word)
        assert (status, errors) == (0, "")
        first, *rest = output.splitlines(keepends=True)
        pids.add(first)
        assert rest == [word, b"the end\n"]
    assert len(pids) == 3


def test_megabytes_go_both_ways_unharmed(machine, serve):
    """More than the window in both directions, to a program that reads late."""
    serve("sh", "-c", "sleep 1; cat")
    data = random.Random(1).randbytes(6 << 20)
    status, output, errors = finish(session(), data)
    assert (status, errors) == (0, "")
    assert hashlib.sha256(output).digest() == hashlib.sha256(data).digest()


def test_a_client_that_is_killed_takes_its_program_along_and_the_next_is_not_disturbed(machine, serve):
    serve("sh", "-c", "echo $$; cat; sleep 0.1")
    first = session()
    pid = int(first.stdout.readline())
    first.stdin.write(b"half a")
    first.stdin.flush()
    first.kill()
    first.communicate()
    assert finish(session(), b"whole\n")[1].splitlines()[1:] == [b"whole"]
    wait_until(lambda: subprocess.run(["kill", "-0", str(pid)], stderr=subprocess.DEVNULL).returncode)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["/no/such/sshd"], "there is no /no/such/sshd in the guest"),
        (["sh", "-c", "echo no hostkeys available -- exiting. >&2; exit 1"], "no hostkeys available -- exiting."),
        (["true"], "the program has ended at once"),
    ],
)
def test_a_program_that_does_not_serve_is_one_line(machine, serve, command, said):
    serve(*command)
    assert finish(session()) == (1, told(f"'alpha/{NAME}': {said}"), f"virtserial: 'alpha/{NAME}': {said}\n")


def test_a_program_that_ends_before_it_has_read_is_one_line_too(machine, serve):
    """Its connection is reset then; sshd without host keys may find our version already there."""
    serve("sh", "-c", "sleep 1; echo no hostkeys >&2; exit 1")
    error = f"'alpha/{NAME}': no hostkeys"
    assert finish(session(), b"SSH-2.0-ours\r\n") == (1, told(error), f"virtserial: {error}\n")


def test_a_guest_that_does_not_answer_is_one_line(machine):
    status, output, errors = finish(session("--timeout", "1", "alpha"))
    assert (status, output) == (1, told(errors.removeprefix("virtserial: ").rstrip("\n")))
    assert errors == (
        f"virtserial: 'alpha/{NAME}': the guest does not answer (1 s): has it started, and does "
        "`virtserial_guest sshd` run there?\n"
    )


def test_a_second_session_finds_the_port_busy(machine, serve):
    serve("cat")
    first = session()
    wait_until(lambda: find_vm_port(f"alpha/{NAME}").clients)
    status, _, errors = finish(session())
    assert (status, "is busy: process" in errors) == (1, True)
    assert finish(first, b"x") == (0, b"x", "")


def test_a_vm_without_a_port_for_ssh_is_told_how_to_get_one(folder, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "VIRTSERIAL_REGISTRY", f"{folder}/vms")
    with running("serve", "--name", "alpha", "-device", f"virtio-serial,socket={folder}/device"):
        status, _, errors = finish(session())
        assert status == 1
        assert errors.splitlines() == [
            f"virtserial: VM 'alpha' has no port '{NAME}'",
            f"virtserial: give it one, -device virtserialport,name={NAME},chardev=..., or say VM/PORT",
        ]


def test_ssh_config_has_every_program_come_by_the_port(monkeypatch):
    command = [sys.executable, "-m", "virtserial", "ssh-config"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    lines = [line.strip() for line in done.stdout.splitlines() if not line.startswith("#")]
    assert lines[0] == "Host *.vm"
    assert lines[1].startswith("ProxyCommand ")
    assert lines[1].endswith("pipe --session -- %n")
    assert "ControlMaster auto" in lines


def test_of_two_vms_of_one_name_the_process_number_tells_which(machine, serve, folder):
    """Also to ssh, which shares connections by the name that it is given."""
    serve("cat")
    pid = str(find_vm("alpha").pid)
    (folder / "ssh").write_text('#!/bin/sh\necho "$@"\n')
    (folder / "ssh").chmod(0o755)
    chardev = f"socket,id=c0,path={folder}/of-the-other,server=on,wait=off"
    with running(
        "serve", "--name", "alpha", "-device", f"virtio-serial,id=ser0,socket={folder}/other",
        "-chardev", chardev, "-device", f"virtserialport,chardev=c0,name={NAME}",
    ):  # fmt: skip
        assert finish(session(f"{pid}.vm"), b"to the first\n") == (0, b"to the first\n", "")
        status, _, errors = finish(session())
        assert (status, "2 VMs are called 'alpha': say which by its process" in errors) == (1, True), errors
        words = [sys.executable, "-m", "virtserial", "ssh", f"root@{pid}", "true"]
        done = subprocess.run(words, env={**ENVIRONMENT, "PATH": str(folder)}, capture_output=True, text=True)
        assert done.stdout.endswith(f" root@{pid}.vm true\n"), done.stderr
        assert f" pipe --session -- {pid} " in done.stdout


@pytest.mark.parametrize("length", range(9))
def test_ssh_shows_why_there_is_no_session(folder, length):
    """The real ssh, with ControlPersist, where it hides its ProxyCommand's standard error."""
    if not shutil.which("ssh"):
        pytest.skip("no OpenSSH client on this host")
    reason = "the reason" + "." * length
    (folder / "said").write_bytes(told(reason))
    options = (f"ProxyCommand=sh -c 'cat {folder}/said; exec sleep 2'", "ControlMaster=auto", "ControlPersist=5",
               f"ControlPath={folder}/%C", "BatchMode=yes")  # fmt: skip
    words = [word for option in options for word in ("-o", option)]
    done = subprocess.run(["ssh", "-F", "/dev/null", *words, "host.vm", "true"], capture_output=True, text=True)
    assert (done.returncode, f":11: {reason}\n" in done.stderr.replace("\r", "")) == (255, True), done.stderr
