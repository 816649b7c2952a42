"""QEMU's command line as a list of options, each with its original words.

QEMU's rules (lookup_opt in system/vl.c): a word without a dash is a disk image, `--opt` is `-opt`, and an option has
either no argument or one, the next word, whatever that looks like.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WITHOUT_ARGUMENT = frozenset(
    (
        *("h", "help", "version", "mem-prealloc", "snapshot", "usb", "nographic", "full-screen", "win2k-hack"),
        *("no-fd-bootchk", "preconfig", "S", "s", "enable-kvm", "xen-attach", "xen-domid-restrict", "no-reboot"),
        *("no-shutdown", "daemonize", "only-migratable", "nodefaults", "no-user-config", "enable-sync-profile"),
        *("perfmap", "jitdump", "semihosting", "old-param"),
    )
)
"""QEMU 11.1's options (qemu-options.hx) that take no argument; every other one takes one."""


class Option:
    """One option.

    Attributes:
        name: without its dashes; "" for a disk image.
        value: its argument, or None.
        emitted: the words that QEMU gets in its place; at first the original ones.
        from_file: it comes from a -readconfig file, which does not disable default devices.
        is_default: it was not given: it spells out a default of QEMU's.
    """

    __slots__ = ("emitted", "from_file", "is_default", "name", "value")

    def __init__(
        self,
        name: str,
        value: str | None,
        words: Sequence[str],
        *,
        from_file: bool = False,
        is_default: bool = False,
    ) -> None:
        self.name = name
        self.value = value
        self.emitted = list(words)
        self.from_file = from_file
        self.is_default = is_default

    @property
    def text(self) -> str:
        """The option as messages show it."""
        return f"-{self.name}" if self.value is None else f"-{self.name} {self.value}"

    def replace(self, *words: str) -> None:
        """Give QEMU other words."""
        self.emitted = list(words)

    def replace_value(self, value: str) -> None:
        """Give QEMU another argument."""
        self.emitted = [f"-{self.name}", value]


def split(words: Sequence[str]) -> list[Option] | None:
    """Return the options of a command line, in order; None if the last one lacks its argument."""
    options: list[Option] = []
    remaining = iter(words)
    for word in remaining:
        if not word.startswith("-"):
            options.append(Option("", word, [word]))
            continue
        name = word[2:] if word.startswith("--") else word[1:]
        if name in WITHOUT_ARGUMENT:
            options.append(Option(name, None, [word]))
            continue
        value = next(remaining, None)
        if value is None:
            return None
        options.append(Option(name, value, [word, value]))
    return options


def words_of(options: Sequence[Option]) -> list[str]:
    """Return QEMU's command line."""
    return [word for option in options for word in option.emitted]


def arguments_of(options: Sequence[Option], *names: str) -> Iterator[tuple[Option, str]]:
    """Yield the options of these names with their arguments."""
    for option in options:
        if option.name in names and option.value is not None:
            yield option, option.value
