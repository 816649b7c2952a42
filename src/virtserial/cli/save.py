"""`virtserial save`: pause a controller of a running process, and save its state to a file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from virtserial.client.qmp import QmpClient
from virtserial.errors import ConfigError
from virtserial.guest.words import Parser

if TYPE_CHECKING:
    from argparse import Namespace

ANSWER_TIME = 60.0
"""Seconds that writing or reading a state may take."""


def add_controller(parser: Parser) -> None:
    """Add the process and its controller, which `save` and `restore` have in common."""
    parser.add_argument(
        "--monitor", metavar="SOCKET", required=True,
        help="the QMP socket of the process (its -qmp unix:SOCKET,server=on,wait=off)",
    )  # fmt: skip
    parser.add_argument("--id", metavar="ID", help="the controller; not needed if there is only one")


def arguments(options: Namespace) -> dict[str, object]:
    """What every command of the monitor gets."""
    return {} if options.id is None else {"id": options.id}


def run(words: list[str]) -> int:
    """Save; the file appears when it is complete.

    Raises:
        ConfigError: it cannot be done; no file appears.
    """
    parser = Parser(
        "virtserial save",
        description="Pause a controller and save its state. Halt the virtual machine first: guest memory is not in "
        "FILE. The controller stays paused, unless --continue is given: what it did later would not be in FILE.",
    )
    add_controller(parser)
    parser.add_argument("--continue", dest="goes_on", action="store_true", help="let it run again when it is saved")
    parser.add_argument("file", metavar="FILE", help="appears when it is complete")
    options = parser.parse_args(words)
    path: str = options.file
    temporary = f"{path}.{os.getpid()}.part"
    with QmpClient(options.monitor) as monitor:
        try:
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        try:
            monitor.execute("getfd", {"fdname": "state"}, fd=fd)
            monitor.execute("x-virtserial-save", {**arguments(options), "fdname": "state"}, answer_time=ANSWER_TIME)
            os.fsync(fd)
            os.rename(temporary, path)
        except OSError as error:
            os.unlink(temporary)
            raise ConfigError(f"{path}: {error.strerror}") from error
        except BaseException:
            os.unlink(temporary)
            raise
        finally:
            os.close(fd)
        if options.goes_on:
            monitor.execute("x-virtserial-cont", arguments(options))
    return 0
