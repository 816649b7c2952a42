"""The guest's library and the programs of both ends, on a real guest's ports."""

from __future__ import annotations

import ast
import os

import pytest
from support.guests.exchange import socket_port
from support.guests.guest_library import MANIFEST, PROGRAM, CuttingRelay, Program, library_files, make_tree, manifest
from support.waiting import wait_until

from virtserial.rig import Guest

FILES, TALK = "org.test.files", "org.test.talk"
TREE_MIB = int(os.environ.get("VIRTSERIAL_TRANSFER_MIB", "24"))
"""Size of the tree that goes to the guest; 1024 for the whole thing, which takes minutes."""
TIMEOUT = 120 + TREE_MIB


@pytest.fixture(scope="module")
def guest(host_device, device_folder):
    options = ["-device", "virtio-serial,id=ser0"]
    for number, name in enumerate((FILES, TALK), 1):
        options += socket_port(number, name, f"{device_folder}/{name}")
    memory = 384 + 2 * TREE_MIB
    with (
        host_device.attach(options) as attached,
        Guest(attached.arguments, memory_mib=memory, smp=2, files=library_files()) as guest,
    ):
        wait_until(lambda: guest.run(f"test -e /dev/virtio-ports/{TALK}").status == 0)
        yield guest


@pytest.fixture
def relay(device_folder, tmp_path):
    with CuttingRelay(f"{device_folder}/relay", f"{device_folder}/{FILES}") as relay:
        yield relay
    os.unlink(f"{device_folder}/relay")


def cut_five_times(relay, job_status, total):
    """Cuts the connection five times, each after a further seventh of the bytes has gone through."""
    for number in range(1, 6):
        wait_until(
            lambda number=number: relay.passed > total * number // 7 or job_status() is not None,
            TIMEOUT,
            f"the bytes for cut {number} did not go through",
        )
        assert job_status() is None, "it ended too early to be cut"
        relay.cut()


@pytest.mark.slow
@pytest.mark.timeout(3 * TIMEOUT)
def test_tree_goes_to_the_guest_through_five_cut_connections(guest, relay, tmp_path):
    expected = make_tree(tmp_path / "tree", TREE_MIB)
    job = guest.start(f"{PROGRAM} receive {FILES} /tmp/tree")
    with Program("send", f"unix:{relay.path}", f"{tmp_path}/tree/") as sender:
        cut_five_times(relay, sender.process.poll, TREE_MIB << 20)
        status, _, errors = sender.wait(2 * TIMEOUT)
    received = job.wait(60)
    assert (status, received.status) == (0, 0), f"{errors}\n{received.text}"
    assert errors.count("connected again") == relay.cuts
    found = guest.python(MANIFEST + "print(manifest('/tmp/tree'))", 2 * TIMEOUT)
    assert ast.literal_eval(found) == expected
    guest.check("rm -rf /tmp/tree")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_tree_comes_from_the_guest_through_cuts_and_a_killed_program(guest, relay, tmp_path):
    source = make_tree(tmp_path / "tree", 16)
    with Program("send", f"unix:{relay.path}", f"{tmp_path}/tree/") as sender:
        assert guest.run(f"{PROGRAM} receive -q {FILES} /tmp/back", 120).text == ""
        assert sender.wait()[0] == 0
    job = guest.start(f"exec env {PROGRAM} send {FILES} /tmp/back/")
    start = relay.passed
    with Program("receive", f"unix:{relay.path}", f"{tmp_path}/back") as receiver:
        for number in (1, 2, 3):
            wait_until(lambda number=number: relay.passed - start > number * (3 << 20), 60)
            if number == 2:
                job.signal(9)
                job.wait()
                job = guest.start(f"{PROGRAM} send {FILES} /tmp/back/")
            else:
                relay.cut()
        status, _, errors = receiver.wait(200)
    assert status == 0, errors
    assert job.wait().status == 0
    assert manifest(tmp_path / "back") == source
    guest.check("rm -rf /tmp/back")
