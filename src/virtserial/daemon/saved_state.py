"""Saving a controller's state to a file and taking it from one: the worker's half, and what is said about it.

The keeper has the file, opened by whoever asked for it; the worker has the device.  The file is a regular one, so that
neither waits for it.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, cast

from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from virtserial.channel.channel import Message
    from virtserial.daemon.keeper.keeper import Keeper
    from virtserial.daemon.worker.guest_device import GuestDevice
    from virtserial.machine.model import Controller


# In the keeper


def save_controller(keeper: Keeper, controller: Controller, fd: int) -> None:
    """Have a controller stand still and write its state to a file; it stands still until `continue_controller`.

    Raises:
        ConfigError: it cannot be; then the controller runs on.
    """
    _check_file(fd)
    _ask(keeper, {"type": "save", "controller": controller.index}, fd)


def restore_controller(keeper: Keeper, controller: Controller, fd: int) -> None:
    """Have a controller, which no driver uses, go on with the state in a file.

    Raises:
        ConfigError: it cannot be; the controller is as after a reset, or as before where a driver uses it.
    """
    _check_file(fd)
    _ask(keeper, {"type": "restore", "controller": controller.index}, fd)


def continue_controller(keeper: Keeper, controller: Controller) -> None:
    """Have a controller run that was saved.

    Raises:
        ConfigError: there is no worker to do it.
    """
    _ask(keeper, {"type": "continue", "controller": controller.index})


def _check_file(fd: int) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise ConfigError("a saved state is a regular file, this is something else")


def _ask(keeper: Keeper, message: Message, *fds: int) -> None:
    answer = keeper.ask_worker(message, fds)
    if answer["error"] is not None:
        raise ConfigError(str(answer["error"]))


# In the worker


def answer_request(device: GuestDevice, message: Message, fds: list[int]) -> Message:
    """Do what the keeper asks and return what to say about it."""
    try:
        if message["type"] == "save":
            _save(device, fds[0])
        elif message["type"] == "restore":
            _restore(device, fds[0])
        else:
            device.resume()
        error = None
    except ConfigError as refused:
        error = str(refused)
    except OSError as failed:
        error = f"the file of the saved state: {failed.strerror}"
    finally:
        for fd in fds:
            os.close(fd)
    return {"type": "answer", "request": cast(int, message["request"]), "error": error}


def _save(device: GuestDevice, fd: int) -> None:
    was_paused = device.console.paused
    device.pause()
    try:
        state = memoryview(device.save_state())
        os.ftruncate(fd, 0)
        start = 0
        while start < len(state):
            start += os.pwrite(fd, state[start:], start)
    except OSError:
        if not was_paused:
            device.resume()
        raise


def _restore(device: GuestDevice, fd: int) -> None:
    if device.console.status:
        raise ConfigError(f"{device.name} is used by a guest's driver: a state is restored before that comes")
    limit = device.max_state_size
    state = bytearray()
    while len(state) <= limit and (part := os.pread(fd, limit + 1 - len(state), len(state))):
        state += part
    device.pause()
    try:
        device.load_state(bytes(state))
    finally:
        device.resume()
