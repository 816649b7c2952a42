"""`virtserial serve` as a service of a real systemd: restarted and reloaded under a driver that moves data."""

from __future__ import annotations

import random
import shutil
import sys
import time

import pytest
from support import systemd_manager
from support.device_process import connect, controller_options, port_options
from support.embedded_guest import EmbeddedGuest, jumps, try_receive, try_send
from support.places import ROOT
from support.waiting import wait_until

from virtserial.client.qmp import QmpClient
from virtserial.errors import VirtserialError

pytestmark = pytest.mark.skipif(systemd_manager.why_not() is not None, reason=str(systemd_manager.why_not()))
UNIT = "device.service"


@pytest.fixture
def systemd(folder):
    manager = systemd_manager.SystemdManager(folder)
    yield manager
    manager.close()


def write_unit(systemd, folder, source, *options, without=None):
    """The service, with lines of the packaged one: for this, and of its hardening what leaves files alone."""
    packaged = (ROOT / "packaging" / "systemd" / "virtserial@.service").read_text().splitlines()
    kept = (
        "Type=", "Restart", "KillMode=", "FileDescriptorStoreMax=", "ExecReload=", "TimeoutStopSec=", "LimitNOFILE=",
        "CapabilityBoundingSet=", "AmbientCapabilities=", "NoNewPrivileges=", "LockPersonality=", "SystemCall",
        "MemoryDenyWriteExecute=", "ProtectProc=", "UMask=", "RestrictSUIDSGID=",
    )  # fmt: skip
    lines = [line for line in packaged if line.startswith(kept) and line != without]
    words = " ".join(f"'{word}'" for word in options)
    (systemd.units / UNIT).write_text(
        "\n".join(
            [
                "[Unit]\nDefaultDependencies=no\n[Service]",
                f"Environment=PYTHONPATH={source}",
                f"ExecStart={sys.executable} -m virtserial serve {words}",
                f"StandardOutput=append:{folder}/log\nStandardError=append:{folder}/log",
                *lines,
            ]
        )
    )
    systemd("daemon-reload")


@pytest.fixture
def served(systemd, folder):
    """The service runs: two ports and a monitor, from a copy of the code."""
    code = folder / "code"
    shutil.copytree(ROOT / "src" / "virtserial", code / "virtserial")
    options = [*controller_options(folder), *port_options(folder, "a", 1), *port_options(folder, "b", 2)]
    options += ["-qmp", f"unix:{folder}/qmp,server=on,wait=off", "--allow-path", str(folder)]
    write_unit(systemd, folder, code, *options)
    systemd("start", UNIT)
    return code


def test_a_monitor_adds_sockets_in_the_folder_that_is_allowed(served, folder):
    """The unit's RestrictSUIDSGID= takes openat2 away."""
    address = {"type": "unix", "data": {"path": f"{folder}/added"}}
    backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
    with QmpClient(f"{folder}/qmp") as monitor:
        monitor.execute("chardev-add", {"id": "added", "backend": backend})
    assert (folder / "added").is_socket()


def log(folder):
    return (folder / "log").read_text()


def pump(guest, command):
    """The guest goes on while systemctl runs."""
    guest.run_until(lambda: command.poll() is not None, 60)
    assert command.returncode == 0


def test_restarts_and_reloads_lose_and_double_nothing(systemd, served, folder):
    data = random.randbytes(8 << 20)
    verbs = ["restart", "reload", "restart", "reload", "restart"]
    pids = [systemd.property(UNIT, "MainPID")]
    with EmbeddedGuest(folder / "ser0.sock", "a", "b") as guest, connect(folder / "a") as host:
        host.setblocking(False)
        received = guest.open("a")
        guest.run_until(lambda: received.port.host_connected)
        sent = given = 0
        taken = bytearray()
        command = None
        waiting = list(verbs)
        limit = time.monotonic() + 100
        while waiting or command is not None or len(taken) < len(data) or len(received.data) < len(data):
            assert guest.failure is None, f"{guest.failure}; {log(folder)}"
            assert received.port.host_connected, "the guest has seen the host leave"
            assert time.monotonic() < limit, f"{waiting}, {len(taken)}, {len(received.data)}: {log(folder)}"
            end = len(data) * (len(verbs) - len(waiting) + 1) // (len(verbs) + 1)
            sent += received.port.write(data[sent : min(sent + 20_000, end)]) if sent < end else 0
            given += try_send(host, data[given : min(given + 20_000, end)])
            taken += try_receive(host)
            guest.loop.run_once(timeout=0.001)
            if command is None and waiting and min(len(taken), len(received.data)) > end - 100_000:
                command = systemd.start(waiting.pop(0), UNIT)
            elif command is not None and command.poll() is not None:
                assert command.returncode == 0
                command = None
                pids.append(systemd.property(UNIT, "MainPID"))
        received.port.close()
    assert taken == data, jumps(data, taken)
    assert received.data == data, jumps(data, received.data)
    assert len(set(pids)) == 1 + verbs.count("restart")
    assert systemd.property(UNIT, "NFileDescriptorStore") == "0"


def test_a_stop_is_none_and_what_was_left_is_gone(systemd, served, folder):
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        pump(guest, systemd.start("restart", UNIT))
        guest.check_port("a", folder / "a", 10_000)
        with QmpClient(f"{folder}/qmp", 30) as monitor:
            assert monitor.execute("x-virtserial-query")["keeper-restarts"] == 1
    systemd("stop", UNIT)
    assert not {"ser0.sock", "a", "b", "qmp"} & {path.name for path in folder.iterdir()}
    systemd("start", UNIT)
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        guest.check_port("a", folder / "a", 10_000)
        with QmpClient(f"{folder}/qmp", 30) as monitor:
            assert monitor.execute("x-virtserial-query")["keeper-restarts"] == 0


def test_restart_with_other_options_keeps_the_machine_and_says_so(systemd, served, folder):
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        others = [*controller_options(folder, "other"), *port_options(folder, "c", bus="other")]
        write_unit(systemd, folder, served, *others)
        pump(guest, systemd.start("restart", UNIT))
        guest.check_port("a", folder / "a", 10_000)
    assert "the options have changed" in log(folder)
    systemd("stop", UNIT)
    systemd("start", UNIT)
    with EmbeddedGuest(folder / "other.sock", "c") as guest:
        guest.check_port("c", folder / "c", 10_000)


def test_without_a_store_a_restart_is_a_stop_and_a_start(systemd, served, folder):
    systemd("stop", UNIT)
    options = [*controller_options(folder), *port_options(folder, "a")]
    write_unit(systemd, folder, served, *options, without="FileDescriptorStoreMax=1")
    systemd("start", UNIT)
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        systemd("restart", UNIT)
        with pytest.raises(VirtserialError):
            guest.run_until(lambda: False)
    assert "has no FileDescriptorStoreMax=" in log(folder)
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        guest.check_port("a", folder / "a", 10_000)


def test_new_code_that_cannot_read_what_was_left_parts_from_the_vmm_and_serves_anew(systemd, served, folder):
    handover = served / "virtserial" / "daemon" / "keeper" / "handover.py"
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        handover.write_text(handover.read_text().replace("VERSION = 2", "VERSION = 1001"))
        systemd("restart", UNIT)
        with pytest.raises(VirtserialError):
            guest.run_until(lambda: False)
    wait_until(lambda: "this process begins anew" in log(folder))
    with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
        guest.check_port("a", folder / "a", 10_000)
