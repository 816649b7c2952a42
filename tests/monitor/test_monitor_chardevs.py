"""chardev-add, -change and -remove of hubs, multiplexers, udp and serial lines."""

import os
import socket

import pytest
from support.serving import Client

NULL = {"type": "null", "data": {}}
RINGBUF = {"type": "ringbuf", "data": {"size": 64}}


def hub(*parts):
    return {"type": "hub", "data": {"chardevs": list(parts)}}


@pytest.fixture
def parts(qmp):
    qmp("chardev-add", id="a", backend=RINGBUF)
    qmp("chardev-add", id="b", backend=NULL)
    return qmp


def failed(name, text):
    return "GenericError", f"Failed to add chardev '{name}': {text}"


def test_hub_and_its_parts(parts, qmp):
    qmp("chardev-add", id="h", backend=hub("a", "b"))
    in_use = "Property 'virtserialport.chardev' can't take value 'a': chardev 'a' is already in use"
    assert qmp.error("device_add", driver="virtserialport", chardev="a") == ("GenericError", in_use)
    assert qmp.error("chardev-remove", id="a") == ("GenericError", "Chardev 'a' is busy")
    assert qmp.error("chardev-add", id="g", backend=hub("a")) == failed("g", "chardev 'a' is already in use")
    assert qmp.error("chardev-change", id="h", backend=NULL) == ("GenericError", "Mux device hotswap not supported yet")
    qmp("chardev-change", id="b", backend=RINGBUF)
    assert qmp.error("chardev-remove", id="b") == ("GenericError", "Chardev 'b' is busy")
    qmp("device_add", driver="virtserialport", id="p", chardev="h")
    assert qmp.error("chardev-remove", id="h") == ("GenericError", "Chardev 'h' is busy")
    qmp("device_del", id="p")
    qmp("chardev-remove", id="h")
    qmp("chardev-remove", id="a")
    qmp("device_add", driver="virtserialport", id="q", chardev="b")


def test_hub_that_cannot_be(parts, qmp):
    qmp("device_add", driver="virtserialport", id="p", chardev="a")
    assert qmp.error("chardev-add", id="h", backend=hub("b", "a")) == failed("h", "chardev 'a' is already in use")
    assert qmp.error("chardev-add", id="h", backend=hub()) == failed("h", "hub: 'chardevs' list is not defined")
    assert qmp.error("chardev-add", id="h", backend=hub("zz")) == failed("h", "hub: chardev can't be found by id 'zz'")
    for wrong, text in (
        ("b", "Invalid parameter type for 'backend.data.chardevs', expected: array"),
        ([1], "Invalid parameter type for 'backend.data.chardevs[0]', expected: string"),
    ):
        backend = {"type": "hub", "data": {"chardevs": wrong}}
        assert qmp.error("chardev-add", id="h", backend=backend) == ("GenericError", text)
    qmp("chardev-remove", id="b")


def test_multiplexed_chardev_is_listed_twice_and_has_four_ports(qmp, folder):
    hmp = Client(f"{folder}/hmp")
    try:
        hmp.until(b"(qemu) ")
        hmp.send(b"chardev-add null,id=m,mux=on\ninfo chardev\n")
        shown = hmp.until(b"m-base: filename=null\r\n")
        assert b"m: filename=mux\r\n" in shown
    finally:
        hmp.close()
    listed = {entry["label"]: entry["filename"] for entry in qmp("query-chardev")}
    assert (listed["m"], listed["m-base"]) == ("mux", "null")
    for number in (1, 2, 3):
        qmp("device_add", driver="virtserialport", id=f"p{number}", chardev="m")
    qmp("device_add", driver="virtconsole", id="p0", chardev="m")
    qmp("device_del", id="p1")
    qmp("device_add", driver="virtserialport", id="p4", chardev="m")
    assert qmp.error("chardev-remove", id="m") == ("GenericError", "Chardev 'm' is busy")


def test_udp_and_serial(qmp):
    def end(port, host="127.0.0.1"):
        return {"type": "inet", "data": {"host": host, "port": str(port)}}

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        taken = probe.getsockname()[1]
        qmp("chardev-add", id="u", backend={"type": "udp", "data": {"remote": end(taken)}})
        backend = {"type": "udp", "data": {"remote": end(9), "local": end(taken)}}
        assert qmp.error("chardev-add", id="v", backend=backend) == failed(
            "v", "Failed to bind socket: Address already in use"
        )
        backend = {"type": "udp", "data": {"remote": {"type": "unix", "data": {"path": "/x"}}}}
        assert "is not an address of UDP" in qmp.error("chardev-add", id="v", backend=backend)[1]
    far, near = os.openpty()
    try:
        qmp("chardev-add", id="s", backend={"type": "serial", "data": {"device": os.ttyname(near)}})
    finally:
        os.close(far)
        os.close(near)
    listed = {entry["label"]: entry["filename"] for entry in qmp("query-chardev")}
    assert (listed["u"], listed["s"]) == ("udp", "serial")
