"""The qemu.qmp library and its shell as clients of our monitor; no guest is needed for that."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest
from qemu.qmp import ExecuteError, QMPClient


@pytest.fixture(scope="module")
def monitor(our_device, module_folder):
    options = ["-device", "virtio-serial,id=ser0", "-qmp", f"unix:{module_folder}/qmp,server=on,wait=off"]
    with our_device.attach(options):
        yield f"{module_folder}/qmp"


def test_commands_errors_and_events(monitor):
    async def talk():
        client = QMPClient("test")
        await client.connect(monitor)
        try:
            assert client.greeting.QMP.version["qemu"]["major"] == 11
            backend = {"type": "ringbuf", "data": {}}
            await client.execute("chardev-add", {"id": "rb", "backend": backend})
            with pytest.raises(ExecuteError, match="Chardev with id 'rb' already exists"):
                await client.execute("chardev-add", {"id": "rb", "backend": backend})
            port = {"driver": "virtserialport", "id": "p1", "name": "org.test", "chardev": "rb"}
            await client.execute("device_add", port)
            assert "p1" in {each["name"] for each in await client.execute("qom-list", {"path": "/machine/peripheral"})}
            with client.listener("DEVICE_DELETED") as listener:
                await client.execute("device_del", {"id": "p1"})
                event = await asyncio.wait_for(listener.get(), 20)
            assert event["data"] == {"device": "p1", "path": "/machine/peripheral/p1"}
            await client.execute("chardev-remove", {"id": "rb"})
        finally:
            await client.disconnect()

    asyncio.run(talk())


def test_descriptors_are_passed(monitor, module_folder):
    async def talk(file):
        client = QMPClient("test")
        await client.connect(monitor)
        try:
            client.send_fd_scm(file.fileno())
            assert "fdset-id" in await client.execute("add-fd", {"fdset-id": 7})
            assert [each["fdset-id"] for each in await client.execute("query-fdsets")] == [7]
            await client.execute("remove-fd", {"fdset-id": 7})
        finally:
            await client.disconnect()

    with open(f"{module_folder}/passed", "wb") as file:
        asyncio.run(talk(file))


def shell(monitor, typed, *options):
    """What the library's shell shows after somebody has typed."""
    environment = {**os.environ, "HOME": os.path.dirname(monitor)}
    done = subprocess.run(
        [sys.executable, "-m", "qemu.qmp.qmp_shell", *options, monitor],
        input=typed, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_shell(monitor):
    backend = '{"type":"ringbuf","data":{}}'
    typed = ["query-status", f"chardev-add id=s backend={backend}", "query-chardev", "nonsense", ""]
    shown = shell(monitor, "\n".join(typed))
    assert '"running"' in shown
    assert '{"return": {}}' in shown, shown
    assert '"label": "s"' in shown
    assert "CommandNotFound" in shown


def test_the_shell_for_people(monitor):
    shown = shell(monitor, "info chardev\ndevice_add virtserialport,id=hp,bus=ser0.0\ninfo qtree\n", "-H")
    assert "dev: virtserialport, id \"hp\"" in shown
