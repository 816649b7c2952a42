"""The descriptors that the keeper holds for its workers, each with the message that a new worker gets it with.

| message | of whom | which of them |
|---|---|---|
| ConnectVmm | controller | the one VMM |
| DmaMap | controller | address |
| Irq | controller | type of interrupt, vector |
| AddFront | chardev | front |
| Connect | chardev | the one connection; each of several clients by its place |
| Listen | chardev | its listening sockets |

Listening sockets stay the chardev's, also beside a client's: they are lent.  It closes them when nothing of it is held
any more, and a port with a client costs two descriptors instead of four.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from virtserial.channel.connections import ClientConnection
from virtserial.channel.messages import AddFront, Connect, ConnectVmm, DmaMap, Held, Irq, Listen
from virtserial.closing import close_foreign

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Owner = tuple[type[Held], int | str]
    Entry = tuple[Held, list[int]]
    Kept = tuple[Held, list[int], list[int]]  # with what is owned, and what is lent

H = TypeVar("H", AddFront, Connect, ConnectVmm, DmaMap, Irq, Listen)


def _place_of(message: Held) -> tuple[Owner, object]:
    match message:
        case DmaMap(controller, iova):
            return (DmaMap, controller), iova
        case Irq(controller, index, number):
            return (Irq, controller), (index, number)
        case AddFront(chardev, front):
            return (AddFront, chardev), front
        case Connect(chardev, connection=ClientConnection(place=place)):
            return (Connect, chardev), place
        case Connect(chardev):
            return (Connect, chardev), None
        case Listen(Connect(chardev)):
            return (Listen, chardev), None
        case ConnectVmm(controller):
            return (ConnectVmm, controller), None


class HeldDescriptors:
    """A table of messages with descriptors, which it owns."""

    def __init__(self) -> None:
        self._owners: dict[Owner, dict[object, Kept]] = {}

    def hold(self, message: Held, fds: Sequence[int], lent: Sequence[int] = ()) -> None:
        """Keep descriptors; those that were held in the same place are closed.

        Args:
            lent: go with the message after the others; they are never closed here.
        """
        owner, which = _place_of(message)
        entries = self._owners.setdefault(owner, {})
        _close(entries.pop(which, None))
        entries[which] = message, list(fds), list(lent)

    def drop(self, kind: type[Held], of: int | str, which: object = None) -> None:
        """Close what is held in a place, if anything is."""
        entries = self._owners.get((kind, of), {})
        _close(entries.pop(which, None))

    def drop_entry(self, message: Held) -> None:
        """Close what is held with a message."""
        owner, which = _place_of(message)
        self.drop(*owner, which)

    def drop_all(self, kind: type[Held], of: int | str) -> None:
        """Close all of one kind and owner."""
        for entry in self._owners.pop((kind, of), {}).values():
            _close(entry)

    def drop_type(self, controller: int, index: int) -> None:
        """Close a controller's eventfds of one type of interrupt."""
        for message, _ in self.all(Irq, controller):
            if isinstance(message, Irq) and message.index == index:
                self.drop(Irq, controller, (index, message.number))

    def close(self) -> None:
        """Close everything."""
        for kind, of in list(self._owners):
            self.drop_all(kind, of)

    def take(self, kind: type[Held], of: int | str) -> list[int]:
        """Return the descriptors of a place without closing them; they are the caller's now."""
        entry = self._owners.get((kind, of), {}).pop(None, None)
        return entry[1] if entry else []

    def count(self, kind: type[Held], of: int | str) -> int:
        """How many of one kind an owner has."""
        return len(self._owners.get((kind, of), ()))

    def find(self, kind: type[H], of: int | str) -> H | None:
        """Return the message of a place."""
        entry = self._owners.get((kind, of), {}).get(None)
        return entry[0] if entry is not None and isinstance(entry[0], kind) else None

    def change(self, message: Held) -> None:
        """Put another message in the place of one, with the same descriptors."""
        owner, which = _place_of(message)
        entries = self._owners[owner]
        entries[which] = message, *entries[which][1:]

    def send_again(self, kind: type[Held], of: int | str, send: Callable[[Held, Sequence[int]], None]) -> None:
        """Give `send` all of one kind and owner."""
        for entry in self.all(kind, of):
            send(*entry)

    def all(self, kind: type[Held], of: int | str | None = None) -> Iterator[Entry]:
        """Yield messages of a kind with their descriptors, of one owner or of all; an owner's oldest first."""
        if of is not None:
            yield from list(map(_shown, self._owners.get((kind, of), {}).values()))
            return
        for (each_kind, _), entries in list(self._owners.items()):
            if each_kind is kind:
                yield from list(map(_shown, entries.values()))

    def __iter__(self) -> Iterator[Entry]:
        """Yield everything."""
        for entries in self._owners.values():
            yield from map(_shown, entries.values())


def _shown(entry: Kept) -> Entry:
    message, fds, lent = entry
    return message, fds + lent


def _close(entry: Kept | None) -> None:
    if entry is not None:
        for fd in entry[1]:
            close_foreign(fd)
