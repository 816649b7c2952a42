"""`virtserial save`: pause a controller of a running process, and save its state to a file."""

from __future__ import annotations

import os

from virtserial.client.qmp import QmpClient
from virtserial.errors import ConfigError, UsageError

USAGE = """usage: virtserial save --monitor SOCKET [--id ID] [--continue] FILE

  --monitor SOCKET      the QMP socket of the process (its -qmp unix:SOCKET,server=on,wait=off)
  --id ID               the controller; not needed if there is only one
  --continue            let the controller run again when it is saved

Halt the virtual machine first: guest memory is not in FILE.  The controller stays paused, unless
--continue is given: what it did later would not be in FILE.
"""


ANSWER_TIME = 60.0
"""Seconds that writing or reading a state may take."""


class Options:
    """The words of save, restore and their kin."""

    def __init__(self, words: list[str], usage: str, flags: tuple[str, ...] = ()) -> None:
        self.monitor: str | None = None
        self.id: str | None = None
        self.file: str | None = None
        self.flags: set[str] = set()
        self.help = False
        remaining = iter(words)
        for word in remaining:
            if word in ("-h", "--help", "-help"):
                self.help = True
            elif word in ("--monitor", "--id"):
                value = next(remaining, None)
                if value is None:
                    raise UsageError(f"{word}: requires an argument")
                setattr(self, word[2:], value)
            elif word in flags:
                self.flags.add(word)
            elif word.startswith("-") or self.file is not None:
                raise UsageError(f"{word}: invalid option")
            else:
                self.file = word
        if self.help or not words:
            print(usage, end="")
        elif self.monitor is None or self.file is None:
            raise UsageError(f"{'--monitor SOCKET' if self.monitor is None else 'a FILE'} is missing")

    def arguments(self) -> dict[str, object]:
        """What every command gets."""
        return {} if self.id is None else {"id": self.id}


def run(words: list[str]) -> int:
    """Save; the file appears when it is complete.

    Raises:
        ConfigError: it cannot be done; no file appears.
    """
    options = Options(words, USAGE, ("--continue",))
    if options.help or options.monitor is None or options.file is None:
        return 0 if options.help else 2
    temporary = f"{options.file}.{os.getpid()}.part"
    with QmpClient(options.monitor) as monitor:
        try:
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"{temporary}: {error.strerror}") from error
        try:
            monitor.execute("getfd", {"fdname": "state"}, fd=fd)
            monitor.execute(
                "x-virtserial-save", {**options.arguments(), "fdname": "state"}, answer_time=ANSWER_TIME
            )
            os.fsync(fd)
            os.rename(temporary, options.file)
        except OSError as error:
            os.unlink(temporary)
            raise ConfigError(f"{options.file}: {error.strerror}") from error
        except BaseException:
            os.unlink(temporary)
            raise
        finally:
            os.close(fd)
        if "--continue" in options.flags:
            monitor.execute("x-virtserial-cont", options.arguments())
    return 0
