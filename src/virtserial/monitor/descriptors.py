"""Descriptors that clients pass by SCM_RIGHTS: by name (getfd), and in sets (add-fd)."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from virtserial.closing import close_foreign
from virtserial.monitor.qmp import QmpError
from virtserial.named_tuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from virtserial.chardev.base import Put, Take

MAX_DESCRIPTORS = 1024
"""Per client with names, and in all sets: clients must not use up the process's descriptors."""


class NamedDescriptors:
    """A client's descriptors by name; owned here."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}

    def names(self) -> frozenset[str]:
        """The names there are."""
        return frozenset(self._fds)

    def put(self, name: str, fd: int) -> None:
        """Keep a descriptor, and close the one that had the name.

        Raises:
            QmpError: the name begins with a digit, or there are MAX_DESCRIPTORS; `fd` is closed.
        """
        if name[:1].isdigit() or (len(self._fds) >= MAX_DESCRIPTORS and name not in self._fds):
            close_foreign(fd)
            if not name[:1].isdigit():
                raise QmpError(f"more than {MAX_DESCRIPTORS} descriptors with names")
            raise QmpError("Parameter 'fdname' expects a name not starting with a digit")
        if name in self._fds:
            close_foreign(self._fds[name])
        self._fds[name] = fd

    def take(self, name: str) -> int:
        """Take the descriptor of a name out; the caller owns it.

        Raises:
            QmpError: there is no such name.
        """
        if name not in self._fds:
            raise QmpError(f"File descriptor named '{name}' has not been found")
        return self._fds.pop(name)

    def hand_over(self, put: Put) -> dict[str, int]:
        """Return what a successor needs (`take_over`)."""
        return {name: put(fd) for name, fd in self._fds.items()}

    def take_over(self, saved: Mapping[str, int], take: Take) -> None:
        """Take over a predecessor's descriptors."""
        self._fds.update({name: take(number) for name, number in saved.items()})

    def close_one(self, name: str) -> None:
        """Close the descriptor of a name.

        Raises:
            QmpError: there is no such name.
        """
        if name not in self._fds:
            raise QmpError(f"File descriptor named '{name}' not found")
        close_foreign(self._fds.pop(name))

    def close(self) -> None:
        """Close all of them."""
        while self._fds:
            close_foreign(self._fds.popitem()[1])


class Client(NamedTuple):
    """A monitor's client, as commands see it.

    Attributes:
        names: its descriptors by name.
        take_descriptor: gives the oldest descriptor that came by SCM_RIGHTS and was not taken yet.
    """

    names: NamedDescriptors
    take_descriptor: Callable[[], int]

    def name_descriptor(self, name: str) -> None:
        """getfd: give the oldest descriptor that came a name.

        Raises:
            QmpError: none came, or it cannot have this name.
        """
        self.names.put(name, self.take_descriptor())


class _Member(NamedTuple):
    """`number`: what clients call it."""

    fd: int
    opaque: str | None
    number: int


class DescriptorSets:
    """Sets of descriptors by number, owned here.  `/dev/fdset/N` names one in a path."""

    PREFIX = "/dev/fdset/"

    def __init__(self) -> None:
        self._sets: dict[int, list[_Member]] = {}

    def add(self, fd: int, number: int | None, opaque: str | None, called: int | None = None) -> dict[str, object]:
        """Put a descriptor into a set (None: a new one); return what add-fd returns.

        Args:
            called: the number that clients use for it, if not `fd`.

        Raises:
            QmpError: the number is negative, or there are too many; `fd` is closed.
        """
        if (number is not None and number < 0) or sum(map(len, self._sets.values())) >= MAX_DESCRIPTORS:
            close_foreign(fd)
            if number is not None and number < 0:
                raise QmpError("Parameter 'fdset-id' expects a non-negative value")
            raise QmpError(f"more than {MAX_DESCRIPTORS} descriptors in sets")
        if number is None:
            number = next(free for free in range(len(self._sets) + 1) if free not in self._sets)
        member = _Member(fd, opaque, fd if called is None else called)
        self._sets.setdefault(number, []).append(member)
        return {"fdset-id": number, "fd": member.number}

    def hand_over(self, put: Put) -> list[object]:
        """Return what a successor needs (`take_over`)."""
        return [
            [number, put(member.fd), member.opaque, member.number]
            for number, members in self._sets.items()
            for member in members
        ]

    def take_over(self, saved: Iterable[Any], take: Take) -> None:
        """Take over a predecessor's sets; clients know the descriptors by their old numbers."""
        for number, fd, opaque, called in saved:
            self.add(take(fd), number, opaque, called)

    def find(self, number: int, mode: int) -> int | None:
        """Return a descriptor of a set with that access (os.O_RDONLY or os.O_WRONLY); the set keeps it."""
        for member in self._sets.get(number, []):
            access = fcntl.fcntl(member.fd, fcntl.F_GETFL) & os.O_ACCMODE
            if access in (mode, os.O_RDWR):
                return member.fd
        return None

    def remove(self, number: int, fd: int | None) -> None:
        """Close a descriptor of a set, or all of them.

        Raises:
            QmpError: there is no such set or descriptor.
        """
        members = self._sets.get(number, [])
        leaving = [member for member in members if fd is None or member.number == fd]
        if not leaving:
            words = f"fdset-id:{number}" if fd is None else f"fdset-id:{number}, fd:{fd}"
            raise QmpError(f"File descriptor named '{words}' not found")
        for member in leaving:
            close_foreign(member.fd)
            members.remove(member)
        if not members:
            del self._sets[number]

    def forget(self, number: int | None, called: int | None) -> None:
        """Close what QEMU has removed from its sets of the same numbers, as far as it is here."""
        if number is not None:
            with contextlib.suppress(QmpError):
                self.remove(number, called)

    def query(self) -> list[Mapping[str, object]]:
        """What query-fdsets returns."""
        return [
            {
                "fdset-id": number,
                "fds": [
                    {"fd": member.number} | ({"opaque": member.opaque} if member.opaque is not None else {})
                    for member in members
                ],
            }
            for number, members in self._sets.items()
        ]

    def close(self) -> None:
        """Close all of them."""
        for members in self._sets.values():
            for member in members:
                close_foreign(member.fd)
        self._sets.clear()
