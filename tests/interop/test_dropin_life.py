"""How a virtual machine of virtserial-qemu begins and ends: QEMU's pid, status, signals, files, and nothing left."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.device_process import holds
from support.guests.dropin_guest import (
    PROGRAM,
    QUIET,
    DropinGuest,
    device_processes,
    environment,
    wait_until_nothing_is_left,
)
from support.waiting import wait_until

from virtserial.client.names import find_vm_port
from virtserial.client.qmp import QmpClient
from virtserial.client.registry import running_vms
from virtserial.fleet.operations import operate

pytestmark = pytest.mark.timeout(180)
LIMIT = 60


@pytest.fixture
def folder(folder):
    yield folder
    wait_until_nothing_is_left(folder)


def run_directory(process):
    """Where the controller listens, by the words that QEMU got."""
    words = Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")
    device = next(word for word in words if '"vfio-user-pci"' in word)
    return Path(json.loads(device)["socket"]["path"]).parent


def words_with_a_port(folder):
    return shlex.split(
        f"-machine q35 -m 64 -device virtio-serial -chardev socket,id=c,path={folder}/port,server=on,wait=off "
        f"-device virtserialport,chardev=c,name=org.test -qmp unix:{folder}/qmp,server=on,wait=off"
    )


@contextmanager
def started(folder, *words, **options):
    """virtserial-qemu with these words, ended in the end."""
    process = subprocess.Popen(
        [*PROGRAM, *QUIET, *words], env=environment(folder), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, **options,
    )  # fmt: skip
    try:
        yield process
    except BaseException as error:
        process.kill()
        error.add_note(f"it said:\n{process.communicate()[1].decode()}")
        raise
    finally:
        process.kill()
        process.communicate()


def run(folder, *words, limit=LIMIT):
    done = subprocess.run(
        [*PROGRAM, *words], env=environment(folder), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=limit,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def connect(path):
    connection = socket.socket(socket.AF_UNIX)

    def connected():
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    wait_until(connected, LIMIT, f"nobody listens at {path}")
    return connection


def qmp(folder):
    return QmpClient(connect(f"{folder}/qmp"), 60)


def test_the_process_that_was_started_becomes_qemu_and_has_no_child_it_did_not_make(folder):
    with started(folder, *words_with_a_port(folder)) as process:
        monitor = qmp(folder)
        words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        assert b"virtserial.cli.qemu" not in words
        assert b"chardev:virtserial-control" in words
        assert Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text() == ""
        keeper, worker = sorted(device_processes(folder))
        fields = Path(f"/proc/{keeper}/stat").read_text().rpartition(")")[2].split()
        assert int(fields[1]) != process.pid
        assert Path(f"/proc/{keeper}/comm").read_text() == "virtserial\n"
        assert str(keeper) == Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1]
        monitor.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_to_the_whole_group_is_qemu_s_matter(folder, number):
    """As systemd and terminals send them: QEMU shuts down and says so, the device process follows it."""
    with started(folder, *words_with_a_port(folder), start_new_session=True) as process:
        monitor = qmp(folder)
        os.killpg(process.pid, number)
        assert monitor.wait_event("SHUTDOWN", LIMIT)["data"] == {"guest": False, "reason": "host-signal"}
        assert process.wait(LIMIT) == 0
        errors = process.stderr.read().decode()
        assert f"terminating on signal {int(number)}" in errors
        assert "worker" not in errors
        monitor.close()


def test_qemu_that_is_killed_takes_the_device_process_with_it(folder):
    with started(folder, *words_with_a_port(folder)) as process:
        monitor = qmp(folder)
        port = connect(f"{folder}/port")
        process.kill()
        assert process.wait(LIMIT) == -signal.SIGKILL
        assert port.recv(1) == b""
        port.close()
        monitor.close()
        wait_until_nothing_is_left(folder)
    assert not Path(folder, "port").exists()


def test_quit_ends_both_with_qemu_s_status(folder):
    with started(folder, *words_with_a_port(folder)) as process:
        monitor = qmp(folder)
        private = run_directory(process)
        assert private.stat().st_mode & 0o777 == 0o700
        monitor("quit")
        assert process.wait(LIMIT) == 0
        monitor.close()
        wait_until_nothing_is_left(folder)
        assert not private.exists()


def test_qemu_s_own_errors_are_qemu_s(folder):
    words = words_with_a_port(folder)
    status, output, errors = run(folder, *QUIET, *words, "-device", "no-such-device")
    assert (status, output) == (1, "")
    assert errors.endswith("-device no-such-device: 'no-such-device' is not a valid device model name\n")
    status, _, errors = run(folder, *QUIET, *words, "-no-such-option")
    assert status == 1
    assert "-no-such-option: " in errors
    wait_until_nothing_is_left(folder)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("-chardev file,id=f,path={folder}/none/f", "Could not open '{folder}/none/f': No such file or directory"),
        ("-device virtserialport,nr=40", "-device virtserialport,nr=40: virtio-serial-bus: Out-of-range port id"),
        ("-device virtserialport,bus=x.0", "-device virtserialport,bus=x.0: Bus 'x.0' not found"),
        ("-chardev socket,id=s,fd=300 -device virtserialport,chardev=s", "File descriptor '300' is not a socket"),
    ],
)
def test_our_errors_name_the_option_and_a_way_out_and_nothing_is_left(folder, words, text):
    status, output, errors = run(
        folder, *QUIET, *words_with_a_port(folder), *shlex.split(words.format(folder=folder))
    )
    assert (status, output) == (1, "")
    assert errors.count("\n") <= 2
    assert errors.startswith("virtserial-qemu: ")
    assert text.format(folder=folder) in errors
    wait_until_nothing_is_left(folder)
    assert sorted(os.listdir(folder)) == ["qemu-system-x86_64"]


def fake_qemu(folder, text):
    path = Path(folder, "fake")
    path.write_text(f"#!/bin/sh\necho '{text}'\n")
    path.chmod(0o755)
    return {**environment(folder), "VIRTSERIAL_QEMU": str(path)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("QEMU emulator version 10.0.7 (Debian)", "is QEMU 10.0: virtserial needs vfio-user-pci, which came with 10.1"),
        ("hello", "does not print a QEMU version"),
    ],
)
def test_qemu_that_is_too_old_or_none_gives_one_line(folder, text, expected):
    done = subprocess.run(
        [*PROGRAM, *words_with_a_port(folder)], env=fake_qemu(folder, text), capture_output=True, text=True,
        timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"virtserial-qemu: {folder}/fake {expected}\n")


def test_missing_qemu_is_said_with_a_way_out(folder):
    for setting, text in (("/no/such", "VIRTSERIAL_QEMU=/no/such: no such program"), ("x-y", "not found on PATH")):
        done = subprocess.run(
            [*PROGRAM, "-S"], env={**environment(folder), "VIRTSERIAL_QEMU": setting}, capture_output=True, text=True,
            timeout=LIMIT,
        )  # fmt: skip
        assert done.returncode == 1
        assert text in done.stderr
        assert done.stderr.splitlines()[1:] == [
            "virtserial-qemu: install QEMU 10.1 or newer, or set VIRTSERIAL_QEMU=/path/to/qemu-system-ARCH"
        ]


def test_words_that_do_not_concern_us_run_qemu_at_once(folder):
    status, output, errors = run(folder, "-version")
    assert (status, errors) == (0, "")
    assert output.startswith("QEMU emulator version")
    status, output, _ = run(folder, "-device", "virtio-serial-pci,help")
    assert status == 0
    assert "max_ports" in output


def test_daemonize_lets_its_caller_go_when_everything_listens(folder):
    words = [*words_with_a_port(folder), "-daemonize", "-pidfile", f"{folder}/pid"]
    # The pipes end only when nobody holds them any more: neither QEMU nor the device process.
    status, _, errors = run(folder, *QUIET, *words)
    assert status == 0, errors
    pid = int(Path(folder, "pid").read_text())
    try:
        port = connect(f"{folder}/port")
        monitor = qmp(folder)
        assert monitor("query-status")["status"] == "running"
        keeper = min(device_processes(folder))
        assert os.getsid(keeper) == keeper
        for process in device_processes(folder):
            assert {os.readlink(f"/proc/{process}/fd/{fd}") for fd in (0, 1, 2)} == {"/dev/null"}
        os.kill(pid, signal.SIGTERM)
        assert monitor.wait_event("SHUTDOWN", LIMIT)
        port.close()
        monitor.close()
    finally:
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), LIMIT, "QEMU stays")
    assert not Path(folder, "pid").exists()


def test_daemonize_says_where_a_pty_is_and_what_went_wrong(folder):
    words = shlex.split(f"-daemonize -pidfile {folder}/pid -machine q35 -m 64 -device virtio-serial -monitor none")
    port = shlex.split("-chardev pty,id=p -device virtserialport,chardev=p")
    status, output, errors = run(folder, *QUIET, *words, *port)
    assert status == 0, errors
    assert output.startswith("char device redirected to /dev/pts/")
    assert output.endswith(" (label p)\n")
    os.kill(int(Path(folder, "pid").read_text()), signal.SIGKILL)
    wait_until_nothing_is_left(folder)
    status, _, errors = run(folder, *QUIET, *words, "-chardev", f"pipe,id=q,path={folder}/none")
    assert status == 1
    assert errors.startswith("virtserial-qemu: ")


def test_server_with_wait_holds_qemu_back(folder):
    words = shlex.split(
        f"-machine q35 -m 64 -device virtio-serial -chardev socket,id=c,path={folder}/port,server=on "
        f"-device virtserialport,chardev=c -qmp unix:{folder}/qmp,server=on,wait=off"
    )
    with started(folder, *words) as process:
        assert b"waiting for connection" in process.stderr.readline()
        assert b"virtserial.cli.qemu" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        port = connect(f"{folder}/port")
        monitor = qmp(folder)
        assert monitor("query-status")["status"] == "running"
        port.close()
        monitor.close()


def test_start_that_waits_can_be_interrupted(folder):
    words = shlex.split(f"-device virtio-serial -chardev socket,id=c,path={folder}/port,server=on")
    with started(folder, *words) as process:
        assert b"waiting for connection" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == -signal.SIGINT
        wait_until_nothing_is_left(folder)
    assert not Path(folder, "port").exists()


def test_no_reboot_ends_qemu_when_the_guest_reboots(folder):
    with DropinGuest(["-machine", "q35", "-m", "256", "-device", "virtio-serial", "-no-reboot"]) as guest:
        guest.start("reboot -f")
        wait_until(lambda: not guest.alive, LIMIT, "QEMU goes on")
        assert "QEMU (status 0)" in guest.diagnosis()


def test_stopped_at_start_and_continued(folder):
    with started(folder, *words_with_a_port(folder), "-S") as process:
        monitor = qmp(folder)
        assert monitor("query-status")["status"] == "prelaunch"
        monitor("cont")
        assert monitor.wait_event("RESUME", LIMIT)
        assert monitor("query-status")["status"] == "running"
        assert process.poll() is None
        monitor.close()


def test_descriptors_of_qemu_s_own_words_are_qemu_s_alone(folder):
    """A stream that QEMU was given ends when QEMU closes it: nobody else holds it."""
    ours, theirs = socket.socketpair()
    words = ["-chardev", f"socket,id=q,fd={theirs.fileno()}", "-serial", "chardev:q"]
    with started(folder, *words_with_a_port(folder), *words, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        qmp(folder).close()
        process.kill()
        process.wait(LIMIT)
        ours.settimeout(60)
        while ours.recv(4096):
            pass
    ours.close()


def test_descriptors_of_our_chardevs_are_ours_alone(folder):
    ours, theirs = socket.socketpair()
    fd, inode = theirs.fileno(), os.fstat(theirs.fileno()).st_ino
    words = ["-chardev", f"socket,id=mine,fd={fd}", "-mon", "chardev=mine,mode=control"]
    with started(folder, *words_with_a_port(folder), *words, pass_fds=[fd]) as process:
        theirs.close()
        monitor = QmpClient(ours, 60)
        assert not holds(process.pid, inode)
        assert monitor("query-status")["running"] is True
        monitor.close()


def test_it_is_listed_by_qemu_s_name_while_it_runs(folder, monkeypatch):
    monkeypatch.setenv("VIRTSERIAL_REGISTRY", f"{folder}/vms")
    assert running_vms() == []
    with started(folder, *words_with_a_port(folder), "-S", "-name", "guest=alpha,debug-threads=on") as process:
        (vm,) = wait_until(running_vms, LIMIT)
        assert vm.name == "alpha"
        assert vm.pid in device_processes(folder)
        port = wait_until(lambda: find_vm_port("alpha/org.test"), LIMIT)
        assert (port.host_end, port.clients) == (f"unix:{folder}/port,server=on", 0)
        wait_until(lambda: vm.inventory()["controllers"][0]["vmm"], LIMIT)
        # An operator of the fleet restarts what can be: its keeper ends with QEMU.
        wait_until(lambda: not vm.inventory()["changing"], LIMIT)
        asyncio.run(operate(vm, None, "restart", b'{"keeper": true}'))
        wait_until(lambda: vm.inventory()["upgrades"] == 1, LIMIT)
        process.kill()
        wait_until(lambda: running_vms() == [])
    wait_until(lambda: os.listdir(f"{folder}/vms") == [])
