"""The daemon's life: what it says, where it listens, how it ends."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys

import pytest
from support.device_process import connect, controller_options, port_options
from support.embedded_guest import EmbeddedGuest
from support.places import ENVIRONMENT
from support.waiting import wait_for_socket, wait_until

from virtserial.daemon.keeper.run_directory import run_directory
from virtserial.vfio_user.client import Client

SERVE = [sys.executable, "-m", "virtserial", "serve"]


def files_of(folder):
    """What a device has left, beside the test's own records."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(("log", "out")))


def alive(pid):
    """Whether a process runs; one that is only not yet waited for does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_says_one_line_for_each_controller(start, folder):
    device = start(*controller_options(folder), *controller_options(folder, "ser1"))
    lines = device.announced.splitlines()
    words = [shlex.split(line) for line in lines]
    assert [word for word, _ in words] == ["-device", "-device"]
    assert [json.loads(value) for _, value in words] == [
        {"driver": "vfio-user-pci", "id": name, "socket": {"path": f"{folder}/{name}.sock", "type": "unix"}}
        for name in ("ser0", "ser1")
    ]
    assert device.log == ""


def test_line_is_quoted_for_a_shell(start, folder):
    device = start("-device", f"virtio-serial,socket={folder}/it's here")
    _, value = shlex.split(device.announced)
    assert json.loads(value)["socket"]["path"] == f"{folder}/it's here"


def test_is_ready_when_everything_listens(start, folder):
    start(*controller_options(folder), *port_options(folder, "a"))
    with connect(folder / "a"), Client(folder / "ser0.sock") as client:
        assert client.info.num_regions == 9


def test_ready_descriptor_is_closed_in_every_process(folder):
    """A pipe's reader sees its end only when no process has the other end: `select` in DeviceProcess relies on it."""
    ready, ready_at_child = os.pipe()
    with subprocess.Popen(
        [*SERVE, *controller_options(folder), "--ready-fd", str(ready_at_child)],
        env=ENVIRONMENT, pass_fds=[ready_at_child], stdout=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        os.close(ready_at_child)
        try:
            assert os.read(ready, 1) == b""
        finally:
            os.close(ready)
            process.terminate()
            assert process.wait(60) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_it_and_removes_everything(start, folder, number):
    device = start(*controller_options(folder), *port_options(folder, "a"))
    worker = device.worker
    with EmbeddedGuest(folder / "ser0.sock", "a"), connect(folder / "a"):
        assert device.stop(number) == 0
    assert not alive(worker)
    assert files_of(folder) == []
    assert device.log == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_to_the_whole_group_ends_it_as_well(start, folder, number):
    """Ctrl-C in a terminal, or systemd's KillMode=control-group, reaches keeper and worker, in any order."""
    device = start(*controller_options(folder), *port_options(folder, "a"), start_new_session=True)
    worker = device.worker
    os.kill(worker, number)
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        guest.check_port("a", folder / "a")
    assert alive(worker)
    os.killpg(device.pid, number)
    assert device.process.wait(60) == 0
    assert not alive(worker)
    assert files_of(folder) == []
    assert device.log == ""


def test_signal_ends_it_while_it_waits_for_a_host(folder):
    with subprocess.Popen(
        [*SERVE, *controller_options(folder), "-chardev", f"socket,id=c0,path={folder}/c0,server=on"],
        env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert "waiting for connection on: disconnected:unix:" in process.stderr.readline()
            process.terminate()
            assert process.wait(60) == 1
        finally:
            process.kill()
        assert process.stderr.read() == "virtserial: chardev 'c0': stopped while waiting for a connection\n"
    assert files_of(folder) == []


def test_signal_ends_it_with_a_worker_that_hangs(device, folder):
    device.kill_worker(signal.SIGSTOP)
    worker = device.worker
    assert device.stop() == 0
    assert not alive(worker)
    assert files_of(folder) == []


def test_worker_ends_when_its_keeper_is_killed(device):
    worker = device.worker
    device.process.kill()
    device.process.wait()
    wait_until(lambda: not alive(worker), complaint="the worker lives on")


def test_worker_with_a_guest_ends_when_its_keeper_is_killed(device, folder):
    worker = device.worker
    with EmbeddedGuest(folder / "ser0.sock", "a", "b"), connect(folder / "a"):
        device.process.kill()
        device.process.wait()
        wait_until(lambda: not alive(worker), complaint="the worker lives on")


def test_socket_is_for_its_owner_only(device, folder):
    assert stat.S_IMODE((folder / "ser0.sock").stat().st_mode) == 0o600


def test_stale_socket_is_replaced(start, folder):
    first = start(*controller_options(folder))
    first.process.kill()
    first.process.wait()
    assert stat.S_ISSOCK((folder / "ser0.sock").stat().st_mode)
    start(*controller_options(folder))
    Client(folder / "ser0.sock").close()


def test_socket_of_a_live_server_is_refused(device, folder):
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        second = subprocess.run(
            [*SERVE, *controller_options(folder, "ser1"), *controller_options(folder)],
            env=ENVIRONMENT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert second.returncode == 1
        assert second.stderr == (
            f"virtserial: Failed to bind socket to {folder}/ser0.sock: it is in use by a live server\n"
            "virtserial: is another server running? End it, or give another path\n"
        )
        assert second.stdout == ""
        assert files_of(folder) == ["a", "b", "ser0.sock"]
        guest.check_port("a", folder / "a")
    assert "second VMM" not in device.log


def test_file_that_is_no_socket_is_left_alone(folder):
    (folder / "ser0.sock").write_text("precious")
    refused = subprocess.run(
        [*SERVE, *controller_options(folder)], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 1
    assert "it exists and is not a socket" in refused.stderr
    assert (folder / "ser0.sock").read_text() == "precious"


def test_socket_that_another_took_over_is_not_removed(device, folder):
    (folder / "ser0.sock").unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(folder / "ser0.sock"))
        assert device.stop() == 0
        assert files_of(folder) == ["ser0.sock"]


AS_ANOTHER_USER = """
import importlib, os, pkgutil, sys
import virtserial
for module in pkgutil.walk_packages(virtserial.__path__, "virtserial."):
    # The source tree need not be readable for that user.
    if "__main__" not in module.name and "rig" not in module.name:
        importlib.import_module(module.name)
from virtserial.cli.main import main
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
sys.exit(main(sys.argv[1:]))
"""


def run_as_a_user(environment, *options):
    """`virtserial serve` as somebody who is not root: `nobody` where this is root."""
    return subprocess.Popen(
        [sys.executable, "-c", AS_ANOTHER_USER, "serve", *options],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_default_socket_is_in_the_user_s_run_directory(folder):
    runtime = folder / "run"
    runtime.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chmod(folder, 0o755)
        os.chown(runtime, 65534, 65534)
    with run_as_a_user({**ENVIRONMENT, "XDG_RUNTIME_DIR": str(runtime)}, "-device", "virtio-serial,id=ser0") as process:
        try:
            line = process.stdout.readline()
            assert f'"path":"{runtime}/virtserial/ser0.sock"' in line, process.stderr.read()
            assert stat.S_IMODE((runtime / "virtserial").stat().st_mode) == 0o700
            assert stat.S_IMODE((runtime / "virtserial" / "ser0.sock").stat().st_mode) == 0o600
        finally:
            process.terminate()
        assert process.wait(60) == 0
    assert list((runtime / "virtserial").iterdir()) == []


@pytest.mark.skipif(os.path.exists("/run/virtserial"), reason="/run/virtserial is there")
def test_run_directory_that_cannot_be_made_is_one_line():
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "XDG_RUNTIME_DIR"}
    with run_as_a_user(environment, "-device", "virtio-serial") as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == "virtserial: Could not create '/run/virtserial': Permission denied; say socket=PATH\n"
    assert output == ""


def test_folder_that_a_user_cannot_write_in_is_named():
    with run_as_a_user(ENVIRONMENT, "-device", "virtio-serial,socket=/s") as process:
        _, errors = process.communicate(timeout=60)
    way_out = "this user cannot write in /: give a path in another folder"
    assert errors == f"virtserial: Failed to bind socket to /s: Permission denied\nvirtserial: {way_out}\n"


def test_root_s_run_directory_does_not_depend_on_who_called_it(monkeypatch, folder):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    assert run_directory() == ("/run/virtserial" if os.geteuid() == 0 else f"{folder}/virtserial")


class TestStandardOutput:
    """That nobody reads what it says is no reason not to serve."""

    def check(self, process, folder):
        try:
            wait_for_socket(folder / "ser0.sock")
            Client(folder / "ser0.sock").close()
            assert process.poll() is None
        finally:
            process.terminate()
            status = process.wait(60)
        assert status == 0
        assert files_of(folder) == []

    def test_is_closed(self, folder):
        command = shlex.join([*SERVE, *controller_options(folder)])
        with subprocess.Popen(["/bin/sh", "-c", f"exec {command} >&-"], env=ENVIRONMENT) as process:
            self.check(process, folder)

    def test_and_the_others_are_closed(self, folder):
        command = shlex.join([*SERVE, *controller_options(folder)])
        with subprocess.Popen(["/bin/sh", "-c", f"exec {command} <&- >&- 2>&-"], env=ENVIRONMENT) as process:
            self.check(process, folder)

    def test_is_a_pipe_that_nobody_reads(self, folder):
        reader, writer = os.pipe()
        os.close(reader)
        with subprocess.Popen(
            [*SERVE, *controller_options(folder)], env=ENVIRONMENT, stdout=writer, stderr=subprocess.PIPE, text=True
        ) as process:
            os.close(writer)
            self.check(process, folder)
            assert process.stderr.read() == ""

    def test_is_a_full_disk(self, folder):
        with (
            open("/dev/full", "wb") as full,
            subprocess.Popen(
                [*SERVE, *controller_options(folder)], env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True
            ) as process,
        ):
            self.check(process, folder)
            assert process.stderr.read() == ""

    def test_standard_descriptors_are_never_a_socket_s(self, folder):
        """What a library prints must not reach a VMM."""
        command = shlex.join([*SERVE, *controller_options(folder)])
        with subprocess.Popen(["/bin/sh", "-c", f"exec {command} <&- >&- 2>&-"], env=ENVIRONMENT) as process:
            try:
                wait_for_socket(folder / "ser0.sock")
                Client(folder / "ser0.sock").close()
                assert {os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)} == {"/dev/null"}
            finally:
                process.terminate()


def test_ten_clients_one_after_the_other_cost_no_descriptor(device, folder):
    before = device.descriptors_at_rest(folder / "ser0.sock")
    for _ in range(10):
        with Client(folder / "ser0.sock") as client:
            client.reset()
    wait_until(lambda: device.descriptors() == before, complaint=f"{before} descriptors became {device.descriptors()}")


def test_two_devices_run_beside_each_other(start, folder):
    devices = [
        start(*controller_options(folder, name), *port_options(folder, f"port-{name}", 1, name))
        for name in ("ser0", "ser1")
    ]
    for name in ("ser0", "ser1"):
        with EmbeddedGuest(folder / f"{name}.sock", f"port-{name}") as guest:
            guest.check_port(f"port-{name}", folder / f"port-{name}", 10_000)
    assert [device.stop() for device in devices] == [0, 0]
