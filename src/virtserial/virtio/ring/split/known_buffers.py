"""The buffers of a queue whose driver posts the same ones again and again.

Linux puts each receive buffer back into the descriptor it came from, so its descriptor table does not change for as
long as the port lives, and all its buffers are pages.  Where that is so, one comparison of the whole table replaces
reading, checking and slicing buffer by buffer, and one length stands for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.virtio.ring.chains import ChainBatch

WORTH_KNOWING: Final = 16
"""Chains in a batch: with fewer, the comparison costs more than it saves; and an idle port needs no memory for it."""


class KnownBuffers:
    """What one state of a descriptor table says of heads that were looked at.

    Args:
        table: a copy of the descriptor table.
        generation: of the memory table; with another one the views are void.
    """

    __slots__ = ("_generation", "_length", "_table", "_views")

    def __init__(self, table: bytes, generation: int) -> None:
        self._table = table
        self._generation = generation
        self._length = 0
        self._views: dict[int, memoryview] = {}

    def describes(self, table: bytes, generation: int) -> bool:
        """Whether it still holds: not a byte of the descriptor table and no memory mapping has changed."""
        return generation == self._generation and table == self._table

    def learn(self, batch: ChainBatch) -> None:
        """Remember a batch whose chains are a single view of guest memory each, if all buffers have one length."""
        ends = batch.ends
        length = self._length or ends[0]
        if ends == list(range(length, length * len(ends) + 1, length)):
            self._length = length
            self._views.update(zip(batch.heads, batch.views, strict=True))

    def fill(self, batch: ChainBatch, heads: Sequence[int], max_bytes: int) -> bool:
        """Make a batch of these heads (at least one); False if one of them is not known."""
        length = self._length
        if not length:
            return False
        count = max(-(-max_bytes // length), 1)
        if count < len(heads):
            heads = heads[:count]
        try:
            batch.views = list(map(self._views.__getitem__, heads))
        except KeyError:
            return False
        batch.heads = list(heads)
        batch.each = length
        batch.ends = range(length, length * len(heads) + 1, length)
        return True
