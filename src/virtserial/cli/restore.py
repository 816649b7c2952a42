"""`virtserial restore`: load the state of a controller of a running process from a file."""

from __future__ import annotations

import os

from virtserial.cli.save import ANSWER_TIME, Options
from virtserial.client.qmp import QmpClient
from virtserial.errors import ConfigError

USAGE = """usage: virtserial restore --monitor SOCKET [--id ID] FILE

  --monitor SOCKET      the QMP socket of the process (its -qmp unix:SOCKET,server=on,wait=off)
  --id ID               the controller; not needed if there is only one

The controller must have the ports and vectors of the one that was saved, and no driver yet.  It resumes as soon as its
VMM has connected and mapped guest memory.  QEMU resets a device when it connects, and so cannot use this.
"""


def run(words: list[str]) -> int:
    """Restore.

    Raises:
        ConfigError: it cannot be done; the controller is as after a reset.
    """
    options = Options(words, USAGE)
    if options.help or options.monitor is None or options.file is None:
        return 0 if options.help else 2
    try:
        fd = os.open(options.file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{options.file}: {error.strerror}") from error
    try:
        with QmpClient(options.monitor) as monitor:
            monitor.execute("getfd", {"fdname": "state"}, fd=fd)
            monitor.execute(
                "x-virtserial-restore", {**options.arguments(), "fdname": "state"}, answer_time=ANSWER_TIME
            )
    finally:
        os.close(fd)
    return 0
