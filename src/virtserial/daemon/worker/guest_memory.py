"""Guest memory as a VMM maps it for one device: regions, what the keeper holds of them, and access by messages."""

from __future__ import annotations

import errno
import logging
import os
import resource
from typing import TYPE_CHECKING, Final

from virtserial.channel.messages import DmaMap, DropDma
from virtserial.errors import AccessInterrupted, AccessPending, PeerError
from virtserial.memory.region import RegionMaker
from virtserial.vfio_user.wire import VFIO_DMA_MAP_FLAG_WRITE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.daemon.worker.front import FrontOwner
    from virtserial.memory.region import Buffer
    from virtserial.vfio_user.dma import MessageMemory

log = logging.getLogger("virtserial.device")

DESCRIPTOR_SHARE: Final = 4
"""A VMM's maps may hold one in so many of the descriptors that a process may have; the keeper holds one for each."""


TURN_PATIENCE: Final = 0.005
"""Seconds that a VMM without shared memory may make others wait for its answers, in each turn of the loop."""
SLOW_ANSWERS: Final = 0.5
"""Seconds beyond that which a VMM on a busy machine may take now and then; a tenth of the time that passes is added."""


class GuestMemory:
    """The maps of one device, in its memory table.

    Args:
        owner: the device.
        trust_vmm: map files that may shrink.
        access: how memory without a file is reached; raises AccessInterrupted if that cannot be.
        after_accesses: called in the next turn of the loop.
        lost: told why, when that way has failed.
    """

    def __init__(
        self,
        owner: FrontOwner,
        trust_vmm: bool,
        access: Callable[[], MessageMemory],
        after_accesses: Callable[[], None],
        lost: Callable[[str], None],
    ) -> None:
        self._owner = owner
        self._table = owner.console.memory
        self._regions = RegionMaker(self, trust_vmm, self._tell_slow_path, owner.ledger.account)
        self._access = access
        self._after_accesses = after_accesses
        self._patience = TURN_PATIENCE
        self._allowance = SLOW_ANSWERS
        self._allowed_since = 0.0
        self._attempt = 0, 0
        self._started = 0
        self._lost = lost
        self._slow_path_told = False
        self._restored: set[tuple[int, int, int, int]] = set()
        self._with_descriptor: set[int] = set()
        self._most_descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // DESCRIPTOR_SHARE

    def map(self, iova: int, size: int, prot: int, fd: int | None, offset: int) -> None:
        """Map a range (VfioDevice.dma_map); `fd` is closed.

        Raises:
            PeerError: it cannot be.
        """
        try:
            if (iova, size, prot, offset) in self._restored:
                # A predecessor was killed between handing the map to the keeper and recording the request.
                self._restored.discard((iova, size, prot, offset))
                return
            self._check(iova, size, fd is not None)
            region = self._regions.make(iova, size, fd, offset, bool(prot & VFIO_DMA_MAP_FLAG_WRITE))
            self._owner.send(DmaMap(self._owner.index, iova, size, prot, offset), [] if fd is None else [fd])
        finally:
            if fd is not None:
                os.close(fd)
        self._table.map(region)
        if fd is not None:
            self._with_descriptor.add(iova)
        self._owner.console.memory_mapped()

    def _check(self, iova: int, size: int, with_descriptor: bool) -> None:
        try:
            self._table.check(iova, size)
            if with_descriptor and len(self._with_descriptor) >= self._most_descriptors:
                raise PeerError(f"DMA map: more than {self._most_descriptors} with a descriptor", errno.ENOSPC)
        except PeerError as error:
            self._owner.log.error("refused: %s", error)
            raise

    def restore(self, message: DmaMap, fd: int | None) -> None:
        """Map what a predecessor had mapped; `fd` is closed."""
        iova, size, prot, offset = message.iova, message.size, message.prot, message.offset
        try:
            self._table.map(self._regions.make(iova, size, fd, offset, bool(prot & VFIO_DMA_MAP_FLAG_WRITE)))
        finally:
            if fd is not None:
                os.close(fd)
        if self._table.log is not None:
            # What the predecessor has written there is not known.
            self._table.log.mark(iova, size)
        self._restored.add((iova, size, prot, offset))
        if fd is not None:
            self._with_descriptor.add(iova)

    def _tell_slow_path(self, why: str) -> None:
        if not self._slow_path_told:
            self._slow_path_told = True
            log.warning("%s: slower path: %s", self._owner.name, why)

    def unmap(self, iova: int, size: int) -> None:
        """Let go of a range (VfioDevice.dma_unmap).

        Raises:
            PeerError: it cuts a map in two.
        """
        self._restored.clear()
        for region in self._table.unmap(iova, size):
            self._with_descriptor.discard(region.iova)
            self._owner.send(DropDma(self._owner.index, region.iova))
        self._owner.console.memory_unmapped(iova, size)

    def unmap_all(self) -> None:
        """Let go of all guest memory (VfioDevice.dma_unmap_all)."""
        self._restored.clear()
        self._table.clear()
        self._with_descriptor.clear()
        self._owner.send(DropDma(self._owner.index, None))
        self._owner.console.memory_unmapped(0, 1 << 64)

    # memory.region.MessageAccess: by messages, during which the VMM may reset the device or leave

    def patience(self) -> float:
        """Seconds that this device may still make everybody wait in this turn of the loop."""
        return max(0.0, self._patience, self._allowance)

    def _spend(self, started: float) -> None:
        now = self._owner.now()
        waited = now - started
        self._patience -= waited
        earned = (now - self._allowed_since) / 10
        self._allowed_since = now
        self._allowance = min(SLOW_ANSWERS, self._allowance + earned) - max(0.0, waited - TURN_PATIENCE)

    def _renew_patience(self) -> None:
        self._patience = TURN_PATIENCE
        self._after_accesses()

    def dma_read(self, address: int, length: int) -> bytes:
        """Read guest memory by messages."""
        access, epoch = self._message_memory(), self._owner.console.epoch
        started = self._owner.now()
        try:
            data = access.dma_read(address, length)
        except PeerError as error:
            raise self._interrupted(error) from error
        finally:
            self._spend(started)
            self._owner.loop.add_turn(self._renew_patience)
        self._check_epoch(epoch)
        return data

    def dma_write(self, address: int, data: Buffer) -> None:
        """Write guest memory by messages."""
        access, epoch = self._message_memory(), self._owner.console.epoch
        try:
            access.dma_write(address, memoryview(data))
        except PeerError as error:
            raise self._interrupted(error) from error
        finally:
            self._owner.loop.add_turn(self._renew_patience)
        self._check_epoch(epoch)

    def store_posted(self, stores: Sequence[tuple[int, bytes]]) -> None:
        """Store bytes by the VMM, at many addresses at once (MessageMemory.store_posted)."""
        try:
            self._access().store_posted(stores)
        except PeerError as error:
            raise self._interrupted(error) from error

    def _message_memory(self) -> MessageMemory:
        self._tell_slow_path("the VMM does not share its memory (share=on): every access is a message")
        access, turns = self._access(), self._owner.console.turns
        if turns.waits:
            # Somebody outside of the turns; the dropped one keeps what it has read.
            raise AccessPending(f"{self._owner.name}: a turn waits for the VMM's answer")
        attempt = turns.attempt, self._table.commits
        if self._attempt != attempt:
            self._attempt = attempt
            access.begin()
        elif self._started != turns.started:
            access.repeat()
        self._started = turns.started
        return access

    def _interrupted(self, error: PeerError) -> AccessInterrupted:
        self._lost(str(error))
        return AccessInterrupted(str(error))

    def _check_epoch(self, epoch: int) -> None:
        if epoch != self._owner.console.epoch:
            raise AccessInterrupted(f"{self._owner.name}: the device was reset during a memory access")
