"""Ten clients on one port of a real guest: readers, one that never reads, one that joins late, one that watches.

Processes are replaced and killed under it.  VIRTSERIAL_RESTARTS and VIRTSERIAL_KILLS make it more than a few.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import socket
import subprocess
import sys
import time

import pytest
from support.guests.guest_side import PORT_HELPERS
from support.places import ENVIRONMENT
from support.waiting import wait_until

from virtserial.client.qmp import QmpClient
from virtserial.rig import Guest

RESTARTS = int(os.environ.get("VIRTSERIAL_RESTARTS", "1"))
KILLS = int(os.environ.get("VIRTSERIAL_KILLS", "3"))
NAME = "org.test.shared"
BLOCK = random.Random(NAME).randbytes(1_000_003)
TWICE = BLOCK * 2
WRITERS = 3

GUEST_END = """
import hashlib, json, os, random, select, time
block = random.Random({name!r}).randbytes(1_000_003)
twice = block * 2
fd = open_port({name!r}, os.O_RDWR | os.O_NONBLOCK)
until(lambda: not events(fd) & {{'HUP'}})
poll = select.poll()
poll.register(fd, select.POLLIN | select.POLLOUT)
others = [bytes(b for b in range(256) if b & 3 != index) for index in range({writers})]
sums, sizes = [hashlib.sha1() for _ in others], [0] * {writers}
sent = hangups = 0
target = None
looked = time.monotonic()
while target is None or sum(sizes) < target:
    for _, event in poll.poll(500):
        hangups += bool(event & select.POLLHUP)
        if event & select.POLLIN:
            data = os.read(fd, 65536)
            for index, other in enumerate(others):
                mine = data.translate(None, other)
                sums[index].update(mine)
                sizes[index] += len(mine)
        if event & select.POLLOUT and target is None:
            at = sent % len(block)
            try:
                sent += os.write(fd, twice[at:at + 32768])
            except BlockingIOError:
                pass
    if time.monotonic() > looked + 0.3:
        looked = time.monotonic()
        if target is None and os.path.exists('/tmp/stop'):
            target = int(open('/tmp/stop').read())
            poll.modify(fd, select.POLLIN)
print(json.dumps(dict(sent=sent, sums=[each.hexdigest() for each in sums], sizes=sizes, hangups=hangups)))
"""


class Reader:
    """A client whose bytes are compared with the guest's stream from `start` on."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(path)
        self.socket.setblocking(False)
        self.start = 0
        self.got = 0
        self.wrong = None

    def read(self):
        try:
            data = self.socket.recv(1 << 18)
        except BlockingIOError:
            return
        assert data, f"the connection ended after {self.got} bytes"
        if self.start is None:
            self.start = BLOCK.find(data[:64]) if len(data) >= 64 else -1
            assert self.start >= 0, "what came first is no part of the stream"
        at = (self.start + self.got) % len(BLOCK)
        if self.wrong is None and data != TWICE[at : at + len(data)]:
            self.wrong = self.got
        self.got += len(data)


class Crowd:
    """All clients of the port, served by one loop.

    Attributes:
        given: what each writer has sent.
    """

    def __init__(self, folder):
        self.path = f"{folder}/shared"
        self.readers = [Reader(self.path) for _ in range(8)] + [Reader(f"{folder}/watch")]
        self.mute = Reader(self.path)
        self.late = None
        self.given = [bytearray() for _ in range(WRITERS)]
        self._pending = [b""] * WRITERS
        self._rng = random.Random(7)

    def join_late(self):
        self.late = Reader(self.path)
        self.late.start = None

    def say(self, size=20_000):
        """Have each writer send so much more."""
        for index in range(WRITERS):
            self._pending[index] += bytes(byte & ~3 | index for byte in self._rng.randbytes(size))

    def serve(self, seconds=0.05):
        """Move what there is."""
        reading = [*self.readers, *([self.late] if self.late else [])]
        found, _, _ = select.select([each.socket for each in reading], [], [], seconds)
        for each in reading:
            if each.socket in found:
                each.read()
        for index, pending in enumerate(self._pending):
            if pending:
                try:
                    sent = self.readers[index].socket.send(pending)
                except BlockingIOError:
                    continue
                self.given[index] += pending[:sent]
                self._pending[index] = pending[sent:]

    def until(self, condition, complaint, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, complaint
            self.serve()

    def progress(self, job, size=400_000):
        """Wait until everybody who reads has so much more, and writers are rid of what they say."""
        marks = [each.got + size for each in self.readers]
        self.say()

        def moved():
            assert job.status is None, f"the guest's end has ended: {job.output!r}"
            return not any(self._pending) and all(
                each.got >= mark for each, mark in zip(self.readers, marks, strict=True)
            )

        self.until(moved, "the streams stand still")

    def close(self):
        for each in [*self.readers, self.mute, *([self.late] if self.late else [])]:
            each.socket.close()


@pytest.fixture
def attached(our_device, module_folder):
    shared = f"path={module_folder}/shared,server=on,wait=off,clients=10,backlog=300k,slow=drop"
    options = [
        *("-device", "virtio-serial,id=ser0"),
        *("-chardev", f"socket,id=c,{shared},watch={module_folder}/watch"),
        *("-device", f"virtserialport,nr=1,chardev=c,name={NAME}"),
    ]
    with our_device.attach([*options, "-qmp", f"unix:{module_folder}/qmp,server=on,wait=off"]) as attachment:
        yield attachment


def ask(module_folder, command):
    with QmpClient(f"{module_folder}/qmp", 30) as monitor:
        return monitor.execute(command)


def restart(crowd, module_folder, *words):
    process = subprocess.Popen(
        [sys.executable, "-m", "virtserial", "restart", "--monitor", f"{module_folder}/qmp", *words],
        env=ENVIRONMENT, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    crowd.until(lambda: process.poll() is not None, "the restart does not end")
    assert process.returncode == 0


def kill(crowd, attached):
    end = time.monotonic() + random.uniform(0, 0.5)
    crowd.until(lambda: time.monotonic() > end, "time stands still")
    worker = attached.worker_pid
    os.kill(worker, 9)
    crowd.until(lambda: attached.worker_pid not in (None, worker), "no new worker came")


@pytest.mark.slow
@pytest.mark.timeout(150 + 10 * (RESTARTS + KILLS))
def test_readers_have_every_byte_and_the_one_that_never_reads_is_counted(attached, module_folder):
    with Guest(attached.arguments) as guest:
        crowd = Crowd(module_folder)
        try:
            wait_until(lambda: len(ask(module_folder, "x-virtserial-query-clients")[0]["clients"]) == 10)
            job = guest.start_python("import os, time\n" + PORT_HELPERS + GUEST_END.format(name=NAME, writers=WRITERS))
            crowd.progress(job)
            # The mute one's socket and window fill; the guest goes on nevertheless.
            crowd.until(lambda: crowd.readers[0].got > 8 << 20, "the one that does not read holds the others up", 120)
            crowd.join_late()
            for _ in range(RESTARTS):
                restart(crowd, module_folder)
                crowd.progress(job)
                restart(crowd, module_folder, "--worker")
                crowd.progress(job)
            for _ in range(KILLS):
                kill(crowd, attached)
                assert guest.alive, guest.diagnosis()
                crowd.progress(job)
            finish(guest, job, crowd, module_folder)
        finally:
            crowd.close()
    found = ask(module_folder, "x-virtserial-query")
    assert (found["restarts"], found["upgrades"], found["doubtful-bytes"]) == (KILLS, 2 * RESTARTS, 0)
    assert "internal error" not in attached.log


def finish(guest, job, crowd, module_folder):
    """End the streams, and compare what the guest has found with what each client has."""
    guest.write_file("/tmp/stop.new", str(sum(map(len, crowd.given))).encode())
    guest.check("mv /tmp/stop.new /tmp/stop")
    crowd.until(lambda: job.status is not None, "the guest's end does not end", 120)
    result = job.wait(60)
    assert result.status == 0, result.text
    found = json.loads(result.text.splitlines()[-1])
    sent = found["sent"]
    crowd.until(lambda: all(each.got >= sent for each in crowd.readers), f"less than {sent} bytes came")
    assert [(each.got, each.wrong) for each in crowd.readers] == [(sent, None)] * len(crowd.readers)
    assert found["hangups"] == 0


    assert found["sizes"] == [len(each) for each in crowd.given]
    assert found["sums"] == [hashlib.sha1(each).hexdigest() for each in crowd.given]
    late = crowd.late
    assert late.wrong is None
    assert late.got >= 300 << 10
    assert (late.start + late.got) % len(BLOCK) == sent % len(BLOCK)
    (counted,) = ask(module_folder, "x-virtserial-query-clients")
    assert counted["written"] == sent
    assert counted["dropped"] > 0
    mute = bytearray()

    def all_is_told():
        try:
            mute.extend(crowd.mute.socket.recv(1 << 18))
        except BlockingIOError:
            time.sleep(0.01)
        return len(mute) + counted["dropped"] >= sent

    wait_until(all_is_told)
    assert len(mute) + ask(module_folder, "x-virtserial-query-clients")[0]["dropped"] == sent
    assert BLOCK.startswith(mute[:100_000])
