"""How long a port is throttled: noted where that begins and ends, which no single message comes by."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from virtserial.console.records import PortRecord


def throttling_began(record: PortRecord, now: float) -> None:
    """The host end takes nothing more; `now` is the loop's clock in seconds."""
    if not record.throttled_since:
        record.throttled_since = int(now * 1e9) or 1


def throttling_ended(record: PortRecord, now: float) -> None:
    """It takes bytes again, or the driver's chains are not for it any more; nothing if it had not begun."""
    since = record.throttled_since
    if since:
        record.throttled += max(int(now * 1e9) - since, 0)
        record.throttled_since = 0
