"""The worker: moves bytes between guests and host ends.  It opens nothing; the keeper hands it every descriptor.

What the keeper says comes as messages of a "type": "controller" and "port" build what there is, "dma", "irq", "chardev"
and "vmm" bring descriptors (of now, or of a predecessor), "go" starts it all.  "port" also comes later, and "unplug";
a "chardev" for a port that has a connection replaces it, "no chardev" takes it away.  "save", "restore" and "continue"
are answered.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import logging
import mmap
import os
import signal
import socket
from typing import TYPE_CHECKING, Any, NoReturn, cast

from virtserial.accounting import Account, Ledger, Note, nowhere, open_counts
from virtserial.channel.channel import Channel
from virtserial.channel.codec import decode
from virtserial.channel.connections import CONNECTION, READABLE
from virtserial.daemon.saved_state import answer_request
from virtserial.daemon.worker.guest_device import GuestDevice
from virtserial.errors import StateError, VirtserialError
from virtserial.host_end.factory import open_host_end
from virtserial.host_end.hub import HubHostEnd
from virtserial.host_end.mux import Multiplexer
from virtserial.host_end.mux_front import StreamFront
from virtserial.host_end.preparation import import_host_ends, prepare
from virtserial.loop import EPOLLIN, EventLoop, sharpen_timers
from virtserial.memory.state import VERSION as STATE_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.channel.channel import Message
    from virtserial.console.port import Port

log = logging.getLogger("virtserial.worker")

_parents: list[object] = []
"""What a forked worker inherits and must not finalize: its descriptors are closed, their numbers are used anew."""


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

    def __init__(self, channel: Channel) -> None:
        self.loop = EventLoop()
        self._channel = channel
        self._devices: dict[int, GuestDevice] = {}
        self._ports: dict[str, list[tuple[GuestDevice, Port]]] = {}
        self._muxes: dict[str, tuple[int, Multiplexer]] = {}
        self._fronts: dict[str, list[StreamFront]] = {}
        self._ledger = nowhere()
        self._account = self._ledger.account
        self._going = False
        self.loop.watch(channel.fileno(), EPOLLIN, self._keeper_spoke)

    def run(self) -> None:
        """Serve until the keeper is gone."""
        self.loop.run()

    def _keeper_spoke(self, _: int) -> None:
        try:
            while (received := self._channel.receive()) is not None:
                self._handle(*received)
        except EOFError:
            self.loop.stop()

    def _say(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Tell the keeper; without one there is nothing more to do."""
        try:
            self._channel.send(message, fds)
        except OSError:
            self.loop.stop()

    def _begin(self, message: Message, ledger_fd: int) -> None:
        """Take the ledger, and go into the sandbox: from here on nothing can be opened."""
        sharpen_timers()
        with contextlib.suppress(OSError):
            self._ledger = Ledger(memoryview(mmap.mmap(ledger_fd, 0)), open_counts(os.getpid()), self._account)
        os.close(ledger_fd)
        logging.root.addHandler(_Unaccounted(self._account))
        import_host_ends()
        if message["sandbox"]:
            from virtserial.daemon.worker.sandbox import confine

            self._say({"type": "confined", "lacking": confine()})

    def _go(self) -> None:
        self._going = True
        for device in self._devices.values():
            device.take_over()
        doubtful = sum(device.console.doubtful for device in self._devices.values())
        self._say({"type": "going", "doubtful": doubtful})

    def _stop(self) -> None:
        """Stop for a successor, between two turns; what is in no ring and no socket goes to it by the keeper."""
        for device in self._devices.values():
            for port, serial in device.port_serials.items():
                words = {"controller": device.index, "number": port.number, "serial": serial}
                for start in range(0, len(port.backlog), BACKLOG_PIECE):
                    data = base64.b64encode(port.backlog[start : start + BACKLOG_PIECE]).decode()
                    self._say({"type": "backlog", **words, "data": data})
        self.loop.stop()

    def _inherit_backlog(self, device: GuestDevice, message: Message) -> None:
        for port, serial in device.port_serials.items():
            if (port.number, serial) == (message["number"], message["serial"]):
                port.backlog += base64.b64decode(cast(str, message["data"]))

    def _handle(self, message: Message, fds: list[int]) -> None:
        kind = message["type"]
        self._account.stray = True
        if kind == "prepare":
            prepare(str(message["name"]), decode(READABLE, message["what"]), fds)
        elif kind == "begin":
            self._begin(message, fds[0])
        elif kind == "go":
            self._go()
        elif kind == "stop":
            self._stop()
        elif kind == "ping":
            self._say({"type": "pong", "number": message["number"]})
        elif kind == "chardev":
            self._join(message, fds)
        elif kind == "no chardev":
            self._part(cast(str, message["chardev"]))
        elif kind == "front":
            self._add_front(cast(str, message["chardev"]), cast(str, message["front"]), fds[0])
        elif kind == "controller":
            device = GuestDevice(message, fds[0], self.loop, self._say, self._ledger)
            self._devices[device.index] = device
        else:
            device = self._devices[cast(int, message["controller"])]
            if kind == "vmm":
                device.connect(fds[0])
                if self._going:
                    device.take_over()
            elif kind == "port":
                self._add_port(device, message)
            elif kind == "unplug":
                self._unplug(device, cast(int, message["number"]))
            elif kind == "unplug controller":
                self._unplug_controller(device)
            elif kind == "interrupted":
                device.finish(Note(**{word: cast(Any, message[word]) for word in Note._fields}))
            elif kind == "backlog":
                self._inherit_backlog(device, message)
            elif kind == "dma":
                device.restore_dma(message, fds)
            elif kind == "irq":
                device.restore_irq(message, fds)
            elif kind in ("save", "restore", "continue"):
                self._say(answer_request(device, message, fds))
            else:
                raise StateError(f"the keeper said {kind!r}")

    def _add_port(self, device: GuestDevice, message: Message) -> None:
        chardev = cast("str | None", message["chardev"])
        port = device.console.add_port(
            cast(int, message["number"]),
            cast("str | None", message["name"]),
            is_console=bool(message["is_console"]),
            has_backend=chardev is not None,
            plug=cast(int, message["serial"]),
        )
        device.port_plugged(port, cast(int, message["serial"]), bool(message["guest_open"]))
        cols, rows = cast(int, message["cols"]), cast(int, message["rows"])
        if cols or rows:
            device.console.set_size(port, cols, rows)
        port.chardev = chardev
        if chardev is not None:
            self._ports.setdefault(chardev, []).append((device, port))

    def _unplug(self, device: GuestDevice, number: int) -> None:
        port = device.console.remove_port(number)
        device.port_unplugged(port)
        if port.chardev is not None:
            users = self._ports[port.chardev]
            users.remove((device, port))
            if not users:
                del self._ports[port.chardev]

    def _unplug_controller(self, device: GuestDevice) -> None:
        for port in list(device.port_serials):
            self._unplug(device, port.number)
        device.remove()
        del self._devices[device.index]

    def _add_front(self, chardev: str, name: str, fd: int) -> None:
        def tell(state: str) -> None:
            serial, _ = self._muxes.get(chardev, (0, None))
            self._say({"type": "front", "chardev": chardev, "front": name, "state": state, "serial": serial})

        front = StreamFront(self.loop, f"chardev '{chardev}' ({name})", fd, tell, self._account)
        self._fronts.setdefault(chardev, []).append(front)

    def _part(self, chardev: str) -> None:
        """The connection of a chardev is taken away from its ports, or from the hub that it is a part of."""
        for device, port in self._ports.get(chardev, ()):
            if port.host is not None:
                host = port.host
                port.detach()
                host.close()
                device.connection_serials.pop(port, None)
        for front in self._fronts.get(chardev, ()):
            front.leave()
        self._muxes.pop(chardev, None)
        for users in self._ports.values():
            for _, port in users:
                if isinstance(port.host, HubHostEnd):
                    port.host.leave(chardev)

    def _join(self, message: Message, fds: list[int]) -> None:
        """A back end has a connection: join it to the port that uses the chardev, in place of the one it has."""
        chardev, serial = cast(str, message["chardev"]), cast(int, message["serial"])
        hub = cast("str | None", message["hub"])
        users = self._ports.get(hub or chardev)
        if not users and chardev not in self._fronts:
            for fd in fds:
                os.close(fd)
            return
        known_serial, mux = self._muxes.get(chardev, (0, None))
        if mux is not None and known_serial == serial and mux.fronts:
            # It was sent again, for a port that has just been plugged in.
            for fd in fds:
                os.close(fd)
            self._join_mux(chardev, serial, mux)
            return
        try:
            host = open_host_end(decode(CONNECTION, message["connection"]), fds, self.loop, self._account)
        except VirtserialError as error:
            log.error("chardev %s: %s", chardev, error)
            self._connection_ended(chardev, serial)
            return
        self._part(chardev)
        if message["mux"]:
            leave = self._quit_of(chardev) if message["mux_quit"] else None
            mux = Multiplexer(self.loop, host, leave, cast(str, message["program"]))
            self._muxes[chardev] = serial, mux
            self._join_mux(chardev, serial, mux)
            mux.start()
            return
        assert users is not None  # Fronts are of multiplexers only.
        device, port = users[0]
        if hub is not None:
            self._hub_of(port, hub).join(chardev, host, lambda: self._connection_ended(chardev, serial))
        else:
            device.connection_serials[port] = serial
            port.attach(host)

    def _quit_of(self, chardev: str) -> Callable[[], None]:
        return lambda: self._say({"type": "quit", "chardev": chardev})

    def _connection_ended(self, chardev: str, serial: int) -> None:
        self._say({"type": "connection ended", "chardev": chardev, "serial": serial})

    def _hub_of(self, port: Port, hub: str) -> HubHostEnd:
        """The hub under a port; made with the first connection of a part."""
        if not isinstance(port.host, HubHostEnd):
            port.attach(HubHostEnd(self.loop, f"chardev '{hub}' (hub)"))
        assert isinstance(port.host, HubHostEnd)
        return port.host

    def _join_mux(self, chardev: str, serial: int, mux: Multiplexer) -> None:
        """Give each user of a multiplexed chardev that has no share of it one; the last gets the focus."""
        for front in self._fronts.get(chardev, ()):
            front.join(mux, lambda: self._connection_ended(chardev, serial))
        for device, port in self._ports.get(chardev, ()):
            if port.host is None:
                device.connection_serials[port] = serial
                port.attach(mux.add_front())


def run_forked(keeper: object, channel: Channel) -> NoReturn:
    """Be the worker, in a process that was just forked from the keeper; does not return.

    The keeper's descriptors are closed here, except standard input, output and error and the channel.
    """
    status = 1
    try:
        _parents.append(keeper)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            # Beside a QEMU that decides when all ends, they are ignored in the keeper and so here.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        fd = channel.fileno()
        os.closerange(3, fd)
        os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))
        # What came with the fork never dies: the collector need not look at it, nor touch (and so copy) its pages.
        gc.collect()
        gc.freeze()
        Worker(channel).run()
        status = 0
    except BaseException:
        log.exception("internal error; the keeper starts a new worker")
    finally:
        os._exit(status)


def run_spawned(fd: int, level: int, log_format: str) -> NoReturn:
    """Be a worker that was started anew, from the code that is installed now; does not return.

    Args:
        fd: the channel's descriptor.
        level, log_format: how the keeper logs.
    """
    status = 1
    try:
        logging.basicConfig(level=level, format=log_format)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.set_inheritable(fd, False)
        channel = Channel(socket.socket(fileno=fd))
        import_host_ends()
        channel.send({"type": "ready", "state_version": STATE_VERSION})
        gc.collect()
        gc.freeze()
        Worker(channel).run()
        status = 0
    except BaseException:
        log.exception("internal error; the keeper starts a new worker")
    finally:
        os._exit(status)
