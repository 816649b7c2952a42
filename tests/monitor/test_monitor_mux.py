"""A monitor, consoles and ports on one chardev with mux=on: Ctrl-a c switches between them, as in QEMU."""

from __future__ import annotations

import os
import pty
import select

import pytest
from support.serving import TIMEOUT, Client, QmpClient, serve

BANNER = b"QEMU 11.1.3 monitor - type 'help' for more information\r\n"
PROMPT = b"(qemu) "


@pytest.fixture
def shared(folder):
    """A monitor alone on a multiplexed socket at `folder`/s, another one for control at `folder`/qmp."""
    with serve(
        *("-device", f"virtio-serial,id=ser0,max_ports=4,socket={folder}/vmm"),
        *("-chardev", f"socket,id=s,path={folder}/s,server=on,wait=off,mux=on", "-mon", "chardev=s"),
        *("-qmp", f"unix:{folder}/qmp,server=on,wait=off"),
    ) as process:
        yield process


def test_a_monitor_alone_on_it_has_the_focus(shared, folder):
    for _ in range(2):
        client = Client(f"{folder}/s")
        assert client.until(PROMPT) == BANNER + PROMPT
        client.send(b"info status\n")
        assert client.until(PROMPT).endswith(b"info status\x1b[K\r\nVM status: running\r\n(qemu) ")
        client.close()


def test_a_port_that_is_added_takes_the_focus_and_ctrl_a_c_gives_it_back(shared, folder):
    client, qmp = Client(f"{folder}/s"), QmpClient(f"{folder}/qmp")
    client.until(PROMPT)
    qmp("device_add", driver="virtconsole", id="con", chardev="s")
    assert client.until(b"\r\n") == b"\r\n"  # The monitor is left in the middle of its line.
    client.send(b"info status\n\x01c")  # The first part is the console's.
    assert client.until(PROMPT) == PROMPT
    client.send(b"info status\n")
    assert b"VM status: running" in client.until(PROMPT)
    client.send(b"\x01cxyz\x01cinfo chardev\n")
    shown = client.until(b"s: filename=mux\r\n")
    assert b"xyz" not in shown
    client.until(PROMPT)
    qmp("device_del", id="con")
    client.send(b"info status\n")
    client.until(PROMPT)
    client.close()
    qmp.close()


def test_without_the_focus_the_monitor_shows_nothing_until_it_comes(folder):
    with serve(
        *("-device", f"virtio-serial,id=ser0,max_ports=4,socket={folder}/vmm"),
        *("-chardev", f"socket,id=s,path={folder}/s,server=on,wait=off,mux=on"),
        *("-device", "virtconsole,chardev=s", "-mon", "chardev=s"),
    ):
        client = Client(f"{folder}/s")
        client.send(b"login\n\x01h")
        assert client.until(b"sends C-a\n\r").startswith(b"\n\rC-a h")
        client.send(b"\x01c")
        assert client.until(PROMPT) == BANNER + PROMPT
        client.close()


def test_two_monitors_and_what_is_too_much(folder):
    with serve(
        *("-device", f"virtio-serial,id=ser0,max_ports=8,socket={folder}/vmm"),
        *("-chardev", f"socket,id=s,path={folder}/s,server=on,wait=off,mux=on"),
        *("-mon", "chardev=s,mode=control", "-mon", "chardev=s", "-qmp", f"unix:{folder}/qmp,server=on,wait=off"),
    ):
        client, qmp = Client(f"{folder}/s"), QmpClient(f"{folder}/qmp")
        assert client.until(PROMPT) == BANNER + PROMPT
        client.send(b"\x01c")
        assert b'"QMP"' in client.until(b"\r\n{") + client.until(b"]}}\r\n")
        client.send(b'{"execute": "qmp_capabilities"}')
        client.until(b'{"return": {}}\r\n')
        for number in (1, 2):
            qmp("device_add", driver="virtserialport", id=f"p{number}", chardev="s")
        assert qmp.error("device_add", driver="virtserialport", chardev="s")[1] == (
            "Property 'virtserialport.chardev' can't take value 's': "
            "too many uses of multiplexed chardev 's' (maximum is 4)"
        )
        assert qmp.error("chardev-remove", id="s")[1] == "Chardev 's' is busy"
        listed = {entry["label"]: entry["frontend-open"] for entry in qmp("query-chardev")}
        assert listed["s"] is True
        client.close()
        qmp.close()


def test_on_a_terminal(folder):
    """`-chardev stdio,mux=on -device virtconsole -mon`: QEMU's mon:stdio."""
    terminal, line = pty.openpty()
    try:
        with serve(
            *("-device", f"virtio-serial,id=ser0,socket={folder}/vmm", "-chardev", "stdio,mux=on,mux-quit=on,id=s"),
            *("-device", "virtconsole,chardev=s", "-mon", "chardev=s"),
            stdin=line, stdout=line,
        ) as process:  # fmt: skip
            os.write(terminal, b"\x01c")
            shown = b""
            while PROMPT not in shown:
                assert select.select([terminal], [], [], TIMEOUT)[0], shown
                shown += os.read(terminal, 4096)
            assert BANNER in shown.replace(b"\r\r\n", b"\r\n")  # The terminal makes CR LF of LF, as under QEMU.
            os.write(terminal, b"\x01x")
            assert process.wait(60) == 0
    finally:
        os.close(terminal)
        os.close(line)


def test_a_worker_that_is_killed_takes_no_session_with_it(shared, folder):
    client, qmp = Client(f"{folder}/s"), QmpClient(f"{folder}/qmp")
    client.until(PROMPT)
    with open(f"/proc/{shared.pid}/task/{shared.pid}/children") as children:
        worker = int(children.read().split()[0])
    os.kill(worker, 9)
    client.send(b"info status\n")
    shown = client.until(b"VM status: running\r\n(qemu) ")
    assert BANNER not in shown
    client.close()
    qmp.close()
