"""The worker: moves bytes between guests and host ends.  It opens nothing; the keeper hands it every descriptor.

What the keeper says, in which order, and what this process answers: channel/messages.py.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import mmap
import os
import signal
import socket
from typing import TYPE_CHECKING, NoReturn

from virtserial import foreign
from virtserial.accounting import Account, Ledger, Note, nowhere, open_counts
from virtserial.channel.channel import worker_end
from virtserial.channel.messages import (
    AddFront,
    Backlog,
    Begin,
    Confined,
    Connect,
    ConnectionEnded,
    ConnectVmm,
    Controller,
    Disconnect,
    DmaMap,
    Interrupted,
    Irq,
    Listen,
    Ping,
    Pong,
    Prepare,
    Ready,
    RemoveController,
    RemovePort,
    Resize,
    Start,
    Started,
    Stop,
    StopListening,
)
from virtserial.channel.messages import Port as NewPort
from virtserial.daemon.worker.guest_device import GuestDevice
from virtserial.daemon.worker.host_ends import HostEnds
from virtserial.daemon.worker.request_budget import LoopUse
from virtserial.daemon.worker.restoration import Restoration
from virtserial.daemon.worker.saved_state import answer_request
from virtserial.host_end.preparation import import_host_ends, prepare
from virtserial.loop import EPOLLIN, EventLoop, sharpen_timers
from virtserial.memory.state import VERSION as STATE_VERSION
from virtserial.standard_error import LineHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.channel.channel import WorkerEnd
    from virtserial.channel.messages import FromKeeper, FromWorker
    from virtserial.channel.requests import Request
    from virtserial.daemon.worker.guest_device import MakeFront

log = logging.getLogger("virtserial.worker")

_parents: list[object] = []
"""What a forked worker inherits and must not finalize: its descriptors are closed, their numbers are used anew."""


MESSAGES_AT_ONCE = 64
"""Of the keeper, before devices have a turn: to restore one with many maps takes long."""
BACKLOG_PIECE = 32 << 10
"""Bytes of console output in one message."""


class _Unaccounted(logging.Handler):
    """Every line that is logged is bytes written which nobody accounts for."""

    def __init__(self, account: Account) -> None:
        super().__init__()
        self._account = account

    def emit(self, record: logging.LogRecord) -> None:
        self._account.stray = True


class Worker:
    """The devices of one machine.

    Args:
        channel: to the keeper.
    """

    def __init__(self, channel: WorkerEnd) -> None:
        self.loop = EventLoop()
        self._channel = channel
        self._devices: dict[int, GuestDevice] = {}
        self._ledger = nowhere()
        self._loop_use = LoopUse()
        self._account = self._ledger.account
        self._host_ends = HostEnds(self.loop, self._send, self._account)
        self._restoration = Restoration(self._ledger)
        self._started = False
        self.loop.watch(channel.fileno(), EPOLLIN, self._keeper_spoke)

    def run(self) -> None:
        """Serve until the keeper is gone."""
        self.loop.run()

    def _keeper_spoke(self, _: int) -> None:
        try:
            for _each in range(MESSAGES_AT_ONCE):
                received = self._channel.receive()
                if received is None:
                    return
                self._account.stray = True
                self._act_on(*received)
        except EOFError:
            self.loop.stop()

    def _send(self, message: FromWorker, fds: Sequence[int] = ()) -> None:
        """Tell the keeper; without one there is nothing more to do."""
        try:
            self._channel.send(message, fds)
        except OSError:
            self.loop.stop()
        if isinstance(message, ConnectionEnded):
            self._host_ends.ended(message.chardev)

    def _act_on(self, message: FromKeeper, fds: list[int]) -> None:
        match message:
            case Prepare(name, what):
                prepare(name, what, fds)
            case Begin(sandbox):
                self._begin(sandbox, fds[0])
            case Start(controller):
                self._start(controller)
            case Stop():
                self._stop()
            case Ping(number):
                self._send(Pong(number))
            case Connect():
                self._host_ends.connect(message, fds)
            case Listen():
                self._host_ends.listen(message, fds)
            case StopListening(chardev):
                self._host_ends.stop_listening(chardev)
            case Disconnect(chardev):
                self._host_ends.disconnect(chardev)
            case AddFront(chardev, front):
                self._host_ends.add_front(chardev, front, fds[0])
            case Controller(controller):
                self._restoration.begin(controller)
                self._devices[controller] = GuestDevice(
                    message, fds[0], self.loop, self._send, self._ledger,
                    front_of(message.vhost_user), self._loop_use,
                )  # fmt: skip
                if self._started:
                    self._restoration.end()
            case _:
                self._act_on_device(self._devices[message.controller], message, fds)

    def _act_on_device(
        self,
        device: GuestDevice,
        message: NewPort | Interrupted | Backlog | DmaMap | Irq | ConnectVmm | Resize | RemovePort
        | RemoveController        | Request,
        fds: list[int],
    ) -> None:  # fmt: skip
        match message:
            case ConnectVmm():
                self._connect_vmm(device, fds[0])
            case NewPort():
                self._add_port(device, message)
            case Resize(_, number, cols, rows):
                if (port := device.console.slots[number].port) is not None:
                    device.console.set_size(port, cols, rows)
            case RemovePort(_, number):
                self._remove_port(device, number)
            case RemoveController():
                self._remove_controller(device)
            case Interrupted():
                kind, exact, controller, queue = message.kind, message.exact, message.controller, message.queue
                device.finish(Note(kind, exact, controller, queue, message.progress, message.moved))
            case Backlog():
                self._inherit_backlog(device, message)
            case DmaMap() | Irq():
                self._restoration.give(device, message, fds)
            case _:
                self._send(answer_request(device, message, fds))

    # Start and end

    def _begin(self, sandbox: bool, ledger_fd: int) -> None:
        """Take the ledger, and go into the sandbox: from here on nothing can be opened."""
        sharpen_timers()
        foreign.calls.begin()
        with contextlib.suppress(OSError):
            self._ledger = Ledger(memoryview(mmap.mmap(ledger_fd, 0)), open_counts(os.getpid()), self._account)
        os.close(ledger_fd)
        self._restoration = Restoration(self._ledger)
        logging.root.addHandler(_Unaccounted(self._account))
        import_host_ends()
        if sandbox:
            from virtserial.daemon.worker.sandbox import confine

            self._send(Confined(tuple(confine(self._channel.fileno()))))

    def _start(self, controller: int | None) -> None:
        if controller is not None:
            self._restoration.take_over(self._devices[controller])
            return
        self._started = True
        self._restoration.end()
        self._send(Started(sum(device.console.doubtful for device in self._devices.values())))

    def _connect_vmm(self, device: GuestDevice, fd: int) -> None:
        self._restoration.connect(device, fd)
        if self._started:
            self._restoration.take_over(device)
            self._restoration.end()

    def _stop(self) -> None:
        """Stop for a successor, between two turns; what is in no ring and no socket goes to it by the keeper."""
        for device in self._devices.values():
            for port, serial in device.port_serials.items():
                for start in range(0, len(port.backlog), BACKLOG_PIECE):
                    piece = bytes(port.backlog[start : start + BACKLOG_PIECE])
                    self._send(Backlog(device.index, port.number, serial, piece))
        self.loop.stop()

    def _inherit_backlog(self, device: GuestDevice, message: Backlog) -> None:
        for port, serial in device.port_serials.items():
            if (port.number, serial) == (message.number, message.serial):
                port.backlog += message.data

    # Devices

    def _add_port(self, device: GuestDevice, message: NewPort) -> None:
        port = device.console.add_port(
            message.number,
            message.name,
            is_console=message.is_console,
            has_backend=message.chardev is not None,
            plug=message.serial,
        )
        device.port_plugged(port, message.serial, message.guest_open)
        if message.cols or message.rows:
            device.console.set_size(port, message.cols, message.rows)
        port.chardev = message.chardev
        if message.chardev is not None:
            self._host_ends.add_port(device, port, message.chardev)

    def _remove_port(self, device: GuestDevice, number: int) -> None:
        port = device.console.remove_port(number)
        device.port_unplugged(port)
        if port.chardev is not None:
            self._host_ends.remove_port(device, port, port.chardev)

    def _remove_controller(self, device: GuestDevice) -> None:
        for port in list(device.port_serials):
            self._remove_port(device, port.number)
        device.remove()
        del self._devices[device.index]


def front_of(vhost_user: bool) -> MakeFront:
    """Return what makes the front of a controller.

    Its import is late, but before the sandbox: most machines have VMMs of one protocol.
    """
    if vhost_user:
        from virtserial.daemon.worker.vhost_user_front import VhostUserFront

        return VhostUserFront
    from virtserial.daemon.worker.vfio_user_front import VfioUserFront

    return VfioUserFront


def run_forked(parent: object, channel: WorkerEnd) -> NoReturn:
    """Be the worker, in a process that was forked from the keeper and has closed its descriptors; does not return."""

    def begin() -> WorkerEnd:
        _parents.append(parent)
        return channel

    _run(begin)


def run_spawned(fd: int, level: int, log_format: str) -> NoReturn:
    """Be a worker that was started anew, from the code that is installed now; does not return.

    Args:
        fd: the channel's descriptor.
        level, log_format: how the keeper logs.
    """

    def begin() -> WorkerEnd:
        # A signal to the whole group is the keeper's matter: it ends its worker, which ends without a keeper too.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _begin_log(level, log_format)
        os.set_inheritable(fd, False)
        channel = worker_end(socket.socket(fileno=fd))
        import_host_ends()
        for vhost_user in (False, True):
            front_of(vhost_user)
        channel.send(Ready(STATE_VERSION))
        return channel

    _run(begin)


def _begin_log(level: int, form: str) -> None:
    if form.startswith(("json ", "journal ")):
        from virtserial.logs import begin

        begin(level, form)
    else:
        logging.basicConfig(level=level, format=form, handlers=[LineHandler()])


def _run(begin: Callable[[], WorkerEnd]) -> NoReturn:
    """Serve until the keeper is gone, and end this process, whatever happens."""
    status = 1
    try:
        channel = begin()
        # What there is before the first device never dies: the collector need not look at it.  Nor does it look for
        # garbage first, of which there is next to none: after a fork, to touch these pages copies them.
        gc.freeze()
        gc.enable()
        Worker(channel).run()
        status = 0
    except BaseException:
        log.exception("internal error; the keeper starts a new worker")
    finally:
        os._exit(status)
