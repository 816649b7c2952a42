"""Chardevs of a machine that QEMU and we share: whose each is, and how it is handed over.

A chardev that is added at run time is ours if we have its kind.  When a device of QEMU's asks for it, we close it and
QEMU opens it.  When that device is gone, a port of ours can take it back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from virtserial.monitor.chardev_backend import make_from_json
from virtserial.monitor.descriptors import NamedDescriptors
from virtserial.monitor.qmp import QmpError
from virtserial.monitor.qmp_client import Ask
from virtserial.options import keyval
from virtserial.options.chardev_options import QEMU_ONLY, kinds, parse_chardev

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from virtserial.chardev.base import Chardev
    from virtserial.monitor.operations import Operations
    from virtserial.monitor.steps import Steps

INTERNAL: Final = "virtserial-"
"""Prefix of the ids of what is between QEMU and us; clients do not see those."""
NOT_A_CHARDEV: Final = ("driver", "id", "qom-type", "type")
"""Members of a command that never name a chardev."""

Original = str | dict[str, object]
"""What a chardev was made of: the text of an option, or the ChardevBackend of chardev-add."""


def is_for_qemu(refusal: str) -> bool:
    """Whether we refused a chardev for something that QEMU has."""
    return "is not supported by virtserial" in refusal


class JoinedChardevs:
    """Knows the owner of each chardev, and what ours were made of.

    Args:
        texts: by id, the -chardev arguments of those that are ours at the start.
    """

    def __init__(self, operations: Operations, texts: Mapping[str, str]) -> None:
        self._operations = operations
        self._originals: dict[str, Original] = dict(texts)
        self._given_away: dict[str, Original] = {}

    def is_ours(self, chardev_id: object) -> bool:
        """Whether a chardev is ours."""
        return chardev_id in self._operations.keeper.chardevs

    # chardev-add

    def takes(self, kind: str) -> bool:
        """Whether a new chardev of this kind becomes ours."""
        return kind in kinds() and kind not in QEMU_ONLY

    def was_made_of(self, chardev_id: str, original: Original | None) -> None:
        """Note what a chardev was made of; None: of a descriptor, so it cannot be made again."""
        self._originals.pop(chardev_id, None)
        if self.is_ours(chardev_id):
            self.was_added(self._operations.keeper.chardevs[chardev_id])
            if original is not None:
                self._originals[chardev_id] = original

    @staticmethod
    def was_added(chardev: Chardev) -> None:
        """Ctrl-a x ends QEMU, as with QEMU's own multiplexers."""
        chardev.mux_quit = chardev.mux

    def removed(self, chardev_id: str) -> None:
        """Forget a chardev that was removed, here or in QEMU."""
        self._originals.pop(chardev_id, None)
        self._given_away.pop(chardev_id, None)

    def qemus(self) -> Steps[list[str]]:
        """Ask QEMU for the ids of its chardevs."""
        listed = yield Ask("query-chardev", {})
        return [str(entry["label"]) for entry in listed]

    # Handing over

    def hand_over_named(self, arguments: Mapping[str, object]) -> Steps[None]:
        """Hand over the chardevs of ours that a command for QEMU names.

        Raises:
            QmpError: a port or monitor of ours uses one, or QEMU cannot open it.
        """
        user = arguments.get("driver") or arguments.get("qom-type") or arguments.get("type") or "device"
        for name, chardev_id in _members(arguments):
            if name in NOT_A_CHARDEV or not self.is_ours(chardev_id):
                continue
            if self._operations.keeper.back_ends.is_busy(chardev_id):
                raise QmpError(f"{_refused(user, name, chardev_id)} already in use")
            yield from self._hand_over(chardev_id)

    def _hand_over(self, chardev_id: str) -> Steps[None]:
        original = self._originals.get(chardev_id)
        if original is None:
            raise QmpError(
                f"chardev '{chardev_id}' was made of a descriptor that virtserial has taken: "
                "it can serve a port of virtserial's, not another device"
            )
        self._operations.remove_chardev(chardev_id)
        try:
            yield from self._add_to_qemu(chardev_id, original)
        except QmpError:
            self._make(chardev_id, original)
            raise
        self._given_away[chardev_id] = self._originals.pop(chardev_id)

    @staticmethod
    def _add_to_qemu(chardev_id: str, original: Original) -> Steps[None]:
        if isinstance(original, dict):
            yield Ask("chardev-add", {"id": chardev_id, "backend": original})
            return
        options = keyval.parse_options(original, "backend")
        is_server = options.get("backend") == "socket" and keyval.to_bool("server", options.get("server", "off"))
        # With wait=on all of QEMU would wait for a client.
        line = f"chardev-add {original}{',wait=off' if is_server else ''}"
        printed = str((yield Ask("human-monitor-command", {"command-line": line})))
        if printed.startswith("Error"):
            raise QmpError(printed.partition(":")[2].strip())

    def take_back(self, chardev_id: str, user: str) -> Steps[None]:
        """Take a chardev back from QEMU for a port of ours.

        Raises:
            QmpError: a device of QEMU's uses it, or it was QEMU's from the start.
        """
        if self.is_ours(chardev_id) or chardev_id not in (yield from self.qemus()):
            return
        refused = _refused(user, "chardev", chardev_id)
        if chardev_id not in self._given_away:
            raise QmpError(f"{refused} QEMU's own, and the port is one of virtserial's")
        try:
            yield Ask("chardev-remove", {"id": chardev_id})
        except QmpError:
            raise QmpError(f"{refused} already in use") from None
        self._make(chardev_id, self._given_away.pop(chardev_id))

    def _make(self, chardev_id: str, original: Original) -> None:
        chardevs, objects = self._operations.keeper.chardevs, self._operations.keeper.objects
        if isinstance(original, str):
            chardev = parse_chardev(original, chardevs, objects)
        else:
            chardev = make_from_json(chardev_id, original, NamedDescriptors().take, chardevs, objects)
        self.was_added(self._operations.add_chardev(chardev))
        self._originals[chardev_id] = original


def _refused(user: object, name: str, chardev_id: str) -> str:
    return f"Property '{user}.{name}' can't take value '{chardev_id}': chardev '{chardev_id}' is"


def _members(arguments: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield each string in a command's arguments with the name of its member, the outer ones first."""
    for name, value in arguments.items():
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, dict):
            yield from _members(value)
        elif isinstance(value, list):
            for element in value:
                yield from _members({name: element})
