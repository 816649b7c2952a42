"""Saving a controller's state to a file and restoring it from one: the keeper's half (worker/saved_state.py).

The keeper has the file, opened by whoever asked for it; the worker has the device.  The file is a regular one, so that
neither waits for it.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from virtserial.channel.requests import Restore, Resume, Save
from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from virtserial.channel.requests import Request
    from virtserial.daemon.keeper.supervisor import Supervisor
    from virtserial.machine.model import Controller


def save_controller(workers: Supervisor, controller: Controller, fd: int) -> None:
    """Pause a controller and write its state to a file; it stays paused until `resume_controller`.

    Raises:
        ConfigError: it cannot be done; then the controller runs on.
    """
    _check_file(fd)
    try:
        os.ftruncate(fd, 0)  # a confined worker may not: it has guests' memory files and logs, too
    except OSError as error:
        raise ConfigError(f"the file of the saved state: {error.strerror}") from error
    _ask(workers, Save(workers.next_request(), controller.index), fd)


def restore_controller(workers: Supervisor, controller: Controller, fd: int) -> None:
    """Load the state in a file into a controller that no driver uses, and resume it.

    Raises:
        ConfigError: it cannot be done; the controller is as after a reset, or as before where a driver uses it.
    """
    _check_file(fd)
    _ask(workers, Restore(workers.next_request(), controller.index), fd)


def resume_controller(workers: Supervisor, controller: Controller) -> None:
    """Let a controller run again that was saved.

    Raises:
        ConfigError: no worker can do it.
    """
    _ask(workers, Resume(workers.next_request(), controller.index, signal=False))


def _check_file(fd: int) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise ConfigError("a saved state is a regular file, this is something else")


def _ask(workers: Supervisor, request: Request, *fds: int) -> None:
    error = workers.ask(request, fds).error
    if error is not None:
        raise ConfigError(error)
