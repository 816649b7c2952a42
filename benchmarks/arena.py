"""One guest with every contestant in it at once, so that rounds alternate within seconds and without reboots."""

from __future__ import annotations

import queue
import subprocess
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from contestants import Contestant, attach
from cpu_time import CpuMeter
from measures import Measure, Run
from peer_program import peer_program
from virtserial.rig import Guest, GuestError, Job

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

GUEST_PEER = "/bench/peer"
ANSWER_TIMEOUT = 60


class HostPeer:
    """The peer at the host's end of a port, as a process of its own."""

    def __init__(self, socket: Path) -> None:
        self._process = subprocess.Popen(
            [str(peer_program()), str(socket)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._expect("open")

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("bad end of the program")

    def _expect(self, word: str) -> list[str]:
        try:
            first, *rest = self._lines.get(timeout=ANSWER_TIMEOUT).split()
        except queue.Empty:
            raise GuestError(f"the host's peer does not answer in {ANSWER_TIMEOUT} s") from None
        if first != word:
            raise GuestError(f"the host's peer: {first} {' '.join(rest)}")
        return rest

    def obey(self, command: str, size: int, amount: int) -> list[float]:
        """Runs a command of the host's; the figures of its answer.

        Raises:
            GuestError: a byte was wrong, or no answer comes.
        """
        self.tell(command, size, amount)
        return self.answer()

    def tell(self, command: str, size: int, amount: int) -> None:
        """Starts a command of the host's."""
        assert self._process.stdin
        self._process.stdin.write(f"{command} {size} {amount}\n")

    def answer(self) -> list[float]:
        """The figures of the answer to the last command.

        Raises:
            GuestError: a byte was wrong, or no answer comes.
        """
        return [float(word) for word in self._expect("ok")]

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
        sockets = [folder / f"port{number}" for number in range(len(self.contestants))]
        attached = [
            stack.enter_context(
                attach(contestant, f"bus{number}", {f"bench.{number}": str(sockets[number])}, folder)
            )
            for number, contestant in enumerate(self.contestants)
        ]
        arguments = [word for each in attached for word in each.arguments]
        files = {GUEST_PEER: peer_program().read_bytes()}
        self.guest = stack.enter_context(Guest(arguments, files=files, smp=self._smp))
        vcpus = [vcpu["thread-id"] for vcpu in self.guest.qmp("query-cpus-fast")]
        self._meters = [CpuMeter(self.guest.pid, vcpus, each.processes) for each in attached]
        self._host_peers: list[HostPeer] = []
        for socket in sockets:
            peer = HostPeer(socket)
            stack.callback(peer.close)
            self._host_peers.append(peer)
        self._guest_peers = [
            self._guest_peer(f"/dev/virtio-ports/bench.{number}") for number in range(len(sockets))
        ]

    def _guest_peer(self, device: str) -> Job:
        self.guest.check(f"for n in $(seq 100); do [ -e {device} ] && exit; sleep 0.05; done; exit 1")
        job = self.guest.start(f"exec {GUEST_PEER} {device}")
        job.expect(b"open\n")
        return job

    @property
    def accelerator(self) -> str:
        """KVM or TCG, as QEMU says it."""
        return "KVM" if self.guest.qmp("query-kvm")["enabled"] else "TCG"

    def run(
        self, measure: Measure, number: int, amount: int, *, round_number: int = 0, verify: bool = False
    ) -> Run:
        """Runs a measure once on the contestant of that number; if verify, the guest too checks every byte.

        Raises:
            GuestError: a byte was wrong, or an end does not answer.
        """
        name, meter = self.contestants[number].name, self._meters[number]
        host, guest = self._host_peers[number], self._guest_peers[number]
        try:
            command = measure.verifying if verify else measure.guest
            guest.send(f"{command} {measure.guest_block} {amount}\n".encode())
            guest.expect(b"ready\n")
            before = meter.read()
            seconds, *trips = host.obey(measure.host, measure.host_block, amount)
            cpu = meter.read() - before
        except GuestError as error:
            said = guest.output.decode(errors="replace").strip() or "nothing"
            raise GuestError(f"{measure.name} on {name}: {error} (the guest's peer: {said})") from error
        return Run(measure.name, name, round_number, amount, seconds, cpu, tuple(trips))

    def calibrate(self, measure: Measure, seconds: float) -> int:
        """The amount that the first contestant moves in that time.

        Before, every contestant has been warmed up by a run with every byte checked at both ends.
        """
        amount = measure.first_amount
        for number in range(len(self.contestants)):
            self.run(measure, number, amount, verify=True)
        for target in (seconds / 4, seconds):
            amount = max(1, int(self.run(measure, 0, amount).rate * target))
        return amount

    def rounds(self, amounts: Iterable[tuple[Measure, int]], count: int) -> Iterator[Run]:
        """Rounds of all contestants on each measure with its amount; each round begins with another contestant.

        A last round, which is not given, is run with every byte checked at both ends.
        """
        amounts = list(amounts)
        order = range(len(self.contestants))
        for turn in range(count):
            for measure, amount in amounts:
                for place in order:
                    yield self.run(measure, (place + turn) % len(order), amount, round_number=turn)
        for measure, amount in amounts:
            for number in order:
                self.run(measure, number, amount, verify=True)
