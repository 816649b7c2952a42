"""Values taken out of JSON one by one, each checked: what a saved state holds may have been written by anybody."""

from __future__ import annotations

import binascii
from typing import TYPE_CHECKING, cast

from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from typing import Self


class Fields:
    """The members of one JSON object.

    Args:
        members: the object.
        where: what to call it in messages.

    Every method raises ConfigError where the member is missing or is not what was asked for.
    """

    def __init__(self, members: dict[str, object], where: str) -> None:
        self._members = members
        self._where = where

    @classmethod
    def of(cls, value: object, where: str) -> Self:
        """The members of `value`, which must be an object."""
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: no object")
        return cls(cast("dict[str, object]", value), where)

    def refuse(self, name: str, why: str) -> ConfigError:
        """The error that says what is wrong with a member."""
        return ConfigError(f"{self._where}: {name} {why}")

    def _member(self, name: str) -> object:
        if name not in self._members:
            raise self.refuse(name, "is missing")
        return self._members[name]

    def number(self, name: str, most: int) -> int:
        """A whole number from 0 to `most`."""
        value = self._member(name)
        if type(value) is not int or not 0 <= value <= most:
            raise self.refuse(name, f"is {str(value)[:40]}, allowed are whole numbers from 0 to {most}")
        return value

    def numbers(self, name: str, most: int, count: int) -> list[int]:
        """At most `count` whole numbers from 0 to `most`."""
        values = self._list(name, count)
        if not all(type(value) is int and 0 <= value <= most for value in values):
            raise self.refuse(name, f"has something else than whole numbers from 0 to {most}")
        return cast("list[int]", values)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """true or false; `default`: what it is if it is missing, as in states of older programs."""
        value = self._member(name) if default is None else self._members.get(name, default)
        if type(value) is not bool:
            raise self.refuse(name, f"is {str(value)[:40]}, allowed are true and false")
        return value

    def text_or_none(self, name: str) -> str | None:
        """A string or null."""
        value = self._member(name)
        if value is not None and not isinstance(value, str):
            raise self.refuse(name, "is no string")
        return value

    def data(self, name: str, most: int, default: bytes | None = None) -> bytes:
        """At most `most` bytes, in base64; `default`: what they are if they are missing."""
        if default is not None and name not in self._members:
            return default
        value = self._member(name)
        try:
            data = binascii.a2b_base64(value, strict_mode=True) if isinstance(value, str) else None
        except (binascii.Error, ValueError):
            data = None
        if data is None or len(data) > most:
            raise self.refuse(name, f"is not at most {most} bytes in base64")
        return data

    def group(self, name: str) -> Fields:
        """An object."""
        return Fields.of(self._member(name), f"{self._where}: {name}")

    def groups(self, name: str, count: int) -> list[Fields]:
        """At most `count` objects."""
        return [
            Fields.of(value, f"{self._where}: {name}[{index}]") for index, value in enumerate(self._list(name, count))
        ]

    def _list(self, name: str, count: int) -> list[object]:
        value = self._member(name)
        if not isinstance(value, list) or len(value) > count:
            raise self.refuse(name, f"is no list of at most {count}")
        return cast("list[object]", value)


def encode(data: bytes | bytearray | memoryview) -> str:
    """Bytes as `Fields.data` takes them."""
    return binascii.b2a_base64(data, newline=False).decode()
