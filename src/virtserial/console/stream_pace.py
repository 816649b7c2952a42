"""The pace of one port's streams: when the device looks again by itself, instead of asking for a doorbell or reading.

A wake-up costs more than the bytes it finds, so in a stream few of them with much to do are worth more than many; but
nothing that may be a single message, or an answer, ever waits for a stream to gather.  Both classes know no clock: they
are told what a look has found, and say for how long the next may wait.
"""

from __future__ import annotations

from typing import Final

LOOK_AGAIN: Final = 0.0002
"""Seconds until the device looks at a ring again for whose doorbell it has not asked..."""
LOOK_ONCE_MORE: Final = 0.0004
"""...where such a look was in vain before..."""
LOOK_AGAIN_LEAST: Final = 0.00005
LOOK_AGAIN_MOST: Final = 0.0008
"""...and in a steady stream, so that each look finds a good batch."""
STREAM_CHAIN: Final = 2048
"""Bytes: a longer message that is not an answer to one from the host is taken for a part of a stream."""
STREAM_BATCH: Final = 512 << 10
"""Bytes: as many as shall be on the way at once, in a stream."""
STEADY_CHAINS: Final = 8
"""With fewer at a look a stream may be none, and nothing of it waits longer than LOOK_ONCE_MORE."""

STREAM_READ: Final = 16 << 10
"""Bytes: a host that gives so many at once is taken to go on."""
HOLD_LEAST: Final = 0.00002
HOLD_MOST: Final = 0.0002
"""Seconds for which a streaming host may fill its socket while the driver is busy with what it has."""
STREAM_BUFFERS: Final = 16
"""Receive buffers: a driver that was given so many at once gives them back soon, one by one."""
STARVED_LOOKS: Final = (0.0002, 0.0004, 0.0008)
"""Seconds until the device looks for returned buffers, time after time."""

PATIENCE_MOST: Final = 64
"""Lone chains of a sender that has never been found to send more meanwhile, until a look is put off once more."""


class TransmitPace:
    """Of a stream from the guest.

    Whether to put off the next look is learnt from the looks themselves: it pays if they find several chains.  A sender
    that waits for each of its chains would wait for the look; so each vain one doubles how many lone chains are served
    at once before the next is tried.

    Attributes:
        pause: seconds until the next look.
        are_short: the chains that the last look has found were shorter than STREAM_CHAIN.
    """

    __slots__ = ("_lone", "_patience", "_received", "are_short", "pause")

    def __init__(self) -> None:
        self.pause = LOOK_AGAIN
        self.are_short = True
        self._received = self._lone = 0
        self._patience = 1

    def is_stream(self, chains: int, size: int, received: int, waiting: int) -> bool:
        """Whether the guest seems to write a stream: what comes next may wait a moment for more to come with it.

        Args:
            chains, size: what the look has found, in chains and bytes.
            received: bytes that the guest has been given so far: with more than before, this may be the answer.
            waiting: chains that have come while these were moved: their sender does not wait for each.
        """
        before, self._received = self._received, received
        if chains > 1 or (size >= STREAM_CHAIN and waiting):
            self._lone, self._patience = 0, 1
            return True
        if size < STREAM_CHAIN or before != received:
            self.pause = LOOK_AGAIN
            return False
        self._lone += 1
        if self._lone < self._patience:
            return False
        self.pause = LOOK_AGAIN if self._patience == 1 else LOOK_ONCE_MORE
        self._lone, self._patience = 0, min(2 * self._patience, PATIENCE_MOST)
        return True

    def looked(self, chains: int, size: int, ring: int) -> float:
        """Return the seconds until the next look: it shall find a good part of the ring, but never most of it.

        Args:
            chains, size: what this look has found, in chains and bytes.
            ring: the queue's size.
        """
        if chains > ring >> 1 or size > STREAM_BATCH:
            self.pause = max(self.pause / 2, LOOK_AGAIN_LEAST)
        elif chains < STEADY_CHAINS and size < STREAM_BATCH >> 3:
            self.pause = min(max(self.pause, LOOK_AGAIN), LOOK_ONCE_MORE)
        elif chains < ring >> 2 and size < STREAM_BATCH >> 1:
            self.pause = min(self.pause * 1.5, LOOK_AGAIN_MOST)
        return self.pause


class ReceivePace:
    """Of a stream to the guest."""

    __slots__ = ("_hold", "_looks", "_returned")

    def __init__(self) -> None:
        self._hold = HOLD_LEAST
        self.reset()

    def reset(self) -> None:
        """The driver's buffers are gone."""
        self._returned = self._looks = 0

    def filled(self, buffers: int) -> None:
        """So many buffers were returned to the driver at once."""
        self._returned = max(self._returned, buffers)
        self._looks = 0

    def moment(self, size: int, unseen: int, ring: int) -> float:
        """Return the seconds for which the driver will not miss what is left in the host's socket; 0: read on.

        Args:
            size: bytes that the host has given.
            unseen: how many of the buffers it got before that the driver has not yet looked at.
            ring: the queue's size.
        """
        if size < STREAM_READ:
            return 0.0
        if unseen < ring >> 1:
            # It waits for these, or soon would have: the last moment was too long.
            self._hold = max(self._hold / 2, HOLD_LEAST)
        elif unseen > ring * 3 >> 2:
            self._hold = min(self._hold * 1.25, HOLD_MOST)
        return self._hold if self._hold > HOLD_LEAST else 0.0

    def starved(self) -> float:
        """The receiveq is empty: return the seconds until a look for returned buffers, so that the driver need not
        leave the virtual machine to tell; 0: ask for a doorbell, it has none to return."""
        if self._returned < STREAM_BUFFERS or self._looks == len(STARVED_LOOKS):
            return 0.0
        self._looks += 1
        return STARVED_LOOKS[self._looks - 1]

    @property
    def batch(self) -> int:
        """How many buffers make a batch worth a doorbell: half of the most that were returned at once, for the driver
        has at least as many."""
        return self._returned >> 1

    def take_batch(self) -> int:
        """Return `batch`, and forget how many were returned: the stream has paused."""
        batch, self._returned = self.batch, 0
        return batch
