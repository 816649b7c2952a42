"""A Linux guest that goes from one virtserial-qemu to the next, and what it says and hears meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from support.guests.dropin_guest import PROGRAM, QUIET, environment, wait_until_nothing_is_left
from support.waiting import wait_until

from virtserial.client.qmp import QmpClient
from virtserial.rig import Guest
from virtserial.rig.channel import AgentChannel
from virtserial.rig.guest import ENDS_WITH_ITS_PARENT, KERNEL_OPTIONS
from virtserial.rig.image import guest_image
from virtserial.rig.qemu import find_qemu

MACHINE = ("-machine", "q35", "-m", "192", "-nodefaults", "-no-user-config")
PERIOD = 65521
TABLE = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(PERIOD // 32 + 1))[:PERIOD]
TWICE = TABLE * 2


def stream_bytes(position, count):
    """`count` (at most PERIOD) bytes of the endless stream that every checked stream is, from a position on."""
    return TWICE[position % PERIOD : position % PERIOD + count]


def make_qcow2(path, size):
    """An empty disk, made by QEMU itself."""
    program = find_qemu()
    ours, theirs = socket.socketpair()
    with theirs:
        words = ["-machine", "none", "-nodefaults", "-display", "none", "-chardev", f"socket,id=c,fd={theirs.fileno()}"]
        process = subprocess.Popen(
            [*ENDS_WITH_ITS_PARENT, *program.command, *words, "-mon", "chardev=c,mode=control"],
            env={**os.environ, **program.environment}, pass_fds=[theirs.fileno()],
        )  # fmt: skip
    qmp = QmpClient(ours, answer_time=60)
    file = {"driver": "file", "filename": str(path)}
    for options in ({**file, "size": 0}, {"driver": "qcow2", "file": "file", "size": size}):
        qmp("blockdev-create", **{"job-id": "make", "options": options})
        wait_until(lambda: qmp("query-jobs")[0]["status"] == "concluded")
        assert "error" not in qmp("query-jobs")[0]
        qmp("job-dismiss", id="make")
        if options["driver"] == "file":
            qmp("blockdev-add", **{**file, "node-name": "file"})
    qmp.close()
    process.kill()
    process.wait()


class Line:
    """The rig's line to the guest's agent, over whichever QEMU the guest is in."""

    def __init__(self):
        self.agents_end, self._ours = socket.socketpair()
        self._current = None
        threading.Thread(target=self._to_guest, daemon=True).start()

    def add(self, stream):
        """A QEMU's end: what comes from it is always passed on."""
        threading.Thread(target=self._from_guest, args=(stream,), daemon=True).start()

    def switch(self, stream):
        """What the rig says goes there from now on."""
        self._current = stream

    def _from_guest(self, stream):
        with contextlib.suppress(OSError):
            while data := stream.recv(1 << 16):
                self._ours.sendall(data)

    def _to_guest(self):
        with contextlib.suppress(OSError):
            while data := self._ours.recv(1 << 16):
                self._current.sendall(data)

    def close(self):
        for end in (self._ours, self.agents_end):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Vm:
    """One virtserial-qemu.

    Attributes:
        folder: its own, for the sockets of its ports.
        agent: our end of its second serial line.
    """

    def __init__(self, words, program=PROGRAM):
        self.folder = Path(tempfile.mkdtemp(prefix="vs-"))
        image = guest_image()
        self.agent, agent_line = socket.socketpair()
        qmp_end, qmp_line = socket.socketpair()
        with agent_line, qmp_line:
            command = [
                *(*QUIET, "-kernel", str(image.kernel), "-initrd", str(image.initramfs)),
                *("-append", KERNEL_OPTIONS, "-serial", f"file:{self.folder}/kernel.log"),
                *("-chardev", f"socket,id=rig-agent,fd={agent_line.fileno()}", "-serial", "chardev:rig-agent"),
                *("-chardev", f"socket,id=rig-qmp,fd={qmp_line.fileno()}", "-mon", "chardev=rig-qmp,mode=control"),
                *[word.replace("FOLDER", str(self.folder)) for word in words],
            ]
            with (self.folder / "stderr").open("wb") as log:
                self.process = subprocess.Popen(
                    [*ENDS_WITH_ITS_PARENT, *program, *command],
                    env=environment(self.folder),
                    pass_fds=(agent_line.fileno(), qmp_line.fileno()),
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )  # fmt: skip
        self.qmp = None
        try:
            self.qmp = QmpClient(qmp_end, answer_time=60)
        except BaseException as error:
            error.add_note(self.said())
            self.close()
            raise

    def said(self):
        """What QEMU and virtserial have said."""
        return (self.folder / "stderr").read_text()

    def hmp(self, line):
        return self.qmp("human-monitor-command", **{"command-line": line})

    def status(self):
        return self.qmp("query-status")["status"]

    def wait_status(self, wanted, seconds=60):
        wait_until(lambda: self.status() == wanted, seconds, f"the machine is not {wanted}")

    def migration(self):
        """Wait until a migration is over; return how it went."""
        wait_until(lambda: self.qmp("query-migrate").get("status") in ("completed", "failed", "cancelled"), 60)
        return self.qmp("query-migrate")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        self.kill()
        if self.qmp is not None:
            self.qmp.close()
        with contextlib.suppress(OSError):
            self.agent.shutdown(socket.SHUT_RDWR)
        self.agent.close()
        wait_until_nothing_is_left(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)


class MovedGuest(Guest):
    """A guest, in the virtserial-qemu `vm`.

    Args:
        words: QEMU's; FOLDER in them is the folder of each VM.
        program: starts them.

    Attributes:
        blackout: seconds that the guest stood still in the last migration, as QEMU's events tell.
    """

    def __init__(self, words, machine=MACHINE, program=PROGRAM):
        super().__init__(boot_timeout=180)
        self.words = [*machine, *words]
        self._program = program
        self._line = Line()
        self._vms = []
        self.vm = None
        self.blackout = 0.0
        self.folder = Path(tempfile.mkdtemp(prefix="vs-"))

    def _start(self):
        self._channel = AgentChannel(self._line.agents_end)
        self.vm = self.new_vm()
        self._line.switch(self.vm.agent)
        self._channel.wait_for_boot(self._boot_timeout)

    def new_vm(self, *words, take_hosts_from=None):
        """Another virtserial-qemu for the same machine; it may take the host ends of a Vm over."""
        taking = () if take_hosts_from is None else ("--take-hosts-from", str(take_hosts_from.process.pid))
        vm = Vm([*self.words, *words], [*self._program, *taking])
        self._vms.append(vm)
        self._line.add(vm.agent)
        return vm

    def fork(self, *words):
        """One more virtserial-qemu for a copy of the guest, whose agent nobody hears; the caller closes it."""
        return Vm([*self.words, *words], self._program)

    def moved_to(self, vm):
        """The guest is there now; who was its QEMU ends."""
        before, self.vm = self.vm, vm
        self._line.switch(vm.agent)
        if before is not vm:
            self._vms.remove(before)
            before.close()

    def migrate(self, traffic=None, *, take_hosts=False):
        """Move the guest to a new VM, live; return what QEMU says of it.

        Args:
            traffic: whose hosts are there before the guest.
            take_hosts: the hosts' connections go along.
        """
        uri = f"unix:{self.folder}/migration"
        target = self.new_vm("-incoming", uri, take_hosts_from=self.vm if take_hosts else None)
        if traffic is not None:
            traffic.meet(target)
        self.vm.qmp("migrate", uri=uri)
        result = self.vm.migration()
        assert result["status"] == "completed", (result, self.vm.said(), target.said())
        target.wait_status("running")
        stopped = [event for event in self.vm.qmp.events if event["event"] == "STOP"][-1]
        self.blackout = _seconds(target.qmp.wait_event("RESUME")) - _seconds(stopped)
        self.moved_to(target)
        return result

    def kernel_log(self):
        return (self.vm.folder / "kernel.log").read_text(errors="replace") if self.vm else ""

    def diagnosis(self):
        said = [f"{vm.folder}: {vm.said()}" for vm in self._vms]
        kernel = self.kernel_log()
        return "\n".join([*said, f"kernel: ...{kernel[-1500:]}"])

    def close(self):
        for vm in self._vms:
            vm.close()
        self._vms.clear()
        self._line.close()
        if self._channel is not None:
            self._channel.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _seconds(event):
    return event["timestamp"]["seconds"] + event["timestamp"]["microseconds"] / 1e6


GUEST_STREAMS = """
import hashlib, os, select, threading, time
TABLE = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(65521 // 32 + 1))[:65521]
TWICE = TABLE * 2
counts, wrong, ends = {}, [], {}

def reader(name, fd):
    position = 0
    ends[name] = 0
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    while True:
        if name.endswith('3'):
            poller.poll()
        data = os.read(fd, 4096)
        if not data:
            # The host's end is closed.
            ends[name] += 1
            time.sleep(0.01)
        if data != TWICE[position % 65521 : position % 65521 + len(data)]:
            wrong.append((name, position, len(data)))
        position += len(data)
        counts[name] = position

def writer(name, fd, size, pause):
    position = 0
    while True:
        position += os.write(fd, TWICE[position % 65521 : position % 65521 + size])
        counts[name + ' sent'] = position
        time.sleep(pause)

def stream(name, path, size, pause):
    while not os.path.exists(path):
        time.sleep(0.01)
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
    if os.isatty(fd):
        # While it is open: a console that nobody has open forgets its modes.
        os.system('stty raw -echo < ' + path)
    counts[name] = 0
    threading.Thread(target=reader, args=(name, fd), daemon=True).start()
    threading.Thread(target=writer, args=(name, fd, size, pause), daemon=True).start()
"""


class CheckedStream:
    """The host's end of a stream in both directions that a guest checks too; every byte tells its place.

    Attributes:
        received: bytes that came from the guest, all of them right; sent: bytes to it.
        wrong: the first place where one was not, how many bytes came at once, and from how far ahead they are.
    """

    def __init__(self, name, size=700, pause=0.004):
        self.name = name
        self.received = self.sent = 0
        self.wrong = None
        self._size, self._pause = size, pause
        self._connection = self._next = None
        self._stopping = self._find_place = False

    def meet(self, path):
        """Connect to where the guest will be: a path, or a TCP port of this host."""
        address = ("127.0.0.1", path) if isinstance(path, int) else str(path)
        self._next = socket.socket(socket.AF_INET if isinstance(path, int) else socket.AF_UNIX)
        wait_until(lambda: self._next.connect_ex(address) == 0, complaint=f"{path} takes no connection")

    def go_on(self):
        """Go on there."""
        connection = self._connection = self._next
        self._stopping = False
        self._threads = [
            threading.Thread(target=target, args=(connection,), daemon=True) for target in (self._read, self._write)
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, connection):
        with contextlib.suppress(OSError):
            while data := connection.recv(4096):
                if self._find_place:
                    self._find_place = False
                    self.received = TWICE.find(data)
                if data != stream_bytes(self.received, len(data)):
                    place = TWICE.find(data[:32])
                    self.wrong = self.wrong or (self.received, len(data), (place - self.received) % PERIOD)
                self.received += len(data)

    def _write(self, connection):
        with contextlib.suppress(OSError):
            while not self._stopping:
                self.sent += connection.send(stream_bytes(self.sent, self._size))
                time.sleep(self._pause)

    def start_again(self):
        """The guest is another one, which stands at another place."""
        self._find_place = True

    def stop_sending(self):
        """Send nothing more; what has been sent can still arrive."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
        self._threads[1].join()

    def drop(self):
        """End both connections, whoever is at their other ends."""
        self._stopping = True
        for connection in (self._connection, self._next):
            if connection is not None:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for connection in (self._connection, self._next):
            if connection is not None:
                connection.close()

    def part(self):
        """End the connection, after everything that has come over it."""
        self.stop_sending()
        self._threads[0].join(0.5)
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._connection.close()


class Traffic:
    """Checked streams over several ports of a MovedGuest, which connect again wherever it is.

    Args:
        ports: by name, the path in the guest; the host's socket is in the VM's folder, and has the port's name.
        places: where the hosts connect instead, by name.
    """

    def __init__(self, guest, ports, size=1500, pause=0.006, places=None):
        self._guest = guest
        self._places = places
        self.session = guest.session()
        self.session(GUEST_STREAMS)
        for name, path in ports.items():
            self.session(f"stream({name!r}, {path!r}, {size}, {pause})")
        self.streams = [CheckedStream(name) for name in ports]
        for stream in self.streams:
            if ports[stream.name].startswith("/dev/hvc"):
                # A console does not wait for its host.
                stream.start_again()
        self.meet(guest.vm)
        self.go_on()

    def meet(self, vm):
        """The hosts connect to where the guest will be: what waits in its rings is for them, and lost without."""
        for stream in self.streams:
            stream.meet(vm.folder / stream.name if self._places is None else self._places[stream.name])

    def go_on(self):
        """They go on there."""
        for stream in self.streams:
            stream.go_on()

    def part(self):
        """The hosts end their connections."""
        for stream in self.streams:
            stream.part()

    def follow(self):
        """The guest has moved: check that it got a beginning of what was sent, and go on from there."""
        self.part()
        counts = self._settled()
        for stream in self.streams:
            assert counts[stream.name] <= stream.sent, "the guest got more than was sent"
            stream.sent = counts[stream.name]
        self.go_on()

    def follow_to_another_time(self):
        """The guest is one that was saved; the hosts have parted before."""
        counts = self._settled()
        for stream in self.streams:
            stream.sent = counts[stream.name]
            stream.start_again()
        self.meet(self._guest.vm)
        self.go_on()

    def _settled(self):
        """How much of each stream the guest has read; what was on its way has come."""
        before, counts = None, {}
        while counts != before:
            before = counts
            time.sleep(0.2)
            counts = {name: count for name, count in self.session("dict(counts)").items() if "sent" not in name}
        return counts

    def check(self, at_least=4000, seconds=30):
        """Everything was right so far, and every stream moves on in both directions."""
        counts = self.session("dict(counts)")
        before = {stream.name: (counts[stream.name], stream.received) for stream in self.streams}

        def moves(stream):
            to_guest, to_host = before[stream.name]
            now = self.session("dict(counts)")
            return now[stream.name] >= to_guest + at_least and stream.received >= to_host + at_least

        for stream in self.streams:
            wait_until(lambda stream=stream: moves(stream), seconds, f"{stream.name} does not move on")
        assert self.session("wrong") == []
        assert [(stream.name, stream.wrong) for stream in self.streams if stream.wrong] == []

    def close(self):
        for stream in self.streams:
            stream.part()
