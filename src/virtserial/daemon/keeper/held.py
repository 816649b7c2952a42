"""The descriptors the keeper holds for its worker, by key, and what they are.

Keys are paths of words: "vmm/0" (controller 0's VMM socket), "dma/0/4096" (its region at address 4096),
"irq/0/2/5" (its MSI-X vector 5), "chardev/c0" (the connection of a back end).  What stands behind a key is the
message that a new worker gets with the descriptors.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from virtserial.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    from virtserial.channel.channel import Message
    from virtserial.chardev.base import Put, Take

MAX_HELD = 200_000
"""Entries: 65,535 DMA maps are VFIO's limit for one device, and a process has no more descriptors than its rlimit."""


class HeldDescriptors:
    """A table of (message, descriptors); it owns the descriptors."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[Message, list[int]]] = {}

    def hold(self, key: str, message: Message, fds: Sequence[int]) -> None:
        """Keep descriptors under a key; those that were there are closed.

        Raises:
            StateError: there are too many entries; `fds` are closed.
        """
        if len(self._entries) >= MAX_HELD and key not in self._entries:
            for fd in fds:
                os.close(fd)
            raise StateError(f"more than {MAX_HELD} descriptors to hold")
        self.drop(key)
        self._entries[key] = (message, list(fds))

    def drop(self, key: str) -> None:
        """Close what is kept under a key, if anything is."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            for fd in entry[1]:
                os.close(fd)

    def drop_all(self, prefix: str) -> None:
        """Close everything whose key starts with `prefix`."""
        for key in [key for key in self._entries if key.startswith(prefix)]:
            self.drop(key)

    def take(self, key: str) -> list[int]:
        """Return the descriptors under a key without closing them; they are the caller's now."""
        entry = self._entries.pop(key, None)
        return entry[1] if entry else []

    def message(self, key: str) -> Message | None:
        """Return what stands behind a key."""
        entry = self._entries.get(key)
        return entry[0] if entry else None

    def send_again(self, key: str, send: Callable[[Message, Sequence[int]], None]) -> None:
        """Give `send` what is kept under a key, if anything is."""
        if (entry := self._entries.get(key)) is not None:
            send(*entry)

    def hand_over(self, put: Put) -> list[object]:
        """Return all of it as JSON can carry it, for `resume` in another process."""
        return [[key, message, [put(fd) for fd in fds]] for key, (message, fds) in self._entries.items()]

    def resume(self, saved: Iterable[Any], take: Take) -> None:
        """Take what another process has held."""
        for key, message, numbers in saved:
            self._entries[key] = message, [take(number) for number in numbers]

    def entries(self, prefix: str) -> Iterator[tuple[str, Message, list[int]]]:
        """Yield (key, message, descriptors) of everything whose key starts with `prefix`, oldest first."""
        for key, (message, fds) in list(self._entries.items()):
            if key.startswith(prefix):
                yield key, message, fds
