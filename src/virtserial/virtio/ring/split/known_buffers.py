"""The buffers of a queue whose driver posts the same ones again and again.

Linux puts each receive buffer back into the descriptor it came from, so its descriptor table does not change for as
long as the port lives.  Where that is so, one comparison of the whole table replaces reading, checking and slicing
buffer by buffer.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
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

    __slots__ = ("_generation", "_lengths", "_table", "_views")

    def __init__(self, table: bytes, generation: int, size: int) -> None:
        self._table = table
        self._generation = generation
        self._views: list[memoryview | None] = [None] * size
        self._lengths = [0] * size

    def describes(self, table: bytes, generation: int) -> bool:
        """Whether it still holds: not a byte of the descriptor table and no memory mapping has changed."""
        return generation == self._generation and table == self._table

    def learn(self, batch: ChainBatch) -> None:
        """Remember a batch whose chains are a single view of guest memory each."""
        views, lengths = self._views, self._lengths
        start = 0
        for head, view, end in zip(batch.heads, batch.views, batch.ends, strict=True):
            views[head] = view
            lengths[head] = end - start
            start = end

    def fill(self, batch: ChainBatch, heads: Sequence[int], max_bytes: int) -> bool:
        """Make a batch of these heads; False if one of them is not known (or no head at all)."""
        try:
            lengths = list(map(self._lengths.__getitem__, heads))
        except IndexError:
            return False
        if not all(lengths):
            return False
        ends = list(accumulate(lengths))
        if ends[-1] > max_bytes:
            count = bisect_left(ends, max_bytes) + 1
            del ends[count:]
            heads = heads[:count]
        batch.heads = list(heads)
        batch.ends = ends
        batch.views = list(map(self._views.__getitem__, heads))  # type: ignore[arg-type]  # a length means a view
        return True
