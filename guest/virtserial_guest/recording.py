"""Recordings of consoles and ports: a line of JSON for what the port is, then one for each event (docs/recording.md).

A console's recording is asciicast v2, which asciinema and its players read: text, with what is no UTF-8 replaced.  A
port's has the same lines, but each character of a string stands for one byte, so that nothing is lost.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import time
from typing import Any, Callable, Iterator, NamedTuple

from .errors import PortError

OUTPUT, INPUT, RESIZE, MARK = "o", "i", "r", "m"
"""Kinds of events: from the guest, to the guest, the terminal's new size, the port comes or goes."""
FORM = "virtserial-port"
MAX_LINE = 16 << 20
MAX_KEPT = 1000


class RecordingError(PortError):
    """A file is no recording."""


class Event(NamedTuple):
    """An event of a recording.

    Attributes:
        at: seconds since the recording began.
        kind: OUTPUT, INPUT, RESIZE or MARK.
        data: the bytes; of RESIZE and MARK a text.
    """

    at: float
    kind: str
    data: bytes


class Recorder:
    """Writes a recording.  What goes wrong ends the recording, is said once, and never stops the port.

    Attributes:
        ended: why nothing more is recorded; "" while it is.
    """

    def __init__(
        self,
        path: str,
        title: str,
        size: tuple[int, int] | None = None,
        limit: int | None = None,
        keep: int = 0,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Begin a recording.

        Args:
            path: its file; what is there already is replaced.
            title: what is recorded.
            size: rows and columns of a console; None for a port.
            limit: the most bytes of a file.
            keep: full files that are kept, as PATH.1 (the latest) to PATH.keep; 0: the first full file is the end.
            say: takes a line about the end.

        Raises:
            OSError: the file cannot be made.
        """
        self.ended = ""
        self._path, self._title, self._console = path, title, size
        self._limit, self._keep = limit, min(keep, MAX_KEPT)
        self._say = say
        self._decoders = {kind: codecs.getincrementaldecoder("utf-8")("replace") for kind in (OUTPUT, INPUT)}
        self._fd = -1
        self._begin()

    def record(self, kind: str, data: bytes) -> None:
        """Record an event that happens now."""
        if self.ended or not data:
            return
        if kind in self._decoders:
            text = data.decode("latin-1") if self._console is None else self._decoders[kind].decode(data)
        else:
            text = data.decode("utf-8", "replace")
        if text:
            self._write([round(time.monotonic() - self._begun, 6), kind, text])

    def resize(self, rows: int, columns: int) -> None:
        """Record a console's new size."""
        if self._console is not None and (rows, columns) != self._console:
            self._console = rows, columns
            self.record(RESIZE, b"%dx%d" % (columns, rows))

    def mark(self, text: str) -> None:
        """Record that something happened to the port."""
        self.record(MARK, text.encode())

    def close(self) -> None:
        """End the recording."""
        self._end("closed", False)

    def _begin(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOCTTY
        self._fd = os.open(self._path, flags, 0o600)
        self._begun = time.monotonic()
        self._written = 0
        header: dict[str, Any] = {"version": 2, "timestamp": int(time.time()), "title": self._title}
        if self._console is None:
            header = {**header, "virtserial": FORM, "width": 80, "height": 24}
        else:
            header = {**header, "width": self._console[1], "height": self._console[0]}
        self._write(header)

    def _write(self, value: object) -> None:
        line = json.dumps(value, separators=(",", ":")).encode() + b"\n"
        if self._limit is not None and self._written and self._written + len(line) > self._limit:
            if not self._rotate():
                return
            if isinstance(value, list):
                value[0] = 0.0
                line = json.dumps(value, separators=(",", ":")).encode() + b"\n"
        try:
            done = 0
            while done < len(line):
                done += os.write(self._fd, line[done:])
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._written)  # no half of a line
            self._end(error.strerror or str(error), True)
            return
        self._written += len(line)

    def _rotate(self) -> bool:
        if not self._keep:
            self._end(f"it has reached {self._limit} bytes", True)
            return False
        os.close(self._fd)
        self._fd = -1
        try:
            for number in range(self._keep - 1, 0, -1):
                if os.path.lexists(f"{self._path}.{number}"):
                    os.rename(f"{self._path}.{number}", f"{self._path}.{number + 1}")
            os.rename(self._path, f"{self._path}.1")
            self._begin()
        except OSError as error:
            self._end(error.strerror or str(error), True)
        return not self.ended

    def _end(self, reason: str, is_said: bool) -> None:
        if self.ended:
            return
        self.ended = reason
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if is_said:
            self._say(f"the recording in {self._path} ends here: {reason}")


class Recording:
    """A recording that is read.

    Attributes:
        is_console: it is a terminal's, as text.
        title: what was recorded.
    """

    def __init__(self, path: str) -> None:
        """Open it.

        Raises:
            OSError: the file cannot be read.
            RecordingError: it is no recording.
        """
        self._path = path
        self._file = open(path, "rb")  # noqa: SIM115  # close() closes it
        try:
            header = self._value(self._file.readline(MAX_LINE), 1)
            if not isinstance(header, dict) or header.get("version") != 2:
                raise RecordingError(f"{path}: no recording of virtserial or asciinema (asciicast v2)")
        except RecordingError:
            self._file.close()
            raise
        self.is_console = header.get("virtserial") != FORM
        self.title = str(header.get("title", ""))

    def __iter__(self) -> Iterator[Event]:
        """Yield the events.

        Raises:
            RecordingError: a line is none; the last one may be cut short.
        """
        for number, line in enumerate(iter(lambda: self._file.readline(MAX_LINE), b""), 2):
            if not line.endswith(b"\n"):
                return
            value = self._value(line, number)
            try:
                at, kind, text = value
                encoding = "utf-8" if self.is_console or kind in (RESIZE, MARK) else "latin-1"
                yield Event(float(at), str(kind), str(text).encode(encoding))
            except (ValueError, TypeError) as error:
                raise RecordingError(f"{self._path}:{number}: not [seconds, kind, text]") from error

    def _value(self, line: bytes, number: int) -> Any:  # noqa: ANN401  # a JSON value
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RecordingError(f"{self._path}:{number}: no line of JSON") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()
