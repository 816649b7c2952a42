from __future__ import annotations

from types import SimpleNamespace

import pytest
from support.client_machine import running
from support.waiting import wait_until


@pytest.fixture
def machine(folder):
    """A device process with a monitor, and the user-space driver that shows its ports as sockets; no VM.

    Attributes: `host` and `guest`, the sockets of the port's two ends, `qmp`, the monitor.
    """
    device = ("-device", f"virtio-serial,id=ser0,socket={folder}/device")
    ports = (
        *("-chardev", f"socket,id=c0,path={folder}/host,server=on,wait=off"),
        *("-device", "virtserialport,id=port0,chardev=c0,name=org.example.0"),
        *("-chardev", f"pty,id=c1,path={folder}/pty"),
        *("-device", "virtconsole,id=console0,chardev=c1"),
        *("-device", "virtserialport,name=org.example.none"),
    )
    with (
        running("serve", *device, *ports, "-qmp", f"unix:{folder}/qmp,server=on,wait=off"),
        running("guest", "attach", f"{folder}/device", "--as", "socket", "--run-dir", f"{folder}/run"),
    ):
        wait_until(lambda: (folder / "run/virtio-ports/org.example.0").exists())
        yield SimpleNamespace(
            host=f"unix:{folder}/host",
            guest=f"unix:{folder}/run/virtio-ports/org.example.0",
            qmp=f"{folder}/qmp",
            folder=folder,
        )
