"""The embedded guest against the limit: one port beside a plain pair of unix sockets that carries the same chunks.

    python3 benchmarks/embedded.py [--rounds 7] [--seconds 1] [--chunk 65536]

Two processes each time: one sends chunks, the other receives them.  With the pair a byte is copied twice, by the
kernel.  With virtserial one of the two is a guest, whose driver copies between its program's buffer and the shared
memory, and between both stands `virtserial serve`: three copies and three processes.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "src"))

from contestants import VIRTSERIAL, attach
from ratios import Ratio, Summary, paired_ratio, summarize
from virtserial.driver.console_driver import DriverListener
from virtserial.driver.ports import PortListener
from virtserial.driver.vfio_user_device import open_vfio_user_device
from virtserial.loop import EventLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

PERIOD = 65521
"""Bytes, a prime: the stream is noise of this length, repeated, so a piece that is lost or doubled does not fit."""
EDGE = 16
READ = 256 << 10
CHECKED = 64 << 20
"""Bytes of a run in which the receiver looks at all of them."""
PORT = "bench"
TO_HOST, TO_GUEST = "guest to host", "host to guest"
PAIR = "pair of unix sockets"


@dataclass(frozen=True)
class EmbeddedRun:
    """One stream.

    Attributes:
        round: runs of one round belong together.
        direction: TO_HOST or TO_GUEST; for the pair, whose place it took.
        way: PAIR or VIRTSERIAL.name.
        rate: MB/s.
    """

    round: int
    direction: str
    way: str
    rate: float

    def as_json(self) -> dict[str, Any]:
        """For the results file."""
        return asdict(self)


class Stream:
    """The bytes of a run, by their offset.

    Args:
        chunk: bytes of a write.
        total: bytes of the stream, a multiple of `chunk`.
        whole: whether the receiver looks at every byte; else at both ends of each piece.
    """

    def __init__(self, chunk: int, total: int, whole: bool) -> None:
        noise = os.urandom(PERIOD)
        self.pattern = memoryview(noise * (2 + max(chunk, READ) // PERIOD))
        self.chunk, self.total, self.whole = chunk, total, whole

    def chunks(self) -> Iterator[memoryview]:
        """What is to be written, write by write."""
        for offset in range(0, self.total, self.chunk):
            yield self.pattern[offset % PERIOD : offset % PERIOD + self.chunk]

    def check(self, offset: int, piece: memoryview) -> None:
        """Raises ValueError if that is not what was written at this offset."""
        start, size = offset % PERIOD, len(piece)
        pairs = [(0, size)] if self.whole else [(0, min(EDGE, size)), (max(0, size - EDGE), size)]
        for first, end in pairs:
            if bytes(piece[first:end]) != bytes(self.pattern[start + first : start + end]):
                raise ValueError(f"a wrong byte in {size} at offset {offset}")


def send_to_socket(stream: Stream, sock: socket.socket) -> None:
    """Write the stream, chunk by chunk."""
    for chunk in stream.chunks():
        sock.sendall(chunk)


def receive_from_socket(stream: Stream, sock: socket.socket) -> None:
    """Read the stream in pieces of up to a chunk."""
    buffer = memoryview(bytearray(READ))[: max(stream.chunk, 4096)]
    received = 0
    while received < stream.total:
        count = sock.recv_into(buffer)
        if not count:
            raise ValueError(f"the stream ends at {received} of {stream.total} bytes")
        stream.check(received, buffer[:count])
        received += count


class GuestPort:
    """The guest's end of the port, in this process.

    Attributes:
        loop, port: to be run, and used.
    """

    def __init__(self, path: str) -> None:
        self.loop = EventLoop()
        self._driver = open_vfio_user_device(path, self.loop, DriverListener())
        self._driver.start()
        while not (ports := [port for port in self._driver.ports.values() if port.name == PORT]):
            self.loop.run_once(1)
        self.port = ports[0]
        self.port.open(PortListener())

    def send(self, stream: Stream) -> None:
        """Copy the stream into the driver's buffers, a chunk at a time, and wait until all of it was taken."""
        port, loop = self.port, self.loop
        for chunk in stream.chunks():
            done = 0
            while done < len(chunk):
                views = port.writable_views(len(chunk) - done)
                if not views:
                    loop.run_once(1)
                    continue
                before = done
                for view in views:
                    view[:] = chunk[done : done + len(view)]
                    done += len(view)
                port.commit(done - before)
        while not port.flushed():
            loop.run_once(1)

    def receive(self, stream: Stream) -> None:
        """Copy the stream out of the driver's buffers."""
        port, loop = self.port, self.loop
        buffer = memoryview(bytearray(1 << 20))
        received = 0
        while received < stream.total:
            views = port.readable_views()
            if not views:
                loop.run_once(1)
                continue
            for view in views:
                piece = buffer[: len(view)]
                piece[:] = view
                stream.check(received, piece)
                received += len(view)
            port.consume(sum(map(len, views)))

    def close(self) -> None:
        """Reset the device and let go of it."""
        self._driver.close()
        self.loop.close()


def timed(other_end: Callable[[], None], this_end: Callable[[], None]) -> float:
    """Run one end in a process of its own and the other here; seconds until this end is done.

    Raises:
        RuntimeError: the other end failed.
    """
    ready, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        try:
            ready.close()
            theirs.send(b"r")
            theirs.recv(1)
            other_end()
        except BaseException as error:
            print(f"the other end: {error!r}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    theirs.close()
    with ready:
        ready.recv(1)
        started = time.perf_counter()
        ready.send(b"g")
        this_end()
        seconds = time.perf_counter() - started
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise RuntimeError("the other end failed")
    return seconds


def over_pair(stream: Stream) -> float:
    """The stream over a pair of unix sockets: seconds."""
    writer, reader = socket.socketpair()
    with writer, reader:
        return timed(lambda: send_to_socket(stream, writer), lambda: receive_from_socket(stream, reader))


def over_port(stream: Stream, direction: str, guest: GuestPort, host: socket.socket) -> float:
    """The stream over the port: seconds.  The guest is this process: its driver does not survive a fork."""
    if direction == TO_GUEST:
        return timed(lambda: send_to_socket(stream, host), lambda: guest.receive(stream))
    seconds = time.perf_counter()
    pid = os.fork()
    if not pid:
        try:
            receive_from_socket(stream, host)
        except BaseException as error:
            print(f"the host's end: {error!r}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    guest.send(stream)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise RuntimeError("the host's end failed")
    return time.perf_counter() - seconds


def measure(rounds: int, seconds: float, chunk: int) -> Iterator[EmbeddedRun]:
    """Alternating rounds; before the first and after the last every byte is looked at."""
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="virtserial-bench-"))
        stack.enter_context(attach(VIRTSERIAL, "bus0", {PORT: f"{name}/port"}, Path(name)))
        guest = stack.enter_context(closing(GuestPort(f"{name}/bus0.vfio-user")))
        host = stack.enter_context(socket.socket(socket.AF_UNIX))
        host.connect(f"{name}/port")

        def run(direction: str, way: str, total: int, whole: bool = False) -> float:
            stream = Stream(chunk, max(total // chunk, 1) * chunk, whole)
            took = over_pair(stream) if way == PAIR else over_port(stream, direction, guest, host)
            return stream.total / took / 1e6

        ways = [(direction, way) for direction in (TO_HOST, TO_GUEST) for way in (PAIR, VIRTSERIAL.name)]
        for direction, way in ways:
            run(direction, way, CHECKED, whole=True)
        total = int(run(TO_HOST, PAIR, 4 * CHECKED) * 1e6 * seconds)
        for number in range(rounds):
            for direction, way in ways if number % 2 else reversed(ways):
                yield EmbeddedRun(number, direction, way, run(direction, way, total))
        for direction, way in ways:
            run(direction, way, CHECKED, whole=True)


def summarize_embedded(runs: Sequence[EmbeddedRun]) -> dict[str, tuple[Summary, Summary, Ratio]]:
    """By direction: MB/s of the pair, of virtserial, and their ratio."""

    def rates(direction: str, way: str) -> list[float]:
        chosen = [run for run in runs if (run.direction, run.way) == (direction, way)]
        return [run.rate for run in sorted(chosen, key=lambda run: run.round)]

    summaries = {}
    for direction in dict.fromkeys(run.direction for run in sorted(runs, key=lambda run: run.direction)):
        pair, ours = rates(direction, PAIR), rates(direction, VIRTSERIAL.name)
        summaries[direction] = summarize(pair), summarize(ours), paired_ratio(ours, pair)
    return summaries


def main(words: Iterable[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--chunk", type=int, default=65536, help="bytes of a write")
    chosen = parser.parse_args(words)
    runs = list(measure(chosen.rounds, chosen.seconds, chosen.chunk))
    for direction, (pair, ours, ratio) in summarize_embedded(runs).items():
        print(
            f"{direction}: {PAIR} {pair.median:.0f} MB/s, virtserial {ours.median:.0f} MB/s, "
            f"x {ratio.median:.2f} [{ratio.low:.2f}-{ratio.high:.2f}]"
        )


if __name__ == "__main__":
    main()
