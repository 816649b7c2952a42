"""The log of the device process in other forms than plain text: JSON lines, the journal's own protocol, a file.

Both processes log, and a worker may be a copy of the keeper or a new program, so a form travels as one text, where
logging has the format of a line:

| text | form |
|---|---|
| `json NAME` | one JSON object a line, on standard error |
| `journal NAME` | datagrams to journald, with fields (systemd's JOURNAL_NATIVE_PROTOCOL); NAME is the VM's |
| any other | logging's format of a line |

Only what is asked for loads this module.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import sys
import time
from typing import Final

from virtserial.errors import ConfigError
from virtserial.standard_error import LineHandler, write

JOURNAL: Final = "/run/systemd/journal/socket"
MAX_MESSAGE: Final = 16 << 10
"""Characters: a datagram has an end, and nobody reads more."""
PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""Levels of logging and of syslog(3)."""
DEBUG_PRIORITY: Final = 7


def begin(level: int, form: str) -> None:
    """Log in a form, as the table above has it."""
    kind, _, name = form.partition(" ")
    if kind == "journal":
        handler: logging.Handler = JournalHandler(form, name)
    elif kind == "json":
        handler = LineHandler()
        handler.setFormatter(JsonFormatter(form, name))
    else:
        handler = LineHandler()
        handler.setFormatter(logging.Formatter(form))
    logging.basicConfig(level=level, handlers=[handler])


def reopen() -> None:
    """In a process that was just forked, and has closed all descriptors: connect to the journal anew."""
    for handler in logging.root.handlers:
        if isinstance(handler, JournalHandler):
            handler.connect()


def is_journal(text: str) -> bool:
    """Whether standard error goes to journald: systemd.exec(5), $JOURNAL_STREAM."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return text == f"{status.st_dev}:{status.st_ino}"


class JsonFormatter(logging.Formatter):
    """
    Args:
        form: what this form is called.
        name: the VM's, "" for none.
    """

    def __init__(self, form: str, name: str) -> None:
        super().__init__(form, validate=False)
        self._name = name

    def format(self, record: logging.LogRecord) -> str:
        whole, part = divmod(int(record.created * 1e6), 1_000_000)
        line: dict[str, object] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{part:06}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": os.getpid(),
        }
        if self._name:
            line["vm"] = self._name
        line["message"] = record.getMessage()[:MAX_MESSAGE]
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)[-MAX_MESSAGE:]
        return json.dumps(line)


class JournalHandler(logging.Handler):
    """Sends records to journald, and never waits for it: what it has no room for is lost and counted.

    Args:
        form: what this form is called.
        name: the VM's, "" for none.
    """

    def __init__(self, form: str, name: str) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(form, validate=False))
        self._name = name
        self._socket: socket.socket | None = None
        self._lost = 0
        self.connect()

    def connect(self) -> None:
        """Connect to journald; without it lines go to standard error."""
        if self._socket is not None:
            self._socket.detach()  # The descriptor is closed, and its number may be another one's by now.
        self._socket = None
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            connection.connect(JOURNAL)
        except OSError:
            connection.close()
            return
        self._socket = connection

    def emit(self, record: logging.LogRecord) -> None:
        priority = next((number for level, number in PRIORITIES if record.levelno >= level), DEBUG_PRIORITY)
        message = record.getMessage()[:MAX_MESSAGE]
        fields = {
            "MESSAGE": message,
            "PRIORITY": str(priority),
            "SYSLOG_IDENTIFIER": "virtserial",
            "VIRTSERIAL_VM": self._name,
            "VIRTSERIAL_LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName,
        }
        if record.exc_info and self.formatter is not None:
            fields["VIRTSERIAL_TRACEBACK"] = self.formatter.formatException(record.exc_info)[-MAX_MESSAGE:]
        if self._lost:
            fields["VIRTSERIAL_LOST"] = str(self._lost)
        if self._socket is not None:
            try:
                self._socket.send(_datagram(fields), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._lost += 1
                return
            except OSError:
                pass  # There is no journald at the moment.
            else:
                self._lost = 0
                return
        # sd-daemon(3): journald takes the number in front of a line of standard error as its priority.
        write(f"<{priority}>{' '.join(message.splitlines())}\n")


def _datagram(fields: dict[str, str]) -> bytes:
    parts = []
    for name, value in fields.items():
        data = value.encode(errors="replace")
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n")
        elif data:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)


class LogFile:
    """Standard error, from here on, is a file: of this process, its workers, and whatever they start.

    Mistakes of the operator are still said where standard error was, until `close`.

    Args:
        path: is appended to; made with the rights of the umask, without others'.  Nobody waits for who reads a FIFO.

    Raises:
        ConfigError: it cannot be opened, or is a FIFO that nobody reads.
    """

    def __init__(self, path: str) -> None:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
            fd = os.open(path, flags, 0o640)
        except OSError as error:
            reason = "nobody reads this FIFO" if error.errno == errno.ENXIO else error.strerror
            raise ConfigError(f"-D {path}: {reason}") from error
        with contextlib.suppress(OSError):
            sys.stderr = open(os.dup(2), "w", buffering=1, errors="backslashreplace")  # noqa: SIM115
        os.dup2(fd, 2)
        os.close(fd)

    def close(self) -> None:
        """The process serves: what is to be said goes into the file."""
        if sys.stderr is not None and sys.stderr.fileno() != 2:
            sys.stderr.close()
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115  # for ever
