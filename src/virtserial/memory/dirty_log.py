"""The pages of guest memory that the device has written, for a VMM that moves a running guest to another host.

The bits of pages are in chunks, one integer each; only chunks with a written page exist.
"""

from __future__ import annotations

from typing import Final

LOGGED_PAGE_SIZE: Final = 4096
"""The unit of the log, in bytes."""
_CHUNK_PAGES: Final = 8192
_WHOLE_CHUNK: Final = (1 << _CHUNK_PAGES) - 1
MAX_CHUNKS: Final = 65536
"""For 2 TiB of guest memory; the log then takes 64 MiB.  Beyond that everything counts as written."""


class DirtyLog:
    """The pages written since the last `take`.

    Args:
        shared_only: what is stored by messages to the VMM is not logged: the VMM sees that itself.
    """

    def __init__(self, *, shared_only: bool = False) -> None:
        self.shared_only = shared_only
        self._chunks: dict[int, int] = {}
        self._everything = False

    def mark(self, address: int, length: int) -> None:
        """Note a write to [address, address + length)."""
        if length <= 0 or self._everything:
            return
        first, last = address // LOGGED_PAGE_SIZE, (address + length - 1) // LOGGED_PAGE_SIZE
        chunks = self._chunks
        for chunk in range(first // _CHUNK_PAGES, last // _CHUNK_PAGES + 1):
            bits = _bits(first - chunk * _CHUNK_PAGES, last + 1 - chunk * _CHUNK_PAGES)
            chunks[chunk] = chunks.get(chunk, 0) | bits
            if len(chunks) > MAX_CHUNKS:
                self.mark_everything()
                return

    def mark_everything(self) -> None:
        """Count every page as written, from now on."""
        self._everything = True
        self._chunks.clear()

    def take(self, address: int, length: int, page_size: int) -> bytes:
        """Return and drop the pages written in [address, address + length).

        Args:
            page_size: bytes for each bit of the answer, a power of 2, at least LOGGED_PAGE_SIZE.

        Returns:
            Bits in ascending order, the lowest bit of the first byte for the page at `address`; a multiple of 8 bytes.
        """
        units = -(-length // page_size)
        size = (units + 63) // 64 * 8
        if self._everything:
            return ((1 << units) - 1).to_bytes(size, "little")
        bitmap = bytearray(size)
        first, end = address // LOGGED_PAGE_SIZE, -(-(address + length) // LOGGED_PAGE_SIZE)
        chunks = range(first // _CHUNK_PAGES, (end - 1) // _CHUNK_PAGES + 1)
        for chunk in [chunk for chunk in self._chunks if chunk in chunks]:
            start = chunk * _CHUNK_PAGES
            written = self._chunks[chunk] & _bits(first - start, end - start)
            self._chunks[chunk] ^= written
            if not self._chunks[chunk]:
                del self._chunks[chunk]
            # Lowest page first, as a string of digits, in which find() searches the next 1 in one call.
            digits = f"{written:b}"[::-1]
            page = digits.find("1")
            while page >= 0:
                unit = ((start + page) * LOGGED_PAGE_SIZE - address) // page_size
                bitmap[unit >> 3] |= 1 << (unit & 7)
                page = digits.find("1", page + 1)
        return bytes(bitmap)

    def written(self) -> list[int] | None:
        """The numbers of all pages written, ascending; they stay noted.  None: everything counts as written."""
        if self._everything:
            return None
        pages: list[int] = []
        for chunk in sorted(self._chunks):
            digits = f"{self._chunks[chunk]:b}"[::-1]
            page = digits.find("1")
            while page >= 0:
                pages.append(chunk * _CHUNK_PAGES + page)
                page = digits.find("1", page + 1)
        return pages


def _bits(first: int, end: int) -> int:
    """Return ones at [first, end), cut to one chunk."""
    first, end = max(first, 0), min(end, _CHUNK_PAGES)
    return _WHOLE_CHUNK if end - first == _CHUNK_PAGES else ((1 << end - first) - 1) << first
