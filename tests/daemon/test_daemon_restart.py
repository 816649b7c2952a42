"""`virtserial restart`: the code that is installed now, in both processes or in the worker alone."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time

import pytest
from support.device_process import connect, controller_options, port_options
from support.embedded_guest import EmbeddedGuest, jumps, try_receive, try_send
from support.places import ENVIRONMENT, ROOT
from support.waiting import PATIENCE, wait_until

from virtserial.client.qmp import QmpClient
from virtserial.host_end.ending import unread_bytes

RESTARTS = int(os.environ.get("VIRTSERIAL_RESTARTS", "5"))


@pytest.fixture(params=[(), ("--worker",)], ids=["both", "worker"])
def words(request):
    """What the command is given beside the monitor."""
    return request.param


def restart(folder, words=()):
    """Run the command; returns the finished process."""
    return subprocess.run(
        [sys.executable, "-m", "virtserial", "restart", "--monitor", f"{folder}/qmp", *words],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=40, check=False,
    )  # fmt: skip


@pytest.fixture
def device(start, folder):
    return start(
        *controller_options(folder), *port_options(folder, "a", 1), *port_options(folder, "b", 2),
        "-qmp", f"unix:{folder}/qmp,server=on,wait=off",
    )  # fmt: skip


@pytest.mark.timeout(PATIENCE * (60 + 10 * RESTARTS))
def test_restarts_in_the_middle_of_a_transfer_lose_and_double_nothing(device, folder, words):
    seed = random.randrange(1 << 30)
    data = random.Random(seed).randbytes(16 << 20)
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest, connect(folder / "a") as host:
        host.setblocking(False)
        received = guest.open("a")
        guest.run_until(lambda: received.port.host_connected)
        sent = given = restarts = 0
        taken = bytearray()
        command, workers = None, [device.worker]
        limit = time.monotonic() + PATIENCE * (50 + 9 * RESTARTS)
        while restarts < RESTARTS or len(taken) < len(data) or len(received.data) < len(data):
            assert guest.failure is None, f"seed {seed}: {guest.failure}; {device.log}"
            assert received.port.host_connected, "the guest has seen the host leave"
            assert time.monotonic() < limit, f"seed {seed}: {restarts} restarts, {len(taken)}, {len(received.data)}"
            end = len(data) * (restarts + 1) // (RESTARTS + 1)
            sent += received.port.write(data[sent : min(sent + 20_000, end)]) if sent < end else 0
            given += try_send(host, data[given : min(given + 20_000, end)])
            taken += try_receive(host)
            guest.loop.run_once(timeout=0.001)
            if command is None and restarts < RESTARTS:
                command = subprocess.Popen(
                    [sys.executable, "-m", "virtserial", "restart", "--monitor", f"{folder}/qmp", *words],
                    env=ENVIRONMENT, stdout=subprocess.DEVNULL,
                )  # fmt: skip
            elif command is not None and command.poll() is not None:
                assert command.returncode == 0
                command, restarts = None, restarts + 1
                workers.append(device.worker)
        received.port.close()
    assert taken == data, f"seed {seed}: {jumps(data, taken)}"
    assert received.data == data, f"seed {seed}: {jumps(data, received.data)}"
    assert len(set(workers)) == RESTARTS + 1
    assert device.log == ""


def test_keeper_and_worker_run_the_code_that_is_installed_now(start, folder):
    code = folder / "code"
    shutil.copytree(ROOT / "src" / "virtserial", code / "virtserial")
    environment = {**os.environ, "PYTHONPATH": str(code)}
    device = start(
        *controller_options(folder), *port_options(folder, "a"), "-qmp", f"unix:{folder}/qmp,server=on,wait=off",
        "-qmp", f"unix:{folder}/other,server=on,wait=off", environment=environment,
    )  # fmt: skip
    about = code / "virtserial" / "version.py"
    about.write_text(about.read_text().replace('__version__ = "', '__version__ = "1000.'))
    with QmpClient(f"{folder}/other", 30) as before, EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        assert "1000." not in before.execute("query-version")["package"]
        worker = device.worker
        done = restart(folder)
        assert done.stdout == (
            f"keeper {device.pid} runs the code that is installed now\n"
            f"worker {worker} is replaced by {device.worker}\n"
        )
        assert "1000." in before.execute("query-version")["package"]
        assert before.execute("x-virtserial-query")["keeper-version"].startswith("1000.")
        guest.check_port("a", folder / "a")
    assert device.stop() == 0
    assert not list(folder.glob("*.sock"))


def test_monitors_serve_on_when_the_installed_code_is_gone(start, folder):
    code = folder / "code"
    shutil.copytree(ROOT / "src" / "virtserial", code / "virtserial")
    environment = {**os.environ, "PYTHONPATH": str(code), "VIRTSERIAL_REGISTRY": f"{folder}/vms"}
    options = [*controller_options(folder), "-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
    device = start(*options, "-v", "-v", environment=environment)
    place = {"addr": {"type": "unix", "data": {"path": f"{folder}/added"}}, "wait": False}
    backends = {
        "null": {}, "ringbuf": {}, "pty": {}, "file": {"out": f"{folder}/out"}, "hub": {"chardevs": ["null"]},
        "socket": place,
    }  # fmt: skip
    with QmpClient(f"{folder}/qmp", 30) as monitor:
        device.wait_for_log("the code that this process may need later has been read")
        shutil.rmtree(code)
        for kind, data in backends.items():
            monitor.execute("chardev-add", {"id": kind, "backend": {"type": kind, "data": data}})
        with QmpClient(f"{folder}/vms/{device.pid}.qmp", 30) as other:
            assert other.execute("x-virtserial-query")["keeper-pid"] == device.pid


def test_new_worker_runs_the_code_that_is_installed_now(device, folder):
    worker = device.worker
    done = restart(folder, ["--worker"])
    assert done.returncode == 0, done.stderr
    assert device.worker != worker
    assert done.stdout == f"worker {worker} is replaced by {device.worker}\n"
    # It was not copied from the keeper: another program was executed.
    with open(f"/proc/{device.worker}/cmdline", "rb") as file:
        assert b"run_spawned" in file.read()
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        guest.check_port("b", folder / "b")


def test_code_that_cannot_start_changes_nothing(start, folder, words):
    code = folder / "code"
    shutil.copytree(ROOT / "src" / "virtserial", code / "virtserial")
    environment = {**os.environ, "PYTHONPATH": str(code)}
    device = start(
        *controller_options(folder), *port_options(folder, "a"), "-qmp", f"unix:{folder}/qmp,server=on,wait=off",
        environment=environment,
    )  # fmt: skip
    worker = device.worker
    broken = code / "virtserial" / "daemon" / "worker" / "worker.py"
    source = broken.read_text()
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        broken.write_text("raise ImportError('half installed')\n")
        refused = restart(folder, words)
        assert refused.returncode == 1
        why = "the new worker was not taken: it ended before it was ready" if words else "ImportError: half installed"
        assert why in refused.stderr, device.log
        assert device.worker == worker
        guest.check_port("a", folder / "a", 10_000)
        state = code / "virtserial" / "memory" / "state.py"
        broken.write_text(source)
        state.write_text(state.read_text().replace("VERSION = ", "VERSION = 1000 + "))
        refused = restart(folder, words)
        assert ("it keeps its state in another form" if words else "kept in another form") in refused.stderr
        assert device.worker == worker
        guest.check_port("a", folder / "a", 10_000)


def test_worker_killed_while_its_successor_starts_is_replaced_all_the_same(device, folder, words):
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest:
        worker = device.worker
        command = subprocess.Popen(
            [sys.executable, "-m", "virtserial", "restart", "--monitor", f"{folder}/qmp", *words],
            env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        device.kill_worker()
        command.wait(40)
        device.wait_for_new_worker(worker)
        guest.check_port("a", folder / "a", 50_000)
        assert len(device.children()) == 1


def test_console_output_that_waits_for_its_host_goes_to_the_successor(start, folder, words):
    device = start(
        *controller_options(folder),
        "-chardev", f"socket,id=c,path={folder}/c,server=on,wait=off",
        "-device", "virtconsole,bus=ser0.0,nr=1,chardev=c,name=c",
        "-qmp", f"unix:{folder}/qmp,server=on,wait=off",
    )  # fmt: skip
    text = random.randbytes(8 << 20)
    with EmbeddedGuest(folder / "ser0.sock", "c") as guest, connect(folder / "c") as host:
        received = guest.open("c")
        # What a console writes before its host is there is discarded.
        host.sendall(b"here")
        guest.run_until(lambda: received.data == b"here")
        sent = 0

        def all_written():
            nonlocal sent
            # The host does not read: what its socket does not take is kept, up to 64 KiB.
            sent += received.port.write(text[sent : sent + 16384])
            guest.run_until(received.port.flushed)
            return sent - unread_bytes(host.fileno()) >= 30_000

        guest.run_until(all_written)
        assert restart(folder, words).returncode == 0
        wait_until(lambda: device.worker is not None)
        host.setblocking(False)
        taken = bytearray()

        def all_taken():
            nonlocal taken
            taken += try_receive(host)
            return len(taken) >= sent

        guest.run_until(all_taken)
        assert taken == text[:sent]
