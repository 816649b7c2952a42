"""The chardevs of a command line: which can be ours, who uses each, and therefore whose each is."""

from __future__ import annotations

import fcntl
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from virtserial.dropin.command_line import arguments_of
from virtserial.errors import ConfigError
from virtserial.options import keyval
from virtserial.options.chardev_options import parse_chardev
from virtserial.options.object_options import parse_object
from virtserial.options.way_out import refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from virtserial.chardev.base import Chardev
    from virtserial.chardev.tls_credentials import TlsCredentials
    from virtserial.dropin.command_line import Option

NOT_OURS = "not supported by virtserial"
UNKNOWN_KIND = "is not a valid char driver name"
DESCRIPTOR_SET = re.compile(r"/dev/fdset/([0-9]{1,9})")
PATHS = {"path": os.O_WRONLY, "input-path": os.O_RDONLY, "logfile": os.O_WRONLY}


class ChardevWords:
    """One chardev.

    Attributes:
        option: the -chardev, or the option that implies it (-qmp, -serial mon:...).
        text: the -chardev argument, with the -set options that change it.
        settings: those -set options.
        chardev: the parsed chardev, or None if we cannot have it.
        failure: why not, as a ConfigError; `is_qemu_s`: because only QEMU has it, else the words are wrong.
        users: our options that use it (ports, monitors).
        qemu_users: QEMU's options that use it, one entry per use.
        hub: the hub that it belongs to.
    """

    def __init__(self, option: Option, text: str, chardev_id: str) -> None:
        self.option = option
        self.text = text
        self.id = chardev_id
        self.settings: list[Option] = []
        self.chardev: Chardev | None = None
        self.failure = ConfigError("")
        self.is_qemu_s = False
        self.users: list[Option] = []
        self.qemu_users: list[Option] = []
        self.hub: ChardevWords | None = None

    @property
    def kind(self) -> str:
        return str(keyval.parse_options(self.text, "backend").get("backend", ""))


def collect(options: Sequence[Option], brought_along: Sequence[tuple[Option, str]]) -> dict[str, ChardevWords]:
    """Return all chardevs by id.

    Args:
        brought_along: (option, -chardev argument) of options that imply a chardev.

    Raises:
        ConfigError: an id is used twice, or JSON is invalid.
    """
    found: dict[str, ChardevWords] = {}
    for option, text in (*arguments_of(options, "chardev"), *brought_along):
        try:
            chardev_id = str(keyval.parse_options(text, "backend").get("id", ""))
            if chardev_id in found:
                raise ConfigError(f"Duplicate ID '{chardev_id}' for chardev", "give each -chardev an id= of its own")
        except ConfigError as error:
            raise refusal("-chardev", text, error) from None
        found[chardev_id] = ChardevWords(option, text, chardev_id)
    for option, value in arguments_of(options, "set"):
        place, equals, text = value.partition("=")
        group, _, rest = place.partition(".")
        # Ids may contain dots: the property is the last part.
        chardev_id, _, name = rest.rpartition(".")
        if equals and group == "chardev" and chardev_id in found and not found[chardev_id].text.startswith("{"):
            words = found[chardev_id]
            words.text += f",{keyval.to_text([(name, text)])}"
            words.settings.append(option)
    return found


class Maker:
    """Parses chardevs; opens nothing.

    Args:
        options: all of them: chardevs refer to objects and descriptor sets.
    """

    def __init__(self, options: Sequence[Option]) -> None:
        self.chardevs: dict[str, Chardev] = {}
        self.objects: dict[str, TlsCredentials] = {}
        self.descriptor_sets = list(descriptor_sets(options))
        self._object_texts: dict[str, str] = {}
        for _, text in arguments_of(options, "object"):
            properties = keyval.parse_options(text, "qom-type")
            if str(properties.get("qom-type")).startswith("tls-creds-"):
                self._object_texts[str(properties.get("id"))] = text

    def make_all(self, found: Mapping[str, ChardevWords]) -> None:
        """Parse all chardevs; a hub with a part that only QEMU has is QEMU's too."""
        tie_hubs(found)
        for words in found.values():
            self._make(words)
        for words in found.values():
            if words.hub is not None and words.is_qemu_s:
                words.hub.is_qemu_s = True

    def _make(self, words: ChardevWords) -> None:
        try:
            self._load_credentials(words.text)
            words.chardev = parse_chardev(self._with_paths(words.text), self.chardevs, self.objects)
        except ConfigError as error:
            words.failure = error
            words.is_qemu_s = NOT_OURS in str(error) or UNKNOWN_KIND in str(error)
            return
        # Ctrl-a x ends QEMU.
        words.chardev.mux_quit = words.chardev.mux
        self.chardevs[words.id] = words.chardev

    def _load_credentials(self, text: str) -> None:
        object_id = str(keyval.parse_options(text, "backend").get("tls-creds"))
        if object_id in self.objects or object_id not in self._object_texts:
            return
        object_text = self._object_texts[object_id]
        if keyval.parse_options(object_text, "qom-type").get("qom-type") != "tls-creds-x509":
            raise ConfigError(f"'{object_id}' is {NOT_OURS}: no tls-creds-x509")
        self.objects[object_id] = parse_object(object_text)

    def _with_paths(self, text: str) -> str:
        """Replace paths into descriptor sets by paths of this process's descriptors."""
        if "/dev/fdset/" not in text or text.startswith("{"):
            return text
        pairs = keyval.key_values(text, "backend")
        return keyval.to_text((key, self._member(value, PATHS[key]) if key in PATHS else value) for key, value in pairs)

    def _member(self, path: str, mode: int) -> str:
        matched = DESCRIPTOR_SET.fullmatch(path)
        if matched is None:
            return path
        for member in self.descriptor_sets:
            if member.set == int(matched[1]) and member.can(mode):
                return f"/proc/self/fd/{member.fd}"
        raise ConfigError(f"Could not open '{path}': no descriptor of that set has this access")


class SetMember(NamedTuple):
    """A descriptor of -add-fd."""

    fd: int
    set: int
    opaque: str | None

    def can(self, mode: int) -> bool:
        """Whether it has the access `mode` (os.O_RDONLY, os.O_WRONLY); a closed one fails later."""
        try:
            return fcntl.fcntl(self.fd, fcntl.F_GETFL) & os.O_ACCMODE in (mode, os.O_RDWR)
        except OSError:
            return True


def descriptor_sets(options: Sequence[Option]) -> Iterator[SetMember]:
    """Yield what -add-fd puts into descriptor sets; QEMU reports what is wrong there."""
    for _, text in arguments_of(options, "add-fd"):
        values = dict(keyval.key_values(text, "fd"))
        if values.get("fd", "").isdecimal() and values.get("set", "").isdecimal():
            yield SetMember(int(values["fd"]), int(values["set"]), values.get("opaque"))


def tie_hubs(found: Mapping[str, ChardevWords]) -> None:
    """Note the hub of each of its parts."""
    for words in found.values():
        if words.kind == "hub":
            for name, part in keyval.parse_options(words.text, "backend").items():
                if name.startswith("chardevs.") and str(part) in found:
                    found[str(part)].hub = words


def is_ours(words: ChardevWords) -> bool:
    """Whether a chardev is ours: if a port or monitor of ours uses it, or nobody does yet.

    Raises:
        ConfigError: it has more users than it can have.
    """
    if words.hub is not None:
        return words.hub.chardev is not None and is_ours(words.hub)
    if words.chardev is None:
        if words.users:
            raise refusal("-chardev", words.text, words.failure)
        return False
    if words.users:
        _check_number_of_users(words, words.chardev.max_users)
    return bool(words.users) or not words.qemu_users


def _check_number_of_users(words: ChardevWords, most: int) -> None:
    users = [*words.qemu_users, *words.users]
    if len(users) <= most or (all(option.name == "device" for option in users) and not words.qemu_users):
        return  # Only ports: the machine refuses the one that is too many.
    why = (
        f"chardev '{words.id}' is already in use"
        if most <= 1
        else f"too many uses of multiplexed chardev '{words.id}' (maximum is {most})"
    )
    hint = "give each user a -chardev of its own" + (", or share this one with mux=on" if most <= 1 else "")
    raise ConfigError(f"{users[-1].text}: {why}", hint)
