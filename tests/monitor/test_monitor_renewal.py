"""Clients of a monitor while the process behind it goes on with new code in its own place."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import tempfile

import pytest
from support.serving import TIMEOUT, Client, QmpClient, serve
from support.waiting import wait_until

PROMPT = b"(qemu) "


@pytest.fixture
def machine(folder):
    """QMP at `folder`/qmp, HMP at `folder`/hmp, both and a console on a multiplexed socket at `folder`/s."""
    with serve(
        *("-device", f"virtio-serial,id=ser0,max_ports=4,socket={folder}/vmm"),
        *("-qmp", f"unix:{folder}/qmp,server=on,wait=off", "-monitor", f"unix:{folder}/hmp,server=on,wait=off"),
        *("-qmp", f"unix:{folder}/control,server=on,wait=off"),
        *("-chardev", f"socket,id=s,path={folder}/s,server=on,wait=off,mux=on", "-mon", "chardev=s"),
    ) as process:
        control = QmpClient(f"{folder}/control")
        wait_until(lambda: not control("x-virtserial-query")["changing"])
        control.close()
        yield process


def renew(folder):
    """By the monitor `control`; returns its client's answer to x-virtserial-query."""
    control = QmpClient(f"{folder}/control")
    count = control("x-virtserial-query")["keeper-restarts"]
    control("x-virtserial-restart", keeper=True)
    query = wait_until(lambda: not (found := control("x-virtserial-query"))["changing"] and found, 30)
    control.close()
    assert (query["refusal"], query["keeper-restarts"]) == ("", count + 1)
    return query


def test_negotiated_client_goes_on_and_hears_events(machine, folder):
    qmp = QmpClient(f"{folder}/qmp", capabilities=["oob"])
    for number in (1, 2):
        renew(folder)
        qmp("device_add", driver="virtserialport", id=f"p{number}")
        qmp("device_del", id=f"p{number}")
        assert qmp.event("DEVICE_DELETED")["data"]["device"] == f"p{number}"
        assert qmp.ask({"exec-oob": "query-status"})["error"]["desc"].endswith("does not support OOB")
    qmp.close()
    assert machine.poll() is None


def test_client_that_has_not_yet_negotiated_does_it_later(machine, folder):
    client = Client(f"{folder}/qmp")
    client.until(b"\r\n")
    renew(folder)
    client.send(b'{"execute": "query-status"}')
    assert b"Expecting capabilities negotiation" in client.until(b"\r\n")
    client.send(b'{"execute": "qmp_capabilities"}')
    assert client.until(b"\r\n") == b'{"return": {}}\r\n'
    client.close()


@pytest.mark.parametrize("place", [1, 7, 12, 20, 29, 33, 45])
def test_request_that_came_by_half(machine, folder, place):
    qmp = QmpClient(f"{folder}/qmp")
    text = b'{"execute" :"query-chardev", "id": [1, "two"] }'
    qmp.send(text[:place])
    renew(folder)
    qmp.send(text[place:])
    answer = qmp.answer()
    assert answer["id"] == [1, "two"]
    assert {entry["label"] for entry in answer["return"]} >= {"s"}
    qmp.close()


def test_answers_that_were_not_read_yet_come(machine, folder):
    qmp = QmpClient(f"{folder}/qmp")
    qmp.send(b'{"execute": "query-commands"}')
    renew(folder)
    assert {"name": "x-virtserial-restart"} in qmp.answer()["return"]
    qmp.close()


def test_client_in_the_middle_of_what_cannot_go_over_is_let_go_and_the_next_served(machine, folder):
    """It has asked for more than it reads: what it asked for last is not yet run."""
    client = QmpClient(f"{folder}/qmp")
    with contextlib.suppress(TimeoutError):
        client.socket.settimeout(0.5)
        while True:
            client.socket.sendall(b'{"execute": "query-commands"}' * 100)
    renew(folder)
    client.socket.settimeout(TIMEOUT)
    with contextlib.suppress(ConnectionResetError):
        assert client.at_end()
    client.close()
    again = QmpClient(f"{folder}/qmp")
    again("query-status")
    again.close()


def test_descriptors_of_clients_and_sets(machine, folder):
    qmp = QmpClient(f"{folder}/qmp")
    with tempfile.TemporaryFile() as first, tempfile.TemporaryFile() as second:
        added = qmp("add-fd", fds=[first.fileno()], fdset_id=3, opaque="mine")
        qmp("getfd", fds=[second.fileno()], fdname="state")
        renew(folder)
        assert qmp("query-fdsets") == [{"fdset-id": 3, "fds": [{"fd": added["fd"], "opaque": "mine"}]}]
        qmp("chardev-add", id="f", backend={"type": "file", "data": {"out": "/dev/fdset/3"}})
        renew(folder)
        qmp("remove-fd", fdset_id=3, fd=added["fd"])
        qmp("x-virtserial-save", fdname="state")
        assert os.fstat(second.fileno()).st_size > 0
    assert qmp.error("closefd", fdname="state")[1] == "File descriptor named 'state' not found"
    qmp.close()


def test_line_and_history_of_a_person(machine, folder):
    client = Client(f"{folder}/hmp")
    client.until(PROMPT)
    client.send(b"info status\n")
    client.until(PROMPT)
    client.send(b"info charde")
    client.until(b"charde\x1b[K")
    renew(folder)
    client.send(b"v\n")
    shown = client.until(PROMPT)
    assert b"monitor - type" not in shown
    assert b"filename=mux" in shown
    client.send(b"\x1b[A\x1b[A\n")
    assert b"VM status: running" in client.until(b"running\r\n(qemu) ")
    client.close()


def test_multiplexed_chardev_keeps_its_users_and_their_focus(machine, folder):
    client, qmp = Client(f"{folder}/s"), QmpClient(f"{folder}/qmp")
    client.until(PROMPT)
    qmp("device_add", driver="virtconsole", id="con", chardev="s")
    client.until(b"\r\n")
    client.send(b"\x01cinfo sta")
    client.until(b"info sta\x1b[K")
    renew(folder)
    # A new worker gives the focus to whoever has come last.
    client.send(b"\x01c")
    client.until(PROMPT)
    client.send(b"info status\n")
    shown = client.until(b"VM status: running\r\n(qemu) ")
    assert b"monitor - type" not in shown
    listed = {entry["label"]: entry["frontend-open"] for entry in qmp("query-chardev")}
    assert listed["s"] is True
    assert qmp.error("chardev-remove", id="s")[1] == "Chardev 's' is busy"
    for number in (1, 2):
        qmp("device_add", driver="virtserialport", id=f"p{number}", chardev="s")
    assert "too many uses" in qmp.error("device_add", driver="virtserialport", chardev="s")[1]
    client.close()
    qmp.close()


def test_monitor_on_a_terminal(folder):
    terminal, line = pty.openpty()
    try:
        with serve(
            *("-device", f"virtio-serial,id=ser0,socket={folder}/vmm", "-monitor", "stdio"),
            *("-qmp", f"unix:{folder}/control,server=on,wait=off"), stdin=line, stdout=line,
        ) as process:  # fmt: skip
            def until(wanted):
                shown = b""
                while wanted not in shown:
                    assert select.select([terminal], [], [], TIMEOUT)[0], shown
                    shown += os.read(terminal, 4096)

            until(PROMPT)
            control = QmpClient(f"{folder}/control")
            wait_until(lambda: not control("x-virtserial-query")["changing"])
            control.close()
            renew(folder)
            os.write(terminal, b"info status\r")
            until(b"VM status: running")
            os.write(terminal, b"quit\r")
            assert process.wait(60) == 0
    finally:
        os.close(terminal)
        os.close(line)


def test_two_at_once_and_a_keeper_of_a_vm(machine, folder):
    qmp = QmpClient(f"{folder}/qmp")
    qmp("x-virtserial-restart", keeper=True)
    assert qmp.error("x-virtserial-restart", keeper=True)[1] == "a process is being replaced already"
    wait_until(lambda: not qmp("x-virtserial-query")["changing"], 30)
    qmp("x-virtserial-restart")
    assert qmp.error("x-virtserial-restart", keeper=True)[1] == "a process is being replaced already"
    wait_until(lambda: not qmp("x-virtserial-query")["changing"], 30)
    machine.send_signal(signal.SIGUSR2)
    wait_until(lambda: qmp("x-virtserial-query")["keeper-restarts"] == 2, 30)
    qmp.close()


def test_monitor_with_a_logfile_logs_takes_descriptors_and_leaves_none(folder):
    with serve(
        *("-device", f"virtio-serial,id=ser0,socket={folder}/vmm"), "-qmp", f"unix:{folder}/control,server=on,wait=off",
        *("-chardev", f"socket,id=m,path={folder}/m,server=on,wait=off,logfile={folder}/log"),
        *("-mon", "chardev=m,mode=control"),
    ) as process:  # fmt: skip
        control = QmpClient(f"{folder}/control")
        wait_until(lambda: not control("x-virtserial-query")["changing"])

        def open_descriptors():
            return len(os.listdir(f"/proc/{process.pid}/fd"))

        with_control = open_descriptors()
        control.close()
        # Its socket, and the listening one by which its connection knows whether the next client waits.
        wait_until(lambda: open_descriptors() == with_control - 2)
        before = open_descriptors()
        for _ in range(2):
            for _ in range(3):
                client = QmpClient(f"{folder}/m")
                with tempfile.TemporaryFile() as file:
                    client("getfd", fds=[file.fileno()], fdname="f")
                client("closefd", fdname="f")
                client.close()
            wait_until(lambda: open_descriptors() == before)
            client = QmpClient(f"{folder}/m")
            renew(folder)
            client("query-status")
            client.close()
            wait_until(lambda: open_descriptors() == before)
    with open(f"{folder}/log") as log:
        lines = log.read().splitlines()
    assert sum('"QMP"' in line for line in lines) == 8
    assert sum('"running"' in line for line in lines) == 2
