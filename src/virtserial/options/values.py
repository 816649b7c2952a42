"""Values by their QEMU names, read with their types: of a checked option, or of JSON that fits a schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.channel.record import record

if TYPE_CHECKING:
    from collections.abc import Mapping


@record
class Values:
    """A value that is missing, or of another type than it is read as, counts as not given."""

    given: Mapping[str, object]

    def __contains__(self, name: str) -> bool:
        return name in self.given

    def text(self, name: str) -> str | None:
        """A string, or None."""
        value = self.given.get(name)
        return value if isinstance(value, str) else None

    def number(self, name: str) -> int | None:
        """An integer, or None."""
        value = self.given.get(name)
        return value if isinstance(value, int) else None

    def flag(self, name: str, default: bool = False) -> bool:
        """A switch."""
        return bool(self.given.get(name, default))

    def switch(self, name: str) -> bool | None:
        """A switch with a third state, not given."""
        return bool(self.given[name]) if name in self.given else None

    def values(self, name: str) -> Values:
        """The members of an object; none if it is missing."""
        value = self.given.get(name)
        return Values(value if isinstance(value, dict) else {})

    def texts(self, name: str) -> list[str]:
        """The strings of an array; none if it is missing."""
        value = self.given.get(name)
        return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
