"""One guest with every contestant in it at once, so that rounds alternate within seconds and without reboots."""

from __future__ import annotations

import queue
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from contestants import Contestant, attach
from cpu_time import CpuMeter
from measures import Measure, Run
from peer_program import peer_program
from virtserial.rig import Guest, GuestError

GUEST_PEER = "/bench/peer"
CPU = ("-cpu", "max,erms=off,fsrm=off")
ANSWER_TIMEOUT = 30


class HostPeer:
    """The peer at the host's end of a port, as a process of its own."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._process = subprocess.Popen(
            [str(peer_program()), str(socket)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.expect("open")

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("bad end")

    def expect(self, word: str) -> list[str]:
        """The other words of the next answer, whose first must be this one.

        Raises:
            GuestError: it is another, or none comes.
        """
        try:
            first, *rest = self._lines.get(timeout=ANSWER_TIMEOUT).split()
        except queue.Empty:
            raise GuestError(f"the peer at {self._socket} does not answer in {ANSWER_TIMEOUT} s") from None
        if first != word:
            raise GuestError(f"the host's peer: {first} {' '.join(rest)}")
        return rest

    def obey(self, command: str, size: int, amount: int) -> list[str]:
        """Runs a command of the host's; the words of its answer."""
        assert self._process.stdin
        self._process.stdin.write(f"{command} {size} {amount}\n")
        return self.expect("ok")

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()


class Arena:
    """A VM with a controller and one connected port per contestant, and a peer at both ends of each.

    Attributes:
        guest: the virtual machine.
        contestants: the devices in it, in the order of the tables.
    """

    def __init__(self, contestants: Sequence[Contestant], *, smp: int = 1) -> None:
        self.contestants = tuple(contestants)
        self._smp = smp
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="virtserial-bench-")))
        attached = []
        sockets = [folder / f"port{number}" for number in range(len(self.contestants))]
        for number, contestant in enumerate(self.contestants):
            ports = {f"bench.{number}": str(sockets[number])}
            attached.append(stack.enter_context(attach(contestant, f"bus{number}", ports, folder)))
        arguments = [word for each in attached for word in each.arguments]
        files = {GUEST_PEER: peer_program().read_bytes()}
        self.guest = stack.enter_context(Guest(arguments, files=files, smp=self._smp, qemu_extra=CPU))
        vcpus = [vcpu["thread-id"] for vcpu in self.guest.qmp("query-cpus-fast")]
        self._meters = [CpuMeter(self.guest.pid, vcpus, each.processes) for each in attached]
        self._host_peers, self._guest_peers = [], []
        for number, socket in enumerate(sockets):
            device = f"/dev/virtio-ports/bench.{number}"
            self.guest.check(f"for n in $(seq 100); do [ -e {device} ] && exit; sleep 0.05; done; exit 1")
            peer = HostPeer(socket)
            stack.callback(peer.close)
            self._host_peers.append(peer)
            job = self.guest.start(f"exec {GUEST_PEER} {device}")
            job.expect(b"open\n")
            self._guest_peers.append(job)

    @property
    def accelerator(self) -> str:
        """KVM or TCG, as QEMU says it."""
        return "KVM" if self.guest.qmp("query-kvm")["enabled"] else "TCG"

    def run(self, measure: Measure, number: int, amount: int, round_number: int = 0) -> Run:
        """Runs a measure once on the contestant of that number.

        Raises:
            GuestError: a byte was wrong, or an end does not answer.
        """
        host, guest, meter = self._host_peers[number], self._guest_peers[number], self._meters[number]
        guest.send(f"{measure.guest} {measure.guest_block} {amount}\n".encode())
        said = guest.expect(b"\n")
        if said != b"ready\n":
            raise GuestError(f"the guest's peer on {self.contestants[number].name}: {said.decode().strip()}")
        before = meter.read()
        seconds, *trips = map(float, host.obey(measure.host, measure.host_block, amount))
        cpu = meter.read() - before
        name = self.contestants[number].name
        return Run(measure.name, name, round_number, amount, seconds, cpu, tuple(trips))

    def calibrate(self, measure: Measure, seconds: float) -> int:
        """The amount that the first contestant moves in that time; every contestant is warm after it."""
        amount = measure.first_amount
        for number in range(len(self.contestants)):
            self.run(measure, number, amount)
        for target in (seconds / 4, seconds):
            amount = max(1, int(self.run(measure, 0, amount).rate * target))
        return amount
