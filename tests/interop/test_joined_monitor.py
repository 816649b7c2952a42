"""QEMU's monitor and ours as one, on a real QEMU without a guest."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import tempfile

import pytest
from support.device_process import holds
from support.guests.joined_qemu import keeper, qemu_without_a_guest
from support.serving import Client, QmpClient
from support.waiting import wait_until

PROMPT = b"(qemu) "


class Machine:
    """A running pair."""

    def __init__(self, joined, qemu):
        self.joined, self.qemu = joined, qemu
        self.folder = joined.folder

    def qmp(self, name="qmp", **options):
        return contextlib.closing(QmpClient(f"{self.folder}/{name}", **options))

    def hmp(self):
        client = Client(f"{self.folder}/hmp")
        client.until(PROMPT)
        return contextlib.closing(client)


@contextlib.contextmanager
def running():
    with socket_folder() as folder, keeper([
        *("-device", "virtio-serial,id=ser0,max_ports=4", "-chardev", "ringbuf,id=ring"),
        *("-device", "virtserialport,id=p1,nr=1,name=first,chardev=ring"),
        *("-qmp", f"unix:{folder}/qmp,server=on,wait=off", "-qmp", f"unix:{folder}/other,server=on,wait=off"),
        *("-monitor", f"unix:{folder}/hmp,server=on,wait=off"),
    ]) as joined, qemu_without_a_guest(joined, "-device", "qemu-xhci,id=usb") as qemu:  # fmt: skip
        machine = Machine(joined, qemu)
        machine.folder = folder
        yield machine


@contextlib.contextmanager
def socket_folder():
    with tempfile.TemporaryDirectory(prefix="vs-") as path:
        yield path


@pytest.fixture(scope="module")
def machine():
    with running() as machine:
        yield machine


@pytest.fixture
def qmp(machine):
    with machine.qmp() as client:
        yield client


@pytest.fixture
def hmp(machine):
    with machine.hmp() as client:
        yield client


def typed(hmp, line):
    """What a line of HMP prints."""
    hmp.send(line.encode() + b"\n")
    return hmp.until(PROMPT).decode().rpartition("\x1b[K\r\n")[2].removesuffix("(qemu) ")


def unix_server(path):
    return {"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": path}}, "server": True, "wait": False}}


NULL = {"type": "null", "data": {}}


# One monitor


def test_greeting_and_version_are_qemus(qmp):
    version = qmp("query-version")
    assert qmp.greeting["QMP"]["version"] == version
    assert version["qemu"]["major"] >= 10
    assert "virtserial" not in version["package"]


def test_requests_of_both_kinds_are_answered_in_order_with_their_ids(qmp):
    requests = [
        {"execute": command, "arguments": arguments, "id": {"n": number}}
        for number, (command, arguments) in enumerate([
            ("query-status", {}), ("ringbuf-write", {"device": "ring", "data": "x"}), ("query-chardev", {}),
            ("nope", {}), ("ringbuf-read", {"device": "ring", "size": 5}), ("query-name", {}),
            ("device_del", {"id": "nope"}), ("qom-get", {"path": "/machine/peripheral/p1", "property": "nr"}),
            ("query-status", {}),
        ] * 4)
    ]  # fmt: skip
    qmp.send(b"".join(json.dumps(request).encode() for request in requests) + b"{]\n")
    answers = [qmp.answer() for _ in requests]
    assert [answer["id"]["n"] for answer in answers] == list(range(len(requests)))
    assert [answer["return"] for answer in answers[7::9]] == [1] * 4
    assert [answer["error"]["class"] for answer in answers[6::9]] == ["DeviceNotFound"] * 4
    assert "JSON parse error" in qmp.answer()["error"]["desc"]


def test_out_of_band_passes_those_that_wait(machine):
    with machine.qmp(capabilities=["oob"]) as qmp:
        os.kill(machine.qemu.pid, signal.SIGSTOP)
        try:
            for number in range(8):
                qmp.send(b'{"execute": "query-status", "id": %d}' % number)
            assert qmp.ask({"exec-oob": "chardev-remove", "id": "oob"}) == {
                "id": "oob",
                "error": {"class": "GenericError", "desc": "The command chardev-remove does not support OOB"},
            }
        finally:
            os.kill(machine.qemu.pid, signal.SIGCONT)
        assert [qmp.answer()["id"] for _ in range(8)] == list(range(8))
        assert qmp.ask({"exec-oob": "query-yank", "id": 1}) == {"id": 1, "return": []}
        assert qmp.ask({"exec-oob": "query-status"})["error"]["desc"] == "The command query-status does not support OOB"


def test_a_qemu_that_does_not_answer_blocks_nobody_else(machine, qmp):
    with machine.qmp("other") as other:
        os.kill(machine.qemu.pid, signal.SIGSTOP)
        try:
            other.send(b'{"execute": "query-status", "id": 1}')
            assert qmp("ringbuf-write", device="ring", data="abc") == {}
        finally:
            os.kill(machine.qemu.pid, signal.SIGCONT)
        assert other.answer()["id"] == 1


def test_a_client_that_leaves_takes_its_answer_with_it(machine):
    with machine.qmp() as first:
        first.send(b'{"execute": "query-qmp-schema", "id": "first"}')
    with machine.qmp() as second:
        assert second.ask({"execute": "query-status", "id": "second"})["id"] == "second"


def test_what_is_between_us_and_qemu_is_hidden(qmp, hmp):
    for shown in (
        qmp("query-chardev"), qmp("qom-list", path="/chardevs"), qmp("qom-list", path="/machine/peripheral"),
        typed(hmp, "info chardev"), qmp("human-monitor-command", command_line="info chardev"),
    ):  # fmt: skip
        assert "virtserial-" not in str(shown)
        assert "ring" in str(shown) or "ser0" in str(shown)


def test_events_of_both_reach_every_client_with_qemus_timestamps(machine, qmp):
    with machine.qmp("other") as other:
        qmp("cont")
        qmp("stop")
        for name in ("RESUME", "STOP"):
            assert qmp.event(name) == other.event(name)
        qmp("device_add", driver="virtserialport", id="p2")
        answer = qmp.ask({"execute": "device_del", "arguments": {"id": "p2"}})
        assert answer == {"return": {}}
        deleted = {"device": "p2", "path": "/machine/peripheral/p2"}
        assert qmp.event("DEVICE_DELETED")["data"] == other.event("DEVICE_DELETED")["data"] == deleted


def test_objects_of_both_are_in_one_tree(qmp):
    listed = {entry["name"]: entry["type"] for entry in qmp("qom-list", path="/machine/peripheral")}
    assert listed["ser0"] == "child<virtio-serial-pci>"
    assert listed["p1"] == "child<virtserialport>"
    assert listed["rp1"] == "child<pcie-root-port>"
    assert {entry["name"] for entry in qmp("qom-list", path="/chardevs")} >= {"type", "ring"}
    names = {entry["name"] for entry in qmp("qom-list", path="/machine/peripheral/ser0")}
    assert names >= {"max_ports", "vectors", "addr", "multifunction"}
    assert len(names) == len(qmp("qom-list", path="/machine/peripheral/ser0"))
    assert qmp("qom-get", path="/machine/peripheral/ser0", property="max_ports") == 4
    addresses = [qmp("qom-get", path=path, property="addr") for path in ("ser0", "/machine/peripheral/ser0")]
    assert addresses[0] == addresses[1]
    assert qmp("qom-get", path="/machine/peripheral/p1", property="name") == "first"
    assert qmp("qom-get", path="/machine/peripheral/rp1", property="chassis") == 1
    assert qmp("qom-list", path="/")


def test_what_would_lose_the_devices_state_is_refused(qmp):
    for command in ("xen-save-devices-state", "xen-load-devices-state"):
        answer = qmp.ask({"execute": command, "arguments": {"filename": "/dev/null"}})
        assert answer["error"]["desc"].startswith(f"{command} is not supported by virtserial: the state of the")


REFUSED_CAPABILITIES = ["postcopy-ram", "x-ignore-shared"]


@pytest.mark.parametrize("capability", REFUSED_CAPABILITIES)
def test_ways_to_migrate_that_cannot_be_right_are_refused_before_anything_stops(qmp, hmp, capability):
    before = qmp("query-status")
    qmp("migrate-set-capabilities", capabilities=[{"capability": capability, "state": True}])
    try:
        answer = qmp.ask({"execute": "migrate", "arguments": {"uri": "exec:cat >/dev/null"}})
        text = f"migrate with capability {capability} is not supported by virtserial: "
        assert answer["error"]["desc"].startswith(text)
        assert text in typed(hmp, "migrate exec:cat")
    finally:
        qmp("migrate-set-capabilities", capabilities=[{"capability": capability, "state": False}])
    assert qmp("query-migrate") == {}
    assert qmp("query-status") == before


# Errors: the table of QEMU's texts

TAKEN = "Property 'virtserialport.chardev' can't take value 'ring': chardev 'ring' is already in use"
PORT = {"driver": "virtserialport"}
ERRORS = [
    ("device_add", {**PORT, "nr": 4}, "virtio-serial-bus: Out-of-range port id specified, max. allowed: 3"),
    ("device_add", {**PORT, "nr": 1}, "virtio-serial-bus: A port already exists at id 1"),
    ("device_add", {**PORT, "name": "first"}, "virtio-serial-bus: A port already exists by name first"),
    ("device_add", {**PORT, "nr": 0}, "Port number 0 on virtio-serial devices reserved for virtconsole devices for "
                                      "backward compatibility."),
    ("device_add", {**PORT, "bus": "foo.0"}, "Bus 'foo.0' not found"),
    ("device_add", {**PORT, "chardev": "zz"}, "Property 'virtserialport.chardev' can't find value 'zz'"),
    ("device_add", {**PORT, "chardev": "ring"}, TAKEN),
    ("device_add", {**PORT, "id": "p1"}, "Duplicate device ID 'p1'"),
    ("device_add", {**PORT, "id": "rp1"}, "Duplicate device ID 'rp1'"),
    ("device_add", {"driver": "usb-mouse", "id": "p1"}, "Duplicate device ID 'p1'"),
    ("device_add", {"driver": "virtio-serial-pci", "bus": "rp2", "max_ports": 0},
     "Maximum number of serial ports not specified"),
    ("device_add", {"driver": "virtio-serial-pci", "bus": "rp2", "max_ports": 512}, "maximum ports supported: 511"),
    ("device_add", {"driver": "virtio-serial-pci", "id": "ser0", "bus": "rp2"}, "Duplicate device ID 'ser0'"),
    ("device_add", {"driver": "virtio-serial-pci", "id": "usb", "bus": "rp2"}, "Duplicate device ID 'usb'"),
    ("device_add", {"driver": "virtio-serial-pci", "bus": "nowhere"}, "Bus 'nowhere' not found"),
    ("device_add", {"driver": "nonsense"}, "'nonsense' is not a valid device model name"),
    ("device_add", {}, "Parameter 'driver' is missing"),
    ("device_add", {"driver": "usb-serial", "chardev": "ring"},
     "Property 'usb-serial.chardev' can't take value 'ring': chardev 'ring' is already in use"),
    ("device_del", {"id": "nope"}, "Device 'nope' not found"),
    ("chardev-remove", {"id": "ring"}, "Chardev 'ring' is busy"),
    ("chardev-remove", {"id": "zz"}, "Chardev 'zz' not found"),
    ("chardev-change", {"id": "zz", "backend": NULL}, "Chardev 'zz' does not exist"),
    ("chardev-add", {"id": "ring", "backend": NULL}, "Chardev with id 'ring' already exists"),
    ("chardev-add", {"id": "x", "backend": {"type": "nonsense", "data": {}}},
     "Parameter 'type' does not accept value 'nonsense'"),
    ("ringbuf-read", {"device": "zz", "size": 1}, "Device 'zz' not found"),
    ("qom-get", {"path": "/machine/peripheral/p1", "property": "zz"}, "Property 'virtserialport.zz' not found"),
    ("qom-list", {"path": "/machine/zz"}, "Device '/machine/zz' not found"),
    ("query-nonsense", {}, "The command query-nonsense has not been found"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "arguments", "text"), ERRORS, ids=[text[:60] for *_, text in ERRORS])
def test_error_text(qmp, command, arguments, text):
    before = qmp("query-chardev"), qmp("qom-list", path="/machine/peripheral")
    assert qmp.error(command, **arguments)[1] == text
    assert (qmp("query-chardev"), qmp("qom-list", path="/machine/peripheral")) == before


def test_a_controller_with_msi_x_is_not_deleted(machine, qmp):
    assert "QEMU aborts the virtual machine" in qmp.error("device_del", id="ser0")[1]
    assert "QEMU aborts the virtual machine" in qmp.error("device_del", id="/machine/peripheral/ser0")[1]
    assert machine.qemu.poll() is None


# Chardevs from hand to hand


def test_a_chardev_goes_to_qemus_device_and_comes_back(machine, qmp):
    path = f"{machine.folder}/hand"
    qmp("chardev-add", id="hand", backend=unix_server(path))
    qmp("device_add", driver="usb-serial", id="line", chardev="hand")
    filenames = {entry["label"]: entry["filename"] for entry in qmp("query-chardev")}
    assert filenames["hand"] == f"disconnected:unix:{path},server=on"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        wait_until(lambda: f"unix:{path},server=on" in str(qmp("query-chardev")).replace("disconnected:", ""))
    text = "Property 'virtserialport.chardev' can't take value 'hand': chardev 'hand' is already in use"
    assert qmp.error("device_add", driver="virtserialport", chardev="hand")[1] == text
    assert qmp.error("chardev-add", id="hand", backend=NULL)[1] == "Chardev with id 'hand' already exists"
    assert qmp.error("chardev-remove", id="hand")[1] == "Chardev 'hand' is busy"
    qmp("device_del", id="line")
    assert qmp.event("DEVICE_DELETED")["data"]["device"] == "line"
    qmp("device_add", driver="virtserialport", id="p3", chardev="hand")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        wait_until(lambda: f"'filename': 'unix:{path},server=on'" in str(qmp("query-chardev")))
    qmp("device_del", id="p3")
    qmp("chardev-remove", id="hand")
    assert not os.path.exists(path)


def test_a_chardev_of_a_kind_that_only_qemu_has(qmp):
    qmp("chardev-add", id="vc0", backend={"type": "vc", "data": {}})
    assert "QEMU's own" in qmp.error("device_add", driver="virtserialport", chardev="vc0")[1]
    assert qmp.error("chardev-add", id="vc0", backend=NULL)[1] == "Chardev with id 'vc0' already exists"
    qmp("device_add", driver="usb-serial", id="line", chardev="vc0")
    qmp("device_del", id="line")
    # QEMU lets go of the chardev when the device's memory is reclaimed, a moment after the answer.
    wait_until(lambda: "return" in qmp.ask({"execute": "chardev-remove", "arguments": {"id": "vc0"}}))


def test_a_chardev_with_options_that_only_qemu_has(machine, qmp, hmp):
    backend = unix_server(f"{machine.folder}/tn")
    backend["data"]["tn3270"] = True
    qmp("chardev-add", id="tn", backend=backend)
    assert "QEMU's own" in qmp.error("device_add", driver="virtserialport", chardev="tn")[1]
    qmp("chardev-remove", id="tn")
    assert typed(hmp, f"chardev-add socket,id=tn,path={machine.folder}/tn,server=on,wait=off,tn3270=on") == ""
    assert typed(hmp, "chardev-remove tn") == ""


def test_hmp_hands_over_too(machine, hmp):
    assert typed(hmp, f"chardev-add socket,id=h,path={machine.folder}/h,server=on,wait=off") == ""
    assert typed(hmp, "chardev-add null,id=h") == "Error: Duplicate ID 'h' for chardev\r\n"
    assert typed(hmp, "device_add usb-serial,id=line,chardev=h") == ""
    assert "h: filename=disconnected:unix:" in typed(hmp, "info chardev")
    assert typed(hmp, "device_del line") == ""
    wait_until(lambda: "line" not in typed(hmp, "info qtree -b"))
    assert typed(hmp, "device_add virtserialport,id=p3,chardev=h") == ""
    assert 'dev: virtserialport, id "p3"' in typed(hmp, "info qtree -b")
    assert typed(hmp, "device_del p3") == typed(hmp, "chardev-remove h") == ""


# Descriptors


def test_a_descriptor_by_name_for_a_chardev_of_ours(qmp):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        qmp("getfd", fds=[theirs.fileno()], fdname="line")
        backend = {"type": "socket", "data": {"addr": {"type": "fd", "data": {"str": "line"}}, "server": False}}
        qmp("chardev-add", id="fdline", backend=backend)
        assert qmp.error("closefd", fdname="line")[1] == "File descriptor named 'line' not found"
        qmp("chardev-remove", id="fdline")


def test_a_descriptor_by_name_for_qemu(machine, qmp):
    ours, theirs = socket.socketpair()
    with ours:
        inode = os.fstat(theirs.fileno()).st_ino
        qmp("getfd", fds=[theirs.fileno()], fdname="net")
        theirs.close()
        assert holds(machine.joined.process.pid, inode)
        qmp("netdev_add", type="stream", id="n0", addr={"type": "fd", "str": "net"})
        assert "n0" in qmp("human-monitor-command", command_line="info network")
        assert holds(machine.qemu.pid, inode)
        assert not holds(machine.joined.process.pid, inode)
        qmp("netdev_del", id="n0")
        qmp("closefd", fdname="net")  # It is QEMU's now, which has kept it.
        ours.settimeout(60)
        assert ours.recv(1) == b""
        assert qmp.error("closefd", fdname="net")[1] == "File descriptor named 'net' not found"


def test_descriptor_sets_are_of_both(machine, qmp):
    read, write = os.pipe()
    try:
        added = qmp("add-fd", fds=[write], opaque="x")
        sets = qmp("query-fdsets")
        assert [entry["fdset-id"] for entry in sets] == [added["fdset-id"]]
        assert sets[0]["fds"] == [{"fd": added["fd"], "opaque": "x"}]
        path = f"/dev/fdset/{added['fdset-id']}"
        qmp("chardev-add", id="set", backend={"type": "file", "data": {"out": path}})
        qmp("chardev-remove", id="set")
        assert qmp.error("remove-fd", **{"fdset-id": added["fdset-id"], "fd": added["fd"] + 1000})[0] == "GenericError"
        qmp("remove-fd", fdset_id=added["fdset-id"], fd=added["fd"])
        assert qmp("query-fdsets") == []
        os.close(write)
        write = -1
        os.set_blocking(read, False)
        wait_until(lambda: ended(read))
    finally:
        for fd in (read, write):
            if fd >= 0:
                os.close(fd)


def ended(fd):
    try:
        return os.read(fd, 1) == b""
    except BlockingIOError:
        return False


# Objects


def test_memory_is_made_such_that_it_can_be_shared(qmp, hmp):
    qmp("object-add", **{"qom-type": "memory-backend-ram", "id": "more", "size": 1 << 20})
    assert qmp("qom-get", path="/objects/more", property="type") == "memory-backend-memfd"
    assert qmp("qom-get", path="/objects/more", property="share") is True
    assert qmp("object-del", id="more") == {}
    assert typed(hmp, "object_add memory-backend-ram,id=more,size=1M") == ""
    assert qmp("qom-get", path="/objects/more", property="type") == "memory-backend-memfd"
    assert typed(hmp, "object_del more") == ""


# HMP


def test_help_completion_and_info_are_of_the_whole(hmp):
    assert "balloon target -- request VM" in typed(hmp, "help balloon")
    shown = typed(hmp, "help")
    assert "device_add" in shown
    assert "balloon" in shown
    hmp.send(b"ballo\t")
    hmp.until(b"balloon ")
    hmp.send(b"\x15info regi\t")
    hmp.until(b"info registers ")
    hmp.send(b"\x15device_del p\t")
    hmp.until(b"device_del p1 ")
    hmp.send(b"\x15\n")
    hmp.until(PROMPT)
    assert typed(hmp, "nonsense").strip() == "unknown command: 'nonsense'"
    assert typed(hmp, "info status").startswith("VM status: paused")
    tree = typed(hmp, "info qtree")
    controller = tree.index('dev: vfio-user-pci, id "ser0"')
    assert controller < tree.index("bus: ser0.0") < tree.index('dev: virtserialport, id "p1"') < tree.index('id "rp')


def test_objects_and_ring_buffers_of_ours(qmp, hmp):
    assert "p1 (child<virtserialport>)" in typed(hmp, "qom-list /machine/peripheral")
    assert typed(hmp, "qom-get p1 name") == '"first"\r\n'
    assert typed(hmp, "qom-get /machine/peripheral/rp1 chassis") == "1\r\n"
    assert typed(hmp, "qom-get zz chassis") == "Error: Device 'zz' not found\r\n"
    assert typed(hmp, "ringbuf_read ring 1000") is not None
    assert typed(hmp, 'ringbuf_write ring "a b"') == ""
    qmp("ringbuf-write", device="ring", data="\x1d\\")
    assert typed(hmp, "ringbuf_read ring 10") == "a b\\u001D\\\\\r\n"
    assert typed(hmp, "ringbuf_read zz 10") == "Error: Device 'zz' not found\r\n"
    qmp("chardev-add", id="other", backend={"type": "ringbuf", "data": {"size": 16}})
    qmp("device_add", driver="usb-serial", id="line", chardev="other")
    assert typed(hmp, "ringbuf_write other text") == ""
    assert typed(hmp, "ringbuf_read other 10") == "text\r\n"
    qmp("device_del", id="line")
    wait_until(lambda: "error" not in qmp.ask({"execute": "chardev-remove", "arguments": {"id": "other"}}))


def test_a_flood_out_of_band_is_held_back(machine):
    with machine.qmp(capabilities=["oob"]) as qmp:
        os.kill(machine.qemu.pid, signal.SIGSTOP)
        try:
            qmp.socket.setblocking(False)
            sent = 0
            with pytest.raises(BlockingIOError):
                while sent < 64 << 20:
                    sent += qmp.socket.send(b'{"exec-oob": "query-yank", "id": "%s"}' % (b"x" * 4000))
        finally:
            os.kill(machine.qemu.pid, signal.SIGCONT)
    with machine.qmp() as qmp:
        assert qmp("query-status")


def test_the_cpu_is_kept_for_a_session(machine, hmp):
    assert typed(hmp, "cpu 7") == "invalid CPU index\r\n"
    assert typed(hmp, "cpu 0") == ""
    assert "CPU#0" in typed(hmp, "info registers")


def test_lines_that_were_typed_ahead_wait_for_their_turn(hmp):
    hmp.send(b"info status\ndevice_add virtserialport,id=ahead\ninfo name\ndevice_del ahead\ninfo kvm\n")
    shown = b"".join(hmp.until(PROMPT) for _ in range(5)).decode()
    assert shown.index("VM status") < shown.index("device_del ahead") < shown.index("kvm support")
    assert "Error" not in shown


# Controllers at run time, as far as it goes without a guest


def test_a_controller_that_is_added_has_a_bus_at_once(machine, qmp):
    qmp("device_add", driver="virtio-serial-pci", id="ser1", bus="rp1", max_ports=2)
    assert qmp("qom-get", path="ser1", property="vectors") == 3
    assert qmp("qom-get", path="ser1", property="unplug") == "on"
    assert qmp("qom-get", path="ser1", property="type") == "virtio-serial-pci"
    qmp("device_add", driver="virtserialport", id="q1")
    assert qmp("qom-get", path="q1", property="parent_bus") == "/machine/peripheral/ser1/ser1.0"
    _, text = qmp.error("device_add", driver="virtio-serial-pci", id="ser2", bus="rp1")
    assert text.startswith("PCI: slot 0 function 0")
    assert "vfio-user" not in text.partition("already")[0]
    names = {entry["name"] for entry in qmp("qom-list", path="/machine/peripheral")}
    assert "ser1" in names
    assert "ser2" not in names
    qmp("device_del", id="q1")


def test_a_controller_with_packed_rings_is_ours(qmp):
    qmp("device_add", driver="virtio-serial-pci", id="packed", bus="rp2", packed=True)
    assert qmp("qom-get", path="packed", property="packed") is True
    qmp("device_add", driver="virtserialport", id="on-packed")  # The controller that was added last.
    assert qmp("qom-get", path="on-packed", property="parent_bus") == "/machine/peripheral/packed/packed.0"
    qmp("device_del", id="on-packed")


# A chardev that a monitor of ours and a device of QEMU's share


def test_a_multiplexer_for_a_monitor_and_a_device_of_qemus():
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(socket_folder())
        options = [
            *("-device", "virtio-serial,id=ser0", "-chardev", f"socket,id=s,path={folder}/s,server=on,wait=off,mux=on"),
            *("-mon", "chardev=s", "-qmp", f"unix:{folder}/qmp,server=on,wait=off"),
        ]
        joined = stack.enter_context(keeper(options, fronts=["front/s/0"]))
        qemu = stack.enter_context(qemu_without_a_guest(joined, "-device", "isa-debugcon,chardev=front0,iobase=0x402"))
        with contextlib.closing(QmpClient(f"{folder}/qmp")) as qmp, contextlib.closing(Client(f"{folder}/s")) as client:
            qmp("cont")
            client.until(b"SeaBIOS (version")  # The firmware's own words, through QEMU's debug port.
            client.send(b"\x01c")
            client.until(b"monitor - type 'help' for more information\r\n(qemu) ")
            client.send(b"info status\n")
            client.until(b"VM status: running")
            client.send(b"\x01x")
            client.until(b"QEMU: Terminated")
        assert qemu.wait(60) == 0
        assert joined.process.wait(60) == 0


# The end


def test_quit_ends_all_after_what_qemu_has_to_say():
    with running() as machine:
        with machine.qmp() as one, machine.qmp("other") as other, machine.hmp() as hmp:
            assert one("quit") == {}
            for client in (one, other):
                assert client.event("SHUTDOWN")["data"] == {"guest": False, "reason": "host-qmp-quit"}
                assert client.at_end()
            assert hmp.at_end()
        assert machine.joined.process.wait(60) == 0
        assert machine.qemu.wait(60) == 0


def test_a_qemu_that_is_killed_takes_the_keeper_with_it():
    with running() as machine, machine.qmp() as client:
        machine.qemu.kill()
        assert client.at_end()
        assert machine.joined.process.wait(60) == 0


def test_hmp_quit():
    with running() as machine, machine.hmp() as hmp:
        hmp.send(b"quit\n")
        assert hmp.at_end()
        assert machine.qemu.wait(60) == 0
        assert machine.joined.process.wait(60) == 0
