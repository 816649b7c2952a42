"""Ports that come and go by the host's monitor: QEMU's for its own device, ours for ours, with the same words."""

from __future__ import annotations

import socket
from contextlib import contextmanager

from virtserial.client.qmp import QmpClient


@contextmanager
def host_monitor(host_device, guest, path):
    """The monitor of whoever has the ports; `path` is the socket of ours."""
    if host_device.kind == "qemu":
        guest.monitor.events.clear()
        yield guest.monitor
        return
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    monitor = QmpClient(connection, 60)
    try:
        yield monitor
    finally:
        monitor.close()


def unix_server(path):
    """A listening unix socket as chardev-add has it."""
    return {"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": path}}, "server": True, "wait": False}}


@contextmanager
def hot_plugged(monitor, name, number, path, bus="ser0.0"):
    """A port that is there for a while, on a socket at `path`."""
    monitor("chardev-add", id=f"chr-{name}", backend=unix_server(path))
    monitor(
        "device_add", driver="virtserialport", id=f"id-{name}", name=name, nr=number, chardev=f"chr-{name}", bus=bus
    )
    try:
        yield
    finally:
        monitor("device_del", id=f"id-{name}")
        monitor.wait_event("DEVICE_DELETED")
        monitor("chardev-remove", id=f"chr-{name}")
