"""Moving a device to another server: the client's half (migration.py has the other, and what the states are)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from virtserial.errors import PeerError
from virtserial.vfio_user.migration import (
    DEVICE_STATE,
    FEATURE,
    LOGGING_CONTROL,
    LOGGING_RANGE,
    LOGGING_REPORT,
    MAX_BITMAP,
    MIG_DATA,
    MIGRATION,
    VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT,
    VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
    VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP,
    VFIO_DEVICE_FEATURE_GET,
    VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
    VFIO_DEVICE_FEATURE_MIGRATION,
    VFIO_DEVICE_FEATURE_PROBE,
    VFIO_DEVICE_FEATURE_SET,
)
from virtserial.vfio_user.wire import (
    PAGE_SIZE,
    VFIO_USER_DEVICE_FEATURE,
    VFIO_USER_MIG_DATA_READ,
    VFIO_USER_MIG_DATA_WRITE,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from virtserial.vfio_user.client import Client

CHUNK: Final = 32768
"""Bytes of migration data in one message."""
MAX_STATE_SIZE: Final = 256 << 20
"""Bytes of migration data taken from a server: one that never ends must not fill our memory."""


class MigrationClient:
    """The migration of the device behind a client.

    Every method raises PeerError as the client's own do; a server without migration refuses with ENOTSUP.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def probe(self, feature: int, method: int) -> bool:
        """Whether the server has a feature (VFIO_DEVICE_FEATURE_*), with a method (_GET, _SET or both)."""
        flags = feature | method | VFIO_DEVICE_FEATURE_PROBE
        try:
            self._client.request(VFIO_USER_DEVICE_FEATURE, FEATURE.pack(FEATURE.size, flags))
        except PeerError as error:
            if error.errno in (errno.ENOTSUP, errno.ENOTTY, errno.EINVAL):
                return False
            raise
        return True

    def flags(self) -> int:
        """What of migration the device has: VFIO_MIGRATION_*."""
        (flags,) = MIGRATION.unpack(self._get(VFIO_DEVICE_FEATURE_MIGRATION, b"", MIGRATION.size))
        return int(flags)

    @property
    def state(self) -> int:
        """The device's state, VFIO_DEVICE_STATE_*."""
        state, _ = DEVICE_STATE.unpack(self._get(VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, b"", DEVICE_STATE.size))
        return int(state)

    @state.setter
    def state(self, state: int) -> None:
        self._set(VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, DEVICE_STATE.pack(state, 0))

    # The data

    def read_data(self) -> bytes:
        """Return the whole state of a device in state STOP_COPY."""
        data = bytearray()
        while True:
            body = self._client.request(VFIO_USER_MIG_DATA_READ, MIG_DATA.pack(MIG_DATA.size + CHUNK, CHUNK))
            part = body[MIG_DATA.size :]
            if len(body) < MIG_DATA.size or MIG_DATA.unpack_from(body)[1] != len(part) or len(part) > CHUNK:
                raise _broken(f"VFIO_USER_MIG_DATA_READ: a reply of {len(body)} bytes")
            data += part
            if len(data) > MAX_STATE_SIZE:
                raise _broken(f"more than {MAX_STATE_SIZE} bytes of migration data")
            if len(part) < CHUNK:
                return bytes(data)

    def write_data(self, data: bytes) -> None:
        """Give a state to a device in state RESUMING; it is looked at when the device leaves that."""
        for start in range(0, len(data), CHUNK):
            part = data[start : start + CHUNK]
            self._client.request(VFIO_USER_MIG_DATA_WRITE, MIG_DATA.pack(MIG_DATA.size, len(part)) + part)

    # Dirty pages

    def start_logging(self, ranges: Sequence[tuple[int, int]] = (), page_size: int = PAGE_SIZE) -> int:
        """Have the device note which pages it writes; return the page size that it notes them by.

        Args:
            ranges: (address, length) of what matters; none for everything.
        """
        control = LOGGING_CONTROL.pack(page_size, len(ranges), 0)
        answer = self._set(
            VFIO_DEVICE_FEATURE_DMA_LOGGING_START, control + b"".join(LOGGING_RANGE.pack(*each) for each in ranges)
        )
        if len(answer) < LOGGING_CONTROL.size:
            raise _broken(f"VFIO_DEVICE_FEATURE_DMA_LOGGING_START: {len(answer)} bytes of data")
        return int(LOGGING_CONTROL.unpack_from(answer)[0])

    def stop_logging(self) -> None:
        """Have it note nothing any more, and forget what it has."""
        self._set(VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, b"")

    def dirty_pages(self, address: int, length: int, page_size: int = PAGE_SIZE) -> Iterator[int]:
        """Yield the address of each page in [address, address + length) that was written since it was last asked."""
        step = 8 * MAX_BITMAP * page_size
        for start in range(address, address + length, step):
            size = min(step, address + length - start)
            request = LOGGING_REPORT.pack(start, size, page_size)
            bitmap_size = (-(-size // page_size) + 63) // 64 * 8
            answer = self._get(VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, request, LOGGING_REPORT.size + bitmap_size)
            for page in _ones(answer[LOGGING_REPORT.size :]):
                yield start + page * page_size

    # Features

    def _get(self, feature: int, data: bytes, size: int) -> bytes:
        flags = feature | VFIO_DEVICE_FEATURE_GET
        body = self._client.request(VFIO_USER_DEVICE_FEATURE, FEATURE.pack(FEATURE.size + size, flags) + data)
        if len(body) != FEATURE.size + size or FEATURE.unpack_from(body)[1] != flags:
            raise _broken(f"VFIO_USER_DEVICE_FEATURE {feature}: a reply of {len(body)} bytes")
        return body[FEATURE.size :]

    def _set(self, feature: int, data: bytes) -> bytes:
        flags = feature | VFIO_DEVICE_FEATURE_SET
        request = FEATURE.pack(FEATURE.size + len(data), flags) + data
        return self._client.request(VFIO_USER_DEVICE_FEATURE, request)[FEATURE.size :]


def _ones(bitmap: bytes) -> Iterable[int]:
    for index, byte in enumerate(bitmap):
        for bit in range(8) if byte else ():
            if byte >> bit & 1:
                yield 8 * index + bit


def _broken(text: str) -> PeerError:
    return PeerError(text, errno.EPROTO)
