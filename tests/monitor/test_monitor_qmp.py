"""QMP sessions with `virtserial serve`: the answers, errors and events of QEMU 11.1.3."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket

import pytest
from support.device_process import resident
from support.serving import Client, QmpClient, serve
from support.waiting import wait_until

from virtserial.monitor.json_stream import MAX_BYTES

NULL = {"type": "null", "data": {}}
GENERIC = "GenericError"


def unix_server(path):
    return {"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": path}}, "wait": False}}


def test_greeting_and_negotiation(served, folder):
    client = Client(f"{folder}/qmp")
    greeting = json.loads(client.until(b"\r\n"))["QMP"]
    assert greeting["version"]["qemu"]["major"] == 11
    assert greeting["capabilities"] == ["oob"]
    for request, expected in (
        ({"execute": "query-version"}, "Expecting capabilities negotiation with 'qmp_capabilities'"),
        ({"execute": "qmp_capabilities", "arguments": {"enable": ["x"]}}, "Parameter 'null' does not accept value 'x'"),
        ({"execute": "qmp_capabilities"}, None),
        ({"execute": "qmp_capabilities"}, "Capabilities negotiation is already complete, command ignored"),
    ):
        client.send(json.dumps(request).encode())
        answer = json.loads(client.until(b"\r\n"))
        assert answer.get("error", {}).get("desc") == expected
    client.close()


@pytest.mark.parametrize(
    ("request_", "error_class", "text"),
    [
        ({"execute": "foo", "id": "x"}, "CommandNotFound", "The command foo has not been found"),
        ({"foo": 1}, GENERIC, "QMP input member 'foo' is unexpected"),
        ({"execute": 5}, GENERIC, "QMP input member 'execute' must be a string"),
        ({"execute": "query-version", "arguments": 5}, GENERIC, "QMP input member 'arguments' must be an object"),
        ({"execute": "query-version", "arguments": {"x": 1}}, GENERIC, "Parameter 'x' is unexpected"),
        ([1], GENERIC, "QMP input must be a JSON object"),
        ({"id": 3}, GENERIC, "QMP input lacks member 'execute'"),
        ({"exec-oob": "query-status"}, GENERIC, "QMP input member 'exec-oob' is unexpected"),
    ],
)
def test_requests_that_are_none(qmp, request_, error_class, text):
    answer = qmp.ask(request_)
    assert answer["error"] == {"class": error_class, "desc": text}
    assert answer.get("id") == (request_.get("id") if isinstance(request_, dict) else None)


def test_out_of_band(served, folder):
    client = QmpClient(f"{folder}/qmp", ["oob"])
    answer = client.ask({"exec-oob": "query-status", "id": 1})
    assert answer == {"error": {"class": GENERIC, "desc": "The command query-status does not support OOB"}, "id": 1}
    answer = client.ask({"execute": "query-status", "exec-oob": "a", "id": 2})
    assert answer["error"]["desc"] == "QMP input member 'execute' clashes with 'exec-oob'"
    client.close()


def test_what_can_be_asked(qmp):
    assert qmp("query-status") == {"status": "running", "running": True}
    assert "virtserial" in qmp("query-version")["package"]
    commands = {command["name"] for command in qmp("query-commands")}
    assert {"device_add", "chardev-change", "qmp_capabilities", "quit"} <= commands
    assert {"name": "VSERPORT_CHANGE"} in qmp("query-events")
    assert {"name": "ringbuf"} in qmp("query-chardev-backends")
    names = {each["name"] for each in qmp("device-list-properties", typename="virtserialport")}
    assert names == {"nr", "name", "chardev"}
    assert qmp.error("device-list-properties", typename="zz") == ("DeviceNotFound", "Device 'zz' not found")


DEVICE_ERRORS = [
    ({"driver": "zz"}, "'zz' is not a valid device model name"),
    ({}, "Parameter 'driver' is missing"),
    ({"driver": "virtserialport", "bus": "foo.0"}, "Bus 'foo.0' not found"),
    ({"driver": "virtserialport", "id": "p1"}, "Duplicate device ID 'p1'"),
    ({"driver": "virtserialport", "id": "1p"}, "Invalid qdev ID '1p'"),
    (
        {"driver": "virtserialport", "chardev": "c0"},
        "Property 'virtserialport.chardev' can't take value 'c0': chardev 'c0' is already in use",
    ),
    (
        {"driver": "virtserialport", "chardev": "compat_monitor0"},
        "Property 'virtserialport.chardev' can't take value 'compat_monitor0': "
        "chardev 'compat_monitor0' is already in use",
    ),
    ({"driver": "virtserialport", "chardev": "zz"}, "Property 'virtserialport.chardev' can't find value 'zz'"),
    ({"driver": "virtserialport", "name": "org.a"}, "virtio-serial-bus: A port already exists by name org.a"),
    ({"driver": "virtserialport", "nr": 1}, "virtio-serial-bus: A port already exists at id 1"),
    ({"driver": "virtserialport", "nr": 9}, "virtio-serial-bus: Out-of-range port id specified, max. allowed: 3"),
    (
        {"driver": "virtserialport", "nr": 0},
        "Port number 0 on virtio-serial devices reserved for virtconsole devices for backward compatibility.",
    ),
    ({"driver": "virtserialport", "nr": "2"}, "Parameter 'nr' expects uint64"),
    ({"driver": "virtserialport", "nr": -5}, "Parameter 'nr' expects uint32_t"),
    ({"driver": "virtserialport", "name": 5}, "Invalid parameter type for 'name', expected: string"),
    ({"driver": "virtserialport", "foo": 2}, "Property 'virtserialport.foo' not found"),
    ({"driver": "virtio-serial-pci", "max_ports": 0}, "Maximum number of serial ports not specified"),
    ({"driver": "virtio-serial-pci", "max_ports": 512}, "maximum ports supported: 511"),
]


@pytest.fixture
def plugged(qmp):
    qmp("chardev-add", id="c0", backend=NULL)
    qmp("device_add", driver="virtserialport", id="p1", chardev="c0", name="org.a", nr=1)
    return qmp


def test_devices_that_cannot_be_are_refused_in_qemus_words(plugged):
    for arguments, text in DEVICE_ERRORS:
        assert plugged.error("device_add", **arguments) == (GENERIC, text)
    assert plugged.error("device_del", id="nope") == ("DeviceNotFound", "Device 'nope' not found")
    assert plugged.error("device_del") == (GENERIC, "Parameter 'id' is missing")


def test_no_bus(folder):
    with serve("-qmp", f"unix:{folder}/qmp,server=on,wait=off"):
        client = QmpClient(f"{folder}/qmp")
        text = "No 'virtio-serial-bus' bus found for device 'virtserialport'"
        assert client.error("device_add", driver="virtserialport") == (GENERIC, text)
        client("device_add", driver="virtio-serial-pci", id="ser7", socket=f"{folder}/late")
        assert os.path.exists(f"{folder}/late")
        client("device_add", driver="virtserialport", bus="ser7.0", id="p")
        client.close()


def test_a_full_bus(qmp):
    for _ in range(3):
        qmp("device_add", driver="virtserialport")
    text = "virtio-serial-bus: Out-of-range port id specified, max. allowed: 3"
    assert qmp.error("device_add", driver="virtserialport") == (GENERIC, text)


def test_unplugging_is_told_to_every_client_after_the_answer(plugged, folder):
    plugged.send(b'{"execute": "device_del", "arguments": {"id": "p1"}}')
    assert plugged.message() == {"return": {}}
    event = plugged.event("DEVICE_DELETED")
    assert event["data"] == {"device": "p1", "path": "/machine/peripheral/p1"}
    assert abs(event["timestamp"]["seconds"] - os.stat(f"{folder}/qmp").st_ctime) < 60
    plugged("chardev-remove", id="c0")
    plugged("device_add", driver="virtserialport", id="p1", name="org.a", nr=1)
    plugged("device_del", id="/machine/peripheral/p1")


CHARDEV_ERRORS = [
    ("chardev-add", {}, "Parameter 'id' is missing"),
    ("chardev-add", {"id": "a"}, "Parameter 'backend' is missing"),
    ("chardev-add", {"id": "a", "backend": 5}, "Invalid parameter type for 'backend', expected: object"),
    ("chardev-add", {"id": "a", "backend": {}}, "Parameter 'backend.type' is missing"),
    ("chardev-add", {"id": "a", "backend": {"type": 5}}, "Invalid parameter type for 'backend.type', expected: string"),
    ("chardev-add", {"id": "a", "backend": {"type": "z", "data": {}}}, "Parameter 'type' does not accept value 'z'"),
    ("chardev-add", {"id": "a", "backend": {"type": "null"}}, "Parameter 'backend.data' is missing"),
    (
        "chardev-add",
        {"id": "a", "backend": {"type": "null", "data": {"x": 1}}},
        "Parameter 'backend.data.x' is unexpected",
    ),
    ("chardev-add", {"id": 5, "backend": NULL}, "Invalid parameter type for 'id', expected: string"),
    ("chardev-add", {"id": "c0", "backend": NULL}, "Chardev with id 'c0' already exists"),
    (
        "chardev-add",
        {"id": "rb", "backend": {"type": "ringbuf", "data": {"size": 1000}}},
        "Failed to add chardev 'rb': size of ringbuf chardev must be power of two",
    ),
    (
        "chardev-add",
        {"id": "f", "backend": {"type": "file", "data": {"out": "/nonexistent/x"}}},
        "Failed to add chardev 'f': Could not open '/nonexistent/x': No such file or directory",
    ),
    (
        "chardev-add",
        {"id": "s", "backend": {"type": "socket", "data": {"addr": {"type": "fd", "data": {"str": "nofd"}}}}},
        "Failed to add chardev 's': File descriptor named 'nofd' has not been found",
    ),
    (
        "chardev-add",
        {"id": "s", "backend": {"type": "socket", "data": {"addr": {"type": "unix", "data": {}}}}},
        "Parameter 'backend.data.addr.data.path' is missing",
    ),
    ("chardev-remove", {"id": "zz"}, "Chardev 'zz' not found"),
    ("chardev-remove", {"id": "c0"}, "Chardev 'c0' is busy"),
    ("chardev-remove", {"id": "compat_monitor0"}, "Chardev 'compat_monitor0' is busy"),
    ("chardev-send-break", {"id": "zz"}, "Chardev 'zz' not found"),
    ("chardev-change", {"id": "zz", "backend": NULL}, "Chardev 'zz' does not exist"),
    (
        "chardev-change",
        {"id": "compat_monitor0", "backend": NULL},
        "Chardev user does not support chardev hotswap",
    ),
    ("ringbuf-read", {"device": "zz", "size": 3}, "Device 'zz' not found"),
    ("ringbuf-read", {"device": "c0", "size": 3}, "c0 is not a ringbuf device"),
    ("ringbuf-write", {"device": "c0", "data": "x"}, "c0 is not a ringbuf device"),
    ("ringbuf-read", {"device": "c0", "size": 1.5}, "Invalid parameter type for 'size', expected: integer"),
    ("ringbuf-read", {"device": "c0", "size": 3, "format": "x"}, "Parameter 'format' does not accept value 'x'"),
    ("getfd", {"fdname": "x"}, "No file descriptor supplied via SCM_RIGHTS"),
    ("closefd", {"fdname": "x"}, "File descriptor named 'x' not found"),
    ("add-fd", {}, "No file descriptor supplied via SCM_RIGHTS"),
    ("remove-fd", {"fdset-id": 1}, "File descriptor named 'fdset-id:1' not found"),
    ("remove-fd", {"fdset-id": 1, "fd": 4}, "File descriptor named 'fdset-id:1, fd:4' not found"),
    ("qom-list", {"path": ""}, "Path '' is ambiguous"),
    ("qom-get", {"path": "p1", "property": "zz"}, "Property 'virtserialport.zz' not found"),
    ("human-monitor-command", {}, "Parameter 'command-line' is missing"),
]


def test_chardev_and_other_commands_are_refused_in_qemus_words(plugged):
    for command, arguments, text in CHARDEV_ERRORS:
        assert plugged.error(command, **arguments) == (GENERIC, text)


def test_chardevs_come_change_and_go(qmp, folder):
    assert qmp("chardev-add", id="p", backend={"type": "pty", "data": {}})["pty"].startswith("/dev/pts/")
    assert qmp("chardev-change", id="p", backend=unix_server(f"{folder}/s")) == {}
    shown = {each["label"]: each for each in qmp("query-chardev")}
    assert shown["p"] == {"label": "p", "filename": f"disconnected:unix:{folder}/s,server=on", "frontend-open": False}
    assert shown["compat_monitor0"]["frontend-open"] is True
    error = qmp.error("chardev-change", id="p", backend={"type": "file", "data": {"out": "/nonexistent/x"}})
    assert error == (GENERIC, "Could not open '/nonexistent/x': No such file or directory")
    assert os.path.exists(f"{folder}/s"), "the present back end stays"
    qmp("chardev-remove", id="p")
    assert not os.path.exists(f"{folder}/s")


def test_ringbuf(qmp):
    qmp("chardev-add", id="rb", backend={"type": "ringbuf", "data": {}})
    qmp("ringbuf-write", device="rb", data="hello")
    assert qmp("ringbuf-read", device="rb", size=3) == "hel"
    assert qmp("ringbuf-read", device="rb", size=30, format="base64") == base64.b64encode(b"lo").decode()
    assert qmp.error("ringbuf-read", device="rb", size=0) == (GENERIC, "size must be greater than zero")
    error = qmp.error("ringbuf-write", device="rb", data="!!", format="base64")
    assert error == (GENERIC, "Base64 data contains invalid characters")


def test_objects(plugged):
    children = {each["name"]: each["type"] for each in plugged("qom-list", path="/machine/peripheral")}
    assert children == {"type": "string", "ser0": "child<virtio-serial-pci>", "p1": "child<virtserialport>"}
    for name, value in (("nr", 1), ("name", "org.a"), ("chardev", "c0"), ("type", "virtserialport")):
        assert plugged("qom-get", path="p1", property=name) == value
    assert plugged("qom-get", path="/machine/peripheral/ser0", property="max_ports") == 4
    assert plugged.error("qom-list", path="/zz") == ("DeviceNotFound", "Device '/zz' not found")


def test_descriptors(qmp, folder):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        qmp("getfd", fdname="line", fds=[theirs.fileno()])
        backend = {"type": "socket", "data": {"addr": {"type": "fd", "data": {"str": "line"}}, "server": False}}
        qmp("chardev-add", id="c", backend=backend)
        error = qmp.error("closefd", fdname="line")
        assert error == (GENERIC, "File descriptor named 'line' not found"), "the chardev has it now"
    with open(f"{folder}/file", "wb") as file:
        added = qmp("add-fd", fdset_id=7, opaque="x", fds=[file.fileno()])
    assert added["fdset-id"] == 7
    assert qmp("query-fdsets") == [{"fdset-id": 7, "fds": [{"fd": added["fd"], "opaque": "x"}]}]
    qmp("chardev-add", id="f", backend={"type": "file", "data": {"out": "/dev/fdset/7"}})
    qmp("remove-fd", fdset_id=7)
    assert qmp("query-fdsets") == []
    error = qmp.ask({"execute": "getfd", "arguments": {"fdname": "1x"}}, [1])["error"]["desc"]
    assert error == "Parameter 'fdname' expects a name not starting with a digit"


def test_descriptors_do_not_leak(served, qmp):
    def count():
        return len(os.listdir(f"/proc/{served.pid}/fd"))

    before = count()
    for _ in range(20):
        qmp("query-status", fds=[0] * 8)
    qmp("getfd", fdname="a", fds=[0])
    qmp.close()
    wait_until(lambda: count() < before)


def test_quit_and_sigterm_are_told(served, folder):
    one = QmpClient(f"{folder}/qmp")
    one("human-monitor-command", command_line="info status")
    assert one("quit") == {}
    assert one.event("SHUTDOWN")["data"] == {"guest": False, "reason": "host-qmp-quit"}
    assert one.at_end()
    assert served.wait(60) == 0
    one.close()


def test_sigterm_is_told(served, qmp):
    served.send_signal(signal.SIGTERM)
    assert qmp.event("SHUTDOWN")["data"] == {"guest": False, "reason": "host-signal"}
    assert qmp.at_end()


def test_several_clients_hear_of_events(folder):
    monitors = [word for name in "ab" for word in ("-qmp", f"unix:{folder}/{name},server=on,wait=off")]
    with serve("-device", f"virtio-serial,socket={folder}/vmm", *monitors):
        one, two = QmpClient(f"{folder}/a"), QmpClient(f"{folder}/b")
        one("device_add", driver="virtserialport", id="p")
        two("device_del", id="p")
        assert one.event("DEVICE_DELETED")["data"] == two.event("DEVICE_DELETED")["data"]
        one.close()
        again = QmpClient(f"{folder}/a")
        assert again("query-status")["running"]
        again.close()
        two.close()


def test_hostile_input_costs_nothing(served, qmp):
    before = resident(served.pid)
    qmp.send(b"[" * 1_000_000 + b"\n")
    assert qmp.answer()["error"]["desc"] == "JSON nesting depth limit exceeded"
    piece = b"a" * (1 << 20)
    qmp.send(b'"')
    qmp.socket.settimeout(60)
    for _ in range(1024):
        qmp.socket.sendall(piece)
    assert qmp.answer()["error"]["desc"] == "JSON token size limit exceeded"
    qmp.send(b"\n")
    assert qmp("query-status")["running"]
    # What reading so much took at its worst; a process that has compiled its code before has most of it already.
    assert resident(served.pid) - before < 12 * MAX_BYTES


def test_a_client_that_does_not_read_is_not_waited_for(served, folder):
    with serve(
        "-qmp", f"unix:{folder}/a,server=on,wait=off", "-qmp", f"unix:{folder}/b,server=on,wait=off"
    ):
        deaf, other = QmpClient(f"{folder}/a"), QmpClient(f"{folder}/b")
        deaf.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                deaf.socket.send(b'{"execute": "query-commands"}' * 1000)
        assert other("query-status")["running"]
        deaf.close()
        other.close()


def test_pretty_and_mon_and_client_sockets(folder):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/listens")
        listener.listen()
        with serve(
            *("-chardev", f"socket,id=m,path={folder}/listens,reconnect-ms=50"),
            *("-mon", "chardev=m,mode=control,pretty=on"),
        ):
            for _ in range(2):
                client = Client(listener.accept()[0])
                assert client.until(b"\r\n").startswith(b'{\n    "QMP"')
                client.close()


def test_inherited_descriptor(folder):
    ours, theirs = socket.socketpair()
    with theirs, serve(
        "-chardev", f"socket,id=m,fd={theirs.fileno()}", "-mon", "chardev=m,mode=control", pass_fds=[theirs.fileno()]
    ):
        client = QmpClient(ours)
        assert client("query-status")["running"]
        client.close()
