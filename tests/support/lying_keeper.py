"""A keeper whose first workers lie: `lying_keeper.py READY SEED LIARS OPTION...`.

Each liar listens to its briefing and then sends lies until it is ended; the next worker after the last liar is honest.
SEED "each": every lie of LIES once, a worker for each; "restoring": the first worker is honest, the next two die at the
restoration of controller 0; else a number for random ones.
"""

from __future__ import annotations

import array
import json
import logging
import mmap
import os
import random
import socket
import sys
import time

from virtserial.accounting import LEDGER_SIZE
from virtserial.channel.codec import encode
from virtserial.channel.messages import (
    FROM_KEEPER,
    FROM_WORKER,
    Backlog,
    Begin,
    ConnectionEnded,
    ConnectVmm,
    DmaMap,
    DropDma,
    FrontChanged,
    GuestOpen,
    Irq,
    Pong,
    Quit,
    Start,
    Started,
    Stop,
    VmmGone,
)
from virtserial.channel.record import replace
from virtserial.cli.serve_options import Options, build, build_objects
from virtserial.daemon.keeper import supervisor
from virtserial.daemon.keeper.keeper import Keeper
from virtserial.daemon.keeper.signals import Signals
from virtserial.daemon.worker_code import InstalledWorker
from virtserial.loop import EventLoop


def raw(message, **changes):
    return json.dumps(encode(message) | changes).encode()


IRQ, DMA, OPEN = Irq(0, 2, 0), DmaMap(0, 0, 4096, 3, 0), GuestOpen(0, 1, 2, True)
LIES = [
    (b"{", 0), (b"null", 0), (b"[" * 60_000, 0), (os.urandom(500), 3), (b'{"type":"Pong"}', 0), (b"", 2),
    (raw(Pong(1), number=float("nan")), 0), (b'{"type":"Pong","number":Infinity}', 0), (raw(Pong(1), number=1e308), 0),
    (raw(Pong(1 << 52)), 0), (raw(Pong(1), number="1"), 0), (raw(Pong(1), number=True), 0), (raw(Pong(1), more=1), 0),
    (raw(Stop()), 0), (raw(Start()), 0), (raw(Started(0)) , 0), (raw(Backlog(0, 1, 2, b"x")), 0),
    (raw(IRQ), 0), (raw(IRQ), 2), (raw(replace(IRQ, controller=7)), 1), (raw(IRQ, index=5), 1), (raw(IRQ), 1),
    (raw(DMA), 2), (raw(DMA, iova=1 << 64), 0), (raw(DMA, iova=-1), 0), (raw(DMA), 1), (raw(DMA, iova=None), 0),
    (raw(DropDma(3, None)), 0), (raw(VmmGone(1 << 31)), 0), (raw(VmmGone(0), controller=[0]), 0),
    (raw(replace(OPEN, number=3)), 0), (raw(OPEN, number=512), 0), (raw(OPEN, open=1), 0),
    (raw(ConnectionEnded("nobody", 1)), 0), (raw(ConnectionEnded("a", 1 << 40)), 0), (raw(Quit("a")), 0),
    (raw(FrontChanged("nobody", "x", "in", 1)), 0), (raw(FrontChanged("a", "x", "in", 1), state="gone"), 0),
]  # fmt: skip


def random_lies(rng):
    truths = [Pong(1), IRQ, DMA, OPEN, DropDma(0, None), ConnectionEnded("a", 1), Quit("a"), Backlog(0, 1, 2, b"x")]
    values = [0, -1, 1, 2, 1 << 63, 1 << 64, 1e999, float("nan"), None, True, "a", "b", [], {}, "x" * 60_000, b"".hex()]
    while True:
        message = encode(rng.choice(truths))
        for _ in range(rng.randrange(3)):
            message[rng.choice([*message, "more"])] = rng.choice(values)
        if rng.random() < 0.1:
            message.pop(rng.choice([*message]))
        if rng.random() < 0.2:
            message["type"] = rng.choice([*FROM_WORKER.classes, *FROM_KEEPER.classes])
        data = json.dumps(message).encode()
        if rng.random() < 0.1:
            data = data[: rng.randrange(len(data))]
        yield data, rng.choice((0, 0, 0, 1, 1, 2, 17))


class LyingWorker(InstalledWorker):
    def __init__(self, seed, liars):
        self._left = list(LIES) if seed == "each" else [None] * liars
        self._rng = random.Random(seed)

    def run_forked(self, parent, channel):
        """The keeper's copy of this object counts by how many workers it has started."""
        number = parent.workers.restarts
        if number >= len(self._left):
            super().run_forked(parent, channel)
        status = 1
        try:
            told = channel.receive(wait=True)
            while not isinstance(told[0], Start):
                told = channel.receive(wait=True)
            liar = socket.socket(fileno=channel.detach())
            lies = random_lies(random.Random(self._rng.random() + number))
            if self._left[number] is not None:
                lies = iter([(raw(Started(0)), 0), self._left[number]])
            for data, count in lies:
                fds = [os.open(os.devnull, os.O_RDWR) for _ in range(count)]
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
                liar.sendmsg([data], rights)
                for fd in fds:
                    os.close(fd)
            time.sleep(20)
        except OSError:
            time.sleep(20)
        finally:
            os._exit(status)


class DyingWorker(InstalledWorker):
    def run_forked(self, parent, channel):
        if not 1 <= parent.workers.restarts <= 2:
            super().run_forked(parent, channel)
        while True:
            message, fds = channel.receive(wait=True)
            if isinstance(message, Begin):
                with mmap.mmap(fds[0], LEDGER_SIZE) as memory:
                    memory[56:64] = (1).to_bytes(8, "little")
            elif isinstance(message, ConnectVmm):
                os._exit(3)


def main(ready, seed, liars, *words):
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    supervisor.RESTART_DELAYS = (0.0,)
    options = Options(words)
    machine, chardevs = build(options, build_objects(options))
    loop = EventLoop()
    Signals(loop)
    code = DyingWorker() if seed == "restoring" else LyingWorker(seed, int(liars))
    keeper = Keeper(loop, code, machine, chardevs, sandbox=False)
    try:
        keeper.start()
        os.close(int(ready))
        loop.run()
    finally:
        keeper.close()
        loop.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
