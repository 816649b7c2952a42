"""What a batch costs in the device alone: one port, rings in this process's memory, a pair of sockets as the host.

    python3 benchmarks/hot_path.py [--rounds 400]

No VM, no event loop, no interrupt: `Port.turn` on rings that are filled beforehand, everything warm in the caches, and
beside it the one system call of the batch.  What a byte or a message costs in a running system on top of that is
waiting, waking and cold caches.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "src"))

from virtserial.console.device import ConsoleDevice
from virtserial.console.lane import RECEIVE, TRANSMIT
from virtserial.console.wire import (
    CONTROL_RECEIVEQ,
    CONTROL_TRANSMITQ,
    VIRTIO_CONSOLE_F_MULTIPORT,
    receiveq_index,
    transmitq_index,
)
from virtserial.host_end.stream import DescriptorStream
from virtserial.loop import EventLoop
from virtserial.memory.state import StateMemory
from virtserial.testing.memory_driver import QueueDriver, StepScheduler
from virtserial.virtio.features import VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1

PORT, SIZE = 1, 128
FEATURES = VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_CONSOLE_F_MULTIPORT
SHAPES = (1, 64), (1, 4096), (20, 4096), (60, 4096), (100, 4096), (6, 32768), (16, 32768)
"""Chains in a batch, bytes in each."""


class NoEvents:
    """Nobody hears of ports."""

    def guest_open_changed(self, number, is_open) -> None:
        pass

    def host_end_closed(self, number) -> None:
        pass

    def host_end_failed(self, number, error) -> None:
        raise error


class Bench:
    """A device with one open port, and its two other sides."""

    def __init__(self) -> None:
        self._scheduler = StepScheduler()
        state = StateMemory(bytearray(ConsoleDevice.state_size(PORT + 1)))
        self.device = ConsoleDevice(state, PORT + 1, FEATURES, self._scheduler, NoEvents())
        self.port = self.device.add_port(PORT, "bench", has_backend=True)
        ours, self.host = socket.socketpair()
        for end in (ours, self.host):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        ours.setblocking(False)
        queues = [CONTROL_RECEIVEQ, CONTROL_TRANSMITQ, receiveq_index(PORT), transmitq_index(PORT)]
        self.driver = QueueDriver(self.device, self._scheduler, queues, FEATURES, size=SIZE)
        self.end = DescriptorStream(EventLoop(), "bench", ours.fileno(), ours.detach())
        self.port.attach(self.end)
        self.port.set_guest_open(True)
        self._scheduler.run()
        self._sink = bytearray(4 << 20)

    def turn(self, work: int) -> float:
        """Turns of the port until nothing is left: microseconds."""
        self.port.work = work
        started = time.perf_counter()
        while self.port.work:
            self.port.turn()
        return 1e6 * (time.perf_counter() - started)

    def settle(self) -> None:
        """Everything that was asked for later."""
        self._scheduler.advance(0.02)

    def drain(self, count: int) -> None:
        """Read so many bytes at the host."""
        while count:
            count -= self.host.recv_into(self._sink)

    def transmit(self, chains: int, size: int, rounds: int) -> tuple[float, float]:
        """Medians, in microseconds: a batch to the host, and its writev alone."""
        queue = self.driver.queues[transmitq_index(PORT)]
        buffers = [self.driver.memory.allocate(size, alignment=8) for _ in range(chains)]
        turns, calls = [], []
        for _ in range(rounds):
            for buffer in buffers:
                queue.add(((buffer.address, size),), (), buffer)
            queue.publish()
            turns.append(self.turn(TRANSMIT))
            self.drain(chains * size)
            queue.harvest()
            self.settle()
            started = time.perf_counter()
            os.writev(self.end._write_fd, [buffer.view for buffer in buffers])
            calls.append(1e6 * (time.perf_counter() - started))
            self.drain(chains * size)
        return statistics.median(turns), statistics.median(calls)

    def receive(self, chains: int, size: int, rounds: int) -> tuple[float, float]:
        """Medians, in microseconds: a batch from the host, and its readv alone."""
        queue = self.driver.queues[receiveq_index(PORT)]
        buffers = [self.driver.memory.allocate(size, alignment=8) for _ in range(SIZE)]
        for buffer in buffers:
            queue.add((), ((buffer.address, size),), buffer)
        queue.publish()
        data, turns, calls = bytes(chains * size), [], []
        for _ in range(rounds):
            self.host.sendall(data)
            self.end.readable = True
            turns.append(self.turn(RECEIVE))
            self.settle()
            # Each goes back into its own descriptor, the last that was freed, as with Linux' driver.
            for buffer, _ in reversed(queue.harvest()):
                queue.add((), ((buffer.address, size),), buffer)
            queue.publish()
            self.host.sendall(data)
            started = time.perf_counter()
            os.readv(self.end._read_fd, [buffer.view for buffer in buffers[:chains]])
            calls.append(1e6 * (time.perf_counter() - started))
        return statistics.median(turns), statistics.median(calls)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=400)
    rounds = parser.parse_args().rounds
    print("| batch | turn, us | its system call, us | the rest, for each chain, us |")
    print("| --- | --- | --- | --- |")
    for way in ("to the host", "to the guest"):
        for chains, size in SHAPES:
            bench = Bench()
            measure = bench.transmit if way == "to the host" else bench.receive
            turn, call = measure(chains, size, rounds)
            title = f"{way}, {chains} x {size} bytes"
            print(f"| {title} | {turn:.1f} | {call:.1f} | {(turn - call) / chains:.2f} |")


if __name__ == "__main__":
    main()
