"""`virtserial restore`: load the state of a controller of a running process from a file."""

from __future__ import annotations

import os

from virtserial.cli.save import ANSWER_TIME, add_controller, arguments
from virtserial.client.qmp import QmpClient
from virtserial.errors import ConfigError
from virtserial.guest.words import Parser


def run(words: list[str]) -> int:
    """Restore.

    Raises:
        ConfigError: it cannot be done; the controller is as after a reset.
    """
    parser = Parser(
        "virtserial restore",
        description="Load a saved state into a controller. It must have the ports and vectors of the one that was "
        "saved, and no driver yet. It resumes as soon as its VMM has connected and mapped guest memory. QEMU resets "
        "a device when it connects, and so cannot use this.",
    )
    add_controller(parser)
    parser.add_argument("file", metavar="FILE", help="of `virtserial save`")
    options = parser.parse_args(words)
    try:
        fd = os.open(options.file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{options.file}: {error.strerror}") from error
    try:
        with QmpClient(options.monitor) as monitor:
            monitor.execute("getfd", {"fdname": "state"}, fd=fd)
            monitor.execute("x-virtserial-restore", {**arguments(options), "fdname": "state"}, answer_time=ANSWER_TIME)
    finally:
        os.close(fd)
    return 0
