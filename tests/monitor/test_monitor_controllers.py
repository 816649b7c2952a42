"""Controllers that come and go at run time, under `virtserial serve`."""

from __future__ import annotations

import os
import socket

from support.waiting import wait_until


def test_a_controller_nobody_uses_is_deleted_with_its_ports(qmp, folder):
    for _ in range(3):
        qmp("device_add", driver="virtio-serial-pci", id="ser1", socket=f"{folder}/vmm1", max_ports=8)
        qmp("device_add", driver="virtserialport", id="p", bus="ser1.0", name="x")
        assert os.path.exists(f"{folder}/vmm1")
        qmp("device_del", id="ser1")
        deleted = [qmp.event("DEVICE_DELETED")["data"] for _ in range(2)]
        assert deleted == [{"device": name, "path": f"/machine/peripheral/{name}"} for name in ("p", "ser1")]
        assert not os.path.exists(f"{folder}/vmm1")
        assert qmp.error("device_add", driver="virtserialport", bus="ser1.0")[1] == "Bus 'ser1.0' not found"
    qmp("device_add", driver="virtserialport", id="p", name="x")
    assert qmp("qom-get", path="p", property="parent_bus") == "/machine/peripheral/ser0/ser0.0"


def test_those_that_stay_keep_working(qmp, served, folder):
    for name in ("ser1", "ser2"):
        qmp("device_add", driver="virtio-serial-pci", id=name, socket=f"{folder}/{name}")
    qmp("device_del", id="ser1")
    qmp("device_add", driver="virtserialport", id="p", bus="ser2.0")
    with open(f"/proc/{served.pid}/task/{served.pid}/children") as children:
        worker = int(children.read().split()[0])
    os.kill(worker, 9)  # Its successor is told of what there is now.
    wait_until(lambda: "p" in {entry["name"] for entry in qmp("qom-list", path="/machine/peripheral")})
    with socket.socket(socket.AF_UNIX) as vmm:
        vmm.connect(f"{folder}/ser2")
        accepted(qmp)
        assert "is in use by the VMM" in refusal(qmp, "ser2")
    wait_until(lambda: refusal(qmp, "ser2") is None)
    qmp.event("DEVICE_DELETED")


def accepted(qmp):
    """Whoever has connected before this has been accepted after it: the loop has gone round."""
    for _ in range(3):
        qmp("query-status")


def refusal(qmp, name):
    """Why a device is not deleted; None if it is."""
    answer = qmp.ask({"execute": "device_del", "arguments": {"id": name}})
    return answer["error"]["desc"] if "error" in answer else None


def test_one_with_a_vmm_is_not_deleted(qmp, folder):
    with socket.socket(socket.AF_UNIX) as vmm:
        vmm.connect(f"{folder}/vmm")
        accepted(qmp)
        text = f"Device 'ser0' is in use by the VMM at {folder}/vmm: delete its vfio-user-pci device there first"
        assert refusal(qmp, "ser0") == text
    wait_until(lambda: refusal(qmp, "ser0") is None)
