"""`virtserial ls` and `virtserial ports`, as a person and as a program use them."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys

import pytest
from support.embedded_guest import EmbeddedGuest
from support.places import ENVIRONMENT
from support.programs import run
from support.serving import serve

from virtserial.cli.pipe import LOST, WAITING


@pytest.fixture(scope="module")
def registry(module_folder):
    return module_folder / "vms"


@pytest.fixture(scope="module")
def machine(module_folder, registry):
    options = [
        "--name", "alpha", "-device", f"virtio-serial,id=ser0,socket={module_folder}/alpha.sock",
        "-chardev", f"socket,id=c0,path={module_folder}/c0,server=on,wait=off",
        "-device", "virtserialport,chardev=c0,name=org.example.0,id=p0",
    ]  # fmt: skip
    with serve(*options, registry=registry) as process:
        yield process


def command(registry, *words):
    return run(*words, VIRTSERIAL_REGISTRY=str(registry))


def test_nothing_runs(folder):
    assert command(folder / "none", "ls") == (0, f"no VM runs here: looked in {folder}/none\n", "")


def test_a_host_of_a_fleet_says_that_no_vm_of_the_name_runs_here(machine, registry, folder):
    status, _, errors = run("pipe", "alpa/x", VIRTSERIAL_REGISTRY=str(registry), VIRTSERIAL_FLEET=f"{folder}/none")
    assert (status, errors) == (1, (
        f"virtserial: no VM called 'alpa' runs here; for the fleet, {folder}/none: No such file or directory\n"
        "virtserial: did you mean 'alpha'?\n"
    ))  # fmt: skip


def test_ls_is_a_table(machine, registry):
    status, output, errors = command(registry, "ls")
    assert (status, errors) == (0, "")
    heading, row = output.splitlines()
    assert heading.split()[:4] == ["VM", "PID", "USER", "CONTROLLERS"]
    assert row.split()[:2] == ["alpha", str(machine.pid)]
    assert "ser0 (no VMM)" in row


def test_json_is_for_programs(machine, registry):
    status, output, _ = command(registry, "ls", "--json")
    (vm,) = json.loads(output)
    assert (status, vm["vm"], vm["pid"], vm["error"]) == (0, "alpha", machine.pid, "")
    assert [port["name"] for port in vm["ports"]] == ["org.example.0"]
    status, output, _ = command(registry, "ports", "--json", "alpha")
    (port,) = json.loads(output)
    assert (status, port["port"], port["clients"], port["to-host"]) == (0, "alpha/org.example.0", 0, 0)


@pytest.mark.parametrize("words", [["ports"], ["ls", "alpha"]])
def test_ports_are_listed_by_full_name(machine, registry, words):
    status, output, errors = command(registry, *words)
    assert (status, errors) == (0, "")
    assert output.splitlines()[1].split()[:4] == ["alpha/org.example.0", "1", "port", "closed"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ports", "alpa"], "no VM called 'alpa' runs here\nvirtserial: did you mean 'alpha'?"),
        (["pipe", "alpha/p1"], "VM 'alpha' has no port 'p1'\nvirtserial: there is: 'org.example.0'"),
        (["send", "beta/x", "/dev/null"], "no VM called 'beta' runs here\nvirtserial: there is: 'alpha'"),
    ],
)
def test_a_wrong_name_is_one_line_and_a_hint(machine, registry, words, said):
    assert command(registry, *words) == (1, "", f"virtserial: {said}\n")


def begin_pipe(registry, port, data):
    """A `pipe` whose input has ended and whose guest has the port closed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "virtserial", "pipe", port], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**ENVIRONMENT, "VIRTSERIAL_REGISTRY": str(registry)},
    )  # fmt: skip
    process.stdin.write(data)
    process.stdin.close()
    assert process.stderr.readline() == f"{WAITING}\n".encode()
    return process


def test_pipe_waits_until_the_guest_takes_its_input(machine, registry, module_folder):
    with (
        begin_pipe(registry, "alpha/org.example.0", b"to the guest\n") as process,
        EmbeddedGuest(f"{module_folder}/alpha.sock", "org.example.0") as guest,
    ):
        received = guest.open("org.example.0")
        guest.run_until(lambda: received.data == b"to the guest\n", 30)
        guest.run_until(lambda: process.poll() is not None, 30)
        assert (process.returncode, process.stdout.read(), process.stderr.read()) == (0, b"", b"")


def test_pipe_says_that_the_device_has_ended_with_its_input(module_folder, registry):
    with socket.socket(socket.AF_UNIX) as listener:
        # As libvirt does: the device gets a descriptor, and programs find it by its path.
        listener.bind(f"{module_folder}/b0")
        listener.listen()
        options = [
            "--name", "beta", "-device", f"virtio-serial,socket={module_folder}/beta.sock",
            "-chardev", f"socket,id=c0,fd={listener.fileno()},server=on,wait=off",
            "-device", "virtserialport,chardev=c0,name=org.example.1",
        ]  # fmt: skip
        with serve(*options, registry=registry, pass_fds=[listener.fileno()]):
            process = begin_pipe(registry, "beta/org.example.1", b"to nobody\n")
        with process:
            assert (process.wait(60), process.stderr.read().decode()) == (1, f"virtserial: {LOST}\n")


def test_watch_shows_it_again_until_ctrl_c(machine, registry):
    process = subprocess.Popen(
        [sys.executable, "-m", "virtserial", "ls", "--watch", "0.1", "--json"], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**ENVIRONMENT, "VIRTSERIAL_REGISTRY": str(registry)},
    )  # fmt: skip
    with process:
        for _ in range(3):
            assert json.loads(process.stdout.readline())[0]["vm"] == "alpha"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) in (0, 130)


def test_one_that_hangs_is_said_and_the_others_are_shown(machine, registry, module_folder):
    options = ["--name", "slow", "-device", f"virtio-serial,socket={module_folder}/slow.sock"]
    with serve(*options, registry=registry) as slow:
        slow.send_signal(signal.SIGSTOP)
        try:
            status, output, errors = command(registry, "ls")
        finally:
            slow.send_signal(signal.SIGCONT)
    assert status == 1
    assert [line.split()[0] for line in output.splitlines()] == ["VM", "alpha", "slow"]
    assert errors.startswith(f"virtserial ls: VM 'slow' (process {slow.pid}): no QMP greeting in 3 s")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{module_folder}/c0")


def test_names_alone_are_for_scripts(machine, registry):
    assert command(registry, "ls", "--names") == (0, "alpha\n", "")
    status, output, errors = command(registry, "ports", "--names")
    assert (status, errors) == (0, "")
    assert output.splitlines() == [row.split()[0] for row in command(registry, "ports")[1].splitlines()[1:]]
