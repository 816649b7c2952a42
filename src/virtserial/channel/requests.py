"""What the keeper asks a worker to do with one controller; each is answered by `messages.Answer`."""

from typing import Annotated

from virtserial.channel.codec import U32, U64, Range
from virtserial.channel.record import record

Index = Annotated[int, Range(0, (1 << 32) - 1)]
"""Of a controller: counts those that were ever plugged in."""
Serial = Annotated[int, Range(0, (1 << 53) - 1)]
"""Counts ports, connections, requests."""


@record
class Save:
    """Pause a controller and write its state into a file.

    Attributes:
        backlogs: bytes of what its ports keep for late clients; None: as many as a state takes.
    """

    request: Serial
    controller: Index
    backlogs: U32 | None = None


@record
class Restore:
    """Load a controller's state from a file, and resume it."""

    request: Serial
    controller: Index


@record
class Resume:
    """Let a controller run again that Save, Pause or Load has paused.

    Attributes:
        signal: interrupt its driver once for each queue.
    """

    request: Serial
    controller: Index
    signal: bool


@record
class LogWrites:
    """Note which pages of guest memory a controller writes, or no more."""

    request: Serial
    controller: Index
    on: bool


@record
class Pause:
    """Pause a controller; the answer has its PCI configuration space."""

    request: Serial
    controller: Index


@record
class TouchWritten:
    """Have the VMM mark every page dirty that was written since LogWrites."""

    request: Serial
    controller: Index


@record
class Load:
    """Load a controller's state from a file; it stays paused."""

    request: Serial
    controller: Index


@record
class Store:
    """Have the VMM store words at a guest-physical address."""

    request: Serial
    controller: Index
    address: U64
    data: bytes


Request = Save | Restore | Resume | LogWrites | Pause | TouchWritten | Load | Store
"""What the worker answers."""
