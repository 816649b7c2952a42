"""chardev stdio: this process's standard input and output, the terminal in raw mode (QEMU's chardev/char-stdio.c)."""

from __future__ import annotations

import atexit
import contextlib
import os
from typing import TYPE_CHECKING

from virtserial.channel.connections import StreamConnection
from virtserial.chardev.base import Chardev
from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType
    from typing import Any

    from virtserial.chardev.base import ConnectionSink, Put, Take
    from virtserial.loop import EventLoop

STDIN, STDOUT = 0, 1


class StdioChardev(Chardev):
    """One at a time in a process.  With `signal` off Ctrl-C and the like go to the guest.  At the end of the input the
    host hangs up, as with QEMU.

    Attributes:
        sets_terminal_modes: False: another process sets and restores them.
    """

    kind = "stdio"
    sets_terminal_modes = True
    _in_use = False

    def __init__(self, chardev_id: str, *, signal: bool = True) -> None:
        super().__init__(chardev_id)
        self.signal = signal
        self._is_open = False
        self._blocking: list[tuple[int, bool]] = []
        self._terminal_attributes: list[Any] | None = None
        self._raw_attributes: list[Any] | None = None
        self._previous_sigcont: Any = None

    def open(self, loop: EventLoop, sink: ConnectionSink) -> None:
        if StdioChardev._in_use:
            raise ConfigError("cannot use stdio by multiple character devices")
        try:
            self._blocking = [(fd, os.get_blocking(fd)) for fd in (STDIN, STDOUT)]
        except OSError as error:
            raise ConfigError(
                f"cannot use stdio: standard input or output is not open: {error.strerror}"
            ) from error
        StdioChardev._in_use = self._is_open = True
        atexit.register(self.close)
        for fd, _ in self._blocking:
            os.set_blocking(fd, False)
        if self.sets_terminal_modes and os.isatty(STDIN):
            self._set_raw_terminal()
        connection = StreamConnection(f"chardev '{self.id}' (stdio)", 0, 1)
        sink.connection_opened(self, connection, (os.dup(STDIN), os.dup(STDOUT)))

    def _set_raw_terminal(self) -> None:
        """Character by character, 8 bits, without echo; newlines are still made CR LF on the way out."""
        import termios

        from virtserial.chardev.raw_mode import cfmakeraw

        self._terminal_attributes = termios.tcgetattr(STDIN)
        raw = termios.tcgetattr(STDIN)
        signals = raw[3] & termios.ISIG
        cfmakeraw(raw)
        raw[1] |= termios.OPOST
        if self.signal:
            raw[3] |= signals
        self._put_terminal_in_mode(raw)

    def _put_terminal_in_mode(self, raw: list[Any]) -> None:
        import termios

        self._raw_attributes = raw
        termios.tcsetattr(STDIN, termios.TCSANOW, raw)
        self._follow_sigcont()

    def _follow_sigcont(self) -> None:
        """Set the modes again after SIGCONT: the shell sets its own while this process is suspended."""
        import signal
        import termios

        def resumed(_signal: int, _frame: FrameType | None) -> None:
            if self._raw_attributes is not None:
                for fd, _ in self._blocking:
                    os.set_blocking(fd, False)
                termios.tcsetattr(STDIN, termios.TCSANOW, self._raw_attributes)

        with contextlib.suppress(ValueError):  # Only the main thread can set signal handlers.
            self._previous_sigcont = signal.signal(signal.SIGCONT, resumed)

    def hand_over(self, put: Put) -> dict[str, object]:
        return {
            "blocking": self._blocking,
            "terminal": _as_json(self._terminal_attributes),
            "raw": _as_json(self._raw_attributes),
        }

    def take_over(self, loop: EventLoop, sink: ConnectionSink, saved: Mapping[str, Any], take: Take) -> None:
        StdioChardev._in_use = self._is_open = True
        atexit.register(self.close)
        self._blocking = [(fd, blocking) for fd, blocking in saved["blocking"]]
        self._terminal_attributes = _from_json(saved["terminal"])
        if (raw := _from_json(saved["raw"])) is not None:
            self._put_terminal_in_mode(raw)

    def close(self) -> None:
        if not self._is_open:
            return
        self._is_open = StdioChardev._in_use = False
        atexit.unregister(self.close)
        self._raw_attributes = None
        if self._terminal_attributes is not None:
            import signal
            import termios

            with contextlib.suppress(termios.error):  # The terminal may be gone.
                termios.tcsetattr(STDIN, termios.TCSANOW, self._terminal_attributes)
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGCONT, self._previous_sigcont or signal.SIG_DFL)
        for fd, blocking in self._blocking:
            with contextlib.suppress(OSError):
                os.set_blocking(fd, blocking)


def _as_json(attributes: list[Any] | None) -> list[Any] | None:
    """Return the result of termios.tcgetattr with its characters as text."""
    if attributes is None:
        return None
    characters = [each.decode("latin-1") if isinstance(each, bytes) else each for each in attributes[6]]
    return [*attributes[:6], characters]


def _from_json(attributes: list[Any] | None) -> list[Any] | None:
    if attributes is None:
        return None
    characters = [each.encode("latin-1") if isinstance(each, str) else each for each in attributes[6]]
    return [*attributes[:6], characters]
