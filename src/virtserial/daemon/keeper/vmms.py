"""The controllers' VMMs: where each controller listens, its state memory, and what is held of the VMM that is there."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from functools import partial
from typing import TYPE_CHECKING

from virtserial.channel.messages import ConnectVmm, DmaMap, Irq
from virtserial.chardev.reach import ANYWHERE
from virtserial.daemon.keeper.document import ControllerLeft
from virtserial.daemon.keeper.farewell import Farewell
from virtserial.daemon.keeper.run_directory import run_directory
from virtserial.daemon.keeper.vmm_listener import VmmListener
from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from virtserial.channel.channel import Send
    from virtserial.channel.messages import FromKeeper
    from virtserial.chardev.base import Put, Take
    from virtserial.chardev.reach import Reach
    from virtserial.daemon.keeper.heartbeat import Heartbeat
    from virtserial.daemon.keeper.held import HeldDescriptors
    from virtserial.daemon.keeper.systemd import ActivatedListener
    from virtserial.loop import EventLoop
    from virtserial.machine.model import Controller

log = logging.getLogger("virtserial.keeper")

STATE_BASE = 256 << 10
STATE_PER_PORT = 4 << 10


def state_room(max_ports: int) -> int:
    """Bytes of state memory for one controller, whole pages: more than it needs (vfio_user_front.state_size).

    To know exactly would be to import all that a worker is made of before the first socket listens; pages that nobody
    touches take no memory; and a newer worker may need more.
    """
    return STATE_BASE + STATE_PER_PORT * max_ports


class Vmms:
    """
    Args:
        held: where what belongs to VMMs is held.
        heartbeat: watches their sockets.
        send: to the worker.

    Attributes:
        farewell: closes their sockets.
        states: by controller's index, the descriptor of its state memory.
        listeners: by controller's index, where its VMM comes.
        activated: by controller's id: sockets that a service manager listens at, for the controllers to come.
    """

    def __init__(
        self, loop: EventLoop, held: HeldDescriptors, heartbeat: Heartbeat, send: Send[FromKeeper]
    ) -> None:
        self._loop = loop
        self._held = held
        self._heartbeat = heartbeat
        self._send = send
        self.farewell = Farewell(loop)
        self.states: dict[int, int] = {}
        self._controllers: dict[int, Controller] = {}
        self.listeners: dict[int, VmmListener] = {}
        self.activated: dict[str | None, ActivatedListener] = {}

    def open(self, controller: Controller, reach: Reach = ANYWHERE) -> None:
        """Make a controller's state memory and listen for its VMM, if there is a path; `reach` uses the path.

        Raises:
            ConfigError: its socket cannot be bound, or no descriptor is left.
        """
        index = controller.index
        memory = _make_state_memory(controller)
        try:
            directory = os.path.dirname(controller.socket)
            if directory == run_directory():
                _make_directory(directory)
            activated = self.activated.pop(controller.id, None)
            if controller.socket:
                came = partial(self.came, index)
                self.listeners[index] = VmmListener(
                    self._loop, controller.name, controller.socket, came, self.farewell, activated, reach
                )
        except OSError as error:
            os.close(memory)
            raise ConfigError(f"{controller.name}: cannot listen at {controller.socket}: {error.strerror}") from error
        except BaseException:
            os.close(memory)
            raise
        self.states[index] = memory
        self._controllers[index] = controller

    def hand_over(self, put: Put) -> tuple[ControllerLeft, ...]:
        """Return what another process needs to take the controllers over (`take_over`)."""
        return tuple(
            ControllerLeft(index, put(state), self.listeners[index].hand_over(put) if index in self.listeners else None)
            for index, state in self.states.items()
        )

    def take_over(self, left: ControllerLeft, controller: Controller, take: Take) -> None:
        """Take over a controller that another process has left; what that held of the VMM is held already.

        Raises:
            StateError: a descriptor is missing.
        """
        index = left.controller
        self._controllers[index] = controller
        self.states[index] = take(left.state)
        if left.listener is not None:
            self.listeners[index] = VmmListener.take_over(
                self._loop, controller.name, partial(self.came, index), self.farewell, left.listener, take
            )
        for _, fds in self._held.all(ConnectVmm, index):
            self._heartbeat.watch(fds[0])

    def adopt(self, index: int, fd: int) -> None:
        """Serve the one VMM of a controller without a path; the descriptor is owned from here on.

        Raises:
            ConfigError: it is no connected UNIX socket.
        """
        try:
            client = socket.socket(fileno=fd)
            client.getpeername()
        except OSError as error:
            raise ConfigError(f"descriptor {fd} is no connected socket: {error.strerror}") from error
        client.setblocking(False)
        os.set_inheritable(fd, False)
        self.came(index, client)

    def came(self, index: int, client: socket.socket) -> None:
        """A controller's VMM has connected."""
        fd = client.detach()
        self._held.hold(message := ConnectVmm(index), [fd])
        self._send(message, [fd])
        self._heartbeat.watch(fd)

    def gone(self, index: int) -> None:
        """The worker has let go of a VMM: the next one may come, or the process ends if none can."""
        self._free(index)
        if index in self.listeners:
            self.listeners[index].client_gone()
        elif not self.listeners:
            self._loop.stop()

    def detach(self, index: int) -> None:
        """Close the connection of a VMM at which workers die, and begin its controller anew."""
        controller = self._controllers.get(index)
        if controller is None:
            return
        log.error("%s: two workers in a row died restoring what its VMM had: its connection is closed", controller.name)
        os.close(self.states[index])
        self.states[index] = _make_state_memory(controller)
        self.gone(index)

    def is_there(self, index: int) -> bool:
        """Whether a VMM is connected to a controller."""
        return self._held.find(ConnectVmm, index) is not None

    def remove(self, index: int) -> None:
        """Let go of all there is for a controller; the worker has been told."""
        del self._controllers[index]
        if index in self.listeners:
            self.listeners.pop(index).close()
        self._free(index)
        os.close(self.states.pop(index))

    def _free(self, index: int) -> None:
        """Free what was a VMM's, and close its socket without leaving bytes in it."""
        self._held.drop_all(DmaMap, index)
        self._held.drop_all(Irq, index)
        for fd in self._held.take(ConnectVmm, index):
            self._heartbeat.unwatch(fd)
            self.farewell.close(fd)

    def stop_listening(self) -> None:
        """Let nobody come any more."""
        for listener in self.listeners.values():
            listener.close()

    def close(self) -> None:
        """Close every VMM's socket as it should be, and every state memory; the worker has ended."""
        sockets = [fd for index in self.states for fd in self._held.take(ConnectVmm, index)]
        for fd in sockets:
            self._heartbeat.unwatch(fd)
        self.farewell.finish(sockets)
        for memory in self.states.values():
            os.close(memory)
        self.states.clear()


def _make_state_memory(controller: Controller) -> int:
    try:
        # The name is for people who look into /proc, and at most 249 bytes long.
        memory = os.memfd_create(f"virtserial {controller.name[:200]}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise ConfigError(f"{controller.name}: cannot allocate state memory: {error.strerror}") from error
    os.ftruncate(memory, state_room(controller.max_ports))
    # A worker that somebody has taken over must not take it away from its successors.
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return memory


def _make_directory(path: str) -> None:
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"Could not create '{path}': {error.strerror}; say socket=PATH") from error
