"""The form of a saved state: a header that says what follows, and a JSON object.

The header has a magic, the version of the form, the CRC-32 and the length of the object.  The checksum finds what was
damaged; it does not prove who wrote it, so every value of the object is checked as well (state/fields.py).
"""

from __future__ import annotations

import binascii
import json
from struct import Struct
from typing import TYPE_CHECKING, Final

from virtserial.errors import ConfigError
from virtserial.state.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Mapping

MAGIC: Final = b"vtserial"
VERSION: Final = 1
HEADER: Final = Struct("<8sIIQ")
"""Magic, version, CRC-32 of the object, its length in bytes."""


def seal(content: Mapping[str, object]) -> bytes:
    """Return a saved state with this content."""
    body = json.dumps(content, separators=(",", ":")).encode()
    return HEADER.pack(MAGIC, VERSION, binascii.crc32(body), len(body)) + body


def unseal(data: bytes | bytearray | memoryview, limit: int) -> Fields:
    """Return the content of a saved state.

    Args:
        limit: the most bytes it may have.

    Raises:
        ConfigError: it is not valid, of another version, longer than `limit`, cut short, or damaged.
    """
    if len(data) < HEADER.size:
        raise ConfigError(f"saved state: {len(data)} bytes, the header alone has {HEADER.size}")
    magic, version, checksum, length = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ConfigError("saved state: it is not one of virtserial's")
    if version != VERSION:
        raise ConfigError(f"saved state: version {version}, this program reads version {VERSION}")
    if len(data) > limit:
        raise ConfigError(f"saved state: {len(data)} bytes, a device like this has at most {limit}")
    if length != len(data) - HEADER.size:
        raise ConfigError(f"saved state: {len(data) - HEADER.size} bytes follow the header, it says {length}")
    body = bytes(data[HEADER.size :])
    if binascii.crc32(body) != checksum:
        raise ConfigError("saved state: it is damaged, its checksum is another")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"saved state: no JSON: {str(error)[:80]}") from None
    return Fields.of(content, "saved state")
