"""The vfio-user front of a device: a PCI function, its server, the VMM's connection and interrupts.

Every descriptor that the VMM sends goes to the keeper before the message that brought it is answered.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from virtserial.channel.messages import DmaMap, DropIrq, Irq
from virtserial.console.device import ConsoleDevice
from virtserial.daemon.worker.guest_memory import GuestMemory
from virtserial.daemon.worker.vmm_connection import VmmConnection
from virtserial.errors import AccessInterrupted, PeerError
from virtserial.pci.function import VirtioPciFunction
from virtserial.pci.layout import PCI_CONFIG_SPACE_SIZE, MsixLayout
from virtserial.pci.msix import INTERRUPTS, MsixMessages
from virtserial.state.pci_state import PciState
from virtserial.vfio_user.dma import MessageMemory
from virtserial.vfio_user.server import Server
from virtserial.vfio_user.stream import MessageStream

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from virtserial.accounting import Note
    from virtserial.channel.messages import Controller
    from virtserial.daemon.worker.front import FrontOwner
    from virtserial.memory.state import StateMemory

CHECK_INTERVAL = 0.25
"""Seconds between two looks for requests of ours that are not answered."""


def state_size(max_ports: int, vectors: int = 0) -> int:
    """Bytes of state memory for a controller with this front, whole pages.

    Args:
        vectors: those of a controller with unplug=on, else 0.
    """
    size = ConsoleDevice.state_size(max_ports) + VirtioPciFunction.state_size + Server.state_size
    size += MsixMessages.state_size(MsixLayout.of(vectors))
    return (size + mmap.PAGESIZE - 1) & -mmap.PAGESIZE


class VfioUserFront(VirtioPciFunction):
    """A PCI function behind a vfio-user server (front.Front, vfio_user.device.VfioDevice, pci.msix.MessageWriter).

    Args:
        owner: the device.
        state: its state memory, in which function and server take the next places.
        config: what the keeper has told of the controller.
    """

    def __init__(self, owner: FrontOwner, state: StateMemory, config: Controller) -> None:
        self._owner = owner
        self._access: MessageMemory | None = None
        self._post: Callable[[int, int], bool] | None = None
        self._retry_asked = self._checking = False
        self._vmm = VmmConnection(owner, self._open_stream, self._has_left)
        self._vmm.has_room = self._has_room
        self.memory = GuestMemory(owner, config.trust_vmm, self._message_access, self._after_accesses, self._vmm.lose)
        super().__init__(
            owner.console,
            state,
            vectors=config.vectors,
            account=owner.ledger.account,
            message_writer=self if config.unplug else None,
            has_legacy=config.legacy,
            has_modern=config.modern,
            page_per_vq=config.page_per_vq,
        )
        self.interrupts.signals.lost = self._vmm.lose
        self._server = Server(self, state, migratable=owner, controller=owner.index, ledger=owner.ledger)
        self.saved = PciState(self)

    # The VMM's connection

    def connect(self, fd: int) -> None:
        self._vmm.connect(fd)

    def finish(self, note: Note) -> None:
        self._vmm.finish(note)

    def close(self) -> None:
        """The device is unplugged."""
        self._vmm.disconnect("")

    def _open_stream(self, sock: socket.socket) -> MessageStream:
        return MessageStream(sock, self._server)

    def _has_left(self) -> None:
        self._access = self._post = self._vmm.served = None
        self._server.disconnected()
        self.interrupts.signals.begin()
        # "the device state should otherwise be retained" (vfio-user): for a guest whose VMM is gone there is none.
        self.reset()

    def _served(self) -> None:
        if self._access is not None and self._access.answered:
            self._owner.console.turns.repeat()
            if self._post is None:
                self._has_room()

    def _has_room(self) -> None:
        if self.messages is not None and self.messages.has_pending:
            self.ask_for_retry()

    def _after_accesses(self) -> None:
        """Memory was accessed by messages: the socket may hold some of the VMM's that no edge tells of any more."""
        self._vmm.serve()
        stream = self._vmm.stream
        if stream is not None and stream.asked and not self._checking:
            self._checking = True
            self._owner.loop.call_later(CHECK_INTERVAL, self._check_replies)

    def _check_replies(self) -> None:
        """A VMM that leaves a request of ours unanswered loses its connection."""
        self._checking = False
        stream = self._vmm.stream
        if stream is not None:
            try:
                stream.asked.check()
            except PeerError as error:
                self._vmm.disconnect(str(error))
            else:
                self._after_accesses()

    def reset(self) -> None:
        """The VMM resets the function; it runs after that, whatever it did before."""
        super().reset()
        self.hold_intx(False)
        if self._owner.console.paused:
            self._owner.resume()

    # After a dead predecessor

    def restore(self, message: DmaMap | Irq, fds: Sequence[int]) -> None:
        """Take a map or an interrupt eventfd that a predecessor had."""
        match message:
            case DmaMap():
                self.memory.restore(message, fds[0] if fds else None)
            case Irq():
                super().set_irq_eventfds(message.index, message.number, fds)

    def take_over(self) -> None:
        """Look for messages, and send those of interrupts that a predecessor could not."""
        if self.messages is not None and self.messages.has_pending:
            self.ask_for_retry()
        self._vmm.serve()

    # VfioDevice: guest memory

    def dma_map(self, iova: int, size: int, prot: int, fd: int | None, offset: int) -> None:
        self.memory.map(iova, size, prot, fd, offset)

    def dma_unmap(self, iova: int, size: int) -> None:
        self.memory.unmap(iova, size)

    def dma_unmap_all(self) -> None:
        self.memory.unmap_all()

    def _message_access(self) -> MessageMemory:
        stream = self._vmm.stream
        if stream is None:
            raise AccessInterrupted(f"{self._owner.name}: the VMM has left")
        if self._access is None:
            self._access = MessageMemory(stream, self._server.session, self.memory.patience, self._owner.console.fail)
            self._vmm.served = self._served
        return self._access

    # A machine that moves (relocation.py)

    def configuration_space(self) -> bytes:
        return self.configuration.read(0, PCI_CONFIG_SPACE_SIZE)

    def store_posted(self, stores: Sequence[tuple[int, bytes]]) -> None:
        self.memory.store_posted(stores)

    def settle(self) -> None:
        if self._vmm.stream is not None:
            self._vmm.stream.settle()
            self._owner.add_turn(self._after_accesses)

    # VfioDevice: interrupts

    def set_irq_eventfds(self, index: int, start: int, fds: Sequence[int]) -> None:
        """Take interrupt eventfds; the keeper holds them from now on."""
        owner = self._owner
        if not fds:
            owner.send(DropIrq(owner.index, index, None))
        for number, fd in enumerate(fds, start):
            if fd < 0:
                owner.send(DropIrq(owner.index, index, number))
            else:
                owner.send(Irq(owner.index, index, number), [fd])
        super().set_irq_eventfds(index, start, fds)

    # pci.msix.MessageWriter

    def write_message(self, address: int, data: int) -> bool:
        """Send an interrupt's message to the VMM, if there is room for it now."""
        if self._post is None:
            self.ask_for_retry()
            return False
        if self._post(address, data):
            return True
        self._vmm.watch_for_room()
        return False

    def ask_for_retry(self) -> None:
        """Send the messages that wait, in a turn."""
        if not self._retry_asked:
            self._retry_asked = True
            self._owner.add_turn(self._retry_messages)

    def _retry_messages(self) -> None:
        self._retry_asked = False
        if self._vmm.stream is None or self.messages is None:
            return
        if self._post is None:
            access = self._message_access()
            try:
                access.prepare_posts(INTERRUPTS)
            except PeerError as error:
                self._vmm.disconnect(str(error))
                return
            if not access.can_post:
                return  # A VMM that is busy, with the BIOS of many controllers: `_served` comes with its answer.
            self._post = access.post
        self.messages.send_pending()
