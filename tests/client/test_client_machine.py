"""The client library and the programs on a device and driver without a VM: the real processes, the real monitor."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
from support.places import ENVIRONMENT, SOURCE
from support.waiting import wait_until

from virtserial.client import HostStream, Monitor
from virtserial.client.qmp import QmpClient
from virtserial.errors import ConfigError, PeerError
from virtserial.monitor.qmp import QmpError

WAIT = 60


def program(*words, command=(sys.executable, "-m", "virtserial"), **more):
    environment = ENVIRONMENT
    return subprocess.Popen(
        [*command, *words], env=environment,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **more},
    )  # fmt: skip


def finish(process):
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def test_monitor_tells_of_ports_and_their_ends(machine):
    with Monitor(machine.qmp) as monitor:
        console, none, port = sorted(monitor.ports(), key=lambda port: port.id or "in the middle")
    assert (console.id, console.is_console, console.host_end.split("/")[0]) == ("console0", True, "pty:")
    assert (none.id, none.name, none.chardev, none.host_end) == ("", "org.example.none", "", "")
    assert (port.id, port.name, port.chardev) == ("port0", "org.example.0", "c0")
    assert (port.host_connected, port.guest_open) == (False, False)
    assert port.host_end.startswith(f"unix:{machine.folder}/host")


def test_guest_s_open_state_is_followed(machine):
    guest = HostStream(machine.guest)
    with Monitor(machine.qmp) as monitor, HostStream(machine.host) as host:
        assert host.wait_connected(WAIT)
        assert guest.wait_connected(WAIT)
        assert monitor.wait_guest("org.example.0", True, WAIT)
        assert monitor.find_port("port0").guest_open
        threading.Timer(0.3, guest.close).start()
        assert monitor.wait_guest("org.example.0", False, WAIT)
        assert not monitor.wait_guest("org.example.0", True, 0.2)


def test_monitor_s_errors(machine, folder):
    with Monitor(machine.qmp) as monitor:
        with pytest.raises(ConfigError, match="no port is named 'nobody'"):
            monitor.find_port("nobody")
        with pytest.raises(ConfigError, match="has neither an id nor a chardev"):
            monitor.wait_guest("org.example.none")
        with pytest.raises(QmpError, match="The command bogus has not been found") as refused:
            monitor.execute("bogus")
        assert refused.value.error_class == "CommandNotFound"
    with pytest.raises(ConfigError, match="No such file"):
        Monitor(f"unix:{folder}/nothing")


def test_ports_of_a_monitor_for_programs_and_scripts(machine):
    status, output, errors = finish(program("ports", "--monitor", machine.qmp, "--json"))
    assert (status, errors) == (0, "")
    told = json.loads(output)
    assert "org.example.0" in [port["name"] for port in told]
    names = finish(program("ports", "--monitor", machine.qmp, "--names"))[1].splitlines()
    assert names[: len(told)] == [port["name"] or port["id"] or port["chardev"] for port in told]


def test_port_without_an_id_is_waited_for(machine):
    path = f"unix:{machine.folder}/run/virtio-ports/org.example.anonymous"
    address = {"type": "inet", "data": {"host": "127.0.0.1", "port": "0"}}
    with Monitor(machine.qmp) as monitor, HostStream(path) as guest:
        monitor("chardev-add", id="c2", backend={"type": "socket", "data": {"addr": address}})
        monitor("device_add", driver="virtserialport", name="org.example.anonymous", chardev="c2")
        host = HostStream(monitor.find_port("org.example.anonymous").host_end)
        assert host.wait_connected(WAIT)
        assert guest.wait_connected(WAIT)
        assert monitor.wait_guest("org.example.anonymous", True, WAIT)
        threading.Timer(0.3, guest.close).start()
        assert monitor.wait_guest("org.example.anonymous", False, WAIT)
        assert not monitor.wait_guest("org.example.anonymous", True, 0.5)
        host.close()


def test_monitor_that_does_not_answer_is_given_up(folder):
    commands = [("ports",), ("restart",), ("save", "FILE"), ("console", "name"), ("send", "name", "/dev/null")]
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{folder}/silent")
        silent.listen()
        began = time.monotonic()
        said = f"virtserial: monitor {folder}/silent: no QMP greeting in 3 s; does it serve another client?\n"
        for process in [program(*words, "--monitor", f"{folder}/silent") for words in commands]:
            assert finish(process) == (1, "", said), process.args
            assert time.monotonic() - began >= 3


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9.2\r\n", b"[1]\n", b"[" * 100_000 + b"\n"])
def test_what_is_no_monitor_is_named(folder, said):
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(said)
        with pytest.raises(PeerError, match="not QMP"):
            QmpClient(ours)


def test_tree_is_sent_by_name_through_device_and_driver(machine, tmp_path):
    (tmp_path / "from" / "in").mkdir(parents=True)
    (tmp_path / "from" / "in" / "large").write_bytes(os.urandom(3 << 20))
    (tmp_path / "from" / "script").write_text("#!/bin/sh\n")
    sender = program("send", "org.example.0", "--monitor", machine.qmp, f"{tmp_path}/from")
    receiver = program("receive", machine.guest, f"{tmp_path}/to")
    assert finish(sender)[0] == 0
    status, output, errors = finish(receiver)
    assert (status, output) == (0, "")
    assert errors.startswith("received 2 files, 3.0 MiB in ")
    assert subprocess.run(["diff", "-r", tmp_path / "from", tmp_path / "to" / "from"]).returncode == 0


def test_killed_receiver_s_successor_goes_on(machine, tmp_path):
    (tmp_path / "large").write_bytes(os.urandom(40 << 20))
    sender = program("send", machine.host, f"{tmp_path}/large")
    receiver = program("receive", machine.guest, f"{tmp_path}/to")
    parts = tmp_path / "to" / ".virtserial-partial"
    wait_until(lambda: parts.exists() and any(part.stat().st_size > 5 << 20 for part in parts.iterdir()))
    receiver.send_signal(signal.SIGKILL)
    finish(receiver)
    assert finish(program("receive", "-q", machine.guest, f"{tmp_path}/to")) == (0, "", "")
    status, _, errors = finish(sender)
    assert status == 0
    assert "connected again, going on" in errors
    assert (tmp_path / "to" / "large").read_bytes() == (tmp_path / "large").read_bytes()
    assert os.listdir(tmp_path / "to") == ["large"]


@pytest.mark.parametrize("other", ["send", "log"])
def test_a_sender_and_whom_it_has_met_both_notice_that_nobody_receives(machine, tmp_path, other):
    (tmp_path / "file").write_text("a line\n")
    here = program("send", machine.host, f"{tmp_path}/file", "--timeout", "120")
    words = [f"{tmp_path}/file"] if other == "send" else ["--from", f"{tmp_path}/file"]
    there = program(other, machine.guest, *words, "--timeout", "120")
    partner = "receive" if other == "send" else "log-collect"
    for end, met, wanted in ((here, other, "receive"), (there, "send", partner)):
        status, _, errors = finish(end)
        assert status == 1
        assert f"the other end is 'virtserial/{met}', not virtserial/{wanted}" in errors


def test_nobody_at_the_other_end(machine, tmp_path):
    status, output, errors = finish(program("receive", machine.host, f"{tmp_path}/to", "--timeout", "0.5"))
    assert (status, output, errors) == (1, "", f"virtserial receive: {machine.host}: nobody answered in 0.5 s\n")
    assert os.listdir(tmp_path / "to") == []


def test_failed_file_is_an_exit_status_of_one(machine, tmp_path):
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "way out").symlink_to("/etc/passwd")
    (tmp_path / "from" / "file").write_text("good")
    sender = program("send", "-q", machine.host, f"{tmp_path}/from/")
    receiver = program("receive", "-q", machine.guest, f"{tmp_path}/to")
    said = "way out: the symbolic link leads out of the folder\n"
    assert finish(receiver) == (1, "", said)
    assert finish(sender) == (1, "", f"{tmp_path}/from/{said}")
    assert os.listdir(tmp_path / "to") == ["file"]


def test_ports_prints_a_table(machine):
    status, output, errors = finish(program("ports", "--monitor", machine.qmp))
    assert (status, errors) == (0, "")
    heading, *rows = output.splitlines()
    assert heading.split() == ["NR", "NAME", "ID", "KIND", "GUEST", "HOST", "HOST", "END"]
    assert sorted(row.split()[2:6] for row in rows) == [
        ["-", "port", "?", "-"], ["console0", "console", "open", "connected"], ["port0", "port", "closed", "away"]
    ]  # fmt: skip


def has(file, text):
    return file.exists() and file.read_bytes() == text


def test_example_of_a_clipboard_is_the_same_on_both_sides(machine, tmp_path):
    example = SOURCE.parent / "examples" / "clipboard.py"
    here, there = tmp_path / "here", tmp_path / "there"
    sides = [
        program(port, "--file", str(file), command=(sys.executable, str(example)))
        for port, file in ((machine.host, here), (machine.guest, there))
    ]
    try:
        for one, other in ((here, there), (there, here), (here, there)):
            # What was copied before the two have found each other is not shared: copy until it is.
            for patience in range(1, 60):
                text = f"copy {patience} from {one.name} ".encode() * 10000
                one.write_bytes(text)
                is_there = partial(has, other, text)
                with contextlib.suppress(AssertionError):
                    wait_until(is_there, patience / 5)
                    break
            assert other.read_bytes() == text
    finally:
        for side in sides:
            side.kill()
            finish(side)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("send", "unix:/nowhere", "/no/such/file"), "virtserial send: /no/such/file: there is no such file\n"),
        (("send", "unix:/nowhere", "/etc/hosts", "/etc/../etc/hosts"), "virtserial send: hosts: more than one of the "
                                                                      "paths would arrive under this name\n"),
        (("receive", "unix:/nowhere", "/proc/no"), "virtserial receive: /proc/no: No such file or directory\n"),
        (("log", "/no/socket"), "virtserial: /no/socket: No such file or directory\nvirtserial: `virtserial ports` "
                                "lists ports by name; unix:PATH waits for a socket that does not exist yet\n"),
        (("ports", "--monitor", "/no/qmp"), "virtserial: monitor /no/qmp: No such file or directory\nvirtserial: "
                                            "a process listens there if it has -qmp unix:/no/qmp,server=on,wait=off\n"),
    ],
)  # fmt: skip
def test_words_that_lead_nowhere(words, said):
    assert finish(program(*words)) == (1, "", said)
