"""What runs here: entries of real keepers, and entries that lie, lead elsewhere, or were left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest
from support.serving import serve
from support.waiting import wait_until

from virtserial.client.named_stream import open_free
from virtserial.client.names import find_vm_port, ports_of
from virtserial.client.registry import find_vm, running_vms
from virtserial.errors import ConfigError, PeerError
from virtserial.monitor.qmp import QmpError
from virtserial.monitor.registry import start_time

NAME = "org.example.0"


@pytest.fixture
def registry(folder, monkeypatch):
    path = folder / "vms"
    monkeypatch.setenv("VIRTSERIAL_REGISTRY", str(path))
    return path


def machine(folder, name, *more):
    options = ["--name", name] if name else []
    return [
        *options, "-device", f"virtio-serial,id=ser-{name},socket={folder}/{name}.sock",
        "-chardev", f"socket,id=c0,path={folder}/{name}0,server=on,wait=off",
        "-device", f"virtserialport,chardev=c0,name={NAME},id=p0",
        "-chardev", "null,id=n0", "-device", "virtconsole,chardev=n0", *more,
    ]  # fmt: skip


@pytest.fixture
def keeper(folder, registry):
    with serve(*machine(folder, "alpha"), registry=registry) as process:
        yield process


def test_a_keeper_is_listed_while_it_serves(folder, registry):
    assert running_vms() == []
    with serve(*machine(folder, "alpha"), registry=registry) as process:
        (vm,) = running_vms()
        assert (vm.name, vm.pid, vm.owner) == ("alpha", process.pid, os.geteuid())
        assert stat.S_IMODE(os.stat(registry / f"{process.pid}.qmp").st_mode) == 0o600
        assert stat.S_IMODE(os.stat(registry).st_mode) == 0o700
        told = vm.inventory()
    assert [each["name"] for each in told["controllers"]] == ["ser-alpha"]
    assert os.listdir(registry) == []


def test_a_vm_without_a_name_is_called_after_its_controller(folder, registry):
    with serve("-device", f"virtio-serial,id=ser7,socket={folder}/s", registry=registry):
        assert [vm.name for vm in running_vms()] == ["ser7"]


def test_ports_are_found_by_every_name_that_they_have(keeper, folder):
    vm = find_vm("alpha")
    ports = {port.name or port.console: port for port in ports_of(vm, vm.inventory())}
    assert set(ports) == {NAME, "hvc0"}
    for word in (NAME, "p0", "c0", "1", "ser-alpha.1"):
        assert find_vm_port(f"alpha/{word}")._replace(vm=vm) == ports[NAME]
    assert find_vm_port("alpha/hvc0") == find_vm_port("alpha") == find_vm_port(f"{keeper.pid}/0") == ports["hvc0"]
    assert ports[NAME].address == f"unix:{folder}/alpha0,server=on"
    with pytest.raises(ConfigError, match="is null: it takes no connections"):
        assert ports["hvc0"].address


@pytest.mark.parametrize("speaks", ["telnet", "websocket"])
def test_a_port_that_speaks_more_than_bytes_is_refused_with_a_way_out(folder, registry, speaks):
    chardev = f"socket,id=c9,path={folder}/c9,server=on,wait=off,{speaks}=on"
    with serve(*machine(folder, "alpha", "-chardev", chardev, "-device", "virtserialport,chardev=c9,name=web"),
               registry=registry):  # fmt: skip
        with pytest.raises(ConfigError, match=f"'alpha/web' speaks {speaks}: unix:") as raised:
            assert find_vm_port("alpha/web").address
        assert raised.value.hint == f"use a {speaks} client, or a -chardev socket without {speaks}"


def test_a_client_is_counted_and_named(keeper, folder):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{folder}/alpha0")
        port = wait_until(lambda: (found := find_vm_port("alpha/p0")).clients and found)
        assert (port.clients, port.client_pid) == (1, os.getpid())
        with find_vm("alpha").connect() as monitor:
            monitor.execute("x-virtserial-disconnect", {"id": "c0"})
        client.settimeout(60)
        assert client.recv(1) == b""
    wait_until(lambda: not find_vm_port("alpha/p0").clients)
    with find_vm("alpha").connect() as monitor, pytest.raises(QmpError, match="has no client"):
        monitor.execute("x-virtserial-disconnect", {"id": "c0"})


def test_a_port_of_a_handler_is_told_with_the_others(folder, registry):
    source = folder / "echo.py"
    source.write_text("from virtserial.handler import PortHandler\n\nclass Echo(PortHandler): ...\n")
    handler = ["-chardev", f"handler,id=h0,path={source},class=Echo", "-device", "virtserialport,chardev=h0,name=echo"]
    with serve(*machine(folder, "alpha", *handler), registry=registry):
        port = find_vm_port("alpha/echo")
        assert (port.clients, port.client_pid) == (1, 0)  # no process of its own
        with pytest.raises(ConfigError, match=r"is handler:.*: it takes no connections"):
            open_free(port)


@pytest.mark.parametrize("name", ["alpa", "alpha/org.exampl.0"])
def test_the_nearest_names_are_suggested(keeper, name):
    with pytest.raises(ConfigError) as raised:
        find_vm_port(name)
    assert raised.value.hint == ("did you mean 'alpha'?" if "/" not in name else f"did you mean '{NAME}'?")


def test_two_vms_of_one_name_have_to_be_told_apart(keeper, folder, registry):
    with serve("--name", "alpha", "-device", f"virtio-serial,socket={folder}/other", registry=registry) as other:
        with pytest.raises(ConfigError, match=f"2 VMs are called 'alpha'.*{other.pid}"):
            find_vm("alpha")
        assert find_vm(str(other.pid)).pid == other.pid


def test_the_registry_s_socket_changes_no_devices(keeper):
    with find_vm("alpha").connect() as monitor:
        for command in ("quit", "device_del", "device_add", "chardev-change", "human-monitor-command"):
            with pytest.raises(QmpError, match="has not been found"):
                monitor.execute(command)
    assert keeper.poll() is None


def test_many_clients_are_served_at_once_and_more_are_turned_away(keeper):
    vm = find_vm("alpha")
    monitors = [vm.connect() for _ in range(32)]
    with pytest.raises(PeerError):
        vm.connect()
    for monitor in monitors:
        assert monitor.execute("x-virtserial-query")["keeper-pid"] == keeper.pid
        monitor.close()
    wait_until(lambda: vm.connect().close() or True)


def test_an_entry_outlives_a_restart_in_place(keeper, registry):
    subprocess.run(
        [sys.executable, "-m", "virtserial", "restart", "alpha"], check=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    (vm,) = running_vms()
    assert (vm.pid, vm.inventory()["keeper-restarts"]) == (keeper.pid, 1)


def test_what_a_killed_keeper_left_is_removed(folder, registry):
    with serve(*machine(folder, "alpha"), registry=registry) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(os.listdir(registry)) == 2
        assert running_vms() == []
        assert os.listdir(registry) == []


def test_a_keeper_that_hangs_costs_three_seconds_and_one_line(keeper):
    os.kill(keeper.pid, signal.SIGSTOP)
    begun = time.monotonic()
    try:
        with pytest.raises(PeerError, match=r"VM 'alpha' \(process \d+\): no QMP greeting in 3 s"):
            find_vm("alpha").inventory()
        assert 2.9 < time.monotonic() - begun < 30
    finally:
        os.kill(keeper.pid, signal.SIGCONT)


def write_entry(registry, process, **changed):
    registry.mkdir(mode=0o700, exist_ok=True)
    entry = {"version": 1, "pid": process, "start": start_time(process), "name": "lie", **changed}
    path = registry / f"{process}.json"
    path.write_text(json.dumps(entry))
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("changed", [{"start": 1}, {"pid": 1}, {"name": 5}, {"name": ""}, {"pid": "x"}])
def test_an_entry_that_lies_is_not_followed(registry, changed):
    write_entry(registry, os.getpid(), **changed)
    assert running_vms() == []


@pytest.mark.parametrize("text", ["", "[]", "{", '{"pid": 1}', "[" * 4000])
def test_an_entry_that_is_none_is_not_followed(registry, text):
    write_entry(registry, os.getpid()).write_text(text)
    assert running_vms() == []


def test_links_and_writable_files_are_not_followed(registry):
    path = write_entry(registry, os.getpid())
    assert len(running_vms()) == 1
    path.chmod(0o666)
    assert running_vms() == []
    path.chmod(0o600)
    os.link(path, registry / "other")
    assert running_vms() == []
    os.rename(registry / "other", path)
    os.unlink(registry / "other")
    path.rename(registry / "real")
    path.symlink_to("real")
    assert running_vms() == []


def test_a_folder_that_others_can_write_is_not_read_unless_it_is_sticky(registry):
    write_entry(registry, os.getpid())
    registry.chmod(0o777)
    assert running_vms() == []
    registry.chmod(0o1777)
    assert len(running_vms()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's file")
def test_an_entry_of_another_user_for_this_process_is_not_followed(registry):
    os.chown(write_entry(registry, os.getpid()), 4711, 4711)
    assert running_vms() == []


def test_an_entry_that_leads_to_another_process_s_socket_is_not_followed(keeper, registry):
    """The entry is true to its process, which is ours: but the socket beside it is a link to the keeper's."""
    write_entry(registry, os.getpid())
    (registry / f"{os.getpid()}.qmp").symlink_to(f"{keeper.pid}.qmp")
    with pytest.raises(PeerError, match=f"process {keeper.pid} listens in the place of {os.getpid()}"):
        find_vm("lie").connect()


def test_an_entry_without_a_socket_is_one_line(registry):
    write_entry(registry, os.getpid())
    with pytest.raises(PeerError, match="does not answer: No such file or directory"):
        find_vm("lie").connect(0.1)


def test_a_keeper_that_changes_to_newer_code_is_waited_for(registry):
    """Its socket is there, and nobody listens until the new code has begun."""
    write_entry(registry, os.getpid())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{registry}/{os.getpid()}.qmp")
        begins = threading.Timer(0.3, listener.listen)
        begins.start()
        with pytest.raises(PeerError, match="no QMP greeting"):
            find_vm("lie").connect(2)
        begins.join()
        listener.shutdown(socket.SHUT_RDWR)
        with pytest.raises(PeerError, match="does not answer: Connection refused"):
            find_vm("lie").connect(0.1)


def test_a_folder_that_cannot_be_written_does_not_stop_a_keeper(folder):
    (folder / "file").touch()
    with serve(*machine(folder, "alpha"), registry=folder / "file" / "vms") as process:
        assert process.poll() is None


@pytest.fixture
def raw(keeper, registry):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(f"{registry}/{keeper.pid}.qmp")
        stream = connection.makefile("rwb")
        assert "QMP" in json.loads(stream.readline())
        yield stream
        stream.close()


@pytest.mark.parametrize(
    "line",
    [
        "x", "[]", "5", "{}", '{"execute": 5}', '{"execute": []}', '{"execute": "quit"}', "[" * 3000,
        '{"execute": "x-virtserial-disconnect"}', '{"execute": "x-virtserial-disconnect", "arguments": 5}',
        '{"execute": "x-virtserial-resize", "arguments": {"id": "n0", "cols": "x", "rows": 1}}',
        '{"execute": "x-virtserial-resize", "arguments": {"id": "n0", "cols": 1e9, "rows": 1}}',
    ],
)  # fmt: skip
def test_a_request_that_makes_no_sense_is_an_error_and_the_next_one_is_answered(raw, line):
    raw.write(line.encode() + b'\n{"execute": "x-virtserial-query", "id": 7}\n')
    raw.flush()
    assert "error" in json.loads(raw.readline())
    answer = json.loads(raw.readline())
    assert (answer["id"], "keeper-pid" in answer["return"]) == (7, True)


def test_a_request_without_an_end_ends_the_connection_and_nothing_else(raw, keeper):
    raw.write(b"x" * 10000)
    with pytest.raises(OSError):
        raw.flush()
        assert raw.read() == b""
        raise ConnectionError
    assert find_vm("alpha").inventory()["keeper-pid"] == keeper.pid


def test_a_client_that_does_not_read_is_not_waited_for(raw, keeper):
    raw.write(b'{"execute": "x-virtserial-inventory"}\n' * 4000)
    raw.flush()
    assert find_vm("alpha").inventory()["keeper-pid"] == keeper.pid
    for _ in range(4000):
        assert "return" in json.loads(raw.readline())
