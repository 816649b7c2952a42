"""One HMP client's line, with its editing and completion; no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from virtserial.monitor.readline import Readline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from virtserial.options.values import Values

MAX_ECHO: Final = 64 << 10
"""Bytes of echo after which it is sent: a key can redraw a line of 4 KiB."""
PROMPT: Final = "(qemu) "
BANNER: Final = "QEMU {major}.{minor}.{micro} monitor - type 'help' for more information\n"


class HmpSession:
    """The line of a person or script; `prompt` begins one.

    Args:
        version: QEMU's, as query-version has it.
        complete: returns what the last word of a line could become, and how many of its characters are typed.
    """

    def __init__(self, version: Values, complete: Callable[[str], tuple[Sequence[str], int]]) -> None:
        self._readline = Readline(PROMPT, complete)
        self._out = [BANNER.format(**version.given)]
        self._waiting = 0

    def hand_over(self) -> dict[str, object]:
        """Return what a successor needs (`take_over`)."""
        return self._readline.hand_over()

    def take_over(self, saved: Mapping[str, Any]) -> None:
        """Take over a predecessor's line, without a banner."""
        self._out.clear()
        self._readline.take_over(saved)

    def receive(self, data: bytes) -> Iterator[str | None]:
        """Take what was typed; yield each line that it ends, and None where there is much to send first.

        Answer a line before asking for the next.
        """
        # A byte is a character: the line's length is QEMU's, and any encoding passes as it is.
        for character in data.decode("latin-1"):
            line = self._readline.type(character)
            self._collect()
            if self._waiting > MAX_ECHO:
                yield None
            if line is not None:
                yield line.encode("latin-1").decode(errors="surrogateescape")

    def answer(self, printed: str) -> None:
        """Show what a line printed, and the prompt."""
        self._out.append(printed.encode(errors="surrogateescape").decode("latin-1"))
        self.prompt()

    def prompt(self) -> None:
        """Begin a line."""
        self._readline.show_prompt()
        self._collect()

    def leave(self) -> None:
        """The focus moves to another user of the chardev."""
        self._out.append("\n")

    def _collect(self) -> None:
        shown = self._readline.output()
        self._out.append(shown)
        self._waiting += len(shown)

    def data_to_send(self) -> bytes:
        """Return the bytes to send, once."""
        data = "".join(self._out).replace("\n", "\r\n").encode("latin-1")
        self._out.clear()
        self._waiting = 0
        return data
