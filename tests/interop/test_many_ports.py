"""Ports that are connected before the guest's driver starts: the control queue has 32 buffers, the news are more."""

from __future__ import annotations

import pytest
from support.guests.connected_ports import ConnectedPorts, connected_at_boot


@pytest.mark.parametrize(
    ("host_device", "count"),
    [("qemu", 15), ("qemu", 30), ("virtserial", 30), pytest.param("virtserial", 510, marks=pytest.mark.slow)],
    indirect=["host_device"],
    scope="module",
)
def test_guest_learns_of_every_connected_port(host_device, count):
    seen = connected_at_boot(host_device, count)
    if host_device.kind == "qemu" and count > 15:
        # QEMU drops a control message when the driver has no buffer posted for it.
        assert seen.connected < count / 2
        assert seen.delivered == seen.connected
    else:
        assert seen == ConnectedPorts(count, count, count, count)
